//! Series made of spans: buckets of time, what is counted in them, and how they are shown.

use crate::ast::{Op, SecondStage};
use obs_model::{FieldValue, TraceId};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// One trace behind a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    pub trace_id: TraceId,
    pub value: f64,
    /// Unix ms.
    pub timestamp_ms: i64,
}

/// A series of a metrics query.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSeries {
    pub labels: Vec<(String, FieldValue<'static>)>,
    /// Unix ms and value, ascending.
    pub samples: Vec<(i64, f64)>,
    pub exemplars: Vec<Exemplar>,
}

impl TraceSeries {
    /// Returns the labels as Prometheus writes them.
    pub fn prometheus(&self) -> String {
        let mut parts: Vec<(&str, String)> = self
            .labels
            .iter()
            .map(|(name, value)| {
                let text = match value {
                    FieldValue::Nil => "<nil>".to_owned(),
                    FieldValue::Str(s) if s.is_empty() => "<empty>".to_owned(),
                    FieldValue::Duration(ns) => format!("{}s", *ns as f64 / 1e9),
                    v => v.text().into_owned(),
                };
                (name.as_str(), text)
            })
            .collect();
        parts.sort();
        let is_plain = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let one = |(name, value): &(&str, String)| {
            if is_plain(name) { format!("{name}={value:?}") } else { format!("{name:?}={value:?}") }
        };
        format!("{{{}}}", parts.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

/// The steps of a range. A point stands for the time since the one before it: `(t − step, t]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    start: i64,
    end: i64,
    step: i64,
    pub(crate) count: usize,
}

impl Steps {
    /// Times in ns. With `aligned`, the range grows to whole multiples of the step.
    pub(crate) fn new(start: i64, end: i64, step: i64, aligned: bool) -> Self {
        let (start, end) = if aligned {
            let up = end.checked_add(step - 1).unwrap_or(end).div_euclid(step) * step;
            (start.div_euclid(step) * step, up)
        } else {
            (start, end)
        };
        let count = (end - start).saturating_add(step - 1) / step;
        Self { start, end, step, count: usize::try_from(count.max(1)).unwrap_or(1) }
    }

    /// Returns the bounds of what is counted, `[start, end)` in ns.
    pub(crate) const fn bounds(&self) -> (i64, i64) {
        (self.start.saturating_add(1), self.end.saturating_add(1))
    }

    pub(crate) fn of(&self, t: i64) -> Option<usize> {
        if t <= self.start || t > self.end {
            return None;
        }
        usize::try_from((t - self.start - 1) / self.step).ok().filter(|i| *i < self.count)
    }

    pub(crate) fn timestamp_ms(&self, i: usize) -> i64 {
        let end = self.start.saturating_add((i as i64 + 1).saturating_mul(self.step));
        end.min(self.end.max(self.start + 1)) / 1_000_000
    }

    pub(crate) const fn seconds(&self) -> f64 {
        self.step as f64 / 1e9
    }
}

/// Counts by powers of two; the key is the exponent of a bucket's upper bound.
pub(crate) type Buckets = BTreeMap<i32, f64>;

/// Returns the exponent of the bucket that a positive value belongs to: `(2^(n−1), 2^n]`.
pub(crate) fn bucket_of(value: f64) -> Option<i32> {
    if !value.is_finite() || value <= 0.0 {
        return None;
    }
    let mut n = value.log2().ceil() as i32;
    // The logarithm of a power of two may be off by the last bit.
    if f64::from(n - 1).exp2() >= value {
        n -= 1;
    }
    Some(n)
}

/// Estimates a quantile as Tempo does: whole samples, and exponential interpolation in a bucket.
pub(crate) fn quantile(q: f64, buckets: &Buckets) -> f64 {
    let all: f64 = buckets.values().sum();
    if all <= 0.0 {
        return 0.0;
    }
    let wanted = (q * all).ceil().max(1.0);
    let mut before = 0.0;
    let mut last: Option<i32> = None;
    for (n, count) in buckets {
        if before + count == wanted {
            return f64::from(*n).exp2();
        }
        if before + count > wanted {
            let share = (wanted - before) / count;
            let low = last.map_or(f64::from(*n) - 1.0, f64::from);
            return (low + (f64::from(*n) - low) * share).exp2();
        }
        before += count;
        last = Some(*n);
    }
    last.map_or(0.0, |n| f64::from(n).exp2())
}

/// Applies `topk`, `bottomk` and comparisons, each step by itself.
pub(crate) fn second_stage(mut series: Vec<TraceSeries>, stage: SecondStage) -> Vec<TraceSeries> {
    match stage {
        SecondStage::Filter(op, bound) => {
            for s in &mut series {
                s.samples.retain(|(_, v)| match op {
                    Op::Eq => *v == bound,
                    Op::Ne => *v != bound,
                    Op::Gt => *v > bound,
                    Op::Ge => *v >= bound,
                    Op::Lt => *v < bound,
                    _ => *v <= bound,
                });
            }
        }
        SecondStage::TopK(n) | SecondStage::BottomK(n) => {
            let is_top = matches!(stage, SecondStage::TopK(_));
            let names: Vec<String> = series.iter().map(TraceSeries::prometheus).collect();
            let mut at: BTreeMap<i64, Vec<(f64, usize)>> = BTreeMap::new();
            for (i, s) in series.iter().enumerate() {
                for (t, v) in s.samples.iter().filter(|(_, v)| !v.is_nan()) {
                    at.entry(*t).or_default().push((*v, i));
                }
            }
            let mut kept: Vec<Vec<(i64, f64)>> = vec![Vec::new(); series.len()];
            for (t, mut list) in at {
                list.sort_by(|(a, i), (b, j)| {
                    let order = a.partial_cmp(b).unwrap_or(Ordering::Equal);
                    let order = if is_top { order.reverse() } else { order };
                    order.then_with(|| names.get(*i).cmp(&names.get(*j)))
                });
                for (v, i) in list.into_iter().take(n) {
                    if let Some(k) = kept.get_mut(i) {
                        k.push((t, v));
                    }
                }
            }
            for (s, samples) in series.iter_mut().zip(kept) {
                s.samples = samples;
            }
        }
    }
    series.retain(|s| !s.samples.is_empty());
    series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_open_on_the_left() {
        let s = Steps::new(1_000, 3_500, 1_000, true);
        assert_eq!((s.count, s.bounds()), (3, (1_001, 4_001)));
        let of: Vec<_> = [1_000, 1_001, 2_000, 2_001, 4_000, 4_001].map(|t| s.of(t)).to_vec();
        assert_eq!(of, [None, Some(0), Some(0), Some(1), Some(2), None]);
        // One step may be a range as it is.
        let one = Steps::new(1_234, 5_678, 4_444, false);
        assert_eq!((one.count, one.of(1_235), one.of(5_678)), (1, Some(0), Some(0)));
    }

    #[test]
    fn quantiles_of_powers_of_two() {
        assert_eq!(
            [1.0, 2.0, 2.1, 1024.0, 0.3].map(bucket_of),
            [Some(0), Some(1), Some(2), Some(10), Some(-1)]
        );
        assert_eq!(bucket_of(0.0), None);
        let buckets = Buckets::from([(10, 8.0), (11, 2.0)]);
        assert_eq!(quantile(0.8, &buckets), 1024.0);
        assert_eq!(quantile(1.0, &buckets), 2048.0);
        assert!((quantile(0.9, &buckets) - 1448.15).abs() < 0.01);
        assert_eq!(quantile(0.5, &Buckets::new()), 0.0);
    }
}
