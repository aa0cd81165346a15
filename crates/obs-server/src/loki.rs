//! The Loki HTTP API.

use crate::body::{self, Refusal};
use crate::params::{Params, loki_time, step_ms};
use crate::prometheus::{write_labels, write_output};
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use obs_logql::ast::Query;
use obs_logql::{LogStream, QueryError, parse, run_instant, run_logs, run_range};
use obs_model::{Budget, Direction, Labels, LogSelection, Matcher, TimestampNs};
use obs_promql::Output;
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Entries a log query may return.
const ENTRIES_MAX: usize = 5000;
const HOUR_NS: i64 = 3_600_000_000_000;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/loki/api/v1/push", post(push))
        .route("/loki/api/v1/query", get(query).post(query))
        .route("/loki/api/v1/query_range", get(query_range).post(query_range))
        .route("/loki/api/v1/labels", get(labels).post(labels))
        .route("/loki/api/v1/label", get(labels).post(labels))
        .route("/loki/api/v1/label/{name}/values", get(label_values).post(label_values))
        .route("/loki/api/v1/series", get(series).post(series))
        .route("/loki/api/v1/status/buildinfo", get(buildinfo))
        .route("/ready", get(crate::health::prometheus_ready))
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

async fn push(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Response {
    match push_inner(&state, &headers, body).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(r) => r.into_text(),
    }
}

async fn push_inner(state: &AppState, headers: &HeaderMap, body: Body) -> Result<(), Refusal> {
    let tenant = crate::tenant::tenant(headers).map_err(Refusal::bad)?;
    let media = body::media_type(headers);
    let (bytes, _held) =
        body::read(state, &tenant, headers, body, media != "application/json").await?;
    let decoded = match media.as_str() {
        "application/json" => obs_codec::loki::decode_json(&bytes),
        // Loki takes anything else for protobuf, which is always snappy-compressed.
        "application/x-protobuf" | "" => {
            obs_codec::loki::decode_protobuf(&body::unsnap(state, &tenant, &bytes)?)
        }
        other => {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("content type {other:?} is not supported"),
            ));
        }
    };
    let decoded = decoded.map_err(|e| Refusal::bad(e.to_string()))?;
    let outcome = state.ingest.logs(&tenant, decoded.items, state.now()).await?;
    let rejected = decoded.rejected.count + outcome.rejected;
    if rejected == 0 {
        return Ok(());
    }
    // The good entries are stored; the client must not send them again.
    let reasons = [decoded.rejected.reasons, outcome.reasons].concat().join("; ");
    Err(Refusal::bad(format!(
        "{rejected} entries were refused, {} stored: {reasons}",
        outcome.accepted
    )))
}

fn parsed(p: &Params) -> Api<Query> {
    let text = p.get("query").unwrap_or_default();
    parse(text).map_err(|e| bad(e.to_string()))
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

fn limit(p: &Params) -> Api<usize> {
    let n: usize = p.number("limit", 100).map_err(bad)?;
    if n == 0 {
        return Err(bad("limit must be a positive value"));
    }
    if n > ENTRIES_MAX {
        return Err(bad(format!(
            "max entries limit per query exceeded, limit > max_entries_limit_per_query ({n} > {ENTRIES_MAX})"
        )));
    }
    Ok(n)
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
        run_instant(&*s.source, &tenant, &m, time, budget).map_err(failure)
    })
    .await?;
    Ok(metric_response(&out))
}

async fn query_range(State(state): State<AppState>, p: Params) -> Api<Response> {
    let parsed = parsed(&p)?;
    let (start, end) = bounds(&state, &p)?;
    let tenant = p.tenant.clone();
    match parsed {
        Query::Log(expr) => {
            let direction =
                match p.get("direction").unwrap_or("backward").to_ascii_lowercase().as_str() {
                    "backward" => Direction::Backward,
                    "forward" => Direction::Forward,
                    other => return Err(bad(format!("invalid direction {other:?}"))),
                };
            let limit = limit(&p)?;
            let streams = blocking(&state, "log_repository", "query_range", move |s, budget| {
                run_logs(&*s.source, &tenant, &expr, (start, end), direction, limit, budget)
                    .map_err(failure)
            })
            .await?;
            Ok(log_response(&streams))
        }
        Query::Metric(m) => {
            let step = match p.get("step") {
                Some(text) => step_ms(text).filter(|ms| *ms > 0).ok_or_else(|| bad(format!("invalid step {text:?}; zero or negative query resolution step widths are not accepted")))?,
                None => default_step_ms(start, end),
            };
            if (end.nanos() - start.nanos()) / 1_000_000 / step > state.limits.query_points_max {
                return Err(bad(
                    "exceeded maximum resolution of 11,000 points per time series. Try increasing the value of the step parameter",
                ));
            }
            let out = blocking(&state, "log_repository", "query_range", move |s, budget| {
                run_range(&*s.source, &tenant, &m, (start, end), step, budget).map_err(failure)
            })
            .await?;
            Ok(metric_response(&out))
        }
    }
}

/// Loki's own rule: a 250th of the range, at least a second.
fn default_step_ms(start: TimestampNs, end: TimestampNs) -> i64 {
    let seconds = (end.nanos() - start.nanos()) / 1_000_000_000;
    (seconds / 250).max(1) * 1000
}

const STATS: &str = r#""stats":{"summary":{"bytesProcessedPerSecond":0,"linesProcessedPerSecond":0,"totalBytesProcessed":0,"totalLinesProcessed":0,"execTime":0,"queueTime":0,"subqueries":0,"totalEntriesReturned":0},"querier":{"store":{}},"ingester":{"store":{}}}"#;

fn json_body(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn metric_response(out: &Output) -> Response {
    let mut body = String::from(r#"{"status":"success","data":"#);
    write_output(&mut body, out);
    // `data` gets its statistics as Grafana expects them.
    body.pop();
    let _ = write!(body, ",{STATS}}}}}");
    json_body(body)
}

fn log_response(streams: &[LogStream]) -> Response {
    let mut body = String::from(r#"{"status":"success","data":{"resultType":"streams","result":["#);
    for (i, s) in streams.iter().enumerate() {
        body.push_str(if i > 0 { ",{\"stream\":" } else { "{\"stream\":" });
        write_labels(&mut body, &s.labels);
        body.push_str(",\"values\":[");
        for (i, (t, line)) in s.entries.iter().enumerate() {
            let _ =
                write!(body, "{}[\"{}\",{}]", if i > 0 { "," } else { "" }, t.nanos(), json!(line));
        }
        body.push_str("]}");
    }
    let _ = write!(body, "],{STATS}}}}}");
    json_body(body)
}

/// Returns the streams that match any of the selectors in the request's range.
async fn matching_streams(
    state: &AppState,
    p: &Params,
    names: &[&'static str],
) -> Api<Vec<Labels>> {
    let (start, end) = bounds(state, p)?;
    let texts: Vec<String> =
        names.iter().flat_map(|n| p.all(n).map(str::to_owned)).filter(|t| !t.is_empty()).collect();
    let mut selectors: Vec<Vec<Matcher>> = Vec::new();
    for text in texts {
        match parse(&text).map_err(|e| bad(e.to_string()))? {
            Query::Log(e) if e.stages.is_empty() => selectors.push(e.matchers),
            _ => return Err(bad("only label matchers are supported")),
        }
    }
    if selectors.is_empty() {
        selectors.push(Vec::new());
    }
    let tenant = p.tenant.clone();
    let run = move |s: &AppState, budget: &Budget| {
        let mut out = BTreeSet::new();
        for matchers in &selectors {
            let selection = LogSelection {
                matchers,
                start,
                end,
                direction: Direction::Forward,
                trace_id: None,
                needles: &[],
            };
            out.extend(s.source.streams(&tenant, &selection, budget)?);
        }
        Ok(out.into_iter().collect())
    };
    Ok(blocking(state, "log_repository", "series", run).await?)
}

async fn labels(State(state): State<AppState>, p: Params) -> Api<Response> {
    let streams = matching_streams(&state, &p, &["query"]).await?;
    let names: BTreeSet<&str> = streams.iter().flat_map(|l| l.iter().map(|(n, _)| n)).collect();
    Ok(Json(json!({"status": "success", "data": names})).into_response())
}

async fn label_values(
    State(state): State<AppState>,
    Path(name): Path<String>,
    p: Params,
) -> Api<Response> {
    let streams = matching_streams(&state, &p, &["query"]).await?;
    let values: BTreeSet<&str> =
        streams.iter().map(|l| l.get(&name)).filter(|v| !v.is_empty()).collect();
    Ok(Json(json!({"status": "success", "data": values})).into_response())
}

async fn series(State(state): State<AppState>, p: Params) -> Api<Response> {
    let streams = matching_streams(&state, &p, &["match", "match[]"]).await?;
    let object = |l: &Labels| {
        l.iter()
            .map(|(n, v)| (n.to_owned(), v.into()))
            .collect::<serde_json::Map<String, serde_json::Value>>()
    };
    Ok(Json(json!({"status": "success", "data": streams.iter().map(object).collect::<Vec<_>>()}))
        .into_response())
}

async fn buildinfo(State(state): State<AppState>) -> Response {
    Json(json!({"version": "3.0.0", "revision": format!("observatory-{}", state.version), "branch": "main", "buildUser": "", "buildDate": "", "goVersion": ""})).into_response()
}
