//! The native LLM API: calls with facets, summaries over time, the price book.

use crate::params::{Params, prometheus_time};
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_model::{
    Budget, CallSelection, CallStatus, CostState, LlmCall, Money, SelectError, TenantId,
    TimestampNs, TraceId,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/llm/calls", get(calls))
        .route("/api/v1/llm/summary", get(summary))
        .route("/api/v1/prices", get(prices))
}

/// Answers an error of the native API.
pub(crate) fn native_error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}

/// Returns the status of a failed query of the native API.
pub(crate) fn native_status(f: &QueryFailure) -> StatusCode {
    match f {
        QueryFailure::TooMuch(_) => StatusCode::UNPROCESSABLE_ENTITY,
        other => other.status(),
    }
}

/// Answers a failed query of the native API.
pub(crate) fn native_failure(f: &QueryFailure) -> Response {
    native_error(native_status(f), &f.message())
}

/// Dimensions by which calls are filtered and counted.
const FACETS: [&str; 9] = [
    "model",
    "provider",
    "service",
    "operation",
    "status",
    "finish_reason",
    "cost_state",
    "user",
    "environment",
];

fn dimension<'a>(c: &'a LlmCall, name: &str) -> &'a str {
    match name {
        "model" => c.model(),
        "provider" => &c.provider,
        "service" => &c.service,
        "operation" => c.operation.as_str(),
        "status" => c.status.as_str(),
        "finish_reason" => &c.finish_reason,
        "cost_state" => c.cost_state.as_str(),
        "user" => &c.user_id,
        "session" => &c.session_id,
        "environment" => &c.environment,
        _ => "",
    }
}

/// A request's range and filters.
pub(crate) struct CallQuery {
    pub(crate) selection: CallSelection,
    filters: Vec<(&'static str, Vec<String>)>,
}

pub(crate) fn call_query(state: &AppState, p: &Params) -> Result<CallQuery, String> {
    let time = |name: &str| -> Result<Option<i64>, String> {
        p.get(name)
            .map(|t| prometheus_time(t).ok_or_else(|| format!("parameter {name:?} is not a time")))
            .transpose()
    };
    let now = state.now().to_millis().millis();
    let end = time("end")?.unwrap_or(now);
    let start = time("start")?.unwrap_or(end - 3_600_000);
    let trace_id = match p.get("trace_id") {
        Some(t) => Some(TraceId::parse(t).ok_or("parameter \"trace_id\" is not hexadecimal")?),
        None => None,
    };
    let ns = |ms: i64| TimestampNs::from_nanos(ms.saturating_mul(1_000_000));
    let filters = FACETS
        .iter()
        .chain(&["session"])
        .map(|f| (*f, p.all(f).map(str::to_owned).collect::<Vec<_>>()))
        .filter(|(_, v)| !v.is_empty());
    Ok(CallQuery {
        selection: CallSelection {
            start: ns(start),
            end: ns(end),
            trace_id,
            revisions_only: false,
        },
        filters: filters.collect(),
    })
}

impl CallQuery {
    pub(crate) fn keeps(&self, c: &LlmCall) -> bool {
        self.filters.iter().all(|(name, values)| values.iter().any(|v| v == dimension(c, name)))
    }
}

/// Reads the calls of a range, each once, newest first.
pub(crate) fn read_calls(
    state: &AppState,
    tenant: &TenantId,
    q: &CallSelection,
    budget: &Budget,
) -> Result<Vec<Arc<LlmCall>>, SelectError> {
    let mut out = Vec::new();
    state.source.current_calls(tenant, q, budget, &mut |c| {
        out.push(c.clone());
        ControlFlow::Continue(())
    })?;
    out.sort_by_key(|c| std::cmp::Reverse((c.start, c.span_id)));
    Ok(out)
}

/// Writes a call with the column names of the SQL table.
pub(crate) fn call_json(c: &LlmCall) -> Value {
    let t = &c.tokens;
    json!({
        "ts_ms": c.start.nanos() as f64 / 1e6, "trace_id": c.trace_id.to_string(), "span_id": c.span_id.to_string(), "call_id": c.call_id,
        "service": c.service, "environment": c.environment, "provider": c.provider, "model": c.model(), "request_model": c.request_model,
        "response_model": c.response_model, "operation": c.operation.as_str(), "status": c.status.as_str(), "error_type": c.error_type,
        "finish_reason": c.finish_reason, "user_id": c.user_id, "session_id": c.session_id, "team": c.team, "project": c.project,
        "agent": c.agent, "prompt_name": c.prompt_name, "prompt_version": c.prompt_version, "tags": c.tags,
        "input_tokens": t.input, "output_tokens": t.output, "cache_read_tokens": t.cache_read, "cache_write_tokens": t.cache_write + t.cache_write_1h,
        "reasoning_tokens": t.reasoning, "audio_input_tokens": t.audio_input, "audio_output_tokens": t.audio_output,
        "input_total": t.input_total(), "output_total": t.output_total(),
        "duration_ms": c.duration_ms(), "time_to_first_token_ms": c.time_to_first_token_ms,
        "cost_usd": c.cost.as_ref().map(|x| x.total().normalize().to_string()), "cost_state": c.cost_state.as_str(),
        "reported_cost_usd": c.reported_cost.map(|m| m.to_string()), "price_id": c.cost.as_ref().map(|x| x.price_id.clone()), "dialect": c.dialect.as_str(),
    })
}

async fn calls(State(state): State<AppState>, p: Params) -> Response {
    let (query, limit) = match (call_query(&state, &p), p.number("limit", 200_usize)) {
        (Ok(q), Ok(l)) => (q, l.min(5000)),
        (Err(e), _) | (_, Err(e)) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    let tenant = p.tenant.clone();
    let result = blocking(&state, "llm_repository", "list", move |s, b| {
        let all = read_calls(s, &tenant, &query.selection, b)?;
        let mut facets: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
        for c in &all {
            for f in FACETS {
                // A facet counts what the other facets leave, so that its values can be widened.
                let others = query.filters.iter().all(|(name, values)| {
                    *name == f || values.iter().any(|v| v == dimension(c, name))
                });
                let value = dimension(c, f);
                if others && !value.is_empty() {
                    *facets.entry(f).or_default().entry(value.to_owned()).or_default() += 1;
                }
            }
        }
        let kept: Vec<_> = all.iter().filter(|c| query.keeps(c)).collect();
        let rows: Vec<Value> = kept.iter().take(limit).map(|c| call_json(c)).collect();
        Ok(json!({"total": kept.len(), "calls": rows, "facets": facets}))
    })
    .await;
    match result {
        Ok(v) => Json(v).into_response(),
        Err(f) => native_failure(&f),
    }
}

/// Sums of a set of calls.
#[derive(Default)]
pub(crate) struct Sums {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    refusals: u64,
    unpriced: u64,
    input: u64,
    output: u64,
    cached: u64,
    pub(crate) cost: Money,
    durations: Vec<f64>,
    first_tokens: Vec<f64>,
}

impl Sums {
    pub(crate) fn add(&mut self, c: &LlmCall) {
        self.requests += 1;
        self.errors += u64::from(c.status == CallStatus::Error);
        self.refusals += u64::from(c.is_refused());
        self.unpriced += u64::from(c.cost_state == CostState::Unpriced);
        self.input += c.tokens.input_total();
        self.output += c.tokens.output_total();
        self.cached += c.tokens.cache_read;
        self.cost = self.cost.saturating_add(c.cost.as_ref().map_or(Money::ZERO, |x| x.total()));
        self.durations.push(c.duration_ms());
        self.first_tokens.extend(c.time_to_first_token_ms);
    }

    pub(crate) fn json(&mut self) -> Value {
        json!({
            "requests": self.requests, "errors": self.errors, "refusals": self.refusals, "unpriced": self.unpriced, "input_tokens": self.input, "output_tokens": self.output,
            "cached_tokens": self.cached, "cost_usd": self.cost.normalize().to_string(),
            "p50_ms": quantile(&mut self.durations, 0.5), "p95_ms": quantile(&mut self.durations, 0.95),
            "ttft_p50_ms": quantile(&mut self.first_tokens, 0.5), "ttft_p95_ms": quantile(&mut self.first_tokens, 0.95),
        })
    }
}

/// A group's sums, and (requests, tokens, cost) by bucket of time.
type Group = (Sums, Vec<(u64, u64, Money)>);

/// Nearest-rank quantile; `None` of nothing.
pub(crate) fn quantile(values: &mut [f64], q: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (q * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

async fn summary(State(state): State<AppState>, p: Params) -> Response {
    let (query, buckets) = match (call_query(&state, &p), p.number("buckets", 60_i64)) {
        (Ok(q), Ok(n)) => (q, n.clamp(1, 500)),
        (Err(e), _) | (_, Err(e)) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    let by = match p.get("by").unwrap_or("model") {
        name if FACETS.contains(&name) || name == "session" => name.to_owned(),
        other => {
            return native_error(StatusCode::BAD_REQUEST, &format!("cannot group by {other:?}"));
        }
    };
    let tenant = p.tenant.clone();
    let result = blocking(&state, "llm_repository", "statistics", move |s, b| {
        let (start, end) = (query.selection.start.nanos(), query.selection.end.nanos());
        let step = ((end - start) / buckets).max(1);
        let count = usize::try_from(((end - start + step - 1) / step).max(1)).unwrap_or(1);
        let mut total = Sums::default();
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        let mut errors: HashMap<String, (u64, f64)> = HashMap::new();
        for c in read_calls(s, &tenant, &query.selection, b)? {
            // Repetitions of other calls' usage are listed but never summed.
            if !query.keeps(&c) || matches!(c.cost_state, CostState::Rollup | CostState::Duplicate) {
                continue;
            }
            total.add(&c);
            if c.status == CallStatus::Error {
                let e = errors.entry(c.error_type.clone()).or_default();
                *e = (e.0 + 1, e.1.max(c.start.nanos() as f64 / 1e6));
            }
            let (sums, series) = groups.entry(dimension(&c, &by).to_owned()).or_insert_with(|| (Sums::default(), vec![(0, 0, Money::ZERO); count]));
            sums.add(&c);
            let bucket = usize::try_from((c.start.nanos() - start) / step).unwrap_or(0).min(count - 1);
            if let Some(slot) = series.get_mut(bucket) {
                slot.0 += 1;
                slot.1 += c.tokens.total();
                slot.2 = slot.2.saturating_add(c.cost.as_ref().map_or(Money::ZERO, |x| x.total()));
            }
        }
        let times: Vec<f64> = (0..count).map(|i| (start + step * i as i64) as f64 / 1e9).collect();
        let group = |(name, (mut sums, series)): (String, Group)| {
            json!({
                "name": name, "sums": sums.json(),
                "requests": series.iter().map(|x| x.0).collect::<Vec<_>>(),
                "tokens": series.iter().map(|x| x.1).collect::<Vec<_>>(),
                "cost": series.iter().map(|x| x.2.normalize().to_string()).collect::<Vec<_>>(),
            })
        };
        let errors: Vec<Value> = errors.into_iter().map(|(name, (n, last))| json!({"type": name, "count": n, "last_ms": last})).collect();
        Ok(json!({"total": total.json(), "by": by, "times": times, "step_seconds": step as f64 / 1e9, "groups": groups.into_iter().map(group).collect::<Vec<_>>(), "errors": errors}))
    })
    .await;
    match result {
        Ok(v) => Json(v).into_response(),
        Err(f) => native_failure(&f),
    }
}

async fn prices(State(state): State<AppState>) -> Response {
    let book = state.ingest.prices();
    let row = |(id, r): (&str, &obs_llm::PriceRecord)| {
        json!({"id": id, "provider": r.provider, "model": r.model, "from": r.from, "to": r.to, "input": r.rates.input, "output": r.rates.output,
               "cache_read": r.rates.cache_read, "cache_write": r.rates.cache_write, "source": r.source})
    };
    Json(json!({"version": book.version(), "unit": "USD per million tokens", "prices": book.records().into_iter().map(row).collect::<Vec<_>>()})).into_response()
}
