//! What was said in calls, a line each, and how they were judged: for lists of calls.

use crate::archive::find_trace;
use crate::llm::{native_error, native_failure};
use crate::params::Params;
use crate::run::blocking;
use crate::scores::score_json;
use crate::state::AppState;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_llm::{SCORE_NAME, Scored, call_from_span, latest_ratings, messages_of};
use obs_model::{
    Budget, Direction, LogRecord, LogSelection, SelectError, Span, SpanId, TenantId, TimestampNs,
    TraceId,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/api/v1/llm/previews", get(previews))
}

/// Calls of one request.
const CALLS_MAX: usize = 200;
/// Log records that are looked at for the messages and scores of a trace.
const LOGS_MAX: usize = 5000;
/// How long before its first span a trace may have logged.
const EARLY_NS: i64 = 60_000_000_000;

/// Reads `TRACE:SPAN`.
fn call(text: &str) -> Option<(TraceId, SpanId)> {
    let (trace, span) = text.split_once(':')?;
    Some((TraceId::parse(trace)?, SpanId::parse(span)?))
}

async fn previews(State(state): State<AppState>, p: Params) -> Response {
    let mut asked: BTreeMap<TraceId, Vec<SpanId>> = BTreeMap::new();
    for (i, text) in p.all("call").enumerate() {
        let Some((trace, span)) = call(text) else {
            let message = format!("call {text:?} is not of the form TRACE:SPAN, in hexadecimal");
            return native_error(StatusCode::BAD_REQUEST, &message);
        };
        if i >= CALLS_MAX {
            let message = format!("a request may name {CALLS_MAX} calls");
            return native_error(StatusCode::BAD_REQUEST, &message);
        }
        asked.entry(trace).or_default().push(span);
    }
    let tenant = p.tenant.clone();
    let found = blocking(&state, "llm_repository", "previews", move |s, b| {
        let mut out = Map::new();
        for (id, wanted) in &asked {
            of_trace(s, &tenant, (*id, wanted), b, &mut out)?;
        }
        Ok(json!({"previews": out}))
    });
    match found.await {
        Ok(v) => Json(v).into_response(),
        Err(f) => native_failure(&f),
    }
}

/// Adds the previews of a trace's calls; of spans that are gone there are none.
fn of_trace(
    state: &AppState,
    tenant: &TenantId,
    (id, wanted): (TraceId, &[SpanId]),
    budget: &Budget,
    out: &mut Map<String, Value>,
) -> Result<(), SelectError> {
    let (_, spans) = find_trace(state, tenant, id, budget)?;
    let Some(begun) = spans.iter().map(|s| s.start).min() else {
        return Ok(());
    };
    let logs = logs_of(state, tenant, (id, begun), budget)?;
    let mut scores: Vec<Scored> = logs.iter().rev().filter_map(|l| said(l)).collect();
    latest_ratings(&mut scores);
    // What is said of a trace is said of its first answer.
    let prices = state.ingest.prices();
    let answers =
        |s: &&Arc<Span>| call_from_span(s, &prices).is_some_and(|c| c.operation.is_generation());
    let any_of_trace = scores.iter().any(|s| s.span_id.is_none());
    let answer = spans.iter().filter(|_| any_of_trace).filter(answers).min_by_key(|s| s.start);
    let answer = answer.map(|s| s.span_id);
    for span in spans.iter().filter(|s| wanted.contains(&s.span_id)) {
        let own = logs.iter().filter(|l| l.span_id == Some(span.span_id));
        let (input, output) = messages_of(span, own.map(|l| &**l)).preview();
        let of_span = |s: &&Scored| match s.span_id {
            Some(x) => x == span.span_id,
            None => answer == Some(span.span_id),
        };
        let judged: Vec<Value> = scores.iter().filter(of_span).map(score_json).collect();
        let key = format!("{id}:{}", span.span_id);
        out.insert(key, json!({"input": input, "output": output, "scores": judged}));
    }
    Ok(())
}

fn said(r: &LogRecord) -> Option<Scored> {
    if r.stream.get(SCORE_NAME).is_empty() { None } else { Scored::read(r) }
}

/// Returns what was logged in a trace, and said of it later.
fn logs_of(
    state: &AppState,
    tenant: &TenantId,
    (id, begun): (TraceId, TimestampNs),
    budget: &Budget,
) -> Result<Vec<Arc<LogRecord>>, SelectError> {
    let selection = LogSelection {
        matchers: &[],
        start: begun.add_nanos(-EARLY_NS),
        end: TimestampNs::MAX,
        direction: Direction::Forward,
        trace_id: Some(id),
        needles: &[],
    };
    let mut out = Vec::new();
    state.source.select_logs(tenant, &selection, budget, &mut |r| {
        out.push(r.clone());
        if out.len() < LOGS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(out)
}
