//! The Loki HTTP API.

mod counting;
mod deletes;
mod explore;
mod limits;
mod patterns;
mod push;
mod rules;
mod streams;
mod tail;

use crate::params::{Params, loki_time, step_ms};
use crate::prometheus::write_output;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use counting::{Counting, Stats};
use http::{HeaderMap, StatusCode, header};
pub(crate) use limits::LokiGuard;
pub use limits::{LokiLimits, RawLokiLimits};
use obs_logql::ast::{LogExpr, Query};
use obs_logql::{
    LabelMap, LogOptions, LogStream, QueryError, parse, pretty, run_instant, run_logs, run_range,
};
use obs_model::{Direction, TimestampNs};
use obs_promql::Output;
pub use rules::run_written_rules;
use serde_json::json;
use std::fmt::Write as _;

const HOUR_NS: i64 = 3_600_000_000_000;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/loki/api/v1/push", post(push::push))
        .route("/loki/api/v1/query", get(query).post(query))
        .route("/loki/api/v1/query_range", get(query_range).post(query_range))
        .route("/loki/api/v1/labels", get(streams::labels).post(streams::labels))
        .route("/loki/api/v1/label", get(streams::labels).post(streams::labels))
        .route(
            "/loki/api/v1/label/{name}/values",
            get(streams::label_values).post(streams::label_values),
        )
        .route("/loki/api/v1/series", get(streams::series).post(streams::series))
        .route("/loki/api/v1/index/stats", get(streams::stats).post(streams::stats))
        .route("/loki/api/v1/index/volume", get(streams::volume).post(streams::volume))
        .route(
            "/loki/api/v1/index/volume_range",
            get(streams::volume_range).post(streams::volume_range),
        )
        .route(
            "/loki/api/v1/detected_labels",
            get(explore::detected_labels).post(explore::detected_labels),
        )
        .route(
            "/loki/api/v1/detected_fields",
            get(explore::detected_fields).post(explore::detected_fields),
        )
        .route(
            "/loki/api/v1/detected_field/{name}/values",
            get(explore::field_values).post(explore::field_values),
        )
        .route("/loki/api/v1/patterns", get(patterns::patterns).post(patterns::patterns))
        .route("/loki/api/v1/format_query", get(format_query).post(format_query))
        .route("/loki/api/v1/tail", get(tail::tail))
        .route(
            "/loki/api/v1/delete",
            get(deletes::list).post(deletes::add).put(deletes::add).delete(deletes::cancel),
        )
        .route("/loki/api/v1/rules", get(rules::groups))
        .route(
            "/loki/api/v1/rules/{namespace}",
            get(rules::namespace).post(rules::write).delete(rules::delete_namespace),
        )
        .route(
            "/loki/api/v1/rules/{namespace}/{group}",
            get(rules::group).delete(rules::delete_group),
        )
        .route("/loki/api/v1/status/buildinfo", get(buildinfo))
        .route("/loki/api/v1/drilldown-limits", get(drilldown_limits))
        .route("/otlp/v1/logs", post(crate::otlp_http::post_logs))
        .route("/ready", get(crate::health::prometheus_ready))
}

/// What else Loki's own port answers.
pub(crate) fn port_routes() -> Router<AppState> {
    // Each part of a Loki has a page of its own for who does its work: here it is one.
    let rings =
        ["/ring", "/distributor/ring", "/ruler/ring", "/compactor/ring", "/indexgateway/ring"];
    let routes = rings.into_iter().fold(Router::new(), |r, path| r.route(path, get(ring)));
    routes
        .route("/config", get(config))
        .route(
            "/services",
            get(|| async { "server => Running\ningester => Running\nquerier => Running\n" }),
        )
        .nest("/prometheus", crate::prometheus::rule_routes())
}

/// Loki answers errors as plain text.
struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

impl From<QueryFailure> for ApiError {
    fn from(f: QueryFailure) -> Self {
        Self(f.status(), f.message())
    }
}

fn bad(message: impl Into<String>) -> ApiError {
    ApiError(StatusCode::BAD_REQUEST, message.into())
}

type Api<T> = Result<T, ApiError>;

fn failure(e: QueryError) -> QueryFailure {
    match e {
        QueryError::Select(s) => s.into(),
        QueryError::Pipeline(m) | QueryError::Eval(m) => QueryFailure::Bad(m),
    }
}

fn parsed(p: &Params) -> Api<Query> {
    let text = p.get("query").unwrap_or_default();
    parse(text).map_err(|e| bad(e.to_string()))
}

/// Parses a query that must be one of logs; without one, everything.
fn parsed_log(p: &Params) -> Api<LogExpr> {
    match p.get("query").map(str::trim) {
        None | Some("{}") => Ok(LogExpr::default()),
        Some(text) => match parse(text).map_err(|e| bad(e.to_string()))? {
            Query::Log(log) => Ok(log),
            Query::Metric(_) => Err(bad("only log queries are supported here")),
        },
    }
}

fn time(p: &Params, name: &str) -> Api<Option<TimestampNs>> {
    p.get(name)
        .map(|text| {
            loki_time(text).ok_or_else(|| {
                bad(format!("could not parse '{name}' parameter: {text:?} is not a time"))
            })
        })
        .transpose()
}

/// Returns start and end: an hour back to now by default, `since` before `end`.
fn bounds(state: &AppState, p: &Params) -> Api<(TimestampNs, TimestampNs)> {
    let end = time(p, "end")?.unwrap_or_else(|| state.now());
    let since = match p.get("since") {
        Some(text) => step_ms(text)
            .ok_or_else(|| bad(format!("could not parse 'since' parameter: {text:?}")))?
            .saturating_mul(1_000_000),
        None => HOUR_NS,
    };
    let start = time(p, "start")?.unwrap_or_else(|| end.add_nanos(-since));
    if start > end {
        return Err(bad("end timestamp must not be before or equal to start time"));
    }
    Ok((start, end))
}

fn limit(state: &AppState, p: &Params) -> Api<usize> {
    let most = state.loki.entries(&p.tenant);
    let n: usize = p.number("limit", 100).map_err(bad)?;
    if n == 0 {
        return Err(bad("limit must be a positive value"));
    }
    if n > most {
        return Err(bad(format!(
            "max entries limit per query exceeded, limit > max_entries_limit_per_query ({n} > {most})"
        )));
    }
    Ok(n)
}

/// Returns the step of a range: as asked for, or a 250th of the range and at least a second.
fn step(p: &Params, (start, end): (TimestampNs, TimestampNs)) -> Api<i64> {
    match p.get("step") {
        Some(text) => step_ms(text).filter(|ms| *ms > 0).ok_or_else(|| {
            let known = step_ms(text).is_some();
            bad(if known {
                "zero or negative query resolution step widths are not accepted. Try a positive integer".to_owned()
            } else {
                format!("cannot parse {text:?} to a valid duration")
            })
        }),
        None => {
            let seconds = (end.nanos() - start.nanos()) / 1_000_000_000;
            Ok((seconds / 250).max(1) * 1000)
        }
    }
}

fn check_points(state: &AppState, (start, end): (TimestampNs, TimestampNs), step: i64) -> Api<()> {
    if (end.nanos() - start.nanos()) / 1_000_000 / step > state.limits.query_points_max {
        return Err(bad(
            "exceeded maximum resolution of 11,000 points per time series. Try increasing the value of the step parameter",
        ));
    }
    Ok(())
}

async fn query(State(state): State<AppState>, p: Params) -> Api<Response> {
    let Query::Metric(m) = parsed(&p)? else {
        return Err(bad(
            "log queries are not supported as an instant query type, please change your query to a range query type",
        ));
    };
    let time = time(&p, "time")?.unwrap_or_else(|| state.now());
    let tenant = p.tenant.clone();
    let out = blocking(&state, "log_repository", "query", move |s, budget| {
        let source = Counting::new(&*s.source);
        let out = run_instant(&source, &tenant, &m, time, budget).map_err(failure)?;
        Ok((out, source.done(0)))
    })
    .await?;
    state.loki.check_series(&p.tenant, series_of(&out.0))?;
    Ok(metric_response(&out.0, out.1))
}

fn direction(p: &Params) -> Api<Direction> {
    match p.get("direction").unwrap_or("backward").to_ascii_lowercase().as_str() {
        "backward" => Ok(Direction::Backward),
        "forward" => Ok(Direction::Forward),
        other => Err(bad(format!("invalid direction '{other}'"))),
    }
}

async fn query_range(
    State(state): State<AppState>,
    headers: HeaderMap,
    p: Params,
) -> Api<Response> {
    let parsed = parsed(&p)?;
    let range = bounds(&state, &p)?;
    state.loki.check_length(&p.tenant, range)?;
    let tenant = p.tenant.clone();
    match parsed {
        Query::Log(expr) => {
            let interval = match p.get("interval") {
                Some(text) => step_ms(text)
                    .filter(|ms| *ms >= 0)
                    .ok_or_else(|| bad("interval must be >= 0"))?,
                None => 0,
            };
            let flags = headers.get("x-loki-response-encoding-flags");
            let categorize = flags
                .and_then(|v| v.to_str().ok())
                .is_some_and(|v| v.split(',').any(|f| f.trim() == "categorize-labels"));
            let options = LogOptions {
                direction: direction(&p)?,
                limit: limit(&state, &p)?,
                interval_ns: interval.saturating_mul(1_000_000),
                categorize,
            };
            let out = blocking(&state, "log_repository", "query_range", move |s, budget| {
                let source = Counting::new(&*s.source);
                let out = run_logs(&source, &tenant, &expr, range, options, budget);
                let out = out.map_err(failure)?;
                let returned = out.iter().map(|s| s.entries.len()).sum();
                Ok((out, source.done(returned)))
            })
            .await?;
            Ok(log_response(&out.0, out.1, categorize))
        }
        Query::Metric(m) => {
            let step = step(&p, range)?;
            check_points(&state, range, step)?;
            let out = blocking(&state, "log_repository", "query_range", move |s, budget| {
                let source = Counting::new(&*s.source);
                let out = run_range(&source, &tenant, &m, range, step, budget).map_err(failure)?;
                Ok((out, source.done(0)))
            })
            .await?;
            state.loki.check_series(&p.tenant, series_of(&out.0))?;
            Ok(metric_response(&out.0, out.1))
        }
    }
}

fn json_body(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn series_of(out: &Output) -> usize {
    match out {
        Output::Vector(v) => v.len(),
        Output::Matrix(m) => m.len(),
        Output::Scalar(_) | Output::String(..) => 1,
    }
}

fn metric_response(out: &Output, stats: Stats) -> Response {
    let mut body = String::from(r#"{"status":"success","data":"#);
    write_output(&mut body, out);
    // `data` gets its statistics as Grafana expects them.
    body.pop();
    let _ = write!(body, ",\"stats\":{}}}}}", stats.json());
    json_body(body)
}

fn write_map(out: &mut String, labels: &LabelMap) {
    out.push('{');
    for (i, (n, v)) in labels.iter().enumerate() {
        let _ = write!(out, "{}{}:{}", if i > 0 { "," } else { "" }, json!(n), json!(v));
    }
    out.push('}');
}

fn write_streams(body: &mut String, streams: &[LogStream]) {
    for (i, s) in streams.iter().enumerate() {
        body.push_str(if i > 0 { ",{\"stream\":" } else { "{\"stream\":" });
        write_map(body, &s.labels);
        body.push_str(",\"values\":[");
        for (i, e) in s.entries.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let _ = write!(body, "{comma}[\"{}\",{}", e.timestamp.nanos(), json!(e.line));
            if let Some(categories) = &e.categories {
                let mut comma = "";
                body.push_str(",{");
                let named = [("structuredMetadata", &categories.0), ("parsed", &categories.1)];
                for (name, labels) in named.into_iter().filter(|(_, l)| !l.is_empty()) {
                    let _ = write!(body, "{comma}\"{name}\":");
                    write_map(body, labels);
                    comma = ",";
                }
                body.push('}');
            }
            body.push(']');
        }
        body.push_str("]}");
    }
}

fn log_response(streams: &[LogStream], stats: Stats, categorize: bool) -> Response {
    let mut body = String::from(r#"{"status":"success","data":{"resultType":"streams","result":["#);
    write_streams(&mut body, streams);
    body.push(']');
    if categorize {
        body.push_str(",\"encodingFlags\":[\"categorize-labels\"]");
    }
    let _ = write!(body, ",\"stats\":{}}}}}", stats.json());
    json_body(body)
}

fn success(data: impl serde::Serialize) -> Response {
    Json(json!({"status": "success", "data": data})).into_response()
}

async fn format_query(p: Params) -> Response {
    match parsed(&p) {
        Ok(query) => success(pretty(&query)),
        Err(e) => {
            let body = json!({"status": "invalid-query", "error": e.1});
            (StatusCode::BAD_REQUEST, Json(body)).into_response()
        }
    }
}

async fn buildinfo(State(state): State<AppState>) -> Response {
    Json(json!({"version": "3.4.0", "revision": format!("observatory-{}", state.version), "branch": "main", "buildUser": "", "buildDate": "", "goVersion": ""})).into_response()
}

/// What Grafana's log exploration asks first.
async fn drilldown_limits(State(state): State<AppState>, p: Params) -> Response {
    let limits = json!({
        "discover_log_levels": false,
        "discover_service_name": [],
        "max_entries_limit_per_query": state.loki.entries(&p.tenant),
        "query_timeout": format!("{}s", state.limits.query_timeout.as_secs()),
        "volume_enabled": true,
    });
    let body = json!({"limits": limits, "pattern_ingester_enabled": true, "version": "3.4.0"});
    Json(body).into_response()
}

async fn config(State(state): State<AppState>) -> Response {
    ([(header::CONTENT_TYPE, "text/yaml")], state.config_text.to_string()).into_response()
}

/// There is one process and so one member.
async fn ring() -> Response {
    Json(json!({"shards": [{"id": "observatory", "state": "ACTIVE", "address": "", "zone": ""}]}))
        .into_response()
}
