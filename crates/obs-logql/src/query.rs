//! Log queries.

use crate::ast::LogExpr;
use crate::labels::Entry;
use crate::pipeline::Pipeline;
use obs_model::{
    Budget, Direction, Labels, LogRecord, LogSelection, SelectError, SelectLogs, TenantId,
    TimestampNs,
};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

/// Why a query failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum QueryError {
    #[error("{0}")]
    Pipeline(String),
    #[error(transparent)]
    Select(#[from] SelectError),
    #[error("{0}")]
    Eval(String),
}

/// Labels by name; unlike those of a series they may have empty values.
pub type LabelMap = BTreeMap<String, String>;

/// One line of a result.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEntry {
    pub timestamp: TimestampNs,
    pub line: String,
    /// Labels that came with the record and labels taken out of the line; only when asked for.
    pub categories: Option<Box<(LabelMap, LabelMap)>>,
}

/// Entries that share all labels after the pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct LogStream {
    pub labels: LabelMap,
    /// In the query's direction.
    pub entries: Vec<LogEntry>,
}

/// How a log query's result is bounded and laid out.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    pub direction: Direction,
    /// Entries at most, over all streams.
    pub limit: usize,
    /// At most one entry a stream in this many nanoseconds; 0 means all.
    pub interval_ns: i64,
    /// Streams carry the stream's own labels, entries the others.
    pub categorize: bool,
}

fn owned(labels: &BTreeMap<&str, &str>) -> LabelMap {
    labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

/// Returns entries of `[start, end)`, grouped by their labels.
///
/// # Errors
/// When the store cannot be read or the budget ends.
pub fn run_logs(
    source: &dyn SelectLogs,
    tenant: &TenantId,
    expr: &LogExpr,
    (start, end): (TimestampNs, TimestampNs),
    options: LogOptions,
    budget: &Budget,
) -> Result<Vec<LogStream>, QueryError> {
    let needles = expr.needles();
    let LogOptions { direction, limit, interval_ns, categorize } = options;
    let selection = LogSelection {
        matchers: &expr.matchers,
        start,
        end,
        direction,
        trace_id: None,
        needles: &needles,
    };
    let mut plain: HashMap<Labels, usize> = HashMap::new();
    let mut index: BTreeMap<LabelMap, usize> = BTreeMap::new();
    let mut out: Vec<LogStream> = Vec::new();
    let mut left = limit;
    if limit == 0 {
        return Ok(out);
    }
    let mut pipeline = Pipeline::new(&expr.stages);
    let with_ids = categorize || expr.names_ids();
    let mut failure = None;
    source.select_logs(tenant, &selection, budget, &mut |r| {
        let mut entry = Entry::new(r, None);
        if with_ids {
            entry = entry.with_ids(r);
        }
        let Some(line) = pipeline.run(&r.line, r.timestamp, &mut entry) else {
            return ControlFlow::Continue(());
        };
        let mut categories = None;
        let is_plain = entry.is_plain() && !categorize;
        let known = if is_plain { plain.get(entry.stream()).copied() } else { None };
        let at = known.unwrap_or_else(|| {
            let labels = if categorize {
                let [stream, metadata, parsed] = entry.by_kind();
                categories = Some(Box::new((owned(&metadata), owned(&parsed))));
                owned(&stream)
            } else {
                owned(&entry.all())
            };
            let at = *index.entry(labels).or_insert_with_key(|labels| {
                out.push(LogStream { labels: labels.clone(), entries: Vec::new() });
                out.len() - 1
            });
            if is_plain {
                plain.insert(entry.stream().clone(), at);
            }
            at
        });
        let Some(stream) = out.get_mut(at) else { return ControlFlow::Continue(()) };
        if interval_ns > 0
            && let Some(last) = stream.entries.last()
            && last.timestamp.nanos().abs_diff(r.timestamp.nanos()) < interval_ns.unsigned_abs()
        {
            return ControlFlow::Continue(());
        }
        let line = line.into_owned();
        if budget.take(0, line.len() + 64).is_err() {
            failure = Some(SelectError::TooMuch("the memory of a query for its result".into()));
            return ControlFlow::Break(());
        }
        stream.entries.push(LogEntry { timestamp: r.timestamp, line, categories });
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    match failure {
        Some(e) => Err(e.into()),
        None => Ok(out),
    }
}

/// Runs a query's pipeline on one record, as a tail does: its labels and line, or `None` when a
/// stage drops it.
#[derive(Debug)]
pub struct Follower<'a> {
    expr: &'a LogExpr,
    pipeline: Pipeline<'a>,
}

impl<'a> Follower<'a> {
    pub fn new(expr: &'a LogExpr) -> Self {
        Self { expr, pipeline: Pipeline::new(&expr.stages) }
    }

    /// Returns whether a line of a stream is one of the query's.
    pub fn matches(&mut self, stream: &Labels, line: &str) -> bool {
        let mut entry = Entry::of_stream(stream);
        obs_model::Matcher::all_match(&self.expr.matchers, stream)
            && self.pipeline.run(line, TimestampNs::from_nanos(0), &mut entry).is_some()
    }

    /// Returns the entry that a record becomes, if it is one of the query's.
    pub fn take(&mut self, record: &LogRecord) -> Option<(LabelMap, String)> {
        if !obs_model::Matcher::all_match(&self.expr.matchers, &record.stream) {
            return None;
        }
        let mut entry = Entry::new(record, None).with_ids(record);
        let line = self.pipeline.run(&record.line, record.timestamp, &mut entry)?;
        Some((owned(&entry.all()), line.into_owned()))
    }
}
