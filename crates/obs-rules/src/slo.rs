//! Service level objectives, and the rules that watch them.
//!
//! An objective says which share of events is to be good over a window. From it come recording rules
//! of the share of bad events over several ranges, the error budget that is left, and alerts on the
//! speed at which it burns: over a long range, so that a short burst does not page, and a short one,
//! so that the alert ends with its cause (Google's SRE workbook, chapter 5).

use crate::file::{RuleFile, read};
use obs_promql::duration::{format_ms, parse_ms};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A file of objectives.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SloFile {
    pub slos: Vec<Slo>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slo {
    /// Label `slo` of its series and alerts.
    pub name: String,
    #[serde(default)]
    pub description: String,
    /// Percent of events that are to be good.
    pub objective: f64,
    /// Over which time, `30d`.
    pub window: String,
    pub sli: Sli,
    /// Of its series and alerts.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// What is counted. `$window` stands for the range of time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub enum Sli {
    Bad {
        bad: String,
        total: String,
    },
    Good {
        good: String,
        total: String,
    },
    /// Requests of a histogram that take no longer than a bucket's bound, in the metric's unit.
    Latency {
        latency: String,
        threshold: f64,
        #[serde(default)]
        selector: String,
        #[serde(default)]
        by: Vec<String>,
    },
}

const HOUR_MS: i64 = 3_600_000;

/// Share of the budget that burns in the long range, long and short range, hold, severity.
const BURNS: [(f64, &str, &str, &str, &str); 4] = [
    (0.02, "1h", "5m", "2m", "critical"),
    (0.05, "6h", "30m", "15m", "critical"),
    (0.10, "1d", "2h", "1h", "warning"),
    (0.10, "3d", "6h", "3h", "warning"),
];

/// Ranges that are cheap enough to look at often.
const SHORT_MS: i64 = 6 * HOUR_MS;

impl Slo {
    /// Checks the objective; returns the window in milliseconds.
    fn checked(&self) -> Result<i64, String> {
        let bad = |m: &str| Err(format!("slo {:?}: {m}", self.name));
        if self.name.is_empty() {
            return Err("an SLO needs a name".into());
        }
        if !(self.objective > 0.0 && self.objective < 100.0) {
            return bad("objective is a percentage above 0 and below 100");
        }
        match &self.sli {
            Sli::Bad { bad: one, total } | Sli::Good { good: one, total } => {
                if !one.contains("$window") || !total.contains("$window") {
                    return bad("good, bad and total need $window where their range is");
                }
            }
            Sli::Latency { threshold, .. } if *threshold > 0.0 => {}
            Sli::Latency { .. } => return bad("threshold must be above 0"),
        }
        match parse_ms(&self.window) {
            Some(ms) if ms >= HOUR_MS => Ok(ms),
            _ => bad("window is a time of an hour or more, such as 30d"),
        }
    }

    /// Returns the share of bad events over a range.
    fn error_ratio(&self, range: &str) -> String {
        let over = |e: &str| e.replace("$window", range);
        match &self.sli {
            // No bad event ever: its series is not there, and the share is zero.
            Sli::Bad { bad, total } => {
                let (bad, total) = (over(bad), over(total));
                format!("(({bad}) or ({total}) * 0) / (({total}) > 0)")
            }
            Sli::Good { good, total } => {
                let (good, total) = (over(good), over(total));
                format!("1 - (({good}) or ({total}) * 0) / (({total}) > 0)")
            }
            Sli::Latency { latency, threshold, selector, by } => {
                let inner = selector.trim().trim_start_matches('{').trim_end_matches('}');
                let more = if inner.is_empty() { String::new() } else { format!(", {inner}") };
                // Whole bounds are written with and without their decimal.
                let le =
                    format!("le=~\"{}(\\\\.0)?\"", threshold.to_string().replace('.', "\\\\."));
                let sum = if by.is_empty() {
                    "sum".into()
                } else {
                    format!("sum by ({})", by.join(", "))
                };
                let good = format!("{sum} (rate({latency}_bucket{{{le}{more}}}[{range}]))");
                let total = format!("{sum} (rate({latency}_count{{{inner}}}[{range}]))");
                format!("1 - (({good}) or ({total}) * 0) / (({total}) > 0)")
            }
        }
    }
}

/// Returns the rules of objectives as the text of a rule file.
///
/// # Errors
/// With the objective that is wrong.
pub fn rule_text(slos: &[Slo]) -> Result<String, String> {
    let mut groups = Vec::new();
    for s in slos {
        let window_ms = s.checked()?;
        groups.extend(groups_of(s, window_ms));
    }
    Ok(json!({"groups": groups}).to_string())
}

fn groups_of(s: &Slo, window_ms: i64) -> Vec<Value> {
    let window = format_ms(window_ms);
    // As a person would write them: 1 − 0.999 is not 0.001 in binary.
    let decimal = |x: f64| format!("{x:.10}").trim_end_matches('0').to_owned();
    let budget = decimal(1.0 - s.objective / 100.0);
    let name = |range: &str| format!("slo:sli_error:ratio_rate{range}");
    let of = |metric: &str| format!("{metric}{{slo={:?}}}", s.name);
    let mut labels = s.labels.clone();
    labels.insert("slo".into(), s.name.clone());
    let record =
        |metric: String, expr: String| json!({"record": metric, "expr": expr, "labels": labels});
    let burns: Vec<_> =
        BURNS.iter().filter(|b| parse_ms(b.1).is_some_and(|ms| ms * 4 <= window_ms)).collect();
    let mut ranges: Vec<String> =
        burns.iter().flat_map(|b| [b.1.to_owned(), b.2.to_owned()]).collect();
    ranges.push(window.clone());
    ranges.sort_by_key(|r| parse_ms(r));
    ranges.dedup();
    let (mut often, mut seldom) = (Vec::new(), Vec::new());
    for r in &ranges {
        let is_short = parse_ms(r).is_some_and(|ms| ms <= SHORT_MS);
        let rule = record(name(r), s.error_ratio(r));
        if is_short { &mut often } else { &mut seldom }.push(rule);
    }
    often.push(record(
        "slo:objective:ratio".into(),
        format!("vector({})", decimal(s.objective / 100.0)),
    ));
    seldom.push(record(
        "slo:error_budget_remaining:ratio".into(),
        format!("1 - {} / {budget}", of(&name(&window))),
    ));
    let note = |text: String| {
        let mut all = s.annotations.clone();
        all.entry("summary".into()).or_insert(text);
        if !s.description.is_empty() {
            all.entry("description".into()).or_insert(s.description.clone());
        }
        all
    };
    let mut alerts = Vec::new();
    for (share, long, short, hold, severity) in &burns {
        let long_ms = parse_ms(long).unwrap_or(HOUR_MS);
        let factor = share * window_ms as f64 / long_ms as f64;
        let limit = format!("({factor} * {budget})");
        let mut own = labels.clone();
        own.insert("severity".into(), (*severity).to_owned());
        own.insert("long".into(), (*long).to_owned());
        alerts.push(json!({
            "alert": "SLOErrorBudgetBurn",
            "expr": format!("{} > {limit} and {} > {limit}", of(&name(long)), of(&name(short))),
            "for": hold,
            "labels": own,
            "annotations": note(format!(
                "{} burns its error budget of {window}: {{{{ $value | humanizePercentage }}}} bad over {long}", s.name
            )),
        }));
    }
    let mut own = labels.clone();
    own.insert("severity".into(), "warning".into());
    alerts.push(json!({
        "alert": "SLOMissed",
        "expr": format!("{} > {budget}", of(&name(&window))),
        "labels": own,
        "annotations": note(format!(
            "{} is missed: {{{{ $value | humanizePercentage }}}} bad over {window}", s.name
        )),
    }));
    often.extend(alerts);
    vec![
        json!({"name": format!("slo:{}", s.name), "interval": "30s", "rules": often}),
        json!({"name": format!("slo:{}:long", s.name), "interval": "5m", "rules": seldom}),
    ]
}

/// Reads a file of objectives and returns the rules that watch them.
///
/// # Errors
/// When it is no such file, or an objective is wrong.
pub fn rules(text: &str) -> Result<RuleFile, String> {
    let file: SloFile = serde_saphyr::from_str(text).map_err(|e| {
        let message = e.without_snippet().to_string();
        message.lines().next().unwrap_or_default().to_owned()
    })?;
    let rules = read(&rule_text(&file.slos)?);
    match rules.errors.first() {
        Some(e) => Err(format!("an expression is wrong: {}", e.message)),
        None => Ok(rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit_test;

    const FILE: &str = r#"
slos:
- name: api
  objective: 99.9
  window: 30d
  sli:
    bad: 'sum by (job) (rate(http_requests_total{code=~"5.."}[$window]))'
    total: 'sum by (job) (rate(http_requests_total[$window]))'
  labels: {team: core}
- name: fast
  objective: 95
  window: 1h
  sli: {latency: http_request_duration_seconds, threshold: 0.5, selector: 'job="api"'}
"#;

    /// Runs promtool's kind of test against the rules of the file.
    fn check(tests: &str) {
        let load = |_: &str| {
            let file: SloFile = serde_saphyr::from_str(FILE).unwrap();
            Ok(vec![("slo.yml".to_owned(), rule_text(&file.slos).unwrap())])
        };
        let text = format!("rule_files: [slo.yml]\nevaluation_interval: 1m\ntests:\n{tests}");
        let verdict = unit_test::run(&text, &load, &|_| true).unwrap();
        assert!(verdict.failures.is_empty(), "{:#?}", verdict.failures);
    }

    #[test]
    fn a_fast_burn_pages_and_a_slow_one_does_not_yet() {
        check(
            r#"
- interval: 1m
  input_series:
  - {series: 'http_requests_total{job="a",code="200"}', values: '0+98x300'}
  - {series: 'http_requests_total{job="a",code="500"}', values: '0+2x300'}
  - {series: 'http_requests_total{job="b",code="200"}', values: '0+999x300'}
  - {series: 'http_requests_total{job="b",code="500"}', values: '0+1x300'}
  promql_expr_test:
  - expr: round(slo:sli_error:ratio_rate1h, 0.0001)
    eval_time: 4h
    exp_samples:
    - {labels: '{job="a",slo="api",team="core"}', value: 0.02}
    - {labels: '{job="b",slo="api",team="core"}', value: 0.001}
  - expr: slo:objective:ratio{slo="api"}
    eval_time: 4h
    exp_samples: [{labels: 'slo:objective:ratio{slo="api",team="core"}', value: 0.999}]
  - expr: round(slo:error_budget_remaining:ratio{job="a"})
    eval_time: 4h
    exp_samples: [{labels: '{job="a",slo="api",team="core"}', value: -19}]
  - expr: count by (job, severity, long) (ALERTS{alertname="SLOErrorBudgetBurn", alertstate="firing", long="1h"})
    eval_time: 4h
    exp_samples: [{labels: '{job="a",severity="critical",long="1h"}', value: 1}]
"#,
        );
    }

    #[test]
    fn latency_counts_what_is_within_a_bucket() {
        check(
            r#"
- interval: 1m
  input_series:
  - {series: 'http_request_duration_seconds_bucket{job="api",le="0.5"}', values: '0+90x300'}
  - {series: 'http_request_duration_seconds_count{job="api"}', values: '0+100x300'}
  promql_expr_test:
  - expr: round(slo:sli_error:ratio_rate1h{slo="fast"}, 0.001)
    eval_time: 2h
    exp_samples: [{labels: '{slo="fast"}', value: 0.1}]
  - expr: count(ALERTS{alertname="SLOMissed", slo="fast"})
    eval_time: 2h
    exp_samples: [{labels: '{}', value: 1}]
"#,
        );
    }

    #[test]
    fn what_is_no_objective_is_refused() {
        for (change, want) in [
            (("99.9", "100"), "objective is a percentage"),
            (("30d", "5m"), "window is a time"),
            (("[$window]", "[5m]"), "need $window"),
            (("objective: 95", "objectiv: 95"), "objectiv"),
            (
                ("by (job) (rate(http_requests_total[$window]))", "by (job (rate(x[$window]))"),
                "an expression is wrong",
            ),
        ] {
            let e = rules(&FILE.replace(change.0, change.1)).unwrap_err();
            assert!(e.contains(want), "{e}");
        }
    }
}
