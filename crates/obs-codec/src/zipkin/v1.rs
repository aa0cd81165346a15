//! Version 1: JSON and Thrift. What version 2 has fields for, annotations tell here.

use super::v2::{JsonEndpoint, Micros, address, id};
use super::{Endpoint, RawSpan, spans_of};
use crate::jaeger::{Kind, Protocol, Read, Reader, trace_bytes};
use crate::{DecodeError, Decoded};
use obs_model::{AttributeValue, Span, SpanKind, TimestampNs};
use serde::Deserialize;

#[derive(Debug)]
struct Annotation {
    timestamp: i64,
    value: String,
    host: Endpoint,
}

#[derive(Debug)]
struct BinaryAnnotation {
    key: String,
    value: AttributeValue,
    host: Endpoint,
}

#[derive(Debug, Default)]
struct Old {
    trace_id: [u8; 16],
    id: [u8; 8],
    parent_id: [u8; 8],
    name: String,
    timestamp: i64,
    duration: i64,
    annotations: Vec<Annotation>,
    binary: Vec<BinaryAnnotation>,
}

/// Pairs of annotations that begin and end a side of a call.
const SIDES: [(&str, &str, SpanKind); 4] = [
    ("cs", "cr", SpanKind::Client),
    ("sr", "ss", SpanKind::Server),
    ("ms", "", SpanKind::Producer),
    ("mr", "", SpanKind::Consumer),
];

/// Makes one span of a span, or two where it tells of both sides of a call.
fn sides(old: Old) -> Vec<RawSpan> {
    let at = |value: &str| old.annotations.iter().find(|a| !value.is_empty() && a.value == value);
    let mut out = Vec::new();
    for (begin, end, kind) in SIDES {
        let (b, e) = (at(begin), at(end));
        let Some(either) = b.or(e) else { continue };
        let mut side = RawSpan { kind, local: either.host.clone(), ..RawSpan::default() };
        side.timestamp = b.map_or(0, |b| b.timestamp);
        if let (Some(b), Some(e)) = (b, e) {
            side.duration = e.timestamp.saturating_sub(b.timestamp);
        }
        out.push(side);
    }
    let is_local = out.is_empty();
    if is_local {
        out.push(RawSpan::default());
    }
    let both = out.len() > 1;
    for (i, side) in out.iter_mut().enumerate() {
        (side.trace_id, side.id, side.parent_id) = (old.trace_id, old.id, old.parent_id);
        side.name.clone_from(&old.name);
        side.shared = both && side.kind == SpanKind::Server;
        // The span's own time belongs to who began it.
        if i == 0 && old.timestamp > 0 {
            side.timestamp = old.timestamp;
            side.duration = if old.duration > 0 { old.duration } else { side.duration };
        }
    }
    let is_core = |v: &str| SIDES.iter().any(|(b, e, _)| v == *b || (v == *e && !e.is_empty()));
    let side_of = |host: &Endpoint, out: &[RawSpan]| {
        out.iter().position(|s| !host.is_empty() && s.local.service == host.service).unwrap_or(0)
    };
    for a in old.annotations {
        if is_core(&a.value) {
            continue;
        }
        let i = side_of(&a.host, &out);
        if let Some(s) = out.get_mut(i) {
            if is_local && s.local.is_empty() {
                s.local = a.host;
            }
            s.annotations.push((a.timestamp, a.value));
        }
    }
    for b in old.binary {
        match b.key.as_str() {
            // The other side's address, seen from this one.
            "sa" | "ca" | "ma" => {
                let of = match b.key.as_str() {
                    "sa" => SpanKind::Client,
                    "ca" => SpanKind::Server,
                    _ => SpanKind::Unspecified,
                };
                let i = out.iter().position(|s| s.kind == of).unwrap_or(0);
                if let Some(s) = out.get_mut(i) {
                    s.remote = b.host;
                }
                continue;
            }
            _ => {}
        }
        let i = side_of(&b.host, &out);
        let Some(s) = out.get_mut(i) else { continue };
        if s.local.is_empty() {
            s.local = b.host;
        }
        // "lc" names the component; a tag only if it says something.
        if b.key == "lc" && b.value.as_str().is_some_and(str::is_empty) {
            continue;
        }
        s.tags.push((b.key, b.value));
    }
    out
}

#[derive(Debug, Deserialize)]
struct JsonAnnotation {
    timestamp: Option<Micros>,
    #[serde(default)]
    value: String,
    endpoint: Option<JsonEndpoint>,
}

#[derive(Debug, Deserialize)]
struct JsonBinary {
    key: String,
    #[serde(default)]
    value: serde_json::Value,
    endpoint: Option<JsonEndpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonSpan {
    trace_id: String,
    id: String,
    parent_id: Option<String>,
    name: Option<String>,
    timestamp: Option<Micros>,
    duration: Option<Micros>,
    annotations: Option<Vec<JsonAnnotation>>,
    binary_annotations: Option<Vec<JsonBinary>>,
}

fn old_of(value: serde_json::Value) -> Result<Old, String> {
    let s: JsonSpan = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let host = |e: Option<JsonEndpoint>| e.map(Endpoint::from).unwrap_or_default();
    let value = |v: serde_json::Value| match v {
        serde_json::Value::String(s) => AttributeValue::from(s),
        serde_json::Value::Bool(b) => b.into(),
        serde_json::Value::Number(n) => {
            n.as_i64().map_or_else(|| n.as_f64().unwrap_or(f64::NAN).into(), AttributeValue::from)
        }
        other => other.to_string().into(),
    };
    Ok(Old {
        trace_id: id(&s.trace_id, "trace id")?,
        id: id(&s.id, "span id")?,
        parent_id: id(s.parent_id.as_deref().unwrap_or_default(), "parent id")?,
        name: s.name.unwrap_or_default(),
        timestamp: s.timestamp.map_or(0, Micros::value),
        duration: s.duration.map_or(0, Micros::value),
        annotations: s
            .annotations
            .unwrap_or_default()
            .into_iter()
            .map(|a| Annotation {
                timestamp: a.timestamp.map_or(0, Micros::value),
                value: a.value,
                host: host(a.endpoint),
            })
            .collect(),
        binary: s
            .binary_annotations
            .unwrap_or_default()
            .into_iter()
            .map(|b| BinaryAnnotation { key: b.key, value: value(b.value), host: host(b.endpoint) })
            .collect(),
    })
}

fn of_old(list: Vec<Result<Old, String>>, now: TimestampNs) -> Decoded<Vec<Span>> {
    let each = |old: Result<Old, String>| match old {
        Ok(old) => sides(old).into_iter().map(Ok).collect(),
        Err(e) => vec![Err(e)],
    };
    spans_of(list.into_iter().flat_map(each).collect(), now)
}

/// Decodes a JSON list of spans.
///
/// # Errors
/// When the body is no JSON list.
pub fn decode_json(body: &[u8], now: TimestampNs) -> Result<Decoded<Vec<Span>>, DecodeError> {
    let list: Vec<serde_json::Value> = serde_json::from_slice(body)
        .map_err(|e| DecodeError { format: "Zipkin v1 JSON", reason: e.to_string() })?;
    Ok(of_old(list.into_iter().map(old_of).collect(), now))
}

fn endpoint(r: &mut Reader<'_>) -> Read<Endpoint> {
    let mut out = Endpoint::default();
    let (mut v4, mut v6) = ([0; 4], Vec::new());
    r.structure(&mut |r, field, kind| {
        match (field, kind) {
            (1, Kind::I32) => v4 = r.i32()?.to_be_bytes(),
            (2, Kind::I16) => out.port = r.i16()? as u16,
            (3, Kind::Bytes) => out.service = r.string()?,
            (4, Kind::Bytes) => v6 = r.bytes()?.to_vec(),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    out.address = address(&v4, &v6);
    Ok(out)
}

fn annotation(r: &mut Reader<'_>) -> Read<Annotation> {
    let mut out = Annotation { timestamp: 0, value: String::new(), host: Endpoint::default() };
    r.structure(&mut |r, field, kind| {
        match (field, kind) {
            (1, Kind::I64) => out.timestamp = r.i64()?,
            (2, Kind::Bytes) => out.value = r.string()?,
            (3, Kind::Struct) => out.host = endpoint(r)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(out)
}

/// Reads a value by its type; one of the wrong length stays bytes.
fn binary_value(kind: i32, bytes: &[u8]) -> AttributeValue {
    let typed = match kind {
        0 => bytes.first().map(|b| (*b != 0).into()),
        2 => bytes.try_into().ok().map(|b| i64::from(i16::from_be_bytes(b)).into()),
        3 => bytes.try_into().ok().map(|b| i64::from(i32::from_be_bytes(b)).into()),
        4 => bytes.try_into().ok().map(|b| i64::from_be_bytes(b).into()),
        5 => bytes.try_into().ok().map(|b| f64::from_be_bytes(b).into()),
        6 => Some(String::from_utf8_lossy(bytes).into_owned().into()),
        _ => None,
    };
    typed.unwrap_or_else(|| AttributeValue::Bytes(bytes.to_vec()))
}

fn binary_annotation(r: &mut Reader<'_>) -> Read<BinaryAnnotation> {
    let (mut key, mut bytes, mut of_kind) = (String::new(), Vec::new(), 6);
    let mut host = Endpoint::default();
    r.structure(&mut |r, field, kind| {
        match (field, kind) {
            (1, Kind::Bytes) => key = r.string()?,
            (2, Kind::Bytes) => bytes = r.bytes()?.to_vec(),
            (3, Kind::I32) => of_kind = r.i32()?,
            (4, Kind::Struct) => host = endpoint(r)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(BinaryAnnotation { key, value: binary_value(of_kind, &bytes), host })
}

fn thrift_span(r: &mut Reader<'_>) -> Read<Old> {
    let mut out = Old::default();
    let (mut low, mut high) = (0, 0);
    r.structure(&mut |r, field, kind| {
        match (field, kind) {
            (1, Kind::I64) => low = r.i64()?,
            (3, Kind::Bytes) => out.name = r.string()?,
            (4, Kind::I64) => out.id = r.i64()?.to_be_bytes(),
            (5, Kind::I64) => out.parent_id = r.i64()?.to_be_bytes(),
            (6, Kind::List) => out.annotations = r.list(annotation)?,
            (8, Kind::List) => out.binary = r.list(binary_annotation)?,
            (10, Kind::I64) => out.timestamp = r.i64()?,
            (11, Kind::I64) => out.duration = r.i64()?,
            (12, Kind::I64) => high = r.i64()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    out.trace_id = trace_bytes(low, high);
    Ok(out)
}

/// Reads a list of spans where the reader stands.
pub(crate) fn thrift_list(r: &mut Reader<'_>, now: TimestampNs) -> Read<Decoded<Vec<Span>>> {
    Ok(of_old(r.list(thrift_span)?.into_iter().map(Ok).collect(), now))
}

/// Decodes a list of spans in Thrift's binary protocol.
///
/// # Errors
/// When the bytes are no such list.
pub fn decode_thrift(body: &[u8], now: TimestampNs) -> Result<Decoded<Vec<Span>>, DecodeError> {
    thrift_list(&mut Reader::new(body, Protocol::Binary), now)
}
