//! Open segments, and what delete requests hide in them.

use crate::manifest::{SegmentMeta, Tombstone};
use crate::records::Record;
use crate::segment::file::SegmentFile;
use crate::segment::kept::Kept;
use crate::segment::rows::RowSegment;
use crate::segment::series::SeriesSegment;
use crate::segment::{SegmentError, Signal};
use crate::tier::{Remote, Whole};
use crate::vfs::{ReadFile, Vfs};
use obs_model::{
    DeleteScope, Labels, LineTest, LineText, MatchOp, Matcher, ReadAt, Samples, TenantId, TraceId,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

#[derive(Debug)]
pub(crate) enum SegmentData {
    Metrics(SeriesSegment),
    Rows(RowSegment),
}

#[derive(Debug)]
enum Source {
    Local(Arc<dyn Vfs>),
    Remote(Arc<Remote>),
}

/// A segment, opened at first use.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) meta: SegmentMeta,
    source: Source,
    /// Of the file, or what to call the object in messages.
    path: PathBuf,
    data: OnceLock<SegmentData>,
    kept: Arc<Kept>,
    doomed: AtomicBool,
    /// What retention by label decided last; 0 for nothing.
    swept: AtomicU64,
}

impl OpenSegment {
    fn with(meta: SegmentMeta, source: Source, path: PathBuf, kept: Arc<Kept>) -> Self {
        Self {
            meta,
            source,
            path,
            data: OnceLock::new(),
            kept,
            doomed: AtomicBool::new(false),
            swept: AtomicU64::new(0),
        }
    }

    pub(crate) fn new(vfs: Arc<dyn Vfs>, dir: &Path, meta: SegmentMeta, kept: Arc<Kept>) -> Self {
        let path = dir.join(meta.relative_path());
        Self::with(meta, Source::Local(vfs), path, kept)
    }

    pub(crate) fn remote(meta: SegmentMeta, remote: Arc<Remote>, kept: Arc<Kept>) -> Self {
        let path = PathBuf::from(format!("object of {}", meta.relative_path()));
        Self::with(meta, Source::Remote(remote), path, kept)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn swept(&self) -> u64 {
        self.swept.load(Ordering::Relaxed)
    }

    pub(crate) fn set_swept(&self, decision: u64) {
        self.swept.store(decision, Ordering::Relaxed);
    }

    pub(crate) const fn is_remote(&self) -> bool {
        matches!(self.source, Source::Remote(_))
    }

    /// Returns the time of the end in ns.
    pub(crate) const fn end_ns(&self) -> i64 {
        self.meta.max_time.saturating_mul(1_000_000_000 / self.meta.signal.per_second())
    }

    /// Lets the file go as soon as nobody reads it. The manifest no longer names it.
    pub(crate) fn doom(&self) {
        self.doomed.store(true, Ordering::Relaxed);
    }

    /// Returns the bytes as they are, for copies.
    pub(crate) fn raw(&self) -> std::io::Result<Box<dyn ReadAt>> {
        Ok(match &self.source {
            Source::Local(vfs) => Box::new(Local(vfs.open(&self.path)?)),
            Source::Remote(r) => Box::new(Whole::new(r.clone())),
        })
    }

    /// Opens the file if it is not open yet. A failure is tried again at the next use.
    pub(crate) fn data(&self) -> Result<&SegmentData, SegmentError> {
        if let Some(d) = self.data.get() {
            return Ok(d);
        }
        let mut notes = Vec::new();
        let known = Some(self.meta.index);
        let file = match &self.source {
            Source::Local(vfs) => vfs.open(&self.path)?,
            Source::Remote(r) => r.file()?,
        };
        let (file, index) = SegmentFile::read_from(file, &self.path, known, &mut notes)?;
        for note in notes {
            tracing::warn!(file = %self.path.display(), note, "damage that a copy made good");
        }
        let data = match self.meta.signal {
            Signal::Metrics => {
                let series = SeriesSegment::new(file, &index)?;
                SegmentData::Metrics(series.keeping(self.kept.clone(), self.meta.id))
            }
            Signal::Logs | Signal::Spans | Signal::Calls => {
                let rows = RowSegment::new(file, &index)?;
                SegmentData::Rows(rows.keeping(self.kept.clone(), self.meta.id))
            }
        };
        Ok(self.data.get_or_init(|| data))
    }

    pub(crate) fn series(&self) -> Result<Option<&SeriesSegment>, SegmentError> {
        Ok(if let SegmentData::Metrics(s) = self.data()? { Some(s) } else { None })
    }

    pub(crate) fn rows(&self) -> Result<Option<&RowSegment>, SegmentError> {
        Ok(if let SegmentData::Rows(s) = self.data()? { Some(s) } else { None })
    }
}

impl Drop for OpenSegment {
    fn drop(&mut self) {
        let is_doomed = *self.doomed.get_mut();
        if is_doomed {
            self.kept.forget(self.meta.id);
        }
        if let Source::Local(vfs) = &self.source
            && is_doomed
        {
            // A failure leaves an orphan, which the next start removes.
            let _ = vfs.remove(&self.path);
        }
    }
}

/// A local file, for copies.
struct Local(Box<dyn ReadFile>);

impl ReadAt for Local {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buf)
    }
}

#[derive(Debug)]
struct Compiled {
    tombstone: Tombstone,
    matchers: Vec<Matcher>,
    lines: Vec<CompiledTest>,
}

/// A test of lines that is ready to be run.
#[derive(Debug)]
struct CompiledTest {
    negated: bool,
    literals: Vec<String>,
    /// Of the whole line: matchers are anchored.
    regexes: Vec<Matcher>,
}

impl CompiledTest {
    fn new(test: &LineTest) -> Result<Self, String> {
        let mut out = Self { negated: test.negated, literals: vec![], regexes: vec![] };
        for text in &test.any {
            match text {
                LineText::Literal(t) => out.literals.push(t.clone()),
                LineText::Regex(r) => {
                    let whole = format!("(?s:.*)(?:{r})(?s:.*)");
                    let m = Matcher::new("line", MatchOp::Regex, &whole);
                    out.regexes.push(m.map_err(|e| e.to_string())?);
                }
            }
        }
        Ok(out)
    }

    fn passes(&self, line: &str) -> bool {
        let any = self.literals.iter().any(|t| line.contains(t.as_str()))
            || self.regexes.iter().any(|r| r.matches(line));
        any != self.negated
    }
}

impl Compiled {
    fn new(tombstone: Tombstone) -> Result<Self, String> {
        let (matchers, lines) = match &tombstone.scope {
            DeleteScope::Series { matchers, .. } => (matchers.as_slice(), &[][..]),
            DeleteScope::Logs { matchers, lines, .. } => (matchers.as_slice(), lines.as_slice()),
            DeleteScope::Tenant | DeleteScope::Trace(_) => (&[][..], &[][..]),
        };
        let matcher = |(name, op, value): &(String, MatchOp, String)| {
            Matcher::new(name, *op, value).map_err(|e| e.to_string())
        };
        let matchers = matchers.iter().map(matcher).collect::<Result<_, _>>()?;
        let lines = lines.iter().map(CompiledTest::new).collect::<Result<_, _>>()?;
        Ok(Self { tombstone, matchers, lines })
    }

    /// Returns whether a row of a segment that the request covers is deleted.
    fn hides(&self, row: &impl Record) -> bool {
        match &self.tombstone.scope {
            DeleteScope::Tenant => true,
            DeleteScope::Trace(id) => row.trace() == Some(*id),
            DeleteScope::Series { .. } => false,
            DeleteScope::Logs { start, end, .. } => row.line().is_some_and(|line| {
                (*start..=*end).contains(&row.time())
                    && self.matchers.iter().all(|m| m.matches(&row.label(&m.name)))
                    && self.lines.iter().all(|t| t.passes(line))
            }),
        }
    }
}

/// The delete requests in force.
#[derive(Debug, Default)]
pub(crate) struct Tombstones(Vec<Compiled>);

/// Checks that a request's matchers and tests compile.
pub(crate) fn check_scope(scope: &DeleteScope) -> Result<(), String> {
    let (id, before, tenant) = (0, 0, TenantId::default());
    Compiled::new(Tombstone { id, tenant, scope: scope.clone(), before }).map(|_| ())
}

impl Tombstones {
    pub(crate) fn new(list: impl Iterator<Item = Tombstone>) -> Self {
        // Requests were compiled before they were made durable.
        Self(list.filter_map(|t| Compiled::new(t).ok()).collect())
    }

    pub(crate) fn with(&self, t: Tombstone) -> Self {
        let all = self.0.iter().map(|c| c.tombstone.clone()).chain([t]);
        Self::new(all)
    }

    pub(crate) fn without(&self, ids: &[u64]) -> Self {
        Self::new(self.0.iter().map(|c| c.tombstone.clone()).filter(|t| !ids.contains(&t.id)))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tombstone> {
        self.0.iter().map(|c| &c.tombstone)
    }

    /// Returns the requests that hide something in a segment.
    pub(crate) fn of(&self, m: &SegmentMeta) -> Hidden<'_> {
        let covers = |c: &&Compiled| {
            let t = &c.tombstone;
            t.tenant == m.tenant && m.order < t.before && m.cleaned < t.id && touches(&t.scope, m)
        };
        Hidden(self.0.iter().filter(covers).collect())
    }
}

const fn touches(scope: &DeleteScope, m: &SegmentMeta) -> bool {
    match scope {
        DeleteScope::Tenant => true,
        DeleteScope::Trace(_) => !matches!(m.signal, Signal::Metrics),
        DeleteScope::Series { start, end, .. } => {
            matches!(m.signal, Signal::Metrics) && m.overlaps(*start, *end)
        }
        DeleteScope::Logs { start, end, .. } => {
            matches!(m.signal, Signal::Logs) && m.overlaps(*start, end.saturating_add(1))
        }
    }
}

/// What is hidden in one segment.
#[derive(Debug)]
pub(crate) struct Hidden<'a>(Vec<&'a Compiled>);

impl Hidden<'_> {
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn everything(&self) -> bool {
        self.0.iter().any(|c| c.tombstone.scope == DeleteScope::Tenant)
    }

    /// Returns whether a row is deleted.
    pub(crate) fn hides(&self, row: &impl Record) -> bool {
        self.0.iter().any(|c| c.hides(row))
    }

    pub(crate) fn hides_trace(&self, trace: Option<TraceId>) -> bool {
        trace.is_some_and(|t| self.0.iter().any(|c| c.tombstone.scope == DeleteScope::Trace(t)))
    }

    /// Takes the deleted samples out of a series.
    pub(crate) fn filter(&self, labels: &Labels, samples: &mut Samples) {
        for c in &self.0 {
            if let DeleteScope::Series { start, end, .. } = &c.tombstone.scope
                && Matcher::all_match(&c.matchers, labels)
            {
                samples.retain_times(|t| !(*start..=*end).contains(&t));
            }
        }
    }

    /// Returns the highest request covered.
    pub(crate) fn last(&self) -> u64 {
        self.0.iter().map(|c| c.tombstone.id).max().unwrap_or(0)
    }
}

/// Tells which segments of a list belong to a tenant and signal and overlap a range.
pub(crate) fn wanted(
    s: &OpenSegment,
    tenant: &TenantId,
    signal: Signal,
    (start, end): (i64, i64),
) -> bool {
    s.meta.signal == signal && s.meta.tenant == *tenant && s.meta.overlaps(start, end)
}
