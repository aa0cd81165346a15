//! Binary operators and vector matching.

use crate::ast::{BinaryOp, Cardinality, Matching, Pos};
use crate::eval::annotations::{is_mismatch, reconciled};
use crate::eval::trim::trim;
use crate::eval::{Column, Evaluated, Evaluator, Slot, Value, execution};
use obs_model::{Labels, SampleValue};
use std::collections::HashMap;

/// Applies an operator to floats. For comparisons the flag says whether the pair is kept.
fn floats(op: BinaryOp, l: f64, r: f64) -> (f64, bool) {
    match op {
        BinaryOp::Add => (l + r, true),
        BinaryOp::Sub => (l - r, true),
        BinaryOp::Mul => (l * r, true),
        BinaryOp::Div => (l / r, true),
        BinaryOp::Mod => (l % r, true),
        BinaryOp::Pow => (l.powf(r), true),
        BinaryOp::Atan2 => (l.atan2(r), true),
        BinaryOp::Eq => (l, l == r),
        BinaryOp::Ne => (l, l != r),
        BinaryOp::Lt => (l, l < r),
        BinaryOp::Le => (l, l <= r),
        BinaryOp::Gt => (l, l > r),
        BinaryOp::Ge => (l, l >= r),
        BinaryOp::And
        | BinaryOp::Or
        | BinaryOp::Unless
        | BinaryOp::TrimUpper
        | BinaryOp::TrimLower => (l, false),
    }
}

impl Evaluator<'_> {
    fn floats(&self, op: BinaryOp, l: f64, r: f64) -> (f64, bool) {
        let is_division = matches!(op, BinaryOp::Div | BinaryOp::Mod);
        if is_division && r == 0.0 && self.options.zero_division_is_nan {
            return (f64::NAN, true);
        }
        floats(op, l, r)
    }

    pub(crate) fn binary(
        &mut self,
        op: BinaryOp,
        lhs: Value,
        rhs: Value,
        bool_modifier: bool,
        matching: &Matching,
        pos: Pos,
    ) -> Evaluated<Value> {
        match (lhs, rhs) {
            (Value::Scalar(l), Value::Scalar(r)) => {
                let pair = |(a, b): (f64, f64)| match self.floats(op, a, b) {
                    (_, keep) if op.is_comparison() => f64::from(u8::from(keep)),
                    (v, _) => v,
                };
                Ok(Value::Scalar(l.into_iter().zip(r).map(pair).collect()))
            }
            (Value::Vector(l), Value::Scalar(r)) => {
                self.vector_scalar(op, l, &r, false, bool_modifier, pos)
            }
            (Value::Scalar(l), Value::Vector(r)) => {
                self.vector_scalar(op, r, &l, true, bool_modifier, pos)
            }
            (Value::Vector(l), Value::Vector(r)) if op.is_set() => {
                Ok(Value::Vector(self.set(op, l, r, matching)))
            }
            (Value::Vector(l), Value::Vector(r)) => {
                self.vectors(op, l, r, bool_modifier, matching, pos).map(Value::Vector)
            }
            _ => execution("binary operation on a string"),
        }
    }

    /// Applies an operator to two samples; `None` drops the pair.
    fn samples(
        &mut self,
        op: BinaryOp,
        l: &SampleValue,
        r: &SampleValue,
        pos: Pos,
    ) -> Option<(SampleValue, bool)> {
        let illegal = |ev: &mut Self, a: &str, b: &str| {
            ev.annotations.info(
                format!(
                    "incompatible sample types encountered for binary operator {:?}: {a} {} {b}",
                    op.as_str(),
                    op.as_str()
                ),
                pos,
            );
            None
        };
        match (l, r) {
            (SampleValue::Histogram(h), SampleValue::Float(f)) if op.is_trim() => {
                let kept = trim(h, *f, op == BinaryOp::TrimUpper);
                Some((SampleValue::Histogram(kept.into()), true))
            }
            (SampleValue::Float(_), SampleValue::Float(_)) if op.is_trim() => {
                illegal(self, "float", "float")
            }
            (SampleValue::Float(a), SampleValue::Float(b)) => {
                let (v, keep) = self.floats(op, *a, *b);
                Some((SampleValue::Float(v), keep))
            }
            (SampleValue::Histogram(h), SampleValue::Float(f))
            | (SampleValue::Float(f), SampleValue::Histogram(h))
                if op == BinaryOp::Mul
                    || (op == BinaryOp::Div && matches!(l, SampleValue::Histogram(_))) =>
            {
                let mut h = (**h).clone();
                if op == BinaryOp::Mul {
                    h.scale(*f)
                } else {
                    h.divide(*f)
                }
                Some((SampleValue::Histogram(h.into()), true))
            }
            (SampleValue::Histogram(a), SampleValue::Histogram(b)) => match op {
                BinaryOp::Add | BinaryOp::Sub => {
                    if is_mismatch(a, b) {
                        let what = if op == BinaryOp::Add { "addition" } else { "subtraction" };
                        self.annotations.info(reconciled(what), pos);
                    }
                    let mut sum = (**a).clone();
                    if !sum.add_scaled(b, if op == BinaryOp::Add { 1.0 } else { -1.0 }) {
                        return illegal(self, "histogram", "histogram");
                    }
                    Some((SampleValue::Histogram(sum.into()), true))
                }
                BinaryOp::Eq => Some((l.clone(), a.is_equal(b))),
                BinaryOp::Ne => Some((l.clone(), !a.is_equal(b))),
                _ => illegal(self, "histogram", "histogram"),
            },
            (SampleValue::Float(_), _) => illegal(self, "float", "histogram"),
            (SampleValue::Histogram(_), _) => illegal(self, "histogram", "float"),
        }
    }

    fn slot(
        &mut self,
        op: BinaryOp,
        l: &SampleValue,
        r: &SampleValue,
        bool_modifier: bool,
        pos: Pos,
    ) -> Slot {
        let (value, keep) = self.samples(op, l, r, pos)?;
        match (op.is_comparison(), bool_modifier, keep) {
            (true, true, _) => Some(SampleValue::Float(f64::from(u8::from(keep)))),
            (true, false, false) => None,
            _ => Some(value),
        }
    }

    fn vector_scalar(
        &mut self,
        op: BinaryOp,
        columns: Vec<Column>,
        scalar: &[f64],
        swapped: bool,
        bool_modifier: bool,
        pos: Pos,
    ) -> Evaluated<Value> {
        let mut out = Vec::with_capacity(columns.len());
        for mut c in columns {
            let mut values = Vec::with_capacity(c.values.len());
            for (slot, s) in std::mem::take(&mut c.values).into_iter().zip(scalar) {
                let s = SampleValue::Float(*s);
                values.push(slot.and_then(|v| {
                    let (l, r) = if swapped { (&s, &v) } else { (&v, &s) };
                    let result = self.slot(op, l, r, bool_modifier, pos)?;
                    // A filter keeps the vector's value, whichever side it is on.
                    Some(if op.is_comparison() && !bool_modifier { v } else { result })
                }));
            }
            c.values = values;
            if !((op.is_comparison() && !bool_modifier) || op.is_trim()) {
                c.drop_name(self.options);
            }
            out.push(c);
        }
        super::merge_same_labels(out).map(Value::Vector)
    }

    fn set(
        &self,
        op: BinaryOp,
        lhs: Vec<Column>,
        rhs: Vec<Column>,
        matching: &Matching,
    ) -> Vec<Column> {
        let present = |columns: &[Column]| {
            let mut by_key: HashMap<Labels, Vec<bool>> = HashMap::new();
            for c in columns {
                let seen = by_key
                    .entry(set_signature(&c.labels, matching))
                    .or_insert_with(|| vec![false; self.steps.count]);
                for (flag, slot) in seen.iter_mut().zip(&c.values) {
                    *flag |= slot.is_some();
                }
            }
            by_key
        };
        let mask = |columns: Vec<Column>,
                    other: &HashMap<Labels, Vec<bool>>,
                    keep_if_present: bool|
         -> Vec<Column> {
            columns
                .into_iter()
                .map(|mut c| {
                    let flags = other.get(&set_signature(&c.labels, matching));
                    for (i, slot) in c.values.iter_mut().enumerate() {
                        let there = flags.and_then(|f| f.get(i)).copied().unwrap_or(false);
                        if there != keep_if_present {
                            *slot = None;
                        }
                    }
                    c
                })
                .filter(|c| c.values.iter().any(Option::is_some))
                .collect()
        };
        match op {
            BinaryOp::And => mask(lhs, &present(&rhs), true),
            BinaryOp::Unless => mask(lhs, &present(&rhs), false),
            _ => {
                let added = mask(rhs, &present(&lhs), false);
                let mut out = lhs;
                for c in added {
                    // The same series may come from the left at some steps and the right at others.
                    match out.iter_mut().find(|o| o.labels == c.labels) {
                        Some(o) => {
                            o.drops_name |= c.drops_name;
                            for (slot, new) in o.values.iter_mut().zip(c.values) {
                                *slot = slot.take().or(new);
                            }
                        }
                        None => out.push(c),
                    }
                }
                out
            }
        }
    }

    fn vectors(
        &mut self,
        op: BinaryOp,
        lhs: Vec<Column>,
        rhs: Vec<Column>,
        bool_modifier: bool,
        matching: &Matching,
        pos: Pos,
    ) -> Evaluated<Vec<Column>> {
        let swapped = matching.cardinality == Cardinality::OneToMany;
        let (many, one) = if swapped { (rhs, lhs) } else { (lhs, rhs) };
        let is_filled = matching.fill_left.is_some() || matching.fill_right.is_some();
        check_ones(&one, &many, matching, is_filled, swapped)?;
        let mut ones: HashMap<Labels, Vec<Column>> = HashMap::new();
        for c in one {
            ones.entry(signature(&c.labels, matching)).or_default().push(c);
        }
        let mut joined = Joined { index: HashMap::new(), columns: Vec::new() };
        let is_filter = op.is_comparison() && !bool_modifier;
        // With `bool` the name may stay until the query ends; arithmetic drops it at once.
        let stays = op.is_comparison() && self.options.delay_name_removal;
        let keeps_name = is_filter || op.is_trim() || stays;
        let drops_name = stays && bool_modifier;
        // Which (group, step) has a sample on the "many" side.
        let mut matched: HashMap<Labels, Vec<bool>> = HashMap::new();
        // As in Prometheus: with `group_right` the sides are swapped before they are filled.
        let (fill_many, fill_one) = (matching.fill_left, matching.fill_right);
        let steps = self.steps.count;
        for m in many {
            let key = signature(&m.labels, matching);
            let partners = ones.get(&key).map_or(&[][..], Vec::as_slice);
            if partners.is_empty() && fill_one.is_none() {
                continue;
            }
            let seen = matched.entry(key.clone()).or_insert_with(|| vec![false; steps]);
            for (step, slot) in m.values.iter().enumerate() {
                let Some(value) = slot else { continue };
                let mut there = partners
                    .iter()
                    .filter_map(|c| Some((&c.labels, c.values.get(step)?.as_ref()?)));
                let (none, filled);
                let (partner, other) = match (there.next(), fill_one) {
                    (Some(found), _) => found,
                    (None, Some(fill)) => {
                        (none, filled) = (Labels::default(), SampleValue::Float(fill));
                        (&none, &filled)
                    }
                    (None, None) => continue,
                };
                let (l, r) = if swapped { (other, value) } else { (value, other) };
                let set = |flags: &mut Vec<bool>| {
                    flags.get_mut(step).is_some_and(|flag| std::mem::replace(flag, true))
                };
                if set(seen) && matching.cardinality == Cardinality::OneToOne {
                    return execution(
                        "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
                    );
                }
                let Some(result) = self.slot(op, l, r, bool_modifier, pos) else { continue };
                let result = if is_filter { l.clone() } else { result };
                let labels = result_labels(keeps_name, matching, &m.labels, partner);
                let drops_name = drops_name || (keeps_name && m.drops_name);
                joined.put(&key, (labels, drops_name), step, result, steps)?;
            }
        }
        let Some(fill) = fill_many.map(SampleValue::Float) else { return Ok(joined.columns) };
        for (key, list) in ones {
            for c in list {
                for (step, slot) in c.values.iter().enumerate() {
                    let seen = matched.get(&key).and_then(|m| m.get(step)).copied();
                    let Some(other) = slot.as_ref().filter(|_| seen != Some(true)) else {
                        continue;
                    };
                    let (l, r) = if swapped { (other, &fill) } else { (&fill, other) };
                    let Some(result) = self.slot(op, l, r, bool_modifier, pos) else { continue };
                    let result = if is_filter { l.clone() } else { result };
                    let labels = result_labels(keeps_name, matching, &key, &c.labels);
                    joined.put(&key, (labels, drops_name), step, result, steps)?;
                }
            }
        }
        Ok(joined.columns)
    }
}

/// Results of a binary operation by their labels.
struct Joined {
    /// Place of each column, and the group that made it.
    index: HashMap<Labels, (usize, Labels)>,
    columns: Vec<Column>,
}

impl Joined {
    fn put(
        &mut self,
        key: &Labels,
        (labels, drops_name): (Labels, bool),
        step: usize,
        v: SampleValue,
        steps: usize,
    ) -> Evaluated<()> {
        let (index, group) = self.index.entry(labels.clone()).or_insert_with(|| {
            self.columns.push(Column { labels, values: vec![None; steps], drops_name });
            (self.columns.len() - 1, key.clone())
        });
        if let Some(place) = self.columns.get_mut(*index).and_then(|c| c.values.get_mut(step)) {
            if place.is_some() {
                return execution(if group == key {
                    "multiple matches for labels: grouping labels must ensure unique matches"
                } else {
                    "vector cannot contain metrics with the same labelset"
                });
            }
            *place = Some(v);
        }
        Ok(())
    }
}

/// Refuses two samples of one group on the side that must have one, at any step at which the other
/// side has samples at all.
fn check_ones(
    one: &[Column],
    many: &[Column],
    matching: &Matching,
    is_filled: bool,
    swapped: bool,
) -> Evaluated<()> {
    let keys: Vec<Labels> = one.iter().map(|c| signature(&c.labels, matching)).collect();
    let mut count: HashMap<&Labels, usize> = HashMap::with_capacity(keys.len());
    keys.iter().for_each(|k| *count.entry(k).or_default() += 1);
    if count.values().all(|n| *n < 2) {
        return Ok(());
    }
    let there = |c: &Column, step: usize| c.values.get(step).is_some_and(Option::is_some);
    let steps = one.first().map_or(0, |c| c.values.len());
    for step in 0..steps {
        if !is_filled && !many.iter().any(|c| there(c, step)) {
            continue;
        }
        let mut seen: HashMap<&Labels, &Labels> = HashMap::new();
        for (c, key) in one.iter().zip(&keys) {
            if count.get(key).is_none_or(|n| *n < 2) || !there(c, step) {
                continue;
            }
            if let Some(first) = seen.insert(key, &c.labels) {
                let side = if swapped { "left" } else { "right" };
                let (key, second, first) = (braced(key), braced(&c.labels), braced(first));
                return execution(format!(
                    "found duplicate series for the match group {key} on the {side} hand-side of the operation: [{second}, {first}];many-to-many matching not allowed: matching labels must be unique on one side"
                ));
            }
        }
    }
    Ok(())
}

/// Labels with the name among them, as Prometheus prints a label set.
fn braced(l: &Labels) -> String {
    let pairs: Vec<String> = l.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

fn signature(labels: &Labels, matching: &Matching) -> Labels {
    let listed = |n: &str| matching.labels.iter().any(|l| l == n);
    if matching.on {
        labels.filter(listed)
    } else {
        labels.filter(|n| n != obs_model::METRIC_NAME && !listed(n))
    }
}

/// What set operators compare: a series' type and unit do not tell it from another.
fn set_signature(labels: &Labels, matching: &Matching) -> Labels {
    if matching.on {
        signature(labels, matching)
    } else {
        signature(&labels.without_name(), matching)
    }
}

fn result_labels(keeps_name: bool, matching: &Matching, many: &Labels, one: &Labels) -> Labels {
    let base = if keeps_name { many.clone() } else { many.without_name() };
    if matching.cardinality == Cardinality::OneToOne {
        let listed = |n: &str| matching.labels.iter().any(|l| l == n);
        return if matching.on { base.filter(listed) } else { base.filter(|n| !listed(n)) };
    }
    if matching.include.is_empty() {
        return base;
    }
    let mut b = base.to_builder();
    for name in &matching.include {
        b.set(name, one.get(name));
    }
    b.build()
}
