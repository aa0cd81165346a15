//! Queries over lines, as scripts.
//!
//! `stream {a="b"}` opens a stream; each indented line below it is an entry: its second, perhaps
//! `{k="v"}` of metadata, and the line. `eval QUERY` is followed by the result: for log queries
//! `{labels} line` in order of time, for metric queries (`eval at SECOND QUERY`, `eval range START
//! END STEP QUERY`) `{labels} value` or `{labels} second:value …`. `fail QUERY` is followed by how
//! the message begins. `clear` forgets all streams.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

use obs_logql::ast::Query;
use obs_logql::{LogOptions, parse, parse_selector, run_instant, run_logs, run_range};
use obs_model::{
    Attributes, Budget, Direction, Labels, LogRecord, Sample, SampleValue, TenantId, TimestampNs,
};
use obs_promql::Output;
use obs_testkit::MemoryStore;
use std::collections::BTreeMap;
use std::sync::Arc;

const SECOND: f64 = 1e9;

fn at(seconds: &str) -> TimestampNs {
    let seconds: f64 = seconds.parse().unwrap_or_else(|_| panic!("{seconds:?} is no second"));
    TimestampNs::from_nanos((seconds * SECOND) as i64)
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let matchers = parse_selector(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    matchers.into_iter().map(|m| (m.name, m.value)).collect()
}

/// Splits `{…} rest`.
fn braces(text: &str) -> (&str, &str) {
    let mut quoted = false;
    let mut escaped = false;
    let end = text.bytes().position(|b| {
        let hit = b == b'}' && !quoted;
        quoted ^= b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        hit
    });
    let end = end.unwrap_or_else(|| panic!("no braces in {text:?}")) + 1;
    (&text[..end], text[end..].trim_start())
}

fn record(stream: &Labels, text: &str) -> LogRecord {
    let (time, rest) = text.trim_start().split_once(' ').unwrap_or((text.trim(), ""));
    let (metadata, line) = match rest.strip_prefix("meta") {
        Some(rest) => braces(rest),
        None => ("{}", rest),
    };
    let attributes: Attributes = pairs(metadata).into_iter().collect();
    LogRecord {
        stream: stream.clone(),
        timestamp: at(time),
        observed: at(time),
        line: line.replace("\\e", "\u{1b}"),
        attributes,
        ..LogRecord::default()
    }
}

fn labels_text(labels: &BTreeMap<String, String>) -> String {
    let all: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    format!("{{{}}}", all.join(", "))
}

fn value(s: &Sample) -> String {
    match s.value {
        SampleValue::Float(f) => obs_promql::format_float(f),
        _ => "histogram".into(),
    }
}

fn rows(out: Output) -> Vec<String> {
    match out {
        Output::Scalar(s) => vec![format!("scalar {}", value(&s))],
        Output::Vector(v) => v.iter().map(|(l, s)| format!("{l} {}", value(s))).collect(),
        Output::Matrix(m) => {
            let points =
                |s: &Sample| format!("{}:{}", s.timestamp.millis() as f64 / 1000.0, value(s));
            let row = |s: &obs_model::Series| {
                let all: Vec<String> = s.samples.iter().map(points).collect();
                format!("{} {}", s.labels, all.join(" "))
            };
            m.iter().map(row).collect()
        }
        Output::String(..) => vec!["string".into()],
    }
}

fn run(store: &MemoryStore, when: &[&str], query: &str) -> Result<Vec<String>, String> {
    let tenant = TenantId::default();
    let budget = Budget::new(1 << 20, 1 << 30);
    match parse(query).map_err(|e| e.to_string())? {
        Query::Log(expr) => {
            let options = LogOptions {
                direction: Direction::Forward,
                limit: 1000,
                interval_ns: 0,
                categorize: false,
            };
            let range = (at("-1000"), at("100000"));
            let out = run_logs(store, &tenant, &expr, range, options, &budget);
            let mut all = Vec::new();
            for stream in out.map_err(|e| e.to_string())? {
                let labels = labels_text(&stream.labels);
                all.extend(
                    stream
                        .entries
                        .into_iter()
                        .map(|e| (e.timestamp, format!("{labels} {}", e.line))),
                );
            }
            all.sort();
            Ok(all.into_iter().map(|(_, text)| text.trim_end().to_owned()).collect())
        }
        Query::Metric(expr) => {
            let out = match when {
                [t] => run_instant(store, &tenant, &expr, at(t), &budget),
                [start, end, step] => {
                    let step = at(step).to_millis().millis();
                    run_range(store, &tenant, &expr, (at(start), at(end)), step, &budget)
                }
                _ => panic!("{query} needs a time"),
            };
            out.map(rows).map_err(|e| e.to_string())
        }
    }
}

/// Compares texts whose numbers may differ in the last places.
fn same(a: &str, b: &str) -> bool {
    let number = |s: &str| s.rsplit(':').next().and_then(|n| n.parse::<f64>().ok());
    a == b
        || a.split(' ').count() == b.split(' ').count()
            && a.split(' ').zip(b.split(' ')).all(|(x, y)| {
                x == y
                    || match (number(x), number(y)) {
                        (Some(p), Some(q)) => (p - q).abs() <= 1e-9 * p.abs().max(q.abs()),
                        _ => false,
                    }
            })
}

fn script(name: &str, text: &str) -> (usize, Vec<String>) {
    let mut store = MemoryStore::default();
    let mut faults = Vec::new();
    let mut count = 0;
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let mut block = || {
            let mut out = Vec::new();
            while let Some((_, l)) = lines.next_if(|(_, l)| l.starts_with(' ')) {
                out.push(l.trim().to_owned());
            }
            out
        };
        if let Some(labels) = line.strip_prefix("stream ") {
            let stream = Labels::from_pairs(pairs(labels));
            store.logs.extend(block().iter().map(|l| Arc::new(record(&stream, l))));
        } else if line == "clear" {
            store = MemoryStore::default();
        } else if let Some(query) = line.strip_prefix("fail ") {
            count += 1;
            let want = block().join("\n");
            match run(&store, &["0"], query) {
                Err(got) if got.starts_with(&want) => {}
                got => faults
                    .push(format!("{name}:{}: {query}\n  want {want}\n  got {got:?}", number + 1)),
            }
        } else if let Some(rest) = line.strip_prefix("eval ") {
            count += 1;
            let mut want = block();
            let (when, query) = if let Some(rest) = rest.strip_prefix("at ") {
                let (t, query) = rest.split_once(' ').unwrap();
                (vec![t], query)
            } else if let Some(rest) = rest.strip_prefix("range ") {
                let mut parts = rest.splitn(4, ' ');
                let when: Vec<&str> = parts.by_ref().take(3).collect();
                (when, parts.next().unwrap())
            } else {
                (Vec::new(), rest)
            };
            let is_ordered = when.is_empty() || query.starts_with("sort");
            match run(&store, &when, query) {
                Ok(mut got) => {
                    if !is_ordered {
                        want.sort();
                        got.sort();
                    }
                    let all =
                        got.len() == want.len() && got.iter().zip(&want).all(|(a, b)| same(a, b));
                    if !all {
                        faults.push(format!(
                            "{name}:{}: {query}\n  want\n    {}\n  got\n    {}",
                            number + 1,
                            want.join("\n    "),
                            got.join("\n    ")
                        ));
                    }
                }
                Err(e) => faults.push(format!("{name}:{}: {query}\n  {e}", number + 1)),
            }
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "{name}:{}: {line}", number + 1);
        }
    }
    (count, faults)
}

#[test]
fn scripts() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let (mut count, mut faults) = (0, Vec::new());
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let (n, f) = script(&path.file_name().unwrap().to_string_lossy(), &text);
        assert!(n > 0, "{} evaluates nothing", path.display());
        count += n;
        faults.extend(f);
    }
    assert!(count >= 150, "only {count} evaluations");
    assert!(faults.is_empty(), "{} of {count} failed:\n{}", faults.len(), faults.join("\n"));
}
