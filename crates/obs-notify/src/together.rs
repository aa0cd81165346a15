//! The exchange with other instances over a store that all of them reach.

use crate::driver::Dispatcher;
use obs_model::{Claim, ShareError, ShareState, Shared, TimestampNs};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often others are listened to.
const LISTEN: Duration = Duration::from_millis(500);
/// How long one exchange or claim may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a delivery waits for a store that is out of reach, from when that began: a restart of
/// the store is no reason to tell things twice.
const ALONE_AFTER: Duration = Duration::from_secs(10);
/// Values that wait to be said; when there are more, everything is said anew.
const WAITING_MAX: usize = 50_000;
/// Values of one transaction.
const BATCH: usize = 500;

/// The instances that share a store, for the API and the metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    pub name: String,
    /// All that live, this one among them.
    pub names: Vec<String>,
    pub is_reachable: bool,
    /// Exchanges and claims that failed.
    pub failures: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The latest of each.
    values: BTreeMap<(String, String), Shared>,
    released: Vec<String>,
    /// Whether all that is known must be said.
    everything: bool,
}

#[derive(Debug)]
struct Seen {
    position: i64,
    names: Vec<String>,
    /// Since when the store has been out of reach.
    lost: Option<Instant>,
}

/// This instance's end of the exchange.
pub(crate) struct Together {
    store: Arc<dyn ShareState>,
    waiting: Mutex<Waiting>,
    seen: Mutex<Seen>,
    failures: AtomicU64,
    wake: Notify,
    /// One exchange at a time.
    exchange: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Together {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Together").field("store", &self.store).finish_non_exhaustive()
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn within<T>(f: impl Future<Output = Result<T, ShareError>>) -> Result<T, ShareError> {
    let late = || ShareError(format!("no answer within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, f).await.unwrap_or_else(|_| Err(late()))
}

impl Together {
    pub(crate) fn new(store: Arc<dyn ShareState>) -> Self {
        Self {
            store,
            waiting: Mutex::new(Waiting { everything: true, ..Waiting::default() }),
            seen: Mutex::new(Seen { position: 0, names: Vec::new(), lost: Some(Instant::now()) }),
            failures: AtomicU64::new(0),
            wake: Notify::new(),
            exchange: tokio::sync::Mutex::new(()),
        }
    }

    /// Says values soon.
    pub(crate) fn say(&self, values: impl Iterator<Item = Shared>) {
        let mut w = lock(&self.waiting);
        for s in values {
            // What was taken back is no longer among what is known.
            if w.everything && s.value.is_some() {
                continue;
            }
            w.values.insert((s.space.clone(), s.key.clone()), s);
            if w.values.len() > WAITING_MAX {
                w.values.retain(|_, s| s.value.is_none());
                w.everything = true;
            }
        }
        drop(w);
        self.wake.notify_one();
    }

    /// Gives a claim back soon, with or after what was said before.
    pub(crate) fn release(&self, key: &str) {
        lock(&self.waiting).released.push(key.to_owned());
        self.wake.notify_one();
    }

    pub(crate) async fn pause(&self) {
        tokio::select! {
            () = tokio::time::sleep(LISTEN) => {}
            () = self.wake.notified(), if lock(&self.seen).lost.is_none() => {}
        }
    }

    pub(crate) fn members(&self) -> Members {
        let seen = lock(&self.seen);
        Members {
            name: self.store.name().to_owned(),
            names: seen.names.clone(),
            is_reachable: seen.lost.is_none(),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    fn failed(&self, e: &ShareError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiting).everything = true;
        let mut seen = lock(&self.seen);
        // Perhaps another store will answer there.
        seen.position = 0;
        if seen.lost.is_none() {
            seen.lost = Some(Instant::now());
            drop(seen);
            tracing::error!(error = %e, "this instance tells receivers by itself for now");
        }
    }

    /// Says what waits and takes what others said; failures are noted.
    pub(crate) async fn exchange(&self, to: &Dispatcher) {
        let _one = self.exchange.lock().await;
        let done = async {
            self.say_all(to).await?;
            self.listen(to).await
        };
        match done.await {
            Ok(()) => {
                if lock(&self.seen).lost.take().is_some() {
                    tracing::info!(
                        name = self.store.name(),
                        "alerts are shared with other instances"
                    );
                }
            }
            Err(e) => {
                self.failed(&e);
                to.hear_nothing();
            }
        }
    }

    async fn say_all(&self, to: &Dispatcher) -> Result<(), ShareError> {
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        let mut values: Vec<Shared> =
            if waiting.everything { to.core().everything() } else { Vec::new() };
        let taken_back: Vec<Shared> =
            waiting.values.values().filter(|s| s.value.is_none()).cloned().collect();
        values.extend(waiting.values.into_values());
        let mut released = waiting.released;
        if values.is_empty() && released.is_empty() {
            return Ok(());
        }
        loop {
            let rest = values.split_off(values.len().min(BATCH));
            let is_last = rest.is_empty();
            let free = if is_last { std::mem::take(&mut released) } else { Vec::new() };
            if let Err(e) = within(self.store.share(values, free.clone())).await {
                // The rest is said again because everything is.
                lock(&self.waiting).released.extend(free.into_iter().chain(released));
                self.say(taken_back.into_iter());
                return Err(e);
            }
            values = rest;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn listen(&self, to: &Dispatcher) -> Result<(), ShareError> {
        loop {
            let position = lock(&self.seen).position;
            let news = within(self.store.news(position)).await?;
            if !news.values.is_empty() || !news.abandoned.is_empty() {
                to.hear(&news.values, &news.abandoned).await;
            }
            let mut seen = lock(&self.seen);
            seen.position = news.position;
            seen.names = news.members;
            if !news.has_more {
                return Ok(());
            }
        }
    }

    /// Claims a delivery; `None` when the store has been out of reach for so long that this
    /// instance goes on alone.
    pub(crate) async fn claim(&self, space: &str, key: &str, known: TimestampNs) -> Option<Claim> {
        loop {
            let lost = lock(&self.seen).lost;
            if lost.is_some_and(|since| since.elapsed() >= ALONE_AFTER) {
                return None;
            }
            match within(self.store.claim(space, key, known)).await {
                Ok(c) => return Some(c),
                Err(e) => self.failed(&e),
            }
            tokio::time::sleep(LISTEN).await;
        }
    }

    /// Says what is left to say, and goodbye.
    pub(crate) async fn leave(&self, to: &Dispatcher) {
        let _one = self.exchange.lock().await;
        let left = async {
            self.say_all(to).await?;
            within(self.store.leave()).await
        };
        if let Err(e) = left.await {
            tracing::warn!(error = %e, "other instances learn late that this one has stopped");
        }
    }
}
