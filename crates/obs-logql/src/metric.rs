//! Metric queries: range aggregations over logs, and PromQL's algebra over their results.

use crate::ast::{MetricExpr, range_index};
use crate::query::QueryError;
use crate::range::{self, Steps};
use obs_model::{
    Budget, Labels, MetricMetadata, SelectError, SelectLogs, SelectSeries, Series, SeriesSelection,
    TenantId, TimestampMs, TimestampNs,
};
use obs_promql::{EvalError, Output, QueryOptions, evaluate_instant, evaluate_range};
use std::collections::BTreeMap;

/// The results of the range aggregations, as the series source of the PromQL evaluator.
struct Ranges(Vec<Vec<Series>>);

impl SelectSeries for Ranges {
    fn select(
        &self,
        _: &TenantId,
        selection: &SeriesSelection<'_>,
        _: &Budget,
    ) -> Result<Vec<Series>, SelectError> {
        let index = range_index(selection.matchers);
        Ok(index.and_then(|i| self.0.get(i)).cloned().unwrap_or_default())
    }

    fn label_sets(
        &self,
        _: &TenantId,
        _: &SeriesSelection<'_>,
        _: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &TenantId) -> BTreeMap<String, MetricMetadata> {
        BTreeMap::new()
    }
}

/// Evaluates at one instant.
///
/// # Errors
/// See [`QueryError`].
pub fn run_instant(
    source: &dyn SelectLogs,
    tenant: &TenantId,
    query: &MetricExpr,
    time: TimestampNs,
    budget: &Budget,
) -> Result<Output, QueryError> {
    let at = time.to_millis();
    let ranges = aggregate(source, tenant, query, (at, at), 1, budget)?;
    let out = evaluate_instant(&ranges, tenant, &query.expr, at, exact(), budget);
    out.map(|(o, _)| o).map_err(from_eval)
}

/// Evaluates from `start` to `end` every `step_ms`.
///
/// # Errors
/// See [`QueryError`].
pub fn run_range(
    source: &dyn SelectLogs,
    tenant: &TenantId,
    query: &MetricExpr,
    (start, end): (TimestampNs, TimestampNs),
    step_ms: i64,
    budget: &Budget,
) -> Result<Output, QueryError> {
    let bounds = (start.to_millis(), end.to_millis());
    let ranges = aggregate(source, tenant, query, bounds, step_ms, budget)?;
    let out = evaluate_range(&ranges, tenant, &query.expr, bounds, step_ms, exact(), budget);
    out.map(|(o, _)| o).map_err(from_eval)
}

/// Samples stand exactly at the steps, so nothing may be looked up further back.
fn exact() -> QueryOptions {
    QueryOptions { lookback_ms: 1, zero_division_is_nan: true, ..QueryOptions::default() }
}

fn from_eval(e: EvalError) -> QueryError {
    match e {
        EvalError::Select(s) => QueryError::Select(s),
        EvalError::Execution(text) => QueryError::Eval(text),
    }
}

fn aggregate(
    source: &dyn SelectLogs,
    tenant: &TenantId,
    query: &MetricExpr,
    (start, end): (TimestampMs, TimestampMs),
    step_ms: i64,
    budget: &Budget,
) -> Result<Ranges, QueryError> {
    let (start, end) = (start.millis(), end.millis());
    let count = ((end - start).max(0) / step_ms) as usize + 1;
    let steps = Steps { start, step: step_ms, count };
    let all = query.ranges.iter().map(|r| range::run(source, tenant, r, steps, budget));
    all.collect::<Result<_, _>>().map(Ranges)
}
