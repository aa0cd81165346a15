//! Reader of query scripts, in the spirit of Prometheus' test language.
//!
//! ```text
//! load 1m
//!   metric{label="x"}  0+1x10 _ stale 5
//! eval 5m sum(metric)
//!   {} 5
//! eval_range 0 2m 1m metric
//!   metric{label="x"} 0 1 2
//! eval_fail 0 rate(metric)
//!   expected type range vector in call to function "rate"
//! clear
//! ```
//! A `#` starts a comment line. Result lines are compared as sets; `_` is a missing step.
//! The line under a failure is a part of its text; without one any text will do.

use obs_model::{Labels, STALE_NAN_BITS, Sample, Series};

/// One command of a script, with the line it starts on.
#[derive(Debug, Clone)]
pub struct Command {
    pub line: usize,
    pub kind: CommandKind,
}

#[derive(Debug, Clone)]
pub enum CommandKind {
    Clear,
    Load(Vec<Series>),
    /// Expected rows: a label set as written and the values by step (`None` is a gap).
    Eval {
        start_ms: i64,
        end_ms: i64,
        step_ms: i64,
        is_range: bool,
        query: String,
        expect: Vec<(String, Vec<Option<f64>>)>,
    },
    EvalFail {
        at_ms: i64,
        query: String,
        /// What the error's text contains.
        text: String,
    },
}

fn duration_ms(text: &str) -> i64 {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit = match unit {
            "ms" => 1.0,
            "" | "s" => 1000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            "d" => 86_400_000.0,
            other => panic!("unknown unit {other:?} in {text:?}"),
        };
        total += number.parse::<f64>().unwrap_or_else(|_| panic!("bad duration {text:?}")) * unit;
        rest = tail;
    }
    total as i64
}

fn number(text: &str) -> f64 {
    match text {
        "NaN" => f64::NAN,
        "Inf" | "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "stale" => f64::from_bits(STALE_NAN_BITS),
        _ => text.parse().unwrap_or_else(|_| panic!("bad number {text:?}")),
    }
}

/// Expands `1+2x3`, `4x2`, `_`, `_x3`, `stale`, numbers.
fn values(text: &str) -> Vec<Option<f64>> {
    let mut out = Vec::new();
    for item in text.split_whitespace() {
        let (body, times) =
            item.rsplit_once('x').map_or((item, None), |(b, n)| (b, n.parse::<usize>().ok()));
        if body == "_" {
            out.extend(std::iter::repeat_n(None, times.unwrap_or(1)));
            continue;
        }
        let Some(times) = times else {
            out.push(Some(number(item)));
            continue;
        };
        let split =
            body.char_indices().skip(1).find(|(_, c)| matches!(c, '+' | '-')).map(|(i, _)| i);
        let (from, by) = split.map_or((body, "0"), |i| body.split_at(i));
        let (from, by) = (number(from), number(by));
        out.extend((0..=times).map(|i| Some(from + by * i as f64)));
    }
    out
}

/// Splits `name{labels} rest` after the label set.
fn split_series(line: &str) -> (&str, &str) {
    let end = match line.find('{') {
        Some(open) if line.get(..open).is_some_and(|n| !n.contains(' ')) => {
            line.find('}').map_or(line.len(), |i| i + 1)
        }
        _ => line.find(' ').unwrap_or(line.len()),
    };
    line.split_at(end)
}

/// Parses `name{a="b"}`.
pub fn labels(text: &str) -> Labels {
    let (name, rest) = text.split_once('{').unwrap_or((text, "}"));
    let inner = rest.trim_end_matches('}');
    let pairs = inner.split(',').filter(|p| !p.trim().is_empty()).map(|p| {
        let (n, v) = p.split_once('=').unwrap_or_else(|| panic!("bad label {p:?}"));
        (n.trim().to_owned(), v.trim().trim_matches('"').to_owned())
    });
    Labels::from_pairs(pairs.chain([("__name__".to_owned(), name.trim().to_owned())]))
}

/// Parses a script. Panics with the offending text, as fits a test.
pub fn parse(text: &str) -> Vec<Command> {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .map(|(i, l)| (i + 1, l))
        .filter(|(_, l)| !l.trim().is_empty() && !l.trim().starts_with('#'))
        .collect();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some((line, head)) = lines.get(at).copied() {
        at += 1;
        let mut body = Vec::new();
        while let Some((_, l)) = lines.get(at).filter(|(_, l)| l.starts_with(' ')) {
            body.push(l.trim());
            at += 1;
        }
        let words: Vec<&str> = head.splitn(3, ' ').collect();
        let kind = match words.as_slice() {
            ["clear"] => CommandKind::Clear,
            ["load", step] => {
                let step = duration_ms(step);
                let series = |l: &&str| {
                    let (name, rest) = split_series(l);
                    let samples = values(rest)
                        .into_iter()
                        .enumerate()
                        .filter_map(|(i, v)| Some(Sample::float(i as i64 * step, v?)));
                    Series { labels: labels(name), samples: samples.collect() }
                };
                CommandKind::Load(body.iter().map(series).collect())
            }
            ["eval_fail", t, query] => CommandKind::EvalFail {
                at_ms: duration_ms(t),
                query: (*query).to_owned(),
                text: body.join("\n"),
            },
            ["eval", t, query] => {
                let t = duration_ms(t);
                CommandKind::Eval {
                    start_ms: t,
                    end_ms: t,
                    step_ms: 1,
                    is_range: false,
                    query: (*query).to_owned(),
                    expect: expectations(&body),
                }
            }
            ["eval_range", ..] => {
                let words: Vec<&str> = head.splitn(5, ' ').collect();
                let [_, start, end, step, query] = words.as_slice() else {
                    panic!("line {line}: eval_range START END STEP QUERY")
                };
                CommandKind::Eval {
                    start_ms: duration_ms(start),
                    end_ms: duration_ms(end),
                    step_ms: duration_ms(step),
                    is_range: true,
                    query: (*query).to_owned(),
                    expect: expectations(&body),
                }
            }
            _ => panic!("line {line}: unknown command {head:?}"),
        };
        out.push(Command { line, kind });
    }
    out
}

fn expectations(body: &[&str]) -> Vec<(String, Vec<Option<f64>>)> {
    let row = |l: &&str| {
        let scalar = !l.contains('{')
            && l.split_whitespace().count() == 1
            && l.chars().next().is_some_and(|c| c.is_ascii_digit() || "+-NI".contains(c));
        if scalar {
            return ("scalar".to_owned(), values(l));
        }
        let (name, rest) = split_series(l);
        (labels(name).to_string(), values(rest))
    };
    body.iter().map(row).collect()
}

/// Compares with a relative tolerance of 1e-9; NaN equals NaN.
pub fn almost_equal(a: f64, b: f64) -> bool {
    (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}
