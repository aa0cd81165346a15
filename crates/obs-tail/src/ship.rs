//! Brings lines to the store, however long that takes.

use crate::config::{Job, LimitsConfig};
use crate::stage::{Limits, Pipeline};
use crate::{Counts, LogSink, StoreError};
use obs_model::{Labels, LogRecord};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
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
    /// What all sources together may read, if that is limited.
    pub(crate) rate: Option<Arc<Rate>>,
    /// What the pipelines of the job's sources share.
    pub(crate) limits: Limits,
}

/// Lines a second for all sources together.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: f64,
    burst: f64,
    drop: bool,
    /// Lines that may be read now, fewer than none when more were, and since when.
    tokens: Mutex<(f64, Instant)>,
}

impl Rate {
    /// Promtail's `readline_rate`; `None` where it is not switched on.
    pub(crate) fn new(c: &LimitsConfig) -> Option<Self> {
        const RATE: f64 = 10_000.0;
        c.readline_rate_enabled.then(|| {
            let burst = c.readline_burst.unwrap_or(RATE).max(1.0);
            Self {
                per_second: c.readline_rate.unwrap_or(RATE).max(0.001),
                burst,
                drop: c.readline_rate_drop.unwrap_or(true),
                tokens: Mutex::new((burst, Instant::now())),
            }
        })
    }

    /// Takes so many lines at `now`. Returns how many may pass and how long to wait before.
    fn take(&self, lines: usize, now: Instant) -> (usize, Duration) {
        let mut held = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, since) = *held;
        let fresh = now.saturating_duration_since(since).as_secs_f64() * self.per_second;
        let tokens = (tokens + fresh).min(self.burst);
        let pass = if self.drop { lines.min(tokens.max(0.0) as usize) } else { lines };
        let left = tokens - pass as f64;
        *held = (left, now);
        (pass, Duration::try_from_secs_f64((-left).max(0.0) / self.per_second).unwrap_or_default())
    }
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
    /// Builds the pipeline of one of a job's sources.
    ///
    /// # Errors
    /// With the stage and what is wrong with it.
    pub(crate) fn pipeline(&self, job: &Job) -> Result<Pipeline, String> {
        Pipeline::new(&job.pipeline_stages, &self.counts, &self.limits)
    }

    /// Waits before a source is read on, or until it is stopped.
    pub(crate) async fn pause(&self, time: Duration) {
        if !time.is_zero() {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(time) => {}
            }
        }
    }

    /// Stores a batch; returns false when it was stopped before everything was stored.
    pub(crate) async fn ship(&self, batch: Batch) -> bool {
        const FIRST_WAIT: Duration = Duration::from_millis(200);
        const LONGEST_WAIT: Duration = Duration::from_secs(10);
        for (tenant, mut records) in batch {
            if !self.external.is_empty() {
                label(&mut records, &self.external);
            }
            if let Some(rate) = &self.rate {
                let (pass, time) = rate.take(records.len(), Instant::now());
                self.counts.over_rate.fetch_add((records.len() - pass) as u64, Relaxed);
                records.truncate(pass);
                self.pause(time).await;
                if self.stop.is_cancelled() {
                    return false;
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_drops_what_is_over_it_or_waits() {
        let limits = |drop| LimitsConfig {
            readline_rate_enabled: true,
            readline_rate: Some(10.0),
            readline_burst: Some(20.0),
            readline_rate_drop: Some(drop),
            ..LimitsConfig::default()
        };
        assert!(Rate::new(&LimitsConfig::default()).is_none());
        let (dropping, start) = (Rate::new(&limits(true)).unwrap(), Instant::now());
        let later = |s: u64| start + Duration::from_secs(s);
        assert_eq!(dropping.take(30, start), (20, Duration::ZERO));
        assert_eq!(dropping.take(30, later(1)), (10, Duration::ZERO));
        let waiting = Rate::new(&limits(false)).unwrap();
        assert_eq!(waiting.take(40, start), (40, Duration::from_secs(2)));
        assert_eq!(waiting.take(10, later(2)), (10, Duration::from_secs(1)));
    }
}
