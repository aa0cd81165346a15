//! Prometheus remote write 1.0, read in place.
//!
//! A body repeats every label of every series. The bytes of the labels are handed to the caller as
//! they are, who knows most of them already.

use crate::{DecodeError, Decoded, Rejected};
use obs_model::{
    Exemplar, Histogram, Labels, MetricKind, MetricMetadata, ResetHint, Sample, SampleValue,
    TimestampMs,
};
use prost::Message;
use std::sync::Arc;

/// Samples and metadata of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RemoteWrite {
    pub points: Vec<(Labels, Sample)>,
    pub metadata: Vec<MetricMetadata>,
    pub exemplars: Vec<(Labels, Exemplar)>,
}

/// Finds the label set of a series: gets its bytes and what decodes them.
pub type Intern<'a> =
    &'a mut dyn FnMut(&[u8], &dyn Fn() -> Result<Labels, String>) -> Result<Labels, String>;

pub(crate) fn damaged(reason: &str) -> DecodeError {
    DecodeError { format: "remote write protobuf", reason: reason.into() }
}

/// A protobuf message being read.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

pub(crate) enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Reader<'a> {
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut v = 0_u64;
        for (i, b) in self.0.iter().enumerate().take(10) {
            v |= u64::from(b & 0x7f) << (7 * i);
            if *b < 0x80 {
                self.0 = self.0.get(i + 1..)?;
                return Some(v);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (a, b) = self.0.split_at_checked(n)?;
        self.0 = b;
        Some(a)
    }

    /// Returns the next field; `None` at the end, an error in the middle of one.
    pub(crate) fn field(&mut self) -> Result<Option<(u64, Field<'a>)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let cut = || damaged("message is cut short");
        let key = self.varint().ok_or_else(cut)?;
        let value = match key & 7 {
            0 => Field::Varint(self.varint().ok_or_else(cut)?),
            1 => {
                let bytes = self.take(8).and_then(|b| b.try_into().ok()).ok_or_else(cut)?;
                Field::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let n = self.varint().and_then(|n| usize::try_from(n).ok()).ok_or_else(cut)?;
                Field::Bytes(self.take(n).ok_or_else(cut)?)
            }
            5 => {
                self.take(4).ok_or_else(cut)?;
                Field::Fixed32
            }
            other => return Err(damaged(&format!("unknown wire type {other}"))),
        };
        Ok(Some((key >> 3, value)))
    }
}

/// Decodes a request after snappy.
///
/// # Errors
/// When the body is no such message at all; single bad series are counted.
pub fn decode(body: &[u8], intern: Intern<'_>) -> Result<Decoded<RemoteWrite>, DecodeError> {
    let mut out = RemoteWrite::default();
    let mut rejected = Rejected::default();
    let mut samples = Vec::new();
    let mut r = Reader(body);
    while let Some((number, field)) = r.field()? {
        match (number, field) {
            (1, Field::Bytes(series)) => {
                read_series(series, intern, &mut samples, &mut out, &mut rejected)?;
            }
            (3, Field::Bytes(m)) => out.metadata.extend(read_metadata(m)?),
            _ => {}
        }
    }
    Ok(Decoded { items: out, rejected })
}

fn read_series(
    series: &[u8],
    intern: Intern<'_>,
    samples: &mut Vec<Sample>,
    out: &mut RemoteWrite,
    rejected: &mut Rejected,
) -> Result<(), DecodeError> {
    // Labels come first in every sender's order; the bytes up to the first other field are them.
    let mut labels_end = 0;
    let mut scattered = false;
    let mut exemplars = Vec::new();
    let mut r = Reader(series);
    samples.clear();
    loop {
        let before = series.len() - r.0.len();
        let Some((number, field)) = r.field()? else { break };
        match (number, field) {
            (1, Field::Bytes(_)) if labels_end == before => labels_end = series.len() - r.0.len(),
            (1, Field::Bytes(_)) => scattered = true,
            (2, Field::Bytes(sample)) => {
                samples.push(read_sample(sample)?);
            }
            (3, Field::Bytes(e)) => exemplars.push(e),
            (4, Field::Bytes(h)) => match read_histogram(h)? {
                Ok(sample) => samples.push(sample),
                Err(reason) => rejected.add(reason),
            },
            _ => {}
        }
    }
    let raw = if scattered { series } else { series.get(..labels_end).unwrap_or_default() };
    if samples.is_empty() && exemplars.is_empty() {
        return Ok(());
    }
    match intern(raw, &|| read_labels(series)) {
        Ok(labels) => {
            for e in exemplars {
                out.exemplars.push((labels.clone(), read_exemplar(e)?));
            }
            out.points.extend(samples.drain(..).map(|s| (labels.clone(), s)));
        }
        Err(reason) => rejected.add_many(samples.len() as u64, reason),
    }
    Ok(())
}

/// Exemplars are few: their labels are read as they are.
fn read_exemplar(bytes: &[u8]) -> Result<Exemplar, DecodeError> {
    let Sample { value, timestamp } = read_sample_at(bytes, (2, 3))?;
    let value = if let SampleValue::Float(f) = value { f } else { f64::NAN };
    let labels = Labels::from_unique(label_pairs(bytes).map_err(|e| damaged(&e))?);
    Ok(Exemplar { labels, value, timestamp_ms: Some(timestamp.millis()) })
}

fn read_labels(series: &[u8]) -> Result<Labels, String> {
    let labels = Labels::from_unique(label_pairs(series)?);
    if labels.metric_name().is_empty() {
        return Err("series has no metric name".into());
    }
    Ok(labels)
}

/// Returns names, each of them once, and values, some of which may be empty.
fn label_pairs(series: &[u8]) -> Result<Vec<(&str, &str)>, String> {
    let text = |b| std::str::from_utf8(b).map_err(|_| "label is not valid UTF-8".to_owned());
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    let mut r = Reader(series);
    while let Some((number, field)) = r.field().map_err(|e| e.reason)? {
        let (1, Field::Bytes(label)) = (number, field) else { continue };
        let (mut name, mut value) = ("", "");
        let mut l = Reader(label);
        while let Some((number, field)) = l.field().map_err(|e| e.reason)? {
            match (number, field) {
                (1, Field::Bytes(v)) => name = text(v)?,
                (2, Field::Bytes(v)) => value = text(v)?,
                _ => {}
            }
        }
        if name.is_empty() {
            return Err("label without a name".into());
        }
        if pairs.iter().any(|(n, _)| *n == name) {
            return Err(format!("label {name:?} appears twice"));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

pub(crate) fn read_sample(bytes: &[u8]) -> Result<Sample, DecodeError> {
    read_sample_at(bytes, (1, 2))
}

/// Reads a value and a time from fields of these numbers.
fn read_sample_at(bytes: &[u8], (v, t): (u64, u64)) -> Result<Sample, DecodeError> {
    let (mut value, mut time) = (0.0, 0);
    let mut r = Reader(bytes);
    while let Some((number, field)) = r.field()? {
        match field {
            Field::Fixed64(bits) if number == v => value = f64::from_bits(bits),
            Field::Varint(ms) if number == t => time = ms as i64,
            _ => {}
        }
    }
    Ok(Sample::float(time, value))
}

/// Kinds by their number on the wire, from 1 on; 0 is unknown.
const KINDS: [MetricKind; 5] = [
    MetricKind::Counter,
    MetricKind::Gauge,
    MetricKind::Histogram,
    MetricKind::GaugeHistogram,
    MetricKind::Summary,
];

/// Returns the kind of a number on the wire, the same in both versions.
pub(crate) fn kind_of(number: u64) -> MetricKind {
    let at = number.checked_sub(1).and_then(|n| usize::try_from(n).ok());
    at.and_then(|n| KINDS.get(n)).copied().unwrap_or(MetricKind::Unknown)
}

fn read_metadata(bytes: &[u8]) -> Result<Option<MetricMetadata>, DecodeError> {
    let mut m = MetricMetadata {
        name: String::new(),
        kind: MetricKind::Unknown,
        help: String::new(),
        unit: String::new(),
    };
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).map_err(|_| damaged("text is not UTF-8"));
    let mut r = Reader(bytes);
    while let Some((number, field)) = r.field()? {
        match (number, field) {
            (1, Field::Varint(kind)) => {
                m.kind = kind_of(kind);
            }
            (2, Field::Bytes(b)) => m.name = text(b)?,
            (4, Field::Bytes(b)) => m.help = text(b)?,
            (5, Field::Bytes(b)) => m.unit = text(b)?,
            _ => {}
        }
    }
    Ok((!m.name.is_empty()).then_some(m))
}

/// `prometheus.BucketSpan`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Span {
    #[prost(sint32, tag = "1")]
    pub(crate) offset: i32,
    #[prost(uint32, tag = "2")]
    pub(crate) length: u32,
}

/// `prometheus.Histogram`; the alternatives of its oneofs are distinct fields here.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireHistogram {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) count_int: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(crate) count_float: Option<f64>,
    #[prost(double, tag = "3")]
    pub(crate) sum: f64,
    #[prost(sint32, tag = "4")]
    pub(crate) schema: i32,
    #[prost(double, tag = "5")]
    pub(crate) zero_threshold: f64,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) zero_count_int: Option<u64>,
    #[prost(double, optional, tag = "7")]
    pub(crate) zero_count_float: Option<f64>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) negative_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "9")]
    pub(crate) negative_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "10")]
    pub(crate) negative_counts: Vec<f64>,
    #[prost(message, repeated, tag = "11")]
    pub(crate) positive_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "12")]
    pub(crate) positive_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "13")]
    pub(crate) positive_counts: Vec<f64>,
    #[prost(int32, tag = "14")]
    pub(crate) reset_hint: i32,
    #[prost(int64, tag = "15")]
    pub(crate) timestamp: i64,
    #[prost(double, repeated, tag = "16")]
    pub(crate) custom_values: Vec<f64>,
}

/// Returns (index, count) of each bucket. Integer counts come as differences.
pub(crate) fn buckets(
    spans: &[(i32, u32)],
    deltas: &[i64],
    counts: &[f64],
) -> Option<Vec<(i32, f64)>> {
    let mut values: Vec<f64> = counts.to_vec();
    if values.is_empty() {
        let mut count = 0_i64;
        for d in deltas {
            count = count.checked_add(*d)?;
            values.push(count as f64);
        }
    }
    let mut out = Vec::with_capacity(values.len());
    let mut values = values.into_iter();
    let mut index = 0_i32;
    for (offset, length) in spans {
        index = index.checked_add(*offset)?;
        for _ in 0..*length {
            out.push((index, values.next()?));
            index = index.checked_add(1)?;
        }
    }
    values.next().is_none().then_some(out)
}

pub(crate) fn read_histogram(bytes: &[u8]) -> Result<Result<Sample, String>, DecodeError> {
    let h = WireHistogram::decode(bytes).map_err(|e| damaged(&e.to_string()))?;
    let spans = |list: &[Span]| list.iter().map(|s| (s.offset, s.length)).collect::<Vec<_>>();
    let positive = buckets(&spans(&h.positive_spans), &h.positive_deltas, &h.positive_counts);
    let negative = buckets(&spans(&h.negative_spans), &h.negative_deltas, &h.negative_counts);
    let (Some(positive), Some(negative)) = (positive, negative) else {
        return Ok(Err("histogram's spans and buckets do not fit together".into()));
    };
    let histogram = Histogram {
        schema: h.schema,
        zero_threshold: h.zero_threshold,
        zero_count: h.zero_count_float.unwrap_or(h.zero_count_int.unwrap_or(0) as f64),
        count: h.count_float.unwrap_or(h.count_int.unwrap_or(0) as f64),
        sum: h.sum,
        positive,
        negative,
        custom_bounds: h.custom_values,
        reset_hint: match h.reset_hint {
            1 => ResetHint::Reset,
            2 => ResetHint::NoReset,
            3 => ResetHint::Gauge,
            _ => ResetHint::Unknown,
        },
    };
    Ok(Ok(Sample {
        timestamp: TimestampMs::from_millis(h.timestamp),
        value: SampleValue::Histogram(Arc::new(histogram)),
    }))
}

/// Writes a protobuf key and a length-delimited field.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(out, number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v as u8) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Writes a sample of a series: floats are field 2 in both versions, histograms are not.
pub(crate) fn put_sample(series: &mut Vec<u8>, s: &Sample, histograms: u64) {
    let at = s.timestamp.millis();
    match &s.value {
        SampleValue::Float(f) => {
            let mut sample = vec![1 << 3 | 1];
            sample.extend_from_slice(&f.to_le_bytes());
            put_varint(&mut sample, 2 << 3);
            put_varint(&mut sample, at.cast_unsigned());
            put_bytes(series, 2, &sample);
        }
        SampleValue::Histogram(h) => {
            put_bytes(series, histograms, &crate::remote_read::histogram_bytes(h, at));
        }
    }
}

/// Returns the number of a kind on the wire, the same in both versions.
pub(crate) fn number_of(kind: MetricKind) -> u64 {
    KINDS.iter().position(|k| *k == kind).map_or(0, |at| at as u64 + 1)
}

/// Encodes a request, before snappy. Neighbouring samples of one series share an entry.
pub fn encode(points: &[(Labels, Sample)], metadata: &[MetricMetadata]) -> Vec<u8> {
    let mut out = Vec::new();
    for run in points.chunk_by(|a, b| a.0 == b.0) {
        let Some((labels, _)) = run.first() else { continue };
        let mut series = Vec::new();
        for (name, value) in labels.iter() {
            let mut pair = Vec::new();
            put_bytes(&mut pair, 1, name.as_bytes());
            put_bytes(&mut pair, 2, value.as_bytes());
            put_bytes(&mut series, 1, &pair);
        }
        for (_, s) in run {
            put_sample(&mut series, s, 4);
        }
        put_bytes(&mut out, 1, &series);
    }
    for m in metadata {
        let mut entry = Vec::new();
        put_varint(&mut entry, 1 << 3);
        put_varint(&mut entry, number_of(m.kind));
        put_bytes(&mut entry, 2, m.name.as_bytes());
        put_bytes(&mut entry, 4, m.help.as_bytes());
        put_bytes(&mut entry, 5, m.unit.as_bytes());
        put_bytes(&mut out, 3, &entry);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Label {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        value: String,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Point {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(int64, tag = "2")]
        time: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Series {
        #[prost(message, repeated, tag = "1")]
        labels: Vec<Label>,
        #[prost(message, repeated, tag = "2")]
        samples: Vec<Point>,
        #[prost(message, repeated, tag = "4")]
        histograms: Vec<WireHistogram>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Request {
        #[prost(message, repeated, tag = "1")]
        series: Vec<Series>,
    }

    fn series(labels: &[(&str, &str)], samples: Vec<Point>) -> Series {
        let label = |(n, v): &(&str, &str)| Label { name: (*n).into(), value: (*v).into() };
        Series { labels: labels.iter().map(label).collect(), samples, histograms: vec![] }
    }

    fn run(r: &Request) -> Decoded<RemoteWrite> {
        decode(&r.encode_to_vec(), &mut |_, build| build()).unwrap()
    }

    #[test]
    fn samples_histograms_and_bad_series() {
        let span = |offset, length| Span { offset, length };
        let mut with_histogram = series(&[("__name__", "h")], vec![]);
        with_histogram.histograms.push(WireHistogram {
            count_int: Some(6),
            schema: 3,
            positive_spans: vec![span(-2, 2), span(1, 1)],
            positive_deltas: vec![1, 1, 1],
            timestamp: 9,
            ..WireHistogram::default()
        });
        let r = Request {
            series: vec![
                series(
                    &[("b", "2"), ("__name__", "m")],
                    vec![Point { value: 1.5, time: 7 }, Point { value: -2.0, time: -8 }],
                ),
                with_histogram,
                series(&[("a", "1")], vec![Point { value: 1.0, time: 1 }]),
                series(&[("__name__", "m"), ("a", "1"), ("a", "2")], vec![Point::default()]),
            ],
        };
        let d = run(&r);
        let m = Labels::from_pairs([("__name__", "m"), ("b", "2")]);
        assert_eq!(d.items.points[0], (m.clone(), Sample::float(7, 1.5)));
        assert_eq!(d.items.points[1], (m, Sample::float(-8, -2.0)));
        let SampleValue::Histogram(h) = &d.items.points[2].1.value else { panic!() };
        assert_eq!(h.positive, [(-2, 1.0), (-1, 2.0), (1, 3.0)]);
        assert_eq!(d.rejected.count, 2);
        assert_eq!(d.items.points.len(), 3);
    }

    #[test]
    fn what_is_encoded_comes_back() {
        let l = |v: &str| Labels::from_pairs([("__name__", "m"), ("a", v)]);
        let h =
            Histogram { count: 3.0, positive: vec![(1, 2.0), (4, 1.0)], ..Histogram::default() };
        let histogram = Sample {
            timestamp: TimestampMs::from_millis(9),
            value: SampleValue::Histogram(h.into()),
        };
        let points = vec![
            (l("x"), Sample::float(7, 1.5)),
            (l("x"), Sample::float(-8, f64::INFINITY)),
            (l("y"), histogram),
        ];
        let metadata = vec![MetricMetadata {
            name: "m".into(),
            kind: MetricKind::Counter,
            help: "h".into(),
            unit: String::new(),
        }];
        let bytes = encode(&points, &metadata);
        let d = decode(&bytes, &mut |_, build| build()).unwrap();
        assert_eq!((d.items.points, d.items.metadata, d.rejected.count), (points, metadata, 0));
    }

    #[test]
    fn every_truncation_is_an_error_or_less_and_never_a_panic() {
        let r = Request {
            series: vec![series(&[("__name__", "m")], vec![Point { value: 1.0, time: 1 }]); 3],
        };
        let bytes = r.encode_to_vec();
        for cut in 0..bytes.len() {
            let got = decode(&bytes[..cut], &mut |_, build| build());
            assert!(got.map_or(true, |d| d.items.points.len() < 3));
        }
    }
}
