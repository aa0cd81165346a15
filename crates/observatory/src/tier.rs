//! Settings of the object store, and the task that moves older segments to it.

use crate::config::duration;
use crate::serve::wall_clock;
use obs_objects::open;
use obs_storage::{Store, TierConfig};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// How often segments that are due are looked for.
const INTERVAL: Duration = Duration::from_secs(60);
const AFTER_DEFAULT: Duration = Duration::from_secs(2 * 86_400);
const CACHE_BYTES_DEFAULT: u64 = 4 << 30;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTier {
    url: String,
    after: Option<String>,
    local_bytes: Option<u64>,
    cache_bytes: Option<u64>,
    options: BTreeMap<String, String>,
}

/// Validated settings; nothing was connected to yet.
#[derive(Clone)]
pub(crate) struct TierSettings {
    url: String,
    after: Duration,
    local_bytes_max: Option<u64>,
    cache_bytes_max: u64,
    options: Vec<(String, String)>,
}

impl std::fmt::Debug for TierSettings {
    // Options hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TierSettings").field("after", &self.after).finish_non_exhaustive()
    }
}

impl TierSettings {
    pub(crate) fn read(raw: RawTier) -> Result<Self, String> {
        let after = match &raw.after {
            None => AFTER_DEFAULT,
            Some(text) => duration(text).ok_or_else(|| {
                format!("data.tier.after: {text:?} is no duration; write 36h or 2d")
            })?,
        };
        if !obs_objects::is_url(&raw.url) {
            return Err(format!("data.tier.url: {:?} is no URL; write s3://BUCKET/PATH", raw.url));
        }
        Ok(Self {
            url: raw.url,
            after,
            local_bytes_max: raw.local_bytes,
            cache_bytes_max: raw.cache_bytes.unwrap_or(CACHE_BYTES_DEFAULT),
            options: raw.options.into_iter().collect(),
        })
    }

    /// Prepares the connection; the first request is made when the first segment moves or is read.
    pub(crate) fn open(&self, runtime: Handle) -> Result<TierConfig, String> {
        let objects = open(&self.url, &self.options, runtime);
        Ok(TierConfig {
            objects: objects.map_err(|e| format!("data.tier: {e}"))?,
            after: self.after,
            local_bytes_max: self.local_bytes_max,
            cache_bytes_max: self.cache_bytes_max,
            // A random number: the standard library seeds its hashes with one.
            id: RandomState::new().hash_one(std::process::id()),
        })
    }
}

/// Moves segments until told to stop.
pub(crate) async fn run(store: Store, stop: CancellationToken) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => {}
        }
        let worker = store.clone();
        let work = tokio::task::spawn_blocking(move || worker.tier(wall_clock()));
        tokio::select! {
            // What is under way is begun again by the next process.
            () = stop.cancelled() => return,
            done = work => match done {
                Ok(Ok(0)) => {}
                Ok(Ok(n)) => tracing::info!(segments = n, "moved older data to the object store"),
                Ok(Err(e)) => tracing::error!(error = %e, "older data stays on the local disk for now"),
                Err(e) => tracing::error!(error = %e, "older data stays on the local disk for now"),
            },
        }
    }
}
