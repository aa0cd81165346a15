//! Segments of samples: one compressed chunk a row, sorted by label set.
//!
//! Columns: `labels` (binary form), `min_time`, `max_time` (ms), `count`, `chunk`. The label sets
//! and row ranges are read once and kept as the segment's index.

use crate::bin::{Decoder, Encoder};
use crate::checked::CheckedFile;
use crate::chunk::Chunk;
use crate::records::{get_labels, put_labels};
use crate::segment::{SegmentError, properties};
use arrow::array::{Array, ArrayRef, BinaryArray, BinaryBuilder, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use obs_model::{Labels, Matcher, Sample};
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

const ROWS_PER_GROUP: usize = 8192;

/// Encodes series, which must be sorted by labels, with their chunks in time order.
pub(crate) fn encode(series: &[(Labels, Vec<Chunk>)]) -> Result<Vec<u8>, SegmentError> {
    let int = |name| Field::new(name, DataType::Int64, false);
    let schema = Arc::new(Schema::new(vec![
        Field::new("labels", DataType::Binary, false),
        int("min_time"),
        int("max_time"),
        int("count"),
        Field::new("chunk", DataType::Binary, false),
    ]));
    let mut writer =
        ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties(ROWS_PER_GROUP)))?;
    for part in series.chunks(1024) {
        let (mut labels, mut chunks) = (BinaryBuilder::new(), BinaryBuilder::new());
        let (mut min, mut max, mut count) = (Vec::new(), Vec::new(), Vec::new());
        for (set, list) in part {
            let mut e = Encoder::default();
            put_labels(&mut e, set);
            for c in list {
                labels.append_value(&e.bytes);
                chunks.append_value(&c.bytes);
                min.push(c.min);
                max.push(c.max);
                count.push(c.count as i64);
            }
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(labels.finish()),
            Arc::new(Int64Array::from(min)),
            Arc::new(Int64Array::from(max)),
            Arc::new(Int64Array::from(count)),
            Arc::new(chunks.finish()),
        ];
        writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
    }
    Ok(writer.into_inner()?)
}

#[derive(Debug)]
struct Entry {
    labels: Labels,
    rows: Range<usize>,
    min: i64,
    max: i64,
}

#[derive(Debug)]
struct Index {
    footer: ArrowReaderMetadata,
    entries: Vec<Entry>,
}

/// Takes a series' labels and some of its samples.
pub(crate) type VisitSeries<'a> =
    &'a mut dyn FnMut(&Labels, Vec<Sample>) -> Result<(), SegmentError>;

/// An open segment of samples.
#[derive(Debug)]
pub(crate) struct MetricSegment {
    file: CheckedFile,
    index: OnceLock<Index>,
}

fn binary<'a>(batch: &'a RecordBatch, name: &'static str) -> Result<&'a BinaryArray, SegmentError> {
    batch
        .column_by_name(name)
        .and_then(|c| c.as_any().downcast_ref())
        .ok_or(SegmentError::Column(name))
}

fn ints<'a>(batch: &'a RecordBatch, name: &'static str) -> Result<&'a Int64Array, SegmentError> {
    batch
        .column_by_name(name)
        .and_then(|c| c.as_any().downcast_ref())
        .ok_or(SegmentError::Column(name))
}

impl MetricSegment {
    pub(crate) const fn new(file: CheckedFile) -> Self {
        Self { file, index: OnceLock::new() }
    }

    fn index(&self) -> Result<&Index, SegmentError> {
        if let Some(i) = self.index.get() {
            return Ok(i);
        }
        let footer = ArrowReaderMetadata::load(&self.file, ArrowReaderOptions::default())?;
        let builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), footer.clone());
        let mask =
            ProjectionMask::columns(builder.parquet_schema(), ["labels", "min_time", "max_time"]);
        let mut entries: Vec<Entry> = Vec::new();
        let mut last: Vec<u8> = Vec::new();
        let mut row = 0;
        for batch in builder.with_projection(mask).build()? {
            let batch = batch?;
            let (labels, min, max) =
                (binary(&batch, "labels")?, ints(&batch, "min_time")?, ints(&batch, "max_time")?);
            for ((bytes, min), max) in labels.iter().zip(min.values()).zip(max.values()) {
                let bytes = bytes.unwrap_or_default();
                match entries.last_mut() {
                    Some(e) if bytes == last.as_slice() => {
                        e.rows.end = row + 1;
                        e.min = e.min.min(*min);
                        e.max = e.max.max(*max);
                    }
                    _ => {
                        let labels = get_labels(&mut Decoder::new(bytes))?;
                        entries.push(Entry { labels, rows: row..row + 1, min: *min, max: *max });
                        last = bytes.to_vec();
                    }
                }
                row += 1;
            }
        }
        Ok(self.index.get_or_init(|| Index { footer, entries }))
    }

    /// Returns the label sets that match and have samples in `[start, end]` ms.
    pub(crate) fn label_sets(
        &self,
        matchers: &[Matcher],
        start: i64,
        end: i64,
    ) -> Result<Vec<Labels>, SegmentError> {
        Ok(self.matching(matchers, start, end)?.map(|e| e.labels.clone()).collect())
    }

    fn matching(
        &self,
        matchers: &[Matcher],
        start: i64,
        end: i64,
    ) -> Result<impl Iterator<Item = &Entry>, SegmentError> {
        let hit = move |e: &&Entry| {
            e.max >= start && e.min <= end && Matcher::all_match(matchers, &e.labels)
        };
        Ok(self.index()?.entries.iter().filter(hit))
    }

    /// Hands every matching series' samples (unfiltered by time within a chunk) to `visit`.
    pub(crate) fn select(
        &self,
        matchers: &[Matcher],
        start: i64,
        end: i64,
        visit: VisitSeries<'_>,
    ) -> Result<(), SegmentError> {
        let entries: Vec<&Entry> = self.matching(matchers, start, end)?.collect();
        if entries.is_empty() {
            return Ok(());
        }
        let mut selectors = Vec::with_capacity(entries.len() * 2);
        let mut at = 0;
        for e in &entries {
            selectors.push(RowSelector::skip(e.rows.start - at));
            selectors.push(RowSelector::select(e.rows.len()));
            at = e.rows.end;
        }
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.file.clone(),
            self.index()?.footer.clone(),
        );
        let mask =
            ProjectionMask::columns(builder.parquet_schema(), ["min_time", "max_time", "chunk"]);
        let reader = builder
            .with_projection(mask)
            .with_row_selection(RowSelection::from(selectors))
            .build()?;
        let mut owners = entries.iter().flat_map(|e| e.rows.clone().map(move |_| &e.labels));
        for batch in reader {
            let batch = batch?;
            let (min, max, chunks) =
                (ints(&batch, "min_time")?, ints(&batch, "max_time")?, binary(&batch, "chunk")?);
            for ((bytes, min), max) in chunks.iter().zip(min.values()).zip(max.values()) {
                let Some(labels) = owners.next() else { return Err(SegmentError::Column("chunk")) };
                if *max >= start && *min <= end {
                    visit(labels, Chunk::decode(bytes.unwrap_or_default())?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::OsVfs;

    #[test]
    fn series_come_back_by_matcher_and_range() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.parquet");
        let samples =
            |i: i64| (0..300).map(|t| Sample::float(t * 1000, (t * i) as f64)).collect::<Vec<_>>();
        let mut series: Vec<_> = (0..50)
            .map(|i| {
                let labels =
                    Labels::from_pairs([("__name__", "m".to_owned()), ("i", i.to_string())]);
                (labels, samples(i).chunks(120).flat_map(Chunk::encode).collect())
            })
            .collect();
        series.sort_by(|a, b| a.0.cmp(&b.0));
        crate::checked::write(&OsVfs, &path, &encode(&series).unwrap()).unwrap();
        let segment = MetricSegment::new(CheckedFile::open(&OsVfs, &path).unwrap());
        let matchers = [Matcher::new("i", obs_model::MatchOp::Regex, "7|33").unwrap()];
        let mut got: std::collections::BTreeMap<String, Vec<Sample>> = Default::default();
        segment
            .select(&matchers, 0, i64::MAX, &mut |l, s| {
                got.entry(l.get("i").to_owned()).or_default().extend(s);
                Ok(())
            })
            .unwrap();
        assert_eq!(got.keys().collect::<Vec<_>>(), ["33", "7"]);
        assert_eq!(got["7"], samples(7));
        assert_eq!(segment.label_sets(&matchers, 400_000, 500_000).unwrap(), Vec::<Labels>::new());
    }
}
