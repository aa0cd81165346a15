//! Compression of prose: a dictionary of the block's words, and their entropy-coded sequence.
//!
//! Prompts and answers are words that repeat without repeating their order: a coder that knows
//! the words spends a third less than one that looks for repeated stretches. Where that is not
//! so, a block is compressed with zstd; its first byte says which.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::segment::columns::{get_ints, get_texts, put_ints, put_texts};
use std::hash::{BuildHasher as _, RandomState};
use std::io;

const ZSTD: u8 = 0;
const WORDS: u8 = 1;
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
        // Decoding runs forwards, so coding runs backwards.
        let mut x = LOW;
        let mut words: Vec<u32> = Vec::with_capacity(self.ids.len() / 2);
        for id in self.ids.iter().rev() {
            let Some((start, p)) = ranges.get(*id as usize) else { continue };
            if x >= ((LOW >> PROB_BITS) << 32) * p {
                words.push(x as u32);
                x >>= 32;
            }
            x = ((x / p) << PROB_BITS) + x % p + start;
        }
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
            e.u8(WORDS);
            words.put(&mut e);
            return Ok(e.bytes);
        }
    }
    let mut out = vec![ZSTD];
    out.extend(zstd::bulk::compress(raw, ZSTD_LEVEL)?);
    Ok(out)
}

/// Returns a block's `raw_len` bytes.
pub(crate) fn unpack(packed: &[u8], raw_len: usize) -> io::Result<Vec<u8>> {
    let bad = |e: Malformed| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
    let raw = match packed.split_first() {
        Some((&ZSTD, rest)) => zstd::bulk::decompress(rest, raw_len)?,
        Some((&WORDS, rest)) => unpack_words(rest, raw_len).map_err(bad)?,
        _ => return Err(bad(Malformed(0))),
    };
    if raw.len() == raw_len { Ok(raw) } else { Err(bad(Malformed(raw.len()))) }
}

fn unpack_words(bytes: &[u8], raw_len: usize) -> Result<Vec<u8>, Malformed> {
    let mut d = Decoder::new(bytes);
    let entries = get_texts(&mut d)?;
    let probabilities = get_ints(&mut d)?;
    let count = d.len_free()?;
    if probabilities.len() != entries.len() {
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
    let mut x = u64::from_le_bytes(d.array()?);
    let mut words = d.rest().chunks_exact(4);
    let mut out = Vec::with_capacity(raw_len);
    for _ in 0..count {
        let slot = (x & u64::from(PROB_ONE - 1)) as u32;
        let id = *slots.get(slot as usize).ok_or(d.bad())?;
        let (start, p) = *ranges.get(usize::from(id)).ok_or(d.bad())?;
        x = u64::from(p)
            .wrapping_mul(x >> PROB_BITS)
            .wrapping_add(u64::from(slot.wrapping_sub(start)));
        if x < LOW {
            let word = words.next().and_then(|w| w.try_into().ok()).map_or(0, u32::from_le_bytes);
            x = (x << 32) | u64::from(word);
        }
        out.extend_from_slice(entries.get(usize::from(id)).ok_or(d.bad())?);
        // Only damage makes more than was put in.
        if out.len() > raw_len {
            return Err(d.bad());
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        assert_eq!(packed.first(), Some(&WORDS));
        let zstd = zstd::bulk::compress(text.as_bytes(), ZSTD_LEVEL).unwrap().len();
        assert!(packed.len() * 10 < zstd * 9, "{} of {zstd}", packed.len());
        assert_eq!(unpack(&packed, text.len()).unwrap(), text.as_bytes());
        // A wrong length or a cut is an error, never other text.
        assert!(unpack(&packed, text.len() + 1).is_err());
        assert!(unpack(&packed, text.len() - 1).is_err());
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
            if let Some(words) = split(text.as_bytes()).filter(|w| !w.ids.is_empty()) {
                words.put(&mut packed);
                prop_assert_eq!(unpack_words(&packed.bytes, text.len()).unwrap(), text.as_bytes());
                let at = damage.0 % packed.bytes.len();
                packed.bytes[at] ^= damage.1;
                // No panic and no end of memory; checksums catch what decodes.
                let _ = unpack_words(&packed.bytes, text.len());
            }
        }
    }
}
