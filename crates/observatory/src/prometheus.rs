//! What `prometheus.yml`, rule files and rule packs set going: scraping, rules, alerts sent on.

use crate::config::{ConfigError, environment, expand};
use crate::notifier::Notifier;
use crate::serve::wall_clock;
use crate::tailing::{LoadedTailing, Tailing};
use obs_codec::otlp::LiveNaming;
use obs_collect::alertmanagers::Alertmanagers;
use obs_collect::config::PrometheusConfig;
use obs_collect::http::HttpClient;
use obs_collect::remote::{Config as RemoteWrite, Counts, Remote};
use obs_collect::{Batch, Sink, SinkFuture};
use obs_ingest::Ingest;
use obs_model::{Append, AppendFuture, Labels, TenantId, WriteBatch};
use obs_notify::Dispatcher;
use obs_process::Processing;
use obs_promql::{Dialect, Features};
use obs_rules::driver::{Environment, Manager};
use obs_rules::file::RuleGroup;
use obs_rules::group::Options;
use obs_rules::{Engine, packs};
use obs_server::Workers;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawPrometheus {
    config_file: Option<PathBuf>,
    rule_files: Vec<String>,
    /// Files of objectives.
    slo_files: Vec<String>,
    external_url: Option<String>,
    /// How far back an instant selector looks for a sample.
    lookback_delta: Option<String>,
    /// Parts of PromQL, by the names of Prometheus' `--enable-feature`.
    features: BTreeMap<String, bool>,
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
    slo_files: Vec<String>,
    external_url: Option<String>,
    packs: Vec<String>,
    /// The step of subqueries is prometheus.yml's.
    pub(crate) promql: obs_promql::Settings,
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
        let mut promql = obs_promql::Settings::default();
        if let Some(text) = &raw.lookback_delta {
            let ms = obs_promql::duration::parse_ms(text).filter(|ms| *ms > 0);
            promql.lookback_ms = ms.ok_or_else(|| {
                format!("prometheus.lookback_delta: {text:?} is no duration; write 5m")
            })?;
        }
        for (name, on) in &raw.features {
            if !promql.features.set(name, *on) {
                let known = Features::NAMES.join(", ");
                return Err(format!(
                    "prometheus.features: there is no {name:?}, there are {known}"
                ));
            }
        }
        Ok(Self {
            config_file: raw.config_file.map(|f| base.join(f)),
            rule_files: raw.rule_files,
            slo_files: raw.slo_files,
            external_url: raw.external_url,
            packs,
            promql,
            base: base.to_owned(),
        })
    }
}

/// Everything the files say, read and checked.
pub(crate) struct Loaded {
    config: PrometheusConfig,
    groups: Vec<(String, Vec<RuleGroup>)>,
    options: Options,
    promql: obs_promql::Settings,
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

/// Reads a file of objectives; one that is wrong stops all of the file.
pub(crate) fn read_slos(file: &Path) -> Result<obs_rules::file::RuleFile, ConfigError> {
    let fail =
        |message: String| ConfigError { file: file.display().to_string(), place: None, message };
    let text = std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    obs_rules::slo::rules(&text).map_err(fail)
}

impl Settings {
    /// Switches features on by the names of Prometheus' command line; what is no part of PromQL has
    /// no effect here, and Prometheus starts with names that it does not know too.
    pub(crate) fn enable(&mut self, names: &[String]) {
        for name in names {
            if !self.promql.features.set(name, true) {
                tracing::warn!("--enable-feature: {name:?} is no part of PromQL");
            }
        }
    }

    /// Returns prometheus.yml as it is, if there is one.
    pub(crate) fn text(&self) -> Option<String> {
        std::fs::read_to_string(self.config_file.as_ref()?).ok()
    }

    /// Reads and checks all files.
    /// `more` is scraped beside what prometheus.yml names.
    pub(crate) fn load(
        &self,
        external_url: &str,
        more: Option<PrometheusConfig>,
    ) -> Result<Loaded, ConfigError> {
        let config = match (&self.config_file, more) {
            (Some(f), Some(more)) => joined(read_config(f)?, more),
            (Some(f), None) => read_config(f)?,
            (None, more) => more.unwrap_or_default(),
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
        for pattern in &self.slo_files {
            for path in obs_collect::config::expand(&self.base, pattern) {
                let file = read_slos(&path)?;
                groups.push((path.display().to_string(), file.groups));
            }
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
        let promql = obs_promql::Settings { default_step_ms: options.interval_ms, ..self.promql };
        Ok(Loaded { config, groups, options, promql })
    }
}

/// Adds jobs of another file; what its `global` section says of them they keep.
fn joined(mut config: PrometheusConfig, more: PrometheusConfig) -> PrometheusConfig {
    for mut job in more.scrape_configs.clone() {
        let (interval, timeout) = more.timing(&job);
        job.scrape_interval = Some(obs_collect::config::Span(interval));
        job.scrape_timeout = Some(obs_collect::config::Span(timeout));
        config.scrape_configs.push(job);
    }
    config
}

/// Hands scraped samples to the write path.
struct IngestSink {
    processing: Processing,
    ingest: Ingest,
    tenant: TenantId,
}

impl Sink for IngestSink {
    fn admit(&self, labels: &Labels) -> Result<(), String> {
        self.ingest.admit(&self.tenant, labels)
    }

    fn write(&self, batch: Batch) -> SinkFuture<'_> {
        Box::pin(async move {
            self.ingest.exemplars().add(&self.tenant, batch.exemplars).await;
            if batch.points.is_empty() {
                return Ok(());
            }
            let points = self.processing.get().samples(batch.points);
            let done = self
                .ingest
                .metrics(&self.tenant, points, Vec::new(), batch.metadata, wall_clock())
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

/// Sends what the store took on to other systems.
#[derive(Debug)]
pub(crate) struct FanOut {
    store: Arc<dyn Append>,
    remotes: RwLock<Vec<(RemoteWrite, Arc<Remote>)>>,
    folder: PathBuf,
    /// Ends the senders of the configuration in force.
    stop: Mutex<(CancellationToken, Vec<JoinHandle<()>>)>,
}

impl FanOut {
    pub(crate) fn new(store: Arc<dyn Append>, folder: PathBuf) -> Self {
        Self { store, remotes: RwLock::default(), folder, stop: Mutex::default() }
    }

    fn update(&self, c: &PrometheusConfig) -> Result<(), String> {
        let mut fresh = Vec::new();
        for w in &c.remote_write {
            let client =
                HttpClient::new(&w.http, &c.folder).map_err(|e| format!("{}: {e}", w.url))?;
            fresh.push((w.clone(), client));
        }
        let mut running = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        let mut remotes = self.remotes.write().unwrap_or_else(PoisonError::into_inner);
        let before: Vec<&RemoteWrite> = remotes.iter().map(|r| &r.0).collect();
        if before == c.remote_write.iter().collect::<Vec<_>>() {
            return Ok(());
        }
        running.0.cancel();
        remotes.iter().for_each(|(_, r)| r.flush());
        *running = (CancellationToken::new(), Vec::new());
        remotes.clear();
        for (w, client) in fresh {
            let remote = Arc::new(Remote::new(&w, &c.global.external_labels, &self.folder)?);
            let run = remote.clone().run(client, running.0.clone());
            running.1.push(tokio::spawn(run));
            remotes.push((w, remote));
        }
        Ok(())
    }

    async fn stop(&self) {
        let (token, tasks) =
            std::mem::take(&mut *self.stop.lock().unwrap_or_else(PoisonError::into_inner));
        token.cancel();
        for t in tasks {
            let _ = t.await;
        }
    }
}

impl Append for FanOut {
    fn append<'a>(&'a self, tenant: &'a TenantId, batch: WriteBatch) -> AppendFuture<'a> {
        let remotes: Vec<Arc<Remote>> = {
            let all = self.remotes.read().unwrap_or_else(PoisonError::into_inner);
            all.iter().map(|r| r.1.clone()).collect()
        };
        // Only metrics of the default tenant are sent on.
        let is_sent = !remotes.is_empty() && *tenant == TenantId::default();
        if !is_sent || (batch.points.is_empty() && batch.series.is_empty()) {
            return self.store.append(tenant, batch);
        }
        Box::pin(async move {
            let mut points = batch.points.clone();
            for s in &batch.series {
                points.extend(s.samples.iter().map(|x| (s.labels.clone(), x.clone())));
            }
            let metadata = batch.metadata.clone();
            let done = self.store.append(tenant, batch).await?;
            let push = move || remotes.iter().for_each(|r| r.push(&points, &metadata));
            let _ = tokio::task::spawn_blocking(push).await;
            Ok(done)
        })
    }
}

/// The parts that run, and how they take new files.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) workers: Workers,
    notifier: Arc<Notifier>,
    fan_out: Arc<FanOut>,
    pub(crate) tailing: Tailing,
    alerting: Dispatcher,
    processing: Processing,
}

impl Running {
    pub(crate) fn new(
        ingest: &Ingest,
        processing: &Processing,
        fan_out: Arc<FanOut>,
        engine: Arc<dyn Engine>,
        data: &Path,
        alerting: Dispatcher,
        promql: Dialect,
    ) -> Self {
        let tenant = TenantId::default();
        let processing = processing.clone();
        let sink = IngestSink {
            processing: processing.clone(),
            ingest: ingest.clone(),
            tenant: tenant.clone(),
        };
        let scrape = obs_collect::manager::Manager::new(Arc::new(sink), Arc::new(clock_ms));
        let alertmanagers = Alertmanagers::default();
        let notifier = Arc::new(Notifier::new(alerting.clone(), alertmanagers.clone()));
        let rules = Manager::new(Environment {
            engine,
            append: fan_out.clone(),
            tenant,
            sink: Some(notifier.clone()),
            clock: Arc::new(clock_ms),
        });
        let tailing = Tailing::new(ingest, data);
        let naming = LiveNaming::default();
        let workers = Workers { scrape, rules: Arc::new(rules), alertmanagers, naming, promql };
        Self { workers, notifier, fan_out, tailing, alerting, processing }
    }

    /// Puts what was loaded in force.
    pub(crate) fn apply(&self, loaded: Loaded, tail: &LoadedTailing) -> Result<(), String> {
        self.tailing.apply(tail)?;
        self.notifier.update(&loaded.config, &loaded.options.external_url)?;
        self.fan_out.update(&loaded.config)?;
        self.workers.promql.set(loaded.promql);
        self.workers.naming.set(loaded.config.otlp.naming());
        self.workers.scrape.update(loaded.config)?;
        self.workers.rules.update(&loaded.groups, &loaded.options);
        Ok(())
    }

    /// Puts what was counted into the own metrics.
    pub(crate) fn publish(&self, ingest: &Ingest) {
        self.tailing.publish(ingest);
        crate::collector::publish(&self.processing, ingest);
        crate::alerting::publish(&self.alerting, ingest.telemetry());
        let t = ingest.telemetry();
        let rules = &self.workers.rules.counts;
        let remotes = self.fan_out.remotes.read().unwrap_or_else(PoisonError::into_inner);
        let sum = |part: fn(&Counts) -> &AtomicU64| {
            remotes.iter().map(|r| part(&r.1.counts).load(Ordering::Relaxed)).sum::<u64>()
        };
        for (name, total) in [
            ("prometheus_rule_evaluations_total", rules.evaluations.load(Ordering::Relaxed)),
            ("prometheus_rule_evaluation_failures_total", rules.failures.load(Ordering::Relaxed)),
            ("prometheus_rule_group_iterations_total", rules.iterations.load(Ordering::Relaxed)),
            ("prometheus_rule_group_iterations_missed_total", rules.missed.load(Ordering::Relaxed)),
            ("prometheus_remote_storage_samples_total", sum(|c| &c.sent)),
            ("prometheus_remote_storage_samples_dropped_total", sum(|c| &c.dropped)),
            ("prometheus_remote_storage_retries_total", sum(|c| &c.retried)),
        ] {
            t.raise(name, &[], total);
        }
        let none: [&str; 0] = [];
        let kept = i64::try_from(ingest.exemplars().len()).unwrap_or(i64::MAX);
        t.exemplars.with_label_values(&none).set(kept);
    }

    pub(crate) async fn stop(&self) {
        self.tailing.stop().await;
        self.workers.scrape.stop().await;
        self.workers.rules.stop().await;
        self.fan_out.stop().await;
    }
}
