//! Tempo's HTTP API: traces by id, search, tags, and metrics of spans.

use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use obs_codec::otlp::{JsonDialect, encode_traces, json_traces};
use obs_model::{AttributeScope, FieldValue, Span, TimestampNs, TraceId};
use obs_promql::duration::parse_api_ms;
use obs_traceql::{
    Found, FoundSet, FoundSpan, MeasureRange, QueryError, SearchRange, TagValues, TraceQl,
    TraceSeries, duration_ns, find, go_duration, intrinsics, measure, tag_values, tell_apart,
};
use prost::Message as _;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/echo", get(|| async { "echo" }))
        .route("/api/status/buildinfo", get(buildinfo))
        .route("/api/traces/{id}", get(trace_v1))
        .route("/api/v2/traces/{id}", get(trace_v2))
        .route("/api/search", get(search))
        .route("/api/search/tags", get(tags_v1))
        .route("/api/search/tag/{tag}/values", get(values_v1))
        .route("/api/v2/search/tags", get(tags_v2))
        .route("/api/v2/search/tag/{tag}/values", get(values_v2))
        .route("/api/metrics/query_range", get(query_range))
        .route("/api/metrics/query", get(query_instant))
        .route("/ready", get(crate::health::prometheus_ready))
}

/// An error as Tempo gives it: plain text.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

impl From<QueryFailure> for Refused {
    fn from(f: QueryFailure) -> Self {
        Self(f.status(), f.message())
    }
}

type Api<T> = Result<T, Refused>;

pub(crate) fn bad(message: impl Into<String>) -> Refused {
    Refused(StatusCode::BAD_REQUEST, message.into())
}

impl From<QueryError> for QueryFailure {
    fn from(e: QueryError) -> Self {
        match e {
            QueryError::Bad(m) => Self::Bad(m),
            QueryError::Select(e) => e.into(),
        }
    }
}

async fn buildinfo(State(state): State<AppState>) -> Response {
    // The level of Tempo whose API this is.
    let goversion = "rust";
    Json(json!({
        "version": "2.9.0", "revision": state.version, "branch": "", "buildDate": "",
        "goVersion": goversion,
    }))
    .into_response()
}

fn wants_protobuf(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    accept.is_some_and(|a| a.contains("application/protobuf"))
}

fn trace_id(text: &str) -> Api<TraceId> {
    if let Some((at, c)) = text.char_indices().find(|(_, c)| !c.is_ascii_hexdigit()) {
        let message = format!(
            "trace IDs can only contain hex characters: invalid character '{c}' at position {at}"
        );
        return Err(bad(message));
    }
    if text.len() > 32 {
        return Err(bad("trace IDs can't be larger than 128 bits"));
    }
    TraceId::parse(text).ok_or_else(|| bad("please provide a valid trace id"))
}

async fn spans_of(state: &AppState, p: &Params, id: &str) -> Api<Vec<Arc<Span>>> {
    let id = trace_id(id)?;
    let tenant = p.tenant.clone();
    let spans = blocking(state, "trace_repository", "get_by_id", move |s, b| {
        Ok(tell_apart(crate::archive::find_trace(s, &tenant, id, b)?.1))
    })
    .await?;
    if spans.is_empty() {
        return Err(Refused(StatusCode::NOT_FOUND, "trace not found".into()));
    }
    Ok(spans)
}

fn protobuf(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/protobuf")], bytes).into_response()
}

async fn trace_v1(
    State(state): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    p: Params,
) -> Api<Response> {
    let spans = spans_of(&state, &p, &id).await?;
    if wants_protobuf(&headers) {
        return Ok(protobuf(encode_traces(&spans).encode_to_vec()));
    }
    Ok(Json(json!({"batches": json_traces(&spans, JsonDialect::Proto)})).into_response())
}

async fn trace_v2(
    State(state): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    p: Params,
) -> Api<Response> {
    let spans = spans_of(&state, &p, &id).await?;
    if wants_protobuf(&headers) {
        // The answer's first field is the trace.
        let mut out = Vec::new();
        prost::encoding::message::encode(1, &encode_traces(&spans), &mut out);
        return Ok(protobuf(out));
    }
    let batches = json_traces(&spans, JsonDialect::Proto);
    Ok(Json(json!({"trace": {"resourceSpans": batches}, "metrics": {}})).into_response())
}

/// Reads a time: Unix seconds, or nanoseconds where the number is that long.
fn time(p: &Params, name: &str) -> Api<Option<TimestampNs>> {
    let Some(text) = p.get(name) else { return Ok(None) };
    if let Some(t) = TimestampNs::parse_rfc3339(text) {
        return Ok(Some(t));
    }
    let fault = || bad(format!("invalid {name}: cannot parse {text:?} as a time"));
    let ns = match text.parse::<i64>() {
        Ok(n) if n.abs() > 100_000_000_000_000 => n,
        Ok(n) => n.checked_mul(1_000_000_000).ok_or_else(fault)?,
        Err(_) => {
            let seconds: f64 = text.parse().map_err(|_| fault())?;
            if !seconds.is_finite() || seconds.abs() > 9.2e9 {
                return Err(fault());
            }
            (seconds * 1e9) as i64
        }
    };
    Ok(Some(TimestampNs::from_nanos(ns)))
}

fn go_duration_ns(p: &Params, name: &str) -> Api<Option<i64>> {
    let parse = |text: &str| {
        duration_ns(text).ok_or_else(|| bad(format!("invalid {name}: {text:?} is no duration")))
    };
    p.get(name).map(parse).transpose()
}

pub(crate) fn parse_query(text: &str) -> Api<TraceQl> {
    TraceQl::parse(text).map_err(|e| bad(format!("invalid TraceQL query: {e}")))
}

/// Reads what a search asks for.
fn search_request(p: &Params) -> Api<(TraceQl, SearchRange)> {
    let (start, end) = (time(p, "start")?, time(p, "end")?);
    if let (Some(s), Some(e)) = (start, end)
        && s >= e
    {
        let (s, e) = (s.nanos() / 1_000_000_000, e.nanos() / 1_000_000_000);
        let message = format!(
            "invalid start: http parameter start must be before end. received start={s} end={e}"
        );
        return Err(bad(message));
    }
    let limit: usize = p.number("limit", 20).map_err(|e| bad(format!("invalid limit: {e}")))?;
    if limit == 0 {
        return Err(bad("invalid limit: must be a positive number"));
    }
    let spss: usize = p.number("spss", 3).map_err(|e| bad(format!("invalid spss: {e}")))?;
    let (min, max) = (go_duration_ns(p, "minDuration")?, go_duration_ns(p, "maxDuration")?);
    if let (Some(min), Some(max)) = (min, max)
        && max <= min
    {
        return Err(bad("invalid maxDuration: must be greater than minDuration"));
    }
    let query = match (p.get("q"), p.get("tags")) {
        (Some(_), Some(_)) => {
            return Err(bad("invalid request: can't specify tags and q in the same query"));
        }
        (Some(q), None) => parse_query(q)?,
        (None, tags) => {
            let mut pairs = Vec::new();
            obs_logql::each_pair(tags.unwrap_or_default(), |k, v| pairs.push((k.into(), v.into())));
            TraceQl::of_tags(&pairs, min, max)
        }
    };
    let range = SearchRange {
        start: start.unwrap_or(TimestampNs::MIN),
        // The second that the end names belongs to the range.
        end: end.map_or(TimestampNs::MAX, |e| e.add_nanos(1)),
        limit: limit.min(LIMIT_MAX),
        spans_per_set: if spss == 0 { usize::MAX } else { spss },
    };
    Ok((query, range))
}

/// Traces a search may return.
pub(crate) const LIMIT_MAX: usize = 10_000;

async fn search(State(state): State<AppState>, p: Params) -> Api<Response> {
    let (query, range) = search_request(&p)?;
    let tenant = p.tenant.clone();
    let (found, inspected) = blocking(&state, "trace_repository", "search", move |s, b| {
        Ok((find(&*s.source, &tenant, &query, &range, b)?, b.samples_taken()))
    })
    .await?;
    let traces: Vec<Value> = found.iter().map(found_json).collect();
    let metrics = json!({
        "inspectedTraces": traces.len(), "inspectedSpans": inspected.to_string(),
        "completedJobs": 1, "totalJobs": 1,
    });
    Ok(Json(json!({"traces": traces, "metrics": metrics})).into_response())
}

/// Writes a value of a field as OTLP's JSON.
fn value_json(v: &FieldValue<'_>) -> Value {
    match v {
        FieldValue::Nil => json!({"stringValue": "nil"}),
        FieldValue::Bool(b) => json!({"boolValue": b}),
        FieldValue::Int(i) => json!({"intValue": i.to_string()}),
        FieldValue::Float(f) if f.is_finite() => json!({"doubleValue": f}),
        FieldValue::Float(f) => json!({"doubleValue": f.to_string()}),
        FieldValue::Duration(ns) => json!({"stringValue": go_duration(*ns)}),
        FieldValue::List(l) => {
            json!({"arrayValue": {"values": l.iter().map(value_json).collect::<Vec<_>>()}})
        }
        other => json!({"stringValue": other.text()}),
    }
}

fn pairs_json(pairs: &[(String, FieldValue<'_>)]) -> Vec<Value> {
    pairs.iter().map(|(k, v)| json!({"key": k, "value": value_json(v)})).collect()
}

fn span_json(s: &FoundSpan) -> Value {
    let mut out = Map::new();
    out.insert("spanID".into(), s.id.to_string().into());
    if let Some(name) = &s.name {
        out.insert("name".into(), name.as_str().into());
    }
    out.insert("startTimeUnixNano".into(), s.start.nanos().to_string().into());
    out.insert("durationNanos".into(), s.duration_ns.to_string().into());
    if !s.attributes.is_empty() {
        out.insert("attributes".into(), pairs_json(&s.attributes).into());
    }
    out.into()
}

fn set_json(s: &FoundSet) -> Value {
    let spans: Vec<Value> = s.spans.iter().map(span_json).collect();
    let mut out = json!({"spans": spans, "matched": s.matched});
    if !s.attributes.is_empty()
        && let Value::Object(o) = &mut out
    {
        o.insert("attributes".into(), pairs_json(&s.attributes).into());
    }
    out
}

fn found_json(f: &Found) -> Value {
    let sets: Vec<Value> = f.sets.iter().map(set_json).collect();
    let services: Map<String, Value> = f
        .services
        .iter()
        .map(|(name, (spans, errors))| {
            let mut o = Map::new();
            o.insert("spanCount".into(), (*spans).into());
            if *errors > 0 {
                o.insert("errorCount".into(), (*errors).into());
            }
            (name.clone(), o.into())
        })
        .collect();
    let mut out = Map::new();
    out.insert("traceID".into(), f.id.to_string().trim_start_matches('0').into());
    match &f.root {
        Some((service, name)) => {
            out.insert("rootServiceName".into(), service.as_str().into());
            out.insert("rootTraceName".into(), name.as_str().into());
        }
        None => {
            out.insert("rootServiceName".into(), "<root span not yet received>".into());
        }
    }
    out.insert("startTimeUnixNano".into(), f.start.nanos().to_string().into());
    out.insert("durationMs".into(), (f.duration_ns / 1_000_000).into());
    out.insert("spanSet".into(), sets.first().cloned().unwrap_or_default());
    out.insert("spanSets".into(), sets.into());
    out.insert("serviceStats".into(), services.into());
    out.into()
}

/// Returns the range of a request about tags: everything when it names none.
fn tag_range(p: &Params) -> Api<(TimestampNs, TimestampNs)> {
    let end = time(p, "end")?.map_or(TimestampNs::MAX, |t| t.add_nanos(1));
    Ok((time(p, "start")?.unwrap_or(TimestampNs::MIN), end))
}

const SCOPES: [(&str, AttributeScope); 5] = [
    ("resource", AttributeScope::Resource),
    ("span", AttributeScope::Span),
    ("event", AttributeScope::Event),
    ("link", AttributeScope::Link),
    ("instrumentation", AttributeScope::Instrumentation),
];

/// Returns names by scope, in the order in which Tempo lists scopes.
async fn tag_names(state: &AppState, p: &Params) -> Api<Vec<(&'static str, Vec<String>)>> {
    let scope = p.get("scope").unwrap_or("none").to_owned();
    let known = |s: &str| matches!(s, "none" | "intrinsic") || SCOPES.iter().any(|(n, _)| *n == s);
    if !known(&scope) {
        return Err(bad(format!("invalid scope: {scope}")));
    }
    let limit: usize = p.number("limit", usize::MAX).map_err(bad)?;
    let (start, end) = tag_range(p)?;
    let tenant = p.tenant.clone();
    let keys = blocking(state, "trace_repository", "tags", move |s, b| {
        Ok(s.source.attribute_keys(&tenant, start, end, b)?)
    })
    .await?;
    let mut by_scope: BTreeMap<AttributeScope, Vec<String>> = BTreeMap::new();
    for (scope, key) in keys {
        by_scope.entry(scope).or_default().push(key);
    }
    let wanted = |name: &str| scope == "none" || scope == name;
    let mut out = Vec::new();
    for (name, of) in SCOPES.into_iter().filter(|(n, _)| wanted(n)) {
        let mut list = by_scope.remove(&of).unwrap_or_default();
        list.truncate(if limit == 0 { usize::MAX } else { limit });
        if !list.is_empty() {
            out.push((name, list));
        }
    }
    if wanted("intrinsic") {
        out.push(("intrinsic", intrinsics().iter().map(|i| (*i).to_owned()).collect()));
    }
    Ok(out)
}

async fn tags_v2(State(state): State<AppState>, p: Params) -> Api<Response> {
    let scopes: Vec<Value> = tag_names(&state, &p)
        .await?
        .into_iter()
        .map(|(name, tags)| json!({"name": name, "tags": tags}))
        .collect();
    Ok(Json(json!({"scopes": scopes, "metrics": {}})).into_response())
}

async fn tags_v1(State(state): State<AppState>, p: Params) -> Api<Response> {
    let mut names: Vec<String> = tag_names(&state, &p)
        .await?
        .into_iter()
        .filter(|(scope, _)| *scope != "intrinsic" || p.get("scope") == Some("intrinsic"))
        .flat_map(|(_, tags)| tags)
        .collect();
    names.sort();
    names.dedup();
    Ok(Json(json!({"tagNames": names, "metrics": {}})).into_response())
}

/// Values of a tag at most.
const VALUES_MAX: usize = 10_000;

async fn values(state: &AppState, p: &Params, tag: String) -> Api<Vec<FieldValue<'static>>> {
    let (start, end) = tag_range(p)?;
    let limit: usize = p.number("limit", VALUES_MAX).map_err(bad)?;
    let limit = if limit == 0 { VALUES_MAX } else { limit.min(VALUES_MAX) };
    // Pages send what has been typed so far; that need not be a query yet.
    let query = p.get("q").and_then(|q| TraceQl::parse(q).ok());
    let tenant = p.tenant.clone();
    // The store keeps a list of services: no span need be read.
    if query.is_none() && matches!(tag.as_str(), "resource.service.name" | "service.name") {
        let names = blocking(state, "trace_repository", "operations", move |s, b| {
            Ok(s.source.operations(&tenant, b)?)
        });
        let names = names.await?.into_keys().take(limit);
        return Ok(names.map(|n| FieldValue::Str(n.into())).collect());
    }
    let found = blocking(state, "trace_repository", "tag_values", move |s, b| {
        let of = TagValues { tag: &tag, query: query.as_ref(), start, end, limit };
        Ok(tag_values(&*s.source, &tenant, &of, b)?)
    });
    Ok(found.await?)
}

async fn values_v1(
    State(state): State<AppState>,
    Path(tag): Path<String>,
    p: Params,
) -> Api<Response> {
    let found = values(&state, &p, tag).await?;
    let mut texts: Vec<String> = found.iter().map(|v| v.text().into_owned()).collect();
    texts.sort();
    Ok(Json(json!({"tagValues": texts, "metrics": {}})).into_response())
}

async fn values_v2(
    State(state): State<AppState>,
    Path(tag): Path<String>,
    p: Params,
) -> Api<Response> {
    let keyword = |list: &[&str]| -> Vec<Value> {
        list.iter().map(|v| json!({"type": "keyword", "value": v})).collect()
    };
    let fixed = match tag.as_str() {
        "status" | "span:status" => Some(keyword(&["error", "ok", "unset"])),
        "kind" | "span:kind" => {
            Some(keyword(&["client", "server", "producer", "consumer", "internal", "unspecified"]))
        }
        _ => None,
    };
    let list = match fixed {
        Some(list) => list,
        None => {
            let mut found = values(&state, &p, tag).await?;
            found.sort_by(FieldValue::total_cmp);
            let one = |v: &FieldValue<'_>| {
                let kind = match v {
                    FieldValue::Int(_) => "int",
                    FieldValue::Float(_) => "float",
                    FieldValue::Bool(_) => "bool",
                    FieldValue::Duration(_) => "duration",
                    FieldValue::Status(_) | FieldValue::Kind(_) => "keyword",
                    _ => "string",
                };
                let text = match v {
                    FieldValue::Duration(ns) => go_duration(*ns),
                    v => v.text().into_owned(),
                };
                json!({"type": kind, "value": text})
            };
            found.iter().map(one).collect()
        }
    };
    Ok(Json(json!({"tagValues": list, "metrics": {}})).into_response())
}

const SECOND_NS: i64 = 1_000_000_000;

/// Returns the step that a range gets which names none: about 240 points, of whole seconds.
fn default_step_ns(range_ns: i64) -> i64 {
    let baseline = range_ns / 240;
    let of_five = baseline / (5 * SECOND_NS) * (5 * SECOND_NS);
    let whole = if of_five == 0 { baseline / SECOND_NS * SECOND_NS } else { of_five };
    whole.max(SECOND_NS)
}

async fn run_metrics(state: &AppState, p: &Params, instant: bool) -> Api<Vec<TraceSeries>> {
    let text =
        p.get("q").or_else(|| p.get("query")).ok_or_else(|| bad("invalid query: missing"))?;
    let query = parse_query(text)?;
    let now = state.now();
    let since = go_duration_ns(p, "since")?.unwrap_or(3_600 * SECOND_NS);
    let end = time(p, "end")?.unwrap_or(now);
    let start = time(p, "start")?.unwrap_or_else(|| end.add_nanos(-since));
    let step_ns = if instant {
        None
    } else {
        let named = match p.get("step") {
            Some(text) => Some(
                parse_api_ms(text)
                    .map(|ms| ms * 1_000_000)
                    .filter(|ns| *ns > 0)
                    .ok_or_else(|| bad(format!("invalid step: {text:?}")))?,
            ),
            None => None,
        };
        Some(named.unwrap_or_else(|| default_step_ns(end.nanos().saturating_sub(start.nanos()))))
    };
    let asked: usize = p.number("exemplars", 0).map_err(bad)?;
    let exemplars = match query.wants_exemplars() {
        Some(true) => asked.max(10),
        Some(false) => 0,
        None => asked,
    };
    let range = MeasureRange { start, end, step_ns, exemplars: exemplars.min(100) };
    let tenant = p.tenant.clone();
    let series = blocking(state, "trace_repository", "metrics", move |s, b| {
        Ok(measure(&*s.source, &tenant, &query, &range, b)?)
    });
    Ok(series.await?)
}

/// JSON has no numbers for what is none.
fn number_json(v: f64) -> Value {
    if v.is_finite() { v.into() } else { v.to_string().into() }
}

async fn query_range(State(state): State<AppState>, p: Params) -> Api<Response> {
    let series = run_metrics(&state, &p, false).await?;
    let one = |s: &TraceSeries| {
        let samples: Vec<Value> = s
            .samples
            .iter()
            .map(|(t, v)| json!({"timestampMs": t.to_string(), "value": number_json(*v)}))
            .collect();
        let exemplars: Vec<Value> = s
            .exemplars
            .iter()
            .map(|e| {
                let id = e.trace_id.to_string();
                let labels = json!([{"key": "trace:id", "value": {"stringValue": id}}]);
                json!({"labels": labels, "value": number_json(e.value), "timestampMs": e.timestamp_ms.to_string()})
            })
            .collect();
        let mut out = json!({
            "labels": pairs_json(&s.labels), "samples": samples, "promLabels": s.prometheus(),
        });
        if !exemplars.is_empty()
            && let Value::Object(o) = &mut out
        {
            o.insert("exemplars".into(), exemplars.into());
        }
        out
    };
    let list: Vec<Value> = series.iter().map(one).collect();
    Ok(Json(json!({"series": list, "metrics": {}})).into_response())
}

async fn query_instant(State(state): State<AppState>, p: Params) -> Api<Response> {
    let series = run_metrics(&state, &p, true).await?;
    let one = |s: &TraceSeries| {
        let value = s.samples.last().map_or(Value::Null, |(_, v)| number_json(*v));
        json!({"labels": pairs_json(&s.labels), "value": value, "promLabels": s.prometheus()})
    };
    let list: Vec<Value> = series.iter().map(one).collect();
    Ok(Json(json!({"series": list, "metrics": {}})).into_response())
}
