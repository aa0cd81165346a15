//! Blocks of sample chunks.
//!
//! A block holds the chunks of neighbouring series: their times (each distinct list of times
//! once, since the series of one scrape share it), the entropy coder's tables, and each chunk's
//! values, readable alone.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{get_histogram, put_histogram};
use crate::segment::ans::{Counts, Step, Tables};
use crate::segment::columns::zstd_unpack;
use crate::segment::floats::{CONTEXTS, Floats, Lane, decode_lanes, put_floats};
use crate::segment::kept::{Columns, Taken};
use foldhash::HashMap;
use obs_model::{Floats as FloatColumn, Sample, SampleValue, Samples, SharedSlice, TimestampMs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

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
    /// Whether a query read it.
    was_read: AtomicBool,
    /// Its floats, once they were read twice: what is looked at once takes no memory.
    values: OnceLock<Arc<[f64]>>,
}

/// A decoded block head; chunks are decoded on demand.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    body_at: usize,
    times: Vec<Arc<[i64]>>,
    tables: Tables,
    chunks: Vec<Chunk>,
    /// By values of chunks.
    taken: Taken,
}

/// A head larger than this is damage.
const HEAD_BYTES_MAX: usize = 64 << 20;

impl Columns for Block {
    fn bytes(&self) -> usize {
        let times: usize = self.times.iter().map(|t| t.len() * size_of::<i64>()).sum();
        let chunks = self.chunks.capacity() * size_of::<Chunk>();
        self.bytes.len() + times + self.tables.bytes() + chunks + self.taken.get()
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
        let times = (0..d.len()?)
            .map(|_| Ok(get_times(&mut d)?.into()))
            .collect::<Result<Vec<_>, Malformed>>()?;
        let tables = Tables::read(CONTEXTS, &mut d)?;
        let mut at = 0_usize;
        let mut chunks = Vec::new();
        for _ in 0..d.len()? {
            let list = d.len_free()?;
            let kind = match d.u8()? {
                0 => Kind::Floats(Floats::read(&mut d)?),
                1 => Kind::Histograms(d.len_free()?),
                _ => return Err(d.bad()),
            };
            let len = d.len_free()?;
            let (was_read, values) = (AtomicBool::new(false), OnceLock::new());
            let body = at..at.saturating_add(len);
            chunks.push(Chunk { times: list, kind, body, was_read, values });
            at = at.saturating_add(len);
        }
        Ok(Self { body_at, times, tables, chunks, bytes, taken: Taken::default() })
    }

    /// Returns the samples in `[start, end]` of chunks, at most [`LANES`].
    pub(crate) fn read_chunks(
        &self,
        chunks: &[usize],
        range: (i64, i64),
        scratch: &mut Scratch,
    ) -> Result<[Samples; LANES], Malformed> {
        let mut out: [Samples; LANES] = Default::default();
        let mut lanes: [Option<(usize, Part<'_>, Lane<'_>)>; LANES] = Default::default();
        let mut free = lanes.iter_mut();
        for (place, number) in chunks.iter().take(LANES).enumerate() {
            let part = self.part(*number, range)?;
            if part.from >= part.to {
                continue;
            }
            if let Some(values) = part.chunk.values.get() {
                if let Some(out) = out.get_mut(place) {
                    *out = part.of_all(values.clone());
                }
                continue;
            }
            let lane = match &part.chunk.kind {
                Kind::Floats(f) if f.is_coded() => f.lane(self.tables.decoder(part.body)?),
                _ => None,
            };
            match lane {
                Some(lane) => {
                    if let Some(free) = free.next() {
                        *free = Some((place, part, lane));
                    }
                }
                None => {
                    if let Some(out) = out.get_mut(place) {
                        *out = self.read_alone(&part, scratch)?;
                    }
                }
            }
        }
        // Two by two where four are not there.
        let [a, b, c, d] = lanes;
        match (a, b, c, d) {
            (Some(a), Some(b), Some(c), Some(d)) => self.decode([a, b, c, d], scratch, &mut out)?,
            (Some(a), Some(b), c, _) => {
                self.decode([a, b], scratch, &mut out)?;
                c.map_or(Ok(()), |c| self.decode([c], scratch, &mut out))?;
            }
            (Some(a), ..) => self.decode([a], scratch, &mut out)?,
            _ => (),
        }
        Ok(out)
    }

    /// Finds a chunk, and which of its samples are in `[start, end]`.
    fn part(&self, number: usize, (start, end): (i64, i64)) -> Result<Part<'_>, Malformed> {
        let chunk = self.chunks.get(number).ok_or(Malformed(number))?;
        let times = self.times.get(chunk.times).ok_or(Malformed(number))?;
        // Times ascend.
        let from = times.partition_point(|t| *t < start);
        let to = times.partition_point(|t| *t <= end).max(from);
        let end = self.body_at.saturating_add(chunk.body.end);
        if end > self.bytes.len() {
            return Err(Malformed(number));
        }
        // A sequence's end is not looked at: where four more bytes follow, four are read at once.
        let body = self.bytes.get(self.body_at + chunk.body.start..).ok_or(Malformed(number))?;
        Ok(Part { chunk, times, body, from, to })
    }

    /// Decodes chunks side by side.
    fn decode<const N: usize>(
        &self,
        parts: [(usize, Part<'_>, Lane<'_>); N],
        scratch: &mut Scratch,
        out: &mut [Samples; LANES],
    ) -> Result<(), Malformed> {
        let mut wanted = Vec::with_capacity(N);
        let lanes = parts.map(|(place, part, lane)| {
            let is_kept = part.chunk.was_read.swap(true, Ordering::Relaxed);
            wanted.push((place, part, is_kept));
            lane
        });
        // Behind the last that is wanted nothing is decoded, unless all will be.
        for ((_, part, is_kept), room) in wanted.iter().zip(scratch.iter_mut()) {
            room.resize(if *is_kept { part.times.len() } else { part.to }, 0.0);
        }
        let mut room = scratch.iter_mut();
        decode_lanes(lanes, [(); N].map(|()| room.next().map_or(&mut [][..], |v| v)))?;
        for ((place, part, is_kept), values) in wanted.iter().zip(scratch.iter_mut()) {
            if let Kind::Floats(f) = &part.chunk.kind {
                f.put_exceptions(values);
            }
            let samples = if *is_kept { self.keep(part, values) } else { part.samples(values) };
            if let Some(out) = out.get_mut(*place) {
                *out = samples;
            }
        }
        Ok(())
    }

    /// Keeps all values of a chunk for the next query.
    fn keep(&self, part: &Part<'_>, values: &[f64]) -> Samples {
        // Another query may have kept them meanwhile.
        let kept = part.chunk.values.get_or_init(|| {
            self.taken.add(size_of_val(values));
            values.into()
        });
        part.of_all(kept.clone())
    }

    fn read_alone(&self, part: &Part<'_>, scratch: &mut Scratch) -> Result<Samples, Malformed> {
        let floats = match &part.chunk.kind {
            Kind::Floats(floats) => floats,
            Kind::Histograms(raw_len) => {
                let body = part.body.get(..part.chunk.body.len()).ok_or(Malformed(0))?;
                let raw_len = Some(*raw_len).filter(|n| *n <= HEAD_BYTES_MAX);
                let raw = raw_len.and_then(|n| zstd_unpack(body, n)).ok_or(Malformed(0))?;
                let mut d = Decoder::new(&raw);
                let mut found = Vec::with_capacity(part.to - part.from);
                for (i, t) in part.times.iter().enumerate().take(part.to) {
                    let h = get_histogram(&mut d)?;
                    if i >= part.from {
                        let value = SampleValue::Histogram(Arc::new(h));
                        found.push(Sample { timestamp: TimestampMs::from_millis(*t), value });
                    }
                }
                return Ok(Samples::Mixed(found));
            }
        };
        let sequence = if floats.is_coded() { Some(self.tables.decoder(part.body)?) } else { None };
        let [values, ..] = scratch;
        values.clear();
        floats.clone().decode(part.times.len(), sequence, values)?;
        let is_kept = floats.is_coded() && part.chunk.was_read.swap(true, Ordering::Relaxed);
        Ok(if is_kept { self.keep(part, values) } else { part.samples(values) })
    }
}

/// Chunks that are decoded side by side.
pub(crate) const LANES: usize = 4;

/// Room for the values of chunks.
pub(crate) type Scratch = [Vec<f64>; LANES];

/// A chunk, and which of its samples are wanted.
#[derive(Debug)]
struct Part<'a> {
    chunk: &'a Chunk,
    times: &'a Arc<[i64]>,
    /// From the chunk's first byte on.
    body: &'a [u8],
    from: usize,
    to: usize,
}

impl Part<'_> {
    /// Returns those that are wanted of a chunk's values.
    fn samples(&self, values: &[f64]) -> Samples {
        let values = values.get(self.from..self.to).unwrap_or_default().to_vec();
        self.with(SharedSlice::Own(values))
    }

    /// Like [`Self::samples`], of values that are kept.
    fn of_all(&self, list: Arc<[f64]>) -> Samples {
        self.with(SharedSlice::Shared { list, from: self.from, to: self.to })
    }

    fn with(&self, values: SharedSlice<f64>) -> Samples {
        let times = SharedSlice::Shared { list: self.times.clone(), from: self.from, to: self.to };
        Samples::Floats(FloatColumn { times, values })
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
        let is_histogram = |s: &Sample| matches!(s.value, SampleValue::Histogram(_));
        let bytes = b.finish().unwrap();
        let block = Block::parse(bytes).unwrap();
        let mut scratch = Scratch::default();
        let all: Vec<usize> = (0..want.len()).rev().collect();
        let ranges = [(i64::MIN, i64::MAX), (3_000_000, 7_000_000), (0, 0)];
        for ((start, end), together) in
            ranges.iter().flat_map(|r| (1..=LANES).map(move |n| (*r, n)))
        {
            for numbers in all.chunks(together) {
                let found = block.read_chunks(numbers, (start, end), &mut scratch).unwrap();
                for (number, got) in numbers.iter().zip(found) {
                    let inside = |s: &&Sample| (start..=end).contains(&s.timestamp.millis());
                    let want: Vec<Sample> = want[*number].iter().filter(inside).cloned().collect();
                    assert_eq!(got.into_vec(), want);
                }
            }
        }
        // What was read more than once stays, and is counted.
        let is_coded = |w: &&Vec<Sample>| !is_histogram(&w[0]) && w[0].value != w[1].value;
        let floats: usize = want.iter().filter(is_coded).map(Vec::len).sum();
        assert_eq!(block.taken.get(), floats * size_of::<f64>());
    }
}
