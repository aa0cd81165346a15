//! What `prometheus.yml`, rule files and rule packs set going: scraping, rules, alerts sent on.

use crate::config::{ConfigError, environment, expand};
use crate::notifier::Notifier;
use crate::serve::wall_clock;
use obs_collect::config::PrometheusConfig;
use obs_collect::{Batch, Sink, SinkFuture};
use obs_ingest::Ingest;
use obs_model::{Append, Labels, TenantId};
use obs_rules::driver::{Environment, Manager};
use obs_rules::file::RuleGroup;
use obs_rules::group::Options;
use obs_rules::{Engine, packs};
use obs_server::Workers;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawPrometheus {
    config_file: Option<PathBuf>,
    rule_files: Vec<String>,
    external_url: Option<String>,
}

/// One name or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum RawProfile {
    One(String),
    Many(Vec<String>),
}

/// Where the files are; they are read at start and at each reload.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) config_file: Option<PathBuf>,
    rule_files: Vec<String>,
    external_url: Option<String>,
    packs: Vec<String>,
    /// Folder of the configuration that names the files.
    base: PathBuf,
}

impl Settings {
    pub(crate) fn read(
        raw: RawPrometheus,
        profile: Option<RawProfile>,
        base: &Path,
    ) -> Result<Self, String> {
        let packs = match profile {
            None => Vec::new(),
            Some(RawProfile::One(p)) => vec![p],
            Some(RawProfile::Many(list)) => list,
        };
        for p in &packs {
            if packs::pack(p).is_none() {
                let known: Vec<&str> = packs::PACKS.iter().map(|p| p.0).collect();
                return Err(format!(
                    "profile: {p:?} is no rule pack; there are {}",
                    known.join(", ")
                ));
            }
        }
        Ok(Self {
            config_file: raw.config_file.map(|f| base.join(f)),
            rule_files: raw.rule_files,
            external_url: raw.external_url,
            packs,
            base: base.to_owned(),
        })
    }
}

/// Everything the files say, read and checked.
pub(crate) struct Loaded {
    config: PrometheusConfig,
    groups: Vec<(String, Vec<RuleGroup>)>,
    options: Options,
}

/// Reads a prometheus.yml with its variables replaced.
pub(crate) fn read_config(file: &Path) -> Result<PrometheusConfig, ConfigError> {
    let name = file.display().to_string();
    let fail = |message: String| ConfigError { file: name.clone(), place: None, message };
    let text = std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let text = expand(&text, &name, &environment)?;
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    obs_collect::config::read(&text, &folder).map_err(|e| ConfigError {
        file: name.clone(),
        place: e.place,
        message: e.message,
    })
}

/// Reads one rule file; mistakes are errors of their group or rule alone.
pub(crate) fn read_rules(file: &Path) -> Result<obs_rules::file::RuleFile, ConfigError> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|e| ConfigError {
        file: name,
        place: None,
        message: format!("cannot be read: {e}"),
    })?;
    Ok(obs_rules::file::read(&text))
}

impl Settings {
    /// Reads and checks all files.
    pub(crate) fn load(&self, external_url: &str) -> Result<Loaded, ConfigError> {
        let config = match &self.config_file {
            Some(f) => read_config(f)?,
            None => PrometheusConfig::default(),
        };
        for w in &config.warnings {
            tracing::warn!("prometheus.yml: {w}");
        }
        let own = self.rule_files.iter().flat_map(|p| obs_collect::config::expand(&self.base, p));
        let theirs =
            config.rule_files.iter().flat_map(|p| obs_collect::config::expand(&config.folder, p));
        let mut groups = Vec::new();
        for path in own.chain(theirs) {
            let file = read_rules(&path)?;
            let name = path.display().to_string();
            for w in &file.warnings {
                tracing::warn!(file = name, "{w}");
            }
            // The good rules run; the others are told, and found by `check rules`.
            for e in &file.errors {
                tracing::error!(file = name, error = %e, "rule is left out");
            }
            groups.push((name, file.groups));
        }
        for p in &self.packs {
            groups.push((format!("pack:{p}"), packs::pack(p).unwrap_or_default()));
        }
        let ms = |d: std::time::Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        let options = Options {
            external_labels: config.global.external_labels.clone(),
            external_url: self.external_url.clone().unwrap_or_else(|| external_url.to_owned()),
            interval_ms: ms(config.global.evaluation_interval.0).max(1),
            query_offset_ms: ms(config.global.rule_query_offset.0),
            resend_ms: 60_000,
        };
        Ok(Loaded { config, groups, options })
    }
}

/// Hands scraped samples to the write path.
struct IngestSink {
    ingest: Ingest,
    tenant: TenantId,
}

impl Sink for IngestSink {
    fn admit(&self, labels: &Labels) -> Result<(), String> {
        self.ingest.admit(&self.tenant, labels)
    }

    fn write(&self, batch: Batch) -> SinkFuture<'_> {
        Box::pin(async move {
            self.ingest.exemplars().add(&self.tenant, batch.exemplars);
            if batch.points.is_empty() {
                return Ok(());
            }
            let done = self
                .ingest
                .metrics(&self.tenant, batch.points, Vec::new(), batch.metadata, wall_clock())
                .await
                .map_err(|e| e.to_string())?;
            if done.rejected > 0 {
                let n = done.rejected;
                tracing::warn!(
                    samples = n,
                    "scraped samples were refused: {}",
                    done.reasons.join("; ")
                );
            }
            Ok(())
        })
    }
}

fn clock_ms() -> i64 {
    wall_clock().to_millis().millis()
}

/// The parts that run, and how they take new files.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) workers: Workers,
    notifier: Arc<Notifier>,
}

impl Running {
    pub(crate) fn new(ingest: &Ingest, append: Arc<dyn Append>, engine: Arc<dyn Engine>) -> Self {
        let tenant = TenantId::default();
        let sink = IngestSink { ingest: ingest.clone(), tenant: tenant.clone() };
        let scrape = obs_collect::manager::Manager::new(Arc::new(sink), Arc::new(clock_ms));
        let notifier = Arc::new(Notifier::default());
        let rules = Manager::new(Environment {
            engine,
            append,
            tenant,
            sink: Some(notifier.clone()),
            clock: Arc::new(clock_ms),
        });
        Self { workers: Workers { scrape, rules: Arc::new(rules) }, notifier }
    }

    /// Puts what was loaded in force.
    pub(crate) fn apply(&self, loaded: Loaded) -> Result<(), String> {
        self.notifier.update(&loaded.config, &loaded.options.external_url)?;
        self.workers.scrape.update(loaded.config)?;
        self.workers.rules.update(&loaded.groups, &loaded.options);
        Ok(())
    }

    pub(crate) async fn stop(&self) {
        self.workers.scrape.stop().await;
        self.workers.rules.stop().await;
    }
}
