//! Aggregation operators.

use crate::ast::{AggregateOp, Grouping, Pos};
use crate::eval::{Column, Evaluated, Evaluator, Slot, Value, execution, format_float};
use obs_model::{Histogram, Labels, METRIC_NAME, SampleValue};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Kahan–Neumaier sum, as Prometheus adds floats.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KahanSum {
    sum: f64,
    lost: f64,
}

impl KahanSum {
    pub(crate) fn add(&mut self, v: f64) {
        let t = self.sum + v;
        if t.is_infinite() {
            self.lost = 0.0;
        } else if self.sum.abs() >= v.abs() {
            self.lost += (self.sum - t) + v;
        } else {
            self.lost += (v - t) + self.sum;
        }
        self.sum = t;
    }

    pub(crate) fn value(self) -> f64 {
        if self.sum.is_infinite() { self.sum } else { self.sum + self.lost }
    }
}

/// What one group has accumulated at one step.
#[derive(Debug, Clone, Default)]
struct Group {
    count: f64,
    sum: KahanSum,
    extreme: f64,
    /// Running mean and squared distance (Welford), for standard deviation.
    mean: f64,
    squares: f64,
    histogram: Option<Histogram>,
    floats: u32,
    histograms: u32,
    broken: bool,
}

impl Group {
    fn add(&mut self, op: AggregateOp, value: &SampleValue) {
        match value {
            SampleValue::Float(f) => {
                self.floats += 1;
                if self.floats == 1
                    || (op == AggregateOp::Min && (*f < self.extreme || self.extreme.is_nan()))
                    || (op == AggregateOp::Max && (*f > self.extreme || self.extreme.is_nan()))
                {
                    self.extreme = *f;
                }
                self.sum.add(*f);
                let n = f64::from(self.floats);
                let delta = f - self.mean;
                self.mean += delta / n;
                self.squares += delta * (f - self.mean);
            }
            SampleValue::Histogram(h) => {
                self.histograms += 1;
                match &mut self.histogram {
                    None => self.histogram = Some((**h).clone()),
                    Some(sum) => self.broken |= !sum.add_scaled(h, 1.0),
                }
            }
        }
        self.count += 1.0;
    }

    fn finish(mut self, op: AggregateOp) -> Slot {
        if self.count == 0.0 {
            return None;
        }
        let float = |f| Some(SampleValue::Float(f));
        match op {
            AggregateOp::Count => return float(self.count),
            AggregateOp::Group => return float(1.0),
            AggregateOp::Sum | AggregateOp::Avg => {
                if self.floats > 0 && self.histograms > 0 || self.broken {
                    return None;
                }
                if let Some(mut h) = self.histogram.take() {
                    if op == AggregateOp::Avg {
                        h.scale(1.0 / self.count);
                    }
                    return Some(SampleValue::Histogram(h.into()));
                }
            }
            _ if self.floats == 0 => return None,
            _ => {}
        }
        let n = f64::from(self.floats);
        float(match op {
            AggregateOp::Sum => self.sum.value(),
            // A sum that overflowed still has a mean.
            AggregateOp::Avg if self.sum.value().is_infinite() && self.mean.is_finite() => {
                self.mean
            }
            AggregateOp::Avg => self.sum.value() / n,
            AggregateOp::Stddev => (self.squares / n).sqrt(),
            AggregateOp::Stdvar => self.squares / n,
            _ => self.extreme,
        })
    }
}

/// φ-quantile of unsorted values, as Prometheus interpolates it.
pub(crate) fn quantile(q: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    // NaN sorts first.
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan())));
    let rank = q * (values.len() as f64 - 1.0);
    let lower = rank.floor().max(0.0) as usize;
    let upper = (lower + 1).min(values.len() - 1);
    let weight = rank - rank.floor();
    let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
    at(lower) * (1.0 - weight) + at(upper) * weight
}

fn group_labels(labels: &Labels, g: &Grouping) -> Labels {
    let listed = |n: &str| g.labels.iter().any(|l| l == n);
    if g.without {
        labels.filter(|n| n != METRIC_NAME && !listed(n))
    } else {
        labels.filter(listed)
    }
}

impl Evaluator<'_> {
    pub(crate) fn aggregate(
        &mut self,
        op: AggregateOp,
        param: Option<(Value, Pos)>,
        grouping: &Grouping,
        columns: Vec<Column>,
    ) -> Evaluated<Vec<Column>> {
        // Groups in order of first appearance, so that results are stable.
        let mut index: HashMap<Labels, usize> = HashMap::new();
        let mut groups: Vec<(Labels, Vec<Column>)> = Vec::new();
        for c in columns {
            let key = group_labels(&c.labels, grouping);
            let at = *index.entry(key.clone()).or_insert_with(|| {
                groups.push((key, Vec::new()));
                groups.len() - 1
            });
            if let Some((_, members)) = groups.get_mut(at) {
                members.push(c);
            }
        }
        match (op, param) {
            (AggregateOp::Topk | AggregateOp::Bottomk, Some((Value::Scalar(k), _))) => {
                self.top(op, &k, groups)
            }
            (AggregateOp::Quantile, Some((Value::Scalar(q), pos))) => {
                Ok(self.quantiles(&q, pos, groups))
            }
            (AggregateOp::CountValues, Some((Value::String(label), _))) => {
                self.count_values(&label, groups)
            }
            (_, None) => Ok(self.fold(op, groups)),
            _ => execution("aggregation parameter has the wrong type"),
        }
    }

    fn fold(&mut self, op: AggregateOp, groups: Vec<(Labels, Vec<Column>)>) -> Vec<Column> {
        let mut out = Vec::with_capacity(groups.len());
        for (labels, members) in groups {
            let mut slots = vec![Group::default(); self.steps.count];
            for c in &members {
                for (group, value) in slots.iter_mut().zip(&c.values) {
                    if let Some(v) = value {
                        group.add(op, v);
                    }
                }
            }
            if slots.iter().any(|g| g.floats > 0 && g.histograms > 0)
                && matches!(op, AggregateOp::Sum | AggregateOp::Avg)
            {
                self.annotations.warn(
                    "encountered a mix of histograms and floats for aggregation",
                    Pos::default(),
                );
            }
            out.push(Column { labels, values: slots.into_iter().map(|g| g.finish(op)).collect() });
        }
        out.retain(|c| c.values.iter().any(Option::is_some));
        out
    }

    fn quantiles(
        &mut self,
        q: &[f64],
        pos: Pos,
        groups: Vec<(Labels, Vec<Column>)>,
    ) -> Vec<Column> {
        if let Some(bad) = q.iter().find(|q| !(0.0..=1.0).contains(*q)) {
            self.annotations.warn(
                format!("quantile value should be between 0 and 1, got {}", format_float(*bad)),
                pos,
            );
        }
        let value = |members: &[Column], step: usize, q: f64| {
            let mut values: Vec<f64> = members.iter().filter_map(|c| c.float(step)).collect();
            if values.is_empty() {
                None
            } else {
                Some(SampleValue::Float(quantile(q, &mut values)))
            }
        };
        groups
            .into_iter()
            .map(|(labels, members)| Column {
                labels,
                values: q.iter().enumerate().map(|(i, q)| value(&members, i, *q)).collect(),
            })
            .filter(|c| c.values.iter().any(Option::is_some))
            .collect()
    }

    fn top(
        &self,
        op: AggregateOp,
        k: &[f64],
        groups: Vec<(Labels, Vec<Column>)>,
    ) -> Evaluated<Vec<Column>> {
        if let Some(bad) = k.iter().find(|k| k.is_nan() || k.abs() > 9.2e18) {
            return execution(format!("Scalar value {} overflows int64", format_float(*bad)));
        }
        let mut out = Vec::new();
        for (_, members) in groups {
            let mut kept = vec![vec![None; self.steps.count]; members.len()];
            let mut last_order: Vec<usize> = Vec::new();
            for (step, k) in k.iter().enumerate() {
                let mut ranked: Vec<(usize, f64)> = members
                    .iter()
                    .enumerate()
                    .filter_map(|(i, c)| Some((i, c.float(step)?)))
                    .collect();
                // NaN ranks last for both.
                ranked.sort_by(|(_, a), (_, b)| {
                    let natural =
                        if op == AggregateOp::Topk { b.partial_cmp(a) } else { a.partial_cmp(b) };
                    natural.unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
                });
                ranked.truncate(k.max(0.0) as usize);
                last_order = ranked.iter().map(|(i, _)| *i).collect();
                for (i, f) in ranked {
                    if let Some(slot) = kept.get_mut(i).and_then(|v| v.get_mut(step)) {
                        *slot = Some(SampleValue::Float(f));
                    }
                }
            }
            let mut columns: Vec<Option<Column>> = members
                .into_iter()
                .zip(kept)
                .map(|(c, values)| Some(Column { labels: c.labels, values }))
                .collect();
            // An instant query lists the group by rank.
            if self.steps.count == 1 {
                out.extend(last_order.into_iter().filter_map(|i| columns.get_mut(i)?.take()));
            } else {
                out.extend(
                    columns.into_iter().flatten().filter(|c| c.values.iter().any(Option::is_some)),
                );
            }
        }
        Ok(out)
    }

    fn count_values(
        &self,
        label: &str,
        groups: Vec<(Labels, Vec<Column>)>,
    ) -> Evaluated<Vec<Column>> {
        if label.is_empty() {
            return execution("invalid label name \"\"");
        }
        let mut out: Vec<Column> = Vec::new();
        for (labels, members) in groups {
            let mut index: HashMap<String, usize> = HashMap::new();
            let first = out.len();
            for c in &members {
                for step in 0..self.steps.count {
                    let Some(f) = c.float(step) else { continue };
                    let text = format_float(f);
                    let at = *index.entry(text.clone()).or_insert_with(|| {
                        out.push(Column {
                            labels: labels.with(label, &text),
                            values: vec![None; self.steps.count],
                        });
                        out.len() - 1
                    });
                    if let Some(slot) = out.get_mut(at).and_then(|c| c.values.get_mut(step)) {
                        let n = if let Some(SampleValue::Float(n)) = slot { *n } else { 0.0 };
                        *slot = Some(SampleValue::Float(n + 1.0));
                    }
                }
            }
            if let Some(group) = out.get_mut(first..) {
                group.sort_by(|a, b| a.labels.partial_cmp(&b.labels).unwrap_or(Ordering::Equal));
            }
        }
        Ok(out)
    }
}
