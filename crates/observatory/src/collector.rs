//! What an OpenTelemetry Collector's file sets going: listeners, scraping, sampling, processors.

use crate::config::{ConfigError, environment};
use obs_collect::config::PrometheusConfig;
use obs_ingest::{Ingest, RawTail, SpanDimension, SpanRules, TailConfig};
use obs_process::{Collector, Processing};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCollector {
    config_file: Option<PathBuf>,
}

/// Where the file is; it is read at start and at each reload.
#[derive(Debug, Clone, Default)]
pub(crate) struct CollectorSettings {
    file: Option<PathBuf>,
}

/// Everything the file says, read and checked.
#[derive(Debug, Default)]
pub(crate) struct LoadedCollector {
    pub(crate) collector: Collector,
    pub(crate) tail: Option<TailConfig>,
    /// Jobs to scrape.
    pub(crate) scrape: Option<PrometheusConfig>,
}

/// Reads a collector's file.
pub(crate) fn read_config(file: &Path) -> Result<LoadedCollector, ConfigError> {
    let name = file.display().to_string();
    let fail = |message: String| ConfigError { file: name.clone(), place: None, message };
    let text = std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let collector = obs_process::read(&text, &environment).map_err(&fail)?;
    let of_tail = |e: String| fail(format!("processors.tail_sampling: {e}"));
    let tail = match &collector.tail {
        None => None,
        Some(v) => {
            let raw: RawTail =
                serde_json::from_value(v.clone()).map_err(|e| of_tail(e.to_string()))?;
            Some(TailConfig::read(raw).map_err(of_tail)?)
        }
    };
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    let scrape = collector.scrape.as_ref().map(|v| {
        obs_collect::config::read(&v.to_string(), &folder)
            .map_err(|e| fail(format!("receivers.prometheus.config: {}", e.message)))
    });
    Ok(LoadedCollector { tail, scrape: scrape.transpose()?, collector })
}

impl CollectorSettings {
    pub(crate) fn read(raw: RawCollector, base: &Path) -> Self {
        Self { file: raw.config_file.map(|f| base.join(f)) }
    }

    /// Reads and checks the file; without one there is nothing to do.
    pub(crate) fn load(&self) -> Result<LoadedCollector, ConfigError> {
        self.file.as_deref().map(read_config).transpose().map(Option::unwrap_or_default)
    }
}

/// Puts what was loaded in force, and says what has no effect. The tail's rules are the caller's.
pub(crate) fn apply(collector: Collector, processing: &Processing, ingest: &Ingest) {
    for note in &collector.notes {
        tracing::warn!("collector: {note}");
    }
    let dimensions = collector.dimensions.into_iter().map(|d| SpanDimension {
        label: obs_process::label_name(&d.name),
        attribute: d.name,
        default: d.default,
    });
    let dimensions = dimensions.collect();
    ingest.set_span_rules(SpanRules { share: collector.share.unwrap_or(1.0), dimensions });
    processing.set(collector.pipelines);
}

/// Puts what processors did into the own metrics.
pub(crate) fn publish(processing: &Processing, ingest: &Ingest) {
    let t = ingest.telemetry();
    for d in processing.done() {
        let of = [d.processor.as_str()];
        for (signal, n) in &d.dropped {
            t.raise(&format!("otelcol_processor_dropped_{}", signal.items()), &of, *n);
        }
        t.raise("otelcol_processor_errors_total", &of, d.failed);
        if let Some(error) = &d.error {
            tracing::debug!(processor = d.processor, error, "a processor failed over a record");
        }
    }
}
