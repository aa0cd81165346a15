//! The ruler's API: the groups that query logs, as YAML by file or namespace. Those of files are
//! only shown; others are written here and kept with the control state.

use crate::body::Refusal;
use crate::state::AppState;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use obs_logql::ast::Query;
use obs_model::{StateChange, TenantId};
use obs_promql::duration::format_ms;
use obs_rules::Language;
use obs_rules::file::{Rule, RuleGroup, RuleKind};
use obs_rules::group::Group;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Groups by file, those that query logs.
fn all(state: &AppState) -> BTreeMap<String, Vec<Group>> {
    let mut out: BTreeMap<String, Vec<Group>> = BTreeMap::new();
    for group in state.workers.rules.groups() {
        if group.rules.iter().any(|r| r.rule.query.language == Language::LogQl) {
            out.entry(group.file.clone()).or_default().push(group);
        }
    }
    out
}

/// Writes a rule; texts and maps stand as JSON, which is YAML too.
fn write_rule(out: &mut String, r: &Rule, indent: &str) {
    let kind = if r.is_alert() { "alert" } else { "record" };
    let _ = writeln!(out, "{indent}  - {kind}: {}", json!(r.name()));
    let _ = writeln!(out, "{indent}    expr: {}", json!(r.query_text()));
    if let RuleKind::Alert { for_ms, annotations, .. } = &r.kind {
        if *for_ms > 0 {
            let _ = writeln!(out, "{indent}    for: {}", format_ms(*for_ms));
        }
        if !annotations.is_empty() {
            let _ = writeln!(out, "{indent}    annotations: {}", json!(annotations));
        }
    }
    if !r.labels.is_empty() {
        let _ = writeln!(out, "{indent}    labels: {}", json!(r.labels));
    }
}

fn write_group(out: &mut String, g: &Group, dash: &str, indent: &str) {
    let _ = writeln!(out, "{dash}name: {}", json!(g.name));
    let _ = writeln!(out, "{indent}interval: {}", format_ms(g.interval_ms));
    let _ = writeln!(out, "{indent}rules:");
    for r in &g.rules {
        write_rule(out, &r.rule, indent);
    }
}

fn write_file(out: &mut String, file: &str, groups: &[Group]) {
    let _ = writeln!(out, "{}:", json!(file));
    for g in groups {
        write_group(out, g, "  - ", "    ");
    }
}

fn yaml(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/yaml")], text).into_response()
}

fn none(what: &str) -> Response {
    (StatusCode::NOT_FOUND, format!("{what}\n")).into_response()
}

pub(super) async fn groups(State(state): State<AppState>) -> Response {
    let all = all(&state);
    if all.is_empty() {
        return none("no rule groups found");
    }
    let mut out = String::new();
    for (file, groups) in &all {
        write_file(&mut out, file, groups);
    }
    yaml(out)
}

pub(super) async fn namespace(State(state): State<AppState>, Path(name): Path<String>) -> Response {
    let mut out = String::new();
    match all(&state).get(&name) {
        Some(groups) => write_file(&mut out, &name, groups),
        None => return none("no rule groups found"),
    }
    yaml(out)
}

pub(super) async fn group(
    State(state): State<AppState>,
    Path((file, name)): Path<(String, String)>,
) -> Response {
    let all = all(&state);
    let hit = all.get(&file).and_then(|groups| groups.iter().find(|g| g.name == name));
    let Some(g) = hit else { return none("group does not exist") };
    let mut out = String::new();
    write_group(&mut out, g, "", "");
    yaml(out)
}

/// Where groups that were written are kept, as they came, by tenant, namespace and name.
const SPACE: &str = "loki-rules";
const GROUPS_MAX: usize = 1000;
const GROUP_BYTES_MAX: usize = 1 << 20;

type Api<T> = Result<T, (StatusCode, String)>;

fn bad(message: impl Into<String>) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, message.into() + "\n")
}

/// Reads one group as the API takes it: YAML, rules that query logs.
fn read_group(text: &str) -> Result<RuleGroup, String> {
    let group = obs_rules::file::read_group(text, "logql")?;
    if group.rules.is_empty() {
        return Err(format!("group {:?} has no rules", group.name));
    }
    for r in &group.rules {
        match obs_logql::parse(&r.query.text) {
            Ok(Query::Metric(_)) => {}
            Ok(Query::Log(_)) => {
                return Err(format!(
                    "could not parse expression for rule {:?} in group {:?}: a rule needs a metric query",
                    r.name(),
                    group.name
                ));
            }
            Err(e) => {
                return Err(format!(
                    "could not parse expression for rule {:?} in group {:?}: {e}",
                    r.name(),
                    group.name
                ));
            }
        }
    }
    Ok(group)
}

fn key(tenant: &TenantId, namespace: &str, group: &str) -> String {
    format!("{tenant}\n{namespace}\n{group}")
}

/// Returns what was written, by namespace.
fn written(state: &AppState) -> BTreeMap<String, Vec<RuleGroup>> {
    let mut out: BTreeMap<String, Vec<RuleGroup>> = BTreeMap::new();
    for (key, text) in state.kept_of::<String>(SPACE, &TenantId::default()) {
        let namespace = key.split('\n').nth(1).unwrap_or_default();
        match read_group(&text) {
            Ok(g) => out.entry(namespace.to_owned()).or_default().push(g),
            Err(e) => tracing::error!(namespace, error = e, "a written rule group is left out"),
        }
    }
    out
}

/// Lets the rule engine run the groups that were written. Must be called on a runtime.
pub fn run_written_rules(state: &AppState) {
    state.workers.rules.set_written(written(state).into_iter().collect());
}

/// Rules are evaluated over the data of one tenant.
fn of_default(headers: &HeaderMap) -> Api<TenantId> {
    let tenant = crate::tenant::tenant(headers).map_err(bad)?;
    if tenant == TenantId::default() {
        return Ok(tenant);
    }
    Err(bad(format!("rules are evaluated for tenant {} only", TenantId::default())))
}

async fn put(state: &AppState, changes: Vec<StateChange>) -> Api<Response> {
    state.control.put(changes).await.map_err(|e| {
        let r = Refusal::from(e);
        (r.status, r.message + "\n")
    })?;
    run_written_rules(state);
    let done = json!({"status": "success", "data": null, "errorType": "", "error": ""});
    Ok((StatusCode::ACCEPTED, Json(done)).into_response())
}

/// Adds a group to a namespace, or replaces the one of its name.
pub(super) async fn write(
    State(state): State<AppState>,
    Path(namespace): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Api<Response> {
    let tenant = of_default(&headers)?;
    // A page of another site can send neither without asking first.
    let media = crate::body::media_type(&headers);
    if !media.ends_with("yaml") && media != "application/json" {
        let message = "a rule group comes as application/yaml\n".to_owned();
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    if body.len() > GROUP_BYTES_MAX {
        let message = format!("a rule group has at most {GROUP_BYTES_MAX} bytes\n");
        return Err((StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    let text = std::str::from_utf8(&body).map_err(|_| bad("a rule group is UTF-8 text"))?;
    let group = read_group(text).map_err(bad)?;
    if namespace.contains('\n') || group.name.contains('\n') {
        return Err(bad("names of namespaces and groups have one line"));
    }
    let known = written(&state);
    let is_known = known.get(&namespace).is_some_and(|g| g.iter().any(|g| g.name == group.name));
    let of_file = |g: &Group| g.file == namespace && g.name == group.name;
    if !is_known && state.workers.rules.groups().iter().any(of_file) {
        return Err(bad(format!(
            "group {:?} of {namespace:?} is in a file: change it there",
            group.name
        )));
    }
    let count: usize = known.values().map(Vec::len).sum();
    if !is_known && count >= GROUPS_MAX {
        return Err(bad(format!(
            "per-user rule groups limit (limit: {GROUPS_MAX} actual: {}) exceeded",
            count + 1
        )));
    }
    let value = serde_json::to_vec(text).map_err(|e| bad(e.to_string()))?;
    let key = key(&tenant, &namespace, &group.name);
    put(&state, vec![StateChange { space: SPACE.into(), key, value: Some(value) }]).await
}

async fn delete(
    state: &AppState,
    headers: &HeaderMap,
    namespace: &str,
    group: Option<&str>,
) -> Api<Response> {
    let tenant = of_default(headers)?;
    let known = written(state).remove(namespace).unwrap_or_default();
    let gone = known.iter().filter(|g| group.is_none_or(|name| g.name == name));
    let change = |g: &RuleGroup| StateChange {
        space: SPACE.into(),
        key: key(&tenant, namespace, &g.name),
        value: None,
    };
    let changes: Vec<StateChange> = gone.map(change).collect();
    if changes.is_empty() {
        let is_of_file = |g: &Group| g.file == namespace && group.is_none_or(|name| g.name == name);
        if state.workers.rules.groups().iter().any(is_of_file) {
            return Err(bad(format!("{namespace:?} is a file: change it there")));
        }
        let what = if group.is_some() { "group does not exist" } else { "no rule groups found" };
        return Err((StatusCode::NOT_FOUND, format!("{what}\n")));
    }
    put(state, changes).await
}

pub(super) async fn delete_namespace(
    State(state): State<AppState>,
    Path(namespace): Path<String>,
    headers: HeaderMap,
) -> Api<Response> {
    delete(&state, &headers, &namespace, None).await
}

pub(super) async fn delete_group(
    State(state): State<AppState>,
    Path((namespace, group)): Path<(String, String)>,
    headers: HeaderMap,
) -> Api<Response> {
    delete(&state, &headers, &namespace, Some(&group)).await
}
