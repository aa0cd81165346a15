//! Prometheus remote read: requests, answers in samples, answers in streamed chunks.

use crate::DecodeError;
use crate::remote_write::{Span, WireHistogram};
use obs_model::{
    CUSTOM_BUCKETS_SCHEMA, Histogram, Labels, MatchOp, Matcher, ResetHint, Sample, SampleValue,
    Series,
};
use prost::Message;

/// Samples of a chunk; Prometheus' own chunks hold as many.
const CHUNK_SAMPLES: usize = 120;
/// Bytes of chunks past which a frame is sent.
const FRAME_BYTES: usize = 1 << 20;

#[derive(Clone, PartialEq, Message)]
struct WireMatcher {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireQuery {
    #[prost(int64, tag = "1")]
    start: i64,
    #[prost(int64, tag = "2")]
    end: i64,
    #[prost(message, repeated, tag = "3")]
    matchers: Vec<WireMatcher>,
}

#[derive(Clone, PartialEq, Message)]
struct WireRequest {
    #[prost(message, repeated, tag = "1")]
    queries: Vec<WireQuery>,
    #[prost(int32, repeated, tag = "2")]
    accepted: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct WireLabel {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireSample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct WireSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<WireLabel>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<WireSample>,
    #[prost(message, repeated, tag = "4")]
    histograms: Vec<WireHistogram>,
}

#[derive(Clone, PartialEq, Message)]
struct WireResult {
    #[prost(message, repeated, tag = "1")]
    series: Vec<WireSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct WireResponse {
    #[prost(message, repeated, tag = "1")]
    results: Vec<WireResult>,
}

#[derive(Clone, PartialEq, Message)]
struct WireChunk {
    #[prost(int64, tag = "1")]
    min: i64,
    #[prost(int64, tag = "2")]
    max: i64,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(bytes = "vec", tag = "4")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct WireChunked {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<WireLabel>,
    #[prost(message, repeated, tag = "2")]
    chunks: Vec<WireChunk>,
}

#[derive(Clone, PartialEq, Message)]
struct WireFrame {
    #[prost(message, repeated, tag = "1")]
    series: Vec<WireChunked>,
    #[prost(int64, tag = "2")]
    query: i64,
}

/// One query of a request; times in milliseconds, both ends included.
#[derive(Debug, Clone)]
pub struct ReadQuery {
    pub start: i64,
    pub end: i64,
    pub matchers: Vec<Matcher>,
}

/// A request.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    pub queries: Vec<ReadQuery>,
    /// Whether the reader would rather have chunks than samples.
    pub wants_chunks: bool,
}

/// Decodes a request after snappy.
///
/// # Errors
/// When it is no such message or a matcher is wrong.
pub fn decode(body: &[u8]) -> Result<ReadRequest, DecodeError> {
    let fail = |reason: String| DecodeError { format: "remote read protobuf", reason };
    let wire = WireRequest::decode(body).map_err(|e| fail(e.to_string()))?;
    let mut queries = Vec::with_capacity(wire.queries.len());
    for q in wire.queries {
        let mut matchers = Vec::with_capacity(q.matchers.len());
        for m in q.matchers {
            let op = match m.kind {
                0 => MatchOp::Equal,
                1 => MatchOp::NotEqual,
                2 => MatchOp::Regex,
                3 => MatchOp::NotRegex,
                other => return Err(fail(format!("unknown matcher type {other}"))),
            };
            matchers.push(Matcher::new(m.name, op, m.value).map_err(|e| fail(e.to_string()))?);
        }
        queries.push(ReadQuery { start: q.start, end: q.end, matchers });
    }
    // Types are in order of preference; 0 is samples, 1 is chunks.
    let wants_chunks = wire.accepted.iter().find(|t| matches!(**t, 0 | 1)) == Some(&1);
    Ok(ReadRequest { queries, wants_chunks })
}

fn labels(l: &Labels) -> Vec<WireLabel> {
    l.iter().map(|(n, v)| WireLabel { name: n.into(), value: v.into() }).collect()
}

fn spans(buckets: &[(i32, f64)]) -> (Vec<Span>, Vec<f64>) {
    let mut out: Vec<Span> = Vec::new();
    let mut next = 0;
    for (index, _) in buckets {
        match out.last_mut() {
            Some(s) if *index == next => s.length += 1,
            _ => out.push(Span { offset: index - next, length: 1 }),
        }
        next = index + 1;
    }
    (out, buckets.iter().map(|b| b.1).collect())
}

fn histogram(h: &Histogram, timestamp: i64) -> WireHistogram {
    let (positive_spans, positive_counts) = spans(&h.positive);
    let (negative_spans, negative_counts) = spans(&h.negative);
    let custom = h.schema == CUSTOM_BUCKETS_SCHEMA;
    WireHistogram {
        count_float: Some(h.count),
        sum: h.sum,
        schema: h.schema,
        zero_threshold: h.zero_threshold,
        zero_count_float: Some(h.zero_count),
        negative_spans,
        negative_counts,
        positive_spans,
        positive_counts,
        reset_hint: match h.reset_hint {
            ResetHint::Unknown => 0,
            ResetHint::Reset => 1,
            ResetHint::NoReset => 2,
            ResetHint::Gauge => 3,
        },
        timestamp,
        custom_values: if custom { h.custom_bounds.clone() } else { Vec::new() },
        ..WireHistogram::default()
    }
}

/// Encodes a histogram as remote write and remote read send it.
pub(crate) fn histogram_bytes(h: &Histogram, timestamp: i64) -> Vec<u8> {
    histogram(h, timestamp).encode_to_vec()
}

/// Encodes an answer in samples, before snappy: the series of each query.
pub fn encode_samples(results: &[Vec<Series>]) -> Vec<u8> {
    let series = |s: &Series| {
        let mut out = WireSeries { labels: labels(&s.labels), ..WireSeries::default() };
        for x in &s.samples {
            let timestamp = x.timestamp.millis();
            match &x.value {
                SampleValue::Float(value) => {
                    out.samples.push(WireSample { value: *value, timestamp })
                }
                SampleValue::Histogram(h) => out.histograms.push(histogram(h, timestamp)),
            }
        }
        out
    };
    let result = |list: &Vec<Series>| WireResult { series: list.iter().map(series).collect() };
    WireResponse { results: results.iter().map(result).collect() }.encode_to_vec()
}

/// Bits from the highest on, as Prometheus' chunks are written.
#[derive(Default)]
struct Bits {
    out: Vec<u8>,
    free: u8,
}

impl Bits {
    fn bit(&mut self, one: bool) {
        if self.free == 0 {
            self.out.push(0);
            self.free = 8;
        }
        self.free -= 1;
        if one && let Some(last) = self.out.last_mut() {
            *last |= 1 << self.free;
        }
    }

    fn bits(&mut self, value: u64, n: u8) {
        for i in (0..n).rev() {
            self.bit((value >> i) & 1 == 1);
        }
    }

    fn byte(&mut self, b: u8) {
        self.bits(u64::from(b), 8);
    }

    fn varint(&mut self, v: i64) {
        self.uvarint(((v << 1) ^ (v >> 63)) as u64);
    }

    fn uvarint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.byte((v as u8) | 0x80);
            v >>= 7;
        }
        self.byte(v as u8);
    }
}

/// Encodes floats as a Gorilla chunk: the count, then times and values as changes.
fn xor_chunk(samples: &[(i64, f64)]) -> Vec<u8> {
    let mut b = Bits::default();
    b.bits(samples.len() as u64, 16);
    let (mut t, mut delta, mut before) = (0_i64, 0_i64, 0_u64);
    // No window of meaningful bits yet.
    let (mut leading, mut trailing) = (0xff_u8, 0_u8);
    for (i, (time, value)) in samples.iter().enumerate() {
        let bits = value.to_bits();
        match i {
            0 => {
                b.varint(*time);
                b.bits(bits, 64);
            }
            1 => {
                delta = time.wrapping_sub(t);
                b.uvarint(delta as u64);
                xor_value(&mut b, bits ^ before, &mut leading, &mut trailing);
            }
            _ => {
                let new = time.wrapping_sub(t);
                let dod = new.wrapping_sub(delta);
                delta = new;
                let fits = |n: u32| -((1_i64 << (n - 1)) - 1) <= dod && dod <= 1_i64 << (n - 1);
                if dod == 0 {
                    b.bit(false);
                } else if fits(14) {
                    b.bits(0b10, 2);
                    b.bits(dod as u64, 14);
                } else if fits(17) {
                    b.bits(0b110, 3);
                    b.bits(dod as u64, 17);
                } else if fits(20) {
                    b.bits(0b1110, 4);
                    b.bits(dod as u64, 20);
                } else {
                    b.bits(0b1111, 4);
                    b.bits(dod as u64, 64);
                }
                xor_value(&mut b, bits ^ before, &mut leading, &mut trailing);
            }
        }
        t = *time;
        before = bits;
    }
    b.out
}

fn xor_value(b: &mut Bits, xor: u64, leading: &mut u8, trailing: &mut u8) {
    if xor == 0 {
        b.bit(false);
        return;
    }
    b.bit(true);
    let new_leading = (xor.leading_zeros() as u8).min(31);
    let new_trailing = xor.trailing_zeros() as u8;
    if *leading != 0xff && new_leading >= *leading && new_trailing >= *trailing {
        b.bit(false);
        b.bits(xor >> *trailing, 64 - *leading - *trailing);
        return;
    }
    (*leading, *trailing) = (new_leading, new_trailing);
    b.bit(true);
    b.bits(u64::from(new_leading), 5);
    let significant = 64 - new_leading - new_trailing;
    // 64 does not fit six bits and is written as 0.
    b.bits(u64::from(significant), 6);
    b.bits(xor >> new_trailing, significant);
}

fn frame(out: &mut Vec<u8>, message: &WireFrame) {
    let data = message.encode_to_vec();
    let mut n = data.len() as u64;
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out.extend_from_slice(&crc32c::crc32c(&data).to_be_bytes());
    out.extend_from_slice(&data);
}

/// Encodes an answer in chunks; `None` when there are native histograms, which go as samples.
pub fn encode_chunks(results: &[Vec<Series>]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for (query, list) in results.iter().enumerate() {
        for s in list {
            let float = |x: &Sample| match x.value {
                SampleValue::Float(f) => Some((x.timestamp.millis(), f)),
                SampleValue::Histogram(_) => None,
            };
            let floats: Vec<(i64, f64)> = s.samples.iter().map(float).collect::<Option<_>>()?;
            let mut pending = Vec::new();
            let mut size = 0;
            let send = |chunks: Vec<WireChunk>, out: &mut Vec<u8>| {
                let series = WireChunked { labels: labels(&s.labels), chunks };
                frame(out, &WireFrame { series: vec![series], query: query as i64 });
            };
            for part in floats.chunks(CHUNK_SAMPLES) {
                let data = xor_chunk(part);
                let (min, max) = (part.first()?.0, part.last()?.0);
                size += data.len();
                pending.push(WireChunk { min, max, kind: 1, data });
                if size > FRAME_BYTES {
                    send(std::mem::take(&mut pending), &mut out);
                    size = 0;
                }
            }
            if !pending.is_empty() {
                send(pending, &mut out);
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::TimestampMs;

    /// Reads bits of a chunk.
    struct In<'a>(&'a [u8], usize);

    impl In<'_> {
        fn bits(&mut self, n: usize) -> u64 {
            (0..n).fold(0, |v, _| {
                let bit = (self.0[self.1 / 8] >> (7 - self.1 % 8)) & 1;
                self.1 += 1;
                (v << 1) | u64::from(bit)
            })
        }

        fn uvarint(&mut self) -> u64 {
            let (mut v, mut shift) = (0, 0);
            loop {
                let b = self.bits(8);
                v |= (b & 0x7f) << shift;
                if b < 0x80 {
                    return v;
                }
                shift += 7;
            }
        }
    }

    fn decode_chunk(data: &[u8]) -> Vec<(i64, f64)> {
        let mut r = In(data, 0);
        let n = r.bits(16);
        let mut out: Vec<(i64, f64)> = Vec::new();
        let (mut delta, mut leading, mut trailing) = (0_i64, 0, 0);
        for i in 0..n {
            if i == 0 {
                let z = r.uvarint();
                let t = ((z >> 1) as i64) ^ -((z & 1) as i64);
                out.push((t, f64::from_bits(r.bits(64))));
                continue;
            }
            let (t, v) = *out.last().unwrap();
            if i == 1 {
                delta = r.uvarint() as i64;
            } else {
                let mut prefix = 0;
                while prefix < 4 && r.bits(1) == 1 {
                    prefix += 1;
                }
                let size = [0, 14, 17, 20, 64][prefix];
                if size > 0 {
                    let mut d = r.bits(size) as i64;
                    if size < 64 && d > 1 << (size - 1) {
                        d -= 1 << size;
                    }
                    delta += d;
                }
            }
            let mut bits = v.to_bits();
            if r.bits(1) == 1 {
                if r.bits(1) == 1 {
                    leading = r.bits(5) as usize;
                    let mut sig = r.bits(6) as usize;
                    if sig == 0 {
                        sig = 64;
                    }
                    trailing = 64 - leading - sig;
                }
                bits ^= r.bits(64 - leading - trailing) << trailing;
            }
            out.push((t + delta, f64::from_bits(bits)));
        }
        out
    }

    #[test]
    fn chunks_come_back() {
        let samples: Vec<(i64, f64)> = (0..120)
            .map(|i| {
                (1_700_000_000_000 + i * 15_000 + (i * i) % 7000, (i as f64 * 0.37).sin() * 1e3)
            })
            .chain([
                (1_800_000_000_000, f64::NAN),
                (1_800_000_000_001, -0.0),
                (1_800_000_000_001 + (1 << 40), 0.0),
            ])
            .collect();
        let got = decode_chunk(&xor_chunk(&samples));
        let bits = |l: &[(i64, f64)]| l.iter().map(|(t, f)| (*t, f.to_bits())).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&samples));
    }

    #[test]
    fn requests_and_answers() {
        let request = WireRequest {
            queries: vec![WireQuery {
                start: 1,
                end: 2,
                matchers: vec![WireMatcher { kind: 2, name: "a".into(), value: "b.*".into() }],
            }],
            accepted: vec![1, 0],
        };
        let got = decode(&request.encode_to_vec()).unwrap();
        assert!(got.wants_chunks && got.queries[0].matchers[0].matches("bc"));
        assert!(decode(b"\x0a\xff").is_err());
        let series = Series {
            labels: Labels::from_pairs([("__name__", "m")]),
            samples: vec![Sample::float(5, 1.5)],
        };
        let out = WireResponse::decode(&*encode_samples(&[vec![series.clone()]])).unwrap();
        assert_eq!(out.results[0].series[0].samples[0].value, 1.5);
        let h = Histogram { positive: vec![(1, 2.0), (2, 3.0), (5, 1.0)], ..Histogram::default() };
        let mut with = series;
        with.samples.push(Sample {
            timestamp: TimestampMs::from_millis(6),
            value: SampleValue::Histogram(h.into()),
        });
        let out = WireResponse::decode(&*encode_samples(&[vec![with.clone()]])).unwrap();
        let wire = &out.results[0].series[0].histograms[0];
        let spans: Vec<_> = wire.positive_spans.iter().map(|s| (s.offset, s.length)).collect();
        assert_eq!(spans, [(1, 2), (2, 1)]);
        assert!(encode_chunks(&[vec![with]]).is_none());
    }
}
