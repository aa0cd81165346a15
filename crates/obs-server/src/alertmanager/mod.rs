//! Alertmanager's API, version 2: alerts, groups, silences, receivers, status.

mod native;

use crate::body::{RETRY_AFTER_SECONDS, Refusal};
use crate::health;
use crate::params::Params;
use crate::state::AppState;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use obs_model::{Labels, Matcher, StateError, TimestampNs};
use obs_notify::{
    GroupView, Listed, NewAlert, PutError, Silence, SilenceError, SilenceMatcher, SilenceState,
    SilenceWish, parse_matcher,
};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub use native::explained;
pub(crate) use native::routes as native_routes;

/// Bytes of a request with alerts.
const BODY_BYTES_MAX: usize = 64 << 20;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v2/status", get(status))
        .route("/api/v2/receivers", get(receivers))
        .route("/api/v2/alerts", get(alerts).post(post_alerts))
        .route("/api/v2/alerts/groups", get(groups))
        .route("/api/v2/silences", get(silences).post(post_silence))
        .route("/api/v2/silence/{id}", get(silence).delete(delete_silence))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// What else Alertmanager's own port answers.
pub(crate) fn port_routes() -> Router<AppState> {
    Router::new()
        .route("/", get(page))
        .route("/-/healthy", get(|| async { "OK" }))
        .route("/-/ready", get(health::prometheus_ready))
        .route("/-/reload", post(crate::prometheus::reload))
}

/// Sends a browser to the page; what follows `#` in its address goes with it.
async fn page(State(state): State<AppState>) -> Response {
    Redirect::temporary(state.alerting.external_url()).into_response()
}

/// An error: status and JSON body.
#[derive(Debug)]
pub(crate) struct Refused(StatusCode, Value);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut r = (self.0, Json(self.1)).into_response();
        if matches!(self.0, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let after = http::HeaderValue::from(RETRY_AFTER_SECONDS);
            r.headers_mut().insert(header::RETRY_AFTER, after);
        }
        r
    }
}

/// An error as Alertmanager writes it: a JSON string.
fn refused(status: StatusCode, message: impl Into<String>) -> Refused {
    Refused(status, message.into().into())
}

fn refuse(status: StatusCode, message: impl Into<String>) -> Response {
    refused(status, message).into_response()
}

fn state_failed(e: StateError) -> Response {
    let r = Refusal::from(e);
    refuse(r.status, r.message)
}

/// Refuses bodies that a form of another site's page could send.
pub(crate) fn json_body<T: serde::de::DeserializeOwned>(
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<T, Refused> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.to_ascii_lowercase().starts_with("application/json") {
        let message =
            format!("unsupported media type {kind:?}, only [application/json] are allowed");
        let body = json!({"code": 415, "message": message});
        return Err(Refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, body));
    }
    serde_json::from_slice(bytes).map_err(|e| {
        let message = format!("parsing body from \"\" failed, because {e}");
        Refused(StatusCode::BAD_REQUEST, json!({"code": 400, "message": message}))
    })
}

fn time(t: TimestampNs) -> String {
    t.to_millis().to_string()
}

/// Writes labels as an object.
struct LabelMap<'a>(&'a Labels);

impl Serialize for LabelMap<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut m = s.serialize_map(None)?;
        for (n, v) in self.0.iter() {
            m.serialize_entry(n, v)?;
        }
        m.end()
    }
}

#[derive(Serialize)]
struct Name<'a> {
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    inhibited_by: &'a [String],
    muted_by: &'a [String],
    silenced_by: &'a [String],
    state: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GettableAlert<'a> {
    annotations: &'a BTreeMap<String, String>,
    ends_at: String,
    fingerprint: String,
    receivers: Vec<Name<'a>>,
    starts_at: String,
    status: Status<'a>,
    updated_at: String,
    #[serde(rename = "generatorURL")]
    generator_url: &'a str,
    labels: LabelMap<'a>,
}

fn alert(l: &Listed) -> GettableAlert<'_> {
    let (a, s) = (&l.alert, &l.status);
    GettableAlert {
        annotations: &a.annotations,
        ends_at: time(a.ends_at),
        fingerprint: format!("{:016x}", l.id),
        receivers: l.receivers.iter().map(|name| Name { name }).collect(),
        starts_at: time(a.starts_at),
        status: Status {
            inhibited_by: &s.inhibited_by,
            muted_by: &s.muted_by,
            silenced_by: &s.silenced_by,
            state: if s.is_suppressed() { "suppressed" } else { "active" },
        },
        updated_at: time(a.updated_at),
        generator_url: &a.generator_url,
        labels: LabelMap(&a.labels),
    }
}

/// Which alerts a request asks for.
struct Wanted {
    matchers: Vec<Matcher>,
    receiver: Option<Matcher>,
    active: bool,
    silenced: bool,
    inhibited: bool,
    muted: bool,
}

fn flag(p: &Params, name: &str) -> Result<bool, Refused> {
    match p.get(name) {
        None => Ok(true),
        Some(text) => text.parse().map_err(|_| {
            let message = format!("{name} in query must be of type boolean: {text:?}");
            Refused(StatusCode::UNPROCESSABLE_ENTITY, json!({"code": 601, "message": message}))
        }),
    }
}

fn filter(p: &Params) -> Result<Vec<Matcher>, Refused> {
    let parsed: Result<Vec<Matcher>, String> =
        p.all("filter").filter(|f| !f.is_empty()).map(parse_matcher).collect();
    parsed.map_err(|e| refused(StatusCode::BAD_REQUEST, e))
}

fn wanted(p: &Params) -> Result<Wanted, Refused> {
    let receiver = match p.get("receiver") {
        None => None,
        Some(text) => {
            let m = Matcher::new("receiver", obs_model::MatchOp::Regex, text);
            Some(m.map_err(|e| {
                refused(StatusCode::BAD_REQUEST, format!("failed to parse receiver param: {e}"))
            })?)
        }
    };
    Ok(Wanted {
        matchers: filter(p)?,
        receiver,
        active: flag(p, "active")?,
        silenced: flag(p, "silenced")?,
        inhibited: flag(p, "inhibited")?,
        muted: flag(p, "muted")?,
    })
}

impl Wanted {
    fn keeps(&self, l: &Listed) -> bool {
        let s = &l.status;
        (self.active || s.is_suppressed())
            && (self.silenced || s.silenced_by.is_empty())
            && (self.inhibited || s.inhibited_by.is_empty())
            && (self.muted || s.muted_by.is_empty())
            && self.receiver.as_ref().is_none_or(|m| l.receivers.iter().any(|r| m.matches(r)))
    }
}

async fn alerts(State(state): State<AppState>, p: Params) -> Response {
    let w = match wanted(&p) {
        Ok(w) => w,
        Err(r) => return r.into_response(),
    };
    let list = state.alerting.core().list(&w.matchers, state.now());
    let kept: Vec<GettableAlert<'_>> = list.iter().filter(|l| w.keeps(l)).map(alert).collect();
    Json(kept).into_response()
}

#[derive(Serialize)]
struct Group<'a> {
    alerts: Vec<GettableAlert<'a>>,
    labels: LabelMap<'a>,
    receiver: Name<'a>,
}

async fn groups(State(state): State<AppState>, p: Params) -> Response {
    let w = match wanted(&p) {
        Ok(w) => w,
        Err(r) => return r.into_response(),
    };
    let views = state.alerting.core().groups(&w.matchers, state.now());
    let fits = |g: &&GroupView| w.receiver.as_ref().is_none_or(|m| m.matches(&g.receiver));
    let list: Vec<Group<'_>> = views
        .iter()
        .filter(fits)
        .map(|g| Group {
            alerts: g.alerts.iter().filter(|l| w.keeps(l)).map(alert).collect(),
            labels: LabelMap(&g.labels),
            receiver: Name { name: &g.receiver },
        })
        .filter(|g| !g.alerts.is_empty())
        .collect();
    Json(list).into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PostableAlert {
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    starts_at: Option<String>,
    #[serde(default)]
    ends_at: Option<String>,
    #[serde(default, rename = "generatorURL")]
    generator_url: Option<String>,
}

/// Parses a time; Go's zero time is none.
fn moment(text: Option<&str>) -> Result<Option<TimestampNs>, String> {
    match text {
        None | Some("") => Ok(None),
        Some(t) if t.starts_with("0001-01-01T00:00:00") => Ok(None),
        Some(t) => TimestampNs::parse_rfc3339(t)
            .map(Some)
            .ok_or_else(|| format!("parsing time {t:?} as RFC 3339 failed")),
    }
}

impl TryFrom<PostableAlert> for NewAlert {
    type Error = String;

    fn try_from(a: PostableAlert) -> Result<Self, String> {
        Ok(Self {
            // Labels without a value are no labels.
            labels: Labels::from_pairs(a.labels.iter().filter(|(_, v)| !v.is_empty())),
            annotations: a.annotations.unwrap_or_default(),
            starts_at: moment(a.starts_at.as_deref())?,
            ends_at: moment(a.ends_at.as_deref())?,
            generator_url: a.generator_url.unwrap_or_default(),
        })
    }
}

async fn post_alerts(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Response {
    let posted: Vec<PostableAlert> = match json_body(&headers, &bytes) {
        Ok(p) => p,
        Err(r) => return r.into_response(),
    };
    let alerts: Result<Vec<NewAlert>, String> =
        posted.into_iter().map(NewAlert::try_from).collect();
    let alerts = match alerts {
        Ok(a) => a,
        Err(e) => return refuse(StatusCode::BAD_REQUEST, e),
    };
    match state.alerting.put(alerts).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(e @ PutError::Invalid(_)) => refuse(StatusCode::BAD_REQUEST, e.to_string()),
        Err(e @ PutError::TooMany(_)) => refuse(StatusCode::TOO_MANY_REQUESTS, e.to_string()),
        Err(PutError::State(e)) => state_failed(e),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GettableSilence<'a> {
    id: &'a str,
    status: StateOf,
    updated_at: String,
    comment: &'a str,
    created_by: &'a str,
    ends_at: String,
    matchers: &'a [SilenceMatcher],
    starts_at: String,
}

#[derive(Serialize)]
struct StateOf {
    state: &'static str,
}

fn gettable(s: &Silence, now: TimestampNs) -> GettableSilence<'_> {
    GettableSilence {
        id: &s.id,
        status: StateOf { state: s.state(now).as_str() },
        updated_at: time(s.updated_at),
        comment: &s.comment,
        created_by: &s.created_by,
        ends_at: time(s.ends_at),
        matchers: &s.matchers,
        starts_at: time(s.starts_at),
    }
}

/// Whether a silence is one of those that a filter asks for: for each of the filter's matchers, it
/// must have one on the same name that says the same.
fn silence_fits(s: &Silence, filter: &[Matcher]) -> bool {
    filter.iter().all(|f| {
        s.matchers.iter().any(|m| {
            m.name == f.name
                && match f.op {
                    obs_model::MatchOp::Equal => m.op() == f.op && m.value == f.value,
                    obs_model::MatchOp::NotEqual => {
                        !(m.op() == obs_model::MatchOp::Equal && m.value == f.value)
                    }
                    _ => f.matches(&m.value),
                }
        })
    })
}

async fn silences(State(state): State<AppState>, p: Params) -> Response {
    let filter = match filter(&p) {
        Ok(f) => f,
        Err(r) => return r.into_response(),
    };
    let now = state.now();
    let mut list: Vec<Silence> =
        state.alerting.core().silences().filter(|s| silence_fits(s, &filter)).cloned().collect();
    // Active ones by their end, pending ones by their start, then the newest expired first.
    list.sort_by(|a, b| {
        let (x, y) = (a.state(now), b.state(now));
        x.cmp(&y).then_with(|| match x {
            SilenceState::Active => a.ends_at.cmp(&b.ends_at),
            SilenceState::Pending => a.starts_at.cmp(&b.starts_at),
            SilenceState::Expired => b.ends_at.cmp(&a.ends_at),
        })
    });
    Json(list.iter().map(|s| gettable(s, now)).collect::<Vec<_>>()).into_response()
}

async fn silence(State(state): State<AppState>, Path(id): Path<String>) -> Response {
    let now = state.now();
    match state.alerting.core().silence(&id) {
        Some(s) => Json(gettable(s, now)).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PostableSilence {
    #[serde(default)]
    id: Option<String>,
    matchers: Vec<SilenceMatcher>,
    starts_at: String,
    ends_at: String,
    created_by: String,
    comment: String,
}

async fn post_silence(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Response {
    let posted: PostableSilence = match json_body(&headers, &bytes) {
        Ok(p) => p,
        Err(r) => return r.into_response(),
    };
    let now = state.now();
    let times =
        moment(Some(&posted.starts_at)).and_then(|s| Ok((s, moment(Some(&posted.ends_at))?)));
    let (starts_at, ends_at) = match times {
        Ok((s, Some(e))) => (s.unwrap_or(now), e),
        Ok((_, None)) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                "failed to create silence: end time is missing",
            );
        }
        Err(e) => return refuse(StatusCode::BAD_REQUEST, e),
    };
    if starts_at >= ends_at {
        return refuse(
            StatusCode::BAD_REQUEST,
            "failed to create silence: start time must be before end time",
        );
    }
    if ends_at < now {
        return refuse(
            StatusCode::BAD_REQUEST,
            "failed to create silence: end time can't be in the past",
        );
    }
    let wish = SilenceWish {
        id: posted.id.unwrap_or_default(),
        matchers: posted.matchers,
        starts_at,
        ends_at,
        created_by: posted.created_by,
        comment: posted.comment,
    };
    match state.alerting.set_silence(wish).await {
        Ok(Ok(id)) => Json(json!({"silenceID": id})).into_response(),
        Ok(Err(e)) => silence_failed(&e),
        Err(e) => state_failed(e),
    }
}

fn silence_failed(e: &SilenceError) -> Response {
    let status = match e {
        SilenceError::NotFound => StatusCode::NOT_FOUND,
        SilenceError::Invalid(_) => StatusCode::BAD_REQUEST,
        SilenceError::AlreadyExpired(_) => StatusCode::INTERNAL_SERVER_ERROR,
        SilenceError::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
    };
    refuse(status, e.to_string())
}

async fn delete_silence(State(state): State<AppState>, Path(id): Path<String>) -> Response {
    match state.alerting.expire_silence(&id).await {
        Ok(Ok(())) => StatusCode::OK.into_response(),
        Ok(Err(SilenceError::NotFound)) => StatusCode::NOT_FOUND.into_response(),
        Ok(Err(e)) => silence_failed(&e),
        Err(e) => state_failed(e),
    }
}

async fn receivers(State(state): State<AppState>) -> Response {
    let config = state.alerting.core().config().clone();
    Json(config.receivers.iter().map(|r| Name { name: &r.name }).collect::<Vec<_>>())
        .into_response()
}

async fn status(State(state): State<AppState>) -> Response {
    let config = state.alerting.core().config().clone();
    let cluster = state.alerting.together().map_or_else(
        || json!({"name": "", "peers": [], "status": "disabled"}),
        |m| {
            let peer = |name: &String| json!({"name": name, "address": name});
            let status = if m.is_reachable { "ready" } else { "settling" };
            let peers: Vec<_> = m.names.iter().map(peer).collect();
            json!({"name": m.name, "peers": peers, "status": status})
        },
    );
    Json(json!({
        "cluster": cluster,
        "config": {"original": config.shown()},
        "uptime": time(state.started),
        "versionInfo": {
            "branch": "", "buildDate": "", "buildUser": "", "goVersion": "", "revision": "",
            "version": state.version,
        },
    }))
    .into_response()
}
