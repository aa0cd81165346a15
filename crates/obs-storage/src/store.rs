//! The store: its configuration, shared state, and life from opening to closing.

use crate::background;
use crate::batch::Batch;
use crate::flush::Maker;
use crate::frame::Records;
use crate::head::{Frozen, Head};
use crate::manifest::{self, Edit, Manifest, Tombstone};
use crate::recover;
use crate::retention::RetentionRule;
use crate::segment::kept::Kept;
use crate::segment::{Operations, Signal};
use crate::segments::{OpenSegment, Tombstones};
use crate::state::StateStore;
use crate::tier::{self, Remote, Tier, TierConfig, TierStats};
use crate::vfs::Vfs;
use crate::wal::WalFile;
use crate::writer::{Command, Pending, Writer};
use obs_model::{
    Append, AppendError, AppendFuture, Changes, DeleteScope, KeepState, Labels, MemoryPool,
    MemoryShare, MetricMetadata, Sample, SampleValue, TenantId, TimestampMs, TimestampNs,
    WriteBatch,
};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How a store is set up. Sizes are bytes.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub dir: PathBuf,
    /// The head is flushed to segments when it reaches this.
    pub head_bytes_max: usize,
    /// While the log is read at start, the head is flushed when it reaches this: more than
    /// `head_bytes_max` where there is memory, so that the flush need not be waited for.
    pub replay_bytes_max: usize,
    /// Writes waiting for the log; beyond it writes are refused as overload.
    pub queue_bytes_max: usize,
    /// A log file is closed at this size.
    pub wal_file_bytes_max: u64,
    /// Writes are refused while less than this is free on the disk.
    pub disk_reserve_bytes: u64,
    /// Active series of the process and of one tenant; new ones beyond are refused.
    pub series_max: usize,
    pub tenant_series_max: usize,
    /// Of tenants with a limit of their own.
    pub own_series_max: BTreeMap<TenantId, usize>,
    /// Segments that a merge makes at most; none is made larger.
    pub segment_bytes_max: u64,
    /// Work of merges and retention, as a share of one core.
    pub background_share: f64,
    pub retention: Vec<RetentionRule>,
    /// What the head, flushes and merges draw from, with everything else in the process.
    pub memory: Arc<MemoryPool>,
    /// An object store for older segments.
    pub tier: Option<TierConfig>,
    /// No threads: every write, flush and merge happens on the caller's. For simulations, in
    /// which the same calls must always do the same.
    pub inline: bool,
}

impl StoreConfig {
    pub(crate) fn series_of(&self, tenant: &TenantId) -> usize {
        self.own_series_max.get(tenant).copied().unwrap_or(self.tenant_series_max)
    }

    /// Returns the defaults for a data directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            head_bytes_max: 16 << 20,
            replay_bytes_max: 64 << 20,
            queue_bytes_max: 32 << 20,
            wal_file_bytes_max: 64 << 20,
            disk_reserve_bytes: 1 << 30,
            series_max: 1_500_000,
            tenant_series_max: 1_000_000,
            own_series_max: BTreeMap::new(),
            segment_bytes_max: 512 << 20,
            background_share: 0.5,
            retention: Vec::new(),
            memory: Arc::new(MemoryPool::unlimited()),
            tier: None,
            inline: false,
        }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data directory {path} is in use by another process")]
    Locked { path: PathBuf },
    #[error("failed to open {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{path} was written by a version from before the first release; start with an empty data directory"
    )]
    Old { path: PathBuf },
}

/// What opening found. Damage is kept on disk; nothing is deleted to be able to start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub wal_files: u64,
    pub wal_bytes: u64,
    pub batches: u64,
    /// Frames that were skipped because their checksum failed or they did not decode.
    pub bad_frames: u64,
    /// Bytes at the ends of log files that no whole frame covers: writes cut short by a crash,
    /// which were never acknowledged, or damage.
    pub torn_bytes: u64,
    pub segments: u64,
    /// Segments that were flushed while the log was read, to stay within memory.
    pub flushed: u64,
    /// What is wrong with the manifest.
    pub manifest_damage: Vec<String>,
}

/// Counters since start.
#[derive(Debug, Default)]
pub struct StoreStats {
    pub wal_syncs: AtomicU64,
    pub wal_bytes: AtomicU64,
    pub wal_failures: AtomicU64,
    pub flushes: AtomicU64,
    pub flush_failures: AtomicU64,
    pub merges: AtomicU64,
    pub merged_bytes: AtomicU64,
    pub segments_dropped: AtomicU64,
    pub refused: AtomicU64,
    pub damaged_reads: AtomicU64,
    /// Metric metadata and operations that found no room in their lists.
    pub names_dropped: AtomicU64,
    pub(crate) flush_log: Mutex<Vec<FlushDone>>,
}

/// A flush that ended.
#[derive(Debug, Clone, Copy)]
pub struct FlushDone {
    pub time: Duration,
    /// Samples and records that became durable segments.
    pub rows: u64,
}

/// What queries see, beside the head.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// In order of writing.
    pub(crate) segments: Vec<Arc<OpenSegment>>,
    /// The head before this one, until its segments are there.
    pub(crate) frozen: Option<Arc<Frozen>>,
    pub(crate) tombstones: Arc<Tombstones>,
}

#[derive(Debug, Default)]
pub(crate) struct FlushState {
    /// Number of the flush under way, and the log file after those it covers.
    pub(crate) under_way: Option<(u64, u64)>,
    pub(crate) last: u64,
    /// Why the last attempt at it failed.
    pub(crate) failure: Option<String>,
}

/// State shared by readers and the threads of the store.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) vfs: Arc<dyn Vfs>,
    // Lock order: manifest, view, head.
    pub(crate) manifest: Mutex<Option<Manifest>>,
    pub(crate) view: RwLock<View>,
    pub(crate) head: RwLock<Head>,
    pub(crate) flush: Mutex<FlushState>,
    /// Wakes the flusher, and those who wait for a flush.
    pub(crate) flush_change: Condvar,
    pub(crate) stopping: AtomicBool,
    pub(crate) queued_bytes: AtomicUsize,
    next_segment: AtomicU64,
    wal_number: AtomicU64,
    read_only: RwLock<Option<String>>,
    space: Mutex<Option<(Instant, Option<String>)>>,
    /// Of the pool: recent data, in the head and being flushed.
    pub(crate) recent: MemoryShare,
    pub(crate) tier: Option<Arc<Tier>>,
    pub(crate) kept: Arc<Kept>,
    /// Held while segments are replaced by others or move, which takes them all as they were at
    /// one moment. Before `manifest` in the order of locks.
    pub(crate) shaping: Mutex<()>,
    /// The time by which labels' data expires, ns; the least until retention was applied once.
    pub(crate) retain_now: AtomicI64,
    /// Segments that merges pass over: they are damaged.
    pub(crate) left_alone: Mutex<HashSet<u64>>,
    /// Of samples.
    pub(crate) changes: Changes,
    pub(crate) stats: StoreStats,
}

/// Half heads that may wait while a flush is slow or fails; beyond it writes are refused.
const OVERDUE_HALVES: usize = 3;

impl Inner {
    pub(crate) fn wal_dir(&self) -> PathBuf {
        self.config.dir.join("wal")
    }

    pub(crate) fn set_read_only(&self, why: &str) {
        tracing::error!(why, "the store is read-only from now on");
        *self.read_only.write().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// Makes the next writes see a full disk without asking the file system.
    pub(crate) fn note_full_disk(&self) {
        let now = Instant::now();
        *self.space.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((now, Some("the log could not be extended".into())));
    }

    /// # Errors
    /// When the store is read-only or the disk's reserve is reached.
    pub(crate) fn check_writable(&self) -> Result<(), AppendError> {
        /// How long an answer about free space holds.
        const FRESH: Duration = Duration::from_millis(250);
        if let Some(why) = &*self.read_only.read().unwrap_or_else(PoisonError::into_inner) {
            return Err(AppendError::ReadOnly(why.clone()));
        }
        let mut known = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(at, _)| at.elapsed() > FRESH) {
            let reserve = self.config.disk_reserve_bytes;
            let problem = match self.vfs.space(&self.config.dir) {
                Ok((free, _)) if free < reserve => {
                    Some(format!("{free} bytes free, {reserve} are reserved"))
                }
                _ => None,
            };
            *known = Some((Instant::now(), problem));
        }
        match known.as_ref().and_then(|(_, problem)| problem.clone()) {
            Some(problem) => Err(AppendError::DiskFull(problem)),
            None => Ok(()),
        }
    }

    pub(crate) fn head(&self) -> RwLockReadGuard<'_, Head> {
        self.head.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the pool how much memory recent data takes.
    pub(crate) fn account(&self) {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let frozen = view.frozen.as_ref().map_or(0, |f| f.bytes);
        drop(view);
        self.recent.set(self.head().bytes() + frozen);
    }

    pub(crate) fn flush_state(&self) -> MutexGuard<'_, FlushState> {
        self.flush.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn flush_under_way(&self) -> Option<u64> {
        self.flush_state().under_way.map(|(n, _)| n)
    }

    pub(crate) fn wants_flush(&self) -> bool {
        self.head().data_bytes() >= self.config.head_bytes_max && self.flush_under_way().is_none()
    }

    /// Returns how much data may wait for a flush. What was read at start is more than a head and
    /// takes longer: the share of memory that writes may fill meanwhile is larger then.
    fn overdue_bytes(&self) -> usize {
        const MOST: i64 = 256 << 20;
        let heads = (self.config.head_bytes_max / 2).saturating_mul(OVERDUE_HALVES);
        let is_first = self.stats.flushes.load(Ordering::Relaxed) == 0;
        if !is_first || self.config.inline {
            return heads;
        }
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let is_long = view.frozen.as_ref().is_some_and(|f| f.bytes > 2 * heads);
        let share = (self.config.memory.max() / 8).min(MOST);
        if is_long { heads.max(usize::try_from(share).unwrap_or(0)) } else { heads }
    }

    fn is_overdue(&self) -> bool {
        self.head().data_bytes() >= self.overdue_bytes()
    }

    /// Returns whether the head has grown so much while a flush is under way that writes wait.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_overdue() && self.flush_under_way().is_some()
    }

    /// Waits until the flush under way ends, when the head has grown meanwhile. Who comes now is
    /// refused before; those that wait were let in earlier, and are refused when it fails or takes
    /// too long.
    pub(crate) fn wait_for_room(&self) -> Result<(), AppendError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        if !self.is_overdue() {
            return Ok(());
        }
        let state = self.flush_state();
        let busy = |s: &mut FlushState| s.under_way.is_some() && s.failure.is_none();
        let patience = if self.config.inline { Duration::ZERO } else { PATIENCE };
        let (state, _) = self
            .flush_change
            .wait_timeout_while(state, patience, busy)
            .unwrap_or_else(PoisonError::into_inner);
        let is_busy = state.under_way.is_some();
        drop(state);
        if is_busy && self.is_overdue() {
            return Err(AppendError::Overloaded("memory of data that is being flushed"));
        }
        Ok(())
    }

    /// Moves the head's data to the view and wakes the flusher; returns the flush's number. The
    /// log's current file must be `wal_number`, with nothing in it yet.
    pub(crate) fn freeze(&self, wal_number: u64) -> u64 {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let mut head = self.head.write().unwrap_or_else(PoisonError::into_inner);
        view.frozen = Some(Arc::new(head.freeze()));
        drop((view, head));
        let mut state = self.flush_state();
        state.last += 1;
        state.under_way = Some((state.last, wal_number));
        state.failure = None;
        self.flush_change.notify_all();
        state.last
    }

    pub(crate) fn next_wal_number(&self, current: u64) -> u64 {
        self.wal_number.fetch_max(current, Ordering::Relaxed);
        self.wal_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn next_segment(&self) -> u64 {
        self.next_segment.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes manifest edits durable, then changes what queries see, at once for other edits.
    pub(crate) fn edit(
        &self,
        mut edits: Vec<Edit>,
        change: impl FnOnce(&mut View),
    ) -> std::io::Result<()> {
        let mut manifest = self.manifest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(manifest) = manifest.as_mut() else {
            return Err(std::io::Error::other("the manifest could not be opened for writing"));
        };
        edits.push(Edit::NextSegment(self.next_segment.load(Ordering::Relaxed)));
        manifest.commit(&*self.vfs, edits)?;
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// Notes that samples are gone which a segment had.
    pub(crate) fn note_lost(&self, s: &OpenSegment) {
        if s.meta.signal == Signal::Metrics {
            self.changes.note(&s.meta.tenant, TimestampMs::from_millis(s.meta.min_time));
        }
    }

    /// Calls `f` with what makes segment files.
    pub(crate) fn with_maker<T>(&self, f: impl FnOnce(&Maker<'_>) -> T) -> T {
        let next_id = || self.next_segment();
        f(&Maker { vfs: &*self.vfs, dir: &self.config.dir, next_id: &next_id })
    }
}

/// The embedded store. Clone it freely; [`Store::close`] stops it.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    commands: SyncSender<Command>,
    /// The writer, when it has no thread.
    inline: Option<Arc<Mutex<Writer>>>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    _lock: Arc<dyn std::any::Any + Send + Sync>,
    recovery: Arc<RecoveryReport>,
    pub(crate) control: Arc<StateStore>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.inner.config.dir).finish_non_exhaustive()
    }
}

fn io_at(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError + '_ {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

impl Store {
    /// Opens or creates a store and replays its log.
    ///
    /// # Errors
    /// When another process has it open, a file cannot be read, or a format is newer.
    pub fn open(config: StoreConfig, vfs: Arc<dyn Vfs>) -> Result<Self, OpenError> {
        let dir = config.dir.clone();
        let (wal_dir, manifest_dir) = (dir.join("wal"), dir.join("manifest"));
        for d in [&wal_dir, &manifest_dir] {
            vfs.create_dir_all(d).map_err(io_at(d))?;
        }
        let lock = vfs
            .lock(&dir.join("LOCK"))
            .map_err(io_at(&dir))?
            .ok_or_else(|| OpenError::Locked { path: dir.clone() })?;
        if vfs.open(&dir.join("manifest.sqlite")).is_ok() {
            return Err(OpenError::Old { path: dir });
        }
        let state_dir = dir.join("state");
        vfs.create_dir_all(&state_dir).map_err(io_at(&state_dir))?;
        let control = StateStore::open(vfs.clone(), &state_dir, config.inline);
        let control = Arc::new(control.map_err(io_at(&state_dir))?);
        let loaded = manifest::load(&*vfs, &manifest_dir).map_err(io_at(&manifest_dir))?;
        let mut report = RecoveryReport::default();
        let describe = |(file, what): &(String, String)| format!("{file}: {what}");
        let damage = loaded.damage.iter().filter(|(_, what)| !manifest::is_leftover(what));
        report.manifest_damage = damage.map(describe).collect();
        let damaged = control.findings.iter().filter(|f| f.2);
        report.manifest_damage.extend(damaged.map(|(file, what, _)| format!("{file}: {what}")));
        if loaded.lost {
            report.manifest_damage.push("edits are missing in both copies".into());
        }
        let state = loaded.state.clone();
        // A full disk must not keep the store from being read.
        let (opened, read_only) = match Manifest::open(&*vfs, &manifest_dir, loaded) {
            Ok(m) => (Some(m), None),
            Err(e) => (None, Some(format!("the manifest cannot be written: {e}"))),
        };
        let tier = config.tier.clone();
        let tier = tier.map(|t| Tier::open(t, vfs.clone(), &config).map(Arc::new));
        let tier = tier.transpose().map_err(io_at(&dir))?;
        let kept = Arc::new(Kept::new(&config.memory));
        let open = |m: manifest::SegmentMeta| {
            let swept = state.swept.get(&m.id).copied().unwrap_or(0);
            let kept = kept.clone();
            let s = match state.objects.get(&m.id) {
                Some(key) if state.moved.contains(&m.id) => {
                    let remote = Remote::new(tier.clone(), &m, key.clone());
                    OpenSegment::remote(m, remote, kept)
                }
                _ => OpenSegment::new(vfs.clone(), &dir, m, kept),
            };
            s.set_swept(swept);
            s
        };
        let segments: Vec<_> = in_order(&state).into_iter().map(open).map(Arc::new).collect();
        report.segments = segments.len() as u64;
        if opened.is_some() {
            recover::remove_orphans(&*vfs, &dir, &state);
        }
        let inner = Inner {
            vfs,
            manifest: Mutex::new(opened),
            view: RwLock::new(View {
                segments,
                frozen: None,
                tombstones: Arc::new(Tombstones::new(state.tombstones.values().cloned())),
            }),
            head: RwLock::new(Head::default()),
            flush: Mutex::new(FlushState::default()),
            flush_change: Condvar::new(),
            stopping: AtomicBool::new(false),
            queued_bytes: AtomicUsize::new(0),
            next_segment: AtomicU64::new(state.next_segment.max(1)),
            wal_number: AtomicU64::new(state.wal_start),
            read_only: RwLock::new(read_only),
            space: Mutex::new(None),
            recent: config.memory.share(),
            tier,
            kept,
            shaping: Mutex::new(()),
            retain_now: AtomicI64::new(i64::MIN),
            left_alone: Mutex::default(),
            changes: Changes::default(),
            stats: StoreStats::default(),
            config,
        };
        let last =
            recover::replay(&inner, state.wal_start, &mut report).map_err(io_at(&wal_dir))?;
        let inner = Arc::new(inner);
        let (commands, receiver) = sync_channel(4096);
        let mut threads = Vec::new();
        let spawn = |name: &str, f: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(f).map_err(io_at(&dir))
        };
        let number = inner.next_wal_number(last);
        let mut inline = None;
        match WalFile::create(&*inner.vfs, &wal_dir, number) {
            Ok(wal) if inner.config.inline => {
                background::index(&inner);
                inline = Some(Arc::new(Mutex::new(Writer::new(inner.clone(), wal))));
            }
            Ok(wal) => {
                let writer = Writer::new(inner.clone(), wal);
                threads.push(spawn("store-writer", Box::new(move || writer.run(&receiver)))?);
                let flusher = inner.clone();
                threads
                    .push(spawn("store-flusher", Box::new(move || background::flusher(&flusher)))?);
                let worker = inner.clone();
                threads.push(spawn("store-merger", Box::new(move || background::merger(&worker)))?);
            }
            Err(e) => inner.set_read_only(&format!("the log cannot be written: {e}")),
        }
        Ok(Self {
            inner,
            commands,
            inline,
            threads: Arc::new(Mutex::new(threads)),
            _lock: lock,
            recovery: Arc::new(report),
            control,
        })
    }

    /// Control state of this data directory.
    pub fn control(&self) -> Arc<dyn KeepState> {
        self.control.clone()
    }

    /// Returns what opening found.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// Returns whether writes wait now for a flush under way.
    pub fn is_behind(&self) -> bool {
        self.inner.is_behind()
    }

    pub fn stats(&self) -> &StoreStats {
        &self.inner.stats
    }

    /// Returns the flushes that ended since this was called last, the first thousand of them.
    pub fn take_flushes(&self) -> Vec<FlushDone> {
        std::mem::take(
            &mut *self.inner.stats.flush_log.lock().unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Returns the bytes that columns kept from query to query take, and may take.
    pub fn column_cache(&self) -> (u64, u64) {
        self.inner.kept.columns.bytes()
    }

    /// Returns (bytes in the head, bytes waiting for the log, segments, active series).
    pub fn usage(&self) -> (usize, usize, usize, usize) {
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let frozen = view.frozen.as_ref().map_or(0, |f| f.bytes);
        let segments = view.segments.len();
        drop(view);
        let head = self.inner.head();
        let queued = self.inner.queued_bytes.load(Ordering::Relaxed);
        (head.bytes() + frozen, queued, segments, head.series())
    }

    /// Returns why writes are refused, if they are.
    ///
    /// # Errors
    /// When the store is read-only or the disk is full.
    pub fn check_writable(&self) -> Result<(), AppendError> {
        self.inner.check_writable()
    }

    /// Turns the head into segments and returns when they are durable.
    ///
    /// # Errors
    /// When a file could not be written; the data stays in the log and in memory.
    pub async fn flush(&self) -> Result<(), String> {
        if let Some(writer) = &self.inline {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let (_, began) = writer.freeze().map_err(|e| e.to_string())?;
                background::flush_once(&self.inner)?;
                // A flush that failed before does not cover what was written since.
                if began {
                    return Ok(());
                }
            }
        }
        loop {
            let (reply, done) = oneshot::channel();
            self.commands.send(Command::Freeze(reply)).map_err(|_| "store is closed".to_owned())?;
            let (number, began) = done.await.map_err(|_| "store is closed".to_owned())??;
            let inner = self.inner.clone();
            let wait = tokio::task::spawn_blocking(move || background::wait(&inner, number, began));
            wait.await.map_err(|e| e.to_string())??;
            // A flush that was under way before does not cover what was written since.
            if began {
                return Ok(());
            }
        }
    }

    /// Merges segments until none is due, as the background does over time.
    ///
    /// # Errors
    /// When a segment could not be read or written.
    pub async fn merge(&self) -> Result<(), String> {
        if self.inner.config.inline {
            return background::merge_all(&self.inner);
        }
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || background::merge_all(&inner))
            .await
            .map_err(|e| e.to_string())?
    }

    /// Drops what the retention rules no longer keep.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub fn retain(&self, now: TimestampNs) -> Result<u64, String> {
        crate::retention::apply(&self.inner, now).map_err(|e| e.to_string())
    }

    /// Moves segments that are due to the object store, and removes objects that are no longer
    /// used; returns how many segments moved.
    ///
    /// # Errors
    /// When the object store or the manifest fails; what was not moved stays where it is.
    pub fn tier(&self, now: TimestampNs) -> Result<u64, String> {
        tier::step(&self.inner, now).map_err(|e| e.to_string())
    }

    /// Returns (bytes of local segments, bytes of segments in the object store, bytes cached).
    pub fn tier_bytes(&self) -> (u64, u64, u64) {
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = |remote: bool| {
            let of_kind = view.segments.iter().filter(|s| s.is_remote() == remote);
            of_kind.map(|s| s.meta.bytes).sum()
        };
        (bytes(false), bytes(true), self.inner.tier.as_ref().map_or(0, |t| t.cache_bytes()))
    }

    /// Returns the counters of the object store, if there is one.
    pub fn tier_stats(&self) -> Option<&TierStats> {
        self.inner.tier.as_deref().map(|t| &t.stats)
    }

    /// Deletes data; queries no longer see it when this returns, and merges take it off the disk.
    /// What is written later is not covered. Deleting again changes nothing.
    ///
    /// # Errors
    /// When the request could not be made durable.
    pub async fn delete(&self, tenant: &TenantId, scope: DeleteScope) -> Result<(), String> {
        crate::segments::check_scope(&scope)?;
        self.flush().await?;
        let (inner, tenant) = (self.inner.clone(), tenant.clone());
        let work = move || {
            let before = inner.next_segment();
            let from = match &scope {
                DeleteScope::Tenant => Some(i64::MIN),
                DeleteScope::Series { start, .. } => Some(*start),
                DeleteScope::Trace(_) | DeleteScope::Logs { .. } => None,
            };
            let t = Tombstone { id: before, tenant: tenant.clone(), scope, before };
            let edit = Edit::Delete(t.clone());
            inner
                .edit(vec![edit], |view| view.tombstones = Arc::new(view.tombstones.with(t)))
                .map_err(|e| e.to_string())?;
            if let Some(from) = from {
                inner.changes.note(&tenant, TimestampMs::from_millis(from));
            }
            Ok(())
        };
        if self.inner.config.inline {
            return work();
        }
        tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
    }

    /// Returns metadata by metric family name.
    pub(crate) fn known_metadata(&self, tenant: &TenantId) -> BTreeMap<String, MetricMetadata> {
        let manifest = self.inner.manifest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = manifest.as_ref().and_then(|m| m.state.metadata.get(tenant));
        known.cloned().unwrap_or_default()
    }

    /// Writes what is queued and stops the threads. Later writes are refused.
    pub fn close(&self) {
        let _ = self.commands.send(Command::Stop);
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.inner.flush_change.notify_all();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
        self.control.close();
    }
}

/// Returns the segments in order of writing.
fn in_order(state: &manifest::State) -> Vec<manifest::SegmentMeta> {
    let mut all: Vec<_> = state.segments.values().cloned().collect();
    all.sort_by_key(|m| (m.order, m.id));
    all
}

/// Times past this many ms from 1970 are refused: no clock shows them, and formats need the room.
const TIME_MS_MAX: u64 = 1 << 52;

/// Estimates the bytes that a batch takes on its way to the head.
fn batch_bytes(records: &Records, points: &[(Labels, Sample)]) -> usize {
    let sample = |(_, s): &(Labels, Sample)| match &s.value {
        SampleValue::Float(_) => 56,
        SampleValue::Histogram(h) => 56 + h.size_bytes(),
    };
    records.memory() + points.iter().map(sample).sum::<usize>()
}

impl Append for Store {
    fn append<'a>(&'a self, tenant: &'a TenantId, batch: WriteBatch) -> AppendFuture<'a> {
        Box::pin(async move {
            if batch.is_empty() {
                return Ok(obs_model::Appended::default());
            }
            let operations: Operations = operations(&batch);
            let read = || -> Result<Records, crate::bin::Malformed> {
                Ok(Records {
                    logs: Batch::of(&batch.logs)?,
                    spans: Batch::of(&batch.spans)?,
                    calls: Batch::of(&batch.calls)?,
                    operations,
                    metadata: batch.metadata.clone(),
                })
            };
            let records = read().map_err(|e| AppendError::Failed(e.to_string()))?;
            let WriteBatch { series, mut points, logs, spans, calls, .. } = batch;
            drop((logs, spans, calls));
            for s in series {
                points.extend(s.samples.into_iter().map(|sample| (s.labels.clone(), sample)));
            }
            if points.iter().any(|(_, s)| s.timestamp.millis().unsigned_abs() > TIME_MS_MAX) {
                return Err(AppendError::Failed("a sample's time is out of range".into()));
            }
            let bytes = batch_bytes(&records, &points);
            let queued = self.inner.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
            // One batch larger than the queue still passes when the queue is empty.
            let refuse = |why| {
                self.inner.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.inner.stats.refused.fetch_add(1, Ordering::Relaxed);
                Err(why)
            };
            if queued > 0 && queued.saturating_add(bytes) > self.inner.config.queue_bytes_max {
                return refuse(AppendError::Overloaded("bytes waiting for the log"));
            }
            let (reply, done) = oneshot::channel();
            let pending = Pending { tenant: tenant.clone(), records, points, bytes, reply };
            if let Some(writer) = &self.inline {
                commit_inline(&self.inner, writer, pending);
                return done.await.unwrap_or(Err(AppendError::Closed));
            }
            match self.commands.try_send(Command::Append(Box::new(pending))) {
                Ok(()) => done.await.unwrap_or(Err(AppendError::Closed)),
                Err(TrySendError::Full(_)) => {
                    refuse(AppendError::Overloaded("writes waiting for the log"))
                }
                Err(TrySendError::Disconnected(_)) => {
                    let why = self.inner.check_writable().err().unwrap_or(AppendError::Closed);
                    refuse(why)
                }
            }
        })
    }
}

fn commit_inline(inner: &Inner, writer: &Mutex<Writer>, pending: Pending) {
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    writer.commit(vec![pending]);
    if inner.wants_flush() && writer.freeze().is_ok() {
        // A failure is tried again by the next write.
        let _ = background::flush_once(inner);
    }
}

fn operations(batch: &WriteBatch) -> Operations {
    let mut out = Operations::new();
    // A request has thousands of spans and a few operations.
    let mut seen: foldhash::HashSet<(&str, &str, i32)> = Default::default();
    for s in &batch.spans {
        let key = (s.service(), s.name.as_str(), s.kind.to_otlp());
        if seen.insert(key) {
            out.insert((key.0.to_owned(), key.1.to_owned(), key.2));
        }
    }
    out
}
