//! Jaeger's span model, in Thrift and protobuf, to and from spans.

pub mod proto;
mod thrift;

pub use thrift::Protocol;
pub(crate) use thrift::{Kind, Read, Reader};

use crate::{DecodeError, Decoded, Rejected};
use obs_model::{
    AttributeValue, Attributes, Resource, Scope, Span, SpanEvent, SpanId, SpanKind, SpanLink,
    SpanStatus, TimestampNs, TraceId,
};
use std::sync::Arc;

/// A span as Jaeger's clients send it.
#[derive(Debug, Default)]
pub(crate) struct RawSpan {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    /// All zero for none.
    pub(crate) parent_id: [u8; 8],
    pub(crate) name: String,
    pub(crate) references: Vec<Reference>,
    pub(crate) start_ns: i64,
    pub(crate) duration_ns: i64,
    pub(crate) tags: Vec<(String, AttributeValue)>,
    pub(crate) logs: Vec<(i64, Vec<(String, AttributeValue)>)>,
}

#[derive(Debug, Default)]
pub(crate) struct Reference {
    pub(crate) is_child_of: bool,
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
}

/// Names under which a link says which of Jaeger's references it was.
pub const REF_TYPE: &str = "opentracing.ref_type";

pub(crate) fn resource_of(service: String, tags: Vec<(String, AttributeValue)>) -> Arc<Resource> {
    let mut attributes = Attributes::default();
    if !service.is_empty() {
        attributes.push("service.name", service);
    }
    for (k, v) in tags {
        attributes.push(k, v);
    }
    Arc::new(Resource { attributes })
}

fn kind_of(text: &str) -> Option<SpanKind> {
    let all = (1..=5).map(SpanKind::from_otlp);
    all.into_iter().find(|k| k.as_str().eq_ignore_ascii_case(text))
}

/// Takes out of a span's tags what has a place of its own in OTLP.
pub(crate) struct Special {
    pub(crate) kind: SpanKind,
    pub(crate) status: SpanStatus,
    pub(crate) scope: Arc<Scope>,
    pub(crate) trace_state: String,
    pub(crate) attributes: Attributes,
}

impl Special {
    pub(crate) fn of(tags: Vec<(String, AttributeValue)>) -> Self {
        let mut scope = Scope::default();
        let mut out = Self {
            kind: SpanKind::Unspecified,
            status: SpanStatus::Unset,
            scope: Arc::default(),
            trace_state: String::new(),
            attributes: Attributes::default(),
        };
        let mut message = String::new();
        for (key, value) in tags {
            let text = value.as_str().unwrap_or_default();
            match key.as_str() {
                "span.kind" => match kind_of(text) {
                    Some(kind) => out.kind = kind,
                    None => out.attributes.push(key, value),
                },
                "error" if value.as_bool() == Some(true) => {
                    out.status = SpanStatus::Error(String::new());
                }
                "error" if value.as_bool() == Some(false) => {}
                "otel.status_code" if text.eq_ignore_ascii_case("error") => {
                    out.status = SpanStatus::Error(String::new());
                }
                "otel.status_code" if text.eq_ignore_ascii_case("ok") => {
                    out.status = SpanStatus::Ok;
                }
                "otel.status_description" => text.clone_into(&mut message),
                "otel.scope.name" | "otel.library.name" => text.clone_into(&mut scope.name),
                "otel.scope.version" | "otel.library.version" => {
                    text.clone_into(&mut scope.version);
                }
                "w3c.tracestate" => text.clone_into(&mut out.trace_state),
                // Our own mark of the format, which Jaeger's exporters write.
                "internal.span.format" => {}
                _ => out.attributes.push(key, value),
            }
        }
        if let SpanStatus::Error(m) = &mut out.status {
            *m = message;
        }
        out.scope = Arc::new(scope);
        out
    }
}

pub(crate) fn span_of(raw: RawSpan, resource: &Arc<Resource>) -> Result<Span, String> {
    let trace_id = TraceId::from_slice(&raw.trace_id).ok_or("trace id is zero")?;
    let span_id = SpanId::from_slice(&raw.span_id).ok_or("span id is zero")?;
    let start = TimestampNs::from_nanos(raw.start_ns);
    let mut parent_id = SpanId::from_slice(&raw.parent_id);
    let mut links = Vec::new();
    for r in raw.references {
        let Some(other) = SpanId::from_slice(&r.span_id) else { continue };
        let other_trace = TraceId::from_slice(&r.trace_id).unwrap_or(trace_id);
        if other_trace == trace_id && r.is_child_of && parent_id.is_none_or(|p| p == other) {
            parent_id = Some(other);
            continue;
        }
        let kind = if r.is_child_of { "child_of" } else { "follows_from" };
        let attributes = Attributes::from_iter([(REF_TYPE, kind)]);
        links.push(SpanLink { trace_id: other_trace, span_id: other, attributes });
    }
    let event = |(timestamp, mut fields): (i64, Vec<(String, AttributeValue)>)| {
        let at = fields.iter().position(|(k, v)| k == "event" && v.as_str().is_some());
        let name = at.map(|i| fields.remove(i).1.to_string()).unwrap_or_default();
        SpanEvent { timestamp: TimestampNs::from_nanos(timestamp), name, attributes: fields.into() }
    };
    let special = Special::of(raw.tags);
    Ok(Span {
        trace_id,
        span_id,
        parent_id,
        name: raw.name,
        kind: special.kind,
        start,
        end: start.add_nanos(raw.duration_ns.max(0)),
        status: special.status,
        trace_state: special.trace_state,
        attributes: special.attributes,
        events: raw.logs.into_iter().map(event).collect(),
        links,
        resource: resource.clone(),
        scope: special.scope,
    })
}

fn micros(us: i64) -> i64 {
    us.saturating_mul(1000)
}

fn tag(r: &mut Reader<'_>) -> Read<(String, AttributeValue)> {
    let (mut key, mut kind) = (String::new(), 0);
    let (mut text, mut double, mut flag, mut long) = (String::new(), 0.0, false, 0);
    let mut binary = Vec::new();
    r.structure(&mut |r, id, t| {
        match (id, t) {
            (1, Kind::Bytes) => key = r.string()?,
            (2, Kind::I32) => kind = r.i32()?,
            (3, Kind::Bytes) => text = r.string()?,
            (4, Kind::Double) => double = r.double()?,
            (5, Kind::Bool) => flag = r.bool()?,
            (6, Kind::I64) => long = r.i64()?,
            (7, Kind::Bytes) => binary = r.bytes()?.to_vec(),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let value = match kind {
        0 => text.into(),
        1 => double.into(),
        2 => flag.into(),
        3 => long.into(),
        _ => AttributeValue::Bytes(binary),
    };
    Ok((key, value))
}

/// Returns an id's bytes; shorter ids stand at the end, as numbers do.
pub(crate) fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().rev().zip(bytes.iter().rev()) {
        *to = *from;
    }
    out
}

/// Returns a trace id of the two numbers that Thrift has for it.
pub(crate) fn trace_bytes(low: i64, high: i64) -> [u8; 16] {
    let both = (u128::from(high as u64) << 64) | u128::from(low as u64);
    both.to_be_bytes()
}

fn thrift_log(r: &mut Reader<'_>) -> Read<(i64, Vec<(String, AttributeValue)>)> {
    let (mut time, mut fields) = (0, Vec::new());
    r.structure(&mut |r, id, t| {
        match (id, t) {
            (1, Kind::I64) => time = micros(r.i64()?),
            (2, Kind::List) => fields = r.list(tag)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((time, fields))
}

fn thrift_reference(r: &mut Reader<'_>) -> Read<Reference> {
    let mut out = Reference { is_child_of: true, ..Reference::default() };
    let (mut low, mut high) = (0, 0);
    r.structure(&mut |r, id, t| {
        match (id, t) {
            (1, Kind::I32) => out.is_child_of = r.i32()? == 0,
            (2, Kind::I64) => low = r.i64()?,
            (3, Kind::I64) => high = r.i64()?,
            (4, Kind::I64) => out.span_id = r.i64()?.to_be_bytes(),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    out.trace_id = trace_bytes(low, high);
    Ok(out)
}

fn thrift_span(r: &mut Reader<'_>) -> Read<RawSpan> {
    let mut s = RawSpan::default();
    let (mut low, mut high) = (0, 0);
    r.structure(&mut |r, id, t| {
        match (id, t) {
            (1, Kind::I64) => low = r.i64()?,
            (2, Kind::I64) => high = r.i64()?,
            (3, Kind::I64) => s.span_id = r.i64()?.to_be_bytes(),
            (4, Kind::I64) => s.parent_id = r.i64()?.to_be_bytes(),
            (5, Kind::Bytes) => s.name = r.string()?,
            (6, Kind::List) => s.references = r.list(thrift_reference)?,
            (8, Kind::I64) => s.start_ns = micros(r.i64()?),
            (9, Kind::I64) => s.duration_ns = micros(r.i64()?),
            (10, Kind::List) => s.tags = r.list(tag)?,
            (11, Kind::List) => s.logs = r.list(thrift_log)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    s.trace_id = trace_bytes(low, high);
    Ok(s)
}

fn process(r: &mut Reader<'_>) -> Read<(String, Vec<(String, AttributeValue)>)> {
    let (mut service, mut tags) = (String::new(), Vec::new());
    r.structure(&mut |r, id, t| {
        match (id, t) {
            (1, Kind::Bytes) => service = r.string()?,
            (2, Kind::List) => tags = r.list(tag)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((service, tags))
}

/// Puts a process's spans in the form of the store; those without ids are refused.
pub(crate) fn spans_of(resource: &Arc<Resource>, raw: Vec<RawSpan>) -> Decoded<Vec<Span>> {
    let mut out = Decoded { items: Vec::with_capacity(raw.len()), rejected: Rejected::default() };
    for s in raw {
        match span_of(s, resource) {
            Ok(s) => out.items.push(s),
            Err(reason) => out.rejected.add(reason),
        }
    }
    out
}

fn batch(r: &mut Reader<'_>) -> Read<Decoded<Vec<Span>>> {
    let (mut of, mut spans) = ((String::new(), Vec::new()), Vec::new());
    r.structure(&mut |r, id, t| {
        match (id, t) {
            (1, Kind::Struct) => of = process(r)?,
            (2, Kind::List) => spans = r.list(thrift_span)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(spans_of(&resource_of(of.0, of.1), spans))
}

/// Decodes a batch, as it is posted over HTTP.
///
/// # Errors
/// When the bytes are not that structure.
pub fn decode_batch(body: &[u8], protocol: Protocol) -> Result<Decoded<Vec<Span>>, DecodeError> {
    batch(&mut Reader::new(body, protocol))
}

/// Decodes a datagram to an agent: a call of `emitBatch` or `emitZipkinBatch`.
///
/// # Errors
/// When the bytes are not such a call.
pub fn decode_datagram(
    body: &[u8],
    protocol: Protocol,
    now: TimestampNs,
) -> Result<Decoded<Vec<Span>>, DecodeError> {
    let mut r = Reader::new(body, protocol);
    let method = r.message()?;
    let mut out = None;
    let is_zipkin = match method.as_str() {
        "emitBatch" => false,
        "emitZipkinBatch" => true,
        _ => return r.fail(format!("unknown method {method:?}")),
    };
    r.structure(&mut |r, id, t| {
        match (id, t) {
            (1, Kind::Struct) if !is_zipkin => out = Some(batch(r)?),
            (1, Kind::List) if is_zipkin => out = Some(crate::zipkin::thrift_list(r, now)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    out.map_or_else(|| r.fail("call without spans"), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compact_string(out: &mut Vec<u8>, text: &str) {
        out.push(text.len() as u8);
        out.extend_from_slice(text.as_bytes());
    }

    /// A call of `emitBatch` in the compact protocol with one span.
    fn datagram() -> Vec<u8> {
        let mut b = vec![0x82, 0x81, 1];
        compact_string(&mut b, "emitBatch");
        // The argument, its process, the service's name.
        b.extend_from_slice(&[0x1c, 0x1c, 0x18]);
        compact_string(&mut b, "shop");
        // The list of spans: ids 5, 0, 7, no parent; name; start 1,000 and length 250 µs.
        b.extend_from_slice(&[0x00, 0x19, 0x1c, 0x16, 10, 0x16, 0, 0x16, 14, 0x16, 0, 0x18]);
        compact_string(&mut b, "pay");
        b.extend_from_slice(&[0x36, 0xd0, 0x0f, 0x16, 0xf4, 0x03]);
        // One tag that is true, then the ends.
        b.extend_from_slice(&[0x19, 0x1c, 0x18]);
        compact_string(&mut b, "error");
        b.extend_from_slice(&[0x15, 4, 0x31, 0x00, 0x00, 0x00, 0x00]);
        b
    }

    #[test]
    fn a_datagram_is_read_and_cut_anywhere_is_refused() {
        let whole = datagram();
        let now = TimestampNs::from_nanos(0);
        let d = decode_datagram(&whole, Protocol::Compact, now).unwrap();
        let s = &d.items[0];
        assert_eq!((s.service(), s.name.as_str(), s.duration_ns()), ("shop", "pay", 250_000));
        assert_eq!(s.start.nanos(), 1_000_000);
        assert!(s.status.is_error() && s.attributes.is_empty() && s.parent_id.is_none());
        for n in 0..whole.len() {
            assert!(decode_datagram(&whole[..n], Protocol::Compact, now).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn damage_is_an_error_or_other_spans_and_never_more() {
        let mut seed = 1_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize
        };
        let whole = datagram();
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..1 + next() % 4 {
                let at = next() % bytes.len();
                bytes[at] = next() as u8;
            }
            for protocol in [Protocol::Compact, Protocol::Binary] {
                let _ = decode_datagram(&bytes, protocol, TimestampNs::from_nanos(0));
                let _ = decode_batch(&bytes, protocol);
                let _ = crate::zipkin::decode_v1_thrift(&bytes, TimestampNs::from_nanos(0));
            }
        }
        // What is announced must be there.
        let huge = [0x0b, 0, 1, 0x7f, 0xff, 0xff, 0xff];
        let e = decode_batch(&huge, Protocol::Binary).unwrap_err().to_string();
        assert!(e.contains("announced"), "{e}");
        let deep = [0x1c; 5_000];
        let e = decode_batch(&deep, Protocol::Compact).unwrap_err().to_string();
        assert!(e.contains("too deeply"), "{e}");
    }

    #[test]
    fn a_span_survives_jaegers_message() {
        let resource = resource_of("shop".into(), vec![("zone".into(), "eu".into())]);
        let raw = RawSpan {
            trace_id: [1; 16],
            span_id: [2; 8],
            name: "op".into(),
            references: vec![
                Reference { is_child_of: true, trace_id: [1; 16], span_id: [3; 8] },
                Reference { is_child_of: false, trace_id: [9; 16], span_id: [4; 8] },
            ],
            start_ns: 5_000,
            duration_ns: 7_000,
            tags: vec![
                ("span.kind".into(), "client".into()),
                ("otel.status_description".into(), "no".into()),
                ("error".into(), true.into()),
                ("otel.scope.name".into(), "lib".into()),
                ("n".into(), 3.into()),
            ],
            logs: vec![(6_000, vec![("event".into(), "e".into()), ("k".into(), 1.5.into())])],
            ..RawSpan::default()
        };
        let span = span_of(raw, &resource).unwrap();
        assert_eq!(span.parent_id, SpanId::from_slice(&[3; 8]));
        assert_eq!((span.kind, &span.status), (SpanKind::Client, &SpanStatus::Error("no".into())));
        assert_eq!((span.scope.name.as_str(), span.attributes.len()), ("lib", 1));
        let batch = proto::Batch { spans: vec![proto::encode(&span)], process: None };
        assert_eq!(proto::decode(batch).items, [span]);
    }
}
