//! The Prometheus HTTP API.

mod dump;
mod federate;
mod stats;
mod status;
mod syntax;

use crate::params::{Params, prometheus_time, step_ms};
use crate::run::{QueryFailure, blocking, blocking_for};
use crate::state::AppState;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{StatusCode, header};
use obs_model::{Budget, Labels, Matcher, Sample, SampleValue, SeriesSelection, TimestampMs};
use obs_promql::ast::Expr;
use obs_promql::{
    Annotations, EvalError, Output, QueryOptions, RangeQuery, Reuse, evaluate_instant,
    format_float, parse,
};
use serde_json::json;
use stats::{Stats, Timed, Times};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/query", get(query).post(query))
        .route("/api/v1/query_range", get(query_range).post(query_range))
        .route("/api/v1/series", get(series).post(series))
        .route("/api/v1/labels", get(labels).post(labels))
        .route("/api/v1/label/{name}/values", get(label_values))
        .route("/api/v1/metadata", get(metadata))
        .route("/api/v1/query_exemplars", get(status::exemplars).post(status::exemplars))
        .route("/api/v1/format_query", get(syntax::format_query).post(syntax::format_query))
        .route("/api/v1/parse_query", get(syntax::parse_query).post(syntax::parse_query))
        .merge(rule_routes())
        .route("/api/v1/alertmanagers", get(status::alertmanagers))
        .route("/api/v1/targets", get(status::targets))
        .route("/api/v1/targets/metadata", get(status::target_metadata))
        .route("/api/v1/scrape_pools", get(status::scrape_pools))
        .route("/api/v1/notifications", get(|| async { success(json!([])) }))
        .route("/api/v1/status/flags", get(status::flags))
        .route("/api/v1/status/runtimeinfo", get(status::runtime_info))
        .route("/api/v1/status/tsdb", get(status::tsdb))
        .route("/api/v1/status/walreplay", get(status::wal_replay))
        .route("/federate", get(federate::federate))
        .route("/api/v1/export/openmetrics", get(dump::openmetrics).post(dump::openmetrics))
        .route("/-/quit", post(status::quit).put(status::quit))
        .route("/api/v1/status/buildinfo", get(buildinfo))
        .route("/api/v1/status/config", get(config))
        .route("/-/healthy", get(|| async { "Observatory is Healthy.\n" }))
        .route("/-/ready", get(crate::health::prometheus_ready))
        .route("/-/reload", post(reload).put(reload))
}

/// Rules and alerts, which Loki's ruler serves too.
pub(crate) fn rule_routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/rules", get(status::rules))
        .route("/api/v1/alerts", get(status::alerts))
}

/// An error in the API's shape.
struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
}

impl ApiError {
    fn bad(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "bad_data", message: message.into() }
    }
}

impl From<QueryFailure> for ApiError {
    fn from(f: QueryFailure) -> Self {
        let (status, kind) = match f {
            QueryFailure::Bad(_) | QueryFailure::TooMuch(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "execution")
            }
            QueryFailure::Busy => (StatusCode::TOO_MANY_REQUESTS, "unavailable"),
            QueryFailure::Timeout => (StatusCode::SERVICE_UNAVAILABLE, "timeout"),
            QueryFailure::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        Self { status, kind, message: f.message() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({"status": "error", "errorType": self.kind, "error": self.message});
        (self.status, Json(body)).into_response()
    }
}

type Api<T> = Result<T, ApiError>;

fn success(data: impl serde::Serialize) -> Response {
    Json(json!({"status": "success", "data": data})).into_response()
}

fn time_param(p: &Params, name: &str) -> Api<Option<i64>> {
    let parse = |text: &str| {
        prometheus_time(text).ok_or_else(|| {
            ApiError::bad(format!(
                "invalid parameter {name:?}: cannot parse {text:?} to a valid timestamp"
            ))
        })
    };
    p.get(name).map(parse).transpose()
}

fn parsed(state: &AppState, p: &Params) -> Api<(String, Expr)> {
    let text = p.get("query").unwrap_or_default();
    let expr = state
        .workers
        .promql
        .parse(text)
        .map_err(|e| ApiError::bad(format!("invalid parameter \"query\": {e}")))?;
    Ok((text.to_owned(), expr))
}

fn options(state: &AppState, p: &Params) -> Api<QueryOptions> {
    let mut o = state.workers.promql.options();
    if let Some(text) = p.get("lookback_delta") {
        o.lookback_ms = step_ms(text).filter(|ms| *ms > 0).ok_or_else(|| {
            ApiError::bad(format!("error parsing lookback delta duration: {text:?}"))
        })?;
    }
    Ok(o)
}

fn failure(e: EvalError) -> QueryFailure {
    match e {
        EvalError::Execution(m) => QueryFailure::Bad(m),
        EvalError::Select(s) => s.into(),
    }
}

async fn query(State(state): State<AppState>, p: Params) -> Api<Response> {
    let (text, expr) = parsed(&state, &p)?;
    let mut options = options(&state, &p)?;
    let time = time_param(&p, "time")?.unwrap_or_else(|| state.now().to_millis().millis());
    let extras = Extras::of(&p)?;
    options.count_samples = extras.stats.is_some();
    let tenant = p.tenant.clone();
    let asked = Instant::now();
    let run = move |s: &AppState, budget: &Budget| {
        let mut timed = Timed::new(&*s.source, asked);
        let time = TimestampMs::from_millis(time);
        let out = evaluate_instant(&timed, &tenant, &expr, time, options, budget);
        timed.done(budget.samples_taken());
        Ok((out.map_err(failure)?, timed.times()))
    };
    let result = blocking_for(&state, extras.timeout, "metric_repository", "query", run).await?;
    Ok(respond(&text, result, extras, (time, 1)))
}

async fn query_range(State(state): State<AppState>, p: Params) -> Api<Response> {
    let missing = |name: &str| {
        ApiError::bad(format!("invalid parameter {name:?}: cannot parse \"\" to a valid timestamp"))
    };
    let start = time_param(&p, "start")?.ok_or_else(|| missing("start"))?;
    let end = time_param(&p, "end")?.ok_or_else(|| missing("end"))?;
    if end < start {
        return Err(ApiError::bad(
            "invalid parameter \"end\": end timestamp must not be before start time",
        ));
    }
    let text = p.get("step").unwrap_or_default();
    let step = step_ms(text).ok_or_else(|| {
        ApiError::bad(format!(
            "invalid parameter \"step\": cannot parse {text:?} to a valid duration"
        ))
    })?;
    if step <= 0 {
        return Err(ApiError::bad(
            "invalid parameter \"step\": zero or negative query resolution step widths are not accepted. Try a positive integer",
        ));
    }
    if (end - start) / step > state.limits.query_points_max {
        return Err(ApiError::bad(
            "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)",
        ));
    }
    let (text, expr) = parsed(&state, &p)?;
    if !matches!(
        expr.value_type(),
        obs_promql::ast::ValueType::Scalar | obs_promql::ast::ValueType::Vector
    ) {
        let got = expr.value_type().describe();
        return Err(ApiError::bad(format!(
            "invalid parameter \"query\": invalid expression type {got:?} for range query, must be Scalar or instant Vector"
        )));
    }
    let mut options = options(&state, &p)?;
    let extras = Extras::of(&p)?;
    options.count_samples = extras.stats.is_some();
    let tenant = p.tenant.clone();
    let (asked, first) = (Instant::now(), start);
    let (start, end) = (TimestampMs::from_millis(start), TimestampMs::from_millis(end));
    // Statistics are of an evaluation.
    let may_reuse = extras.stats.is_none() && !p.no_store && p.get("nocache") != Some("1");
    let run = move |s: &AppState, budget: &Budget| {
        let query = RangeQuery {
            tenant: &tenant,
            text: &text,
            expr: &expr,
            start,
            end,
            step_ms: step,
            options,
        };
        let mut timed = Timed::new(&*s.source, asked);
        let out = if may_reuse {
            let now = s.now().to_millis();
            let out = s.results.evaluate(&timed, &query, now, budget);
            out.map(|(output, said, reuse)| ((output, said), reuse))
        } else {
            query.evaluate(&timed, (start, end), budget).map(|out| (out, Reuse::Never))
        };
        timed.done(budget.samples_taken());
        let (out, reuse) = out.map_err(failure)?;
        let t = s.ingest.telemetry();
        t.results_cache.with_label_values(&[reuse.as_str()]).inc();
        let (bytes, _) = s.results.bytes();
        let usage = t.limit_usage.with_label_values(&["results_cache_bytes"]);
        usage.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        Ok((text, (out, timed.times())))
    };
    let (text, result) =
        blocking_for(&state, extras.timeout, "metric_repository", "query_range", run).await?;
    Ok(respond(&text, result, extras, (first, step)))
}

/// What a request wants beside the result.
struct Extras {
    /// Series past which the result is cut; 0 means none.
    limit: usize,
    stats: Option<Stats>,
    timeout: Option<Duration>,
}

impl Extras {
    fn of(p: &Params) -> Api<Self> {
        let limit = p.number("limit", 0).map_err(ApiError::bad)?;
        let stats = p.get("stats").map(|s| if s == "all" { Stats::PerStep } else { Stats::Totals });
        let timeout = match p.get("timeout") {
            None => None,
            Some(text) => {
                let ms = step_ms(text).and_then(|ms| u64::try_from(ms).ok());
                let ms = ms.ok_or_else(|| {
                    ApiError::bad(format!(
                        "invalid parameter \"timeout\": cannot parse {text:?} to a valid duration"
                    ))
                })?;
                Some(Duration::from_millis(ms))
            }
        };
        Ok(Self { limit, stats, timeout })
    }

    /// Cuts a result; returns whether anything was left out.
    fn cut(&self, output: &mut Output) -> bool {
        let before = match output {
            Output::Vector(rows) => rows.len(),
            Output::Matrix(series) => series.len(),
            _ => 0,
        };
        if self.limit == 0 || before <= self.limit {
            return false;
        }
        match output {
            Output::Vector(rows) => rows.truncate(self.limit),
            Output::Matrix(series) => series.truncate(self.limit),
            _ => {}
        }
        true
    }
}

type Answer = ((Output, Annotations), Times);

fn respond(
    query: &str,
    ((mut output, annotations), times): Answer,
    extras: Extras,
    steps: (i64, i64),
) -> Response {
    let is_cut = extras.cut(&mut output);
    let mut body = String::from(r#"{"status":"success","data":"#);
    write_output(&mut body, &output);
    if let Some(wanted) = extras.stats
        && body.pop().is_some()
    {
        let stats = times.stats(wanted, &annotations.samples, steps);
        let _ = write!(body, ",\"stats\":{stats}}}");
    }
    let (mut warnings, infos) = annotations.print(query);
    if is_cut {
        warnings.push("results truncated due to limit".into());
    }
    for (name, list) in [("warnings", warnings), ("infos", infos)] {
        if !list.is_empty() {
            let list: Vec<String> = list.into_iter().take(10).collect();
            let _ = write!(body, ",\"{name}\":{}", json!(list));
        }
    }
    body.push('}');
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Writes a result as the `data` member, shared with the Loki API's metric results.
pub(crate) fn write_output(out: &mut String, output: &Output) {
    match output {
        Output::Scalar(s) => {
            out.push_str(r#"{"resultType":"scalar","result":"#);
            write_sample(out, s);
        }
        Output::String(t, text) => {
            let _ = write!(
                out,
                r#"{{"resultType":"string","result":[{},{}]"#,
                seconds(*t),
                json!(text)
            );
        }
        Output::Vector(rows) => {
            out.push_str(r#"{"resultType":"vector","result":["#);
            for (i, (labels, s)) in rows.iter().enumerate() {
                out.push_str(if i > 0 { ",{\"metric\":" } else { "{\"metric\":" });
                write_labels(out, labels);
                out.push_str(if matches!(s.value, SampleValue::Histogram(_)) {
                    ",\"histogram\":"
                } else {
                    ",\"value\":"
                });
                write_sample(out, s);
                out.push('}');
            }
            out.push(']');
        }
        Output::Matrix(series) => {
            out.push_str(r#"{"resultType":"matrix","result":["#);
            for (i, s) in series.iter().enumerate() {
                out.push_str(if i > 0 { ",{\"metric\":" } else { "{\"metric\":" });
                write_labels(out, &s.labels);
                for (name, histograms) in [("values", false), ("histograms", true)] {
                    let mut of_kind = s
                        .samples
                        .iter()
                        .filter(|x| matches!(x.value, SampleValue::Histogram(_)) == histograms)
                        .peekable();
                    if of_kind.peek().is_none() {
                        continue;
                    }
                    let _ = write!(out, ",\"{name}\":[");
                    for (i, x) in of_kind.enumerate() {
                        if i > 0 {
                            out.push(',');
                        }
                        write_sample(out, x);
                    }
                    out.push(']');
                }
                out.push('}');
            }
            out.push(']');
        }
    }
    out.push('}');
}

pub(crate) fn write_labels(out: &mut String, labels: &Labels) {
    out.push('{');
    for (i, (n, v)) in labels.iter().enumerate() {
        let _ = write!(out, "{}{}:{}", if i > 0 { "," } else { "" }, json!(n), json!(v));
    }
    out.push('}');
}

/// Seconds with as many decimals as milliseconds need.
fn seconds(t: TimestampMs) -> String {
    let ms = t.millis();
    let fraction = ms.rem_euclid(1000);
    if fraction == 0 { ms.div_euclid(1000).to_string() } else { format!("{}", ms as f64 / 1000.0) }
}

fn write_sample(out: &mut String, s: &Sample) {
    match &s.value {
        SampleValue::Float(f) => {
            let _ = write!(out, "[{},\"{}\"]", seconds(s.timestamp), format_float(*f));
        }
        SampleValue::Histogram(h) => {
            let _ = write!(
                out,
                "[{},{{\"count\":\"{}\",\"sum\":\"{}\"",
                seconds(s.timestamp),
                format_float(h.count),
                format_float(h.sum)
            );
            let buckets = h.buckets();
            if !buckets.is_empty() {
                out.push_str(",\"buckets\":[");
                for (i, b) in buckets.iter().enumerate() {
                    // 0: open left, 1: open right, 2: open both, 3: closed both.
                    let boundaries = match (b.lower_inclusive, b.upper_inclusive) {
                        (false, true) => 0,
                        (true, false) => 1,
                        (false, false) => 2,
                        (true, true) => 3,
                    };
                    let comma = if i > 0 { "," } else { "" };
                    let _ = write!(
                        out,
                        "{comma}[{boundaries},\"{}\",\"{}\",\"{}\"]",
                        format_float(b.lower),
                        format_float(b.upper),
                        format_float(b.count)
                    );
                }
                out.push(']');
            }
            out.push_str("}]");
        }
    }
}

/// Reads a series selector.
pub(crate) fn matchers_of(text: &str) -> Result<Vec<Matcher>, String> {
    match parse(text) {
        Ok(Expr::Selector(s)) => Ok(s.matchers),
        Ok(_) => Err(format!("{text:?} is not a series selector")),
        Err(e) => Err(e.to_string()),
    }
}

/// The selectors of `match[]`; `None` where the endpoint allows none.
fn selectors(p: &Params, required: bool) -> Api<Vec<Vec<Matcher>>> {
    let mut out = Vec::new();
    for text in p.all("match[]") {
        let bad = |e| ApiError::bad(format!("invalid parameter \"match[]\": {e}"));
        out.push(matchers_of(text).map_err(bad)?);
    }
    if out.is_empty() {
        if required {
            return Err(ApiError::bad("no match[] parameter provided"));
        }
        out.push(Vec::new());
    }
    Ok(out)
}

/// Returns the matching label sets in the request's range.
async fn label_sets(state: &AppState, p: &Params, required: bool) -> Api<Vec<Labels>> {
    let selectors = selectors(p, required)?;
    let start = time_param(p, "start")?.unwrap_or(i64::MIN);
    let end = time_param(p, "end")?.unwrap_or(i64::MAX);
    let tenant = p.tenant.clone();
    let run = move |s: &AppState, budget: &Budget| {
        let mut out = Vec::new();
        for matchers in &selectors {
            let selection = SeriesSelection {
                matchers,
                start: TimestampMs::from_millis(start),
                end: TimestampMs::from_millis(end),
            };
            out.extend(s.source.label_sets(&tenant, &selection, budget)?);
        }
        if selectors.len() > 1 {
            out.sort_unstable();
            out.dedup();
        }
        Ok(out)
    };
    Ok(blocking(state, "metric_repository", "series", run).await?)
}

/// Cuts a list at `limit` and says so, as Prometheus does.
fn limited<T: serde::Serialize>(p: &Params, mut list: Vec<T>) -> Api<Response> {
    let limit: usize = p.number("limit", 0).map_err(ApiError::bad)?;
    if limit > 0 && list.len() > limit {
        list.truncate(limit);
        return Ok(Json(json!({"status": "success", "data": list, "warnings": ["results truncated due to limit"]})).into_response());
    }
    Ok(success(list))
}

async fn series(State(state): State<AppState>, p: Params) -> Api<Response> {
    let sets = label_sets(&state, &p, true).await?;
    let object = |l: &Labels| {
        l.iter()
            .map(|(n, v)| (n.to_owned(), v.into()))
            .collect::<serde_json::Map<String, serde_json::Value>>()
    };
    limited(&p, sets.iter().map(object).collect())
}

async fn labels(State(state): State<AppState>, p: Params) -> Api<Response> {
    let sets = label_sets(&state, &p, false).await?;
    limited(&p, sorted(sets.iter().flat_map(|l| l.iter().map(|(n, _)| n))))
}

async fn label_values(
    State(state): State<AppState>,
    Path(name): Path<String>,
    p: Params,
) -> Api<Response> {
    let sets = label_sets(&state, &p, false).await?;
    limited(&p, sorted(sets.iter().map(|l| l.get(&name)).filter(|v| !v.is_empty())))
}

/// Each text once, in order. Most are repeated many times, which hashing bears better than sorting.
fn sorted<'t>(all: impl Iterator<Item = &'t str>) -> Vec<&'t str> {
    let unique: HashSet<&str> = all.collect();
    let mut out: Vec<&str> = unique.into_iter().collect();
    out.sort_unstable();
    out
}

async fn metadata(State(state): State<AppState>, p: Params) -> Api<Response> {
    let all = state.source.metadata(&p.tenant);
    let limit: usize = p.number("limit", usize::MAX).map_err(ApiError::bad)?;
    let only = p.get("metric");
    let wanted = all.into_iter().filter(|(name, _)| only.is_none_or(|m| m == name));
    let entry = |(name, m): (String, obs_model::MetricMetadata)| {
        (name, json!([{"type": m.kind.as_str(), "help": m.help, "unit": m.unit}]))
    };
    Ok(success(wanted.take(limit).map(entry).collect::<serde_json::Map<_, _>>()))
}

/// `features` must be absent: Grafana takes a server with features for Mimir.
async fn buildinfo(State(state): State<AppState>) -> Response {
    success(
        json!({"version": "3.0.0", "revision": format!("observatory-{}", state.version), "branch": "main", "buildUser": "", "buildDate": "", "goVersion": ""}),
    )
}

async fn config(State(state): State<AppState>) -> Response {
    success(json!({"yaml": &*state.config_text}))
}

pub(crate) async fn reload(State(state): State<AppState>) -> Response {
    match (state.reload)() {
        Ok(()) => StatusCode::OK.into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("failed to reload config: {e}\n"))
            .into_response(),
    }
}
