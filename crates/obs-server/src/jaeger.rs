//! The Jaeger query API (v2 JSON).

use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_model::{
    AttributeValue, Attributes, Resource, Span, SpanKind, SpanStatus, TimestampNs, TraceId,
};
use obs_traceql::{TagFilter, TraceSearch, dependencies, search};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Traces a search may return.
const TRACES_MAX: usize = 1500;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/services", get(services))
        .route("/api/services/{service}/operations", get(service_operations))
        .route("/api/operations", get(operations))
        .route("/api/traces", get(traces))
        .route("/api/traces/{id}", get(trace))
        .route("/api/dependencies", get(dependency_links))
}

/// An error in the API's shape.
struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let errors = json!([{"code": self.0.as_u16(), "msg": self.1}]);
        (self.0, Json(json!({"data": null, "total": 0, "limit": 0, "offset": 0, "errors": errors})))
            .into_response()
    }
}

impl From<QueryFailure> for ApiError {
    fn from(f: QueryFailure) -> Self {
        Self(f.status(), f.message())
    }
}

type Api<T> = Result<T, ApiError>;

fn bad(message: impl Into<String>) -> ApiError {
    ApiError(StatusCode::BAD_REQUEST, message.into())
}

fn envelope(data: Vec<Value>) -> Response {
    let total = data.len();
    Json(json!({"data": data, "total": total, "limit": 0, "offset": 0, "errors": null}))
        .into_response()
}

async fn all_operations(
    state: &AppState,
    p: &Params,
) -> Api<std::collections::BTreeMap<String, Vec<(String, SpanKind)>>> {
    let tenant = p.tenant.clone();
    Ok(blocking(state, "trace_repository", "operations", move |s, b| {
        Ok(s.source.operations(&tenant, b)?)
    })
    .await?)
}

async fn services(State(state): State<AppState>, p: Params) -> Api<Response> {
    Ok(envelope(all_operations(&state, &p).await?.into_keys().map(Value::from).collect()))
}

async fn service_operations(
    State(state): State<AppState>,
    Path(service): Path<String>,
    p: Params,
) -> Api<Response> {
    let mut names: Vec<String> = all_operations(&state, &p)
        .await?
        .remove(&service)
        .unwrap_or_default()
        .into_iter()
        .map(|(n, _)| n)
        .collect();
    names.sort();
    names.dedup();
    Ok(envelope(names.into_iter().map(Value::from).collect()))
}

async fn operations(State(state): State<AppState>, p: Params) -> Api<Response> {
    let service =
        p.get("service").ok_or_else(|| bad("parameter 'service' is required"))?.to_owned();
    let kind = p.get("spanKind").map(str::to_owned);
    let list = all_operations(&state, &p).await?.remove(&service).unwrap_or_default();
    let wanted =
        list.into_iter().filter(|(_, k)| kind.as_deref().is_none_or(|want| want == k.as_str()));
    Ok(envelope(wanted.map(|(name, k)| json!({"name": name, "spanKind": k.as_str()})).collect()))
}

fn micros(p: &Params, name: &str) -> Api<Option<i64>> {
    let parse = |t: &str| {
        t.parse::<i64>().map_err(|_| bad(format!("unable to parse param '{name}': {t:?}")))
    };
    p.get(name).map(parse).transpose()
}

/// Parses Go's durations as Jaeger takes them (`1.2s`, `100ms`, `500us`). Nanoseconds.
fn duration_ns(p: &Params, name: &str) -> Api<Option<i64>> {
    let Some(text) = p.get(name) else { return Ok(None) };
    let units = [
        ("ns", 1.0),
        ("us", 1e3),
        ("µs", 1e3),
        ("μs", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 6e10),
        ("h", 3.6e12),
    ];
    let number = text.trim_end_matches(|c: char| !c.is_ascii_digit() && c != '.');
    let unit = text.get(number.len()..).unwrap_or_default();
    let factor = units.iter().find(|(u, _)| *u == unit).map(|(_, f)| f);
    match (number.parse::<f64>(), factor) {
        (Ok(n), Some(f)) => Ok(Some((n * f) as i64)),
        _ => Err(bad(format!("unable to parse param '{name}': time: invalid duration {text:?}"))),
    }
}

/// Parses `tags={"k":"v"}` and any number of `tag=k:v`.
fn tags(p: &Params) -> Api<Vec<TagFilter>> {
    let mut out = Vec::new();
    for text in p.all("tags").filter(|t| !t.is_empty()) {
        let map: HashMap<String, String> = serde_json::from_str(text)
            .map_err(|_| bad("malformed 'tags' parameter, cannot unmarshal JSON"))?;
        out.extend(map.into_iter().map(|(key, value)| TagFilter { key, value }));
    }
    for text in p.all("tag") {
        let (key, value) = text.split_once(':').ok_or_else(|| {
            bad(format!("malformed 'tag' parameter, expecting key:value, received: {text}"))
        })?;
        out.push(TagFilter { key: key.to_owned(), value: value.to_owned() });
    }
    Ok(out)
}

async fn traces(State(state): State<AppState>, p: Params) -> Api<Response> {
    let ids: Vec<&str> = p.all("traceID").collect();
    if !ids.is_empty() {
        let ids = ids
            .into_iter()
            .map(|t| TraceId::parse(t).ok_or_else(|| bad(format!("cannot parse traceID {t:?}"))))
            .collect::<Api<Vec<_>>>()?;
        let tenant = p.tenant.clone();
        let found = blocking(&state, "trace_repository", "get_traces", move |s, b| {
            ids.into_iter()
                .map(|id| s.source.trace(&tenant, id, b).map_err(QueryFailure::from))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
        return Ok(envelope(
            found.iter().filter(|t| !t.is_empty()).map(|t| trace_json(t)).collect(),
        ));
    }
    let now = state.now();
    let limit: usize = p.number("limit", 100).map_err(bad)?;
    let end = micros(&p, "end")?.map_or(now, |us| TimestampNs::from_nanos(us.saturating_mul(1000)));
    let start = micros(&p, "start")?.map_or(end.add_nanos(-3_600_000_000_000), |us| {
        TimestampNs::from_nanos(us.saturating_mul(1000))
    });
    let query = TraceSearch {
        start,
        end: end.add_nanos(1),
        service: p.get("service").map(str::to_owned),
        operation: p.get("operation").filter(|o| *o != "all").map(str::to_owned),
        tags: tags(&p)?,
        duration_min_ns: duration_ns(&p, "minDuration")?,
        duration_max_ns: duration_ns(&p, "maxDuration")?,
        limit: limit.min(TRACES_MAX),
    };
    if query.service.is_none() {
        return Err(bad("parameter 'service' is required"));
    }
    let tenant = p.tenant.clone();
    let found = blocking(&state, "trace_repository", "search", move |s, b| {
        Ok(search(&*s.source, &tenant, &query, b)?)
    })
    .await?;
    Ok(envelope(found.iter().map(|t| trace_json(t)).collect()))
}

async fn trace(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Api<Response> {
    let id = TraceId::parse(&id)
        .ok_or_else(|| bad(format!("strconv.ParseUint: parsing {id:?}: invalid syntax")))?;
    let tenant = p.tenant.clone();
    let spans = blocking(&state, "trace_repository", "get_by_id", move |s, b| {
        Ok(s.source.trace(&tenant, id, b)?)
    })
    .await?;
    if spans.is_empty() {
        return Err(ApiError(StatusCode::NOT_FOUND, "trace not found".into()));
    }
    Ok(envelope(vec![trace_json(&spans)]))
}

async fn dependency_links(State(state): State<AppState>, p: Params) -> Api<Response> {
    let ms = |name: &str| -> Api<Option<i64>> {
        p.get(name)
            .map(|t| t.parse().map_err(|_| bad(format!("unable to parse param '{name}'"))))
            .transpose()
    };
    let end = ms("endTs")?
        .map_or_else(|| state.now(), |ms| TimestampNs::from_nanos(ms.saturating_mul(1_000_000)));
    let lookback = ms("lookback")?.unwrap_or(86_400_000).saturating_mul(1_000_000);
    let tenant = p.tenant.clone();
    let found = blocking(&state, "trace_repository", "dependencies", move |s, b| {
        Ok(dependencies(&*s.source, &tenant, end.add_nanos(-lookback), end, b)?)
    })
    .await?;
    Ok(envelope(
        found
            .into_iter()
            .map(|d| json!({"parent": d.parent, "child": d.child, "callCount": d.calls}))
            .collect(),
    ))
}

fn tag(key: &str, v: &AttributeValue) -> Value {
    match v {
        AttributeValue::Bool(b) => json!({"key": key, "type": "bool", "value": b}),
        AttributeValue::Int(i) => json!({"key": key, "type": "int64", "value": i}),
        AttributeValue::Double(d) if d.is_finite() => {
            json!({"key": key, "type": "float64", "value": d})
        }
        AttributeValue::Bytes(_) => json!({"key": key, "type": "binary", "value": v.to_string()}),
        other => json!({"key": key, "type": "string", "value": other.to_string()}),
    }
}

fn tags_of(a: &Attributes) -> Vec<Value> {
    a.iter().map(|(k, v)| tag(k, v)).collect()
}

fn span_tags(s: &Span) -> Vec<Value> {
    let mut out = tags_of(&s.attributes);
    if s.kind != SpanKind::Unspecified {
        out.push(tag("span.kind", &s.kind.as_str().into()));
    }
    match &s.status {
        SpanStatus::Unset => {}
        SpanStatus::Ok => out.push(tag("otel.status_code", &"OK".into())),
        SpanStatus::Error(message) => {
            out.push(tag("otel.status_code", &"ERROR".into()));
            out.push(tag("error", &true.into()));
            if !message.is_empty() {
                out.push(tag("otel.status_description", &message.as_str().into()));
            }
        }
    }
    if !s.scope.name.is_empty() {
        out.push(tag("otel.scope.name", &s.scope.name.as_str().into()));
    }
    if !s.scope.version.is_empty() {
        out.push(tag("otel.scope.version", &s.scope.version.as_str().into()));
    }
    out
}

/// Writes a trace as Jaeger's UI model.
pub(crate) fn trace_json(spans: &[Arc<Span>]) -> Value {
    let mut processes: Vec<Arc<Resource>> = Vec::new();
    let ids: HashSet<_> = spans.iter().map(|s| s.span_id).collect();
    let mut out = Vec::with_capacity(spans.len());
    for s in spans {
        let process = processes
            .iter()
            .position(|r| Arc::ptr_eq(r, &s.resource) || **r == *s.resource)
            .unwrap_or_else(|| {
                processes.push(s.resource.clone());
                processes.len() - 1
            });
        let reference = |kind: &str, trace: String, span: String| json!({"refType": kind, "traceID": trace, "spanID": span});
        let mut references: Vec<Value> = s
            .parent_id
            .iter()
            .map(|p| reference("CHILD_OF", s.trace_id.to_string(), p.to_string()))
            .collect();
        references.extend(
            s.links
                .iter()
                .map(|l| reference("FOLLOWS_FROM", l.trace_id.to_string(), l.span_id.to_string())),
        );
        let logs: Vec<Value> = s
            .events
            .iter()
            .map(|e| {
                let mut fields = vec![tag("event", &e.name.as_str().into())];
                fields.extend(tags_of(&e.attributes));
                json!({"timestamp": e.timestamp.nanos() / 1000, "fields": fields})
            })
            .collect();
        let orphan = s.parent_id.is_some_and(|p| !ids.contains(&p));
        let warnings =
            if orphan { json!(["parent span is not in the trace"]) } else { Value::Null };
        out.push(json!({
            "traceID": s.trace_id.to_string(), "spanID": s.span_id.to_string(), "operationName": s.name, "references": references,
            "startTime": s.start.nanos() / 1000, "duration": s.duration_ns() / 1000, "tags": span_tags(s), "logs": logs,
            "processID": format!("p{}", process + 1), "warnings": warnings,
        }));
    }
    let process = |(i, r): (usize, &Arc<Resource>)| {
        let rest: Attributes =
            r.attributes.iter().filter(|(k, _)| k != "service.name").cloned().collect();
        (format!("p{}", i + 1), json!({"serviceName": r.service(), "tags": tags_of(&rest)}))
    };
    let processes: serde_json::Map<String, Value> =
        processes.iter().enumerate().map(process).collect();
    let id = spans.first().map(|s| s.trace_id.to_string()).unwrap_or_default();
    json!({"traceID": id, "spans": out, "processes": processes, "warnings": null})
}
