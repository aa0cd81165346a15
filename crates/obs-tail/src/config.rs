//! Promtail's configuration file, as far as this product reads it.

use crate::stage::{Limits, Pipeline, StageConfig};
use obs_collect::config::{DockerSd, KubernetesSd, Span, StaticConfig, TlsConfig};
use obs_collect::relabel::Rule;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_rustls::TlsAcceptor;

/// The file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromtailConfig {
    /// Where Promtail would send to; lines go into this process' store instead.
    pub clients: Vec<Client>,
    pub client: Option<Client>,
    pub positions: PositionsConfig,
    pub scrape_configs: Vec<Job>,
    pub limits_config: LimitsConfig,
    pub target_config: TargetConfig,
    pub server: Option<Value>,
    pub tracing: Option<Value>,
    pub options: Option<Value>,
    pub global: Option<Value>,
    pub wal: Option<Value>,
}

/// Of a client only what says whose the lines are.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Client {
    pub tenant_id: Option<String>,
    pub external_labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PositionsConfig {
    /// By default below the data directory.
    pub filename: Option<PathBuf>,
    pub sync_period: Span,
    pub ignore_invalid_yaml: bool,
}

impl Default for PositionsConfig {
    fn default() -> Self {
        Self {
            filename: None,
            sync_period: Span(Duration::from_secs(10)),
            ignore_invalid_yaml: true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    pub readline_rate: Option<f64>,
    pub readline_burst: Option<f64>,
    pub readline_rate_enabled: bool,
    pub readline_rate_drop: Option<bool>,
    pub max_streams: usize,
    /// Bytes; lines past it are dropped, or cut when that is asked for.
    pub max_line_size: Option<obs_collect::config::Bytes>,
    pub max_line_size_truncate: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetConfig {
    pub sync_period: Option<Span>,
    pub stdin: bool,
}

/// One source of lines and what becomes of them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Job {
    pub job_name: String,
    pub pipeline_stages: Vec<StageConfig>,
    pub static_configs: Vec<StaticConfig>,
    pub file_sd_configs: Vec<obs_collect::config::FileSd>,
    pub docker_sd_configs: Vec<DockerSd>,
    pub kubernetes_sd_configs: Vec<KubernetesSd>,
    pub relabel_configs: Vec<Rule>,
    pub syslog: Option<Syslog>,
    pub loki_push_api: Option<PushApi>,
    pub journal: Option<Journal>,
    pub decompression: Decompression,
    pub encoding: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decompression {
    pub enabled: bool,
    pub format: String,
    pub initial_delay: Span,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Syslog {
    pub listen_address: String,
    pub listen_protocol: String,
    pub idle_timeout: Span,
    pub label_structured_data: bool,
    pub labels: BTreeMap<String, String>,
    pub use_incoming_timestamp: bool,
    pub use_rfc5424_message: bool,
    /// `rfc5424` (the default) or `rfc3164`.
    pub syslog_format: String,
    pub max_message_length: usize,
    pub tls_config: Option<TlsConfig>,
}

impl Default for Syslog {
    fn default() -> Self {
        Self {
            listen_address: String::new(),
            listen_protocol: "tcp".into(),
            idle_timeout: Span(Duration::from_secs(120)),
            label_structured_data: false,
            labels: BTreeMap::new(),
            use_incoming_timestamp: false,
            use_rfc5424_message: false,
            syslog_format: "rfc5424".into(),
            max_message_length: 8192,
            tls_config: None,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PushApi {
    pub server: PushServer,
    pub labels: BTreeMap<String, String>,
    pub use_incoming_timestamp: bool,
}

/// Of a server's section what says where it listens; what else tunes Promtail's server is passed
/// over.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PushServer {
    /// Loopback unless told.
    pub http_listen_address: String,
    pub http_listen_port: u16,
    pub http_tls_config: Option<PushTls>,
}

/// TLS of a server, under the names that Promtail's server has for it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PushTls {
    pub cert: Option<String>,
    pub cert_file: Option<PathBuf>,
    pub key: Option<String>,
    pub key_file: Option<PathBuf>,
    /// `NoClientCert` (or nothing), `VerifyClientCertIfGiven` or `RequireAndVerifyClientCert`.
    pub client_auth_type: String,
    #[serde(alias = "client_ca_text")]
    pub client_ca: Option<String>,
    pub client_ca_file: Option<PathBuf>,
}

impl PushTls {
    fn check(&self) -> Result<(), String> {
        let asks = match self.client_auth_type.as_str() {
            "" | "NoClientCert" => false,
            "VerifyClientCertIfGiven" | "RequireAndVerifyClientCert" => true,
            other => return Err(format!("client_auth_type {other:?} is not supported")),
        };
        let has_ca = self.client_ca.is_some() || self.client_ca_file.is_some();
        match (asks, has_ca) {
            (true, false) => Err("client_auth_type needs client_ca_file".into()),
            (false, true) => Err("client_ca_file needs a client_auth_type".into()),
            _ => Ok(()),
        }
    }

    pub(crate) fn acceptor(&self, folder: &Path) -> Result<TlsAcceptor, String> {
        let tls = TlsConfig {
            ca: self.client_ca.clone(),
            ca_file: self.client_ca_file.clone(),
            cert: self.cert.clone(),
            cert_file: self.cert_file.clone(),
            key: self.key.clone(),
            key_file: self.key_file.clone(),
            ..TlsConfig::default()
        };
        let strangers = self.client_auth_type == "VerifyClientCertIfGiven";
        crate::tls::acceptor(&tls, strangers, folder)
    }
}

impl PushServer {
    pub(crate) fn address(&self) -> String {
        let host = match self.http_listen_address.as_str() {
            "" => "127.0.0.1",
            host => host,
        };
        format!("{host}:{}", self.http_listen_port)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    pub json: bool,
    pub max_age: Option<String>,
    pub path: Option<PathBuf>,
    pub matches: String,
    pub labels: BTreeMap<String, String>,
}

/// Sources of Promtail that are not there, by their key.
const MISSING: [&str; 9] = [
    "gcplog",
    "azure_event_hubs",
    "kafka",
    "gelf",
    "cloudflare",
    "heroku_drain",
    "windows_events",
    "consul_sd_configs",
    "ec2_sd_configs",
];

/// Reads the file.
///
/// # Errors
/// With what is wrong and where.
pub fn read(text: &str) -> Result<PromtailConfig, String> {
    let raw: Option<PromtailConfig> = serde_saphyr::from_str(text).map_err(|e| {
        let message = e.without_snippet().to_string();
        match MISSING.iter().find(|m| message.contains(&format!("`{m}`"))) {
            Some(m) => format!("{m} is not supported; {message}"),
            None => message,
        }
    })?;
    let config = raw.unwrap_or_default();
    for job in &config.scrape_configs {
        let name = &job.job_name;
        Pipeline::new(&job.pipeline_stages, &crate::Counts::default(), &Limits::default())
            .map_err(|e| format!("job {name:?}: pipeline_stages: {e}"))?;
        if let Some(api) = &job.loki_push_api {
            if api.server.http_listen_port == 0 {
                return Err(format!("job {name:?}: loki_push_api needs server.http_listen_port"));
            }
            if let Some(tls) = &api.server.http_tls_config {
                tls.check().map_err(|e| format!("job {name:?}: loki_push_api: {e}"))?;
            }
        }
        if let Some(s) = &job.syslog {
            let known = matches!(s.listen_protocol.as_str(), "tcp" | "udp");
            let format = matches!(s.syslog_format.as_str(), "rfc5424" | "rfc3164");
            if !known || !format || s.listen_address.is_empty() {
                return Err(format!(
                    "job {name:?}: syslog needs listen_address, listen_protocol tcp or udp and syslog_format rfc5424 or rfc3164"
                ));
            }
            if s.tls_config.is_some() && s.listen_protocol == "udp" {
                return Err(format!("job {name:?}: syslog over UDP has no TLS"));
            }
        }
    }
    Ok(config)
}

/// Reads and names the file.
///
/// # Errors
/// With the file's name and what is wrong.
pub fn read_file(path: &Path) -> Result<PromtailConfig, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    read(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Returns a job that follows the files of a pattern, with the pattern's number in its name.
pub fn files_job(number: usize, pattern: &Path) -> Job {
    let path = pattern.display().to_string();
    let labels =
        BTreeMap::from([("job".to_owned(), "files".to_owned()), ("__path__".into(), path)]);
    Job {
        job_name: format!("files-{number}"),
        static_configs: vec![StaticConfig { targets: Vec::new(), labels }],
        ..Job::default()
    }
}
