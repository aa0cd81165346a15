//! The native trace API of the page: a trace as columns, and one span whole.

use crate::llm::{native_error, native_failure};
use crate::params::Params;
use crate::run::blocking;
use crate::state::AppState;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_llm::{Conversation, call_from_span, messages_of};
use obs_model::{
    Attributes, Budget, Direction, LlmCall, LogRecord, LogSelection, Message, MessagePart, Span,
    SpanId, SpanStatus, TenantId, TraceId,
};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::sync::Arc;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/traces/{id}/skeleton", get(skeleton))
        .route("/api/v1/traces/{id}/spans/{span}", get(span))
}

/// What the waterfall draws without attributes: one array a field, all of the same length.
async fn skeleton(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Response {
    let Some(id) = TraceId::parse(&id) else {
        return native_error(StatusCode::BAD_REQUEST, "trace id is not hexadecimal");
    };
    let tenant = p.tenant.clone();
    let result = blocking(&state, "trace_repository", "get_by_id", move |s, b| {
        let spans = s.source.trace(&tenant, id, b)?;
        let prices = s.ingest.prices();
        let calls: Vec<Option<LlmCall>> =
            spans.iter().map(|x| call_from_span(x, &prices)).collect();
        Ok((spans, calls))
    })
    .await;
    match result {
        Err(f) => native_failure(&f),
        Ok((spans, _)) if spans.is_empty() => {
            native_error(StatusCode::NOT_FOUND, "trace not found")
        }
        Ok((spans, calls)) => Json(skeleton_json(&spans, &calls)).into_response(),
    }
}

/// Icon class of a span: `llm`, `tool`, `agent`, `retrieval`, `db`, `http` or empty.
fn category(s: &Span, call: Option<&LlmCall>) -> &'static str {
    if call.is_some() {
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
        _ => "",
    }
}

fn skeleton_json(spans: &[Arc<Span>], calls: &[Option<LlmCall>]) -> Value {
    let of = |f: &dyn Fn(&Span) -> Value| -> Vec<Value> { spans.iter().map(|s| f(s)).collect() };
    let llm = |f: &dyn Fn(&LlmCall) -> Value| -> Vec<Value> {
        calls.iter().map(|c| c.as_ref().map_or(Value::Null, f)).collect()
    };
    // Nanoseconds since the trace began: small numbers that JavaScript holds exactly.
    let origin = spans.iter().map(|s| s.start.nanos()).min().unwrap_or(0);
    let total_cost: obs_model::Money =
        calls.iter().flatten().filter_map(|c| c.cost.as_ref()).map(|c| c.total()).sum();
    json!({
        "trace_id": spans.first().map(|s| s.trace_id.to_string()),
        "start_ms": origin as f64 / 1e6,
        "id": of(&|s| s.span_id.to_string().into()),
        "parent": of(&|s| s.parent_id.map_or(Value::Null, |p| p.to_string().into())),
        "service": of(&|s| s.service().into()),
        "name": of(&|s| s.name.as_str().into()),
        "start": of(&|s| (s.start.nanos() - origin).into()),
        "duration": of(&|s| s.duration_ns().into()),
        "error": of(&|s| s.status.is_error().into()),
        "kind": spans.iter().zip(calls).map(|(s, c)| category(s, c.as_ref())).collect::<Vec<_>>(),
        "model": llm(&|c| c.model().into()),
        "tokens_in": llm(&|c| c.tokens.input_total().into()),
        "tokens_out": llm(&|c| c.tokens.output_total().into()),
        "cost": llm(&|c| c.cost.as_ref().map_or(Value::Null, |x| x.total().normalize().to_string().into())),
        "total_cost": total_cost.normalize().to_string(),
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
        let Some(span) = s.source.trace(&tenant, id, b)?.into_iter().find(|x| x.span_id == span_id)
        else {
            return Ok(None);
        };
        let logs = logs_of_span(s, &tenant, &span, b)?;
        let conversation = messages_of(&span, logs.iter().map(|l| &**l));
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
        "conversation": conversation_json(c),
    })
}

/// Writes a conversation; `null` parts when nothing was recorded.
pub(crate) fn conversation_json(c: &Conversation) -> Value {
    let part = |p: &MessagePart| match p {
        MessagePart::Text(t) => json!({"type": "text", "text": t}),
        MessagePart::Reasoning(t) => json!({"type": "reasoning", "text": t}),
        MessagePart::ToolCall { id, name, arguments } => {
            json!({"type": "tool_call", "id": id, "name": name, "arguments": arguments})
        }
        MessagePart::ToolResult { id, content } => {
            json!({"type": "tool_result", "id": id, "content": content})
        }
        MessagePart::Other { kind, detail } => {
            json!({"type": "other", "kind": kind, "detail": detail})
        }
    };
    let message = |m: &Message| json!({"role": m.role, "parts": m.parts.iter().map(part).collect::<Vec<_>>(), "finish_reason": m.finish_reason});
    let list = |l: &[Message]| l.iter().map(message).collect::<Vec<_>>();
    json!({"input": list(&c.input), "output": list(&c.output), "tools": c.tools})
}
