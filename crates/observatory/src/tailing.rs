//! Lines that this process collects itself: what a Promtail configuration names.

use crate::config::{ConfigError, environment, expand};
use crate::serve::wall_clock;
use obs_ingest::Ingest;
use obs_model::{AppendError, LogRecord, MetricMetadata, Series, TenantId, TimestampMs};
use obs_tail::config::PromtailConfig;
use obs_tail::{LogSink, Manager, StoreError, StoreFuture};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTailing {
    config_file: Option<PathBuf>,
    files: Vec<String>,
}

/// Where the file is, and files to follow without one.
#[derive(Debug, Clone, Default)]
pub(crate) struct TailSettings {
    config_file: Option<PathBuf>,
    files: Vec<String>,
    base: PathBuf,
}

/// What the file says, and the folder that its paths are relative to.
pub(crate) struct LoadedTailing {
    config: PromtailConfig,
    folder: PathBuf,
}

/// Reads a Promtail file with its variables replaced.
pub(crate) fn read_config(file: &Path) -> Result<PromtailConfig, ConfigError> {
    let name = file.display().to_string();
    let fail = |message: String| ConfigError { file: name.clone(), place: None, message };
    let text = std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let text = expand(&text, &name, &environment)?;
    obs_tail::config::read(&text).map_err(fail)
}

impl TailSettings {
    pub(crate) fn read(raw: RawTailing, base: &Path) -> Self {
        Self {
            config_file: raw.config_file.map(|f| base.join(f)),
            files: raw.files,
            base: base.to_owned(),
        }
    }

    /// Reads and checks the file.
    pub(crate) fn load(&self) -> Result<LoadedTailing, ConfigError> {
        let (mut config, folder) = match &self.config_file {
            Some(f) => (read_config(f)?, f.parent().map(Path::to_owned).unwrap_or_default()),
            None => (PromtailConfig::default(), self.base.clone()),
        };
        for (i, pattern) in self.files.iter().enumerate() {
            let path = self.base.join(pattern);
            config.scrape_configs.push(obs_tail::config::files_job(i, &path));
        }
        Ok(LoadedTailing { config, folder })
    }
}

/// Stores what was collected.
struct IngestSink(Ingest);

impl LogSink for IngestSink {
    fn store<'a>(&'a self, tenant: Option<&'a str>, records: Vec<LogRecord>) -> StoreFuture<'a> {
        Box::pin(async move {
            let tenant = match tenant {
                None => TenantId::default(),
                Some(t) => TenantId::new(t).map_err(|e| StoreError::Never(e.to_string()))?,
            };
            let done = self.0.logs(&tenant, records, wall_clock()).await.map_err(|e| match e {
                AppendError::TooLarge { .. } => StoreError::Never(e.to_string()),
                _ => StoreError::Later(e.to_string()),
            })?;
            if done.rejected > 0 {
                let reasons = done.reasons.join("; ");
                tracing::warn!(lines = done.rejected, reasons, "collected lines were refused");
            }
            Ok(())
        })
    }
}

/// The collection that runs.
#[derive(Debug, Clone)]
pub(crate) struct Tailing {
    manager: Manager,
    positions: PathBuf,
}

impl Tailing {
    pub(crate) fn new(ingest: &Ingest, data: &Path) -> Self {
        // In a cluster the node is not what the container is called: its name comes as Promtail's does.
        let host = crate::config::environment("HOSTNAME").unwrap_or_else(crate::control::host_name);
        let manager =
            Manager::new(Arc::new(IngestSink(ingest.clone())), Arc::new(wall_clock), host);
        Self { manager, positions: data.join("positions.yaml") }
    }

    /// Puts what was loaded in force. Must be called on a runtime.
    pub(crate) fn apply(&self, loaded: &LoadedTailing) -> Result<(), String> {
        self.manager.update(&loaded.config, &loaded.folder, &self.positions)
    }

    /// Puts what was counted into the own metrics.
    pub(crate) fn publish(&self, ingest: &Ingest) {
        let (t, c) = (ingest.telemetry(), self.manager.counts());
        for (name, total) in [
            ("promtail_read_lines_total", &c.lines),
            ("promtail_read_bytes_total", &c.bytes),
            ("promtail_dropped_entries_total", &c.refused),
            ("promtail_rate_limited_lines_total", &c.over_rate),
            ("promtail_request_retries_total", &c.retries),
            ("promtail_too_long_lines_total", &c.too_long),
            ("promtail_syslog_parsing_errors_total", &c.malformed),
        ] {
            t.raise(name, &[], total.load(Ordering::Relaxed));
        }
    }

    /// Returns what the pipelines' own metrics are now.
    pub(crate) fn series(&self, now: TimestampMs) -> (Vec<Series>, Vec<MetricMetadata>) {
        self.manager.counts().custom.series(now)
    }

    pub(crate) async fn stop(&self) {
        self.manager.stop().await;
    }
}
