//! Spans as OTLP again: the protobuf form, and JSON in the dialects of OTLP and of Tempo.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use obs_model::{AttributeValue, Attributes, Resource, Scope, Span, SpanStatus};
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value as Proto,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span as ProtoSpan, Status, TracesData,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// How JSON writes ids and enumerations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonDialect {
    /// OTLP: ids in hexadecimal, numbers for kinds and codes.
    Otlp,
    /// Protobuf's own mapping, which Tempo uses: ids in base64, names for kinds and codes.
    Proto,
}

/// A scope's spans.
type OfScope<'a> = (&'a Arc<Scope>, Vec<&'a Span>);

/// Spans by resource and scope, each in the order of its first span.
fn grouped<T: AsRef<Span>>(spans: &[T]) -> Vec<(&Arc<Resource>, Vec<OfScope<'_>>)> {
    let mut out: Vec<(&Arc<Resource>, Vec<OfScope<'_>>)> = Vec::new();
    for s in spans.iter().map(AsRef::as_ref) {
        let same = |r: &Arc<Resource>| Arc::ptr_eq(r, &s.resource) || **r == *s.resource;
        // Spans of a trace come in turns from few services: the match is near the end.
        let at = out.iter().rposition(|(r, _)| same(r)).unwrap_or_else(|| {
            out.push((&s.resource, Vec::new()));
            out.len() - 1
        });
        let Some((_, scopes)) = out.get_mut(at) else { continue };
        let same = |x: &Arc<Scope>| Arc::ptr_eq(x, &s.scope) || **x == *s.scope;
        match scopes.iter_mut().rev().find(|(x, _)| same(x)) {
            Some((_, list)) => list.push(s),
            None => scopes.push((&s.scope, vec![s])),
        }
    }
    out
}

fn proto_value(v: &AttributeValue) -> AnyValue {
    let value = match v {
        AttributeValue::Empty => None,
        AttributeValue::String(s) => Some(Proto::StringValue(s.clone())),
        AttributeValue::Bool(b) => Some(Proto::BoolValue(*b)),
        AttributeValue::Int(i) => Some(Proto::IntValue(*i)),
        AttributeValue::Double(d) => Some(Proto::DoubleValue(*d)),
        AttributeValue::Bytes(b) => Some(Proto::BytesValue(b.clone())),
        AttributeValue::Array(a) => {
            Some(Proto::ArrayValue(ArrayValue { values: a.iter().map(proto_value).collect() }))
        }
        AttributeValue::Map(m) => {
            let values = m.iter().map(|(k, v)| proto_pair(k, v)).collect();
            Some(Proto::KvlistValue(KeyValueList { values }))
        }
    };
    AnyValue { value }
}

fn proto_pair(key: &str, v: &AttributeValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(proto_value(v)), ..KeyValue::default() }
}

/// Returns attributes as OTLP's list.
pub fn proto_attributes(a: &Attributes) -> Vec<KeyValue> {
    a.iter().map(|(k, v)| proto_pair(k, v)).collect()
}

fn unsigned(ns: i64) -> u64 {
    u64::try_from(ns).unwrap_or(0)
}

fn proto_span(s: &Span) -> ProtoSpan {
    let event = |e: &obs_model::SpanEvent| Event {
        time_unix_nano: unsigned(e.timestamp.nanos()),
        name: e.name.clone(),
        attributes: proto_attributes(&e.attributes),
        ..Event::default()
    };
    let link = |l: &obs_model::SpanLink| Link {
        trace_id: l.trace_id.as_bytes().to_vec(),
        span_id: l.span_id.as_bytes().to_vec(),
        attributes: proto_attributes(&l.attributes),
        ..Link::default()
    };
    let (code, message) = match &s.status {
        SpanStatus::Unset => (0, String::new()),
        SpanStatus::Ok => (1, String::new()),
        SpanStatus::Error(m) => (2, m.clone()),
    };
    ProtoSpan {
        trace_id: s.trace_id.as_bytes().to_vec(),
        span_id: s.span_id.as_bytes().to_vec(),
        trace_state: s.trace_state.clone(),
        parent_span_id: s.parent_id.map(|p| p.as_bytes().to_vec()).unwrap_or_default(),
        name: s.name.clone(),
        kind: s.kind.to_otlp(),
        start_time_unix_nano: unsigned(s.start.nanos()),
        end_time_unix_nano: unsigned(s.end.nanos()),
        attributes: proto_attributes(&s.attributes),
        events: s.events.iter().map(event).collect(),
        links: s.links.iter().map(link).collect(),
        status: Some(Status { message, code }),
        ..ProtoSpan::default()
    }
}

/// Returns spans as OTLP's message.
pub fn encode_traces<T: AsRef<Span>>(spans: &[T]) -> TracesData {
    let scope = |(s, spans): (&Arc<Scope>, Vec<&Span>)| ScopeSpans {
        scope: Some(InstrumentationScope {
            name: s.name.clone(),
            version: s.version.clone(),
            attributes: proto_attributes(&s.attributes),
            ..InstrumentationScope::default()
        }),
        spans: spans.into_iter().map(proto_span).collect(),
        ..ScopeSpans::default()
    };
    let resource = |(r, scopes): (&Arc<Resource>, Vec<_>)| ResourceSpans {
        resource: Some(ProtoResource {
            attributes: proto_attributes(&r.attributes),
            ..ProtoResource::default()
        }),
        scope_spans: scopes.into_iter().map(scope).collect(),
        ..ResourceSpans::default()
    };
    TracesData { resource_spans: grouped(spans).into_iter().map(resource).collect() }
}

/// Returns an attribute's value as OTLP JSON writes it.
pub fn json_value(v: &AttributeValue) -> Value {
    match v {
        AttributeValue::Empty => json!({}),
        AttributeValue::String(s) => json!({"stringValue": s}),
        AttributeValue::Bool(b) => json!({"boolValue": b}),
        // 64-bit integers are strings in protobuf's JSON.
        AttributeValue::Int(i) => json!({"intValue": i.to_string()}),
        AttributeValue::Double(d) if d.is_finite() => json!({"doubleValue": d}),
        AttributeValue::Double(d) if d.is_nan() => json!({"doubleValue": "NaN"}),
        AttributeValue::Double(d) => {
            json!({"doubleValue": if *d > 0.0 { "Infinity" } else { "-Infinity" }})
        }
        AttributeValue::Bytes(b) => json!({"bytesValue": STANDARD.encode(b)}),
        AttributeValue::Array(a) => {
            json!({"arrayValue": {"values": a.iter().map(json_value).collect::<Vec<_>>()}})
        }
        AttributeValue::Map(m) => {
            let pairs: Vec<Value> =
                m.iter().map(|(k, v)| json!({"key": k, "value": json_value(v)})).collect();
            json!({"kvlistValue": {"values": pairs}})
        }
    }
}

fn json_attributes(out: &mut Map<String, Value>, a: &Attributes) {
    if !a.is_empty() {
        let list: Vec<Value> =
            a.iter().map(|(k, v)| json!({"key": k, "value": json_value(v)})).collect();
        out.insert("attributes".into(), list.into());
    }
}

fn json_span(s: &Span, dialect: JsonDialect) -> Value {
    let id = |bytes: &[u8]| match dialect {
        JsonDialect::Otlp => bytes.iter().map(|b| format!("{b:02x}")).collect::<String>(),
        JsonDialect::Proto => STANDARD.encode(bytes),
    };
    let mut out = Map::new();
    let mut put = |key: &str, v: Value| {
        out.insert(key.to_owned(), v);
    };
    put("traceId", id(s.trace_id.as_bytes()).into());
    put("spanId", id(s.span_id.as_bytes()).into());
    if let Some(p) = s.parent_id {
        put("parentSpanId", id(p.as_bytes()).into());
    }
    if !s.trace_state.is_empty() {
        put("traceState", s.trace_state.as_str().into());
    }
    put("name", s.name.as_str().into());
    put(
        "kind",
        match dialect {
            JsonDialect::Otlp => s.kind.to_otlp().into(),
            JsonDialect::Proto => s.kind.otlp_name().into(),
        },
    );
    put("startTimeUnixNano", unsigned(s.start.nanos()).to_string().into());
    put("endTimeUnixNano", unsigned(s.end.nanos()).to_string().into());
    json_attributes(&mut out, &s.attributes);
    if !s.events.is_empty() {
        let event = |e: &obs_model::SpanEvent| {
            let mut o = Map::new();
            o.insert("timeUnixNano".into(), unsigned(e.timestamp.nanos()).to_string().into());
            o.insert("name".into(), e.name.as_str().into());
            json_attributes(&mut o, &e.attributes);
            Value::Object(o)
        };
        out.insert("events".into(), s.events.iter().map(event).collect());
    }
    if !s.links.is_empty() {
        let link = |l: &obs_model::SpanLink| {
            let mut o = Map::new();
            o.insert("traceId".into(), id(l.trace_id.as_bytes()).into());
            o.insert("spanId".into(), id(l.span_id.as_bytes()).into());
            json_attributes(&mut o, &l.attributes);
            Value::Object(o)
        };
        out.insert("links".into(), s.links.iter().map(link).collect());
    }
    let mut status = Map::new();
    if let SpanStatus::Error(m) = &s.status
        && !m.is_empty()
    {
        status.insert("message".into(), m.as_str().into());
    }
    let number = match s.status {
        SpanStatus::Unset => 0,
        SpanStatus::Ok => 1,
        SpanStatus::Error(_) => 2,
    };
    if number > 0 {
        let code = match dialect {
            JsonDialect::Otlp => number.into(),
            JsonDialect::Proto => s.status.otlp_name().into(),
        };
        status.insert("code".into(), code);
    }
    out.insert("status".into(), status.into());
    Value::Object(out)
}

/// Returns spans as a list of `ResourceSpans` in JSON.
pub fn json_traces<T: AsRef<Span>>(spans: &[T], dialect: JsonDialect) -> Vec<Value> {
    let scope = |(s, spans): (&Arc<Scope>, Vec<&Span>)| {
        let mut o = Map::new();
        if !s.name.is_empty() {
            o.insert("name".into(), s.name.as_str().into());
        }
        if !s.version.is_empty() {
            o.insert("version".into(), s.version.as_str().into());
        }
        json_attributes(&mut o, &s.attributes);
        let spans: Vec<Value> = spans.into_iter().map(|s| json_span(s, dialect)).collect();
        json!({"scope": o, "spans": spans})
    };
    let resource = |(r, scopes): (&Arc<Resource>, Vec<_>)| {
        let mut o = Map::new();
        json_attributes(&mut o, &r.attributes);
        json!({"resource": o, "scopeSpans": scopes.into_iter().map(scope).collect::<Vec<_>>()})
    };
    grouped(spans).into_iter().map(resource).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::{decode_traces, from_protobuf};
    use obs_model::{SpanEvent, SpanId, SpanKind, SpanLink, TimestampNs, TraceId};
    use prost::Message as _;

    fn a_span(id: u8) -> Arc<Span> {
        let bytes = AttributeValue::Bytes(vec![1, 2]);
        let list = AttributeValue::Array(vec![1.into(), "x".into(), AttributeValue::Empty]);
        let map = AttributeValue::Map(vec![("k".into(), 1.5.into())]);
        let all = vec![("bytes".into(), bytes), ("list".into(), list), ("map".into(), map)];
        Arc::new(Span {
            trace_id: TraceId::from_slice(&[7; 16]).unwrap(),
            span_id: SpanId::from_slice(&[id; 8]).unwrap(),
            parent_id: (id > 1).then(|| SpanId::from_slice(&[1; 8]).unwrap()),
            name: "op".into(),
            kind: SpanKind::Client,
            start: TimestampNs::from_nanos(1_000),
            end: TimestampNs::from_nanos(3_000),
            status: SpanStatus::Error("no".into()),
            trace_state: "a=b".into(),
            attributes: all.into(),
            events: vec![SpanEvent {
                timestamp: TimestampNs::from_nanos(2_000),
                name: "e".into(),
                attributes: Attributes::from_iter([("n", 1)]),
            }],
            links: vec![SpanLink {
                trace_id: TraceId::from_slice(&[9; 16]).unwrap(),
                span_id: SpanId::from_slice(&[8; 8]).unwrap(),
                attributes: Attributes::default(),
            }],
            resource: Arc::new(Resource {
                attributes: Attributes::from_iter([("service.name", "s")]),
            }),
            scope: Arc::new(Scope { name: "lib".into(), version: "1".into(), ..Scope::default() }),
        })
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let spans = [a_span(1), a_span(2)];
        let bytes = encode_traces(&spans).encode_to_vec();
        let back = decode_traces(from_protobuf(&bytes).unwrap());
        assert_eq!(back.items, spans.map(|s| (*s).clone()));
    }

    #[test]
    fn json_has_two_dialects() {
        let otlp = json_traces(&[a_span(2)], JsonDialect::Otlp);
        let span = &otlp[0]["scopeSpans"][0]["spans"][0];
        assert_eq!(span["spanId"], "0202020202020202");
        assert_eq!((&span["kind"], &span["status"]["code"]), (&json!(3), &json!(2)));
        let tempo = json_traces(&[a_span(2)], JsonDialect::Proto);
        let span = &tempo[0]["scopeSpans"][0]["spans"][0];
        assert_eq!(span["spanId"], "AgICAgICAgI=");
        assert_eq!(span["kind"], "SPAN_KIND_CLIENT");
        assert_eq!(span["startTimeUnixNano"], "1000");
        assert_eq!(span["attributes"][1]["value"]["arrayValue"]["values"][0]["intValue"], "1");
    }
}
