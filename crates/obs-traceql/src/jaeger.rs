//! Jaeger's trace search.

use crate::find::Latest;
use obs_model::{
    AttributeScope, Budget, Equal, FieldValue, SelectError, SelectSpans, Span, SpanField, SpanRow,
    SpanScan, StatusCode, TenantId, TimestampNs, VisitSpans,
};
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
    /// Both bounds belong to what is looked for.
    pub duration_min_ns: Option<i64>,
    pub duration_max_ns: Option<i64>,
    /// Traces returned; the latest ones.
    pub limit: usize,
}

/// Where attributes are that Jaeger shows as tags.
const SCOPES: [AttributeScope; 5] = [
    AttributeScope::Span,
    AttributeScope::Resource,
    AttributeScope::Event,
    AttributeScope::Instrumentation,
    AttributeScope::Link,
];

/// A tag: the fields that may hold it.
struct Tag<'a> {
    filter: &'a TagFilter,
    fields: Vec<usize>,
}

impl Tag<'_> {
    fn is_on(&self, row: &dyn SpanRow) -> bool {
        let wanted = self.filter.value.as_str();
        let key = self.filter.key.as_str();
        let any = |i: &usize| {
            let equal = |v: &FieldValue<'_>| match v {
                FieldValue::Status(s) if key == "error" => {
                    (*s == StatusCode::Error && wanted == "true")
                        || (*s != StatusCode::Error && wanted == "false")
                }
                FieldValue::Status(s) => s.as_str().eq_ignore_ascii_case(wanted),
                v => !v.is_nil() && v.text() == wanted,
            };
            match row.get(*i) {
                FieldValue::List(l) => l.iter().any(equal),
                v => equal(&v),
            }
        };
        self.fields.iter().any(any)
    }
}

struct Visitor<'a> {
    query: &'a TraceSearch,
    /// Places of the service and the name.
    tags: Vec<Tag<'a>>,
    found: Latest,
}

const SERVICE: usize = 0;
const NAME: usize = 1;

impl VisitSpans for Visitor<'_> {
    fn wants(&mut self, latest: TimestampNs) -> bool {
        self.found.may_grow(self.query.limit, latest)
    }

    fn visit(&mut self, row: &dyn SpanRow) -> Result<ControlFlow<()>, SelectError> {
        let q = self.query;
        let is = |place: usize, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|w| matches!(row.get(place), FieldValue::Str(s) if s == *w))
        };
        let duration = row.duration_ns();
        let hit = q.duration_min_ns.is_none_or(|min| duration >= min)
            && q.duration_max_ns.is_none_or(|max| duration <= max)
            && is(SERVICE, &q.service)
            && is(NAME, &q.operation)
            && self.tags.iter().all(|t| t.is_on(row));
        if hit {
            self.found.add(row.trace_id(), row.start().nanos());
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn is_special(key: &str) -> bool {
    matches!(key, "error" | "span.kind" | "otel.status_code" | "otel.status_description")
}

/// Returns whole traces, those with the latest matching span first.
///
/// # Errors
/// When the store cannot be read or the budget ends.
pub fn search(
    source: &dyn SelectSpans,
    tenant: &TenantId,
    query: &TraceSearch,
    budget: &Budget,
) -> Result<Vec<Vec<Arc<Span>>>, SelectError> {
    let mut fields = vec![SpanField::Service, SpanField::Name];
    let mut tags = Vec::new();
    for filter in &query.tags {
        let first = fields.len();
        match filter.key.as_str() {
            // What Jaeger shows as tags without their being attributes.
            "error" | "otel.status_code" => fields.push(SpanField::Status),
            "span.kind" => fields.push(SpanField::Kind),
            "otel.status_description" => fields.push(SpanField::StatusMessage),
            "otel.scope.name" => fields.push(SpanField::ScopeName),
            "otel.scope.version" => fields.push(SpanField::ScopeVersion),
            _ => {}
        }
        fields.extend(SCOPES.map(|s| SpanField::Attribute(s, filter.key.clone())));
        if filter.key == "event" {
            fields.push(SpanField::EventNames);
        }
        tags.push(Tag { filter, fields: (first..fields.len()).collect() });
    }
    let named = [(SERVICE, &query.service), (NAME, &query.operation)];
    let named = named
        .iter()
        .filter_map(|(i, t)| Some(Equal { fields: vec![*i], text: t.as_deref()?, by_text: false }));
    let mut equal: Vec<Equal<'_>> = named.collect();
    // What is shown as a tag without being one is not written as the tag is.
    let plain = tags.iter().filter(|t| !is_special(&t.filter.key));
    equal.extend(plain.map(|t| Equal {
        fields: t.fields.clone(),
        text: &t.filter.value,
        by_text: true,
    }));
    let scan = SpanScan {
        start: query.start,
        end: query.end,
        fields: &fields,
        traces: &[],
        equal: &equal,
    };
    let mut visitor = Visitor { query, tags, found: Latest::default() };
    source.scan_spans(tenant, &scan, budget, &mut visitor)?;
    let mut ids = visitor.found.ranked();
    ids.truncate(query.limit);
    source.traces(tenant, &ids, budget)
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::{Attributes, Resource, SpanId, SpanKind, SpanStatus, TraceId};
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
