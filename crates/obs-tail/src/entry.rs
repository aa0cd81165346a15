//! One line on its way through a pipeline.

use crate::config::Job;
use crate::detect;
use obs_model::{Attributes, Labels, LabelsBuilder, LogRecord, Resource, TimestampNs};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Labels by name, while they change.
pub type LabelMap = BTreeMap<String, String>;

/// Returns the labels that relabelling leaves for lines to have.
pub(crate) fn visible(labels: &Labels) -> LabelMap {
    let visible = labels.iter().filter(|(n, _)| !n.starts_with("__"));
    visible.map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

/// Returns the same; where nothing is left, the job's name.
pub(crate) fn visible_or_job(labels: &Labels, job: &Job) -> LabelMap {
    let mut out = visible(labels);
    if out.is_empty() {
        out.insert("job".into(), job.job_name.clone());
    }
    out
}

/// A line, its labels, and what stages took out of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    pub time: TimestampNs,
    pub line: String,
    pub labels: LabelMap,
    /// What stages hand to each other; starts with the labels.
    pub extracted: BTreeMap<String, Value>,
    /// Stored with the record, not part of its stream.
    pub metadata: LabelMap,
    pub tenant: Option<String>,
    /// Where the line begins in its file; bytes.
    pub(crate) origin: u64,
}

impl Entry {
    pub fn new(time: TimestampNs, line: String, labels: &LabelMap) -> Self {
        let extracted = labels.iter().map(|(n, v)| (n.clone(), Value::String(v.clone()))).collect();
        Self { time, line, labels: labels.clone(), extracted, ..Self::default() }
    }

    /// Returns a value that a stage took out, or the line when no source is named.
    pub(crate) fn source(&self, name: Option<&str>) -> Option<String> {
        match name {
            None | Some("") => Some(self.line.clone()),
            Some(name) => self.extracted.get(name).and_then(text),
        }
    }

    /// Turns the entry into a record. Without a pipeline of its own its level is looked for in
    /// the line.
    pub(crate) fn into_record(self, find_level: bool) -> LogRecord {
        let mut stream = LabelsBuilder::default();
        for (n, v) in self.labels {
            stream.push(n, v);
        }
        record(stream.build(), self.time, self.line, self.metadata, find_level)
    }
}

/// Builds a record of a line; the ids of a trace are taken from its metadata.
pub(crate) fn record(
    stream: Labels,
    timestamp: TimestampNs,
    line: String,
    metadata: LabelMap,
    find_level: bool,
) -> LogRecord {
    let level = match (stream.get("level"), metadata.get("level")) {
        ("", Some(l)) => l.clone(),
        ("", None) if find_level => detect::level(&line).unwrap_or_default().to_owned(),
        (l, _) => l.to_owned(),
    };
    let id = |names: [&str; 2]| names.iter().find_map(|n| metadata.get(*n));
    LogRecord {
        trace_id: id(["trace_id", "traceID"]).and_then(|t| obs_model::TraceId::parse(t)),
        span_id: id(["span_id", "spanID"]).and_then(|t| obs_model::SpanId::parse(t)),
        stream,
        timestamp,
        observed: timestamp,
        line,
        severity_number: 0,
        severity_text: level,
        event_name: String::new(),
        attributes: metadata.into_iter().collect::<Attributes>(),
        resource: Arc::<Resource>::default(),
    }
}

/// Returns a value as text; `None` for null.
pub(crate) fn text(v: &Value) -> Option<String> {
    match v {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        other => Some(other.to_string()),
    }
}
