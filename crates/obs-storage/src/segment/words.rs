//! Compression of prose: a dictionary of the block's words, and their entropy-coded sequence.
//!
//! Prompts and answers are words that repeat without repeating their order: a coder that knows
//! the words spends a third less than one that looks for repeated stretches. Where that is not
//! so, a block is compressed with zstd; its first byte says which.
//!
//! Marks in the sequence let a stretch be read without what comes before it: who looks at one
//! trace wants one prompt of a block of hundreds.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::segment::columns::{Texts, get_ints, get_texts, put_ints, put_texts};
use crate::segment::kept::Measured as _;
use std::hash::{BuildHasher as _, RandomState};
use std::io;

const ZSTD: u8 = 0;
/// Without marks, as older versions wrote it.
const WORDS: u8 = 1;
const MARKED: u8 = 2;
/// Bytes of text between marks.
const MARK_BYTES: usize = 4 << 10;
const ZSTD_LEVEL: i32 = 3;
/// Longer words are cut.
const WORD_BYTES_MAX: usize = 48;
/// Distinct words of a block at most.
const DISTINCT_MAX: usize = 24 << 10;
/// Probabilities are multiples of 2^-16.
const PROB_BITS: u32 = 16;
const PROB_ONE: u32 = 1 << PROB_BITS;
/// The state is kept in `[LOW, LOW << 32)`.
const LOW: u64 = 1 << 31;

/// Which bytes of a text are of words, and which are spaces: a bit each.
struct Classes {
    words: Vec<u64>,
    spaces: Vec<u64>,
}

impl Classes {
    fn of(raw: &[u8]) -> Self {
        /// Makes a bit of each of 64 bytes that are 0 or 1.
        fn bits(flags: &[u8; 64]) -> u64 {
            let (eights, _) = flags.as_chunks::<8>();
            eights.iter().rev().fold(0, |bits, eight| {
                let gathered = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
                (bits << 8) | gathered
            })
        }
        let count = raw.len() / 64 + 2;
        let (mut words, mut spaces) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for chunk in raw.chunks(64) {
            let (mut text, mut word, mut space) = ([0; 64], [0; 64], [0; 64]);
            for (to, from) in text.iter_mut().zip(chunk) {
                *to = *from;
            }
            for ((b, word), space) in text.iter().zip(&mut word).zip(&mut space) {
                let letter = (b | 0x20).wrapping_sub(b'a') < 26;
                let digit = b.wrapping_sub(b'0') < 10;
                *word = u8::from(letter | digit | (*b == b'_') | (*b >= 0x80));
                *space = u8::from(*b == b' ');
            }
            words.push(bits(&word));
            spaces.push(bits(&space));
        }
        // What lies behind the text is neither.
        words.push(0);
        spaces.push(0);
        Self { words, spaces }
    }

    /// Returns the bits of the 64 bytes from a place on.
    fn window(bits: &[u64], at: usize) -> u64 {
        let bits_of = |i: usize| bits.get(i).copied().unwrap_or(0);
        let shift = at % 64;
        (bits_of(at / 64) >> shift) | (bits_of(at / 64 + 1) << 1 << (63 - shift))
    }

    /// Returns the length of the token that begins at a place: a word, with the space before it if
    /// there is one, or a run of everything else. It may reach behind the text.
    ///
    /// Without branches that depend on the text: these are guessed wrong at every other token.
    fn token_len(&self, at: usize) -> usize {
        let (words, spaces) = (Self::window(&self.words, at), Self::window(&self.spaces, at));
        let spaced_words = spaces & (words >> 1);
        let spaced = (spaced_words & 1) as u32;
        let word = words >> spaced;
        let run = if word & 1 == 1 {
            word.trailing_ones() + spaced
        } else {
            ((words | spaced_words) >> 1).trailing_zeros() + 1
        };
        (run as usize).min(WORD_BYTES_MAX)
    }
}

/// Scales counts to probabilities; every one keeps at least one slot.
fn normalise(counts: &[u32]) -> Vec<u32> {
    let total: u64 = counts.iter().map(|c| u64::from(*c)).sum::<u64>().max(1);
    let scale = |c: &u32| ((u64::from(*c) * u64::from(PROB_ONE) / total) as u32).max(1);
    let mut out: Vec<u32> = counts.iter().map(scale).collect();
    let mut sum: u32 = out.iter().sum();
    while sum != PROB_ONE {
        let Some(top) = out.iter_mut().max() else { break };
        if sum < PROB_ONE {
            *top += PROB_ONE - sum;
            sum = PROB_ONE;
        } else {
            let cut = (sum - PROB_ONE).min(*top / 2).max(1);
            *top -= cut;
            sum -= cut;
        }
    }
    out
}

/// The words of a block.
struct Words<'a> {
    /// Most frequent first.
    entries: Vec<&'a [u8]>,
    counts: Vec<u32>,
    /// Numbers of the entries, in the order in which they first occur.
    order: Vec<u16>,
    /// The text, by these numbers.
    ids: Vec<u16>,
    /// The first word at or after every so many bytes, and where in the text it begins.
    marks: Vec<(usize, usize)>,
}

/// What tells a word from others: its length, its first eight bytes and, if it is longer, its last
/// eight. Words of more than sixteen have others between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    first: u64,
    last: u64,
    len: usize,
}

impl Key {
    /// The bytes that a key holds whole.
    const WHOLE: usize = 16;

    fn of(raw: &[u8], at: usize, len: usize) -> Self {
        let eight = |from: usize| match raw.get(from..from + 8).map(<[u8; 8]>::try_from) {
            Some(Ok(bytes)) => u64::from_le_bytes(bytes),
            // The end of the block.
            _ => {
                let rest = raw.get(from..).unwrap_or_default();
                rest.iter().rev().fold(0, |all, b| (all << 8) | u64::from(*b))
            }
        };
        let cut = 64 - 8 * len.clamp(1, 8);
        let last = if len > 8 { eight(at + len - 8) } else { 0 };
        Self { first: eight(at) & (u64::MAX >> cut), last, len }
    }
}

/// Finds words by their bytes. A block has a hundred thousand: hashing two words of eight bytes and
/// looking once takes half the time of a general map.
struct Table {
    /// Number of the word from 1; 0 is free.
    slots: Vec<u16>,
    known: Vec<Key>,
    /// Random for the process, so that nobody can make words collide.
    keys: (u64, u64),
}

impl Table {
    /// Slots are at least two and a half times the words.
    const BITS: u32 = 16;

    fn new() -> Self {
        let key = || RandomState::new().hash_one(0_u8) | 1;
        Self { slots: vec![0; 1 << Self::BITS], known: Vec::new(), keys: (key(), key()) }
    }

    fn slot(&self, key: &Key, word: &[u8]) -> usize {
        let mut first = key.first;
        if key.len > Key::WHOLE {
            let between = word.get(8..word.len() - 8).unwrap_or_default();
            for eight in between.chunks(8) {
                let eight = eight.iter().fold(0, |all, b| (all << 8) | u64::from(*b));
                first = (first ^ self.keys.0).wrapping_mul(self.keys.1).rotate_left(31) ^ eight;
            }
        }
        let mixed = (first ^ self.keys.0).wrapping_mul(self.keys.1)
            ^ (key.last ^ key.len as u64).wrapping_mul(self.keys.0).rotate_left(29);
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - Self::BITS)) as usize
    }

    /// Returns the number of a word; it is `entries.len()` for one that is new.
    fn number(&mut self, key: Key, word: &[u8], entries: &[&[u8]]) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.slot(&key, word);
        loop {
            let Some(slot) = self.slots.get_mut(at & mask) else { return entries.len() };
            let Some(id) = usize::from(*slot).checked_sub(1) else {
                *slot = entries.len() as u16 + 1;
                self.known.push(key);
                return entries.len();
            };
            let is_same = self.known.get(id) == Some(&key)
                && (key.len <= Key::WHOLE || entries.get(id) == Some(&word));
            if is_same {
                return id;
            }
            at += 1;
        }
    }
}

/// Splits a block; `None` when it has too many distinct words to gain anything.
fn split(raw: &[u8]) -> Option<Words<'_>> {
    let classes = Classes::of(raw);
    let mut known = Table::new();
    let mut entries: Vec<&[u8]> = Vec::new();
    let mut counts: Vec<u32> = Vec::new();
    let mut ids: Vec<u16> = Vec::with_capacity(raw.len() / 5);
    let mut marks = Vec::new();
    let (mut at, mut next_mark) = (0, MARK_BYTES);
    while at < raw.len() {
        if at >= next_mark {
            marks.push((ids.len(), at));
            next_mark = at + MARK_BYTES;
        }
        let len = classes.token_len(at).clamp(1, raw.len() - at);
        let word = raw.get(at..at + len)?;
        let id = known.number(Key::of(raw, at, len), word, &entries);
        if id == entries.len() {
            entries.push(word);
            counts.push(0);
            let many = entries.len() > DISTINCT_MAX;
            if many || (ids.len() > 4096 && entries.len() * 3 > ids.len()) {
                return None;
            }
        }
        *counts.get_mut(id)? += 1;
        ids.push(id as u16);
        at += len;
    }
    let mut order: Vec<u16> = (0..entries.len() as u16).collect();
    let count = |id: &u16| counts.get(usize::from(*id)).copied().unwrap_or(0);
    order.sort_by_key(|id| std::cmp::Reverse(count(id)));
    Some(Words {
        entries: order.iter().filter_map(|id| entries.get(usize::from(*id)).copied()).collect(),
        counts: order.iter().map(count).collect(),
        order,
        ids,
        marks,
    })
}

/// How a word changes the coder's state `x`: to `x / p * PROB_ONE + x % p + start`, with the
/// division as a multiplication by the reciprocal, which is exact for states below 2^63 (Granlund
/// and Montgomery, "Division by invariant integers using multiplication").
#[derive(Debug, Clone, Copy, Default)]
struct Symbol {
    reciprocal: u64,
    p: u32,
    /// Added to the state: the first of the word's slots, and what rounding leaves.
    bias: u32,
    shift: u32,
}

impl Symbol {
    fn new(start: u32, p: u32) -> Self {
        if p <= 1 {
            // The reciprocal of 1 has no room: the quotient comes out one too small.
            return Self { reciprocal: u64::MAX, p, bias: start + PROB_ONE - 1, shift: 0 };
        }
        // The smallest with 2^bits >= p.
        let bits = 32 - (p - 1).leading_zeros();
        let reciprocal = ((1_u128 << (bits + 63)).div_ceil(p.into())) as u64;
        Self { reciprocal, p, bias: start, shift: bits - 1 }
    }

    const fn next(self, x: u64) -> u64 {
        let quotient = ((x as u128 * self.reciprocal as u128) >> 64) as u64 >> self.shift;
        x + self.bias as u64 + quotient * (PROB_ONE - self.p) as u64
    }
}

impl Words<'_> {
    /// Estimates the bytes of the coded sequence and the dictionary.
    fn estimate(&self) -> f64 {
        let total = self.ids.len().max(1) as f64;
        let bits: f64 =
            self.counts.iter().map(|c| f64::from(*c)).map(|c| c * (total / c).log2()).sum();
        let dictionary: usize = self.entries.iter().map(|e| e.len() + 1).sum();
        bits / 8.0 + dictionary as f64 * 0.55
    }

    fn put(&self, e: &mut Encoder) {
        put_texts(e, &self.entries);
        let probabilities = normalise(&self.counts);
        put_ints(e, &probabilities.iter().map(|p| i64::from(*p)).collect::<Vec<_>>());
        e.len(self.ids.len());
        let mut symbols = vec![Symbol::default(); probabilities.len()];
        let mut start = 0;
        for (p, id) in probabilities.iter().zip(&self.order) {
            if let Some(symbol) = symbols.get_mut(usize::from(*id)) {
                *symbol = Symbol::new(start, *p);
            }
            start += p;
        }
        // Decoding runs forwards, so coding runs backwards, from mark to mark.
        let mut x = LOW;
        let mut words: Vec<u32> = vec![0; self.ids.len() + 1];
        let mut used = 0;
        let mut states: Vec<(u64, usize)> = Vec::with_capacity(self.marks.len());
        let mut rest = self.ids.as_slice();
        let mut code = |ids: &[u16]| {
            for id in ids.iter().rev() {
                let Some(symbol) = symbols.get(usize::from(*id)) else { continue };
                // Written in any case and kept if there is no room for it: that is as likely as
                // not, and a wrong guess costs more than the store.
                if let Some(word) = words.get_mut(used) {
                    *word = x as u32;
                }
                let is_full = x >= ((LOW >> PROB_BITS) << 32) * u64::from(symbol.p);
                used += usize::from(is_full);
                x = symbol.next(if is_full { x >> 32 } else { x });
            }
            (x, used)
        };
        for (first, _) in self.marks.iter().rev() {
            let (before, behind) = rest.split_at_checked(*first).unwrap_or((rest, &[]));
            states.push(code(behind));
            rest = before;
        }
        let (x, used) = code(rest);
        words.truncate(used);
        states.reverse();
        put_ints(e, &self.marks.iter().map(|m| m.1 as i64).collect::<Vec<_>>());
        // Words that are left from a mark on are not read before it.
        put_ints(e, &states.iter().map(|s| (used - s.1) as i64).collect::<Vec<_>>());
        states.iter().for_each(|s| e.bytes.extend_from_slice(&s.0.to_le_bytes()));
        e.bytes.extend_from_slice(&x.to_le_bytes());
        words.iter().rev().for_each(|w| e.bytes.extend_from_slice(&w.to_le_bytes()));
    }
}

/// Compresses a block.
pub(crate) fn pack(raw: &[u8]) -> io::Result<Vec<u8>> {
    /// What zstd makes of this much tells what it would make of the block.
    const SAMPLE: usize = 64 << 10;
    if raw.len() >= SAMPLE
        && let Some(words) = split(raw)
        && let Some(sample) = raw.get(..SAMPLE)
    {
        let ratio = zstd::bulk::compress(sample, ZSTD_LEVEL)?.len() as f64 / SAMPLE as f64;
        // Longer input gives zstd more to refer to.
        if words.estimate() < 0.9 * ratio * raw.len() as f64 {
            let mut e = Encoder::default();
            e.u8(MARKED);
            words.put(&mut e);
            return Ok(e.bytes);
        }
    }
    let mut out = vec![ZSTD];
    out.extend(zstd::bulk::compress(raw, ZSTD_LEVEL)?);
    Ok(out)
}

/// A block, ready to be read.
#[derive(Debug)]
pub(crate) enum Block {
    /// All of its bytes.
    Whole(Vec<u8>),
    Coded(Box<Coded>),
}

impl Block {
    /// Returns the bytes that it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Whole(raw) => raw.len(),
            Self::Coded(c) => {
                let tables = size_of_val(c.slots.as_slice()) + size_of_val(c.ranges.as_slice());
                let marks = size_of_val(c.marks.as_slice());
                size_of::<Coded>() + c.entries.bytes() + tables + marks + c.packed.len()
            }
        }
    }
}

/// A mark: from where in the text on, what state decoding is in, and how many words it has used.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: usize,
    x: u64,
    used: usize,
}

/// A block of words whose sequence is not read yet.
#[derive(Debug)]
pub(crate) struct Coded {
    entries: Texts,
    /// The word of each of the probabilities' slots.
    slots: Vec<u16>,
    /// First slot and number of slots of each word.
    ranges: Vec<(u32, u32)>,
    /// By place; the first is the beginning.
    marks: Vec<Mark>,
    packed: Vec<u8>,
    /// Where in `packed` the words of the sequence begin.
    sequence: usize,
    raw_len: usize,
}

fn bad(e: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}

/// Reads a block of `raw_len` bytes of text.
pub(crate) fn open(packed: Vec<u8>, raw_len: usize) -> io::Result<Block> {
    let (kind, rest) = packed.split_first().ok_or_else(|| bad(Malformed(0)))?;
    match *kind {
        ZSTD => {
            let raw = zstd::bulk::decompress(rest, raw_len)?;
            if raw.len() == raw_len {
                Ok(Block::Whole(raw))
            } else {
                Err(bad(Malformed(raw.len())))
            }
        }
        kind @ (WORDS | MARKED) => {
            let coded = Coded::read(packed, kind == MARKED, raw_len).map_err(bad)?;
            Ok(Block::Coded(Box::new(coded)))
        }
        _ => Err(bad(Malformed(0))),
    }
}

impl Coded {
    fn read(packed: Vec<u8>, is_marked: bool, raw_len: usize) -> Result<Self, Malformed> {
        let mut d = Decoder::new(packed.get(1..).unwrap_or_default());
        let entries = get_texts(&mut d)?;
        let probabilities = get_ints(&mut d)?;
        d.len_free()?;
        if probabilities.len() != entries.len() || entries.iter().any(<[u8]>::is_empty) {
            return Err(d.bad());
        }
        let mut slots: Vec<u16> = Vec::with_capacity(PROB_ONE as usize);
        let mut ranges: Vec<(u32, u32)> = Vec::with_capacity(probabilities.len());
        for (id, p) in probabilities.iter().enumerate() {
            let p = u32::try_from(*p).ok().filter(|p| (1..=PROB_ONE).contains(p)).ok_or(d.bad())?;
            let start = slots.len();
            if start + p as usize > PROB_ONE as usize {
                return Err(d.bad());
            }
            let id = u16::try_from(id).map_err(|_| d.bad())?;
            slots.resize(start + p as usize, id);
            ranges.push((start as u32, p));
        }
        if slots.len() != PROB_ONE as usize {
            return Err(d.bad());
        }
        let mut marks = Vec::new();
        if is_marked {
            let (places, used) = (get_ints(&mut d)?, get_ints(&mut d)?);
            if places.len() != used.len() {
                return Err(d.bad());
            }
            for (at, used) in places.into_iter().zip(used) {
                let (at, used) = (usize::try_from(at).ok(), usize::try_from(used).ok());
                let x = u64::from_le_bytes(d.array()?);
                marks.push(Mark { at: at.ok_or(d.bad())?, x, used: used.ok_or(d.bad())? });
            }
        }
        marks.insert(0, Mark { at: 0, x: u64::from_le_bytes(d.array()?), used: 0 });
        if !marks.is_sorted_by_key(|m| m.at) {
            return Err(d.bad());
        }
        let sequence = packed.len() - d.rest().len();
        Ok(Self { entries, slots, ranges, marks, packed, sequence, raw_len })
    }

    /// Bytes of the whole text.
    pub(crate) fn raw_len(&self) -> usize {
        self.raw_len
    }

    /// Bytes of text that are gone through for a stretch.
    pub(crate) fn cost(&self, from: usize, to: usize) -> usize {
        to.saturating_sub(self.mark(from).map_or(0, |m| m.at))
    }

    /// Returns the last mark at or before a place.
    fn mark(&self, at: usize) -> Option<Mark> {
        let before = self.marks.partition_point(|m| m.at <= at).saturating_sub(1);
        self.marks.get(before).copied()
    }

    /// Appends a stretch of the text.
    pub(crate) fn append(&self, from: usize, to: usize, out: &mut Vec<u8>) -> io::Result<()> {
        self.decode(from, to, out).map_err(bad)
    }

    /// Returns the whole text.
    pub(crate) fn whole(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(self.raw_len);
        self.append(0, self.raw_len, &mut out)?;
        Ok(out)
    }

    fn decode(&self, from: usize, to: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
        if from > to || to > self.raw_len {
            return Err(Malformed(to));
        }
        let Some(Mark { mut at, mut x, used }) = self.mark(from) else {
            return Err(Malformed(0));
        };
        let sequence = self.packed.get(self.sequence..).unwrap_or_default();
        let mut words = sequence.get(used * 4..).ok_or(Malformed(used))?.chunks_exact(4);
        while at < to {
            let slot = (x & u64::from(PROB_ONE - 1)) as u32;
            let id = usize::from(*self.slots.get(slot as usize).ok_or(Malformed(at))?);
            let (start, p) = *self.ranges.get(id).ok_or(Malformed(at))?;
            x = u64::from(p)
                .wrapping_mul(x >> PROB_BITS)
                .wrapping_add(u64::from(slot.wrapping_sub(start)));
            if x < LOW {
                // A sequence that ends early is damaged; without this it would never end.
                let word = words.next().and_then(|w| w.try_into().ok()).ok_or(Malformed(at))?;
                x = (x << 32) | u64::from(u32::from_le_bytes(word));
            }
            let word = self.entries.get(id).ok_or(Malformed(at))?;
            let end = at + word.len();
            if end > from {
                let cut = from.saturating_sub(at)..word.len() - end.saturating_sub(to);
                out.extend_from_slice(word.get(cut).ok_or(Malformed(at))?);
            }
            at = end;
        }
        // The sequence ends as it began to be made, with the last word.
        let is_end = to == self.raw_len;
        if is_end && (at != to || x != LOW || words.next().is_some()) {
            return Err(Malformed(at));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unpack(packed: &[u8], raw_len: usize) -> io::Result<Vec<u8>> {
        match open(packed.to_vec(), raw_len)? {
            Block::Whole(raw) => Ok(raw),
            Block::Coded(c) => c.whole(),
        }
    }

    fn prose(words: usize) -> String {
        let mut out = String::new();
        let mut x = 12345_u64;
        for i in 0..words {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Few words often, many seldom.
            let rank = ((x >> 33) % 1000) * ((x >> 13) % 1000) / 1000;
            out.push_str(&format!("w{}x{rank}", rank % 7));
            out.push(if i % 17 == 0 { '.' } else { ' ' });
        }
        out
    }

    #[test]
    fn prose_is_coded_by_words_and_beats_zstd() {
        let text = prose(40_000);
        let packed = pack(text.as_bytes()).unwrap();
        assert_eq!(packed.first(), Some(&MARKED));
        let zstd = zstd::bulk::compress(text.as_bytes(), ZSTD_LEVEL).unwrap().len();
        assert!(packed.len() * 10 < zstd * 9, "{} of {zstd}", packed.len());
        assert_eq!(unpack(&packed, text.len()).unwrap(), text.as_bytes());
        // A wrong length or a cut is an error, never other text.
        assert!(unpack(&packed, text.len() + 1).is_err());
        assert!(unpack(&packed, text.len() - 1).is_err());
        assert!(unpack(&packed[..packed.len() - 4], text.len()).is_err());
        // Any stretch is read by itself.
        let Block::Coded(coded) = open(packed, text.len()).unwrap() else { panic!("zstd") };
        assert!(coded.marks.len() > 10);
        for (from, len) in
            [(0, 0), (0, 1), (MARK_BYTES - 3, 7), (50_000, 40_000), (text.len() - 9, 9)]
        {
            let mut out = b"before ".to_vec();
            coded.append(from, from + len, &mut out).unwrap();
            assert_eq!(out.strip_prefix(b"before ").unwrap(), &text.as_bytes()[from..from + len]);
        }
        assert!(coded.append(5, text.len() + 1, &mut Vec::new()).is_err());
        assert!(coded.append(5, 4, &mut Vec::new()).is_err());
    }

    #[test]
    fn blocks_without_marks_are_read_too() {
        let text = prose(600);
        let words = split(text.as_bytes()).unwrap();
        let (mut new, mut head, mut marks) =
            (Encoder::default(), Encoder::default(), Encoder::default());
        words.put(&mut new);
        put_texts(&mut head, &words.entries);
        let probabilities = normalise(&words.counts);
        put_ints(&mut head, &probabilities.iter().map(|p| i64::from(*p)).collect::<Vec<_>>());
        head.len(words.ids.len());
        // Two lists of none.
        put_ints(&mut marks, &[]);
        put_ints(&mut marks, &[]);
        let (before, after) = new.bytes.split_at(head.bytes.len());
        let old = [&[WORDS], before, after.strip_prefix(marks.bytes.as_slice()).unwrap()].concat();
        assert!(text.len() < MARK_BYTES);
        assert_eq!(unpack(&old, text.len()).unwrap(), text.as_bytes());
    }

    #[test]
    fn what_has_no_words_is_left_to_zstd() {
        let ids: String = (0..20_000_u64)
            .map(|i| format!("{:016x}\n", i.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect();
        let packed = pack(ids.as_bytes()).unwrap();
        assert_eq!(packed.first(), Some(&ZSTD));
        assert_eq!(unpack(&packed, ids.len()).unwrap(), ids.as_bytes());
    }

    /// The tokens of a text, byte by byte.
    fn tokens(text: &[u8]) -> Vec<&[u8]> {
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
        let word_at = |i: usize| text.get(i).is_some_and(is_word);
        let spaced_at = |i: usize| text.get(i) == Some(&b' ') && word_at(i + 1);
        let (mut out, mut at) = (Vec::new(), 0);
        while at < text.len() {
            let mut end = at + 1;
            if word_at(at) || spaced_at(at) {
                end += usize::from(spaced_at(at));
                while word_at(end) && end - at < WORD_BYTES_MAX {
                    end += 1;
                }
            } else {
                let inside = |i: usize| i < text.len() && !word_at(i) && !spaced_at(i);
                while inside(end) && end - at < WORD_BYTES_MAX {
                    end += 1;
                }
            }
            out.push(&text[at..end]);
            at = end;
        }
        out
    }

    #[test]
    fn states_go_on_as_division_says() {
        for p in (1..300).chain([1000, 4095, 4096, 32_769, PROB_ONE - 1, PROB_ONE]) {
            let symbol = Symbol::new(7, p);
            let p = u64::from(p);
            // States below which nothing is written out: from LOW to p * LOW << 32 >> 16.
            let top = (p << 47) - 1;
            for x in [LOW, LOW + 1, LOW | 0x1234_5678, top / 3, top - 1, top] {
                let x = x.min(top);
                assert_eq!(symbol.next(x), ((x / p) << PROB_BITS) + x % p + 7, "{x} by {p}");
            }
        }
    }

    proptest! {
        #[test]
        fn texts_are_split_as_byte_by_byte(
            text in r#"([ a-e]{0,9}|[ -~\n]{0,12}|[你好é ]{0,9}|[a-c]{40,100}|[. ]{40,100}){0,20}"#,
        ) {
            let text = text.as_bytes();
            if let Some(words) = split(text) {
                let first_seen = |id: &u16| {
                    let rank = words.order.iter().position(|o| o == id).unwrap();
                    words.entries[rank]
                };
                let found: Vec<&[u8]> = words.ids.iter().map(first_seen).collect();
                prop_assert_eq!(&found, &tokens(text));
                let distinct: std::collections::HashSet<&[u8]> = found.iter().copied().collect();
                prop_assert_eq!(distinct.len(), words.entries.len());
            }
        }

        #[test]
        fn any_bytes_come_back(
            text in r#"([ a-e]{0,9}|[ -~\n]{0,12}|[你好é ]{0,9}){0,60}"#,
            damage in any::<(usize, u8)>(),
        ) {
            let mut packed = Encoder::default();
            packed.u8(MARKED);
            if let Some(words) = split(text.as_bytes()).filter(|w| !w.ids.is_empty()) {
                words.put(&mut packed);
                prop_assert_eq!(unpack(&packed.bytes, text.len()).unwrap(), text.as_bytes());
                let at = damage.0 % packed.bytes.len();
                packed.bytes[at] ^= damage.1;
                // No panic and no end of memory; checksums catch what decodes.
                let _ = unpack(&packed.bytes, text.len());
            }
        }
    }
}
