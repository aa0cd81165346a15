//! Jaeger's trace search.

use obs_model::{
    AttributeValue, Budget, SelectError, SelectSpans, Span, SpanSelection, SpanStatus, TenantId,
    TimestampNs, TraceId,
};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A tag and the value it must have, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagFilter {
    pub key: String,
    pub value: String,
}

/// What to look for. One span must satisfy all of it.
#[derive(Debug, Clone)]
pub struct TraceSearch {
    pub start: TimestampNs,
    pub end: TimestampNs,
    pub service: Option<String>,
    pub operation: Option<String>,
    pub tags: Vec<TagFilter>,
    pub duration_min_ns: Option<i64>,
    pub duration_max_ns: Option<i64>,
    /// Traces returned; the latest ones.
    pub limit: usize,
}

impl TraceSearch {
    fn matches(&self, s: &Span) -> bool {
        let duration = s.duration_ns();
        self.duration_min_ns.is_none_or(|min| duration >= min)
            && self.duration_max_ns.is_none_or(|max| duration <= max)
            && self.tags.iter().all(|t| has_tag(s, t))
    }
}

/// Looks in the span's, its resource's and its events' attributes, and in the fields that Jaeger
/// shows as tags.
fn has_tag(s: &Span, t: &TagFilter) -> bool {
    let equal = |v: &AttributeValue| match v {
        AttributeValue::String(text) => *text == t.value,
        other => other.to_string() == t.value,
    };
    match t.key.as_str() {
        "error" => return s.status.is_error() == (t.value == "true"),
        "span.kind" => return s.kind.as_str() == t.value,
        "otel.status_code" => return s.status.as_str().eq_ignore_ascii_case(&t.value),
        "otel.status_description" => {
            return matches!(&s.status, SpanStatus::Error(m) if *m == t.value);
        }
        _ => {}
    }
    let places = [&s.attributes, &s.resource.attributes]
        .into_iter()
        .chain(s.events.iter().map(|e| &e.attributes));
    places.into_iter().any(|a| a.get(&t.key).is_some_and(equal))
}

/// Returns whole traces, latest first.
///
/// # Errors
/// When the store cannot be read or the budget ends.
pub fn search(
    source: &dyn SelectSpans,
    tenant: &TenantId,
    query: &TraceSearch,
    budget: &Budget,
) -> Result<Vec<Vec<Arc<Span>>>, SelectError> {
    let selection = SpanSelection {
        start: query.start,
        end: query.end,
        service: query.service.clone(),
        operation: query.operation.clone(),
    };
    // Earliest matching span of each trace: what the traces are ranked by.
    let mut found: HashMap<TraceId, TimestampNs> = HashMap::new();
    source.select_spans(tenant, &selection, budget, &mut |s| {
        if query.matches(s) {
            found.entry(s.trace_id).and_modify(|t| *t = (*t).min(s.start)).or_insert(s.start);
        }
        ControlFlow::Continue(())
    })?;
    let mut ranked: Vec<(TimestampNs, TraceId)> =
        found.into_iter().map(|(id, t)| (t, id)).collect();
    ranked.sort_by(|a, b| b.cmp(a));
    ranked.truncate(query.limit);
    ranked.into_iter().map(|(_, id)| source.trace(tenant, id, budget)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::{Attributes, Resource, SpanId, SpanKind};
    use obs_testkit::MemoryStore;

    fn span(trace: u8, id: u8, service: &str, ms: i64, attributes: &[(&str, &str)]) -> Arc<Span> {
        Arc::new(Span {
            trace_id: TraceId::from_slice(&[trace; 16]).unwrap(),
            span_id: SpanId::from_slice(&[id; 8]).unwrap(),
            parent_id: None,
            name: "op".into(),
            kind: SpanKind::Server,
            start: TimestampNs::from_nanos(i64::from(trace) * 1_000_000),
            end: TimestampNs::from_nanos((i64::from(trace) + ms) * 1_000_000),
            status: SpanStatus::Unset,
            trace_state: String::new(),
            attributes: attributes.iter().map(|(k, v)| (*k, *v)).collect::<Attributes>(),
            events: vec![],
            links: vec![],
            resource: Arc::new(Resource {
                attributes: Attributes::from_iter([("service.name", service)]),
            }),
            scope: Arc::default(),
        })
    }

    #[test]
    fn one_span_must_match_and_the_whole_trace_returns() {
        let store = MemoryStore {
            spans: vec![
                span(1, 1, "a", 5, &[("user", "7")]),
                span(1, 2, "b", 50, &[]),
                span(2, 3, "a", 90, &[]),
                span(3, 4, "a", 1, &[("user", "7")]),
            ],
            ..MemoryStore::default()
        };
        let all = TraceSearch {
            start: TimestampNs::MIN,
            end: TimestampNs::MAX,
            service: Some("a".into()),
            operation: None,
            tags: vec![],
            duration_min_ns: None,
            duration_max_ns: None,
            limit: 20,
        };
        let run = |q: TraceSearch| -> Vec<usize> {
            search(&store, &TenantId::default(), &q, &Budget::new(1000, 1 << 20))
                .unwrap()
                .iter()
                .map(Vec::len)
                .collect()
        };
        assert_eq!(run(all.clone()), [1, 1, 2]);
        assert_eq!(run(TraceSearch { limit: 1, ..all.clone() }), [1]);
        let user = vec![TagFilter { key: "user".into(), value: "7".into() }];
        assert_eq!(run(TraceSearch { tags: user.clone(), ..all.clone() }), [1, 2]);
        // The slow span of trace 1 belongs to another service.
        assert_eq!(run(TraceSearch { duration_min_ns: Some(40_000_000), ..all.clone() }), [1]);
        assert_eq!(run(TraceSearch { tags: user, duration_min_ns: Some(3_000_000), ..all }), [2]);
    }
}
