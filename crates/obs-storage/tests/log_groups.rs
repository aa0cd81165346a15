//! A counting scan over groups of log lines says of every record what its line says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use obs_model::*;
use obs_storage::vfs::OsVfs;
use obs_storage::{Store, StoreConfig};
use proptest::prelude::*;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

const START: i64 = 1_700_000_000_000_000_000;

/// Lines as services write them, and some that only look like those.
fn line() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec!["info", "warn", "error"]);
    let ms = prop_oneof![
        (0..2000_i64).prop_map(|n| n.to_string()),
        (0..2000_i64).prop_map(|n| format!("{}.{:02}", n / 7, n % 100)),
        Just("\"12\"".to_owned()),
        Just("null".to_owned()),
    ];
    let json = (level, ms, "[a-z0-9 ]{0,8}", 0..8_u8).prop_map(|(level, ms, msg, shape)| {
        let rest = match shape {
            0 => r#","in":{"ms":1,"x":[1,"}"]}"#,
            1 => r#","ms":7"#,
            2 => ",",
            _ => "",
        };
        let space = if shape == 3 { " " } else { "" };
        format!(r#"{{{space}"level":"{level}","ms":{ms},"msg":"{msg}"{rest}}}"#)
    });
    prop_oneof![20 => json, 1 => "[a-z{}\"0-9 ]{0,12}"]
}

/// What a scan may look at of a line: nothing of what is no object, nor of what is not wanted.
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    NoObject,
    Broken,
    Members(Map<String, Value>),
}

fn seen(line: &str, wanted: &[&str], but: Option<&str>) -> Seen {
    if !line.trim_start().starts_with('{') {
        return Seen::NoObject;
    }
    match serde_json::from_str::<Map<String, Value>>(line) {
        Err(_) => Seen::Broken,
        Ok(mut m) => {
            m.retain(|k, _| wanted.contains(&k.as_str()) && but != Some(k));
            Seen::Members(m)
        }
    }
}

fn number(line: &str, key: &str) -> Option<f64> {
    // In quotes or not: a label is text.
    let members: Map<String, Value> = serde_json::from_str(line).ok()?;
    let value = members.get(key)?;
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn record(i: usize, line: &str) -> LogRecord {
    LogRecord {
        stream: Labels::from_pairs([("app", ["shop", "db", "web"][i * 7 / 5 % 3])]),
        timestamp: TimestampNs::from_nanos(START + i as i64 * 1_000_000),
        line: line.to_owned(),
        ..LogRecord::default()
    }
}

/// A store with one line a millisecond in a segment, and what it lives in.
fn stored(lines: &[String]) -> (Store, tempfile::TempDir, tokio::runtime::Runtime) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let config = StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::new(dir.path()) };
    let store = runtime.block_on(async {
        let store = Store::open(config, Arc::new(OsVfs)).unwrap();
        let logs = lines.iter().enumerate().map(|(i, l)| record(i, l)).collect();
        let batch = WriteBatch { logs, ..WriteBatch::default() };
        store.append(&TenantId::default(), batch).await.unwrap();
        store.flush().await.unwrap();
        store
    });
    (store, dir, runtime)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn lines_in_groups_say_what_each_line_says(
        lines in prop::collection::vec(line(), 1..400),
        wanted in prop::sample::subsequence(vec!["level", "ms", "msg", "in"], 0..=4),
        (from, to) in (0..300_usize, 1..500_usize),
        measures in 0..3_u8,
    ) {
        let (store, _dir, _runtime) = stored(&lines);
        let at = |i: usize| START + i as i64 * 1_000_000;
        let selection = LogSelection {
            start: TimestampNs::from_nanos(at(from)),
            end: TimestampNs::from_nanos(at(from + to)),
            ..LogSelection::ALL
        };
        // A repeated key means that a reader may take either value: such lines only have to be there.
        let is_twice = |line: &str| line.ends_with(r#","ms":7}"#);
        let key = (measures > 0 && wanted.contains(&"ms")).then_some("ms");
        let holds = |v: f64| v > 300.0;
        let of = |s: &Labels| s.get("app") != "web";
        let mut want = BTreeMap::new();
        for (i, line) in lines.iter().enumerate().skip(from).take(to) {
            let r = record(i, line);
            let is_measured = key.is_some() && of(&r.stream);
            let v = if is_measured { number(line, "ms") } else { None };
            if r.stream.get("app") != "db" && v.is_none_or(holds) && !is_twice(line) {
                let but = v.map(|_| "ms");
                want.insert(at(i), (r.stream.get("app").to_owned(), seen(line, &wanted, but), v));
            }
        }
        let accept = |s: &Labels| s.get("app") != "db";
        let wants = |k: &str, _: bool| wanted.contains(&k);
        let number_of = key.map(|key| NumberMember { key, holds: &holds, is_value: measures == 2, of: &of });
        let members = Some(LineMembers { wants: &wants, number: number_of, runs: &[], digits_alike: false, may_refuse: false });
        let scan = LogScan { accept: &accept, line: true, ids: false, members };
        // The second time from what the first unpacked.
        for _ in 0..2 {
            let budget = Budget::new(i64::MAX, i64::MAX);
            let mut got = BTreeMap::new();
            store.scan_logs(&TenantId::default(), &selection, scan, &budget, &mut |r, rows| {
                let app = r.stream.get("app").to_owned();
                for (n, time) in rows.times.iter().enumerate() {
                    let original = &lines[((time - START) / 1_000_000) as usize];
                    if is_twice(original) {
                        continue;
                    }
                    let is_measured = key.is_some() && of(&r.stream);
                    let v = if is_measured { number(original, "ms") } else { None };
                    let said = rows.values.get(n).copied().or_else(|| number(&r.line, "ms"));
                    if let Some(v) = v {
                        // Those that are told apart by the number alone have another's in the line.
                        let is_own = rows.values.is_empty() && rows.times.len() > 1;
                        assert!(is_own || said == Some(v), "{original} {said:?}");
                        if !holds(v) {
                            assert!(rows.times.len() == 1 || !holds(said.unwrap()));
                            continue;
                        }
                    }
                    let what = seen(&r.line, &wanted, v.map(|_| "ms"));
                    // What is no object may come empty.
                    let what = if r.line.is_empty() { Seen::NoObject } else { what };
                    assert!(got.insert(*time, (app.clone(), what, v)).is_none(), "{original} twice");
                }
                ControlFlow::Continue(true)
            }).unwrap();
            prop_assert_eq!(&got, &want);
        }
    }

    #[test]
    fn groups_hold_what_is_looked_for_as_lines_do(
        lines in prop::collection::vec(
            (line(), prop::sample::select(vec!["", " ", " error", "retry 12 ms"])),
            1..300,
        ),
        run in prop::sample::select(vec!["error", "err", "level", "arn", "123", "retry", "nowhere"]),
        is_needed: bool,
        wanted in prop::sample::subsequence(vec!["level", "msg"], 0..=2),
    ) {
        let lines: Vec<String> = lines.into_iter().map(|(l, end)| l + end).collect();
        let (store, _dir, _runtime) = stored(&lines);
        let needles = if is_needed { vec![run.to_owned()] } else { Vec::new() };
        let selection = LogSelection { needles: &needles, ..LogSelection::ALL };
        let runs = [LineRun { text: run.to_owned(), is_needed }];
        let wants = |k: &str, _: bool| wanted.contains(&k);
        let members = Some(LineMembers { wants: &wants, number: None, runs: &runs, digits_alike: false, may_refuse: true });
        let scan = LogScan { accept: &|_| true, line: true, ids: false, members };
        for _ in 0..2 {
            let budget = Budget::new(i64::MAX, i64::MAX);
            let mut got = vec![0; lines.len()];
            store.scan_logs(&TenantId::default(), &selection, scan, &budget, &mut |r, rows| {
                for time in rows.times {
                    let i = ((time - START) / 1_000_000) as usize;
                    got[i] += 1;
                    let original = &lines[i];
                    assert_eq!(r.line.contains(run), original.contains(run), "{original} {}", r.line);
                    assert_eq!(seen(&r.line, &wanted, None), seen(original, &wanted, None), "{original}");
                }
                ControlFlow::Continue(true)
            }).unwrap();
            for (line, times) in lines.iter().zip(got) {
                prop_assert!(times == 1 || (times == 0 && is_needed && !line.contains(run)), "{}", line);
            }
        }
    }

    #[test]
    fn what_the_visitor_does_not_want_is_left_out_and_counted(
        levels in prop::sample::subsequence(vec!["error", "info", "warn"], 1..=3),
        picked in prop::collection::vec((0..3_usize, 0..90_u32), 1..400),
        odd in prop::option::of(line()),
        wanted in prop::sample::subsequence(vec!["level", "ms"], 1..=2),
    ) {
        let plain = |(l, ms): &(usize, u32)| format!(r#"{{"level":"{}","ms":{ms},"msg":"a"}}"#, levels[l % levels.len()]);
        let mut lines: Vec<String> = picked.iter().map(plain).collect();
        lines.extend(odd);
        let (store, _dir, _runtime) = stored(&lines);
        let wants = |k: &str, _: bool| wanted.contains(&k);
        let members = Some(LineMembers { wants: &wants, number: None, runs: &[], digits_alike: false, may_refuse: true });
        let scan = LogScan { accept: &|_| true, line: true, ids: false, members };
        // Errors, or odd milliseconds where levels are not looked at.
        let admits = |line: &str| match seen(line, &wanted, None) {
            Seen::Members(m) => match m.get("level") {
                Some(level) => level == "error",
                None => number(line, "ms").is_some_and(|ms| ms % 2.0 == 1.0),
            },
            _ => false,
        };
        for _ in 0..2 {
            let budget = Budget::new(i64::MAX, i64::MAX);
            let mut got = vec![0; lines.len()];
            let mut count = 0;
            store.scan_logs(&TenantId::default(), &LogSelection::ALL, scan, &budget, &mut |r, rows| {
                count += rows.count();
                for time in rows.times.iter().filter(|_| admits(&r.line)) {
                    got[((time - START) / 1_000_000) as usize] += 1;
                }
                ControlFlow::Continue(admits(&r.line))
            }).unwrap();
            prop_assert_eq!(count, lines.len());
            for (line, times) in lines.iter().zip(got) {
                prop_assert_eq!(times, i32::from(admits(line)), "{}", line);
            }
        }
    }
}
