//! The threads that flush, merge and retain.

use crate::merge;
use crate::recover;
use crate::store::{FlushDone, Inner};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Pause after a failed flush.
const RETRY: Duration = Duration::from_secs(1);

/// Indexes the series that were read from the log; those that come in meanwhile wait for a few
/// milliseconds at a time.
pub(crate) fn index(inner: &Inner) {
    const AT_ONCE: usize = 4096;
    let more = || inner.head.write().unwrap_or_else(PoisonError::into_inner).index(AT_ONCE);
    while more() && !inner.stopping.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
}

/// Lets the other threads of the process go first from now on: those that read requests and answer
/// them, and the one that writes the log, need little time but at once. Where there is time for
/// all, nothing changes.
pub fn give_way() {
    /// A third of the weight of the others.
    #[cfg(target_os = "linux")]
    const NICE: i32 = 5;
    // On Linux this is about the thread that calls it; elsewhere it would be about the process.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Serves flushes until the store stops.
pub(crate) fn flusher(inner: &Inner) {
    give_way();
    index(inner);
    loop {
        let mut state = inner.flush_state();
        while state.under_way.is_none() {
            if inner.stopping.load(Ordering::Relaxed) {
                return;
            }
            let wait = inner.flush_change.wait_timeout(state, Duration::from_millis(200));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        if flush_once(inner).is_err() {
            // Its data is in the log: stopping need not wait for a disk that is full.
            if inner.stopping.load(Ordering::Relaxed) {
                return;
            }
            drop(inner.flush_change.wait_timeout(inner.flush_state(), RETRY));
        }
    }
}

/// Does the flush under way, if there is one.
pub(crate) fn flush_once(inner: &Inner) -> Result<(), String> {
    let Some((_, wal_start)) = inner.flush_state().under_way else { return Ok(()) };
    /// What writing segments takes beside what is written, about.
    const WORK: usize = 48 << 20;
    let began = Instant::now();
    // It makes room: it goes on whether there is some or not.
    let work = inner.config.memory.share();
    work.set(WORK);
    let frozen = inner.view.read().unwrap_or_else(PoisonError::into_inner).frozen.clone();
    let result = match frozen {
        Some(f) => recover::publish(inner, &f, wal_start),
        None => Ok(0),
    };
    drop(work);
    inner.account();
    let mut state = inner.flush_state();
    match &result {
        Ok(rows) => {
            const KEPT: usize = 1000;
            let mut log = inner.stats.flush_log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() < KEPT {
                log.push(FlushDone { time: began.elapsed(), rows: *rows });
            }
            drop(log);
            inner.stats.flushes.fetch_add(1, Ordering::Relaxed);
            state.under_way = None;
            state.failure = None;
        }
        Err(e) => {
            inner.stats.flush_failures.fetch_add(1, Ordering::Relaxed);
            tracing::error!(error = %e, "flush failed; its data stays in memory and in the log");
            state.failure = Some(e.clone());
        }
    }
    inner.flush_change.notify_all();
    result.map(|_| ())
}

/// Waits until a flush is done, or its attempt failed. One that began before and failed is tried
/// again at once.
pub(crate) fn wait(inner: &Inner, number: u64, began: bool) -> Result<(), String> {
    let mut state = inner.flush_state();
    if !began {
        state.failure = None;
        inner.flush_change.notify_all();
    }
    loop {
        if state.under_way.is_none_or(|(n, _)| n > number) {
            return Ok(());
        }
        if let Some(e) = &state.failure {
            return Err(e.clone());
        }
        if inner.stopping.load(Ordering::Relaxed) {
            return Err("store is closed".into());
        }
        let wait = inner.flush_change.wait_timeout(state, Duration::from_millis(200));
        state = wait.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Merges segments until none is due.
pub(crate) fn merge_all(inner: &Inner) -> Result<(), String> {
    while merge::step(inner).map_err(|e| e.to_string())? {}
    Ok(())
}

/// Looks for segments to merge every now and then, and rests in proportion to its work.
pub(crate) fn merger(inner: &Inner) {
    /// Memory of a merge, about.
    const MERGE: usize = 64 << 20;
    const PAUSE: Duration = Duration::from_secs(2);
    give_way();
    let mut rest = PAUSE;
    while !sleep(inner, rest) {
        let began = Instant::now();
        // Merges can wait: queries and writes go first.
        let Some(work) = inner.config.memory.try_take(MERGE) else {
            rest = PAUSE;
            continue;
        };
        let step = merge::step(inner);
        drop(work);
        match step {
            Ok(true) => {
                let share = inner.config.background_share.clamp(0.05, 1.0);
                rest = began.elapsed().mul_f64((1.0 - share) / share);
            }
            Ok(false) => rest = PAUSE,
            Err(e) => {
                tracing::error!(error = %e, "merge failed; its segments stay as they are");
                rest = PAUSE * 15;
            }
        }
    }
}

/// Sleeps; returns whether the store stops.
fn sleep(inner: &Inner, time: Duration) -> bool {
    let end = Instant::now() + time;
    loop {
        if inner.stopping.load(Ordering::Relaxed) {
            return true;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
