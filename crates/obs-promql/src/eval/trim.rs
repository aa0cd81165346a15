//! `</` and `>/`: the observations of a native histogram on one side of a value.
//!
//! A bucket that the value cuts is divided as quantiles are interpolated: by the logarithm in
//! exponential buckets, linearly in the zero bucket and in custom ones. The sum is then estimated
//! from the middles of what is left.

use obs_model::{CUSTOM_BUCKETS_SCHEMA, Histogram};

/// What is kept of a bucket: its share of the count, and the mean of what is in it.
struct Kept {
    share: f64,
    mean: f64,
}

pub(crate) fn linear_mean(lower: f64, upper: f64) -> f64 {
    match (lower.is_finite(), upper.is_finite()) {
        (true, true) => f64::midpoint(lower, upper),
        (true, false) => lower,
        (false, true) => upper,
        (false, false) => 0.0,
    }
}

/// Cuts `[lower, upper]` at `bound`, keeping what is below (`below`) or above.
fn cut(lower: f64, upper: f64, bound: f64, below: bool, exponential: bool) -> Kept {
    let mean = |a: f64, b: f64| {
        if exponential { (a.abs() * b.abs()).sqrt().copysign(a + b) } else { linear_mean(a, b) }
    };
    let whole = if below { upper <= bound } else { lower >= bound };
    let nothing = if below { lower >= bound } else { upper <= bound };
    if whole {
        return Kept { share: 1.0, mean: mean(lower, upper) };
    }
    if nothing {
        return Kept { share: 0.0, mean: 0.0 };
    }
    // An open bucket cannot be divided: where in it the observations are is unknown.
    if !upper.is_finite() {
        let share = if below { 0.0 } else { 1.0 };
        return Kept { share, mean: bound.max(lower) };
    }
    if !lower.is_finite() {
        return if below {
            Kept { share: 1.0, mean: bound.min(upper) }
        } else {
            Kept { share: 0.0, mean: 0.0 }
        };
    }
    let under = if exponential {
        let (l, u, b) = (lower.abs().log2(), upper.abs().log2(), bound.abs().log2());
        (b - l) / (u - l)
    } else {
        (bound - lower) / (upper - lower)
    };
    if below {
        Kept { share: under, mean: mean(lower, bound) }
    } else {
        Kept { share: 1.0 - under, mean: mean(bound, upper) }
    }
}

/// Keeps the observations at or below `bound` (`below`), or above it.
pub(crate) fn trim(h: &Histogram, bound: f64, below: bool) -> Histogram {
    let custom = h.schema == CUSTOM_BUCKETS_SCHEMA;
    let mut out = h.clone();
    let (mut count, mut sum, mut whole) = (0.0, 0.0, true);
    let mut keep = |n: f64, k: &Kept| {
        whole &= k.share >= 1.0 || n == 0.0;
        let left = n * k.share;
        count += left;
        sum += left * k.mean;
        left
    };
    let bounds = |i: i32| (h.lower_bound(i), h.upper_bound(i));
    for (i, n) in &mut out.positive {
        let (mut lower, upper) = bounds(*i);
        // The first custom bucket is taken to begin at zero unless it, or the value, lies below.
        let is_open = lower == f64::NEG_INFINITY && upper > 0.0;
        if is_open && upper.is_finite() && (bound >= 0.0 || bound == lower) {
            lower = 0.0;
        }
        let kept = if is_open && lower < 0.0 && bound.is_finite() {
            Kept { share: 0.0, mean: 0.0 }
        } else {
            cut(lower, upper, bound, below, !custom)
        };
        *n = keep(*n, &kept);
    }
    for (i, n) in &mut out.negative {
        let (lower, upper) = bounds(*i);
        *n = keep(*n, &cut(-upper, -lower, bound, below, true));
    }
    if h.zero_count != 0.0 {
        // Without observations on one side of it the zero bucket has none there either.
        let one_sided = h.positive.is_empty() != h.negative.is_empty();
        let lower = if one_sided && h.negative.is_empty() { 0.0 } else { -h.zero_threshold };
        let upper = if one_sided && h.positive.is_empty() { 0.0 } else { h.zero_threshold };
        out.zero_count = keep(h.zero_count, &cut(lower, upper, bound, below, false));
    }
    if whole {
        return h.clone();
    }
    out.positive.retain(|(_, n)| *n != 0.0);
    out.negative.retain(|(_, n)| *n != 0.0);
    (out.count, out.sum) = (count, sum);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn custom() -> Histogram {
        Histogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            custom_bounds: vec![1.0, 2.0, 4.0],
            positive: vec![(0, 2.0), (1, 6.0), (3, 4.0)],
            count: 12.0,
            sum: 99.0,
            ..Histogram::default()
        }
    }

    #[test]
    fn a_bucket_is_cut_where_the_value_lies() {
        let below = trim(&custom(), 1.5, true);
        assert_eq!((below.count, below.positive), (5.0, vec![(0, 2.0), (1, 3.0)]));
        // Two in the middle of [0, 1], three in the middle of [1, 1.5].
        assert_eq!(below.sum, 2.0 * 0.5 + 3.0 * 1.25);
        let above = trim(&custom(), 1.5, false);
        assert_eq!((above.count, above.sum), (7.0, 3.0 * 1.75 + 4.0 * 4.0));
        // Nothing is cut: the sum stays what was measured.
        assert_eq!(trim(&custom(), f64::INFINITY, true), custom());
        assert_eq!(trim(&custom(), 0.0, false), custom());
        assert_eq!(trim(&custom(), 0.0, true).count, 0.0);
    }

    proptest! {
        #[test]
        fn both_sides_together_are_all(
            positive in prop::collection::btree_map(-6_i32..6, 1.0_f64..50.0, 0..6),
            negative in prop::collection::btree_map(-6_i32..6, 1.0_f64..50.0, 0..6),
            zero in 0_u8..9,
            bound in -40.0_f64..40.0,
        ) {
            let mut h = Histogram {
                schema: 1,
                zero_threshold: 0.01,
                zero_count: f64::from(zero),
                positive: positive.into_iter().collect(),
                negative: negative.into_iter().collect(),
                ..Histogram::default()
            };
            let sides = h.positive.iter().chain(&h.negative);
            h.count = h.zero_count + sides.map(|b| b.1).sum::<f64>();
            let (below, above) = (trim(&h, bound, true), trim(&h, bound, false));
            prop_assert!((below.count + above.count - h.count).abs() < 1e-9 * (1.0 + h.count));
            let all = |h: &Histogram, good: &dyn Fn(f64, f64) -> bool| {
                h.buckets().iter().all(|b| good(b.lower, b.upper))
            };
            prop_assert!(all(&below, &|lower, _| lower < bound));
            prop_assert!(all(&above, &|_, upper| upper > bound));
        }
    }
}
