//! Templates in labels and annotations.

use crate::Rows;
use obs_model::{Labels, SampleValue};
use obs_template::prometheus::{Context, QuerySample, is_function};
use obs_template::{Limits, Template, Value};
use std::collections::BTreeMap;

/// What Prometheus puts before every template: short names for its data.
const DEFINITIONS: &str = "{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := .ExternalURL}}{{$value := .Value}}";

fn parse(name: &str, text: &str) -> Result<Template, String> {
    Template::parse(&format!("__alert_{name}"), &format!("{DEFINITIONS}{text}"), &is_function)
        .map_err(|e| e.to_string())
}

/// Returns why a text is not a template.
///
/// # Errors
/// With the template engine's words.
pub fn check(name: &str, text: &str) -> Result<(), String> {
    if text.contains("{{") { parse(name, text).map(|_| ()) } else { Ok(()) }
}

/// What a template may use besides the alert.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    pub external_labels: &'a BTreeMap<String, String>,
    pub external_url: &'a str,
    /// Evaluates a PromQL query at the alert's time.
    pub query: &'a dyn Fn(&str) -> Result<Rows, String>,
    /// Milliseconds.
    pub now_ms: i64,
}

impl std::fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").field("now_ms", &self.now_ms).finish_non_exhaustive()
    }
}

fn float(v: &SampleValue) -> f64 {
    match v {
        SampleValue::Float(f) => *f,
        SampleValue::Histogram(h) => h.count,
    }
}

/// Expands a template for a sample. A template that fails becomes the text of its error, as in
/// Prometheus: an alert is never lost because of it.
pub fn expand(
    alert: &str,
    text: &str,
    labels: &Labels,
    value: &SampleValue,
    around: Surroundings<'_>,
) -> String {
    if !text.contains("{{") {
        return text.to_owned();
    }
    let query = |q: &str| {
        let rows = (around.query)(q)?;
        let sample = |(l, v): (Labels, SampleValue)| QuerySample {
            labels: l.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
            value: float(&v),
        };
        Ok(rows.into_iter().map(sample).collect())
    };
    let context = Context {
        query: &query,
        external_url: around.external_url,
        now: around.now_ms as f64 / 1000.0,
    };
    let dot = Value::map([
        ("Labels", Value::texts(labels.iter())),
        ("ExternalLabels", Value::texts(around.external_labels.clone())),
        ("ExternalURL", around.external_url.into()),
        ("Value", Value::Float(float(value))),
    ]);
    let run = parse(alert, text)
        .and_then(|t| t.run(&dot, &context, Limits::default()).map_err(|e| e.to_string()));
    run.unwrap_or_else(|e| format!("<error expanding template: {e}>"))
}
