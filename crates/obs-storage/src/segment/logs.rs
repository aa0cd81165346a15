//! Blocks of log records.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{Record as _, get_attributes, get_labels, put_attributes, put_labels};
use crate::segment::attrs::{self, AttributesReader, Sink, Source};
use crate::segment::bloom;
use crate::segment::columns::{
    Context, RowIds, get_ints, get_packed, get_strings, put_ints, put_packed, put_strings,
};
use crate::segment::ids::{get_ids, put_ids, text_of};
use crate::segment::lines::{Lines, RowText, put_lines};
use crate::segment::log_groups;
use crate::segment::rows::{Row, RowFilter, VisitRow};
use crate::segment::{SegmentError, Signal};
use foldhash::HashMap;
use memchr::memmem;
use obs_model::{
    Labels, LogRecord, LogRows, LogScan, Matcher, Resource, SpanId, TimestampNs, TraceId,
};
use std::ops::ControlFlow;
use std::sync::Arc;

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
) -> Result<(Vec<T>, Vec<usize>), Malformed> {
    let body = get_packed(d)?;
    let mut b = Decoder::new(&body);
    let table = (0..b.len()?).map(|_| read(&mut b)).collect::<Result<Vec<T>, _>>()?;
    let rows = get_ints(d)?
        .into_iter()
        .map(|n| usize::try_from(n).ok().filter(|n| *n < table.len()).ok_or(d.bad()))
        .collect::<Result<_, _>>()?;
    Ok((table, rows))
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
) -> Result<(Vec<Arc<Resource>>, Vec<usize>), Malformed> {
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
        let accept = |_: &Labels| true;
        let Some(mut p) = Prepared::read(block, filter, &accept)? else {
            return Ok(ControlFlow::Continue(()));
        };
        let lines = p.lines()?;
        p.narrow(&lines, filter)?;
        let Prepared { streams, stream_of, times, traces, spans, wanted, mut d, .. } = p;
        let ids = |i: usize| row_text(i, &times, &traces, &spans);
        let n = times.len();
        let mut texts = vec![None; n];
        lines.visit(&wanted, &ids, &mut |i, line| {
            let line = std::str::from_utf8(line).map_err(|_| Malformed(i))?;
            if filter.needles.iter().all(|needle| line.contains(needle.as_str()))
                && let Some(slot) = texts.get_mut(i)
            {
                *slot = Some(line.to_owned());
            }
            Ok(())
        })?;
        if texts.iter().all(Option::is_none) {
            return Ok(ControlFlow::Continue(()));
        }
        let (observed, severity) = (get_ints(&mut d)?, get_ints(&mut d)?);
        let (severity_text, event_name) = (get_strings(&mut d)?, get_strings(&mut d)?);
        let (resources, resource_of) = get_resources(&mut d)?;
        let mut attributes = AttributesReader::read(&mut d)?;
        let bad = Malformed(0);
        for (i, line) in texts.into_iter().enumerate() {
            let Some(line) = line else {
                attributes.skip()?;
                continue;
            };
            let time = *times.get(i).ok_or(bad)?;
            let stream = stream_of.get(i).and_then(|s| streams.get(*s)).ok_or(bad)?;
            let resource = resource_of.get(i).and_then(|r| resources.get(*r)).ok_or(bad)?;
            let row = RowIds::default();
            let record = Self {
                stream: stream.clone(),
                timestamp: TimestampNs::from_nanos(time),
                observed: TimestampNs::from_nanos(time.wrapping_add(*observed.get(i).ok_or(bad)?)),
                line,
                severity_number: severity.get(i).and_then(|s| u8::try_from(*s).ok()).ok_or(bad)?,
                severity_text: severity_text.string(i, row)?,
                event_name: event_name.string(i, row)?,
                trace_id: traces.get(i).and_then(|t| TraceId::from_slice(t)),
                span_id: spans.get(i).and_then(|s| SpanId::from_slice(s)),
                attributes: attributes.next(source)?,
                resource: resource.clone(),
            };
            debug_assert_eq!(record.time(), time);
            if visit(record)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The columns of a block that decide which rows are wanted.
struct Prepared<'a> {
    streams: Vec<Labels>,
    stream_of: Vec<usize>,
    times: Vec<i64>,
    traces: Vec<[u8; 16]>,
    spans: Vec<[u8; 8]>,
    lines: &'a [u8],
    wanted: Vec<bool>,
    /// Stands behind the lines.
    d: Decoder<'a>,
}

fn row_text(i: usize, times: &[i64], traces: &[[u8; 16]], spans: &[[u8; 8]]) -> RowText {
    RowText {
        time: times.get(i).copied().unwrap_or_default(),
        trace: traces.get(i).map(text_of).unwrap_or_default(),
        span: spans.get(i).map(text_of).unwrap_or_default(),
    }
}

impl<'a> Prepared<'a> {
    /// Reads the columns; `None` when no row of the block is wanted.
    fn read(
        block: &'a [u8],
        filter: &RowFilter<'_>,
        accept: &dyn Fn(&Labels) -> bool,
    ) -> Result<Option<Self>, Malformed> {
        let mut d = Decoder::new(block);
        let n = d.len_free()?;
        let (streams, stream_of) = get_table(&mut d, get_labels)?;
        let admitted = |s: &Labels| Matcher::all_match(filter.matchers, s) && accept(s);
        let matching: Vec<bool> = streams.iter().map(admitted).collect();
        if !matching.contains(&true) {
            return Ok(None);
        }
        let times = get_ints(&mut d)?;
        let traces = get_ids::<16>(&mut d)?;
        let spans = get_ids::<8>(&mut d)?;
        let lines = d.raw()?;
        if [stream_of.len(), times.len(), traces.len(), spans.len()] != [n; 4] {
            return Err(d.bad());
        }
        let wanted: Vec<bool> = times
            .iter()
            .zip(&traces)
            .zip(&stream_of)
            .map(|((t, trace), s)| matching.get(*s) == Some(&true) && filter.admits(*t, trace))
            .collect();
        let any = wanted.contains(&true);
        Ok(any.then_some(Self { streams, stream_of, times, traces, spans, lines, wanted, d }))
    }

    fn lines(&self) -> Result<Lines<'a>, Malformed> {
        Lines::read(&mut Decoder::new(self.lines))
    }

    /// Takes rows out that cannot have a line with all needles.
    fn narrow(&mut self, lines: &Lines<'_>, filter: &RowFilter<'_>) -> Result<(), Malformed> {
        let (times, traces, spans) = (&self.times, &self.traces, &self.spans);
        let ids = |i: usize| row_text(i, times, traces, spans);
        for needle in filter.needles {
            // The longest run of letters and digits says most.
            let run = bloom::runs(needle.as_bytes()).map(|(_, r)| r).max_by_key(|r| r.len());
            if let Some(run) = run {
                lines.narrow(run, &ids, traces, &mut self.wanted)?;
            }
        }
        Ok(())
    }
}

/// Takes a record and the rows that it stands for.
pub(crate) type VisitRows<'a> =
    &'a mut dyn FnMut(&LogRecord, LogRows<'_>) -> Result<ControlFlow<()>, SegmentError>;

/// Visits the wanted rows of a block with one record for all of them, for those who keep none: see
/// `SelectLogs::scan_logs` for what is set of it.
pub(crate) fn visit_rows(
    block: &[u8],
    filter: &RowFilter<'_>,
    scan: LogScan<'_>,
    source: &mut Source<'_>,
    visit: VisitRows<'_>,
) -> Result<ControlFlow<()>, SegmentError> {
    if let Some(flow) = log_groups::visit(block, filter, scan, visit)? {
        return Ok(flow);
    }
    let Some(mut p) = Prepared::read(block, filter, scan.accept)? else {
        return Ok(ControlFlow::Continue(()));
    };
    let needs_line = scan.line || !filter.needles.is_empty();
    let lines = if needs_line { Some(p.lines()?) } else { None };
    if let Some(lines) = &lines {
        p.narrow(lines, filter)?;
    }
    let Prepared { streams, stream_of, times, traces, spans, wanted, mut d, .. } = p;
    if !wanted.contains(&true) {
        return Ok(ControlFlow::Continue(()));
    }
    let (_, severity) = (get_ints(&mut d)?, get_ints(&mut d)?);
    let (severity_text, event_name) = (get_strings(&mut d)?, get_strings(&mut d)?);
    let (resources, resource_of) = get_resources(&mut d)?;
    let mut attributes = AttributesReader::read(&mut d)?;
    let has_resources = resources.iter().any(|r| !r.attributes.is_empty());
    let mut record = LogRecord::default();
    let (mut stream, mut next) = (usize::MAX, 0);
    let bad = Malformed(0);
    let finders: Vec<_> =
        filter.needles.iter().map(|n| memmem::Finder::new(n.as_bytes())).collect();
    let mut one = |i: usize, line: &[u8]| -> Result<ControlFlow<()>, SegmentError> {
        if !finders.iter().all(|f| f.find(line).is_some()) {
            return Ok(ControlFlow::Continue(()));
        }
        while next < i {
            attributes.skip()?;
            next += 1;
        }
        next += 1;
        record.attributes = attributes.next(source)?;
        let of = *stream_of.get(i).ok_or(bad)?;
        if of != stream {
            record.stream = streams.get(of).ok_or(bad)?.clone();
            stream = of;
        }
        record.timestamp = TimestampNs::from_nanos(*times.get(i).ok_or(bad)?);
        record.line.clear();
        record.line.push_str(std::str::from_utf8(line).map_err(|_| Malformed(i))?);
        if has_resources {
            let resource = resource_of.get(i).and_then(|r| resources.get(*r)).ok_or(bad)?;
            record.resource.clone_from(resource);
            if !resource.attributes.is_empty() {
                let row = RowIds::default();
                let number = severity.get(i).and_then(|s| u8::try_from(*s).ok());
                record.severity_number = number.ok_or(bad)?;
                record.severity_text = severity_text.string(i, row)?;
                record.event_name = event_name.string(i, row)?;
            }
        }
        record.trace_id = traces.get(i).and_then(|t| TraceId::from_slice(t));
        record.span_id = spans.get(i).and_then(|s| SpanId::from_slice(s));
        visit(&record, LogRows::one(&record.timestamp.nanos()))
    };
    let Some(lines) = lines else {
        for i in wanted.iter().enumerate().filter(|(_, w)| **w).map(|(i, _)| i) {
            if one(i, &[])?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        return Ok(ControlFlow::Continue(()));
    };
    let ids = |i: usize| row_text(i, &times, &traces, &spans);
    let mut ended = Ok(ControlFlow::Continue(()));
    lines.visit(&wanted, &ids, &mut |i, line| {
        if matches!(ended, Ok(ControlFlow::Continue(()))) {
            ended = one(i, line);
        }
        Ok(())
    })?;
    ended
}

/// Adds the streams of a block that match and have rows in the range, without building a row.
pub(crate) fn streams_of(
    block: &[u8],
    filter: &RowFilter<'_>,
    out: &mut dyn FnMut(&Labels),
) -> Result<(), Malformed> {
    let mut d = Decoder::new(block);
    d.len_free()?;
    let (streams, stream_of) = get_table(&mut d, get_labels)?;
    let times = get_ints(&mut d)?;
    let mut seen = vec![false; streams.len()];
    for (s, t) in stream_of.iter().zip(&times) {
        if let Some(seen) = seen.get_mut(*s) {
            *seen |= filter.admits(*t, &[0; 16]);
        }
    }
    let hits = streams.iter().zip(&seen).filter(|(_, seen)| **seen).map(|(s, _)| s);
    hits.filter(|s| Matcher::all_match(filter.matchers, s)).for_each(out);
    Ok(())
}
