//! Segments of records: blocks of columns, and an index by time, by stream and by trace.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::Record;
use crate::segment::attrs::{Sink, Source};
use crate::segment::bloom::Filter;
use crate::segment::columns::{get_ints, put_ints};
use crate::segment::file::{BlockRef, IndexRef, SegmentFile, SegmentWriter};
use crate::segment::kept::{Columns, Keeper, Kept, LazyBlock, Piece};
use crate::segment::parts::{PartCache, PartWriter, Parts};
use crate::segment::{SegmentError, Signal};
use crate::vfs::Vfs;
use obs_model::{Matcher, TraceId};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Takes rows until it breaks.
pub(crate) type VisitRow<'a, R> = &'a mut dyn FnMut(R) -> Result<ControlFlow<()>, SegmentError>;

/// Takes a block's bytes, and where its long parts are, until it breaks.
pub(crate) type ReadBlock<'a> =
    &'a mut dyn FnMut(&[u8], &mut Source<'_>) -> Result<ControlFlow<()>, SegmentError>;

/// A record as a segment row.
pub(crate) trait Row: Record {
    const SIGNAL: Signal;
    /// Rows of a block at most.
    const BLOCK_ROWS: usize;
    /// Whether a list of traces by block is kept.
    const BY_TRACE: bool;

    /// Puts rows in the order of a segment and drops those that were written twice.
    fn arrange(rows: &mut Vec<Self>);
    /// Bytes in memory, about; bounds a block.
    fn size(&self) -> usize;
    fn put_block(rows: &[Self], e: &mut Encoder, sink: &mut Sink<'_>) -> Result<(), SegmentError>;
    /// Returns the block's filter, if the signal has one.
    fn filter(rows: &[Self]) -> Option<Vec<u8>>;
    /// Visits the block's rows that the filter lets through, in order.
    fn get_block(
        block: &[u8],
        filter: &RowFilter<'_>,
        source: &mut Source<'_>,
        visit: VisitRow<'_, Self>,
    ) -> Result<ControlFlow<()>, SegmentError>;

    /// Visits the rows of blocks that the filter lets through. A damaged block is told to `damaged`
    /// and passed over.
    fn scan(
        segment: &RowSegment,
        numbers: &[usize],
        filter: &RowFilter<'_>,
        damaged: Damaged<'_>,
        visit: VisitRow<'_, Self>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        segment.each_block(numbers, filter, damaged, &mut |bytes, source| {
            Self::get_block(bytes, filter, source, visit)
        })
    }
}

/// Which rows are wanted: time in `[start, end)` and, where given, of a trace, of a stream that
/// matches, with a line that contains all needles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowFilter<'a> {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Ascending; none for rows of any trace.
    pub(crate) traces: &'a [TraceId],
    pub(crate) matchers: &'a [Matcher],
    pub(crate) needles: &'a [String],
    /// Of calls, only revisions of earlier rows.
    pub(crate) revisions_only: bool,
}

impl RowFilter<'_> {
    pub(crate) const ALL: RowFilter<'static> = RowFilter {
        start: i64::MIN,
        end: i64::MAX,
        traces: &[],
        matchers: &[],
        needles: &[],
        revisions_only: false,
    };

    /// Returns whether a row with this time and trace (zero for none) is wanted.
    pub(crate) fn admits(&self, time: i64, trace: &[u8; 16]) -> bool {
        time >= self.start
            && (time < self.end || self.end == i64::MAX)
            && (self.traces.is_empty()
                || self.traces.binary_search_by(|t| t.as_bytes().cmp(trace)).is_ok())
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockMeta {
    pub(crate) at: BlockRef,
    pub(crate) rows: u64,
    pub(crate) min: i64,
    pub(crate) max: i64,
    /// Number of the segment's part that the block calls 0.
    part_base: i64,
    filter: Option<BlockRef>,
}

impl BlockMeta {
    fn put(&self, e: &mut Encoder) {
        self.at.put(e);
        e.uint(self.rows);
        e.int(self.min);
        e.int(self.max);
        e.int(self.part_base);
        e.u8(u8::from(self.filter.is_some()));
        if let Some(f) = self.filter {
            f.put(e);
        }
    }

    fn get(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            at: BlockRef::get(d)?,
            rows: d.uint()?,
            min: d.int()?,
            max: d.int()?,
            part_base: d.int()?,
            filter: if d.u8()? == 1 { Some(BlockRef::get(d)?) } else { None },
        })
    }
}

/// Traces of a page of the trace list.
const PAGE_TRACES: usize = 4096;

fn prefix(trace: &[u8; 16]) -> u32 {
    // The last bytes: some makers of ids begin them with the time.
    let [.., a, b, c, d] = *trace;
    u32::from_be_bytes([a, b, c, d])
}

/// What a finished segment is, for the manifest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished {
    pub(crate) index: IndexRef,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) min: i64,
    pub(crate) max: i64,
}

/// Writes a segment of rows, which come arranged.
#[derive(Debug)]
pub(crate) struct RowWriter {
    out: SegmentWriter,
    parts: PartWriter,
    blocks: Vec<BlockMeta>,
    traces: Vec<(u32, u32)>,
}

impl RowWriter {
    pub(crate) fn create(vfs: &dyn Vfs, path: &Path) -> Result<Self, SegmentError> {
        Ok(Self {
            out: SegmentWriter::create(vfs, path)?,
            parts: PartWriter::default(),
            blocks: Vec::new(),
            traces: Vec::new(),
        })
    }

    /// Appends rows, cut into blocks.
    pub(crate) fn write<R: Row>(&mut self, rows: &[R]) -> Result<(), SegmentError> {
        const BLOCK_BYTES: usize = 4 << 20;
        let mut rest = rows;
        while !rest.is_empty() {
            let mut size = 0;
            let n = rest
                .iter()
                .take(R::BLOCK_ROWS)
                .take_while(|r| {
                    let fits = size < BLOCK_BYTES;
                    size += r.size();
                    fits
                })
                .count();
            let (block, tail) = rest.split_at(n);
            self.write_block(block)?;
            rest = tail;
        }
        Ok(())
    }

    fn write_block<R: Row>(&mut self, rows: &[R]) -> Result<(), SegmentError> {
        let mut e = Encoder::default();
        R::put_block(rows, &mut e, &mut Sink { out: &mut self.out, parts: &mut self.parts })?;
        let at = self.out.put(&e.bytes)?;
        let filter = R::filter(rows).map(|f| self.out.put(&f)).transpose()?;
        let times = || rows.iter().map(Record::time);
        if R::BY_TRACE {
            let number = self.blocks.len() as u32;
            let mut here: Vec<_> = rows
                .iter()
                .filter_map(Record::trace)
                .map(|t| (prefix(t.as_bytes()), number))
                .collect();
            here.sort_unstable();
            here.dedup();
            self.traces.extend(here);
        }
        self.blocks.push(BlockMeta {
            at,
            rows: rows.len() as u64,
            min: times().min().unwrap_or_default(),
            max: times().max().unwrap_or_default(),
            part_base: 0,
            filter,
        });
        Ok(())
    }

    /// Appends another segment's blocks as they are.
    pub(crate) fn copy(&mut self, from: &RowSegment) -> Result<(), SegmentError> {
        let base = self.parts.absorb(&from.parts, &from.file, &mut self.out)?;
        let first = self.blocks.len() as u32;
        for b in &from.blocks {
            let at = self.out.put(&from.file.read(b.at)?)?;
            let filter = match b.filter {
                Some(f) => Some(self.out.put(&from.file.read(f)?)?),
                None => None,
            };
            self.blocks.push(BlockMeta { at, filter, part_base: b.part_base + base, ..*b });
        }
        for (_, page) in &from.pages {
            let page = TracePage::read(&from.file.read(*page)?)?;
            self.traces.extend(page.0.iter().map(|(p, b)| (*p, b + first)));
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Finished, SegmentError> {
        self.traces.sort_unstable();
        let mut pages = Vec::new();
        for page in self.traces.chunks(PAGE_TRACES) {
            let mut e = Encoder::default();
            put_ints(&mut e, &page.iter().map(|(p, _)| i64::from(*p)).collect::<Vec<_>>());
            put_ints(&mut e, &page.iter().map(|(_, b)| i64::from(*b)).collect::<Vec<_>>());
            pages.push((page.first().map_or(0, |(p, _)| *p), self.out.put(&e.bytes)?));
        }
        let mut index = Encoder::default();
        self.parts.finish(&mut self.out, &mut index)?;
        index.len(self.blocks.len());
        self.blocks.iter().for_each(|b| b.put(&mut index));
        index.len(pages.len());
        for (first, at) in pages {
            index.uint(first.into());
            at.put(&mut index);
        }
        let (index, bytes) = self.out.finish(&index.bytes)?;
        Ok(Finished {
            index,
            bytes,
            rows: self.blocks.iter().map(|b| b.rows).sum(),
            min: self.blocks.iter().map(|b| b.min).min().unwrap_or_default(),
            max: self.blocks.iter().map(|b| b.max).max().unwrap_or_default(),
        })
    }
}

/// A page of the list of traces: the first bytes of their ids, ascending, and blocks that have rows
/// of them.
#[derive(Debug)]
struct TracePage(Vec<(u32, u32)>);

impl Columns for TracePage {
    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(self.0.as_slice())
    }
}

impl TracePage {
    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let d = &mut Decoder::new(bytes);
        let (prefixes, blocks) = (get_ints(d)?, get_ints(d)?);
        let pairs = prefixes.into_iter().zip(blocks);
        Ok(Self(pairs.map(|(p, b)| (p as u32, b as u32)).collect()))
    }

    fn blocks_of(&self, wanted: u32) -> impl Iterator<Item = usize> {
        let from = self.0.partition_point(|(p, _)| *p < wanted);
        let rest = self.0.get(from..).unwrap_or_default().iter();
        rest.take_while(move |(p, _)| *p == wanted).map(|(_, b)| *b as usize)
    }
}

/// An open segment of rows.
#[derive(Debug)]
pub(crate) struct RowSegment {
    file: SegmentFile,
    parts: Parts,
    pub(crate) blocks: Vec<BlockMeta>,
    pages: Vec<(u32, BlockRef)>,
    /// Where filters and columns are kept.
    kept: Option<Keeper>,
}

/// Receives what could not be read: a description and the range of times that is missing.
pub(crate) type Damaged<'a> = &'a mut dyn FnMut(&SegmentError, i64, i64);

impl RowSegment {
    pub(crate) fn new(file: SegmentFile, index: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(index);
        let parts = Parts::read(&mut d)?;
        let blocks = (0..d.len()?).map(|_| BlockMeta::get(&mut d)).collect::<Result<_, _>>()?;
        let page = |d: &mut Decoder<'_>| {
            Ok((u32::try_from(d.uint()?).map_err(|_| d.bad())?, BlockRef::get(d)?))
        };
        let pages = (0..d.len()?).map(|_| page(&mut d)).collect::<Result<_, Malformed>>()?;
        Ok(Self { file, parts, blocks, pages, kept: None })
    }

    /// Keeps filters and columns from now on.
    #[must_use]
    pub(crate) fn keeping(mut self, kept: Arc<Kept>, segment: u64) -> Self {
        self.kept = Some((kept, segment));
        self
    }

    /// Returns the references of everything that must be readable.
    pub(crate) fn all_blocks(&self) -> impl Iterator<Item = BlockRef> {
        let filters = self.blocks.iter().filter_map(|b| b.filter);
        let pages = self.pages.iter().map(|(_, b)| *b);
        self.blocks.iter().map(|b| b.at).chain(filters).chain(pages).chain(self.parts.blocks())
    }

    /// Calls `f` with what was unpacked of a piece, which stays for the next query.
    fn with<C: Columns, T>(
        &self,
        piece: Piece,
        read: impl FnOnce() -> Result<C, SegmentError>,
        f: impl FnOnce(&C) -> Result<T, SegmentError>,
    ) -> Result<T, SegmentError> {
        match &self.kept {
            Some((kept, segment)) => kept.columns.with((*segment, piece), read, f),
            None => read().and_then(|c| f(&c)),
        }
    }

    pub(crate) const fn file(&self) -> &SegmentFile {
        &self.file
    }

    /// Returns the numbers of the blocks that may hold rows of a trace; all when the list is
    /// damaged.
    fn blocks_of(&self, trace: &TraceId) -> Option<Vec<usize>> {
        if self.pages.is_empty() {
            return None;
        }
        let wanted = prefix(trace.as_bytes());
        let end = self.pages.partition_point(|(first, _)| *first <= wanted);
        let start = self.pages.partition_point(|(first, _)| *first < wanted).saturating_sub(1);
        let mut out = Vec::new();
        for (n, (_, at)) in self.pages.iter().enumerate().take(end).skip(start) {
            let read = || Ok(TracePage::read(&self.file.read(*at)?)?);
            self.with(Piece::Traces(n), read, |page| {
                out.extend(page.blocks_of(wanted));
                Ok(())
            })
            .ok()?;
        }
        Some(out)
    }

    /// Returns the numbers, ascending, of the blocks that may hold rows of any of some traces; nothing
    /// when no traces are named, or when the list is damaged: any block may then.
    pub(crate) fn blocks_of_any(&self, traces: &[TraceId]) -> Option<Vec<usize>> {
        if traces.is_empty() {
            return None;
        }
        let lists: Option<Vec<_>> = traces.iter().map(|t| self.blocks_of(t)).collect();
        let mut all = lists?.concat();
        all.sort_unstable();
        all.dedup();
        Some(all)
    }

    /// Returns a filter's bytes; a damaged one is none, and excludes nothing.
    fn filter_bytes(&self, number: usize, at: BlockRef) -> Option<Arc<[u8]>> {
        let read = || self.file.read(at);
        match &self.kept {
            Some((kept, segment)) => kept.filters.get((*segment, number), read).ok(),
            None => read().ok().map(Into::into),
        }
    }

    /// Whether a block may have all of some values; only of rows whose filter holds values.
    pub(crate) fn may_have(&self, number: usize, values: &[&str]) -> bool {
        let at = self.blocks.get(number).and_then(|b| b.filter);
        let Some(bytes) = at.and_then(|at| self.filter_bytes(number, at)) else { return true };
        let Ok(f) = Filter::read(&bytes) else { return true };
        values.iter().all(|v| f.has(v.as_bytes()))
    }

    /// Returns whether a block may hold wanted rows.
    pub(crate) fn may_match(&self, number: usize, filter: &RowFilter<'_>) -> bool {
        let Some(b) = self.blocks.get(number) else { return false };
        if b.max < filter.start || (b.min >= filter.end && filter.end != i64::MAX) {
            return false;
        }
        let Some(at) = b.filter else { return true };
        if filter.needles.is_empty() && filter.traces.is_empty() {
            return true;
        }
        let Some(bytes) = self.filter_bytes(number, at) else { return true };
        let Ok(f) = Filter::read(&bytes) else { return true };
        let mut traces = filter.traces.iter().map(|t| format!(" {t} "));
        filter.needles.iter().all(|n| f.may_contain(n.as_bytes()))
            && (filter.traces.is_empty() || traces.any(|t| f.may_contain(t.as_bytes())))
    }

    /// Visits the rows that the filter lets through, block by block, in reverse order of blocks
    /// when `reverse`. A damaged block is told to `damaged` and passed over.
    pub(crate) fn scan<R: Row>(
        &self,
        filter: &RowFilter<'_>,
        reverse: bool,
        damaged: Damaged<'_>,
        visit: VisitRow<'_, R>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let of_traces = if R::BY_TRACE { self.blocks_of_any(filter.traces) } else { None };
        let mut numbers: Vec<usize> = of_traces.unwrap_or_else(|| (0..self.blocks.len()).collect());
        if reverse {
            numbers.reverse();
        }
        R::scan(self, &numbers, filter, damaged, visit)
    }

    /// Reads blocks that may hold wanted rows, in the order of `numbers`. A damaged block is told to
    /// `damaged` and passed over.
    fn each_block(
        &self,
        numbers: &[usize],
        filter: &RowFilter<'_>,
        damaged: Damaged<'_>,
        read: ReadBlock<'_>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let mut cache = PartCache::default();
        for n in numbers.iter().copied().filter(|n| self.may_match(*n, filter)) {
            let Some(b) = self.blocks.get(n) else { continue };
            let result = self.file.read(b.at).map_err(SegmentError::from).and_then(|bytes| {
                let (file, parts) = (&self.file, &self.parts);
                let keeper = self.kept.as_ref();
                let (base, cache) = (b.part_base, &mut cache);
                read(&bytes, &mut Source { file, parts, base, cache, keeper })
            });
            match result {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
                Err(e) if e.costs_a_part() => damaged(&e, b.min, b.max),
                Err(e) => return Err(e),
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Lends the columns of blocks that may hold wanted rows, which stay for the next query, and a way
    /// to their bytes, in the order of `numbers`. A damaged block is told to `damaged` and passed over.
    pub(crate) fn each_columns<C: Columns>(
        &self,
        numbers: impl IntoIterator<Item = usize>,
        filter: &RowFilter<'_>,
        damaged: Damaged<'_>,
        make: impl Fn(&[u8]) -> Result<C, Malformed>,
        mut f: impl FnMut(&C, &LazyBlock<'_>, &mut Source<'_>) -> Result<ControlFlow<()>, SegmentError>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let mut cache = PartCache::default();
        for n in numbers.into_iter().filter(|n| self.may_match(*n, filter)) {
            let Some(b) = self.blocks.get(n) else { continue };
            let read = || Ok(self.file.read(b.at)?);
            let bytes = LazyBlock::new(&read);
            let (file, parts) = (&self.file, &self.parts);
            let keeper = self.kept.as_ref();
            let mut source = Source { file, parts, base: b.part_base, cache: &mut cache, keeper };
            let make = || Ok(make(bytes.get()?)?);
            let one = |c: &C| f(c, &bytes, &mut source);
            match self.with(Piece::Block(n), make, one) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
                Err(e) if e.costs_a_part() => damaged(&e, b.min, b.max),
                Err(e) => return Err(e),
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads a block's bytes.
    pub(crate) fn read_block(&self, number: usize) -> Result<Vec<u8>, SegmentError> {
        let b = self.blocks.get(number).ok_or(Malformed(number))?;
        Ok(self.file.read(b.at)?)
    }

    /// Visits the rows of one block.
    pub(crate) fn visit_block<R: Row>(
        &self,
        number: usize,
        filter: &RowFilter<'_>,
        visit: VisitRow<'_, R>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let b = self.blocks.get(number).ok_or(Malformed(number))?;
        let bytes = self.file.read(b.at)?;
        let cache = &mut PartCache::default();
        // A merge reads everything once: nothing of it is worth keeping.
        let (file, parts, base) = (&self.file, &self.parts, b.part_base);
        let mut source = Source { file, parts, base, cache, keeper: None };
        R::get_block(&bytes, filter, &mut source, visit)
    }

    /// Calls `f` with the bytes of every block that overlaps the filter's range.
    pub(crate) fn for_blocks(
        &self,
        filter: &RowFilter<'_>,
        damaged: Damaged<'_>,
        f: &mut dyn FnMut(&[u8]) -> Result<(), SegmentError>,
    ) -> Result<(), SegmentError> {
        for b in self.blocks.iter().filter(|b| b.max >= filter.start && b.min < filter.end) {
            match self.file.read(b.at).map_err(SegmentError::from).and_then(|bytes| f(&bytes)) {
                Err(e) if e.costs_a_part() => damaged(&e, b.min, b.max),
                other => other?,
            }
        }
        Ok(())
    }
}
