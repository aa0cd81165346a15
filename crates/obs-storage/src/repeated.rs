//! Log records that several segments have: a request that was sent again, its answer lost, after
//! what it brought first was flushed. A merge leaves one of them, so that a segment that has a
//! stretch of time for itself has nothing twice.

use crate::segment::SegmentError;
use crate::segment::logs::LogColumns;
use crate::segment::rows::{RowFilter, RowSegment};
use crate::segments::OpenSegment;
use foldhash::{HashMap, HashSet};
use obs_model::{Labels, LogRecord};
use std::ops::ControlFlow;
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Rows of an input that an earlier one has too: by block, their numbers, ascending.
pub(crate) type Repeated = HashMap<usize, Vec<usize>>;

/// Rows that are looked at together: they bound the memory.
const ROWS_MAX: u64 = 2 << 20;

/// A stretch of time and the inputs' bounds.
struct Slice<'a> {
    from: i64,
    /// Exclusive.
    to: i64,
    bounds: &'a [(i64, i64)],
}

impl Slice<'_> {
    /// Returns whether several inputs may have a record of a time.
    fn is_shared(&self, t: i64) -> bool {
        let here = self.bounds.iter().filter(|(min, max)| (*min..=*max).contains(&t));
        (self.from..self.to).contains(&t) && here.count() > 1
    }

    /// Returns the blocks that have times of it.
    fn blocks(&self, rows: &RowSegment) -> Vec<usize> {
        let all = rows.blocks.iter().enumerate();
        all.filter(|(_, b)| b.min < self.to && b.max >= self.from).map(|(n, _)| n).collect()
    }

    /// Calls `f` with the number and key of each row that others may have.
    fn keys(&self, columns: &LogColumns, f: &mut dyn FnMut(usize, u64)) {
        let streams: Vec<u64> = columns.streams.iter().map(hash_of).collect();
        let rows = columns.times.iter().zip(&columns.stream_of).enumerate();
        for (row, (t, s)) in rows.filter(|(_, (t, _))| self.is_shared(**t)) {
            let stream = streams.get(*s as usize).copied().unwrap_or_default();
            f(row, stream ^ (*t as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
    }
}

fn hash_of(stream: &Labels) -> u64 {
    let mut hash = Xxh3::new();
    for (name, value) in stream.iter() {
        for part in [name, value] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    hash.digest()
}

/// Returns what each input repeats of the earlier ones; what is lost of an input, which `is_lost` tells
/// by its number, is nothing that another could repeat.
pub(crate) fn repeated(
    inputs: &[Arc<OpenSegment>],
    is_lost: &dyn Fn(usize, &LogRecord) -> bool,
) -> Result<Vec<Repeated>, SegmentError> {
    let mut out = vec![Repeated::default(); inputs.len()];
    let bounds: Vec<_> = inputs.iter().map(|s| (s.meta.min_time, s.meta.max_time)).collect();
    let second = |mut times: Vec<i64>| {
        times.sort_unstable();
        times.get(1).copied()
    };
    // Before the second begins and after the last but one ends nothing is shared.
    let from = second(bounds.iter().map(|(min, _)| *min).collect());
    let to = second(bounds.iter().map(|(_, max)| -*max).collect());
    let Some((from, to)) = from.zip(to.map(|t| -t)).filter(|(from, to)| from <= to) else {
        return Ok(out);
    };
    let mut rows = 0;
    for s in inputs {
        for b in s.rows()?.into_iter().flat_map(|r| &r.blocks) {
            rows += if b.min <= to && b.max >= from { b.rows } else { 0 };
        }
    }
    let slices = i64::try_from(rows.div_ceil(ROWS_MAX)).unwrap_or(i64::MAX).max(1);
    let width = (to.saturating_sub(from) / slices).saturating_add(1);
    let mut at = from;
    while at <= to {
        let next = at.saturating_add(width);
        find(inputs, is_lost, &Slice { from: at, to: next, bounds: &bounds }, &mut out)?;
        at = next;
    }
    Ok(out)
}

fn find(
    inputs: &[Arc<OpenSegment>],
    is_lost: &dyn Fn(usize, &LogRecord) -> bool,
    slice: &Slice<'_>,
    out: &mut [Repeated],
) -> Result<(), SegmentError> {
    // Records of one stream and time in several inputs: few, unless something is there twice.
    let mut keys: Vec<(u64, usize)> = Vec::new();
    for (i, s) in inputs.iter().enumerate() {
        let Some(rows) = s.rows()? else { continue };
        for n in slice.blocks(rows) {
            let columns = LogColumns::read(&rows.read_block(n)?)?;
            slice.keys(&columns, &mut |_, key| keys.push((key, i)));
        }
    }
    keys.sort_unstable();
    keys.dedup();
    let pairs = keys.windows(2);
    let candidates: HashSet<u64> = pairs
        .filter_map(|w| match w {
            [(a, _), (b, _)] if a == b => Some(*a),
            _ => None,
        })
        .collect();
    if candidates.is_empty() {
        return Ok(());
    }
    drop(keys);
    let mut seen: HashSet<u128> = HashSet::default();
    for (i, (s, out)) in inputs.iter().zip(out).enumerate() {
        let Some(rows) = s.rows()? else { continue };
        for n in slice.blocks(rows) {
            let columns = LogColumns::read(&rows.read_block(n)?)?;
            let mut doubtful = Vec::new();
            slice.keys(&columns, &mut |row, key| {
                if candidates.contains(&key) {
                    doubtful.push(row);
                }
            });
            if doubtful.is_empty() {
                continue;
            }
            let mut row = 0;
            let _ = rows.visit_block::<LogRecord>(n, &RowFilter::ALL, &mut |r| {
                if doubtful.binary_search(&row).is_ok() && !is_lost(i, &r) {
                    // All of a record is in what is shown of it.
                    let is_new = seen.insert(xxh3_128(format!("{r:?}").as_bytes()));
                    if !is_new {
                        out.entry(n).or_default().push(row);
                    }
                }
                row += 1;
                Ok(ControlFlow::Continue(()))
            })?;
        }
    }
    Ok(())
}
