//! Receivers as the file lists them, and what they take from its global settings.

use crate::config::Global;
use crate::config::receivers::{
    Discord, Email, Integration, Jira, Kind, MsTeams, MsTeamsV2, OpsGenie, PagerDuty, Pushover,
    RocketChat, Slack, Sns, Telegram, VictorOps, WeChat, Webex, Webhook,
};
use obs_collect::config::HttpConfig;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawReceiver {
    pub(crate) name: String,
    webhook_configs: Vec<Webhook>,
    email_configs: Vec<Email>,
    pagerduty_configs: Vec<PagerDuty>,
    opsgenie_configs: Vec<OpsGenie>,
    slack_configs: Vec<Slack>,
    victorops_configs: Vec<VictorOps>,
    pushover_configs: Vec<Pushover>,
    sns_configs: Vec<Sns>,
    telegram_configs: Vec<Telegram>,
    discord_configs: Vec<Discord>,
    webex_configs: Vec<Webex>,
    msteams_configs: Vec<MsTeams>,
    msteamsv2_configs: Vec<MsTeamsV2>,
    jira_configs: Vec<Jira>,
    rocketchat_configs: Vec<RocketChat>,
    wechat_configs: Vec<WeChat>,
}

/// Takes a setting of the file, or the global one; of a secret, its file of either.
fn fill<T: Clone>(own: &mut Option<T>, global: Option<&T>) {
    if own.is_none() {
        *own = global.cloned();
    }
}

fn fill_secret(
    own: (&mut Option<String>, &mut Option<PathBuf>),
    global: (Option<&String>, Option<&PathBuf>),
    both: &str,
    neither: &str,
) -> Result<(), String> {
    if own.0.is_some() && own.1.is_some() {
        return Err(both.to_owned());
    }
    if own.0.is_none() && own.1.is_none() {
        *own.0 = global.0.cloned();
        *own.1 = if global.0.is_some() { None } else { global.1.cloned() };
        if own.0.is_none() && own.1.is_none() {
            return Err(neither.to_owned());
        }
    }
    Ok(())
}

/// Returns an error unless exactly one of a value and its file is given.
fn one_of<T>(value: &Option<T>, file: &Option<PathBuf>, name: &str) -> Result<(), String> {
    match (value.is_some(), file.is_some()) {
        (true, true) => Err(format!("at most one of {name} & {name}_file must be configured")),
        (false, false) => Err(format!("one of {name} or {name}_file must be configured")),
        _ => Ok(()),
    }
}

fn with_slash(url: &mut Option<String>) {
    if let Some(u) = url
        && !u.ends_with('/')
    {
        u.push('/');
    }
}

fn required(value: &str, message: &str) -> Result<(), String> {
    if value.is_empty() { Err(message.to_owned()) } else { Ok(()) }
}

fn default_url(url: &mut Option<String>, global: Option<&String>, default: &str) {
    fill(url, global);
    url.get_or_insert_with(|| default.to_owned());
}

impl RawReceiver {
    /// Returns the integrations in Alertmanager's order, with global settings filled in.
    pub(crate) fn integrations(&self, g: &Global) -> Result<Vec<Integration>, String> {
        let mut out = Vec::new();
        self.common(g, &mut out)?;
        self.chats(g, &mut out)?;
        for i in &out {
            let h = &i.http;
            let kinds = [
                h.basic_auth.is_some(),
                h.authorization.is_some(),
                h.oauth2.is_some(),
                h.bearer_token.is_some() || h.bearer_token_file.is_some(),
            ];
            if kinds.iter().filter(|k| **k).count() > 1 {
                return Err("at most one of basic_auth, oauth2, bearer_token, bearer_token_file & authorization must be configured".into());
            }
        }
        Ok(out)
    }

    fn common(&self, g: &Global, out: &mut Vec<Integration>) -> Result<(), String> {
        for (i, c) in self.webhook_configs.iter().enumerate() {
            one_of(&c.url, &c.url_file, "url")?;
            if let Some(u) = &c.url {
                check_url(u)?;
            }
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::Webhook(c.clone()),
            ));
        }
        for (i, c) in self.email_configs.iter().enumerate() {
            let mut c = c.clone();
            required(&c.to, "missing to address in email config")?;
            fill(&mut c.smarthost, g.smtp_smarthost.as_ref());
            if c.smarthost.is_none() {
                return Err("no global SMTP smarthost set".into());
            }
            fill(&mut c.from, g.smtp_from.as_ref());
            if c.from.is_none() {
                return Err("no global SMTP from set".into());
            }
            fill(&mut c.hello, g.smtp_hello.as_ref());
            fill(&mut c.auth_username, g.smtp_auth_username.as_ref());
            if c.auth_password.is_none() && c.auth_password_file.is_none() {
                c.auth_password.clone_from(&g.smtp_auth_password);
                c.auth_password_file.clone_from(&g.smtp_auth_password_file);
            }
            fill(&mut c.auth_secret, g.smtp_auth_secret.as_ref());
            fill(&mut c.auth_identity, g.smtp_auth_identity.as_ref());
            fill(&mut c.require_tls, g.smtp_require_tls.as_ref());
            fill(&mut c.tls_config, g.smtp_tls_config.as_ref());
            let mut seen = std::collections::BTreeSet::new();
            for name in c.headers.keys() {
                if !seen.insert(name.to_ascii_lowercase()) {
                    return Err(format!("duplicate header {name:?} in email config"));
                }
            }
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(false),
                None,
                g,
                Kind::Email(Box::new(c)),
            ));
        }
        for (i, c) in self.pagerduty_configs.iter().enumerate() {
            let mut c = c.clone();
            let routing = c.routing_key.is_some() || c.routing_key_file.is_some();
            let service = c.service_key.is_some() || c.service_key_file.is_some();
            if !routing && !service {
                return Err("missing service or routing key in PagerDuty config".into());
            }
            if c.routing_key.is_some() && c.routing_key_file.is_some() {
                return Err(
                    "at most one of routing_key & routing_key_file must be configured".into()
                );
            }
            if c.service_key.is_some() && c.service_key_file.is_some() {
                return Err(
                    "at most one of service_key & service_key_file must be configured".into()
                );
            }
            const V2: &str = "https://events.pagerduty.com/v2/enqueue";
            const V1: &str = "https://events.pagerduty.com/generic/2010-04-15/create_event.json";
            if routing {
                default_url(&mut c.url, g.pagerduty_url.as_ref(), V2);
            } else if c.url.as_deref().is_none_or(|u| u == V2) {
                // Keys of services are of the older API, which has an address of its own.
                c.url = Some(V1.into());
            }
            if c.source.is_empty() {
                c.source.clone_from(&c.client);
            }
            for (name, template) in [
                ("firing", "{{ template \"pagerduty.default.instances\" .Alerts.Firing }}"),
                ("resolved", "{{ template \"pagerduty.default.instances\" .Alerts.Resolved }}"),
                ("num_firing", "{{ .Alerts.Firing | len }}"),
                ("num_resolved", "{{ .Alerts.Resolved | len }}"),
            ] {
                c.details.entry(name.into()).or_insert_with(|| template.into());
            }
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::PagerDuty(Box::new(c.clone())),
            ));
        }
        for (i, c) in self.opsgenie_configs.iter().enumerate() {
            let mut c = c.clone();
            fill_secret(
                (&mut c.api_key, &mut c.api_key_file),
                (g.opsgenie_api_key.as_ref(), g.opsgenie_api_key_file.as_ref()),
                "at most one of api_key & api_key_file must be configured",
                "no global OpsGenie API Key set either inline or in a file",
            )?;
            default_url(&mut c.api_url, g.opsgenie_api_url.as_ref(), "https://api.opsgenie.com/");
            with_slash(&mut c.api_url);
            for r in &c.responders {
                if r.id.is_empty() && r.name.is_empty() && r.username.is_empty() {
                    return Err(format!(
                        "opsGenieConfig responder {r:?} has to have at least one of id, username or name specified"
                    ));
                }
            }
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::OpsGenie(Box::new(c.clone())),
            ));
        }
        Ok(())
    }

    fn chats(&self, g: &Global, out: &mut Vec<Integration>) -> Result<(), String> {
        for (i, c) in self.wechat_configs.iter().enumerate() {
            let mut c = c.clone();
            fill_secret(
                (&mut c.api_secret, &mut c.api_secret_file),
                (g.wechat_api_secret.as_ref(), g.wechat_api_secret_file.as_ref()),
                "at most one of api_secret & api_secret_file must be configured",
                "no global Wechat Api Secret set either inline or in a file",
            )?;
            fill(&mut c.corp_id, g.wechat_api_corp_id.as_ref());
            if c.corp_id.is_none() {
                return Err("no global Wechat CorpID set".into());
            }
            if !["", "text", "markdown"].contains(&c.message_type.as_str()) {
                return Err(format!(
                    "weChat message type {:?} does not match valid options text|markdown",
                    c.message_type
                ));
            }
            default_url(
                &mut c.api_url,
                g.wechat_api_url.as_ref(),
                "https://qyapi.weixin.qq.com/cgi-bin/",
            );
            with_slash(&mut c.api_url);
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(false),
                c.http_config.as_ref(),
                g,
                Kind::WeChat(Box::new(c.clone())),
            ));
        }
        for (i, c) in self.slack_configs.iter().enumerate() {
            let mut c = c.clone();
            fill_secret(
                (&mut c.api_url, &mut c.api_url_file),
                (g.slack_api_url.as_ref(), g.slack_api_url_file.as_ref()),
                "at most one of api_url & api_url_file must be configured",
                "no global Slack API URL set either inline or in a file",
            )?;
            for f in &c.fields {
                required(&f.title, "missing title in Slack field configuration")?;
                required(&f.value, "missing value in Slack field configuration")?;
            }
            for a in &mut c.actions {
                // A link has nothing to confirm.
                if !a.url.is_empty() {
                    (a.name, a.value, a.confirm) = (String::new(), String::new(), None);
                }
                required(&a.kind, "missing type in Slack action configuration")?;
                required(&a.text, "missing text in Slack action configuration")?;
                if a.url.is_empty() && a.name.is_empty() {
                    return Err("missing name or url in Slack action configuration".into());
                }
            }
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(false),
                c.http_config.as_ref(),
                g,
                Kind::Slack(Box::new(c.clone())),
            ));
        }
        for (i, c) in self.victorops_configs.iter().enumerate() {
            let mut c = c.clone();
            fill_secret(
                (&mut c.api_key, &mut c.api_key_file),
                (g.victorops_api_key.as_ref(), g.victorops_api_key_file.as_ref()),
                "at most one of api_key & api_key_file must be configured",
                "no global VictorOps API Key set",
            )?;
            required(&c.routing_key, "missing Routing key in VictorOps config")?;
            let reserved = [
                "routing_key",
                "message_type",
                "state_message",
                "entity_display_name",
                "monitoring_tool",
                "entity_id",
                "entity_state",
            ];
            if let Some(name) = c.custom_fields.keys().find(|n| reserved.contains(&n.as_str())) {
                return Err(format!(
                    "victorOps config contains custom field {name} which cannot be used as it conflicts with the fixed/static fields"
                ));
            }
            default_url(
                &mut c.api_url,
                g.victorops_api_url.as_ref(),
                "https://alert.victorops.com/integrations/generic/20131114/alert/",
            );
            with_slash(&mut c.api_url);
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::VictorOps(c.clone()),
            ));
        }
        for (i, c) in self.pushover_configs.iter().enumerate() {
            one_of(&c.user_key, &c.user_key_file, "user_key")?;
            one_of(&c.token, &c.token_file, "token")?;
            if c.html && c.monospace {
                return Err("either monospace or html must be configured".into());
            }
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::Pushover(Box::new(c.clone())),
            ));
        }
        for (i, c) in self.sns_configs.iter().enumerate() {
            if [&c.topic_arn, &c.target_arn, &c.phone_number]
                .iter()
                .filter(|t| !t.is_empty())
                .count()
                != 1
            {
                return Err(
                    "must provide either a Target ARN, Topic ARN, or Phone Number for SNS config"
                        .into(),
                );
            }
            if c.sigv4.access_key.is_some() != c.sigv4.secret_key.is_some() {
                return Err("must provide a AWS SigV4 Access key and Secret Key if credentials are specified in the SNS config".into());
            }
            if c.sigv4.profile.is_some() || c.sigv4.role_arn.is_some() {
                return Err(
                    "sigv4: profile and role_arn are not supported; give access_key and secret_key"
                        .into(),
                );
            }
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::Sns(Box::new(c.clone())),
            ));
        }
        for (i, c) in self.telegram_configs.iter().enumerate() {
            let mut c = c.clone();
            one_of(&c.bot_token, &c.bot_token_file, "bot_token")?;
            if c.chat_id == 0 {
                return Err("missing chat_id on telegram_config".into());
            }
            if !["", "Markdown", "MarkdownV2", "HTML"].contains(&c.parse_mode.as_str()) {
                return Err("unknown parse_mode on telegram_config, must be Markdown, MarkdownV2, HTML or empty string".into());
            }
            default_url(&mut c.api_url, g.telegram_api_url.as_ref(), "https://api.telegram.org");
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::Telegram(c.clone()),
            ));
        }
        for (i, c) in self.discord_configs.iter().enumerate() {
            one_of(&c.webhook_url, &c.webhook_url_file, "webhook_url")?;
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::Discord(c.clone()),
            ));
        }
        for (i, c) in self.webex_configs.iter().enumerate() {
            let mut c = c.clone();
            required(&c.room_id, "missing room_id on webex_config")?;
            if c.http_config.as_ref().is_none_or(|h| h.authorization.is_none()) {
                return Err("missing webex_configs.http_config.authorization".into());
            }
            default_url(
                &mut c.api_url,
                g.webex_api_url.as_ref(),
                "https://webexapis.com/v1/messages",
            );
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::Webex(c.clone()),
            ));
        }
        for (i, c) in self.msteams_configs.iter().enumerate() {
            one_of(&c.webhook_url, &c.webhook_url_file, "webhook_url")?;
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::MsTeams(c.clone()),
            ));
        }
        for (i, c) in self.msteamsv2_configs.iter().enumerate() {
            one_of(&c.webhook_url, &c.webhook_url_file, "webhook_url")?;
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::MsTeamsV2(c.clone()),
            ));
        }
        for (i, c) in self.jira_configs.iter().enumerate() {
            let mut c = c.clone();
            required(&c.project, "missing project in jira_config")?;
            required(&c.issue_type, "missing issue_type in jira_config")?;
            fill(&mut c.api_url, g.jira_api_url.as_ref());
            if c.api_url.is_none() {
                return Err("no global Jira Cloud URL set".into());
            }
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(true),
                c.http_config.as_ref(),
                g,
                Kind::Jira(Box::new(c.clone())),
            ));
        }
        for (i, c) in self.rocketchat_configs.iter().enumerate() {
            let mut c = c.clone();
            fill_secret(
                (&mut c.token, &mut c.token_file),
                (g.rocketchat_token.as_ref(), g.rocketchat_token_file.as_ref()),
                "at most one of token & token_file must be configured",
                "no global Rocketchat Token set either inline or in a file",
            )?;
            fill_secret(
                (&mut c.token_id, &mut c.token_id_file),
                (g.rocketchat_token_id.as_ref(), g.rocketchat_token_id_file.as_ref()),
                "at most one of token_id & token_id_file must be configured",
                "no global Rocketchat TokenID set either inline or in a file",
            )?;
            default_url(&mut c.api_url, g.rocketchat_api_url.as_ref(), "https://open.rocket.chat/");
            out.push(integration(
                i,
                c.send_resolved.unwrap_or(false),
                c.http_config.as_ref(),
                g,
                Kind::RocketChat(Box::new(c.clone())),
            ));
        }
        Ok(())
    }
}

fn check_url(url: &str) -> Result<(), String> {
    let parsed = url::Url::parse(url).map_err(|e| format!("unsupported URL: {e}"))?;
    match parsed.scheme() {
        "http" | "https" if parsed.host_str().is_some() => Ok(()),
        "http" | "https" => Err("missing host for URL".into()),
        other => Err(format!("unsupported scheme {other:?} for URL")),
    }
}

fn integration(
    index: usize,
    send_resolved: bool,
    http: Option<&HttpConfig>,
    g: &Global,
    kind: Kind,
) -> Integration {
    let http = http.or(g.http_config.as_ref()).cloned().unwrap_or_default();
    Integration { index, send_resolved, http, kind }
}
