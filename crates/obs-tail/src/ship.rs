//! Brings lines to the store, however long that takes.

use crate::{Counts, LogSink, StoreError};
use obs_model::LogRecord;
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
}

impl Shipper {
    /// Stores a batch; returns false when it was stopped before everything was stored.
    pub(crate) async fn ship(&self, batch: Batch) -> bool {
        const FIRST_WAIT: Duration = Duration::from_millis(200);
        const LONGEST_WAIT: Duration = Duration::from_secs(10);
        for (tenant, records) in batch {
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
