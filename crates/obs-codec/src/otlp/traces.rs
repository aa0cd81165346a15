//! Spans.

use super::common::{attributes, resource, scope};
use crate::{Decoded, Rejected};
use obs_model::{
    Resource, Scope, Span, SpanEvent, SpanId, SpanKind, SpanLink, SpanStatus, TimestampNs, TraceId,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span as ProtoSpan;
use std::sync::Arc;

/// Converts a request; spans without valid ids or times are refused one by one.
pub fn decode_traces(request: ExportTraceServiceRequest) -> Decoded<Vec<Span>> {
    let (mut items, mut rejected) = (Vec::new(), Rejected::default());
    for rs in request.resource_spans {
        let resource = resource(rs.resource);
        for ss in rs.scope_spans {
            let scope = scope(ss.scope);
            for s in ss.spans {
                match span(s, &resource, &scope) {
                    Ok(s) => items.push(s),
                    Err(reason) => rejected.add(reason),
                }
            }
        }
    }
    Decoded { items, rejected }
}

fn span(s: ProtoSpan, resource: &Arc<Resource>, scope: &Arc<Scope>) -> Result<Span, String> {
    let trace_id = TraceId::from_slice(&s.trace_id)
        .ok_or_else(|| format!("invalid trace id of {} bytes", s.trace_id.len()))?;
    let span_id = SpanId::from_slice(&s.span_id)
        .ok_or_else(|| format!("invalid span id of {} bytes", s.span_id.len()))?;
    if !matches!(s.parent_span_id.len(), 0 | 8) {
        return Err(format!("invalid parent span id of {} bytes", s.parent_span_id.len()));
    }
    let time = |ns: u64, what: &str| {
        TimestampNs::from_unsigned(ns).ok_or_else(|| format!("{what} time is past the year 2262"))
    };
    if s.start_time_unix_nano == 0 {
        return Err("span has no start time".into());
    }
    let start = time(s.start_time_unix_nano, "start")?;
    // An unfinished or clock-skewed end would give a negative duration; it counts as zero.
    let end = time(s.end_time_unix_nano, "end")?.max(start);
    let status = match s.status {
        Some(st) if st.code == 2 => SpanStatus::Error(st.message),
        Some(st) if st.code == 1 => SpanStatus::Ok,
        _ => SpanStatus::Unset,
    };
    let event = |e: opentelemetry_proto::tonic::trace::v1::span::Event| SpanEvent {
        timestamp: TimestampNs::from_unsigned(e.time_unix_nano).unwrap_or(start),
        name: e.name,
        attributes: attributes(e.attributes),
    };
    // A link to nowhere is of no use to anyone; the span is.
    let link = |l: opentelemetry_proto::tonic::trace::v1::span::Link| {
        Some(SpanLink {
            trace_id: TraceId::from_slice(&l.trace_id)?,
            span_id: SpanId::from_slice(&l.span_id)?,
            attributes: attributes(l.attributes),
        })
    };
    Ok(Span {
        trace_id,
        span_id,
        parent_id: SpanId::from_slice(&s.parent_span_id),
        name: s.name,
        kind: SpanKind::from_otlp(s.kind),
        start,
        end,
        status,
        trace_state: s.trace_state,
        attributes: attributes(s.attributes),
        events: s.events.into_iter().map(event).collect(),
        links: s.links.into_iter().filter_map(link).collect(),
        resource: resource.clone(),
        scope: scope.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::JsonRequest;

    #[test]
    fn json_and_refusals() {
        let json = br#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"s"}}]},
          "scopeSpans":[{"scope":{"name":"lib"},"spans":[
            {"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"ok","kind":2,
             "startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000",
             "attributes":[{"key":"n","value":{"intValue":"7"}}],"status":{"code":2,"message":"bad"}},
            {"traceId":"00","spanId":"eee19b7ec3c1b174","name":"short id","startTimeUnixNano":"1"},
            {"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"no time"},
            {"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"year 2500","startTimeUnixNano":"16725225600000000000"}
          ]}]}]}"#;
        let d = decode_traces(ExportTraceServiceRequest::from_json(json).unwrap());
        assert_eq!(d.items.len(), 1);
        let s = &d.items[0];
        assert_eq!((s.service(), s.name.as_str(), s.duration_ns()), ("s", "ok", 1_000_000_000));
        assert_eq!(s.attributes.get("n").and_then(|v| v.as_i64()), Some(7));
        assert_eq!(s.status, SpanStatus::Error("bad".into()));
        assert_eq!(d.rejected.count, 3);
        assert!(ExportTraceServiceRequest::from_json(b"{\"resourceSpans\":3}").is_err());
    }
}
