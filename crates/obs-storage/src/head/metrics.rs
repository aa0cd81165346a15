//! Series in memory: sealed chunks, an open tail, and an inverted index of labels.

use crate::bin::Malformed;
use crate::chunk::Chunk;
use obs_model::{Labels, MatchOp, Matcher, MetricMetadata, Sample};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Samples after which the open tail of a series is compressed.
const SEAL_SAMPLES: usize = 120;

#[derive(Debug)]
pub(crate) struct SeriesHead {
    pub(crate) labels: Labels,
    pub(crate) sealed: Vec<Chunk>,
    pub(crate) open: Vec<Sample>,
    /// The log file in which the labels were last written, so that each file is self-contained.
    pub(crate) wal_file: u64,
    min: i64,
    max: i64,
}

#[derive(Debug, Default)]
pub(crate) struct MetricsHead {
    by_labels: HashMap<Labels, u32>,
    series: Vec<SeriesHead>,
    /// name → value → series, ascending.
    postings: HashMap<Arc<str>, HashMap<Arc<str>, Vec<u32>>>,
    pub(crate) metadata: BTreeMap<String, MetricMetadata>,
}

impl SeriesHead {
    /// Returns true if the series grew by a chunk.
    fn push(&mut self, sample: Sample) {
        let t = sample.timestamp.millis();
        self.min = self.min.min(t);
        self.max = self.max.max(t);
        self.open.push(sample);
        if self.open.len() >= SEAL_SAMPLES {
            let mut tail = std::mem::take(&mut self.open);
            sort_unique(&mut tail);
            self.sealed.extend(Chunk::encode(&tail));
        }
    }

    /// Appends the samples in `[start, end]` ms, oldest write first.
    pub(crate) fn read(
        &self,
        start: i64,
        end: i64,
        out: &mut Vec<Sample>,
    ) -> Result<(), Malformed> {
        for c in self.sealed.iter().filter(|c| c.max >= start && c.min <= end) {
            out.extend(Chunk::decode(&c.bytes)?);
        }
        out.extend(self.open.iter().cloned());
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

impl MetricsHead {
    /// Returns the reference of a series, creating it if it is new, and whether it is new.
    pub(crate) fn reference(&mut self, labels: &Labels) -> (u32, bool) {
        if let Some(r) = self.by_labels.get(labels) {
            return (*r, false);
        }
        let reference = self.series.len() as u32;
        for (name, value) in labels.iter() {
            let values = match self.postings.get_mut(name) {
                Some(v) => v,
                None => self.postings.entry(name.into()).or_default(),
            };
            match values.get_mut(value) {
                Some(list) => list.push(reference),
                None => {
                    values.insert(value.into(), vec![reference]);
                }
            }
        }
        self.by_labels.insert(labels.clone(), reference);
        self.series.push(SeriesHead {
            labels: labels.clone(),
            sealed: Vec::new(),
            open: Vec::new(),
            wal_file: 0,
            min: i64::MAX,
            max: i64::MIN,
        });
        (reference, true)
    }

    pub(crate) fn get_mut(&mut self, reference: u32) -> Option<&mut SeriesHead> {
        self.series.get_mut(reference as usize)
    }

    pub(crate) fn push(&mut self, reference: u32, samples: impl IntoIterator<Item = Sample>) {
        if let Some(s) = self.get_mut(reference) {
            samples.into_iter().for_each(|sample| s.push(sample));
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
            .map(|m| {
                self.postings
                    .get(m.name.as_str())
                    .and_then(|v| v.get(m.value.as_str()))
                    .map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|list| list.len());
        let candidates: Box<dyn Iterator<Item = &SeriesHead>> = match narrowest {
            Some(list) => Box::new(list.iter().filter_map(|r| self.series.get(*r as usize))),
            None => Box::new(self.series.iter()),
        };
        candidates.filter(move |s| {
            s.max >= start && s.min <= end && Matcher::all_match(matchers, &s.labels)
        })
    }

    /// Returns all series sorted by labels with their samples as chunks, for a segment.
    pub(crate) fn to_chunks(&self) -> Result<Vec<(Labels, Vec<Chunk>)>, Malformed> {
        const SAMPLES_PER_CHUNK: usize = 480;
        let mut out = Vec::with_capacity(self.series.len());
        for s in &self.series {
            let mut samples = Vec::new();
            s.read(i64::MIN, i64::MAX, &mut samples)?;
            sort_unique(&mut samples);
            if !samples.is_empty() {
                out.push((
                    s.labels.clone(),
                    samples.chunks(SAMPLES_PER_CHUNK).flat_map(Chunk::encode).collect(),
                ));
            }
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_and_repeated_samples_end_up_in_order() {
        let mut head = MetricsHead::default();
        let (r, new) = head.reference(&Labels::from_pairs([("__name__", "m")]));
        assert!(new);
        for t in (0..300).rev().chain(0..5) {
            head.push(r, [Sample::float(t, t as f64)]);
        }
        head.push(r, [Sample::float(3, 99.0)]);
        let matchers = [Matcher::equal("__name__", "m")];
        let series: Vec<_> = head.matching(&matchers, 0, 1000).collect();
        let mut out = Vec::new();
        series[0].read(i64::MIN, i64::MAX, &mut out).unwrap();
        sort_unique(&mut out);
        assert_eq!(out.len(), 300);
        assert_eq!(out[3], Sample::float(3, 99.0));
    }
}
