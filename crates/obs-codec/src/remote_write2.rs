//! Prometheus remote write 2.0: labels are numbers of texts that the request lists once.

use crate::remote_write::{
    Field, Intern, Reader, RemoteWrite, damaged, kind_of, number_of, put_bytes, put_sample,
    put_varint, read_histogram, read_sample,
};
use crate::{DecodeError, Decoded, Rejected};
use obs_model::{Exemplar, Labels, LabelsBuilder, MetricKind, MetricMetadata, Sample};
use std::collections::HashMap;

/// Texts of a request past which it is refused.
const SYMBOLS_MAX: usize = 4_000_000;

/// Reads numbers that are packed or come one by one.
fn numbers(field: &Field<'_>, out: &mut Vec<u32>) -> Result<(), DecodeError> {
    match field {
        Field::Varint(v) => out.push(u32::try_from(*v).map_err(|_| damaged("number too large"))?),
        Field::Bytes(b) => {
            let mut r = Reader(b);
            while !r.0.is_empty() {
                let v = r.varint().and_then(|v| u32::try_from(v).ok());
                out.push(v.ok_or_else(|| damaged("message is cut short"))?);
            }
        }
        _ => {}
    }
    Ok(())
}

struct Symbols<'a>(Vec<&'a str>);

impl<'a> Symbols<'a> {
    fn get(&self, n: u32) -> Result<&'a str, String> {
        let found = self.0.get(n as usize).copied();
        found.ok_or_else(|| format!("symbol {n} is past the {} of the request", self.0.len()))
    }

    fn labels(&self, refs: &[u32]) -> Result<Labels, String> {
        if !refs.len().is_multiple_of(2) {
            return Err("odd number of label references".into());
        }
        let mut b = LabelsBuilder::default();
        let mut names: Vec<&str> = Vec::with_capacity(refs.len() / 2);
        for pair in refs.chunks_exact(2) {
            let [name, value] = pair else { continue };
            let (name, value) = (self.get(*name)?, self.get(*value)?);
            if name.is_empty() {
                return Err("label without a name".into());
            }
            if names.contains(&name) {
                return Err(format!("label {name:?} appears twice"));
            }
            names.push(name);
            b.push(name, value);
        }
        Ok(b.build())
    }
}

/// How many of each kind a request brought, for the answer's headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Brought {
    pub samples: u64,
    pub histograms: u64,
    pub exemplars: u64,
}

/// Decodes a request after decompression.
///
/// # Errors
/// When the body is no such message at all; single bad series are counted.
pub fn decode(
    body: &[u8],
    intern: Intern<'_>,
) -> Result<(Decoded<RemoteWrite>, Brought), DecodeError> {
    let mut symbols = Symbols(Vec::new());
    let mut series = Vec::new();
    let mut r = Reader(body);
    while let Some((number, field)) = r.field()? {
        match (number, field) {
            (4, Field::Bytes(b)) => {
                if symbols.0.len() >= SYMBOLS_MAX {
                    return Err(damaged(&format!("more than {SYMBOLS_MAX} symbols")));
                }
                let text = std::str::from_utf8(b).map_err(|_| damaged("symbol is not UTF-8"))?;
                symbols.0.push(text);
            }
            (5, Field::Bytes(b)) => series.push(b),
            _ => {}
        }
    }
    if symbols.0.first().is_some_and(|s| !s.is_empty()) {
        return Err(damaged("the first symbol must be the empty text"));
    }
    let mut out = RemoteWrite::default();
    let mut rejected = Rejected::default();
    let mut brought = Brought::default();
    for s in series {
        one(s, &symbols, intern, &mut out, &mut rejected, &mut brought)?;
    }
    Ok((Decoded { items: out, rejected }, brought))
}

fn one(
    series: &[u8],
    symbols: &Symbols<'_>,
    intern: Intern<'_>,
    out: &mut RemoteWrite,
    rejected: &mut Rejected,
    brought: &mut Brought,
) -> Result<(), DecodeError> {
    let mut refs = Vec::new();
    let mut samples: Vec<Sample> = Vec::new();
    let (mut floats, mut histograms) = (0, 0);
    let mut exemplars = Vec::new();
    let mut metadata = None;
    let mut r = Reader(series);
    while let Some((number, field)) = r.field()? {
        match (number, field) {
            (1, f) => numbers(&f, &mut refs)?,
            (2, Field::Bytes(b)) => {
                samples.push(read_sample(b)?);
                floats += 1;
            }
            (3, Field::Bytes(b)) => match read_histogram(b)? {
                Ok(s) => {
                    samples.push(s);
                    histograms += 1;
                }
                Err(reason) => rejected.add(reason),
            },
            (4, Field::Bytes(b)) => exemplars.push(b),
            (5, Field::Bytes(b)) => metadata = Some(b),
            _ => {}
        }
    }
    if samples.is_empty() && exemplars.is_empty() {
        // Prometheus refuses a series that says nothing.
        rejected.add("time series without samples or histograms");
        return Ok(());
    }
    // The texts stand for the series whatever their numbers are.
    let mut raw = Vec::new();
    for n in &refs {
        if let Ok(s) = symbols.get(*n) {
            raw.extend_from_slice(&(s.len() as u32).to_le_bytes());
            raw.extend_from_slice(s.as_bytes());
        }
    }
    let build = || {
        let labels = symbols.labels(&refs)?;
        if labels.metric_name().is_empty() {
            return Err("series has no metric name".into());
        }
        Ok(labels)
    };
    let labels = match intern(&raw, &build) {
        Ok(l) => l,
        Err(reason) => {
            rejected.add_many((samples.len() as u64).max(1), reason);
            return Ok(());
        }
    };
    brought.samples += floats;
    brought.histograms += histograms;
    for b in exemplars {
        if let Ok(e) = read_exemplar(b, symbols)? {
            brought.exemplars += 1;
            out.exemplars.push((labels.clone(), e));
        }
    }
    if let Some(m) = metadata
        && let Some(m) = read_metadata(m, symbols, labels.metric_name())?
    {
        out.metadata.push(m);
    }
    out.points.extend(samples.into_iter().map(|s| (labels.clone(), s)));
    Ok(())
}

fn read_exemplar(
    bytes: &[u8],
    symbols: &Symbols<'_>,
) -> Result<Result<Exemplar, String>, DecodeError> {
    let mut refs = Vec::new();
    let (mut value, mut time) = (0.0, 0);
    let mut r = Reader(bytes);
    while let Some((number, field)) = r.field()? {
        match (number, field) {
            (1, f) => numbers(&f, &mut refs)?,
            (2, Field::Fixed64(v)) => value = f64::from_bits(v),
            (3, Field::Varint(v)) => time = v as i64,
            _ => {}
        }
    }
    Ok(symbols.labels(&refs).map(|labels| Exemplar { labels, value, timestamp_ms: Some(time) }))
}

fn read_metadata(
    bytes: &[u8],
    symbols: &Symbols<'_>,
    metric: &str,
) -> Result<Option<MetricMetadata>, DecodeError> {
    let (mut kind, mut help, mut unit) = (MetricKind::Unknown, "", "");
    let mut r = Reader(bytes);
    let text = |v: u64| u32::try_from(v).ok().and_then(|n| symbols.get(n).ok()).unwrap_or("");
    while let Some((number, field)) = r.field()? {
        match (number, field) {
            (1, Field::Varint(v)) => kind = kind_of(v),
            (3, Field::Varint(v)) => help = text(v),
            (4, Field::Varint(v)) => unit = text(v),
            _ => {}
        }
    }
    if kind == MetricKind::Unknown && help.is_empty() && unit.is_empty() {
        return Ok(None);
    }
    // The family is named without the suffixes of its series.
    let mut name = metric;
    if matches!(kind, MetricKind::Histogram | MetricKind::Summary) {
        for suffix in ["_bucket", "_sum", "_count"] {
            name = name.strip_suffix(suffix).unwrap_or(name);
        }
    }
    let (name, help, unit) = (name.to_owned(), help.to_owned(), unit.to_owned());
    Ok(Some(MetricMetadata { name, kind, help, unit }))
}

/// The texts of a request being written, each once.
struct Texts<'a> {
    places: HashMap<&'a str, u32>,
    list: Vec<&'a str>,
}

impl<'a> Texts<'a> {
    fn place(&mut self, text: &'a str) -> u32 {
        *self.places.entry(text).or_insert_with(|| {
            self.list.push(text);
            self.list.len() as u32 - 1
        })
    }
}

/// Finds what is known of a series' metric: under its own name, or that of its family.
fn about<'m>(name: &str, known: &'m HashMap<String, MetricMetadata>) -> Option<&'m MetricMetadata> {
    let family = || {
        let suffixes = ["_bucket", "_sum", "_count", "_total", "_info"];
        known.get(suffixes.iter().find_map(|s| name.strip_suffix(s))?)
    };
    known.get(name).or_else(family)
}

/// Encodes a request, before snappy, with what is known of its metrics by family. Neighbouring samples
/// of one series share an entry.
pub fn encode(points: &[(Labels, Sample)], known: &HashMap<String, MetricMetadata>) -> Vec<u8> {
    let mut texts = Texts { places: HashMap::from([("", 0)]), list: vec![""] };
    let mut all = Vec::new();
    for run in points.chunk_by(|a, b| a.0 == b.0) {
        let Some((labels, _)) = run.first() else { continue };
        let mut series = Vec::new();
        let mut refs = Vec::new();
        for text in labels.iter().flat_map(|(n, v)| [n, v]) {
            put_varint(&mut refs, texts.place(text).into());
        }
        put_bytes(&mut series, 1, &refs);
        for (_, s) in run {
            put_sample(&mut series, s, 3);
        }
        if let Some(m) = about(labels.metric_name(), known) {
            let mut entry = Vec::new();
            let (help, unit) = (texts.place(&m.help), texts.place(&m.unit));
            for (number, v) in [(1, number_of(m.kind)), (3, help.into()), (4, unit.into())] {
                put_varint(&mut entry, number << 3);
                put_varint(&mut entry, v);
            }
            put_bytes(&mut series, 5, &entry);
        }
        put_bytes(&mut all, 5, &series);
    }
    let mut out = Vec::new();
    for text in &texts.list {
        put_bytes(&mut out, 4, text.as_bytes());
    }
    out.extend(all);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    struct Point {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(int64, tag = "2")]
        time: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct WireExemplar {
        #[prost(uint32, repeated, tag = "1")]
        refs: Vec<u32>,
        #[prost(double, tag = "2")]
        value: f64,
        #[prost(int64, tag = "3")]
        time: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Metadata {
        #[prost(int32, tag = "1")]
        kind: i32,
        #[prost(uint32, tag = "3")]
        help: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Series {
        #[prost(uint32, repeated, tag = "1")]
        refs: Vec<u32>,
        #[prost(message, repeated, tag = "2")]
        samples: Vec<Point>,
        #[prost(message, repeated, tag = "4")]
        exemplars: Vec<WireExemplar>,
        #[prost(message, optional, tag = "5")]
        metadata: Option<Metadata>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Request {
        #[prost(string, repeated, tag = "4")]
        symbols: Vec<String>,
        #[prost(message, repeated, tag = "5")]
        series: Vec<Series>,
    }

    #[test]
    fn symbols_become_labels() {
        let symbols = ["", "__name__", "m_total", "a", "b", "help", "trace_id", "t"];
        let point = |value, time| Point { value, time };
        let r = Request {
            symbols: symbols.iter().map(|s| (*s).to_owned()).collect(),
            series: vec![
                Series {
                    refs: vec![1, 2, 3, 4],
                    samples: vec![point(1.5, 7), point(2.5, 8)],
                    exemplars: vec![WireExemplar { refs: vec![6, 7], value: 9.0, time: 7 }],
                    metadata: Some(Metadata { kind: 1, help: 5 }),
                },
                Series { refs: vec![1, 99], samples: vec![point(1.0, 1)], ..Series::default() },
                Series { refs: vec![3, 4], samples: vec![point(1.0, 1)], ..Series::default() },
                Series { refs: vec![1, 2], ..Series::default() },
            ],
        };
        let bytes = r.encode_to_vec();
        let (d, n) = decode(&bytes, &mut |_, build| build()).unwrap();
        assert_eq!(d.items.points.len(), 2);
        assert_eq!(d.items.points[0].0.to_string(), "m_total{a=\"b\"}");
        assert_eq!(d.items.exemplars[0].1.labels.get("trace_id"), "t");
        assert_eq!(
            (d.items.metadata[0].name.as_str(), d.items.metadata[0].kind),
            ("m_total", MetricKind::Counter)
        );
        assert_eq!(d.rejected.count, 3);
        assert_eq!(n, Brought { samples: 2, histograms: 0, exemplars: 1 });
        for cut in 0..bytes.len() {
            let _ = decode(&bytes[..cut], &mut |_, build| build());
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let series = |n: &str, i: &str| Labels::from_pairs([("__name__", n), ("i", i)]);
        let histogram = obs_model::Histogram { count: 3.0, sum: 4.5, ..Default::default() };
        let value = obs_model::SampleValue::Histogram(histogram.into());
        let at = obs_model::TimestampMs::from_millis(7);
        let points = vec![
            (series("a_total", "1"), Sample::float(5, 1.5)),
            (series("a_total", "1"), Sample::float(6, f64::INFINITY)),
            (series("a_total", "2"), Sample::float(-5, 0.0)),
            (series("h", "1"), Sample { timestamp: at, value }),
            (series("unknown", ""), Sample::float(5, 2.0)),
        ];
        let about = |name: &str, kind, help: &str| {
            let (name, help, unit) = (name.to_owned(), help.to_owned(), "s".to_owned());
            (name.clone(), MetricMetadata { name, kind, help, unit })
        };
        let known = HashMap::from([
            about("a", MetricKind::Counter, "A."),
            about("h", MetricKind::Histogram, "Hs."),
        ]);
        let bytes = encode(&points, &known);
        let (d, brought) = decode(&bytes, &mut |_, build| build()).unwrap();
        assert!(d.rejected.count == 0, "{:?}", d.rejected);
        assert_eq!(d.items.points, points);
        assert_eq!(brought, Brought { samples: 4, histograms: 1, exemplars: 0 });
        let told: Vec<_> =
            d.items.metadata.iter().map(|m| (m.name.as_str(), m.kind, m.help.as_str())).collect();
        let counter = ("a_total", MetricKind::Counter, "A.");
        assert_eq!(told, [counter, counter, ("h", MetricKind::Histogram, "Hs.")]);
        let names = bytes.windows(7).filter(|w| w == b"a_total").count();
        assert_eq!(names, 1, "each text is there once");
    }
}
