//! `/federate`: the newest sample of each matching series, as an exporter would serve it.

use super::Api;
use crate::params::Params;
use crate::run::blocking;
use crate::state::AppState;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use obs_model::{Labels, METRIC_NAME, SampleValue, SeriesSelection, TimestampMs};
use obs_promql::format_float;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How far back a series may have ended; Prometheus' look-back.
const LOOKBACK_MS: i64 = 300_000;

fn is_plain(name: &str, colons: bool) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(ok)
}

fn escaped(v: &str) -> String {
    v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Writes a series' name and labels, with further labels behind its own.
pub(super) fn series_text<'a>(
    labels: &'a Labels,
    more: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let name = labels.metric_name();
    let is_name = is_plain(name, true);
    let mut pairs: Vec<String> = Vec::new();
    if !is_name {
        pairs.push(format!("\"{}\"", escaped(name)));
    }
    for (n, v) in labels.iter().filter(|(n, _)| *n != METRIC_NAME).chain(more) {
        let n = if is_plain(n, false) { n.to_owned() } else { format!("\"{}\"", escaped(n)) };
        pairs.push(format!("{n}=\"{}\"", escaped(v)));
    }
    format!("{}{{{}}}", if is_name { name } else { "" }, pairs.join(","))
}

pub(super) async fn federate(State(state): State<AppState>, p: Params) -> Api<Response> {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    if p.all("match[]").next().is_none() {
        // Nothing was asked for.
        return Ok((kind, String::new()).into_response());
    }
    let selectors = super::selectors(&p, true)?;
    let external = state.workers.scrape.config().global.external_labels.clone();
    let now = state.now().to_millis();
    let tenant = p.tenant.clone();
    let rows = blocking(&state, "metric_repository", "federate", move |s, budget| {
        let mut out: BTreeMap<Labels, (i64, f64)> = BTreeMap::new();
        for matchers in &selectors {
            let selection =
                SeriesSelection { matchers, start: now.add_millis(-LOOKBACK_MS + 1), end: now };
            for series in s.source.select(&tenant, &selection, budget)? {
                let Some(last) = series.samples.last().filter(|x| !x.value.is_stale()) else {
                    continue;
                };
                // Native histograms have no form in the text format.
                let SampleValue::Float(f) = last.value else { continue };
                out.insert(series.labels, (last.timestamp.millis(), f));
            }
        }
        Ok(out)
    })
    .await?;
    let kinds = state.source.metadata(&p.tenant);
    let mut text = String::new();
    let mut family = String::new();
    for (labels, (t, f)) in rows {
        let name = labels.metric_name();
        if name != family {
            family = name.to_owned();
            let kind = kinds.get(name).map_or("untyped", |m| match m.kind {
                obs_model::MetricKind::Counter => "counter",
                obs_model::MetricKind::Gauge => "gauge",
                _ => "untyped",
            });
            if is_plain(name, true) {
                let _ = writeln!(text, "# TYPE {name} {kind}");
            } else {
                let _ = writeln!(text, "# TYPE \"{}\" {kind}", escaped(name));
            }
        }
        let mut more: Vec<(&str, &str)> =
            external.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        // A series without an instance must not get that of the federating server.
        if !external.contains_key("instance") {
            more.push(("instance", ""));
        }
        let series =
            series_text(&labels, more.into_iter().filter(|(n, _)| labels.get(n).is_empty()));
        let at = TimestampMs::from_millis(t).millis();
        let _ = writeln!(text, "{series} {} {at}", format_float(f));
    }
    Ok((kind, text).into_response())
}
