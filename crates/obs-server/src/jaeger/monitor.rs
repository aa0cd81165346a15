//! The metrics of Jaeger's monitor tab: rate, errors and latency of services, measured from spans.

use super::{ApiError, bad};
use crate::params::Params;
use crate::run::blocking;
use crate::state::AppState;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_model::{FieldValue, TimestampNs};
use obs_traceql::{MeasureRange, TraceQl, TraceSeries, measure};
use serde_json::{Value, json};

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/api/metrics/{what}", get(metrics))
}

/// What a request asks for.
struct Asked {
    services: Vec<String>,
    kinds: Vec<String>,
    by_operation: bool,
    range: MeasureRange,
}

const MS_NS: i64 = 1_000_000;

fn asked(state: &AppState, p: &Params) -> Result<Asked, ApiError> {
    let ms = |name: &str, default: i64| p.number(name, default).map_err(bad);
    let services: Vec<String> = p.all("service").map(str::to_owned).collect();
    if services.is_empty() {
        return Err(bad("please provide at least one service name"));
    }
    let end = ms("endTs", state.now().to_millis().millis())?;
    let lookback = ms("lookback", 3_600_000)?;
    let step = ms("step", 5_000)?;
    let rate_per = ms("ratePer", 600_000)?;
    if lookback <= 0 || step <= 0 || rate_per <= 0 {
        return Err(bad("lookback, step and ratePer must be above zero"));
    }
    let kind = |k: &str| match k {
        "unspecified" | "internal" | "server" | "client" | "producer" | "consumer" => {
            Ok(k.to_owned())
        }
        _ => Err(bad(format!("unable to parse param 'spanKind': unsupported span kind: '{k}'"))),
    };
    let mut kinds = p.all("spanKind").map(kind).collect::<Result<Vec<_>, _>>()?;
    if kinds.is_empty() {
        kinds.push("server".into());
    }
    Ok(Asked {
        services,
        kinds,
        by_operation: p.get("groupByOperation") == Some("true"),
        range: MeasureRange {
            start: TimestampNs::from_nanos((end - lookback).saturating_mul(MS_NS)),
            end: TimestampNs::from_nanos(end.saturating_mul(MS_NS)),
            step_ns: Some(step.saturating_mul(MS_NS)),
            exemplars: 0,
        },
    })
}

impl Asked {
    /// Writes the query for one function; texts are quoted as TraceQL quotes them.
    fn query(&self, only: &str, function: &str) -> String {
        let list = |name: &str, values: &[String], quote: bool| {
            let one = |v: &String| {
                if quote { format!("{name} = {v:?}") } else { format!("{name} = {v}") }
            };
            format!("({})", values.iter().map(one).collect::<Vec<_>>().join(" || "))
        };
        let services = list("resource.service.name", &self.services, true);
        let kinds = list("kind", &self.kinds, false);
        let by = if self.by_operation { ", name" } else { "" };
        format!("{{ {services} && {kinds}{only} }} | {function} by (resource.service.name{by})")
    }
}

/// Divides series point by point; where nothing was counted there is no point.
fn ratio(part: Vec<TraceSeries>, whole: &[TraceSeries]) -> Vec<TraceSeries> {
    let mut out = Vec::new();
    for w in whole {
        let p = part.iter().find(|p| p.labels == w.labels);
        let at = |t: i64| {
            let found = p.and_then(|p| p.samples.iter().find(|(x, _)| *x == t));
            found.map_or(0.0, |(_, v)| *v)
        };
        let filled = w.samples.iter().filter(|(_, v)| *v > 0.0);
        let samples = filled.map(|(t, v)| (*t, at(*t) / v)).collect();
        out.push(TraceSeries { labels: w.labels.clone(), samples, exemplars: Vec::new() });
    }
    out
}

async fn metrics(
    State(state): State<AppState>,
    Path(what): Path<String>,
    p: Params,
) -> Result<Response, ApiError> {
    if what == "minstep" {
        // Milliseconds.
        let body = json!({"data": 1, "total": 0, "limit": 0, "offset": 0, "errors": null});
        return Ok(Json(body).into_response());
    }
    let asked = asked(&state, &p)?;
    let quantile: f64 = p.number("quantile", 0.95).map_err(bad)?;
    let (grouped, by) = if asked.by_operation {
        ("service_operation", "service & operation")
    } else {
        ("service", "service")
    };
    let (queries, name, help, scale) = match what.as_str() {
        "latencies" => {
            if p.get("quantile").is_none() {
                return Err(bad("unable to parse param 'quantile': it is required"));
            }
            let function = format!("quantile_over_time(duration, {quantile})");
            let help = format!("{quantile}th quantile latency, grouped by {by}");
            (vec![asked.query("", &function)], "latencies", help, 1000.0)
        }
        "calls" => {
            let help = format!("calls/sec, grouped by {by}");
            (vec![asked.query("", "rate()")], "call_rate", help, 1.0)
        }
        "errors" => {
            let errors = asked.query(" && status = error", "rate()");
            let help = format!(
                "error rate, computed as a fraction of errors/sec over calls/sec, grouped by {by}"
            );
            (vec![errors, asked.query("", "rate()")], "error_rate", help, 1.0)
        }
        _ => return Err(ApiError(StatusCode::NOT_FOUND, "no such metric".into())),
    };
    let (tenant, range) = (p.tenant.clone(), asked.range);
    let mut results = blocking(&state, "trace_repository", "metrics", move |s, b| {
        let run = |q: &String| {
            let query =
                TraceQl::parse(q).map_err(|e| crate::run::QueryFailure::Bad(e.to_string()))?;
            Ok(measure(&*s.source, &tenant, &query, &range, b)?)
        };
        queries.iter().map(run).collect::<Result<Vec<_>, crate::run::QueryFailure>>()
    })
    .await?;
    let last = results.pop().unwrap_or_default();
    let series = match results.pop() {
        Some(part) => ratio(part, &last),
        None => last,
    };
    let metric = |s: &TraceSeries| {
        let label = |(name, value): &(String, FieldValue<'_>)| {
            let name = match name.as_str() {
                "resource.service.name" => "service_name",
                "name" => "operation",
                _ => return None,
            };
            Some(json!({"name": name, "value": value.text()}))
        };
        let point = |(t, v): &(i64, f64)| {
            let time = TimestampNs::from_nanos(t * MS_NS).to_string();
            json!({"gaugeValue": {"doubleValue": v * scale}, "timestamp": time})
        };
        let filled = s.samples.iter().filter(|(_, v)| what == "errors" || *v > 0.0);
        json!({
            "labels": s.labels.iter().filter_map(label).collect::<Vec<_>>(),
            "metricPoints": filled.map(point).collect::<Vec<_>>(),
        })
    };
    let list: Vec<Value> = series.iter().map(metric).collect();
    Ok(Json(json!({
        "name": format!("{grouped}_{name}"), "type": "GAUGE", "help": help, "metrics": list,
    }))
    .into_response())
}
