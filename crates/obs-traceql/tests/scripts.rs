//! Runs the scripts beside this file: traces, queries, and what they find.
//!
//! ```text
//! trace 1
//!   a - shop checkout 0 100 kind=server span.user=7     id parent service name start-ms length-ms
//!   b a shop pay 10 50 status=error event.name=retry
//! eval { name = "pay" }
//!   1 b                                                 trace, then the spans of one set
//! range 0 60s 30s { } | rate()
//!   {__name__="rate"} 0.1 0
//! fail { 1 + }
//! valid { .a }
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use obs_model::*;
use obs_testkit::MemoryStore;
use obs_traceql::{MeasureRange, SearchRange, TraceQl, find, measure};
use std::sync::Arc;

fn value(text: &str) -> AttributeValue {
    if let Some(list) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return AttributeValue::Array(list.split(',').map(value).collect());
    }
    if let Some(quoted) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
        return quoted.into();
    }
    if let Ok(i) = text.parse::<i64>() {
        return i.into();
    }
    if let Ok(f) = text.parse::<f64>() {
        return f.into();
    }
    text.parse::<bool>().map_or_else(|_| text.into(), AttributeValue::from)
}

fn id(text: &str) -> SpanId {
    let mut bytes = [0; 8];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    SpanId::from_slice(&bytes).unwrap()
}

fn id_text(id: SpanId) -> String {
    String::from_utf8(id.as_bytes().to_vec()).unwrap().trim_end_matches('\0').to_owned()
}

fn span(trace: u8, line: &str) -> Span {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [own, parent, service, name, start, length, rest @ ..] = words.as_slice() else {
        panic!("bad span {line:?}")
    };
    let ms = |t: &str| (t.parse::<f64>().unwrap() * 1e6) as i64;
    let start = TimestampNs::from_nanos(ms(start));
    let mut resource = Attributes::from_iter([("service.name", *service)]);
    let mut span = Span {
        trace_id: TraceId::from_slice(&[trace; 16]).unwrap(),
        span_id: id(own),
        parent_id: (*parent != "-").then(|| id(parent)),
        name: (*name).replace('_', " "),
        kind: SpanKind::Unspecified,
        start,
        end: start.add_nanos(ms(length)),
        status: SpanStatus::Unset,
        trace_state: String::new(),
        attributes: Attributes::default(),
        events: Vec::new(),
        links: Vec::new(),
        resource: Arc::default(),
        scope: Arc::default(),
    };
    let mut scope = Scope::default();
    for pair in rest {
        let (key, text) = pair.split_once('=').unwrap_or_else(|| panic!("bad pair {pair:?}"));
        match key {
            "kind" => {
                let all = (0..=5).map(SpanKind::from_otlp);
                span.kind = all.into_iter().find(|k| k.as_str() == text).unwrap();
            }
            "status" if text == "ok" => span.status = SpanStatus::Ok,
            "status" => {
                let message = text.strip_prefix("error").unwrap().trim_start_matches(':');
                span.status = SpanStatus::Error(message.into());
            }
            "scope" => scope.name = text.into(),
            "version" => scope.version = text.into(),
            "event" => {
                let (name, at) = text.split_once('@').unwrap_or((text, "0"));
                let timestamp = start.add_nanos(ms(at));
                let attributes = Attributes::default();
                span.events.push(SpanEvent { timestamp, name: name.into(), attributes });
            }
            "link" => {
                let (trace, other) = text.split_once('/').unwrap();
                let trace = trace.parse::<u8>().unwrap();
                span.links.push(SpanLink {
                    trace_id: TraceId::from_slice(&[trace; 16]).unwrap(),
                    span_id: id(other),
                    attributes: Attributes::default(),
                });
            }
            key => match key.split_once('.') {
                Some(("resource", k)) => resource.push(k, value(text)),
                Some(("event", k)) => {
                    span.events.last_mut().unwrap().attributes.push(k, value(text));
                }
                Some(("link", k)) => span.links.last_mut().unwrap().attributes.push(k, value(text)),
                Some(("scope", k)) => scope.attributes.push(k, value(text)),
                _ => span.attributes.push(key.trim_start_matches("span."), value(text)),
            },
        }
    }
    span.resource = Arc::new(Resource { attributes: resource });
    span.scope = Arc::new(scope);
    span
}

fn budget() -> Budget {
    Budget::new(1_000_000, 1 << 30)
}

fn search(store: &MemoryStore, query: &str) -> Result<Vec<String>, String> {
    let query = TraceQl::parse(query).map_err(|e| e.to_string())?;
    let range = SearchRange {
        start: TimestampNs::MIN,
        end: TimestampNs::MAX,
        limit: 100,
        spans_per_set: 100,
    };
    let found = find(store, &TenantId::default(), &query, &range, &budget());
    let mut out = Vec::new();
    for f in found.map_err(|e| e.to_string())? {
        for set in f.sets {
            let ids: Vec<String> = set.spans.iter().map(|s| id_text(s.id)).collect();
            let mut line = format!("{} {}", f.id.as_bytes()[0], ids.join(" "));
            for (name, value) in set.attributes {
                line.push_str(&format!(" {name}={}", value.text()));
            }
            for s in &set.spans {
                for (name, value) in s.attributes.iter().filter(|_| query_selects(&query)) {
                    line.push_str(&format!(" {}.{name}={}", id_text(s.id), value.text()));
                }
            }
            out.push(line);
        }
    }
    Ok(out)
}

/// Scripts show attributes of spans where `select` asks for them.
fn query_selects(q: &TraceQl) -> bool {
    format!("{q:?}").contains("Select")
}

fn seconds_ns(text: &str) -> i64 {
    (text.trim_end_matches('s').parse::<f64>().unwrap() * 1e9) as i64
}

fn series(
    store: &MemoryStore,
    start: &str,
    end: &str,
    step: &str,
    query: &str,
) -> Result<Vec<String>, String> {
    let query = TraceQl::parse(query).map_err(|e| e.to_string())?;
    let range = MeasureRange {
        start: TimestampNs::from_nanos(seconds_ns(start)),
        end: TimestampNs::from_nanos(seconds_ns(end)),
        step_ns: (step != "-").then(|| seconds_ns(step)),
        exemplars: 0,
    };
    let out = measure(store, &TenantId::default(), &query, &range, &budget());
    let line = |s: &obs_traceql::TraceSeries| {
        let values: Vec<String> = s
            .samples
            .iter()
            .map(|(t, v)| format!("{}:{}", t / 1000, (v * 1e6).round() / 1e6))
            .collect();
        format!("{} {}", s.prometheus(), values.join(" "))
    };
    Ok(out.map_err(|e| e.to_string())?.iter().map(line).collect())
}

fn run(name: &str, text: &str) {
    let mut store = MemoryStore::default();
    let mut trace = 0;
    let lines: Vec<&str> = text.lines().collect();
    let mut checked = 0;
    let mut at = 0;
    while let Some(head) = lines.get(at) {
        let number = at + 1;
        at += 1;
        if head.trim().is_empty() || head.starts_with('#') {
            continue;
        }
        let mut body = Vec::new();
        while let Some(l) = lines.get(at).filter(|l| l.starts_with(' ')) {
            body.push(l.trim());
            at += 1;
        }
        let (word, rest) = head.split_once(' ').unwrap_or((head, ""));
        let place = format!("{name}:{number}: {head}");
        checked += 1;
        match word {
            "clear" => store.spans.clear(),
            "trace" => {
                trace = rest.parse::<u8>().unwrap();
                store.spans.extend(body.iter().map(|l| Arc::new(span(trace, l))));
            }
            "eval" => {
                let mut got = search(&store, rest).unwrap_or_else(|e| panic!("{place}: {e}"));
                let mut wanted: Vec<String> = body.iter().map(|l| (*l).to_owned()).collect();
                got.sort();
                wanted.sort();
                assert_eq!(got, wanted, "{place}");
            }
            "range" => {
                let words: Vec<&str> = rest.splitn(4, ' ').collect();
                let [start, end, step, query] = words.as_slice() else { panic!("{place}") };
                let got = series(&store, start, end, step, query);
                let got = got.unwrap_or_else(|e| panic!("{place}: {e}"));
                assert_eq!(got, body, "{place}");
            }
            "valid" => {
                if let Err(e) = TraceQl::parse(rest) {
                    panic!("{place}: {e}");
                }
            }
            "fail" => {
                let result = TraceQl::parse(rest);
                let Err(e) = result else { panic!("{place}: should fail") };
                for wanted in body {
                    assert!(e.to_string().contains(wanted), "{place}: {e}");
                }
            }
            _ => panic!("{place}: unknown command"),
        }
    }
    assert!(checked > 5 && trace < 255, "{name} checks nothing");
}

#[test]
fn syntax() {
    run("syntax", include_str!("scripts/syntax.test"));
}

#[test]
fn filters() {
    run("filters", include_str!("scripts/filters.test"));
}

#[test]
fn structure() {
    run("structure", include_str!("scripts/structure.test"));
}

#[test]
fn pipelines() {
    run("pipelines", include_str!("scripts/pipelines.test"));
}

#[test]
fn metrics() {
    run("metrics", include_str!("scripts/metrics.test"));
}
