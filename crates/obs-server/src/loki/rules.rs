//! The ruler's API: the groups that query logs, as YAML by file.

use crate::state::AppState;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use obs_promql::duration::format_ms;
use obs_rules::Language;
use obs_rules::file::{Rule, RuleKind};
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
