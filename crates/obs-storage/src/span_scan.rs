//! Scans of spans by field: the parts of the store with the latest spans first.

use crate::batch::Batch;
use crate::head::rows::scan as scan_head;
use crate::head::span_row::HeadRow;
use crate::segment::SegmentError;
use crate::segment::rows::RowFilter;
use crate::segment::span_columns::{SpanBlock, SpanColumns, keys_of};
use crate::segment::spans::FILTER_TEXT_MAX;
use crate::select::Snapshot;
use crate::store::Store;
use obs_model::{
    AttributeScope, Budget, SelectError, Span, SpanScan, TimestampNs, TraceId, VisitSpans,
};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A part of the store, and the times of its spans.
#[derive(Debug, Clone, Copy)]
struct Part {
    min: i64,
    max: i64,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// Batch of a head.
    Batch(usize, usize),
    /// Block of a segment.
    Block(usize, usize),
}

type Spans = Snapshot<Vec<Arc<Batch<Span>>>>;

impl Store {
    /// Lists the parts that overlap a range, the latest first.
    fn parts(
        &self,
        snapshot: &Spans,
        (start, end): (i64, i64),
        traces: &[TraceId],
        budget: &Budget,
    ) -> Result<Vec<Part>, SelectError> {
        let mut out = Vec::new();
        for (h, batches) in snapshot.heads.iter().enumerate() {
            for (b, batch) in batches.iter().enumerate() {
                if let Some((min, max)) = batch.bounds() {
                    out.push(Part { min, max, place: Place::Batch(h, b) });
                }
            }
        }
        for (i, s) in snapshot.segments.iter().enumerate() {
            if snapshot.tombstones.of(&s.meta).everything() {
                continue;
            }
            match s.rows() {
                Ok(Some(rows)) => {
                    let wanted = rows.blocks_of_any(traces);
                    let is_wanted =
                        |n: &usize| wanted.as_ref().is_none_or(|w| w.binary_search(n).is_ok());
                    let all = rows.blocks.iter().enumerate();
                    let hits = all.filter(|(n, _)| is_wanted(n));
                    out.extend(hits.map(|(n, b)| Part {
                        min: b.min,
                        max: b.max,
                        place: Place::Block(i, n),
                    }));
                }
                Ok(None) => {}
                Err(e) if e.costs_a_part() => {
                    self.note(budget, s, &e, (s.meta.min_time, s.meta.max_time));
                }
                Err(e) => return Err(e.into()),
            }
        }
        out.retain(|p| p.max >= start && (p.min < end || end == i64::MAX));
        out.sort_by_key(|p| std::cmp::Reverse(p.max));
        Ok(out)
    }

    pub(crate) fn scan_span_parts(
        &self,
        snapshot: &Spans,
        scan: &SpanScan<'_>,
        budget: &Budget,
        visitor: &mut dyn VisitSpans,
    ) -> Result<(), SelectError> {
        let range = (scan.start.nanos(), scan.end.nanos());
        let parts = self.parts(snapshot, range, scan.traces, budget)?;
        let mut traces = scan.traces.to_vec();
        traces.sort_unstable();
        for part in &parts {
            budget.check()?;
            if !visitor.wants(TimestampNs::from_nanos(part.max)) {
                break;
            }
            let flow = match part.place {
                Place::Batch(h, b) => {
                    let batch = snapshot.heads.get(h).and_then(|l| l.get(b));
                    batch.map_or(Ok(ControlFlow::Continue(())), |batch| {
                        scan_batch(batch, scan, &traces, budget, visitor)
                    })?
                }
                Place::Block(i, n) => {
                    self.scan_block(snapshot, (i, n), scan, &traces, budget, visitor)?
                }
            };
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn scan_block(
        &self,
        snapshot: &Spans,
        (segment, number): (usize, usize),
        scan: &SpanScan<'_>,
        traces: &[TraceId],
        budget: &Budget,
        visitor: &mut dyn VisitSpans,
    ) -> Result<ControlFlow<()>, SelectError> {
        let Some(s) = snapshot.segments.get(segment) else {
            return Ok(ControlFlow::Continue(()));
        };
        let Ok(Some(rows)) = s.rows() else { return Ok(ControlFlow::Continue(())) };
        let texts = scan.equal.iter().map(|e| e.text).filter(|t| t.len() <= FILTER_TEXT_MAX);
        let texts: Vec<&str> = texts.collect();
        if !texts.is_empty() && !rows.may_have(number, &texts) {
            return Ok(ControlFlow::Continue(()));
        }
        let hidden = snapshot.tombstones.of(&s.meta);
        let range = (scan.start.nanos(), scan.end.nanos());
        // Of a block that lies in the range no row need be asked for its time.
        let whole = rows
            .blocks
            .get(number)
            .is_some_and(|b| b.min >= range.0 && (b.max < range.1 || range.1 == i64::MAX));
        let partly = !whole;
        let mut damaged =
            |e: &SegmentError, min: i64, max: i64| self.note(budget, s, e, (min, max));
        let mut failure = None;
        let (read, all) = (SpanColumns::read, &RowFilter::ALL);
        let flow =
            rows.each_columns([number], all, &mut damaged, read, |columns, bytes, source| {
                // The block lives no longer than this call, nor does what it borrows.
                let mut own = source.reborrow();
                let block = SpanBlock::new(columns, bytes, scan.fields, &mut own);
                let mut visited = 0;
                let mut broken = false;
                block.each(partly.then_some(range), traces, scan.equal, &mut |i| {
                    let row = block.row(i);
                    if !hidden.is_empty() && hidden.hides_trace(Some(row.trace()?)) {
                        return Ok(true);
                    }
                    visited += 1;
                    match visitor.visit(&row) {
                        Ok(ControlFlow::Continue(())) => Ok(true),
                        Ok(ControlFlow::Break(())) => {
                            broken = true;
                            Ok(false)
                        }
                        Err(e) => {
                            failure = Some(e);
                            Ok(false)
                        }
                    }
                })?;
                if let Some(e) = block.take_fault() {
                    return Err(e);
                }
                if let Err(e) = budget.take(visited, 0) {
                    failure = failure.take().or(Some(e));
                }
                let stop = broken || failure.is_some();
                Ok(if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        match failure {
            Some(e) => Err(e),
            None => Ok(flow),
        }
    }

    /// Collects the attributes' keys of the parts that overlap a range.
    pub(crate) fn span_keys(
        &self,
        snapshot: &Spans,
        range: (i64, i64),
        budget: &Budget,
    ) -> Result<BTreeSet<(AttributeScope, String)>, SelectError> {
        let mut out = BTreeSet::new();
        let filter = RowFilter { start: range.0, end: range.1, ..RowFilter::ALL };
        for batches in &snapshot.heads {
            let _ = scan_head(batches, &filter, false, &|_, _| true, &mut |s: Span| {
                s.attribute_keys(&mut |scope, key| {
                    if !out.contains(&(scope, key.to_owned())) {
                        out.insert((scope, key.to_owned()));
                    }
                });
                Ok(ControlFlow::Continue(()))
            })?;
        }
        for s in &snapshot.segments {
            budget.check()?;
            if snapshot.tombstones.of(&s.meta).everything() {
                continue;
            }
            let mut damaged =
                |e: &SegmentError, min: i64, max: i64| self.note(budget, s, e, (min, max));
            match s.rows() {
                Ok(Some(rows)) => {
                    rows.for_blocks(&filter, &mut damaged, &mut |block| keys_of(block, &mut out))?;
                }
                Ok(None) => {}
                Err(e) if e.costs_a_part() => damaged(&e, s.meta.min_time, s.meta.max_time),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(out)
    }
}

fn scan_batch(
    batch: &Batch<Span>,
    scan: &SpanScan<'_>,
    traces: &[TraceId],
    budget: &Budget,
    visitor: &mut dyn VisitSpans,
) -> Result<ControlFlow<()>, SelectError> {
    let filter =
        RowFilter { start: scan.start.nanos(), end: scan.end.nanos(), traces, ..RowFilter::ALL };
    let mut visited = 0;
    for row in batch.rows.iter().rev().filter(|r| filter.admits(r.time, &r.trace)) {
        let row = HeadRow::read(batch, row, scan.fields).map_err(SegmentError::from)?;
        visited += 1;
        if visitor.visit(&row)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    budget.take(visited, 0)?;
    Ok(ControlFlow::Continue(()))
}
