//! Evaluates a group of rules at one moment.

use crate::alert::{Alert, Alerts, Found, State};
use crate::file::{Rule, RuleGroup, RuleKind};
use crate::template::{Surroundings, expand};
use crate::{Engine, Language, Query, Rows};
use obs_model::{
    Labels, LabelsBuilder, METRIC_NAME, STALE_NAN_BITS, Sample, SampleValue, TimestampMs,
};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Settings of all groups.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub external_labels: BTreeMap<String, String>,
    pub external_url: String,
    /// Interval of groups that name none. Milliseconds.
    pub interval_ms: i64,
    pub query_offset_ms: i64,
    /// How often a firing alert is sent again. Milliseconds.
    pub resend_ms: i64,
}

/// Whether a rule's last evaluation went well.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Health {
    #[default]
    Unknown,
    Ok,
    Bad(String),
}

/// A rule and what became of it.
#[derive(Debug, Clone)]
pub struct RuleState {
    pub rule: Rule,
    pub alerts: Alerts,
    pub health: Health,
    pub took: Duration,
    /// Milliseconds; 0 before the first.
    pub last_evaluation: i64,
    /// Series written last time, to be marked stale when they go.
    written: HashSet<Labels>,
    /// Whether `for` state was read back.
    restored: bool,
}

/// A group with its state.
#[derive(Debug, Clone)]
pub struct Group {
    pub file: String,
    pub name: String,
    pub pack: Option<&'static str>,
    pub interval_ms: i64,
    pub query_offset_ms: i64,
    pub limit: usize,
    pub rules: Vec<RuleState>,
    pub took: Duration,
    pub last_evaluation: i64,
    /// Series of rules that are gone.
    orphans: HashSet<Labels>,
}

/// What an evaluation wants written and sent.
#[derive(Debug, Default)]
pub struct Effects {
    pub points: Vec<(Labels, Sample)>,
    pub alerts: Vec<Alert>,
}

/// Reads back when alerts became active before a restart: the newest sample of
/// `ALERTS_FOR_STATE` by its labels, as (time it was written, time it says), milliseconds.
pub type Restored<'a> = &'a (dyn Fn(&Labels) -> Option<(i64, i64)> + Sync);

impl Group {
    pub fn new(file: &str, g: &RuleGroup, options: &Options) -> Self {
        let state = |rule: &Rule| RuleState {
            rule: rule.clone(),
            alerts: Alerts::default(),
            health: Health::Unknown,
            took: Duration::ZERO,
            last_evaluation: 0,
            written: HashSet::new(),
            restored: false,
        };
        Self {
            file: file.to_owned(),
            name: g.name.clone(),
            pack: g.pack,
            interval_ms: g.interval_ms.unwrap_or(options.interval_ms),
            query_offset_ms: g.query_offset_ms.unwrap_or(options.query_offset_ms),
            limit: g.limit,
            rules: g.rules.iter().map(state).collect(),
            took: Duration::ZERO,
            last_evaluation: 0,
            orphans: HashSet::new(),
        }
    }

    /// Takes over the state of rules that are the same as in the group before a reload.
    pub fn take_over(&mut self, before: Self) {
        self.last_evaluation = before.last_evaluation;
        let mut old: Vec<Option<RuleState>> = before.rules.into_iter().map(Some).collect();
        for r in &mut self.rules {
            let same = |o: &&mut Option<RuleState>| {
                o.as_ref().is_some_and(|o| {
                    o.rule.name() == r.rule.name()
                        && o.rule.labels == r.rule.labels
                        && o.rule.is_alert() == r.rule.is_alert()
                })
            };
            if let Some(found) = old.iter_mut().find(same).and_then(Option::take) {
                let rule = std::mem::replace(&mut r.rule, found.rule.clone());
                *r = RuleState { rule, ..found };
            }
        }
        self.orphans = before.orphans;
        self.orphans.extend(old.into_iter().flatten().flat_map(|o| o.written));
    }

    /// Returns markers that end everything the group wrote, for a group that is gone.
    pub fn end(&self, now: i64) -> Vec<(Labels, Sample)> {
        let all = self.rules.iter().flat_map(|r| &r.written).chain(&self.orphans);
        all.map(|l| (l.clone(), stale(now - self.query_offset_ms))).collect()
    }

    /// Evaluates all rules at `now`, in order: a rule sees what those before it wrote only if
    /// `write` makes it visible.
    pub fn evaluate(
        &mut self,
        engine: &dyn Engine,
        options: &Options,
        now: i64,
        restored: Restored<'_>,
        write: &mut dyn FnMut(Vec<(Labels, Sample)>) -> Result<(), String>,
    ) -> Vec<Alert> {
        let began = Instant::now();
        let ts = now - self.query_offset_ms;
        let mut sent = Vec::new();
        let limit = self.limit;
        let one = |r: &mut RuleState| {
            let began = Instant::now();
            let points = r.evaluate(engine, options, (now, ts), limit, restored);
            r.last_evaluation = now;
            r.took = began.elapsed();
            points
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        if threads > 1 && self.rules.len() > 1 && self.is_independent() {
            let part = self.rules.len().div_ceil(threads);
            let one = &one;
            let done: Vec<_> = std::thread::scope(|scope| {
                let parts = self.rules.chunks_mut(part);
                let running: Vec<_> = parts
                    .map(|p| scope.spawn(move || p.iter_mut().map(one).collect::<Vec<_>>()))
                    .collect();
                running.into_iter().flat_map(|r| r.join().unwrap_or_default()).collect()
            });
            for (r, points) in self.rules.iter_mut().zip(done) {
                r.health = settle(points.and_then(&mut *write));
            }
        } else {
            for r in &mut self.rules {
                r.health = settle(one(r).and_then(&mut *write));
            }
        }
        for r in self.rules.iter_mut().filter(|r| r.rule.is_alert()) {
            let mut due = r.alerts.to_send(now, options.resend_ms, self.interval_ms);
            let expr: Arc<str> = r.rule.query.text.as_str().into();
            due.iter_mut().for_each(|a| a.expr = expr.clone());
            sent.extend(due);
        }
        let kept: HashSet<&Labels> = self.rules.iter().flat_map(|r| &r.written).collect();
        let ended: Vec<_> = std::mem::take(&mut self.orphans)
            .into_iter()
            .filter(|l| !kept.contains(l))
            .map(|l| (l, stale(ts)))
            .collect();
        if !ended.is_empty() {
            // They are marked once; if that fails they end by themselves after the look-back.
            let _ = write(ended);
        }
        self.last_evaluation = now;
        self.took = began.elapsed();
        sent
    }

    /// Returns whether no rule reads what another writes, so that they may run side by side.
    fn is_independent(&self) -> bool {
        let names: HashSet<&str> = self.rules.iter().map(|r| r.rule.name()).collect();
        self.rules.iter().all(|r| match &r.rule.query.expr {
            None => true,
            Some(e) => !crate::lint::metric_names(e)
                .iter()
                .any(|n| n.as_deref().is_none_or(|n| names.contains(n) || n.starts_with("ALERTS"))),
        })
    }
}

/// Rules of a group that are evaluated side by side.
const THREADS_MAX: usize = 4;

fn settle(result: Result<(), String>) -> Health {
    match result {
        Ok(()) => Health::Ok,
        Err(e) => Health::Bad(e),
    }
}

fn stale(ts: i64) -> Sample {
    Sample::float(ts, f64::from_bits(STALE_NAN_BITS))
}

fn point(ts: i64, value: SampleValue) -> Sample {
    Sample { timestamp: TimestampMs::from_millis(ts), value }
}

impl RuleState {
    fn evaluate(
        &mut self,
        engine: &dyn Engine,
        options: &Options,
        (now, ts): (i64, i64),
        limit: usize,
        restored: Restored<'_>,
    ) -> Result<Vec<(Labels, Sample)>, String> {
        let rows = engine.instant(&self.rule.query, ts)?;
        let points = match self.rule.kind.clone() {
            RuleKind::Record(name) => self.record(&name, rows, limit, ts)?,
            RuleKind::Alert { name, for_ms, keep_firing_for_ms, annotations } => {
                let query = |text: &str| {
                    let expr = obs_promql::parse(text).map_err(|e| e.to_string())?;
                    let query =
                        Query { language: Language::PromQl, text: text.into(), expr: Some(expr) };
                    engine.instant(&query, ts)
                };
                let around = Surroundings {
                    external_labels: &options.external_labels,
                    external_url: &options.external_url,
                    query: &query,
                    now_ms: now,
                };
                let found = self.found(&name, &annotations, rows, around)?;
                if limit > 0 && found.len() > limit {
                    self.alerts.clear();
                    return Err(format!("exceeded limit of {limit} with {} alerts", found.len()));
                }
                if !self.restored {
                    self.restored = true;
                    // Pending first, so that what is read back finds its alert.
                    self.alerts.update(now, found.clone(), i64::MAX, keep_firing_for_ms);
                    self.restore(&name, now, for_ms, restored);
                }
                self.alerts.update(now, found, for_ms, keep_firing_for_ms);
                self.alert_series(ts)
            }
        };
        let written: HashSet<Labels> = points.iter().map(|p| p.0.clone()).collect();
        let gone = self.written.iter().filter(|l| !written.contains(*l));
        let mut out: Vec<_> = gone.map(|l| (l.clone(), stale(ts))).collect();
        out.extend(points);
        self.written = written;
        Ok(out)
    }

    fn record(
        &self,
        name: &str,
        rows: Rows,
        limit: usize,
        ts: i64,
    ) -> Result<Vec<(Labels, Sample)>, String> {
        let mut seen = HashSet::with_capacity(rows.len());
        let mut out = Vec::with_capacity(rows.len());
        for (labels, value) in rows {
            let mut b = LabelsBuilder::default();
            let own = self.rule.labels.iter().map(|(n, v)| (n.as_str(), v.as_str()));
            for (n, v) in labels.iter().chain([(METRIC_NAME, name)]).chain(own) {
                b.set(n, v);
            }
            let labels = b.build();
            if !seen.insert(labels.clone()) {
                return Err(
                    "vector contains metrics with the same labelset after applying rule labels"
                        .into(),
                );
            }
            out.push((labels, point(ts, value)));
        }
        if limit > 0 && out.len() > limit {
            return Err(format!("exceeded limit of {limit} with {} series", out.len()));
        }
        Ok(out)
    }

    fn found(
        &self,
        name: &str,
        annotations: &BTreeMap<String, String>,
        rows: Rows,
        around: Surroundings<'_>,
    ) -> Result<Vec<Found>, String> {
        let mut seen = HashSet::with_capacity(rows.len());
        let mut out = Vec::with_capacity(rows.len());
        for (labels, value) in rows {
            let expanded = |text: &str| expand(name, text, &labels, &value, around);
            let mut b = LabelsBuilder::default();
            for (n, v) in labels.iter().filter(|(n, _)| *n != METRIC_NAME) {
                b.push(n, v);
            }
            for (n, text) in &self.rule.labels {
                b.set(n, &expanded(text));
            }
            b.set("alertname", name);
            let annotations: BTreeMap<String, String> =
                annotations.iter().map(|(n, text)| (n.clone(), expanded(text))).collect();
            let labels = b.build();
            if !seen.insert(labels.clone()) {
                return Err(
                    "vector contains metrics with the same labelset after applying alert labels"
                        .into(),
                );
            }
            out.push(Found { labels, annotations, value });
        }
        Ok(out)
    }

    /// Lets pending alerts go on where they were before a restart: the time the server was away
    /// does not count as pending.
    fn restore(&mut self, name: &str, now: i64, for_ms: i64, restored: Restored<'_>) {
        if for_ms == 0 {
            return;
        }
        let alerts: Vec<Labels> = self.alerts.active().iter().map(|a| a.labels.clone()).collect();
        for labels in alerts {
            let series = labels.with(METRIC_NAME, "ALERTS_FOR_STATE").with("alertname", name);
            let Some((written, active_at)) = restored(&series) else { continue };
            let is_pending = written - active_at < for_ms;
            let away = if is_pending { (now - written).max(0) } else { 0 };
            self.alerts.restore(&labels, (active_at + away).min(now));
        }
    }

    /// The series `ALERTS` and `ALERTS_FOR_STATE` of pending and firing alerts.
    fn alert_series(&self, ts: i64) -> Vec<(Labels, Sample)> {
        let mut out = Vec::new();
        for a in self.alerts.active() {
            let state = a.labels.with(METRIC_NAME, "ALERTS").with("alertstate", a.state.as_str());
            out.push((state, Sample::float(ts, 1.0)));
            let since = a.labels.with(METRIC_NAME, "ALERTS_FOR_STATE");
            out.push((since, Sample::float(ts, a.active_at.div_euclid(1000) as f64)));
        }
        out
    }

    pub fn state(&self) -> State {
        self.alerts.state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_promql::ast::Expr;

    /// Answers every query with one series.
    struct One;

    impl Engine for One {
        fn instant(&self, _: &Query, _: i64) -> Result<Rows, String> {
            Ok(vec![(Labels::from_pairs([("job", "a")]), SampleValue::Float(1.0))])
        }

        fn promql(&self, _: &Expr, _: i64) -> Result<Rows, String> {
            unreachable!("tests say themselves what is restored")
        }
    }

    fn group(text: &str) -> Group {
        let file = crate::file::read(text);
        assert_eq!(file.errors, []);
        Group::new("f", &file.groups[0], &Options { interval_ms: 60_000, ..Options::default() })
    }

    const RULES: &str = "groups:\n- name: g\n  rules:\n  - alert: A\n    expr: up\n    for: 10m\n  - record: r\n    expr: up\n";

    fn run(g: &mut Group, now: i64, restored: Restored<'_>) -> Vec<(Labels, Sample)> {
        let mut out = Vec::new();
        g.evaluate(&One, &Options::default(), now, restored, &mut |p| {
            out.extend(p);
            Ok(())
        });
        out
    }

    #[test]
    fn a_restart_goes_on_where_pending_alerts_were() {
        let minute = 60_000;
        // Active since minute 0, last written in minute 7; the server was away until minute 20.
        let restored = |l: &Labels| {
            assert_eq!(l.to_string(), "ALERTS_FOR_STATE{alertname=\"A\", job=\"a\"}");
            Some((7 * minute, 0))
        };
        let mut g = group(RULES);
        run(&mut g, 20 * minute, &restored);
        assert_eq!(g.rules[0].state(), State::Pending);
        run(&mut g, 22 * minute, &restored);
        assert_eq!(g.rules[0].state(), State::Pending);
        run(&mut g, 23 * minute, &restored);
        assert_eq!(g.rules[0].state(), State::Firing);
        // It fired before: it fires at once.
        let mut g = group(RULES);
        run(&mut g, 30 * minute, &|_| Some((29 * minute, 5 * minute)));
        assert_eq!(g.rules[0].state(), State::Firing);
        // Nothing is known: it starts anew.
        let mut g = group(RULES);
        run(&mut g, 30 * minute, &|_| None);
        assert_eq!(g.rules[0].state(), State::Pending);
    }

    #[test]
    fn a_reload_keeps_alerts_and_ends_series_of_rules_that_go() {
        let mut g = group(RULES);
        run(&mut g, 0, &|_| None);
        run(&mut g, 600_000, &|_| None);
        assert_eq!(g.rules[0].state(), State::Firing);
        let mut fresh = group(&RULES.replace("record: r", "record: s"));
        fresh.take_over(g);
        assert_eq!(fresh.rules[0].state(), State::Firing);
        let written = run(&mut fresh, 660_000, &|_| None);
        let stale: Vec<String> =
            written.iter().filter(|p| p.1.value.is_stale()).map(|p| p.0.to_string()).collect();
        assert_eq!(stale, ["r{job=\"a\"}"]);
        assert!(fresh.end(700_000).iter().any(|p| p.0.metric_name() == "ALERTS"));
    }

    #[test]
    fn limits_stop_a_rule_and_duplicates_are_errors() {
        struct Two;
        impl Engine for Two {
            fn instant(&self, _: &Query, _: i64) -> Result<Rows, String> {
                let row = |n: &str| {
                    (Labels::from_pairs([("__name__", n), ("a", "b")]), SampleValue::Float(1.0))
                };
                Ok(vec![row("x"), row("y")])
            }

            fn promql(&self, _: &Expr, _: i64) -> Result<Rows, String> {
                unreachable!("nothing is restored")
            }
        }
        let run = |text: &str| {
            let mut g = group(text);
            g.evaluate(&Two, &Options::default(), 0, &|_| None, &mut |_| Ok(()));
            g.rules[0].health.clone()
        };
        let bad = |h: Health| if let Health::Bad(e) = h { e } else { panic!("{h:?}") };
        assert!(
            bad(run("groups: [{name: g, rules: [{record: r, expr: up}]}]"))
                .contains("same labelset")
        );
        let limited = "groups: [{name: g, limit: 1, rules: [{alert: A, expr: up, labels: {v: '{{ $value }}'}}]}]";
        assert!(
            bad(run(limited)).contains("same labelset")
                || bad(run(limited)).contains("exceeded limit")
        );
    }
}
