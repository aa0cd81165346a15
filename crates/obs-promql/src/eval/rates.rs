//! `rate`, `increase` and `delta` of series of floats, for all steps at once.
//!
//! Windows of neighbouring steps share most of their samples. What a window needs is its first and
//! last sample and the counter resets between: resets are found once a series, so that a step
//! costs the same however long the window is. The numbers are those of the general function, added
//! in the same order.

use crate::eval::Slot;
use crate::eval::range_functions::{Window, extrapolation};
use obs_model::{Sample, SampleValue, is_stale};

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

fn float(s: &Sample) -> Option<f64> {
    if let SampleValue::Float(f) = s.value { Some(f) } else { None }
}

/// Returns the function at each window's end, `None` when the series has histograms or ends.
pub(crate) fn of_floats(
    samples: &[Sample],
    ends: &[i64],
    range_ms: i64,
    kind: Kind,
) -> Option<Vec<Slot>> {
    let mut resets: Vec<(usize, f64)> = Vec::new();
    let mut before = f64::NEG_INFINITY;
    for (i, s) in samples.iter().enumerate() {
        let f = float(s).filter(|f| !is_stale(*f))?;
        if kind.counter && f < before {
            resets.push((i, before));
        }
        before = f;
    }
    let seconds = range_ms as f64 / 1000.0;
    let per = if kind.per_second { 1.0 / seconds } else { 1.0 };
    let time = |i: usize| samples.get(i).map(|s| s.timestamp.millis());
    let (mut from, mut to, mut reset_from) = (0, 0, 0);
    let mut out = Vec::with_capacity(ends.len());
    for end in ends {
        let start = end - range_ms;
        while time(to).is_some_and(|t| t <= *end) {
            to += 1;
        }
        while from < to && time(from).is_some_and(|t| t <= start) {
            from += 1;
        }
        // A reset at the first sample was before the window.
        while resets.get(reset_from).is_some_and(|r| r.0 <= from) {
            reset_from += 1;
        }
        let window = samples.get(from..to).unwrap_or_default();
        let slot = match window {
            [first, .., last] => {
                let (a, b) = (float(first)?, float(last)?);
                let mut delta = b - a;
                for (i, lost) in resets.get(reset_from..).unwrap_or_default() {
                    if *i >= to {
                        break;
                    }
                    delta += lost;
                }
                let times = (first.timestamp.millis(), last.timestamp.millis());
                let counter = kind.counter.then_some((a, delta));
                let window_at = Window { start, end: *end };
                let factor = extrapolation(times, window.len(), window_at, counter);
                Some(SampleValue::Float(delta * factor * per))
            }
            _ => None,
        };
        out.push(slot);
    }
    Some(out)
}
