//! Follows files: through growth, rotation and truncation, compressed ones to their end.

use crate::config::{Job, LimitsConfig};
use crate::entry::{Entry, LabelMap, record};
use crate::positions::{Position, Positions};
use crate::ship::{Batch, Shipper};
use crate::stage::Pipeline;
use obs_model::{Labels, TimestampNs};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Read at once from one file, and handed to the store at once. Bytes.
const CHUNK: usize = 256 << 10;
const BATCH_BYTES: usize = 2 << 20;
/// Bytes by which a file is known again.
const HEAD_BYTES: usize = 256;
/// How often files are looked at when nothing is new, and how often new ones are looked for.
const LOOK: Duration = Duration::from_millis(200);
const SEARCH: Duration = Duration::from_secs(1);
/// Files followed by one job.
const FILES_MAX: usize = 10_000;
/// Lines longer than this are dropped, unless the configuration says otherwise.
const LINE_BYTES_MAX: usize = 1 << 20;

pub(crate) type Clock = Arc<dyn Fn() -> TimestampNs + Send + Sync>;

/// Files to follow: a pattern, one to leave out, and their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) pattern: String,
    pub(crate) exclude: Option<String>,
    pub(crate) labels: Labels,
}

fn identity(m: &std::fs::Metadata) -> String {
    format!("{}:{}", m.dev(), m.ino())
}

/// One open file.
struct Tail {
    path: PathBuf,
    reader: Box<dyn Read + Send>,
    /// Reading it again from another place is possible.
    file: Option<File>,
    identity: String,
    /// How the file begins: a file that was cut off and has grown again begins otherwise.
    head: Vec<u8>,
    modified: (i64, i64),
    /// Bytes read, and the beginning of the line that is not complete.
    read_at: u64,
    partial: Vec<u8>,
    /// The rest of a line that is too long is passed over.
    skipping: bool,
    labels: LabelMap,
    stream: Labels,
    pipeline: Pipeline,
    at_end: bool,
    /// A file that was renamed away is closed at its end.
    is_gone: bool,
}

/// A job's files and how they are read.
pub(crate) struct Files {
    job: Job,
    limits: LimitsConfig,
    targets: Arc<Mutex<Vec<Target>>>,
    positions: Arc<Mutex<Positions>>,
    shipper: Shipper,
    clock: Clock,
    open: BTreeMap<PathBuf, Tail>,
    /// Rotated files that are read to their end.
    leaving: Vec<Tail>,
    last_ns: i64,
    searched: Option<Instant>,
    /// What was searched for.
    known: Vec<Target>,
    /// Where files are that closed or were read in this round and the one before, whose lines are
    /// not stored yet: later than the positions.
    unsaved: [BTreeMap<String, Position>; 2],
    /// The file that the next round begins with: busy ones must not keep others waiting.
    turn: usize,
}

/// What one round read: records, and how far each file is when they are stored.
#[derive(Default)]
struct Round {
    batch: Batch,
    bytes: usize,
    reached: Vec<(String, Position)>,
    /// How long the files must be left alone.
    pause: Duration,
}

impl Round {
    /// Stores what was read, then notes how far the files are; returns false when it was stopped before.
    async fn store(self, shipper: &Shipper, positions: &Mutex<Positions>) -> bool {
        if !shipper.ship(self.batch).await {
            return false;
        }
        let mut p = positions.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, position) in self.reached {
            p.set(&path, position);
        }
        true
    }
}

fn is_compressed(path: &Path, job: &Job) -> bool {
    let has_ending = path.extension().is_some_and(|e| e == "gz");
    has_ending || (job.decompression.enabled && job.decompression.format == "gz")
}

impl Tail {
    fn open(
        path: &Path,
        shown: &Path,
        t: &Target,
        (job, shipper): (&Job, &Shipper),
        from: u64,
    ) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        let (reader, file, read_at): (Box<dyn Read + Send>, _, _) = if is_compressed(path, job) {
            let mut decoder = flate2::read::MultiGzDecoder::new(file);
            // What was read before is decompressed once more and passed over.
            let skipped = std::io::copy(&mut (&mut decoder).take(from), &mut std::io::sink())?;
            (Box::new(decoder), None, skipped)
        } else {
            let from = if from > meta.len() { 0 } else { from };
            file.seek(SeekFrom::Start(from))?;
            (Box::new(file.try_clone()?), Some(file), from)
        };
        let mut labels: LabelMap =
            t.labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        labels.insert("filename".into(), shown.display().to_string());
        // Checked when the configuration was read.
        let pipeline = shipper.pipeline(job).map_err(std::io::Error::other)?;
        Ok(Self {
            path: shown.to_owned(),
            reader,
            file,
            identity: identity(&meta),
            head: Vec::new(),
            modified: (0, 0),
            read_at,
            partial: Vec::new(),
            skipping: false,
            stream: Labels::from_pairs(&labels),
            labels,
            pipeline,
            at_end: false,
            is_gone: false,
        })
    }

    /// Notices that the file was cut off, or that its name now belongs to another one.
    fn look(&mut self) {
        let Some(file) = &mut self.file else { return };
        match std::fs::metadata(&self.path) {
            Ok(m) if identity(&m) == self.identity => {
                let modified = (m.mtime(), m.mtime_nsec());
                if m.len() == self.read_at && modified == self.modified {
                    return;
                }
                self.modified = modified;
                let mut head = vec![0; HEAD_BYTES.min(m.len() as usize)];
                let is_read = file.read_exact_at(&mut head, 0).is_ok();
                let is_other = is_read && !head.starts_with(&self.head);
                if m.len() < self.read_at || is_other {
                    tracing::info!(file = %self.path.display(), "file was cut off; reading it from its beginning");
                    self.partial.clear();
                    self.skipping = false;
                    self.read_at = file.seek(SeekFrom::Start(0)).unwrap_or(0);
                }
                self.head = head;
            }
            _ => self.is_gone = true,
        }
    }

    /// Where reading would have to begin to miss nothing that is not stored yet.
    fn position(&self) -> Position {
        let whole = self.read_at - self.partial.len() as u64;
        let held = self.pipeline.oldest_held().unwrap_or(whole);
        Position { offset: held.min(whole), identity: self.identity.clone() }
    }
}

impl Files {
    pub(crate) fn new(
        job: Job,
        limits: LimitsConfig,
        targets: Arc<Mutex<Vec<Target>>>,
        positions: Arc<Mutex<Positions>>,
        shipper: Shipper,
        clock: Clock,
    ) -> Self {
        Self {
            job,
            limits,
            targets,
            positions,
            shipper,
            clock,
            open: BTreeMap::new(),
            leaving: Vec::new(),
            last_ns: 0,
            searched: None,
            known: Vec::new(),
            unsaved: Default::default(),
            turn: 0,
        }
    }

    /// Follows the files until it is stopped.
    pub(crate) async fn run(mut self) {
        let (shipper, positions) = (self.shipper.clone(), self.positions.clone());
        let mut before = Round::default();
        loop {
            // A round is read while the one before is being stored.
            let pause = before.pause;
            let reading = async {
                shipper.pause(pause).await;
                let read = move || {
                    let round = self.round();
                    (self, round)
                };
                tokio::task::spawn_blocking(read).await
            };
            let (stored, read) = tokio::join!(before.store(&shipper, &positions), reading);
            let Ok((files, round)) = read else { return };
            if !stored {
                return;
            }
            self = files;
            if shipper.stop.is_cancelled() {
                let _ = round.store(&shipper, &positions).await;
                return;
            }
            let is_idle = round.bytes == 0 && round.batch.is_empty();
            before = round;
            if is_idle {
                tokio::select! {
                    () = shipper.stop.cancelled() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    }

    /// Opens files that match, as far as they are not open; forgets those that are gone.
    fn search(&mut self) {
        let targets = self.known.clone();
        let mut wanted: BTreeMap<PathBuf, Target> = BTreeMap::new();
        for t in targets {
            let exclude = t.exclude.as_deref().and_then(|p| glob::Pattern::new(p).ok());
            for path in glob::glob(&t.pattern).into_iter().flatten().flatten() {
                let is_excluded = exclude.as_ref().is_some_and(|e| e.matches_path(&path));
                if !is_excluded && wanted.len() < FILES_MAX {
                    wanted.entry(path).or_insert_with(|| t.clone());
                }
            }
        }
        let gone: Vec<PathBuf> =
            self.open.keys().filter(|p| !wanted.contains_key(*p)).cloned().collect();
        for path in gone {
            if let Some(mut tail) = self.open.remove(&path) {
                tail.is_gone = true;
                self.leaving.push(tail);
            }
        }
        for (path, target) in wanted {
            let relabelled = |t: &Tail| {
                let own = t.labels.iter().filter(|(n, _)| *n != "filename");
                Labels::from_pairs(own) != target.labels
            };
            if self.open.get(&path).is_some_and(relabelled)
                && let Some(tail) = self.open.remove(&path)
            {
                self.note(&path, tail.position());
            }
            if self.open.contains_key(&path) {
                continue;
            }
            match self.begin(&path, &target) {
                Ok(tail) => drop(self.open.insert(path, tail)),
                Err(e) => tracing::warn!(file = %path.display(), error = %e, "file was not read"),
            }
        }
        self.searched = Some(Instant::now());
        let open = self.open.len() as u64;
        self.shipper.counts.files.store(open, Relaxed);
    }

    /// Notes where a file is that is opened again before this is stored.
    fn note(&mut self, path: &Path, position: Position) {
        let [now, _] = &mut self.unsaved;
        now.insert(path.display().to_string(), position);
    }

    fn begin(&mut self, path: &Path, target: &Target) -> std::io::Result<Tail> {
        let name = path.display().to_string();
        let meta = std::fs::metadata(path)?;
        // It came back before it was read to its end.
        let is_back = |t: &Tail| t.path == path && t.identity == identity(&meta);
        if let Some(at) = self.leaving.iter().position(is_back) {
            let tail = self.leaving.swap_remove(at);
            self.note(path, tail.position());
        }
        let known = match self.unsaved.iter().find_map(|u| u.get(&name)) {
            Some(p) => p.clone(),
            None => {
                let p = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
                p.get(&name).cloned().unwrap_or_default()
            }
        };
        let is_same = known.identity.is_empty() || known.identity == identity(&meta);
        let is_read = self.leaving.iter().any(|t| t.identity == known.identity);
        if !is_same && known.offset > 0 && !is_read {
            // It was rotated while nobody looked: its end is read first, if it is still there.
            let folder = path.parent().unwrap_or(Path::new("/"));
            let siblings = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let moved = siblings
                .map(|e| e.path())
                .find(|p| std::fs::metadata(p).is_ok_and(|m| identity(&m) == known.identity));
            if let Some(moved) = moved
                && let Ok(mut tail) =
                    Tail::open(&moved, path, target, (&self.job, &self.shipper), known.offset)
            {
                tail.is_gone = true;
                self.leaving.push(tail);
            }
        }
        let from = if is_same { known.offset } else { 0 };
        Tail::open(path, path, target, (&self.job, &self.shipper), from)
    }

    fn round(&mut self) -> Round {
        let [now, before] = &mut self.unsaved;
        *before = std::mem::take(now);
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_news = targets != self.known;
        self.known = targets;
        if is_news || self.searched.is_none_or(|t| t.elapsed() >= SEARCH) {
            self.search();
        }
        let now = (self.clock)();
        let mut round = Round::default();
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain_mut(|t| {
            t.at_end = false;
            while !t.at_end && round.bytes < BATCH_BYTES {
                self.read(t, now, &mut round);
            }
            if t.at_end {
                self.finish(t, now, &mut round);
                if !self.open.contains_key(&t.path) {
                    round.reached.push((t.path.display().to_string(), t.position()));
                }
            }
            !t.at_end
        });
        self.leaving = leaving;
        let mut open = std::mem::take(&mut self.open);
        let mut replaced = Vec::new();
        let mut all: Vec<_> = open.iter_mut().collect();
        let count = all.len().max(1);
        all.rotate_left(self.turn % count);
        // One chunk of each in turn, until there is enough or nothing new.
        let mut looked = 0;
        let mut is_new = true;
        while is_new && round.bytes < BATCH_BYTES {
            is_new = false;
            for (i, (_, t)) in all.iter_mut().enumerate() {
                if round.bytes >= BATCH_BYTES {
                    break;
                }
                if i >= looked {
                    t.look();
                    looked = i + 1;
                }
                self.read(t, now, &mut round);
                is_new |= !t.at_end;
            }
        }
        self.turn = (self.turn + looked) % count;
        for (path, t) in all.into_iter().take(looked) {
            t.pipeline.flush(now, false, &mut |e| put(&mut round.batch, e));
            round.pause = round.pause.max(t.pipeline.pause(now));
            if t.is_gone && t.at_end {
                self.finish(t, now, &mut round);
                replaced.push(path.clone());
            } else if !self.leaving.iter().any(|l| l.path == *path) {
                // The position belongs to the file before until that is read to its end.
                round.reached.push((path.display().to_string(), t.position()));
            }
        }
        for path in replaced {
            open.remove(&path);
            // The name may belong to a new file already.
            self.searched = None;
            round.reached.push((path.display().to_string(), Position::default()));
        }
        self.open = open;
        let [now, _] = &mut self.unsaved;
        now.extend(round.reached.iter().cloned());
        round
    }

    /// Gives up what is left of a file that ends here.
    fn finish(&mut self, t: &mut Tail, now: TimestampNs, round: &mut Round) {
        if !t.partial.is_empty() {
            let rest = std::mem::take(&mut t.partial);
            self.line(t, &rest, t.read_at - rest.len() as u64, now, round);
        }
        t.pipeline.flush(now, true, &mut |e| put(&mut round.batch, e));
    }

    fn line_bytes_max(&self) -> usize {
        match self.limits.max_line_size {
            Some(b) if b.0 > 0 => usize::try_from(b.0).unwrap_or(LINE_BYTES_MAX),
            _ => LINE_BYTES_MAX,
        }
    }

    /// Reads a chunk and takes its whole lines.
    fn read(&mut self, t: &mut Tail, now: TimestampNs, round: &mut Round) {
        let before = t.partial.len();
        let mut bytes = std::mem::take(&mut t.partial);
        bytes.resize(before + CHUNK, 0);
        let read = bytes.get_mut(before..).map_or(Ok(0), |b| t.reader.read(b));
        let n = read.unwrap_or_else(|e| {
            tracing::warn!(file = %t.path.display(), error = %e, "file cannot be read on");
            t.is_gone = true;
            0
        });
        bytes.truncate(before + n);
        t.at_end = n == 0;
        round.bytes += n;
        self.shipper.counts.bytes.fetch_add(n as u64, Relaxed);
        let start = t.read_at - before as u64;
        t.read_at += n as u64;
        let max = self.line_bytes_max();
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', &bytes) {
            if end < before {
                continue;
            }
            let line = bytes.get(from..end).unwrap_or_default();
            if std::mem::take(&mut t.skipping) {
                // The end of a line that was too long.
            } else if line.len() > max {
                self.too_long(t, line, max, start + from as u64, now, round);
            } else {
                self.line(t, line, start + from as u64, now, round);
            }
            from = end + 1;
        }
        bytes.drain(..from);
        if bytes.len() > max {
            if !t.skipping {
                let cut = bytes.clone();
                self.too_long(t, &cut, max, start + from as u64, now, round);
                t.skipping = true;
            }
            bytes.clear();
        }
        t.partial = bytes;
    }

    fn too_long(
        &mut self,
        t: &mut Tail,
        line: &[u8],
        max: usize,
        at: u64,
        now: TimestampNs,
        round: &mut Round,
    ) {
        self.shipper.counts.too_long.fetch_add(1, Relaxed);
        if self.limits.max_line_size_truncate {
            self.line(t, line.get(..max).unwrap_or_default(), at, now, round);
        }
    }

    fn line(&mut self, t: &mut Tail, line: &[u8], at: u64, now: TimestampNs, round: &mut Round) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = String::from_utf8_lossy(line).into_owned();
        self.shipper.counts.lines.fetch_add(1, Relaxed);
        // Lines of one file that say the same are still two lines: no two have one time.
        self.last_ns = now.nanos().max(self.last_ns + 1);
        let time = TimestampNs::from_nanos(self.last_ns);
        if t.pipeline.is_empty() {
            let r = record(t.stream.clone(), time, text, LabelMap::new(), true);
            round.batch.entry(None).or_default().push(r);
            return;
        }
        let mut entry = Entry::new(time, text, &t.labels);
        entry.origin = at;
        t.pipeline.take(entry, now, &mut |e| put(&mut round.batch, e));
    }
}

pub(crate) fn put(batch: &mut Batch, e: Entry) {
    if e.labels.is_empty() {
        return;
    }
    let tenant = e.tenant.clone();
    batch.entry(tenant).or_default().push(e.into_record(false));
}
