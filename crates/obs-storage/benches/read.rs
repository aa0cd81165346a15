//! Flushes, and reads from segments: samples of scattered series, a needle and a scan in log lines,
//! a trace by its id.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use obs_model::*;
use obs_storage::vfs::OsVfs;
use obs_storage::{Store, StoreConfig};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Series, of which 1,000 have instance 7; samples of each: an hour at 15 s.
const SERIES: i64 = 10_000;
const SAMPLES: i64 = 240;
const LINES: i64 = 200_000;
const TRACES: i64 = 20_000;
const START_MS: i64 = 1_780_000_000_000;

fn open(dir: &Path) -> Store {
    let config =
        StoreConfig { disk_reserve_bytes: 0, head_bytes_max: 1 << 30, ..StoreConfig::new(dir) };
    Store::open(config, Arc::new(OsVfs)).unwrap()
}

fn trace(n: i64) -> TraceId {
    TraceId::from_slice(&(n as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c).to_be_bytes())
        .unwrap()
}

fn labels(i: i64) -> Labels {
    Labels::from_pairs([
        ("__name__", format!("metric_{}", i % 100)),
        ("instance", format!("node-{}", i / 100 % 10)),
        ("model", format!("model-{}", i / 1000)),
    ])
}

fn log(n: i64) -> LogRecord {
    let at = TimestampNs::from_nanos(START_MS * 1_000_000 + n * 10_000_000);
    let word = if n % 50 == 0 { "timeout" } else { "answer" };
    LogRecord {
        stream: Labels::from_pairs([("service", format!("s{}", n % 20))]),
        timestamp: at,
        observed: at,
        line: format!(
            r#"{{"level":"info","msg":"{word} from upstream model","trace_id":"{}","duration_ms":{},"tokens":{},"user":"user-{}"}}"#,
            trace(n / 8),
            n % 977,
            n % 4096,
            n % 300
        ),
        severity_number: 9,
        trace_id: Some(trace(n / 8)),
        ..LogRecord::default()
    }
}

fn span(n: i64) -> Span {
    let at = TimestampNs::from_nanos(START_MS * 1_000_000 + n * 1_000_000);
    Span {
        trace_id: trace(n / 5),
        span_id: SpanId::from_slice(&(n + 1).to_be_bytes()).unwrap(),
        parent_id: None,
        name: format!("operation {}", n % 12),
        kind: SpanKind::Client,
        start: at,
        end: at.add_nanos(5_000_000),
        status: SpanStatus::Ok,
        trace_state: String::new(),
        attributes: Attributes::from_iter([("tokens", n % 4096), ("attempt", n % 3)]),
        events: vec![],
        links: vec![],
        resource: Arc::default(),
        scope: Arc::default(),
    }
}

fn fill(store: &Store) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tenant = TenantId::default();
    let put = |batch: WriteBatch| {
        runtime.block_on(store.append(&tenant, batch)).unwrap();
    };
    let all: Vec<Labels> = (0..SERIES).map(labels).collect();
    for t in 0..SAMPLES {
        // Counters that grow unevenly, as those of a service do.
        let at = |i: usize| {
            let grown = t * (i as i64 % 7 + 1) * 100 + t * (i as i64 + t) * 7919 % 97;
            Sample::float(START_MS + t * 15_000, grown as f64)
        };
        let points = all.iter().enumerate().map(|(i, l)| (l.clone(), at(i))).collect();
        put(WriteBatch { points, ..WriteBatch::default() });
    }
    for from in (0..LINES).step_by(1000) {
        put(WriteBatch { logs: (from..from + 1000).map(log).collect(), ..WriteBatch::default() });
    }
    for from in (0..TRACES * 5).step_by(1000) {
        put(WriteBatch { spans: (from..from + 1000).map(span).collect(), ..WriteBatch::default() });
    }
}

fn count_lines(store: &Store, needle: &str) -> usize {
    let needles = [needle.to_owned()];
    let selection = LogSelection { needles: &needles, ..LogSelection::ALL };
    let mut n = 0;
    store
        .select_logs(
            &TenantId::default(),
            &selection,
            &Budget::new(i64::MAX, i64::MAX),
            &mut |_| {
                n += 1;
                ControlFlow::Continue(())
            },
        )
        .unwrap();
    n
}

fn read(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut group = c.benchmark_group("store");
    group.sample_size(10);
    group.throughput(Throughput::Elements((SERIES * SAMPLES + LINES + TRACES * 5).unsigned_abs()));
    group.bench_function("flush samples, lines and spans", |b| {
        b.iter_batched(
            || {
                let dir = tempfile::tempdir().unwrap();
                let store = open(dir.path());
                fill(&store);
                (dir, store)
            },
            |(dir, store)| {
                runtime.block_on(store.flush()).unwrap();
                store.close();
                dir
            },
            BatchSize::PerIteration,
        );
    });
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store);
    let tenant = TenantId::default();
    let matchers = [Matcher::equal("instance", "node-7")];
    let (start, end) = (TimestampMs::MIN, TimestampMs::MAX);
    let select = |store: &Store| {
        let selection = SeriesSelection { matchers: &matchers, start, end };
        let budget = Budget::new(i64::MAX, i64::MAX);
        let found = store.select_columns(&tenant, &selection, &budget).unwrap();
        assert_eq!(found.len(), 1000);
    };
    group.throughput(Throughput::Elements(1000 * SAMPLES.unsigned_abs()));
    group.bench_function("select 1,000 of 10,000 series from the head", |b| {
        b.iter(|| select(&store))
    });
    runtime.block_on(store.flush()).unwrap();
    group.bench_function("select 1,000 of 10,000 series from segments", |b| {
        b.iter(|| select(&store));
    });
    let raw: usize = (0..LINES).map(|n| log(n).line.len()).sum();
    group.throughput(Throughput::Bytes(raw as u64));
    group.bench_function("scan lines for a word", |b| {
        b.iter(|| assert_eq!(count_lines(&store, "timeout"), 4000));
    });
    let needle = trace(12_345).to_string();
    group.bench_function("find lines by a trace id in their text", |b| {
        b.iter(|| assert_eq!(count_lines(&store, &needle), 8));
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("trace by id", |b| {
        b.iter(|| {
            let found =
                store.trace(&tenant, trace(9_999), &Budget::new(i64::MAX, i64::MAX)).unwrap();
            assert_eq!(found.len(), 5);
        });
    });
    group.finish();
    store.close();
}

criterion_group!(benches, read);
criterion_main!(benches);
