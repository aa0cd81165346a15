//! `observatory serve`: builds everything in order, runs, and stops it in reverse.

use crate::alerting;
use crate::cli::{ServeArgs, UsageError, VERSION, say};
use crate::collector::{self, LoadedCollector};
use crate::config::{self, Address, Config};
use crate::demo;
use crate::prometheus::{FanOut, Running};
use crate::sampling;
use crate::tier;
use anyhow::{Context as _, Result};
use obs_ingest::{DriftAsk, Drifts, Ingest, PurseError, Purses, Telemetry};
use obs_model::{Append as _, AppendError, MemoryPool, TenantId, TimestampNs, WriteBatch};
use obs_process::Processing;
use obs_promql::Dialect;
use obs_server::state::Parts;
use obs_server::{
    AdminApi, AppState, Listener, RuleEngine, Transport, router, run_written_rules,
    serve_collector, serve_grpc, serve_query, serve_udp, stored_prices,
};
use obs_storage::Store;
use obs_storage::vfs::OsVfs;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long open requests may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);
/// Interval of the derived LLM series, and of the own metrics.
const DERIVE: Duration = Duration::from_secs(5);
/// Interval at which tail sampling decides.
const DECIDE: Duration = Duration::from_secs(1);
const SELF_SCRAPE: Duration = Duration::from_secs(15);
/// Interval at which models are checked for drift.
const DRIFT: Duration = Duration::from_secs(6 * 3600);
/// Interval at which expired data is dropped.
const RETAIN: Duration = Duration::from_secs(60);

/// Returns the time of day; the only clock that labels data.
#[expect(clippy::disallowed_methods, reason = "the one clock that all others are handed")]
pub(crate) fn wall_clock() -> TimestampNs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimestampNs::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

fn init_logging() {
    let level = config::environment("LOG_LEVEL").unwrap_or_else(|| "info".into());
    let filter = tracing_subscriber::EnvFilter::try_new(level)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second initialisation, in tests, changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}

/// Sets what holds for the whole process.
fn prepare_process() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Buffers come and go with requests: clearing 2 MiB for a few KiB cost a third of the CPU time
    // of ingest, and kept twice the memory.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Each segment is an open file.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

pub(crate) fn run(a: &ServeArgs) -> Result<ExitCode> {
    init_logging();
    prepare_process();
    let flags = a
        .listen
        .iter()
        .map(|l| config::listen_flag(l))
        .collect::<Result<Vec<_>, _>>()
        .map_err(UsageError)?;
    let (file, data, listen) = (a.config.clone(), a.data.clone(), flags);
    let features = a.enable_feature.clone();
    let load = move || {
        let mut config =
            config::load(file.as_deref(), data.as_deref(), &listen, &config::environment)?;
        config.prometheus.enable(&features);
        Ok(config)
    };
    let config = load()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    // Decoding takes milliseconds a request, a query more: on the threads that read requests, all
    // others would wait.
    let work = tokio::runtime::Builder::new_multi_thread()
        .thread_name("work")
        .on_thread_start(obs_storage::give_way)
        .enable_all()
        .build()
        .context("failed to start the threads that work")?;
    let options = ServeOptions {
        demo: a.demo,
        quit_over_http: a.enable_lifecycle,
        again: Arc::new(load),
        work: work.handle().clone(),
    };
    runtime.block_on(serve(config, options))?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    work.shutdown_timeout(Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}

/// How the server runs, apart from its configuration.
struct ServeOptions {
    demo: bool,
    /// Whether `/-/quit` ends the process.
    quit_over_http: bool,
    /// Reads the configuration again.
    again: Arc<dyn Fn() -> Result<Config, config::ConfigError> + Send + Sync>,
    /// Threads that decode and store what requests bring, and evaluate what they ask.
    work: Handle,
}

async fn serve(config: Config, options: ServeOptions) -> Result<()> {
    let dir = config.store.dir.clone();
    let mut signals = Signals::new()?;
    let sockets = bind(&config).await?;
    let store = tokio::select! {
        opened = open_behind(&sockets, &config) => opened?,
        // What was read so far is in the log still.
        () = signals.end() => return Ok(()),
    };
    report_recovery(&store);
    for note in &config.notes {
        tracing::warn!("loki: {note}");
    }
    let telemetry = Telemetry::new().context("failed to register metrics")?;
    let fan_out = Arc::new(FanOut::new(Arc::new(store.clone()), dir.join("remote")));
    let control = store.control();
    let prices = stored_prices(&*control, config.prices()?).map_err(UsageError)?;
    let ingest = Ingest::new(fan_out.clone(), config.ingest.clone(), prices, telemetry);
    ingest.keep_attributes(config.call_attributes.iter().cloned());
    ingest.exemplars().keep_in(control.clone());
    let purses = Purses::new(control.clone(), ingest.clone());
    let drifts = Drifts::new(control.clone(), ingest.clone());
    let (loading, from) = (purses.clone(), store.clone());
    tokio::task::spawn_blocking(move || loading.load(&from, wall_clock()))
        .await
        .context("failed to load the budgets")?
        .context("failed to load the budgets")?;
    let external_url = external_url(&sockets);
    let page_url =
        config.alerting.external_url.clone().or_else(|| address_of(&sockets, Listener::Ui));
    let page_url = page_url.unwrap_or_default();
    let shared = config.control.open();
    let alerting = alerting::start(config.alerting.load()?, control.clone(), shared, &page_url);
    let alerting = alerting.map_err(UsageError)?;
    let promql = Dialect::default();
    let engine = RuleEngine {
        promql: promql.clone(),
        source: Arc::new(store.clone()),
        tenant: TenantId::default(),
        memory: config.store.memory.clone(),
        samples_max: config.server.query_samples_max,
        bytes_max: config.server.query_bytes_max,
        timeout: config.server.query_timeout,
        runtime: Handle::current(),
    };
    let processing = Processing::default();
    let engine = Arc::new(engine);
    let running =
        Running::new(&ingest, &processing, fan_out, engine, &dir, alerting.clone(), promql);
    let LoadedCollector { collector, tail: tail_of_collector, scrape } = config.collector.load()?;
    let loaded = config.prometheus.load(&external_url, scrape)?;
    let tail = config.tailing.load()?;
    ingest.sampling().set(config.sampling.load()?);
    let tail_sampling = config.sampling.tail(tail_of_collector).map_err(UsageError)?;
    sampling::restore_undecided(&store, &ingest, tail_sampling.as_ref())?;
    ingest.set_tail(tail_sampling);
    collector::apply(collector, &processing, &ingest);
    let quit = CancellationToken::new();
    let state = AppState::new(Parts {
        source: Arc::new(store.clone()),
        store: Arc::new(store.clone()),
        memory: config.store.memory.clone(),
        admin_api: AdminApi::Off,
        ingest: ingest.clone(),
        processing: processing.clone(),
        purses: purses.clone(),
        drifts: drifts.clone(),
        alerting: alerting.clone(),
        control: control.clone(),
        limits: config.server.clone(),
        work: options.work.clone(),
        version: VERSION,
        clock: Arc::new(wall_clock),
        probe: {
            let store = store.clone();
            Arc::new(move || store.check_writable())
        },
        reload: {
            let (ingest, running, again) = (ingest.clone(), running.clone(), options.again.clone());
            let processing = processing.clone();
            let (control, alerting) = (control.clone(), alerting.clone());
            let runtime = Handle::current();
            Arc::new(move || {
                let fresh = again().map_err(|e| e.to_string())?;
                let prices = fresh.prices().map_err(|e| e.to_string())?;
                let prices = stored_prices(&*control, prices)?;
                let collected = fresh.collector.load().map_err(|e| e.to_string())?;
                let loaded = fresh.prometheus.load(&external_url, collected.scrape);
                let loaded = loaded.map_err(|e| e.to_string())?;
                let (notify, outbound) = fresh.alerting.load().map_err(|e| e.to_string())?;
                let tail = fresh.tailing.load().map_err(|e| e.to_string())?;
                let strategies = fresh.sampling.load().map_err(|e| e.to_string())?;
                let tail_sampling = fresh.sampling.tail(collected.tail)?;
                let _entered = runtime.enter();
                alerting.reconfigure(notify, outbound)?;
                running.apply(loaded, &tail)?;
                ingest.set_prices(prices);
                ingest.keep_attributes(fresh.call_attributes.iter().cloned());
                ingest.sampling().set(strategies);
                ingest.set_tail(tail_sampling);
                collector::apply(collected.collector, &processing, &ingest);
                Ok(())
            })
        },
        config_text: config::redact(
            &config.prometheus.text().unwrap_or_else(|| config.text.clone()),
        ),
        workers: running.workers.clone(),
        quit: options.quit_over_http.then(|| {
            let quit = quit.clone();
            Arc::new(move || quit.cancel()) as Arc<dyn Fn() + Send + Sync>
        }),
        flags: flags_of(&config, &options),
        snapshots: dir.join("snapshots"),
        exports: dir.join("exports"),
    });
    run_written_rules(&state);
    running.apply(loaded, &tail).map_err(UsageError)?;
    state.resume_exports();
    publish_limits(&config, ingest.telemetry());
    tokio::spawn(alerting.clone().run());
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let endpoints = listen(sockets, &config, &state, &stop, &mut tasks)?;
    tasks.spawn(tick(
        store.clone(),
        config.store.memory.clone(),
        ingest.clone(),
        (purses, drifts),
        running.clone(),
        instance(&endpoints),
        stop.clone(),
    ));
    if config.tier.is_some() {
        tasks.spawn(tier::run(store.clone(), stop.clone()));
    }
    if let Err(e) = write_endpoints(&dir, &endpoints) {
        // A full disk must not keep what is there from being read.
        tracing::error!(error = format!("{e:#}"), "the addresses are on standard output alone");
    }
    for (name, address) in &endpoints {
        say(&format!("{name:<21} {address}"));
    }
    if let Some(ui) = endpoints.get(Listener::Ui.name()) {
        say(&format!("open http://{ui}/"));
    }
    if options.demo {
        let otlp = endpoints.get(Listener::OtlpHttp.name()).or(endpoints.get(Listener::Ui.name()));
        let address = *otlp.context("--demo needs the otlp-http or the ui listener")?;
        tasks.spawn(demo::run(address, stop.clone()));
    }
    tokio::select! {
        () = signals.wait(&state) => {}
        () = quit.cancelled() => {}
    }
    tracing::info!("draining");
    running.stop().await;
    alerting.stop().await;
    state.draining.store(true, Ordering::Relaxed);
    stop.cancel();
    let drained =
        tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("open requests were cut off after {} s", DRAIN.as_secs());
        tasks.shutdown().await;
    }
    // What was counted since the last tick.
    if let Err(e) = ingest.tick(wall_clock().to_millis()).await {
        tracing::warn!(error = %e, "last derived series were not stored");
    }
    tokio::task::spawn_blocking(move || store.close())
        .await
        .context("failed to close the store")?;
    let _ = std::fs::remove_file(dir.join("endpoints.json"));
    Ok(())
}

fn address_of(sockets: &Sockets, listener: Listener) -> Option<String> {
    let socket = sockets.iter().find(|s| s.0 == listener)?;
    socket.1.address().ok().map(|a| format!("http://{a}"))
}

/// Address of the page, for links in alerts.
fn external_url(sockets: &Sockets) -> String {
    let of = |listener| address_of(sockets, listener);
    of(Listener::Prometheus).or_else(|| of(Listener::Ui)).unwrap_or_default()
}

/// The settings as Prometheus names its flags.
fn flags_of(config: &Config, options: &ServeOptions) -> Vec<(String, String)> {
    let file = config.prometheus.config_file.as_ref();
    let server = &config.server;
    let address = |l: Listener| match config.listen.iter().find(|x| x.0 == l) {
        Some((_, Address::At(a))) => a.to_string(),
        _ => String::new(),
    };
    [
        ("config.file", file.map_or_else(String::new, |f| f.display().to_string())),
        ("query.max-concurrency", server.query_concurrency.to_string()),
        ("query.max-samples", server.query_samples_max.to_string()),
        ("query.timeout", format!("{}s", server.query_timeout.as_secs())),
        ("storage.tsdb.path", config.store.dir.display().to_string()),
        ("web.enable-admin-api", (config.admin_api != Some(false)).to_string()),
        ("web.enable-lifecycle", options.quit_over_http.to_string()),
        ("web.enable-remote-write-receiver", "true".into()),
        ("web.listen-address", address(Listener::Prometheus)),
    ]
    .map(|(n, v)| (n.to_owned(), v))
    .to_vec()
}

fn open_store(config: &Config) -> Result<Store> {
    let mut settings = config.store.clone();
    if let Some(tier) = &config.tier {
        let opened = tier.open(Handle::current());
        settings.tier = Some(opened.map_err(UsageError)?);
    }
    Ok(Store::open(settings, Arc::new(OsVfs))?)
}

fn report_recovery(store: &Store) {
    let r = store.recovery();
    if r.bad_frames > 0 || !r.manifest_damage.is_empty() {
        tracing::error!(bad_frames = r.bad_frames, manifest = ?r.manifest_damage, "the data directory is damaged; run `observatory verify`");
    }
    tracing::info!(
        wal_files = r.wal_files,
        wal_bytes = r.wal_bytes,
        batches = r.batches,
        torn_bytes = r.torn_bytes,
        segments = r.segments,
        "store opened"
    );
}

/// Where a listener takes its requests from.
#[derive(Debug)]
enum Socket {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
}

impl Socket {
    async fn bind(address: SocketAddr, transport: Transport) -> std::io::Result<Self> {
        /// Connections that wait to be taken. With the 128 that are usual, a rush of clients has
        /// its first packets dropped, and each of these is sent again only after a second.
        const WAITING: u32 = 4096;
        if transport == Transport::Udp {
            return UdpSocket::bind(address).await?.into_std().map(Self::Udp);
        }
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A server that starts anew must not wait for the connections of the one before.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(WAITING)?.into_std().map(Self::Tcp)
    }

    fn address(&self) -> std::io::Result<SocketAddr> {
        match self {
            Self::Tcp(s) => s.local_addr(),
            Self::Udp(s) => s.local_addr(),
        }
    }
}

type Sockets = Vec<(Listener, Socket)>;

async fn bind(config: &Config) -> Result<Sockets> {
    let mut out = Vec::new();
    for (listener, address) in &config.listen {
        let Address::At(address) = address else { continue };
        let name = listener.name();
        let socket = Socket::bind(*address, listener.transport()).await;
        let socket = socket.with_context(|| format!("failed to listen on {address} for {name}; move it with --listen {name}=HOST:PORT or {name}=off"))?;
        out.push((*listener, socket));
    }
    Ok(out)
}

/// Opens the store. Meanwhile every listener says that the server is alive and not ready: reading a
/// long log takes a while, and whoever looks after the process must not take that for death.
async fn open_behind(sockets: &Sockets, config: &Config) -> Result<Store> {
    /// How long answers that are under way then may take.
    const LINGER: Duration = Duration::from_secs(1);
    let done = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for (_, socket) in sockets {
        // Datagrams wait in the socket meanwhile.
        let Socket::Tcp(socket) = socket else { continue };
        let socket = socket.try_clone().and_then(TcpListener::from_std);
        let socket = socket.context("failed to share a listener")?;
        let server = axum::serve(socket, obs_server::starting());
        tasks.spawn(server.with_graceful_shutdown(done.clone().cancelled_owned()).into_future());
    }
    let config = config.clone();
    let opened = tokio::task::spawn_blocking(move || open_store(&config)).await;
    done.cancel();
    let all = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LINGER, all).await;
    opened.context("failed to open the store")?
}

fn listen(
    sockets: Sockets,
    config: &Config,
    state: &AppState,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<BTreeMap<&'static str, SocketAddr>> {
    let mut endpoints = BTreeMap::new();
    for (listener, socket) in sockets {
        let name = listener.name();
        let address = socket.address().context("failed to read the own address")?;
        endpoints.insert(name, address);
        let (mut state, stop) = (state.clone(), stop.clone());
        state.admin_api = match config.admin_api {
            Some(true) => AdminApi::On,
            None if address.ip().is_loopback() => AdminApi::Local,
            None | Some(false) => AdminApi::Off,
        };
        let socket = match socket {
            Socket::Tcp(socket) => {
                TcpListener::from_std(socket).context("failed to use a listener")?
            }
            Socket::Udp(socket) => {
                let socket = UdpSocket::from_std(socket).context("failed to use a listener")?;
                let compact = listener == Listener::JaegerCompact;
                tasks.spawn(serve_udp(state, socket, compact, stop));
                continue;
            }
        };
        if listener.transport() == Transport::Grpc {
            tasks.spawn(async move {
                let served = match listener {
                    Listener::JaegerGrpc => serve_query(state, socket, stop).await,
                    Listener::JaegerCollectorGrpc => serve_collector(state, socket, stop).await,
                    _ => serve_grpc(state, socket, stop).await,
                };
                if let Err(e) = served {
                    tracing::error!(listener = name, error = %e, "listener failed");
                }
            });
        } else {
            let routes = router(listener, state);
            tasks.spawn(async move {
                let server =
                    axum::serve(socket, routes).with_graceful_shutdown(stop.cancelled_owned());
                if let Err(e) = server.await {
                    tracing::error!(listener = name, error = %e, "listener failed");
                }
            });
        }
    }
    Ok(endpoints)
}

fn instance(endpoints: &BTreeMap<&'static str, SocketAddr>) -> String {
    endpoints
        .get(Listener::Ui.name())
        .or(endpoints.values().next())
        .map_or_else(|| "observatory".into(), ToString::to_string)
}

/// Readers of the file never see half of it.
fn write_endpoints(dir: &Path, endpoints: &BTreeMap<&'static str, SocketAddr>) -> Result<()> {
    let map: serde_json::Map<String, serde_json::Value> =
        endpoints.iter().map(|(n, a)| ((*n).to_owned(), a.to_string().into())).collect();
    let (new, path) = (dir.join("endpoints.json.new"), dir.join("endpoints.json"));
    std::fs::write(&new, serde_json::Value::Object(map).to_string())
        .and_then(|()| std::fs::rename(&new, &path))
        .context("failed to write endpoints.json")
}

/// Emits the derived series and the own metrics until told to stop.
async fn tick(
    store: Store,
    memory: Arc<MemoryPool>,
    ingest: Ingest,
    (purses, drifts): (Purses, Drifts),
    running: Running,
    instance: String,
    stop: CancellationToken,
) {
    let mut derive = tokio::time::interval(DERIVE);
    let mut scrape = tokio::time::interval(SELF_SCRAPE);
    let mut sample = tokio::time::interval(DECIDE);
    let mut retain = tokio::time::interval(RETAIN);
    let mut drift = tokio::time::interval_at(tokio::time::Instant::now() + DRIFT, DRIFT);
    let mut clock = RetentionClock::new(wall_clock());
    loop {
        let result = tokio::select! {
            () = stop.cancelled() => return,
            _ = retain.tick() => {
                drop_expired(&store, clock.now(wall_clock())).await;
                continue;
            }
            _ = sample.tick() => {
                sampling::decide(&store, &ingest).await;
                continue;
            }
            _ = drift.tick() => {
                check_drift(&drifts, &store).await;
                continue;
            }
            _ = derive.tick() => derived(&ingest, &purses, &drifts).await,
            _ = scrape.tick() => {
                publish_usage(&store, &memory, ingest.telemetry());
                running.publish(&ingest);
                let now = wall_clock().to_millis();
                let (mut series, mut metadata) = ingest.telemetry().series(&instance, now);
                let custom = running.tailing.series(now);
                series.extend(custom.0);
                metadata.extend(custom.1);
                store.append(&TenantId::default(), WriteBatch { series, metadata, ..WriteBatch::default() }).await.map(|_| ())
            }
        };
        if let Err(e) = result {
            tracing::warn!(error = %e, "own series were not stored");
        }
    }
}

/// Compares every tenant's latest calls with those before them.
async fn check_drift(drifts: &Drifts, store: &Store) {
    for tenant in drifts.tenants() {
        let (check, source, of) = (drifts.clone(), store.clone(), tenant.clone());
        let work = move || check.check(&of, &source, &DriftAsk::default(), wall_clock());
        let done = match tokio::task::spawn_blocking(work).await {
            Ok(Ok((_, incidents))) => drifts.keep(&tenant, incidents).await,
            Ok(Err(e)) => Err(e),
            Err(e) => Err(PurseError::Busy(e.to_string())),
        };
        if let Err(e) = done {
            tracing::warn!(tenant = %tenant, error = %e, "drift was not checked");
        }
    }
}

/// Emits the series of calls and of budgets, and ends reservations nobody settled.
async fn derived(ingest: &Ingest, purses: &Purses, drifts: &Drifts) -> Result<(), AppendError> {
    let now = wall_clock();
    match purses.expire(now).await {
        Ok(0) => {}
        Ok(n) => tracing::info!(reservations = n, "expired without being settled"),
        Err(e) => tracing::warn!(error = %e, "reservations could not be ended"),
    }
    let all = purses.series(now.to_millis()).into_iter().chain(drifts.series(now.to_millis()));
    for (tenant, series, metadata) in all {
        ingest.emit(&tenant, series, metadata).await?;
    }
    ingest.tick(now.to_millis()).await
}

/// The time by which data expires. A wall clock that jumps ahead would expire everything at once:
/// time that did not pass on the monotonic clock counts only after a day of it.
struct RetentionClock {
    wall: TimestampNs,
    at: Instant,
}

impl RetentionClock {
    /// Larger jumps are held back, for this long.
    const JUMP: Duration = Duration::from_secs(3600);
    const HOLD: Duration = Duration::from_secs(24 * 3600);

    fn new(wall: TimestampNs) -> Self {
        Self { wall, at: Instant::now() }
    }

    fn now(&mut self, wall: TimestampNs) -> TimestampNs {
        self.after(wall, self.at.elapsed())
    }

    fn after(&mut self, wall: TimestampNs, passed: Duration) -> TimestampNs {
        let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        let expected = self.wall.nanos().saturating_add(nanos(passed));
        if wall.nanos() <= expected.saturating_add(nanos(Self::JUMP)) {
            return wall;
        }
        if passed > Self::HOLD {
            *self = Self::new(wall);
            return wall;
        }
        tracing::warn!(clock = %wall, "the clock jumped ahead; nothing expires because of that for a day");
        TimestampNs::from_nanos(expected)
    }
}

async fn drop_expired(store: &Store, now: TimestampNs) {
    let worker = store.clone();
    match tokio::task::spawn_blocking(move || worker.retain(now)).await {
        Ok(Ok(0)) => {}
        Ok(Ok(n)) => tracing::info!(segments = n, "dropped expired data"),
        Ok(Err(e)) => tracing::error!(error = %e, "expired data was not dropped"),
        Err(e) => tracing::error!(error = %e, "expired data was not dropped"),
    }
}

fn publish_limits(config: &Config, t: &Telemetry) {
    let (server, records, store) = (&config.server, &config.ingest.all, &config.store);
    for (name, v) in [
        ("body_bytes", server.body_bytes_max),
        ("decompressed_bytes", server.decompressed_bytes_max),
        ("query_concurrency", server.query_concurrency),
        ("labels_per_series", records.labels_max),
        ("label_name_bytes", records.label_name_bytes_max),
        ("label_value_bytes", records.label_value_bytes_max),
        ("log_line_bytes", records.log_line_bytes_max),
        ("attributes", records.attributes_max),
        ("delta_series", records.delta_series_max),
        ("series", store.series_max),
        ("series_per_tenant", store.tenant_series_max),
        ("head_bytes", store.head_bytes_max),
    ] {
        t.limit.with_label_values(&[name]).set(i64::try_from(v).unwrap_or(i64::MAX));
    }
    t.limit.with_label_values(&["query_samples"]).set(server.query_samples_max);
    t.limit.with_label_values(&["query_bytes"]).set(server.query_bytes_max);
    let results = i64::try_from(server.results_cache_bytes).unwrap_or(i64::MAX);
    t.limit.with_label_values(&["results_cache_bytes"]).set(results);
    t.limit.with_label_values(&["memory_bytes"]).set(store.memory.max());
}

fn publish_usage(store: &Store, memory: &MemoryPool, t: &Telemetry) {
    let (head, queued, segments, series) = store.usage();
    for (kind, v) in [
        ("head_bytes", head),
        ("queue_bytes", queued),
        ("segments", segments),
        ("active_series", series),
    ] {
        t.gauges.with_label_values(&[kind]).set(i64::try_from(v).unwrap_or(i64::MAX));
    }
    t.limit_usage.with_label_values(&["memory_bytes"]).set(memory.used());
    let (columns, columns_max) = store.column_cache();
    let signed = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
    t.limit.with_label_values(&["column_cache_bytes"]).set(signed(columns_max));
    t.limit_usage.with_label_values(&["column_cache_bytes"]).set(signed(columns));
    let own = [("series", series), ("head_bytes", head)];
    for (name, v) in own {
        t.limit_usage.with_label_values(&[name]).set(i64::try_from(v).unwrap_or(i64::MAX));
    }
    let (local, objects, cached) = store.tier_bytes();
    for (kind, v) in
        [("local_bytes", local), ("object_bytes", objects), ("object_cache_bytes", cached)]
    {
        t.gauges.with_label_values(&[kind]).set(i64::try_from(v).unwrap_or(i64::MAX));
    }
    for f in store.take_flushes() {
        t.write_seconds.with_label_values(&["copy", "flush"]).observe(f.time.as_secs_f64());
        t.batch_size.with_label_values(&["copy", "flush"]).observe(f.rows as f64);
    }
    let s = store.stats();
    for (counter, v) in [
        (t.flushes.with_label_values(&["copy", "success"]), &s.flushes),
        (t.flushes.with_label_values(&["copy", "error"]), &s.flush_failures),
        (t.errors.with_label_values(&["flush", "flush"]), &s.flush_failures),
        // Every flush that failed is tried again.
        (t.retries.with_label_values(&["flush"]), &s.flush_failures),
    ] {
        counter.inc_by(v.load(Ordering::Relaxed).saturating_sub(counter.get()));
    }
    let objects = store.tier_stats().map(|o| {
        [
            ("object_segments_moved", &o.moved),
            ("object_bytes_moved", &o.moved_bytes),
            ("object_requests", &o.requests),
            ("object_failures", &o.failures),
            ("object_bytes_read", &o.read_bytes),
            ("object_cache_hits", &o.hits),
            ("object_cache_misses", &o.misses),
        ]
    });
    let own = [
        ("wal_syncs", &s.wal_syncs),
        ("wal_bytes", &s.wal_bytes),
        ("wal_failures", &s.wal_failures),
        ("flushes", &s.flushes),
        ("refused", &s.refused),
        ("flush_failures", &s.flush_failures),
        ("merges", &s.merges),
        ("merged_bytes", &s.merged_bytes),
        ("segments_dropped", &s.segments_dropped),
        ("damaged_reads", &s.damaged_reads),
        ("names_dropped", &s.names_dropped),
    ];
    for (kind, v) in own.into_iter().chain(objects.into_iter().flatten()) {
        let counter = t.counters.with_label_values(&[kind]);
        counter.inc_by(v.load(Ordering::Relaxed).saturating_sub(counter.get()));
    }
}

/// Returns on SIGTERM or SIGINT; SIGHUP reloads.
/// The signals that end or reload the server. Made before anybody is told that it runs: the
/// default action of a signal that comes too early would be to die.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let install = |kind| signal(kind).context("failed to listen for signals");
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
            reload: install(SignalKind::hangup())?,
        })
    }

    /// Returns when the server is to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Reloads as often as asked, and returns when the server is to end.
    async fn wait(mut self, state: &AppState) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.reload.recv() => match (state.reload)() {
                    Ok(()) => tracing::info!("configuration reloaded"),
                    Err(e) => tracing::error!(error = %e, "configuration was not reloaded; the old one stays"),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_ahead_expires_nothing_for_a_day() {
        let at = |s: i64| TimestampNs::from_nanos(s * 1_000_000_000);
        let mut clock = RetentionClock::new(at(0));
        assert_eq!(clock.after(at(60), Duration::from_secs(60)), at(60));
        assert_eq!(clock.after(at(-500), Duration::from_secs(60)), at(-500));
        assert_eq!(clock.after(at(900_000), Duration::from_secs(120)), at(120));
        assert_eq!(clock.after(at(986_400), Duration::from_secs(86_401)), at(986_400));
    }
}
