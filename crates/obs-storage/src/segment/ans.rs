//! Entropy coding of small alphabets with static tables per context (range asymmetric numeral
//! systems, after Duda 2009).
//!
//! A block's tables are shared by all its sequences; each sequence is coded on its own, so that
//! one can be read without the others.

use crate::bin::{Decoder, Encoder, Malformed};

/// Probabilities are multiples of 2^-11.
const PROB_BITS: u32 = 11;
const PROB_ONE: u32 = 1 << PROB_BITS;
/// The state is kept in `[LOW, LOW << 8)`.
const LOW: u32 = 1 << 23;
/// Raw bits go through the state in pieces of at most this many.
const RAW_BITS: u32 = 8;

/// One step of a sequence: a symbol under a context, then raw bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) context: u8,
    pub(crate) symbol: u8,
    pub(crate) raw_bits: u8,
    pub(crate) raw: u64,
}

/// How often each symbol was seen under each context.
#[derive(Debug)]
pub(crate) struct Counts(Vec<[u32; 256]>);

impl Counts {
    pub(crate) fn new(contexts: usize) -> Self {
        Self(vec![[0; 256]; contexts])
    }

    pub(crate) fn add(&mut self, steps: &[Step]) {
        for s in steps {
            if let Some(c) = self.0.get_mut(usize::from(s.context))
                && let Some(n) = c.get_mut(usize::from(s.symbol))
            {
                *n += 1;
            }
        }
    }
}

/// Symbols of an alphabet.
const SYMBOLS: usize = 256;

/// The tables of a block, one behind the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    /// By context: its table's number, or `ABSENT`.
    numbers: Vec<u32>,
    /// (start, frequency) by table and symbol.
    ranges: Vec<(u16, u16)>,
    /// Symbol by table and slot.
    slots: Vec<u8>,
}

/// Of a context that was never seen.
const ABSENT: u32 = u32::MAX;

/// Scales counts to probabilities: every seen symbol keeps at least one slot.
fn quantise(counts: &[u32; 256]) -> Option<Vec<(u8, u16)>> {
    let total: u64 = counts.iter().map(|c| u64::from(*c)).sum();
    if total == 0 {
        return None;
    }
    let mut out: Vec<(u8, u32)> = counts
        .iter()
        .enumerate()
        .filter(|(_, c)| **c > 0)
        .map(|(s, c)| (s as u8, ((u64::from(*c) * u64::from(PROB_ONE) / total) as u32).max(1)))
        .collect();
    let mut sum: u32 = out.iter().map(|(_, f)| f).sum();
    // What rounding left over or took too much goes to the most frequent symbols.
    while sum != PROB_ONE {
        let (_, top) = out.iter_mut().max_by_key(|(_, f)| *f)?;
        if sum < PROB_ONE {
            *top += PROB_ONE - sum;
            sum = PROB_ONE;
        } else {
            let cut = (sum - PROB_ONE).min(*top / 2).max(1);
            *top -= cut;
            sum -= cut;
        }
    }
    Some(out.into_iter().map(|(s, f)| (s, f as u16)).collect())
}

impl Tables {
    /// Returns the bytes that they take, about.
    pub(crate) fn bytes(&self) -> usize {
        self.ranges.capacity() * size_of::<(u16, u16)>() + self.slots.capacity()
    }

    /// Adds the next context's table; none when it was never seen. `None` when the frequencies do
    /// not add up.
    fn add(&mut self, frequencies: &[(u8, u16)]) -> Option<()> {
        if frequencies.is_empty() {
            self.numbers.push(ABSENT);
            return Some(());
        }
        let number = self.slots.len() / PROB_ONE as usize;
        let first = self.ranges.len();
        self.ranges.resize(first + SYMBOLS, (0, 0));
        let mut at = 0_u16;
        for (symbol, f) in frequencies {
            *self.ranges.get_mut(first + usize::from(*symbol))? = (at, *f);
            at = at.checked_add(*f).filter(|at| u32::from(*at) <= PROB_ONE)?;
            self.slots.extend(std::iter::repeat_n(*symbol, usize::from(*f)));
        }
        self.numbers.push(number as u32);
        (u32::from(at) == PROB_ONE).then_some(())
    }

    /// Derives the tables from counts and writes them.
    pub(crate) fn write(counts: &Counts, e: &mut Encoder) -> Self {
        let mut tables = Self::default();
        for c in &counts.0 {
            let q = quantise(c).unwrap_or_default();
            e.len(q.len());
            let mut last = 0;
            for (symbol, f) in &q {
                e.uint(u64::from(*symbol) - last);
                last = u64::from(*symbol);
                e.uint((*f).into());
            }
            // Quantised frequencies add up.
            let _ = tables.add(&q);
        }
        tables
    }

    pub(crate) fn read(contexts: usize, d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let mut tables = Self::default();
        for _ in 0..contexts {
            let n = d.len()?;
            let mut q = Vec::with_capacity(n.min(256));
            let mut symbol = 0_u64;
            for _ in 0..n {
                symbol += d.uint()?;
                let f = u16::try_from(d.uint()?).map_err(|_| d.bad())?;
                q.push((u8::try_from(symbol).map_err(|_| d.bad())?, f));
            }
            tables.add(&q).ok_or(d.bad())?;
        }
        Ok(tables)
    }

    /// Returns a symbol's range, empty when it was never seen under the context.
    #[inline]
    fn range(&self, table: u32, symbol: u8) -> (u16, u16) {
        let at = table as usize * SYMBOLS + usize::from(symbol);
        self.ranges.get(at).copied().unwrap_or_default()
    }

    /// Codes a sequence that the counts included. Appends to `out`.
    pub(crate) fn encode(&self, steps: &[Step], out: &mut Vec<u8>) {
        fn put(x: &mut u32, bytes: &mut Vec<u8>, start: u32, f: u32) {
            let limit = ((LOW >> PROB_BITS) << 8) * f;
            while *x >= limit {
                bytes.push(*x as u8);
                *x >>= 8;
            }
            *x = ((*x / f) << PROB_BITS) + (*x % f) + start;
        }
        let mut x = LOW;
        let mut bytes = Vec::with_capacity(steps.len());
        for s in steps.iter().rev() {
            // Raw bits were read low piece first, so they are pushed high piece first.
            let mut left = u32::from(s.raw_bits);
            while left > 0 {
                let n = if left.is_multiple_of(RAW_BITS) { RAW_BITS } else { left % RAW_BITS };
                left -= n;
                let part = ((s.raw >> left) & ((1 << n) - 1)) as u32;
                put(&mut x, &mut bytes, part << (PROB_BITS - n), 1 << (PROB_BITS - n));
            }
            let table = self.numbers.get(usize::from(s.context)).copied().unwrap_or(ABSENT);
            let (start, f) = self.range(table, s.symbol);
            if f > 0 {
                put(&mut x, &mut bytes, start.into(), f.into());
            }
        }
        out.extend_from_slice(&x.to_le_bytes());
        out.extend(bytes.iter().rev());
    }

    /// Reads the sequence at the beginning of `bytes`; what follows it does no harm.
    pub(crate) fn decoder<'a>(&'a self, bytes: &'a [u8]) -> Result<Sequence<'a>, Malformed> {
        let (state, rest) = bytes.split_at_checked(4).ok_or(Malformed(0))?;
        let x = u32::from_le_bytes(state.try_into().map_err(|_| Malformed(0))?);
        Ok(Sequence { tables: self, x, rest })
    }
}

/// Reads one coded sequence.
#[derive(Debug)]
pub(crate) struct Sequence<'a> {
    tables: &'a Tables,
    x: u32,
    rest: &'a [u8],
}

impl Sequence<'_> {
    /// Shifts in the bytes that bring the state back into its range. Whether any are needed is as
    /// good as random, so that this does not branch on it.
    #[inline]
    fn refill(&mut self) {
        let x = self.x.max(1);
        let missing = x.leading_zeros().saturating_sub(LOW.leading_zeros() - 7) / 8;
        // Past the end only damage reads on; any value will do, the count bounds the loop.
        let next = match self.rest.first_chunk::<4>() {
            Some(four) => u32::from_be_bytes(*four),
            None => {
                self.rest.iter().chain([0; 4].iter()).take(4).fold(0, |n, b| n << 8 | u32::from(*b))
            }
        };
        self.x = ((u64::from(x) << 32 | u64::from(next)) >> (32 - 8 * missing)) as u32;
        self.rest = self.rest.get(missing as usize..).unwrap_or_default();
    }

    #[inline]
    pub(crate) fn symbol(&mut self, context: u8) -> Result<u8, Malformed> {
        let t = *self.tables.numbers.get(usize::from(context)).ok_or(Malformed(0))?;
        let slot = self.x & (PROB_ONE - 1);
        let at = t as usize * PROB_ONE as usize + slot as usize;
        let symbol = *self.tables.slots.get(at).ok_or(Malformed(0))?;
        let (start, f) = self.tables.range(t, symbol);
        self.x = u32::from(f)
            .wrapping_mul(self.x >> PROB_BITS)
            .wrapping_add(slot.wrapping_sub(start.into()));
        self.refill();
        Ok(symbol)
    }

    #[inline]
    pub(crate) fn raw(&mut self, bits: u32) -> u64 {
        let (mut out, mut done) = (0_u64, 0);
        while done < bits {
            let n = (bits - done).min(RAW_BITS);
            let slot = self.x & (PROB_ONE - 1);
            let part = slot >> (PROB_BITS - n);
            let f = 1 << (PROB_BITS - n);
            self.x = f * (self.x >> PROB_BITS) + (slot & (f - 1));
            self.refill();
            out |= u64::from(part) << done;
            done += n;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sequences_come_back(
            raw in prop::collection::vec((0_u8..4, 0_u8..40, 0_u8..61, any::<u64>()), 0..300)
        ) {
            let steps: Vec<Step> = raw
                .into_iter()
                .map(|(context, symbol, raw_bits, raw)| {
                    let raw = if raw_bits == 0 { 0 } else { raw >> (64 - u32::from(raw_bits)) };
                    Step { context, symbol, raw_bits, raw }
                })
                .collect();
            let mut counts = Counts::new(4);
            counts.add(&steps);
            let mut e = Encoder::default();
            let tables = Tables::write(&counts, &mut e);
            let mut out = Vec::new();
            tables.encode(&steps, &mut out);
            let tables = Tables::read(4, &mut Decoder::new(&e.bytes)).unwrap();
            let mut s = tables.decoder(&out).unwrap();
            for step in &steps {
                prop_assert_eq!(s.symbol(step.context).unwrap(), step.symbol);
                prop_assert_eq!(s.raw(u32::from(step.raw_bits)), step.raw);
            }
        }
    }
}
