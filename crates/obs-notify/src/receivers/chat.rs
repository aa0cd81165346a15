//! Chats: Slack, WeChat, Discord, Microsoft Teams, Telegram, Webex, RocketChat.

use super::{Attempt, Outcome, Request, compact, truncate};
use crate::config::{
    Discord, MsTeams, MsTeamsV2, RocketChat, Slack, SlackAction, Telegram, WeChat, Webex,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use url::form_urlencoded;

fn extend(into: &mut Value, more: Value) {
    if let (Some(o), Value::Object(m)) = (into.as_object_mut(), more) {
        o.extend(m);
    }
}

fn slack_action(a: &Attempt<'_>, x: &SlackAction) -> Value {
    let mut v = json!({"type": a.text(&x.kind), "text": a.text(&x.text)});
    extend(
        &mut v,
        compact(json!({
            "url": a.text(&x.url), "style": a.text(&x.style), "name": a.text(&x.name), "value": a.text(&x.value),
        })),
    );
    if let Some(c) = &x.confirm {
        let mut confirm = json!({"text": a.text(&c.text)});
        extend(
            &mut confirm,
            compact(json!({
                "title": a.text(&c.title), "ok_text": a.text(&c.ok_text), "dismiss_text": a.text(&c.dismiss_text),
            })),
        );
        extend(&mut v, json!({"confirm": confirm}));
    }
    v
}

fn slack_message(a: &Attempt<'_>, c: &Slack) -> Value {
    let markdown = if c.mrkdwn_in.is_empty() {
        vec!["fallback".to_owned(), "pretext".to_owned(), "text".to_owned()]
    } else {
        c.mrkdwn_in.clone()
    };
    let mut attachment = compact(json!({
        "title": truncate(a.text(&c.title), 1024),
        "title_link": a.text(&c.title_link),
        "pretext": a.text(&c.pretext),
    }));
    extend(
        &mut attachment,
        json!({
            "text": a.text(&c.text), "fallback": a.text(&c.fallback), "callback_id": a.text(&c.callback_id),
        }),
    );
    let field = |f: &crate::config::SlackField| json!({"title": a.text(&f.title), "value": a.text(&f.value), "short": f.short.unwrap_or(c.short_fields)});
    extend(
        &mut attachment,
        compact(json!({
            "fields": c.fields.iter().map(field).collect::<Vec<_>>(),
            "actions": c.actions.iter().map(|x| slack_action(a, x)).collect::<Vec<_>>(),
            "image_url": a.text(&c.image_url),
            "thumb_url": a.text(&c.thumb_url),
        })),
    );
    extend(&mut attachment, json!({"footer": a.text(&c.footer)}));
    extend(&mut attachment, compact(json!({"color": a.text(&c.color), "mrkdwn_in": markdown})));
    let mut v = compact(json!({
        "channel": a.text(&c.channel), "username": a.text(&c.username), "icon_emoji": a.text(&c.icon_emoji),
        "icon_url": a.text(&c.icon_url), "link_names": c.link_names,
    }));
    extend(&mut v, json!({"attachments": [attachment]}));
    v
}

const POST_MESSAGE: &str = "/chat.postMessage";

pub(super) async fn slack(a: &Attempt<'_>, c: &Slack) -> Result<Outcome, Outcome> {
    let url = a.secret(c.api_url.as_ref(), c.api_url_file.as_ref())?;
    let mut body = slack_message(a, c);
    // With a bot's token a message can be changed later; with an incoming webhook it cannot.
    let updates = c.update_message && url.ends_with(POST_MESSAGE);
    let known = a.n.memory.get("ts").zip(a.n.memory.get("channel")).filter(|_| updates);
    let mut target = url.clone();
    if let Some((ts, channel)) = known {
        target = format!("{}/chat.update", url.trim_end_matches(POST_MESSAGE));
        extend(&mut body, json!({"ts": ts, "channel": channel}));
    }
    let answer = a.ask(Request::json(&target, &body).timeout(c.timeout)).await?;
    let mut memory = BTreeMap::new();
    if answer.content_type.starts_with("application/json") {
        let v = answer.json();
        if v.get("ok") == Some(&Value::Bool(false)) {
            let word = super::error_word(&answer.body).unwrap_or_else(|| "unknown error".into());
            return Err(Outcome::failed(format!("error response from Slack: {word}")));
        }
        if updates {
            for name in ["ts", "channel"] {
                if let Some(text) = v.get(name).and_then(Value::as_str) {
                    memory.insert(name.to_owned(), text.to_owned());
                }
            }
        }
    } else if answer.content_type.starts_with("text/plain") && answer.body != b"ok" {
        return Err(Outcome::failed("received an error response from Slack"));
    }
    // A resolved group ends the message; the next time it fires begins another.
    Ok(Outcome::Sent(if a.n.is_firing() { memory } else { BTreeMap::new() }))
}

pub(super) async fn discord(a: &Attempt<'_>, c: &Discord) -> Result<Outcome, Outcome> {
    const RED: u32 = 0x0099_2D22;
    const GREEN: u32 = 0x002E_CC71;
    let url = a.secret(c.webhook_url.as_ref(), c.webhook_url_file.as_ref())?;
    let mut body = json!({"content": truncate(a.text(&c.content), 2000)});
    extend(
        &mut body,
        json!({"embeds": [{
            "title": truncate(a.text(&c.title), 256),
            "description": truncate(a.text(&c.message), 4096),
            "color": if a.n.is_firing() { RED } else { GREEN },
        }]}),
    );
    extend(
        &mut body,
        compact(json!({"username": a.text(&c.username), "avatar_url": a.text(&c.avatar_url)})),
    );
    a.ask(Request::json(&url, &body)).await?;
    Ok(Outcome::sent())
}

pub(super) async fn msteams(a: &Attempt<'_>, c: &MsTeams) -> Result<Outcome, Outcome> {
    let url = a.secret(c.webhook_url.as_ref(), c.webhook_url_file.as_ref())?;
    let color = if a.n.is_firing() { "8C1A1A" } else { "2DC72D" };
    let body = json!({
        "@context": "http://schema.org/extensions", "type": "MessageCard",
        "title": a.text(&c.title), "summary": a.text(&c.summary), "text": a.text(&c.text), "themeColor": color,
    });
    a.ask(Request::json(&url, &body)).await?;
    Ok(Outcome::sent())
}

pub(super) async fn msteams_v2(a: &Attempt<'_>, c: &MsTeamsV2) -> Result<Outcome, Outcome> {
    let url = a.secret(c.webhook_url.as_ref(), c.webhook_url_file.as_ref())?;
    let color = if a.n.is_firing() { "Attention" } else { "Good" };
    let body = json!({"type": "message", "attachments": [{
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": null,
        "content": {
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.2",
            "body": [
                {"type": "TextBlock", "text": a.text(&c.title), "weight": "Bolder", "size": "Medium", "wrap": true, "style": "heading", "color": color},
                {"type": "TextBlock", "text": a.text(&c.text), "wrap": true},
            ],
            "msteams": {"width": "full"},
        },
    }]});
    a.ask(Request::json(&url, &body)).await?;
    Ok(Outcome::sent())
}

pub(super) async fn telegram(a: &Attempt<'_>, c: &Telegram) -> Result<Outcome, Outcome> {
    let token = a.secret(c.bot_token.as_ref(), c.bot_token_file.as_ref())?;
    let api = c.api_url.as_deref().unwrap_or_default().trim_end_matches('/');
    let url = format!("{api}/bot{token}/sendMessage");
    // What alerts say must not be read as markup of the message.
    let message = if c.parse_mode == "HTML" {
        a.html(&c.message).unwrap_or_else(|e| a.plain(&e))
    } else {
        a.text(&c.message)
    };
    let mut body = json!({
        "chat_id": c.chat_id.to_string(), "text": truncate(message, 4096), "disable_web_page_preview": "true",
    });
    extend(&mut body, compact(json!({"parse_mode": c.parse_mode})));
    if c.message_thread_id != 0 {
        extend(&mut body, json!({"message_thread_id": c.message_thread_id.to_string()}));
    }
    if c.disable_notifications {
        extend(&mut body, json!({"disable_notification": "true"}));
    }
    a.ask(Request::json(&url, &body)).await?;
    Ok(Outcome::sent())
}

pub(super) async fn webex(a: &Attempt<'_>, c: &Webex) -> Result<Outcome, Outcome> {
    let mut message = a.text(&c.message);
    message.truncate(message.floor_char_boundary(7439));
    let body = json!({"markdown": message, "roomId": a.text(&c.room_id)});
    a.ask(Request::json(c.api_url.as_deref().unwrap_or_default(), &body)).await?;
    Ok(Outcome::sent())
}

pub(super) async fn rocketchat(a: &Attempt<'_>, c: &RocketChat) -> Result<Outcome, Outcome> {
    let token = a.secret(c.token.as_ref(), c.token_file.as_ref())?;
    let id = a.secret(c.token_id.as_ref(), c.token_id_file.as_ref())?;
    let api = c.api_url.as_deref().unwrap_or_default().trim_end_matches('/');
    let mut attachment = compact(json!({
        "title": truncate(a.text(&c.title), 1024), "title_link": a.text(&c.title_link), "text": a.text(&c.text),
        "image_url": a.text(&c.image_url), "thumb_url": a.text(&c.thumb_url), "color": a.text(&c.color),
    }));
    let field = |f: &crate::config::RocketField| json!({"title": a.text(&f.title), "value": a.text(&f.value), "short": f.short.unwrap_or(c.short_fields)});
    let action = |x: &crate::config::RocketAction| {
        compact(
            json!({"type": a.text(&x.kind), "text": a.text(&x.text), "url": a.text(&x.url), "msg": a.text(&x.msg)}),
        )
    };
    extend(
        &mut attachment,
        compact(json!({
            "fields": c.fields.iter().map(field).collect::<Vec<_>>(),
            "actions": c.actions.iter().map(action).collect::<Vec<_>>(),
        })),
    );
    let mut body = Value::Object(Map::new());
    extend(
        &mut body,
        compact(json!({
            "channel": a.text(&c.channel), "emoji": a.text(&c.emoji), "avatar": a.text(&c.icon_url), "parseUrls": c.link_names,
        })),
    );
    extend(&mut body, json!({"attachments": [attachment]}));
    let url = format!("{api}/api/v1/chat.postMessage");
    let r = Request::json(&url, &body).header("X-Auth-Token", token).header("X-User-Id", id);
    let answer = a.ask(r).await?;
    if answer.json().get("success") == Some(&Value::Bool(false)) {
        let word = super::error_word(&answer.body).unwrap_or_else(|| "unknown error".into());
        return Err(Outcome::failed(format!("error response from Rocket.Chat: {word}")));
    }
    Ok(Outcome::sent())
}

/// How long a token of WeChat is used, as Alertmanager does.
const TOKEN_NS: i64 = 2 * 3_600_000_000_000;

/// Returns a token, asking for one when none is known or it is old.
async fn wechat_token(a: &Attempt<'_>, c: &WeChat) -> Result<String, Outcome> {
    let mut kept = a.sender.token.lock().await;
    if let Some((token, since)) = &*kept
        && a.n.now.nanos() - since.nanos() < TOKEN_NS
    {
        return Ok(token.clone());
    }
    let secret = a.secret(c.api_secret.as_ref(), c.api_secret_file.as_ref())?;
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("corpid", &a.text(c.corp_id.as_deref().unwrap_or_default()))
        .append_pair("corpsecret", &a.text(&secret))
        .finish();
    let url = format!("{}gettoken?{query}", c.api_url.as_deref().unwrap_or_default());
    let r = Request::json(&url, &Value::Null).method(reqwest::Method::GET);
    let answer = a.ask(r).await?.json();
    let token = answer.get("access_token").and_then(Value::as_str).unwrap_or_default().to_owned();
    if token.is_empty() {
        return Err(Outcome::failed("invalid api_secret for corp_id"));
    }
    *kept = Some((token.clone(), a.n.now));
    Ok(token)
}

pub(super) async fn wechat(a: &Attempt<'_>, c: &WeChat) -> Result<Outcome, Outcome> {
    /// The code of an answer to a token that is too old.
    const EXPIRED: i64 = 42_001;
    let token = wechat_token(a, c).await?;
    let is_markdown = c.message_type == "markdown";
    let content = a.text(&c.message);
    let of = |mine: bool| json!({"content": if mine { content.as_str() } else { "" }});
    let mut body = json!({"text": of(!is_markdown)});
    extend(
        &mut body,
        compact(json!({
            "touser": a.text(&c.to_user), "toparty": a.text(&c.to_party), "totag": a.text(&c.to_tag),
            "agentid": a.text(&c.agent_id), "safe": "0",
            "msgtype": if is_markdown { "markdown" } else { "text" },
        })),
    );
    extend(&mut body, json!({"markdown": of(is_markdown)}));
    let api = c.api_url.as_deref().unwrap_or_default();
    let url = format!("{api}message/send?access_token={token}");
    let answer = a.ask(Request::json(&url, &body)).await?.json();
    match answer.get("errcode").and_then(Value::as_i64) {
        Some(0) => Ok(Outcome::sent()),
        Some(EXPIRED) => {
            *a.sender.token.lock().await = None;
            Err(Outcome::retry("the token has expired"))
        }
        Some(code) => Err(Outcome::failed(format!("error {code} from WeChat"))),
        None => Err(Outcome::failed("an answer of WeChat holds no errcode")),
    }
}
