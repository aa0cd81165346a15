//! What calls of one model usually look like, and how far a new one is from that.
//!
//! The features are those of [`crate::drift`], which says of 500 calls together whether they moved;
//! here each call is judged alone, against a thousand that came some time before it, so that what
//! moved is not the rule at once. A number is far when it is many deviations from the median (of
//! logarithms, by the median absolute deviation, which outliers do not stretch) and beyond all but
//! half a percent of the thousand: so that no shape of the distribution makes ordinary calls stand
//! out. A word is far when hardly any call had it.

use crate::drift::{NUMBERS, SAMPLES_MIN, Sample, WORDS};
use obs_model::LlmCall;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Calls that a new one is compared with, and those between that it is not compared with.
const REFERENCE: usize = 1_000;
const BETWEEN: usize = 500;
/// After how many calls the bounds are computed anew.
const EVERY: usize = 100;
/// Share of the reference at either end that numbers must be beyond.
const TAIL: f64 = 0.005;
/// Share of the reference below which a word is rare.
const RARE: f64 = 0.005;
/// Share of the reference that rare words together may have. Beyond it they are the rule (a
/// fingerprint per call), and say nothing.
const RARE_TOGETHER: f64 = 0.01;
/// The least deviation, of logarithms: where all calls are alike, 5 % are one deviation.
const DEVIATION_MIN: f64 = 0.05;
/// The median absolute deviation of a normal distribution, in standard deviations.
const MAD: f64 = 0.6745;
/// Longest word that is kept, bytes.
const WORD_MAX: usize = 128;
/// What is smaller than this is the same: a token, a millisecond, a millionth of a dollar, a
/// thousandth.
const FLOORS: [f64; NUMBERS.len()] = [1.0, 1.0, 1.0, 1.0, 1e-6, 1e-3];
/// The words of a sample and the model that served it.
const TOLD: usize = WORDS.len() + 1;

#[derive(Debug)]
struct Row {
    /// Logarithms; NaN where a call does not say.
    numbers: [f64; NUMBERS.len()],
    words: [Arc<str>; TOLD],
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    median: f64,
    deviation: f64,
    low: f64,
    high: f64,
}

/// The latest calls of a model.
#[derive(Debug, Default)]
pub struct Usual {
    rows: VecDeque<Row>,
    since: usize,
    bounds: [Option<Bounds>; NUMBERS.len()],
    /// Words that are common; nothing where rare ones say nothing.
    common: [Option<HashSet<Arc<str>>>; TOLD],
}

impl Usual {
    /// Returns how many deviations a call is from those before it, infinitely many where it says
    /// what hardly any did, and takes it among them. 0 until [`SAMPLES_MIN`] calls were seen.
    pub fn judge(&mut self, call: &LlmCall) -> f64 {
        let row = self.row(&Sample::of(call, None));
        if self.rows.len() >= SAMPLES_MIN && self.since >= EVERY {
            self.learn();
            self.since = 0;
        }
        let number = row.numbers.iter().zip(&self.bounds).map(|(v, bounds)| match bounds {
            Some(b) if *v < b.low || *v > b.high => (v - b.median).abs() / b.deviation,
            _ => 0.0,
        });
        let word = row.words.iter().zip(&self.common).map(|(w, common)| match common {
            Some(known) if !known.contains(w) => f64::INFINITY,
            _ => 0.0,
        });
        let far = number.chain(word).fold(0.0, f64::max);
        if self.rows.len() >= REFERENCE + BETWEEN {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
        self.since += 1;
        far
    }

    fn row(&self, s: &Sample) -> Row {
        let mut numbers = [f64::NAN; NUMBERS.len()];
        for (to, (v, floor)) in numbers.iter_mut().zip(s.numbers.iter().zip(FLOORS)) {
            if v.is_finite() {
                *to = v.max(floor).ln();
            }
        }
        let mut words: [Arc<str>; TOLD] = Default::default();
        let told = s.words.iter().chain([&s.served]);
        for (i, (to, w)) in words.iter_mut().zip(told).enumerate() {
            let w = w.get(..w.floor_char_boundary(WORD_MAX)).unwrap_or_default();
            // Mostly the word of the call before: kept once.
            let before = self.rows.back().and_then(|r| r.words.get(i)).filter(|b| ***b == *w);
            *to = before.map_or_else(|| w.into(), Arc::clone);
        }
        Row { numbers, words }
    }

    fn learn(&mut self) {
        let n = self.rows.len().saturating_sub(BETWEEN).max(SAMPLES_MIN);
        let reference = || self.rows.iter().take(n);
        for (i, bounds) in self.bounds.iter_mut().enumerate() {
            let of = reference().filter_map(|r| r.numbers.get(i).copied());
            *bounds = learn_number(of.filter(|v| !v.is_nan()).collect());
        }
        for (i, common) in self.common.iter_mut().enumerate() {
            let mut counts: HashMap<&Arc<str>, usize> = HashMap::new();
            for w in reference().filter_map(|r| r.words.get(i)) {
                *counts.entry(w).or_default() += 1;
            }
            let all = n as f64;
            let (rare, known): (Vec<_>, Vec<_>) =
                counts.into_iter().partition(|(_, n)| (*n as f64) < RARE * all);
            let rare: usize = rare.into_iter().map(|(_, n)| n).sum();
            *common = (rare as f64 <= RARE_TOGETHER * all)
                .then(|| known.into_iter().map(|(w, _)| w.clone()).collect());
        }
    }
}

fn learn_number(mut values: Vec<f64>) -> Option<Bounds> {
    if values.len() < SAMPLES_MIN {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let at = |list: &[f64], share: f64| {
        list.get(((list.len() - 1) as f64 * share).round() as usize).copied()
    };
    let median = at(&values, 0.5)?;
    let (low, high) = (at(&values, TAIL)?, at(&values, 1.0 - TAIL)?);
    let mut away: Vec<f64> = values.iter().map(|v| (v - median).abs()).collect();
    away.sort_by(f64::total_cmp);
    let deviation = (at(&away, 0.5)? / MAD).max(DEVIATION_MIN);
    Some(Bounds { median, deviation, low, high })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;
    use obs_model::{CallStatus, TimestampNs};

    fn call(noise: &mut Noise, tokens: f64) -> LlmCall {
        let mut c = crate::usage_call("openai", "gpt-4o", TimestampNs::from_nanos(0));
        // Two kinds of requests, each spread over a decade or so.
        let kind = if noise.uniform() < 0.3 { 4_000.0 } else { 200.0 };
        c.tokens.input = (kind * tokens * noise.normal().exp()) as u64;
        c.tokens.output = (300.0 * (0.7 * noise.normal()).exp()) as u64;
        c.end = TimestampNs::from_nanos((1e9 * (0.5 * noise.normal()).exp()) as i64);
        c.finish_reason = if noise.uniform() < 0.1 { "length" } else { "stop" }.into();
        // A provider that names every answer's system anew.
        c.fingerprint = format!("fp_{}", noise.uniform());
        c
    }

    #[test]
    fn ordinary_calls_are_not_far_and_those_that_drift_are() {
        let mut noise = Noise(7);
        let mut usual = Usual::default();
        let far = |usual: &mut Usual, c: &LlmCall| usual.judge(c) >= 4.0;
        let early = (0..SAMPLES_MIN).filter(|_| far(&mut usual, &call(&mut noise, 1.0))).count();
        assert_eq!(early, 0);
        let n = 8_000;
        let kept = (0..n).filter(|_| far(&mut usual, &call(&mut noise, 1.0))).count();
        assert!(kept < n / 200, "{kept} of {n}");

        let mut long = call(&mut noise, 1.0);
        long.tokens.input = 3_000_000;
        assert!(far(&mut usual, &long));
        let mut slow = call(&mut noise, 1.0);
        slow.end = TimestampNs::from_nanos(120_000_000_000);
        assert!(far(&mut usual, &slow));
        let mut refused = call(&mut noise, 1.0);
        refused.status = CallStatus::Error;
        refused.error_type = "content_policy".into();
        assert!(far(&mut usual, &refused));

        // A shift of all calls stands out at first and is the rule in the end.
        let mut moved =
            |n: usize| (0..n).filter(|_| far(&mut usual, &call(&mut noise, 50_000.0))).count();
        assert!(moved(400) > 300, "the first of them");
        moved(2_000);
        assert!(moved(1_000) < 10, "the last of them");
    }

    #[test]
    fn where_all_are_alike_a_tenth_more_is_not_far_and_half_as_much_again_is() {
        let mut usual = Usual::default();
        let mut of = |tokens: u64| {
            let mut c = crate::usage_call("openai", "gpt-4o", TimestampNs::from_nanos(0));
            c.tokens.input = tokens;
            usual.judge(&c)
        };
        (0..400).for_each(|_| assert_eq!(of(1_000), 0.0));
        assert!(of(1_100) < 4.0);
        assert!(of(1_500) > 4.0);
        assert_eq!(of(1_000), 0.0);
    }
}
