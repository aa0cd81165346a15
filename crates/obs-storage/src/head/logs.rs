//! Log records in memory, by stream.

use obs_model::{Labels, LogRecord, LogSelection, Matcher};
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Debug)]
struct Stream {
    records: Vec<Arc<LogRecord>>,
    min: i64,
    max: i64,
}

#[derive(Debug, Default)]
pub(crate) struct LogsHead {
    streams: HashMap<Labels, Stream>,
}

impl LogsHead {
    pub(crate) fn push(&mut self, record: LogRecord) {
        let t = record.timestamp.nanos();
        let stream = match self.streams.get_mut(&record.stream) {
            Some(s) => s,
            None => self.streams.entry(record.stream.clone()).or_insert(Stream {
                records: Vec::new(),
                min: t,
                max: t,
            }),
        };
        stream.min = stream.min.min(t);
        stream.max = stream.max.max(t);
        stream.records.push(Arc::new(record));
    }

    /// Returns the records of matching streams in the range, unsorted.
    pub(crate) fn matching<'a>(
        &'a self,
        selection: &'a LogSelection<'a>,
    ) -> impl Iterator<Item = &'a Arc<LogRecord>> {
        let (start, end) = (selection.start, selection.end);
        self.matching_streams(selection)
            .flat_map(|(_, s)| &s.records)
            .filter(move |r| r.timestamp >= start && r.timestamp < end)
            .filter(|r| selection.trace_id.is_none_or(|t| r.trace_id == Some(t)))
    }

    fn matching_streams<'a>(
        &'a self,
        selection: &'a LogSelection<'a>,
    ) -> impl Iterator<Item = (&'a Labels, &'a Stream)> {
        self.streams.iter().filter(|(labels, s)| {
            s.max >= selection.start.nanos()
                && s.min < selection.end.nanos()
                && Matcher::all_match(selection.matchers, labels)
        })
    }

    pub(crate) fn stream_labels<'a>(
        &'a self,
        selection: &'a LogSelection<'a>,
    ) -> impl Iterator<Item = &'a Labels> {
        self.matching_streams(selection).map(|(labels, _)| labels)
    }

    /// Returns the earliest and latest record time.
    pub(crate) fn bounds(&self) -> Option<(i64, i64)> {
        let min = self.streams.values().map(|s| s.min).min()?;
        Some((min, self.streams.values().map(|s| s.max).max()?))
    }

    pub(crate) fn all(&self) -> Vec<Arc<LogRecord>> {
        self.streams.values().flat_map(|s| s.records.iter().cloned()).collect()
    }
}
