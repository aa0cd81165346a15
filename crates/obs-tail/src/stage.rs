//! Pipeline stages, as Promtail's.

mod container;
mod extract;
mod filter;
mod label;
pub(crate) mod metrics;
mod multiline;
mod transform;

use crate::Counts;
use crate::entry::Entry;
use obs_model::TimestampNs;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One item of `pipeline_stages`: a stage's name and its settings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct StageConfig(BTreeMap<String, Option<Value>>);

/// What a stage makes of an entry: none, one, or several of what it held back.
pub(crate) trait Stage: Send {
    /// Takes an entry; `now` is the time on the wall.
    fn take(&mut self, entry: Entry, now: TimestampNs, out: &mut dyn FnMut(Entry));

    /// Gives up what was held back for long enough, or everything when the source ends.
    fn flush(&mut self, _now: TimestampNs, _is_end: bool, _out: &mut dyn FnMut(Entry)) {}

    /// Returns how long the source must be left alone after what was taken.
    fn pause(&self, _now: TimestampNs) -> Duration {
        Duration::ZERO
    }

    /// Returns where the first line that is held back begins.
    fn oldest_held(&self) -> Option<u64> {
        None
    }
}

/// Stages in order, with what they remember.
pub(crate) struct Pipeline(Vec<Box<dyn Stage>>);

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pipeline({} stages)", self.0.len())
    }
}

fn take(stages: &mut [Box<dyn Stage>], entry: Entry, now: TimestampNs, out: &mut dyn FnMut(Entry)) {
    match stages.split_first_mut() {
        None => out(entry),
        Some((first, rest)) => first.take(entry, now, &mut |e| take(rest, e, now, out)),
    }
}

/// What the pipelines of a job share: the buckets of their `limit` stages, by the order in which
/// stages are built.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits(Arc<Mutex<BTreeMap<usize, Arc<Mutex<filter::Buckets>>>>>);

/// What stages are built with.
struct Context<'a> {
    counts: &'a Counts,
    limits: &'a Limits,
    /// How many `limit` stages were built.
    built: Cell<usize>,
}

impl Context<'_> {
    fn buckets(&self) -> Arc<Mutex<filter::Buckets>> {
        let n = self.built.replace(self.built.get() + 1);
        let mut all = self.limits.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(n).or_default().clone()
    }
}

impl Pipeline {
    /// Builds the stages of a job.
    ///
    /// # Errors
    /// With the stage and what is wrong with it.
    pub(crate) fn new(
        configs: &[StageConfig],
        counts: &Counts,
        limits: &Limits,
    ) -> Result<Self, String> {
        Self::within(configs, &Context { counts, limits, built: Cell::new(0) })
    }

    fn within(configs: &[StageConfig], context: &Context<'_>) -> Result<Self, String> {
        let mut stages = Vec::new();
        for c in configs {
            for (name, settings) in &c.0 {
                let settings = settings.clone().unwrap_or(Value::Null);
                stages.push(build(name, settings, context).map_err(|e| format!("{name}: {e}"))?);
            }
        }
        Ok(Self(stages))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn oldest_held(&self) -> Option<u64> {
        self.0.iter().filter_map(|s| s.oldest_held()).min()
    }

    pub(crate) fn pause(&self, now: TimestampNs) -> Duration {
        self.0.iter().map(|s| s.pause(now)).max().unwrap_or_default()
    }

    pub(crate) fn take(&mut self, entry: Entry, now: TimestampNs, out: &mut dyn FnMut(Entry)) {
        take(&mut self.0, entry, now, out);
    }

    pub(crate) fn flush(&mut self, now: TimestampNs, is_end: bool, out: &mut dyn FnMut(Entry)) {
        for i in 0..self.0.len() {
            let mut held = Vec::new();
            if let Some(stage) = self.0.get_mut(i) {
                stage.flush(now, is_end, &mut |e| held.push(e));
            }
            let rest = self.0.get_mut(i + 1..).unwrap_or_default();
            for e in held {
                take(rest, e, now, out);
            }
        }
    }
}

/// A stage that makes one entry of each, or none.
struct Simple<F>(F);

impl<F: FnMut(&mut Entry, TimestampNs) -> bool + Send> Stage for Simple<F> {
    fn take(&mut self, mut entry: Entry, now: TimestampNs, out: &mut dyn FnMut(Entry)) {
        if (self.0)(&mut entry, now) {
            out(entry);
        }
    }
}

/// A stage that changes entries and keeps them all.
fn change(mut f: impl FnMut(&mut Entry, TimestampNs) + Send + 'static) -> Box<dyn Stage> {
    Box::new(Simple(move |e: &mut Entry, now| {
        f(e, now);
        true
    }))
}

/// A stage that keeps entries or drops them.
fn keep(f: impl FnMut(&mut Entry, TimestampNs) -> bool + Send + 'static) -> Box<dyn Stage> {
    Box::new(Simple(f))
}

/// Reads a stage's settings; none at all are the defaults.
fn settings<T: DeserializeOwned>(v: Value) -> Result<T, String> {
    let v = if v.is_null() { Value::Object(serde_json::Map::new()) } else { v };
    serde_json::from_value(v).map_err(|e| e.to_string())
}

fn build(name: &str, v: Value, context: &Context<'_>) -> Result<Box<dyn Stage>, String> {
    match name {
        "docker" => Ok(container::docker()),
        "cri" => container::cri(settings(v)?),
        "json" => extract::json(settings(v)?),
        "logfmt" => extract::logfmt(settings(v)?),
        "regex" => extract::regex(settings(v)?),
        "timestamp" => transform::timestamp(settings(v)?),
        "output" => transform::output(settings(v)?),
        "template" => transform::template(settings(v)?),
        "replace" => transform::replace(settings(v)?),
        "decolorize" => Ok(transform::decolorize()),
        "pack" => transform::pack(settings(v)?),
        "tenant" => label::tenant(settings(v)?),
        "labels" => label::labels(settings(v)?, false),
        // The second is what it was called at first.
        "structured_metadata" | "non_indexed_labels" => label::labels(settings(v)?, true),
        "static_labels" => label::fixed(settings(v)?),
        "labeldrop" => label::drop(settings(v)?),
        "labelallow" => label::allow(settings(v)?),
        "drop" => filter::drop(settings(v)?),
        "match" => filter::matching(settings(v)?, context),
        "limit" => filter::limit(settings(v)?, context.buckets()),
        "sampling" => filter::sampling(settings(v)?),
        "multiline" => multiline::multiline(settings(v)?),
        "metrics" => metrics::metrics(settings(v)?, &context.counts.custom),
        "eventlogmessage" => Ok(extract::event_log_message(settings(v)?)),
        "geoip" => Err("this stage is not supported".into()),
        _ => Err("invalid stage".into()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs stages, written as YAML, over lines of the stream `{job="j"}`; the second of each line
    /// is its number.
    pub(crate) fn run(stages: &str, lines: &[&str]) -> Vec<Entry> {
        let configs: Vec<StageConfig> = serde_saphyr::from_str(stages).unwrap();
        let mut pipeline = Pipeline::new(&configs, &Counts::default(), &Limits::default())
            .unwrap_or_else(|e| panic!("{stages}: {e}"));
        let labels = BTreeMap::from([("job".to_owned(), "j".to_owned())]);
        let mut out = Vec::new();
        let at = |i: usize| TimestampNs::from_nanos(i as i64 * 1_000_000_000);
        for (i, line) in lines.iter().enumerate() {
            let entry = Entry::new(at(i), (*line).to_owned(), &labels);
            pipeline.take(entry, at(i), &mut |e| out.push(e));
        }
        pipeline.flush(at(lines.len()), true, &mut |e| out.push(e));
        out
    }

    /// Like [`run`]; returns labels and line of each entry.
    pub(crate) fn shown(stages: &str, lines: &[&str]) -> Vec<String> {
        let text = |e: &Entry| {
            let labels: Vec<String> = e.labels.iter().map(|(n, v)| format!("{n}={v}")).collect();
            format!("{} | {}", labels.join(" "), e.line)
        };
        run(stages, lines).iter().map(text).collect()
    }

    #[test]
    fn wrong_stages_are_refused_by_name() {
        for (stages, why) in [
            ("[{nope: {}}]", "nope: invalid stage"),
            ("[{geoip: {}}]", "geoip: this stage is not supported"),
            ("[{regex: {expression: '('}}]", "regex: "),
            ("[{json: {expressions: {a: 'b['}}}]", "json: could not compile JMES expression"),
            (
                "[{timestamp: {source: t, format: Unix, location: Mars/Base}}]",
                "timestamp: invalid location",
            ),
            ("[{regex: {}}]", "regex: missing field `expression`"),
            ("[{timestamp: {source: t}}]", "timestamp: missing field `format`"),
            ("[{output: {source: x, what: y}}]", "output: unknown field `what`"),
            ("[{match: {selector: '{a='}}]", "match: "),
        ] {
            let configs: Vec<StageConfig> = serde_saphyr::from_str(stages).unwrap();
            let e = Pipeline::new(&configs, &Counts::default(), &Limits::default()).unwrap_err();
            assert!(e.starts_with(why), "{stages}: {e}");
        }
    }
}
