//! How a scan of logs in no order goes over its sources: which ranges of which segments it may read
//! by themselves, and which it must read in order because a record could be in two of them.
//!
//! A client that did not get its answer sends again, so that the same record may be in several
//! sources. Where a range has one segment alone nothing can be there twice; nor where several have
//! no time of a stream in common.

use crate::segment::kept::Kept;
use crate::segment::logs::LogColumns;
use crate::segment::rows::{RowFilter, RowSegment};
use crate::segments::OpenSegment;
use foldhash::fast::FixedState;
use obs_model::Budget;
use std::collections::BTreeSet;
use std::hash::BuildHasher as _;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Times that two segments have in common in the same stream, sorted; `None` where they have more
/// than are worth telling apart.
pub(crate) type Shared = Option<Arc<Vec<i64>>>;

/// Most segments that are compared with one another.
const SEGMENTS_MAX: usize = 6;
/// Most blocks of a segment that are read to compare it with another: two million rows.
const BLOCKS_MAX: usize = 512;
/// Most times that are kept of two segments, and most places at which a stretch is cut.
const TIMES_MAX: usize = 1_024;
const CUTS_MAX: usize = 64;
/// How many times longer than what a query reads of it an overlap may be that is compared for it.
const OVERLAP_MAX: i64 = 16;
/// What a row takes while segments are compared.
const ROW_BYTES: usize = size_of::<(i64, u64)>();

/// A part of a range: the segments that have records there, by their places, and whether the head
/// may have some too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stretch {
    start: i64,
    end: i64,
    segments: Vec<usize>,
    head: bool,
}

/// What is read how; both halves together are the range.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Segments by their places, and ranges of them that are read by themselves.
    pub(crate) alone: Vec<(usize, i64, i64)>,
    /// Ranges that are read in order from all sources.
    pub(crate) together: Vec<(i64, i64)>,
}

impl Plan {
    fn add_alone(&mut self, segment: usize, start: i64, end: i64) {
        if start >= end {
            return;
        }
        match self.alone.iter_mut().rev().find(|a| a.0 == segment) {
            Some(last) if last.2 == start => last.2 = end,
            _ => self.alone.push((segment, start, end)),
        }
    }

    fn add_together(&mut self, start: i64, end: i64) {
        match self.together.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.together.push((start, end)),
        }
    }

    /// Plans a scan of `range` over segments and batches of the head, which are told by their first
    /// and last times.
    pub(crate) fn of(
        segments: &[Arc<OpenSegment>],
        heads: impl Iterator<Item = (i64, i64)>,
        range: (i64, i64),
        kept: &Kept,
        budget: &Budget,
    ) -> Self {
        let bounds = segments.iter().enumerate();
        let bounds = bounds.map(|(i, s)| (s.meta.min_time, s.meta.max_time, Some(i)));
        let sources = bounds.chain(heads.map(|(min, max)| (min, max, None))).collect();
        let mut plan = Self::default();
        for stretch in cut(sources, range) {
            let Stretch { start, end, .. } = stretch;
            let shared = match stretch.segments.as_slice() {
                _ if stretch.head => None,
                [_] => Some(Vec::new()),
                several => shared_of(segments, several, (start, end), kept, budget),
            };
            let Some(times) = shared else {
                plan.add_together(start, end);
                continue;
            };
            for segment in stretch.segments {
                let mut from = start;
                for time in &times {
                    plan.add_alone(segment, from, *time);
                    from = time.saturating_add(1);
                }
                plan.add_alone(segment, from, end);
            }
            times.into_iter().for_each(|t| plan.add_together(t, t.saturating_add(1)));
        }
        plan
    }
}

/// Cuts a range where sources begin and end; what has no source is left out. Sources are (first
/// time, last time, segment); what is none is one of the head's batches.
fn cut(sources: Vec<(i64, i64, Option<usize>)>, (start, end): (i64, i64)) -> Vec<Stretch> {
    let mut edges: Vec<(i64, bool, Option<usize>)> = Vec::with_capacity(2 * sources.len());
    for (min, max, segment) in sources {
        let (from, to) = (min.max(start), max.saturating_add(1).min(end));
        if from < to {
            edges.push((from, true, segment));
            edges.push((to, false, segment));
        }
    }
    edges.sort_unstable();
    let mut open: BTreeSet<usize> = BTreeSet::new();
    let mut batches = 0_usize;
    let mut out: Vec<Stretch> = Vec::new();
    let mut at = start;
    for (time, begins, segment) in edges {
        if time > at && (batches > 0 || !open.is_empty()) {
            let (segments, head) = (open.iter().copied().collect(), batches > 0);
            match out.last_mut() {
                Some(last) if last.end == at && last.segments == segments && last.head == head => {
                    last.end = time;
                }
                _ => out.push(Stretch { start: at, end: time, segments, head }),
            }
        }
        at = time;
        match (segment, begins) {
            (Some(i), true) => _ = open.insert(i),
            (Some(i), false) => _ = open.remove(&i),
            (None, true) => batches += 1,
            (None, false) => batches -= 1,
        }
    }
    out
}

/// Returns the times of a range at which any two of some segments have records of the same stream;
/// `None` when that is not known, or they are many.
fn shared_of(
    all: &[Arc<OpenSegment>],
    several: &[usize],
    (start, end): (i64, i64),
    kept: &Kept,
    budget: &Budget,
) -> Option<Vec<i64>> {
    if several.len() > SEGMENTS_MAX {
        return None;
    }
    let mut out = BTreeSet::new();
    for (n, a) in several.iter().enumerate() {
        for b in several.iter().skip(n + 1) {
            let (a, b) = (all.get(*a)?, all.get(*b)?);
            let times =
                kept.shared((a.meta.id, b.meta.id), || shared(a, b, end - start, budget))??;
            let from = times.partition_point(|t| *t < start);
            out.extend(times.iter().skip(from).take_while(|t| **t < end).take(CUTS_MAX + 1));
            if out.len() > CUTS_MAX {
                return None;
            }
        }
    }
    Some(out.into_iter().collect())
}

/// Compares two segments where they overlap; `None` when a part of either cannot be read now, there
/// is not the memory, or it is not worth it for the `length` that is read.
fn shared(a: &OpenSegment, b: &OpenSegment, length: i64, budget: &Budget) -> Option<Shared> {
    let start = a.meta.min_time.max(b.meta.min_time);
    let end = a.meta.max_time.min(b.meta.max_time).saturating_add(1);
    if end.saturating_sub(start) / OVERLAP_MAX > length {
        return None;
    }
    let filter = RowFilter { start, end, ..RowFilter::ALL };
    let mut taken = 0;
    let mut keys = |s: &OpenSegment| match s.rows() {
        Ok(Some(rows)) => keys(rows, &filter, budget, &mut taken),
        _ => None,
    };
    let both = keys(a).and_then(|of_a| Some((of_a, keys(b)?)));
    budget.release(taken);
    let (of_a, of_b) = both?;
    let (Some(of_a), Some(of_b)) = (of_a, of_b) else { return Some(None) };
    let mut rest = of_b.iter().peekable();
    let mut times = Vec::new();
    for key in &of_a {
        while rest.next_if(|k| *k < key).is_some() {}
        if rest.peek() == Some(&key) && times.last() != Some(&key.0) {
            if times.len() == TIMES_MAX {
                return Some(None);
            }
            times.push(key.0);
        }
    }
    Some(Some(Arc::new(times)))
}

/// The times of rows with hashes of their streams, sorted.
type Keys = Vec<(i64, u64)>;

/// Returns the keys of a segment's rows; nothing in them when there are too many to compare.
fn keys(
    rows: &RowSegment,
    filter: &RowFilter<'_>,
    budget: &Budget,
    taken: &mut usize,
) -> Option<Option<Keys>> {
    let overlapping = rows.blocks.iter().filter(|b| b.max >= filter.start && b.min < filter.end);
    if overlapping.count() > BLOCKS_MAX {
        return Some(None);
    }
    let hasher = FixedState::default();
    let mut out = Keys::new();
    let mut whole = true;
    let mut damaged = |_: &_, _, _| whole = false;
    let (numbers, read) = (0..rows.blocks.len(), LogColumns::read);
    let flow = rows.each_columns(numbers, filter, &mut damaged, read, |c, _, _| {
        let bytes = c.times.len() * ROW_BYTES;
        if budget.check().is_err() {
            return Ok(ControlFlow::Break(()));
        }
        // What is refused is counted too, until it is released.
        *taken += bytes;
        if budget.take(0, bytes).is_err() {
            return Ok(ControlFlow::Break(()));
        }
        let streams: Vec<u64> = c.streams.iter().map(|s| hasher.hash_one(s)).collect();
        let of =
            |(time, stream): (&i64, &u32)| Some((*time, streams.get(*stream as usize).copied()?));
        let inside = |k: &(i64, u64)| k.0 >= filter.start && k.0 < filter.end;
        out.extend(c.times.iter().zip(&c.stream_of).filter_map(of).filter(inside));
        Ok(ControlFlow::Continue(()))
    });
    if !whole || !matches!(flow, Ok(ControlFlow::Continue(()))) {
        return None;
    }
    out.sort_unstable();
    Some(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_where_sources_begin_and_end() {
        let of = |start, end, segments: &[usize], head| Stretch {
            start,
            end,
            segments: segments.to_vec(),
            head,
        };
        let sources = vec![(0, 9, Some(0)), (5, 14, Some(1)), (20, 24, None), (22, 29, Some(2))];
        assert_eq!(
            cut(sources, (2, 28)),
            [
                of(2, 5, &[0], false),
                of(5, 10, &[0, 1], false),
                of(10, 15, &[1], false),
                of(20, 22, &[], true),
                of(22, 25, &[2], true),
                of(25, 28, &[2], false),
            ]
        );
    }

    #[test]
    fn what_lies_side_by_side_is_one() {
        let mut plan = Plan::default();
        plan.add_alone(0, 0, 5);
        plan.add_alone(1, 3, 5);
        plan.add_alone(0, 5, 9);
        plan.add_alone(0, 9, 9);
        plan.add_alone(1, 6, 9);
        plan.add_together(5, 6);
        plan.add_together(6, 8);
        assert_eq!(plan.alone, [(0, 0, 9), (1, 3, 5), (1, 6, 9)]);
        assert_eq!(plan.together, [(5, 8)]);
    }
}
