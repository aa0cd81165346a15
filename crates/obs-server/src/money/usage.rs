//! Usage told by itself: `POST /api/v1/usage` and `POST /api/v1/costs`.

use crate::money::{Answer, Fault, body, data, moment, query, tenant, usd};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use obs_llm::{usage_call, usage_id};
use obs_model::{
    CallSelection, CallStatus, CostState, Dialect, LlmCall, Money, TenantId, TimestampNs,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/api/v1/usage", post(usage)).route("/api/v1/usage/history", get(history))
}

/// Tokens by part. `input_tokens` counts cached ones too, as providers' APIs do; those say how
/// many of them cost less.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Tokens {
    #[serde(default, alias = "prompt_tokens")]
    pub(super) input_tokens: u64,
    #[serde(default, alias = "completion_tokens")]
    pub(super) output_tokens: u64,
    #[serde(default)]
    pub(super) total_tokens: Option<u64>,
    #[serde(default, alias = "cache_read_tokens", alias = "cached_input_tokens")]
    pub(super) cached_tokens: u64,
    #[serde(default, alias = "cache_creation_tokens")]
    pub(super) cache_write_tokens: u64,
    #[serde(default)]
    pub(super) cache_write_1h_tokens: u64,
    #[serde(default)]
    pub(super) reasoning_tokens: u64,
    #[serde(default)]
    pub(super) search_units: u64,
}

impl Tokens {
    /// Writes the parts into a call.
    pub(super) fn put(&self, c: &mut LlmCall) -> Result<(), (&'static str, String)> {
        let parts = [self.cached_tokens, self.cache_write_tokens, self.cache_write_1h_tokens];
        let cached = parts.iter().fold(0_u64, |a, b| a.saturating_add(*b));
        let input = self.input_tokens.checked_sub(cached).ok_or_else(|| {
            ("input_tokens", "cached tokens are more than the input, which counts them too".into())
        })?;
        let output = self.output_tokens.checked_sub(self.reasoning_tokens).ok_or_else(|| {
            (
                "output_tokens",
                "reasoning tokens are more than the output, which counts them too".into(),
            )
        })?;
        if let Some(total) = self.total_tokens
            && self.input_tokens.checked_add(self.output_tokens) != Some(total)
        {
            let text = format!("{total} is not input + output");
            return Err(("total_tokens", text));
        }
        let t = &mut c.tokens;
        (t.input, t.output, t.reasoning) = (input, output, self.reasoning_tokens);
        (t.cache_read, t.search_units) = (self.cached_tokens, self.search_units);
        (t.cache_write, t.cache_write_1h) = (self.cache_write_tokens, self.cache_write_1h_tokens);
        "told by the usage API".clone_into(&mut c.evidence);
        Ok(())
    }
}

/// A call that somebody tells of, in Cost Ops' words and ours.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Usage {
    /// The same id again is the same call.
    #[serde(default, alias = "usage_id")]
    id: String,
    #[serde(default, alias = "organization")]
    organization_id: String,
    #[serde(default, alias = "project")]
    project_id: String,
    #[serde(default, alias = "user")]
    user_id: String,
    #[serde(default)]
    session_id: String,
    #[serde(default)]
    team: String,
    #[serde(default)]
    agent: String,
    #[serde(default)]
    service: String,
    #[serde(default)]
    environment: String,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    prompt_version: String,
    /// The id of the key that paid, never the key.
    #[serde(default, alias = "api_key_id", alias = "key_id")]
    key: String,
    /// Further attributes, kept as they are: budgets and reports ask by `attribute:NAME`.
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    #[serde(default)]
    tags: Vec<String>,
    /// `enterprise` and the like: a tag `tier:enterprise`, by which price files give discounts.
    #[serde(default)]
    user_tier: String,
    provider: String,
    #[serde(alias = "model", alias = "model_name")]
    model_id: String,
    #[serde(flatten)]
    tokens: Tokens,
    #[serde(default)]
    service_tier: String,
    #[serde(default)]
    region: String,
    /// The provider's id of its answer: the same call in telemetry counts once.
    #[serde(default, alias = "call_id")]
    response_id: String,
    #[serde(default)]
    timestamp: Option<Value>,
    #[serde(default)]
    latency_ms: Option<f64>,
    #[serde(default)]
    reported_cost: Option<Money>,
    #[serde(default)]
    metadata: Value,
}

/// How far a client's clock may be ahead.
const AHEAD_NS: i64 = 300_000_000_000;

impl Usage {
    /// Makes a call of it, or says which field is wrong.
    fn call(
        self,
        tenant: &TenantId,
        now: TimestampNs,
    ) -> Result<(LlmCall, String), (&'static str, String)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let need = |name, text: &str| {
            if text.trim().is_empty() {
                Err((name, "must not be empty".to_owned()))
            } else {
                Ok(())
            }
        };
        need("provider", &self.provider)?;
        need("model_id", &self.model_id)?;
        let end = match &self.timestamp {
            None | Some(Value::Null) => now,
            Some(v) => {
                let text = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                moment(&text).ok_or_else(|| ("timestamp", format!("{text:?} is not a time")))?
            }
        };
        if end.nanos() > now.nanos() + AHEAD_NS {
            return Err(("timestamp", "is in the future".into()));
        }
        let mut c = usage_call(&self.provider, self.model_id.trim(), end);
        self.tokens.put(&mut c)?;
        if c.tokens.total() == 0 && c.tokens.search_units == 0 {
            return Err(("total_tokens", "must be above zero".into()));
        }
        if let Some(ms) = self.latency_ms.filter(|ms| ms.is_finite() && *ms >= 0.0 && *ms < 1e9) {
            c.start = TimestampNs::from_nanos(end.nanos() - (ms * 1e6) as i64);
        }
        let id = if self.id.is_empty() {
            format!("{:x}-{:x}", now.nanos(), COUNTER.fetch_add(1, Ordering::Relaxed))
        } else {
            self.id
        };
        (c.trace_id, c.span_id) = usage_id(tenant, &id);
        c.tags = self.tags;
        if !self.user_tier.is_empty() {
            c.tags.push(format!("tier:{}", self.user_tier));
        }
        if let Some(o) = self.metadata.as_object() {
            let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            c.tags.extend(o.iter().map(|(k, v)| format!("{k}:{}", text(v))));
        }
        const TAGS_MAX: usize = 64;
        if c.tags.len() > TAGS_MAX || c.tags.iter().any(|t| t.len() > 1024) {
            return Err(("tags", format!("{TAGS_MAX} tags of 1024 bytes at most")));
        }
        const ATTRIBUTES_MAX: usize = 32;
        let long = |(k, v): (&String, &String)| k.is_empty() || k.len() > 128 || v.len() > 256;
        if self.attributes.len() > ATTRIBUTES_MAX || self.attributes.iter().any(long) {
            let text = format!("{ATTRIBUTES_MAX} names of 128 and values of 256 bytes at most");
            return Err(("attributes", text));
        }
        if self.key.len() > 256 {
            return Err(("key", "256 bytes at most".into()));
        }
        c.keep_attribute(obs_llm::KEY, self.key);
        self.attributes.into_iter().for_each(|(k, v)| c.keep_attribute(&k, v));
        (c.prompt_name, c.prompt_version) = (self.prompt, self.prompt_version);
        c.call_id = self.response_id;
        c.organization = self.organization_id;
        c.project = self.project_id;
        c.user_id = self.user_id;
        c.session_id = self.session_id;
        c.team = self.team;
        c.agent = self.agent;
        c.service = self.service;
        c.environment = self.environment;
        c.region = self.region;
        c.service_tier = obs_llm::service_tier(&self.service_tier);
        c.reported_cost = self.reported_cost;
        c.status = CallStatus::Ok;
        c.dialect = Dialect::UsageApi;
        Ok((c, id))
    }
}

/// One call as these APIs answer it.
fn receipt(c: &LlmCall, id: &str, now: TimestampNs) -> Value {
    let parts: Value = obs_llm::ledger::parts(c)
        .into_iter()
        .map(|(n, m)| (n.to_owned(), json!(usd(m))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let known = c.cost.is_some();
    json!({
        "usage_id": id, "trace_id": c.trace_id.to_string(), "provider": c.provider, "model": c.model(),
        "estimated_cost": known.then(|| usd(c.cost_usd())), "total_cost": known.then(|| usd(c.cost_usd())),
        "parts": parts, "currency": "USD", "cost_state": c.cost_state.as_str(),
        "price_id": c.cost.as_ref().map(|x| x.price_id.clone()), "processed_at": now.to_string(),
        "input_tokens": c.tokens.input_total(), "output_tokens": c.tokens.output_total(), "total_tokens": c.tokens.total(),
    })
}

fn field_fault(field: &str, message: &str) -> Fault {
    Fault::new(StatusCode::BAD_REQUEST, "VALIDATION_ERROR", format!("{field}: {message}"))
        .with("field", json!(field))
}

/// Calls in one request.
const BATCH_MAX: usize = 10_000;

/// Books one call, or each of an array: the bad ones are told, the good ones booked.
async fn usage(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let owner = tenant(&headers)?;
    let now = state.now();
    let raw: Value = body(&headers, &bytes)?;
    let list = raw.get("records").or_else(|| raw.get("usages")).and_then(Value::as_array);
    let Some(list) = raw.as_array().or(list) else {
        let one: Usage = serde_json::from_value(raw).map_err(|e| Fault::bad(e.to_string()))?;
        if one.organization_id.trim().is_empty() {
            return Err(field_fault("organization_id", "must not be empty"));
        }
        let (mut call, id) = one.call(&owner, now).map_err(|(f, m)| field_fault(f, &m))?;
        let first = state.purses.book_usage(&owner, &mut call, now).await?;
        let mut v = receipt(&call, &id, now);
        if let Some(o) = v.as_object_mut() {
            o.insert("is_new".into(), json!(first));
        }
        return Ok(data(&state, v));
    };
    if list.len() > BATCH_MAX {
        return Err(Fault::bad(format!("{BATCH_MAX} calls in one request at most")));
    }
    let (mut accepted, mut errors, mut receipts) = (0_u64, Vec::new(), Vec::new());
    for (index, v) in list.iter().enumerate() {
        let parsed = serde_json::from_value::<Usage>(v.clone()).map_err(|e| ("", e.to_string()));
        match parsed.and_then(|u| u.call(&owner, now)) {
            Err((field, message)) => {
                errors.push(json!({"index": index, "code": "VALIDATION_ERROR", "message": message, "field": field}));
            }
            Ok((mut call, id)) => {
                state.purses.book_usage(&owner, &mut call, now).await?;
                accepted += 1;
                receipts.push(receipt(&call, &id, now));
            }
        }
    }
    let rejected = errors.len();
    Ok(data(
        &state,
        json!({"accepted": accepted, "rejected": rejected, "errors": errors, "records": receipts}),
    ))
}

#[derive(Deserialize)]
struct Calculation {
    #[serde(flatten)]
    usage: Usage,
    /// False calculates without booking.
    #[serde(default = "store")]
    store: bool,
    /// Percent off, on top of agreed discounts: shown, and booked as the claimed cost.
    #[serde(default)]
    discount_percent: Option<Money>,
}

const fn store() -> bool {
    true
}

/// Calculates a call's cost step by step, and books it.
pub(super) async fn costs(
    State(state): State<AppState>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Answer {
    let owner = tenant(&headers)?;
    let now = state.now();
    let ask: Calculation = body(&headers, &bytes)?;
    let (mut call, id) = ask.usage.call(&owner, now).map_err(|(f, m)| field_fault(f, &m))?;
    obs_llm::price_call(&mut call, &state.ingest.prices());
    let mut after = call.cost_usd();
    if let Some(percent) = ask.discount_percent {
        if percent.is_sign_negative() || percent > Money::ONE_HUNDRED {
            return Err(field_fault("discount_percent", "is 0 to 100"));
        }
        let rest = Money::ONE_HUNDRED.saturating_sub(percent) / Money::ONE_HUNDRED;
        after = after.saturating_mul(rest).round_dp(12);
        call.reported_cost = Some(after);
    }
    let mut is_new = false;
    if ask.store {
        is_new = state.purses.book_usage(&owner, &mut call, now).await?;
    }
    let mut v = receipt(&call, &id, now);
    if let Some(o) = v.as_object_mut() {
        o.insert("stored".into(), json!(ask.store));
        o.insert("is_new".into(), json!(is_new));
        if ask.discount_percent.is_some() {
            o.insert("discounted_cost".into(), json!(usd(after)));
        }
    }
    if call.cost_state == CostState::Unpriced && !ask.store {
        let text = format!("no price for {} of {}", call.request_model, call.provider);
        return Err(Fault::new(StatusCode::UNPROCESSABLE_ENTITY, "UNPRICED", text));
    }
    Ok(data(&state, v))
}

async fn history(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 30)?;
    let limit = p.number("limit", 100_usize).map_err(Fault::bad)?.clamp(1, 1000);
    let owner = p.tenant.clone();
    let rows = blocking(&state, "llm_repository", "history", move |s, budget| {
        let selection =
            CallSelection { start: q.start, end: q.end, trace_id: None, revisions_only: false };
        let mut rows: Vec<Arc<LlmCall>> = Vec::new();
        s.source.current_calls(&owner, &selection, budget, &mut |c| {
            if q.keeps(c) {
                rows.push(c.clone());
                // The newest stay.
                if rows.len() >= limit * 4 {
                    rows.sort_by_key(|c| std::cmp::Reverse((c.start, c.span_id)));
                    rows.truncate(limit);
                }
            }
            ControlFlow::Continue(())
        })?;
        rows.sort_by_key(|c| std::cmp::Reverse((c.start, c.span_id)));
        rows.truncate(limit);
        Ok::<_, QueryFailure>(rows)
    })
    .await?;
    let rows: Vec<Value> = rows.iter().map(|c| crate::llm::call_json(c)).collect();
    Ok(data(&state, json!({"records": rows})))
}
