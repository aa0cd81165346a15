//! The stage that counts: counters, gauges and histograms of what lines say, by their labels.

use super::extract::extracted;
use super::{Stage, change};
use crate::entry::Entry;
use obs_collect::config::Span;
use obs_model::{
    Labels, LabelsBuilder, METRIC_NAME, MetricKind, MetricMetadata, Sample, Series, TimestampMs,
    TimestampNs,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Series of all metrics together; lines that would make more are not counted.
const SERIES_MAX: usize = 10_000;
/// Prometheus' default buckets.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metric {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    prefix: Option<String>,
    source: Option<String>,
    max_idle_duration: Option<Span>,
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    match_all: bool,
    count_entry_bytes: bool,
    value: Option<String>,
    action: Option<String>,
    buckets: Vec<f64>,
}

#[derive(Debug, Clone, PartialEq)]
enum Measured {
    Number(f64),
    /// Counts by bucket, not cumulative, the last beyond all bounds; and the sum.
    Histogram {
        bounds: Arc<[f64]>,
        counts: Vec<u64>,
        sum: f64,
    },
}

#[derive(Debug)]
struct Entered {
    value: Measured,
    touched: TimestampNs,
    idle: Duration,
}

#[derive(Debug, Default)]
struct Known {
    series: HashMap<Labels, Entered>,
    families: BTreeMap<String, (MetricKind, String)>,
}

/// What all pipelines counted.
#[derive(Debug, Default)]
pub struct Custom(Mutex<Known>);

impl Custom {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn declare(&self, name: &str, kind: MetricKind, help: &str) {
        self.lock().families.insert(name.to_owned(), (kind, help.to_owned()));
    }

    fn update(
        &self,
        labels: Labels,
        idle: Duration,
        now: TimestampNs,
        fresh: impl FnOnce() -> Measured,
        f: impl FnOnce(&mut Measured),
    ) {
        let mut known = self.lock();
        if known.series.len() >= SERIES_MAX && !known.series.contains_key(&labels) {
            return;
        }
        let entered = known.series.entry(labels).or_insert_with(|| Entered {
            value: fresh(),
            touched: now,
            idle,
        });
        entered.touched = now;
        f(&mut entered.value);
    }

    /// Returns every series as it is now; those that no line touched for their time are forgotten.
    pub fn series(&self, now: TimestampMs) -> (Vec<Series>, Vec<MetricMetadata>) {
        let mut known = self.lock();
        known.series.retain(|_, e| {
            let idle = now.to_nanos().nanos().saturating_sub(e.touched.nanos());
            i128::from(idle) <= e.idle.as_nanos() as i128
        });
        let mut out = Vec::new();
        let one = |labels: Labels, v: f64| Series {
            labels,
            samples: vec![Sample::float(now.millis(), v)],
        };
        for (labels, e) in &known.series {
            let Measured::Histogram { bounds, counts, sum } = &e.value else {
                let Measured::Number(v) = e.value else { continue };
                out.push(one(labels.clone(), v));
                continue;
            };
            let with = |suffix: &str, le: Option<String>| {
                let mut b = labels.to_builder();
                b.set(METRIC_NAME, &format!("{}{suffix}", labels.metric_name()));
                if let Some(le) = le {
                    b.set("le", &le);
                }
                b.build()
            };
            let mut seen = 0;
            let names = bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
            for (le, n) in names.zip(counts) {
                seen += n;
                out.push(one(with("_bucket", Some(le)), seen as f64));
            }
            out.push(one(with("_count", None), seen as f64));
            out.push(one(with("_sum", None), *sum));
        }
        let told = |(name, (kind, help)): (&String, &(MetricKind, String))| MetricMetadata {
            name: name.clone(),
            kind: *kind,
            help: help.clone(),
            unit: String::new(),
        };
        (out, known.families.iter().map(told).collect())
    }
}

/// What is done to a metric.
#[derive(Clone, Copy)]
enum Action {
    Increase(f64),
    Add(f64),
    Set,
    Observe,
}

struct Collector {
    name: String,
    source: String,
    action: Action,
    is_gauge: bool,
    match_all: bool,
    count_bytes: bool,
    value: Option<String>,
    bounds: Arc<[f64]>,
    idle: Duration,
}

impl Collector {
    fn new(name: &str, m: Metric, custom: &Custom) -> Result<Self, String> {
        let kind = m.kind.to_ascii_lowercase();
        let c = m.config;
        let action = match (kind.as_str(), c.action.as_deref().map(str::to_ascii_lowercase)) {
            ("counter" | "gauge", Some(a)) if a == "inc" => Action::Increase(1.0),
            ("counter" | "gauge", Some(a)) if a == "add" => Action::Add(1.0),
            ("gauge", Some(a)) if a == "set" => Action::Set,
            ("gauge", Some(a)) if a == "dec" => Action::Increase(-1.0),
            ("gauge", Some(a)) if a == "sub" => Action::Add(-1.0),
            ("histogram", _) => Action::Observe,
            ("counter", a) => {
                return Err(format!(
                    "{name}: the `action` counter parameter must be either inc or add (got {:?})",
                    a.unwrap_or_default()
                ));
            }
            ("gauge", a) => {
                return Err(format!(
                    "{name}: the `action` gauge parameter must be one of set, inc, dec, add or sub (got {:?})",
                    a.unwrap_or_default()
                ));
            }
            (other, _) => {
                return Err(format!(
                    "{name}: metric type {other:?} must be one of counter, gauge or histogram"
                ));
            }
        };
        if c.match_all && c.value.is_some() {
            return Err(format!("{name}: `match_all` cannot be combined with `value`"));
        }
        if c.count_entry_bytes && !(c.match_all && matches!(action, Action::Add(_))) {
            return Err(format!(
                "{name}: `count_entry_bytes` needs `match_all` and the action add"
            ));
        }
        let (metric, bounds) = match kind.as_str() {
            "counter" => (MetricKind::Counter, Vec::new()),
            "gauge" => (MetricKind::Gauge, Vec::new()),
            _ if c.buckets.is_empty() => (MetricKind::Histogram, BUCKETS.to_vec()),
            _ => (MetricKind::Histogram, c.buckets),
        };
        if !bounds.is_sorted_by(|a, b| a < b) {
            return Err(format!("{name}: buckets must grow"));
        }
        let prefix = m.prefix.unwrap_or_else(|| "promtail_custom_".into());
        let full = format!("{prefix}{name}");
        custom.declare(&full, metric, &m.description);
        Ok(Self {
            source: m.source.unwrap_or_else(|| name.to_owned()),
            name: full,
            action,
            is_gauge: metric == MetricKind::Gauge,
            match_all: c.match_all,
            count_bytes: c.count_entry_bytes,
            value: c.value,
            bounds: bounds.into(),
            idle: m.max_idle_duration.map_or(Duration::from_secs(300), |s| s.0),
        })
    }

    fn observe(&self, e: &Entry, now: TimestampNs, custom: &Custom) {
        let found = extracted(e, &self.source);
        let number = if self.count_bytes {
            Some(e.line.len() as f64)
        } else {
            found.as_deref().and_then(|t| t.trim().parse::<f64>().ok())
        };
        if !self.match_all && found.is_none() || self.value.is_some() && self.value != found {
            return;
        }
        let change = match (self.action, number) {
            (Action::Increase(by), _) => by,
            // A counter that would fall is left alone.
            (Action::Add(sign), Some(v)) if sign < 0.0 || v >= 0.0 || self.is_gauge => sign * v,
            (Action::Set | Action::Observe, Some(v)) => v,
            _ => return,
        };
        let mut labels = LabelsBuilder::default();
        for (n, v) in e.labels.iter().filter(|(n, _)| !n.starts_with("__")) {
            labels.set(n, v);
        }
        labels.set(METRIC_NAME, &self.name);
        let fresh = || match self.action {
            Action::Observe => Measured::Histogram {
                bounds: self.bounds.clone(),
                counts: vec![0; self.bounds.len() + 1],
                sum: 0.0,
            },
            _ => Measured::Number(0.0),
        };
        custom.update(labels.build(), self.idle, now, fresh, |m| match m {
            Measured::Number(n) if matches!(self.action, Action::Set) => *n = change,
            Measured::Number(n) => *n += change,
            Measured::Histogram { bounds, counts, sum } => {
                if let Some(c) = counts.get_mut(bounds.partition_point(|b| *b < change)) {
                    *c += 1;
                    *sum += change;
                }
            }
        });
    }
}

pub(super) fn metrics(
    c: BTreeMap<String, Value>,
    custom: &Arc<Custom>,
) -> Result<Box<dyn Stage>, String> {
    if c.is_empty() {
        return Err("empty metric stage configuration".into());
    }
    let of = |(name, v): (String, Value)| {
        let m: Metric = serde_json::from_value(v).map_err(|e| format!("{name}: {e}"))?;
        Collector::new(&name, m, custom)
    };
    let collectors: Vec<Collector> = c.into_iter().map(of).collect::<Result<_, String>>()?;
    let custom = custom.clone();
    Ok(change(move |e: &mut Entry, now| {
        collectors.iter().for_each(|c| c.observe(e, now, &custom));
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counts;
    use crate::stage::{Limits, Pipeline, StageConfig};

    fn counted(stages: &str, lines: &[&str], at: i64) -> Vec<String> {
        let configs: Vec<StageConfig> = serde_saphyr::from_str(stages).unwrap();
        let counts = Counts::default();
        let mut pipeline = Pipeline::new(&configs, &counts, &Limits::default()).unwrap();
        let labels = BTreeMap::from([("job".to_owned(), "j".to_owned())]);
        for line in lines {
            let now = TimestampNs::from_nanos(0);
            pipeline.take(Entry::new(now, (*line).to_owned(), &labels), now, &mut |_| {});
        }
        let (series, _) = counts.custom.series(TimestampMs::from_millis(at));
        let mut out: Vec<String> = series
            .iter()
            .map(|s| match &s.samples[0].value {
                obs_model::SampleValue::Float(v) => {
                    format!("{}{{{}}} {v}", s.labels.metric_name(), s.labels.get("le"))
                }
                obs_model::SampleValue::Histogram(_) => String::new(),
            })
            .collect();
        out.sort();
        out
    }

    #[test]
    fn lines_are_counted_as_promtail_counts_them() {
        let stages = r#"
- regex: {expression: 'took (?P<took>[0-9.]+) (?P<status>\w+)'}
- metrics:
    lines: {type: Counter, config: {match_all: true, action: inc}}
    bytes: {type: counter, prefix: my_, config: {match_all: true, count_entry_bytes: true, action: add}}
    failures: {type: Counter, source: status, config: {value: bad, action: inc}}
    spent: {type: Counter, source: took, config: {action: add}}
    last: {type: Gauge, source: took, config: {action: set}}
    down: {type: Gauge, source: took, config: {action: sub}}
    took: {type: Histogram, config: {buckets: [1, 2]}}
"#;
        let lines = ["took 1 ok", "took 1.5 bad", "nothing", "took 9 ok"];
        let got = counted(stages, &lines, 1000);
        let want = [
            "my_bytes{} 37",
            "promtail_custom_down{} -11.5",
            "promtail_custom_failures{} 1",
            "promtail_custom_last{} 9",
            "promtail_custom_lines{} 4",
            "promtail_custom_spent{} 11.5",
            "promtail_custom_took_bucket{+Inf} 3",
            "promtail_custom_took_bucket{1} 1",
            "promtail_custom_took_bucket{2} 2",
            "promtail_custom_took_count{} 3",
            "promtail_custom_took_sum{} 11.5",
        ];
        assert_eq!(got, want);
        // After five minutes without a line a series is forgotten.
        assert!(counted(stages, &lines, 300_001).is_empty());
    }

    #[test]
    fn wrong_metrics_are_refused() {
        for (stage, why) in [
            ("{a: {type: Sum}}", "must be one of counter, gauge or histogram"),
            ("{a: {type: Counter, config: {action: set}}}", "must be either inc or add"),
            ("{a: {type: Gauge}}", "must be one of set, inc, dec, add or sub"),
            (
                "{a: {type: Counter, config: {match_all: true, value: x, action: inc}}}",
                "cannot be combined",
            ),
            (
                "{a: {type: Counter, config: {count_entry_bytes: true, action: add}}}",
                "needs `match_all`",
            ),
            ("{a: {type: Histogram, config: {buckets: [2, 1]}}}", "must grow"),
            ("{}", "empty metric stage"),
        ] {
            let text = format!("[{{metrics: {stage}}}]");
            let configs: Vec<StageConfig> = serde_saphyr::from_str(&text).unwrap();
            let e = Pipeline::new(&configs, &Counts::default(), &Limits::default()).unwrap_err();
            assert!(e.contains(why), "{stage}: {e}");
        }
    }
}
