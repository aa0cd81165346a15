//! alertmanager.yml as Alertmanager 0.28 reads it.

mod fill;
mod receivers;
mod redact;

pub use receivers::{
    Discord, Email, Integration, Jira, Kind, MsTeams, MsTeamsV2, OpsGenie, OpsGenieResponder,
    PagerDuty, PagerDutyImage, PagerDutyLink, Pushover, RocketAction, RocketChat, RocketField,
    Slack, SlackAction, SlackField, Sns, Telegram, VictorOps, WeChat, Webex, Webhook,
};

use crate::inhibit::InhibitRule;
use crate::interval::{RawInterval, TimeInterval};
use crate::route::Routes;
use crate::templates::Templates;
use fill::RawReceiver;
use obs_collect::config::{HttpConfig, Span, http_section};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is wrong with a configuration, with line and column if they are known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigProblem {
    pub place: Option<(u64, u64)>,
    pub message: String,
}

impl From<String> for ConfigProblem {
    fn from(message: String) -> Self {
        Self { place: None, message }
    }
}

pub(crate) mod default_seconds {
    use std::time::Duration;

    pub(crate) const GROUP_WAIT: Duration = Duration::from_secs(30);
    pub(crate) const GROUP_INTERVAL: Duration = Duration::from_secs(5 * 60);
    pub(crate) const REPEAT_INTERVAL: Duration = Duration::from_secs(4 * 3600);
    pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    global: Global,
    templates: Vec<String>,
    route: Option<RawRoute>,
    inhibit_rules: Vec<RawInhibit>,
    receivers: Vec<RawReceiver>,
    mute_time_intervals: Vec<RawNamed>,
    time_intervals: Vec<RawNamed>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNamed {
    name: String,
    #[serde(default)]
    time_intervals: Vec<RawInterval>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRoute {
    pub(crate) receiver: Option<String>,
    pub(crate) group_by: Option<Vec<String>>,
    pub(crate) r#continue: bool,
    pub(crate) matchers: Vec<String>,
    pub(crate) r#match: BTreeMap<String, String>,
    pub(crate) match_re: BTreeMap<String, String>,
    pub(crate) mute_time_intervals: Vec<String>,
    pub(crate) active_time_intervals: Vec<String>,
    pub(crate) group_wait: Option<Span>,
    pub(crate) group_interval: Option<Span>,
    pub(crate) repeat_interval: Option<Span>,
    pub(crate) routes: Vec<Self>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawInhibit {
    pub(crate) source_match: BTreeMap<String, String>,
    pub(crate) source_match_re: BTreeMap<String, String>,
    pub(crate) source_matchers: Vec<String>,
    pub(crate) target_match: BTreeMap<String, String>,
    pub(crate) target_match_re: BTreeMap<String, String>,
    pub(crate) target_matchers: Vec<String>,
    pub(crate) equal: Vec<String>,
}

/// Settings that receivers fall back to.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Global {
    resolve_timeout: Option<Span>,
    #[serde(deserialize_with = "http_section")]
    http_config: Option<HttpConfig>,
    pub(crate) smtp_from: Option<String>,
    pub(crate) smtp_hello: Option<String>,
    pub(crate) smtp_smarthost: Option<String>,
    pub(crate) smtp_auth_username: Option<String>,
    pub(crate) smtp_auth_password: Option<String>,
    pub(crate) smtp_auth_password_file: Option<PathBuf>,
    pub(crate) smtp_auth_secret: Option<String>,
    pub(crate) smtp_auth_identity: Option<String>,
    pub(crate) smtp_require_tls: Option<bool>,
    pub(crate) smtp_tls_config: Option<obs_collect::config::TlsConfig>,
    pub(crate) slack_api_url: Option<String>,
    pub(crate) slack_api_url_file: Option<PathBuf>,
    pub(crate) pagerduty_url: Option<String>,
    pub(crate) opsgenie_api_url: Option<String>,
    pub(crate) opsgenie_api_key: Option<String>,
    pub(crate) opsgenie_api_key_file: Option<PathBuf>,
    pub(crate) wechat_api_url: Option<String>,
    pub(crate) wechat_api_secret: Option<String>,
    pub(crate) wechat_api_secret_file: Option<PathBuf>,
    pub(crate) wechat_api_corp_id: Option<String>,
    pub(crate) victorops_api_url: Option<String>,
    pub(crate) victorops_api_key: Option<String>,
    pub(crate) victorops_api_key_file: Option<PathBuf>,
    pub(crate) telegram_api_url: Option<String>,
    pub(crate) webex_api_url: Option<String>,
    pub(crate) rocketchat_api_url: Option<String>,
    pub(crate) rocketchat_token: Option<String>,
    pub(crate) rocketchat_token_file: Option<PathBuf>,
    pub(crate) rocketchat_token_id: Option<String>,
    pub(crate) rocketchat_token_id_file: Option<PathBuf>,
    pub(crate) jira_api_url: Option<String>,
}

/// A receiver: where its notifications go.
#[derive(Debug, Clone)]
pub struct Receiver {
    pub name: String,
    pub integrations: Vec<Integration>,
}

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub struct Config {
    pub routes: Routes,
    pub receivers: Vec<Receiver>,
    pub inhibit: Vec<InhibitRule>,
    pub intervals: BTreeMap<String, Vec<TimeInterval>>,
    pub templates: Templates,
    pub resolve_timeout: Duration,
    /// Where paths of the file start.
    pub folder: PathBuf,
    /// The text as it was read.
    pub text: String,
}

impl Config {
    /// Reads a configuration whose variables are replaced; relative paths start from `folder`.
    ///
    /// # Errors
    /// With what Alertmanager would refuse too, or what this product does not have.
    pub fn read(text: &str, folder: &Path) -> Result<Self, ConfigProblem> {
        let raw: Raw = serde_saphyr::from_str(text).map_err(|e| {
            let place = e.location().map(|l| (l.line(), l.column()));
            let message = e.without_snippet().to_string();
            let message = message.lines().next().unwrap_or_default();
            // The place is told apart.
            let message = message.split(" at line ").next().unwrap_or(message).to_owned();
            ConfigProblem { place, message }
        })?;
        Ok(Self::build(raw, text, folder)?)
    }

    fn build(raw: Raw, text: &str, folder: &Path) -> Result<Self, String> {
        let g = &raw.global;
        let root = raw.route.as_ref().ok_or("no routes provided")?;
        let routes = Routes::new(root)?;
        let mut receivers = Vec::new();
        let mut names = BTreeSet::new();
        for r in &raw.receivers {
            if r.name.is_empty() {
                return Err("missing name in receiver".into());
            }
            if !names.insert(r.name.clone()) {
                return Err(format!("notification config name {:?} is not unique", r.name));
            }
            receivers.push(Receiver { name: r.name.clone(), integrations: r.integrations(g)? });
        }
        let mut intervals: BTreeMap<String, Vec<TimeInterval>> = BTreeMap::new();
        for i in raw.mute_time_intervals.iter().chain(&raw.time_intervals) {
            if i.name.is_empty() {
                return Err("missing name in time interval".into());
            }
            let parts = i.time_intervals.iter().cloned().map(TimeInterval::try_from);
            let parts: Vec<_> = parts
                .collect::<Result<_, _>>()
                .map_err(|e| format!("time interval {:?}: {e}", i.name))?;
            if intervals.insert(i.name.clone(), parts).is_some() {
                return Err(format!("time interval {:?} is not unique", i.name));
            }
        }
        for n in &routes.nodes {
            if !names.contains(&n.receiver) {
                return Err(format!("undefined receiver {:?} used in route", n.receiver));
            }
            if let Some(name) = n.mute.iter().chain(&n.active).find(|i| !intervals.contains_key(*i))
            {
                return Err(format!("undefined time interval {name:?} used in route"));
            }
        }
        let inhibit = raw.inhibit_rules.iter().map(InhibitRule::try_from);
        Ok(Self {
            inhibit: inhibit.collect::<Result<_, _>>()?,
            templates: Templates::read(&raw.templates, folder)?,
            resolve_timeout: g.resolve_timeout.map_or(default_seconds::RESOLVE_TIMEOUT, |s| s.0),
            routes,
            receivers,
            intervals,
            folder: folder.to_owned(),
            text: text.to_owned(),
        })
    }

    /// A configuration that takes alerts and tells nobody.
    pub fn silent() -> Self {
        const TEXT: &str = "route:\n  receiver: none\nreceivers:\n- name: none\n";
        match Self::read(TEXT, Path::new(".")) {
            Ok(c) => c,
            Err(e) => unreachable!("{e}"),
        }
    }

    /// Returns the text without its secrets.
    pub fn shown(&self) -> String {
        redact::redact(&self.text)
    }

    pub fn receiver(&self, name: &str) -> Option<&Receiver> {
        self.receivers.iter().find(|r| r.name == name)
    }
}
