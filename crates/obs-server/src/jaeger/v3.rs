//! Jaeger's query API v3: traces as OTLP.

use super::{TRACES_MAX, all_operations};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_codec::otlp::{JsonDialect, json_traces};
use obs_model::{TimestampNs, TraceId};
use obs_traceql::{TagFilter, TraceSearch, duration_ns, search, tell_apart};
use serde_json::json;
use std::collections::BTreeMap;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v3/services", get(services))
        .route("/api/v3/operations", get(operations))
        .route("/api/v3/traces", get(traces))
        .route("/api/v3/traces/{id}", get(trace))
}

struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let error = json!({"httpCode": self.0.as_u16(), "message": self.1});
        (self.0, Json(json!({"error": error}))).into_response()
    }
}

impl From<QueryFailure> for Refused {
    fn from(f: QueryFailure) -> Self {
        Self(f.status(), f.message())
    }
}

type Api<T> = Result<T, Refused>;

fn bad(name: &str, why: &str) -> Refused {
    Refused(StatusCode::BAD_REQUEST, format!("malformed parameter {name}: {why}"))
}

async fn services(State(state): State<AppState>, p: Params) -> Api<Response> {
    let names: Vec<String> = all_operations(&state, &p.tenant).await?.into_keys().collect();
    Ok(Json(json!({"services": names})).into_response())
}

async fn operations(State(state): State<AppState>, p: Params) -> Api<Response> {
    let service = p.get("service").ok_or_else(|| bad("service", "it is required"))?;
    let kind = p.get("span_kind");
    let list = all_operations(&state, &p.tenant).await?.remove(service).unwrap_or_default();
    let wanted = list.into_iter().filter(|(_, k)| kind.is_none_or(|want| want == k.as_str()));
    let list: Vec<_> =
        wanted.map(|(name, k)| json!({"name": name, "spanKind": k.as_str()})).collect();
    Ok(Json(json!({"operations": list})).into_response())
}

async fn trace(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Api<Response> {
    let id = TraceId::parse(&id).ok_or_else(|| bad("trace_id", "it is not hexadecimal"))?;
    let tenant = p.tenant.clone();
    let spans = blocking(&state, "trace_repository", "get_by_id", move |s, b| {
        Ok(tell_apart(crate::archive::find_trace(s, &tenant, id, b)?.1))
    })
    .await?;
    if spans.is_empty() {
        return Err(Refused(StatusCode::NOT_FOUND, "No traces found".into()));
    }
    let list = json_traces(&spans, JsonDialect::Otlp);
    Ok(Json(json!({"result": {"resourceSpans": list}})).into_response())
}

fn time(p: &Params, name: &str) -> Api<TimestampNs> {
    let text = p.get(name).ok_or_else(|| bad(name, "it is required"))?;
    TimestampNs::parse_rfc3339(text).ok_or_else(|| bad(name, "it is no RFC 3339 time"))
}

/// Reads what to look for; names may be in snake or camel case.
fn query(p: &Params) -> Api<TraceSearch> {
    let get = |snake: &str, camel: &str| {
        let value = p.get(&format!("query.{snake}")).or_else(|| p.get(&format!("query.{camel}")));
        value.map(str::to_owned)
    };
    let duration = |snake: &str, camel: &str| {
        let parse = |text: String| {
            duration_ns(&text).ok_or_else(|| bad(&format!("query.{snake}"), "it is no duration"))
        };
        get(snake, camel).map(parse).transpose()
    };
    let at = |snake: &str, camel: &str| {
        let snake = format!("query.{snake}");
        if p.get(&snake).is_some() { time(p, &snake) } else { time(p, &format!("query.{camel}")) }
    };
    let limit = get("num_traces", "numTraces").or_else(|| get("search_depth", "searchDepth"));
    let limit = limit.map_or(Ok(100), |t| t.parse::<usize>());
    let limit = limit.map_err(|_| bad("query.search_depth", "it is no number"))?;
    let mut tags = Vec::new();
    if let Some(text) = get("attributes", "attributes") {
        let map: BTreeMap<String, String> = serde_json::from_str(&text)
            .map_err(|_| bad("query.attributes", "it is no JSON object of texts"))?;
        tags.extend(map.into_iter().map(|(key, value)| TagFilter { key, value }));
    }
    Ok(TraceSearch {
        start: at("start_time_min", "startTimeMin")?,
        end: at("start_time_max", "startTimeMax")?.add_nanos(1),
        service: get("service_name", "serviceName"),
        operation: get("operation_name", "operationName"),
        tags,
        duration_min_ns: duration("duration_min", "durationMin")?,
        duration_max_ns: duration("duration_max", "durationMax")?,
        limit: limit.min(TRACES_MAX),
    })
}

async fn traces(State(state): State<AppState>, p: Params) -> Api<Response> {
    let query = query(&p)?;
    let tenant = p.tenant.clone();
    let found = blocking(&state, "trace_repository", "search", move |s, b| {
        Ok(search(&*s.source, &tenant, &query, b)?)
    })
    .await?;
    if found.is_empty() {
        return Err(Refused(StatusCode::NOT_FOUND, "No traces found".into()));
    }
    let spans: Vec<_> = found.into_iter().flat_map(tell_apart).collect();
    let list = json_traces(&spans, JsonDialect::Otlp);
    Ok(Json(json!({"result": {"resourceSpans": list}})).into_response())
}
