//! What is kept in memory of blocks that queries read: filters, and columns that were unpacked.

use crate::bin::{Decoder, Malformed};
use crate::segment::SegmentError;
use crate::segment::bloom::FilterCache;
use crate::stretches::Shared;
use obs_model::{Lru, MemoryPool, MemoryShare};
use std::any::Any;
use std::cell::OnceCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A block: its segment, and its number there.
pub(crate) type BlockKey = (u64, usize);

/// What a segment is read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Piece {
    /// The columns of a block.
    Block(usize),
    /// A page of the list of traces.
    Traces(usize),
    /// A block of long texts' parts.
    Parts(usize),
}

/// A piece, and its segment.
pub(crate) type PieceKey = (u64, Piece);

/// Where an open segment keeps what was read of it, and its number there.
pub(crate) type Keeper = (Arc<Kept>, u64);

/// What was unpacked of a piece; it may grow as queries ask for more.
pub(crate) trait Columns: Any + Send + Sync {
    /// Returns the bytes that they take now, about.
    fn bytes(&self) -> usize;
}

/// What all open segments of a store share.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) filters: FilterCache,
    pub(crate) columns: ColumnCache,
    /// Of two segments.
    shared: Mutex<Lru<(u64, u64), Shared>>,
}

impl Kept {
    /// Filters kept in memory: those of some five million lines.
    const FILTER_BYTES: u64 = 32 << 20;
    /// Times that segments share: of some ten thousand pairs.
    const SHARED_BYTES: u64 = 1 << 20;

    pub(crate) fn new(memory: &Arc<MemoryPool>) -> Self {
        Self {
            filters: FilterCache::new(Self::FILTER_BYTES),
            columns: ColumnCache::new(memory),
            shared: Mutex::new(Lru::new(Self::SHARED_BYTES)),
        }
    }

    /// Returns the times that two segments have in common, those of before or what `find` returns;
    /// `None` is not kept.
    pub(crate) fn shared(
        &self,
        pair: (u64, u64),
        find: impl FnOnce() -> Option<Shared>,
    ) -> Option<Shared> {
        /// Of an entry without times.
        const ENTRY_BYTES: usize = 64;
        let all = || self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all().get(&pair) {
            return Some(known.clone());
        }
        let found = find()?;
        let times = found.as_ref().map_or(0, |t| t.len());
        all().put(pair, found.clone(), (ENTRY_BYTES + times * size_of::<i64>()) as u64);
        Some(found)
    }

    /// Lets go what is kept of a segment.
    pub(crate) fn forget(&self, segment: u64) {
        self.columns.forget(segment);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |k: &&(u64, u64)| k.0 == segment || k.1 == segment;
        let pairs: Vec<(u64, u64)> = shared.keys().filter(has).copied().collect();
        for pair in &pairs {
            shared.remove(pair);
        }
    }
}

/// What was unpacked of the pieces that queries used last.
pub(crate) struct ColumnCache {
    pieces: Mutex<Lru<PieceKey, Arc<dyn Any + Send + Sync>>>,
    share: MemoryShare,
}

impl std::fmt::Debug for ColumnCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColumnCache").field("bytes", &self.pieces().bytes()).finish_non_exhaustive()
    }
}

impl ColumnCache {
    /// Takes a sixteenth of the memory that all parts of the process draw from, and no more than
    /// ten million rows of logs need.
    fn new(memory: &Arc<MemoryPool>) -> Self {
        const MOST: i64 = 512 << 20;
        let bytes_max = (memory.max() / 16).min(MOST).unsigned_abs();
        Self { pieces: Mutex::new(Lru::new(bytes_max)), share: memory.share() }
    }

    fn pieces(&self) -> MutexGuard<'_, Lru<PieceKey, Arc<dyn Any + Send + Sync>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the bytes in use, and how many may be.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let pieces = self.pieces();
        (pieces.bytes(), pieces.bytes_max())
    }

    /// Returns what is kept of a piece.
    pub(crate) fn find<C: Columns>(&self, key: PieceKey) -> Option<Arc<C>> {
        self.pieces().get(&key).cloned().and_then(|c| c.downcast::<C>().ok())
    }

    /// Keeps what was unpacked of a piece, as large as it is now.
    pub(crate) fn keep<C: Columns>(&self, key: PieceKey, columns: Arc<C>) {
        let bytes = columns.bytes();
        let mut pieces = self.pieces();
        pieces.put(key, columns, bytes as u64);
        self.share.set(usize::try_from(pieces.bytes()).unwrap_or(usize::MAX));
    }

    /// Calls `f` with what was unpacked of a piece, before or now by `read`, and keeps it as it is
    /// then.
    pub(crate) fn with<C: Columns, T>(
        &self,
        key: PieceKey,
        read: impl FnOnce() -> Result<C, SegmentError>,
        f: impl FnOnce(&C) -> Result<T, SegmentError>,
    ) -> Result<T, SegmentError> {
        let (columns, before) = match self.find::<C>(key) {
            Some(c) => {
                let bytes = c.bytes();
                (c, bytes)
            }
            None => (Arc::new(read()?), 0),
        };
        let out = f(&columns)?;
        if columns.bytes() > before {
            self.keep(key, columns);
        }
        Ok(out)
    }

    fn forget(&self, segment: u64) {
        let mut pieces = self.pieces();
        let keys: Vec<PieceKey> = pieces.keys().filter(|k| k.0 == segment).copied().collect();
        for key in &keys {
            pieces.remove(key);
        }
        self.share.set(usize::try_from(pieces.bytes()).unwrap_or(usize::MAX));
    }
}

/// A block's bytes, read when something of them is needed.
pub(crate) struct LazyBlock<'a> {
    bytes: OnceCell<Vec<u8>>,
    origin: Origin<'a>,
}

enum Origin<'a> {
    File(&'a dyn Fn() -> Result<Vec<u8>, SegmentError>),
    Bytes(&'a [u8]),
}

impl<'a> LazyBlock<'a> {
    pub(crate) const fn new(read: &'a dyn Fn() -> Result<Vec<u8>, SegmentError>) -> Self {
        Self { bytes: OnceCell::new(), origin: Origin::File(read) }
    }

    /// A block that was read already.
    pub(crate) const fn whole(bytes: &'a [u8]) -> Self {
        Self { bytes: OnceCell::new(), origin: Origin::Bytes(bytes) }
    }

    pub(crate) fn get(&self) -> Result<&[u8], SegmentError> {
        if let Some(bytes) = self.bytes.get() {
            return Ok(bytes);
        }
        match self.origin {
            Origin::Bytes(bytes) => Ok(bytes),
            Origin::File(read) => {
                let bytes = read()?;
                Ok(self.bytes.get_or_init(|| bytes))
            }
        }
    }

    /// Returns what reads a part of them.
    pub(crate) fn at(&self, place: &Range<usize>) -> Result<Decoder<'_>, SegmentError> {
        let bytes = self.get()?.get(place.clone()).ok_or(Malformed(place.start))?;
        Ok(Decoder::new(bytes))
    }
}

/// Bytes that the columns of a block take.
#[derive(Debug, Default)]
pub(crate) struct Taken(AtomicUsize);

impl Taken {
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns what a cell holds, made at the first call.
    pub(crate) fn once<'a, T: Sized + Measured>(
        &self,
        cell: &'a OnceLock<T>,
        make: impl FnOnce() -> Result<T, SegmentError>,
    ) -> Result<&'a T, SegmentError> {
        if let Some(v) = cell.get() {
            return Ok(v);
        }
        let made = make()?;
        // Another query may have made it meanwhile.
        let mut is_first = false;
        let kept = cell.get_or_init(|| {
            is_first = true;
            made
        });
        if is_first {
            self.add(kept.bytes());
        }
        Ok(kept)
    }

    /// Returns what a cell holds, read from a place of a block at the first call.
    pub(crate) fn read<'a, T: Measured>(
        &self,
        cell: &'a OnceLock<T>,
        bytes: &LazyBlock<'_>,
        place: &Range<usize>,
        read: impl FnOnce(&mut Decoder<'_>) -> Result<T, Malformed>,
    ) -> Result<&'a T, SegmentError> {
        self.once(cell, || Ok(read(&mut bytes.at(place)?)?))
    }
}

/// What takes memory.
pub(crate) trait Measured {
    /// Returns the bytes behind the value itself, about.
    fn bytes(&self) -> usize;
}

impl<T: Copy> Measured for Vec<T> {
    fn bytes(&self) -> usize {
        size_of_val(self.as_slice())
    }
}

impl<T: Measured> Measured for Arc<T> {
    fn bytes(&self) -> usize {
        size_of::<T>() + (**self).bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Some {
        taken: Taken,
        ints: OnceLock<Vec<i64>>,
    }

    impl Columns for Some {
        fn bytes(&self) -> usize {
            100 + self.taken.get()
        }
    }

    #[test]
    fn columns_are_unpacked_once_and_counted_as_they_grow() {
        let pool = Arc::new(MemoryPool::new(16 * 2_000, 0));
        let kept = Kept::new(&pool);
        let mut read = 0;
        let mut sum = |(segment, block), wants_ints: bool| {
            let key = (segment, Piece::Block(block));
            let some = || {
                read += 1;
                Ok(Some::default())
            };
            let ints = |c: &Some| c.taken.once(&c.ints, || Ok(vec![1_i64; 50])).map(|v| v.len());
            kept.columns.with(key, some, |c| if wants_ints { ints(c) } else { Ok(0) }).unwrap();
            (read, pool.used())
        };
        assert_eq!(sum((1, 0), false), (1, 100));
        assert_eq!(sum((1, 0), true), (1, 500));
        assert_eq!(sum((1, 0), true), (1, 500));
        for block in 1..4 {
            sum((1, block), true);
        }
        // The next does not fit beside the others: the oldest goes.
        assert_eq!(sum((2, 0), true), (5, 2_000));
        assert_eq!(sum((1, 1), true), (5, 2_000));
        assert_eq!(sum((1, 0), true), (6, 2_000));
        kept.forget(1);
        assert_eq!(pool.used(), 500);
        let broken = kept.columns.with(
            (7, Piece::Parts(7)),
            || Ok(Some::default()),
            |_| Err::<(), _>(SegmentError::Malformed(Malformed(1))),
        );
        assert!(broken.is_err() && pool.used() == 500);
    }
}
