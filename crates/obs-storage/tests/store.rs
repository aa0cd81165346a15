//! The store against an oracle: what was acknowledged is read back, before and after flushes,
//! reopenings and cut logs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

use obs_model::*;
use obs_storage::vfs::OsVfs;
use obs_storage::{Store, StoreConfig, verify};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

fn open(dir: &Path) -> Store {
    Store::open(StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::new(dir) }, Arc::new(OsVfs))
        .unwrap()
}

fn budget() -> Budget {
    Budget::new(i64::MAX, i64::MAX)
}

fn series(i: i64, t: i64) -> Series {
    let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("i", i.to_string())]);
    Series { labels, samples: vec![Sample::float(t, (i * t) as f64)] }
}

fn log(t: i64) -> LogRecord {
    LogRecord {
        stream: Labels::from_pairs([("app", if t % 2 == 0 { "even" } else { "odd" })]),
        timestamp: TimestampNs::from_nanos(t),
        observed: TimestampNs::from_nanos(t),
        line: format!("line {t}"),
        severity_number: 9,
        ..LogRecord::default()
    }
}

fn span(trace: u8, id: u8) -> Span {
    Span {
        trace_id: TraceId::from_slice(&[trace; 16]).unwrap(),
        span_id: SpanId::from_slice(&[id; 8]).unwrap(),
        parent_id: None,
        name: format!("op{id}"),
        kind: SpanKind::Server,
        start: TimestampNs::from_nanos(i64::from(id)),
        end: TimestampNs::from_nanos(i64::from(id) + 1),
        status: SpanStatus::Unset,
        trace_state: String::new(),
        attributes: Attributes::default(),
        events: vec![],
        links: vec![],
        resource: Arc::new(Resource {
            attributes: Attributes::from_iter([("service.name", "svc")]),
        }),
        scope: Arc::default(),
    }
}

fn check(store: &Store, upto: i64) {
    let tenant = TenantId::default();
    let all = SeriesSelection {
        matchers: &[Matcher::equal("__name__", "m")],
        start: TimestampMs::from_millis(0),
        end: TimestampMs::MAX,
    };
    let got = store.select(&tenant, &all, &budget()).unwrap();
    assert_eq!(got.len(), 3, "series");
    for s in &got {
        let i: i64 = s.labels.get("i").parse().unwrap();
        let want: Vec<_> = (1..=upto).map(|t| Sample::float(t, (i * t) as f64)).collect();
        assert_eq!(s.samples, want);
    }
    for direction in [Direction::Forward, Direction::Backward] {
        let sel = LogSelection {
            matchers: &[Matcher::equal("app", "odd")],
            start: TimestampNs::MIN,
            end: TimestampNs::MAX,
            direction,
            trace_id: None,
            needles: &[],
        };
        let mut times = Vec::new();
        store
            .select_logs(&tenant, &sel, &budget(), &mut |r| {
                times.push(r.timestamp.nanos());
                ControlFlow::Continue(())
            })
            .unwrap();
        let mut want: Vec<_> = (1..=upto).filter(|t| t % 2 == 1).collect();
        if direction == Direction::Backward {
            want.reverse();
        }
        assert_eq!(times, want);
    }
    let trace = store.trace(&tenant, TraceId::from_slice(&[7; 16]).unwrap(), &budget()).unwrap();
    assert_eq!(trace.len() as i64, upto.min(200));
    assert_eq!(store.operations(&tenant, &budget()).unwrap()["svc"].len() as i64, upto.min(200));
}

async fn write(store: &Store, t: i64) {
    let mut batch = WriteBatch {
        series: (0..3).map(|i| series(i, t)).collect(),
        logs: vec![log(t)],
        ..WriteBatch::default()
    };
    if t <= 200 {
        batch.spans.push(span(7, t as u8));
    }
    store.append(&TenantId::default(), batch).await.unwrap();
}

#[tokio::test]
async fn acknowledged_data_survives_flush_and_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = 0;
    for round in 0..4 {
        let store = open(dir.path());
        for _ in 0..60 {
            t += 1;
            write(&store, t).await;
        }
        check(&store, t);
        if round % 2 == 0 {
            store.flush().await.unwrap();
            check(&store, t);
            write(&store, t + 1).await;
            t += 1;
        }
        store.close();
    }
    let store = open(dir.path());
    check(&store, t);
    drop(store);
    let report = verify(dir.path(), &OsVfs, &obs_storage::Elsewhere::Nothing).unwrap();
    assert!(!report.is_damaged(), "{report:?}");
    assert!(report.segments >= 6 && report.batches > 0);
}

#[tokio::test]
async fn a_log_cut_anywhere_keeps_every_earlier_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for t in 1..=20 {
        write(&store, t).await;
    }
    store.close();
    drop(store);
    let wal = std::fs::read_dir(dir.path().join("wal")).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&wal).unwrap();
    for cut in (9..whole.len()).step_by(whole.len() / 23) {
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join("wal")).unwrap();
        std::fs::write(copy.path().join("wal").join(wal.file_name().unwrap()), &whole[..cut])
            .unwrap();
        let store = open(copy.path());
        let batches = store.recovery().batches as i64;
        assert!(batches * (whole.len() as i64) / 20 <= cut as i64 + whole.len() as i64 / 20);
        if batches > 0 {
            check(&store, batches);
        }
        // And the store goes on from there.
        for t in batches + 1..=21 {
            write(&store, t).await;
        }
        check(&store, 21);
    }
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    let second = Store::open(StoreConfig::new(dir.path()), Arc::new(OsVfs));
    assert!(matches!(second, Err(obs_storage::OpenError::Locked { .. })));
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_keeps_reading() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    write(&store, 1).await;
    store.close();
    drop(store);
    let config = StoreConfig { disk_reserve_bytes: u64::MAX, ..StoreConfig::new(dir.path()) };
    let store = Store::open(config, Arc::new(OsVfs)).unwrap();
    let refused = store
        .append(&TenantId::default(), WriteBatch { logs: vec![log(2)], ..WriteBatch::default() })
        .await;
    assert!(matches!(refused, Err(AppendError::DiskFull(_))));
    check(&store, 1);
}

#[tokio::test]
async fn damage_in_a_segment_is_found_and_never_read_as_data() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for t in 1..=20 {
        write(&store, t).await;
    }
    store.flush().await.unwrap();
    store.close();
    drop(store);
    let segment = dir.path().join("segments/default/logs/0000000002.seg");
    let path = if segment.exists() {
        segment
    } else {
        std::fs::read_dir(dir.path().join("segments/default/logs"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path()
    };
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[50] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(verify(dir.path(), &OsVfs, &obs_storage::Elsewhere::Nothing).unwrap().is_damaged());
    let store = open(dir.path());
    let sel = LogSelection::ALL;
    let budget = budget();
    let mut rows = 0;
    store
        .select_logs(&TenantId::default(), &sel, &budget, &mut |_| {
            rows += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows, 0);
    let missing = budget.missing();
    assert!(
        missing[0].contains("logs of default") && missing[0].contains("checksum"),
        "{missing:?}"
    );
    // The other signals are whole.
    let all = SeriesSelection {
        matchers: &[],
        start: TimestampMs::from_millis(0),
        end: TimestampMs::MAX,
    };
    assert_eq!(store.select(&TenantId::default(), &all, &self::budget()).unwrap().len(), 3);
}

#[tokio::test]
async fn a_failed_flush_loses_nothing_and_the_next_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for t in 1..=20 {
        write(&store, t).await;
    }
    // What an earlier attempt may have left: a file under the first free number.
    let metrics = dir.path().join("segments/default/metrics");
    std::fs::create_dir_all(&metrics).unwrap();
    std::fs::write(metrics.join("0000000001.seg"), b"half").unwrap();
    assert!(store.flush().await.is_err());
    check(&store, 20);
    store.flush().await.unwrap();
    check(&store, 20);
    store.close();
    drop(store);
    check(&open(dir.path()), 20);
}

#[tokio::test]
async fn writes_are_refused_while_flushes_keep_failing() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        disk_reserve_bytes: 0,
        head_bytes_max: 10_000,
        ..StoreConfig::new(dir.path())
    };
    let store = Store::open(config, Arc::new(OsVfs)).unwrap();
    // A file where the folder has to be makes every flush fail.
    std::fs::write(dir.path().join("segments"), b"in the way").unwrap();
    let mut accepted = 0;
    for t in 1..1000 {
        let batch = WriteBatch { logs: vec![log(t)], ..WriteBatch::default() };
        match store.append(&TenantId::default(), batch).await {
            Ok(_) => accepted += 1,
            Err(e) => {
                assert!(matches!(e, AppendError::Overloaded(_)), "{e}");
                break;
            }
        }
    }
    assert!((50..400).contains(&accepted), "{accepted} accepted");
}
