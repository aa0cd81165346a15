//! What all handlers share.

use crate::admission::Admission;
use crate::loki::{LokiGuard, LokiLimits};
use crate::money::Exports;
use obs_codec::otlp::LiveNaming;
use obs_ingest::{Drifts, Ingest, Purses};
use obs_model::{AppendError, KeepState, Maintain, MemoryPool, TenantId, TimestampNs};
use obs_notify::Dispatcher;
use obs_process::Processing;
use obs_promql::ResultsCache;
use obs_sql::Source;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Bounds of requests and queries.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Request body as sent, and after decompression. Bytes.
    pub body_bytes_max: usize,
    pub decompressed_bytes_max: usize,
    /// The same two of tenants with limits of their own.
    pub own_bytes_max: HashMap<TenantId, (usize, usize)>,
    pub query_timeout: Duration,
    pub query_samples_max: i64,
    pub query_bytes_max: i64,
    pub query_concurrency: usize,
    /// How long a query may wait for its turn.
    pub query_queue: Duration,
    /// Steps of a range query.
    pub query_points_max: i64,
    /// Results of range queries that are kept; zero keeps none. Bytes.
    pub results_cache_bytes: u64,
    /// Memory of all requests that write. Bytes.
    pub ingest_bytes_max: usize,
    /// By how much spans are moved where machines' clocks differ, at most; zero leaves them.
    pub clock_skew_max_ns: i64,
    pub loki: LokiLimits,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            body_bytes_max: 16 << 20,
            decompressed_bytes_max: 64 << 20,
            own_bytes_max: HashMap::new(),
            query_timeout: Duration::from_secs(30),
            query_samples_max: 50_000_000,
            query_bytes_max: 512 << 20,
            query_concurrency: 8,
            query_queue: Duration::from_secs(10),
            query_points_max: 11_000,
            results_cache_bytes: 0,
            ingest_bytes_max: 512 << 20,
            clock_skew_max_ns: 0,
            loki: LokiLimits::default(),
        }
    }
}

impl ServerLimits {
    /// Returns the most bytes of any tenant's request, expanded; each request is held to its own
    /// tenant's.
    pub(crate) fn expanded_bytes_max(&self) -> usize {
        let own = self.own_bytes_max.values().map(|(_, expanded)| *expanded);
        own.fold(self.decompressed_bytes_max, usize::max)
    }

    /// Returns the most bytes of a tenant's request, as sent and expanded.
    pub(crate) fn bytes_of(&self, tenant: &TenantId) -> (usize, usize) {
        let all = (self.body_bytes_max, self.decompressed_bytes_max);
        self.own_bytes_max.get(tenant).copied().unwrap_or(all)
    }
}

/// Whether requests that delete data are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminApi {
    Off,
    /// Only to programs on this machine; not to web pages of other sites.
    Local,
    On,
}

/// What collects and evaluates on its own.
#[derive(Debug, Clone)]
pub struct Workers {
    pub scrape: obs_collect::manager::Manager,
    pub rules: Arc<obs_rules::driver::Manager>,
    pub alertmanagers: obs_collect::alertmanagers::Alertmanagers,
    /// How OTLP metrics become series.
    pub naming: LiveNaming,
    /// How PromQL is read and evaluated.
    pub promql: obs_promql::Dialect,
}

type Clock = Arc<dyn Fn() -> TimestampNs + Send + Sync>;
type Probe = Arc<dyn Fn() -> Result<(), AppendError> + Send + Sync>;
type Quit = Arc<dyn Fn() + Send + Sync>;
type Reload = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Handles to everything a handler may use, of one listener; cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState {
    /// Whether data may be deleted over this listener.
    pub admin_api: AdminApi,
    shared: Arc<Shared>,
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// What all listeners have in common.
pub struct Shared {
    pub source: Arc<dyn Source>,
    pub store: Arc<dyn Maintain>,
    pub ingest: Ingest,
    /// What records pass through before they are stored.
    pub processing: Processing,
    /// Budgets in force.
    pub purses: Purses,
    pub drifts: Drifts,
    /// Alerts, silences and who is told.
    pub alerting: Dispatcher,
    pub control: Arc<dyn KeepState>,
    /// Held while the price book is extended.
    pub(crate) prices_turn: Arc<tokio::sync::Mutex<()>>,
    pub limits: Arc<ServerLimits>,
    pub(crate) loki: LokiGuard,
    pub version: &'static str,
    pub started: TimestampNs,
    /// Wall clock.
    pub clock: Clock,
    /// Whether the store takes writes, and if not why.
    pub probe: Probe,
    /// Re-reads the configuration.
    pub reload: Reload,
    pub draining: Arc<AtomicBool>,
    pub workers: Workers,
    /// Ends the process as SIGTERM does, when that is allowed over HTTP.
    pub quit: Option<Quit>,
    /// The command line's settings, for the API that shows them.
    pub flags: Arc<Vec<(String, String)>>,
    /// Files of calls and entries that are made in the background.
    pub(crate) exports: Arc<Exports>,
    /// Folder of the copies that the API makes.
    pub snapshots: Arc<Path>,
    /// The configuration in force, secrets removed, as YAML.
    pub config_text: Arc<str>,
    pub(crate) gate: Arc<Semaphore>,
    pub(crate) memory: Arc<MemoryPool>,
    pub(crate) results: ResultsCache,
    pub(crate) admission: Arc<Admission>,
    /// Threads that decode and store what requests bring, and evaluate what they ask.
    pub(crate) work: Handle,
}

impl Shared {
    /// Returns what control state keeps of a tenant in a space whose keys begin with the tenant and a
    /// line break; what cannot be read is left out.
    pub(crate) fn kept_of<T: DeserializeOwned>(
        &self,
        space: &str,
        tenant: &TenantId,
    ) -> Vec<(String, T)> {
        let prefix = format!("{tenant}\n");
        let all = self.control.list(space).into_iter().filter(|(k, _)| k.starts_with(&prefix));
        all.filter_map(|(k, v)| Some((k, serde_json::from_slice(&v).ok()?))).collect()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What the binary supplies to build an [`AppState`].
pub struct Parts {
    pub source: Arc<dyn Source>,
    pub store: Arc<dyn Maintain>,
    /// What queries and requests that write draw from, with everything else in the process.
    pub memory: Arc<MemoryPool>,
    pub admin_api: AdminApi,
    pub ingest: Ingest,
    pub processing: Processing,
    pub purses: Purses,
    pub drifts: Drifts,
    pub alerting: Dispatcher,
    pub control: Arc<dyn KeepState>,
    pub limits: ServerLimits,
    pub version: &'static str,
    pub clock: Clock,
    pub probe: Probe,
    pub reload: Reload,
    pub config_text: String,
    pub workers: Workers,
    pub quit: Option<Quit>,
    pub flags: Vec<(String, String)>,
    pub snapshots: PathBuf,
    pub exports: PathBuf,
    /// Threads that decode and store what requests bring, and evaluate what they ask.
    pub work: Handle,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

impl AppState {
    pub fn new(p: Parts) -> Self {
        let gate = Arc::new(Semaphore::new(p.limits.query_concurrency));
        let started = (p.clock)();
        let admission = Admission::new(p.memory.clone(), p.limits.ingest_bytes_max);
        let results = ResultsCache::new(p.limits.results_cache_bytes, &p.memory);
        let shared = Shared {
            source: p.source,
            store: p.store,
            ingest: p.ingest,
            exports: Arc::new(Exports::new(p.exports, p.control.clone())),
            processing: p.processing,
            purses: p.purses,
            drifts: p.drifts,
            alerting: p.alerting,
            control: p.control,
            prices_turn: Arc::default(),
            loki: LokiGuard::new(p.limits.loki.clone()),
            limits: Arc::new(p.limits),
            version: p.version,
            started,
            clock: p.clock,
            probe: p.probe,
            reload: p.reload,
            draining: Arc::new(AtomicBool::new(false)),
            workers: p.workers,
            quit: p.quit,
            flags: Arc::new(p.flags),
            snapshots: p.snapshots.into(),
            config_text: p.config_text.into(),
            gate,
            results,
            memory: p.memory,
            admission: Arc::new(admission),
            work: p.work,
        };
        Self { admin_api: p.admin_api, shared: Arc::new(shared) }
    }

    pub(crate) fn now(&self) -> TimestampNs {
        (self.clock)()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
