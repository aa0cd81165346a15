//! Sends alerts of the own rules to Alertmanagers, as Prometheus does.

use obs_collect::alertmanagers::{Alertmanagers, Endpoint};
use obs_collect::config::PrometheusConfig;
use obs_collect::relabel::{Rule, relabel};
use obs_model::{Labels, LabelsBuilder, TimestampNs};
use obs_notify::{Dispatcher, NewAlert};
use obs_rules::alert::Alert;
use obs_rules::driver::AlertSink;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Alerts in one request.
const BATCH: usize = 256;
/// Requests under way; more alerts are dropped, as the rules send them again in a minute.
const REQUESTS_MAX: usize = 64;

#[derive(Default)]
struct Targets {
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
    others: Alertmanagers,
    permits: Arc<tokio::sync::Semaphore>,
    /// Our own Alertmanager hears of everything.
    own: Dispatcher,
    runtime: tokio::runtime::Handle,
}

impl Notifier {
    /// Must be called on a runtime.
    pub(crate) fn new(own: Dispatcher, others: Alertmanagers) -> Self {
        let permits = Arc::new(tokio::sync::Semaphore::new(REQUESTS_MAX));
        let runtime = tokio::runtime::Handle::current();
        Self { targets: Mutex::default(), others, permits, own, runtime }
    }

    pub(crate) fn update(&self, c: &PrometheusConfig, external_url: &str) -> Result<(), String> {
        self.others.update(c)?;
        *self.targets.lock().unwrap_or_else(PoisonError::into_inner) = Targets {
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

/// Returns the requests for one Alertmanager.
fn bodies(alerts: &[Outgoing<'_>], rules: &[Rule], t: &Targets) -> Vec<String> {
    if rules.is_empty() {
        return alerts.chunks(BATCH).map(|part| body(part, t)).collect();
    }
    let relabelled = alerts
        .iter()
        .filter_map(|o| Some(Outgoing { alert: o.alert, labels: relabel(&o.labels, rules)? }));
    let own: Vec<Outgoing<'_>> = relabelled.collect();
    own.chunks(BATCH).map(|part| body(part, t)).collect()
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
        let others = self.others.active();
        let (own, requests) = {
            let t = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            let all = outgoing(&alerts, &t);
            let own: Vec<NewAlert> = all.iter().map(|o| own_alert(o, &t)).collect();
            let mut requests: Vec<(Endpoint, String)> = Vec::new();
            for e in others {
                let texts = bodies(&all, &e.alert_relabel, &t);
                requests.extend(texts.into_iter().map(|text| (e.clone(), text)));
            }
            (own, requests)
        };
        if let Err(e) = self.runtime.block_on(self.own.put(own)) {
            tracing::error!(error = %e, "alerts of the own rules were not taken; they are sent again");
        }
        for (to, text) in requests {
            let Ok(permit) = self.permits.clone().try_acquire_owned() else {
                tracing::warn!(url = to.url, "alerts were dropped: too many requests under way");
                continue;
            };
            self.runtime.spawn(async move {
                if let Err(e) = post(&to, text).await {
                    tracing::warn!(
                        url = to.url,
                        error = e,
                        "alerts were not sent; they are sent again"
                    );
                }
                drop(permit);
            });
        }
    }
}

async fn post(r: &Endpoint, text: String) -> Result<(), String> {
    let request = r.client.post(&r.url).await?;
    let request = request.header("Content-Type", "application/json").timeout(r.timeout).body(text);
    let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("bad response status {}", answer.status()))
    }
}
