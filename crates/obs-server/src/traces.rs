//! The native trace API of the page: a trace as columns, one span whole, two traces compared.

use crate::archive::{self, calls_of, find_trace};
use crate::llm::{Sums, native_error, native_failure};
use crate::params::Params;
use crate::run::blocking;
use crate::state::AppState;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use obs_llm::{Conversation, call_from_span, messages_of};
use obs_model::{
    Attributes, Budget, CostState, Direction, LlmCall, LogRecord, LogSelection, MediaAt, Message,
    MessagePart, Money, SelectError, Span, SpanId, SpanStatus, TenantId, TraceId,
};
use obs_traceql::{Place, Side, Weighed, compare, critical_path, tell_apart};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/traces/compare", get(compared))
        .route("/api/v1/traces/{id}/skeleton", get(skeleton))
        .route("/api/v1/traces/{id}/archive", post(archived))
        .route("/api/v1/traces/{id}/spans/{span}", get(span))
}

/// Spans of one page when nothing else is asked for, and at most.
const PAGE: usize = 20_000;
const PAGE_MAX: usize = 100_000;

/// A trace with the calls that were booked of its spans.
pub(crate) struct Whole {
    /// Whether only the archive has it.
    is_archived: bool,
    pub(crate) spans: Vec<Arc<Span>>,
    /// One a span.
    pub(crate) calls: Vec<Option<Arc<LlmCall>>>,
}

impl Whole {
    pub(crate) fn read(
        state: &AppState,
        tenant: &TenantId,
        id: TraceId,
        budget: &Budget,
    ) -> Result<Self, SelectError> {
        let (of, spans) = find_trace(state, tenant, id, budget)?;
        let calls = calls_of(state, &of, id, &spans, budget)?;
        let booked: HashMap<SpanId, Arc<LlmCall>> =
            calls.into_iter().map(|c| (c.span_id, c)).collect();
        let calls = spans.iter().map(|s| booked.get(&s.span_id).cloned()).collect();
        Ok(Self { is_archived: of.is_archive(), spans, calls })
    }

    /// Nanoseconds when the trace began: from there small numbers count that JavaScript holds.
    fn origin(&self) -> i64 {
        self.spans.iter().map(|s| s.start.nanos()).min().unwrap_or(0)
    }

    /// What the trace amounts to; usage that repeats other calls' counts once.
    fn rollup(&self) -> Value {
        let mut sums = Sums::default();
        self.calls.iter().flatten().filter(|c| is_counted(c)).for_each(|c| sums.add(c));
        let services: BTreeSet<&str> = self.spans.iter().map(|s| s.service()).collect();
        let end = self.spans.iter().map(|s| s.end.nanos()).max().unwrap_or(0);
        json!({
            "spans": self.spans.len(), "services": services.len(), "duration": end - self.origin(),
            "errors": self.spans.iter().filter(|s| s.status.is_error()).count(), "llm": sums.json(),
        })
    }

    /// Tokens and cost of each span's own call.
    fn weights(&self) -> Vec<(u64, Money)> {
        let of = |c: &Option<Arc<LlmCall>>| {
            let c = c.as_ref().filter(|c| is_counted(c));
            let cost = c.and_then(|c| c.cost.as_ref()).map_or(Money::ZERO, |x| x.total());
            (c.map_or(0, |c| c.tokens.total()), cost)
        };
        self.calls.iter().map(of).collect()
    }
}

/// Whether a call's usage is its own and not that of others again.
fn is_counted(c: &LlmCall) -> bool {
    !matches!(c.cost_state, CostState::Rollup | CostState::Duplicate)
}

fn trace_id(text: Option<&str>) -> Result<TraceId, &'static str> {
    text.and_then(TraceId::parse).ok_or("trace id is not hexadecimal")
}

/// What the waterfall draws without attributes: one array a field, all of the same length. Spans
/// are in the order of their start; `offset` and `limit` take a page of them.
async fn skeleton(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Response {
    let (id, offset, limit) =
        match (trace_id(Some(&id)), p.number("offset", 0_usize), p.number("limit", PAGE)) {
            (Ok(id), Ok(o), Ok(l)) => (id, o, l.clamp(1, PAGE_MAX)),
            (Err(e), ..) => return native_error(StatusCode::BAD_REQUEST, e),
            (_, Err(e), _) | (.., Err(e)) => return native_error(StatusCode::BAD_REQUEST, &e),
        };
    let tenant = p.tenant.clone();
    let result = blocking(&state, "trace_repository", "get_by_id", move |s, b| {
        let whole = Whole::read(s, &tenant, id, b)?;
        Ok((!whole.spans.is_empty()).then(|| skeleton_json(&whole, offset, limit)))
    })
    .await;
    match result {
        Err(f) => native_failure(&f),
        Ok(None) => native_error(StatusCode::NOT_FOUND, "trace not found"),
        Ok(Some(v)) => Json(v).into_response(),
    }
}

/// Keeps a trace past the retention of others.
async fn archived(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Response {
    let id = match trace_id(Some(&id)) {
        Ok(id) => id,
        Err(e) => return native_error(StatusCode::BAD_REQUEST, e),
    };
    match archive::keep(&state, &p.tenant, id).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(r) => native_error(r.status, &r.message),
    }
}

/// Two traces, matched by the services and operations from the root down.
async fn compared(State(state): State<AppState>, p: Params) -> Response {
    let ids = match (trace_id(p.get("a")), trace_id(p.get("b"))) {
        (Ok(a), Ok(b)) => [a, b],
        _ => return native_error(StatusCode::BAD_REQUEST, "a and b must be ids of traces"),
    };
    let tenant = p.tenant.clone();
    let result = blocking(&state, "trace_repository", "compare", move |s, b| {
        let [a, b] = [Whole::read(s, &tenant, ids[0], b)?, Whole::read(s, &tenant, ids[1], b)?];
        let missing = [&a, &b].iter().position(|w| w.spans.is_empty());
        Ok(missing.map_or_else(|| Ok(compared_json([&a, &b])), |i| Err(ids[i])))
    })
    .await;
    match result {
        Err(f) => native_failure(&f),
        Ok(Err(id)) => native_error(StatusCode::NOT_FOUND, &format!("trace {id} not found")),
        Ok(Ok(v)) => Json(v).into_response(),
    }
}

fn compared_json(traces: [&Whole; 2]) -> Value {
    let spans = traces.map(|w| tell_apart(w.spans.clone()));
    let weights = traces.map(Whole::weights);
    let weighed = |i: usize| Weighed {
        spans: spans.get(i).map_or(&[], Vec::as_slice),
        weights: weights.get(i).map_or(&[], Vec::as_slice),
    };
    let (places, truncated) = compare([weighed(0), weighed(1)]);
    let side = |i: usize, s: &Option<Side>| {
        let s = s.as_ref()?;
        let first = traces.get(i)?.spans.get(s.first)?;
        Some(json!({
            "spans": s.spans, "errors": s.errors, "duration": s.duration_ns, "self": s.self_ns, "tokens": s.tokens,
            "cost": s.cost.normalize().to_string(), "span_id": first.span_id.to_string(),
        }))
    };
    let place = |x: &Place| json!({"depth": x.depth, "service": x.service, "name": x.name, "a": side(0, &x.sides[0]), "b": side(1, &x.sides[1])});
    let whole = |w: &Whole| json!({"trace_id": w.spans.first().map(|s| s.trace_id.to_string()), "start_ms": w.origin() as f64 / 1e6, "rollup": w.rollup()});
    json!({
        "a": whole(traces[0]), "b": whole(traces[1]), "truncated": truncated,
        "places": places.iter().map(place).collect::<Vec<_>>(),
    })
}

/// Icon class of a span: `llm`, `tool`, `agent`, `retrieval`, `db`, `http` or empty.
fn category(s: &Span, call: Option<&LlmCall>) -> &'static str {
    if call.is_some_and(is_counted) {
        return "llm";
    }
    let a = &s.attributes;
    let kind = ["gen_ai.operation.name", "openinference.span.kind", "traceloop.span.kind"]
        .iter()
        .find_map(|k| a.get_str(k))
        .unwrap_or_default();
    match kind.to_ascii_lowercase().as_str() {
        "execute_tool" | "tool" => "tool",
        "invoke_agent" | "agent" | "invoke_workflow" | "workflow" | "chain" => "agent",
        "retrieval" | "retriever" => "retrieval",
        _ if a.get("mcp.method.name").is_some() => "tool",
        _ if a.get("db.system").is_some() || a.get("db.system.name").is_some() => "db",
        _ if a.get("http.request.method").is_some() || a.get("http.method").is_some() => "http",
        _ if call.is_some() => "llm",
        _ => "",
    }
}

fn skeleton_json(whole: &Whole, offset: usize, limit: usize) -> Value {
    let origin = whole.origin();
    // Where two sides share an id only one of them is the parent; places in the list stay.
    let mut critical: HashMap<usize, Vec<[i64; 2]>> = HashMap::new();
    for s in critical_path(&tell_apart(whole.spans.clone())) {
        critical.entry(s.span).or_default().push([s.start - origin, s.end - s.start]);
    }
    let total = whole.spans.len();
    let (from, to) = (offset.min(total), offset.saturating_add(limit).min(total));
    let spans = whole.spans.get(from..to).unwrap_or_default();
    let calls = whole.calls.get(from..to).unwrap_or_default();
    let of = |f: &dyn Fn(&Span) -> Value| -> Vec<Value> { spans.iter().map(|s| f(s)).collect() };
    let llm = |f: &dyn Fn(&LlmCall) -> Value| -> Vec<Value> {
        calls.iter().map(|c| c.as_ref().map_or(Value::Null, |c| f(c))).collect()
    };
    let cost = |c: &LlmCall| match &c.cost {
        Some(x) if is_counted(c) => x.total().normalize().to_string().into(),
        _ => Value::Null,
    };
    json!({
        "trace_id": whole.spans.first().map(|s| s.trace_id.to_string()),
        "start_ms": origin as f64 / 1e6,
        "total": total, "offset": from, "archived": whole.is_archived, "rollup": whole.rollup(),
        "id": of(&|s| s.span_id.to_string().into()),
        "parent": of(&|s| s.parent_id.map_or(Value::Null, |p| p.to_string().into())),
        "service": of(&|s| s.service().into()),
        "name": of(&|s| s.name.as_str().into()),
        "start": of(&|s| (s.start.nanos() - origin).into()),
        "duration": of(&|s| s.duration_ns().into()),
        "error": of(&|s| s.status.is_error().into()),
        "kind": spans.iter().zip(calls).map(|(s, c)| category(s, c.as_deref())).collect::<Vec<_>>(),
        "model": llm(&|c| c.model().into()),
        "tokens_in": llm(&|c| c.tokens.input_total().into()),
        "tokens_out": llm(&|c| c.tokens.output_total().into()),
        "cost": llm(&cost),
        "cost_state": llm(&|c| c.cost_state.as_str().into()),
        // When the span is on the critical path: starts and lengths, the latest first.
        "critical": (from..to).map(|i| critical.get(&i)).collect::<Vec<_>>(),
    })
}

/// Log records looked at for a span's messages.
const SPAN_LOGS_MAX: usize = 500;

/// Returns the log records of a span, oldest first.
pub(crate) fn logs_of_span(
    state: &AppState,
    tenant: &TenantId,
    span: &Span,
    budget: &Budget,
) -> Result<Vec<Arc<LogRecord>>, obs_model::SelectError> {
    const AROUND_NS: i64 = 60_000_000_000;
    let selection = LogSelection {
        matchers: &[],
        start: span.start.add_nanos(-AROUND_NS),
        end: span.end.add_nanos(AROUND_NS),
        direction: Direction::Forward,
        trace_id: Some(span.trace_id),
        needles: &[],
    };
    let mut out = Vec::new();
    state.source.select_logs(tenant, &selection, budget, &mut |r| {
        if r.span_id == Some(span.span_id) {
            out.push(r.clone());
        }
        if out.len() >= SPAN_LOGS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(out)
}

/// Returns a span with what was said in it, if it is there.
pub(crate) fn talk_of(
    state: &AppState,
    tenant: &TenantId,
    (id, span_id): (TraceId, SpanId),
    budget: &Budget,
) -> Result<Option<(Arc<Span>, Conversation)>, SelectError> {
    let (_, spans) = find_trace(state, tenant, id, budget)?;
    let Some(span) = spans.into_iter().find(|x| x.span_id == span_id) else {
        return Ok(None);
    };
    let logs = logs_of_span(state, tenant, &span, budget)?;
    let conversation = messages_of(&span, logs.iter().map(|l| &**l));
    Ok(Some((span, conversation)))
}

async fn span(
    State(state): State<AppState>,
    Path((id, span_id)): Path<(String, String)>,
    p: Params,
) -> Response {
    let (Some(id), Some(span_id)) = (TraceId::parse(&id), SpanId::parse(&span_id)) else {
        return native_error(StatusCode::BAD_REQUEST, "trace or span id is not hexadecimal");
    };
    let tenant = p.tenant.clone();
    let result = blocking(&state, "trace_repository", "get_span", move |s, b| {
        let Some((span, conversation)) = talk_of(s, &tenant, (id, span_id), b)? else {
            return Ok(None);
        };
        let call = call_from_span(&span, &s.ingest.prices());
        Ok(Some(span_json(&span, call.as_ref(), &conversation)))
    })
    .await;
    match result {
        Err(f) => native_failure(&f),
        Ok(None) => native_error(StatusCode::NOT_FOUND, "span not found"),
        Ok(Some(v)) => Json(v).into_response(),
    }
}

fn attributes_json(a: &Attributes) -> Vec<Value> {
    a.iter().map(|(k, v)| json!([k, v.to_string()])).collect()
}

fn span_json(s: &Span, call: Option<&LlmCall>, c: &Conversation) -> Value {
    let message = if let SpanStatus::Error(m) = &s.status { m.as_str() } else { "" };
    let event = |e: &obs_model::SpanEvent| json!({"name": e.name, "offset_ns": e.timestamp.nanos() - s.start.nanos(), "attributes": attributes_json(&e.attributes)});
    json!({
        "trace_id": s.trace_id.to_string(), "span_id": s.span_id.to_string(), "parent_id": s.parent_id.map(|p| p.to_string()),
        "name": s.name, "service": s.service(), "kind": s.kind.as_str(), "status": s.status.as_str(), "status_message": message,
        "start_ms": s.start.nanos() as f64 / 1e6, "duration_ms": s.duration_ns() as f64 / 1e6,
        "scope": {"name": s.scope.name, "version": s.scope.version},
        "attributes": attributes_json(&s.attributes), "resource": attributes_json(&s.resource.attributes),
        "events": s.events.iter().map(event).collect::<Vec<_>>(),
        "call": call.map(crate::llm::call_json),
        "conversation": conversation_json(c, &format!("/api/v1/traces/{}/spans/{}/media", s.trace_id, s.span_id)),
    })
}

/// Writes a conversation; media that it holds itself is served below `media`, by its place.
fn conversation_json(c: &Conversation, media: &str) -> Value {
    let places = Cell::new(0);
    let part = |p: &MessagePart| match p {
        MessagePart::Text(t) => json!({"type": "text", "text": t}),
        MessagePart::Reasoning(t) => json!({"type": "reasoning", "text": t}),
        MessagePart::ToolCall { id, name, arguments } => {
            json!({"type": "tool_call", "id": id, "name": name, "arguments": arguments})
        }
        MessagePart::ToolResult { id, content } => {
            json!({"type": "tool_result", "id": id, "content": content})
        }
        MessagePart::Media(m) => {
            let mut v = json!({"type": "media", "modality": m.modality, "mime_type": m.mime_type});
            let (key, value) = match &m.at {
                MediaAt::Uri(uri) => ("uri", uri.clone()),
                MediaAt::File(id) => ("file_id", id.clone()),
                MediaAt::Inline(_) => {
                    let place = places.replace(places.get() + 1);
                    ("href", format!("{media}/{place}"))
                }
            };
            v[key] = value.into();
            v
        }
        MessagePart::Other { kind, detail } => {
            json!({"type": "other", "kind": kind, "detail": detail})
        }
    };
    let message = |m: &Message| json!({"role": m.role, "parts": m.parts.iter().map(part).collect::<Vec<_>>(), "finish_reason": m.finish_reason});
    let list = |l: &[Message]| l.iter().map(message).collect::<Vec<_>>();
    json!({"input": list(&c.input), "output": list(&c.output), "tools": c.tools})
}
