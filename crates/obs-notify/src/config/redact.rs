//! The configuration as it may be shown: without secrets, and still one that Alertmanager's tools
//! can read.

use regex::{Captures, Regex};
use std::sync::LazyLock;

/// A key and its value in a list or map of one line.
static PAIR: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r#"(?P<key>["']?[A-Za-z0-9_.-]+["']?\s*:\s+)(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s,}\]#\[{][^,}\]#]*)"#).ok()
});
/// A key and its value alone on a line: the value goes on to the line's end.
static LINE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r#"^(?P<key>\s*(?:- )*["']?[A-Za-z0-9_.-]+["']?\s*:\s+)(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s#\[{"'].*?)(?P<rest>,?(?:\s+#.*)?)$"#).ok()
});

/// Parts of names of keys whose values are secrets.
const SECRET: [&str; 14] = [
    "password",
    "secret",
    "token",
    "credential",
    "access_key",
    "api_key",
    "service_key",
    "user_key",
    "bearer",
    "private_key",
    "routing_key",
    "webhook_key",
    "authorization",
    "cookie",
];

/// Keeps of an address what tells where it leads, not the rest: that is where chats put their keys.
fn address(text: &str) -> String {
    let plain = text.trim().trim_matches(['"', '\'']);
    match url::Url::parse(plain) {
        Ok(u) if matches!(u.scheme(), "http" | "https") && u.host_str().is_some() => {
            let port = u.port().map(|p| format!(":{p}")).unwrap_or_default();
            format!("'{}://{}{port}/<secret>'", u.scheme(), u.host_str().unwrap_or_default())
        }
        _ => "<secret>".into(),
    }
}

/// Returns what is shown of a value, and whether it is a secret that begins a block of lines.
fn shown(key: &str, value: &str) -> (String, bool) {
    let name = key.trim().trim_start_matches(['-', ' ']).trim_end_matches([':', ' ']);
    let name = name.trim_matches(['"', '\'']).to_ascii_lowercase();
    let is_file = name.ends_with("_file") || name == "file";
    if is_file || value.trim() == "<secret>" {
        return (value.to_owned(), false);
    }
    // A space before the end of a list stays.
    let trail: String = value.chars().rev().take_while(|c| c.is_whitespace()).collect();
    if SECRET.iter().any(|s| name.contains(s)) || name == "key" {
        return (format!("<secret>{trail}"), value.trim_start().starts_with(['|', '>']));
    }
    // Links in messages are templates and no addresses to send to.
    let is_address = name == "url" || name.ends_with("_url");
    if is_address && !value.contains("{{") {
        return (format!("{}{trail}", address(value)), false);
    }
    (value.to_owned(), false)
}

/// Returns the text with secrets replaced by `<secret>`.
pub(crate) fn redact(text: &str) -> String {
    let (Some(pair), Some(whole)) = (&*PAIR, &*LINE) else { return String::new() };
    let mut out = String::with_capacity(text.len());
    // Indentation of a key whose secret goes over several lines.
    let mut inside: Option<usize> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        if let Some(key) = inside {
            if line.trim().is_empty() || indent > key {
                continue;
            }
            inside = None;
        }
        let mut opens = false;
        let pattern = if whole.is_match(line) { whole } else { pair };
        let shown = pattern.replace_all(line, |c: &Captures<'_>| {
            let part = |name: &str| c.name(name).map(|m| m.as_str()).unwrap_or_default();
            let (value, begins) = shown(part("key"), part("value"));
            opens |= begins;
            format!("{}{value}{}", part("key"), part("rest"))
        });
        if opens {
            inside = Some(indent + usize::from(line.trim_start().starts_with("- ")) * 2);
        }
        out.push_str(&shown);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let text = r#"
global:
  slack_api_url: 'https://hooks.slack.example/services/T0/B0/canary1'
  smtp_auth_password: canary2
  opsgenie_api_key_file: /etc/key
receivers:
- name: a
  webhook_configs: [{url: "http://user:canary3@host:8080/x?token=canary4", send_resolved: true}]
  pagerduty_configs:
  - routing_key: canary5 # why
    client_url: '{{ template "x" . }}'
  - service_key: |
      canary6
      canary7
    severity: critical
  telegram_configs:
  - {bot_token: 'canary8', chat_id: 12, http_config: {basic_auth: {username: u, password: "can\"ary9"}}}
  tls_config: {key: canary10}
  slack_configs:
  - api_url: http://host/?a=1,canary11#canary12
    http_config:
      authorization: {credentials: 'canary13'}
"#;
        let shown = redact(text);
        assert!(!shown.contains("canary") && !shown.contains("ary9"), "{shown}");
        for kept in [
            "'https://hooks.slack.example/<secret>'",
            "/etc/key",
            "'http://host:8080/<secret>'",
            "send_resolved: true",
            "severity: critical",
            "chat_id: 12",
            "username: u",
            "# why",
            r#"{{ template "x" . }}"#,
        ] {
            assert!(shown.contains(kept), "{kept} in {shown}");
        }
    }
}
