//! Unit tests of rules, in promtool's format and with its verdicts.

use crate::alert::State;
use crate::file::{RuleFile, read};
use crate::group::{Group, Options};
use crate::{Engine, Query, Rows, series_text};
use obs_model::{
    Budget, Labels, Matcher, MetricMetadata, Sample, SampleValue, SelectError, SelectSeries,
    Series, SeriesSelection, TenantId, TimestampMs, TimestampNs,
};
use obs_promql::duration::{format_ms, parse_ms};
use obs_promql::{Output, QueryOptions, evaluate_instant, format_float};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    rule_files: Vec<String>,
    evaluation_interval: Option<String>,
    #[serde(default)]
    group_eval_order: Vec<String>,
    #[serde(default)]
    fuzzy_compare: bool,
    #[serde(default)]
    tests: Vec<RawTest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTest {
    interval: Option<String>,
    #[serde(default)]
    input_series: Vec<RawSeries>,
    #[serde(default)]
    alert_rule_test: Vec<RawAlertTest>,
    #[serde(default)]
    promql_expr_test: Vec<RawExprTest>,
    #[serde(default)]
    external_labels: BTreeMap<String, String>,
    #[serde(default)]
    external_url: String,
    #[serde(default)]
    name: String,
    start_timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSeries {
    series: String,
    values: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAlertTest {
    #[serde(default)]
    eval_time: Option<String>,
    alertname: String,
    #[serde(default)]
    exp_alerts: Option<Vec<RawAlert>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAlert {
    #[serde(default)]
    exp_labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    exp_annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExprTest {
    expr: String,
    #[serde(default)]
    eval_time: Option<String>,
    #[serde(default)]
    exp_samples: Option<Vec<RawSample>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSample {
    #[serde(default)]
    labels: String,
    #[serde(default)]
    value: f64,
    #[serde(default)]
    histogram: String,
}

/// Series of a test, in memory.
#[derive(Debug, Default)]
struct Memory {
    /// Step of subqueries that name none.
    step_ms: i64,
    series: RwLock<BTreeMap<Labels, BTreeMap<i64, SampleValue>>>,
}

impl Memory {
    fn add(&self, points: Vec<(Labels, Sample)>) {
        let mut all = self.series.write().unwrap_or_else(PoisonError::into_inner);
        for (labels, s) in points {
            all.entry(labels).or_default().insert(s.timestamp.millis(), s.value);
        }
    }
}

impl SelectSeries for Memory {
    fn select(
        &self,
        _: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Series>, SelectError> {
        let all = self.series.read().unwrap_or_else(PoisonError::into_inner);
        let range = selection.start.millis()..=selection.end.millis();
        let mut out = Vec::new();
        for (labels, samples) in all.iter() {
            if range.is_empty() || !Matcher::all_match(selection.matchers, labels) {
                continue;
            }
            let point = |(t, v): (&i64, &SampleValue)| Sample {
                timestamp: TimestampMs::from_millis(*t),
                value: v.clone(),
            };
            let samples: Vec<Sample> = samples.range(range.clone()).map(point).collect();
            budget.take(samples.len(), samples.len() * 16)?;
            if !samples.is_empty() {
                out.push(Series { labels: labels.clone(), samples });
            }
        }
        Ok(out)
    }

    fn label_sets(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        Ok(self.select(tenant, selection, budget)?.into_iter().map(|s| s.labels).collect())
    }

    fn metadata(&self, _: &TenantId) -> BTreeMap<String, MetricMetadata> {
        BTreeMap::new()
    }
}

impl Engine for Memory {
    fn instant(&self, query: &Query, at_ms: i64) -> Result<Rows, String> {
        let Some(expr) = &query.expr else {
            return Err("only PromQL rules can be tested".into());
        };
        self.promql(expr, at_ms)
    }

    fn promql(&self, expr: &obs_promql::ast::Expr, at_ms: i64) -> Result<Rows, String> {
        let budget = Budget::new(50_000_000, 1 << 30);
        let at = TimestampMs::from_millis(at_ms);
        let options = QueryOptions { default_step_ms: self.step_ms, ..QueryOptions::default() };
        let out = evaluate_instant(self, &TenantId::default(), expr, at, options, &budget);
        match out.map_err(|e| e.to_string())?.0 {
            Output::Scalar(s) => Ok(vec![(Labels::default(), s.value)]),
            Output::Vector(rows) => Ok(rows.into_iter().map(|(l, s)| (l, s.value)).collect()),
            _ => Err("rule result is not a vector or scalar".into()),
        }
    }
}

/// What a test file came to: nothing, or each failure's text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub failures: Vec<String>,
}

fn time(text: Option<&str>, default: i64) -> Result<i64, String> {
    match text {
        None | Some("") => Ok(default),
        Some("0") => Ok(0),
        Some(t) => parse_ms(t).ok_or_else(|| format!("not a valid duration string: {t:?}")),
    }
}

fn map_text(m: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = m.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

type Shown = (BTreeMap<String, String>, BTreeMap<String, String>);

fn alerts_text(list: &[Shown]) -> String {
    if list.is_empty() {
        return "[]".into();
    }
    let mut out = String::from("[\n");
    for (i, (labels, annotations)) in list.iter().enumerate() {
        out.push_str(&format!(
            "            {i}:\n              Labels:{}\n              Annotations:{}\n",
            map_text(labels),
            map_text(annotations)
        ));
    }
    out + "            ]"
}

fn close(a: f64, b: f64, fuzzy: bool) -> bool {
    let same = (a.is_nan() && b.is_nan()) || a == b;
    same || (fuzzy && (a - b).abs() <= 1e-13 * a.abs().max(b.abs()))
}

/// Reads the rule files that a pattern names: name and text of each.
pub type LoadRules<'a> = &'a dyn Fn(&str) -> Result<Vec<(String, String)>, String>;

/// Runs the tests of a file. `load` reads the rule files that it names, relative to it, and
/// expands patterns.
///
/// # Errors
/// When the file is no test file or a rule file cannot be used.
pub fn run(
    text: &str,
    load: LoadRules<'_>,
    only: &dyn Fn(&str) -> bool,
) -> Result<Verdict, String> {
    let raw: RawFile = serde_saphyr::from_str(text).map_err(|e| {
        e.without_snippet().to_string().lines().next().unwrap_or_default().to_owned()
    })?;
    let interval = time(raw.evaluation_interval.as_deref(), 60_000)?.max(1);
    let mut files: Vec<(String, RuleFile)> = Vec::new();
    for pattern in &raw.rule_files {
        for (name, text) in load(pattern)? {
            let file = read(&text);
            if let Some(e) = file.errors.first() {
                return Err(format!("{name}: {e}"));
            }
            files.push((name, file));
        }
    }
    let mut verdict = Verdict::default();
    for t in raw.tests.iter().filter(|t| only(&t.name)) {
        let label = if t.name.is_empty() { String::new() } else { format!("name: {},\n", t.name) };
        let mut fail = |text: String| verdict.failures.push(format!("{label}{text}"));
        if let Err(e) = one(t, &files, interval, &raw, &mut fail) {
            fail(e);
        }
    }
    Ok(verdict)
}

fn one(
    t: &RawTest,
    files: &[(String, RuleFile)],
    interval: i64,
    raw: &RawFile,
    fail: &mut dyn FnMut(String),
) -> Result<(), String> {
    let start = match t.start_timestamp.as_deref() {
        None => 0,
        Some(s) => match s.parse::<i64>() {
            Ok(seconds) => seconds * 1000,
            Err(_) => TimestampNs::parse_rfc3339(s)
                .map(|t| t.to_millis().millis())
                .ok_or_else(|| format!("bad start_timestamp {s:?}"))?,
        },
    };
    let step = time(t.interval.as_deref(), interval)?.max(1);
    let memory = Memory { step_ms: interval, ..Memory::default() };
    for s in &t.input_series {
        let labels = series_text::labels(&s.series)?;
        let values = series_text::values(&s.values).map_err(|e| format!("{}: {e}", s.series))?;
        let point = |(i, v): (usize, Option<SampleValue>)| {
            let timestamp = TimestampMs::from_millis(start + i as i64 * step);
            Some((labels.clone(), Sample { timestamp, value: v? }))
        };
        memory.add(values.into_iter().enumerate().filter_map(point).collect());
    }
    let options = Options {
        external_labels: t.external_labels.clone(),
        external_url: t.external_url.clone(),
        interval_ms: interval,
        query_offset_ms: 0,
        resend_ms: 60_000,
    };
    let mut groups: Vec<Group> = files
        .iter()
        .flat_map(|(name, f)| f.groups.iter().map(|g| Group::new(name, g, &options)))
        .collect();
    groups.sort_by_key(|g| {
        raw.group_eval_order.iter().position(|n| *n == g.name).unwrap_or(usize::MAX)
    });
    let mut alert_times: BTreeMap<i64, Vec<&RawAlertTest>> = BTreeMap::new();
    for a in &t.alert_rule_test {
        alert_times.entry(time(a.eval_time.as_deref(), 0)?).or_default().push(a);
    }
    let expr_times = t
        .promql_expr_test
        .iter()
        .map(|e| time(e.eval_time.as_deref(), 0))
        .collect::<Result<Vec<_>, _>>()?;
    let last = alert_times.keys().chain(&expr_times).max().copied().unwrap_or(0);
    let mut at = 0;
    let mut pending = alert_times.into_iter().peekable();
    while at <= last {
        for g in &mut groups {
            // A group runs at its own interval.
            if at % g.interval_ms.max(1) != 0 {
                continue;
            }
            g.evaluate(&memory, &options, start + at, &|_| None, &mut |points| {
                memory.add(points);
                Ok(())
            });
            for r in &g.rules {
                if let crate::group::Health::Bad(e) = &r.health {
                    fail(format!("    rule: {}, time: {}, err: {e}", r.rule.name(), format_ms(at)));
                }
            }
        }
        // Alerts are asked for between this evaluation and the next.
        while let Some((when, tests)) = pending.next_if(|(when, _)| *when < at + interval) {
            tests.iter().for_each(|test| check_alerts(test, &groups, when, fail));
        }
        at += interval;
    }
    for (e, when) in t.promql_expr_test.iter().zip(expr_times) {
        check_expr(e, &memory, start, when, raw.fuzzy_compare, fail);
    }
    Ok(())
}

fn check_alerts(t: &RawAlertTest, groups: &[Group], when: i64, fail: &mut dyn FnMut(String)) {
    let mut got: Vec<Shown> = Vec::new();
    let mut known = false;
    for r in groups.iter().flat_map(|g| &g.rules) {
        if !r.rule.is_alert() || r.rule.name() != t.alertname {
            continue;
        }
        known = true;
        for a in r.alerts.active().into_iter().filter(|a| a.state == State::Firing) {
            let labels = a.labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            got.push((labels, a.annotations.clone()));
        }
    }
    let mut want: Vec<Shown> = t
        .exp_alerts
        .iter()
        .flatten()
        .map(|a| {
            let mut labels = a.exp_labels.clone().unwrap_or_default();
            labels.insert("alertname".into(), t.alertname.clone());
            labels.retain(|_, v| !v.is_empty());
            (labels, a.exp_annotations.clone().unwrap_or_default())
        })
        .collect();
    got.sort();
    want.sort();
    if got != want {
        let hint = if known { "" } else { " (no rule has this name)" };
        fail(format!(
            "    alertname: {}, time: {}, {hint}\n        exp:{}, \n        got:{}",
            t.alertname,
            format_ms(when),
            alerts_text(&want),
            alerts_text(&got)
        ));
    }
}

fn value_text(v: &SampleValue) -> String {
    match v {
        SampleValue::Float(f) => format_float(*f),
        SampleValue::Histogram(h) => format!("{h:?}"),
    }
}

fn check_expr(
    t: &RawExprTest,
    memory: &Memory,
    start: i64,
    when: i64,
    fuzzy: bool,
    fail: &mut dyn FnMut(String),
) {
    let head = format!("    expr: {:?}, time: {},", t.expr, format_ms(when));
    let run = obs_promql::parse(&t.expr)
        .map_err(|e| e.to_string())
        .and_then(|e| memory.promql(&e, start + when));
    let mut got: Vec<(Labels, SampleValue)> = match run {
        Ok(rows) => rows,
        Err(e) => return fail(format!("{head} err: {e}")),
    };
    let read = |s: &RawSample| {
        let value = if s.histogram.is_empty() {
            SampleValue::Float(s.value)
        } else {
            let inner = s.histogram.trim().trim_start_matches("{{").trim_end_matches("}}");
            SampleValue::Histogram(series_text::histogram(inner)?.into())
        };
        Ok((series_text::labels(&s.labels)?, value))
    };
    let want: Result<Vec<_>, String> = t.exp_samples.iter().flatten().map(read).collect();
    let mut want = match want {
        Ok(w) => w,
        Err(e) => return fail(format!("{head} err: {e}")),
    };
    got.sort_by(|a, b| a.0.cmp(&b.0));
    want.sort_by(|a, b| a.0.cmp(&b.0));
    let equal = |(g, w): (&(Labels, SampleValue), &(Labels, SampleValue))| {
        g.0 == w.0
            && match (&g.1, &w.1) {
                (SampleValue::Float(a), SampleValue::Float(b)) => close(*a, *b, fuzzy),
                (SampleValue::Histogram(a), SampleValue::Histogram(b)) => a.is_equal(b),
                _ => false,
            }
    };
    if got.len() != want.len() || !got.iter().zip(&want).all(equal) {
        let text = |rows: &[(Labels, SampleValue)]| {
            if rows.is_empty() {
                return "nil".to_owned();
            }
            let one =
                |(l, v): &(Labels, SampleValue)| format!("\n            {l} {}", value_text(v));
            rows.iter().map(one).collect::<String>()
        };
        fail(format!("{head}\n        exp: {}\n        got: {}", text(&want), text(&got)));
    }
}

/// What a group came to: firing alerts with their annotations, and a recorded series' values.
#[cfg(test)]
pub(crate) struct Simulated {
    pub(crate) firing: Vec<(Labels, BTreeMap<String, String>)>,
    pub(crate) series: BTreeMap<String, f64>,
}

/// Runs a group every minute over series with one value a minute, until `until` ms.
#[cfg(test)]
pub(crate) fn simulate(
    group: &crate::file::RuleGroup,
    series: &[(String, String)],
    until: i64,
    record: Option<&str>,
) -> Simulated {
    let memory = Memory { step_ms: 60_000, ..Memory::default() };
    for (name, values) in series {
        let labels = series_text::labels(name).unwrap();
        let values = series_text::values(values).unwrap();
        let point = |(i, v): (usize, Option<SampleValue>)| {
            let timestamp = TimestampMs::from_millis(i as i64 * 60_000);
            Some((labels.clone(), Sample { timestamp, value: v? }))
        };
        memory.add(values.into_iter().enumerate().filter_map(point).collect());
    }
    let options = Options { interval_ms: 60_000, resend_ms: 60_000, ..Options::default() };
    let mut g = Group::new("test", group, &options);
    for at in (0..=until).step_by(60_000) {
        g.evaluate(&memory, &options, at, &|_| None, &mut |points| {
            memory.add(points);
            Ok(())
        });
    }
    let mut out = Simulated { firing: Vec::new(), series: BTreeMap::new() };
    for r in &g.rules {
        assert_eq!(r.health, crate::group::Health::Ok, "{}", r.rule.name());
        let firing = r.alerts.active().into_iter().filter(|a| a.state == State::Firing);
        out.firing.extend(firing.map(|a| (a.labels.clone(), a.annotations.clone())));
    }
    if let Some(name) = record {
        let expr = obs_promql::parse(&format!("{{__name__={name:?}}}")).unwrap();
        for (l, v) in memory.promql(&expr, until).unwrap() {
            let SampleValue::Float(f) = v else { continue };
            out.series.insert(l.to_string(), f);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "groups:\n- name: g\n  rules:\n  - record: job:up:sum\n    expr: sum by (job) (up)\n  - alert: Down\n    expr: up == 0\n    for: 5m\n    labels: {severity: page}\n    annotations: {summary: '{{ $labels.instance }} of {{ $externalLabels.dc }} is down: {{ $value }}'}\n";

    fn verdict(test: &str) -> Result<Vec<String>, String> {
        let load = |name: &str| Ok(vec![(name.to_owned(), RULES.to_owned())]);
        run(test, &load, &|_| true).map(|v| v.failures)
    }

    const TEST: &str = "rule_files: [r.yml]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n  external_labels: {dc: eu}\n  input_series:\n  - series: 'up{job=\"a\",instance=\"x\"}'\n    values: '1 1 0x10'\n  alert_rule_test:\n  - eval_time: 6m\n    alertname: Down\n  - eval_time: 7m\n    alertname: Down\n    exp_alerts:\n    - exp_labels: {severity: page, job: a, instance: x}\n      exp_annotations: {summary: 'x of eu is down: 0'}\n  promql_expr_test:\n  - expr: job:up:sum\n    eval_time: 1m\n    exp_samples:\n    - labels: 'job:up:sum{job=\"a\"}'\n      value: 1\n";

    #[test]
    fn a_good_test_passes_and_a_wrong_one_says_why() {
        assert_eq!(verdict(TEST), Ok(Vec::new()));
        let wrong =
            TEST.replace("eval_time: 6m", "eval_time: 8m").replace("value: 1\n", "value: 2\n");
        let failures = verdict(&wrong).unwrap();
        assert_eq!(failures.len(), 2, "{failures:#?}");
        assert!(failures[0].contains("alertname: Down, time: 8m"));
        assert!(
            failures[1].contains("got: \n            job:up:sum{job=\"a\"} 1"),
            "{}",
            failures[1]
        );
        assert!(verdict("testz: []").unwrap_err().contains("testz"));
    }
}
