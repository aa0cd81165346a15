//! Metric queries: range aggregations over logs, and PromQL's algebra over their results.

use crate::ast::{MetricExpr, range_index};
use crate::query::QueryError;
use crate::range::{self, Steps};
use obs_model::{
    Budget, Labels, MetricMetadata, SelectError, SelectLogs, SelectSeries, Series, SeriesSelection,
    TenantId, TimestampMs, TimestampNs,
};
use obs_promql::ast::Expr;
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
    each(query, |e| evaluate_instant(&ranges, tenant, e, at, exact(), budget).map(|(o, _)| o))
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
    each(query, |e| {
        evaluate_range(&ranges, tenant, e, bounds, step_ms, exact(), budget).map(|(o, _)| o)
    })
}

/// The label that tells of which variant a series is: its index.
const VARIANT: &str = "__variant__";

/// Evaluates the expression of a query, or all of its variants into one result.
fn each(
    query: &MetricExpr,
    run: impl Fn(&Expr) -> Result<Output, EvalError>,
) -> Result<Output, QueryError> {
    let mut all: Option<Output> = None;
    for (i, e) in query.exprs.iter().enumerate() {
        let mut out = run(e).map_err(from_eval)?;
        if query.of.is_some() {
            let index = i.to_string();
            let mark = |l: &mut Labels| *l = l.with(VARIANT, &index);
            match &mut out {
                Output::Vector(v) => v.iter_mut().for_each(|(l, _)| mark(l)),
                Output::Matrix(m) => m.iter_mut().for_each(|s| mark(&mut s.labels)),
                Output::Scalar(_) | Output::String(..) => {}
            }
        }
        match (&mut all, out) {
            (Some(Output::Vector(all)), Output::Vector(v)) => all.extend(v),
            (Some(Output::Matrix(all)), Output::Matrix(m)) => all.extend(m),
            (first, out) => *first = Some(out),
        }
    }
    if let (Some(_), Some(Output::Matrix(m))) = (&query.of, &mut all) {
        m.sort_by(|a, b| a.labels.cmp(&b.labels));
    }
    all.ok_or_else(|| QueryError::Eval("nothing to compute".into()))
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
    let all = query.ranges.iter().map(|r| match &query.of {
        Some(of) => range::run(source, tenant, &r.within(of), steps, budget),
        None => range::run(source, tenant, r, steps, budget),
    });
    all.collect::<Result<_, _>>().map(Ranges)
}
