//! Zipkin's spans: JSON of versions 1 and 2, protobuf of version 2, Thrift of version 1.
//!
//! Times are microseconds; ids have 64 bits and trace ids 64 or 128. Both sides of a call may share
//! an id: they are kept so, and told apart by kind and service when a trace is put together.

mod v1;
mod v2;

pub(crate) use v1::thrift_list;
pub use v1::{decode_json as decode_v1_json, decode_thrift as decode_v1_thrift};
pub use v2::{decode_json as decode_v2_json, decode_proto as decode_v2_proto};

use crate::Decoded;
use crate::jaeger::{Special, resource_of};
use obs_model::{
    AttributeValue, Resource, Span, SpanEvent, SpanId, SpanKind, SpanStatus, TimestampNs, TraceId,
};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// One side of a call.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Endpoint {
    service: String,
    address: Option<IpAddr>,
    port: u16,
}

impl Endpoint {
    fn is_empty(&self) -> bool {
        self.service.is_empty() && self.address.is_none() && self.port == 0
    }
}

/// A span in the form of version 2, which all others become.
#[derive(Debug, Default)]
pub(crate) struct RawSpan {
    trace_id: [u8; 16],
    id: [u8; 8],
    parent_id: [u8; 8],
    kind: SpanKind,
    name: String,
    /// Unix microseconds; 0 for none.
    timestamp: i64,
    duration: i64,
    local: Endpoint,
    remote: Endpoint,
    annotations: Vec<(i64, String)>,
    tags: Vec<(String, AttributeValue)>,
    shared: bool,
}

/// Attribute of the side that took its id over from the caller.
pub const SHARED: &str = "zipkin.shared";

/// Converts spans; those without ids are refused one by one.
fn spans_of(list: Vec<Result<RawSpan, String>>, now: TimestampNs) -> Decoded<Vec<Span>> {
    let mut resources: HashMap<String, Arc<Resource>> = HashMap::new();
    let mut out = Decoded { items: Vec::with_capacity(list.len()), rejected: Default::default() };
    for raw in list {
        match raw.and_then(|raw| span_of(raw, &mut resources, now)) {
            Ok(s) => out.items.push(s),
            Err(reason) => out.rejected.add(reason),
        }
    }
    out
}

fn span_of(
    raw: RawSpan,
    resources: &mut HashMap<String, Arc<Resource>>,
    now: TimestampNs,
) -> Result<Span, String> {
    let trace_id = TraceId::from_slice(&raw.trace_id).ok_or("trace id is zero or missing")?;
    let span_id = SpanId::from_slice(&raw.id).ok_or("span id is zero or missing")?;
    let service = raw.local.service.clone();
    let resource = resources
        .entry(service.clone())
        .or_insert_with(|| resource_of(service, Vec::new()))
        .clone();
    let micros = |us: i64| TimestampNs::from_nanos(us.saturating_mul(1000));
    // A span without a time is one whose start another reporter tells: it begins with its first
    // annotation, or came just now.
    let first = raw.annotations.iter().map(|(t, _)| *t).filter(|t| *t > 0).min();
    let start = match (raw.timestamp, first) {
        (0, None) => now,
        (0, Some(t)) => micros(t),
        (t, _) => micros(t),
    };
    let mut tags = raw.tags;
    let mut error = None;
    tags.retain(|(key, value)| {
        if key == "error" && error.is_none() {
            // Any value but "false" says that the call failed; a text says why.
            let text = value.to_string();
            if !text.eq_ignore_ascii_case("false") {
                let is_plain = text.is_empty() || text.eq_ignore_ascii_case("true");
                error = Some(if is_plain { String::new() } else { text });
            }
            return false;
        }
        true
    });
    let mut special = Special::of(tags);
    if let Some(message) = error {
        special.status = match special.status {
            SpanStatus::Error(m) if !m.is_empty() => SpanStatus::Error(m),
            _ => SpanStatus::Error(message),
        };
    }
    let a = &mut special.attributes;
    let mut endpoint = |prefix: &str, e: &Endpoint| {
        if let Some(ip) = e.address {
            a.push(format!("net.{prefix}.ip"), ip.to_string());
        }
        if e.port > 0 {
            a.push(format!("net.{prefix}.port"), i64::from(e.port));
        }
    };
    endpoint("host", &raw.local);
    endpoint("peer", &raw.remote);
    if !raw.remote.service.is_empty() && a.get("peer.service").is_none() {
        a.push("peer.service", raw.remote.service);
    }
    if raw.shared {
        a.push(SHARED, true);
    }
    let event = |(t, value): (i64, String)| SpanEvent {
        timestamp: micros(t),
        name: value,
        attributes: Default::default(),
    };
    Ok(Span {
        trace_id,
        span_id,
        parent_id: SpanId::from_slice(&raw.parent_id),
        name: raw.name,
        kind: if raw.kind == SpanKind::Unspecified { special.kind } else { raw.kind },
        start,
        end: start.add_nanos(raw.duration.max(0).saturating_mul(1000)),
        status: special.status,
        trace_state: special.trace_state,
        attributes: special.attributes,
        events: raw.annotations.into_iter().map(event).collect(),
        links: Vec::new(),
        resource,
        scope: special.scope,
    })
}

fn kind_of(text: &str) -> Result<SpanKind, String> {
    Ok(match text {
        "" => SpanKind::Unspecified,
        "CLIENT" => SpanKind::Client,
        "SERVER" => SpanKind::Server,
        "PRODUCER" => SpanKind::Producer,
        "CONSUMER" => SpanKind::Consumer,
        other => return Err(format!("unknown kind {other:?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: TimestampNs = TimestampNs::from_nanos(42);

    #[test]
    fn both_sides_of_an_old_span_become_spans() {
        let json = br#"[{"traceId":"5","id":"6","name":"get","timestamp":100,"duration":50,
          "annotations":[
            {"timestamp":100,"value":"cs","endpoint":{"serviceName":"web"}},
            {"timestamp":110,"value":"sr","endpoint":{"serviceName":"api","ipv4":"10.0.0.2","port":80}},
            {"timestamp":120,"value":"cache miss","endpoint":{"serviceName":"api"}},
            {"timestamp":140,"value":"ss","endpoint":{"serviceName":"api"}},
            {"timestamp":150,"value":"cr","endpoint":{"serviceName":"web"}}],
          "binaryAnnotations":[
            {"key":"http.path","value":"/x","endpoint":{"serviceName":"web"}},
            {"key":"sa","value":true,"endpoint":{"serviceName":"api"}}]}]"#;
        let d = decode_v1_json(json, NOW).unwrap();
        let [client, server] = d.items.as_slice() else { panic!("{d:?}") };
        assert_eq!((client.service(), client.kind), ("web", SpanKind::Client));
        assert_eq!((client.start.nanos(), client.duration_ns()), (100_000, 50_000));
        assert_eq!(client.attributes.get_str("peer.service"), Some("api"));
        assert_eq!(client.attributes.get_str("http.path"), Some("/x"));
        assert_eq!((server.service(), server.kind), ("api", SpanKind::Server));
        assert_eq!((server.start.nanos(), server.duration_ns()), (110_000, 30_000));
        assert_eq!(server.span_id, client.span_id);
        assert_eq!(server.events[0].name, "cache miss");
        assert_eq!(server.attributes.get_str("net.host.ip"), Some("10.0.0.2"));
    }

    #[test]
    fn what_is_missing_is_made_up_for_or_refused() {
        let json = br#"[
          {"traceId":"1","id":"2"},
          {"traceId":"1","id":"3","timestamp":"7","duration":1.9,"kind":"SERVER",
           "tags":{"error":"","n":5,"otel.scope.name":"lib"}},
          {"traceId":"1","id":"4","kind":"ODD"},
          {"traceId":"11112222333344445555666677778888","id":"5","annotations":[{"timestamp":9,"value":"x"}]},
          {"traceId":"","id":"6"},
          7]"#;
        let d = decode_v2_json(json, NOW).unwrap();
        assert_eq!((d.items.len(), d.rejected.count), (3, 3));
        let [plain, server, annotated] = d.items.as_slice() else { panic!("{d:?}") };
        assert_eq!((plain.start, plain.service()), (NOW, "unknown_service"));
        assert_eq!((server.start.nanos(), server.duration_ns()), (7_000, 1_000));
        assert_eq!(server.status, SpanStatus::Error(String::new()));
        assert_eq!(
            (server.scope.name.as_str(), server.attributes.get_str("n")),
            ("lib", Some("5"))
        );
        assert_eq!(annotated.start.nanos(), 9_000);
        assert_eq!(annotated.trace_id.to_string(), "11112222333344445555666677778888");
        assert!(decode_v2_json(b"{}", NOW).is_err());
        assert!(decode_v2_proto(b"\xff\xff", NOW).is_err());
    }
}
