//! `rate`, `increase` and `delta` of series of floats, for all steps at once.
//!
//! Windows of neighbouring steps share most of their samples. What a window needs is its first and
//! last sample and the counter resets between: resets are found once a series, so that a step
//! costs the same however long the window is. Where windows lie is found once for the series of a
//! scrape, which share their times. The numbers are those of the general function, added
//! in the same order.

use crate::eval::Slot;
use crate::eval::range_functions::{Extrapolation, Window};
use obs_model::{SampleValue, Times, is_stale};
use std::sync::Arc;

/// Which of the three functions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) counter: bool,
    pub(crate) per_second: bool,
}

impl Kind {
    pub(crate) fn of(function: &str) -> Option<Self> {
        match function {
            "rate" => Some(Self { counter: true, per_second: true }),
            "increase" => Some(Self { counter: true, per_second: false }),
            "delta" => Some(Self { counter: false, per_second: false }),
            _ => None,
        }
    }
}

/// A step's window: its first sample, the one behind its last, and how its slope is extrapolated.
#[derive(Debug, Clone, Copy)]
struct StepWindow {
    from: u32,
    to: u32,
    extrapolation: Extrapolation,
}

/// The windows of all steps over a list of times. Series of one scrape have the same.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    times: Option<Times>,
    /// `None` for a step with less than two samples.
    steps: Vec<Option<StepWindow>>,
    seconds: f64,
    resets: Vec<(u32, f64)>,
}

impl Windows {
    /// Finds the windows, unless the times are those of the series before.
    pub(crate) fn fit(&mut self, times: &Times, ends: &[i64], range_ms: i64) {
        let is_same = |known: &Times| match (known, times) {
            (Times::Shared { list: a, .. }, Times::Shared { list: b, .. }) if Arc::ptr_eq(a, b) => {
                // Parts of one list are the same where they begin and end together.
                known.len() == times.len() && known.first() == times.first()
            }
            _ => **known == **times,
        };
        if self.times.as_ref().is_some_and(is_same) {
            return;
        }
        self.times = Some(times.clone());
        self.seconds = range_ms as f64 / 1000.0;
        self.steps.clear();
        let (mut from, mut to) = (0, 0);
        for end in ends {
            let window = Window { start: end - range_ms, end: *end };
            while times.get(to).is_some_and(|t| *t <= window.end) {
                to += 1;
            }
            while from < to && times.get(from).is_some_and(|t| *t <= window.start) {
                from += 1;
            }
            let step = match times.get(from..to) {
                Some(list @ [first, .., last]) => Some(StepWindow {
                    from: from as u32,
                    to: to as u32,
                    extrapolation: Extrapolation::of((*first, *last), list.len(), window),
                }),
                _ => None,
            };
            self.steps.push(step);
        }
    }

    /// Returns the function at each step of values at the times, `None` when the series ends.
    pub(crate) fn of_floats(&mut self, values: &[f64], kind: Kind) -> Option<Vec<Slot>> {
        // A pass without branches: most series neither end nor begin anew.
        let (mut ends, mut resets) = (false, false);
        let mut before = f64::NEG_INFINITY;
        for v in values {
            ends |= is_stale(*v);
            resets |= *v < before;
            before = *v;
        }
        if ends {
            return None;
        }
        self.resets.clear();
        if resets && kind.counter {
            let pairs = (1_u32..).zip(values.iter().zip(values.iter().skip(1)));
            let falls = pairs.filter(|(_, (a, b))| b < a).map(|(i, (a, _))| (i, *a));
            self.resets.extend(falls);
        }
        let per = if kind.per_second { 1.0 / self.seconds } else { 1.0 };
        let mut reset_from = 0;
        let step = |s: &Option<StepWindow>| {
            let w = s.as_ref()?;
            let first = *values.get(w.from as usize)?;
            let mut delta = values.get(w.to as usize - 1)? - first;
            if !self.resets.is_empty() {
                // A reset at the first sample was before the window.
                while self.resets.get(reset_from).is_some_and(|r| r.0 <= w.from) {
                    reset_from += 1;
                }
                for (i, lost) in self.resets.get(reset_from..).unwrap_or_default() {
                    if *i >= w.to {
                        break;
                    }
                    delta += lost;
                }
            }
            let factor = w.extrapolation.factor(kind.counter.then_some((first, delta)));
            Some(SampleValue::Float(delta * factor * per))
        };
        Some(self.steps.iter().map(step).collect())
    }
}
