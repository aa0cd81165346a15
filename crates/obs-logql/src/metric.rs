//! Metric queries: range aggregations over logs, and PromQL's algebra over their results.

use crate::ast::{MetricExpr, RangeAggregation, RangeOp};
use crate::pipeline::{ERROR_LABEL, Working, run};
use crate::query::QueryError;
use obs_model::{
    Budget, Direction, Labels, LogSelection, MetricMetadata, Sample, SelectError, SelectLogs,
    SelectSeries, Series, SeriesSelection, TenantId, TimestampMs, TimestampNs,
};
use obs_promql::{EvalError, Output, QueryOptions, evaluate_instant, evaluate_range};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

/// The results of the range aggregations, as the series source of the PromQL evaluator.
struct Ranges(Vec<Vec<Series>>);

impl SelectSeries for Ranges {
    fn select(
        &self,
        _: &TenantId,
        selection: &SeriesSelection<'_>,
        _: &Budget,
    ) -> Result<Vec<Series>, SelectError> {
        let name = selection.matchers.first().and_then(|m| m.value.strip_prefix("range_"));
        let index: Option<usize> = name.and_then(|n| n.parse().ok());
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
    QueryOptions { lookback_ms: 1, ..QueryOptions::default() }
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
    bounds: (TimestampMs, TimestampMs),
    step_ms: i64,
    budget: &Budget,
) -> Result<Ranges, QueryError> {
    query
        .ranges
        .iter()
        .map(|r| one(source, tenant, r, bounds, step_ms, budget))
        .collect::<Result<_, _>>()
        .map(Ranges)
}

/// Computes one aggregation at all steps: each entry is added to the steps whose left-open window
/// holds it.
fn one(
    source: &dyn SelectLogs,
    tenant: &TenantId,
    r: &RangeAggregation,
    (start, end): (TimestampMs, TimestampMs),
    step_ms: i64,
    budget: &Budget,
) -> Result<Vec<Series>, QueryError> {
    let (start, end) = (start.millis(), end.millis());
    let steps = ((end - start).max(0) / step_ms) as usize + 1;
    let from = TimestampMs::from_millis(start - r.offset_ms - r.range_ms).to_nanos().add_nanos(1);
    let to = TimestampMs::from_millis(end - r.offset_ms).to_nanos().add_nanos(1);
    let needles = r.expr.needles();
    let selection = LogSelection {
        matchers: &r.expr.matchers,
        start: from,
        end: to,
        direction: Direction::Forward,
        trace_id: None,
        needles: &needles,
    };
    let mut sums: HashMap<Labels, Vec<f64>> = HashMap::new();
    let mut failure = None;
    source.select_logs(tenant, &selection, budget, &mut |record| {
        let mut w = Working::new(record);
        if !run(&r.expr.stages, &record.line, &mut w) {
            return ControlFlow::Continue(());
        }
        if let Some(kind) = w.labels.get(ERROR_LABEL) {
            failure = Some(QueryError::Pipeline(format!("pipeline error: '{kind}' for series: '{}'.\nUse a label filter to intentionally skip this error. (e.g | __error__!=\"{kind}\").", labels_text(&w))));
            return ControlFlow::Break(());
        }
        let amount = match r.op {
            RangeOp::Rate | RangeOp::Count => 1.0,
            RangeOp::BytesRate | RangeOp::Bytes => record.line.len() as f64,
        };
        let labels = w.finish();
        if !sums.contains_key(&labels) && budget.take(0, steps * 8 + labels.size_bytes()).is_err() {
            failure = Some(QueryError::Select(SelectError::TooMuch("the memory of a query for its series".into())));
            return ControlFlow::Break(());
        }
        let slots = sums.entry(labels).or_insert_with(|| vec![0.0; steps]);
        // Window of step t: (t - range, t], both less the offset; in nanoseconds.
        let ns = i128::from(record.timestamp.nanos()) + i128::from(r.offset_ms) * 1_000_000;
        let grid = |ns: i128| (ns - i128::from(start) * 1_000_000, i128::from(step_ms) * 1_000_000);
        let (offset, step) = grid(ns);
        let first = (offset + step - 1).div_euclid(step).max(0);
        let (offset, step) = grid(ns + i128::from(r.range_ms) * 1_000_000);
        let last = (offset + step - 1).div_euclid(step);
        for slot in slots.iter_mut().take(usize::try_from(last).unwrap_or(0)).skip(first as usize) {
            *slot += amount;
        }
        ControlFlow::Continue(())
    })?;
    if let Some(e) = failure {
        return Err(e);
    }
    let per = match r.op {
        RangeOp::Rate | RangeOp::BytesRate => r.range_ms as f64 / 1000.0,
        RangeOp::Count | RangeOp::Bytes => 1.0,
    };
    let mut out: Vec<Series> = sums
        .into_iter()
        .map(|(labels, slots)| {
            let samples = slots.into_iter().enumerate().filter(|(_, v)| *v > 0.0);
            Series {
                labels,
                samples: samples
                    .map(|(i, v)| Sample::float(start + step_ms * i as i64, v / per))
                    .collect(),
            }
        })
        .filter(|s| !s.samples.is_empty())
        .collect();
    out.sort_by(|a, b| a.labels.cmp(&b.labels));
    Ok(out)
}

fn labels_text(w: &Working) -> String {
    let pairs: Vec<String> = w.labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    format!("{{{}}}", pairs.join(", "))
}
