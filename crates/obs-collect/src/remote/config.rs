//! The `remote_write` section of prometheus.yml.

use crate::config::{HTTP_KEYS, HttpConfig, Span};
use crate::relabel::Rule;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Where samples are sent on to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RemoteWrite {
    pub url: String,
    #[serde(default)]
    pub name: String,
    #[serde(default = "half_minute")]
    pub remote_timeout: Span,
    #[serde(default)]
    pub write_relabel_configs: Vec<Rule>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default)]
    pub protobuf_message: Message,
    /// Of version 1; version 2 has them in any case.
    #[serde(default)]
    pub send_native_histograms: bool,
    #[serde(default)]
    pub metadata_config: MetadataConfig,
    #[serde(default)]
    pub queue_config: QueueConfig,
    #[serde(flatten)]
    pub http: HttpConfig,
}

const fn half_minute() -> Span {
    Span(Duration::from_secs(30))
}

/// The message that requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Message {
    #[default]
    #[serde(rename = "prometheus.WriteRequest")]
    V1,
    #[serde(rename = "io.prometheus.write.v2.Request")]
    V2,
}

/// Whether version 1 sends what is known of metrics; version 2 does in any case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MetadataConfig {
    pub send: bool,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self { send: true }
    }
}

/// The part of a queue's settings that has a meaning for a queue on disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct QueueConfig {
    pub max_shards: Option<usize>,
    pub max_samples_per_send: usize,
    /// How long samples are gathered at most.
    pub batch_send_deadline: Span,
    /// Shortest and longest wait after a failure.
    pub min_backoff: Span,
    pub max_backoff: Span,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            max_shards: None,
            max_samples_per_send: 2000,
            batch_send_deadline: Span(Duration::from_secs(5)),
            min_backoff: Span(Duration::from_millis(30)),
            max_backoff: Span(Duration::from_secs(5)),
        }
    }
}

impl RemoteWrite {
    /// Returns how many requests may be under way side by side.
    pub fn shards(&self) -> usize {
        /// More do not help: each is sent as fast as the other side answers.
        const MOST: usize = 4;
        self.queue_config.max_shards.unwrap_or(MOST).clamp(1, MOST)
    }
}

const KEYS: [&str; 9] = [
    "url",
    "name",
    "remote_timeout",
    "write_relabel_configs",
    "headers",
    "protobuf_message",
    "send_native_histograms",
    "metadata_config",
    "queue_config",
];
const QUEUE_KEYS: [&str; 5] =
    ["max_shards", "max_samples_per_send", "batch_send_deadline", "min_backoff", "max_backoff"];
/// Settings that Prometheus has and that change nothing here.
const WITHOUT_EFFECT: [&str; 2] = ["send_exemplars", "round_robin_dns"];
const QUEUE_WITHOUT_EFFECT: [&str; 4] =
    ["capacity", "min_shards", "retry_on_http_429", "sample_age_limit"];
const METADATA_KEYS: [&str; 3] = ["send", "send_interval", "max_samples_per_send"];
/// Credentials of clouds.
const NOT_SUPPORTED: [&str; 3] = ["sigv4", "azuread", "google_iam"];

/// Refuses keys of an entry that nothing knows, and notes those without effect.
pub(crate) fn check_keys(
    entry: &serde_json::Value,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let url = entry.get("url").and_then(|u| u.as_str()).unwrap_or("?");
    let keys = |v: Option<&serde_json::Value>| -> Vec<String> {
        v.and_then(|v| v.as_object()).into_iter().flat_map(|o| o.keys().cloned()).collect()
    };
    for key in keys(Some(entry)) {
        let key = key.as_str();
        if NOT_SUPPORTED.contains(&key) {
            return Err(format!("remote_write {url}: {key} is not supported"));
        }
        if WITHOUT_EFFECT.contains(&key) {
            warnings.push(format!("remote_write {url}: {key} is read and has no effect here"));
        } else if !KEYS.contains(&key) && !HTTP_KEYS.contains(&key) {
            return Err(format!(
                "remote_write {url}: field {key} not found in type config.RemoteWriteConfig"
            ));
        }
    }
    for key in keys(entry.get("queue_config")) {
        if QUEUE_WITHOUT_EFFECT.contains(&key.as_str()) {
            warnings.push(format!(
                "remote_write {url}: queue_config.{key} is read and has no effect here"
            ));
        } else if !QUEUE_KEYS.contains(&key.as_str()) {
            return Err(format!(
                "remote_write {url}: field {key} not found in type config.QueueConfig"
            ));
        }
    }
    let unknown = |k: &String| !METADATA_KEYS.contains(&k.as_str());
    match keys(entry.get("metadata_config")).into_iter().find(unknown) {
        Some(key) => {
            Err(format!("remote_write {url}: field {key} not found in type config.MetadataConfig"))
        }
        None => Ok(()),
    }
}
