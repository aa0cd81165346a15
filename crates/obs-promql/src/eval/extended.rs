//! `anchored` and `smoothed`: windows whose edges take their values from the samples around them,
//! instead of a slope that is extrapolated.

use crate::ast::Extension;
use crate::eval::range_functions::{MIXED_BUCKETS, Window, transitions};
use crate::eval::{Evaluated, Slot, execution};
use obs_model::{Histogram, ResetHint, Sample, SampleValue, TimestampMs};

/// Which edge of a window a value stands at; a counter that was reset there counts from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    Left,
    Right,
}

/// Refuses functions that extrapolate nothing.
///
/// # Errors
/// With the functions that may be used.
pub(crate) fn check_extended(function: &str, extension: Extension) -> Evaluated<()> {
    let (word, safe): (_, &[&str]) = match extension {
        Extension::Anchored => ("anchored", &["changes", "delta", "increase", "rate", "resets"]),
        Extension::Smoothed => ("smoothed", &["delta", "increase", "rate"]),
    };
    if safe.contains(&function) {
        return Ok(());
    }
    let safe = safe.join(", ");
    execution(format!("{word} modifier can only be used with: {safe} - not with {function}"))
}

/// Returns the value at `t` on the line between two samples; `edge` is given for counters.
pub(crate) fn interpolate(a: &Sample, b: &Sample, t: i64, edge: Option<Edge>) -> SampleValue {
    let (ta, tb) = (a.timestamp.millis(), b.timestamp.millis());
    let share = (t - ta) as f64 / (tb - ta) as f64;
    match (&a.value, &b.value) {
        (SampleValue::Float(from), SampleValue::Float(to)) => {
            let (mut from, mut to) = (*from, *to);
            if edge.is_some() && to < from {
                if edge == Some(Edge::Left) {
                    from = 0.0;
                } else {
                    to += from;
                }
            }
            SampleValue::Float(from + (to - from) * share)
        }
        (SampleValue::Histogram(from), SampleValue::Histogram(to)) => {
            let mut value = (**from).clone();
            let is_reset = edge.is_some() && to.is_reset_after(from);
            if is_reset && edge == Some(Edge::Left) {
                value.scale(0.0);
            }
            let mut step = (**to).clone();
            if (is_reset || step.add_scaled(from, -1.0)) && value.add_scaled(&step, share) {
                value.reset_hint = ResetHint::Gauge;
                SampleValue::Histogram(value.into())
            } else {
                a.value.clone()
            }
        }
        _ => a.value.clone(),
    }
}

/// The samples that a window counts with: its own, and the values at its edges.
struct Edges<'a> {
    left: SampleValue,
    right: SampleValue,
    inner: &'a [Sample],
}

/// Returns nothing when no sample is in the window or, smoothed, after it.
fn edges(
    samples: &[Sample],
    window: Window,
    extension: Extension,
    is_counter: bool,
) -> Option<Edges<'_>> {
    let time = |i: usize| samples.get(i).map_or(i64::MIN, |s| s.timestamp.millis());
    let end = samples.len().checked_sub(1)?;
    let head = samples.get(..end)?;
    let mut first =
        head.partition_point(|s| s.timestamp.millis() <= window.start).saturating_sub(1);
    let is_smoothed = extension == Extension::Smoothed;
    let last =
        if is_smoothed { head.partition_point(|s| s.timestamp.millis() < window.end) } else { end };
    if time(last) <= window.start {
        return None;
    }
    let edge = |e| is_counter.then_some(e);
    let left = match (samples.get(first)?, samples.get(first + 1)) {
        (a, Some(b)) if is_smoothed && time(first) < window.start => {
            interpolate(a, b, window.start, edge(Edge::Left))
        }
        (a, _) => a.value.clone(),
    };
    let right = match (last.checked_sub(1).and_then(|i| samples.get(i)), samples.get(last)?) {
        (Some(a), b) if is_smoothed && time(last) > window.end => {
            interpolate(a, b, window.end, edge(Edge::Right))
        }
        (_, b) => b.value.clone(),
    };
    // The edges stand for the samples at and beyond them.
    if time(first) <= window.start {
        first += 1;
    }
    let past = if time(last) >= window.end { last } else { last + 1 };
    let inner = samples.get(first..past.max(first)).unwrap_or_default();
    Some(Edges { left, right, inner })
}

const MIXED: &str = "encountered a mix of histograms and floats for metric name";

fn float_delta(e: &Edges<'_>, is_counter: bool) -> Option<f64> {
    let (SampleValue::Float(left), SampleValue::Float(right)) = (&e.left, &e.right) else {
        return None;
    };
    let mut delta = right - left;
    if is_counter {
        let mut before = *left;
        for s in e.inner {
            let SampleValue::Float(f) = s.value else { return None };
            if f < before {
                delta += before;
            }
            before = f;
        }
        if *right < before {
            delta += before;
        }
    }
    Some(delta)
}

fn histogram_delta(e: &Edges<'_>, is_counter: bool) -> Result<Histogram, &'static str> {
    let (SampleValue::Histogram(left), SampleValue::Histogram(right)) = (&e.left, &e.right) else {
        return Err(MIXED);
    };
    let mut delta = (**right).clone();
    if !delta.add_scaled(left, -1.0) {
        return Err(MIXED_BUCKETS);
    }
    if is_counter {
        let mut before = left;
        for value in e.inner.iter().map(|s| &s.value).chain([&e.right]) {
            let SampleValue::Histogram(h) = value else { return Err(MIXED) };
            if h.is_reset_after(before) && !delta.add_scaled(before, 1.0) {
                return Err(MIXED_BUCKETS);
            }
            before = h;
        }
    }
    delta.reset_hint = ResetHint::Gauge;
    Ok(delta)
}

/// `rate`, `increase`, `delta`, `changes` and `resets` of an extended window.
///
/// # Errors
/// With the text of a warning when the samples do not go together.
pub(crate) fn extended_function(
    name: &str,
    samples: &[Sample],
    window: Window,
    extension: Extension,
) -> Result<Slot, &'static str> {
    if matches!(name, "changes" | "resets") {
        if samples.last().is_none_or(|s| s.timestamp.millis() <= window.start) {
            return Ok(None);
        }
        let before = samples.partition_point(|s| s.timestamp.millis() <= window.start);
        let seen = samples.get(before.saturating_sub(1)..).unwrap_or_default();
        return Ok(Some(SampleValue::Float(transitions(seen, name == "resets"))));
    }
    let is_counter = name != "delta";
    let Some(e) = edges(samples, window, extension, is_counter) else { return Ok(None) };
    let seconds = (window.end - window.start) as f64 / 1000.0;
    if let Some(mut delta) = float_delta(&e, is_counter) {
        if name == "rate" {
            delta /= seconds;
        }
        return Ok(Some(SampleValue::Float(delta)));
    }
    let mut delta = histogram_delta(&e, is_counter)?;
    if name == "rate" {
        delta.scale(1.0 / seconds);
    }
    Ok(Some(SampleValue::Histogram(delta.into())))
}

/// Returns the samples of a window with its edges as samples of their own.
pub(crate) fn extended_window(
    samples: &[Sample],
    window: Window,
    extension: Extension,
) -> Vec<Sample> {
    let Some(e) = edges(samples, window, extension, false) else { return Vec::new() };
    let at = |t, value| Sample { timestamp: TimestampMs::from_millis(t), value };
    let mut out = vec![at(window.start, e.left)];
    out.extend(e.inner.iter().cloned());
    out.push(at(window.end, e.right));
    out
}
