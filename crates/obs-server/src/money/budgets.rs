//! Budgets over HTTP, and Envoy's external authorization over gRPC.

use crate::grpc::unary;
use crate::money::usage::Tokens;
use crate::money::{Answer, Fault, body, tenant, usd};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use obs_llm::budget::{Amount, Ask, BudgetSpec, Refusal, Reservation, Status, Unit, moment};
use obs_llm::report::Dimension;
use obs_llm::usage_call;
use obs_model::{LlmCall, Money, TenantId, TimestampNs};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/budgets", get(list).post(set))
        .route("/api/v1/costs/budgets", get(list))
        .route("/api/v1/budgets/check", post(check))
        .route("/api/v1/budgets/reserve", post(reserve))
        .route("/api/v1/budgets/settle", post(settle))
        .route("/api/v1/budgets/cancel", post(cancel))
        .route("/api/v1/budgets/{id}", get(one).put(replace).delete(remove))
        .route("/api/v1/budgets/{id}/check", get(gate))
}

/// Names the budget that has no room, its limit, spend and reset.
pub(super) fn refused(r: &Refusal) -> Fault {
    let resets = r.resets_at.map(moment);
    let unit = match r.budget.unit {
        Unit::Usd => "USD",
        Unit::Tokens => "tokens",
        Unit::Requests => "requests",
    };
    let scope = r.budget.scope_text();
    let text = format!(
        "budget {:?}{} has no room: {} {unit} of {} spent, {} reserved, {} asked{}",
        r.budget.name,
        if scope.is_empty() { String::new() } else { format!(" ({scope})") },
        usd(r.spent),
        usd(r.budget.limit),
        usd(r.reserved),
        usd(r.asked),
        resets.as_ref().map_or_else(String::new, |t| format!("; it resets at {t}")),
    );
    Fault::new(StatusCode::PAYMENT_REQUIRED, "BUDGET_EXCEEDED", text)
        .with("budget", json!(r.budget.name))
        .with("budget_id", json!(r.budget.id))
        .with("unit", json!(unit))
        .with("limit", json!(usd(r.budget.limit)))
        .with("spent", json!(usd(r.spent)))
        .with("reserved", json!(usd(r.reserved)))
        .with("requested", json!(usd(r.asked)))
        .with("resets_at", json!(resets))
}

fn show(s: &Status, now: TimestampNs) -> Value {
    let v = s.verdict();
    let left = |to: i64| (to != i64::MAX).then(|| (to - now.nanos()) as f64 / 86_400e9);
    let mut out = json!(s.spec);
    let more = json!({
        "current_spend": usd(s.spent), "reserved": usd(s.reserved), "remaining": usd(s.remaining()),
        "utilization_percent": s.utilization() * 100.0,
        "projected_spend": s.projected.map(|m| usd(m.round_dp(12))),
        "projected_utilization_percent": s.projected.and_then(|m| ratio(m, s.spec.limit)),
        "burn_rate": s.burn_rate, "daily_average": s.daily_average.map(|m| usd(m.round_dp(12))),
        "exhausted_at": s.exhausted_at.map(moment), "days_remaining": left(s.period.1),
        "period_start": moment(s.period.0), "period_end": moment(s.period.1),
        "confidence": s.confidence, "state": v.kind, "severity": v.severity, "action": v.action,
    });
    if let (Some(o), Value::Object(m)) = (out.as_object_mut(), more) {
        o.extend(m);
    }
    out
}

fn ratio(a: Money, b: Money) -> Option<f64> {
    use rust_decimal::prelude::ToPrimitive as _;
    Some(a.checked_div(b)?.to_f64()? * 100.0)
}

async fn list(State(state): State<AppState>, p: Params) -> Answer {
    let now = state.now();
    let all = state.purses.statuses(&p.tenant, now);
    let rows: Vec<Value> = all.iter().map(|s| show(s, now)).collect();
    Ok(Json(json!({"budgets": rows})).into_response())
}

async fn one(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Answer {
    let now = state.now();
    let s = state.purses.status(&p.tenant, &id, now);
    Ok(Json(show(&s.ok_or_else(unknown)?, now)).into_response())
}

fn unknown() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "NOT_FOUND", "no such budget")
}

async fn store(state: &AppState, owner: TenantId, spec: BudgetSpec) -> Result<Value, Fault> {
    let (spec, is_new) = state.purses.set(&owner, spec).await?;
    let now = state.now();
    if is_new {
        let (purses, id, tenant) = (state.purses.clone(), spec.id.clone(), owner.clone());
        blocking(state, "llm_repository", "budget", move |s, _| {
            purses
                .fill(&tenant, &id, &*s.source, now)
                .map_err(|e| QueryFailure::Internal(e.to_string()))
        })
        .await?;
    }
    let status = state.purses.status(&owner, &spec.id, now).ok_or_else(unknown)?;
    Ok(show(&status, now))
}

async fn set(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let spec: BudgetSpec = body(&headers, &bytes)?;
    let v = store(&state, tenant(&headers)?, spec).await?;
    Ok((StatusCode::CREATED, Json(v)).into_response())
}

async fn replace(
    State(state): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Answer {
    let mut spec: BudgetSpec = body(&headers, &bytes)?;
    spec.id = id;
    Ok(Json(store(&state, tenant(&headers)?, spec).await?).into_response())
}

async fn remove(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Answer {
    state.purses.remove(&p.tenant, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Tells a gateway whether a budget lets requests through: `allow`, `warn` or `deny`.
async fn gate(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Answer {
    let now = state.now();
    let s = state.purses.status(&p.tenant, &id, now).ok_or_else(unknown)?;
    let decision = match s.verdict().severity {
        "gating" if s.spec.hard => "deny",
        "info" => "allow",
        _ => "warn",
    };
    Ok(Json(json!({"decision": decision, "budget": show(&s, now)})).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Request {
    id: String,
    scope: BTreeMap<String, String>,
    provider: String,
    model: String,
    input_tokens: u64,
    max_output_tokens: u64,
    service_tier: String,
    /// Instead of tokens and a price: an amount in USD.
    amount_usd: Option<Money>,
    /// How long the reservation holds when nobody settles it.
    ttl_seconds: Option<u32>,
}

const TTL_SECONDS: u32 = 600;
const TTL_SECONDS_MAX: u32 = 86_400;

impl Request {
    /// The scope with what the request names itself.
    fn scope(&self) -> BTreeMap<String, String> {
        let mut scope = self.scope.clone();
        let own = [("provider", &self.provider), ("model", &self.model)];
        for (k, v) in own.into_iter().filter(|(_, v)| !v.is_empty()) {
            scope.entry(k.to_owned()).or_insert_with(|| v.clone());
        }
        scope
    }

    fn call(&self, now: TimestampNs) -> LlmCall {
        let mut c = usage_call(&self.provider, &self.model, now);
        c.service_tier = obs_llm::service_tier(&self.service_tier);
        for (name, value) in self.scope() {
            let value = value.clone();
            match Dimension::parse(&name) {
                Some(Dimension::Organization) => c.organization = value,
                Some(Dimension::Team) => c.team = value,
                Some(Dimension::Project) => c.project = value,
                Some(Dimension::User) => c.user_id = value,
                Some(Dimension::Session) => c.session_id = value,
                Some(Dimension::Agent) => c.agent = value,
                Some(Dimension::Service) => c.service = value,
                Some(Dimension::Environment) => c.environment = value,
                Some(Dimension::Prompt) => c.prompt_name = value,
                Some(Dimension::Region) => c.region = value,
                Some(Dimension::PromptVersion) => c.prompt_version = value,
                Some(Dimension::Key) => c.keep_attribute(obs_llm::KEY, value),
                Some(d @ Dimension::Attribute(_)) => {
                    c.keep_attribute(d.attribute().unwrap_or_default(), value);
                }
                Some(Dimension::Tag) => {
                    c.tags.extend(value.split(',').map(|t| t.trim().to_owned()));
                }
                _ => {}
            }
        }
        c
    }

    /// Returns what the request may use at most.
    fn ask(&self, state: &AppState, owner: &TenantId, now: TimestampNs) -> Result<Ask, Fault> {
        for name in self.scope.keys() {
            if Dimension::parse(name).is_none() {
                let text = format!("scope {name:?} is none of {}", Dimension::names());
                return Err(Fault::bad(text));
            }
        }
        let mut scope = self.scope();
        let call = self.call(now);
        // Budgets name providers as the ledger does.
        if !call.provider.is_empty() {
            scope.insert("provider".into(), call.provider.clone());
        }
        let tokens = self.input_tokens.saturating_add(self.max_output_tokens);
        if let Some(amount) = self.amount_usd {
            if amount.is_sign_negative() {
                return Err(Fault::bad("amount_usd is negative"));
            }
            return Ok(Ask { scope, amount: Amount { usd: amount, tokens, requests: 1 } });
        }
        if self.model.is_empty() {
            return Err(Fault::bad("model, or amount_usd, is needed"));
        }
        let most = state.purses.most(&call, self.input_tokens, self.max_output_tokens);
        let ask = |amount| Ask { scope, amount };
        if let Some(amount) = most {
            return Ok(ask(amount));
        }
        let ask = ask(Amount { usd: Money::ZERO, tokens, requests: 1 });
        let money = |b: &BudgetSpec| b.hard && b.unit == Unit::Usd;
        match state.purses.covering(owner, &ask).into_iter().find(money) {
            // What cannot be priced cannot be kept within an amount.
            Some(b) => {
                let text = format!(
                    "no price for {} of {:?}: budget {:?} cannot admit it; add a price or send amount_usd",
                    self.model, self.provider, b.name
                );
                let fault = Fault::new(StatusCode::PAYMENT_REQUIRED, "UNPRICED_MODEL", text);
                Err(fault.with("budget", json!(b.name)).with("budget_id", json!(b.id)))
            }
            None => Ok(ask),
        }
    }
}

async fn check(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let owner = tenant(&headers)?;
    let request: Request = body(&headers, &bytes)?;
    let now = state.now();
    let ask = request.ask(&state, &owner, now)?;
    let budgets = state.purses.check(&owner, &ask, now).map_err(|r| refused(&r))?;
    Ok(Json(json!({"decision": "allow", "amount_usd": usd(ask.amount.usd), "budgets": budgets}))
        .into_response())
}

async fn reserve(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let owner = tenant(&headers)?;
    let request: Request = body(&headers, &bytes)?;
    if request.id.is_empty() || request.id.len() > 256 {
        return Err(Fault::bad("id is needed: 1 to 256 bytes, one for each call"));
    }
    let now = state.now();
    let ask = request.ask(&state, &owner, now)?;
    let ttl = request.ttl_seconds.unwrap_or(TTL_SECONDS).clamp(1, TTL_SECONDS_MAX);
    let made = Reservation {
        id: request.id.clone(),
        ask,
        provider: request.provider.clone(),
        model: request.model.clone(),
        created_at: now.nanos(),
        expires_at: now.nanos() + i64::from(ttl) * 1_000_000_000,
    };
    let r = state.purses.reserve(&owner, made).await?;
    Ok(Json(json!({
        "id": r.id, "amount_usd": usd(r.ask.amount.usd), "tokens": r.ask.amount.tokens, "currency": "USD",
        "created_at": moment(r.created_at), "expires_at": moment(r.expires_at), "state": "reserved",
        "budgets": state.purses.covering(&owner, &r.ask).into_iter().map(|b| b.id).collect::<Vec<_>>(),
    }))
    .into_response())
}

#[derive(Debug, Deserialize)]
struct Settle {
    id: String,
    #[serde(flatten)]
    tokens: Tokens,
    /// The provider's id of its answer: the same call in telemetry counts once.
    #[serde(default, alias = "call_id")]
    response_id: String,
    /// The model that answered, if another.
    #[serde(default)]
    model: String,
    /// `usage` books the call; `telemetry` leaves that to its span.
    #[serde(default)]
    source: String,
    /// What the provider says it cost, USD; it counts where no price is known.
    #[serde(default, alias = "cost_usd", alias = "amount_usd")]
    cost: Option<Money>,
}

async fn settle(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let owner = tenant(&headers)?;
    let ask: Settle = body(&headers, &bytes)?;
    let now = state.now();
    let open = state.purses.reservation(&owner, &ask.id);
    if ask.source == "telemetry" {
        let was_open = state.purses.release(&owner, &ask.id).await?;
        return Ok(
            Json(json!({"id": ask.id, "state": "released", "was_open": was_open})).into_response()
        );
    }
    let request = match &open {
        Some(r) => Request {
            id: r.id.clone(),
            scope: r.ask.scope.clone(),
            provider: r.provider.clone(),
            model: r.model.clone(),
            ..Request::default()
        },
        // Expired, or settled before. What was used is told by the call itself, if it was booked.
        None => {
            let (trace, _) = obs_llm::usage_id(&owner, &ask.id);
            let text = format!(
                "no reservation {:?} of the last day; call {trace} tells if it was settled",
                ask.id
            );
            return Err(Fault::new(StatusCode::NOT_FOUND, "NOT_FOUND", text));
        }
    };
    let started = open.as_ref().map_or(now, |r| TimestampNs::from_nanos(r.created_at));
    let mut call = request.call(started);
    call.end = now;
    if !ask.model.is_empty() {
        call.response_model = ask.model;
    }
    ask.tokens.put(&mut call).map_err(|(f, m)| Fault::bad(format!("{f}: {m}")))?;
    call.call_id = ask.response_id;
    call.reported_cost = ask.cost;
    let s = state.purses.settle(&owner, &ask.id, call, now).await?;
    let reserved = open.map(|r| usd(r.ask.amount.usd));
    Ok(Json(json!({
        "id": ask.id, "state": "settled", "booked": s.booked, "reserved_usd": reserved,
        "cost_usd": s.call.cost.as_ref().map(|c| usd(c.total())), "cost_state": s.call.cost_state.as_str(),
        "trace_id": s.call.trace_id.to_string(),
    }))
    .into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    id: String,
}

async fn cancel(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let owner = tenant(&headers)?;
    let ask: Cancel = body(&headers, &bytes)?;
    if !state.purses.release(&owner, &ask.id).await? {
        let text = format!("no open reservation {:?}", ask.id);
        return Err(Fault::new(StatusCode::NOT_FOUND, "NOT_FOUND", text));
    }
    Ok(Json(json!({"id": ask.id, "state": "cancelled"})).into_response())
}

/// The parts of `envoy.service.auth.v3` that decide and are decided by, with Envoy's numbers.
mod envoy {
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct CheckRequest {
        #[prost(message, optional, tag = "1")]
        pub(super) attributes: Option<AttributeContext>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct AttributeContext {
        #[prost(message, optional, tag = "4")]
        pub(super) request: Option<Request>,
        #[prost(map = "string, string", tag = "10")]
        pub(super) context_extensions: HashMap<String, String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Request {
        #[prost(message, optional, tag = "2")]
        pub(super) http: Option<HttpRequest>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct HttpRequest {
        #[prost(map = "string, string", tag = "3")]
        pub(super) headers: HashMap<String, String>,
        #[prost(string, tag = "11")]
        pub(super) body: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct CheckResponse {
        #[prost(message, optional, tag = "1")]
        pub(super) status: Option<RpcStatus>,
        #[prost(message, optional, tag = "2")]
        pub(super) denied: Option<Denied>,
    }

    /// `google.rpc.Status`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct RpcStatus {
        #[prost(int32, tag = "1")]
        pub(super) code: i32,
        #[prost(string, tag = "2")]
        pub(super) message: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Denied {
        #[prost(message, optional, tag = "1")]
        pub(super) status: Option<HttpStatus>,
        #[prost(string, tag = "3")]
        pub(super) body: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct HttpStatus {
        #[prost(int32, tag = "1")]
        pub(super) code: i32,
    }
}

/// Envoy's `Authorization/Check`: budgets named by headers `x-budget-DIMENSION`, by the filter's
/// context extensions, and by the model and `max_tokens` of an OpenAI-like body.
pub(crate) fn authz_routes(state: AppState) -> Router {
    let path = "/envoy.service.auth.v3.Authorization/Check";
    unary(Router::new(), path, move |request: tonic::Request<envoy::CheckRequest>| {
        let state = state.clone();
        async move { Ok(tonic::Response::new(authorize(&state, request.into_inner()))) }
    })
}

fn authorize(state: &AppState, request: envoy::CheckRequest) -> envoy::CheckResponse {
    const PERMISSION_DENIED: i32 = 7;
    let deny = |fault: Fault| {
        let code = i32::from(fault.status.as_u16());
        let message = fault.message.clone();
        let mut error = json!({"code": fault.code, "message": message});
        if let Some(o) = error.as_object_mut() {
            o.extend(fault.more);
        }
        envoy::CheckResponse {
            status: Some(envoy::RpcStatus { code: PERMISSION_DENIED, message }),
            denied: Some(envoy::Denied {
                status: Some(envoy::HttpStatus { code }),
                body: json!({"error": error}).to_string(),
            }),
        }
    };
    let attributes = request.attributes.unwrap_or_default();
    let http = attributes.request.and_then(|r| r.http).unwrap_or_default();
    let mut scope: BTreeMap<String, String> = attributes.context_extensions.into_iter().collect();
    for (name, value) in &http.headers {
        if let Some(d) = name.to_ascii_lowercase().strip_prefix("x-budget-") {
            scope.insert(d.to_owned(), value.clone());
        }
    }
    let owner = http.headers.get(crate::tenant::TENANT_HEADER).map(String::as_str);
    let owner = match owner.map(TenantId::new).transpose() {
        Ok(t) => t.unwrap_or_default(),
        Err(e) => return deny(Fault::bad(e.to_string())),
    };
    let told: Value = serde_json::from_str(&http.body).unwrap_or_default();
    let text = |key: &str| told.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |keys: [&str; 3]| keys.iter().find_map(|k| told.get(k)?.as_u64()).unwrap_or(0);
    let provider = scope.remove("provider").unwrap_or_default();
    let asked = Request {
        provider,
        model: scope.remove("model").unwrap_or_else(|| text("model")),
        // Four bytes a token is few: the estimate is on the high side for text.
        input_tokens: (http.body.len() as u64).div_ceil(4),
        max_output_tokens: number(["max_completion_tokens", "max_output_tokens", "max_tokens"]),
        service_tier: text("service_tier"),
        scope,
        ..Request::default()
    };
    let now = state.now();
    // Without a model there is nothing to price: what is spent already decides.
    let ask = if asked.model.is_empty() {
        Ok(Ask { scope: asked.scope(), amount: Amount { requests: 1, ..Amount::default() } })
    } else {
        asked.ask(state, &owner, now)
    };
    let judged = ask.and_then(|ask| state.purses.check(&owner, &ask, now).map_err(|r| refused(&r)));
    match judged {
        Ok(_) => envoy::CheckResponse {
            status: Some(envoy::RpcStatus { code: 0, message: String::new() }),
            denied: None,
        },
        Err(fault) => deny(fault),
    }
}
