//! The life of data in the store: late and repeated arrivals, merges, retention, deletion.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

use obs_model::*;
use obs_storage::vfs::OsVfs;
use obs_storage::{RetentionRule, RetentionSignal, Store, StoreConfig};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const DAY_MS: i64 = 86_400_000;

fn open(dir: &Path, retention: Vec<RetentionRule>) -> Store {
    let config = StoreConfig { disk_reserve_bytes: 0, retention, ..StoreConfig::new(dir) };
    Store::open(config, Arc::new(OsVfs)).unwrap()
}

fn metric(name: &str) -> Labels {
    Labels::from_pairs([("__name__", name)])
}

fn point(name: &str, t: i64, v: f64) -> WriteBatch {
    WriteBatch { points: vec![(metric(name), Sample::float(t, v))], ..WriteBatch::default() }
}

fn log(app: &str, ms: i64, line: &str) -> LogRecord {
    LogRecord {
        stream: Labels::from_pairs([("app", app)]),
        timestamp: TimestampNs::from_nanos(ms * 1_000_000),
        observed: TimestampNs::from_nanos(ms * 1_000_000),
        line: line.into(),
        severity_number: 9,
        ..LogRecord::default()
    }
}

fn span(trace: u8, id: u8) -> Span {
    Span {
        trace_id: TraceId::from_slice(&[trace; 16]).unwrap(),
        span_id: SpanId::from_slice(&[id; 8]).unwrap(),
        parent_id: None,
        name: "chat".into(),
        kind: SpanKind::Client,
        start: TimestampNs::from_nanos(DAY_MS * 1_000_000),
        end: TimestampNs::from_nanos(DAY_MS * 1_000_000 + 1),
        status: SpanStatus::Unset,
        trace_state: String::new(),
        attributes: Attributes::from_iter([("secret", format!("needle-of-trace-{trace}"))]),
        events: vec![],
        links: vec![],
        resource: Arc::default(),
        scope: Arc::default(),
    }
}

async fn put(store: &Store, tenant: &TenantId, batch: WriteBatch) {
    store.append(tenant, batch).await.unwrap();
}

fn samples(store: &Store, tenant: &TenantId, name: &str) -> Vec<(i64, f64)> {
    let matchers = [Matcher::equal("__name__", name)];
    let all =
        SeriesSelection { matchers: &matchers, start: TimestampMs::MIN, end: TimestampMs::MAX };
    let found = store.select(tenant, &all, &Budget::new(i64::MAX, i64::MAX)).unwrap();
    let of = |s: &Sample| match s.value {
        SampleValue::Float(f) => (s.timestamp.millis(), f),
        SampleValue::Histogram(_) => unreachable!(),
    };
    found.iter().flat_map(|s| s.samples.iter().map(of)).collect()
}

fn lines(store: &Store, tenant: &TenantId) -> Vec<String> {
    let selection = LogSelection::ALL;
    let mut out = Vec::new();
    store
        .select_logs(tenant, &selection, &Budget::new(i64::MAX, i64::MAX), &mut |r| {
            out.push(r.line.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    out
}

fn spans(store: &Store, tenant: &TenantId) -> usize {
    let selection = SpanSelection::ALL;
    let mut n = 0;
    store
        .select_spans(tenant, &selection, &Budget::new(i64::MAX, i64::MAX), &mut |_| {
            n += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    n
}

/// Returns whether any segment file holds the text as it is.
fn on_disk(dir: &Path, text: &str) -> bool {
    let mut folders = vec![dir.join("segments")];
    while let Some(f) = folders.pop() {
        for entry in std::fs::read_dir(f).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                if bytes.windows(text.len()).any(|w| w == text.as_bytes()) {
                    return true;
                }
            }
        }
    }
    false
}

#[tokio::test]
async fn late_and_repeated_data_lands_in_place_before_and_after_merges() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), vec![]);
    let t = TenantId::default();
    // Rounds go back in time by a day each, and every round brings the first sample again.
    for round in 0..8 {
        let base = (10 - round) * DAY_MS;
        put(&store, &t, point("m", base, round as f64)).await;
        put(&store, &t, point("m", 5 * DAY_MS + 7, round as f64)).await;
        let logs = vec![log("a", 3 * DAY_MS + 9, "again"), log("a", base, &format!("r{round}"))];
        put(&store, &t, WriteBatch { logs, ..WriteBatch::default() }).await;
        let batch = WriteBatch { spans: vec![span(1, 1)], ..WriteBatch::default() };
        put(&store, &t, batch).await;
        if round < 7 {
            store.flush().await.unwrap();
        }
    }
    let mut want: Vec<(i64, f64)> = (0..8).map(|r| ((10 - r) * DAY_MS, r as f64)).collect();
    want.push((5 * DAY_MS + 7, 7.0));
    want.sort_by_key(|(t, _)| *t);
    let mut want_lines: Vec<(i64, String)> =
        (0..8).map(|r| ((10 - r) * DAY_MS, format!("r{r}"))).collect();
    want_lines.push((3 * DAY_MS + 9, "again".into()));
    want_lines.sort();
    let want_lines: Vec<String> = want_lines.into_iter().map(|(_, l)| l).collect();
    let check = |store: &Store| {
        assert_eq!(samples(store, &t, "m"), want);
        assert_eq!(lines(store, &t), want_lines);
        assert_eq!(spans(store, &t), 1);
    };
    check(&store);
    store.flush().await.unwrap();
    check(&store);
    let before = store.usage().2;
    store.merge().await.unwrap();
    assert!(store.usage().2 < before, "{before} segments stayed");
    check(&store);
    store.close();
    drop(store);
    check(&open(dir.path(), vec![]));
}

#[tokio::test]
async fn retention_drops_by_the_most_specific_age_and_by_bytes() {
    let days = |n: u64| Some(Duration::from_secs(n * 86_400));
    let acme = TenantId::new("acme").unwrap();
    let rules = vec![
        RetentionRule { max_age: days(10), ..RetentionRule::default() },
        RetentionRule {
            signal: Some(RetentionSignal::Logs),
            max_age: days(3),
            ..RetentionRule::default()
        },
        RetentionRule {
            tenant: Some(acme.clone()),
            signal: Some(RetentionSignal::Logs),
            max_age: days(30),
            ..RetentionRule::default()
        },
        // One byte: nothing of this tenant's metrics fits.
        RetentionRule {
            tenant: Some(acme.clone()),
            signal: Some(RetentionSignal::Metrics),
            max_bytes: Some(1),
            ..RetentionRule::default()
        },
    ];
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), rules);
    let default = TenantId::default();
    // What somebody keeps is reached by no rule for all.
    let kept = default.archive().unwrap();
    for tenant in [&default, &acme, &kept] {
        for day in [1, 10, 17, 20] {
            put(&store, tenant, point("m", day * DAY_MS, 1.0)).await;
            let logs = vec![log("a", day * DAY_MS, &format!("day {day}"))];
            put(&store, tenant, WriteBatch { logs, ..WriteBatch::default() }).await;
        }
    }
    store.flush().await.unwrap();
    let now = TimestampNs::from_nanos((20 * DAY_MS + 1) * 1_000_000);
    assert!(store.retain(now).unwrap() > 0);
    let times = |tenant| -> Vec<i64> {
        samples(&store, tenant, "m").into_iter().map(|(t, _)| t / DAY_MS).collect()
    };
    assert_eq!(times(&default), [17, 20]);
    assert_eq!(times(&acme), [0_i64; 0]);
    assert_eq!(times(&kept), [1, 10, 17, 20]);
    assert_eq!(lines(&store, &default), ["day 20"]);
    assert_eq!(lines(&store, &acme), ["day 1", "day 10", "day 17", "day 20"]);
    assert_eq!(store.retain(now).unwrap(), 0);
}

#[tokio::test]
async fn retention_by_label_keeps_some_longer_and_some_shorter() {
    let rule = |tenant: Option<&TenantId>, signal, days: u64, label: Option<(&str, &str)>| {
        let one = |(n, v): (&str, &str)| (n.to_owned(), MatchOp::Equal, v.to_owned());
        RetentionRule {
            tenant: tenant.cloned(),
            signal: Some(signal),
            max_age: Some(Duration::from_secs(days * 86_400)),
            max_bytes: None,
            matchers: label.map(one).into_iter().collect(),
        }
    };
    let (t, acme) = (TenantId::default(), TenantId::new("acme").unwrap());
    let (logs, metrics, traces) =
        (RetentionSignal::Logs, RetentionSignal::Metrics, RetentionSignal::Traces);
    let rules = vec![
        rule(None, logs, 10, None),
        rule(None, logs, 2, Some(("app", "debug"))),
        rule(None, logs, 30, Some(("app", "audit"))),
        rule(Some(&acme), logs, 5, Some(("app", "audit"))),
        rule(None, metrics, 3, Some(("__name__", "short"))),
        rule(None, traces, 3, Some(("service_name", "noisy"))),
    ];
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), rules.clone());
    for tenant in [&t, &acme] {
        for day in [1, 12, 17, 20] {
            let at = |app: &str| log(app, day * DAY_MS, &format!("{app} {day}"));
            let mut batch = WriteBatch {
                logs: vec![at("audit"), at("debug"), at("web")],
                points: vec![
                    (metric("short"), Sample::float(day * DAY_MS, 1.0)),
                    (metric("long"), Sample::float(day * DAY_MS, 1.0)),
                ],
                ..WriteBatch::default()
            };
            if day == 1 {
                let mut noisy = span(1, 2);
                let attributes = Attributes::from_iter([("service.name", "noisy")]);
                noisy.resource = Arc::new(Resource { attributes });
                batch.spans = vec![span(1, 1), noisy];
            }
            put(&store, tenant, batch).await;
        }
    }
    store.flush().await.unwrap();
    let now = TimestampNs::from_nanos((20 * DAY_MS + 1) * 1_000_000);
    store.retain(now).unwrap();
    store.merge().await.unwrap();
    let check = |store: &Store| {
        let kept = ["audit 1", "audit 12", "web 12", "audit 17", "web 17", "audit 20", "debug 20"];
        assert_eq!(lines(store, &t), [&kept[..], &["web 20"]].concat());
        // The tenant's own rule goes first.
        let kept = ["web 12", "audit 17", "web 17", "audit 20", "debug 20", "web 20"];
        assert_eq!(lines(store, &acme), kept);
        for tenant in [&t, &acme] {
            assert_eq!(samples(store, tenant, "short").len(), 1);
            assert_eq!(samples(store, tenant, "long").len(), 4);
            assert_eq!(spans(store, tenant), 1);
        }
    };
    check(&store);
    // What was decided is not decided again, also after a restart.
    let merges = store.stats().merges.load(Ordering::Relaxed);
    assert!(merges > 0);
    store.merge().await.unwrap();
    assert_eq!(store.stats().merges.load(Ordering::Relaxed), merges);
    store.close();
    drop(store);
    let store = open(dir.path(), rules);
    store.retain(now).unwrap();
    store.merge().await.unwrap();
    assert_eq!(store.stats().merges.load(Ordering::Relaxed), 0);
    check(&store);
    // The rest of those days goes when its time comes, files and all.
    let later = TimestampNs::from_nanos(40 * DAY_MS * 1_000_000);
    store.retain(later).unwrap();
    store.merge().await.unwrap();
    assert_eq!(lines(&store, &t), ["audit 12", "audit 17", "audit 20"]);
    assert_eq!(lines(&store, &acme), [""; 0]);
}

#[tokio::test]
async fn deleted_data_is_hidden_at_once_and_merges_take_it_off_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), vec![]);
    let (t, other) = (TenantId::default(), TenantId::new("other").unwrap());
    for tenant in [&t, &other] {
        let batch = WriteBatch {
            spans: vec![span(1, 1), span(1, 2), span(2, 3)],
            points: vec![
                (metric("a"), Sample::float(5, 1.0)),
                (metric("a"), Sample::float(50, 2.0)),
                (metric("b"), Sample::float(5, 3.0)),
            ],
            ..WriteBatch::default()
        };
        put(&store, tenant, batch).await;
    }
    let trace = TraceId::from_slice(&[1; 16]).unwrap();
    let series = DeleteScope::Series {
        matchers: vec![("__name__".into(), MatchOp::Equal, "a".into())],
        start: 0,
        end: 10,
    };
    for _ in 0..2 {
        store.delete(&t, DeleteScope::Trace(trace)).await.unwrap();
        store.delete(&t, series.clone()).await.unwrap();
        assert_eq!(spans(&store, &t), 1);
        assert_eq!(samples(&store, &t, "a"), [(50, 2.0)]);
        assert_eq!(samples(&store, &t, "b"), [(5, 3.0)]);
    }
    // What comes later is new data.
    put(&store, &t, point("a", 6, 9.0)).await;
    assert_eq!(samples(&store, &t, "a"), [(6, 9.0), (50, 2.0)]);
    store.delete(&other, DeleteScope::Tenant).await.unwrap();
    assert_eq!(spans(&store, &other), 0);
    assert!(on_disk(dir.path(), "needle-of-trace-1"));
    store.merge().await.unwrap();
    assert!(!on_disk(dir.path(), "needle-of-trace-1"));
    assert!(!dir.path().join("segments/other").exists() || spans(&store, &other) == 0);
    store.close();
    drop(store);
    let store = open(dir.path(), vec![]);
    assert_eq!((spans(&store, &t), spans(&store, &other)), (1, 0));
    assert_eq!(samples(&store, &t, "a"), [(6, 9.0), (50, 2.0)]);
}

#[tokio::test]
async fn who_watches_the_past_is_told_what_changed_in_it() {
    let days = |n: u64| Some(Duration::from_secs(n * 86_400));
    let short = ("__name__".to_owned(), MatchOp::Equal, "short".to_owned());
    let metrics = Some(RetentionSignal::Metrics);
    let rules = vec![
        RetentionRule { max_age: days(10), ..RetentionRule::default() },
        RetentionRule {
            signal: metrics,
            max_age: days(3),
            matchers: vec![short],
            ..RetentionRule::default()
        },
    ];
    let dir = tempfile::tempdir().unwrap();
    // Merges happen when they are asked for.
    let retention = rules;
    let config = StoreConfig { retention, inline: true, ..StoreConfig::new(dir.path()) };
    let store = Store::open(config, Arc::new(OsVfs)).unwrap();
    let (t, other) = (TenantId::default(), TenantId::new("other").unwrap());
    let day = |n: i64| TimestampMs::from_millis(n * DAY_MS);
    for n in [1, 12, 15, 19] {
        put(&store, &t, point("m", n * DAY_MS, 1.0)).await;
        put(&store, &t, point("short", n * DAY_MS + 7, 1.0)).await;
    }
    let watch = || store.watch(&t, day(19)).unwrap();
    // What is new, what has another tenant and what is no sample changes nothing.
    let mut moment = watch();
    put(&store, &t, point("m", 20 * DAY_MS, 1.0)).await;
    put(&store, &other, point("m", DAY_MS, 1.0)).await;
    let logs = vec![log("a", DAY_MS, "line")];
    put(&store, &t, WriteBatch { logs, ..WriteBatch::default() }).await;
    store.flush().await.unwrap();
    store.merge().await.unwrap();
    store.delete(&t, DeleteScope::Trace(TraceId::from_slice(&[1; 16]).unwrap())).await.unwrap();
    assert_eq!(store.changed_since(&t, moment), None);
    // A late sample, also one in the place of another.
    put(&store, &t, point("m", 12 * DAY_MS, 2.0)).await;
    assert_eq!(store.changed_since(&t, moment), Some(day(12)));
    moment = watch();
    assert_eq!(store.changed_since(&t, moment), None);
    let matchers = vec![("__name__".into(), MatchOp::Equal, "m".into())];
    let scope = DeleteScope::Series { matchers, start: 15 * DAY_MS, end: 16 * DAY_MS };
    store.delete(&t, scope).await.unwrap();
    assert_eq!(store.changed_since(&t, moment), Some(day(15)));
    // A day expires, then some labels of another when a merge takes them out.
    moment = watch();
    let now = TimestampNs::from_nanos((19 * DAY_MS + 1) * 1_000_000);
    assert!(store.retain(now).unwrap() > 0);
    assert_eq!(store.changed_since(&t, moment), Some(day(1)));
    moment = watch();
    assert_eq!(samples(&store, &t, "short").len(), 3);
    store.merge().await.unwrap();
    assert_eq!(samples(&store, &t, "short"), [(19 * DAY_MS + 7, 1.0)]);
    assert_eq!(store.changed_since(&t, moment), Some(day(12)));
    moment = watch();
    store.delete(&t, DeleteScope::Tenant).await.unwrap();
    assert_eq!(store.changed_since(&t, moment), Some(TimestampMs::MIN));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_log_lines_are_hidden_at_once_and_stay_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), vec![]);
    let t = TenantId::default();
    let line = |i: i64| format!("line {i} {}", ["paid", "secret-Zq9", "Timeout"][(i % 3) as usize]);
    let of = |i: i64| log(["shop", "db"][(i / 3 % 2) as usize], DAY_MS + i, &line(i));
    let logs = (0..600).map(of).collect();
    put(&store, &t, WriteBatch { logs, ..WriteBatch::default() }).await;
    let at = |i: i64| (DAY_MS + i) * 1_000_000;
    let test = |negated, text| LineTest { negated, any: vec![text] };
    let of_shop = || vec![("app".to_owned(), MatchOp::Equal, "shop".to_owned())];
    let scope = |lines, start, end| DeleteScope::Logs { matchers: of_shop(), lines, start, end };
    let secret = test(false, LineText::Literal("secret".into()));
    let early = scope(vec![secret.clone()], at(0), at(300));
    let timeouts = test(false, LineText::Regex("(?i)TIME(out|r)$".into()));
    let two = LineTest {
        negated: true,
        any: vec![LineText::Literal("5".into()), LineText::Literal("7".into())],
    };
    let late = scope(vec![timeouts, two], at(301), at(599));
    let all_of_db = DeleteScope::Logs {
        matchers: vec![("app".into(), MatchOp::Regex, "d.".into())],
        lines: vec![],
        start: at(0),
        end: at(599),
    };
    let is_left = |i: i64, db_too: bool| {
        let shop = i / 3 % 2 == 0;
        let digits = i.to_string();
        let gone = match i % 3 {
            1 => i <= 300,
            2 => i > 300 && !digits.contains('5') && !digits.contains('7'),
            _ => false,
        };
        if shop { !gone } else { !db_too }
    };
    let seen = |store: &Store| {
        let budget = Budget::new(i64::MAX, i64::MAX);
        let mut selected = Vec::new();
        let selection = LogSelection::ALL;
        let select = store.select_logs(&t, &selection, &budget, &mut |r| {
            selected.push(r.timestamp.nanos());
            ControlFlow::Continue(())
        });
        select.unwrap();
        let mut scanned = Vec::new();
        let scan = LogScan { accept: &|_| true, line: false, ids: false, members: None };
        let done = store.scan_logs(&t, &selection, scan, &budget, &mut |_, rows| {
            scanned.extend_from_slice(rows.times);
            ControlFlow::Continue(true)
        });
        done.unwrap();
        scanned.sort_unstable();
        assert_eq!(selected, scanned);
        let streams = store.streams(&t, &selection, &budget).unwrap();
        (selected, streams.iter().map(|s| s.get("app").to_owned()).collect::<Vec<_>>())
    };
    let want = |db_too| (0..600).filter(|i| is_left(*i, db_too)).map(at).collect::<Vec<_>>();
    assert_eq!(seen(&store).0.len(), 600);
    for scope in [&early, &late, &early] {
        store.delete(&t, scope.clone()).await.unwrap();
    }
    assert_eq!(seen(&store), (want(false), vec!["db".to_owned(), "shop".to_owned()]));
    store.delete(&t, all_of_db).await.unwrap();
    for merged in [false, true] {
        assert_eq!(seen(&store), (want(true), vec!["shop".to_owned()]));
        // Requests are remembered until merges have done what they ask for.
        store.close();
        drop(store);
        store = open(dir.path(), vec![]);
        assert_eq!(seen(&store), (want(true), vec!["shop".to_owned()]), "{merged}");
        store.merge().await.unwrap();
    }
    // What comes later is new data.
    put(&store, &t, WriteBatch { logs: vec![of(1)], ..WriteBatch::default() }).await;
    assert_eq!(seen(&store).0.len(), want(true).len() + 1);
    // Also if it is the same as what was deleted, and is merged with it.
    store.delete(&t, early.clone()).await.unwrap();
    assert_eq!(seen(&store).0.len(), want(true).len());
    put(&store, &t, WriteBatch { logs: vec![of(1)], ..WriteBatch::default() }).await;
    store.flush().await.unwrap();
    store.merge().await.unwrap();
    assert_eq!(seen(&store).0.len(), want(true).len() + 1);
    let broken = scope(vec![test(false, LineText::Regex("(".into()))], 0, 1);
    assert!(store.delete(&t, broken).await.is_err());
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries
        .map(
            |e| {
                if e.path().is_dir() { bytes_below(&e.path()) } else { e.metadata().unwrap().len() }
            },
        )
        .sum()
}

/// A call of a conversation carries all turns before it.
#[tokio::test]
async fn a_growing_conversation_is_stored_once() {
    const TURNS: u64 = 50;
    let turn = |i: u64| {
        let mut words = String::new();
        for w in 0..120 {
            let x = (i * 131 + w * 7919) % 4093;
            words.push_str(&format!("word{x} "));
        }
        format!(r#"{{"role":"user","content":"{words}"}}"#)
    };
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), vec![]);
    let t = TenantId::default();
    let mut alone = 0;
    for n in 1..=TURNS {
        let list: Vec<String> = (0..n).map(turn).collect();
        let text = format!("[{}]", list.join(","));
        alone += zstd::bulk::compress(text.as_bytes(), 3).unwrap().len() as u64;
        let mut s = span(1, n as u8);
        s.attributes.push("gen_ai.input.messages", text);
        put(&store, &t, WriteBatch { spans: vec![s], ..WriteBatch::default() }).await;
    }
    store.flush().await.unwrap();
    let stored = bytes_below(&dir.path().join("segments"));
    assert!(stored * 15 <= alone, "{stored} bytes, {alone} compressed one by one");
    let trace = TraceId::from_slice(&[1; 16]).unwrap();
    let found = store.trace(&t, trace, &Budget::new(i64::MAX, i64::MAX)).unwrap();
    for s in found {
        let n = u64::from(s.span_id.as_bytes()[0]);
        let list: Vec<String> = (0..n).map(turn).collect();
        let want = format!("[{}]", list.join(","));
        assert_eq!(s.attributes.get_str("gen_ai.input.messages"), Some(want.as_str()));
    }
}

#[tokio::test]
async fn an_attribute_of_16_mib_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), vec![]);
    let t = TenantId::default();
    let mut x = 1_u64;
    let text: String = (0..16 << 20)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b' ' + (x >> 58) as u8)
        })
        .collect();
    let mut s = span(1, 1);
    s.attributes.push("prompt", text.clone());
    put(&store, &t, WriteBatch { spans: vec![s], ..WriteBatch::default() }).await;
    let trace = TraceId::from_slice(&[1; 16]).unwrap();
    let check = |store: &Store| {
        let found = store.trace(&t, trace, &Budget::new(i64::MAX, i64::MAX)).unwrap();
        assert!(found[0].attributes.get_str("prompt") == Some(text.as_str()));
    };
    check(&store);
    store.flush().await.unwrap();
    check(&store);
    store.close();
    drop(store);
    check(&open(dir.path(), vec![]));
}

/// What a scan tells of a record.
fn told(r: &LogRecord) -> (Labels, i64, String, String, Option<TraceId>) {
    let extra = format!("{:?} {:?}", r.attributes, r.resource.attributes);
    (r.stream.clone(), r.timestamp.nanos(), r.line.clone(), extra, r.trace_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_finds_what_a_select_finds_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), vec![]);
    let tenant = TenantId::default();
    let resource = Arc::new(Resource { attributes: Attributes::from_iter([("host", "h")]) });
    let rows = |from: i64, to: i64, step: usize| -> Vec<LogRecord> {
        let one = |i: i64| {
            let app = ["shop", "db", "web"][(i % 3) as usize];
            let mut r = log(app, DAY_MS + i * 10, &format!("line {i} of {app} needle{}", i % 7));
            if i % 5 == 0 {
                r.attributes = Attributes::from_iter([("pod", format!("p{i}"))]);
            }
            if i % 4 == 0 {
                r.trace_id = TraceId::from_slice(&[(i % 3 + 1) as u8; 16]);
                r.resource = resource.clone();
            }
            r
        };
        (from..to).step_by(step).map(one).collect()
    };
    // Segments that overlap, repeat each other and leave a gap; some that lie over each other and
    // have hardly a record in common; then a head that repeats them too.
    let many = [(0, 3000, 1), (2500, 6000, 1), (5900, 6100, 1)];
    let few = [(9000, 12_000, 2), (9001, 12_000, 2), (9010, 9200, 30), (10_005, 10_006, 1)];
    for (from, to, step) in many.into_iter().chain(few) {
        let batch = WriteBatch { logs: rows(from, to, step), ..WriteBatch::default() };
        store.append(&tenant, batch).await.unwrap();
        store.flush().await.unwrap();
    }
    let trace = TraceId::from_slice(&[2; 16]).unwrap();
    store.delete(&tenant, DeleteScope::Trace(trace)).await.unwrap();
    let batch = WriteBatch { logs: rows(11_900, 12_500, 1), ..WriteBatch::default() };
    store.append(&tenant, batch).await.unwrap();

    let at = |i: i64| TimestampNs::from_nanos((DAY_MS + i * 10) * 1_000_000);
    let matchers = [Matcher::new("app", MatchOp::Regex, "shop|db").unwrap()];
    let needles = ["needle3".to_owned()];
    for merged in [false, true] {
        if merged {
            store.flush().await.unwrap();
            store.merge().await.unwrap();
        }
        for (start, end) in
            [(0, 20_000), (2600, 5950), (1, 2), (7000, 8000), (9100, 10_500), (11_950, 12_100)]
        {
            for (matchers, needles) in [(&[][..], &[][..]), (&matchers, &[]), (&matchers, &needles)]
            {
                let selection = LogSelection {
                    matchers,
                    needles,
                    start: at(start),
                    end: at(end),
                    ..LogSelection::ALL
                };
                let budget = Budget::new(i64::MAX, i64::MAX);
                let mut want = Vec::new();
                let select = store.select_logs(&tenant, &selection, &budget, &mut |r| {
                    want.push(told(r));
                    ControlFlow::Continue(())
                });
                select.unwrap();
                let accept = |l: &Labels| l.get("app") != "db";
                for (accept, some) in
                    [(&(|_: &Labels| true) as &dyn Fn(&Labels) -> bool, false), (&accept, true)]
                {
                    for line in [true, false] {
                        let mut got = Vec::new();
                        let scan = LogScan { accept, line, ids: true, members: None };
                        let scanned =
                            store.scan_logs(&tenant, &selection, scan, &budget, &mut |r, _| {
                                got.push(told(r));
                                ControlFlow::Continue(true)
                            });
                        scanned.unwrap();
                        let mut want: Vec<_> = want
                            .iter()
                            .filter(|w| !some || w.0.get("app") != "db")
                            .cloned()
                            .collect();
                        if !line {
                            // Whether the line is there is not said.
                            for row in want.iter_mut().chain(&mut got) {
                                row.2.clear();
                            }
                        }
                        want.sort();
                        got.sort();
                        assert_eq!(got.len(), want.len(), "{start}..{end} {needles:?} {line}");
                        assert!(got == want, "{start}..{end} {needles:?} {line}");
                    }
                }
            }
        }
    }
}
