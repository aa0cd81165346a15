//! Tempo's search over gRPC, on the port of its HTTP API, as Grafana asks when it streams.

use crate::grpc::streaming;
use crate::otlp_grpc::tenant;
use crate::run::blocking;
use crate::state::AppState;
use crate::tempo::{LIMIT_MAX, parse_query};
use axum::Router;
use futures_util::stream::{self, Stream};
use obs_model::{FieldValue, TimestampNs};
use obs_traceql::{Found, FoundSet, FoundSpan, SearchRange, TraceQl, find};
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value};
use std::collections::HashMap;
use tonic::{Request, Response, Status};

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct SearchRequest {
    #[prost(map = "string, string", tag = "1")]
    tags: HashMap<String, String>,
    #[prost(uint32, tag = "2")]
    min_duration_ms: u32,
    #[prost(uint32, tag = "3")]
    max_duration_ms: u32,
    #[prost(uint32, tag = "4")]
    limit: u32,
    /// Unix seconds.
    #[prost(uint32, tag = "5")]
    start: u32,
    #[prost(uint32, tag = "6")]
    end: u32,
    #[prost(string, tag = "8")]
    query: String,
    #[prost(uint32, tag = "9")]
    spans_per_set: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SearchResponse {
    #[prost(message, repeated, tag = "1")]
    traces: Vec<TraceMetadata>,
    #[prost(message, optional, tag = "2")]
    metrics: Option<SearchMetrics>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct SearchMetrics {
    #[prost(uint32, tag = "1")]
    inspected_traces: u32,
    #[prost(uint32, tag = "4")]
    completed_jobs: u32,
    #[prost(uint32, tag = "5")]
    total_jobs: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TraceMetadata {
    #[prost(string, tag = "1")]
    trace_id: String,
    #[prost(string, tag = "2")]
    root_service_name: String,
    #[prost(string, tag = "3")]
    root_trace_name: String,
    #[prost(uint64, tag = "4")]
    start_time_unix_nano: u64,
    #[prost(uint32, tag = "5")]
    duration_ms: u32,
    #[prost(message, optional, tag = "6")]
    span_set: Option<SpanSet>,
    #[prost(message, repeated, tag = "7")]
    span_sets: Vec<SpanSet>,
    #[prost(map = "string, message", tag = "8")]
    service_stats: HashMap<String, ServiceStats>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct ServiceStats {
    #[prost(uint32, tag = "1")]
    span_count: u32,
    #[prost(uint32, tag = "2")]
    error_count: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SpanSet {
    #[prost(message, repeated, tag = "1")]
    spans: Vec<SetSpan>,
    #[prost(uint32, tag = "2")]
    matched: u32,
    #[prost(message, repeated, tag = "3")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SetSpan {
    #[prost(string, tag = "1")]
    span_id: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint64, tag = "3")]
    start_time_unix_nano: u64,
    #[prost(uint64, tag = "4")]
    duration_nanos: u64,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<KeyValue>,
}

fn value(v: &FieldValue<'_>) -> AnyValue {
    let value = match v {
        FieldValue::Bool(b) => Value::BoolValue(*b),
        FieldValue::Int(i) => Value::IntValue(*i),
        FieldValue::Float(f) => Value::DoubleValue(*f),
        FieldValue::Duration(ns) => Value::StringValue(obs_traceql::go_duration(*ns)),
        FieldValue::List(l) => {
            Value::ArrayValue(ArrayValue { values: l.iter().map(self::value).collect() })
        }
        FieldValue::Nil => Value::StringValue("nil".into()),
        other => Value::StringValue(other.text().into_owned()),
    };
    AnyValue { value: Some(value) }
}

fn pairs(list: &[(String, FieldValue<'_>)]) -> Vec<KeyValue> {
    let one = |(k, v): &(String, FieldValue<'_>)| KeyValue {
        key: k.clone(),
        value: Some(value(v)),
        ..KeyValue::default()
    };
    list.iter().map(one).collect()
}

fn unsigned(ns: i64) -> u64 {
    u64::try_from(ns).unwrap_or(0)
}

fn set(s: &FoundSet) -> SpanSet {
    let span = |s: &FoundSpan| SetSpan {
        span_id: s.id.to_string(),
        name: s.name.clone().unwrap_or_default(),
        start_time_unix_nano: unsigned(s.start.nanos()),
        duration_nanos: unsigned(s.duration_ns),
        attributes: pairs(&s.attributes),
    };
    SpanSet {
        spans: s.spans.iter().map(span).collect(),
        matched: u32::try_from(s.matched).unwrap_or(u32::MAX),
        attributes: pairs(&s.attributes),
    }
}

fn metadata(f: &Found) -> TraceMetadata {
    let sets: Vec<SpanSet> = f.sets.iter().map(set).collect();
    let missing = ("<root span not yet received>".to_owned(), String::new());
    let (service, name) = f.root.clone().unwrap_or(missing);
    let stats = |(name, (spans, errors)): (&String, &(u32, u32))| {
        (name.clone(), ServiceStats { span_count: *spans, error_count: *errors })
    };
    TraceMetadata {
        trace_id: f.id.to_string().trim_start_matches('0').to_owned(),
        root_service_name: service,
        root_trace_name: name,
        start_time_unix_nano: unsigned(f.start.nanos()),
        duration_ms: u32::try_from(f.duration_ns / 1_000_000).unwrap_or(u32::MAX),
        span_set: sets.first().cloned(),
        span_sets: sets,
        service_stats: f.services.iter().map(stats).collect(),
    }
}

async fn search(
    state: AppState,
    r: Request<SearchRequest>,
) -> Result<Response<impl Stream<Item = Result<SearchResponse, Status>> + Send + 'static>, Status> {
    let tenant = tenant(&state, &r)?;
    let r = r.into_inner();
    let query = if r.query.is_empty() {
        let tags: Vec<(String, String)> = r.tags.into_iter().collect();
        let ns = |ms: u32| (ms > 0).then(|| i64::from(ms) * 1_000_000);
        TraceQl::of_tags(&tags, ns(r.min_duration_ms), ns(r.max_duration_ms))
    } else {
        parse_query(&r.query).map_err(|e| Status::invalid_argument(e.1))?
    };
    let at = |seconds: u32, none: TimestampNs| {
        let ns = i64::from(seconds) * 1_000_000_000;
        if seconds == 0 { none } else { TimestampNs::from_nanos(ns) }
    };
    let or = |n: u32, default: usize| if n == 0 { default } else { n as usize };
    let range = SearchRange {
        start: at(r.start, TimestampNs::MIN),
        end: at(r.end, TimestampNs::MAX),
        limit: or(r.limit, 20).min(LIMIT_MAX),
        spans_per_set: or(r.spans_per_set, 3),
    };
    let found = blocking(&state, "trace_repository", "search", move |s, b| {
        Ok(find(&*s.source, &tenant, &query, &range, b)?)
    });
    let found = found.await.map_err(|f| Status::invalid_argument(f.message()))?;
    let metrics = SearchMetrics {
        inspected_traces: u32::try_from(found.len()).unwrap_or(u32::MAX),
        completed_jobs: 1,
        total_jobs: 1,
    };
    let traces = found.iter().map(metadata).collect();
    let all = SearchResponse { traces, metrics: Some(metrics) };
    Ok(Response::new(stream::iter([Ok(all)])))
}

/// The methods, to be merged into the port's routes.
pub(crate) fn routes(state: AppState) -> Router {
    streaming(Router::new(), "/tempopb.StreamingQuerier/Search", move |r| search(state.clone(), r))
}
