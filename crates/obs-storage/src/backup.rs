//! A consistent copy of a running store, and the port for those who look after it.

use crate::manifest;
use crate::store::Store;
use obs_model::{DeleteScope, Maintain, MaintainFuture, SnapshotFile, TenantId, TimestampNs};
use std::io;
use std::sync::PoisonError;

impl Store {
    /// Returns the segments and a manifest that names exactly these. Files are opened while no
    /// merge can remove them; afterwards removal takes only their names.
    fn files(&self) -> io::Result<Vec<SnapshotFile>> {
        // Before the data: what is settled in it may be open here, and is found settled then.
        let (control_path, control) = self.control.standalone();
        let guard = self.inner.manifest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = guard.as_ref().map(|m| m.state.clone()) else {
            return Err(io::Error::other("the manifest could not be opened for writing"));
        };
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let (path, len) = (control_path, control.len() as u64);
        let mut out = vec![SnapshotFile { path, len, content: Box::new(control) }];
        for s in &view.segments {
            let (path, len) = (s.meta.relative_path(), s.meta.bytes);
            out.push(SnapshotFile { path, len, content: s.raw()? });
        }
        drop((view, guard));
        // Last: a copy that was cut short has no manifest and cannot pass for a whole one.
        for (path, bytes) in manifest::standalone(state) {
            let len = bytes.len() as u64;
            out.push(SnapshotFile { path, len, content: Box::new(bytes) });
        }
        Ok(out)
    }
}

impl Maintain for Store {
    fn is_behind(&self) -> bool {
        Self::is_behind(self)
    }

    fn flush(&self) -> MaintainFuture<'_, ()> {
        Box::pin(Self::flush(self))
    }

    fn merge(&self) -> MaintainFuture<'_, ()> {
        Box::pin(Self::merge(self))
    }

    fn delete<'a>(&'a self, tenant: &'a TenantId, scope: DeleteScope) -> MaintainFuture<'a, ()> {
        Box::pin(Self::delete(self, tenant, scope))
    }

    fn snapshot(&self) -> MaintainFuture<'_, Vec<SnapshotFile>> {
        Box::pin(async move {
            Self::flush(self).await?;
            let store = self.clone();
            tokio::task::spawn_blocking(move || store.files())
                .await
                .map_err(|e| e.to_string())?
                .map_err(|e| format!("cannot read the store: {e}"))
        })
    }

    fn tier(&self, now: TimestampNs) -> MaintainFuture<'_, u64> {
        let store = self.clone();
        Box::pin(async move {
            let work = move || Self::tier(&store, now);
            tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
        })
    }
}
