//! The ports: how data reaches a store and how engines read it back.
//!
//! Writes are asynchronous because they wait for the disk; reads are synchronous, CPU-bound and
//! called on a blocking pool. Every read takes a [`Budget`], which the caller may cancel.

use crate::memory::MemoryPool;
use crate::{
    AttributeScope, ColumnSeries, Labels, LlmCall, LogRecord, MatchOp, Matcher, MetricMetadata,
    Moment, Sample, Series, Span, SpanField, SpanId, SpanRow, TenantId, TimestampMs, TimestampNs,
    TraceId, WholeSpan,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{ControlFlow, Range};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What one request writes; stored as a whole or not at all.
#[derive(Debug, Clone, Default)]
pub struct WriteBatch {
    pub series: Vec<Series>,
    /// Single samples of series, the shape of a scrape and of remote write.
    pub points: Vec<(Labels, Sample)>,
    pub metadata: Vec<MetricMetadata>,
    pub logs: Vec<LogRecord>,
    pub spans: Vec<Span>,
    /// Shared with those who are told of calls.
    pub calls: Vec<Arc<LlmCall>>,
}

impl WriteBatch {
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
            && self.points.is_empty()
            && self.metadata.is_empty()
            && self.logs.is_empty()
            && self.spans.is_empty()
            && self.calls.is_empty()
    }
}

/// Why a write was refused. Nothing of the batch was stored, except after `Failed`, when it may
/// have been.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum AppendError {
    #[error("ingest is over its limit: {0}; retry later")]
    Overloaded(&'static str),
    #[error("disk is full: {0}")]
    DiskFull(String),
    #[error("store is read-only: {0}")]
    ReadOnly(String),
    #[error("store is shutting down")]
    Closed,
    #[error("batch of {bytes} bytes is over the limit of {max} bytes")]
    TooLarge { bytes: usize, max: usize },
    #[error("write failed: {0}")]
    Failed(String),
}

/// What an accepted write left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Appended {
    /// Samples of new series over the limit; everything else is stored.
    pub rejected: u64,
    pub reason: Option<String>,
}

pub type AppendFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Appended, AppendError>> + Send + 'a>>;

/// Accepts writes. `Ok` means that the batch survives a power cut.
pub trait Append: Send + Sync + fmt::Debug {
    fn append<'a>(&'a self, tenant: &'a TenantId, batch: WriteBatch) -> AppendFuture<'a>;
}

/// Why a read stopped.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SelectError {
    #[error("query was cancelled or timed out")]
    Cancelled,
    #[error("query needs more than {0}; narrow the time range or the selector")]
    TooMuch(String),
    #[error("store could not be read: {0}")]
    Storage(String),
}

/// What a query may still use. Cheap to share between threads.
#[derive(Debug)]
pub struct Budget {
    pool: Option<Arc<MemoryPool>>,
    cancelled: AtomicBool,
    samples_left: AtomicI64,
    bytes_left: AtomicI64,
    samples_max: i64,
    bytes_max: i64,
    missing: Mutex<Vec<String>>,
}

impl Budget {
    /// Notes kept; a damaged disk would have no end of them.
    const MISSING_MAX: usize = 20;

    /// Allows `samples_max` samples (or records) and `bytes_max` bytes of them.
    pub const fn new(samples_max: i64, bytes_max: i64) -> Self {
        Self {
            pool: None,
            cancelled: AtomicBool::new(false),
            samples_left: AtomicI64::new(samples_max),
            bytes_left: AtomicI64::new(bytes_max),
            samples_max,
            bytes_max,
            missing: Mutex::new(Vec::new()),
        }
    }

    /// Like [`Self::new`]; the bytes are taken from what all queries share, too, and go back to it
    /// when the budget is dropped.
    pub fn of_pool(samples_max: i64, bytes_max: i64, pool: Arc<MemoryPool>) -> Self {
        let mut budget = Self::new(samples_max, bytes_max);
        budget.pool = Some(pool);
        budget
    }

    /// Gives bytes back that were taken and are no longer held.
    pub fn release(&self, bytes: usize) {
        let n = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes_left.fetch_add(n, Ordering::Relaxed);
        if let Some(p) = &self.pool {
            p.give_back(n);
        }
    }

    /// Notes data that could not be read: the answer is partial.
    pub fn note_missing(&self, what: String) {
        let mut list = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() < Self::MISSING_MAX && !list.contains(&what) {
            list.push(what);
        }
    }

    /// Returns what could not be read; empty when the answer is whole.
    pub fn missing(&self) -> Vec<String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes every later check fail.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// When the query was cancelled.
    pub fn check(&self) -> Result<(), SelectError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(SelectError::Cancelled) } else { Ok(()) }
    }

    /// Takes records and bytes from what is left.
    ///
    /// # Errors
    /// When either is used up or the query was cancelled.
    pub fn take(&self, samples: usize, bytes: usize) -> Result<(), SelectError> {
        self.check()?;
        let left = |counter: &AtomicI64, n: usize| {
            let n = i64::try_from(n).unwrap_or(i64::MAX);
            counter.fetch_sub(n, Ordering::Relaxed).saturating_sub(n)
        };
        if left(&self.samples_left, samples) < 0 {
            return Err(SelectError::TooMuch(format!("{} samples or records", self.samples_max)));
        }
        let bytes_left = left(&self.bytes_left, bytes);
        if let Some(p) = &self.pool {
            let n = i64::try_from(bytes).unwrap_or(i64::MAX);
            if p.add(n) > p.queries_max() {
                let max = p.queries_max();
                let what = format!("the {max} bytes of memory that all queries share");
                return Err(SelectError::TooMuch(what));
            }
        }
        if bytes_left < 0 {
            return Err(SelectError::TooMuch(format!("{} bytes of memory", self.bytes_max)));
        }
        Ok(())
    }

    /// Returns the samples and records taken so far.
    pub fn samples_taken(&self) -> i64 {
        self.samples_max - self.samples_left.load(Ordering::Relaxed)
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        if let Some(p) = &self.pool {
            let taken = self.bytes_max - self.bytes_left.load(Ordering::Relaxed);
            p.give_back(taken);
        }
    }
}

/// Series with any sample in `[start, end]` whose labels match.
#[derive(Debug, Clone)]
pub struct SeriesSelection<'a> {
    pub matchers: &'a [Matcher],
    pub start: TimestampMs,
    pub end: TimestampMs,
}

/// Reads metrics.
pub trait SelectSeries: Send + Sync {
    /// Returns matching series, sorted by labels, samples in `[start, end]` in time order with
    /// one sample a timestamp.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn select(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Series>, SelectError>;

    /// Like [`Self::select`], in columns.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn select_columns(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<ColumnSeries>, SelectError> {
        Ok(self.select(tenant, selection, budget)?.into_iter().map(Into::into).collect())
    }

    /// Returns the label sets alone, sorted.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn label_sets(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError>;

    /// Returns metadata by metric family name.
    fn metadata(&self, tenant: &TenantId) -> BTreeMap<String, MetricMetadata>;

    /// Begins to note changes of a tenant's samples up to a time, for one who keeps answers about
    /// them: what is read after this call is as it was at the moment returned, or later. `None` if
    /// the store cannot tell.
    fn watch(&self, _: &TenantId, _until: TimestampMs) -> Option<Moment> {
        None
    }

    /// Returns the time before which no sample that was watched at a moment was written, replaced or
    /// deleted since; `None` if none was at all.
    fn changed_since(&self, _: &TenantId, _: Moment) -> Option<TimestampMs> {
        Some(TimestampMs::from_millis(i64::MIN))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Backward,
}

/// Records of matching streams in `[start, end)`.
#[derive(Debug, Clone)]
pub struct LogSelection<'a> {
    pub matchers: &'a [Matcher],
    pub start: TimestampNs,
    pub end: TimestampNs,
    pub direction: Direction,
    /// Only records of this trace.
    pub trace_id: Option<TraceId>,
    /// Only records whose line contains all of these.
    pub needles: &'a [String],
}

impl LogSelection<'_> {
    /// Everything, oldest first.
    pub const ALL: LogSelection<'static> = LogSelection {
        matchers: &[],
        start: TimestampNs::MIN,
        end: TimestampNs::MAX,
        direction: Direction::Forward,
        trace_id: None,
        needles: &[],
    };
}

/// What a scan that counts needs of each record.
#[derive(Clone, Copy)]
pub struct LogScan<'a> {
    /// Streams that are wanted, of those that match.
    pub accept: &'a dyn Fn(&Labels) -> bool,
    /// Whether the line is looked at; it may be empty otherwise.
    pub line: bool,
    /// Whether the ids of trace and span are looked at.
    pub ids: bool,
    /// Given if lines are only read as JSON objects: what is looked at of them.
    pub members: Option<LineMembers<'a>>,
}

/// What is looked at of a JSON line. Members that nobody wants may be missing in it, and a line
/// that does not begin with `{` may be empty.
#[derive(Clone, Copy)]
pub struct LineMembers<'a> {
    /// Whether a member is wanted: by its key as it stands there, and whether its value is an
    /// object or array.
    pub wants: &'a dyn Fn(&str, bool) -> bool,
    /// A member of which nothing but its number is looked at, if there is one.
    pub number: Option<NumberMember<'a>>,
    /// What else is looked for in lines: members that may hold one of these are wanted too, and so is
    /// all of a line that is no object or may hold one elsewhere.
    pub runs: &'a [LineRun],
    /// Whether a line with other digits in the place of its digits is the same to the visitor.
    pub digits_alike: bool,
    /// Whether the visitor may not want some of what it is shown; it is asked early then.
    pub may_refuse: bool,
}

/// A run of ASCII letters and digits in what is looked for in lines, which holds nothing that parts the
/// members of an object: see [`LineRun::PARTING`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineRun {
    pub text: String,
    /// Whether lines without it are not wanted; a scan may still visit them.
    pub is_needed: bool,
}

impl LineRun {
    /// Characters that stand between members, and begin an escape in them.
    pub const PARTING: [char; 8] = ['"', ',', ':', '{', '}', '[', ']', '\\'];
}

/// A member that is looked at as a number only.
#[derive(Clone, Copy)]
pub struct NumberMember<'a> {
    pub key: &'a str,
    /// Whether a record with this number is wanted. Those with the same answer are the same to the
    /// scan, which may leave out those that are not wanted.
    pub holds: &'a dyn Fn(f64) -> bool,
    /// Whether the numbers themselves are wanted, as [`LogRows::values`].
    pub is_value: bool,
    /// The streams of which this is so.
    pub of: &'a dyn Fn(&Labels) -> bool,
}

/// The records that a visited one stands for.
#[derive(Debug, Clone, Copy)]
pub struct LogRows<'a> {
    /// Their times, nanoseconds, not in order.
    pub times: &'a [i64],
    /// The number of each, if numbers are wanted and not to be read in the line.
    pub values: &'a [f64],
    /// How many more there are that are left out, as the visitor did not want one like them.
    pub left_out: usize,
}

impl<'a> LogRows<'a> {
    /// A record that stands for itself.
    pub const fn one(time: &'a i64) -> Self {
        Self::at(std::slice::from_ref(time))
    }

    /// Records of which only the times are told apart.
    pub const fn at(times: &'a [i64]) -> Self {
        Self { times, values: &[], left_out: 0 }
    }

    /// Returns how many records these are, with those that are left out.
    pub const fn count(&self) -> usize {
        self.times.len() + self.left_out
    }
}

/// What the visitor of a counting scan says: stop, or whether records that differ from this one in
/// their times and numbers alone are wanted too. The scan may leave them out where they are not, and
/// say how many.
pub type VisitScan<'a> = &'a mut dyn FnMut(&LogRecord, LogRows<'_>) -> ControlFlow<(), bool>;

impl std::fmt::Debug for LogScan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("LogScan");
        out.field("line", &self.line).field("ids", &self.ids).field("members", &self.members);
        out.finish_non_exhaustive()
    }
}

impl std::fmt::Debug for LineMembers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LineMembers").field("number", &self.number).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NumberMember<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NumberMember").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What the visitor of a scan says: go on or stop.
pub type Visit<'a, T> = &'a mut dyn FnMut(&Arc<T>) -> ControlFlow<()>;

/// Reads logs.
pub trait SelectLogs: Send + Sync {
    /// Visits matching records in time order of `direction`, until the visitor breaks.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn select_logs(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
        visit: Visit<'_, LogRecord>,
    ) -> Result<(), SelectError>;

    /// Visits matching records, each once, in no order, until the visitor breaks. Records that the
    /// scan cannot tell apart may come as one. Level and event name are set only of records that
    /// have a resource, the observed time never.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn scan_logs(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        scan: LogScan<'_>,
        budget: &Budget,
        visit: VisitScan<'_>,
    ) -> Result<(), SelectError> {
        self.select_logs(tenant, selection, budget, &mut |r| {
            if !(scan.accept)(&r.stream) {
                return ControlFlow::Continue(());
            }
            visit(r, LogRows::one(&r.timestamp.nanos())).map_continue(|_| ())
        })
    }

    /// Returns the matching streams that have records in the range, sorted.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn streams(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError>;
}

/// Spans that start in `[start, end)`.
#[derive(Debug, Clone)]
pub struct SpanSelection {
    pub start: TimestampNs,
    pub end: TimestampNs,
    pub service: Option<String>,
    pub operation: Option<String>,
}

impl SpanSelection {
    /// Everything.
    pub const ALL: Self =
        Self { start: TimestampNs::MIN, end: TimestampNs::MAX, service: None, operation: None };

    /// Returns whether a span is in the selection.
    pub fn contains(&self, span: &Span) -> bool {
        span.start >= self.start
            && span.start < self.end
            && self.service.as_deref().is_none_or(|s| s == span.service())
            && self.operation.as_deref().is_none_or(|o| o == span.name)
    }
}

/// What a scan reads of spans that start in `[start, end)`.
#[derive(Debug, Clone, Copy)]
pub struct SpanScan<'a> {
    pub start: TimestampNs,
    pub end: TimestampNs,
    pub fields: &'a [SpanField],
    /// Only spans of these traces, unless there are none.
    pub traces: &'a [TraceId],
    /// What must hold of a span. Others need not be visited, but may be.
    pub equal: &'a [Equal<'a>],
}

/// One of some fields, by their place in the scan, must be equal to a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Equal<'a> {
    pub fields: Vec<usize>,
    pub text: &'a str,
    /// Whether numbers and the like are compared by their text; otherwise only texts are equal.
    pub by_text: bool,
}

/// Receives the spans of a scan.
pub trait VisitSpans {
    /// Whether spans that start at `latest` or before are wanted still: none of those that follow
    /// starts later. Asked before each part, from where on the codes of fields mean something else.
    fn wants(&mut self, _latest: TimestampNs) -> bool {
        true
    }

    /// Takes a span; breaks to see no more.
    ///
    /// # Errors
    /// When the reader's budget ends.
    fn visit(&mut self, row: &dyn SpanRow) -> Result<ControlFlow<()>, SelectError>;
}

/// Calls that start in `[start, end)`.
#[derive(Debug, Clone)]
pub struct CallSelection {
    pub start: TimestampNs,
    pub end: TimestampNs,
    pub trace_id: Option<TraceId>,
    /// Only rows that revise an earlier one.
    pub revisions_only: bool,
}

impl CallSelection {
    /// Returns whether a call is in the selection.
    pub fn contains(&self, call: &LlmCall) -> bool {
        call.start >= self.start
            && call.start < self.end
            && self.trace_id.is_none_or(|t| t == call.trace_id)
            && (!self.revisions_only || call.revision > 0)
    }
}

/// Reads traces and the LLM calls found in them.
pub trait SelectSpans: Send + Sync {
    /// Returns every span of a trace, by start time, one a span id. Empty when unknown.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn trace(
        &self,
        tenant: &TenantId,
        id: TraceId,
        budget: &Budget,
    ) -> Result<Vec<Arc<Span>>, SelectError>;

    /// Visits matching spans, newest part of the store first, in no order within a part.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn select_spans(
        &self,
        tenant: &TenantId,
        selection: &SpanSelection,
        budget: &Budget,
        visit: Visit<'_, Span>,
    ) -> Result<(), SelectError>;

    /// Returns the spans of several traces, each as [`Self::trace`] does.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn traces(
        &self,
        tenant: &TenantId,
        ids: &[TraceId],
        budget: &Budget,
    ) -> Result<Vec<Vec<Arc<Span>>>, SelectError> {
        ids.iter().map(|id| self.trace(tenant, *id, budget)).collect()
    }

    /// Visits fields of spans, the part with the latest spans first. A span that a client sent
    /// twice may be visited twice: whoever counts must remember what it counted.
    ///
    /// # Errors
    /// See [`SelectError`], and those of the visitor.
    fn scan_spans(
        &self,
        tenant: &TenantId,
        scan: &SpanScan<'_>,
        budget: &Budget,
        visitor: &mut dyn VisitSpans,
    ) -> Result<(), SelectError> {
        let selection =
            SpanSelection { start: scan.start, end: scan.end, service: None, operation: None };
        let mut result = Ok(());
        if !visitor.wants(TimestampNs::MAX) {
            return Ok(());
        }
        self.select_spans(tenant, &selection, budget, &mut |span| {
            if !scan.traces.is_empty() && !scan.traces.contains(&span.trace_id) {
                return ControlFlow::Continue(());
            }
            let row = WholeSpan { span, fields: scan.fields };
            visitor.visit(&row).unwrap_or_else(|e| {
                result = Err(e);
                ControlFlow::Break(())
            })
        })?;
        result
    }

    /// Returns the attributes' keys of spans in `[start, end)` and, where they lie together with
    /// others, a little beyond.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn attribute_keys(
        &self,
        tenant: &TenantId,
        start: TimestampNs,
        end: TimestampNs,
        budget: &Budget,
    ) -> Result<BTreeSet<(AttributeScope, String)>, SelectError> {
        let mut out = BTreeSet::new();
        let selection = SpanSelection { start, end, service: None, operation: None };
        self.select_spans(tenant, &selection, budget, &mut |s| {
            s.attribute_keys(&mut |scope, key| {
                if !out.contains(&(scope, key.to_owned())) {
                    out.insert((scope, key.to_owned()));
                }
            });
            ControlFlow::Continue(())
        })?;
        Ok(out)
    }

    /// Returns each service with its operations (name and kind), sorted.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn operations(
        &self,
        tenant: &TenantId,
        budget: &Budget,
    ) -> Result<BTreeMap<String, Vec<(String, crate::SpanKind)>>, SelectError>;

    /// Visits every matching call once, as its latest revision tells it.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn current_calls(
        &self,
        tenant: &TenantId,
        selection: &CallSelection,
        budget: &Budget,
        visit: Visit<'_, LlmCall>,
    ) -> Result<(), SelectError> {
        let mut latest: HashMap<(TraceId, SpanId), u32> = HashMap::new();
        let revisions = CallSelection { revisions_only: true, ..*selection };
        self.select_calls(tenant, &revisions, budget, &mut |c| {
            let known = latest.entry((c.trace_id, c.span_id)).or_default();
            *known = (*known).max(c.revision);
            ControlFlow::Continue(())
        })?;
        self.select_calls(tenant, selection, budget, &mut |c| match latest
            .get(&(c.trace_id, c.span_id))
        {
            Some(revision) if c.revision != *revision => ControlFlow::Continue(()),
            _ => visit(c),
        })
    }

    /// Visits matching rows of LLM calls, revisions apart, newest part of the store first, in no
    /// order within a part.
    ///
    /// # Errors
    /// See [`SelectError`].
    fn select_calls(
        &self,
        tenant: &TenantId,
        selection: &CallSelection,
        budget: &Budget,
        visit: Visit<'_, LlmCall>,
    ) -> Result<(), SelectError>;
}

/// What a delete request covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeleteScope {
    /// Everything of the tenant.
    Tenant,
    /// All spans, calls and log records of a trace.
    Trace(TraceId),
    /// Samples of the series that match (name, operator, value), in `[start, end]` ms.
    Series { matchers: Vec<(String, MatchOp, String)>, start: i64, end: i64 },
    /// Log records in `[start, end]` ns of the streams that match (name, operator, value), whose
    /// line passes all tests.
    Logs { matchers: Vec<(String, MatchOp, String)>, lines: Vec<LineTest>, start: i64, end: i64 },
}

/// A test of a log line: that it has any of some texts, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineTest {
    pub negated: bool,
    pub any: Vec<LineText>,
}

/// What may be in a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineText {
    Literal(String),
    /// An expression of Go's, not anchored.
    Regex(String),
}

/// Bytes that can be read at any place.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// Those of the operating system; a short file is `UnexpectedEof`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..at + buf.len()));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// An object store: whole files by key, such as S3. Calls block; they are made off the runtime.
pub trait Objects: Send + Sync + fmt::Debug {
    /// Stores an object, or replaces it; it is durable and whole when this returns.
    ///
    /// # Errors
    /// When the content cannot be read or the store did not take it; what was there stays then.
    fn put(&self, key: &str, len: u64, content: &dyn ReadAt) -> io::Result<()>;
    /// Returns the bytes of a range, which must lie within the object.
    ///
    /// # Errors
    /// `NotFound` without such an object, otherwise when the store does not answer.
    fn read(&self, key: &str, range: Range<u64>) -> io::Result<Vec<u8>>;
    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// When the store does not answer.
    fn remove(&self, key: &str) -> io::Result<()>;
    /// Returns keys that begin with a folder (which ends in `/` or is empty), and their lengths.
    ///
    /// # Errors
    /// When the store does not answer.
    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>>;
}

/// A file of a store as it was at one moment; it does not change and stays readable.
pub struct SnapshotFile {
    /// Path below the data directory.
    pub path: String,
    pub len: u64,
    pub content: Box<dyn ReadAt>,
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotFile").field("path", &self.path).finish_non_exhaustive()
    }
}

pub type MaintainFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// What an administrator does with a store. Failures come as text.
pub trait Maintain: Send + Sync {
    /// Returns whether writes wait now, as data comes faster than it is flushed.
    fn is_behind(&self) -> bool;
    /// Turns recent data into segments; returns when they are durable.
    fn flush(&self) -> MaintainFuture<'_, ()>;
    /// Merges segments until none is due, which also takes deleted data off the disk.
    fn merge(&self) -> MaintainFuture<'_, ()>;
    /// Deletes data written so far; queries no longer see it afterwards. Doing it again changes
    /// nothing.
    fn delete<'a>(&'a self, tenant: &'a TenantId, scope: DeleteScope) -> MaintainFuture<'a, ()>;
    /// Returns files that make a data directory with everything acknowledged before the call.
    fn snapshot(&self) -> MaintainFuture<'_, Vec<SnapshotFile>>;
    /// Moves segments that are due at `now` to the object store; returns how many.
    fn tier(&self, now: TimestampNs) -> MaintainFuture<'_, u64>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_exactly_at_its_limit() {
        let b = Budget::new(3, 100);
        assert!(b.take(3, 100).is_ok());
        assert_eq!(b.samples_taken(), 3);
        assert!(matches!(b.take(1, 0), Err(SelectError::TooMuch(_))));
        b.cancel();
        assert_eq!(b.take(0, 0), Err(SelectError::Cancelled));
    }

    #[test]
    fn queries_share_a_pool_and_give_back_what_they_held() {
        let pool = Arc::new(MemoryPool::new(120, 20));
        let (a, b) = (Budget::of_pool(9, 90, pool.clone()), Budget::of_pool(9, 90, pool.clone()));
        assert!(a.take(1, 80).is_ok());
        assert!(matches!(b.take(1, 30), Err(SelectError::TooMuch(_))));
        drop(b);
        assert_eq!(pool.used(), 80);
        a.release(50);
        assert_eq!(pool.used(), 30);
        assert!(a.take(1, 60).is_ok());
        // Writes and merges find what queries must leave.
        assert!(pool.try_take(40).is_none());
        let held = pool.try_take(30).unwrap();
        assert!(matches!(a.take(0, 1), Err(SelectError::TooMuch(_))));
        drop((a, held));
        assert_eq!(pool.used(), 0);
        // What is there already counts, whether it fits or not.
        let head = pool.share();
        head.set(500);
        assert!(pool.try_take(1).is_none());
        head.set(50);
        assert!(pool.try_take(70).is_some());
        drop(head);
        assert_eq!(pool.used(), 0);
    }
}
