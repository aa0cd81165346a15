//! The settings of the processors `filter` and `transform`.

use super::{Drops, Matching, RawMatch, Statements, Step};
use crate::context::Of;
use crate::ottl::{condition, statement};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawFilter {
    #[serde(rename = "error_mode")]
    _error_mode: Option<String>,
    traces: RawConditions,
    metrics: RawConditions,
    logs: RawConditions,
    spans: Option<RawSides>,
}

/// Conditions by kind, or the older form of two sides.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConditions {
    resource: Vec<String>,
    scope: Vec<String>,
    span: Vec<String>,
    spanevent: Vec<String>,
    metric: Vec<String>,
    datapoint: Vec<String>,
    log_record: Vec<String>,
    include: Option<RawMatch>,
    exclude: Option<RawMatch>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSides {
    include: Option<RawMatch>,
    exclude: Option<RawMatch>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTransform {
    #[serde(rename = "error_mode")]
    _error_mode: Option<String>,
    #[serde(rename = "flatten_data")]
    _flatten_data: Option<bool>,
    trace_statements: Vec<RawStatements>,
    metric_statements: Vec<RawStatements>,
    log_statements: Vec<RawStatements>,
}

/// A statement alone, whose paths say what they are about, or several with their context.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawStatements {
    One(String),
    Group(RawGroup),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    context: Option<String>,
    #[serde(default)]
    conditions: Vec<String>,
    statements: Vec<String>,
    #[serde(rename = "error_mode")]
    _error_mode: Option<String>,
}

/// Reads the processor `filter`.
pub(crate) fn filter(raw: RawFilter) -> Result<Vec<Step>, String> {
    let mut out = Vec::new();
    let mut drops = Vec::new();
    for (signal, c) in [("traces", raw.traces), ("metrics", raw.metrics), ("logs", raw.logs)] {
        let lists = [
            ("resource", Of::Resource, c.resource, None),
            ("scope", Of::Scope, c.scope, None),
            ("span", Of::Span, c.span, Some("traces")),
            ("spanevent", Of::Event, c.spanevent, Some("traces")),
            ("metric", Of::Metric, c.metric, Some("metrics")),
            ("datapoint", Of::Point, c.datapoint, Some("metrics")),
            ("log_record", Of::Log, c.log_record, Some("logs")),
        ];
        for (name, of, texts, only) in lists {
            if texts.is_empty() {
                continue;
            }
            if only.is_some_and(|o| o != signal) {
                return Err(format!("{signal}.{name}: there is no such condition"));
            }
            let conditions: Result<_, _> = texts.iter().map(|t| condition(t, of)).collect();
            let conditions = conditions.map_err(|e: String| format!("{signal}.{name}: {e}"))?;
            drops.push(Drops { of, conditions });
        }
        if c.include.is_some() || c.exclude.is_some() {
            if signal == "traces" {
                return Err("traces.include: write spans.include".into());
            }
            let sides = Matching::read(c.include, c.exclude);
            out.push(Step::Keep(sides.map_err(|e| format!("{signal}.{e}"))?));
        }
    }
    if let Some(s) = raw.spans {
        let sides = Matching::read(s.include, s.exclude);
        out.push(Step::Keep(sides.map_err(|e| format!("spans.{e}"))?));
    }
    if !drops.is_empty() {
        out.push(Step::Drop(drops));
    }
    Ok(out)
}

/// Guesses what a statement without a context is about: the narrowest thing that its paths name.
fn context_of(text: &str, kinds: &[(&'static str, Of)]) -> Option<Of> {
    let names = |word: &str| {
        text.match_indices(&format!("{word}.")).any(|(at, _)| {
            let before = text.get(..at).and_then(|t| t.chars().last());
            !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        })
    };
    kinds.iter().rev().find(|(word, _)| names(word)).map(|k| k.1)
}

/// Reads the processor `transform`.
pub(crate) fn transform(raw: RawTransform) -> Result<Vec<Step>, String> {
    const SHARED: [(&str, Of); 3] =
        [("resource", Of::Resource), ("scope", Of::Scope), ("instrumentation_scope", Of::Scope)];
    type Kinds = [(&'static str, Of)];
    let own: [(&str, Vec<RawStatements>, &Kinds); 3] = [
        ("trace_statements", raw.trace_statements, &[("span", Of::Span), ("spanevent", Of::Event)]),
        (
            "metric_statements",
            raw.metric_statements,
            &[("metric", Of::Metric), ("datapoint", Of::Point)],
        ),
        ("log_statements", raw.log_statements, &[("log", Of::Log)]),
    ];
    let mut out = Vec::new();
    for (name, groups, own) in own {
        let kinds: Vec<(&'static str, Of)> = SHARED.iter().chain(own).copied().collect();
        for group in groups {
            let group = match group {
                RawStatements::One(text) => RawGroup {
                    context: None,
                    conditions: Vec::new(),
                    statements: vec![text],
                    _error_mode: None,
                },
                RawStatements::Group(g) => g,
            };
            let texts = || group.conditions.iter().chain(&group.statements);
            let of = match &group.context {
                Some(c) => kinds.iter().find(|k| k.0 == c).map(|k| k.1),
                // The narrowest of all that are named is what the group runs on.
                None => {
                    let rank = |of: &Of| kinds.iter().position(|k| k.1 == *of);
                    texts().filter_map(|t| context_of(t, &kinds)).max_by_key(rank)
                }
            };
            let of = of.ok_or_else(|| {
                let known: Vec<&str> = kinds.iter().map(|k| k.0).collect();
                format!("{name}: a context is wanted, one of {}", known.join(", "))
            })?;
            let told = |e: String| format!("{name}: {e}");
            let conditions: Result<_, _> =
                group.conditions.iter().map(|t| condition(t, of)).collect();
            let statements: Result<_, _> =
                group.statements.iter().map(|t| statement(t, of)).collect();
            let (conditions, statements) = (conditions.map_err(told)?, statements.map_err(told)?);
            // One step each: they run in the order of the file.
            out.push(Step::Transform(vec![Statements { of, conditions, statements }]));
        }
    }
    Ok(out)
}
