//! Stages that drop lines.

use super::extract::extracted;
use super::{Context, Pipeline, Stage, StageConfig, keep};
use crate::entry::Entry;
use obs_collect::config::Span;
use obs_logql::Follower;
use obs_logql::ast::{LogExpr, Query};
use obs_model::{Labels, TimestampNs, go_regex};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DropSettings {
    source: Option<Value>,
    separator: Option<String>,
    value: Option<String>,
    expression: Option<String>,
    older_than: Option<Span>,
    longer_than: Option<Value>,
    #[serde(default, rename = "drop_counter_reason")]
    _reason: Option<String>,
}

/// Drops a line for which everything that is asked holds.
pub(super) fn drop(c: DropSettings) -> Result<Box<dyn Stage>, String> {
    let sources: Vec<String> = match &c.source {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(s)) if s.is_empty() => Vec::new(),
        Some(Value::String(s)) => vec![s.clone()],
        Some(Value::Array(list)) => {
            list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        }
        Some(_) => return Err("source is a name or a list of names".into()),
    };
    let asks = [
        c.value.is_some(),
        c.expression.is_some(),
        c.older_than.is_some(),
        c.longer_than.is_some(),
    ];
    if sources.is_empty() && !asks.contains(&true) {
        return Err(
            "at least one of source, expression, value, older_than or longer_than is required"
                .into(),
        );
    }
    if c.value.is_some() && c.expression.is_some() {
        return Err("expression and value cannot both be given".into());
    }
    if c.value.is_some() && sources.is_empty() {
        return Err("value needs a source".into());
    }
    let regex = c.expression.as_deref().map(go_regex).transpose().map_err(|e| e.to_string())?;
    let size = |v: &Value| {
        let text = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        obs_logql::parse_bytes(&text).ok_or_else(|| format!("longer_than: {text:?} is no size"))
    };
    let longer_than = c.longer_than.as_ref().map(size).transpose()?;
    let separator = c.separator.clone().unwrap_or_else(|| ";".into());
    Ok(keep(move |e: &mut Entry, now| {
        if longer_than.is_some_and(|max| e.line.len() as f64 <= max) {
            return true;
        }
        if let Some(max) = c.older_than {
            let age = now.nanos().saturating_sub(e.time.nanos());
            if i128::from(age) <= max.0.as_nanos() as i128 {
                return true;
            }
        }
        let subject = if sources.is_empty() {
            e.line.clone()
        } else {
            let parts: Option<Vec<String>> = sources.iter().map(|s| extracted(e, s)).collect();
            let Some(parts) = parts else { return true };
            parts.join(&separator)
        };
        let hit = match (&regex, &c.value) {
            (Some(r), _) => r.is_match(&subject),
            (None, Some(v)) => subject == *v,
            (None, None) => true,
        };
        !hit
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MatchSettings {
    selector: String,
    #[serde(default)]
    stages: Vec<StageConfig>,
    action: Option<String>,
    #[serde(default, rename = "pipeline_name")]
    _name: Option<String>,
    #[serde(default, rename = "drop_counter_reason")]
    _reason: Option<String>,
}

struct Match {
    expr: LogExpr,
    stages: Pipeline,
    is_drop: bool,
}

pub(super) fn matching(c: MatchSettings, context: &Context<'_>) -> Result<Box<dyn Stage>, String> {
    let expr = match obs_logql::parse(&c.selector).map_err(|e| e.to_string())? {
        Query::Log(expr) => expr,
        Query::Metric(_) => return Err("selector must be a log query".into()),
    };
    let is_drop = match c.action.as_deref() {
        None | Some("keep") => false,
        Some("drop") if c.stages.is_empty() => true,
        Some("drop") => return Err("stages cannot be given with action drop".into()),
        Some(other) => return Err(format!("invalid action {other:?} (keep or drop)")),
    };
    Ok(Box::new(Match { expr, stages: Pipeline::within(&c.stages, context)?, is_drop }))
}

impl Stage for Match {
    fn take(&mut self, e: Entry, now: TimestampNs, out: &mut dyn FnMut(Entry)) {
        let labels = Labels::from_pairs(&e.labels);
        if !Follower::new(&self.expr).matches(&labels, &e.line) {
            return out(e);
        }
        if !self.is_drop {
            self.stages.take(e, now, out);
        }
    }

    fn pause(&self, now: TimestampNs) -> Duration {
        self.stages.pause(now)
    }

    fn oldest_held(&self) -> Option<u64> {
        self.stages.oldest_held()
    }

    fn flush(&mut self, now: TimestampNs, is_end: bool, out: &mut dyn FnMut(Entry)) {
        self.stages.flush(now, is_end, out);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitSettings {
    rate: f64,
    burst: f64,
    #[serde(default)]
    drop: bool,
    #[serde(default)]
    by_label_name: String,
    #[serde(default)]
    max_distinct_labels: usize,
}

/// Tokens of lines with one value of a label, or of all.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    filled: TimestampNs,
}

impl Bucket {
    fn fill(&mut self, c: &LimitSettings, now: TimestampNs) {
        let seconds = (now.nanos() - self.filled.nanos()).max(0) as f64 / 1e9;
        self.tokens = (self.tokens + seconds * c.rate).min(c.burst);
        self.filled = now;
    }
}

/// The buckets of one stage, by the label's value; those of all sources of a job.
pub(super) type Buckets = HashMap<String, Bucket>;

fn locked(buckets: &Mutex<Buckets>) -> MutexGuard<'_, Buckets> {
    buckets.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps every line and says for how long its source must be left alone.
struct Slow {
    settings: LimitSettings,
    buckets: Arc<Mutex<Buckets>>,
}

impl Stage for Slow {
    fn take(&mut self, entry: Entry, now: TimestampNs, out: &mut dyn FnMut(Entry)) {
        let fresh = || Bucket { tokens: self.settings.burst, filled: now };
        {
            let mut buckets = locked(&self.buckets);
            let b = buckets.entry(String::new()).or_insert_with(fresh);
            b.fill(&self.settings, now);
            b.tokens -= 1.0;
        }
        out(entry);
    }

    fn pause(&self, now: TimestampNs) -> Duration {
        let mut buckets = locked(&self.buckets);
        let Some(b) = buckets.get_mut("") else { return Duration::ZERO };
        b.fill(&self.settings, now);
        let debt = (-b.tokens).max(0.0);
        Duration::try_from_secs_f64(debt / self.settings.rate).unwrap_or(PAUSE_MAX).min(PAUSE_MAX)
    }
}

/// What one reading of lines may make its source wait.
const PAUSE_MAX: Duration = Duration::from_secs(60);

pub(super) fn limit(
    c: LimitSettings,
    buckets: Arc<Mutex<Buckets>>,
) -> Result<Box<dyn Stage>, String> {
    if c.rate <= 0.0 || c.burst < 1.0 {
        return Err("rate and burst must be positive".into());
    }
    if !c.drop {
        if !c.by_label_name.is_empty() {
            return Err("by_label_name can only be used with drop: true".into());
        }
        return Ok(Box::new(Slow { settings: c, buckets }));
    }
    let max = c.max_distinct_labels.clamp(1, 10_000);
    Ok(keep(move |e: &mut Entry, now| {
        let key = if c.by_label_name.is_empty() {
            String::new()
        } else {
            match e.labels.get(&c.by_label_name) {
                Some(v) => v.clone(),
                None => return true,
            }
        };
        let mut buckets = locked(&buckets);
        if buckets.len() >= max && !buckets.contains_key(&key) {
            buckets.clear();
        }
        let fresh = || Bucket { tokens: c.burst, filled: now };
        let b = buckets.entry(key).or_insert_with(fresh);
        b.fill(&c, now);
        let is_kept = b.tokens >= 1.0;
        if is_kept {
            b.tokens -= 1.0;
        }
        is_kept
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SamplingSettings {
    rate: f64,
    #[serde(default, rename = "drop_counter_reason")]
    _reason: Option<String>,
}

/// Keeps a part of the lines: the first of every so many, so that a part is exact.
pub(super) fn sampling(c: SamplingSettings) -> Result<Box<dyn Stage>, String> {
    if !(0.0..=1.0).contains(&c.rate) {
        return Err("sampling stage failed to parse rate, it must be between 0.0 and 1.0".into());
    }
    let mut owed = 0.0;
    Ok(keep(move |_: &mut Entry, _| {
        owed += c.rate;
        let is_kept = owed >= 1.0 - 1e-9;
        if is_kept {
            owed -= 1.0;
        }
        is_kept
    }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, shown};
    use super::*;
    use crate::Counts;
    use crate::stage::Limits;

    #[test]
    fn a_limit_without_dropping_makes_all_sources_of_a_job_wait() {
        let text = "[{match: {selector: '{job=\"j\"}', stages: [{limit: {rate: 10, burst: 20}}]}}]";
        let configs: Vec<StageConfig> = serde_saphyr::from_str(text).unwrap();
        let limits = Limits::default();
        let one = || Pipeline::new(&configs, &Counts::default(), &limits).unwrap();
        let mut sources = [one(), one()];
        let labels = [("job".to_owned(), "j".to_owned())].into();
        let mut taken = 0;
        let mut feed = |seconds: i64, n: usize| {
            sources.reverse();
            let pipeline = &mut sources[0];
            let now = TimestampNs::from_nanos(seconds * 1_000_000_000);
            for _ in 0..n {
                let entry = Entry::new(now, "x".into(), &labels);
                pipeline.take(entry, now, &mut |_| taken += 1);
            }
            pipeline.pause(now)
        };
        assert_eq!(feed(0, 20), Duration::ZERO);
        assert_eq!(feed(0, 20), Duration::from_secs(2));
        assert_eq!(feed(1, 0), Duration::from_secs(1));
        assert_eq!(feed(3, 5), Duration::ZERO);
        assert_eq!(taken, 45, "every line passes");
        let by_label = "[{limit: {rate: 1, burst: 1, by_label_name: x}}]";
        let configs: Vec<StageConfig> = serde_saphyr::from_str(by_label).unwrap();
        assert!(Pipeline::new(&configs, &Counts::default(), &Limits::default()).is_err());
    }

    #[test]
    fn lines_are_dropped() {
        let lines = ["debug a", "info b", "a much longer line than that"];
        assert_eq!(run("[{drop: {expression: '^debug'}}]", &lines).len(), 2);
        assert_eq!(run("[{drop: {longer_than: 10}}]", &lines).len(), 2);
        assert_eq!(run("[{drop: {expression: 'longer', longer_than: 100}}]", &lines).len(), 3);
        let by_value = "[{regex: {expression: '^(?P<l>\\w+) (?P<m>\\w+)'}}, {drop: {source: [l, m], separator: '-', value: info-b}}]";
        assert_eq!(run(by_value, &lines).len(), 2);
        let old = "[{regex: {expression: '^(?P<t>\\d+)'}}, {timestamp: {source: t, format: Unix}}, {drop: {older_than: 10s}}]";
        assert_eq!(run(old, &["1000", "x"]).len(), 2);
        assert_eq!(run("[{sampling: {rate: 0.25}}]", &["l"; 40]).len(), 10);
        // One a second, two at once; the lines come a second apart.
        assert_eq!(run("[{limit: {rate: 0.5, burst: 2, drop: true}}]", &["l"; 10]).len(), 6);
    }

    #[test]
    fn stages_for_some_lines() {
        let stages = r#"
- match: {selector: '{job="j"} |= "error"', stages: [{static_labels: {level: error}}]}
- match: {selector: '{job="j"} |= "noise"', action: drop}
"#;
        assert_eq!(
            shown(stages, &["an error", "noise", "rest"]),
            ["job=j level=error | an error", "job=j | rest"]
        );
    }
}
