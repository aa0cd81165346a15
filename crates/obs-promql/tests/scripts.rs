//! Runs `tests/scripts/*.test`: load, evaluate, compare. Every instant query is also run as the
//! middle of a range query, which must agree.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

use obs_model::{Budget, Sample, SampleValue, TenantId, TimestampMs};
use obs_promql::{Output, QueryOptions, evaluate_instant, evaluate_range, parse};
use obs_testkit::MemoryStore;
use obs_testkit::script::{self, CommandKind, almost_equal};
use std::collections::BTreeMap;

type Rows = BTreeMap<String, Vec<Option<f64>>>;

fn float(s: &Sample) -> f64 {
    match &s.value {
        SampleValue::Float(f) => *f,
        SampleValue::Histogram(h) => panic!("histogram {h:?} where a float is expected"),
    }
}

fn rows(output: Output, times: &[i64]) -> Rows {
    match output {
        Output::Scalar(s) => [("scalar".to_owned(), vec![Some(float(&s))])].into(),
        Output::String(_, s) => panic!("string result {s:?}"),
        Output::Vector(v) => v
            .into_iter()
            .map(|(l, s)| {
                (if l.is_empty() { "{}".into() } else { l.to_string() }, vec![Some(float(&s))])
            })
            .collect(),
        Output::Matrix(m) => m
            .into_iter()
            .map(|s| {
                let at = |t: &i64| s.samples.iter().find(|x| x.timestamp.millis() == *t).map(float);
                (
                    if s.labels.is_empty() { "{}".into() } else { s.labels.to_string() },
                    times.iter().map(at).collect(),
                )
            })
            .collect(),
    }
}

fn same(got: &Rows, want: &Rows) -> bool {
    let equal = |a: &Option<f64>, b: &Option<f64>| match (a, b) {
        (Some(a), Some(b)) => almost_equal(*a, *b),
        (None, None) => true,
        _ => false,
    };
    got.len() == want.len()
        && got.iter().zip(want).all(|((gl, gv), (wl, wv))| {
            let n = gv.len().max(wv.len());
            let at = |v: &[Option<f64>], i| v.get(i).copied().flatten();
            gl == wl && (0..n).all(|i| equal(&at(gv, i), &at(wv, i)))
        })
}

fn run(name: &str, text: &str) {
    let mut store = MemoryStore::default();
    let tenant = TenantId::default();
    let ms = TimestampMs::from_millis;
    let delay_name_removal = name == "delayed_names.test";
    let options = QueryOptions { delay_name_removal, ..QueryOptions::default() };
    let budget = || Budget::new(1_000_000, 1 << 30);
    for command in script::parse(text) {
        let place = format!("{name}:{}", command.line);
        match command.kind {
            CommandKind::Clear => store = MemoryStore::default(),
            CommandKind::Load(series) => store.series.extend(series),
            CommandKind::EvalFail { at_ms, query, text } => {
                let error = match parse(&query) {
                    Err(e) => e.to_string(),
                    Ok(e) => evaluate_instant(&store, &tenant, &e, ms(at_ms), options, &budget())
                        .err()
                        .map_or_else(|| panic!("{place}: {query} must fail"), |e| e.to_string()),
                };
                assert!(error.contains(&text), "{place}: {query}: {error}");
            }
            CommandKind::Eval { start_ms, end_ms, step_ms, is_range, query, expect } => {
                let expr = parse(&query).unwrap_or_else(|e| panic!("{place}: {e}"));
                let want: Rows = expect
                    .into_iter()
                    .map(|(l, v)| (if l.is_empty() { "{}".into() } else { l }, v))
                    .collect();
                let times: Vec<i64> = (start_ms..=end_ms).step_by(step_ms as usize).collect();
                let out = if is_range {
                    evaluate_range(
                        &store,
                        &tenant,
                        &expr,
                        (ms(start_ms), ms(end_ms)),
                        step_ms,
                        options,
                        &budget(),
                    )
                } else {
                    evaluate_instant(&store, &tenant, &expr, ms(start_ms), options, &budget())
                };
                let got = rows(out.unwrap_or_else(|e| panic!("{place}: {query}: {e}")).0, &times);
                assert!(same(&got, &want), "{place}: {query}\n got {got:?}\nwant {want:?}");
                if !is_range
                    && !want.contains_key("scalar")
                    && !query.contains('@')
                    && expr.value_type() != obs_promql::ast::ValueType::Matrix
                {
                    let around = (ms(start_ms - 60_000), ms(start_ms + 60_000));
                    let out =
                        evaluate_range(&store, &tenant, &expr, around, 60_000, options, &budget());
                    let mut got = rows(
                        out.unwrap_or_else(|e| panic!("{place} as range: {e}")).0,
                        &[start_ms],
                    );
                    got.retain(|_, v| v.iter().any(Option::is_some));
                    assert!(
                        same(&got, &want),
                        "{place} as range: {query}\n got {got:?}\nwant {want:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn scripts() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        run(path.file_name().unwrap().to_str().unwrap(), &std::fs::read_to_string(&path).unwrap());
        seen += 1;
    }
    assert!(seen >= 3);
}
