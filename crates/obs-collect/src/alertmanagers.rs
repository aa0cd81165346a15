//! The Alertmanagers of prometheus.yml: found and relabelled as targets are.

use crate::config::{AlertmanagerConfig, PrometheusConfig};
use crate::discovery;
use crate::http::HttpClient;
use crate::relabel::{Rule, relabel};
use crate::target::TargetGroup;
use obs_model::{Labels, LabelsBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const API_PATH: &str = "/api/v2/alerts";

/// One that alerts are sent to.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub url: String,
    pub client: HttpClient,
    pub timeout: Duration,
    /// Relabelling of alerts for this one, after that for all.
    pub alert_relabel: Arc<Vec<Rule>>,
}

/// A part of the configuration, and the groups of targets that its sources found.
#[derive(Debug)]
struct Part {
    config: AlertmanagerConfig,
    client: HttpClient,
    alert_relabel: Arc<Vec<Rule>>,
    found: BTreeMap<usize, Vec<TargetGroup>>,
}

#[derive(Debug, Default)]
struct Inner {
    parts: Vec<Part>,
    active: Vec<Endpoint>,
    dropped: Vec<String>,
    /// Ends discovery for the configuration in force.
    stop: CancellationToken,
}

/// Where alerts go, as discovery finds it. Clone it freely.
#[derive(Debug, Clone, Default)]
pub struct Alertmanagers(Arc<Mutex<Inner>>);

fn url_of(labels: &Labels) -> String {
    let part = |name| labels.get(name);
    format!("{}://{}{}", part("__scheme__"), part("__address__"), part("__alerts_path__"))
}

impl Part {
    /// Returns the URLs that alerts go to, and those that relabelling dropped.
    fn urls(&self) -> (Vec<String>, Vec<String>) {
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        let prefix = self.config.path_prefix.trim_matches('/');
        let path =
            if prefix.is_empty() { API_PATH.to_owned() } else { format!("/{prefix}{API_PATH}") };
        for group in self.found.values().flatten() {
            for target in &group.targets {
                let mut b = LabelsBuilder::default();
                b.set("__scheme__", &self.config.scheme);
                b.set("__alerts_path__", &path);
                for (n, v) in group.labels.iter().chain(target.iter()) {
                    b.set(n, v);
                }
                let discovered = b.build();
                match relabel(&discovered, &self.config.relabel_configs) {
                    Some(l) if !l.get("__address__").is_empty() => kept.push(url_of(&l)),
                    _ => dropped.push(url_of(&discovered)),
                }
            }
        }
        (kept, dropped)
    }
}

impl Inner {
    fn refresh(&mut self) {
        self.active.clear();
        self.dropped.clear();
        for part in &self.parts {
            let (kept, dropped) = part.urls();
            self.dropped.extend(dropped);
            // The same one may be found twice.
            let once: BTreeSet<String> = kept.into_iter().collect();
            self.active.extend(once.into_iter().map(|url| Endpoint {
                url,
                client: part.client.clone(),
                timeout: part.config.timeout.0,
                alert_relabel: part.alert_relabel.clone(),
            }));
        }
    }
}

impl Alertmanagers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a configuration in force; one that did not change goes on. Must be called on a runtime.
    ///
    /// # Errors
    /// When a client cannot be made; what was in force before stays.
    pub fn update(&self, c: &PrometheusConfig) -> Result<(), String> {
        let wanted = &c.alerting.alertmanagers;
        if self.inner().parts.iter().map(|p| &p.config).eq(wanted) {
            return Ok(());
        }
        let part = |config: &AlertmanagerConfig| {
            let client = HttpClient::new(&config.http, &c.folder)
                .map_err(|e| format!("alertmanagers: {e}"))?;
            let alert_relabel = Arc::new(config.alert_relabel_configs.clone());
            let found = BTreeMap::new();
            Ok(Part { config: config.clone(), client, alert_relabel, found })
        };
        let parts = wanted.iter().map(part).collect::<Result<Vec<_>, String>>()?;
        let stop = CancellationToken::new();
        {
            let mut inner = self.inner();
            inner.stop.cancel();
            inner.stop = stop.clone();
            inner.parts = parts;
            inner.refresh();
        }
        for (number, config) in wanted.iter().enumerate() {
            // Weak: discovery must not keep alive what nobody uses.
            let (weak, token) = (Arc::downgrade(&self.0), stop.clone());
            let report = move |source, groups| {
                let Some(inner) = weak.upgrade() else { return };
                let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
                // A configuration that was replaced has nothing to say.
                if token.is_cancelled() {
                    return;
                }
                if let Some(part) = inner.parts.get_mut(number) {
                    part.found.insert(source, groups);
                    inner.refresh();
                }
            };
            discovery::start(&config.discovery, &c.folder, report, &stop);
        }
        Ok(())
    }

    pub fn active(&self) -> Vec<Endpoint> {
        self.inner().active.clone()
    }

    /// Returns the URLs of those that relabelling dropped.
    pub fn dropped(&self) -> Vec<String> {
        self.inner().dropped.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(text: &str, folder: &Path) -> PrometheusConfig {
        crate::config::read(text, folder).unwrap()
    }

    #[tokio::test]
    async fn targets_are_relabelled_and_follow_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("am.json");
        std::fs::write(&file, r#"[{"targets": ["a:1", "b:1"], "labels": {"dc": "eu"}}]"#).unwrap();
        let text = "alerting:\n  alertmanagers:\n  - path_prefix: /x/\n    static_configs: [{targets: ['s:1', 's:1']}]\n  - scheme: https\n    file_sd_configs: [{files: [am.json]}]\n    relabel_configs:\n    - {source_labels: [__address__], regex: 'b:.*', action: drop}\n    - {source_labels: [dc], regex: eu, target_label: __alerts_path__, replacement: /eu/api/v2/alerts}\n";
        let all = Alertmanagers::default();
        all.update(&read(text, dir.path())).unwrap();
        let urls = || all.active().into_iter().map(|e| e.url).collect::<Vec<_>>();
        let until = async |want: &[&str]| {
            for _ in 0..500 {
                if urls() == want {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(urls(), want);
        };
        let fixed = "http://s:1/x/api/v2/alerts";
        until(&[fixed, "https://a:1/eu/api/v2/alerts"]).await;
        assert_eq!(all.dropped(), ["https://b:1/api/v2/alerts"]);
        // The same again disturbs nothing.
        all.update(&read(text, dir.path())).unwrap();
        assert_eq!(urls().len(), 2);
        std::fs::write(&file, r#"[{"targets": ["c:1"]}]"#).unwrap();
        until(&[fixed, "https://c:1/api/v2/alerts"]).await;
        all.update(&read("{}", dir.path())).unwrap();
        assert!(urls().is_empty() && all.dropped().is_empty());
    }
}
