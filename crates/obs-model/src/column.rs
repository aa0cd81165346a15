//! A series' samples in columns: floats beside times that series of one scrape share.

use crate::{Labels, Sample, SampleValue, Series, TimestampMs};
use std::ops::Deref;
use std::sync::Arc;

/// A list, or a part of one that others have too.
#[derive(Debug, Clone)]
pub enum SharedSlice<T> {
    Shared { list: Arc<[T]>, from: usize, to: usize },
    Own(Vec<T>),
}

impl<T> Deref for SharedSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Shared { list, from, to } => list.get(*from..*to).unwrap_or_default(),
            Self::Own(list) => list,
        }
    }
}

impl<T: Copy> SharedSlice<T> {
    /// Returns the bytes that nobody else has.
    fn own_bytes(&self) -> usize {
        match self {
            Self::Shared { .. } => 0,
            Self::Own(list) => size_of_val(list.as_slice()),
        }
    }

    fn extend(&mut self, more: &[T]) {
        if let Self::Shared { .. } = self {
            *self = Self::Own(self.to_vec());
        }
        if let Self::Own(list) = self {
            list.extend_from_slice(more);
        }
    }
}

/// Times of samples in milliseconds, ascending when they come from a store.
pub type Times = SharedSlice<i64>;

/// Floats and their times: as many of the one as of the other.
#[derive(Debug, Clone)]
pub struct Floats {
    pub times: Times,
    pub values: SharedSlice<f64>,
}

impl Floats {
    /// Returns the samples one by one.
    pub fn iter(&self) -> impl Iterator<Item = Sample> {
        self.times.iter().zip(self.values.iter()).map(|(t, v)| Sample::float(*t, *v))
    }
}

/// Samples of a series.
#[derive(Debug, Clone)]
pub enum Samples {
    Floats(Floats),
    /// Native histograms, or some of both.
    Mixed(Vec<Sample>),
}

impl Default for Samples {
    fn default() -> Self {
        let (times, values) = (SharedSlice::Own(Vec::new()), SharedSlice::Own(Vec::new()));
        Self::Floats(Floats { times, values })
    }
}

impl From<Vec<Sample>> for Samples {
    /// Takes floats apart.
    fn from(samples: Vec<Sample>) -> Self {
        let float = |s: &Sample| match s.value {
            SampleValue::Float(f) => Some(f),
            SampleValue::Histogram(_) => None,
        };
        match samples.iter().map(float).collect::<Option<Vec<f64>>>() {
            Some(values) => {
                let times = samples.iter().map(|s| s.timestamp.millis()).collect();
                let (times, values) = (SharedSlice::Own(times), SharedSlice::Own(values));
                Self::Floats(Floats { times, values })
            }
            None => Self::Mixed(samples),
        }
    }
}

impl Samples {
    pub fn len(&self) -> usize {
        match self {
            Self::Floats(f) => f.values.len(),
            Self::Mixed(list) => list.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes that they take, without those that are shared.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Floats(f) => f.times.own_bytes() + f.values.own_bytes(),
            Self::Mixed(list) => list.len() * size_of::<Sample>(),
        }
    }

    pub fn first_time(&self) -> Option<TimestampMs> {
        match self {
            Self::Floats(f) => f.times.first().map(|t| TimestampMs::from_millis(*t)),
            Self::Mixed(list) => list.first().map(|s| s.timestamp),
        }
    }

    pub fn last_time(&self) -> Option<TimestampMs> {
        match self {
            Self::Floats(f) => f.times.last().map(|t| TimestampMs::from_millis(*t)),
            Self::Mixed(list) => list.last().map(|s| s.timestamp),
        }
    }

    /// Returns whether each sample is later than the one before.
    pub fn is_ascending(&self) -> bool {
        match self {
            Self::Floats(f) => f.times.is_sorted_by(|a, b| a < b),
            Self::Mixed(list) => list.is_sorted_by(|a, b| a.timestamp < b.timestamp),
        }
    }

    /// Returns the samples one by one.
    pub fn into_vec(self) -> Vec<Sample> {
        match self {
            Self::Floats(f) => f.iter().collect(),
            Self::Mixed(list) => list,
        }
    }

    /// Puts samples behind those that are there.
    pub fn append(&mut self, more: Self) {
        if self.is_empty() {
            *self = more;
            return;
        }
        match (&mut *self, &more) {
            (Self::Floats(all), Self::Floats(more)) => {
                all.times.extend(&more.times);
                all.values.extend(&more.values);
            }
            _ => {
                let mut all = std::mem::take(self).into_vec();
                all.append(&mut more.into_vec());
                *self = Self::Mixed(all);
            }
        }
    }

    /// Keeps the samples of some times (milliseconds).
    pub fn retain_times(&mut self, keep: impl Fn(i64) -> bool) {
        match self {
            Self::Floats(f) => {
                if f.times.iter().all(|t| keep(*t)) {
                    return;
                }
                let kept = f.times.iter().zip(f.values.iter()).filter(|(t, _)| keep(**t));
                let (times, values) = kept.map(|(t, v)| (*t, *v)).unzip();
                *f = Floats { times: SharedSlice::Own(times), values: SharedSlice::Own(values) };
            }
            Self::Mixed(list) => list.retain(|s| keep(s.timestamp.millis())),
        }
    }
}

/// A label set and samples of it in columns.
#[derive(Debug, Clone)]
pub struct ColumnSeries {
    pub labels: Labels,
    pub samples: Samples,
}

impl From<Series> for ColumnSeries {
    fn from(s: Series) -> Self {
        Self { labels: s.labels, samples: s.samples.into() }
    }
}

impl From<ColumnSeries> for Series {
    fn from(s: ColumnSeries) -> Self {
        Self { labels: s.labels, samples: s.samples.into_vec() }
    }
}
