//! Traces that somebody keeps: copied beside the tenant's own data, where no general retention
//! reaches them, and found by their ids once the originals are gone.

use crate::body::Refusal;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use http::StatusCode;
use obs_model::{
    Budget, CallSelection, LlmCall, SelectError, Span, TenantId, TimestampNs, TraceId, WriteBatch,
};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Returns a trace and whose data it is among: the tenant's, or its archive's.
pub(crate) fn find_trace(
    state: &AppState,
    tenant: &TenantId,
    id: TraceId,
    budget: &Budget,
) -> Result<(TenantId, Vec<Arc<Span>>), SelectError> {
    let spans = state.source.trace(tenant, id, budget)?;
    match tenant.archive().filter(|_| spans.is_empty()) {
        None => Ok((tenant.clone(), spans)),
        Some(archive) => {
            let spans = state.source.trace(&archive, id, budget)?;
            Ok((archive, spans))
        }
    }
}

/// Returns the calls of a trace, as they are booked now. `spans` are the trace's.
pub(crate) fn calls_of(
    state: &AppState,
    tenant: &TenantId,
    id: TraceId,
    spans: &[Arc<Span>],
    budget: &Budget,
) -> Result<Vec<Arc<LlmCall>>, SelectError> {
    let starts = || spans.iter().map(|s| s.start);
    let start = starts().min().unwrap_or(TimestampNs::MIN);
    let end = starts().max().unwrap_or(TimestampNs::MIN).add_nanos(1);
    let of_trace = CallSelection { start, end, trace_id: Some(id), revisions_only: false };
    let mut out = Vec::new();
    state.source.current_calls(tenant, &of_trace, budget, &mut |c| {
        out.push(c.clone());
        ControlFlow::Continue(())
    })?;
    Ok(out)
}

/// Copies a trace into the archive; durable when this returns. Again is no different from once.
pub(crate) async fn keep(state: &AppState, tenant: &TenantId, id: TraceId) -> Result<(), Refusal> {
    let of = tenant.clone();
    let found = blocking(state, "trace_repository", "get_by_id", move |s, b| {
        let (of, spans) = find_trace(s, &of, id, b)?;
        let calls = calls_of(s, &of, id, &spans, b)?;
        Ok((of, spans, calls))
    });
    let (of, spans, calls) =
        found.await.map_err(|f: QueryFailure| Refusal::new(f.status(), f.message()))?;
    if spans.is_empty() {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "trace not found"));
    }
    let archive = tenant.archive().ok_or_else(|| Refusal::bad("the tenant's name is too long"))?;
    // It is there already, and only there.
    if of == archive {
        return Ok(());
    }
    let batch = WriteBatch {
        spans: spans.into_iter().map(Arc::unwrap_or_clone).collect(),
        calls,
        ..WriteBatch::default()
    };
    state.ingest.copy(&archive, batch).await?;
    Ok(())
}
