//! Which requests that write may go on: memory for what they bring, and a turn to be worked on.

use crate::body::Refusal;
use crate::state::AppState;
use http::StatusCode;
use obs_model::{MemoryPool, MemoryShare};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests worked on at once: enough for the log to sync many together.
const TURNS: usize = 64;
/// Requests whose body is read or that wait for memory or a turn; more are refused right away, as a
/// long line only makes every answer late.
const LINE: usize = 128;
/// How long a request waits. Those that cannot be served are refused when they come: whoever was let
/// in has waited already, and nearly always gets a turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much more memory decoded records take than their bytes.
const DECODED: usize = 3;

#[derive(Debug)]
pub(crate) struct Admission {
    /// Permits of 1 KiB each: the part of the pool that writes may take.
    memory: Arc<Semaphore>,
    memory_kib: usize,
    pool: Arc<MemoryPool>,
    turns: Arc<Semaphore>,
    line: Arc<Semaphore>,
}

impl Admission {
    pub(crate) fn new(pool: Arc<MemoryPool>, bytes_max: usize) -> Self {
        let memory_kib = bytes_max >> 10;
        Self {
            memory: Arc::new(Semaphore::new(memory_kib)),
            memory_kib,
            pool,
            turns: Arc::new(Semaphore::new(TURNS)),
            line: Arc::new(Semaphore::new(LINE)),
        }
    }

    /// Takes permits at once, or waits for them.
    async fn wait(from: &Arc<Semaphore>, permits: u32) -> Option<OwnedSemaphorePermit> {
        if let Ok(p) = from.clone().try_acquire_many_owned(permits) {
            return Some(p);
        }
        let turn = from.clone().acquire_many_owned(permits);
        tokio::time::timeout(PATIENCE, turn).await.ok()?.ok()
    }
}

/// What a request that writes holds until it is answered.
#[derive(Debug)]
pub(crate) struct Held {
    permit: OwnedSemaphorePermit,
    share: MemoryShare,
    _turn: Option<OwnedSemaphorePermit>,
    /// Held until the turn comes.
    place: Option<OwnedSemaphorePermit>,
}

fn refuse(state: &AppState, what: &str) -> Refusal {
    state.ingest.telemetry().rejected.with_label_values(&["any", what]).inc();
    let text = match what {
        "memory" => "ingest is over its limit: memory of requests under way; retry later",
        "flush" => "ingest is over its limit: memory of data that is being flushed; retry later",
        _ => "ingest is over its limit: requests under way; retry later",
    };
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, text)
}

impl Held {
    /// Waits until there is room for a request whose body has this many bytes when expanded.
    pub(crate) async fn new(state: &AppState, expanded: usize) -> Result<Self, Refusal> {
        let a = &state.admission;
        // A few clients wait for a flush, which makes them as slow as it is.
        if a.turns.available_permits() == 0 && state.store.is_behind() {
            return Err(refuse(state, "flush"));
        }
        // The largest request still passes, alone.
        let wanted = (expanded.saturating_mul(DECODED) >> 10).clamp(16, a.memory_kib.max(16));
        let permits = u32::try_from(wanted).unwrap_or(u32::MAX);
        // Whoever is in line gets a turn, unless the wait is long: most refusals are said here,
        // before the body is read.
        let place = a.line.clone().try_acquire_owned().map_err(|_| refuse(state, "turns"))?;
        let permit = Admission::wait(&a.memory, permits).await;
        let permit = permit.ok_or_else(|| refuse(state, "memory"))?;
        let share = a.pool.try_take(wanted << 10).ok_or_else(|| refuse(state, "memory"))?;
        Ok(Self { permit, share, _turn: None, place: Some(place) })
    }

    /// Gives the place in line to others while a slow body arrives.
    pub(crate) fn leave_line(&mut self) {
        self.place = None;
    }

    /// Waits for the turn to be worked on, when the body is there.
    pub(crate) async fn turn(mut self, state: &AppState) -> Result<Self, Refusal> {
        let a = &state.admission;
        if self.place.is_none() {
            // It holds memory, so not many can wait here.
            let place = Admission::wait(&a.line, 1).await;
            self.place = Some(place.ok_or_else(|| refuse(state, "turns"))?);
        }
        let turn = Admission::wait(&a.turns, 1).await;
        self._turn = Some(turn.ok_or_else(|| refuse(state, "turns"))?);
        self.place = None;
        Ok(self)
    }

    /// Does a request's work on the threads for that, so that those that read requests can answer
    /// others meanwhile. It goes on when the client leaves; what is held is held until it is done.
    pub(crate) async fn work<T: Send + 'static>(
        self,
        state: &AppState,
        work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let task = state.work.spawn(async move {
            let done = work.await;
            drop(self);
            done
        });
        task.await.unwrap_or_else(|e| {
            tracing::error!(error = %e, "a request that writes ended early");
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the request ended early"))
        })
    }

    /// Gives back what a smaller request does not need.
    pub(crate) fn shrink(&mut self, expanded: usize) {
        let needed = (expanded.saturating_mul(DECODED) >> 10).max(16);
        if let Some(surplus) = self.permit.num_permits().checked_sub(needed) {
            drop(self.permit.split(surplus));
            self.share.set(needed << 10);
        }
    }
}
