//! The money APIs: usage, costs, prices, budgets.

mod budgets;
mod costs;
mod drift;
mod exports;
mod ledger;
mod pricing;
mod usage;
mod worth;

use crate::body::{RETRY_AFTER_SECONDS, Refusal};
use crate::llm::native_status;
use crate::params::{Params, prometheus_time};
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use obs_ingest::PurseError;
use obs_llm::report::{Dimension, Totals};
use obs_model::{
    AppendError, CallSelection, DAY_NS, LlmCall, Money, SelectError, StateError, TenantId,
    TimestampNs,
};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;

pub(crate) use budgets::authz_routes;
pub(crate) use exports::Exports;
pub use pricing::stored_prices;

/// What these APIs are, for machines; a test holds it against the routes.
const OPENAPI: &str = include_str!("openapi.json");

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

pub(crate) fn routes() -> Router<AppState> {
    costs::routes()
        .route("/api/v1/openapi.json", get(openapi))
        .merge(exports::routes())
        .merge(ledger::routes())
        .merge(usage::routes())
        .merge(pricing::routes())
        .merge(budgets::routes())
        .merge(drift::routes())
        .merge(worth::routes())
}

/// An error of these APIs: status, code and message.
#[derive(Debug, Clone)]
struct Fault {
    status: StatusCode,
    code: &'static str,
    message: String,
    more: Map<String, Value>,
}

impl Fault {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), more: Map::new() }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_REQUEST", message)
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.more.insert(key.to_owned(), value);
        self
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(o) = error.as_object_mut() {
            o.extend(self.more);
        }
        let mut r = (self.status, Json(json!({"error": error}))).into_response();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            r.headers_mut()
                .insert(header::RETRY_AFTER, http::HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        r
    }
}

impl From<QueryFailure> for Fault {
    fn from(f: QueryFailure) -> Self {
        Self::new(native_status(&f), "QUERY_FAILED", f.message())
    }
}

impl From<AppendError> for Fault {
    fn from(e: AppendError) -> Self {
        let r = Refusal::from(e);
        Self::new(r.status, "NOT_STORED", r.message)
    }
}

impl From<StateError> for Fault {
    fn from(e: StateError) -> Self {
        let r = Refusal::from(e);
        Self::new(r.status, "NOT_STORED", r.message)
    }
}

impl From<PurseError> for Fault {
    fn from(e: PurseError) -> Self {
        match e {
            PurseError::Invalid(m) => Self::bad(m),
            PurseError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", e.to_string()),
            PurseError::Refused(r) => budgets::refused(&r),
            PurseError::Busy(m) => Self::new(StatusCode::TOO_MANY_REQUESTS, "BUSY", m),
            PurseError::State(e) => e.into(),
            PurseError::Append(e) => e.into(),
            PurseError::Select(e) => QueryFailure::from(e).into(),
        }
    }
}

type Answer = Result<Response, Fault>;

/// Wraps an answer as Cost Ops does.
pub(crate) fn data(state: &AppState, v: Value) -> Response {
    let now = state.now();
    let meta = json!({
        "request_id": format!("{:x}", now.nanos()),
        "timestamp": now.to_string(),
        "version": state.version,
    });
    Json(json!({"data": v, "meta": meta})).into_response()
}

/// Reads a JSON body. Other content types are refused: a form of a web page of another site could
/// send one without being asked.
fn body<T: serde::de::DeserializeOwned>(headers: &HeaderMap, bytes: &[u8]) -> Result<T, Fault> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.to_ascii_lowercase().contains("json") {
        return Err(Fault::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UNSUPPORTED_MEDIA_TYPE",
            "send JSON with Content-Type: application/json",
        ));
    }
    serde_json::from_slice(bytes).map_err(|e| Fault::bad(e.to_string()))
}

fn tenant(headers: &HeaderMap) -> Result<TenantId, Fault> {
    crate::tenant::tenant(headers).map_err(Fault::bad)
}

/// Parses a moment: RFC 3339, Unix seconds, or a date (its beginning, UTC).
fn moment(text: &str) -> Option<TimestampNs> {
    if let Some(ms) = prometheus_time(text) {
        return Some(TimestampNs::from_nanos(ms.checked_mul(1_000_000)?));
    }
    TimestampNs::parse_day(text)
}

/// What calls a request is about.
#[derive(Debug, Clone)]
struct Query {
    start: TimestampNs,
    end: TimestampNs,
    filters: Vec<(Dimension, Vec<String>)>,
}

impl Query {
    fn keeps(&self, c: &LlmCall) -> bool {
        self.filters.iter().all(|(d, values)| d.matches(c, values))
    }

    fn days(&self) -> f64 {
        (self.end.nanos() - self.start.nanos()) as f64 / DAY_NS as f64
    }

    /// Returns a query of another range, same filters.
    fn over(&self, start: i64, end: i64) -> Self {
        let at = TimestampNs::from_nanos;
        Self { start: at(start), end: at(end), filters: self.filters.clone() }
    }
}

/// Longest range of a report, days.
const RANGE_DAYS_MAX: i64 = 732;

/// Reads range and filters: `from`/`to` (or start/end, start_date/end_date), any dimension.
fn query(state: &AppState, p: &Params, default_days: i64) -> Result<Query, Fault> {
    let time = |names: [&str; 3]| -> Result<Option<TimestampNs>, Fault> {
        let Some((name, text)) = names.iter().find_map(|n| Some((n, p.get(n)?))) else {
            return Ok(None);
        };
        let bad = || Fault::bad(format!("{name}: {text:?} is not a time"));
        moment(text).map(Some).ok_or_else(bad)
    };
    let end = time(["to", "end", "end_date"])?.unwrap_or_else(|| state.now());
    let start = time(["from", "start", "start_date"])?
        .unwrap_or_else(|| TimestampNs::from_nanos(end.nanos() - default_days * DAY_NS));
    if start >= end {
        return Err(Fault::bad("the range ends before it starts"));
    }
    if end.nanos().saturating_sub(start.nanos()) > RANGE_DAYS_MAX * DAY_NS {
        return Err(Fault::bad(format!("the range is longer than {RANGE_DAYS_MAX} days")));
    }
    let mut filters: Vec<(Dimension, Vec<String>)> = Vec::new();
    for (name, value) in p.pairs() {
        // `model` names a forecast's model as well; those handlers read it themselves.
        let Some(d) = Dimension::parse(name).filter(|_| !value.is_empty()) else { continue };
        match filters.iter_mut().find(|f| f.0 == d) {
            Some((_, list)) => list.push(value.to_owned()),
            None => filters.push((d, vec![value.to_owned()])),
        }
    }
    Ok(Query { start, end, filters })
}

/// Visits the calls of a query on the blocking pool, each in its latest revision, and returns what
/// came of it.
async fn read<T: Send + 'static>(
    state: &AppState,
    tenant: &TenantId,
    q: &Query,
    mut into: T,
    visit: impl Fn(&mut T, &LlmCall) + Send + 'static,
) -> Result<T, Fault> {
    let (tenant, q) = (tenant.clone(), q.clone());
    let done = blocking(state, "llm_repository", "costs", move |s, budget| {
        let selection =
            CallSelection { start: q.start, end: q.end, trace_id: None, revisions_only: false };
        s.source
            .current_calls(&tenant, &selection, budget, &mut |c| {
                if q.keeps(c) {
                    visit(&mut into, c);
                }
                ControlFlow::Continue(())
            })
            .map_err(|e: SelectError| QueryFailure::from(e))?;
        Ok(into)
    });
    Ok(done.await?)
}

/// Writes an amount without the zeros at its end.
fn usd(m: Money) -> String {
    m.normalize().to_string()
}

fn totals(t: &Totals) -> Value {
    json!({
        "total_cost": usd(t.usd), "input_cost": usd(t.input_usd), "output_cost": usd(t.output_usd),
        "currency": "USD", "requests": t.requests, "errors": t.errors,
        "input_tokens": t.input_tokens, "output_tokens": t.output_tokens, "total_tokens": t.tokens(),
        "cached_tokens": t.cached_tokens, "cache_write_tokens": t.cache_write_tokens, "reasoning_tokens": t.reasoning_tokens,
        "average_cost_per_request": usd(t.usd_per_request().round_dp(12)),
        "average_cost_per_1k_tokens": usd(t.usd_per_1k_tokens().round_dp(12)),
        "unpriced_requests": t.unpriced, "ambiguous_requests": t.ambiguous, "estimated_requests": t.estimated,
        "uncertain_cost": usd(t.uncertain_usd),
        "reported_cost": usd(t.reported_usd), "reported_difference": usd(t.reported_usd.saturating_sub(t.reported_computed_usd)),
    })
}

/// Returns by how much `now` differs from `before`, in percent; null from nothing.
fn change(now: Money, before: Money) -> Value {
    use rust_decimal::prelude::ToPrimitive as _;
    let part = now.saturating_sub(before).checked_div(before);
    part.and_then(|p| p.to_f64()).map_or(Value::Null, |p| json!(p * 100.0))
}
