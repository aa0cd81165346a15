//! prometheus.yml, as far as this product reads it.
//!
//! Every key of Prometheus 3 is known. A way of discovery that is not there is refused by name, as
//! is any key that Prometheus would refuse.

use crate::otlp::Otlp;
use crate::relabel::Rule;
use crate::remote::{self, Config as RemoteWrite};
use obs_promql::duration::{format_ms, parse_ms};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A duration as Prometheus writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span(pub Duration);

/// Parses `1h30m`; `0` needs no unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let ms = if text == "0" { 0 } else { parse_ms(text)? };
    u64::try_from(ms).ok().map(Duration::from_millis)
}

/// Writes a duration as Prometheus does.
pub fn format_duration(d: Duration) -> String {
    format_ms(i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        parse_duration(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!("not a valid duration string: {text:?}"))
        })
    }
}

/// A number of bytes: `10MB`, `64KiB`, `0` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes(pub u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let n = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(n);
        // Prometheus counts in powers of two either way.
        let power = match unit.trim().trim_end_matches("iB").trim_end_matches('B') {
            "" => 0,
            "K" => 1,
            "M" => 2,
            "G" => 3,
            "T" => 4,
            _ => {
                return Err(serde::de::Error::custom(format!("unrecognized size suffix {unit:?}")));
            }
        };
        let number: f64 = number
            .parse()
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is no size in bytes")))?;
        Ok(Self((number * 1024_f64.powi(power)) as u64))
    }
}

fn yes() -> bool {
    true
}

/// Keys of [`HttpConfig`]; those that are not fields are known and change nothing.
pub(crate) const HTTP_KEYS: [&str; 13] = [
    "basic_auth",
    "authorization",
    "bearer_token",
    "bearer_token_file",
    "oauth2",
    "tls_config",
    "proxy_url",
    "no_proxy",
    "proxy_from_environment",
    "proxy_connect_header",
    "follow_redirects",
    "enable_http2",
    "http_headers",
];

/// Reads an `http_config` section, whose unknown keys are mistakes: elsewhere these settings stand
/// among others.
///
/// # Errors
/// With the key that is none, or the value that is wrong.
pub fn http_section<'de, D: Deserializer<'de>>(d: D) -> Result<Option<HttpConfig>, D::Error> {
    let Some(raw) = Option::<serde_json::Map<String, serde_json::Value>>::deserialize(d)? else {
        return Ok(None);
    };
    if let Some(key) = raw.keys().find(|k| !HTTP_KEYS.contains(&k.as_str())) {
        return Err(serde::de::Error::unknown_field(key, &HTTP_KEYS));
    }
    let config = serde_json::from_value(serde_json::Value::Object(raw));
    config.map(Some).map_err(serde::de::Error::custom)
}

/// Credentials and transport of requests.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct HttpConfig {
    pub basic_auth: Option<BasicAuth>,
    pub authorization: Option<Authorization>,
    pub bearer_token: Option<String>,
    pub bearer_token_file: Option<PathBuf>,
    pub oauth2: Option<OAuth2>,
    pub tls_config: TlsConfig,
    pub proxy_url: Option<String>,
    pub no_proxy: Option<String>,
    pub follow_redirects: Option<bool>,
    pub http_headers: BTreeMap<String, HeaderValues>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderValues {
    pub values: Vec<String>,
    pub secrets: Vec<String>,
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BasicAuth {
    pub username: String,
    pub username_file: Option<PathBuf>,
    pub password: Option<String>,
    pub password_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorization {
    #[serde(rename = "type", default = "bearer")]
    pub kind: String,
    pub credentials: Option<String>,
    pub credentials_file: Option<PathBuf>,
}

fn bearer() -> String {
    "Bearer".into()
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OAuth2 {
    pub client_id: String,
    pub client_secret: Option<String>,
    pub client_secret_file: Option<PathBuf>,
    pub scopes: Vec<String>,
    pub token_url: String,
    pub endpoint_params: BTreeMap<String, String>,
    pub tls_config: TlsConfig,
    pub proxy_url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    pub ca: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub cert: Option<String>,
    pub cert_file: Option<PathBuf>,
    pub key: Option<String>,
    pub key_file: Option<PathBuf>,
    pub server_name: Option<String>,
    pub insecure_skip_verify: bool,
    pub min_version: Option<String>,
    pub max_version: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticConfig {
    #[serde(default)]
    pub targets: Vec<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSd {
    pub files: Vec<String>,
    #[serde(default = "five_minutes")]
    pub refresh_interval: Span,
}

fn five_minutes() -> Span {
    Span(Duration::from_secs(300))
}

fn one_minute() -> Span {
    Span(Duration::from_secs(60))
}

fn half_minute() -> Span {
    Span(Duration::from_secs(30))
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct HttpSd {
    pub url: String,
    #[serde(default = "one_minute")]
    pub refresh_interval: Span,
    #[serde(flatten)]
    pub http: HttpConfig,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DockerSd {
    /// `unix:///var/run/docker.sock`, or an address over HTTP.
    pub host: String,
    /// Port of containers that publish none.
    #[serde(default = "port_80")]
    pub port: u16,
    #[serde(default = "one_minute")]
    pub refresh_interval: Span,
    #[serde(flatten)]
    pub http: HttpConfig,
}

impl DockerSd {
    /// Returns the engine's socket, if it is reached over one.
    pub fn socket(&self) -> Option<PathBuf> {
        self.host.strip_prefix("unix://").map(PathBuf::from)
    }

    /// Returns what URLs of the engine's API begin with.
    pub fn base_url(&self) -> String {
        match self.socket() {
            Some(_) => "http://docker".to_owned(),
            None => self.host.replacen("tcp://", "http://", 1).trim_end_matches('/').to_owned(),
        }
    }
}

fn port_80() -> u16 {
    80
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct KubernetesSd {
    pub role: String,
    /// Empty inside of a cluster.
    #[serde(default)]
    pub api_server: String,
    #[serde(default)]
    pub namespaces: Namespaces,
    #[serde(default)]
    pub selectors: Vec<Selector>,
    #[serde(flatten)]
    pub http: HttpConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    pub names: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Selector {
    pub role: String,
    pub label: String,
    pub field: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsSd {
    pub names: Vec<String>,
    #[serde(rename = "type", default = "srv")]
    pub kind: String,
    #[serde(default)]
    pub port: u16,
    #[serde(default = "half_minute")]
    pub refresh_interval: Span,
}

fn srv() -> String {
    "SRV".into()
}

/// Names of the ways of discovery that Prometheus has and we do not.
const OTHER_DISCOVERY: [&str; 24] = [
    "azure_sd_configs",
    "consul_sd_configs",
    "digitalocean_sd_configs",
    "dockerswarm_sd_configs",
    "ec2_sd_configs",
    "eureka_sd_configs",
    "gce_sd_configs",
    "hetzner_sd_configs",
    "ionos_sd_configs",
    "kuma_sd_configs",
    "lightsail_sd_configs",
    "linode_sd_configs",
    "marathon_sd_configs",
    "nerve_sd_configs",
    "nomad_sd_configs",
    "openstack_sd_configs",
    "ovhcloud_sd_configs",
    "puppetdb_sd_configs",
    "scaleway_sd_configs",
    "serverset_sd_configs",
    "stackit_sd_configs",
    "triton_sd_configs",
    "uyuni_sd_configs",
    "vultr_sd_configs",
];

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ScrapeConfig {
    pub job_name: String,
    pub scrape_interval: Option<Span>,
    pub scrape_timeout: Option<Span>,
    #[serde(default)]
    pub scrape_protocols: Option<Vec<String>>,
    pub fallback_scrape_protocol: Option<String>,
    #[serde(default = "metrics_path")]
    pub metrics_path: String,
    #[serde(default = "http_scheme")]
    pub scheme: String,
    #[serde(default)]
    pub params: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub honor_labels: bool,
    #[serde(default = "yes")]
    pub honor_timestamps: bool,
    #[serde(default)]
    pub track_timestamps_staleness: bool,
    #[serde(default = "yes")]
    pub enable_compression: bool,
    pub body_size_limit: Option<Bytes>,
    pub sample_limit: Option<usize>,
    pub target_limit: Option<usize>,
    pub label_limit: Option<usize>,
    pub label_name_length_limit: Option<usize>,
    pub label_value_length_limit: Option<usize>,
    #[serde(default)]
    pub relabel_configs: Vec<Rule>,
    #[serde(default)]
    pub metric_relabel_configs: Vec<Rule>,
    #[serde(flatten)]
    pub discovery: Discovery,
    #[serde(flatten)]
    pub http: HttpConfig,
}

/// Where targets are found.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Discovery {
    pub static_configs: Vec<StaticConfig>,
    pub file_sd_configs: Vec<FileSd>,
    pub http_sd_configs: Vec<HttpSd>,
    pub dns_sd_configs: Vec<DnsSd>,
    pub docker_sd_configs: Vec<DockerSd>,
    pub kubernetes_sd_configs: Vec<KubernetesSd>,
}

fn metrics_path() -> String {
    "/metrics".into()
}

fn http_scheme() -> String {
    "http".into()
}

/// Keys of a scrape configuration, to refuse any other.
const SCRAPE_KEYS: [&str; 25] = [
    "job_name",
    "scrape_interval",
    "scrape_timeout",
    "scrape_protocols",
    "fallback_scrape_protocol",
    "metrics_path",
    "scheme",
    "params",
    "honor_labels",
    "honor_timestamps",
    "track_timestamps_staleness",
    "enable_compression",
    "body_size_limit",
    "sample_limit",
    "target_limit",
    "label_limit",
    "label_name_length_limit",
    "label_value_length_limit",
    "relabel_configs",
    "metric_relabel_configs",
    "native_histogram_bucket_limit",
    "native_histogram_min_bucket_factor",
    "keep_dropped_targets",
    "metric_name_validation_scheme",
    "metric_name_escaping_scheme",
];
/// Keys of [`Discovery`].
const DISCOVERY_KEYS: [&str; 6] = [
    "static_configs",
    "file_sd_configs",
    "http_sd_configs",
    "dns_sd_configs",
    "docker_sd_configs",
    "kubernetes_sd_configs",
];
/// Keys of an entry of `alertmanagers`.
const ALERTMANAGER_KEYS: [&str; 6] =
    ["scheme", "path_prefix", "timeout", "api_version", "relabel_configs", "alert_relabel_configs"];
const MORE_SCRAPE_KEYS: [&str; 4] = [
    "scrape_classic_histograms",
    "always_scrape_classic_histograms",
    "scrape_native_histograms",
    "convert_classic_histograms_to_nhcb",
];

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Global {
    pub scrape_interval: Span,
    pub scrape_timeout: Option<Span>,
    pub evaluation_interval: Span,
    pub rule_query_offset: Span,
    pub external_labels: BTreeMap<String, String>,
    pub scrape_protocols: Option<Vec<String>>,
    pub body_size_limit: Option<Bytes>,
    pub sample_limit: Option<usize>,
    pub target_limit: Option<usize>,
    pub label_limit: Option<usize>,
    pub label_name_length_limit: Option<usize>,
    pub label_value_length_limit: Option<usize>,
}

impl Default for Global {
    fn default() -> Self {
        Self {
            scrape_interval: one_minute(),
            scrape_timeout: None,
            evaluation_interval: one_minute(),
            rule_query_offset: Span::default(),
            external_labels: BTreeMap::new(),
            scrape_protocols: None,
            body_size_limit: None,
            sample_limit: None,
            target_limit: None,
            label_limit: None,
            label_name_length_limit: None,
            label_value_length_limit: None,
        }
    }
}

/// Where alerts are sent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct AlertmanagerConfig {
    #[serde(default = "http_scheme")]
    pub scheme: String,
    #[serde(default)]
    pub path_prefix: String,
    #[serde(default = "ten_seconds")]
    pub timeout: Span,
    #[serde(flatten)]
    pub discovery: Discovery,
    /// Of those that were found.
    #[serde(default)]
    pub relabel_configs: Vec<Rule>,
    /// Of alerts that go there.
    #[serde(default)]
    pub alert_relabel_configs: Vec<Rule>,
    #[serde(flatten)]
    pub http: HttpConfig,
}

fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Alerting {
    pub alert_relabel_configs: Vec<Rule>,
    pub alertmanagers: Vec<AlertmanagerConfig>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct PrometheusConfig {
    pub global: Global,
    pub rule_files: Vec<String>,
    pub scrape_config_files: Vec<String>,
    pub scrape_configs: Vec<ScrapeConfig>,
    pub alerting: Alerting,
    pub remote_write: Vec<RemoteWrite>,
    pub otlp: Otlp,
    /// Folder that relative paths start from.
    #[serde(skip)]
    pub folder: PathBuf,
    /// What is read and has no effect here.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// Keys of the whole file, and what those without effect mean here.
const KEYS: [&str; 12] = [
    "global",
    "rule_files",
    "scrape_config_files",
    "scrape_configs",
    "alerting",
    "remote_write",
    "remote_read",
    "storage",
    "tracing",
    "otlp",
    "runtime",
    "template_files",
];

/// A file that cannot be used, with line and column where known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", .place.map_or_else(String::new, |(l, c)| format!("{l}:{c}: ")))]
pub struct ConfigError {
    pub place: Option<(u64, u64)>,
    pub message: String,
}

fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    serde_saphyr::from_str(text).map_err(|e| {
        let message = e.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default();
        let message = message.split(" at line ").next().unwrap_or(message).to_owned();
        ConfigError { place: e.location().map(|l| (l.line(), l.column())), message }
    })
}

/// Refuses keys that nothing knows; Prometheus does so too.
fn check_keys(text: &str, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
    let fail = |message: String| Err(ConfigError { place: None, message });
    let all: serde_json::Value = yaml(text)?;
    let Some(top) = all.as_object() else {
        return if all.is_null() { Ok(()) } else { fail("the file is no mapping".into()) };
    };
    if let Some(unknown) = top.keys().find(|k| !KEYS.contains(&k.as_str())) {
        return fail(format!("field {unknown} not found in type config.plain"));
    }
    for key in ["remote_read", "storage", "tracing", "runtime"] {
        if top.contains_key(key) {
            warnings.push(format!("{key} is read and has no effect here"));
        }
    }
    let check = |what: &str, part: &serde_json::Value, known: &[&[&str]], kind: &str| {
        for key in part.as_object().into_iter().flat_map(|j| j.keys()) {
            if OTHER_DISCOVERY.contains(&key.as_str()) {
                return fail(format!(
                    "{what}: {key} is not supported; there are static_configs, file_sd_configs, http_sd_configs, dns_sd_configs, docker_sd_configs and kubernetes_sd_configs"
                ));
            }
            if !known.iter().any(|keys| keys.contains(&key.as_str())) {
                return fail(format!("{what}: field {key} not found in type config.{kind}"));
            }
        }
        Ok(())
    };
    let jobs = top.get("scrape_configs").and_then(|s| s.as_array());
    for job in jobs.into_iter().flatten() {
        let name = job.get("job_name").and_then(|n| n.as_str()).unwrap_or("?");
        let known = [&SCRAPE_KEYS[..], &MORE_SCRAPE_KEYS, &DISCOVERY_KEYS, &HTTP_KEYS];
        check(&format!("job {name:?}"), job, &known, "ScrapeConfig")?;
    }
    let list = top.get("alerting").and_then(|a| a.get("alertmanagers")?.as_array());
    for part in list.into_iter().flatten() {
        let known = [&ALERTMANAGER_KEYS[..], &DISCOVERY_KEYS, &HTTP_KEYS];
        check("alertmanagers", part, &known, "AlertmanagerConfig")?;
    }
    let list = top.get("remote_write").and_then(|r| r.as_array());
    for entry in list.into_iter().flatten() {
        remote::config::check_keys(entry, warnings).or_else(fail)?;
    }
    Ok(())
}

/// Reads a prometheus.yml whose `${VAR}` are replaced already; `folder` is where it lies.
///
/// # Errors
/// When it is not valid.
pub fn read(text: &str, folder: &Path) -> Result<PrometheusConfig, ConfigError> {
    let fail = |message: String| ConfigError { place: None, message };
    let mut warnings = Vec::new();
    let empty = text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'));
    let mut c: PrometheusConfig = if empty { PrometheusConfig::default() } else { yaml(text)? };
    if !empty {
        check_keys(text, &mut warnings)?;
    }
    c.otlp.check().map_err(fail)?;
    c.folder = folder.to_owned();
    c.warnings = warnings;
    for pattern in c.scrape_config_files.clone() {
        for path in expand(folder, &pattern) {
            let shown = path.display();
            let text = std::fs::read_to_string(&path).map_err(|e| fail(format!("{shown}: {e}")))?;
            check_keys(&text, &mut c.warnings)?;
            #[derive(Deserialize)]
            struct Part {
                #[serde(default)]
                scrape_configs: Vec<ScrapeConfig>,
            }
            let part: Part = yaml(&text)?;
            c.scrape_configs.extend(part.scrape_configs);
        }
    }
    let mut names = std::collections::BTreeSet::new();
    for job in &c.scrape_configs {
        if job.job_name.is_empty() {
            return Err(fail("job_name is empty".into()));
        }
        if !names.insert(job.job_name.as_str()) {
            return Err(fail(format!(
                "found multiple scrape configs with job name {:?}",
                job.job_name
            )));
        }
        let (interval, timeout) = c.timing(job);
        if timeout > interval {
            return Err(fail(format!(
                "scrape timeout greater than scrape interval for scrape config with job name {:?}",
                job.job_name
            )));
        }
        if !matches!(job.scheme.as_str(), "http" | "https") {
            return Err(fail(format!(
                "job {:?}: unsupported scheme {:?}",
                job.job_name, job.scheme
            )));
        }
        let what = format!("job {:?}", job.job_name);
        check_discovery(&what, &job.discovery).map_err(fail)?;
    }
    for a in &c.alerting.alertmanagers {
        check_discovery("alertmanagers", &a.discovery).map_err(fail)?;
    }
    Ok(c)
}

fn check_discovery(what: &str, d: &Discovery) -> Result<(), String> {
    for k in &d.kubernetes_sd_configs {
        let roles = ["node", "pod", "service", "endpoints", "endpointslice", "ingress"];
        if !roles.contains(&k.role.as_str()) {
            return Err(format!("{what}: unknown Kubernetes SD role {:?}", k.role));
        }
    }
    for d in &d.dns_sd_configs {
        let kind = d.kind.to_ascii_uppercase();
        if d.names.is_empty() {
            return Err("DNS-SD config must contain at least one SRV record name".into());
        }
        if !matches!(kind.as_str(), "SRV" | "A" | "AAAA" | "MX" | "NS") {
            return Err(format!("invalid DNS-SD records type {}", d.kind));
        }
        if d.port == 0 && kind != "SRV" {
            return Err(
                "a port is required in DNS-SD configs for all record types except SRV".into()
            );
        }
    }
    Ok(())
}

/// Returns the files that a pattern matches, relative to a folder.
pub fn expand(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let full = folder.join(pattern);
    let mut out: Vec<PathBuf> =
        glob::glob(&full.to_string_lossy()).into_iter().flatten().filter_map(Result::ok).collect();
    out.sort();
    out
}

impl PrometheusConfig {
    /// Returns interval and timeout of a job.
    pub fn timing(&self, job: &ScrapeConfig) -> (Duration, Duration) {
        let interval = job.scrape_interval.unwrap_or(self.global.scrape_interval).0;
        let default = Duration::from_secs(10).min(interval);
        let global = self.global.scrape_timeout.map(|t| t.0).filter(|t| *t <= interval);
        let timeout = job.scrape_timeout.map(|t| t.0).or(global).unwrap_or(default);
        (interval.max(Duration::from_millis(1)), timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_file_is_read() {
        let c = read(
            "global:\n  scrape_interval: 15s\n  external_labels: {dc: eu}\nrule_files: ['rules/*.yml']\nalerting:\n  alertmanagers:\n  - static_configs: [{targets: ['am:9093']}]\nscrape_configs:\n- job_name: a\n  scrape_interval: 5s\n  basic_auth: {username: u, password: p}\n  static_configs: [{targets: ['x:1'], labels: {e: f}}]\n  body_size_limit: 10MB\n- job_name: b\n  honor_labels: true\n  file_sd_configs: [{files: ['t/*.json']}]\n",
            Path::new("/x"),
        )
        .unwrap();
        assert_eq!(
            c.timing(&c.scrape_configs[0]),
            (Duration::from_secs(5), Duration::from_secs(5))
        );
        assert_eq!(
            c.timing(&c.scrape_configs[1]),
            (Duration::from_secs(15), Duration::from_secs(10))
        );
        assert_eq!(c.scrape_configs[0].body_size_limit, Some(Bytes(10 << 20)));
        assert_eq!(c.alerting.alertmanagers[0].discovery.static_configs[0].targets, ["am:9093"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, want) in [
            (
                "scrape_configs: [{job_name: a}, {job_name: a}]",
                "multiple scrape configs with job name \"a\"",
            ),
            ("scrape_configs: [{job_name: a, scrape_timeout: 2m}]", "timeout greater than"),
            (
                "scrape_configs: [{job_name: a, ec2_sd_configs: []}]",
                "ec2_sd_configs is not supported",
            ),
            ("scrape_configs: [{job_name: a, nope: 1}]", "field nope not found"),
            ("remote_write: [{url: u, nope: 1}]", "remote_write u: field nope not found"),
            ("remote_write: [{url: u, queue_config: {nope: 1}}]", "u: field nope not found"),
            ("remote_write: [{url: u, metadata_config: {nope: 1}}]", "u: field nope not found"),
            ("remote_write: [{url: u, sigv4: {}}]", "sigv4 is not supported"),
            ("remote_write: [{url: u, protobuf_message: v9}]", "v9"),
            (
                "alerting: {alertmanagers: [{consul_sd_configs: []}]}",
                "alertmanagers: consul_sd_configs is not supported",
            ),
            (
                "alerting: {alertmanagers: [{nope: 1}]}",
                "field nope not found in type config.AlertmanagerConfig",
            ),
            ("nope: 1", "field nope not found"),
            ("global: {scrape_interval: 5}", "not a valid duration"),
            ("scrape_configs: [{job_name: a, scheme: ftp}]", "unsupported scheme"),
        ] {
            let e = read(text, Path::new(".")).unwrap_err().to_string();
            assert!(e.contains(want), "{text}: {e}");
        }
        assert!(read("# nothing\n", Path::new(".")).is_ok());
        assert_eq!(format_duration(parse_duration("1h30m").unwrap()), "1h30m");
    }
}
