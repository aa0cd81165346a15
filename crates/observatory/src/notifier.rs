//! Sends alerts of the own rules to Alertmanagers, as Prometheus does.

use obs_collect::config::{AlertmanagerConfig, PrometheusConfig};
use obs_collect::http::HttpClient;
use obs_collect::relabel::{Rule, relabel};
use obs_model::{Labels, LabelsBuilder, TimestampNs};
use obs_rules::alert::Alert;
use obs_rules::driver::AlertSink;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Alerts in one request.
const BATCH: usize = 256;
/// Requests under way; more alerts are dropped, as the rules send them again in a minute.
const REQUESTS_MAX: usize = 64;

struct Receiver {
    url: String,
    client: HttpClient,
    timeout: Duration,
}

#[derive(Default)]
struct Targets {
    receivers: Vec<Arc<Receiver>>,
    external_labels: BTreeMap<String, String>,
    external_url: String,
    relabel: Vec<Rule>,
}

/// Where alerts go.
pub(crate) struct Notifier {
    targets: Mutex<Targets>,
    permits: Arc<tokio::sync::Semaphore>,
}

impl Default for Notifier {
    fn default() -> Self {
        let permits = Arc::new(tokio::sync::Semaphore::new(REQUESTS_MAX));
        Self { targets: Mutex::default(), permits }
    }
}

fn receivers(
    c: &AlertmanagerConfig,
    config: &PrometheusConfig,
) -> Result<Vec<Arc<Receiver>>, String> {
    let client =
        HttpClient::new(&c.http, &config.folder).map_err(|e| format!("alertmanagers: {e}"))?;
    let prefix = c.path_prefix.trim_end_matches('/');
    let of = |t: &String| {
        let url = format!("{}://{t}{prefix}/api/v2/alerts", c.scheme);
        Arc::new(Receiver { url, client: client.clone(), timeout: c.timeout.0 })
    };
    Ok(c.static_configs.iter().flat_map(|s| &s.targets).map(of).collect())
}

impl Notifier {
    pub(crate) fn update(&self, c: &PrometheusConfig, external_url: &str) -> Result<(), String> {
        let mut all = Vec::new();
        for a in &c.alerting.alertmanagers {
            all.extend(receivers(a, c)?);
        }
        *self.targets.lock().unwrap_or_else(PoisonError::into_inner) = Targets {
            receivers: all,
            external_labels: c.global.external_labels.clone(),
            external_url: external_url.to_owned(),
            relabel: c.alerting.alert_relabel_configs.clone(),
        };
        Ok(())
    }
}

fn time(ms: i64) -> String {
    TimestampNs::from_nanos(ms.saturating_mul(1_000_000)).to_string()
}

fn body(alerts: &[Alert], t: &Targets) -> Vec<serde_json::Value> {
    let one = |a: &Alert| {
        let mut b = LabelsBuilder::default();
        for (n, v) in a.labels.iter() {
            b.push(n, v);
        }
        for (n, v) in t.external_labels.iter().filter(|(n, _)| a.labels.get(n).is_empty()) {
            b.push(n.as_str(), v.as_str());
        }
        let labels: Labels = relabel(&b.build(), &t.relabel)?;
        let labels: BTreeMap<&str, &str> = labels.iter().collect();
        let ends = a.resolved_at.or(a.valid_until).unwrap_or(a.active_at);
        Some(json!({
            "labels": labels,
            "annotations": a.annotations,
            "startsAt": time(a.fired_at.unwrap_or(a.active_at)),
            "endsAt": time(ends),
            "generatorURL": format!("{}/graph?g0.expr={}&g0.tab=1", t.external_url.trim_end_matches('/'), a.labels.get("alertname")),
        }))
    };
    alerts.iter().filter_map(one).collect()
}

impl AlertSink for Notifier {
    fn send(&self, alerts: Vec<Alert>) {
        let t = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if t.receivers.is_empty() {
            return;
        }
        for part in alerts.chunks(BATCH) {
            let list = body(part, &t);
            if list.is_empty() {
                continue;
            }
            let text = serde_json::Value::Array(list).to_string();
            for r in &t.receivers {
                let Ok(permit) = self.permits.clone().try_acquire_owned() else {
                    tracing::warn!(url = r.url, "alerts were dropped: too many requests under way");
                    continue;
                };
                let (r, text) = (r.clone(), text.clone());
                tokio::spawn(async move {
                    if let Err(e) = post(&r, text).await {
                        tracing::warn!(
                            url = r.url,
                            error = e,
                            "alerts were not sent; they are sent again"
                        );
                    }
                    drop(permit);
                });
            }
        }
    }
}

async fn post(r: &Receiver, text: String) -> Result<(), String> {
    let request = r.client.post(&r.url).await?;
    let request = request.header("Content-Type", "application/json").timeout(r.timeout).body(text);
    let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("bad response status {}", answer.status()))
    }
}
