//! Aggregation operators.

use crate::ast::{AggregateOp, Grouping, Literal, Pos};
use crate::eval::annotations::of_sum;
use crate::eval::format::format_histogram;
use crate::eval::range_functions::MIXED_BUCKETS;
use crate::eval::{Column, Evaluated, Evaluator, Slot, Value, execution, format_float};
use obs_model::{CUSTOM_BUCKETS_SCHEMA, Histogram, Labels, SampleValue, is_metadata};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

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
    /// The sum in units that cannot overflow.
    scaled: KahanSum,
    list: Vec<Arc<Histogram>>,
    floats: u32,
    histograms: u32,
}

/// Floats times this add up without overflow; a power of two, so that nothing is lost.
const SMALL: f64 = 5.421_010_862_427_522e-20;

/// Adds histograms, or averages them; `None` when their buckets cannot meet. Counts and sums that
/// overflow still have a mean.
pub(crate) fn add_histograms(list: &[Arc<Histogram>], average: bool) -> Option<Histogram> {
    let (first, rest) = list.split_first()?;
    let n = list.len() as f64;
    let add = |factor: f64| {
        let mut total = (**first).clone();
        total.scale(factor);
        for h in rest {
            if !total.add_scaled(h, factor) {
                return None;
            }
        }
        // What cancels out must not leave its rounding behind.
        let exact = |part: fn(&Histogram) -> f64| {
            let mut sum = KahanSum::default();
            list.iter().for_each(|h| sum.add(part(h) * factor));
            sum.value()
        };
        (total.count, total.sum) = (exact(|h| h.count), exact(|h| h.sum));
        Some(total)
    };
    let mut total = add(1.0)?;
    if average {
        let is_over = |f: f64| f.is_infinite();
        let buckets = total.positive.iter().chain(&total.negative);
        if is_over(total.count) || is_over(total.sum) || buckets.map(|b| b.1).any(is_over) {
            total = add(1.0 / n)?;
        } else {
            total.divide(n);
        }
    }
    Some(total)
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
                self.scaled.add(*f * SMALL);
                let n = f64::from(self.floats);
                let delta = f - self.mean;
                self.mean += delta / n;
                self.squares += delta * (f - self.mean);
            }
            SampleValue::Histogram(h) => {
                self.histograms += 1;
                if matches!(op, AggregateOp::Sum | AggregateOp::Avg) {
                    self.list.push(h.clone());
                }
            }
        }
        self.count += 1.0;
    }

    fn finish(self, op: AggregateOp) -> Slot {
        if self.count == 0.0 {
            return None;
        }
        let float = |f| Some(SampleValue::Float(f));
        match op {
            AggregateOp::Count => return float(self.count),
            AggregateOp::Group => return float(1.0),
            AggregateOp::Sum | AggregateOp::Avg => {
                if self.floats > 0 && self.histograms > 0 {
                    return None;
                }
                if self.histograms > 0 {
                    let total = add_histograms(&self.list, op == AggregateOp::Avg)?;
                    return Some(SampleValue::Histogram(total.into()));
                }
            }
            _ if self.floats == 0 => return None,
            _ => {}
        }
        let n = f64::from(self.floats);
        float(match op {
            AggregateOp::Sum => self.sum.value(),
            // A sum that overflowed still has a mean.
            AggregateOp::Avg if self.sum.value().is_infinite() => self.scaled.value() / n / SMALL,
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

/// Checks the parameter of an operator that counts series.
fn check_count(k: &[f64]) -> Evaluated<()> {
    if k.iter().any(|k| k.is_nan()) {
        return execution("Parameter value is NaN");
    }
    match k.iter().find(|k| k.abs() > 9.2e18) {
        Some(bad) => execution(format!("Scalar value {} overflows int64", format_float(*bad))),
        None => Ok(()),
    }
}

fn has_histogram(c: &Column) -> bool {
    c.values.iter().any(|v| matches!(v, Some(SampleValue::Histogram(_))))
}

/// Adds up columns of floats alone, which most sums are; `None` for anything else. The numbers are
/// those of [`Group`].
fn sum_floats(op: AggregateOp, members: &[Column], steps: usize) -> Option<Vec<Slot>> {
    if !matches!(op, AggregateOp::Sum | AggregateOp::Count) {
        return None;
    }
    let mut sums = vec![KahanSum::default(); steps];
    let mut counts = vec![0_u32; steps];
    for c in members {
        for ((sum, count), value) in sums.iter_mut().zip(&mut counts).zip(&c.values) {
            match value {
                None => {}
                Some(SampleValue::Float(f)) => {
                    sum.add(*f);
                    *count += 1;
                }
                Some(SampleValue::Histogram(_)) => return None,
            }
        }
    }
    let result = |(sum, n): (KahanSum, u32)| match (n, op) {
        (0, _) => None,
        (n, AggregateOp::Count) => Some(SampleValue::Float(f64::from(n))),
        _ => Some(SampleValue::Float(sum.value())),
    };
    Some(sums.into_iter().zip(counts).map(result).collect())
}

type Groups = Vec<(Labels, Vec<Column>)>;

/// Keeps the samples that `keep` lets through, told the step and how many of the group it let
/// through at it before.
fn keep_samples(
    groups: Groups,
    mut keep: impl FnMut(&Column, usize, usize) -> bool,
) -> Vec<Column> {
    let mut out = Vec::new();
    for (_, members) in groups {
        let mut kept = vec![0; members.first().map_or(0, |c| c.values.len())];
        for mut c in members {
            for step in 0..c.values.len() {
                let is_there = c.values.get(step).is_some_and(Option::is_some);
                let Some(n) = kept.get_mut(step) else { continue };
                if is_there && keep(&c, step, *n) {
                    *n += 1;
                } else if let Some(slot) = c.values.get_mut(step) {
                    *slot = None;
                }
            }
            if c.values.iter().any(Option::is_some) {
                out.push(c);
            }
        }
    }
    out
}

fn limit_k(k: &[f64], groups: Groups) -> Evaluated<Vec<Column>> {
    check_count(k)?;
    let at = |step: usize| k.get(step).copied().unwrap_or(0.0).max(0.0) as usize;
    Ok(keep_samples(groups, |_, step, kept| kept < at(step)))
}

/// Where a series lies between 0 and 1 by a hash of its labels, the same in every query.
fn place(labels: &Labels) -> f64 {
    let mut bytes = Vec::new();
    for (name, value) in labels.iter() {
        for text in [name, value] {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0xff);
        }
    }
    xxhash_rust::xxh3::xxh3_64(&bytes) as f64 / u64::MAX as f64
}

/// Whether a group's name goes at the end: that of one member is enough.
fn drops_name(members: &[Column]) -> bool {
    members.iter().any(|c| c.drops_name)
}

fn group_labels(labels: &Labels, g: &Grouping) -> Labels {
    let listed = |n: &str| g.labels.iter().any(|l| l == n);
    if g.without { labels.filter(|n| !is_metadata(n) && !listed(n)) } else { labels.filter(listed) }
}

impl Evaluator<'_> {
    pub(crate) fn aggregate(
        &mut self,
        op: AggregateOp,
        param: Option<(Value, Pos)>,
        grouping: &Grouping,
        columns: Vec<Column>,
        pos: Pos,
    ) -> Evaluated<Vec<Column>> {
        if op.ignores_histograms() && columns.iter().any(has_histogram) {
            let text = format!("ignored histogram in {} aggregation", op.as_str());
            self.annotations.info(text, pos);
        }
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
            (AggregateOp::Limitk, Some((Value::Scalar(k), _))) => limit_k(&k, groups),
            (AggregateOp::LimitRatio, Some((Value::Scalar(r), pos))) => {
                self.limit_ratio(&r, pos, groups)
            }
            (_, None) => Ok(self.fold(op, groups, pos)),
            _ => execution("aggregation parameter has the wrong type"),
        }
    }

    fn fold(
        &mut self,
        op: AggregateOp,
        groups: Vec<(Labels, Vec<Column>)>,
        pos: Pos,
    ) -> Vec<Column> {
        let mut out = Vec::with_capacity(groups.len());
        for (labels, members) in groups {
            let drops_name = drops_name(&members);
            if let Some(values) = sum_floats(op, &members, self.steps.count) {
                out.push(Column { labels, values, drops_name });
                continue;
            }
            let adds = matches!(op, AggregateOp::Sum | AggregateOp::Avg);
            if adds && members.iter().any(has_histogram) {
                for step in 0..self.steps.count {
                    let named = members.iter().filter_map(|c| match c.values.get(step) {
                        Some(Some(SampleValue::Histogram(h))) => {
                            Some((c.labels.metric_name(), &**h))
                        }
                        _ => None,
                    });
                    of_sum(named.clone().map(|(_, h)| h), pos, self.annotations);
                    let is_custom = |h: &Histogram| h.schema == CUSTOM_BUCKETS_SCHEMA;
                    let mut kinds = named.map(|(name, h)| (name, is_custom(h)));
                    if let Some((_, first)) = kinds.next()
                        && let Some((name, _)) = kinds.find(|(_, kind)| *kind != first)
                    {
                        self.annotations.warn(format!("{MIXED_BUCKETS} {name:?}"), pos);
                    }
                }
            }
            let mut slots = vec![Group::default(); self.steps.count];
            for c in &members {
                for (group, value) in slots.iter_mut().zip(&c.values) {
                    if let Some(v) = value {
                        group.add(op, v);
                    }
                }
            }
            if adds && slots.iter().any(|g| g.floats > 0 && g.histograms > 0) {
                self.annotations.warn(
                    "encountered a mix of histograms and floats for aggregation",
                    Pos::default(),
                );
            }
            let values = slots.into_iter().map(|g| g.finish(op)).collect();
            out.push(Column { labels, values, drops_name });
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
                drops_name: drops_name(&members),
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
        check_count(k)?;
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
                .map(|(c, values)| Some(Column { values, ..c }))
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

    fn limit_ratio(&mut self, r: &[f64], pos: Pos, groups: Groups) -> Evaluated<Vec<Column>> {
        if r.iter().any(|r| r.is_nan()) {
            return execution("Ratio value is NaN");
        }
        if let Some(bad) = r.iter().find(|r| r.abs() > 1.0) {
            let (got, cap) = (format_float(*bad), format_float(bad.signum()));
            let text =
                format!("ratio value should be between -1 and 1, got {got}, capping to {cap}");
            self.annotations.warn(text, pos);
        }
        let at = |step: usize| r.get(step).copied().unwrap_or(0.0).clamp(-1.0, 1.0);
        Ok(keep_samples(groups, |c, step, _| {
            let (r, place) = (at(step), place(&c.labels));
            // A negative ratio takes exactly the others.
            if r >= 0.0 { place < r || r == 1.0 } else { place >= 1.0 + r }
        }))
    }

    fn count_values(
        &self,
        label: &Literal,
        groups: Vec<(Labels, Vec<Column>)>,
    ) -> Evaluated<Vec<Column>> {
        if !label.is_label_name() {
            return execution(format!("invalid label name {}", label.quoted()));
        }
        let mut out: Vec<Column> = Vec::new();
        // Groups whose labels meet through the label that is set count together.
        let mut index: HashMap<Labels, usize> = HashMap::new();
        for (labels, members) in groups {
            let (first, drops_name) = (out.len(), drops_name(&members));
            for c in &members {
                for step in 0..self.steps.count {
                    let text = match c.values.get(step) {
                        // All digits, however many: Go's format `f`.
                        Some(Some(SampleValue::Float(f))) if f.is_finite() => f.to_string(),
                        Some(Some(SampleValue::Float(f))) => format_float(*f),
                        Some(Some(SampleValue::Histogram(h))) => format_histogram(h),
                        _ => continue,
                    };
                    let labels = labels.with(&label.text, &text);
                    let at = *index.entry(labels.clone()).or_insert_with(|| {
                        let values = vec![None; self.steps.count];
                        out.push(Column { labels, values, drops_name });
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
