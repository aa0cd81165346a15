//! The kinds of receivers: what each is sent, and what its answers mean.

mod chat;
mod issue;
mod mail;
mod paging;
mod plain;

use crate::config::{Integration, Kind};
use crate::data::Notification;
use crate::guard::{Outbound, Resolver};
use crate::templates::{Filler, Templates};
use obs_collect::http::{HttpClient, read_body};
use obs_model::TimestampNs;
use ring::digest;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Delivered, with what is to be remembered for the next one.
    Sent(BTreeMap<String, String>),
    /// It may work later, after this time if the receiver named one.
    /// `may_have_arrived`: it broke off after the request was sent.
    Retry { why: String, after: Option<Duration>, may_have_arrived: bool },
    /// It will not work however often it is tried.
    Failed { why: String },
}

impl Outcome {
    fn failed(why: impl Into<String>) -> Self {
        Self::Failed { why: why.into() }
    }

    /// Not delivered for sure.
    fn retry(why: impl Into<String>) -> Self {
        Self::Retry { why: why.into(), after: None, may_have_arrived: false }
    }

    fn sent() -> Self {
        Self::Sent(BTreeMap::new())
    }
}

/// How long one attempt may take, unless the receiver's settings say otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Longest pause that a receiver may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// Sends the messages of one integration.
pub struct Sender {
    integration: Integration,
    templates: Templates,
    client: HttpClient,
    outbound: Arc<Outbound>,
    folder: PathBuf,
    /// A token that a receiver gave for a while, and since when it is known.
    token: tokio::sync::Mutex<Option<(String, TimestampNs)>>,
}

impl std::fmt::Debug for Sender {
    // Nothing of the settings: they hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("kind", &self.integration.kind.name())
            .finish_non_exhaustive()
    }
}

/// An HTTP request to be made.
struct Request<'a> {
    method: reqwest::Method,
    url: &'a str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    content_type: &'static str,
    timeout: Duration,
}

impl<'a> Request<'a> {
    fn json(url: &'a str, body: &Value) -> Self {
        Self {
            method: reqwest::Method::POST,
            url,
            headers: Vec::new(),
            body: body.to_string().into_bytes(),
            content_type: "application/json",
            timeout: TIMEOUT,
        }
    }

    fn method(mut self, m: reqwest::Method) -> Self {
        self.method = m;
        self
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn timeout(mut self, t: Option<obs_collect::config::Span>) -> Self {
        self.timeout =
            t.map_or(TIMEOUT, |t| t.0).min(Duration::from_secs(60)).max(Duration::from_millis(1));
        self
    }
}

struct Answer {
    content_type: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// One attempt: its message, and how to fill in texts.
struct Attempt<'a> {
    sender: &'a Sender,
    n: &'a Notification,
    fill: Filler<'a>,
}

impl Sender {
    /// Prepares to send; relative paths start from `folder`.
    ///
    /// # Errors
    /// When certificates or proxies of the settings cannot be used.
    pub fn new(
        integration: Integration,
        templates: Templates,
        outbound: Arc<Outbound>,
        folder: &Path,
    ) -> Result<Self, String> {
        let resolver = Arc::new(Resolver(outbound.clone()));
        let client = HttpClient::guarded(&integration.http, folder, resolver)?;
        Ok(Self {
            integration,
            templates,
            client,
            outbound,
            folder: folder.to_owned(),
            token: Default::default(),
        })
    }

    /// Makes one attempt. A template that fails is replaced by a plain text: a mistake in it must
    /// not keep a page from its reader.
    pub async fn send(&self, n: &Notification) -> Outcome {
        let attempt = Attempt { sender: self, n, fill: self.templates.filler(n) };
        let sent = match &self.integration.kind {
            Kind::Webhook(c) => plain::webhook(&attempt, c).await,
            Kind::Email(c) => mail::email(&attempt, c).await,
            Kind::PagerDuty(c) => paging::pagerduty(&attempt, c).await,
            Kind::OpsGenie(c) => paging::opsgenie(&attempt, c).await,
            Kind::Slack(c) => chat::slack(&attempt, c).await,
            Kind::WeChat(c) => chat::wechat(&attempt, c).await,
            Kind::VictorOps(c) => paging::victorops(&attempt, c).await,
            Kind::Pushover(c) => paging::pushover(&attempt, c).await,
            Kind::Sns(c) => plain::sns(&attempt, c).await,
            Kind::Telegram(c) => chat::telegram(&attempt, c).await,
            Kind::Discord(c) => chat::discord(&attempt, c).await,
            Kind::Webex(c) => chat::webex(&attempt, c).await,
            Kind::MsTeams(c) => chat::msteams(&attempt, c).await,
            Kind::MsTeamsV2(c) => chat::msteams_v2(&attempt, c).await,
            Kind::Jira(c) => issue::jira(&attempt, c).await,
            Kind::RocketChat(c) => chat::rocketchat(&attempt, c).await,
        };
        sent.unwrap_or_else(|o| o)
    }
}

impl Attempt<'_> {
    /// Fills in a text; one that cannot be filled in becomes a plain line about the group.
    fn text(&self, template: &str) -> String {
        self.fill.text(template).unwrap_or_else(|e| self.plain(&e))
    }

    fn html(&self, template: &str) -> Result<String, String> {
        self.fill.html(template)
    }

    /// Says what fires without any template.
    fn plain(&self, why: &str) -> String {
        let names: std::collections::BTreeSet<&str> =
            self.n.alerts.iter().map(|a| a.name()).collect();
        let names: Vec<&str> = names.into_iter().take(20).collect();
        tracing::warn!(
            receiver = self.n.receiver,
            error = why,
            "a template failed; a plain text is sent"
        );
        format!(
            "[{}:{}] {} (the template of this message failed: {why})",
            self.n.status().to_uppercase(),
            self.n.alerts.len(),
            names.join(", "),
        )
    }

    /// Reads a secret from its setting or its file.
    fn secret(&self, value: Option<&String>, file: Option<&PathBuf>) -> Result<String, Outcome> {
        match (value, file) {
            (Some(v), _) => Ok(v.clone()),
            (None, Some(f)) => {
                let path = self.sender.folder.join(f);
                let text = std::fs::read_to_string(&path);
                text.map(|t| t.trim().to_owned())
                    .map_err(|e| Outcome::retry(format!("could not read {}: {e}", path.display())))
            }
            (None, None) => Ok(String::new()),
        }
    }

    /// Makes a request; what says that it may work later, or never, is the error.
    async fn ask(&self, r: Request<'_>) -> Result<Answer, Outcome> {
        let url = url::Url::parse(r.url)
            .map_err(|e| Outcome::failed(format!("the URL cannot be used: {e}")))?;
        self.sender.outbound.check_url(&url).map_err(Outcome::failed)?;
        let is_get = r.method == reqwest::Method::GET;
        let mut request =
            self.sender.client.request(r.method, r.url).await.map_err(Outcome::retry)?;
        request = request
            .header("Idempotency-Key", &self.n.idempotency_key)
            .timeout(r.timeout)
            .body(if is_get { Vec::new() } else { r.body });
        if !is_get {
            request = request.header("Content-Type", r.content_type);
        }
        for (name, value) in r.headers {
            let mut value = reqwest::header::HeaderValue::try_from(value).map_err(|_| {
                Outcome::failed(format!("{name} contains characters that no header takes"))
            })?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let broke = |e: reqwest::Error| Outcome::Retry {
            why: reason(&e),
            after: None,
            may_have_arrived: !e.is_connect(),
        };
        let answer = request.send().await.map_err(broke)?;
        let status = answer.status();
        let header = |name: &str| {
            answer.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (content_type, after) = (header("content-type"), header("retry-after"));
        if status.is_redirection() {
            return Err(Outcome::failed(format!(
                "unexpected status code {}: redirects are not followed",
                status.as_u16()
            )));
        }
        // An answer of any length must not keep us; what is longer is cut off.
        let body = tokio::time::timeout(TIMEOUT, read_body(answer, ANSWER_BYTES_MAX)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        if status.is_success() {
            return Ok(Answer { content_type, body });
        }
        let mut why = format!("unexpected status code {}", status.as_u16());
        if let Some(code) = error_word(&body) {
            why.push_str(&format!(": {code}"));
        }
        if status.is_server_error() || status.as_u16() == 429 {
            // 429 and 503 say that nothing was done.
            let may_have_arrived = !matches!(status.as_u16(), 429 | 503);
            let after = pause(&after, self.n.now.nanos());
            return Err(Outcome::Retry { why, after, may_have_arrived });
        }
        Err(Outcome::Failed { why })
    }

    /// The group's identity at receivers that know one.
    fn group_hash(&self) -> String {
        sha256(self.n.group_key.as_bytes())
    }
}

/// Says why a request failed, without its URL, which may hold secrets.
fn reason(e: &reqwest::Error) -> String {
    if e.is_timeout() {
        return "the receiver did not answer in time".into();
    }
    // The innermost cause is the one that a reader can act on.
    let mut cause: &dyn std::error::Error = e;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if std::ptr::addr_eq(cause, e) { "the request failed".into() } else { cause.to_string() }
}

/// Returns the error word that chats answer with (`channel_not_found`), and nothing else of a body:
/// what stands there may be a page of the inner network.
fn error_word(body: &[u8]) -> Option<String> {
    let v: Value = serde_json::from_slice(body).ok()?;
    let word = v.get("error")?.as_str()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (word.len() <= 64 && word.chars().all(plain)).then(|| word.to_owned())
}

/// Reads `Retry-After`: seconds, or a date.
fn pause(text: &str, now_ns: i64) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    let at = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    let seconds = at.timestamp().saturating_sub(now_ns.div_euclid(1_000_000_000));
    Some(Duration::from_secs(u64::try_from(seconds).ok()?).min(RETRY_AFTER_MAX))
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Cuts a text to a number of characters, the last of which says so.
fn truncate(text: String, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text;
    }
    if chars_max <= 3 {
        return text.chars().take(chars_max).collect();
    }
    let mut out: String = text.chars().take(chars_max - 1).collect();
    out.push('…');
    out
}

/// Leaves out the empty texts of an object: receivers see them as absent.
fn compact(v: Value) -> Value {
    let Value::Object(o) = v else { return v };
    let is_empty = |v: &Value| match v {
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Null | Value::Bool(false) => true,
        _ => false,
    };
    Value::Object(o.into_iter().filter(|(_, v)| !is_empty(v)).collect())
}

/// Returns the identity of a notification: the same when it is sent again after a crash, another
/// for every change of the group and every repeat.
pub(crate) fn idempotency_key(
    log_key: &str,
    firing: &std::collections::BTreeSet<u64>,
    resolved: &std::collections::BTreeSet<u64>,
    sequence: u64,
) -> String {
    let mut text = format!("{log_key}\n{sequence}\n");
    for (mark, ids) in [('f', firing), ('r', resolved)] {
        for id in ids {
            text.push_str(&format!("{mark}{id:016x}\n"));
        }
    }
    sha256(text.as_bytes()).get(..32).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_seconds_or_dates_and_bounded() {
        assert_eq!(pause("7", 0), Some(Duration::from_secs(7)));
        assert_eq!(pause("999999", 0), Some(RETRY_AFTER_MAX));
        assert_eq!(
            pause("Thu, 01 Jan 1970 00:01:00 GMT", 10_000_000_000),
            Some(Duration::from_secs(50))
        );
        assert_eq!(pause("Thu, 01 Jan 1970 00:00:01 GMT", 10_000_000_000), None);
        assert_eq!(pause("soon", 0), None);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(truncate("häß".into(), 3), "häß");
        assert_eq!(truncate("häßlich".into(), 5), "häßl…");
        assert_eq!(truncate("häßlich".into(), 2), "hä");
    }

    #[test]
    fn of_an_error_only_a_word_is_shown() {
        assert_eq!(
            error_word(br#"{"ok":false,"error":"channel_not_found"}"#).as_deref(),
            Some("channel_not_found")
        );
        assert_eq!(error_word(br#"{"error":"<b>admin page</b>"}"#), None);
        assert_eq!(error_word(b"root:x:0:0"), None);
    }
}
