//! Samples, series and their metadata.

use crate::{Histogram, Labels, TimestampMs};
use std::sync::Arc;

/// The bit pattern with which Prometheus marks the end of a series.
pub const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// Returns whether a value is Prometheus' staleness marker (any other NaN is data).
pub fn is_stale(value: f64) -> bool {
    value.to_bits() == STALE_NAN_BITS
}

/// A sample's value: a float or a native histogram.
#[derive(Debug, Clone)]
pub enum SampleValue {
    Float(f64),
    Histogram(Arc<Histogram>),
}

impl PartialEq for SampleValue {
    /// Compares floats by bits, so that NaN equals itself and the stale marker stays apart.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Histogram(a), Self::Histogram(b)) => a == b,
            _ => false,
        }
    }
}

impl SampleValue {
    /// Returns whether the sample ends the series.
    pub fn is_stale(&self) -> bool {
        match self {
            Self::Float(f) => is_stale(*f),
            Self::Histogram(h) => is_stale(h.sum),
        }
    }
}

/// A value at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub timestamp: TimestampMs,
    pub value: SampleValue,
}

impl Sample {
    pub fn float(timestamp_ms: i64, value: f64) -> Self {
        Self { timestamp: TimestampMs::from_millis(timestamp_ms), value: SampleValue::Float(value) }
    }
}

/// A label set and samples of it, in time order when it comes from a store.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub labels: Labels,
    pub samples: Vec<Sample>,
}

/// The type of a metric family, in Prometheus' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
    GaugeHistogram,
    Summary,
    Unknown,
}

impl MetricKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::GaugeHistogram => "gaugehistogram",
            Self::Summary => "summary",
            Self::Unknown => "unknown",
        }
    }

    /// Returns the kind with this name; anything else is unknown.
    pub fn parse(name: &str) -> Self {
        match name {
            "counter" => Self::Counter,
            "gauge" => Self::Gauge,
            "histogram" => Self::Histogram,
            "gaugehistogram" => Self::GaugeHistogram,
            "summary" => Self::Summary,
            _ => Self::Unknown,
        }
    }
}

/// Type, help and unit of a metric family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricMetadata {
    pub name: String,
    pub kind: MetricKind,
    pub help: String,
    pub unit: String,
}

/// A value that a counter or histogram counted, and labels that lead to where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    pub labels: Labels,
    pub value: f64,
    /// Milliseconds, if the source says.
    pub timestamp_ms: Option<i64>,
}
