//! Records in memory: the batches as they came, in binary form.

use crate::batch::{Batch, RowRef};
use crate::records::Record;
use crate::segment::SegmentError;
use crate::segment::rows::RowFilter;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Batches of one kind of record.
#[derive(Debug)]
pub(crate) struct RowsHead<R> {
    batches: Vec<Arc<Batch<R>>>,
    pub(crate) bytes: usize,
}

impl<R> Default for RowsHead<R> {
    fn default() -> Self {
        Self { batches: Vec::new(), bytes: 0 }
    }
}

impl<R> Clone for RowsHead<R> {
    fn clone(&self) -> Self {
        Self { batches: self.batches.clone(), bytes: self.bytes }
    }
}

impl<R: Record> RowsHead<R> {
    pub(crate) fn push(&mut self, batch: Batch<R>) {
        if !batch.rows.is_empty() {
            self.bytes += batch.memory();
            self.batches.push(Arc::new(batch));
        }
    }

    /// Returns the batches that overlap `[start, end)`, newest last.
    pub(crate) fn overlapping(&self, start: i64, end: i64) -> Vec<Arc<Batch<R>>> {
        let hit = |b: &&Arc<Batch<R>>| {
            b.bounds().is_some_and(|(min, max)| max >= start && (min < end || end == i64::MAX))
        };
        self.batches.iter().filter(hit).cloned().collect()
    }

    pub(crate) fn batches(&self) -> &[Arc<Batch<R>>] {
        &self.batches
    }
}

/// Visits the rows of batches that the filter lets through and `also` (which sees the row before
/// it is decoded); the last batch and row first when `reverse`.
pub(crate) fn scan<R: Record>(
    batches: &[Arc<Batch<R>>],
    filter: &RowFilter<'_>,
    reverse: bool,
    also: &dyn Fn(&Batch<R>, &RowRef) -> bool,
    visit: &mut dyn FnMut(R) -> Result<ControlFlow<()>, SegmentError>,
) -> Result<ControlFlow<()>, SegmentError> {
    let in_order: Vec<&Arc<Batch<R>>> =
        if reverse { batches.iter().rev().collect() } else { batches.iter().collect() };
    for b in in_order {
        let mut one = |row: &RowRef| -> Result<ControlFlow<()>, SegmentError> {
            if !filter.admits(row.time, &row.trace) || !also(b, row) {
                return Ok(ControlFlow::Continue(()));
            }
            visit(b.decode(row)?)
        };
        let flow = if reverse {
            try_rows(b.rows.iter().rev(), &mut one)?
        } else {
            try_rows(b.rows.iter(), &mut one)?
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn try_rows<'a>(
    rows: impl Iterator<Item = &'a RowRef>,
    one: &mut dyn FnMut(&RowRef) -> Result<ControlFlow<()>, SegmentError>,
) -> Result<ControlFlow<()>, SegmentError> {
    for row in rows {
        if one(row)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}
