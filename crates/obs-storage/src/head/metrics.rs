//! Series in memory: compact runs of samples, and an inverted index of labels.
//!
//! Series outlive a flush, which takes only their samples: the next sample of a known series
//! needs no new labels. Those that stay silent for a few flushes are forgotten.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{get_histogram, put_histogram};
use foldhash::HashMap;
use obs_model::{Labels, MatchOp, Matcher, MetricMetadata, Sample, SampleValue, TimestampMs};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Samples of one series since the last flush, in order of arrival, a few bytes each.
///
/// A sample is the change of the interval (zigzag), then: 0 and the difference of integers
/// (zigzag), or 1 and the bits, or 2 and a native histogram. The kind is in the low bits of the
/// first number.
#[derive(Debug, Default, Clone)]
pub(crate) struct Run {
    bytes: Vec<u8>,
    count: u32,
    /// Samples not in time order.
    disorder: bool,
    last_time: i64,
    last_interval: i64,
    last_value: f64,
    pub(crate) min: i64,
    pub(crate) max: i64,
}

const INTEGER: i64 = 0;
const BITS: i64 = 1;
const HISTOGRAM: i64 = 2;
/// The same value again.
const SAME: i64 = 3;

fn as_integer(v: f64) -> Option<i64> {
    let i = v as i64;
    (i.unsigned_abs() < 1 << 53 && (i as f64).to_bits() == v.to_bits()).then_some(i)
}

impl Run {
    /// Appends a sample and returns by how many bytes the run grew.
    pub(crate) fn push(&mut self, sample: &Sample) -> usize {
        let before = self.bytes.len();
        let t = sample.timestamp.millis();
        if self.count == 0 {
            (self.min, self.max) = (t, t);
        } else {
            self.disorder |= t <= self.last_time;
            self.min = self.min.min(t);
            self.max = self.max.max(t);
        }
        let interval = t.wrapping_sub(self.last_time);
        let change = interval.wrapping_sub(self.last_interval);
        self.last_time = t;
        self.last_interval = if self.count == 0 { 0 } else { interval };
        self.count += 1;
        let mut e = Encoder { bytes: std::mem::take(&mut self.bytes) };
        let head = |kind: i64, e: &mut Encoder| {
            // Times use 62 bits: checked where samples enter.
            e.int(change.wrapping_shl(2) | kind);
        };
        match &sample.value {
            SampleValue::Float(v) => {
                let both = as_integer(*v).zip(as_integer(self.last_value));
                if v.to_bits() == self.last_value.to_bits() {
                    head(SAME, &mut e);
                } else if let Some((now, last)) = both {
                    head(INTEGER, &mut e);
                    e.int(now - last);
                } else {
                    head(BITS, &mut e);
                    e.f64(*v);
                }
                self.last_value = *v;
            }
            SampleValue::Histogram(h) => {
                head(HISTOGRAM, &mut e);
                put_histogram(&mut e, h);
            }
        }
        self.bytes = e.bytes;
        self.bytes.len() - before
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends the samples in `[start, end]`, in order of arrival.
    pub(crate) fn read(
        &self,
        start: i64,
        end: i64,
        out: &mut Vec<Sample>,
    ) -> Result<(), Malformed> {
        let mut d = Decoder::new(&self.bytes);
        let (mut time, mut interval, mut value) = (0_i64, 0_i64, 0.0_f64);
        for i in 0..self.count {
            let head = d.int()?;
            let (change, kind) = (head >> 2, head & 3);
            let step = interval.wrapping_add(change);
            time = time.wrapping_add(step);
            interval = if i == 0 { 0 } else { step };
            let value = match kind {
                SAME => SampleValue::Float(value),
                INTEGER => {
                    value = (value as i64).wrapping_add(d.int()?) as f64;
                    SampleValue::Float(value)
                }
                BITS => {
                    value = d.f64()?;
                    SampleValue::Float(value)
                }
                _ => SampleValue::Histogram(Arc::new(get_histogram(&mut d)?)),
            };
            if (start..=end).contains(&time) {
                out.push(Sample { timestamp: TimestampMs::from_millis(time), value });
            }
        }
        Ok(())
    }

    /// Returns all samples sorted, one a timestamp.
    pub(crate) fn sorted(&self, out: &mut Vec<Sample>) -> Result<(), Malformed> {
        out.clear();
        self.read(i64::MIN, i64::MAX, out)?;
        if self.disorder {
            sort_unique(out);
        }
        Ok(())
    }
}

/// Sorts by time and keeps the last written of equal times.
pub(crate) fn sort_unique(samples: &mut Vec<Sample>) {
    if samples.windows(2).any(|w| matches!(w, [a, b] if a.timestamp >= b.timestamp)) {
        samples.sort_by_key(|s| s.timestamp);
        samples.reverse();
        samples.dedup_by_key(|s| s.timestamp);
        samples.reverse();
    }
}

#[derive(Debug)]
pub(crate) struct SeriesHead {
    pub(crate) labels: Labels,
    pub(crate) run: Run,
    /// The log file in which the labels were last written, so that each file is self-contained.
    pub(crate) wal_file: u64,
    /// Flushes since the last sample.
    idle: u32,
}

/// Inverted index: the series that have a label, ascending.
#[derive(Debug, Default)]
struct Postings {
    /// name → its place in `values`.
    names: HashMap<Box<str>, u32>,
    /// By name: value → its place in `lists`.
    values: Vec<HashMap<Box<str>, u32>>,
    lists: Vec<Posting>,
    /// Places of name and list of each label of the series added last. Series come by target and
    /// by metric: the next one has the same names, and most of the values.
    last: Vec<(u32, u32)>,
    /// The memory of the list before that.
    spare: Vec<(u32, u32)>,
}

/// Most values of some labels have one series.
#[derive(Debug)]
enum Posting {
    One(u32),
    Many(Vec<u32>),
}

impl Postings {
    /// Adds a series; `before` is the one added last.
    fn add(&mut self, labels: &Labels, before: Option<&Labels>, series: u32) {
        let mut places = std::mem::take(&mut self.spare);
        places.clear();
        let last = std::mem::take(&mut self.last);
        let before = before.into_iter().flat_map(Labels::iter);
        let mut before = before.zip(last.iter().copied()).peekable();
        for (name, value) in labels.iter() {
            while before.next_if(|((n, _), _)| *n < name).is_some() {}
            let like = before.next_if(|((n, _), _)| *n == name);
            let of_name = match like {
                Some((_, (of_name, _))) => of_name,
                None => self.name(name),
            };
            let list = match like {
                Some(((_, v), (_, list))) if v == value => Some(list),
                _ => self.values.get(of_name as usize).and_then(|v| v.get(value).copied()),
            };
            let list = match list.and_then(|l| Some((l, self.lists.get_mut(l as usize)?))) {
                Some((place, list)) => {
                    list.push(series);
                    place
                }
                None => {
                    let place = self.lists.len() as u32;
                    self.lists.push(Posting::One(series));
                    if let Some(values) = self.values.get_mut(of_name as usize) {
                        values.insert(value.into(), place);
                    }
                    place
                }
            };
            places.push((of_name, list));
        }
        drop(before);
        (self.last, self.spare) = (places, last);
    }

    fn name(&mut self, name: &str) -> u32 {
        if let Some(place) = self.names.get(name) {
            return *place;
        }
        let place = self.values.len() as u32;
        self.values.push(HashMap::default());
        self.names.insert(name.into(), place);
        place
    }

    fn of(&self, name: &str, value: &str) -> &[u32] {
        let values = self.names.get(name).and_then(|n| self.values.get(*n as usize));
        let list = values.and_then(|v| self.lists.get(*v.get(value)? as usize));
        list.map_or(&[], Posting::as_slice)
    }
}

impl Posting {
    fn push(&mut self, series: u32) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, series]),
            Self::Many(list) => list.push(series),
        }
    }

    fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(list) => list,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct MetricsHead {
    by_labels: HashMap<Labels, u32>,
    series: Vec<SeriesHead>,
    postings: Postings,
    /// How many of the series, from the first one on, are in the postings. While a log is read none
    /// is added: that takes as long as all the rest, and what is not indexed is found by looking
    /// at it.
    indexed: usize,
    pub(crate) metadata: BTreeMap<String, MetricMetadata>,
    /// Bytes of samples, which a flush takes.
    pub(crate) sample_bytes: usize,
    /// Bytes of labels and index, which stay.
    pub(crate) series_bytes: usize,
}

/// The samples that a flush took.
#[derive(Debug, Default)]
pub(crate) struct FrozenMetrics {
    pub(crate) series: Vec<(Labels, Run)>,
    pub(crate) metadata: BTreeMap<String, MetricMetadata>,
}

/// What a series takes in the index, about: places in the lists of its labels.
const INDEX_BYTES: usize = 64;
/// Flushes without a sample after which a series is forgotten.
const IDLE_FLUSHES: u32 = 3;

impl MetricsHead {
    pub(crate) fn series_count(&self) -> usize {
        self.series.len()
    }

    /// Returns the number of a known series.
    pub(crate) fn find(&self, labels: &Labels) -> Option<u32> {
        self.by_labels.get(labels).copied()
    }

    /// Returns the number of a known series, which is likely to be the one behind `last`: senders
    /// name their series in the same order each time.
    pub(crate) fn find_behind(&self, last: Option<u32>, labels: &Labels) -> Option<u32> {
        let next = last.and_then(|l| l.checked_add(1));
        let is_next = |n: &u32| self.series.get(*n as usize).is_some_and(|s| s.labels == *labels);
        next.filter(is_next).or_else(|| self.find(labels))
    }

    /// Returns the number of a series, creating it if it is new.
    pub(crate) fn reference(&mut self, labels: &Labels) -> u32 {
        /// Of series that are not indexed yet, those that each new one takes along.
        const ALONG: usize = 16;
        self.find(labels).unwrap_or_else(|| {
            let reference = self.create(labels);
            self.index(ALONG);
            reference
        })
    }

    /// Like [`Self::reference`]; new series are left for [`Self::index`].
    pub(crate) fn reference_unindexed(&mut self, labels: &Labels) -> u32 {
        self.find(labels).unwrap_or_else(|| self.create(labels))
    }

    /// Indexes up to so many more series; returns whether some are left.
    pub(crate) fn index(&mut self, series: usize) -> bool {
        for _ in 0..series {
            let Some(next) = self.series.get(self.indexed) else { return false };
            let before = self.indexed.checked_sub(1).and_then(|i| self.series.get(i));
            self.postings.add(&next.labels, before.map(|s| &s.labels), self.indexed as u32);
            self.indexed += 1;
        }
        self.indexed < self.series.len()
    }

    fn create(&mut self, labels: &Labels) -> u32 {
        let reference = self.series.len() as u32;
        self.by_labels.insert(labels.clone(), reference);
        self.series_bytes += labels.size_bytes() + 40 + size_of::<SeriesHead>() + INDEX_BYTES;
        self.series.push(SeriesHead {
            labels: labels.clone(),
            run: Run::default(),
            wal_file: 0,
            idle: 0,
        });
        reference
    }

    pub(crate) fn get_mut(&mut self, reference: u32) -> Option<&mut SeriesHead> {
        self.series.get_mut(reference as usize)
    }

    pub(crate) fn push(&mut self, reference: u32, sample: &Sample) {
        if let Some(s) = self.series.get_mut(reference as usize) {
            self.sample_bytes += s.run.push(sample);
        }
    }

    /// Returns matching series that have samples in `[start, end]` ms.
    pub(crate) fn matching<'a>(
        &'a self,
        matchers: &'a [Matcher],
        start: i64,
        end: i64,
    ) -> impl Iterator<Item = &'a SeriesHead> {
        let narrowest = matchers
            .iter()
            .filter(|m| m.op == MatchOp::Equal && !m.value.is_empty())
            .map(|m| self.postings.of(&m.name, &m.value))
            .min_by_key(|list| list.len());
        let candidates: Box<dyn Iterator<Item = &SeriesHead>> = match narrowest {
            Some(list) => {
                let indexed = list.iter().filter_map(|r| self.series.get(*r as usize));
                Box::new(indexed.chain(self.series.get(self.indexed..).unwrap_or_default()))
            }
            None => Box::new(self.series.iter()),
        };
        candidates.filter(move |s| {
            !s.run.is_empty()
                && s.run.max >= start
                && s.run.min <= end
                && Matcher::all_match(matchers, &s.labels)
        })
    }

    /// Takes the samples for a flush; series and metadata stay.
    pub(crate) fn freeze(&mut self) -> FrozenMetrics {
        let mut out =
            FrozenMetrics { series: Vec::new(), metadata: std::mem::take(&mut self.metadata) };
        let mut idle = 0;
        for s in &mut self.series {
            if s.run.is_empty() {
                s.idle += 1;
                idle += usize::from(s.idle >= IDLE_FLUSHES);
            } else {
                s.idle = 0;
                out.series.push((s.labels.clone(), std::mem::take(&mut s.run)));
            }
        }
        self.sample_bytes = 0;
        // Rebuilding costs as much as the series that stay: worth it when enough go.
        if idle * 4 > self.series.len() {
            self.forget_idle();
        }
        out
    }

    fn forget_idle(&mut self) {
        let old = std::mem::take(self);
        self.metadata = old.metadata;
        for s in old.series {
            if s.idle < IDLE_FLUSHES {
                let reference = self.reference(&s.labels);
                if let Some(new) = self.series.get_mut(reference as usize) {
                    // Numbers changed: the labels are written to the log again.
                    *new = SeriesHead { wal_file: 0, ..s };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn late_and_repeated_samples_end_up_in_order() {
        let mut head = MetricsHead::default();
        let r = head.reference(&Labels::from_pairs([("__name__", "m")]));
        for t in (0..300).rev().chain(0..5) {
            head.push(r, &Sample::float(t, t as f64));
        }
        head.push(r, &Sample::float(3, 99.0));
        let frozen = head.freeze();
        let mut out = Vec::new();
        frozen.series[0].1.sorted(&mut out).unwrap();
        assert_eq!(out.len(), 300);
        assert_eq!(out[3], Sample::float(3, 99.0));
    }

    #[test]
    fn series_are_found_before_and_after_they_are_indexed() {
        let labels = |i: i64| {
            let kind = ["a", "b", "c"][i as usize % 3];
            let mut pairs = vec![("__name__", format!("m{}", i % 7)), ("i", i.to_string())];
            // Names come and go from one series to the next.
            if i % 2 == 0 {
                pairs.push(("even", kind.to_owned()));
            }
            pairs.push(("kind", kind.to_owned()));
            Labels::from_pairs(pairs)
        };
        let found = |head: &MetricsHead| {
            let all = ["m0", "m6", "nothing"].map(|n| Matcher::equal("__name__", n)).into_iter();
            let all = all.chain(["a", "c"].map(|v| Matcher::equal("kind", v)));
            let all = all.chain([Matcher::equal("even", "b"), Matcher::equal("i", "99")]);
            let series = |m: Matcher| -> Vec<Labels> {
                head.matching(&[m], 0, 100).map(|s| s.labels.clone()).collect()
            };
            all.map(series).collect::<Vec<_>>()
        };
        let mut head = MetricsHead::default();
        for i in 0..100 {
            let reference = head.reference_unindexed(&labels(i));
            head.push(reference, &Sample::float(1, 1.0));
        }
        let first = found(&head);
        assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [15, 14, 0, 34, 33, 16, 1]);
        assert!(head.index(40));
        assert_eq!(found(&head), first);
        let reference = head.reference(&labels(106));
        head.push(reference, &Sample::float(1, 1.0));
        let more = found(&head);
        assert_eq!(more.iter().map(Vec::len).collect::<Vec<_>>(), [15, 14, 0, 34, 33, 17, 1]);
        assert!(!head.index(usize::MAX));
        assert_eq!(found(&head), more);
    }

    #[test]
    fn silent_series_are_forgotten_and_others_stay() {
        let mut head = MetricsHead::default();
        let labels = |i: usize| Labels::from_pairs([("__name__", format!("m{i}"))]);
        for i in 0..10 {
            let r = head.reference(&labels(i));
            head.push(r, &Sample::float(1, 1.0));
        }
        for t in 2..8 {
            head.freeze();
            let r = head.reference(&labels(9));
            head.push(r, &Sample::float(t, 1.0));
        }
        assert_eq!(head.series_count(), 1);
        let matchers = [Matcher::equal("__name__", "m9")];
        assert_eq!(head.matching(&matchers, 0, 100).count(), 1);
    }

    proptest! {
        #[test]
        fn any_run_comes_back(
            samples in prop::collection::vec((0_i64..1 << 45, prop_oneof![any::<f64>(), (-1000_i32..1000).prop_map(f64::from)]), 0..100)
        ) {
            let samples: Vec<Sample> = samples.into_iter().map(|(t, v)| Sample::float(t, v)).collect();
            let mut run = Run::default();
            samples.iter().for_each(|s| { run.push(s); });
            let mut out = Vec::new();
            run.read(i64::MIN, i64::MAX, &mut out).unwrap();
            prop_assert_eq!(out, samples);
        }
    }
}
