//! Webhooks and Amazon SNS.

use super::{Attempt, Outcome, Request, hex, sha256};
use crate::alert::{Alert, fingerprint};
use crate::config::{Sns, Webhook};
use obs_model::{Labels, TimestampNs};
use ring::hmac;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use url::form_urlencoded;

fn object(labels: &Labels) -> Value {
    Value::Object(labels.iter().map(|(n, v)| (n.to_owned(), v.into())).collect::<Map<_, _>>())
}

/// Text of the alerts of one message, bytes; what is left out is counted in it.
const ALERTS_BYTES_MAX: usize = 8 << 20;

/// Writes the message of webhooks, version 4.
pub(super) async fn webhook(a: &Attempt<'_>, c: &Webhook) -> Result<Outcome, Outcome> {
    let url = a.secret(c.url.as_ref(), c.url_file.as_ref())?;
    // What is left out counts for nothing else either.
    let mut n = a.n.clone();
    let all = n.alerts.len();
    if c.max_alerts > 0 {
        n.alerts.truncate(c.max_alerts);
    }
    let mut room = ALERTS_BYTES_MAX;
    let fits = |a: &&Arc<Alert>| {
        let fits = a.size() <= room;
        room = room.saturating_sub(a.size());
        fits
    };
    let fitting = n.alerts.iter().take_while(fits).count();
    n.alerts.truncate(fitting.max(1));
    let alert = |x: &Arc<Alert>| {
        let is_resolved = x.is_resolved(n.now);
        let ends = if is_resolved { go_time(x.ends_at) } else { "0001-01-01T00:00:00Z".into() };
        json!({
            "status": if is_resolved { "resolved" } else { "firing" },
            "labels": object(&x.labels),
            "annotations": x.annotations,
            "startsAt": go_time(x.starts_at),
            "endsAt": ends,
            "generatorURL": x.generator_url,
            "fingerprint": format!("{:016x}", fingerprint(&x.labels)),
        })
    };
    let body = json!({
        "receiver": n.receiver,
        "status": n.status(),
        "alerts": n.alerts.iter().map(alert).collect::<Vec<_>>(),
        "groupLabels": object(&n.group_labels),
        "commonLabels": n.common_labels(),
        "commonAnnotations": n.common_annotations(),
        "externalURL": n.external_url,
        "version": "4",
        "groupKey": n.group_key,
        "truncatedAlerts": all - n.alerts.len(),
    });
    a.ask(Request::json(&url, &body).timeout(c.timeout)).await?;
    Ok(Outcome::sent())
}

/// Publishes to a topic, a phone or a device, signed with an access key.
pub(super) async fn sns(a: &Attempt<'_>, c: &Sns) -> Result<Outcome, Outcome> {
    let mut form: Vec<(String, String)> =
        vec![("Action".into(), "Publish".into()), ("Version".into(), "2010-03-31".into())];
    let (mut message, mut cut) = (a.text(&c.message), false);
    // Text messages hold 1,600 bytes, topics and devices 256 KiB.
    let most = if c.phone_number.is_empty() { 256 << 10 } else { 1600 };
    if message.len() > most {
        message.truncate(message.floor_char_boundary(most));
        cut = true;
    }
    let mut attributes: Vec<(String, String)> =
        c.attributes.iter().map(|(n, v)| (a.text(n), a.text(v))).collect();
    if cut {
        attributes.push(("truncated".into(), "true".into()));
    }
    for (name, target) in
        [("TopicArn", &c.topic_arn), ("PhoneNumber", &c.phone_number), ("TargetArn", &c.target_arn)]
    {
        let target = a.text(target);
        if name == "TopicArn" && target.ends_with(".fifo") {
            form.push(("MessageDeduplicationId".into(), a.n.idempotency_key.clone()));
            form.push(("MessageGroupId".into(), a.group_hash()));
        }
        if !target.is_empty() {
            form.push((name.into(), target));
        }
    }
    let subject = a.text(&c.subject);
    if !subject.is_empty() {
        form.push(("Subject".into(), super::truncate(subject.replace(['\n', '\r'], " "), 100)));
    }
    for (i, (name, value)) in attributes.iter().filter(|(_, v)| !v.is_empty()).enumerate() {
        let at = |field: &str| format!("MessageAttributes.entry.{}.{field}", i + 1);
        form.push((at("Name"), name.clone()));
        form.push((at("Value.DataType"), "String".into()));
        form.push((at("Value.StringValue"), value.clone()));
    }
    form.push(("Message".into(), message));
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&form).finish();
    let region = &c.sigv4.region;
    let url = match &c.api_url {
        Some(u) => a.text(u),
        None if region.is_empty() => return Err(Outcome::failed("sigv4.region is not set")),
        None => format!("https://sns.{region}.amazonaws.com/"),
    };
    let (Some(access), Some(secret)) = (&c.sigv4.access_key, &c.sigv4.secret_key) else {
        return Err(Outcome::failed("sigv4.access_key and secret_key are not set"));
    };
    let url = if url.ends_with('/') { url } else { format!("{url}/") };
    let parsed = url::Url::parse(&url).map_err(|e| Outcome::failed(e.to_string()))?;
    let stamp = stamp(a.n.now);
    let signature = sign(&parsed, &body, &stamp, region, access, secret);
    let mut r = Request::json(&url, &Value::Null)
        .header("X-Amz-Date", stamp)
        .header("Authorization", signature);
    r.body = body.into_bytes();
    r.content_type = FORM;
    a.ask(r).await?;
    Ok(Outcome::sent())
}

const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// `20261122T101500Z`.
fn stamp(now: TimestampNs) -> String {
    obs_template::format_time(now, "20060102T150405Z")
}

/// Signs a POST of a form as AWS' Signature Version 4 asks.
fn sign(
    url: &url::Url,
    body: &str,
    stamp: &str,
    region: &str,
    access: &str,
    secret: &str,
) -> String {
    let host = match url.port() {
        Some(p) => format!("{}:{p}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    let day = stamp.get(..8).unwrap_or_default();
    let scope = format!("{day}/{region}/sns/aws4_request");
    let signed = "content-type;host;x-amz-date";
    let canonical = format!(
        "POST\n{}\n\ncontent-type:{FORM}\nhost:{host}\nx-amz-date:{stamp}\n\n{signed}\n{}",
        url.path(),
        sha256(body.as_bytes()),
    );
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let mac = |key: &[u8], data: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data.as_bytes()).as_ref().to_vec()
    };
    let mut key = mac(format!("AWS4{secret}").as_bytes(), day);
    for part in [region, "sns", "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex(&mac(&key, &text));
    format!(
        "AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={signed}, Signature={signature}"
    )
}

/// Writes a time as Go puts it into JSON.
fn go_time(at: TimestampNs) -> String {
    obs_template::format_time(at, "2006-01-02T15:04:05.999999999Z07:00")
}
