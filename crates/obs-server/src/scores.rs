//! Scores of calls and traces: said by the API, listed, and summed up with their intervals.

use crate::alertmanager::json_body;
use crate::body::Refusal;
use crate::llm::{native_error, native_failure};
use crate::params::{Params, prometheus_time};
use crate::run::blocking;
use crate::state::AppState;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use obs_llm::{Mean, SCORE_NAME, Score, Scored};
use obs_model::{
    Budget, CallSelection, Direction, LlmCall, LogRecord, LogSelection, MatchOp, Matcher,
    SelectError, SpanId, TenantId, TimestampNs, TraceId,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/scores", get(list).post(say))
        .route("/api/v1/scores/summary", get(summary))
        .route("/api/v1/analytics/quality", get(quality))
        .route("/api/v1/feedback", post(feedback))
}

/// Scores of one request.
const SCORES_MAX: usize = 1000;
/// Scores that one answer is made of.
pub(crate) const READ_MAX: usize = 200_000;
/// How long before a score its call may have been.
const CALL_BEFORE_NS: i64 = 24 * 3_600_000_000_000;

/// What a score is about.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct About {
    trace_id: String,
    span_id: String,
    service: String,
    /// Seconds since 1970 or RFC 3339; now when it is left out.
    timestamp: Value,
}

#[derive(Debug, Deserialize)]
struct NewScore {
    #[serde(flatten)]
    score: Score,
    #[serde(flatten)]
    about: About,
    /// Another name for `explanation`.
    #[serde(default)]
    comment: String,
}

#[derive(Debug, Deserialize)]
struct Feedback {
    /// 1 or -1; `true` and `false` too.
    rating: Value,
    #[serde(flatten)]
    new: NewScore,
}

impl NewScore {
    fn scored(self, now: TimestampNs) -> Result<Scored, String> {
        let Self { mut score, about, comment } = self;
        if score.explanation.is_empty() {
            score.explanation = comment;
        }
        score.check()?;
        let trace_id = match about.trace_id.as_str() {
            "" => None,
            t => Some(TraceId::parse(t).ok_or("trace_id is not hexadecimal")?),
        };
        let span_id = match about.span_id.as_str() {
            "" => None,
            s => Some(SpanId::parse(s).ok_or("span_id is not hexadecimal")?),
        };
        if trace_id.is_none() && score.response_id.is_empty() && score.session_id.is_empty() {
            return Err("name what is scored: trace_id, response_id or session_id".into());
        }
        let at = match &about.timestamp {
            Value::Null => Some(now.to_millis().millis()),
            Value::String(s) => prometheus_time(s),
            other => prometheus_time(&other.to_string()),
        };
        let at = at.ok_or("timestamp is not a time")?.saturating_mul(1_000_000);
        let at = TimestampNs::from_nanos(at);
        Ok(Scored { score, at, service: about.service, trace_id, span_id })
    }
}

async fn keep(state: &AppState, headers: &HeaderMap, scores: Vec<Scored>) -> Response {
    let tenant = match crate::tenant::tenant(headers) {
        Ok(t) => t,
        Err(e) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    let n = scores.len();
    let records: Vec<LogRecord> = scores.iter().map(Scored::record).collect();
    match state.ingest.logs(&tenant, records, state.now()).await {
        Ok(o) if o.rejected > 0 => native_error(StatusCode::BAD_REQUEST, &o.reasons.join("; ")),
        Ok(_) => (StatusCode::CREATED, Json(json!({"stored": n}))).into_response(),
        Err(e) => {
            let r = Refusal::from(e);
            native_error(r.status, &r.message)
        }
    }
}

async fn say(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Response {
    let raw: Value = match json_body(&headers, &bytes) {
        Ok(v) => v,
        Err(r) => return r.into_response(),
    };
    let list = match raw {
        Value::Array(list) => list,
        one => vec![one],
    };
    if list.len() > SCORES_MAX {
        let message = format!("a request may have {SCORES_MAX} scores");
        return native_error(StatusCode::PAYLOAD_TOO_LARGE, &message);
    }
    let now = state.now();
    let one = |(i, v): (usize, Value)| {
        let new: NewScore = serde_json::from_value(v).map_err(|e| e.to_string())?;
        new.scored(now).map_err(|e| format!("score {i}: {e}"))
    };
    match list.into_iter().enumerate().map(one).collect::<Result<Vec<_>, String>>() {
        Ok(scores) => keep(&state, &headers, scores).await,
        Err(e) => native_error(StatusCode::BAD_REQUEST, &e),
    }
}

async fn feedback(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Response {
    let f: Feedback = match json_body(&headers, &bytes) {
        Ok(f) => f,
        Err(r) => return r.into_response(),
    };
    let rating = match &f.rating {
        Value::Bool(b) => Some(if *b { 1.0 } else { -1.0 }),
        Value::Number(n) => n.as_f64().filter(|n| n.abs() == 1.0),
        _ => None,
    };
    let Some(rating) = rating else {
        return native_error(StatusCode::BAD_REQUEST, "rating is 1 or -1");
    };
    let mut new = f.new;
    new.score.value = Some(rating);
    if new.score.name.is_empty() {
        new.score.name = "user_feedback".into();
    }
    if new.score.source.is_empty() {
        new.score.source = "human".into();
    }
    match new.scored(state.now()) {
        Ok(s) => keep(&state, &headers, vec![s]).await,
        Err(e) => native_error(StatusCode::BAD_REQUEST, &e),
    }
}

/// What is asked for.
pub(crate) struct Ask {
    start: TimestampNs,
    end: TimestampNs,
    trace_id: Option<TraceId>,
    name: Option<String>,
    session: Option<String>,
    source: Option<String>,
}

impl Ask {
    /// Scores of one name in a range.
    pub(crate) fn named(name: &str, (start, end): (TimestampNs, TimestampNs)) -> Self {
        let name = Some(name.to_owned());
        Self { start, end, trace_id: None, name, session: None, source: None }
    }

    pub(crate) fn read(state: &AppState, p: &Params) -> Result<Self, String> {
        let now = state.now().to_millis().millis();
        let time = |name: &str, default: i64| match p.get(name) {
            Some(t) => {
                prometheus_time(t).ok_or_else(|| format!("parameter {name:?} is not a time"))
            }
            None => Ok(default),
        };
        let (end, day) = (time("end", now)?, 86_400_000);
        let start = time("start", end - day)?;
        let trace_id = match p.get("trace_id") {
            Some(t) => Some(TraceId::parse(t).ok_or("parameter \"trace_id\" is not hexadecimal")?),
            None => None,
        };
        let ns = |ms: i64| TimestampNs::from_nanos(ms.saturating_mul(1_000_000));
        let text = |name: &str| p.get(name).map(str::to_owned);
        Ok(Self {
            start: ns(start),
            // What was said in this very millisecond is there too.
            end: ns(end.saturating_add(1)),
            trace_id,
            name: text("name"),
            session: text("session_id"),
            source: text("source"),
        })
    }

    /// Reads the scores, newest first, each once.
    pub(crate) fn find(
        &self,
        state: &AppState,
        tenant: &TenantId,
        budget: &Budget,
        max: usize,
    ) -> Result<Vec<Scored>, SelectError> {
        let named = match &self.name {
            Some(n) => Matcher::equal(SCORE_NAME, n),
            None => Matcher::new(SCORE_NAME, MatchOp::NotEqual, "")
                .map_err(|e| SelectError::TooMuch(e.to_string()))?,
        };
        let matchers = [named];
        let selection = LogSelection {
            matchers: &matchers,
            start: self.start,
            end: self.end,
            direction: Direction::Backward,
            trace_id: self.trace_id,
            needles: &[],
        };
        let mut out: Vec<Scored> = Vec::new();
        state.source.select_logs(tenant, &selection, budget, &mut |r| {
            let wanted = |s: &Scored| {
                self.session.as_ref().is_none_or(|x| *x == s.score.session_id)
                    && self.source.as_ref().is_none_or(|x| *x == s.score.source)
            };
            out.extend(Scored::read(r).filter(wanted));
            if out.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(out)
    }
}

pub(crate) fn score_json(s: &Scored) -> Value {
    json!({
        "name": s.score.name, "value": s.score.value, "label": s.score.label,
        "explanation": s.score.explanation, "source": s.score.source, "model": s.score.model,
        "response_id": s.score.response_id, "session_id": s.score.session_id, "user_id": s.score.user_id,
        "service": s.service, "trace_id": s.trace_id.map(|t| t.to_string()),
        "span_id": s.span_id.map(|t| t.to_string()), "ts_ms": s.at.nanos() as f64 / 1e6,
    })
}

async fn list(State(state): State<AppState>, p: Params) -> Response {
    let (ask, limit) = match (Ask::read(&state, &p), p.number("limit", 100_usize)) {
        (Ok(a), Ok(l)) => (a, l.clamp(1, 5000)),
        (Err(e), _) | (_, Err(e)) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    let tenant = p.tenant.clone();
    let found = blocking(&state, "llm_repository", "scores", move |s, b| {
        Ok(ask.find(s, &tenant, b, limit)?)
    });
    match found.await {
        Ok(all) => {
            Json(json!({"scores": all.iter().map(score_json).collect::<Vec<_>>()})).into_response()
        }
        Err(f) => native_failure(&f),
    }
}

/// Calls by what scores name them by.
#[derive(Default)]
struct Calls {
    by_span: HashMap<(TraceId, SpanId), Arc<LlmCall>>,
    by_trace: HashMap<TraceId, Arc<LlmCall>>,
    by_response: HashMap<String, Arc<LlmCall>>,
}

impl Calls {
    fn read(
        state: &AppState,
        tenant: &TenantId,
        ask: &Ask,
        budget: &Budget,
    ) -> Result<Self, SelectError> {
        let selection = CallSelection {
            start: ask.start.add_nanos(-CALL_BEFORE_NS),
            end: ask.end,
            trace_id: ask.trace_id,
            revisions_only: false,
        };
        let mut out = Self::default();
        state.source.current_calls(tenant, &selection, budget, &mut |c| {
            out.by_span.insert((c.trace_id, c.span_id), c.clone());
            // What is said of a trace is said of its answer, not of what was looked up for it.
            let of_trace = out.by_trace.entry(c.trace_id).or_insert_with(|| c.clone());
            if c.operation.is_generation() && !of_trace.operation.is_generation() {
                *of_trace = c.clone();
            }
            if !c.call_id.is_empty() {
                out.by_response.insert(c.call_id.clone(), c.clone());
            }
            ControlFlow::Continue(())
        })?;
        Ok(out)
    }

    /// Returns the call that was scored; of a trace as a whole, one of its calls.
    fn of(&self, s: &Scored) -> Option<&LlmCall> {
        let span = || self.by_span.get(&(s.trace_id?, s.span_id?));
        let response = || self.by_response.get(&s.score.response_id);
        let trace = || self.by_trace.get(&s.trace_id?);
        span().or_else(response).or_else(trace).map(Arc::as_ref)
    }
}

/// What scores are summed up by, beside their name.
const BY: [&str; 7] = ["", "model", "service", "source", "prompt_version", "session_id", "user_id"];

fn group(by: &str, s: &Scored, calls: &Calls) -> String {
    let call = || calls.of(s);
    let or = |own: &str, of: fn(&LlmCall) -> &str| {
        if own.is_empty() { call().map_or("", of).to_owned() } else { own.to_owned() }
    };
    match by {
        "model" => or(&s.score.model, LlmCall::model),
        "service" => or(&s.service, |c| &c.service),
        "source" => s.score.source.clone(),
        "prompt_version" => or("", |c| &c.prompt_version),
        "session_id" => or(&s.score.session_id, |c| &c.session_id),
        "user_id" => or(&s.score.user_id, |c| &c.user_id),
        _ => String::new(),
    }
}

/// Sums scores up by their names and one attribute.
async fn summed(state: &AppState, p: &Params) -> Result<Value, Response> {
    let by = p.get("by").unwrap_or_default().to_owned();
    if !BY.contains(&by.as_str()) {
        let message = format!("by is one of {}", BY.get(1..).unwrap_or_default().join(", "));
        return Err(native_error(StatusCode::BAD_REQUEST, &message));
    }
    let (ask, points) = match (Ask::read(state, p), p.number("points", 30_i64)) {
        (Ok(a), Ok(n)) => (a, n.clamp(1, 500)),
        (Err(e), _) | (_, Err(e)) => return Err(native_error(StatusCode::BAD_REQUEST, &e)),
    };
    let tenant = p.tenant.clone();
    let done = blocking(state, "llm_repository", "scores", move |s, b| {
        let mut all = ask.find(s, &tenant, b, READ_MAX + 1)?;
        if all.len() > READ_MAX {
            let message = format!("more than {READ_MAX} scores; ask for a shorter range");
            return Err(SelectError::TooMuch(message).into());
        }
        // Who changes their mind is one voice.
        obs_llm::latest_ratings(&mut all);
        let calls = if matches!(by.as_str(), "" | "source") {
            Calls::default()
        } else {
            Calls::read(s, &tenant, &ask, b)?
        };
        let (from, to) = (ask.start.nanos(), ask.end.nanos());
        let step = ((to - from) / points).max(1);
        let mut groups: BTreeMap<(String, String), Vec<&Scored>> = BTreeMap::new();
        for s in &all {
            groups.entry((s.score.name.clone(), group(&by, s, &calls))).or_default().push(s);
        }
        let one = |((name, key), list): (&(String, String), &Vec<&Scored>)| {
            let numbers =
                |l: &[&Scored]| l.iter().filter_map(|s| s.score.value).collect::<Vec<_>>();
            let mut labels: BTreeMap<&str, u64> = BTreeMap::new();
            for s in list.iter().filter(|s| !s.score.label.is_empty()) {
                *labels.entry(&s.score.label).or_default() += 1;
            }
            let mut buckets: BTreeMap<i64, Vec<&Scored>> = BTreeMap::new();
            for s in list {
                buckets.entry((s.at.nanos() - from).div_euclid(step)).or_default().push(s);
            }
            let series = buckets.iter().filter_map(|(i, l)| {
                let time = (from + i * step) / 1_000_000;
                Some(json!({"ts_ms": time, "stats": Mean::of(&numbers(l))?}))
            });
            json!({
                "name": name, "key": key, "count": list.len(), "stats": Mean::of(&numbers(list)),
                "labels": labels, "series": series.collect::<Vec<_>>(),
            })
        };
        Ok(json!({
            "by": by, "step_ms": step / 1_000_000,
            "groups": groups.iter().map(one).collect::<Vec<_>>(),
        }))
    });
    done.await.map_err(|f| native_failure(&f))
}

async fn summary(State(state): State<AppState>, p: Params) -> Response {
    summed(&state, &p).await.map_or_else(|r| r, |v| Json(v).into_response())
}

/// The same as the analytics API names and wraps it.
async fn quality(State(state): State<AppState>, p: Params) -> Response {
    let wrap = |v| crate::money::data(&state, v);
    summed(&state, &p).await.map_or_else(|r| r, wrap)
}
