//! The protobuf format: metric families, with native histograms.

use super::{Page, Scraped};
use crate::DecodeError;
use obs_model::{Exemplar, Histogram, Labels, MetricKind, MetricMetadata, ResetHint, SampleValue};
use prost::Message;
use std::sync::Arc;

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(message, optional, tag = "2")]
    exemplar: Option<WireExemplar>,
}

#[derive(Clone, PartialEq, Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct WireExemplar {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<LabelPair>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Time>,
}

#[derive(Clone, PartialEq, Message)]
struct Quantile {
    #[prost(double, tag = "1")]
    quantile: f64,
    #[prost(double, tag = "2")]
    value: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    sum: f64,
    #[prost(message, repeated, tag = "3")]
    quantiles: Vec<Quantile>,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    upper: f64,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<WireExemplar>,
    #[prost(double, tag = "4")]
    count_float: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, Message)]
struct WireHistogram {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    sum: f64,
    #[prost(message, repeated, tag = "3")]
    buckets: Vec<Bucket>,
    #[prost(double, tag = "4")]
    count_float: f64,
    #[prost(sint32, tag = "5")]
    schema: i32,
    #[prost(double, tag = "6")]
    zero_threshold: f64,
    #[prost(uint64, tag = "7")]
    zero_count: u64,
    #[prost(double, tag = "8")]
    zero_count_float: f64,
    #[prost(message, repeated, tag = "9")]
    negative_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "10")]
    negative_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "11")]
    negative_counts: Vec<f64>,
    #[prost(message, repeated, tag = "12")]
    positive_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "13")]
    positive_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "14")]
    positive_counts: Vec<f64>,
    #[prost(message, repeated, tag = "16")]
    exemplars: Vec<WireExemplar>,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "4")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "5")]
    untyped: Option<Number>,
    #[prost(int64, tag = "6")]
    timestamp_ms: i64,
    #[prost(message, optional, tag = "7")]
    histogram: Option<WireHistogram>,
}

#[derive(Clone, PartialEq, Message)]
struct Family {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    help: String,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(message, repeated, tag = "4")]
    metrics: Vec<Metric>,
    #[prost(string, tag = "5")]
    unit: String,
}

/// A series as text, as [`series_labels`] reads it.
fn series_text(name: &str, labels: &[LabelPair], extra: Option<(&str, &str)>) -> String {
    let escaped = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let mut out = format!("{{\"{}\"", escaped(name));
    let own = labels.iter().map(|l| (l.name.as_str(), l.value.as_str()));
    for (n, v) in own.chain(extra) {
        out.push_str(&format!(",\"{}\"=\"{}\"", escaped(n), escaped(v)));
    }
    out.push('}');
    out
}

/// Writes a bound as the text formats do: a whole number keeps its fraction.
fn bound(f: f64) -> String {
    if f.is_infinite() {
        return if f > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let text = if f != 0.0 && !(1e-4..1e21).contains(&f.abs()) {
        let e = format!("{f:e}");
        let (m, e) = e.split_once('e').unwrap_or((&e, "0"));
        let (sign, digits) = e.strip_prefix('-').map_or(('+', e), |d| ('-', d));
        format!("{m}e{sign}{digits:0>2}")
    } else {
        format!("{f}")
    };
    if text.contains(['.', 'e']) { text } else { text + ".0" }
}

impl WireExemplar {
    fn read(&self) -> Exemplar {
        let pairs = self.labels.iter().map(|l| (l.name.as_str(), l.value.as_str()));
        Exemplar {
            labels: Labels::from_pairs(pairs),
            value: self.value,
            timestamp_ms: self
                .timestamp
                .as_ref()
                .map(|t| t.seconds.saturating_mul(1000) + i64::from(t.nanos) / 1_000_000),
        }
    }
}

impl WireHistogram {
    /// Returns whether there are native buckets, perhaps none of them filled.
    fn is_native(&self) -> bool {
        !self.positive_spans.is_empty()
            || !self.negative_spans.is_empty()
            || self.zero_threshold > 0.0
            || self.zero_count > 0
            || self.zero_count_float > 0.0
    }

    fn native(&self, gauge: bool) -> Option<Histogram> {
        let side = |spans: &[Span], deltas: &[i64], counts: &[f64]| {
            let spans: Vec<(i32, u32)> = spans.iter().map(|s| (s.offset, s.length)).collect();
            crate::remote_write::buckets(&spans, deltas, counts)
        };
        Some(Histogram {
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: if self.zero_count_float > 0.0 {
                self.zero_count_float
            } else {
                self.zero_count as f64
            },
            count: if self.count_float > 0.0 { self.count_float } else { self.count as f64 },
            sum: self.sum,
            positive: side(&self.positive_spans, &self.positive_deltas, &self.positive_counts)?,
            negative: side(&self.negative_spans, &self.negative_deltas, &self.negative_counts)?,
            custom_bounds: Vec::new(),
            reset_hint: if gauge { ResetHint::Gauge } else { ResetHint::Unknown },
        })
    }
}

/// Reads a page of length-delimited metric families.
pub(super) fn parse(body: &[u8]) -> Result<Page, DecodeError> {
    let fail = |reason: String| DecodeError { format: "exposition protobuf", reason };
    let mut page = Page::default();
    let mut rest = body;
    while !rest.is_empty() {
        let family = Family::decode_length_delimited(&mut rest).map_err(|e| fail(e.to_string()))?;
        let kind = match family.kind {
            0 => MetricKind::Counter,
            1 => MetricKind::Gauge,
            2 => MetricKind::Summary,
            4 => MetricKind::Histogram,
            5 => MetricKind::GaugeHistogram,
            _ => MetricKind::Unknown,
        };
        let name = family.name.as_str();
        for m in &family.metrics {
            let timestamp = (m.timestamp_ms != 0).then_some(m.timestamp_ms);
            let mut add =
                |suffix: &str, extra: Option<(&str, &str)>, value: f64, e: Vec<Exemplar>| {
                    let series = series_text(&format!("{name}{suffix}"), &m.labels, extra);
                    let value = SampleValue::Float(value);
                    page.samples.push(Scraped { series, value, timestamp, exemplars: e });
                };
            let one = |n: &Number| n.exemplar.iter().map(WireExemplar::read).collect();
            for n in [&m.gauge, &m.counter, &m.untyped].into_iter().flatten() {
                add("", None, n.value, one(n));
            }
            if let Some(s) = &m.summary {
                for q in &s.quantiles {
                    add("", Some(("quantile", &bound(q.quantile))), q.value, Vec::new());
                }
                add("_sum", None, s.sum, Vec::new());
                add("_count", None, s.count as f64, Vec::new());
            }
            let Some(h) = &m.histogram else { continue };
            if h.is_native() {
                let value = h.native(kind == MetricKind::GaugeHistogram).ok_or_else(|| {
                    fail(format!("{name}: spans and buckets do not fit together"))
                })?;
                let mut exemplars: Vec<Exemplar> =
                    h.exemplars.iter().map(WireExemplar::read).collect();
                if exemplars.is_empty() {
                    let of_buckets = h.buckets.iter().filter_map(|b| b.exemplar.as_ref());
                    exemplars = of_buckets.map(WireExemplar::read).collect();
                }
                page.samples.push(Scraped {
                    series: series_text(name, &m.labels, None),
                    value: SampleValue::Histogram(Arc::new(value)),
                    timestamp,
                    exemplars,
                });
                continue;
            }
            let count = if h.count_float > 0.0 { h.count_float } else { h.count as f64 };
            let mut has_infinite = false;
            for b in &h.buckets {
                has_infinite |= b.upper == f64::INFINITY;
                let n = if b.count_float > 0.0 { b.count_float } else { b.count as f64 };
                let e = b.exemplar.iter().map(WireExemplar::read).collect();
                add("_bucket", Some(("le", &bound(b.upper))), n, e);
            }
            if !has_infinite {
                add("_bucket", Some(("le", "+Inf")), count, Vec::new());
            }
            add("_sum", None, h.sum, Vec::new());
            add("_count", None, count, Vec::new());
        }
        page.metadata.push(MetricMetadata {
            name: family.name,
            kind,
            help: family.help,
            unit: family.unit,
        });
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Format, parse, series_labels};

    #[test]
    fn protobuf_families_become_series() {
        let label = |n: &str, v: &str| LabelPair { name: n.into(), value: v.into() };
        let native = WireHistogram {
            count: 3,
            sum: 4.5,
            schema: 2,
            zero_threshold: 1e-3,
            positive_spans: vec![Span { offset: 1, length: 2 }],
            positive_deltas: vec![1, 1],
            ..WireHistogram::default()
        };
        let classic = WireHistogram {
            count: 2,
            sum: 1.0,
            buckets: vec![Bucket { count: 1, upper: 1.0, ..Bucket::default() }],
            ..WireHistogram::default()
        };
        let family = |name: &str, metric: Metric| Family {
            name: name.into(),
            kind: 4,
            metrics: vec![metric],
            ..Family::default()
        };
        let mut body = Vec::new();
        for f in [
            family(
                "n",
                Metric {
                    labels: vec![label("a", "b\"c")],
                    histogram: Some(native),
                    ..Metric::default()
                },
            ),
            family("c", Metric { histogram: Some(classic), ..Metric::default() }),
        ] {
            f.encode_length_delimited(&mut body).unwrap();
        }
        let page = parse(Format::Protobuf, &body).unwrap();
        let names: Vec<String> =
            page.samples.iter().map(|s| series_labels(&s.series).unwrap().to_string()).collect();
        assert_eq!(
            names,
            [
                "n{a=\"b\\\"c\"}",
                "c_bucket{le=\"1.0\"}",
                "c_bucket{le=\"+Inf\"}",
                "c_sum",
                "c_count"
            ]
        );
        let SampleValue::Histogram(h) = &page.samples[0].value else { panic!() };
        assert_eq!((h.count, h.positive.as_slice()), (3.0, [(1, 1.0), (2, 2.0)].as_slice()));
        for cut in 0..body.len() {
            let _ = parse(Format::Protobuf, &body[..cut]);
        }
    }
}
