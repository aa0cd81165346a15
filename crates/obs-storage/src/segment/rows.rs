//! Segments of records: log records, spans and LLM calls.
//!
//! Columns: `time` (ns), `trace_id`, `payload` (the record's binary form; parts shared by several
//! records are written once a row group). Row groups are decoded whole after pruning by the
//! statistics of the first two columns.

use crate::bin::{Decoder, Encoder};
use crate::checked::CheckedFile;
use crate::records::{Record, Shared};
use crate::segment::{SegmentError, properties};
use arrow::array::{Array, ArrayRef, BinaryArray, BinaryBuilder, Int64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use obs_model::{LlmCall, LogRecord, Span, TraceId};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

/// A record as a segment row.
pub(crate) trait Row: Record {
    /// Small groups where single traces are fetched, larger ones where ranges are scanned.
    const ROWS_PER_GROUP: usize;

    fn time(&self) -> i64;
    fn trace(&self) -> Option<TraceId>;
    /// Orders rows for pruning.
    fn sort(rows: &mut [Arc<Self>]);
}

impl Row for LogRecord {
    const ROWS_PER_GROUP: usize = 4096;

    fn time(&self) -> i64 {
        self.timestamp.nanos()
    }

    fn trace(&self) -> Option<TraceId> {
        self.trace_id
    }

    fn sort(rows: &mut [Arc<Self>]) {
        rows.sort_by_key(|r| r.timestamp);
    }
}

impl Row for Span {
    const ROWS_PER_GROUP: usize = 2048;

    fn time(&self) -> i64 {
        self.start.nanos()
    }

    fn trace(&self) -> Option<TraceId> {
        Some(self.trace_id)
    }

    fn sort(rows: &mut [Arc<Self>]) {
        rows.sort_by_key(|r| (r.trace_id, r.start));
    }
}

impl Row for LlmCall {
    const ROWS_PER_GROUP: usize = 4096;

    fn time(&self) -> i64 {
        self.start.nanos()
    }

    fn trace(&self) -> Option<TraceId> {
        Some(self.trace_id)
    }

    fn sort(rows: &mut [Arc<Self>]) {
        rows.sort_by_key(|r| r.start);
    }
}

fn batch<R: Row>(rows: &[Arc<R>], schema: &Arc<Schema>) -> Result<RecordBatch, SegmentError> {
    let mut shared = Shared::default();
    let mut payload = BinaryBuilder::new();
    let mut traces = BinaryBuilder::new();
    for row in rows {
        let mut e = Encoder::default();
        row.encode(&mut e, &mut shared);
        payload.append_value(&e.bytes);
        traces.append_option(row.trace().map(|t| *t.as_bytes()));
    }
    let time: Int64Array = rows.iter().map(|r| r.time()).collect();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(time), Arc::new(traces.finish()), Arc::new(payload.finish())];
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

/// Encodes rows as a Parquet file. Sorts them first.
pub(crate) fn encode<R: Row>(rows: &mut [Arc<R>]) -> Result<Vec<u8>, SegmentError> {
    R::sort(rows);
    let schema = Arc::new(Schema::new(vec![
        Field::new("time", DataType::Int64, false),
        Field::new("trace_id", DataType::Binary, true),
        Field::new("payload", DataType::Binary, false),
    ]));
    let mut writer =
        ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties(R::ROWS_PER_GROUP)))?;
    for group in rows.chunks(R::ROWS_PER_GROUP) {
        writer.write(&batch(group, &schema)?)?;
    }
    Ok(writer.into_inner()?)
}

/// Which rows are wanted; row groups that cannot hold any are skipped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowFilter {
    /// Nanoseconds, half open.
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) trace: Option<TraceId>,
}

fn may_hold(group: &RowGroupMetaData, filter: &RowFilter) -> bool {
    let stats = |i: usize| group.columns().get(i).and_then(|c| c.statistics());
    if let Some(Statistics::Int64(s)) = stats(0)
        && let (Some(min), Some(max)) = (s.min_opt(), s.max_opt())
        && (*max < filter.start || *min >= filter.end)
    {
        return false;
    }
    if let (Some(trace), Some(Statistics::ByteArray(s))) = (filter.trace, stats(1))
        && let (Some(min), Some(max)) = (s.min_opt(), s.max_opt())
    {
        return min.data() <= trace.as_bytes().as_slice()
            && trace.as_bytes().as_slice() <= max.data();
    }
    true
}

/// An open segment of records.
#[derive(Debug)]
pub(crate) struct RowSegment {
    file: CheckedFile,
    footer: OnceLock<ArrowReaderMetadata>,
}

impl RowSegment {
    pub(crate) const fn new(file: CheckedFile) -> Self {
        Self { file, footer: OnceLock::new() }
    }

    fn footer(&self) -> Result<&ArrowReaderMetadata, SegmentError> {
        if let Some(m) = self.footer.get() {
            return Ok(m);
        }
        let loaded = ArrowReaderMetadata::load(&self.file, ArrowReaderOptions::default())?;
        Ok(self.footer.get_or_init(|| loaded))
    }

    /// Visits the rows that the filter lets through, in file order, or in reverse order of row
    /// groups and rows when `reverse`.
    pub(crate) fn scan<R: Row>(
        &self,
        filter: &RowFilter,
        reverse: bool,
        visit: &mut dyn FnMut(Arc<R>) -> Result<ControlFlow<()>, SegmentError>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let footer = self.footer()?;
        let mut groups: Vec<usize> = (0..footer.metadata().num_row_groups()).collect();
        groups.retain(|g| may_hold(footer.metadata().row_group(*g), filter));
        if reverse {
            groups.reverse();
        }
        for group in groups {
            let mut rows = self.read_group::<R>(footer, group, filter)?;
            if reverse {
                rows.reverse();
            }
            for row in rows {
                if visit(row)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn read_group<R: Row>(
        &self,
        footer: &ArrowReaderMetadata,
        group: usize,
        filter: &RowFilter,
    ) -> Result<Vec<Arc<R>>, SegmentError> {
        let reader =
            ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), footer.clone())
                .with_row_groups(vec![group])
                .with_batch_size(R::ROWS_PER_GROUP)
                .build()?;
        let mut shared = Shared::default();
        let mut out = Vec::new();
        for batch in reader {
            let batch = batch?;
            let payload = batch
                .column_by_name("payload")
                .and_then(|c| c.as_any().downcast_ref::<BinaryArray>());
            for bytes in payload.ok_or(SegmentError::Column("payload"))?.iter().flatten() {
                let row = R::decode(&mut Decoder::new(bytes), &mut shared)?;
                let in_range = row.time() >= filter.start && row.time() < filter.end;
                if in_range && filter.trace.is_none_or(|t| row.trace() == Some(t)) {
                    out.push(Arc::new(row));
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::{a_log, a_span};
    use crate::vfs::OsVfs;

    #[test]
    fn rows_come_back_by_time_and_by_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.parquet");
        let mut rows: Vec<_> = (0..10_000).rev().map(|i| Arc::new(a_log(i, "x"))).collect();
        crate::checked::write(&OsVfs, &path, &encode(&mut rows).unwrap()).unwrap();
        let segment = RowSegment::new(CheckedFile::open(&OsVfs, &path).unwrap());
        let mut seen = Vec::new();
        let filter = RowFilter { start: 4990, end: 5003, trace: None };
        let _ = segment.scan::<LogRecord>(&filter, false, &mut |r| {
            seen.push(r.time());
            Ok(ControlFlow::Continue(()))
        });
        assert_eq!(seen, (4990..5003).collect::<Vec<_>>());

        let path = dir.path().join("t.parquet");
        let mut rows: Vec<_> = (1..200).map(|i| Arc::new(a_span(i))).collect();
        crate::checked::write(&OsVfs, &path, &encode(&mut rows).unwrap()).unwrap();
        let segment = RowSegment::new(CheckedFile::open(&OsVfs, &path).unwrap());
        let filter = RowFilter { start: i64::MIN, end: i64::MAX, trace: Some(a_span(77).trace_id) };
        let mut found = Vec::new();
        let _ = segment.scan::<Span>(&filter, false, &mut |r| {
            found.push((*r).clone());
            Ok(ControlFlow::Continue(()))
        });
        assert_eq!(found, [a_span(77)]);
    }

    #[test]
    fn a_flipped_bit_is_an_error_and_not_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.parquet");
        let mut rows: Vec<_> = (0..100).map(|i| Arc::new(a_log(i, "x"))).collect();
        crate::checked::write(&OsVfs, &path, &encode(&mut rows).unwrap()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        let segment = RowSegment::new(CheckedFile::open(&OsVfs, &path).unwrap());
        let filter = RowFilter { start: 0, end: 100, trace: None };
        assert!(
            segment
                .scan::<LogRecord>(&filter, false, &mut |_| Ok(ControlFlow::Continue(())))
                .is_err()
        );
    }
}
