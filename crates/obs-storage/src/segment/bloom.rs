//! Filters of the long words of a block of lines: which blocks a search for an id can skip.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::segment::kept::BlockKey;
use foldhash::HashSet;
use obs_model::Lru;
use std::sync::{Arc, Mutex, PoisonError};

/// Runs of letters and digits from this length on are in the filter.
pub(crate) const WORD_BYTES_MIN: usize = 16;
/// One block in a thousand is read for nothing.
const BITS_PER_WORD: usize = 16;
const PROBES: u32 = 6;

/// The hash is part of the format: FNV-1a, mixed.
fn hash(word: &[u8]) -> u64 {
    let h = word
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 33)
}

/// Which bytes are ASCII letters or digits: a look-up costs a third of the comparisons.
const WORD: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 128 {
        table[b] = (b as u8).is_ascii_alphanumeric();
        b += 1;
    }
    table
};

fn is_word(b: u8) -> bool {
    WORD.get(usize::from(b)).copied().unwrap_or(false)
}

/// Returns the runs of ASCII letters and digits of a text with their positions.
pub(crate) fn runs(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = text.get(at..)?;
        let skip = rest.iter().position(|b| is_word(*b))?;
        let run = rest.get(skip..)?;
        let len = run.iter().position(|b| !is_word(*b)).unwrap_or(run.len());
        let start = at + skip;
        at = start + len;
        Some((start, text.get(start..at)?))
    })
}

/// Collects the words of a block.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    hashes: Vec<u64>,
    longest: usize,
}

impl Builder {
    pub(crate) fn add_text(&mut self, text: &[u8]) {
        // A run that long covers every position of some residue: most bytes need no look.
        let word_at = |i: usize| text.get(i).is_some_and(|b| is_word(*b));
        let (mut last_end, mut at) = (0, WORD_BYTES_MIN - 1);
        while at < text.len() {
            if !word_at(at) {
                at += WORD_BYTES_MIN;
                continue;
            }
            let mut start = at;
            while start > last_end && word_at(start - 1) {
                start -= 1;
            }
            let mut end = at + 1;
            while word_at(end) {
                end += 1;
            }
            if let Some(run) = text.get(start..end).filter(|r| r.len() >= WORD_BYTES_MIN) {
                self.hashes.push(hash(run));
                self.longest = self.longest.max(run.len());
            }
            last_end = end;
            at = end + WORD_BYTES_MIN;
        }
    }

    /// Adds a value as a whole, which [`Filter::has`] finds.
    pub(crate) fn add_value(&mut self, value: &[u8]) {
        self.hashes.push(hash(value));
    }

    /// Returns how many words there are, repeated ones too.
    pub(crate) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Forgets repeated words.
    pub(crate) fn compact(&mut self) {
        let distinct: HashSet<u64> = self.hashes.drain(..).collect();
        self.hashes.extend(distinct);
    }

    /// Returns the filter: the longest word's length, then the bits.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.hashes.sort_unstable();
        self.hashes.dedup();
        let mut e = Encoder::default();
        e.len(self.longest);
        let size = (self.hashes.len() * BITS_PER_WORD).div_ceil(8);
        let mut bits = vec![0_u8; size];
        for h in self.hashes {
            for p in probes(h, size * 8) {
                if let Some(b) = bits.get_mut(p / 8) {
                    *b |= 1 << (p % 8);
                }
            }
        }
        e.raw(&bits);
        e.bytes
    }
}

fn probes(h: u64, bits: usize) -> impl Iterator<Item = usize> {
    let (a, b) = (h as u32, (h >> 32) as u32 | 1);
    (0..PROBES).map(move |i| a.wrapping_add(b.wrapping_mul(i)) as usize % bits.max(1))
}

/// Filters that were read and checked, by segment and block: a search asks all of them.
#[derive(Debug)]
pub(crate) struct FilterCache(Mutex<Lru<BlockKey, Arc<[u8]>>>);

impl FilterCache {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self(Mutex::new(Lru::new(bytes_max)))
    }

    /// Returns a block's filter, reading it if it is not here.
    pub(crate) fn get<E>(
        &self,
        key: BlockKey,
        read: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Arc<[u8]>, E> {
        let cache = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(f) = cache().get(&key) {
            return Ok(f.clone());
        }
        let bytes: Arc<[u8]> = read()?.into();
        cache().put(key, bytes.clone(), bytes.len() as u64);
        Ok(bytes)
    }
}

/// A filter being asked.
#[derive(Debug)]
pub(crate) struct Filter<'a> {
    longest: usize,
    bits: &'a [u8],
}

impl<'a> Filter<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(bytes);
        Ok(Self { longest: d.len_free()?, bits: d.raw()? })
    }

    /// Returns false if the value was not added.
    pub(crate) fn has(&self, word: &[u8]) -> bool {
        !self.bits.is_empty()
            && probes(hash(word), self.bits.len() * 8)
                .all(|p| self.bits.get(p / 8).is_some_and(|b| b & (1 << (p % 8)) != 0))
    }

    /// Returns false if no line of the block contains `needle`.
    pub(crate) fn may_contain(&self, needle: &[u8]) -> bool {
        runs(needle).all(|(start, run)| {
            if run.len() < WORD_BYTES_MIN {
                return true;
            }
            // At an edge of the needle the word in the line may be longer than what is searched.
            let whole = start > 0 && start + run.len() < needle.len();
            if !whole && self.longest > run.len() {
                return true;
            }
            self.has(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_long_run_is_added(text in "[a-z0-9 ,]{0,80}([a-z0-9]{10,20}[ =]?){0,6}") {
            let mut b = Builder::default();
            b.add_text(text.as_bytes());
            let mut got = b.hashes.clone();
            let long = runs(text.as_bytes()).filter(|(_, r)| r.len() >= WORD_BYTES_MIN);
            let mut want: Vec<u64> = long.map(|(_, r)| hash(r)).collect();
            got.sort_unstable();
            want.sort_unstable();
            proptest::prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn present_words_are_never_denied_and_absent_ones_mostly() {
        let mut b = Builder::default();
        let word = |i: u64| format!("{:032x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for i in 0..1000 {
            b.add_text(format!("id=\"{}\" short", word(i)).as_bytes());
        }
        let bytes = b.finish();
        let f = Filter::read(&bytes).unwrap();
        for i in 0..1000 {
            assert!(f.may_contain(word(i).as_bytes()));
            assert!(f.may_contain(format!("\"{}\"", word(i)).as_bytes()));
            // Part of a word cannot be denied.
            assert!(f.may_contain(&word(i).as_bytes()[3..30]));
        }
        let wrong = (1000..3000).filter(|i| f.may_contain(word(*i).as_bytes())).count();
        assert!(wrong < 60, "{wrong}");
        assert!(f.may_contain(b"timeout"));
    }
}
