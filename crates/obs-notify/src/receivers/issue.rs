//! Jira: an issue per group, reopened and resolved with it.

use super::{Answer, Attempt, Outcome, Request, compact, truncate};
use crate::config::Jira;
use serde_json::{Value, json};

async fn ask(
    a: &Attempt<'_>,
    method: reqwest::Method,
    url: &str,
    body: &Value,
) -> Result<Answer, Outcome> {
    a.ask(Request::json(url, body).method(method).header("Accept-Language", "en")).await
}

/// Quotes a text for Jira's query language.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}

pub(super) async fn jira(a: &Attempt<'_>, c: &Jira) -> Result<Outcome, Outcome> {
    let api = c.api_url.as_deref().unwrap_or_default().trim_end_matches('/');
    let label = format!("ALERT{{{}}}", a.group_hash());
    let project = a.text(&c.project);
    let is_firing = a.n.is_firing();
    let mut jql = String::new();
    if !c.wont_fix_resolution.is_empty() {
        jql.push_str(&format!("resolution != {} and ", quoted(&c.wont_fix_resolution)));
    }
    // A resolved issue counts as this group's while it may be reopened.
    if is_firing && !c.reopen_transition.is_empty() {
        if let Some(d) = c.reopen_duration {
            let minutes = d.0.as_secs() / 60;
            jql.push_str(&format!(
                "(resolutiondate is EMPTY OR resolutiondate >= -{minutes}m) and "
            ));
        }
    } else {
        jql.push_str("statusCategory != Done and ");
    }
    jql.push_str(&format!(
        "project={} and labels={} order by status ASC,resolutiondate DESC",
        quoted(&project),
        quoted(&label)
    ));
    let search = json!({"jql": jql, "maxResults": 2, "fields": ["status"], "expand": []});
    let found = ask(a, reqwest::Method::POST, &format!("{api}/search"), &search).await?.json();
    let issue = found.get("issues").and_then(|i| i.get(0)).cloned();
    let Some(issue) = issue else {
        if !is_firing {
            return Ok(Outcome::sent());
        }
        return create(a, c, api, &project, &label).await;
    };
    let key = issue.get("key").and_then(Value::as_str).unwrap_or_default();
    let url = format!("{api}/issue/{key}");
    let done =
        issue.pointer("/fields/status/statusCategory/key").and_then(Value::as_str) == Some("done");
    let fields = fields(a, c, &project, &label);
    ask(a, reqwest::Method::PUT, &url, &json!({"fields": fields})).await?;
    let transition = match (is_firing, done) {
        (true, true) => &c.reopen_transition,
        (false, false) => &c.resolve_transition,
        _ => return Ok(Outcome::sent()),
    };
    if transition.is_empty() {
        return Ok(Outcome::sent());
    }
    let url = format!("{url}/transitions");
    let known = ask(a, reqwest::Method::GET, &url, &Value::Null).await?.json();
    let list = known.get("transitions").and_then(Value::as_array).cloned().unwrap_or_default();
    let id = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(transition));
    let Some(id) = id.and_then(|t| t.get("id")) else {
        return Err(Outcome::failed(format!("can't find transition {transition} for issue {key}")));
    };
    ask(a, reqwest::Method::POST, &url, &json!({"transition": {"id": id}})).await?;
    Ok(Outcome::sent())
}

fn fields(a: &Attempt<'_>, c: &Jira, project: &str, label: &str) -> Value {
    let mut labels: Vec<String> = c.labels.iter().map(|l| a.text(l)).collect();
    labels.push(label.to_owned());
    let mut v = json!({
        "project": {"key": project},
        "issuetype": {"name": a.text(&c.issue_type)},
        "summary": truncate(a.text(&c.summary), 255),
        "labels": labels,
    });
    let priority = a.text(&c.priority);
    let more = compact(json!({
        "description": truncate(a.text(&c.description), 32_767),
        "priority": if priority.is_empty() { Value::Null } else { json!({"name": priority}) },
    }));
    if let (Some(o), Value::Object(m)) = (v.as_object_mut(), more) {
        o.extend(m);
        o.extend(c.fields.iter().map(|(n, f)| (n.clone(), f.clone())));
    }
    v
}

async fn create(
    a: &Attempt<'_>,
    c: &Jira,
    api: &str,
    project: &str,
    label: &str,
) -> Result<Outcome, Outcome> {
    let body = json!({"fields": fields(a, c, project, label)});
    ask(a, reqwest::Method::POST, &format!("{api}/issue"), &body).await?;
    Ok(Outcome::sent())
}
