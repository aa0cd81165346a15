//! Drift: whether a model's calls look as they did, feature by feature.
//!
//! The score is the population stability index (PSI) of the feature that moved most, corrected for
//! what chance alone adds to it: with B bins and windows of n and m calls the index of equal
//! distributions is about (B−1)(1/n+1/m), far above the usual thresholds when windows are small.

use obs_model::{LlmCall, TimestampNs};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Fewest calls of either window.
pub const SAMPLES_MIN: usize = 300;
/// Latest calls that are compared, and those before them that they are compared with.
pub const CURRENT_CALLS: usize = 500;
pub const BASELINE_CALLS: usize = 10_000;
pub const WARNING: f64 = 0.15;
pub const CRITICAL: f64 = 0.25;

const BINS: usize = 10;
/// Values of a categorical feature that are told apart; the rest is one.
const CATEGORIES: usize = 20;

/// What one call says of each feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub time: TimestampNs,
    numbers: [f64; NUMBERS.len()],
    words: [String; WORDS.len()],
    served: String,
}

const NUMBERS: [&str; 6] = [
    "prompt_tokens",
    "completion_tokens",
    "duration_ms",
    "time_to_first_token_ms",
    "cost_usd",
    "output_input_ratio",
];
const WORDS: [&str; 4] = ["operation", "finish_reason", "error_type", "service_tier"];

impl Sample {
    pub fn of(c: &LlmCall) -> Self {
        use rust_decimal::prelude::ToPrimitive as _;
        let (input, output) = (c.tokens.input_total() as f64, c.tokens.output_total() as f64);
        let cost = c.cost.as_ref().and_then(|x| x.total().to_f64());
        let served = [c.response_model.as_str(), c.fingerprint.as_str()];
        Self {
            time: c.start,
            numbers: [
                input,
                output,
                c.duration_ms(),
                c.time_to_first_token_ms.unwrap_or(f64::NAN),
                cost.unwrap_or(f64::NAN),
                if input > 0.0 { output / input } else { f64::NAN },
            ],
            words: [
                c.operation.as_str().to_owned(),
                c.finish_reason.clone(),
                c.error_type.clone(),
                c.service_tier.clone(),
            ],
            served: served.join(" ").trim().to_owned(),
        }
    }
}

/// How a feature moved.
#[derive(Debug, Clone, PartialEq)]
pub struct Feature {
    pub name: &'static str,
    /// `numeric` or `categorical`.
    pub kind: &'static str,
    pub psi: f64,
    pub psi_corrected: f64,
    /// Divergence of the current from the baseline, nats.
    pub kl: f64,
    pub n_ref: usize,
    pub n_cur: usize,
    /// The bins that moved most: name, share before, share now.
    pub top_bins: Vec<(String, f64, f64)>,
}

/// What comparing two windows found.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    pub score: f64,
    pub features: Vec<Feature>,
    pub baseline: (TimestampNs, TimestampNs),
    pub current: (TimestampNs, TimestampNs),
    /// Models or fingerprints that answer now and did not before, with their share.
    pub served_anew: Vec<(String, f64)>,
}

impl Drift {
    pub fn status(&self) -> &'static str {
        match self.score {
            s if s >= CRITICAL => "critical",
            s if s >= WARNING => "warning",
            _ => "normal",
        }
    }
}

/// Compares counts of bins: PSI, corrected PSI, KL. Half a count is added to each bin, so that an
/// empty one is not infinitely far.
fn index(reference: &[usize], current: &[usize]) -> (f64, f64, f64) {
    let bins = reference.len() as f64;
    let (n, m) = (reference.iter().sum::<usize>() as f64, current.iter().sum::<usize>() as f64);
    let share = |count: usize, total: f64| (count as f64 + 0.5) / 0.5_f64.mul_add(bins, total);
    let (mut psi, mut kl) = (0.0, 0.0);
    for (r, c) in reference.iter().zip(current) {
        let (p, q) = (share(*r, n), share(*c, m));
        psi += (q - p) * (q / p).ln();
        kl += q * (q / p).ln();
    }
    let chance = (bins - 1.0) * (1.0 / n + 1.0 / m);
    (psi, (psi - chance).max(0.0), kl.max(0.0))
}

fn feature(
    name: &'static str,
    kind: &'static str,
    bins: &[String],
    reference: &[usize],
    current: &[usize],
) -> Option<Feature> {
    let (n_ref, n_cur) = (reference.iter().sum(), current.iter().sum());
    if n_ref < SAMPLES_MIN || n_cur < SAMPLES_MIN || bins.len() < 2 {
        return None;
    }
    let (psi, psi_corrected, kl) = index(reference, current);
    let mut moved: Vec<(String, f64, f64)> = bins
        .iter()
        .zip(reference.iter().zip(current))
        .map(|(b, (r, c))| (b.clone(), *r as f64 / n_ref as f64, *c as f64 / n_cur as f64))
        .collect();
    moved.sort_by(|a, b| (b.2 - b.1).abs().total_cmp(&(a.2 - a.1).abs()));
    moved.truncate(3);
    Some(Feature { name, kind, psi, psi_corrected, kl, n_ref, n_cur, top_bins: moved })
}

fn numeric(name: &'static str, reference: &[f64], current: &[f64]) -> Option<Feature> {
    let mut sorted: Vec<f64> = reference.iter().copied().filter(|v| v.is_finite()).collect();
    if sorted.len() < SAMPLES_MIN {
        return None;
    }
    sorted.sort_by(f64::total_cmp);
    // Deciles of the baseline; equal ones are one edge.
    let at = |i: usize| sorted.get(i * sorted.len() / BINS).copied();
    let mut edges: Vec<f64> = (1..BINS).filter_map(at).collect();
    edges.dedup();
    // A baseline of one value: below it, it, and above it.
    let counts = |list: &[f64]| {
        let mut out = vec![0; edges.len() + 1];
        for v in list.iter().filter(|v| v.is_finite()) {
            if let Some(slot) = out.get_mut(edges.partition_point(|e| e <= v)) {
                *slot += 1;
            }
        }
        out
    };
    let edge = |i: Option<usize>| i.and_then(|i| edges.get(i)).map(|e| format!("{e:.4}"));
    let names: Vec<String> = (0..=edges.len())
        .map(|i| match (edge(i.checked_sub(1)), edge(Some(i))) {
            (None, Some(high)) => format!("below {high}"),
            (Some(low), None) => format!("from {low}"),
            (Some(low), Some(high)) => format!("{low} to {high}"),
            (None, None) => "all".to_owned(),
        })
        .collect();
    feature(name, "numeric", &names, &counts(reference), &counts(current))
}

fn categorical(name: &'static str, reference: &[&str], current: &[&str]) -> Option<Feature> {
    let mut known: HashMap<&str, usize> = HashMap::new();
    reference.iter().chain(current).for_each(|w| *known.entry(w).or_default() += 1);
    let mut ranked: Vec<(&str, usize)> = known.into_iter().collect();
    ranked.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    if ranked.len() < 2 {
        return None;
    }
    let names: Vec<&str> = ranked.iter().take(CATEGORIES).map(|(w, _)| *w).collect();
    let more = ranked.len() > CATEGORIES;
    let counts = |list: &[&str]| {
        let mut out = vec![0; names.len() + usize::from(more)];
        for w in list {
            let i = names.iter().position(|n| n == w).unwrap_or(names.len());
            if let Some(slot) = out.get_mut(i) {
                *slot += 1;
            }
        }
        out
    };
    let bins: Vec<String> = names
        .iter()
        .map(|n| if n.is_empty() { "(none)".to_owned() } else { (*n).to_owned() })
        .chain(more.then(|| "(others)".to_owned()))
        .collect();
    feature(name, "categorical", &bins, &counts(reference), &counts(current))
}

/// Compares the latest calls with those before them, or with a window of its own. `None` while
/// either has fewer than [`SAMPLES_MIN`].
pub fn compare(reference: &[Sample], current: &[Sample]) -> Option<Drift> {
    if reference.len() < SAMPLES_MIN || current.len() < SAMPLES_MIN {
        return None;
    }
    let mut features = Vec::new();
    for (i, name) in NUMBERS.iter().enumerate() {
        let of = |list: &[Sample]| -> Vec<f64> {
            list.iter().filter_map(|s| s.numbers.get(i).copied()).collect()
        };
        features.extend(numeric(name, &of(reference), &of(current)));
    }
    for (i, name) in WORDS.iter().enumerate() {
        fn of(list: &[Sample], i: usize) -> Vec<&str> {
            list.iter().filter_map(|s| s.words.get(i).map(String::as_str)).collect()
        }
        features.extend(categorical(name, &of(reference, i), &of(current, i)));
    }
    features.sort_by(|a, b| b.psi_corrected.total_cmp(&a.psi_corrected));
    let before: BTreeSet<&str> = reference.iter().map(|s| s.served.as_str()).collect();
    let mut anew: BTreeMap<&str, usize> = BTreeMap::new();
    for s in current.iter().filter(|s| !s.served.is_empty() && !before.contains(s.served.as_str()))
    {
        *anew.entry(&s.served).or_default() += 1;
    }
    let share = |n: usize| n as f64 / current.len() as f64;
    let served_anew = anew.into_iter().map(|(name, n)| (name.to_owned(), share(n))).collect();
    let span = |list: &[Sample]| {
        let at = |t: Option<TimestampNs>| t.unwrap_or(TimestampNs::from_nanos(0));
        (at(list.iter().map(|s| s.time).min()), at(list.iter().map(|s| s.time).max()))
    };
    Some(Drift {
        score: features.first().map_or(0.0, |f| f.psi_corrected),
        features,
        baseline: span(reference),
        current: span(current),
        served_anew,
    })
}

/// Compares the latest [`CURRENT_CALLS`] of a series with up to [`BASELINE_CALLS`] before them.
/// Samples may come in any order.
pub fn latest(samples: &mut [Sample]) -> Option<Drift> {
    samples.sort_by_key(|s| s.time);
    let cut = samples.len().saturating_sub(CURRENT_CALLS);
    let (before, current) = samples.split_at_checked(cut)?;
    let start = before.len().saturating_sub(BASELINE_CALLS);
    compare(before.get(start..)?, current)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of a fixed sequence.
    struct Noise(u64);

    impl Noise {
        fn uniform(&mut self) -> f64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    fn sample(noise: &mut Noise, n: i64, shifted: bool) -> Sample {
        // Shares of the finish reasons; the second set has a PSI of 0.25 against the first.
        let reasons = ["stop", "length", "tool_call", "content_filter"];
        let shares = if shifted { [0.435, 0.155, 0.38, 0.03] } else { [0.68, 0.10, 0.20, 0.02] };
        let mut at = noise.uniform();
        let reason = reasons.iter().zip(shares).find(|(_, p)| {
            at -= p;
            at < 0.0
        });
        let input = (noise.uniform() * 6.0).exp();
        let output = (noise.uniform() * 5.0).exp();
        Sample {
            time: TimestampNs::from_nanos(n),
            numbers: [
                input,
                output,
                noise.uniform().powi(3) * 5e4,
                noise.uniform() * 900.0,
                input.mul_add(2.5e-6, output * 1e-5),
                output / input,
            ],
            words: [
                "chat".into(),
                reason.map_or("stop", |r| r.0).into(),
                if noise.uniform() < 0.01 { "timeout" } else { "" }.into(),
                String::new(),
            ],
            served: "gpt-4o-2024-08-06 fp_1".into(),
        }
    }

    #[test]
    fn what_does_not_move_raises_no_alarm_in_months() {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        // Twelve months of a check every six hours, each of 500 fresh calls against a rolling
        // baseline: far more independent than real checks, whose windows overlap.
        let months = 12;
        let mut list: Vec<Sample> = (0..2500).map(|n| sample(&mut noise, n, false)).collect();
        let mut alarms = 0;
        for check in 0..months * 120 {
            let start = 2500 + check * 500;
            list.extend((start..start + 500).map(|n| sample(&mut noise, n, false)));
            list.drain(..list.len() - 2500);
            alarms += i32::from(latest(&mut list).unwrap().score >= WARNING);
        }
        assert!(alarms <= months as i32, "{alarms} alarms in {months} months");
    }

    #[test]
    fn a_shift_of_a_quarter_is_found_within_five_hundred_calls() {
        let mut found = 0;
        for seed in 1..=200_u64 {
            let mut noise = Noise(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
            let mut list: Vec<Sample> = (0..3000).map(|n| sample(&mut noise, n, false)).collect();
            list.extend((3000..3500).map(|n| sample(&mut noise, n, true)));
            let d = latest(&mut list).unwrap();
            found += u32::from(d.score >= WARNING && d.features[0].name == "finish_reason");
        }
        assert!(found >= 195, "{found} of 200");
    }

    #[test]
    fn few_calls_are_no_verdict_and_a_new_model_is_named() {
        let mut noise = Noise(7);
        let mut list: Vec<Sample> = (0..799).map(|n| sample(&mut noise, n, false)).collect();
        assert_eq!(latest(&mut list), None);
        list.push(sample(&mut noise, 800, false));
        assert!(latest(&mut list).is_some());
        let mut more: Vec<Sample> = (0..900).map(|n| sample(&mut noise, n, false)).collect();
        for s in more.iter_mut().skip(500) {
            s.served = "gpt-4o-2026-01-01 fp_2".into();
        }
        let d = compare(&more[..500], &more[500..]).unwrap();
        assert_eq!(d.served_anew, [("gpt-4o-2026-01-01 fp_2".to_owned(), 1.0)]);
    }

    #[test]
    fn the_index_is_corrected_for_chance() {
        // Equal windows: nothing is left.
        assert_eq!(index(&[100; 10], &[100; 10]).1, 0.0);
        let (psi, corrected, kl) = index(&[680, 100, 200, 20], &[435, 155, 380, 30]);
        assert!((psi - 0.25).abs() < 0.02 && corrected < psi && kl > 0.0, "{psi} {corrected} {kl}");
    }
}
