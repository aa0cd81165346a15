//! The messages of Jaeger's gRPC services (`jaeger.api_v2`, `jaeger.api_v3`), by the numbers of its
//! published definitions.

use super::{RawSpan, Reference, padded, resource_of, spans_of};
use crate::Decoded;
use obs_model::{AttributeValue, Attributes, Span, SpanKind, SpanStatus, TimestampNs};
use std::collections::HashMap;

#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    /// 0 text, 1 true or false, 2 integer, 3 number, 4 bytes.
    #[prost(int32, tag = "2")]
    pub v_type: i32,
    #[prost(string, tag = "3")]
    pub v_str: String,
    #[prost(bool, tag = "4")]
    pub v_bool: bool,
    #[prost(int64, tag = "5")]
    pub v_int64: i64,
    #[prost(double, tag = "6")]
    pub v_float64: f64,
    #[prost(bytes = "vec", tag = "7")]
    pub v_binary: Vec<u8>,
}

/// A moment or a length of time (`google.protobuf.Timestamp` and `Duration`).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Time {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Time {
    pub const fn of_ns(ns: i64) -> Self {
        Self { seconds: ns.div_euclid(1_000_000_000), nanos: ns.rem_euclid(1_000_000_000) as i32 }
    }

    pub fn ns(&self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(self.nanos.into())
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Log {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Time>,
    #[prost(message, repeated, tag = "2")]
    pub fields: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SpanRef {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    /// 0 child of, 1 follows from.
    #[prost(int32, tag = "3")]
    pub ref_type: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    #[prost(string, tag = "1")]
    pub service_name: String,
    #[prost(message, repeated, tag = "2")]
    pub tags: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ProtoSpan {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub operation_name: String,
    #[prost(message, repeated, tag = "4")]
    pub references: Vec<SpanRef>,
    #[prost(uint32, tag = "5")]
    pub flags: u32,
    #[prost(message, optional, tag = "6")]
    pub start_time: Option<Time>,
    #[prost(message, optional, tag = "7")]
    pub duration: Option<Time>,
    #[prost(message, repeated, tag = "8")]
    pub tags: Vec<KeyValue>,
    #[prost(message, repeated, tag = "9")]
    pub logs: Vec<Log>,
    #[prost(message, optional, tag = "10")]
    pub process: Option<Process>,
    #[prost(string, tag = "11")]
    pub process_id: String,
    #[prost(string, repeated, tag = "12")]
    pub warnings: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Batch {
    #[prost(message, repeated, tag = "1")]
    pub spans: Vec<ProtoSpan>,
    #[prost(message, optional, tag = "2")]
    pub process: Option<Process>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PostSpansRequest {
    #[prost(message, optional, tag = "1")]
    pub batch: Option<Batch>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SpansChunk {
    #[prost(message, repeated, tag = "1")]
    pub spans: Vec<ProtoSpan>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetTraceRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TraceQuery {
    #[prost(string, tag = "1")]
    pub service_name: String,
    #[prost(string, tag = "2")]
    pub operation_name: String,
    #[prost(map = "string, string", tag = "3")]
    pub tags: HashMap<String, String>,
    #[prost(message, optional, tag = "4")]
    pub start_min: Option<Time>,
    #[prost(message, optional, tag = "5")]
    pub start_max: Option<Time>,
    #[prost(message, optional, tag = "6")]
    pub duration_min: Option<Time>,
    #[prost(message, optional, tag = "7")]
    pub duration_max: Option<Time>,
    #[prost(int32, tag = "8")]
    pub limit: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FindTracesRequest {
    #[prost(message, optional, tag = "1")]
    pub query: Option<TraceQuery>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Services {
    #[prost(string, repeated, tag = "1")]
    pub services: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetOperationsRequest {
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub span_kind: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Operation {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub span_kind: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Operations {
    #[prost(string, repeated, tag = "1")]
    pub names: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    pub operations: Vec<Operation>,
}

/// The same of `api_v3`, where names alone are no more.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OperationsV3 {
    #[prost(message, repeated, tag = "1")]
    pub operations: Vec<Operation>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetDependenciesRequest {
    #[prost(message, optional, tag = "1")]
    pub start_time: Option<Time>,
    #[prost(message, optional, tag = "2")]
    pub end_time: Option<Time>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DependencyLink {
    #[prost(string, tag = "1")]
    pub parent: String,
    #[prost(string, tag = "2")]
    pub child: String,
    #[prost(uint64, tag = "3")]
    pub call_count: u64,
    #[prost(string, tag = "4")]
    pub source: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Dependencies {
    #[prost(message, repeated, tag = "1")]
    pub dependencies: Vec<DependencyLink>,
}

/// `api_v3.GetTraceRequest`: the id in hexadecimal.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetTraceV3Request {
    #[prost(string, tag = "1")]
    pub trace_id: String,
}

/// `api_v3.TraceQueryParameters` has the same numbers as that of `api_v2`.
pub type FindTracesV3Request = FindTracesRequest;

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SamplingParameters {
    #[prost(string, tag = "1")]
    pub service_name: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ProbabilisticSampling {
    #[prost(double, tag = "1")]
    pub rate: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct RateLimitingSampling {
    #[prost(int32, tag = "1")]
    pub traces_per_second: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct OperationSampling {
    #[prost(string, tag = "1")]
    pub operation: String,
    #[prost(message, optional, tag = "2")]
    pub probabilistic: Option<ProbabilisticSampling>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PerOperationSampling {
    #[prost(double, tag = "1")]
    pub default_probability: f64,
    #[prost(double, tag = "2")]
    pub default_lower_bound: f64,
    #[prost(message, repeated, tag = "3")]
    pub operations: Vec<OperationSampling>,
    #[prost(double, tag = "4")]
    pub default_upper_bound: f64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SamplingResponse {
    /// 0 probabilistic, 1 rate limiting.
    #[prost(int32, tag = "1")]
    pub strategy: i32,
    #[prost(message, optional, tag = "2")]
    pub probabilistic: Option<ProbabilisticSampling>,
    #[prost(message, optional, tag = "3")]
    pub rate_limiting: Option<RateLimitingSampling>,
    #[prost(message, optional, tag = "4")]
    pub operations: Option<PerOperationSampling>,
}

fn value_of(v: KeyValue) -> (String, AttributeValue) {
    let value = match v.v_type {
        0 => v.v_str.into(),
        1 => v.v_bool.into(),
        2 => v.v_int64.into(),
        3 => v.v_float64.into(),
        _ => AttributeValue::Bytes(v.v_binary),
    };
    (v.key, value)
}

fn key_value(key: &str, v: &AttributeValue) -> KeyValue {
    let mut out = KeyValue { key: key.to_owned(), ..KeyValue::default() };
    match v {
        AttributeValue::Bool(b) => (out.v_type, out.v_bool) = (1, *b),
        AttributeValue::Int(i) => (out.v_type, out.v_int64) = (2, *i),
        AttributeValue::Double(d) => (out.v_type, out.v_float64) = (3, *d),
        AttributeValue::Bytes(b) => (out.v_type, out.v_binary) = (4, b.clone()),
        other => out.v_str = other.to_string(),
    }
    out
}

fn key_values(a: &Attributes) -> Vec<KeyValue> {
    a.iter().map(|(k, v)| key_value(k, v)).collect()
}

fn raw_of(s: ProtoSpan) -> RawSpan {
    let ns = |t: Option<Time>| t.map_or(0, |t| t.ns());
    let pairs = |list: Vec<KeyValue>| list.into_iter().map(value_of).collect();
    RawSpan {
        trace_id: padded(&s.trace_id),
        span_id: padded(&s.span_id),
        parent_id: [0; 8],
        name: s.operation_name,
        references: s
            .references
            .into_iter()
            .map(|r| Reference {
                is_child_of: r.ref_type == 0,
                trace_id: padded(&r.trace_id),
                span_id: padded(&r.span_id),
            })
            .collect(),
        start_ns: ns(s.start_time),
        duration_ns: ns(s.duration),
        tags: pairs(s.tags),
        logs: s.logs.into_iter().map(|l| (ns(l.timestamp), pairs(l.fields))).collect(),
    }
}

/// Converts a batch; spans without a process of their own get the batch's.
pub fn decode(batch: Batch) -> Decoded<Vec<Span>> {
    let of = |p: Option<Process>| {
        let p = p.unwrap_or_default();
        resource_of(p.service_name, p.tags.into_iter().map(value_of).collect())
    };
    let shared = of(batch.process);
    let mut out = spans_of(&shared, Vec::new());
    for mut s in batch.spans {
        let own = s.process.take().map(|p| of(Some(p)));
        let one = spans_of(own.as_ref().unwrap_or(&shared), vec![raw_of(s)]);
        out.items.extend(one.items);
        out.rejected.merge(one.rejected);
    }
    out
}

/// Returns a span's tags as Jaeger shows them: with what OTLP keeps beside the attributes.
pub fn tags_of(s: &Span) -> Vec<(String, AttributeValue)> {
    let own = s.attributes.iter().cloned();
    own.chain(other_tags(s).into_iter().map(|(k, v)| (k.to_owned(), v))).collect()
}

/// Returns what Jaeger shows as tags behind the attributes.
pub fn other_tags(s: &Span) -> Vec<(&'static str, AttributeValue)> {
    let mut out = Vec::new();
    let mut add = |key: &'static str, v: AttributeValue| out.push((key, v));
    if s.kind != SpanKind::Unspecified {
        add("span.kind", s.kind.as_str().into());
    }
    match &s.status {
        SpanStatus::Unset => {}
        SpanStatus::Ok => add("otel.status_code", "OK".into()),
        SpanStatus::Error(message) => {
            add("otel.status_code", "ERROR".into());
            add("error", true.into());
            if !message.is_empty() {
                add("otel.status_description", message.as_str().into());
            }
        }
    }
    if !s.scope.name.is_empty() {
        add("otel.scope.name", s.scope.name.as_str().into());
    }
    if !s.scope.version.is_empty() {
        add("otel.scope.version", s.scope.version.as_str().into());
    }
    if !s.trace_state.is_empty() {
        add("w3c.tracestate", s.trace_state.as_str().into());
    }
    out
}

/// Whether a link was one of Jaeger's "child of" references.
pub fn is_child_of(link: &obs_model::SpanLink) -> bool {
    link.attributes.get_str(super::REF_TYPE) == Some("child_of")
}

/// Converts a span, its process within.
pub fn encode(s: &Span) -> ProtoSpan {
    let reference = |trace: &[u8], span: &[u8], ref_type| SpanRef {
        trace_id: trace.to_vec(),
        span_id: span.to_vec(),
        ref_type,
    };
    let parent = s.parent_id.iter().map(|p| reference(s.trace_id.as_bytes(), p.as_bytes(), 0));
    let links = s.links.iter().map(|l| {
        let ref_type = i32::from(!is_child_of(l));
        reference(l.trace_id.as_bytes(), l.span_id.as_bytes(), ref_type)
    });
    let log = |e: &obs_model::SpanEvent| {
        let mut fields = key_values(&e.attributes);
        if !e.name.is_empty() {
            fields.insert(0, key_value("event", &e.name.as_str().into()));
        }
        Log { timestamp: Some(Time::of_ns(e.timestamp.nanos())), fields }
    };
    let process: Attributes =
        s.resource.attributes.iter().filter(|(k, _)| k != "service.name").cloned().collect();
    ProtoSpan {
        trace_id: s.trace_id.as_bytes().to_vec(),
        span_id: s.span_id.as_bytes().to_vec(),
        operation_name: s.name.clone(),
        references: parent.chain(links).collect(),
        flags: 1,
        start_time: Some(Time::of_ns(s.start.nanos())),
        duration: Some(Time::of_ns(s.duration_ns())),
        tags: tags_of(s).iter().map(|(k, v)| key_value(k, v)).collect(),
        logs: s.events.iter().map(log).collect(),
        process: Some(Process { service_name: s.service().to_owned(), tags: key_values(&process) }),
        process_id: String::new(),
        warnings: Vec::new(),
    }
}

impl TraceQuery {
    /// Returns the bounds of the search, in Unix ns where they are given.
    pub fn range(&self) -> (Option<TimestampNs>, Option<TimestampNs>) {
        let at = |t: &Option<Time>| t.map(|t| TimestampNs::from_nanos(t.ns()));
        (at(&self.start_min), at(&self.start_max))
    }
}
