//! Fields of spans read from columns are those of the spans.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use obs_model::*;
use obs_storage::vfs::OsVfs;
use obs_storage::{Store, StoreConfig};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

fn value(n: u64) -> AttributeValue {
    match n % 9 {
        0 => AttributeValue::Empty,
        1 => format!("user-{n}").into(),
        2 => ["a", "b", "c"][(n / 9 % 3) as usize].into(),
        3 => n.is_multiple_of(2).into(),
        4 => (n as i64).into(),
        5 => (n as f64 / 4.0).into(),
        6 => AttributeValue::Array(vec!["x".into(), (n as i64).into()]),
        7 => AttributeValue::Map(vec![("k".into(), "v".into())]),
        _ => "long ".repeat(4_000).into(),
    }
}

fn attributes(seed: u64) -> Attributes {
    // Keys repeat, change their type from span to span, and are missing now and then.
    let keys = ["k", "user.id", "mixed", "k"];
    let one = |(i, k): (usize, &&str)| ((*k).to_owned(), value(seed * (i as u64 + 3)));
    keys.iter().enumerate().filter(|(i, _)| !(seed >> i).is_multiple_of(3)).map(one).collect()
}

fn span(n: u64) -> Span {
    let n8 = n.to_be_bytes();
    let start = TimestampNs::from_nanos(1_700_000_000_000_000_000 + (n as i64) * 1_000_003);
    let resource = Attributes::from_iter([("service.name", ["shop", "pay"][(n / 4 % 2) as usize])]);
    let mut scope = Scope { name: format!("lib{}", n % 3), ..Scope::default() };
    scope.attributes.push("k", (n % 3) as i64);
    Span {
        trace_id: TraceId::from_slice(&[&[7; 8], &(1 + n / 5).to_be_bytes()[..]].concat()).unwrap(),
        span_id: SpanId::from_slice(&[&[1; 4], &n8[4..]].concat()).unwrap(),
        parent_id: match n % 5 {
            0 => None,
            4 => SpanId::from_slice(&[9; 8]),
            _ => SpanId::from_slice(&[&[1; 4], &(n - 1).to_be_bytes()[4..]].concat()),
        },
        name: format!("op {}", n % 7),
        kind: SpanKind::from_otlp((n % 6) as i32),
        start,
        end: start.add_nanos((n as i64 % 50) * 1_000_000),
        status: match n % 4 {
            0 => SpanStatus::Ok,
            1 => SpanStatus::Error(format!("failed {}", n % 2)),
            _ => SpanStatus::Unset,
        },
        trace_state: String::new(),
        attributes: attributes(n),
        events: (0..n % 3)
            .map(|i| SpanEvent {
                timestamp: start.add_nanos(i as i64),
                name: format!("event {i}"),
                attributes: attributes(n + i),
            })
            .collect(),
        links: (0..n % 2)
            .map(|i| SpanLink {
                trace_id: TraceId::from_slice(&[5; 16]).unwrap(),
                span_id: SpanId::from_slice(&[6; 8]).unwrap(),
                attributes: attributes(i),
            })
            .collect(),
        resource: Arc::new(Resource { attributes: resource }),
        scope: Arc::new(scope),
    }
}

const SCOPES: [AttributeScope; 5] = [
    AttributeScope::Span,
    AttributeScope::Resource,
    AttributeScope::Event,
    AttributeScope::Link,
    AttributeScope::Instrumentation,
];

fn fields() -> Vec<SpanField> {
    let mut out = vec![
        SpanField::Name,
        SpanField::Kind,
        SpanField::Status,
        SpanField::StatusMessage,
        SpanField::Service,
        SpanField::EventNames,
        SpanField::EventTimes,
        SpanField::LinkTraces,
        SpanField::LinkSpans,
        SpanField::ScopeName,
        SpanField::ScopeVersion,
    ];
    for key in ["k", "user.id", "mixed", "service.name", "absent"] {
        out.extend(SCOPES.map(|s| SpanField::Attribute(s, key.into())));
        out.push(SpanField::AnyAttribute(key.into()));
    }
    out
}

type Rows = BTreeMap<SpanId, (TraceId, Option<SpanId>, i64, i64, Vec<String>)>;

struct Collect(Rows, usize);

impl VisitSpans for Collect {
    fn visit(&mut self, row: &dyn SpanRow) -> Result<ControlFlow<()>, SelectError> {
        let values = (0..self.1).map(|i| format!("{:?}", row.get(i))).collect();
        let row_of = (row.trace_id(), row.parent_id(), row.start().nanos(), row.duration_ns());
        let (t, p, s, d) = row_of;
        // What was sent twice may be seen twice, and is the same.
        let again = self.0.insert(row.span_id(), (t, p, s, d, values));
        assert!(again.is_none_or(|a| self.0.get(&row.span_id()) == Some(&a)));
        Ok(ControlFlow::Continue(()))
    }
}

fn scan(store: &Store, fields: &[SpanField], range: (i64, i64), equal: &[Equal<'_>]) -> Rows {
    let scan = SpanScan {
        start: TimestampNs::from_nanos(range.0),
        end: TimestampNs::from_nanos(range.1),
        fields,
        traces: &[],
        equal,
    };
    let mut out = Collect(BTreeMap::new(), fields.len());
    let budget = Budget::new(i64::MAX, i64::MAX);
    store.scan_spans(&TenantId::default(), &scan, &budget, &mut out).unwrap();
    assert_eq!(budget.missing(), Vec::<String>::new());
    out.0
}

#[tokio::test]
async fn columns_say_what_spans_say() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::new(dir.path()) };
    let store = Store::open(config, Arc::new(OsVfs)).unwrap();
    let tenant = TenantId::default();
    let all: Vec<Span> = (0..600).map(span).collect();
    // Some in a segment, some in another, some in both, some in the head.
    for (range, flush) in [(0..300, true), (250..450, true), (400..600, false)] {
        let spans = all[range].to_vec();
        store.append(&tenant, WriteBatch { spans, ..WriteBatch::default() }).await.unwrap();
        if flush {
            store.flush().await.unwrap();
        }
    }
    let fields = fields();
    let expect = |wanted: &dyn Fn(&Span) -> bool| -> Rows {
        let row = |s: &Span| {
            let values = fields.iter().map(|f| format!("{:?}", field_of(s, f))).collect();
            (s.span_id, (s.trace_id, s.parent_id, s.start.nanos(), s.duration_ns(), values))
        };
        all.iter().filter(|s| wanted(s)).map(row).collect()
    };
    let everything = (i64::MIN, i64::MAX);
    let (got, wanted) = (scan(&store, &fields, everything, &[]), expect(&|_| true));
    for (id, row) in &wanted {
        assert_eq!(got.get(id), Some(row));
    }
    assert_eq!(got.len(), wanted.len());
    let (a, b) = (all[100].start.nanos(), all[500].start.nanos());
    let inside = |s: &Span| s.start.nanos() >= a && s.start.nanos() < b;
    assert_eq!(scan(&store, &fields, (a, b), &[]), expect(&inside));
    // What must be equal lets all of it through, whatever else comes along.
    let place = |f: SpanField| fields.iter().position(|x| *x == f).unwrap();
    let own = |k: &str| place(SpanField::Attribute(AttributeScope::Span, k.into()));
    let any = |k: &str| place(SpanField::AnyAttribute(k.into()));
    let of_events = |k: &str| place(SpanField::Attribute(AttributeScope::Event, k.into()));
    let cases = [
        (vec![place(SpanField::Name)], "op 3"),
        (vec![place(SpanField::Service)], "pay"),
        (vec![own("k")], "b"),
        (vec![own("user.id")], "user-28"),
        (vec![own("mixed")], "x"),
        (vec![own("absent")], "x"),
        (vec![own("user.id"), own("mixed")], "c"),
        (vec![any("k")], "2"),
        (vec![any("mixed")], "true"),
        (vec![of_events("k"), own("k")], "12"),
        (vec![place(SpanField::EventNames)], "event 1"),
    ];
    for (at, text) in cases {
        for by_text in [false, true] {
            let equal = [Equal { fields: at.clone(), text, by_text }];
            let got = scan(&store, &fields, everything, &equal);
            let one = |v: &FieldValue<'_>| match v {
                FieldValue::Str(v) => v == text,
                v => by_text && !v.is_nil() && v.text() == text,
            };
            let is_equal = |s: &Span| {
                at.iter().any(|f| match field_of(s, &fields[*f]) {
                    FieldValue::List(l) => l.iter().any(one),
                    v => one(&v),
                })
            };
            for (id, row) in expect(&is_equal) {
                assert_eq!(got.get(&id), Some(&row), "{at:?} {text}");
            }
        }
    }
    let equal = [Equal { fields: vec![place(SpanField::Service)], text: "pay", by_text: false }];
    let pay = scan(&store, &fields, everything, &equal);
    assert!(pay.len() < 500, "{} spans were not left out", pay.len());
    let keys = store.attribute_keys(
        &tenant,
        TimestampNs::MIN,
        TimestampNs::MAX,
        &Budget::new(i64::MAX, i64::MAX),
    );
    let mut wanted = std::collections::BTreeSet::new();
    all.iter().for_each(|s| {
        s.attribute_keys(&mut |scope, k| {
            wanted.insert((scope, k.to_owned()));
        });
    });
    assert_eq!(keys.unwrap(), wanted);
    // Several traces at once are what each is alone.
    let ids: Vec<TraceId> = [3, 90, 117].map(|i| all[i * 5].trace_id).to_vec();
    let budget = Budget::new(i64::MAX, i64::MAX);
    let together = store.traces(&tenant, &ids, &budget).unwrap();
    for (id, spans) in ids.iter().zip(together) {
        assert_eq!(spans.len(), 5);
        assert_eq!(store.trace(&tenant, *id, &budget).unwrap(), spans);
    }
    store.close();
}
