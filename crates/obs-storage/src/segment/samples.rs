//! Blocks of sample chunks.
//!
//! A block holds the chunks of neighbouring series: their times (each distinct list of times
//! once, since the series of one scrape share it), the entropy coder's tables, and each chunk's
//! values, readable alone.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{get_histogram, put_histogram};
use crate::segment::ans::{Counts, Step, Tables};
use crate::segment::columns::zstd_unpack;
use crate::segment::floats::{CONTEXTS, Floats, put_floats};
use crate::segment::kept::Columns;
use foldhash::HashMap;
use obs_model::{Sample, SampleValue, TimestampMs};
use std::sync::Arc;

/// Samples of one chunk at most: two hours at 15 s.
pub(crate) const CHUNK_SAMPLES: usize = 480;
/// Samples after which a block is closed.
pub(crate) const BLOCK_SAMPLES: usize = 64 << 10;

/// Gathers chunks into a block.
#[derive(Debug, Default)]
pub(crate) struct BlockBuilder {
    times: HashMap<Arc<[i64]>, usize>,
    time_lists: Vec<Arc<[i64]>>,
    chunks: Vec<Pending>,
    samples: usize,
}

#[derive(Debug)]
struct Pending {
    times: usize,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Floats { parameters: Vec<u8>, steps: Vec<Step> },
    Histograms(Vec<u8>),
}

impl BlockBuilder {
    /// Adds a chunk: samples of one kind in time order, at most [`CHUNK_SAMPLES`].
    pub(crate) fn push(&mut self, samples: &[Sample]) {
        let times: Arc<[i64]> = samples.iter().map(|s| s.timestamp.millis()).collect();
        let next = self.time_lists.len();
        let index = *self.times.entry(times.clone()).or_insert(next);
        if index == next {
            self.time_lists.push(times);
        }
        let mut e = Encoder::default();
        let mut floats = Vec::with_capacity(samples.len());
        for s in samples {
            match &s.value {
                SampleValue::Float(f) => floats.push(*f),
                SampleValue::Histogram(h) => put_histogram(&mut e, h),
            }
        }
        let body = if floats.is_empty() {
            Body::Histograms(e.bytes)
        } else {
            let mut steps = Vec::with_capacity(samples.len());
            put_floats(&floats, &mut e, &mut steps);
            Body::Floats { parameters: e.bytes, steps }
        };
        self.samples += samples.len();
        self.chunks.push(Pending { times: index, body });
    }

    pub(crate) const fn samples(&self) -> usize {
        self.samples
    }

    pub(crate) const fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Returns the block's bytes and empties the builder.
    pub(crate) fn finish(&mut self) -> Result<Vec<u8>, std::io::Error> {
        let mut head = Encoder::default();
        head.len(self.time_lists.len());
        for list in &self.time_lists {
            put_times(list, &mut head);
        }
        let mut counts = Counts::new(CONTEXTS);
        for c in &self.chunks {
            if let Body::Floats { steps, .. } = &c.body {
                counts.add(steps);
            }
        }
        let tables = Tables::write(&counts, &mut head);
        let mut body = Vec::new();
        head.len(self.chunks.len());
        for c in &self.chunks {
            head.len(c.times);
            let at = body.len();
            match &c.body {
                Body::Floats { parameters, steps } => {
                    head.u8(0);
                    head.bytes.extend_from_slice(parameters);
                    if !steps.is_empty() {
                        tables.encode(steps, &mut body);
                    }
                }
                Body::Histograms(bytes) => {
                    head.u8(1);
                    head.len(bytes.len());
                    body.extend_from_slice(&zstd::bulk::compress(bytes, 1)?);
                }
            }
            head.len(body.len() - at);
        }
        let packed = zstd::bulk::compress(&head.bytes, 3)?;
        let mut out = Encoder::default();
        out.len(head.bytes.len());
        out.raw(&packed);
        out.bytes.extend_from_slice(&body);
        *self = Self::default();
        Ok(out.bytes)
    }
}

/// Writes times as their first value and runs of equal changes of the interval.
fn put_times(list: &[i64], e: &mut Encoder) {
    e.len(list.len());
    let mut last = list.first().copied().unwrap_or_default();
    e.int(last);
    let mut interval = 0;
    let mut runs: Vec<(i64, u64)> = Vec::new();
    for t in list.iter().skip(1) {
        let change = t.wrapping_sub(last).wrapping_sub(interval);
        interval = t.wrapping_sub(last);
        last = *t;
        match runs.last_mut() {
            Some((c, n)) if *c == change => *n += 1,
            _ => runs.push((change, 1)),
        }
    }
    e.len(runs.len());
    for (change, n) in runs {
        e.int(change);
        e.uint(n);
    }
}

fn get_times(d: &mut Decoder<'_>) -> Result<Vec<i64>, Malformed> {
    // Runs make the count larger than the input; a chunk's size bounds it.
    let count = usize::try_from(d.uint()?).ok().filter(|n| *n <= CHUNK_SAMPLES).ok_or(d.bad())?;
    let mut last = d.int()?;
    let mut out = Vec::with_capacity(count);
    if count > 0 {
        out.push(last);
    }
    let mut interval = 0_i64;
    for _ in 0..d.len()? {
        let (change, n) = (d.int()?, d.uint()?);
        for _ in 0..n {
            if out.len() >= count {
                return Err(d.bad());
            }
            interval = interval.wrapping_add(change);
            last = last.wrapping_add(interval);
            out.push(last);
        }
    }
    if out.len() == count { Ok(out) } else { Err(d.bad()) }
}

#[derive(Debug)]
enum Kind {
    Floats(Floats),
    Histograms(usize),
}

#[derive(Debug)]
struct Chunk {
    times: usize,
    kind: Kind,
    body: std::ops::Range<usize>,
}

/// A decoded block head; chunks are decoded on demand.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    body_at: usize,
    times: Vec<Vec<i64>>,
    tables: Tables,
    chunks: Vec<Chunk>,
}

/// A head larger than this is damage.
const HEAD_BYTES_MAX: usize = 64 << 20;

impl Columns for Block {
    fn bytes(&self) -> usize {
        let times: usize = self.times.iter().map(|t| t.capacity() * size_of::<i64>()).sum();
        let chunks = self.chunks.capacity() * size_of::<Chunk>();
        self.bytes.len() + times + self.tables.bytes() + chunks
    }
}

impl Block {
    /// # Errors
    /// When the bytes are no block.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, Malformed> {
        let mut d = Decoder::new(&bytes);
        let raw_len =
            usize::try_from(d.uint()?).ok().filter(|n| *n <= HEAD_BYTES_MAX).ok_or(d.bad())?;
        let packed = d.raw()?;
        let body_at = d.at();
        let head = zstd_unpack(packed, raw_len).ok_or(d.bad())?;
        let mut d = Decoder::new(&head);
        let times = (0..d.len()?).map(|_| get_times(&mut d)).collect::<Result<Vec<_>, _>>()?;
        let tables = Tables::read(CONTEXTS, &mut d)?;
        let mut at = 0;
        let mut chunks = Vec::new();
        for _ in 0..d.len()? {
            let list = d.len_free()?;
            let kind = match d.u8()? {
                0 => Kind::Floats(Floats::read(&mut d)?),
                1 => Kind::Histograms(d.len_free()?),
                _ => return Err(d.bad()),
            };
            let len = d.len_free()?;
            chunks.push(Chunk { times: list, kind, body: at..at.saturating_add(len) });
            at = at.saturating_add(len);
        }
        Ok(Self { body_at, times, tables, chunks, bytes })
    }

    /// Appends the samples in `[start, end]` of a chunk.
    pub(crate) fn read_chunk(
        &self,
        chunk: usize,
        (start, end): (i64, i64),
        floats: &mut Vec<f64>,
        out: &mut Vec<Sample>,
    ) -> Result<(), Malformed> {
        let c = self.chunks.get(chunk).ok_or(Malformed(chunk))?;
        let times = self.times.get(c.times).ok_or(Malformed(chunk))?;
        let outside =
            times.first().is_none_or(|t| *t > end) || times.last().is_none_or(|t| *t < start);
        if outside {
            return Ok(());
        }
        let range = self.body_at + c.body.start..self.body_at.saturating_add(c.body.end);
        let body = self.bytes.get(range).ok_or(Malformed(chunk))?;
        let inside = |t: &i64| (start..=end).contains(t);
        match &c.kind {
            Kind::Floats(parameters) => {
                let sequence =
                    if parameters.is_coded() { Some(self.tables.decoder(body)?) } else { None };
                floats.clear();
                parameters.clone().decode(times.len(), sequence, floats)?;
                // Times ascend. An iterator of known length makes room once.
                let from = times.partition_point(|t| *t < start);
                let to = times.partition_point(|t| *t <= end).max(from);
                let times = times.get(from..to).unwrap_or_default();
                let values = floats.get(from..to).unwrap_or_default();
                out.extend(times.iter().zip(values).map(|(t, v)| Sample::float(*t, *v)));
            }
            Kind::Histograms(raw_len) => {
                let raw_len = Some(*raw_len).filter(|n| *n <= HEAD_BYTES_MAX);
                let raw = raw_len.and_then(|n| zstd_unpack(body, n));
                let raw = raw.ok_or(Malformed(chunk))?;
                let mut d = Decoder::new(&raw);
                for t in times {
                    let value = SampleValue::Histogram(Arc::new(get_histogram(&mut d)?));
                    if inside(t) {
                        out.push(Sample { timestamp: TimestampMs::from_millis(*t), value });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Splits samples in time order into chunks of one kind.
pub(crate) fn chunks(samples: &[Sample]) -> impl Iterator<Item = &[Sample]> {
    let same_kind = |a: &Sample, b: &Sample| {
        matches!(a.value, SampleValue::Float(_)) == matches!(b.value, SampleValue::Float(_))
    };
    samples.chunk_by(same_kind).flat_map(|run| run.chunks(CHUNK_SAMPLES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::Histogram;

    #[test]
    fn chunks_come_back_alone_and_by_time() {
        let series = |k: i64| -> Vec<Sample> {
            (0..1000)
                .map(|i| {
                    if i % 400 < 390 {
                        Sample::float(i * 15_000 + k, (i * i * k) as f64 / 8.0)
                    } else {
                        let h = Histogram { count: i as f64, ..Histogram::default() };
                        Sample {
                            timestamp: TimestampMs::from_millis(i * 15_000 + k),
                            value: SampleValue::Histogram(Arc::new(h)),
                        }
                    }
                })
                .collect()
        };
        let mut b = BlockBuilder::default();
        let mut want = Vec::new();
        for k in 0..20 {
            for c in chunks(&series(k)) {
                b.push(c);
                want.push(c.to_vec());
            }
        }
        let bytes = b.finish().unwrap();
        let block = Block::parse(bytes).unwrap();
        let mut floats = Vec::new();
        for (i, w) in want.iter().enumerate().rev() {
            let mut got = Vec::new();
            block.read_chunk(i, (i64::MIN, i64::MAX), &mut floats, &mut got).unwrap();
            assert_eq!(&got, w);
        }
    }
}
