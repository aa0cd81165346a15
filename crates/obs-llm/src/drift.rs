//! Drift: whether a model's calls look as they did, feature by feature.
//!
//! The score is the population stability index (PSI) of the feature that moved most, corrected for
//! what chance alone adds to it: with B bins and windows of n and m calls the index of equal
//! distributions is about (B−1)(1/n+1/m), far above the usual thresholds when windows are small.

use crate::score::{Said, Z_SIGNIFICANT, significance};
use obs_model::{LlmCall, TimestampNs};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

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
    pub(crate) numbers: [f64; NUMBERS.len()],
    pub(crate) words: [String; WORDS.len()],
    /// Model and fingerprint that answered.
    pub(crate) served: String,
    /// The embedding of what was said; empty without one.
    embedding: Vec<f32>,
    /// What evaluations said of it, by their names.
    scores: Vec<(Arc<str>, f64)>,
}

pub(crate) const NUMBERS: [&str; 6] = [
    "prompt_tokens",
    "completion_tokens",
    "duration_ms",
    "time_to_first_token_ms",
    "cost_usd",
    "output_input_ratio",
];
pub(crate) const WORDS: [&str; 4] = ["operation", "finish_reason", "error_type", "service_tier"];

impl Sample {
    /// Returns what a call says, and what was said of it.
    pub fn of(c: &LlmCall, said: Option<&Said>) -> Self {
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
            embedding: c.embedding.clone(),
            scores: said.map(|s| s.scores.clone()).unwrap_or_default(),
        }
    }
}

/// How a feature moved.
#[derive(Debug, Clone, PartialEq)]
pub struct Feature {
    pub name: String,
    /// `numeric`, `categorical` or `embedding`.
    pub kind: &'static str,
    /// Of the mean per axis, of an embedding.
    pub psi: f64,
    pub psi_corrected: f64,
    /// Divergence of the current from the baseline, nats.
    pub kl: f64,
    pub n_ref: usize,
    pub n_cur: usize,
    /// The bins that moved most: name, share before, share now.
    pub top_bins: Vec<(String, f64, f64)>,
    /// Cosine distance of the centroids, of an embedding: 0 the same direction, 1 none in common.
    pub distance: Option<f64>,
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
    name: &str,
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
    let name = name.to_owned();
    let top_bins = moved;
    Some(Feature { name, kind, psi, psi_corrected, kl, n_ref, n_cur, top_bins, distance: None })
}

/// Writes a number with four significant digits: costs are small and token counts large.
fn four_digits(v: f64) -> String {
    let scale = if v == 0.0 { 0 } else { v.abs().log10().floor() as i32 };
    let text = format!("{v:.*}", usize::try_from(3 - scale).unwrap_or(0).min(15));
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn numeric(name: &str, reference: &[f64], current: &[f64]) -> Option<Feature> {
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
    let edge = |i: Option<usize>| i.and_then(|i| edges.get(i)).map(|e| four_digits(*e));
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

/// Compares embeddings: the mean over their axes of each axis' index, and the centroids' distance.
fn embedding(reference: &[Sample], current: &[Sample]) -> Option<Feature> {
    let mut lengths: BTreeMap<usize, usize> = BTreeMap::new();
    for s in reference.iter().filter(|s| !s.embedding.is_empty()) {
        *lengths.entry(s.embedding.len()).or_default() += 1;
    }
    let (length, _) = lengths.into_iter().max_by_key(|(_, n)| *n)?;
    let of = |list: &[Sample], axis: usize| -> Vec<f64> {
        let fits = list.iter().filter(|s| s.embedding.len() == length);
        fits.filter_map(|s| s.embedding.get(axis).map(|v| f64::from(*v))).collect()
    };
    let mut out: Option<Feature> = None;
    let (mut dot, mut before, mut now) = (0.0, 0.0, 0.0);
    for axis in 0..length {
        let (r, c) = (of(reference, axis), of(current, axis));
        let f = numeric("embedding", &r, &c)?;
        let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
        let (a, b) = (mean(&r), mean(&c));
        dot += a * b;
        before += a * a;
        now += b * b;
        match &mut out {
            None => out = Some(Feature { kind: "embedding", top_bins: Vec::new(), ..f }),
            Some(sum) => {
                sum.psi += f.psi;
                sum.psi_corrected += f.psi_corrected;
                sum.kl += f.kl;
            }
        }
    }
    let mut out = out?;
    for v in [&mut out.psi, &mut out.psi_corrected, &mut out.kl] {
        *v /= length as f64;
    }
    let norms = (before * now).sqrt();
    out.distance = (norms > 0.0).then(|| (1.0 - dot / norms).max(0.0));
    Some(out)
}

/// Names of evaluations that are compared: each is a feature of its own.
const SCORES_MAX: usize = 20;

/// Compares what evaluations said, each by itself: they have scales of their own.
fn scores(reference: &[Sample], current: &[Sample]) -> Vec<Feature> {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, _) in current.iter().flat_map(|s| &s.scores) {
        *names.entry(name).or_default() += 1;
    }
    let enough = names.into_iter().filter(|(_, n)| *n >= SAMPLES_MIN).take(SCORES_MAX);
    let of = |list: &[Sample], name: &str| -> Vec<f64> {
        let all = list.iter().flat_map(|s| &s.scores);
        all.filter(|(n, _)| **n == *name).map(|(_, v)| *v).collect()
    };
    enough
        .filter_map(|(n, _)| numeric(&format!("score:{n}"), &of(reference, n), &of(current, n)))
        .collect()
}

/// Ratings of either window below which accuracy is no verdict.
pub const RATINGS_MIN: usize = 100;
/// A drop of accuracy beyond which it is a warning, and critical.
const DROP_WARNING: f64 = 0.10;
const DROP_CRITICAL: f64 = 0.15;
/// The least accuracy that is well; what the combined score measures a drop by.
pub const ACCURACY_MIN: f64 = 0.75;

/// Shares of positive ratings, before and now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    pub baseline: f64,
    pub current: f64,
    pub n_ref: usize,
    pub n_cur: usize,
}

impl Accuracy {
    /// Compares ratings; `None` while either window has fewer than [`RATINGS_MIN`].
    pub fn of(reference: &[bool], current: &[bool]) -> Option<Self> {
        if reference.len() < RATINGS_MIN || current.len() < RATINGS_MIN {
            return None;
        }
        let share =
            |list: &[bool]| list.iter().filter(|up| **up).count() as f64 / list.len() as f64;
        let (n_ref, n_cur) = (reference.len(), current.len());
        Some(Self { baseline: share(reference), current: share(current), n_ref, n_cur })
    }

    pub fn drop(&self) -> f64 {
        self.baseline - self.current
    }

    /// A drop that chance alone would hardly make is told by its size.
    pub fn status(&self) -> &'static str {
        let z = significance((self.baseline, self.n_ref), (self.current, self.n_cur));
        match self.drop() {
            d if d > DROP_CRITICAL && z > Z_SIGNIFICANT => "critical",
            d if d > DROP_WARNING && z > Z_SIGNIFICANT => "warning",
            _ => "normal",
        }
    }
}

/// The origin's one number of all that drifts: divergence, index and lost accuracy, each by its
/// threshold.
pub fn combined(drift: &Drift, accuracy: Option<&Accuracy>) -> f64 {
    let most = |of: fn(&Feature) -> f64| drift.features.iter().map(of).fold(0.0, f64::max);
    let lost = accuracy.map_or(0.0, |a| a.drop().max(0.0) / (1.0 - ACCURACY_MIN));
    (most(|f| f.kl) / 0.1 + most(|f| f.psi_corrected) / 0.2 + lost) / 3.0
}

fn categorical(name: &str, reference: &[&str], current: &[&str]) -> Option<Feature> {
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
    features.extend(embedding(reference, current));
    features.extend(scores(reference, current));
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
    use crate::noise::Noise;

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
            embedding: Vec::new(),
            scores: Vec::new(),
        }
    }

    #[test]
    fn what_is_said_and_what_is_said_of_it_are_features() {
        let mut noise = Noise(11);
        let mut list: Vec<Sample> = (0..1500).map(|n| sample(&mut noise, n, false)).collect();
        let name: Arc<str> = "relevance".into();
        for (i, s) in list.iter_mut().enumerate() {
            let now = i >= 1000;
            // Half of what is asked now points elsewhere, and answers are worth less.
            let turned = now && noise.uniform() < 0.5;
            s.embedding = (0..8)
                .map(|axis| {
                    let centre = if (axis < 4) == turned { 0.1 } else { 0.6 };
                    (noise.uniform().mul_add(0.4, centre)) as f32
                })
                .collect();
            let worth = noise.uniform() * if now { 0.6 } else { 1.0 };
            s.scores = vec![(name.clone(), worth)];
        }
        let d = compare(&list[..1000], &list[1000..]).unwrap();
        let of = |n: &str| d.features.iter().find(|f| f.name == n).unwrap().clone();
        assert!(of("embedding").psi_corrected > CRITICAL && of("embedding").distance > Some(0.01));
        assert!(of("score:relevance").psi_corrected > CRITICAL);
        // The same list against itself: nothing moved.
        let d = compare(&list[..500], &list[500..1000]).unwrap();
        assert!(d.score < WARNING, "{:?}", d.features.first());
        assert!(combined(&d, None) < 1.0);
    }

    #[test]
    fn accuracy_falls_only_beyond_chance() {
        let ratings = |up: usize, n: usize| (0..n).map(|i| i < up).collect::<Vec<bool>>();
        assert_eq!(Accuracy::of(&ratings(90, 99), &ratings(90, 100)), None);
        let of = |a: (usize, usize), b: (usize, usize)| {
            Accuracy::of(&ratings(a.0, a.1), &ratings(b.0, b.1)).unwrap().status()
        };
        assert_eq!(of((900, 1000), (740, 1000)), "critical");
        assert_eq!(of((900, 1000), (790, 1000)), "warning");
        assert_eq!(of((900, 1000), (810, 1000)), "normal");
        // A hundred ratings of either: twelve points may be chance.
        assert_eq!(of((80, 100), (68, 100)), "normal");
        assert_eq!(of((500, 1000), (900, 1000)), "normal");
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
    fn edges_are_told_apart_at_any_size() {
        for (v, text) in [
            (0.000_312_5, "0.0003125"),
            (0.0, "0"),
            (17.0, "17"),
            (1234.567, "1235"),
            (-0.25, "-0.25"),
            (123_456.0, "123456"),
            (1e-20, "0"),
        ] {
            assert_eq!(four_digits(v), text);
        }
    }

    #[test]
    fn the_index_is_corrected_for_chance() {
        // Equal windows: nothing is left.
        assert_eq!(index(&[100; 10], &[100; 10]).1, 0.0);
        let (psi, corrected, kl) = index(&[680, 100, 200, 20], &[435, 155, 380, 30]);
        assert!((psi - 0.25).abs() < 0.02 && corrected < psi && kl > 0.0, "{psi} {corrected} {kl}");
    }
}
