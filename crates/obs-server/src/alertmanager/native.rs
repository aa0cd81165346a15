//! What Alertmanager's API lacks: why a route is taken, what a silence would mute, who is on an
//! alert, what a receiver answers to a test, and how often a rule would have fired.

use super::{LabelMap, json_body, state_failed};
use crate::llm::{native_error, native_failure};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use obs_model::{Labels, Matcher, SampleValue, Series, TimestampMs, TimestampNs};
use obs_notify::receivers::Outcome;
use obs_notify::{Config, Finding, Listed, NewAlert, Silence, SilenceMatcher};
use obs_promql::{Output, evaluate_range};
use obs_rules::alert::{Alerts, Found, State as AlertState};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/alerting/alerts", get(alerts))
        .route("/api/v1/alerting/groups", get(groups))
        .route("/api/v1/alerting/silences", get(silences))
        .route("/api/v1/alerting/silences/preview", post(preview))
        .route("/api/v1/alerting/acknowledge", post(acknowledge))
        .route("/api/v1/alerting/acknowledge/{fingerprint}", delete(unacknowledge))
        .route("/api/v1/alerting/receivers", get(receivers))
        .route("/api/v1/alerting/receivers/test", post(test_receiver))
        .route("/api/v1/alerting/route", post(route))
        .route("/api/v1/alerting/backtest", post(backtest))
}

fn ms(t: TimestampNs) -> f64 {
    t.nanos() as f64 / 1e6
}

fn labels_json(l: &Labels) -> Value {
    serde_json::to_value(LabelMap(l)).unwrap_or_default()
}

fn alert_json(l: &Listed) -> Value {
    let (a, s) = (&l.alert, &l.status);
    json!({
        "fingerprint": format!("{:016x}", l.id),
        "labels": labels_json(&a.labels),
        "annotations": a.annotations,
        "starts_at_ms": ms(a.starts_at),
        "ends_at_ms": ms(a.ends_at),
        "updated_at_ms": ms(a.updated_at),
        "generator_url": a.generator_url,
        "state": if s.is_suppressed() { "suppressed" } else { "active" },
        "silenced_by": s.silenced_by,
        "inhibited_by": s.inhibited_by,
        "muted_by": s.muted_by,
        "receivers": l.receivers,
        "acknowledged": l.acknowledged.as_ref().map(|x| json!({"owner": x.owner, "note": x.note, "at_ms": ms(x.at)})),
    })
}

fn matchers(p: &Params) -> Result<Vec<Matcher>, String> {
    let list = p.all("filter").filter(|f| !f.is_empty()).map(obs_notify::parse_matchers);
    Ok(list.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

async fn alerts(State(state): State<AppState>, p: Params) -> Response {
    match matchers(&p) {
        Ok(m) => {
            let list = state.alerting.core().list(&m, state.now());
            Json(json!({"alerts": list.iter().map(alert_json).collect::<Vec<_>>()})).into_response()
        }
        Err(e) => native_error(StatusCode::BAD_REQUEST, &e),
    }
}

async fn groups(State(state): State<AppState>, p: Params) -> Response {
    let m = match matchers(&p) {
        Ok(m) => m,
        Err(e) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    let core = state.alerting.core();
    let views = core.groups(&m, state.now());
    let config = core.config().clone();
    drop(core);
    let one = |g: &obs_notify::GroupView| {
        json!({
            "labels": labels_json(&g.labels), "receiver": g.receiver, "key": g.key,
            "route": config.routes.title(g.route), "next_ms": ms(g.next), "notified_ms": g.notified.map(ms),
            "alerts": g.alerts.iter().map(|l| format!("{:016x}", l.id)).collect::<Vec<_>>(),
        })
    };
    Json(json!({"groups": views.iter().map(one).collect::<Vec<_>>()})).into_response()
}

/// Silences with their history and how many alerts each matches now.
async fn silences(State(state): State<AppState>) -> Response {
    let now = state.now();
    let (all, firing) = {
        let core = state.alerting.core();
        let all: Vec<(Silence, Vec<Matcher>)> =
            core.silences_compiled().map(|(s, m)| (s.clone(), m.to_vec())).collect();
        (all, core.firing(now))
    };
    let one = |(s, m): &(Silence, Vec<Matcher>)| {
        let matched = firing.iter().filter(|a| Matcher::all_match(m, &a.labels)).count();
        json!({
            "id": s.id, "state": s.state(now).as_str(), "matchers": s.matchers,
            "starts_at_ms": ms(s.starts_at), "ends_at_ms": ms(s.ends_at), "updated_at_ms": ms(s.updated_at),
            "created_by": s.created_by, "comment": s.comment, "replaces": s.replaces, "matched": matched,
        })
    };
    Json(json!({"silences": all.iter().map(one).collect::<Vec<_>>()})).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Preview {
    matchers: Vec<SilenceMatcher>,
}

/// Returns the firing alerts that a silence would mute.
async fn preview(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Response {
    let p: Preview = match json_body(&headers, &bytes) {
        Ok(p) => p,
        Err(r) => return r.into_response(),
    };
    let m: Result<Vec<Matcher>, _> = p.matchers.iter().map(SilenceMatcher::matcher).collect();
    let m = match m {
        Ok(m) => m,
        Err(e) => return native_error(StatusCode::BAD_REQUEST, &e.to_string()),
    };
    if m.iter().all(|m| m.matches("")) {
        return native_error(
            StatusCode::BAD_REQUEST,
            "at least one matcher must not match the empty string",
        );
    }
    let list = state.alerting.core().list(&m, state.now());
    Json(json!({"alerts": list.iter().map(alert_json).collect::<Vec<_>>()})).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledge {
    fingerprint: String,
    owner: String,
    #[serde(default)]
    note: String,
}

/// Bytes of an acknowledgement's texts.
const NOTE_BYTES_MAX: usize = 4096;

async fn set_acknowledged(state: &AppState, id: &str, who: Option<(String, String)>) -> Response {
    let Ok(id) = u64::from_str_radix(id, 16) else {
        return native_error(StatusCode::BAD_REQUEST, "fingerprint is not hexadecimal");
    };
    match state.alerting.acknowledge(id, who).await {
        Ok(true) => StatusCode::OK.into_response(),
        Ok(false) => native_error(StatusCode::NOT_FOUND, "no such alert"),
        Err(e) => state_failed(e),
    }
}

async fn acknowledge(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Response {
    let a: Acknowledge = match json_body(&headers, &bytes) {
        Ok(a) => a,
        Err(r) => return r.into_response(),
    };
    if a.owner.trim().is_empty() || a.owner.len() + a.note.len() > NOTE_BYTES_MAX {
        let message =
            format!("owner must be given; owner and note may have {NOTE_BYTES_MAX} bytes");
        return native_error(StatusCode::BAD_REQUEST, &message);
    }
    set_acknowledged(&state, &a.fingerprint, Some((a.owner, a.note))).await
}

async fn unacknowledge(State(state): State<AppState>, Path(id): Path<String>) -> Response {
    set_acknowledged(&state, &id, None).await
}

/// Returns the labels that alert rules give their alerts, as far as the rules say.
fn rule_labels(state: &AppState) -> Vec<Labels> {
    let groups = state.workers.rules.groups();
    let rules = groups.iter().flat_map(|g| &g.rules);
    rules.filter_map(|r| r.rule.alert_labels()).collect()
}

fn findings_json(list: &[Finding]) -> Value {
    list.iter().map(|f| json!({"kind": f.kind, "message": f.message})).collect()
}

async fn receivers(State(state): State<AppState>) -> Response {
    let config = state.alerting.core().config().clone();
    let troubles = state.alerting.troubles();
    let names: Vec<String> = config.receivers.iter().map(|r| r.name.clone()).collect();
    let findings = config.routes.lint(&names, &rule_labels(&state));
    let one = |r: &obs_notify::config::Receiver| {
        let integrations: Vec<Value> = r
            .integrations
            .iter()
            .map(|i| {
                let key = i.key(&r.name);
                let trouble = troubles.get(&key).map(|(at, why)| json!({"at_ms": ms(*at), "error": why}));
                json!({"kind": i.kind.name(), "index": i.index, "send_resolved": i.send_resolved, "trouble": trouble})
            })
            .collect();
        let of = |n: &(usize, &obs_notify::Route)| n.1.receiver == r.name;
        let routes: Vec<String> = config
            .routes
            .nodes
            .iter()
            .enumerate()
            .filter(of)
            .map(|(i, _)| config.routes.title(i))
            .collect();
        json!({"name": r.name, "integrations": integrations, "routes": routes})
    };
    let sent = |n: &obs_notify::Sent| {
        json!({
            "at_ms": ms(n.at), "integration": n.integration, "group": n.group_key, "status": n.status,
            "alerts": n.alerts, "error": n.error,
        })
    };
    let recent: Vec<Value> = state.alerting.recent().iter().map(sent).collect();
    Json(json!({
        "receivers": config.receivers.iter().map(one).collect::<Vec<_>>(),
        "routes": tree(&config), "findings": findings_json(&findings),
        "recent": recent,
    }))
    .into_response()
}

/// Writes the routing tree as a list with depths.
fn tree(config: &Config) -> Value {
    let mut out = Vec::new();
    let mut open = vec![(0_usize, 0_usize)];
    while let Some((index, depth)) = open.pop() {
        let Some(n) = config.routes.get(index) else { continue };
        out.push(json!({
            "route": index, "depth": depth, "title": config.routes.title(index), "receiver": n.receiver,
            "continue": n.continues, "mute": n.mute, "active": n.active,
            "group_wait": n.group_wait.as_secs_f64(), "group_interval": n.group_interval.as_secs_f64(),
            "repeat_interval": n.repeat_interval.as_secs_f64(),
        }));
        open.extend(n.children.iter().rev().map(|c| (*c, depth + 1)));
    }
    out.into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    receiver: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Sends an alert to a receiver and says what it answered.
async fn test_receiver(
    State(state): State<AppState>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Response {
    let mut t: Test = match json_body(&headers, &bytes) {
        Ok(t) => t,
        Err(r) => return r.into_response(),
    };
    t.labels.entry("alertname".into()).or_insert_with(|| "TestAlert".into());
    t.annotations
        .entry("summary".into())
        .or_insert_with(|| "A test of this receiver: nothing is wrong.".into());
    let alert = NewAlert {
        labels: Labels::from_pairs(t.labels),
        annotations: t.annotations,
        starts_at: None,
        ends_at: None,
        generator_url: state.alerting.external_url().to_owned(),
    };
    let Some(done) = state.alerting.send_test(&t.receiver, alert).await else {
        return native_error(
            StatusCode::NOT_FOUND,
            &format!("there is no receiver {:?}", t.receiver),
        );
    };
    let one = |(key, outcome): &(String, Outcome)| {
        let error = match outcome {
            Outcome::Sent(_) => None,
            Outcome::Retry { why, .. } | Outcome::Failed { why } => Some(why),
        };
        json!({"integration": key, "ok": error.is_none(), "error": error})
    };
    Json(json!({"results": done.iter().map(one).collect::<Vec<_>>()})).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteAsk {
    labels: BTreeMap<String, String>,
}

async fn route(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Response {
    let ask: RouteAsk = match json_body(&headers, &bytes) {
        Ok(a) => a,
        Err(r) => return r.into_response(),
    };
    let config = state.alerting.core().config().clone();
    Json(explained(&config, &Labels::from_pairs(ask.labels))).into_response()
}

/// Says which receivers an alert with these labels reaches, and why.
pub fn explained(config: &Config, labels: &Labels) -> Value {
    let steps = config.routes.explain(labels);
    let mut receivers: Vec<&str> = Vec::new();
    let mut list = Vec::new();
    for s in &steps {
        let Some(n) = config.routes.get(s.route) else { continue };
        if s.receives && !receivers.contains(&n.receiver.as_str()) {
            receivers.push(&n.receiver);
        }
        list.push(json!({
            "route": s.route, "depth": s.depth, "title": config.routes.title(s.route), "receiver": n.receiver,
            "matched": s.matched, "receives": s.receives, "ends": s.ends,
            "group": if s.receives { labels_json(&config.routes.group_labels(s.route, labels)) } else { Value::Null },
        }));
    }
    json!({"receivers": receivers, "steps": list})
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Backtest {
    expr: String,
    #[serde(default, rename = "for")]
    hold: String,
    #[serde(default)]
    keep_firing_for: String,
    /// RFC 3339 or Unix seconds; the last 24 h without.
    #[serde(default)]
    start: String,
    #[serde(default)]
    end: String,
    /// Seconds between evaluations.
    #[serde(default)]
    step: Option<f64>,
}

/// Evaluations of a back-test.
const STEPS_MAX: i64 = 50_000;
/// Firings that are listed.
const FIRINGS_MAX: usize = 1000;

fn duration(text: &str, name: &str) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let d = obs_collect::config::parse_duration(text);
    let d = d.ok_or_else(|| format!("{name}: not a valid duration string: {text:?}"))?;
    i64::try_from(d.as_millis()).map_err(|e| e.to_string())
}

fn instant(text: &str, default: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(default);
    }
    crate::params::prometheus_time(text).ok_or_else(|| format!("{text:?} is not a time"))
}

/// Evaluates a rule's expression over stored history and says when it would have fired.
async fn backtest(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Response {
    let b: Backtest = match json_body(&headers, &bytes) {
        Ok(b) => b,
        Err(r) => return r.into_response(),
    };
    let tenant = match crate::tenant::tenant(&headers) {
        Ok(t) => t,
        Err(e) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    let now = state.now().to_millis().millis();
    let asked = (|| {
        let expr = state.workers.promql.parse(&b.expr).map_err(|e| e.to_string())?;
        let (end, day) = (instant(&b.end, now)?, 86_400_000);
        let start = instant(&b.start, end - day)?;
        if start >= end {
            return Err("the range ends before it starts".into());
        }
        let default = ((end - start) / 5000).max(15_000) as f64 / 1000.0;
        let step = (b.step.unwrap_or(default) * 1000.0) as i64;
        if step <= 0 || (end - start) / step > STEPS_MAX {
            return Err(format!(
                "step must be above zero and the range have at most {STEPS_MAX} of them"
            ));
        }
        let holds = (duration(&b.hold, "for")?, duration(&b.keep_firing_for, "keep_firing_for")?);
        Ok((expr, (start, end, step), holds))
    })();
    let (expr, range, holds) = match asked {
        Ok(a) => a,
        Err(e) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    let done = blocking(&state, "metric_repository", "backtest", move |s, budget| {
        let at = TimestampMs::from_millis;
        let options = s.workers.promql.options();
        let out = evaluate_range(
            &*s.source,
            &tenant,
            &expr,
            (at(range.0), at(range.1)),
            range.2,
            options,
            budget,
        );
        let (out, _) = out.map_err(|e| QueryFailure::Bad(e.to_string()))?;
        let Output::Matrix(series) = out else {
            return Err(QueryFailure::Bad("the expression is not a vector".into()));
        };
        Ok(replay(&series, range, holds))
    })
    .await;
    match done {
        Ok(v) => Json(v).into_response(),
        Err(f) => native_failure(&f),
    }
}

/// One time that an alert fired; milliseconds.
struct Firing {
    labels: Labels,
    active_at: i64,
    fired_at: i64,
    resolved_at: Option<i64>,
    peak: f64,
}

/// Runs the alert's state machine over the results of its expression.
fn replay(
    series: &[Series],
    (start, end, step): (i64, i64, i64),
    (hold, keep): (i64, i64),
) -> Value {
    let float = |v: &SampleValue| match v {
        SampleValue::Float(f) => *f,
        SampleValue::Histogram(h) => h.count,
    };
    let mut next: Vec<usize> = vec![0; series.len()];
    let mut alerts = Alerts::default();
    let mut open: HashMap<Labels, Firing> = HashMap::new();
    let mut done: Vec<Firing> = Vec::new();
    let mut pending = 0_u64;
    let mut now = start;
    while now <= end {
        let mut found = Vec::new();
        for (s, at) in series.iter().zip(&mut next) {
            while s.samples.get(*at).is_some_and(|x| x.timestamp.millis() < now) {
                *at += 1;
            }
            if let Some(x) = s.samples.get(*at).filter(|x| x.timestamp.millis() == now) {
                found.push(Found {
                    labels: s.labels.without_name(),
                    annotations: BTreeMap::new(),
                    value: x.value.clone(),
                });
            }
        }
        alerts.update(now, found, hold, keep);
        let active = alerts.active();
        pending += active.iter().filter(|a| a.state == AlertState::Pending).count() as u64;
        for a in active.iter().filter(|a| a.state == AlertState::Firing) {
            let f = open.entry(a.labels.clone()).or_insert_with(|| Firing {
                labels: a.labels.clone(),
                active_at: a.active_at,
                fired_at: a.fired_at.unwrap_or(now),
                resolved_at: None,
                peak: f64::NEG_INFINITY,
            });
            f.peak = f.peak.max(float(&a.value));
        }
        let firing: std::collections::HashSet<&Labels> =
            active.iter().filter(|a| a.state == AlertState::Firing).map(|a| &a.labels).collect();
        let ended: Vec<Labels> = open.keys().filter(|l| !firing.contains(l)).cloned().collect();
        for l in ended {
            if let Some(mut f) = open.remove(&l) {
                f.resolved_at = Some(now);
                done.push(f);
            }
        }
        now += step;
    }
    done.extend(open.into_values());
    done.sort_by(|a, b| (a.fired_at, &a.labels).cmp(&(b.fired_at, &b.labels)));
    let total_ms: i64 = done.iter().map(|f| f.resolved_at.unwrap_or(end) - f.fired_at).sum();
    let one = |f: &Firing| {
        json!({
            "labels": labels_json(&f.labels), "active_at_ms": f.active_at, "fired_at_ms": f.fired_at,
            "resolved_at_ms": f.resolved_at, "peak": f.peak,
        })
    };
    json!({
        "fired": done.len(), "start_ms": start, "end_ms": end, "step_ms": step,
        "firing_seconds": total_ms as f64 / 1000.0, "pending_evaluations": pending,
        "firings": done.iter().take(FIRINGS_MAX).map(one).collect::<Vec<_>>(),
    })
}
