//! Looks for rules that are valid and still wrong.

use crate::file::{RuleFile, RuleGroup};
use obs_promql::ast::{BinaryOp, Expr, Matching};
use std::collections::{BTreeMap, BTreeSet};

/// Something that is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub group: String,
    pub rule: String,
    pub line: u64,
    /// A word for the kind, to be switched off by.
    pub kind: &'static str,
    pub message: String,
}

/// Calls `f` for an expression and everything in it.
pub fn walk<'e>(e: &'e Expr, f: &mut dyn FnMut(&'e Expr)) {
    f(e);
    match e {
        Expr::Number(..) | Expr::String(..) | Expr::Selector(_) | Expr::Matrix { .. } => {}
        Expr::Subquery { expr, .. } | Expr::Paren(expr) | Expr::Negate(expr, _) => walk(expr, f),
        Expr::Binary { lhs, rhs, .. } => {
            walk(lhs, f);
            walk(rhs, f);
        }
        Expr::Aggregate { expr, param, .. } => {
            if let Some(p) = param {
                walk(p, f);
            }
            walk(expr, f);
        }
        Expr::Call { args, .. } => args.iter().for_each(|a| walk(a, f)),
    }
}

/// Returns the metric name of each selector, `None` where none is given as it is.
pub fn metric_names(e: &Expr) -> Vec<Option<String>> {
    let mut out = Vec::new();
    walk(e, &mut |e| {
        if let Expr::Selector(s) | Expr::Matrix { selector: s, .. } = e {
            out.push(s.metric_name().map(str::to_owned));
        }
    });
    out
}

/// Returns the one selector below functions that keep labels apart, if there is nothing else.
fn bare_metric(e: &Expr) -> Option<(&str, usize)> {
    match e.unwrap_parens() {
        Expr::Selector(s) | Expr::Matrix { selector: s, .. } => {
            Some((s.metric_name()?, s.matchers.len()))
        }
        Expr::Call { args, function, .. }
            if function.args.first().is_some_and(|a| *a == obs_promql::ast::ValueType::Matrix) =>
        {
            bare_metric(args.first()?)
        }
        _ => None,
    }
}

/// Returns whether a denominator cannot be a sample of zero: it is filtered, or a number.
fn is_guarded(e: &Expr) -> bool {
    match e.unwrap_parens() {
        Expr::Number(n, _) => *n != 0.0,
        Expr::Binary { op, bool_modifier, .. } if op.is_comparison() => !bool_modifier,
        Expr::Binary { op: BinaryOp::Or | BinaryOp::Unless | BinaryOp::And, lhs, .. } => {
            is_guarded(lhs)
        }
        Expr::Aggregate { op, expr, .. } => {
            matches!(op, obs_promql::ast::AggregateOp::Count | obs_promql::ast::AggregateOp::Group)
                || is_guarded(expr)
        }
        Expr::Call { function, args, .. } => match function.name {
            "clamp_min" => matches!(args.get(1), Some(Expr::Number(n, _)) if *n > 0.0),
            "scalar" | "vector" | "sum_over_time" | "avg_over_time" => {
                args.first().is_some_and(is_guarded)
            }
            "time" | "pi" => true,
            _ => false,
        },
        _ => false,
    }
}

fn look(e: &Expr, is_alert: bool, found: &mut dyn FnMut(&'static str, String)) {
    let mut divisions = Vec::new();
    walk(e, &mut |e| {
        let Expr::Binary { op: BinaryOp::Div, lhs, rhs, matching, .. } = e else { return };
        if let (Some((a, n)), Some((b, m))) = (bare_metric(lhs), bare_metric(rhs))
            && a == b
            && n != m
            && *matching == Matching::default()
        {
            found(
                "ratio-without-aggregation",
                format!(
                    "both sides of {e} are the same metric without aggregation: each series is divided by itself, so the result is always 1; aggregate both sides by the same labels"
                ),
            );
            return;
        }
        if rhs.value_type() == obs_promql::ast::ValueType::Vector && !is_guarded(rhs) {
            divisions.push(rhs.to_string());
        }
    });
    // A rule that writes a ratio may write NaN; one that alerts on it fires on +Inf.
    if is_alert && let Some(d) = divisions.first() {
        found(
            "division-by-zero",
            format!("the divisor {d} can be 0, which gives +Inf and fires; filter it with > 0"),
        );
    }
}

/// Looks at the groups of a file; with `known`, also for metrics that nothing provides.
pub fn lint(file: &RuleFile, known: Option<&BTreeSet<String>>) -> Vec<Finding> {
    let recorded: BTreeSet<&str> =
        file.groups.iter().flat_map(|g| g.rules.iter().map(|r| r.name())).collect();
    let mut out = Vec::new();
    let mut seen: BTreeMap<(String, String), u64> = BTreeMap::new();
    for g in &file.groups {
        for r in &g.rules {
            let mut found = |kind, message| {
                out.push(Finding {
                    group: g.name.clone(),
                    rule: r.name().to_owned(),
                    line: r.line,
                    kind,
                    message,
                });
            };
            let key = (r.name().to_owned(), format!("{:?}{}", r.labels, r.is_alert()));
            if !r.is_alert()
                && let Some(first) = seen.insert(key, r.line)
            {
                found("duplicate", format!("the same series is recorded in line {first}"));
            }
            let Some(e) = &r.query.expr else { continue };
            look(e, r.is_alert(), &mut found);
            let Some(known) = known else { continue };
            for name in metric_names(e).into_iter().flatten() {
                if !known.contains(&name) && !recorded.contains(name.as_str()) {
                    found("unknown-metric", format!("nothing provides the metric {name}"));
                }
            }
        }
    }
    out
}

/// Returns the metrics that rules read, for checks against what is stored.
pub fn metrics_of(groups: &[RuleGroup]) -> BTreeSet<String> {
    let exprs = groups.iter().flat_map(|g| &g.rules).filter_map(|r| r.query.expr.as_ref());
    exprs.flat_map(metric_names).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(expr: &str) -> Vec<&'static str> {
        let text = format!("groups:\n- name: g\n  rules:\n  - alert: A\n    expr: '{expr}'\n");
        let file = crate::file::read(&text);
        assert_eq!(file.errors, [], "{expr}");
        lint(&file, None).into_iter().map(|f| f.kind).collect()
    }

    #[test]
    fn defects_are_found_and_good_rules_pass() {
        let cases: [(&str, &[&str]); 8] = [
            (
                "rate(http_requests_total{status=~\"5..\"}[5m]) / rate(http_requests_total[5m]) > 0.05",
                &["ratio-without-aggregation"],
            ),
            ("sum(rate(a{s=\"5\"}[5m])) / sum(rate(a[5m])) > 0.05", &["division-by-zero"]),
            ("sum(rate(a{s=\"5\"}[5m])) / (sum(rate(a[5m])) > 0) > 0.05", &[]),
            ("used_bytes / max_bytes > 0.9", &["division-by-zero"]),
            ("used_bytes / (max_bytes > 0) > 0.9", &[]),
            ("a / clamp_min(b, 1) > 2", &[]),
            ("a / 100 > 2", &[]),
            ("a / count(b) > 2", &[]),
        ];
        for (expr, want) in cases {
            assert_eq!(kinds(expr), want, "{expr}");
        }
    }

    #[test]
    fn what_nothing_provides_is_named() {
        let file = crate::file::read(
            "groups:\n- name: g\n  rules:\n  - record: r\n    expr: up\n  - record: s\n    expr: r + nope\n  - record: s\n    expr: up\n",
        );
        let known = BTreeSet::from(["up".to_owned()]);
        let found: Vec<_> = lint(&file, Some(&known)).into_iter().map(|f| f.kind).collect();
        assert_eq!(found, ["unknown-metric", "duplicate"]);
    }
}
