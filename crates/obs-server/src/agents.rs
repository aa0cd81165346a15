//! Agent graphs: who acts in a trace, or in the traces of a range, and who asked whom.

use crate::llm::{CallQuery, call_query, native_error, native_failure, read_calls};
use crate::params::Params;
use crate::run::blocking;
use crate::state::AppState;
use crate::traces::Whole;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_llm::{Actor, ActorGraph, Deeds};
use obs_model::TraceId;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BTreeSet;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/traces/{id}/agents", get(of_trace))
        .route("/api/v1/llm/agents", get(of_range))
}

/// Actors of one answer, those with most calls.
const ACTORS_MAX: usize = 300;
/// Traces that one graph is made of, unless told, and at most.
const TRACES: usize = 200;
const TRACES_MAX: usize = 2000;

fn deeds(d: &Deeds) -> Map<String, Value> {
    let fields = [
        ("calls", json!(d.calls)),
        ("errors", json!(d.errors)),
        ("duration_ms", json!(d.duration_ns as f64 / 1e6)),
        ("tokens", json!(d.tokens)),
        ("cost_usd", json!(d.cost.normalize().to_string())),
    ];
    fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn actor(a: &Actor) -> Value {
    json!({"kind": a.kind.as_str(), "name": a.name})
}

fn graph_json(graph: &ActorGraph, traces: usize, left_out: usize) -> Value {
    let mut actors: Vec<(&Actor, &Deeds)> = graph.actors.iter().collect();
    actors.sort_by_key(|(_, d)| Reverse(d.calls));
    let actors_left_out = actors.len().saturating_sub(ACTORS_MAX);
    actors.truncate(ACTORS_MAX);
    let shown: BTreeSet<&Actor> = actors.iter().map(|(a, _)| *a).collect();
    let node = |(a, d): &(&Actor, &Deeds)| {
        let mut v = deeds(d);
        v.insert("kind".into(), a.kind.as_str().into());
        v.insert("name".into(), a.name.as_str().into());
        v
    };
    let edges = graph.edges.iter().filter(|((a, b), _)| shown.contains(a) && shown.contains(b));
    let edge = |((from, to), d): (&(Actor, Actor), &Deeds)| {
        let mut v = deeds(d);
        v.insert("from".into(), actor(from));
        v.insert("to".into(), actor(to));
        v
    };
    json!({
        "traces": traces, "traces_left_out": left_out, "actors_left_out": actors_left_out,
        "actors": actors.iter().map(node).collect::<Vec<_>>(), "edges": edges.map(edge).collect::<Vec<_>>(),
    })
}

async fn of_trace(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Response {
    let Some(id) = TraceId::parse(&id) else {
        return native_error(StatusCode::BAD_REQUEST, "trace id is not hexadecimal");
    };
    let tenant = p.tenant.clone();
    let found = blocking(&state, "trace_repository", "agents", move |s, b| {
        let whole = Whole::read(s, &tenant, id, b)?;
        let mut graph = ActorGraph::default();
        graph.add(&whole.spans, &whole.calls);
        Ok((!whole.spans.is_empty()).then(|| graph_json(&graph, 1, 0)))
    });
    match found.await {
        Err(f) => native_failure(&f),
        Ok(None) => native_error(StatusCode::NOT_FOUND, "trace not found"),
        Ok(Some(v)) => Json(v).into_response(),
    }
}

/// The graph of the latest traces that have a call which the filters keep.
async fn of_range(State(state): State<AppState>, p: Params) -> Response {
    let (query, most): (CallQuery, usize) =
        match (call_query(&state, &p), p.number("traces", TRACES)) {
            (Ok(q), Ok(n)) => (q, n.clamp(1, TRACES_MAX)),
            (Err(e), _) | (_, Err(e)) => return native_error(StatusCode::BAD_REQUEST, &e),
        };
    let tenant = p.tenant.clone();
    let found = blocking(&state, "trace_repository", "agents", move |s, b| {
        let mut seen = BTreeSet::new();
        let mut ids = Vec::new();
        for c in read_calls(s, &tenant, &query.selection, b)? {
            if query.keeps(&c) && seen.insert(c.trace_id) {
                ids.push(c.trace_id);
            }
        }
        let mut graph = ActorGraph::default();
        for id in ids.iter().take(most) {
            let whole = Whole::read(s, &tenant, *id, b)?;
            graph.add(&whole.spans, &whole.calls);
        }
        Ok(graph_json(&graph, ids.len().min(most), ids.len().saturating_sub(most)))
    });
    match found.await {
        Ok(v) => Json(v).into_response(),
        Err(f) => native_failure(&f),
    }
}
