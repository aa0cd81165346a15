//! The kinds of receivers and their settings; texts are templates.

use obs_collect::config::{HttpConfig, Span, TlsConfig, http_section};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// One way to tell of a group.
#[derive(Debug, Clone)]
pub struct Integration {
    /// Place among those of its kind in the receiver.
    pub index: usize,
    pub send_resolved: bool,
    pub http: HttpConfig,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Webhook(Webhook),
    Email(Box<Email>),
    PagerDuty(Box<PagerDuty>),
    OpsGenie(Box<OpsGenie>),
    WeChat(Box<WeChat>),
    Slack(Box<Slack>),
    VictorOps(VictorOps),
    Pushover(Box<Pushover>),
    Sns(Box<Sns>),
    Telegram(Telegram),
    Discord(Discord),
    Webex(Webex),
    MsTeams(MsTeams),
    MsTeamsV2(MsTeamsV2),
    Jira(Box<Jira>),
    RocketChat(Box<RocketChat>),
}

impl Integration {
    /// Its name: receiver, kind and place, `ops/slack/0`.
    pub fn key(&self, receiver: &str) -> String {
        format!("{receiver}/{}/{}", self.kind.name(), self.index)
    }
}

impl Kind {
    /// The name that Alertmanager gives it in metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Email(_) => "email",
            Self::PagerDuty(_) => "pagerduty",
            Self::OpsGenie(_) => "opsgenie",
            Self::WeChat(_) => "wechat",
            Self::Slack(_) => "slack",
            Self::VictorOps(_) => "victorops",
            Self::Pushover(_) => "pushover",
            Self::Sns(_) => "sns",
            Self::Telegram(_) => "telegram",
            Self::Discord(_) => "discord",
            Self::Webex(_) => "webex",
            Self::MsTeams(_) => "msteams",
            Self::MsTeamsV2(_) => "msteamsv2",
            Self::Jira(_) => "jira",
            Self::RocketChat(_) => "rocketchat",
        }
    }
}

/// Declares the settings of a kind: fields with defaults, unknown ones refused, and beside them
/// `send_resolved` and `http_config`.
macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            pub(super) send_resolved: Option<bool>,
            #[serde(deserialize_with = "http_section")]
            pub(super) http_config: Option<HttpConfig>,
            $(pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { send_resolved: None, http_config: None, $($field: $default,)* }
            }
        }
    };
}

fn t(name: &str) -> String {
    format!("{{{{ template \"{name}\" . }}}}")
}

settings!(Webhook {
    url: Option<String> = None,
    url_file: Option<PathBuf> = None,
    max_alerts: usize = 0,
    timeout: Option<Span> = None,
});

settings!(Email {
    to: String = String::new(),
    from: Option<String> = None,
    hello: Option<String> = None,
    smarthost: Option<String> = None,
    auth_username: Option<String> = None,
    auth_password: Option<String> = None,
    auth_password_file: Option<PathBuf> = None,
    auth_secret: Option<String> = None,
    auth_identity: Option<String> = None,
    headers: BTreeMap<String, String> = BTreeMap::new(),
    html: String = t("email.default.html"),
    text: String = String::new(),
    require_tls: Option<bool> = None,
    tls_config: Option<TlsConfig> = None,
});

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PagerDutyImage {
    pub src: String,
    pub alt: String,
    pub href: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PagerDutyLink {
    pub href: String,
    pub text: String,
}

settings!(PagerDuty {
    service_key: Option<String> = None,
    service_key_file: Option<PathBuf> = None,
    routing_key: Option<String> = None,
    routing_key_file: Option<PathBuf> = None,
    url: Option<String> = None,
    client: String = t("pagerduty.default.client"),
    client_url: String = t("pagerduty.default.clientURL"),
    description: String = t("pagerduty.default.description"),
    details: BTreeMap<String, String> = BTreeMap::new(),
    images: Vec<PagerDutyImage> = Vec::new(),
    links: Vec<PagerDutyLink> = Vec::new(),
    source: String = String::new(),
    severity: String = String::new(),
    class: String = String::new(),
    component: String = String::new(),
    group: String = String::new(),
    timeout: Option<Span> = None,
});

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpsGenieResponder {
    pub id: String,
    pub name: String,
    pub username: String,
    #[serde(rename = "type")]
    pub kind: String,
}

settings!(OpsGenie {
    api_key: Option<String> = None,
    api_key_file: Option<PathBuf> = None,
    api_url: Option<String> = None,
    message: String = t("opsgenie.default.message"),
    description: String = t("opsgenie.default.description"),
    source: String = t("opsgenie.default.source"),
    details: BTreeMap<String, String> = BTreeMap::new(),
    entity: String = String::new(),
    responders: Vec<OpsGenieResponder> = Vec::new(),
    actions: String = String::new(),
    tags: String = String::new(),
    note: String = String::new(),
    priority: String = String::new(),
    update_alerts: bool = false,
});

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlackField {
    pub title: String,
    pub value: String,
    pub short: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlackConfirm {
    pub text: String,
    pub title: String,
    pub ok_text: String,
    pub dismiss_text: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlackAction {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: String,
    pub url: String,
    pub style: String,
    pub name: String,
    pub value: String,
    pub confirm: Option<SlackConfirm>,
}

settings!(Slack {
    api_url: Option<String> = None,
    api_url_file: Option<PathBuf> = None,
    channel: String = String::new(),
    username: String = t("slack.default.username"),
    color: String = "{{ if eq .Status \"firing\" }}danger{{ else }}good{{ end }}".into(),
    title: String = t("slack.default.title"),
    title_link: String = t("slack.default.titlelink"),
    pretext: String = t("slack.default.pretext"),
    text: String = t("slack.default.text"),
    fields: Vec<SlackField> = Vec::new(),
    short_fields: bool = false,
    footer: String = t("slack.default.footer"),
    fallback: String = t("slack.default.fallback"),
    callback_id: String = t("slack.default.callbackid"),
    icon_emoji: String = t("slack.default.iconemoji"),
    icon_url: String = t("slack.default.iconurl"),
    image_url: String = String::new(),
    thumb_url: String = String::new(),
    link_names: bool = false,
    mrkdwn_in: Vec<String> = Vec::new(),
    actions: Vec<SlackAction> = Vec::new(),
    timeout: Option<Span> = None,
    update_message: bool = false,
});

settings!(WeChat {
    api_secret: Option<String> = None,
    api_secret_file: Option<PathBuf> = None,
    api_url: Option<String> = None,
    corp_id: Option<String> = None,
    message: String = t("wechat.default.message"),
    message_type: String = String::new(),
    to_user: String = t("wechat.default.to_user"),
    to_party: String = t("wechat.default.to_party"),
    to_tag: String = t("wechat.default.to_tag"),
    agent_id: String = t("wechat.default.agent_id"),
});

settings!(VictorOps {
    api_key: Option<String> = None,
    api_key_file: Option<PathBuf> = None,
    api_url: Option<String> = None,
    routing_key: String = String::new(),
    message_type: String = "CRITICAL".into(),
    state_message: String = t("victorops.default.state_message"),
    entity_display_name: String = t("victorops.default.entity_display_name"),
    monitoring_tool: String = t("victorops.default.monitoring_tool"),
    custom_fields: BTreeMap<String, String> = BTreeMap::new(),
});

// `api_url` is not a key of Alertmanager: where else to send than to pushover.net.
settings!(Pushover {
    api_url: Option<String> = None,
    user_key: Option<String> = None,
    user_key_file: Option<PathBuf> = None,
    token: Option<String> = None,
    token_file: Option<PathBuf> = None,
    title: String = t("pushover.default.title"),
    message: String = t("pushover.default.message"),
    url: String = t("pushover.default.url"),
    url_title: String = String::new(),
    device: String = String::new(),
    sound: String = String::new(),
    priority: String = "{{ if eq .Status \"firing\" }}2{{ else }}0{{ end }}".into(),
    retry: Span = Span(Duration::from_secs(60)),
    expire: Span = Span(Duration::from_secs(3600)),
    ttl: Option<Span> = None,
    html: bool = false,
    monospace: bool = false,
});

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sigv4 {
    pub region: String,
    pub access_key: Option<String>,
    pub secret_key: Option<String>,
    pub profile: Option<String>,
    pub role_arn: Option<String>,
}

settings!(Sns {
    api_url: Option<String> = None,
    sigv4: Sigv4 = Sigv4::default(),
    topic_arn: String = String::new(),
    phone_number: String = String::new(),
    target_arn: String = String::new(),
    subject: String = t("sns.default.subject"),
    message: String = t("sns.default.message"),
    attributes: BTreeMap<String, String> = BTreeMap::new(),
});

settings!(Telegram {
    api_url: Option<String> = None,
    bot_token: Option<String> = None,
    bot_token_file: Option<PathBuf> = None,
    chat_id: i64 = 0,
    message_thread_id: i64 = 0,
    message: String = t("telegram.default.message"),
    disable_notifications: bool = false,
    parse_mode: String = "HTML".into(),
});

settings!(Discord {
    webhook_url: Option<String> = None,
    webhook_url_file: Option<PathBuf> = None,
    content: String = t("discord.default.content"),
    title: String = t("discord.default.title"),
    message: String = t("discord.default.message"),
    username: String = String::new(),
    avatar_url: String = String::new(),
});

settings!(Webex {
    api_url: Option<String> = None,
    room_id: String = String::new(),
    message: String = t("webex.default.message"),
});

settings!(MsTeams {
    webhook_url: Option<String> = None,
    webhook_url_file: Option<PathBuf> = None,
    title: String = t("msteams.default.title"),
    summary: String = t("msteams.default.summary"),
    text: String = t("msteams.default.text"),
});

settings!(MsTeamsV2 {
    webhook_url: Option<String> = None,
    webhook_url_file: Option<PathBuf> = None,
    title: String = t("msteamsv2.default.title"),
    text: String = t("msteamsv2.default.text"),
});

settings!(Jira {
    api_url: Option<String> = None,
    project: String = String::new(),
    issue_type: String = String::new(),
    summary: String = t("jira.default.summary"),
    description: String = t("jira.default.description"),
    labels: Vec<String> = Vec::new(),
    priority: String = t("jira.default.priority"),
    reopen_transition: String = String::new(),
    resolve_transition: String = String::new(),
    wont_fix_resolution: String = String::new(),
    reopen_duration: Option<Span> = None,
    fields: BTreeMap<String, serde_json::Value> = BTreeMap::new(),
});

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RocketField {
    pub title: String,
    pub value: String,
    pub short: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RocketAction {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: String,
    pub url: String,
    pub msg: String,
}

settings!(RocketChat {
    api_url: Option<String> = None,
    channel: String = String::new(),
    token: Option<String> = None,
    token_file: Option<PathBuf> = None,
    token_id: Option<String> = None,
    token_id_file: Option<PathBuf> = None,
    color: String = "{{ if eq .Status \"firing\" }}red{{ else }}green{{ end }}".into(),
    emoji: String = t("rocketchat.default.emoji"),
    icon_url: String = t("rocketchat.default.iconurl"),
    text: String = t("rocketchat.default.text"),
    title: String = t("rocketchat.default.title"),
    title_link: String = t("rocketchat.default.titlelink"),
    fields: Vec<RocketField> = Vec::new(),
    short_fields: bool = false,
    image_url: String = String::new(),
    thumb_url: String = String::new(),
    link_names: bool = false,
    actions: Vec<RocketAction> = Vec::new(),
});
