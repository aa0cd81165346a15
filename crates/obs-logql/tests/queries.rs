//! Log and metric queries over an in-memory store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

use obs_logql::ast::Query;
use obs_logql::{QueryError, parse, run_instant, run_logs, run_range};
use obs_model::*;
use obs_promql::Output;
use obs_testkit::MemoryStore;
use std::sync::Arc;

const SECOND: i64 = 1_000_000_000;

fn store() -> MemoryStore {
    let mut store = MemoryStore::default();
    let mut add = |seconds: i64, app: &str, line: &str| {
        store.logs.push(Arc::new(LogRecord {
            stream: Labels::from_pairs([("app", app)]),
            timestamp: TimestampNs::from_nanos(seconds * SECOND),
            observed: TimestampNs::from_nanos(0),
            line: line.into(),
            severity_number: 0,
            severity_text: String::new(),
            event_name: String::new(),
            trace_id: None,
            span_id: None,
            attributes: Attributes::default(),
            resource: Arc::default(),
        }));
    };
    for i in 1..=60 {
        let level = if i % 10 == 0 { "error" } else { "info" };
        add(
            i,
            "json",
            &format!(r#"{{"level":"{level}","ms":{},"user":{{"name":"ü{i}"}}}}"#, i * 100),
        );
    }
    for i in 1..=6 {
        add(i * 10, "fmt", &format!(r#"level=warn dur={i}s msg="你好 {i}""#));
    }
    store
}

fn lines(query: &str, limit: usize) -> Vec<String> {
    let Ok(Query::Log(e)) = parse(query) else { panic!("{query} is no log query") };
    let range = (TimestampNs::from_nanos(0), TimestampNs::from_nanos(100 * SECOND));
    let streams = run_logs(
        &store(),
        &TenantId::default(),
        &e,
        range,
        Direction::Backward,
        limit,
        &Budget::new(1 << 20, 1 << 30),
    )
    .unwrap();
    streams.into_iter().flat_map(|s| s.entries).map(|e| e.1).collect()
}

fn instant(query: &str, seconds: i64) -> Result<Vec<(String, f64)>, QueryError> {
    let Ok(Query::Metric(e)) = parse(query) else { panic!("{query} is no metric query") };
    let out = run_instant(
        &store(),
        &TenantId::default(),
        &e,
        TimestampNs::from_nanos(seconds * SECOND),
        &Budget::new(1 << 20, 1 << 30),
    )?;
    let Output::Vector(v) = out else { panic!("{out:?}") };
    let value = |s: &Sample| if let SampleValue::Float(f) = s.value { f } else { f64::NAN };
    let mut rows: Vec<_> = v.iter().map(|(l, s)| (l.to_string(), value(s))).collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(rows)
}

#[test]
fn filters_and_parsers() {
    assert_eq!(lines(r#"{app="json"} |= "error""#, 100).len(), 6);
    assert_eq!(lines(r#"{app="json"} != "error""#, 100).len(), 54);
    assert_eq!(lines(r#"{app="json"} |~ "ü(1|2)\"""#, 100).len(), 2);
    assert_eq!(lines(r#"{app="fmt"} |= "你好 3""#, 100).len(), 1);
    assert_eq!(lines(r#"{app=~".+"} |= "error" or "warn""#, 100).len(), 12);
    assert_eq!(lines(r#"{app="json"} | json | level="error" and ms >= 3000"#, 100).len(), 4);
    assert_eq!(lines(r#"{app="json"} | json | user_name="ü7""#, 100).len(), 1);
    assert_eq!(lines(r#"{app="fmt"} | logfmt | dur > 4s"#, 100).len(), 2);
    // The latest come first.
    assert!(lines(r#"{app="json"}"#, 1)[0].contains("6000"));
}

#[test]
fn windows_are_left_open() {
    assert_eq!(
        instant(r#"count_over_time({app="json"}[10s])"#, 20).unwrap(),
        [(r#"{app="json"}"#.to_owned(), 10.0)]
    );
    assert_eq!(
        instant(r#"rate({app="json"}[10s] offset 10s)"#, 20).unwrap(),
        [(r#"{app="json"}"#.to_owned(), 1.0)]
    );
    assert_eq!(instant(r#"count_over_time({app="json"}[10s])"#, 500).unwrap(), []);
}

#[test]
fn algebra_is_promql() {
    let got =
        instant(r#"sum by (level) (count_over_time({app="json"} | json [60s]))"#, 60).unwrap();
    assert_eq!(
        got,
        [(r#"{level="error"}"#.to_owned(), 6.0), (r#"{level="info"}"#.to_owned(), 54.0)]
    );
    let got = instant(r#"sum(count_over_time({app="json"} |= "error" [60s])) / sum(count_over_time({app="json"}[60s]))"#, 60).unwrap();
    assert_eq!(got, [("{}".to_owned(), 0.1)]);
    assert_eq!(instant("vector(1)+vector(1)", 0).unwrap(), [("{}".to_owned(), 2.0)]);
    let Ok(Query::Metric(e)) = parse(r#"count_over_time({app="fmt"}[20s])"#) else { panic!() };
    let range = (TimestampNs::from_nanos(10 * SECOND), TimestampNs::from_nanos(90 * SECOND));
    let out = run_range(
        &store(),
        &TenantId::default(),
        &e,
        range,
        10_000,
        &Budget::new(1 << 20, 1 << 30),
    )
    .unwrap();
    let Output::Matrix(m) = out else { panic!() };
    let got: Vec<_> =
        m[0].samples.iter().map(|s| (s.timestamp.millis() / 1000, s.value.clone())).collect();
    let want = [(10, 1.0), (20, 2.0), (30, 2.0), (40, 2.0), (50, 2.0), (60, 2.0), (70, 1.0)];
    assert_eq!(got, want.map(|(t, v)| (t, SampleValue::Float(v))));
}

#[test]
fn a_parser_error_in_a_metric_query_is_an_error() {
    let e = instant(r#"count_over_time({app="fmt"} | json [60s])"#, 60).unwrap_err();
    assert!(e.to_string().starts_with("pipeline error: 'JSONParserErr'"), "{e}");
    assert_eq!(
        instant(r#"sum(count_over_time({app="fmt"} | json | __error__="" [60s]))"#, 60).unwrap(),
        []
    );
}
