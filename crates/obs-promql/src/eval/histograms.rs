//! Quantiles and fractions of classic and native histograms.

use crate::ast::Pos;
use crate::eval::aggregate::KahanSum;
use crate::eval::trim::linear_mean;
use crate::eval::{Column, Evaluated, Evaluator, format_float};
use obs_model::{CUSTOM_BUCKETS_SCHEMA, Histogram, HistogramBucket, Labels, SampleValue};
use std::cell::Cell;
use std::collections::HashMap;

/// A classic bucket: upper bound and cumulative count.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    le: f64,
    count: f64,
}

/// Prometheus' `bucketQuantile`: linear inside a bucket, the highest finite bound at the top.
///
/// `fixed` is called when the counts had to be made monotonic.
fn classic_quantile(q: f64, buckets: &mut Vec<Bucket>, fixed: impl FnOnce()) -> f64 {
    if q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    match prepare(buckets) {
        None => return f64::NAN,
        Some(true) => fixed(),
        Some(false) => {}
    }
    let n = buckets.len();
    let at = |i: usize| buckets.get(i).copied().unwrap_or(Bucket { le: f64::NAN, count: f64::NAN });
    let observations = at(n - 1).count;
    if n < 2 || observations == 0.0 {
        return f64::NAN;
    }
    let mut rank = q * observations;
    let b = buckets.iter().take(n - 1).position(|b| b.count >= rank).unwrap_or(n - 1);
    if b == n - 1 {
        return at(n - 2).le;
    }
    if b == 0 && at(0).le <= 0.0 {
        return at(0).le;
    }
    let (mut start, end, mut count) = (0.0, at(b).le, at(b).count);
    if b > 0 {
        start = at(b - 1).le;
        count -= at(b - 1).count;
        rank -= at(b - 1).count;
    }
    start + (end - start) * (rank / count)
}

/// Relative distance at which counts of neighbouring buckets are taken for equal: what summing
/// floats in another order makes.
const SMALL_DELTA: f64 = 1e-12;

/// Observations that are in no bucket: they were NaN.
fn nan_observations(h: &Histogram) -> bool {
    h.sum.is_nan() && h.count > h.buckets().iter().map(|b| b.count).sum::<f64>()
}

/// Sorts, joins equal bounds, makes counts monotonic. Returns whether some count fell by more than
/// rounding; `None` if there is no `+Inf` bucket.
fn prepare(buckets: &mut Vec<Bucket>) -> Option<bool> {
    buckets.sort_by(|a, b| a.le.total_cmp(&b.le));
    if buckets.last().is_none_or(|b| b.le != f64::INFINITY) {
        return None;
    }
    buckets.dedup_by(|b, a| {
        let same = a.le == b.le;
        if same {
            a.count += b.count;
        }
        same
    });
    let (mut highest, mut fell) = (f64::NEG_INFINITY, false);
    for b in buckets {
        let close = (highest - b.count).abs() <= SMALL_DELTA * highest.abs().max(b.count.abs());
        fell |= b.count < highest && !close;
        highest = highest.max(b.count);
        b.count = highest;
    }
    Some(fell)
}

/// Prometheus' `histogramQuantile`: exponential interpolation in exponential buckets.
fn native_quantile(q: f64, h: &Histogram) -> f64 {
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    if h.count == 0.0 || q.is_nan() {
        return f64::NAN;
    }
    let buckets = h.buckets();
    let forward = h.sum.is_nan() || q < 0.5;
    let mut rank = if forward { q * h.count } else { (1.0 - q) * h.count };
    let mut seen = 0.0;
    let mut found: Option<HistogramBucket> = None;
    let order: Box<dyn Iterator<Item = &HistogramBucket>> =
        if forward { Box::new(buckets.iter()) } else { Box::new(buckets.iter().rev()) };
    for b in order.filter(|b| b.count != 0.0) {
        seen += b.count;
        found = Some(*b);
        if seen >= rank {
            break;
        }
    }
    let Some(mut b) = found else { return f64::NAN };
    let custom = h.schema == CUSTOM_BUCKETS_SCHEMA;
    if !custom && b.lower < 0.0 && b.upper > 0.0 {
        if h.negative.is_empty() && !h.positive.is_empty() {
            b.lower = 0.0;
        } else if h.positive.is_empty() && !h.negative.is_empty() {
            b.upper = 0.0;
        }
    } else if custom {
        if b.lower == f64::NEG_INFINITY {
            if b.upper <= 0.0 {
                return b.upper;
            }
            b.lower = 0.0;
        } else if b.upper == f64::INFINITY {
            return b.lower;
        }
    }
    if seen < rank {
        return if h.sum.is_nan() {
            f64::NAN
        } else if forward {
            b.upper
        } else {
            b.lower
        };
    }
    if forward {
        rank -= seen - b.count;
    } else {
        rank = seen - rank;
    }
    let fraction = rank / b.count;
    if custom || (b.lower <= 0.0 && b.upper >= 0.0) {
        return b.lower + (b.upper - b.lower) * fraction;
    }
    let (low, high) = (b.lower.abs().log2(), b.upper.abs().log2());
    if b.lower > 0.0 {
        (low + (high - low) * fraction).exp2()
    } else {
        -(high + (low - high) * (1.0 - fraction)).exp2()
    }
}

/// Share of observations at or below `value` of a native histogram, times the count.
fn native_rank(value: f64, h: &Histogram) -> f64 {
    let custom = h.schema == CUSTOM_BUCKETS_SCHEMA;
    let mut rank = 0.0;
    for b in h.buckets() {
        let (mut lower, mut upper) = (b.lower, b.upper);
        if lower < 0.0 && upper > 0.0 {
            if h.negative.is_empty() && !h.positive.is_empty() {
                lower = 0.0;
            } else if h.positive.is_empty() && !h.negative.is_empty() {
                upper = 0.0;
            }
        }
        // Nothing is known of where in an open bucket its observations are: at its finite end.
        if lower == f64::NEG_INFINITY && value < upper && value > lower {
            rank += b.count;
            continue;
        }
        if value >= upper {
            rank += b.count;
        } else if value > lower {
            let linear = custom || (lower <= 0.0 && upper >= 0.0);
            let fraction = if linear {
                (value - lower) / (upper - lower)
            } else {
                let (l, u, v) = (lower.abs().log2(), upper.abs().log2(), value.abs().log2());
                if value > 0.0 { (v - l) / (u - l) } else { 1.0 - (v - u) / (l - u) }
            };
            rank += b.count * fraction;
        }
    }
    rank
}

fn classic_rank(value: f64, buckets: &[Bucket]) -> f64 {
    let (mut lower, mut below) = (0.0, 0.0);
    for (i, b) in buckets.iter().enumerate() {
        if i == 0 && b.le <= 0.0 {
            lower = f64::NEG_INFINITY;
        }
        if value < b.le {
            if lower == f64::NEG_INFINITY && value > lower {
                return b.count;
            }
            if value <= lower || b.le == f64::INFINITY {
                return below;
            }
            return below + (b.count - below) * (value - lower) / (b.le - lower);
        }
        (lower, below) = (b.le, b.count);
    }
    below
}

/// The metric that all series have, or the first one's.
fn only_name(columns: &[Column]) -> String {
    columns.first().map_or_else(String::new, |c| c.labels.metric_name().to_owned())
}

impl Evaluator<'_> {
    /// Groups classic `le` series by their other labels and applies `classic` or `native`.
    fn per_histogram(
        &mut self,
        columns: Vec<Column>,
        pos: Pos,
        classic: impl Fn(usize, &mut Vec<Bucket>) -> f64,
        native: impl Fn(usize, &Histogram) -> f64,
    ) -> Evaluated<Vec<Column>> {
        let mut index: HashMap<Labels, usize> = HashMap::new();
        let mut groups: Vec<(Labels, Vec<Vec<Bucket>>)> = Vec::new();
        let mut out = Vec::new();
        for c in columns {
            let mut natives = vec![None; self.steps.count];
            let le: Option<f64> = c.labels.get("le").parse().ok();
            if le.is_none() && c.values.iter().any(|v| matches!(v, Some(SampleValue::Float(_)))) {
                let (name, le) = (c.labels.metric_name(), c.labels.get("le"));
                self.annotations.warn(format!("bucket label \"le\" is missing or has a malformed value of {le:?} for metric name {name:?}"), pos);
            }
            for (step, value) in c.values.iter().enumerate() {
                match value {
                    Some(SampleValue::Histogram(h)) => {
                        if let Some(slot) = natives.get_mut(step) {
                            *slot = Some(SampleValue::Float(native(step, h)));
                        }
                    }
                    Some(SampleValue::Float(count)) => {
                        let Some(le) = le else { continue };
                        let key = c.labels.filter(|n| n != "le");
                        let at = *index.entry(key.clone()).or_insert_with(|| {
                            groups.push((key, vec![Vec::new(); self.steps.count]));
                            groups.len() - 1
                        });
                        if let Some(list) = groups.get_mut(at).and_then(|g| g.1.get_mut(step)) {
                            list.push(Bucket { le, count: *count });
                        }
                    }
                    None => {}
                }
            }
            out.push(Column::new(c.labels, natives));
        }
        let natives: HashMap<Labels, usize> =
            out.iter().enumerate().map(|(i, c)| (c.labels.clone(), i)).collect();
        for (labels, steps) in groups {
            let mut native = natives.get(&labels).and_then(|i| out.get_mut(*i));
            let mut values = Vec::with_capacity(steps.len());
            for (step, mut buckets) in steps.into_iter().enumerate() {
                // Both kinds of the same histogram: neither can be trusted to be the one meant.
                let both = native.as_mut().and_then(|n| n.values.get_mut(step));
                if !buckets.is_empty() && both.is_some_and(|slot| slot.take().is_some()) {
                    let name = labels.metric_name();
                    let text = format!(
                        "vector contains a mix of classic and native histograms for metric name {name:?}"
                    );
                    self.annotations.warn(text, pos);
                    buckets.clear();
                }
                let some = !buckets.is_empty();
                values.push(some.then(|| SampleValue::Float(classic(step, &mut buckets))));
            }
            out.push(Column::new(labels, values));
        }
        out.iter_mut().for_each(|c| c.drop_name(self.options));
        super::merge_same_labels(out)
    }

    pub(crate) fn histogram_quantile(
        &mut self,
        q: &[f64],
        columns: Vec<Column>,
        pos: Pos,
    ) -> Evaluated<Vec<Column>> {
        if let Some(bad) = q.iter().find(|q| !(0.0..=1.0).contains(*q)) {
            self.annotations.warn(
                format!("quantile value should be between 0 and 1, got {}", format_float(*bad)),
                pos,
            );
        }
        let at = |step: usize| q.get(step).copied().unwrap_or(f64::NAN);
        let (fixed, skewed, lost) = (Cell::new(false), Cell::new(false), Cell::new(false));
        let name = only_name(&columns);
        let out = self.per_histogram(
            columns,
            pos,
            |s, b| classic_quantile(at(s), b, || fixed.set(true)),
            |s, h| {
                let value = native_quantile(at(s), h);
                if nan_observations(h) {
                    if value.is_nan() { &lost } else { &skewed }.set(true);
                }
                value
            },
        )?;
        for (hit, what) in [
            (
                fixed,
                "needed to be fixed for monotonicity (see https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)",
            ),
            (lost, "has NaN observations, result is NaN"),
            (skewed, "has NaN observations, result is skewed higher"),
        ] {
            if hit.get() {
                let text = format!("input to histogram_quantile {what} for metric name {name:?}");
                self.annotations.info(text, pos);
            }
        }
        Ok(out)
    }

    pub(crate) fn histogram_fraction(
        &mut self,
        lower: &[f64],
        upper: &[f64],
        columns: Vec<Column>,
        pos: Pos,
    ) -> Evaluated<Vec<Column>> {
        let at = |list: &[f64], step: usize| list.get(step).copied().unwrap_or(f64::NAN);
        let share = |lower: f64, upper: f64, count: f64, rank: &dyn Fn(f64) -> f64| {
            if lower.is_nan() || upper.is_nan() || count == 0.0 || count.is_nan() {
                f64::NAN
            } else if lower >= upper {
                0.0
            } else {
                (rank(upper) - rank(lower)) / count
            }
        };
        let has_nan = Cell::new(false);
        let name = only_name(&columns);
        let out = self.per_histogram(
            columns,
            pos,
            |s, b| {
                if prepare(b).is_some() {
                    share(at(lower, s), at(upper, s), b.last().map_or(0.0, |b| b.count), &|v| {
                        classic_rank(v, b)
                    })
                } else {
                    f64::NAN
                }
            },
            |s, h| {
                has_nan.set(has_nan.get() || nan_observations(h));
                share(at(lower, s), at(upper, s), h.count, &|v| native_rank(v, h))
            },
        )?;
        if has_nan.get() {
            let text = format!(
                "input to histogram_fraction has NaN observations, which are excluded from all fractions for metric name {name:?}"
            );
            self.annotations.info(text, pos);
        }
        Ok(out)
    }
}

/// Variance around the mean, each observation taken for the middle of its bucket.
fn variance(h: &Histogram) -> f64 {
    let mean = h.sum / h.count;
    let custom = h.schema == CUSTOM_BUCKETS_SCHEMA;
    let mut sum = KahanSum::default();
    for b in h.buckets().into_iter().filter(|b| b.count != 0.0) {
        let middle = if custom {
            let lower = if b.lower.is_infinite() && b.upper > 0.0 { 0.0 } else { b.lower };
            linear_mean(lower, b.upper)
        } else if b.lower <= 0.0 && b.upper >= 0.0 {
            0.0
        } else {
            (b.lower * b.upper).sqrt().copysign(b.upper)
        };
        sum.add(b.count * (middle - mean).powi(2));
    }
    sum.value() / h.count
}

/// `histogram_count`, `histogram_sum` and `histogram_avg` of native histograms; floats vanish.
pub(crate) fn part(name: &str, h: &Histogram) -> f64 {
    match name {
        "histogram_count" => h.count,
        "histogram_sum" => h.sum,
        "histogram_stddev" => variance(h).sqrt(),
        "histogram_stdvar" => variance(h),
        _ => h.sum / h.count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_infinite_sum_spreads_without_end() {
        let h = Histogram {
            schema: 3,
            zero_threshold: 0.0,
            zero_count: 1.0,
            count: 4.0,
            sum: f64::INFINITY,
            positive: vec![(13, 1.0), (54, 1.0)],
            negative: vec![(24, 1.0)],
            ..Histogram::default()
        };
        assert_eq!(variance(&h), f64::INFINITY);
    }
}
