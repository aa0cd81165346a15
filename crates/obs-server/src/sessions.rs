//! Sessions: the calls of one conversation, whatever traces they are in.

use crate::llm::{Sums, call_query, native_error, native_failure, read_calls};
use crate::params::Params;
use crate::run::blocking;
use crate::scores::Ask;
use crate::state::AppState;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_llm::Mean;
use obs_model::{CostState, LlmCall, TimestampNs, TraceId};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/api/v1/llm/sessions", get(sessions))
}

/// Traces and scores that are listed of one session.
const TRACES_MAX: usize = 200;
/// Scores that are read for one answer.
const SCORES_MAX: usize = 100_000;

/// What is known of one session.
#[derive(Default)]
struct Session {
    sums: Sums,
    first: Option<TimestampNs>,
    last: Option<TimestampNs>,
    /// Traces by when they began.
    traces: BTreeMap<TraceId, TimestampNs>,
    models: BTreeSet<String>,
    users: BTreeSet<String>,
    services: BTreeSet<String>,
    agents: BTreeSet<String>,
    scores: BTreeMap<String, Vec<f64>>,
}

fn note(set: &mut BTreeSet<String>, name: &str) {
    if !name.is_empty() && !set.contains(name) {
        set.insert(name.to_owned());
    }
}

impl Session {
    fn add(&mut self, c: &LlmCall) {
        self.sums.add(c);
        self.first = Some(self.first.map_or(c.start, |t| t.min(c.start)));
        self.last = Some(self.last.map_or(c.end, |t| t.max(c.end)));
        let began = self.traces.entry(c.trace_id).or_insert(c.start);
        *began = (*began).min(c.start);
        note(&mut self.models, c.model());
        note(&mut self.users, &c.user_id);
        note(&mut self.services, &c.service);
        note(&mut self.agents, &c.agent);
    }

    fn json(mut self, id: &str) -> Value {
        let ms = |t: Option<TimestampNs>| t.map(|t| t.nanos() as f64 / 1e6);
        let mut traces: Vec<(TimestampNs, TraceId)> =
            self.traces.iter().map(|(id, t)| (*t, *id)).collect();
        traces.sort();
        let trace = |(t, id): &(TimestampNs, TraceId)| json!({"trace_id": id.to_string(), "start_ms": t.nanos() as f64 / 1e6});
        let scores: BTreeMap<&String, Option<Mean>> =
            self.scores.iter().map(|(n, v)| (n, Mean::of(v))).collect();
        json!({
            "session_id": id, "first_ms": ms(self.first), "last_ms": ms(self.last),
            "trace_count": traces.len(), "traces": traces.iter().take(TRACES_MAX).map(trace).collect::<Vec<_>>(),
            "models": self.models, "users": self.users, "services": self.services, "agents": self.agents,
            "scores": scores, "sums": self.sums.json(),
        })
    }
}

/// Lists sessions: `sort` is `recent` (the default), `cost`, `requests` or `errors`.
async fn sessions(State(state): State<AppState>, p: Params) -> Response {
    let (query, limit) = match (call_query(&state, &p), p.number("limit", 100_usize)) {
        (Ok(q), Ok(l)) => (q, l.clamp(1, 1000)),
        (Err(e), _) | (_, Err(e)) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    let sort = p.get("sort").unwrap_or("recent").to_owned();
    if !["recent", "cost", "requests", "errors"].contains(&sort.as_str()) {
        let message = "sort is one of recent, cost, requests, errors";
        return native_error(StatusCode::BAD_REQUEST, message);
    }
    let ask = match Ask::read(&state, &p) {
        Ok(a) => a,
        Err(e) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    let tenant = p.tenant.clone();
    let done = blocking(&state, "llm_repository", "sessions", move |s, b| {
        let mut all: HashMap<String, Session> = HashMap::new();
        // Traces of sessions, for scores that name a trace alone.
        let mut of_trace: HashMap<TraceId, String> = HashMap::new();
        for c in read_calls(s, &tenant, &query.selection, b)? {
            // What repeats the usage of other calls is no call of its own.
            let repeats = matches!(c.cost_state, CostState::Rollup | CostState::Duplicate);
            if c.session_id.is_empty() || repeats || !query.keeps(&c) {
                continue;
            }
            of_trace.entry(c.trace_id).or_insert_with(|| c.session_id.clone());
            all.entry(c.session_id.clone()).or_default().add(&c);
        }
        for scored in ask.find(s, &tenant, b, SCORES_MAX)? {
            let named = Some(&scored.score.session_id).filter(|n| !n.is_empty());
            let named = named.or_else(|| of_trace.get(&scored.trace_id?));
            if let (Some(session), Some(v)) =
                (named.and_then(|n| all.get_mut(n)), scored.score.value)
            {
                session.scores.entry(scored.score.name).or_default().push(v);
            }
        }
        let total = all.len();
        let mut list: Vec<(String, Session)> = all.into_iter().collect();
        list.sort_by_cached_key(|(id, x)| {
            let key = match sort.as_str() {
                "cost" => (x.sums.cost, 0),
                "requests" => (obs_model::Money::ZERO, x.sums.requests),
                "errors" => (obs_model::Money::ZERO, x.sums.errors),
                _ => (obs_model::Money::ZERO, 0),
            };
            (Reverse(key), Reverse(x.last), id.clone())
        });
        list.truncate(limit);
        let rows: Vec<Value> = list.into_iter().map(|(id, x)| x.json(&id)).collect();
        Ok(json!({"total": total, "sessions": rows}))
    });
    match done.await {
        Ok(v) => Json(v).into_response(),
        Err(f) => native_failure(&f),
    }
}
