//! Runs a query on the blocking pool: gate, deadline, cancellation when the client leaves.

use crate::state::AppState;
use http::StatusCode;
use obs_model::{Budget, SelectError};
use std::sync::Arc;

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

/// Waits for a turn and runs `work` with a fresh budget.
pub(crate) async fn blocking<T: Send + 'static>(
    state: &AppState,
    repository: &str,
    method: &str,
    work: impl FnOnce(&AppState, &Budget) -> Result<T, QueryFailure> + Send + 'static,
) -> Result<T, QueryFailure> {
    with_budget(state, repository, method, |state, budget| async move {
        let task = tokio::task::spawn_blocking(move || work(&state, &budget));
        task.await.map_err(|e| QueryFailure::Internal(e.to_string()))?
    })
    .await
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
    let turn = tokio::time::timeout(limits.query_queue, state.gate.clone().acquire_owned()).await;
    let Ok(Ok(_permit)) = turn else { return Err(QueryFailure::Busy) };
    let timer = state
        .ingest
        .telemetry()
        .query_seconds
        .with_label_values(&[repository, method])
        .start_timer();
    let budget = Arc::new(Budget::new(limits.query_samples_max, limits.query_bytes_max));
    let _guard = CancelOnDrop(budget.clone());
    let noted = budget.clone();
    let result = tokio::time::timeout(limits.query_timeout, work(state.clone(), budget)).await;
    timer.observe_duration();
    crate::partial::note(noted.missing());
    result.unwrap_or(Err(QueryFailure::Timeout))
}
