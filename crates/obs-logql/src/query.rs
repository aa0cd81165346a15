//! Log queries.

use crate::ast::LogExpr;
use crate::pipeline::{Working, run};
use obs_model::{
    Budget, Direction, Labels, LogSelection, SelectError, SelectLogs, TenantId, TimestampNs,
};
use std::collections::HashMap;
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

/// Entries that share all labels after the pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct LogStream {
    pub labels: Labels,
    /// (time, line), in the query's direction.
    pub entries: Vec<(TimestampNs, String)>,
}

/// Returns up to `limit` entries of `[start, end)`, grouped by their labels.
///
/// # Errors
/// When the store cannot be read or the budget ends.
pub fn run_logs(
    source: &dyn SelectLogs,
    tenant: &TenantId,
    expr: &LogExpr,
    (start, end): (TimestampNs, TimestampNs),
    direction: Direction,
    limit: usize,
    budget: &Budget,
) -> Result<Vec<LogStream>, QueryError> {
    let needles = expr.needles();
    let matchers = &expr.matchers;
    let selection =
        LogSelection { matchers, start, end, direction, trace_id: None, needles: &needles };
    let mut index: HashMap<Labels, usize> = HashMap::new();
    let mut out: Vec<LogStream> = Vec::new();
    let mut left = limit;
    if limit == 0 {
        return Ok(out);
    }
    source.select_logs(tenant, &selection, budget, &mut |r| {
        let mut w = Working::new(r);
        if !run(&expr.stages, &r.line, &mut w) {
            return ControlFlow::Continue(());
        }
        let labels = w.finish();
        let at = *index.entry(labels.clone()).or_insert_with(|| {
            out.push(LogStream { labels, entries: Vec::new() });
            out.len() - 1
        });
        if let Some(stream) = out.get_mut(at) {
            stream.entries.push((r.timestamp, r.line.clone()));
        }
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(out)
}
