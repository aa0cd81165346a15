//! Jaeger's JSON of a trace, written as it goes: an answer holds thousands of tags, and a tree of
//! values would cost several times as much.

use obs_codec::jaeger::proto::{is_child_of, other_tags};
use obs_model::{AttributeValue, Attributes, Resource};
use obs_traceql::Adjusted;
use std::fmt::Write as _;
use std::sync::Arc;

/// Appends a JSON string.
fn string(out: &mut String, text: &str) {
    // Nothing to escape, mostly.
    if !text.bytes().any(|b| b < b' ' || matches!(b, b'"' | b'\\')) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else if let Ok(quoted) = serde_json::to_string(text) {
        out.push_str(&quoted);
    }
}

fn tag(out: &mut String, key: &str, v: &AttributeValue) {
    out.push_str("{\"key\":");
    string(out, key);
    let kind = match v {
        AttributeValue::Bool(_) => "bool",
        AttributeValue::Int(_) => "int64",
        AttributeValue::Double(d) if d.is_finite() => "float64",
        AttributeValue::Bytes(_) => "binary",
        _ => "string",
    };
    let _ = write!(out, ",\"type\":\"{kind}\",\"value\":");
    match v {
        AttributeValue::Bool(b) => {
            let _ = write!(out, "{b}");
        }
        AttributeValue::Int(i) => {
            let _ = write!(out, "{i}");
        }
        AttributeValue::Double(d) if d.is_finite() => {
            let _ = write!(out, "{d}");
        }
        AttributeValue::String(s) => string(out, s),
        other => string(out, &other.to_string()),
    }
    out.push('}');
}

fn tags<'a>(out: &mut String, list: impl Iterator<Item = (&'a str, &'a AttributeValue)>) {
    out.push('[');
    for (i, (k, v)) in list.enumerate() {
        if i > 0 {
            out.push(',');
        }
        tag(out, k, v);
    }
    out.push(']');
}

fn pairs(list: &Attributes) -> impl Iterator<Item = (&str, &AttributeValue)> {
    list.iter().map(|(k, v)| (k.as_str(), v))
}

/// Appends a trace.
pub(super) fn trace(out: &mut String, trace: &Adjusted) {
    let id = trace.spans.first().map(|s| s.trace_id.to_string()).unwrap_or_default();
    let mut processes: Vec<&Arc<Resource>> = Vec::new();
    let _ = write!(out, "{{\"traceID\":\"{id}\",\"spans\":[");
    for (i, (s, warnings)) in trace.spans.iter().zip(&trace.warnings).enumerate() {
        if i > 0 {
            out.push(',');
        }
        let same = |r: &&Arc<Resource>| Arc::ptr_eq(r, &s.resource) || ***r == *s.resource;
        let process = processes.iter().position(same).unwrap_or_else(|| {
            processes.push(&s.resource);
            processes.len() - 1
        });
        let (trace_id, span_id) = (s.trace_id, s.span_id);
        let _ =
            write!(out, "{{\"traceID\":\"{trace_id}\",\"spanID\":\"{span_id}\",\"operationName\":");
        string(out, &s.name);
        out.push_str(",\"references\":[");
        let parent = s.parent_id.map(|p| (true, trace_id, p));
        let links = s.links.iter().map(|l| (is_child_of(l), l.trace_id, l.span_id));
        for (i, (is_child, t, id)) in parent.into_iter().chain(links).enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let kind = if is_child { "CHILD_OF" } else { "FOLLOWS_FROM" };
            let _ = write!(
                out,
                "{comma}{{\"refType\":\"{kind}\",\"traceID\":\"{t}\",\"spanID\":\"{id}\"}}"
            );
        }
        let (start, length) = (s.start.nanos() / 1000, s.duration_ns() / 1000);
        let _ = write!(out, "],\"startTime\":{start},\"duration\":{length},\"tags\":");
        let others = other_tags(s);
        tags(out, pairs(&s.attributes).chain(others.iter().map(|(k, v)| (*k, v))));
        out.push_str(",\"logs\":[");
        for (i, e) in s.events.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let _ =
                write!(out, "{comma}{{\"timestamp\":{},\"fields\":", e.timestamp.nanos() / 1000);
            let name = AttributeValue::from(e.name.as_str());
            let name = if e.name.is_empty() { None } else { Some(("event", &name)) };
            tags(out, name.into_iter().chain(pairs(&e.attributes)));
            out.push('}');
        }
        let _ = write!(out, "],\"processID\":\"p{}\",\"warnings\":", process + 1);
        if warnings.is_empty() {
            out.push_str("null}");
        } else {
            out.push('[');
            for (i, w) in warnings.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                string(out, w);
            }
            out.push_str("]}");
        }
    }
    out.push_str("],\"processes\":{");
    for (i, r) in processes.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, "{comma}\"p{}\":{{\"serviceName\":", i + 1);
        string(out, r.service());
        out.push_str(",\"tags\":");
        tags(out, pairs(&r.attributes).filter(|(k, _)| *k != "service.name"));
        out.push('}');
    }
    out.push_str("},\"warnings\":null}");
}
