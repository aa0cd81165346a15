//! Blocks of log records.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{get_attributes, get_labels, put_attributes, put_labels};
use crate::segment::attrs::{self, AttributeIndex, AttributesReader, Sink, Source};
use crate::segment::bloom;
use crate::segment::columns::{
    Context, RowIds, Strings, get_ints, get_numbers, get_packed, get_strings, put_ints, put_packed,
    put_strings, skip_ints, skip_strings,
};
use crate::segment::ids::{get_ids, put_ids, skip_ids, text_of};
use crate::segment::kept::{Columns, LazyBlock, Measured, Taken};
use crate::segment::lines::{LineColumns, Lines, put_lines};
use crate::segment::log_groups;
use crate::segment::rows::{Damaged, Row, RowFilter, RowSegment, VisitRow};
use crate::segment::{SegmentError, Signal};
use foldhash::HashMap;
use memchr::memmem;
use obs_model::{
    Labels, LogRecord, LogRows, LogScan, Matcher, Resource, SpanId, TimestampNs, TraceId,
};
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, OnceLock};

/// Writes the distinct items of rows as a table, and each row's number in it.
pub(crate) fn put_table<T: Clone + Eq + std::hash::Hash>(
    e: &mut Encoder,
    items: impl Iterator<Item = T>,
    write: impl Fn(&mut Encoder, &T),
) {
    let mut numbers: HashMap<T, i64> = HashMap::default();
    let mut table = Vec::new();
    let rows: Vec<i64> = items
        .map(|item| match numbers.get(&item) {
            Some(n) => *n,
            None => {
                let n = table.len() as i64;
                numbers.insert(item.clone(), n);
                table.push(item);
                n
            }
        })
        .collect();
    let mut body = Encoder::default();
    body.len(table.len());
    table.iter().for_each(|t| write(&mut body, t));
    put_packed(e, &body.bytes);
    put_ints(e, &rows);
}

pub(crate) fn get_table<T>(
    d: &mut Decoder<'_>,
    read: impl Fn(&mut Decoder<'_>) -> Result<T, Malformed>,
) -> Result<(Vec<T>, Vec<u32>), Malformed> {
    let body = get_packed(d)?;
    let mut b = Decoder::new(&body);
    let table = (0..b.len()?).map(|_| read(&mut b)).collect::<Result<Vec<T>, _>>()?;
    let most = u32::try_from(table.len()).map_err(|_| d.bad())?;
    let rows = get_numbers(d, most)?;
    if rows.contains(&most) { Err(d.bad()) } else { Ok((table, rows)) }
}

/// Writes parts that rows share as a table, by content: equal ones of different requests are one.
pub(crate) fn put_shared<'a, T: 'a>(
    e: &mut Encoder,
    parts: impl Iterator<Item = &'a Arc<T>>,
    write: impl Fn(&mut Encoder, &T),
) {
    let mut known: HashMap<*const T, Arc<[u8]>> = HashMap::default();
    let bytes = parts.map(|p| {
        known
            .entry(Arc::as_ptr(p))
            .or_insert_with(|| {
                let mut one = Encoder::default();
                write(&mut one, p);
                one.bytes.into()
            })
            .clone()
    });
    put_table(e, bytes, |e, b| e.raw(b));
}

pub(crate) fn put_resources<'a>(
    e: &mut Encoder,
    resources: impl Iterator<Item = &'a Arc<Resource>>,
) {
    put_shared(e, resources, |e, r| put_attributes(e, &r.attributes));
}

pub(crate) fn get_resources(
    d: &mut Decoder<'_>,
) -> Result<(Vec<Arc<Resource>>, Vec<u32>), Malformed> {
    get_table(d, |d| {
        let attributes = get_attributes(&mut Decoder::new(d.raw()?))?;
        Ok(Arc::new(Resource { attributes }))
    })
}

pub(crate) fn trace_bytes(id: Option<TraceId>) -> [u8; 16] {
    id.map_or([0; 16], |t| *t.as_bytes())
}

pub(crate) fn span_bytes(id: Option<SpanId>) -> [u8; 8] {
    id.map_or([0; 8], |s| *s.as_bytes())
}

impl Row for LogRecord {
    const SIGNAL: Signal = Signal::Logs;
    const BLOCK_ROWS: usize = 4096;
    const BY_TRACE: bool = false;

    fn arrange(rows: &mut Vec<Self>) {
        // Comparing label sets costs more than everything else here: they are ranked once.
        let mut streams: Vec<Labels> = Vec::new();
        let mut ranks: HashMap<Labels, usize> = HashMap::default();
        for r in rows.iter() {
            if !ranks.contains_key(&r.stream) {
                ranks.insert(r.stream.clone(), 0);
                streams.push(r.stream.clone());
            }
        }
        streams.sort();
        for (rank, s) in streams.into_iter().enumerate() {
            ranks.insert(s, rank);
        }
        rows.sort_by_cached_key(|r| (ranks.get(&r.stream).copied(), r.timestamp));
        // A request that was sent again: the same records at the same times.
        rows.dedup_by(|b, a| a.timestamp == b.timestamp && a == b);
    }

    fn size(&self) -> usize {
        self.size_bytes()
    }

    fn put_block(rows: &[Self], e: &mut Encoder, sink: &mut Sink<'_>) -> Result<(), SegmentError> {
        e.len(rows.len());
        put_table(e, rows.iter().map(|r| r.stream.clone()), put_labels);
        let times: Vec<i64> = rows.iter().map(|r| r.timestamp.nanos()).collect();
        put_ints(e, &times);
        let traces: Vec<[u8; 16]> = rows.iter().map(|r| trace_bytes(r.trace_id)).collect();
        put_ids(e, &traces);
        let spans: Vec<[u8; 8]> = rows.iter().map(|r| span_bytes(r.span_id)).collect();
        put_ids(e, &spans);
        let any = |ids: bool| if ids { rows } else { &[] };
        let trace: Vec<String> = any(traces.iter().any(|t| *t != [0; 16]))
            .iter()
            .map(|r| text_of(&trace_bytes(r.trace_id)))
            .collect();
        let span: Vec<String> = any(spans.iter().any(|s| *s != [0; 8]))
            .iter()
            .map(|r| text_of(&span_bytes(r.span_id)))
            .collect();
        let mut body = Encoder::default();
        let lines: Vec<&[u8]> = rows.iter().map(|r| r.line.as_bytes()).collect();
        put_lines(&mut body, &lines, Context { times: &times, trace: &trace, span: &span });
        e.raw(&body.bytes);
        let observed = |r: &Self| r.observed.nanos().wrapping_sub(r.timestamp.nanos());
        put_ints(e, &rows.iter().map(observed).collect::<Vec<_>>());
        put_ints(e, &rows.iter().map(|r| r.severity_number.into()).collect::<Vec<_>>());
        let texts = |f: fn(&Self) -> &str| rows.iter().map(|r| f(r).as_bytes()).collect::<Vec<_>>();
        put_strings(e, &texts(|r| &r.severity_text), Context::default());
        put_strings(e, &texts(|r| &r.event_name), Context::default());
        put_resources(e, rows.iter().map(|r| &r.resource));
        attrs::put_attributes(e, &rows.iter().map(|r| &r.attributes).collect::<Vec<_>>(), sink)
    }

    fn filter(rows: &[Self]) -> Option<Vec<u8>> {
        let mut b = bloom::Builder::default();
        let mut last = None;
        for r in rows {
            b.add_text(r.line.as_bytes());
            if let Some(t) = r.trace_id.filter(|t| last != Some(*t)) {
                b.add_text(text_of(t.as_bytes()).as_bytes());
            }
            last = r.trace_id;
        }
        Some(b.finish())
    }

    fn get_block(
        block: &[u8],
        filter: &RowFilter<'_>,
        source: &mut Source<'_>,
        visit: VisitRow<'_, Self>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let (columns, bytes) = (LogColumns::read(block)?, LazyBlock::whole(block));
        LogBlock { columns: &columns, bytes: &bytes }.visit(filter, source, visit)
    }

    fn scan(
        segment: &RowSegment,
        numbers: &[usize],
        filter: &RowFilter<'_>,
        damaged: Damaged<'_>,
        visit: VisitRow<'_, Self>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let read = LogColumns::read;
        let numbers = numbers.iter().copied();
        segment.each_columns(numbers, filter, damaged, read, |columns, bytes, source| {
            LogBlock { columns, bytes }.visit(filter, source, visit)
        })
    }
}

/// What was unpacked of a block of log records: the columns that decide which rows are wanted, and
/// others as they are needed.
#[derive(Debug)]
pub(crate) struct LogColumns {
    pub(crate) streams: Vec<Labels>,
    pub(crate) stream_of: Vec<u32>,
    runs: OnceLock<Runs>,
    /// Nanoseconds.
    pub(crate) times: Vec<i64>,
    /// The first and the last time.
    pub(crate) bounds: (i64, i64),
    taken: Taken,
    traces_at: Range<usize>,
    traces: OnceLock<Vec<[u8; 16]>>,
    spans_at: Range<usize>,
    spans: OnceLock<Vec<[u8; 8]>>,
    lines_at: Range<usize>,
    lines: OnceLock<LineColumns>,
    /// Everything behind the lines.
    rest_at: Range<usize>,
    rest: OnceLock<Rest>,
    is_lines_alone: OnceLock<bool>,
}

impl Columns for LogColumns {
    fn bytes(&self) -> usize {
        let streams: usize = self.streams.iter().map(Labels::size_bytes).sum();
        let own = size_of::<Self>() + streams + self.stream_of.bytes() + self.times.bytes();
        let attributes = self.rest.get().map_or(0, |rest| rest.attributes.grown());
        own + self.taken.get() + attributes
    }
}

/// Rows of one stream that follow each other, with the number of the stream.
type Runs = Vec<(u32, Range<usize>)>;

impl LogColumns {
    /// Returns the runs of rows of one stream each.
    pub(crate) fn runs(&self) -> &[(u32, Range<usize>)] {
        self.runs.get_or_init(|| {
            let mut at = 0;
            let one = |run: &[u32]| {
                let from = at;
                at += run.len();
                (run.first().copied().unwrap_or_default(), from..at)
            };
            let all: Runs = self.stream_of.chunk_by(|a, b| a == b).map(one).collect();
            self.taken.add(size_of_val(all.as_slice()));
            all
        })
    }

    pub(crate) fn read(block: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(block);
        let n = d.len_free()?;
        let (streams, stream_of) = get_table(&mut d, get_labels)?;
        let times = get_ints(&mut d)?;
        if [stream_of.len(), times.len()] != [n; 2] {
            return Err(d.bad());
        }
        let first = times.iter().min().copied().unwrap_or_default();
        let last = times.iter().max().copied().unwrap_or_default();
        let traces_at = d.at();
        skip_ids(&mut d)?;
        let spans_at = d.at();
        skip_ids(&mut d)?;
        let ids_end = d.at();
        let len = d.raw()?.len();
        let lines_end = d.at();
        Ok(Self {
            streams,
            stream_of,
            runs: OnceLock::new(),
            times,
            bounds: (first, last),
            taken: Taken::default(),
            traces_at: traces_at..spans_at,
            traces: OnceLock::new(),
            spans_at: spans_at..ids_end,
            spans: OnceLock::new(),
            lines_at: lines_end - len..lines_end,
            lines: OnceLock::new(),
            rest_at: lines_end..block.len(),
            rest: OnceLock::new(),
            is_lines_alone: OnceLock::new(),
        })
    }
}

/// A block's columns and a way to its bytes.
#[derive(Clone, Copy)]
pub(crate) struct LogBlock<'a> {
    pub(crate) columns: &'a LogColumns,
    pub(crate) bytes: &'a LazyBlock<'a>,
}

fn row_ids(i: usize, times: &[i64], traces: &[[u8; 16]], spans: &[[u8; 8]]) -> RowIds {
    RowIds {
        time: times.get(i).copied().unwrap_or_default(),
        trace: traces.get(i).copied().unwrap_or_default(),
        span: spans.get(i).copied().unwrap_or_default(),
    }
}

impl<'a> LogBlock<'a> {
    fn ids<const N: usize>(
        &self,
        cell: &'a OnceLock<Vec<[u8; N]>>,
        place: &Range<usize>,
    ) -> Result<&'a [[u8; N]], SegmentError> {
        let all = self.columns.taken.read(cell, self.bytes, place, get_ids)?;
        let is_full = all.len() == self.columns.times.len();
        if is_full { Ok(all) } else { Err(Malformed(all.len()).into()) }
    }

    fn traces(&self) -> Result<&'a [[u8; 16]], SegmentError> {
        self.ids(&self.columns.traces, &self.columns.traces_at)
    }

    fn spans(&self) -> Result<&'a [[u8; 8]], SegmentError> {
        self.ids(&self.columns.spans, &self.columns.spans_at)
    }

    /// Returns what comes with the lines.
    fn rest(&self) -> Result<&'a Rest, SegmentError> {
        let c = self.columns;
        c.taken.read(&c.rest, self.bytes, &c.rest_at, Rest::read)
    }

    /// Returns whether nothing comes with the lines that may tell one record from another.
    pub(crate) fn is_lines_alone(&self) -> Result<bool, SegmentError> {
        if let Some(known) = self.columns.is_lines_alone.get() {
            return Ok(*known);
        }
        let mut d = self.bytes.at(&self.columns.rest_at)?;
        // Observed times and severities.
        skip_ints(&mut d)?;
        skip_ints(&mut d)?;
        skip_strings(&mut d)?;
        skip_strings(&mut d)?;
        let (resources, _) = get_resources(&mut d)?;
        let is_alone = resources.iter().all(|r| r.attributes.is_empty())
            && AttributeIndex::read(d.rest())?.keys().next().is_none();
        Ok(*self.columns.is_lines_alone.get_or_init(|| is_alone))
    }

    /// Returns the bytes of attributes.
    fn attributes(&self) -> Result<&'a [u8], SegmentError> {
        let rest = self.bytes.at(&self.columns.rest_at)?.rest();
        let from = self.rest()?.attributes_from;
        Ok(rest.get(from..).ok_or(Malformed(from))?)
    }

    /// Visits the rows that a filter lets through, in order.
    pub(crate) fn visit(
        &self,
        filter: &RowFilter<'_>,
        source: &mut Source<'_>,
        visit: VisitRow<'_, LogRecord>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let Some(wanted) = self.wanted(filter, &|_| true)? else {
            return Ok(ControlFlow::Continue(()));
        };
        let lines = self.lines()?;
        let LogColumns { streams, stream_of, times, .. } = self.columns;
        let (traces, spans) = (self.traces()?, self.spans()?);
        let ids = |i: usize| row_ids(i, times, traces, spans);
        let mut texts = Vec::new();
        lines.visit(&wanted, &ids, &mut |i, line| {
            let line = std::str::from_utf8(line).map_err(|_| Malformed(i))?;
            if filter.needles.iter().all(|needle| line.contains(needle.as_str())) {
                texts.push((i, line.to_owned()));
            }
            Ok(())
        })?;
        if texts.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let rest = self.rest()?;
        let bytes = || self.attributes();
        let mut attributes = AttributesReader::new(&rest.attributes, &bytes);
        let row = RowIds::default();
        for (i, line) in texts {
            let bad = Malformed(i);
            let time = *times.get(i).ok_or(bad)?;
            let stream = stream_of.get(i).and_then(|s| streams.get(*s as usize)).ok_or(bad)?;
            let record = LogRecord {
                stream: stream.clone(),
                timestamp: TimestampNs::from_nanos(time),
                observed: TimestampNs::from_nanos(
                    time.wrapping_add(*rest.observed.get(i).ok_or(bad)?),
                ),
                line,
                severity_number: rest.severity(i)?,
                severity_text: rest.severity_text.string(i, row)?,
                event_name: rest.event_name.string(i, row)?,
                trace_id: traces.get(i).and_then(|t| TraceId::from_slice(t)),
                span_id: spans.get(i).and_then(|s| SpanId::from_slice(s)),
                attributes: attributes.of(i, source)?,
                resource: rest.resource(i)?.clone(),
            };
            if visit(record)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    pub(crate) fn lines(&self) -> Result<Lines<'a>, SegmentError> {
        let c = self.columns;
        let read = || Ok(LineColumns::read(self.bytes.get()?, &c.lines_at)?);
        Ok(Lines::new(c.taken.once(&c.lines, read)?, self.bytes, &c.taken))
    }

    /// Tells of each row whether its stream, time and trace are wanted and whether its line may have
    /// all needles; `None` when none is.
    fn wanted(
        &self,
        filter: &RowFilter<'_>,
        accept: &dyn Fn(&Labels) -> bool,
    ) -> Result<Option<Vec<bool>>, SegmentError> {
        let LogColumns { streams, stream_of, times, .. } = self.columns;
        let admitted = |s: &Labels| Matcher::all_match(filter.matchers, s) && accept(s);
        let matching: Vec<bool> = streams.iter().map(admitted).collect();
        if !matching.contains(&true) {
            return Ok(None);
        }
        // Most blocks have no template with the needle: their rows are not looked at.
        let mut sieves = Vec::new();
        for needle in filter.needles {
            // The longest run of letters and digits says most.
            let run = bloom::runs(needle.as_bytes()).map(|(_, r)| r).max_by_key(|r| r.len());
            let Some(run) = run else { continue };
            let Some(sieve) = self.lines()?.sieve(run)? else { return Ok(None) };
            sieves.push(sieve);
        }
        let traces = if filter.traces.is_empty() { &[] } else { self.traces()? };
        let one = |(i, (t, s)): (usize, (&i64, &u32))| {
            let trace = traces.get(i).unwrap_or(&[0; 16]);
            matching.get(*s as usize) == Some(&true) && filter.admits(*t, trace)
        };
        let mut wanted: Vec<bool> = times.iter().zip(stream_of).enumerate().map(one).collect();
        if !sieves.is_empty() {
            let (traces, spans) = (self.traces()?, self.spans()?);
            let ids = |i: usize| row_ids(i, times, traces, spans);
            for sieve in &sieves {
                sieve.narrow(&ids, traces, &mut wanted)?;
            }
        }
        Ok(wanted.contains(&true).then_some(wanted))
    }
}

/// Takes a record and the rows that it stands for.
pub(crate) type VisitRows<'a> =
    &'a mut dyn FnMut(&LogRecord, LogRows<'_>) -> Result<ControlFlow<(), bool>, SegmentError>;

/// What comes with the lines of a block.
#[derive(Debug)]
struct Rest {
    /// Nanoseconds after the row's time.
    observed: Vec<i64>,
    severity: Vec<u32>,
    severity_text: Strings,
    event_name: Strings,
    resources: Vec<Arc<Resource>>,
    resource_of: Vec<u32>,
    attributes: AttributeIndex,
    /// Where attributes begin in it.
    attributes_from: usize,
}

impl Measured for Rest {
    fn bytes(&self) -> usize {
        let resources = self.resources.iter().map(|r| r.attributes.size_bytes()).sum::<usize>();
        let texts = self.severity_text.bytes() + self.event_name.bytes();
        let numbers = self.observed.bytes() + self.severity.bytes() + self.resource_of.bytes();
        resources + texts + numbers + self.attributes.bytes()
    }
}

impl Rest {
    /// Reads what stands behind the lines.
    fn read(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let observed = get_ints(d)?;
        // None is a severity that there cannot be.
        let severity = get_numbers(d, u32::MAX)?;
        let (severity_text, event_name) = (get_strings(d)?, get_strings(d)?);
        let (resources, resource_of) = get_resources(d)?;
        let attributes_from = d.at();
        let attributes = AttributeIndex::read(d.rest())?;
        Ok(Self {
            observed,
            severity,
            severity_text,
            event_name,
            resources,
            resource_of,
            attributes,
            attributes_from,
        })
    }

    fn severity(&self, row: usize) -> Result<u8, Malformed> {
        self.severity.get(row).and_then(|s| u8::try_from(*s).ok()).ok_or(Malformed(row))
    }

    fn resource(&self, row: usize) -> Result<&Arc<Resource>, Malformed> {
        let number = self.resource_of.get(row).ok_or(Malformed(row))?;
        self.resources.get(*number as usize).ok_or(Malformed(row))
    }

    /// Sets what a scan is told of a row.
    fn set(&self, row: usize, record: &mut LogRecord) -> Result<(), Malformed> {
        let resource = self.resource(row)?;
        record.resource.clone_from(resource);
        if !resource.attributes.is_empty() {
            let ids = RowIds::default();
            record.severity_number = self.severity(row)?;
            record.severity_text = self.severity_text.string(row, ids)?;
            record.event_name = self.event_name.string(row, ids)?;
        }
        Ok(())
    }
}

/// Visits the wanted rows of a block with one record for all of them, for those who keep none: see
/// `SelectLogs::scan_logs` for what is set of it.
pub(crate) fn visit_rows(
    rows: LogBlock<'_>,
    filter: &RowFilter<'_>,
    scan: LogScan<'_>,
    source: &mut Source<'_>,
    visit: VisitRows<'_>,
) -> Result<ControlFlow<()>, SegmentError> {
    if let Some(flow) = log_groups::visit(rows, filter, scan, visit)? {
        return Ok(flow);
    }
    let Some(wanted) = rows.wanted(filter, scan.accept)? else {
        return Ok(ControlFlow::Continue(()));
    };
    let needs_line = scan.line || !filter.needles.is_empty();
    let lines = if needs_line { Some(rows.lines()?) } else { None };
    let LogColumns { streams, stream_of, times, .. } = rows.columns;
    let (traces, spans) = (rows.traces()?, rows.spans()?);
    let rest = if rows.is_lines_alone()? { None } else { Some(rows.rest()?) };
    let bytes = || rows.attributes();
    let mut attributes = rest.map(|rest| AttributesReader::new(&rest.attributes, &bytes));
    let mut record = LogRecord::default();
    let mut stream = usize::MAX;
    let bad = Malformed(0);
    let finders: Vec<_> =
        filter.needles.iter().map(|n| memmem::Finder::new(n.as_bytes())).collect();
    let mut one = |i: usize, line: &[u8]| -> Result<ControlFlow<()>, SegmentError> {
        if !finders.iter().all(|f| f.find(line).is_some()) {
            return Ok(ControlFlow::Continue(()));
        }
        if let Some((rest, attributes)) = rest.zip(attributes.as_mut()) {
            record.attributes = attributes.of(i, source)?;
            rest.set(i, &mut record)?;
        }
        let of = *stream_of.get(i).ok_or(bad)? as usize;
        if of != stream {
            record.stream = streams.get(of).ok_or(bad)?.clone();
            stream = of;
        }
        record.timestamp = TimestampNs::from_nanos(*times.get(i).ok_or(bad)?);
        record.line.clear();
        record.line.push_str(std::str::from_utf8(line).map_err(|_| Malformed(i))?);
        record.trace_id = traces.get(i).and_then(|t| TraceId::from_slice(t));
        record.span_id = spans.get(i).and_then(|s| SpanId::from_slice(s));
        let flow = visit(&record, LogRows::one(&record.timestamp.nanos()))?;
        Ok(flow.map_continue(|_| ()))
    };
    let Some(lines) = lines else {
        for i in wanted.iter().enumerate().filter(|(_, w)| **w).map(|(i, _)| i) {
            if one(i, &[])?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        return Ok(ControlFlow::Continue(()));
    };
    let ids = |i: usize| row_ids(i, times, traces, spans);
    let mut ended = Ok(ControlFlow::Continue(()));
    lines.visit(&wanted, &ids, &mut |i, line| {
        if matches!(ended, Ok(ControlFlow::Continue(()))) {
            ended = one(i, line);
        }
        Ok(())
    })?;
    ended
}

/// Calls `out` with the streams of a block that match and have rows in the range; no row is built.
pub(crate) fn streams_of(all: &LogColumns, filter: &RowFilter<'_>, out: &mut dyn FnMut(&Labels)) {
    let admits = |t: i64| filter.admits(t, &[0; 16]);
    let mut seen = vec![admits(all.bounds.0) && admits(all.bounds.1); all.streams.len()];
    if seen.contains(&false) {
        for (s, t) in all.stream_of.iter().zip(&all.times) {
            if let Some(seen) = seen.get_mut(*s as usize) {
                *seen |= admits(*t);
            }
        }
    }
    let hits = all.streams.iter().zip(&seen).filter(|(_, seen)| **seen).map(|(s, _)| s);
    hits.filter(|s| Matcher::all_match(filter.matchers, s)).for_each(out);
}
