//! Brings lines to the store, however long that takes.

use crate::{Counts, LogSink, StoreError};
use obs_model::{Labels, LogRecord};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Records by the tenant they are for.
pub(crate) type Batch = BTreeMap<Option<String>, Vec<LogRecord>>;

/// What all sources share.
#[derive(Clone)]
pub(crate) struct Shipper {
    pub(crate) sink: Arc<dyn LogSink>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) stop: CancellationToken,
    /// Labels of every line that lacks them.
    pub(crate) external: Arc<BTreeMap<String, String>>,
}

/// Adds labels to each record; what it has stays.
fn label(records: &mut [LogRecord], external: &BTreeMap<String, String>) {
    let mut last: Option<(Labels, Labels)> = None;
    for r in records {
        if let Some((_, now)) = last.as_ref().filter(|(before, _)| *before == r.stream) {
            r.stream = now.clone();
            continue;
        }
        let mut b = r.stream.to_builder();
        for (n, v) in external.iter().filter(|(n, _)| r.stream.get(n).is_empty()) {
            b.set(n, v);
        }
        let now = b.build();
        last = Some((std::mem::replace(&mut r.stream, now.clone()), now));
    }
}

impl Shipper {
    /// Stores a batch; returns false when it was stopped before everything was stored.
    pub(crate) async fn ship(&self, batch: Batch) -> bool {
        const FIRST_WAIT: Duration = Duration::from_millis(200);
        const LONGEST_WAIT: Duration = Duration::from_secs(10);
        for (tenant, mut records) in batch {
            if !self.external.is_empty() {
                label(&mut records, &self.external);
            }
            let (mut wait, count) = (FIRST_WAIT, records.len() as u64);
            loop {
                match self.sink.store(tenant.as_deref(), records.clone()).await {
                    Ok(()) => break,
                    Err(StoreError::Never(why)) => {
                        tracing::warn!(lines = count, why, "lines were refused");
                        self.counts.refused.fetch_add(count, Relaxed);
                        break;
                    }
                    Err(StoreError::Later(why)) => {
                        tracing::debug!(lines = count, why, "lines wait");
                        self.counts.retries.fetch_add(1, Relaxed);
                        tokio::select! {
                            () = self.stop.cancelled() => return false,
                            () = tokio::time::sleep(wait) => {}
                        }
                        wait = (wait * 2).min(LONGEST_WAIT);
                    }
                }
            }
        }
        true
    }
}
