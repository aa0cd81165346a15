//! Data directories as earlier builds wrote them: this build reads them all.
//!
//! `cargo test -p obs-storage --test fixtures -- --ignored` writes the one of the current version;
//! an existing one is never changed.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

use obs_model::*;
use obs_storage::vfs::OsVfs;
use obs_storage::{Store, StoreConfig, verify};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Batches that are in segments, and those that are in the log alone.
const FLUSHED: i64 = 40;
const BATCHES: i64 = 50;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v2")
}

fn open(dir: &Path) -> Store {
    let config = StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::new(dir) };
    Store::open(config, Arc::new(OsVfs)).unwrap()
}

fn trace(n: i64) -> TraceId {
    TraceId::from_slice(&(n as u128 / 4 + 1).to_be_bytes()).unwrap()
}

fn id(n: i64) -> SpanId {
    SpanId::from_slice(&(n + 1).to_be_bytes()).unwrap()
}

fn at(n: i64) -> TimestampNs {
    TimestampNs::from_nanos(1_780_000_000_000_000_000 + n * 1_500_000_000)
}

fn log(n: i64) -> LogRecord {
    LogRecord {
        stream: Labels::from_pairs([("app", format!("a{}", n % 2))]),
        timestamp: at(n),
        observed: at(n).add_nanos(7),
        line: format!(
            r#"{{"n":{n},"msg":"héllo {n:03} 你好","took_ms":{}.5,"id":"{}"}}"#,
            n * 3,
            trace(n)
        ),
        severity_number: 9,
        severity_text: "INFO".into(),
        event_name: String::new(),
        trace_id: Some(trace(n)),
        span_id: (n % 3 == 0).then(|| id(n)),
        attributes: Attributes::from_iter([("n", n)]),
        resource: Arc::default(),
    }
}

fn span(n: i64) -> Span {
    let turns: Vec<String> = (0..n % 7)
        .map(|i| format!(r#"{{"role":"user","content":"turn {i} of the talk, with words enough to be cut here"}}"#))
        .collect();
    let mut attributes =
        Attributes::from_iter([("gen_ai.input.messages", format!("[{}]", turns.join(",")))]);
    attributes.push("ratio", AttributeValue::Double(n as f64 / 4.0));
    attributes.push(
        "list",
        AttributeValue::Array(vec![AttributeValue::Int(n), AttributeValue::Bool(true)]),
    );
    Span {
        trace_id: trace(n),
        span_id: id(n),
        parent_id: (n % 4 != 0).then(|| id(n - 1)),
        name: format!("op{}", n % 5),
        kind: SpanKind::Client,
        start: at(n),
        end: at(n).add_nanos(1_000_000 + n),
        status: if n % 6 == 0 { SpanStatus::Error("boom".into()) } else { SpanStatus::Ok },
        trace_state: "k=v".into(),
        attributes,
        events: vec![SpanEvent {
            timestamp: at(n).add_nanos(3),
            name: "e".into(),
            attributes: Attributes::default(),
        }],
        links: vec![SpanLink {
            trace_id: trace(n),
            span_id: id(n),
            attributes: Attributes::default(),
        }],
        resource: Arc::new(Resource {
            attributes: Attributes::from_iter([("service.name", "svc")]),
        }),
        scope: Arc::default(),
    }
}

fn points(n: i64) -> Vec<(Labels, Sample)> {
    let labels = |i: i64| Labels::from_pairs([("__name__", "m".to_owned()), ("i", i.to_string())]);
    let ms = at(n).to_millis().millis();
    let odd = [f64::NAN, f64::INFINITY, -0.0, 0.1 + 0.2];
    let histogram = Histogram {
        count: n as f64,
        sum: 1.5,
        positive: vec![(-3, 2.0), (4, n as f64)],
        ..Histogram::default()
    };
    vec![
        (labels(0), Sample::float(ms, (n * 10) as f64)),
        (labels(1), Sample::float(ms, odd[n as usize % 4])),
        (
            labels(2),
            Sample {
                timestamp: TimestampMs::from_millis(ms),
                value: SampleValue::Histogram(Arc::new(histogram)),
            },
        ),
    ]
}

#[tokio::test]
#[ignore = "writes the fixture; run by hand when a version begins"]
async fn write_the_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..BATCHES {
        let batch = WriteBatch {
            points: points(n),
            logs: vec![log(n)],
            spans: vec![span(n)],
            ..WriteBatch::default()
        };
        store.append(&TenantId::default(), batch).await.unwrap();
        if n == FLUSHED {
            store.flush().await.unwrap();
        }
    }
    store.close();
    assert!(!fixture().exists(), "fixtures are never changed");
    for part in ["manifest", "wal", "segments"] {
        copy(&dir.path().join(part), &fixture().join(part));
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_directory_of_version_2_is_read_to_the_last_bit() {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture(), dir.path());
    let report = verify(dir.path(), &OsVfs, &obs_storage::Elsewhere::Nothing).unwrap();
    assert!(!report.is_damaged(), "{:?}", report.findings);
    let store = open(dir.path());
    let (tenant, budget) = (TenantId::default(), Budget::new(i64::MAX, i64::MAX));
    let all = LogSelection::ALL;
    let mut n = 0;
    store
        .select_logs(&tenant, &all, &budget, &mut |r| {
            assert_eq!(**r, log(n));
            n += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(n, BATCHES);
    for n in 0..BATCHES {
        let spans = store.trace(&tenant, trace(n), &budget).unwrap();
        let found = spans.iter().find(|s| s.span_id == id(n)).unwrap();
        assert_eq!(**found, span(n));
    }
    let selection =
        SeriesSelection { matchers: &[], start: TimestampMs::MIN, end: TimestampMs::MAX };
    let series = store.select(&tenant, &selection, &budget).unwrap();
    assert_eq!(series.len(), 3);
    for (i, s) in series.iter().enumerate() {
        assert_eq!(s.samples.len() as i64, BATCHES);
        for (n, sample) in (0..).zip(&s.samples) {
            let (labels, want) = points(n).remove(i);
            assert_eq!((&s.labels, sample.timestamp), (&labels, want.timestamp));
            // By bits: NaN is not equal to itself.
            match (&sample.value, &want.value) {
                (SampleValue::Float(a), SampleValue::Float(b)) => {
                    assert_eq!(a.to_bits(), b.to_bits())
                }
                (a, b) => assert_eq!(a, b),
            }
        }
    }
}
