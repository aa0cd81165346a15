//! Segments of samples: blocks of chunks in order of label sets, and pages of labels.
//!
//! A page lists up to 512 series: their labels (each distinct text once), the range of their
//! times, and which chunks are theirs. Pages carry the range of metric names, so that a selector
//! with a name reads few of them. Series with the same samples share their chunks: the `+Inf`
//! bucket of a histogram is its count.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::segment::SegmentError;
use crate::segment::columns::{get_packed, put_packed};
use crate::segment::file::{BlockRef, SegmentFile, SegmentWriter};
use crate::segment::kept::{Columns as _, Keeper, Kept, Piece};
use crate::segment::rows::{Damaged, Finished};
use crate::segment::samples::{BLOCK_SAMPLES, Block, BlockBuilder, LANES, Scratch, chunks};
use crate::vfs::Vfs;
use foldhash::HashMap;
use obs_model::{Labels, METRIC_NAME, MatchOp, Matcher, Sample, SampleValue, Samples};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::Path;
use std::sync::Arc;

const PAGE_SERIES: usize = 512;

#[derive(Debug)]
struct Entry {
    labels: Labels,
    first_chunk: u64,
    chunks: u64,
    min: i64,
    max: i64,
}

#[derive(Debug)]
struct BlockMeta {
    at: BlockRef,
    first_chunk: u64,
    chunks: u64,
    min: i64,
    max: i64,
}

#[derive(Debug)]
struct Page {
    at: BlockRef,
    first_name: String,
    last_name: String,
    min: i64,
    max: i64,
}

/// Writes a segment of samples; series come sorted by labels.
#[derive(Debug)]
pub(crate) struct SeriesWriter {
    out: SegmentWriter,
    block: BlockBuilder,
    block_bounds: (i64, i64),
    blocks: Vec<BlockMeta>,
    next_chunk: u64,
    entries: Vec<Entry>,
    pages: Vec<Page>,
    /// Contents seen: where the same samples already are.
    known: HashMap<(u64, u64), (u64, u64)>,
    keys: (RandomState, RandomState),
    samples: u64,
}

/// Contents remembered for sharing; beyond it series are written as they are.
const KNOWN_MAX: usize = 1 << 20;

impl SeriesWriter {
    pub(crate) fn create(vfs: &dyn Vfs, path: &Path) -> Result<Self, SegmentError> {
        Ok(Self {
            out: SegmentWriter::create(vfs, path)?,
            block: BlockBuilder::default(),
            block_bounds: (i64::MAX, i64::MIN),
            blocks: Vec::new(),
            next_chunk: 0,
            entries: Vec::new(),
            pages: Vec::new(),
            known: HashMap::default(),
            keys: Default::default(),
            samples: 0,
        })
    }

    fn content(&self, samples: &[Sample]) -> Option<(u64, u64)> {
        /// Shorter runs cost less than remembering them.
        const WORTH: usize = 16;
        if samples.len() < WORTH || self.known.len() >= KNOWN_MAX {
            return None;
        }
        let (mut a, mut b) = (self.keys.0.build_hasher(), self.keys.1.build_hasher());
        for s in samples {
            let SampleValue::Float(f) = s.value else { return None };
            for h in [&mut a, &mut b] {
                h.write_i64(s.timestamp.millis());
                h.write_u64(f.to_bits());
            }
        }
        Some((a.finish(), b.finish()))
    }

    /// Appends a series: samples in time order, one a timestamp.
    pub(crate) fn push(&mut self, labels: &Labels, samples: &[Sample]) -> Result<(), SegmentError> {
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Ok(()) };
        let (min, max) = (first.timestamp.millis(), last.timestamp.millis());
        self.samples += samples.len() as u64;
        let content = self.content(samples);
        let shared = content.and_then(|c| self.known.get(&c).copied());
        let (first_chunk, count) = match shared {
            Some(place) => place,
            None => {
                let first = self.next_chunk;
                for c in chunks(samples) {
                    self.block.push(c);
                    let times = c.first().zip(c.last());
                    if let Some((a, b)) = times {
                        let (lo, hi) = self.block_bounds;
                        self.block_bounds =
                            (lo.min(a.timestamp.millis()), hi.max(b.timestamp.millis()));
                    }
                    self.next_chunk += 1;
                    if self.block.samples() >= BLOCK_SAMPLES {
                        self.finish_block()?;
                    }
                }
                let place = (first, self.next_chunk - first);
                if let Some(c) = content {
                    self.known.insert(c, place);
                }
                place
            }
        };
        self.entries.push(Entry { labels: labels.clone(), first_chunk, chunks: count, min, max });
        if self.entries.len() >= PAGE_SERIES {
            self.finish_page()?;
        }
        Ok(())
    }

    fn finish_block(&mut self) -> Result<(), SegmentError> {
        let count = self.block.chunks() as u64;
        if count == 0 {
            return Ok(());
        }
        let at = self.out.put(&self.block.finish()?)?;
        let (min, max) = self.block_bounds;
        self.blocks.push(BlockMeta {
            at,
            first_chunk: self.next_chunk - count,
            chunks: count,
            min,
            max,
        });
        self.block_bounds = (i64::MAX, i64::MIN);
        Ok(())
    }

    fn finish_page(&mut self) -> Result<(), SegmentError> {
        let entries = std::mem::take(&mut self.entries);
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        let min = entries.iter().map(|e| e.min).min().unwrap_or_default();
        let max = entries.iter().map(|e| e.max).max().unwrap_or_default();
        let mut texts: HashMap<&str, u64> = HashMap::default();
        let mut list = Vec::new();
        let mut body = Encoder::default();
        let mut expected = first.first_chunk;
        body.uint(expected);
        for entry in &entries {
            body.int(entry.first_chunk.wrapping_sub(expected) as i64);
            body.uint(entry.chunks);
            // Shared chunks do not move the place where the next series is expected.
            if entry.first_chunk >= expected {
                expected = entry.first_chunk + entry.chunks;
            }
            body.int(entry.min.wrapping_sub(min));
            body.int(max.wrapping_sub(entry.max));
            body.len(entry.labels.len());
            for (n, v) in entry.labels.iter() {
                for text in [n, v] {
                    let next = texts.len() as u64;
                    body.uint(*texts.entry(text).or_insert_with(|| {
                        list.push(text);
                        next
                    }));
                }
            }
        }
        let mut head = Encoder::default();
        head.int(min);
        head.int(max);
        head.len(list.len());
        list.iter().for_each(|t| head.str(t));
        head.len(entries.len());
        head.bytes.extend_from_slice(&body.bytes);
        let mut packed = Encoder::default();
        put_packed(&mut packed, &head.bytes);
        let at = self.out.put(&packed.bytes)?;
        self.pages.push(Page {
            at,
            first_name: first.labels.metric_name().to_owned(),
            last_name: last.labels.metric_name().to_owned(),
            min,
            max,
        });
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Finished, SegmentError> {
        self.finish_block()?;
        self.finish_page()?;
        let mut index = Encoder::default();
        index.len(self.blocks.len());
        for b in &self.blocks {
            b.at.put(&mut index);
            index.uint(b.chunks);
            index.int(b.min);
            index.int(b.max);
        }
        index.len(self.pages.len());
        for p in &self.pages {
            p.at.put(&mut index);
            index.str(&p.first_name);
            index.str(&p.last_name);
            index.int(p.min);
            index.int(p.max);
        }
        let (index, bytes) = self.out.finish(&index.bytes)?;
        Ok(Finished {
            index,
            bytes,
            rows: self.samples,
            min: self.pages.iter().map(|p| p.min).min().unwrap_or_default(),
            max: self.pages.iter().map(|p| p.max).max().unwrap_or_default(),
        })
    }
}

/// An open segment of samples.
#[derive(Debug)]
pub(crate) struct SeriesSegment {
    file: SegmentFile,
    blocks: Vec<BlockMeta>,
    pages: Vec<Page>,
    /// Where blocks stay that queries read; nowhere in tests.
    kept: Option<Keeper>,
}

/// Takes a series' labels and some of its samples.
pub(crate) type VisitSeries<'a> = &'a mut dyn FnMut(&Labels, Samples) -> Result<(), SegmentError>;

/// A series found in a page.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) labels: Labels,
    first_chunk: u64,
    chunks: u64,
}

/// Whether each text of a page matches a matcher, asked once a text.
struct Memo<'a> {
    matcher: &'a Matcher,
    answers: Vec<Option<bool>>,
}

impl SeriesSegment {
    pub(crate) fn new(file: SegmentFile, index: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(index);
        let mut blocks = Vec::new();
        let mut first_chunk = 0_u64;
        for _ in 0..d.len()? {
            let (at, chunks) = (BlockRef::get(&mut d)?, d.uint()?);
            blocks.push(BlockMeta { at, first_chunk, chunks, min: d.int()?, max: d.int()? });
            first_chunk = first_chunk.checked_add(chunks).ok_or(d.bad())?;
        }
        let page = |d: &mut Decoder<'_>| {
            Ok(Page {
                at: BlockRef::get(d)?,
                first_name: d.string()?,
                last_name: d.string()?,
                min: d.int()?,
                max: d.int()?,
            })
        };
        let pages = (0..d.len()?).map(|_| page(&mut d)).collect::<Result<_, Malformed>>()?;
        Ok(Self { file, blocks, pages, kept: None })
    }

    /// Keeps blocks that queries read for the next one.
    pub(crate) fn keeping(mut self, kept: Arc<Kept>, segment: u64) -> Self {
        self.kept = Some((kept, segment));
        self
    }

    pub(crate) fn all_blocks(&self) -> impl Iterator<Item = BlockRef> {
        self.blocks.iter().map(|b| b.at).chain(self.pages.iter().map(|p| p.at))
    }

    pub(crate) const fn file(&self) -> &SegmentFile {
        &self.file
    }

    pub(crate) const fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Returns the series of a page that match and have samples in `[start, end]` ms.
    pub(crate) fn page(
        &self,
        number: usize,
        matchers: &[Matcher],
        (start, end): (i64, i64),
    ) -> Result<Vec<Found>, SegmentError> {
        let Some(p) = self.pages.get(number) else { return Ok(Vec::new()) };
        let named = |m: &Matcher| {
            m.name != METRIC_NAME
                || m.op != MatchOp::Equal
                || (p.first_name.as_str() <= m.value.as_str()
                    && m.value.as_str() <= p.last_name.as_str())
        };
        if p.max < start || p.min > end || !matchers.iter().all(named) {
            return Ok(Vec::new());
        }
        Ok(parse_page(&self.file.read(p.at)?, matchers, (start, end))?)
    }

    /// Returns the label sets that match and have samples in `[start, end]` ms.
    pub(crate) fn label_sets(
        &self,
        matchers: &[Matcher],
        range: (i64, i64),
        damaged: Damaged<'_>,
        out: &mut dyn FnMut(Labels),
    ) -> Result<(), SegmentError> {
        for number in 0..self.pages.len() {
            let found = self.page_or_damage(number, matchers, range, damaged)?;
            found.into_iter().for_each(|f| out(f.labels));
        }
        Ok(())
    }

    fn page_or_damage(
        &self,
        number: usize,
        matchers: &[Matcher],
        range: (i64, i64),
        damaged: Damaged<'_>,
    ) -> Result<Vec<Found>, SegmentError> {
        match self.page(number, matchers, range) {
            Err(e) if e.costs_a_part() => {
                if let Some(p) = self.pages.get(number) {
                    damaged(&e, p.min, p.max);
                }
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// Hands every matching series' samples in `[start, end]` ms to `visit`, sorted by labels.
    pub(crate) fn select(
        &self,
        matchers: &[Matcher],
        range: (i64, i64),
        damaged: Damaged<'_>,
        visit: VisitSeries<'_>,
    ) -> Result<(), SegmentError> {
        let mut cache = BlockCache {
            keeper: self.kept.clone(),
            blocks: Vec::new(),
            scratch: Scratch::default(),
        };
        for number in 0..self.pages.len() {
            let found = self.page_or_damage(number, matchers, range, damaged)?;
            self.visit(&found, range, &mut cache, damaged, visit)?;
        }
        Ok(())
    }

    /// Reads found series; those without samples are passed over.
    pub(crate) fn visit(
        &self,
        found: &[Found],
        range: (i64, i64),
        cache: &mut BlockCache,
        damaged: Damaged<'_>,
        visit: VisitSeries<'_>,
    ) -> Result<(), SegmentError> {
        let mut places = Vec::with_capacity(found.len());
        for (series, f) in found.iter().enumerate() {
            for chunk in f.first_chunk..f.first_chunk.saturating_add(f.chunks) {
                let n = self.blocks.partition_point(|b| b.first_chunk <= chunk).saturating_sub(1);
                let Some(b) = self.blocks.get(n).filter(|b| chunk - b.first_chunk < b.chunks)
                else {
                    return Err(Malformed(n).into());
                };
                if b.max >= range.0 && b.min <= range.1 {
                    let chunk = (chunk - b.first_chunk) as usize;
                    places.push(ChunkPlace { series, block: n, chunk });
                }
            }
        }
        let mut current = (0, Samples::default());
        let mut add = |series: usize, samples: Samples| {
            if series != current.0 {
                let (series, samples) = std::mem::replace(&mut current, (series, samples));
                return match found.get(series) {
                    Some(f) if !samples.is_empty() => visit(&f.labels, samples),
                    _ => Ok(()),
                };
            }
            current.1.append(samples);
            Ok(())
        };
        let one_block = |a: &ChunkPlace, b: &ChunkPlace| a.block == b.block;
        for group in places.chunk_by(one_block).flat_map(|run| run.chunks(LANES)) {
            let Some(b) = group.first().and_then(|p| self.blocks.get(p.block)) else { continue };
            match cache.read_chunks(self, group, range) {
                Ok(read) => {
                    group.iter().zip(read).try_for_each(|(p, s)| add(p.series, s))?;
                }
                // What is sound beside what is damaged comes nevertheless.
                Err(e) if e.costs_a_part() => {
                    for p in group {
                        match cache.read_chunks(self, std::slice::from_ref(p), range) {
                            Ok([samples, ..]) => add(p.series, samples)?,
                            Err(e) if e.costs_a_part() => damaged(&e, b.min, b.max),
                            Err(e) => return Err(e),
                        }
                    }
                }
                Err(e) => return Err(e),
            }
        }
        add(found.len(), Samples::default())
    }
}

/// Where a chunk of a found series lies.
#[derive(Debug)]
struct ChunkPlace {
    /// Its place among the series found.
    series: usize,
    block: usize,
    /// Within the block.
    chunk: usize,
}

/// Blocks read last. Neighbouring series lie in one block; shared chunks in an earlier one.
#[derive(Debug, Default)]
pub(crate) struct BlockCache {
    /// Where they stay for other queries; merges read everything once.
    keeper: Option<Keeper>,
    blocks: Vec<Held>,
    scratch: Scratch,
}

#[derive(Debug)]
struct Held {
    number: usize,
    block: Arc<Block>,
    /// That it took when it was kept last.
    bytes: usize,
}

impl Drop for BlockCache {
    fn drop(&mut self) {
        while let Some(held) = self.blocks.pop() {
            self.let_go(held);
        }
    }
}

impl BlockCache {
    /// Says how large a block is that has grown.
    fn let_go(&self, held: Held) {
        if let Some((kept, id)) = &self.keeper
            && held.block.bytes() > held.bytes
        {
            kept.columns.keep((*id, Piece::Block(held.number)), held.block);
        }
    }

    /// Reads chunks of one block, at most [`LANES`].
    fn read_chunks(
        &mut self,
        segment: &SeriesSegment,
        chunks: &[ChunkPlace],
        range: (i64, i64),
    ) -> Result<[Samples; LANES], SegmentError> {
        const KEPT: usize = 3;
        let number = chunks.first().map_or(0, |c| c.block);
        if let Some(at) = self.blocks.iter().position(|h| h.number == number) {
            let hit = self.blocks.remove(at);
            self.blocks.push(hit);
        } else {
            let block = self.read(segment, number)?;
            if self.blocks.len() >= KEPT {
                let oldest = self.blocks.remove(0);
                self.let_go(oldest);
            }
            let bytes = block.bytes();
            self.blocks.push(Held { number, block, bytes });
        }
        let block = self.blocks.last().map(|h| &*h.block).ok_or(Malformed(number))?;
        let mut numbers = [0; LANES];
        for (n, c) in numbers.iter_mut().zip(chunks) {
            *n = c.chunk;
        }
        let numbers = numbers.get(..chunks.len()).unwrap_or_default();
        Ok(block.read_chunks(numbers, range, &mut self.scratch)?)
    }

    fn read(&self, segment: &SeriesSegment, number: usize) -> Result<Arc<Block>, SegmentError> {
        let key = |id: u64| (id, Piece::Block(number));
        let keeper = self.keeper.as_ref();
        if let Some(known) = keeper.and_then(|(kept, id)| kept.columns.find(key(*id))) {
            return Ok(known);
        }
        let meta = segment.blocks.get(number).ok_or(Malformed(number))?;
        let block = Arc::new(Block::parse(segment.file.read(meta.at)?)?);
        if let Some((kept, id)) = keeper {
            kept.columns.keep(key(*id), block.clone());
        }
        Ok(block)
    }
}

fn parse_page(
    bytes: &[u8],
    matchers: &[Matcher],
    (start, end): (i64, i64),
) -> Result<Vec<Found>, Malformed> {
    let raw = get_packed(&mut Decoder::new(bytes))?;
    let mut d = Decoder::new(&raw);
    let (min, max) = (d.int()?, d.int()?);
    let texts = (0..d.len()?).map(|_| d.str()).collect::<Result<Vec<_>, _>>()?;
    let mut memos: Vec<Memo<'_>> = matchers
        .iter()
        .map(|matcher| Memo { matcher, answers: vec![None; texts.len() + 1] })
        .collect();
    let n = d.len()?;
    let mut expected = d.uint()?;
    let mut out = Vec::new();
    let mut pairs: Vec<(&str, usize)> = Vec::new();
    for _ in 0..n {
        let first_chunk = expected.wrapping_add(d.int()? as u64);
        let chunks = d.uint()?;
        if first_chunk >= expected {
            expected = first_chunk.saturating_add(chunks);
        }
        let (series_min, series_max) = (min.wrapping_add(d.int()?), max.wrapping_sub(d.int()?));
        pairs.clear();
        for _ in 0..d.len()? {
            let name = *texts.get(d.len_free()?).ok_or(d.bad())?;
            pairs.push((name, d.len_free()?));
        }
        let matches = |memo: &mut Memo<'_>| {
            let value = pairs.iter().find(|(n, _)| *n == memo.matcher.name).map(|(_, v)| *v);
            // The last slot stands for an absent label.
            let slot = value.unwrap_or(texts.len());
            let text = value.and_then(|v| texts.get(v)).copied().unwrap_or("");
            memo.answers
                .get_mut(slot)
                .is_some_and(|a| *a.get_or_insert_with(|| memo.matcher.matches(text)))
        };
        if series_max >= start && series_min <= end && memos.iter_mut().all(matches) {
            let list: Option<Vec<_>> =
                pairs.iter().map(|(n, v)| Some((*n, *texts.get(*v)?))).collect();
            let labels = Labels::from_sorted(list.ok_or(d.bad())?.into_iter());
            out.push(Found { labels, first_chunk, chunks });
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::OsVfs;

    #[test]
    fn series_come_back_by_matcher_and_range() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.seg");
        let samples = |i: i64| {
            (0..300).map(|t| Sample::float(t * 1000, (t * (i % 7)) as f64)).collect::<Vec<_>>()
        };
        let mut series: Vec<_> = (0..2000_i64)
            .map(|i| {
                let name = format!("m{}", i % 3);
                let labels = Labels::from_pairs([("__name__", name), ("i", i.to_string())]);
                (labels, samples(i))
            })
            .collect();
        series.sort_by(|a, b| a.0.cmp(&b.0));
        let mut w = SeriesWriter::create(&OsVfs, &path).unwrap();
        for (l, s) in &series {
            w.push(l, s).unwrap();
        }
        let done = w.finish().unwrap();
        assert_eq!(done.rows, 600_000);
        let (file, index) =
            SegmentFile::read_from(OsVfs.open(&path).unwrap(), &path, None, &mut Vec::new())
                .unwrap();
        let segment = SeriesSegment::new(file, &index).unwrap();
        let matchers = [
            Matcher::equal("__name__", "m1"),
            Matcher::new("i", MatchOp::Regex, "7|34|133").unwrap(),
        ];
        let mut got: std::collections::BTreeMap<String, Vec<Sample>> = Default::default();
        let mut none = |e: &SegmentError, _: i64, _: i64| panic!("{e}");
        segment
            .select(&matchers, (1000, 200_000), &mut none, &mut |l, s| {
                got.entry(l.get("i").to_owned()).or_default().append(&mut s.into_vec());
                Ok(())
            })
            .unwrap();
        assert_eq!(got.keys().collect::<Vec<_>>(), ["133", "34", "7"]);
        assert_eq!(got["34"], samples(34)[1..=200]);
        let mut sets = 0;
        segment.label_sets(&matchers, (400_000, 500_000), &mut none, &mut |_| sets += 1).unwrap();
        assert_eq!(sets, 0);
        let mut all = 0;
        segment
            .select(&[], (i64::MIN, i64::MAX), &mut none, &mut |l, s| {
                let i: i64 = l.get("i").parse().unwrap();
                assert_eq!(s.into_vec(), samples(i));
                all += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(all, 2000);
    }
}
