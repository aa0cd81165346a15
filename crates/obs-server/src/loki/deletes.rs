//! Loki's delete requests: what they cover is gone from all answers at once, and off the disk after
//! the next merges.

use super::{Api, ApiError, bad};
use crate::admin::allowed;
use crate::body::Refusal;
use crate::params::{Params, loki_time};
use crate::state::AppState;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use obs_logql::ast::{LineFilter, LineMatch, Query, Stage};
use obs_logql::parse;
use obs_model::{DeleteScope, LineTest, LineText, StateChange, TenantId, TimestampNs};
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher as _, RandomState};

/// Where requests are kept, for the list of them.
const SPACE: &str = "loki-deletes";
/// Requests of a tenant that the list goes back to.
const LISTED_MAX: usize = 1000;

/// A request as Loki lists it; times are Unix seconds.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    request_id: String,
    start_time: f64,
    end_time: f64,
    query: String,
    status: String,
    created_at: f64,
}

fn forbidden(state: &AppState, headers: &HeaderMap) -> Api<()> {
    allowed(state.admin_api, headers).map_err(|e| ApiError(StatusCode::FORBIDDEN, e.into()))
}

fn line_test(filter: &LineFilter) -> Option<LineTest> {
    let one = |m: &LineMatch| match m {
        LineMatch::Contains(text) => Some(LineText::Literal(text.clone())),
        LineMatch::Regex(_, text) => Some(LineText::Regex(text.clone())),
        LineMatch::Pattern(_) | LineMatch::Ip(_) => None,
    };
    let any = filter.any.iter().map(one).collect::<Option<_>>()?;
    Some(LineTest { negated: filter.negated, any })
}

/// Reads what a request covers.
fn scope(p: &Params, now: TimestampNs) -> Api<(DeleteScope, Request)> {
    let time = |name: &str| -> Api<Option<TimestampNs>> {
        let read = |text| {
            let what = format!("invalid {name} time: require unix seconds or RFC3339 format");
            loki_time(text).ok_or_else(|| bad(what))
        };
        p.get(name).map(read).transpose()
    };
    let query = p.get("query").ok_or_else(|| bad("query not set"))?;
    let start = time("start")?.ok_or_else(|| bad("start time not set"))?;
    let end = time("end")?.unwrap_or(now);
    if end > now {
        return Err(bad("deletes in the future are not allowed"));
    }
    if start > end {
        return Err(bad("start time can't be greater than end time"));
    }
    let Query::Log(expr) = parse(query).map_err(|e| bad(e.to_string()))? else {
        return Err(bad("unsupported query expression: it selects no lines"));
    };
    let test = |s: &Stage| match s {
        Stage::Line(filter) => line_test(filter),
        _ => None,
    };
    let lines = expr.stages.iter().map(test).collect::<Option<_>>().ok_or_else(|| {
        bad("unsupported query expression: a selector and the filters |=, !=, |~ and !~ can be deleted by")
    })?;
    let matchers = expr.matchers.into_iter().map(|m| (m.name, m.op, m.value)).collect();
    let scope = DeleteScope::Logs { matchers, lines, start: start.nanos(), end: end.nanos() };
    let seconds = |t: TimestampNs| t.nanos().div_euclid(1_000_000) as f64 / 1e3;
    let id = RandomState::new().hash_one((query, start.nanos(), end.nanos(), now.nanos()));
    let request = Request {
        request_id: format!("{:08x}", id as u32),
        start_time: seconds(start),
        end_time: seconds(end),
        query: query.to_owned(),
        status: "processed".into(),
        created_at: seconds(now),
    };
    Ok((scope, request))
}

fn key(tenant: &TenantId, r: &Request) -> String {
    format!("{tenant}\n{}", r.request_id)
}

/// Returns a tenant's requests, the oldest first.
fn requests(state: &AppState, tenant: &TenantId) -> Vec<Request> {
    let all = state.kept_of(SPACE, tenant).into_iter();
    let mut all: Vec<Request> = all.map(|(_, r)| r).collect();
    all.sort_by(|a, b| a.created_at.total_cmp(&b.created_at));
    all
}

pub(super) async fn add(
    State(state): State<AppState>,
    headers: HeaderMap,
    p: Params,
) -> Api<StatusCode> {
    forbidden(&state, &headers)?;
    let (scope, request) = scope(&p, state.now())?;
    let failed = |e: String| ApiError(StatusCode::INTERNAL_SERVER_ERROR, e);
    state.store.delete(&p.tenant, scope).await.map_err(failed)?;
    let put =
        |r: &Request, value| StateChange { space: SPACE.into(), key: key(&p.tenant, r), value };
    let known = requests(&state, &p.tenant);
    let over = (known.len() + 1).saturating_sub(LISTED_MAX);
    let mut changes: Vec<_> = known.iter().take(over).map(|r| put(r, None)).collect();
    let value = serde_json::to_vec(&request).map_err(|e| failed(e.to_string()))?;
    changes.push(put(&request, Some(value)));
    state.control.put(changes).await.map_err(|e| {
        let r = Refusal::from(e);
        ApiError(r.status, r.message)
    })?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn list(
    State(state): State<AppState>,
    headers: HeaderMap,
    p: Params,
) -> Api<Response> {
    forbidden(&state, &headers)?;
    Ok(Json(requests(&state, &p.tenant)).into_response())
}

/// Nothing waits: a request holds when it was answered.
pub(super) async fn cancel(
    State(state): State<AppState>,
    headers: HeaderMap,
    p: Params,
) -> Api<StatusCode> {
    forbidden(&state, &headers)?;
    let id = p.get("request_id").unwrap_or_default();
    if requests(&state, &p.tenant).iter().any(|r| r.request_id == id) {
        return Err(bad(
            "deletion of request which is in process or already processed is not supported",
        ));
    }
    Err(ApiError(StatusCode::NOT_FOUND, "could not find delete request with given id".into()))
}
