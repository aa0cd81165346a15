//! Long texts, stored once by content.
//!
//! A prompt that is sent again with one more turn is mostly what was sent before: a JSON array is
//! cut between its elements, and each distinct part is stored once a segment. Joining the parts
//! gives the text back byte for byte.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::segment::SegmentError;
use crate::segment::file::{BlockRef, SegmentFile, SegmentWriter};
use crate::segment::kept::{Columns, Keeper, Piece};
use crate::segment::words;
use foldhash::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Texts from this length on are kept as parts.
pub(crate) const LONG_BYTES: usize = 192;
/// Elements are joined until a part has this length.
const PART_BYTES_MIN: usize = 96;
/// A longer part is cut.
const PART_BYTES_MAX: usize = 256 << 10;
/// Bytes of parts compressed together.
const BLOCK_BYTES: usize = 512 << 10;

/// Cuts a text; the cuts of a text that only grows at its end stay where they are.
fn cut(text: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    let mut rest = text;
    if text.first() == Some(&b'[') {
        let (mut depth, mut quoted, mut escaped, mut start) = (0_i32, false, false, 0);
        for (i, b) in text.iter().enumerate() {
            match b {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth -= 1,
                b',' if depth == 1 && i + 1 - start >= PART_BYTES_MIN => {
                    out.push(text.get(start..=i).unwrap_or_default());
                    start = i + 1;
                }
                _ => {}
            }
        }
        rest = text.get(start..).unwrap_or_default();
        // The closing bracket stands apart: the element before it may be followed by more.
        if let Some((b"]", element)) = rest.split_last_chunk::<1>().map(|(a, b)| (b.as_slice(), a))
            && element.len() >= PART_BYTES_MIN
        {
            out.push(element);
            rest = b"]";
        }
    }
    out.push(rest);
    out.into_iter().flat_map(|p| p.chunks(PART_BYTES_MAX)).collect()
}

/// Collects the parts of a segment.
#[derive(Debug, Default)]
pub(crate) struct PartWriter {
    /// Both halves are keyed at random for the process, so that nobody can make parts collide.
    keys: (RandomState, RandomState),
    known: HashMap<(u64, u64), u32>,
    /// Lengths of all parts, in order.
    lengths: Vec<i64>,
    pending: Vec<u8>,
    pending_parts: u64,
    /// (block, number of parts in it).
    blocks: Vec<(BlockRef, u32, u64)>,
}

impl PartWriter {
    /// Adds a text and appends the numbers of its parts.
    pub(crate) fn add(
        &mut self,
        out: &mut SegmentWriter,
        text: &[u8],
        numbers: &mut Vec<i64>,
    ) -> Result<usize, SegmentError> {
        let parts = cut(text);
        for part in &parts {
            let key = (self.keys.0.hash_one(part), self.keys.1.hash_one(part));
            let next = self.lengths.len() as u32;
            let number = *self.known.entry(key).or_insert(next);
            if number == next {
                self.lengths.push(part.len() as i64);
                self.pending.extend_from_slice(part);
                self.pending_parts += 1;
                if self.pending.len() >= BLOCK_BYTES {
                    self.flush(out)?;
                }
            }
            numbers.push(number.into());
        }
        Ok(parts.len())
    }

    /// Copies the parts of another segment; returns by how much their numbers grew.
    pub(crate) fn absorb(
        &mut self,
        from: &Parts,
        file: &SegmentFile,
        out: &mut SegmentWriter,
    ) -> Result<i64, SegmentError> {
        self.flush(out)?;
        let base = self.lengths.len() as i64;
        for (i, b) in from.blocks.iter().enumerate() {
            let end = from.blocks.get(i + 1).map_or(from.places.len(), |next| next.first);
            let at = out.put(&file.read(b.block)?)?;
            self.blocks.push((at, b.raw_len, (end - b.first) as u64));
        }
        self.lengths.extend(from.places.iter().map(|(_, len)| i64::from(*len)));
        Ok(base)
    }

    fn flush(&mut self, out: &mut SegmentWriter) -> Result<(), SegmentError> {
        if self.pending_parts == 0 {
            return Ok(());
        }
        let packed = words::pack(&self.pending)?;
        let block = out.put(&packed)?;
        self.blocks.push((block, self.pending.len() as u32, self.pending_parts));
        self.pending.clear();
        self.pending_parts = 0;
        Ok(())
    }

    /// Writes what is pending, and the directory of the parts into the index.
    pub(crate) fn finish(
        mut self,
        out: &mut SegmentWriter,
        index: &mut Encoder,
    ) -> Result<(), SegmentError> {
        self.flush(out)?;
        index.len(self.blocks.len());
        for (block, raw, parts) in &self.blocks {
            block.put(index);
            index.uint((*raw).into());
            index.uint(*parts);
        }
        crate::segment::columns::put_ints(index, &self.lengths);
        Ok(())
    }
}

#[derive(Debug)]
struct PartBlock {
    block: BlockRef,
    raw_len: u32,
    first: usize,
}

/// Where the parts of a segment are.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    blocks: Vec<PartBlock>,
    /// Offset of each part in its block, and length.
    places: Vec<(u32, u32)>,
}

/// A block of parts that was read.
#[derive(Debug)]
pub(crate) struct OpenParts {
    text: RwLock<words::Block>,
    /// Bytes of text that were gone through for parts of it.
    decoded: AtomicUsize,
}

impl Columns for OpenParts {
    fn bytes(&self) -> usize {
        let text = self.text.read().unwrap_or_else(PoisonError::into_inner);
        size_of::<Self>() + text.bytes()
    }
}

impl OpenParts {
    /// Appends a stretch of the block's text; true if the block takes other memory than before.
    fn append(&self, from: usize, to: usize, out: &mut Vec<u8>) -> Result<bool, SegmentError> {
        let stretch = |raw: &[u8], out: &mut Vec<u8>| -> Result<(), Malformed> {
            out.extend_from_slice(raw.get(from..to).ok_or(Malformed(from))?);
            Ok(())
        };
        let text = self.text.read().unwrap_or_else(PoisonError::into_inner);
        let whole = match &*text {
            words::Block::Whole(raw) => {
                stretch(raw, out)?;
                return Ok(false);
            }
            words::Block::Coded(coded) => {
                // Who reads parts that cost as much as all of it reads all of it.
                let cost = coded.cost(from, to);
                let decoded = self.decoded.fetch_add(cost, Ordering::Relaxed).saturating_add(cost);
                if decoded <= coded.raw_len() {
                    coded.append(from, to, out)?;
                    return Ok(false);
                }
                coded.whole()?
            }
        };
        drop(text);
        stretch(&whole, out)?;
        *self.text.write().unwrap_or_else(PoisonError::into_inner) = words::Block::Whole(whole);
        Ok(true)
    }
}

/// The block of parts that was read last: rows that follow one another share it.
#[derive(Debug, Default)]
pub(crate) struct PartCache(Option<(usize, Arc<OpenParts>)>);

impl Parts {
    pub(crate) fn read(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let mut blocks = Vec::new();
        let mut first = 0_usize;
        for _ in 0..d.len()? {
            let block = BlockRef::get(d)?;
            let raw_len = u32::try_from(d.uint()?).map_err(|_| d.bad())?;
            let parts = d.len_free()?;
            blocks.push((PartBlock { block, raw_len, first }, parts));
            first = first.checked_add(parts).ok_or(d.bad())?;
        }
        let lengths = crate::segment::columns::get_ints(d)?;
        if lengths.len() != first {
            return Err(d.bad());
        }
        let mut lengths = lengths.into_iter();
        let mut places = Vec::with_capacity(first);
        for (_, parts) in &blocks {
            let mut at = 0_u32;
            for len in lengths.by_ref().take(*parts) {
                let len = u32::try_from(len).map_err(|_| d.bad())?;
                places.push((at, len));
                at = at.checked_add(len).ok_or(d.bad())?;
            }
        }
        Ok(Self { blocks: blocks.into_iter().map(|(b, _)| b).collect(), places })
    }

    /// Returns the references of all blocks.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = BlockRef> {
        self.blocks.iter().map(|b| b.block)
    }

    /// Appends a part. Blocks that are read stay in `keeper` for the next query.
    pub(crate) fn append(
        &self,
        file: &SegmentFile,
        number: i64,
        cache: &mut PartCache,
        keeper: Option<&Keeper>,
        out: &mut Vec<u8>,
    ) -> Result<(), SegmentError> {
        let number = usize::try_from(number).map_err(|_| Malformed(0))?;
        let (at, len) = *self.places.get(number).ok_or(Malformed(number))?;
        let i = self.blocks.partition_point(|b| b.first <= number).saturating_sub(1);
        let (block, mut is_new) = match &cache.0 {
            Some((cached, block)) if *cached == i => (block.clone(), false),
            _ => {
                let kept = keeper.and_then(|(k, s)| k.columns.find((*s, Piece::Parts(i))));
                let is_new = kept.is_none();
                (kept.map_or_else(|| self.open(file, i).map(Arc::new), Ok)?, is_new)
            }
        };
        is_new |= block.append(at as usize, at as usize + len as usize, out)?;
        if let (true, Some((kept, segment))) = (is_new, keeper) {
            kept.columns.keep((*segment, Piece::Parts(i)), block.clone());
        }
        cache.0 = Some((i, block));
        Ok(())
    }

    fn open(&self, file: &SegmentFile, i: usize) -> Result<OpenParts, SegmentError> {
        const RAW_MAX: u32 = 64 << 20;
        let b = self.blocks.get(i).filter(|b| b.raw_len <= RAW_MAX).ok_or(Malformed(i))?;
        let text = words::open(file.read(b.block)?, b.raw_len as usize)?;
        Ok(OpenParts { text: RwLock::new(text), decoded: AtomicUsize::new(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cuts_join_again_and_stay_when_the_text_grows(
            turns in prop::collection::vec(r#"[a-z"\[\]{},\\]{0,300}"#, 1..20)
        ) {
            let array = |n: usize| {
                let items: Vec<String> =
                    turns[..n].iter().map(|t| format!(r#"{{"role":"user","content":{t:?}}}"#)).collect();
                format!("[{}]", items.join(","))
            };
            let mut before: Vec<Vec<u8>> = Vec::new();
            for n in 1..=turns.len() {
                let text = array(n);
                let parts = cut(text.as_bytes());
                prop_assert_eq!(parts.concat(), text.as_bytes());
                // All but the last two parts of the shorter conversation are parts of the longer.
                let keep = before.len().saturating_sub(2);
                let same = parts.iter().zip(&before).take(keep).filter(|(a, b)| **a == b.as_slice()).count();
                prop_assert_eq!(same, keep);
                before = parts.into_iter().map(<[u8]>::to_vec).collect();
            }
            prop_assert_eq!(cut(b"").concat(), b"");
        }
    }
}
