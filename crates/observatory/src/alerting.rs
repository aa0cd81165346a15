//! What `alertmanager.yml` sets going: where it is, and where its messages may go.

use crate::config::{ConfigError, environment, expand, explain};
use crate::serve::wall_clock;
use obs_ingest::Telemetry;
use obs_model::{KeepState, ShareState};
use obs_notify::{Config, Counts, Dispatcher, Environment, Outbound, profile};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAlertmanager {
    config_file: Option<PathBuf>,
    /// A route set that is built in, in place of a file.
    profile: Option<String>,
    external_url: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawOutbound {
    allow: Vec<String>,
    deny: Vec<String>,
}

/// Where the file is; it is read at start and at each reload.
#[derive(Debug, Clone, Default)]
pub(crate) struct AlertingSettings {
    config_file: Option<PathBuf>,
    profile: Option<String>,
    pub(crate) external_url: Option<String>,
    outbound: Outbound,
}

/// Reads an alertmanager.yml with its variables replaced, or a built-in route set as
/// `profile:NAME`.
pub(crate) fn read_config(file: &Path) -> Result<Config, ConfigError> {
    let name = file.display().to_string();
    let fail = |place, message: String| ConfigError { file: name.clone(), place, message };
    let text = match name.strip_prefix("profile:") {
        Some(p) => profile(p).map_err(|e| fail(None, e))?.to_owned(),
        None => {
            std::fs::read_to_string(file).map_err(|e| fail(None, format!("cannot be read: {e}")))?
        }
    };
    let text = expand(&text, &name, &environment)?;
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    Config::read(&text, &folder).map_err(|e| fail(e.place, explain(&e.message)))
}

impl AlertingSettings {
    pub(crate) fn read(
        raw: RawAlertmanager,
        outbound: &RawOutbound,
        base: &Path,
    ) -> Result<Self, String> {
        let outbound = Outbound::new(&outbound.allow, &outbound.deny);
        if let Some(name) = &raw.profile {
            profile(name).map_err(|e| format!("alertmanager.profile: {e}"))?;
            if raw.config_file.is_some() {
                return Err("alertmanager: config_file and profile exclude each other".into());
            }
        }
        Ok(Self {
            config_file: raw.config_file.map(|f| base.join(f)),
            profile: raw.profile,
            external_url: raw.external_url.map(|u| u.trim_end_matches('/').to_owned()),
            outbound: outbound.map_err(|e| format!("outbound: {e}"))?,
        })
    }

    /// Reads and checks the file; without one alerts are taken and nobody is told.
    pub(crate) fn load(&self) -> Result<(Config, Outbound), ConfigError> {
        let config = match (&self.config_file, &self.profile) {
            (Some(f), _) => read_config(f)?,
            (None, Some(p)) => read_config(Path::new(&format!("profile:{p}")))?,
            (None, None) => Config::silent(),
        };
        let receivers: Vec<String> = config.receivers.iter().map(|r| r.name.clone()).collect();
        for finding in config.routes.lint(&receivers, &[]) {
            tracing::warn!("alertmanager.yml: {finding}");
        }
        Ok((config, self.outbound.clone()))
    }
}

/// Takes up alerts, silences and the log where the process before ended.
pub(crate) fn start(
    (config, outbound): (Config, Outbound),
    state: Arc<dyn KeepState>,
    shared: Option<Arc<dyn ShareState>>,
    external_url: &str,
) -> Result<Dispatcher, String> {
    let environment = Environment {
        state,
        shared,
        clock: Arc::new(wall_clock),
        external_url: external_url.to_owned(),
    };
    Dispatcher::new(config, outbound, environment)
}

/// Puts what was counted into the own metrics, under Alertmanager's names.
pub(crate) fn publish(dispatcher: &Dispatcher, t: &Telemetry) {
    let c: &Counts = dispatcher.counts();
    for (state, n) in [("firing", &c.received_firing), ("resolved", &c.received_resolved)] {
        t.raise("alertmanager_alerts_received_total", &[state], n.load(Ordering::Relaxed));
    }
    t.raise("alertmanager_alerts_invalid_total", &[], c.invalid.load(Ordering::Relaxed));
    let names = [
        "alertmanager_notifications_total",
        "alertmanager_notifications_failed_total",
        "alertmanager_notification_requests_total",
        "alertmanager_notification_requests_failed_total",
    ];
    for (kind, counts) in c.sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
        for (name, n) in names.iter().zip(counts) {
            t.raise(name, &[kind], *n);
        }
    }
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    if let Some(m) = dispatcher.together() {
        t.set("alertmanager_cluster_members", &[], number(m.names.len()));
        t.set("observatory_shared_store_up", &[], i64::from(m.is_reachable));
        t.raise("observatory_shared_store_failures_total", &[], m.failures);
        let left = c.left_to_others.load(Ordering::Relaxed);
        t.raise("alertmanager_notifications_left_to_others_total", &[], left);
    }
    let now = wall_clock();
    let core = dispatcher.core();
    let counts = core.counts(now);
    let mut states = [0_i64; 3];
    for s in core.silences() {
        if let Some(n) = states.get_mut(s.state(now) as usize) {
            *n += 1;
        }
    }
    drop(core);
    t.set("alertmanager_alerts", &["active"], number(counts.active));
    t.set("alertmanager_alerts", &["suppressed"], number(counts.suppressed));
    t.set("alertmanager_alerts_unrouted", &[], number(counts.unrouted));
    for (state, n) in ["active", "pending", "expired"].iter().zip(states) {
        t.set("alertmanager_silences", &[state], n);
    }
}
