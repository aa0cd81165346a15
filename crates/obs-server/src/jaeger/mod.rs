//! Jaeger's query API: version 2 here, version 3, the monitor tab and gRPC beside it.

pub(crate) mod grpc;
mod json;
mod monitor;
pub(crate) mod receive;
mod v3;

use crate::archive::{self, find_trace};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{StatusCode, header};
use obs_model::{Span, SpanKind, TenantId, TimestampNs, TraceId};
use obs_traceql::{TagFilter, TraceSearch, adjust, dependencies, duration_ns, search};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
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
        .route("/api/archive/{id}", post(archive_trace))
        .merge(v3::routes())
        .merge(monitor::routes())
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

/// Returns each service with its operations.
async fn all_operations(
    state: &AppState,
    tenant: &TenantId,
) -> Result<BTreeMap<String, Vec<(String, SpanKind)>>, QueryFailure> {
    let tenant = tenant.clone();
    blocking(state, "trace_repository", "operations", move |s, b| {
        Ok(s.source.operations(&tenant, b)?)
    })
    .await
}

/// Answers with traces, in the envelope.
fn traces_response(traces: Vec<Vec<Arc<Span>>>, skew_max_ns: i64) -> Response {
    let mut body = String::from("{\"data\":[");
    let mut total = 0;
    for spans in traces.into_iter().filter(|t| !t.is_empty()) {
        if total > 0 {
            body.push(',');
        }
        json::trace(&mut body, &adjust(spans, skew_max_ns));
        total += 1;
    }
    body.push_str(&format!("],\"total\":{total},\"limit\":0,\"offset\":0,\"errors\":null}}"));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn services(State(state): State<AppState>, p: Params) -> Api<Response> {
    Ok(envelope(all_operations(&state, &p.tenant).await?.into_keys().map(Value::from).collect()))
}

async fn service_operations(
    State(state): State<AppState>,
    Path(service): Path<String>,
    p: Params,
) -> Api<Response> {
    let mut names: Vec<String> = all_operations(&state, &p.tenant)
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
    let list = all_operations(&state, &p.tenant).await?.remove(&service).unwrap_or_default();
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
fn duration_param(p: &Params, name: &str) -> Api<Option<i64>> {
    let parse = |text: &str| {
        let fault =
            || bad(format!("unable to parse param '{name}': time: invalid duration {text:?}"));
        duration_ns(text).ok_or_else(fault)
    };
    p.get(name).map(parse).transpose()
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
                .map(|id| Ok(find_trace(s, &tenant, id, b)?.1))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
        return Ok(traces_response(found, state.limits.clock_skew_max_ns));
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
        duration_min_ns: duration_param(&p, "minDuration")?,
        duration_max_ns: duration_param(&p, "maxDuration")?,
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
    Ok(traces_response(found, state.limits.clock_skew_max_ns))
}

async fn trace(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Api<Response> {
    let id = TraceId::parse(&id)
        .ok_or_else(|| bad(format!("strconv.ParseUint: parsing {id:?}: invalid syntax")))?;
    let tenant = p.tenant.clone();
    let spans = blocking(&state, "trace_repository", "get_by_id", move |s, b| {
        Ok(find_trace(s, &tenant, id, b)?.1)
    })
    .await?;
    if spans.is_empty() {
        return Err(ApiError(StatusCode::NOT_FOUND, "trace not found".into()));
    }
    Ok(traces_response(vec![spans], state.limits.clock_skew_max_ns))
}

async fn archive_trace(
    State(state): State<AppState>,
    Path(id): Path<String>,
    p: Params,
) -> Api<Response> {
    let id = TraceId::parse(&id)
        .ok_or_else(|| bad(format!("strconv.ParseUint: parsing {id:?}: invalid syntax")))?;
    archive::keep(&state, &p.tenant, id).await.map_err(|r| ApiError(r.status, r.message))?;
    Ok(envelope(Vec::new()))
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
