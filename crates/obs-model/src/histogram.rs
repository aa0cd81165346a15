//! Native histograms: exponential buckets, or custom bounds under schema −53.

/// The schema number of histograms whose bounds are listed (`custom_bounds`).
pub const CUSTOM_BUCKETS_SCHEMA: i32 = -53;

/// What is known about a counter reset before this sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResetHint {
    #[default]
    Unknown,
    Reset,
    NoReset,
    Gauge,
}

/// A native histogram with absolute (not delta) bucket counts, sparse by index.
///
/// With an exponential schema `s`, bucket `i` covers `(base^(i-1), base^i]`, `base = 2^(2^-s)`;
/// negative buckets mirror that. With [`CUSTOM_BUCKETS_SCHEMA`], bucket `i` covers
/// `(bounds[i-1], bounds[i]]` and the one past the last bound is open.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    pub schema: i32,
    pub zero_threshold: f64,
    pub zero_count: f64,
    pub count: f64,
    pub sum: f64,
    /// (index, count), ascending by index, no empty buckets.
    pub positive: Vec<(i32, f64)>,
    /// (index, count), ascending by index, no empty buckets.
    pub negative: Vec<(i32, f64)>,
    pub custom_bounds: Vec<f64>,
    pub reset_hint: ResetHint,
}

/// One bucket with its bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HistogramBucket {
    pub lower: f64,
    pub upper: f64,
    pub lower_inclusive: bool,
    pub upper_inclusive: bool,
    pub count: f64,
}

impl Histogram {
    /// Returns the upper bound of positive bucket `index`.
    pub fn upper_bound(&self, index: i32) -> f64 {
        if self.schema == CUSTOM_BUCKETS_SCHEMA {
            let at = usize::try_from(index).unwrap_or(0);
            return self.custom_bounds.get(at).copied().unwrap_or(f64::INFINITY);
        }
        (f64::from(index) * (-f64::from(self.schema)).exp2()).exp2()
    }

    /// Returns the lower bound of positive bucket `index`, minus infinity for the first custom one.
    pub fn lower_bound(&self, index: i32) -> f64 {
        if self.schema == CUSTOM_BUCKETS_SCHEMA && index == 0 {
            return f64::NEG_INFINITY;
        }
        self.upper_bound(index - 1)
    }

    /// Returns all buckets that hold observations, in ascending order of value.
    pub fn buckets(&self) -> Vec<HistogramBucket> {
        let mut out = Vec::with_capacity(self.positive.len() + self.negative.len() + 1);
        for &(i, count) in self.negative.iter().rev() {
            out.push(HistogramBucket {
                lower: -self.upper_bound(i),
                upper: -self.lower_bound(i),
                lower_inclusive: true,
                upper_inclusive: false,
                count,
            });
        }
        if self.zero_count > 0.0 {
            out.push(HistogramBucket {
                lower: -self.zero_threshold,
                upper: self.zero_threshold,
                lower_inclusive: true,
                upper_inclusive: true,
                count: self.zero_count,
            });
        }
        for &(i, count) in &self.positive {
            let (lower, upper) = (self.lower_bound(i), self.upper_bound(i));
            out.push(HistogramBucket {
                lower,
                upper,
                lower_inclusive: lower < 0.0,
                upper_inclusive: upper > 0.0,
                count,
            });
        }
        out
    }

    /// Halves the resolution until the schema is `target`, merging neighbouring buckets.
    fn reduce_to(&mut self, target: i32) {
        let merge = |buckets: &mut Vec<(i32, f64)>, shift: u32| {
            let mut out: Vec<(i32, f64)> = Vec::with_capacity(buckets.len());
            for &(i, c) in buckets.iter() {
                let index = ((i - 1) >> shift) + 1;
                match out.last_mut() {
                    Some((last, sum)) if *last == index => *sum += c,
                    _ => out.push((index, c)),
                }
            }
            *buckets = out;
        };
        let shift = (self.schema - target).clamp(0, 31).unsigned_abs();
        if shift > 0 {
            merge(&mut self.positive, shift);
            merge(&mut self.negative, shift);
            self.schema = target;
        }
    }

    /// Widens the zero bucket, absorbing buckets that it covers. Returns the threshold reached,
    /// which is larger than asked when it would cut a bucket.
    fn widen_zero(&mut self, threshold: f64) -> f64 {
        let mut limit = threshold;
        for side in [&self.positive, &self.negative] {
            for &(i, _) in side {
                if self.lower_bound(i) < limit {
                    limit = limit.max(self.upper_bound(i));
                }
            }
        }
        debug_assert!(self.schema != CUSTOM_BUCKETS_SCHEMA);
        let bounds = Self { schema: self.schema, ..Self::default() };
        let mut absorbed = 0.0;
        for side in [&mut self.positive, &mut self.negative] {
            side.retain(|&(i, c)| {
                let keep = bounds.upper_bound(i) > limit;
                if !keep {
                    absorbed += c;
                }
                keep
            });
        }
        self.zero_count += absorbed;
        self.zero_threshold = limit;
        limit
    }

    /// Merges custom buckets until only `bounds` are left, which must be among its own.
    fn keep_bounds(&mut self, bounds: &[f64]) {
        let mut out: Vec<(i32, f64)> = Vec::new();
        for &(i, c) in &self.positive {
            let upper = self.upper_bound(i);
            let index = bounds.partition_point(|b| *b < upper) as i32;
            match out.last_mut() {
                Some((last, sum)) if *last == index => *sum += c,
                _ => out.push((index, c)),
            }
        }
        self.positive = out;
        self.custom_bounds = bounds.to_vec();
    }

    /// Adds `factor` times another histogram. Custom buckets meet at the bounds that both have.
    /// Returns false, leaving this one untouched, when exponential and custom buckets meet.
    pub fn add_scaled(&mut self, other: &Self, factor: f64) -> bool {
        let custom = self.schema == CUSTOM_BUCKETS_SCHEMA;
        if custom != (other.schema == CUSTOM_BUCKETS_SCHEMA) {
            return false;
        }
        let mut other = other.clone();
        if custom && self.custom_bounds != other.custom_bounds {
            let mut both = self.custom_bounds.clone();
            both.retain(|b| other.custom_bounds.contains(b));
            self.keep_bounds(&both);
            other.keep_bounds(&both);
        }
        if !custom {
            let schema = self.schema.min(other.schema);
            self.reduce_to(schema);
            other.reduce_to(schema);
            while self.zero_threshold.to_bits() != other.zero_threshold.to_bits() {
                if self.zero_threshold < other.zero_threshold {
                    self.widen_zero(other.zero_threshold);
                } else {
                    other.widen_zero(self.zero_threshold);
                }
            }
        }
        self.zero_count += other.zero_count * factor;
        self.count += other.count * factor;
        self.sum += other.sum * factor;
        for (mine, theirs) in
            [(&mut self.positive, &other.positive), (&mut self.negative, &other.negative)]
        {
            for &(i, c) in theirs {
                match mine.binary_search_by_key(&i, |(j, _)| *j) {
                    Ok(at) => {
                        if let Some(slot) = mine.get_mut(at) {
                            slot.1 += c * factor;
                        }
                    }
                    Err(at) => mine.insert(at, (i, c * factor)),
                }
            }
        }
        true
    }

    /// Returns whether all that was observed is the same, whatever is known of resets.
    pub fn is_equal(&self, other: &Self) -> bool {
        Self { reset_hint: other.reset_hint, ..self.clone() } == *other
    }

    /// Multiplies all counts and the sum.
    pub fn scale(&mut self, factor: f64) {
        self.zero_count *= factor;
        self.count *= factor;
        self.sum *= factor;
        for (_, c) in self.positive.iter_mut().chain(&mut self.negative) {
            *c *= factor;
        }
    }

    /// Divides all counts and the sum. Nothing is known of the buckets after a division by zero:
    /// none are left.
    pub fn divide(&mut self, by: f64) {
        if by == 0.0 {
            self.positive.clear();
            self.negative.clear();
        }
        self.zero_count /= by;
        self.count /= by;
        self.sum /= by;
        for (_, c) in self.positive.iter_mut().chain(&mut self.negative) {
            *c /= by;
        }
    }

    /// Returns whether a counter histogram was reset between `previous` and this sample: some
    /// count fell, or the layout became finer.
    pub fn is_reset_after(&self, previous: &Self) -> bool {
        match self.reset_hint {
            ResetHint::Reset => true,
            ResetHint::NoReset => false,
            ResetHint::Unknown | ResetHint::Gauge => self.is_below(previous),
        }
    }

    /// Returns what is known of a counter's reset between `previous` and this sample when it is stored: where
    /// the layout is another, nothing.
    pub fn hint_after(&self, previous: &Self) -> ResetHint {
        if self.schema != previous.schema
            || self.zero_threshold != previous.zero_threshold
            || self.custom_bounds != previous.custom_bounds
        {
            ResetHint::Unknown
        } else if self.is_below(previous) {
            ResetHint::Reset
        } else {
            ResetHint::NoReset
        }
    }

    fn is_below(&self, previous: &Self) -> bool {
        if self.count < previous.count || self.schema > previous.schema {
            return true;
        }
        let mut diff = self.clone();
        if !diff.add_scaled(previous, -1.0) {
            return true;
        }
        diff.zero_count < 0.0 || diff.positive.iter().chain(&diff.negative).any(|(_, c)| *c < 0.0)
    }

    pub fn size_bytes(&self) -> usize {
        96 + (self.positive.len() + self.negative.len()) * 16 + self.custom_bounds.len() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exp(schema: i32, positive: &[(i32, f64)]) -> Histogram {
        let count = positive.iter().map(|b| b.1).sum();
        Histogram { schema, positive: positive.to_vec(), count, ..Histogram::default() }
    }

    #[test]
    fn adding_meets_at_the_coarser_schema() {
        let mut fine = exp(1, &[(1, 1.0), (2, 1.0), (3, 1.0)]);
        assert!(fine.add_scaled(&exp(0, &[(1, 5.0)]), 1.0));
        assert_eq!((fine.schema, fine.positive, fine.count), (0, vec![(1, 7.0), (2, 1.0)], 8.0));
    }

    #[test]
    fn bounds_follow_the_schema() {
        let h = exp(0, &[(1, 1.0), (3, 1.0)]);
        let b: Vec<_> = h.buckets().iter().map(|b| (b.lower, b.upper)).collect();
        assert_eq!(b, [(1.0, 2.0), (4.0, 8.0)]);
    }

    #[test]
    fn custom_and_exponential_do_not_mix() {
        let mut a = exp(0, &[]);
        let b = Histogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            custom_bounds: vec![1.0],
            ..Histogram::default()
        };
        assert!(!a.add_scaled(&b, 1.0));
    }

    #[test]
    fn a_falling_bucket_is_a_reset() {
        let a = exp(0, &[(1, 5.0)]);
        assert!(exp(0, &[(2, 6.0)]).is_reset_after(&a));
        assert!(!exp(0, &[(1, 5.0), (2, 1.0)]).is_reset_after(&a));
    }
}
