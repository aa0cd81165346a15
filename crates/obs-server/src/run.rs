//! Runs a query on the blocking pool: gate, deadline, cancellation when the client leaves.

use crate::state::AppState;
use http::StatusCode;
use obs_model::{Budget, SelectError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Why a query gave no result, by whose fault it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QueryFailure {
    /// The query itself (400 or 422).
    Bad(String),
    /// Waited too long for a turn (429).
    Busy,
    /// Ran out of time (503 at Prometheus, 504 elsewhere).
    Timeout,
    /// Would need more than it may (422).
    TooMuch(String),
    /// The store (500).
    Internal(String),
}

impl From<SelectError> for QueryFailure {
    fn from(e: SelectError) -> Self {
        match e {
            SelectError::Cancelled => Self::Timeout,
            SelectError::TooMuch(_) => Self::TooMuch(e.to_string()),
            SelectError::Storage(_) => Self::Internal(e.to_string()),
        }
    }
}

impl QueryFailure {
    /// Returns the status that our own, Loki's and Jaeger's APIs answer with; Prometheus has its own.
    pub(crate) const fn status(&self) -> StatusCode {
        match self {
            Self::Bad(_) | Self::TooMuch(_) => StatusCode::BAD_REQUEST,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(crate) fn message(&self) -> String {
        match self {
            Self::Bad(m) | Self::TooMuch(m) | Self::Internal(m) => m.clone(),
            Self::Busy => "too many queries are running; try again".into(),
            Self::Timeout => "query timed out; narrow the time range".into(),
        }
    }
}

/// Cancels a query when dropped, that is when the client went away or the deadline passed.
struct CancelOnDrop(Arc<Budget>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A turn to read, counted while it lasts.
struct Permit {
    state: AppState,
    turn: Option<OwnedSemaphorePermit>,
}

impl Permit {
    fn new(state: &AppState, turn: OwnedSemaphorePermit) -> Self {
        count_permits(state);
        Self { state: state.clone(), turn: Some(turn) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        drop(self.turn.take());
        count_permits(&self.state);
    }
}

/// Sets the gauges of the pool of permits.
pub(crate) fn count_permits(state: &AppState) {
    let max = state.limits.query_concurrency;
    let idle = state.gate.available_permits();
    for (name, n) in [("active", max.saturating_sub(idle)), ("idle", idle), ("max", max)] {
        state.ingest.telemetry().pool.with_label_values(&[name]).set(n as i64);
    }
}

/// Waits for a turn and runs `work` with a fresh budget.
pub(crate) async fn blocking<T: Send + 'static>(
    state: &AppState,
    repository: &str,
    method: &str,
    work: impl FnOnce(&AppState, &Budget) -> Result<T, QueryFailure> + Send + 'static,
) -> Result<T, QueryFailure> {
    blocking_for(state, None, repository, method, work).await
}

/// Like [`blocking`], with a shorter time than the configured one if the request asks for it.
pub(crate) async fn blocking_for<T: Send + 'static>(
    state: &AppState,
    timeout: Option<Duration>,
    repository: &str,
    method: &str,
    work: impl FnOnce(&AppState, &Budget) -> Result<T, QueryFailure> + Send + 'static,
) -> Result<T, QueryFailure> {
    let run = with_budget(state, repository, method, |state, budget| async move {
        let on = state.work.clone();
        let task = on.spawn_blocking(move || work(&state, &budget));
        task.await.map_err(|e| QueryFailure::Internal(e.to_string()))?
    });
    match timeout {
        None => run.await,
        // Dropping the run cancels what it started.
        Some(t) => tokio::time::timeout(t, run).await.unwrap_or(Err(QueryFailure::Timeout)),
    }
}

/// Like [`blocking`] for work that is itself asynchronous.
pub(crate) async fn with_budget<T, F>(
    state: &AppState,
    repository: &str,
    method: &str,
    work: impl FnOnce(AppState, Arc<Budget>) -> F,
) -> Result<T, QueryFailure>
where
    F: Future<Output = Result<T, QueryFailure>>,
{
    let limits = &state.limits;
    let t = state.ingest.telemetry();
    let waited = t.acquire_seconds.start_timer();
    let turn = tokio::time::timeout(limits.query_queue, state.gate.clone().acquire_owned()).await;
    waited.observe_duration();
    let Ok(Ok(permit)) = turn else {
        t.errors.with_label_values(&["connection", method]).inc();
        return Err(QueryFailure::Busy);
    };
    let _permit = Permit::new(state, permit);
    let timer = t.query_seconds.with_label_values(&[repository, method]).start_timer();
    let budget = Arc::new(Budget::of_pool(
        limits.query_samples_max,
        limits.query_bytes_max,
        state.memory.clone(),
    ));
    let _guard = CancelOnDrop(budget.clone());
    let noted = budget.clone();
    let result = tokio::time::timeout(limits.query_timeout, work(state.clone(), budget)).await;
    timer.observe_duration();
    t.query_results.with_label_values(&[repository, method]).observe(noted.samples_taken() as f64);
    crate::partial::note(noted.missing());
    let result = result.unwrap_or(Err(QueryFailure::Timeout));
    let failure = match &result {
        Err(QueryFailure::Timeout) => Some("timeout"),
        Err(QueryFailure::Internal(_)) => Some("query"),
        _ => None,
    };
    if let Some(kind) = failure {
        t.errors.with_label_values(&[kind, method]).inc();
    }
    result
}
