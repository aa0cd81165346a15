//! Version 2: JSON and protobuf.

use super::{Endpoint, RawSpan, kind_of, spans_of};
use crate::jaeger::padded;
use crate::{DecodeError, Decoded};
use obs_model::{Span, SpanKind, TimestampNs, unhex};
use prost::Message as _;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct JsonEndpoint {
    service_name: Option<String>,
    ipv4: Option<String>,
    ipv6: Option<String>,
    port: Option<f64>,
}

impl From<JsonEndpoint> for Endpoint {
    fn from(e: JsonEndpoint) -> Self {
        let address = |t: Option<String>| t.and_then(|t| t.parse::<IpAddr>().ok());
        Self {
            service: e.service_name.unwrap_or_default(),
            address: address(e.ipv4).or_else(|| address(e.ipv6)),
            port: e.port.map_or(0, |p| p as u16),
        }
    }
}

/// A number that some reporters write as a text or with a fraction.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Micros {
    Int(i64),
    Float(f64),
    Text(String),
}

impl Micros {
    pub(super) fn value(self) -> i64 {
        match self {
            Self::Int(i) => i,
            Self::Float(f) => f as i64,
            Self::Text(t) => t.parse().unwrap_or(0),
        }
    }
}

#[derive(Debug, Deserialize)]
struct JsonAnnotation {
    timestamp: Option<Micros>,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonSpan {
    trace_id: String,
    id: String,
    parent_id: Option<String>,
    name: Option<String>,
    kind: Option<String>,
    timestamp: Option<Micros>,
    duration: Option<Micros>,
    local_endpoint: Option<JsonEndpoint>,
    remote_endpoint: Option<JsonEndpoint>,
    annotations: Option<Vec<JsonAnnotation>>,
    tags: Option<BTreeMap<String, serde_json::Value>>,
    shared: Option<bool>,
}

/// Parses an id; an empty one is none, all zero.
pub(super) fn id<const N: usize>(text: &str, what: &str) -> Result<[u8; N], String> {
    if text.is_empty() {
        return Ok([0; N]);
    }
    unhex(text).ok_or_else(|| format!("{what} {text:?} is not hexadecimal of {} digits", 2 * N))
}

fn raw_of(value: serde_json::Value) -> Result<RawSpan, String> {
    let s: JsonSpan = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let text = |v: serde_json::Value| match v {
        serde_json::Value::String(s) => s,
        other => other.to_string(),
    };
    Ok(RawSpan {
        trace_id: id(&s.trace_id, "trace id")?,
        id: id(&s.id, "span id")?,
        parent_id: id(s.parent_id.as_deref().unwrap_or_default(), "parent id")?,
        kind: kind_of(s.kind.as_deref().unwrap_or_default())?,
        name: s.name.unwrap_or_default(),
        timestamp: s.timestamp.map_or(0, Micros::value),
        duration: s.duration.map_or(0, Micros::value),
        local: s.local_endpoint.map(Into::into).unwrap_or_default(),
        remote: s.remote_endpoint.map(Into::into).unwrap_or_default(),
        annotations: s
            .annotations
            .unwrap_or_default()
            .into_iter()
            .map(|a| (a.timestamp.map_or(0, Micros::value), a.value))
            .collect(),
        tags: s.tags.unwrap_or_default().into_iter().map(|(k, v)| (k, text(v).into())).collect(),
        shared: s.shared.unwrap_or(false),
    })
}

/// Decodes a JSON list of spans.
///
/// # Errors
/// When the body is no JSON list.
pub fn decode_json(body: &[u8], now: TimestampNs) -> Result<Decoded<Vec<Span>>, DecodeError> {
    let list: Vec<serde_json::Value> = serde_json::from_slice(body)
        .map_err(|e| DecodeError { format: "Zipkin v2 JSON", reason: e.to_string() })?;
    Ok(spans_of(list.into_iter().map(raw_of).collect(), now))
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ProtoEndpoint {
    #[prost(string, tag = "1")]
    service_name: String,
    #[prost(bytes = "vec", tag = "2")]
    ipv4: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    ipv6: Vec<u8>,
    #[prost(int32, tag = "4")]
    port: i32,
}

impl From<ProtoEndpoint> for Endpoint {
    fn from(e: ProtoEndpoint) -> Self {
        Self { service: e.service_name, address: address(&e.ipv4, &e.ipv6), port: e.port as u16 }
    }
}

pub(super) fn address(v4: &[u8], v6: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(v4).ok().filter(|a| *a != [0; 4]).map(IpAddr::from);
    four.or_else(|| <[u8; 16]>::try_from(v6).ok().filter(|a| *a != [0; 16]).map(IpAddr::from))
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ProtoAnnotation {
    #[prost(fixed64, tag = "1")]
    timestamp: u64,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ProtoSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    parent_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    id: Vec<u8>,
    #[prost(int32, tag = "4")]
    kind: i32,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "6")]
    timestamp: u64,
    #[prost(uint64, tag = "7")]
    duration: u64,
    #[prost(message, optional, tag = "8")]
    local: Option<ProtoEndpoint>,
    #[prost(message, optional, tag = "9")]
    remote: Option<ProtoEndpoint>,
    #[prost(message, repeated, tag = "10")]
    annotations: Vec<ProtoAnnotation>,
    #[prost(map = "string, string", tag = "11")]
    tags: HashMap<String, String>,
    #[prost(bool, tag = "13")]
    shared: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ProtoSpans {
    #[prost(message, repeated, tag = "1")]
    spans: Vec<ProtoSpan>,
}

fn raw_of_proto(s: ProtoSpan) -> Result<RawSpan, String> {
    fn fixed<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], String> {
        if bytes.len() > N {
            return Err(format!("{what} has {} bytes", bytes.len()));
        }
        Ok(padded(bytes))
    }
    let micros = |us: u64| i64::try_from(us).unwrap_or(i64::MAX);
    let mut tags: Vec<_> = s.tags.into_iter().map(|(k, v)| (k, v.into())).collect();
    tags.sort_by(|(a, _): &(String, _), (b, _)| a.cmp(b));
    Ok(RawSpan {
        trace_id: fixed(&s.trace_id, "trace id")?,
        id: fixed(&s.id, "span id")?,
        parent_id: fixed(&s.parent_id, "parent id")?,
        kind: match s.kind {
            1 => SpanKind::Client,
            2 => SpanKind::Server,
            3 => SpanKind::Producer,
            4 => SpanKind::Consumer,
            _ => SpanKind::Unspecified,
        },
        name: s.name,
        timestamp: micros(s.timestamp),
        duration: micros(s.duration),
        local: s.local.map(Into::into).unwrap_or_default(),
        remote: s.remote.map(Into::into).unwrap_or_default(),
        annotations: s.annotations.into_iter().map(|a| (micros(a.timestamp), a.value)).collect(),
        tags,
        shared: s.shared,
    })
}

/// Decodes a protobuf list of spans.
///
/// # Errors
/// When the body is not that message.
pub fn decode_proto(body: &[u8], now: TimestampNs) -> Result<Decoded<Vec<Span>>, DecodeError> {
    let list = ProtoSpans::decode(body)
        .map_err(|e| DecodeError { format: "Zipkin v2 protobuf", reason: e.to_string() })?;
    Ok(spans_of(list.spans.into_iter().map(raw_of_proto).collect(), now))
}
