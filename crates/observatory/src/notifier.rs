//! Sends alerts of the own rules to Alertmanagers, as Prometheus does.

use obs_collect::config::{AlertmanagerConfig, PrometheusConfig};
use obs_collect::http::HttpClient;
use obs_collect::relabel::{Rule, relabel};
use obs_model::{Labels, LabelsBuilder, TimestampNs};
use obs_notify::{Dispatcher, NewAlert};
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

/// An alert after relabelling, with its external labels.
struct Outgoing<'a> {
    alert: &'a Alert,
    labels: Labels,
}

/// Where alerts go.
pub(crate) struct Notifier {
    targets: Mutex<Targets>,
    permits: Arc<tokio::sync::Semaphore>,
    /// Our own Alertmanager hears of everything.
    own: Dispatcher,
    runtime: tokio::runtime::Handle,
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
    /// Must be called on a runtime.
    pub(crate) fn new(own: Dispatcher) -> Self {
        let permits = Arc::new(tokio::sync::Semaphore::new(REQUESTS_MAX));
        let runtime = tokio::runtime::Handle::current();
        Self { targets: Mutex::default(), permits, own, runtime }
    }

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

fn outgoing<'a>(alerts: &'a [Alert], t: &Targets) -> Vec<Outgoing<'a>> {
    let one = |alert: &'a Alert| {
        let a = alert;
        let mut b = LabelsBuilder::default();
        for (n, v) in a.labels.iter() {
            b.push(n, v);
        }
        for (n, v) in t.external_labels.iter().filter(|(n, _)| a.labels.get(n).is_empty()) {
            b.push(n.as_str(), v.as_str());
        }
        Some(Outgoing { alert, labels: relabel(&b.build(), &t.relabel)? })
    };
    alerts.iter().filter_map(one).collect()
}

/// Where the alert's expression can be looked at.
fn generator_url(a: &Alert, t: &Targets) -> String {
    let expr = url::form_urlencoded::byte_serialize(a.expr.as_bytes()).collect::<String>();
    format!("{}/graph?g0.expr={expr}&g0.tab=1", t.external_url.trim_end_matches('/'))
}

fn ends_at(a: &Alert) -> i64 {
    a.resolved_at.or(a.valid_until).unwrap_or(a.active_at)
}

fn body(alerts: &[Outgoing<'_>], t: &Targets) -> String {
    let one = |o: &Outgoing<'_>| {
        let a = o.alert;
        let labels: BTreeMap<&str, &str> = o.labels.iter().collect();
        json!({
            "labels": labels,
            "annotations": a.annotations,
            "startsAt": time(a.fired_at.unwrap_or(a.active_at)),
            "endsAt": time(ends_at(a)),
            "generatorURL": generator_url(a, t),
        })
    };
    serde_json::Value::Array(alerts.iter().map(one).collect()).to_string()
}

fn own_alert(o: &Outgoing<'_>, t: &Targets) -> NewAlert {
    let at = |ms: i64| TimestampNs::from_nanos(ms.saturating_mul(1_000_000));
    NewAlert {
        labels: o.labels.clone(),
        annotations: o.alert.annotations.clone(),
        starts_at: Some(at(o.alert.fired_at.unwrap_or(o.alert.active_at))),
        ends_at: Some(at(ends_at(o.alert))),
        generator_url: generator_url(o.alert, t),
    }
}

impl AlertSink for Notifier {
    /// Called on a thread that may wait.
    fn send(&self, alerts: Vec<Alert>) {
        let (own, receivers, bodies) = {
            let t = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            let all = outgoing(&alerts, &t);
            let own: Vec<NewAlert> = all.iter().map(|o| own_alert(o, &t)).collect();
            let bodies: Vec<String> = if t.receivers.is_empty() {
                Vec::new()
            } else {
                all.chunks(BATCH).map(|part| body(part, &t)).collect()
            };
            (own, t.receivers.clone(), bodies)
        };
        if let Err(e) = self.runtime.block_on(self.own.put(own)) {
            tracing::error!(error = %e, "alerts of the own rules were not taken; they are sent again");
        }
        for text in bodies {
            for r in &receivers {
                let Ok(permit) = self.permits.clone().try_acquire_owned() else {
                    tracing::warn!(url = r.url, "alerts were dropped: too many requests under way");
                    continue;
                };
                let (r, text) = (r.clone(), text.clone());
                self.runtime.spawn(async move {
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
