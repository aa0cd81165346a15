//! Those who follow what is stored.

use obs_model::{LogRecord, TenantId};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, Weak};

/// Told of records after they are stored; called on the write path, so it must be quick.
pub trait Watch: Send + Sync {
    fn stored(&self, tenant: &TenantId, records: &[LogRecord]);
}

/// Watchers, as long as somebody else holds them.
#[derive(Default)]
pub(crate) struct Watchers(RwLock<Vec<Weak<dyn Watch>>>);

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").finish_non_exhaustive()
    }
}

impl Watchers {
    pub(crate) fn add(&self, watch: Weak<dyn Watch>) {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        list.retain(|w| w.strong_count() > 0);
        list.push(watch);
    }

    pub(crate) fn all(&self) -> Vec<Arc<dyn Watch>> {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        list.iter().filter_map(Weak::upgrade).collect()
    }
}
