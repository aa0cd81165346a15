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

const IS_WORD: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        table[i] = b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
        i += 1;
    }
    table
};

fn is_word(b: Option<&u8>) -> bool {
    b.is_some_and(|b| IS_WORD.get(usize::from(*b)).copied().unwrap_or(false))
}

/// Returns the length of the token at the start: a word, with the space before it if there is
/// one, or a run of everything else.
fn token_len(text: &[u8]) -> usize {
    let spaced = usize::from(text.first() == Some(&b' ') && is_word(text.get(1)));
    let mut n = spaced;
    if is_word(text.get(n)) {
        while n < WORD_BYTES_MAX && is_word(text.get(n)) {
            n += 1;
        }
        return n;
    }
    while n < WORD_BYTES_MAX.min(text.len()) {
        let here = text.get(n);
        let ends = is_word(here) || (here == Some(&b' ') && n > 0 && is_word(text.get(n + 1)));
        if ends {
            break;
        }
        n += 1;
    }
    n
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
    ids: Vec<u32>,
}

/// Finds words by their bytes. A block has a hundred thousand: hashing two words of eight bytes and
/// looking once takes half the time of a general map.
struct Table {
    /// Number of the word from 1; 0 is free.
    slots: Vec<u32>,
    /// Random for the process, so that nobody can make words collide.
    keys: (u64, u64),
}

impl Table {
    /// Slots are four times the words.
    const BITS: u32 = 17;

    fn new() -> Self {
        let key = || RandomState::new().hash_one(0_u8) | 1;
        Self { slots: vec![0; 1 << Self::BITS], keys: (key(), key()) }
    }

    fn slot(&self, word: &[u8]) -> usize {
        fn load(bytes: &[u8]) -> u64 {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(bytes) {
                *to = *from;
            }
            u64::from_le_bytes(word)
        }
        let eight = |from: usize| -> u64 {
            let whole = word.get(from..from + 8).and_then(|b| <[u8; 8]>::try_from(b).ok());
            whole.map_or_else(|| load(word.get(from..).unwrap_or_default()), u64::from_le_bytes)
        };
        let (mut a, b) = (eight(0), eight(word.len().saturating_sub(8)));
        for from in (8..word.len().saturating_sub(8)).step_by(8) {
            a = (a ^ self.keys.0).wrapping_mul(self.keys.1).rotate_left(31) ^ eight(from);
        }
        let mixed = (a ^ self.keys.0).wrapping_mul(self.keys.1)
            ^ (b ^ word.len() as u64).wrapping_mul(self.keys.0).rotate_left(29);
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - Self::BITS)) as usize
    }

    /// Returns the number of a word; it is `entries.len()` for one that is new.
    fn number(&mut self, word: &[u8], entries: &[&[u8]]) -> u32 {
        let mask = self.slots.len() - 1;
        let mut at = self.slot(word);
        loop {
            let Some(slot) = self.slots.get_mut(at & mask) else { return entries.len() as u32 };
            if *slot == 0 {
                *slot = entries.len() as u32 + 1;
                return entries.len() as u32;
            }
            if entries.get(*slot as usize - 1) == Some(&word) {
                return *slot - 1;
            }
            at += 1;
        }
    }
}

/// Splits a block; `None` when it has too many distinct words to gain anything.
fn split(raw: &[u8]) -> Option<Words<'_>> {
    let mut known = Table::new();
    let mut entries: Vec<&[u8]> = Vec::new();
    let mut counts: Vec<u32> = Vec::new();
    let mut ids: Vec<u32> = Vec::with_capacity(raw.len() / 5);
    let mut rest = raw;
    while !rest.is_empty() {
        let (token, tail) = rest.split_at_checked(token_len(rest).max(1))?;
        rest = tail;
        let next = entries.len() as u32;
        let id = known.number(token, &entries);
        if id == next {
            entries.push(token);
            counts.push(0);
            let many = entries.len() > DISTINCT_MAX;
            if many || (ids.len() > 4096 && entries.len() * 3 > ids.len()) {
                return None;
            }
        }
        *counts.get_mut(id as usize)? += 1;
        ids.push(id);
    }
    let mut order: Vec<u32> = (0..entries.len() as u32).collect();
    let count = |id: &u32| counts.get(*id as usize).copied().unwrap_or(0);
    order.sort_by_key(|id| std::cmp::Reverse(count(id)));
    let mut rank = vec![0_u32; entries.len()];
    for (new, old) in order.iter().enumerate() {
        *rank.get_mut(*old as usize)? = new as u32;
    }
    for id in &mut ids {
        *id = *rank.get(*id as usize)?;
    }
    Some(Words {
        entries: order.iter().filter_map(|id| entries.get(*id as usize).copied()).collect(),
        counts: order.iter().map(count).collect(),
        ids,
    })
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
        let mut ranges = Vec::with_capacity(probabilities.len());
        let mut start = 0_u64;
        for p in probabilities {
            ranges.push((start, u64::from(p)));
            start += u64::from(p);
        }
        // The first word at or after every so many bytes, and where in the text it begins.
        let (mut at, mut next) = (0, MARK_BYTES);
        let mut marks: Vec<(usize, usize)> = Vec::new();
        for (i, id) in self.ids.iter().enumerate() {
            if at >= next {
                marks.push((i, at));
                next = at + MARK_BYTES;
            }
            at += self.entries.get(*id as usize).map_or(0, |w| w.len());
        }
        // Decoding runs forwards, so coding runs backwards.
        let mut x = LOW;
        let mut words: Vec<u32> = Vec::with_capacity(self.ids.len() / 2);
        let mut states: Vec<(u64, usize)> = Vec::with_capacity(marks.len());
        for (i, id) in self.ids.iter().enumerate().rev() {
            let Some((start, p)) = ranges.get(*id as usize) else { continue };
            if x >= ((LOW >> PROB_BITS) << 32) * p {
                words.push(x as u32);
                x >>= 32;
            }
            x = ((x / p) << PROB_BITS) + x % p + start;
            let waiting = marks.len() - states.len();
            if waiting.checked_sub(1).and_then(|m| marks.get(m)).is_some_and(|m| m.0 == i) {
                states.push((x, words.len()));
            }
        }
        states.reverse();
        put_ints(e, &marks.iter().map(|m| m.1 as i64).collect::<Vec<_>>());
        // Words that are left from a mark on are not read before it.
        put_ints(e, &states.iter().map(|s| (words.len() - s.1) as i64).collect::<Vec<_>>());
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

    proptest! {
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
