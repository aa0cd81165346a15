//! Paging services: PagerDuty, OpsGenie, VictorOps, Pushover.

use super::{Attempt, Outcome, Request, compact, truncate};
use crate::config::{OpsGenie, PagerDuty, Pushover, VictorOps};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use url::form_urlencoded;

/// Longest message of PagerDuty, bytes.
const PAGERDUTY_BYTES_MAX: usize = 512_000;

pub(super) async fn pagerduty(a: &Attempt<'_>, c: &PagerDuty) -> Result<Outcome, Outcome> {
    let is_firing = a.n.is_firing();
    let action = if is_firing { "trigger" } else { "resolve" };
    let mut details: BTreeMap<String, String> =
        c.details.iter().map(|(n, v)| (n.clone(), a.text(v))).collect();
    let url = c.url.as_deref().unwrap_or_default();
    let service_key = a.secret(c.service_key.as_ref(), c.service_key_file.as_ref())?;
    let routing_key = a.secret(c.routing_key.as_ref(), c.routing_key_file.as_ref())?;
    let key = a.group_hash();
    let body = |details: &BTreeMap<String, String>| {
        if !service_key.is_empty() {
            let description = truncate(a.text(&c.description), 1024);
            let mut v = json!({
                "service_key": a.text(&service_key),
                "incident_key": key,
                "event_type": action,
                "event_action": "",
                "payload": null,
                "description": description,
                "details": details,
            });
            if is_firing && let Some(o) = v.as_object_mut() {
                for (name, text) in [("client", &c.client), ("client_url", &c.client_url)] {
                    let text = a.text(text);
                    if !text.is_empty() {
                        o.insert(name.into(), text.into());
                    }
                }
            }
            return v;
        }
        let or =
            |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let mut payload = json!({
            "summary": truncate(a.text(&c.description), 1024),
            "source": a.text(&c.source),
            "severity": or(a.text(&c.severity), "error"),
        });
        let more = compact(json!({
            "class": a.text(&c.class), "component": a.text(&c.component), "group": a.text(&c.group),
            "custom_details": details,
        }));
        if let (Some(p), Value::Object(m)) = (payload.as_object_mut(), more) {
            p.extend(m);
        }
        let image = |i: &crate::config::PagerDutyImage| {
            let src = a.text(&i.src);
            let v = json!({"src": src, "alt": a.text(&i.alt), "href": a.text(&i.href)});
            (!src.is_empty()).then_some(v)
        };
        let link = |l: &crate::config::PagerDutyLink| {
            let href = a.text(&l.href);
            let v = json!({"href": href, "text": a.text(&l.text)});
            (!href.is_empty()).then_some(v)
        };
        let mut v = json!({"routing_key": a.text(&routing_key), "dedup_key": key, "event_action": action, "payload": payload});
        let more = compact(json!({
            "client": a.text(&c.client), "client_url": a.text(&c.client_url),
            "images": c.images.iter().filter_map(image).collect::<Vec<_>>(),
            "links": c.links.iter().filter_map(link).collect::<Vec<_>>(),
        }));
        if let (Some(o), Value::Object(m)) = (v.as_object_mut(), more) {
            o.extend(m);
        }
        v
    };
    let mut message = body(&details);
    if message.to_string().len() > PAGERDUTY_BYTES_MAX {
        details = BTreeMap::from([("error".into(), "Custom details have been removed because the original event exceeds the maximum size of 512KB".into())]);
        message = body(&details);
    }
    a.ask(Request::json(url, &message).timeout(c.timeout)).await?;
    Ok(Outcome::sent())
}

pub(super) async fn opsgenie(a: &Attempt<'_>, c: &OpsGenie) -> Result<Outcome, Outcome> {
    let key = a.secret(c.api_key.as_ref(), c.api_key_file.as_ref())?;
    let authorization = format!("GenieKey {}", a.text(&key));
    let api = a.text(c.api_url.as_deref().unwrap_or_default());
    let alias = a.group_hash();
    let by_alias = |path: &str| format!("{api}v2/alerts/{alias}{path}?identifierType=alias");
    let source = a.text(&c.source);
    let post = async |url: &str, body: &Value, method: reqwest::Method| {
        let r =
            Request::json(url, body).method(method).header("Authorization", authorization.clone());
        a.ask(r).await
    };
    if !a.n.is_firing() {
        post(&by_alias("/close"), &json!({"source": source}), reqwest::Method::POST).await?;
        return Ok(Outcome::sent());
    }
    let mut details: Map<String, Value> =
        a.n.common_labels().into_iter().map(|(n, v)| (n, v.into())).collect();
    details.extend(c.details.iter().map(|(n, v)| (n.clone(), a.text(v).into())));
    let mut responders = Vec::new();
    for r in &c.responders {
        let (id, name, username) = (a.text(&r.id), a.text(&r.name), a.text(&r.username));
        let kind = a.text(&r.kind).to_lowercase();
        if id.is_empty() && name.is_empty() && username.is_empty() {
            continue;
        }
        if kind == "teams" {
            for team in name.split(',').map(str::trim).filter(|t| !t.is_empty()) {
                responders.push(json!({"name": team, "type": "team"}));
            }
            continue;
        }
        responders
            .push(compact(json!({"id": id, "name": name, "username": username, "type": kind})));
    }
    let list = |text: String| -> Vec<String> {
        // As Alertmanager splits: spaces after commas stay.
        text.trim().split(',').map(str::to_owned).filter(|t| !t.is_empty()).collect()
    };
    let message = truncate(a.text(&c.message), 130);
    let description = truncate(a.text(&c.description), 15_000);
    let mut body = json!({"alias": alias, "message": message});
    let more = compact(json!({
        "description": description, "details": details, "source": source, "responders": responders,
        "tags": list(a.text(&c.tags)), "note": a.text(&c.note), "priority": a.text(&c.priority),
        "entity": a.text(&c.entity), "actions": list(a.text(&c.actions)),
    }));
    if let (Some(o), Value::Object(m)) = (body.as_object_mut(), more) {
        o.extend(m);
    }
    // `details` and `source` are always there.
    if let Some(o) = body.as_object_mut() {
        o.entry("details").or_insert_with(|| json!({}));
        o.entry("source").or_insert_with(|| "".into());
    }
    post(&format!("{api}v2/alerts"), &body, reqwest::Method::POST).await?;
    if c.update_alerts {
        post(&by_alias("/message"), &json!({"message": message}), reqwest::Method::PUT).await?;
        if !description.is_empty() {
            post(
                &by_alias("/description"),
                &json!({"description": description}),
                reqwest::Method::PUT,
            )
            .await?;
        }
    }
    Ok(Outcome::sent())
}

pub(super) async fn victorops(a: &Attempt<'_>, c: &VictorOps) -> Result<Outcome, Outcome> {
    let key = a.secret(c.api_key.as_ref(), c.api_key_file.as_ref())?;
    let url = format!(
        "{}{}/{}",
        c.api_url.as_deref().unwrap_or_default(),
        a.text(&key),
        a.text(&c.routing_key)
    );
    let kind = a.text(&c.message_type);
    let known = ["CRITICAL", "WARNING", "INFO"].contains(&kind.as_str());
    let kind = match (a.n.is_firing(), known) {
        (false, _) => "RECOVERY",
        (true, true) => kind.as_str(),
        (true, false) => "CRITICAL",
    };
    let mut body = json!({
        "message_type": kind,
        "entity_id": a.group_hash(),
        "entity_display_name": a.text(&c.entity_display_name),
        "state_message": truncate(a.text(&c.state_message), 20_480),
        "monitoring_tool": a.text(&c.monitoring_tool),
    });
    if let Some(o) = body.as_object_mut() {
        o.extend(c.custom_fields.iter().map(|(n, v)| (n.clone(), a.text(v).into())));
    }
    a.ask(Request::json(&url, &body)).await?;
    Ok(Outcome::sent())
}

pub(super) async fn pushover(a: &Attempt<'_>, c: &Pushover) -> Result<Outcome, Outcome> {
    let token = a.secret(c.token.as_ref(), c.token_file.as_ref())?;
    let user = a.secret(c.user_key.as_ref(), c.user_key_file.as_ref())?;
    let text = |t: &str| if c.html { a.html(t).unwrap_or_else(|e| a.plain(&e)) } else { a.text(t) };
    let mut message = truncate(text(&c.message), 1024).trim().to_owned();
    if message.is_empty() {
        // Pushover takes no message without a text.
        message = "(no details)".into();
    }
    let mut form: Vec<(&str, String)> = vec![
        ("token", a.text(&token)),
        ("user", a.text(&user)),
        ("title", truncate(a.text(&c.title), 250)),
        ("message", message),
        ("url", truncate(a.text(&c.url), 512)),
        ("url_title", a.text(&c.url_title)),
    ];
    if c.html {
        form.push(("html", "1".into()));
    }
    if c.monospace {
        form.push(("monospace", "1".into()));
    }
    form.push(("priority", a.text(&c.priority)));
    form.push(("retry", c.retry.0.as_secs().to_string()));
    form.push(("expire", c.expire.0.as_secs().to_string()));
    for (name, value) in [("device", a.text(&c.device)), ("sound", a.text(&c.sound))] {
        form.push((name, value));
    }
    if let Some(ttl) = c.ttl {
        form.push(("ttl", ttl.0.as_secs().to_string()));
    }
    // These two are sent even when empty, the others not.
    form.retain(|(n, v)| !v.is_empty() || matches!(*n, "title" | "url" | "url_title"));
    form.sort();
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&form).finish();
    let url = format!("{}?{query}", c.api_url.as_deref().unwrap_or(PUSHOVER_URL));
    let mut r = Request::json(&url, &Value::Null);
    (r.body, r.content_type) = (Vec::new(), "text/plain");
    a.ask(r).await?;
    Ok(Outcome::sent())
}

const PUSHOVER_URL: &str = "https://api.pushover.net/1/messages.json";
