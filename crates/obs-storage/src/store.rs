//! The store: opens, recovers, and answers through the ports of `obs-model`.

use crate::checked::CheckedFile;
use crate::head::metrics::sort_unique;
use crate::head::{Head, TenantHead};
use crate::manifest::{Manifest, SegmentMeta};
use crate::segment::metrics::MetricSegment;
use crate::segment::rows::{Row, RowFilter, RowSegment};
use crate::segment::{SegmentError, Signal, kind_of};
use crate::vfs::Vfs;
use crate::wal::{self, WalFile};
use crate::writer::{self, Command, Pending, Writer};
use obs_model::{
    Append, AppendError, AppendFuture, Budget, CallSelection, Direction, Labels, LlmCall,
    LogRecord, LogSelection, MetricMetadata, Sample, SelectError, SelectLogs, SelectSeries,
    SelectSpans, Series, SeriesSelection, Span, SpanKind, SpanSelection, TenantId, TimestampNs,
    TraceId, Visit, WriteBatch,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// How a store is set up. Sizes are bytes.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub dir: PathBuf,
    /// The head is flushed to segments when it reaches this.
    pub head_bytes_max: usize,
    /// Writes waiting for the log; beyond it writes are refused as overload.
    pub queue_bytes_max: usize,
    /// A log file is closed at this size.
    pub wal_file_bytes_max: u64,
    /// Writes are refused while less than this is free on the disk.
    pub disk_reserve_bytes: u64,
}

impl StoreConfig {
    /// Returns the defaults for a data directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            head_bytes_max: 64 << 20,
            queue_bytes_max: 64 << 20,
            wal_file_bytes_max: 64 << 20,
            disk_reserve_bytes: 1 << 30,
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
    #[error("failed to read the manifest in {path}: {reason}")]
    Manifest { path: PathBuf, reason: String },
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
    /// Segments that could not be opened, with the reason.
    pub bad_segments: Vec<String>,
}

/// Counters since start.
#[derive(Debug, Default)]
pub struct StoreStats {
    pub wal_syncs: AtomicU64,
    pub wal_bytes: AtomicU64,
    pub wal_failures: AtomicU64,
    pub flushes: AtomicU64,
    pub refused: AtomicU64,
}

#[derive(Debug)]
pub(crate) enum SegmentData {
    Metrics(MetricSegment),
    Rows(RowSegment),
}

#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) meta: SegmentMeta,
    data: SegmentData,
}

impl OpenSegment {
    pub(crate) fn open(vfs: &dyn Vfs, dir: &Path, meta: SegmentMeta) -> std::io::Result<Self> {
        let file = CheckedFile::open(vfs, &dir.join(meta.relative_path()))?;
        let data = match meta.signal {
            Signal::Metrics => SegmentData::Metrics(MetricSegment::new(file)),
            Signal::Logs | Signal::Spans | Signal::Calls => {
                SegmentData::Rows(RowSegment::new(file))
            }
        };
        Ok(Self { meta, data })
    }

    const fn overlaps(&self, start: i64, end: i64) -> bool {
        self.meta.max_time >= start && self.meta.min_time <= end
    }
}

/// State shared by readers and the writer thread.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) vfs: Arc<dyn Vfs>,
    // Lock order: segments, head, metadata.
    pub(crate) segments: RwLock<Vec<Arc<OpenSegment>>>,
    pub(crate) head: RwLock<Head>,
    pub(crate) metadata: RwLock<HashMap<TenantId, BTreeMap<String, MetricMetadata>>>,
    pub(crate) queued_bytes: AtomicUsize,
    read_only: RwLock<Option<String>>,
    pub(crate) stats: StoreStats,
}

impl Inner {
    pub(crate) fn wal_dir(&self) -> PathBuf {
        self.config.dir.join("wal")
    }

    pub(crate) fn set_read_only(&self, why: &str) {
        *self.read_only.write().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    fn read_only_reason(&self) -> Option<String> {
        self.read_only.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// # Errors
    /// When the store is read-only or the disk's reserve is reached.
    pub(crate) fn check_writable(&self) -> Result<(), AppendError> {
        if let Some(why) = self.read_only_reason() {
            return Err(AppendError::ReadOnly(why));
        }
        match self.vfs.space(&self.config.dir) {
            Ok((free, _)) if free < self.config.disk_reserve_bytes => Err(AppendError::DiskFull(
                format!("{free} bytes free, {} are reserved", self.config.disk_reserve_bytes),
            )),
            _ => Ok(()),
        }
    }
}

/// The embedded store. Clone it freely; the last [`Store::close`] or process end stops it.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
    commands: SyncSender<Command>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    _lock: Arc<File>,
    recovery: Arc<RecoveryReport>,
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
        let wal_dir = dir.join("wal");
        vfs.create_dir_all(&wal_dir).map_err(io_at(&wal_dir))?;
        let lock = lock_dir(&dir)?;
        let manifest_path = dir.join("manifest.sqlite");
        let bad_manifest = |e: crate::manifest::ManifestError| OpenError::Manifest {
            path: manifest_path.clone(),
            reason: e.to_string(),
        };
        let manifest = Manifest::open(&manifest_path).map_err(bad_manifest)?;
        let mut report = RecoveryReport::default();
        let mut segments = Vec::new();
        let known = manifest.segments().map_err(bad_manifest)?;
        let highest = known.iter().map(|m| m.id).max().unwrap_or(0);
        for meta in known {
            let name = meta.relative_path();
            match OpenSegment::open(&*vfs, &dir, meta) {
                Ok(s) => segments.push(Arc::new(s)),
                Err(e) => report.bad_segments.push(format!("{name}: {e}")),
            }
        }
        report.segments = segments.len() as u64;
        remove_orphans(&*vfs, &dir, highest);
        let mut metadata: HashMap<TenantId, BTreeMap<String, MetricMetadata>> = HashMap::new();
        for (tenant, m) in manifest.metadata().map_err(bad_manifest)? {
            metadata.entry(tenant).or_default().insert(m.name.clone(), m);
        }
        let mut head = Head::default();
        let wal_start = manifest.wal_start().map_err(bad_manifest)?;
        let last =
            replay(&*vfs, &wal_dir, wal_start, &mut head, &mut report).map_err(io_at(&wal_dir))?;
        let wal =
            WalFile::create(&*vfs, &wal_dir, last.max(wal_start) + 1).map_err(io_at(&wal_dir))?;
        let queue = 4096;
        let (commands, receiver) = sync_channel(queue);
        let inner = Arc::new(Inner {
            config,
            vfs,
            segments: RwLock::new(segments),
            head: RwLock::new(head),
            metadata: RwLock::new(metadata),
            queued_bytes: AtomicUsize::new(0),
            read_only: RwLock::new(None),
            stats: StoreStats::default(),
        });
        let writer = Writer::new(inner.clone(), manifest, wal, highest + 1);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&receiver));
        let thread = thread.map_err(io_at(&dir))?;
        Ok(Self {
            inner,
            commands,
            thread: Arc::new(Mutex::new(Some(thread))),
            _lock: Arc::new(lock),
            recovery: Arc::new(report),
        })
    }

    /// Returns what opening found.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    pub fn stats(&self) -> &StoreStats {
        &self.inner.stats
    }

    /// Returns (bytes in the head, bytes waiting for the log, segments).
    pub fn usage(&self) -> (usize, usize, usize) {
        (self.head().bytes, self.inner.queued_bytes.load(Ordering::Relaxed), self.segments().len())
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
    /// When a file could not be written; the data stays in the log.
    pub async fn flush(&self) -> Result<(), String> {
        let (reply, done) = oneshot::channel();
        self.commands.send(Command::Flush(reply)).map_err(|_| "store is closed".to_owned())?;
        done.await.map_err(|_| "store is closed".to_owned())?
    }

    /// Writes what is queued and stops the writer. Later writes are refused.
    pub fn close(&self) {
        let _ = self.commands.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn head(&self) -> RwLockReadGuard<'_, Head> {
        self.inner.head.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn segments(&self) -> RwLockReadGuard<'_, Vec<Arc<OpenSegment>>> {
        self.inner.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a consistent view: the tenant's segments of a signal, and the head seen by `f` under
    /// the same locks, so that a flush in between shows nothing twice or not at all.
    fn view<T>(
        &self,
        tenant: &TenantId,
        signal: Signal,
        (start, end): (i64, i64),
        f: impl FnOnce(&TenantHead) -> T,
    ) -> (Vec<Arc<OpenSegment>>, Option<T>) {
        let segments = self.segments();
        let head = self.head();
        let wanted = |s: &&Arc<OpenSegment>| {
            s.meta.signal == signal && s.meta.tenant == *tenant && s.overlaps(start, end)
        };
        (segments.iter().filter(wanted).cloned().collect(), head.tenants.get(tenant).map(f))
    }
}

fn lock_dir(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::Locked { path: dir.to_owned() }),
        Err(std::fs::TryLockError::Error(e)) => Err(io_at(&path)(e)),
    }
}

/// Segment files newer than any in the manifest come from a flush that did not commit; the log
/// still has their data.
fn remove_orphans(vfs: &dyn Vfs, dir: &Path, highest: i64) {
    let Ok(tenants) = std::fs::read_dir(dir.join("segments")) else { return };
    for tenant in tenants.flatten() {
        for signal in ["metrics", "logs", "spans", "calls"] {
            for path in vfs.list(&tenant.path().join(signal)).unwrap_or_default() {
                let stem =
                    path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split('.').next());
                if stem.and_then(|s| s.parse::<i64>().ok()).is_some_and(|id| id > highest) {
                    let _ = vfs.remove(&path);
                }
            }
        }
    }
}

/// Reads the log from `start` into the head; returns the highest file number seen.
fn replay(
    vfs: &dyn Vfs,
    wal_dir: &Path,
    start: u64,
    head: &mut Head,
    report: &mut RecoveryReport,
) -> std::io::Result<u64> {
    let mut last = 0;
    for (number, path) in wal::files(vfs, wal_dir)? {
        last = last.max(number);
        if number < start {
            // Left behind by a crash between the manifest's commit and the deletion.
            vfs.remove(&path)?;
            continue;
        }
        let file = vfs.open(&path)?;
        report.wal_files += 1;
        report.wal_bytes += file.len();
        let mut dictionary = HashMap::new();
        let mut undecodable = 0;
        let damage = wal::read_file(&*file, |_, _, payload| {
            match writer::decode_frame(payload, &mut dictionary) {
                Ok((tenant, batch)) => {
                    writer::replay(head, &tenant, batch);
                    report.batches += 1;
                }
                Err(_) => undecodable += 1,
            }
            Ok(())
        })?;
        report.bad_frames += damage.bad_frames + undecodable;
        report.torn_bytes += damage.torn.map_or(0, |(_, n)| n);
    }
    Ok(last)
}

impl Append for Store {
    fn append<'a>(&'a self, tenant: &'a TenantId, batch: WriteBatch) -> AppendFuture<'a> {
        Box::pin(async move {
            if batch.is_empty() {
                return Ok(());
            }
            let bytes = writer::batch_bytes(&batch);
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
            let records = writer::encode_records(&batch);
            let (reply, done) = oneshot::channel();
            let pending = Pending { tenant: tenant.clone(), batch, records, bytes, reply };
            match self.commands.try_send(Command::Append(Box::new(pending))) {
                Ok(()) => done.await.unwrap_or(Err(AppendError::Closed)),
                Err(TrySendError::Full(_)) => {
                    refuse(AppendError::Overloaded("writes waiting for the log"))
                }
                Err(TrySendError::Disconnected(_)) => refuse(AppendError::Closed),
            }
        })
    }
}

/// Bytes that samples take in a query's memory.
const SAMPLE_BYTES: usize = 24;

impl SelectSeries for Store {
    fn select(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Series>, SelectError> {
        let (start, end) = (selection.start.millis(), selection.end.millis());
        let mut found: HashMap<Labels, Vec<Sample>> = HashMap::new();
        let mut keep = |labels: &Labels, samples: Vec<Sample>| -> Result<(), SelectError> {
            let in_range = |s: &Sample| (start..=end).contains(&s.timestamp.millis());
            let samples: Vec<_> = samples.into_iter().filter(in_range).collect();
            budget.take(samples.len(), samples.len() * SAMPLE_BYTES)?;
            match found.get_mut(labels) {
                Some(all) => all.extend(samples),
                None if samples.is_empty() => {}
                None => {
                    found.insert(labels.clone(), samples);
                }
            }
            Ok(())
        };
        let read_head = |t: &TenantHead| -> Result<Vec<(Labels, Vec<Sample>)>, SegmentError> {
            let mut out = Vec::new();
            for s in t.metrics.matching(selection.matchers, start, end) {
                budget.check()?;
                let mut samples = Vec::new();
                s.read(start, end, &mut samples)?;
                out.push((s.labels.clone(), samples));
            }
            Ok(out)
        };
        let (segments, head) = self.view(tenant, Signal::Metrics, (start, end), read_head);
        // Older writes first, so that of equal timestamps the last written wins.
        for segment in &segments {
            if let SegmentData::Metrics(m) = &segment.data {
                m.select(selection.matchers, start, end, &mut |l, s| Ok(keep(l, s)?))?;
            }
        }
        for (labels, samples) in head.transpose()?.unwrap_or_default() {
            keep(&labels, samples)?;
        }
        let mut out: Vec<Series> = found
            .into_iter()
            .map(|(labels, mut samples)| {
                sort_unique(&mut samples);
                Series { labels, samples }
            })
            .filter(|s| !s.samples.is_empty())
            .collect();
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(out)
    }

    fn label_sets(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        let (start, end) = (selection.start.millis(), selection.end.millis());
        let (segments, head) = self.view(tenant, Signal::Metrics, (start, end), |t| {
            t.metrics
                .matching(selection.matchers, start, end)
                .map(|s| s.labels.clone())
                .collect::<Vec<_>>()
        });
        let mut out: BTreeSet<Labels> = head.unwrap_or_default().into_iter().collect();
        for segment in &segments {
            budget.check()?;
            if let SegmentData::Metrics(m) = &segment.data {
                out.extend(
                    m.label_sets(selection.matchers, start, end).map_err(SelectError::from)?,
                );
            }
        }
        budget.take(out.len(), out.iter().map(Labels::size_bytes).sum())?;
        Ok(out.into_iter().collect())
    }

    fn metadata(&self, tenant: &TenantId) -> BTreeMap<String, MetricMetadata> {
        let head = self.head();
        let known = self.inner.metadata.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = known.get(tenant).cloned().unwrap_or_default();
        if let Some(t) = head.tenants.get(tenant) {
            out.extend(t.metrics.metadata.iter().map(|(n, m)| (n.clone(), m.clone())));
        }
        out
    }
}

impl Store {
    /// Collects the records of one time window, sorted.
    fn log_window(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Arc<LogRecord>>, SelectError> {
        let (start, end) = (selection.start.nanos(), selection.end.nanos());
        let (segments, head) = self.view(tenant, Signal::Logs, (start, end), |t| {
            t.logs.matching(selection).cloned().collect::<Vec<_>>()
        });
        let mut out = Vec::new();
        let filter = RowFilter { start, end, trace: selection.trace_id };
        for segment in &segments {
            let _ = scan_rows::<LogRecord>(segment, &filter, &mut |r| {
                if obs_model::Matcher::all_match(selection.matchers, &r.stream) {
                    budget.take(1, r.size_bytes())?;
                    out.push(r);
                } else {
                    budget.check()?;
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        for r in head.unwrap_or_default() {
            budget.take(1, 8)?;
            out.push(r);
        }
        out.sort_by_key(|r| r.timestamp);
        if selection.direction == Direction::Backward {
            out.reverse();
        }
        Ok(out)
    }

    fn log_bounds(&self, tenant: &TenantId) -> Option<(i64, i64)> {
        let (segments, head) =
            self.view(tenant, Signal::Logs, (i64::MIN, i64::MAX), |t| t.logs.bounds());
        let all =
            || segments.iter().map(|s| (s.meta.min_time, s.meta.max_time)).chain(head.flatten());
        Some((all().map(|b| b.0).min()?, all().map(|b| b.1).max()?))
    }
}

fn scan_rows<R: Row>(
    segment: &OpenSegment,
    filter: &RowFilter,
    visit: &mut dyn FnMut(Arc<R>) -> Result<ControlFlow<()>, SegmentError>,
) -> Result<ControlFlow<()>, SelectError> {
    match &segment.data {
        SegmentData::Rows(rows) => Ok(rows.scan(filter, false, visit)?),
        SegmentData::Metrics(_) => Ok(ControlFlow::Continue(())),
    }
}

/// First window of a log scan; each next one is twice as long, so that a limit is reached after
/// reading little and a full scan takes few rounds.
const LOG_WINDOW_NS: i64 = 60_000_000_000;

impl SelectLogs for Store {
    fn select_logs(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
        visit: Visit<'_, LogRecord>,
    ) -> Result<(), SelectError> {
        let Some((min, max)) = self.log_bounds(tenant) else { return Ok(()) };
        let (start, end) =
            (selection.start.nanos().max(min), selection.end.nanos().min(max.saturating_add(1)));
        let mut step = LOG_WINDOW_NS;
        let (mut from, mut to) = (start, end);
        while from < to {
            let (a, b) = match selection.direction {
                Direction::Forward => (from, from.saturating_add(step).min(to)),
                Direction::Backward => (to.saturating_sub(step).max(from), to),
            };
            let window = LogSelection {
                start: TimestampNs::from_nanos(a),
                end: TimestampNs::from_nanos(b),
                ..selection.clone()
            };
            for r in self.log_window(tenant, &window, budget)? {
                if visit(&r).is_break() {
                    return Ok(());
                }
            }
            match selection.direction {
                Direction::Forward => from = b,
                Direction::Backward => to = a,
            }
            step = step.saturating_mul(2);
        }
        Ok(())
    }

    fn streams(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        let (start, end) = (selection.start.nanos(), selection.end.nanos());
        let (segments, head) = self.view(tenant, Signal::Logs, (start, end), |t| {
            t.logs.stream_labels(selection).cloned().collect::<BTreeSet<_>>()
        });
        let mut out = head.unwrap_or_default();
        let filter = RowFilter { start, end, trace: None };
        for segment in &segments {
            let _ = scan_rows::<LogRecord>(segment, &filter, &mut |r| {
                budget.check()?;
                if !out.contains(&r.stream)
                    && obs_model::Matcher::all_match(selection.matchers, &r.stream)
                {
                    out.insert(r.stream.clone());
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(out.into_iter().collect())
    }
}

/// Newest first, so that searches with a limit end early.
fn newest_first(segments: &mut [Arc<OpenSegment>]) {
    segments.sort_by_key(|s| std::cmp::Reverse(s.meta.max_time));
}

impl SelectSpans for Store {
    fn trace(
        &self,
        tenant: &TenantId,
        id: TraceId,
        budget: &Budget,
    ) -> Result<Vec<Arc<Span>>, SelectError> {
        let all = (i64::MIN, i64::MAX);
        let (segments, head) = self
            .view(tenant, Signal::Spans, all, |t| t.spans.trace(id).cloned().collect::<Vec<_>>());
        let mut out = head.unwrap_or_default();
        budget.take(out.len(), out.iter().map(|s| s.size_bytes()).sum())?;
        let filter = RowFilter { start: i64::MIN, end: i64::MAX, trace: Some(id) };
        for segment in &segments {
            let _ = scan_rows::<Span>(segment, &filter, &mut |s| {
                budget.take(1, s.size_bytes())?;
                out.push(s);
                Ok(ControlFlow::Continue(()))
            })?;
        }
        out.sort_by_key(|s| (s.start, s.span_id));
        let mut seen = HashSet::new();
        out.retain(|s| seen.insert(s.span_id));
        Ok(out)
    }

    fn select_spans(
        &self,
        tenant: &TenantId,
        selection: &SpanSelection,
        budget: &Budget,
        visit: Visit<'_, Span>,
    ) -> Result<(), SelectError> {
        let range = (selection.start.nanos(), selection.end.nanos());
        let (mut segments, head) = self.view(tenant, Signal::Spans, range, |t| {
            t.spans
                .spans
                .iter()
                .rev()
                .filter(|s| selection.contains(s))
                .cloned()
                .collect::<Vec<_>>()
        });
        for s in head.unwrap_or_default() {
            budget.take(1, 8)?;
            if visit(&s).is_break() {
                return Ok(());
            }
        }
        newest_first(&mut segments);
        let filter = RowFilter { start: range.0, end: range.1, trace: None };
        for segment in &segments {
            let flow = scan_rows::<Span>(segment, &filter, &mut |s| {
                budget.take(1, 0)?;
                Ok(if selection.contains(&s) { visit(&s) } else { ControlFlow::Continue(()) })
            })?;
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn operations(
        &self,
        tenant: &TenantId,
        _budget: &Budget,
    ) -> Result<BTreeMap<String, Vec<(String, SpanKind)>>, SelectError> {
        let (segments, head) =
            self.view(tenant, Signal::Spans, (i64::MIN, i64::MAX), |t| t.spans.operations.clone());
        let mut all = head.unwrap_or_default();
        for s in &segments {
            all.extend(s.meta.operations.iter().cloned());
        }
        let mut out: BTreeMap<String, Vec<(String, SpanKind)>> = BTreeMap::new();
        for (service, operation, kind) in all {
            out.entry(service).or_default().push((operation, kind_of(kind)));
        }
        Ok(out)
    }

    fn select_calls(
        &self,
        tenant: &TenantId,
        selection: &CallSelection,
        budget: &Budget,
        visit: Visit<'_, LlmCall>,
    ) -> Result<(), SelectError> {
        let range = (selection.start.nanos(), selection.end.nanos());
        let (mut segments, head) = self.view(tenant, Signal::Calls, range, |t| {
            t.spans
                .calls
                .iter()
                .rev()
                .filter(|c| selection.contains(c))
                .cloned()
                .collect::<Vec<_>>()
        });
        for c in head.unwrap_or_default() {
            budget.take(1, 8)?;
            if visit(&c).is_break() {
                return Ok(());
            }
        }
        newest_first(&mut segments);
        let filter = RowFilter { start: range.0, end: range.1, trace: selection.trace_id };
        for segment in &segments {
            let flow = scan_rows::<LlmCall>(segment, &filter, &mut |c| {
                budget.take(1, 0)?;
                Ok(visit(&c))
            })?;
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}
