//! The evaluator: every expression is evaluated for all steps at once, one column a series.
//!
//! A column has one slot a step; an empty slot is a step without sample. An instant query is a
//! range query of one step.

mod aggregate;
mod annotations;
mod binary;
mod extended;
mod format;
mod histograms;
mod info;
mod range_functions;
mod rates;
mod selector;
mod trim;
mod vector_functions;

pub use annotations::Annotations;
pub use format::format_float;
pub(crate) use format::format_general;

use crate::ast::{At, Expr, Literal, Selector};
use crate::duration_expr::{Frame, resolve};
use obs_model::{
    Budget, Labels, Sample, SampleValue, SelectError, SelectSeries, Series, TenantId, TimestampMs,
};
use std::collections::HashMap;

/// Settings of a query that do not depend on its text. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueryOptions {
    pub lookback_ms: i64,
    /// Step of subqueries that name none (Prometheus: the evaluation interval).
    pub default_step_ms: i64,
    /// A division by zero gives NaN, as in LogQL; PromQL gives infinity.
    pub zero_division_is_nan: bool,
    /// Metric names are dropped at the end of the query, not where an operation changes the value
    /// (Prometheus: `promql-delayed-name-removal`).
    pub delay_name_removal: bool,
    /// Whether [`Annotations::samples`] is wanted, which costs a pass over all samples.
    pub count_samples: bool,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            lookback_ms: 300_000,
            default_step_ms: 60_000,
            zero_division_is_nan: false,
            delay_name_removal: false,
            count_samples: false,
        }
    }
}

/// Why an evaluation failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum EvalError {
    /// The query's fault (HTTP 422 `execution`).
    #[error("{0}")]
    Execution(String),
    #[error(transparent)]
    Select(#[from] SelectError),
}

pub(crate) type Evaluated<T> = Result<T, EvalError>;

pub(crate) fn execution<T>(message: impl Into<String>) -> Evaluated<T> {
    Err(EvalError::Execution(message.into()))
}

/// The result of a query.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Scalar(Sample),
    String(TimestampMs, String),
    /// Instant vector, in the engine's order (sorting functions keep theirs).
    Vector(Vec<(Labels, Sample)>),
    /// Range vector or range query, sorted by labels.
    Matrix(Vec<Series>),
}

pub(crate) type Slot = Option<SampleValue>;

/// What a step of a series takes.
pub(crate) const SLOT_BYTES: usize = size_of::<Slot>();

/// One series' values at all steps.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) labels: Labels,
    pub(crate) values: Vec<Slot>,
    /// Whether the metric's name goes at the end of the query.
    pub(crate) drops_name: bool,
}

impl Column {
    pub(crate) const fn new(labels: Labels, values: Vec<Slot>) -> Self {
        Self { labels, values, drops_name: false }
    }

    /// Drops the metric's name now, or when the query ends.
    pub(crate) fn drop_name(&mut self, options: QueryOptions) {
        if options.delay_name_removal {
            self.drops_name = true;
        } else {
            self.labels = self.labels.without_name();
        }
    }

    /// Returns the float at a step, if there is one.
    pub(crate) fn float(&self, step: usize) -> Option<f64> {
        match self.values.get(step) {
            Some(Some(SampleValue::Float(f))) => Some(*f),
            _ => None,
        }
    }

    fn is_empty(&self) -> bool {
        self.values.iter().all(Option::is_none)
    }
}

/// The value of an expression at all steps.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar(Vec<f64>),
    Vector(Vec<Column>),
    String(Literal),
}

/// Evaluation times: `start + i * step` for `i < count`. Milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    pub(crate) start: i64,
    pub(crate) step: i64,
    pub(crate) count: usize,
}

impl Steps {
    pub(crate) const fn at(&self, i: usize) -> i64 {
        self.start + self.step * i as i64
    }

    pub(crate) fn times(self) -> impl Iterator<Item = i64> {
        (0..self.count).map(move |i| self.at(i))
    }

    pub(crate) const fn end(&self) -> i64 {
        self.at(self.count.saturating_sub(1))
    }
}

/// Everything an evaluation needs besides the expression.
pub(crate) struct Evaluator<'a> {
    pub(crate) source: &'a dyn SelectSeries,
    pub(crate) tenant: &'a TenantId,
    pub(crate) budget: &'a Budget,
    pub(crate) options: QueryOptions,
    pub(crate) annotations: &'a mut Annotations,
    pub(crate) steps: Steps,
    /// Start and end of the whole query, for `@ start()` and `@ end()`.
    pub(crate) bounds: (i64, i64),
    pub(crate) frame: Frame,
    /// Whether only counts and sums of native histograms are looked at.
    pub(crate) skips_buckets: bool,
}

/// Evaluates an expression at one instant.
///
/// # Errors
/// See [`EvalError`].
pub fn evaluate_instant(
    source: &dyn SelectSeries,
    tenant: &TenantId,
    expr: &Expr,
    time: TimestampMs,
    options: QueryOptions,
    budget: &Budget,
) -> Result<(Output, Annotations), EvalError> {
    let frame = Frame { step_ms: 0, range_ms: 0 };
    let expr = &resolved(expr, frame)?;
    let steps = Steps { start: time.millis(), step: 1, count: 1 };
    let mut annotations = Annotations::of(steps, options);
    let mut ev = Evaluator {
        source,
        tenant,
        budget,
        options,
        annotations: &mut annotations,
        steps,
        bounds: (steps.start, steps.start),
        frame,
        skips_buckets: false,
    };
    let sample = |value| Sample { timestamp: time, value };
    let output = if expr.value_type() == crate::ast::ValueType::Matrix {
        Output::Matrix(ev.instant_matrix(expr)?)
    } else {
        match ev.whole(expr)? {
            Value::Scalar(v) => {
                Output::Scalar(sample(SampleValue::Float(v.first().copied().unwrap_or(f64::NAN))))
            }
            Value::String(s) => Output::String(time, s.text),
            Value::Vector(columns) => {
                let row = |c: Column| Some((c.labels, sample(c.values.into_iter().next()??)));
                Output::Vector(columns.into_iter().filter_map(row).collect())
            }
        }
    };
    Ok((output, annotations))
}

/// Evaluates an expression from `start` to `end` (inclusive) every `step_ms`.
///
/// # Errors
/// See [`EvalError`]; also when the expression is not a scalar or instant vector.
pub fn evaluate_range(
    source: &dyn SelectSeries,
    tenant: &TenantId,
    expr: &Expr,
    (start, end): (TimestampMs, TimestampMs),
    step_ms: i64,
    options: QueryOptions,
    budget: &Budget,
) -> Result<(Output, Annotations), EvalError> {
    let range_ms = end.millis().saturating_sub(start.millis());
    let frame = Frame { step_ms, range_ms };
    let expr = &resolved(expr, frame)?;
    let count = (end.millis().saturating_sub(start.millis()).max(0) / step_ms.max(1)) as usize + 1;
    let steps = Steps { start: start.millis(), step: step_ms.max(1), count };
    let mut annotations = Annotations::of(steps, options);
    let mut ev = Evaluator {
        source,
        tenant,
        budget,
        options,
        annotations: &mut annotations,
        steps,
        bounds: (start.millis(), end.millis()),
        frame,
        skips_buckets: false,
    };
    let columns = match ev.whole(expr)? {
        Value::Scalar(v) => {
            let values = v.into_iter().map(|f| Some(SampleValue::Float(f))).collect();
            vec![Column::new(Labels::default(), values)]
        }
        Value::Vector(columns) => columns,
        Value::String(_) => {
            return execution(
                "invalid expression type \"string\" for range query, must be Scalar or instant Vector",
            );
        }
    };
    let mut series: Vec<Series> = columns
        .into_iter()
        .map(|c| {
            let point = |(t, v): (i64, Slot)| {
                Some(Sample { timestamp: TimestampMs::from_millis(t), value: v? })
            };
            Series {
                labels: c.labels,
                samples: steps.times().zip(c.values).filter_map(point).collect(),
            }
        })
        .filter(|s| !s.samples.is_empty())
        .collect();
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    Ok((Output::Matrix(series), annotations))
}

/// Returns the expression with its durations computed.
fn resolved(expr: &Expr, frame: Frame) -> Evaluated<Expr> {
    let mut expr = expr.clone();
    resolve(&mut expr, frame).map_err(EvalError::Execution)?;
    Ok(expr)
}

/// Returns the value of an expression that reads no series, for tests of the parser.
#[cfg(test)]
pub(crate) fn constant(expr: &Expr) -> Option<f64> {
    let store = obs_testkit::MemoryStore::default();
    let out = evaluate_instant(
        &store,
        &TenantId::default(),
        expr,
        TimestampMs::from_millis(0),
        QueryOptions::default(),
        &Budget::new(1, 1 << 20),
    );
    match out.ok()?.0 {
        Output::Scalar(Sample { value: SampleValue::Float(f), .. }) => Some(f),
        _ => None,
    }
}

impl Evaluator<'_> {
    /// Evaluates a whole query: names that were to go do so.
    fn whole(&mut self, expr: &Expr) -> Evaluated<Value> {
        match self.eval(expr)? {
            Value::Vector(mut columns) if columns.iter().any(|c| c.drops_name) => {
                for c in columns.iter_mut().filter(|c| c.drops_name) {
                    c.labels = c.labels.without_name();
                }
                merge_same_labels(columns).map(Value::Vector)
            }
            value => Ok(value),
        }
    }

    pub(crate) fn eval(&mut self, expr: &Expr) -> Evaluated<Value> {
        self.budget.check()?;
        // What a subquery makes of few samples, or of none, may be long too.
        self.budget.take(0, self.steps.count.saturating_mul(SLOT_BYTES))?;
        match expr {
            Expr::Number(n, _) => Ok(Value::Scalar(vec![*n; self.steps.count])),
            Expr::String(s, _) => Ok(Value::String(s.clone())),
            Expr::Paren(inner) => self.eval(inner),
            Expr::Negate(inner, _) => {
                let value = self.eval(inner)?;
                self.negate(value)
            }
            Expr::Selector(s) => self.selector(s).map(Value::Vector),
            Expr::Binary { op, lhs, rhs, bool_modifier, matching, pos } => {
                let (l, r) = (self.eval(lhs)?, self.eval(rhs)?);
                self.binary(*op, l, r, *bool_modifier, matching, *pos)
            }
            Expr::Aggregate { op, expr: inner, param, grouping, .. } => {
                let param = param
                    .as_ref()
                    .map(|p| Ok::<_, EvalError>((self.eval(p)?, p.pos())))
                    .transpose()?;
                let columns = self.vector(inner)?;
                self.aggregate(*op, param, grouping, columns, inner.pos()).map(Value::Vector)
            }
            Expr::Call { function, args, pos } => {
                let skips_buckets = match function.name {
                    "histogram_count" | "histogram_sum" | "histogram_avg" => true,
                    "histogram_quantile" | "histogram_quantiles" | "histogram_fraction" => false,
                    _ => self.skips_buckets,
                };
                let outside = std::mem::replace(&mut self.skips_buckets, skips_buckets);
                let value = self.call(function.name, args, *pos);
                self.skips_buckets = outside;
                value
            }
            Expr::Matrix { .. } | Expr::Subquery { .. } => {
                execution("range vector cannot be evaluated on its own")
            }
        }
    }

    /// Evaluates an expression that the type check found to be an instant vector.
    pub(crate) fn vector(&mut self, expr: &Expr) -> Evaluated<Vec<Column>> {
        match self.eval(expr)? {
            Value::Vector(v) => Ok(v),
            _ => execution("expected an instant vector"),
        }
    }

    /// Evaluates an expression that the type check found to be a scalar.
    pub(crate) fn scalar(&mut self, expr: &Expr) -> Evaluated<Vec<f64>> {
        match self.eval(expr)? {
            Value::Scalar(v) => Ok(v),
            _ => execution("expected a scalar"),
        }
    }

    pub(crate) fn string(&mut self, expr: Option<&Expr>) -> Evaluated<Literal> {
        match expr.map(|e| self.eval(e)).transpose()? {
            Some(Value::String(s)) => Ok(s),
            _ => execution("expected a string"),
        }
    }

    fn negate(&self, value: Value) -> Evaluated<Value> {
        Ok(match value {
            Value::Scalar(v) => Value::Scalar(v.into_iter().map(|f| -f).collect()),
            Value::Vector(columns) => {
                let flip = |s: SampleValue| match s {
                    SampleValue::Float(f) => SampleValue::Float(-f),
                    SampleValue::Histogram(h) => {
                        let mut h = (*h).clone();
                        h.scale(-1.0);
                        SampleValue::Histogram(h.into())
                    }
                };
                let columns = columns.into_iter().map(|mut c| {
                    c.drop_name(self.options);
                    c.values = c.values.into_iter().map(|s| s.map(flip)).collect();
                    c
                });
                Value::Vector(merge_same_labels(columns.collect())?)
            }
            Value::String(_) => return execution("cannot negate a string"),
        })
    }

    /// Returns the time a selector refers to at each step, before its offset.
    pub(crate) fn reference_time(&self, at: Option<At>, step: i64) -> i64 {
        match at {
            None => step,
            Some(At::Time(t)) => t,
            Some(At::Start) => self.bounds.0,
            Some(At::End) => self.bounds.1,
        }
    }

    /// Returns the earliest and latest reference time less the offset.
    pub(crate) fn reference_bounds(&self, selector: &Selector) -> (i64, i64) {
        let a = self.reference_time(selector.at, self.steps.start);
        let b = self.reference_time(selector.at, self.steps.end());
        (a - selector.offset_ms, b - selector.offset_ms)
    }

    /// Notes samples that a step looked at, if that is wanted.
    pub(crate) fn count(&mut self, step: usize, samples: u64) {
        if let Some(n) = self.annotations.samples.get_mut(step) {
            *n += samples;
        }
    }

    /// Evaluates with other steps, for subqueries. Also returns how many samples these looked at:
    /// they do not count as the query's, the windows over their results do.
    pub(crate) fn with_steps<T>(
        &mut self,
        steps: Steps,
        f: impl FnOnce(&mut Self) -> Evaluated<T>,
    ) -> Evaluated<(T, u64)> {
        let saved = std::mem::replace(&mut self.steps, steps);
        let inner = Annotations::of(steps, self.options).samples;
        let counts = std::mem::replace(&mut self.annotations.samples, inner);
        let result = f(self);
        self.steps = saved;
        let inner = std::mem::replace(&mut self.annotations.samples, counts);
        Ok((result?, inner.iter().sum()))
    }
}

/// Joins columns whose labels became equal; two samples at one step are an error, as in
/// Prometheus.
pub(crate) fn merge_same_labels(columns: Vec<Column>) -> Evaluated<Vec<Column>> {
    let mut index: HashMap<Labels, usize> = HashMap::with_capacity(columns.len());
    let mut out: Vec<Column> = Vec::with_capacity(columns.len());
    for column in columns {
        if column.is_empty() {
            continue;
        }
        match index.get(&column.labels).and_then(|i| out.get_mut(*i)) {
            None => {
                index.insert(column.labels.clone(), out.len());
                out.push(column);
            }
            Some(first) => {
                first.drops_name |= column.drops_name;
                for (slot, new) in first.values.iter_mut().zip(column.values) {
                    if slot.is_some() && new.is_some() {
                        return execution("vector cannot contain metrics with the same labelset");
                    }
                    *slot = slot.take().or(new);
                }
            }
        }
    }
    Ok(out)
}
