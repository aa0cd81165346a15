//! Blocks of spans.

use crate::bin::Encoder;
use crate::records::{put_events, put_links, put_scope};
use crate::segment::attrs::{self, Sink, Source};
use crate::segment::bloom;
use crate::segment::columns::{Context, put_ints, put_strings, put_texts};
use crate::segment::ids::{put_ids, text_of};
use crate::segment::kept::LazyBlock;
use crate::segment::logs::{put_resources, put_shared, span_bytes};
use crate::segment::rows::{Damaged, Row, RowFilter, RowSegment, VisitRow};
use crate::segment::span_columns::{SpanBlock, SpanColumns};
use crate::segment::{SegmentError, Signal};
use foldhash::HashMap;
use obs_model::{AttributeValue, Attributes, Span, SpanId, SpanStatus, TimestampNs, TraceId};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Parents are written as the distance to their row, 0 for none; this marks one that is not in
/// the block, whose id follows.
pub(crate) const ELSEWHERE: i64 = i64::MIN;

/// Bytes of a text up to which the filter has it.
pub(crate) const FILTER_TEXT_MAX: usize = 256;

/// Adds the texts of values, as [`obs_model::FieldValue::text`] gives them.
fn add_values(b: &mut bloom::Builder, a: &Attributes) {
    fn add(b: &mut bloom::Builder, v: &AttributeValue) {
        match v {
            AttributeValue::Empty => {}
            AttributeValue::String(s) if s.len() > FILTER_TEXT_MAX => {}
            AttributeValue::String(s) => b.add_value(s.as_bytes()),
            AttributeValue::Bool(true) => b.add_value(b"true"),
            AttributeValue::Bool(false) => b.add_value(b"false"),
            AttributeValue::Array(list) => list.iter().for_each(|v| add(b, v)),
            other => b.add_value(other.to_string().as_bytes()),
        }
    }
    a.iter().for_each(|(_, v)| add(b, v));
}

impl Row for Span {
    const SIGNAL: Signal = Signal::Spans;
    const BLOCK_ROWS: usize = 2048;
    const BY_TRACE: bool = true;

    fn arrange(rows: &mut Vec<Self>) {
        // Traces by their first start, so that time and trace both have locality.
        let mut first: HashMap<TraceId, TimestampNs> = HashMap::default();
        for r in rows.iter() {
            let start = first.entry(r.trace_id).or_insert(r.start);
            *start = (*start).min(r.start);
        }
        rows.sort_by_cached_key(|r| {
            (first.get(&r.trace_id).copied(), r.trace_id, r.start, r.span_id)
        });
        rows.dedup_by(|b, a| a.span_id == b.span_id && a == b);
    }

    fn size(&self) -> usize {
        self.size_bytes()
    }

    fn put_block(rows: &[Self], e: &mut Encoder, sink: &mut Sink<'_>) -> Result<(), SegmentError> {
        e.len(rows.len());
        put_ids(e, &rows.iter().map(|r| *r.trace_id.as_bytes()).collect::<Vec<_>>());
        put_ints(e, &rows.iter().map(|r| r.start.nanos()).collect::<Vec<_>>());
        put_ids(e, &rows.iter().map(|r| *r.span_id.as_bytes()).collect::<Vec<_>>());
        let at: HashMap<(TraceId, SpanId), i64> =
            rows.iter().enumerate().map(|(i, r)| ((r.trace_id, r.span_id), i as i64)).collect();
        let mut elsewhere = Vec::new();
        let parents: Vec<i64> = rows
            .iter()
            .enumerate()
            .map(|(i, r)| {
                let Some(parent) = r.parent_id else { return 0 };
                match at.get(&(r.trace_id, parent)) {
                    // A span that is its own parent has no distance.
                    Some(p) if *p != i as i64 => i as i64 - p,
                    _ => {
                        elsewhere.push(span_bytes(r.parent_id));
                        ELSEWHERE
                    }
                }
            })
            .collect();
        put_ints(e, &parents);
        put_ids(e, &elsewhere);
        let texts = |f: &dyn Fn(&Self) -> &str| -> Vec<Vec<u8>> {
            rows.iter().map(|r| f(r).as_bytes().to_vec()).collect()
        };
        let put = |e: &mut Encoder, list: Vec<Vec<u8>>| {
            put_strings(e, &list.iter().map(Vec::as_slice).collect::<Vec<_>>(), Context::default());
        };
        put(e, texts(&|r| &r.name));
        put_ints(e, &rows.iter().map(|r| r.kind.to_otlp().into()).collect::<Vec<_>>());
        let duration = |r: &Self| r.end.nanos().wrapping_sub(r.start.nanos());
        put_ints(e, &rows.iter().map(duration).collect::<Vec<_>>());
        let status = |r: &Self| match r.status {
            SpanStatus::Unset => 0,
            SpanStatus::Ok => 1,
            SpanStatus::Error(_) => 2,
        };
        put_ints(e, &rows.iter().map(status).collect::<Vec<_>>());
        put(e, texts(&|r| if let SpanStatus::Error(m) = &r.status { m } else { "" }));
        put(e, texts(&|r| &r.trace_state));
        put_resources(e, rows.iter().map(|r| &r.resource));
        put_shared(e, rows.iter().map(|r| &r.scope), put_scope);
        let binary = |f: &dyn Fn(&mut Encoder, &Self)| -> Vec<Vec<u8>> {
            rows.iter()
                .map(|r| {
                    let mut one = Encoder::default();
                    f(&mut one, r);
                    one.bytes
                })
                .collect()
        };
        let put = |e: &mut Encoder, list: Vec<Vec<u8>>| {
            put_texts(e, &list.iter().map(Vec::as_slice).collect::<Vec<_>>());
        };
        put(
            e,
            binary(&|e, r| {
                if r.events.is_empty() {
                } else {
                    put_events(e, r)
                }
            }),
        );
        put(
            e,
            binary(&|e, r| {
                if r.links.is_empty() {
                } else {
                    put_links(e, &r.links)
                }
            }),
        );
        attrs::put_attributes(e, &rows.iter().map(|r| &r.attributes).collect::<Vec<_>>(), sink)
    }

    /// Texts that a field of a span may be asked to be equal to.
    fn filter(rows: &[Self]) -> Option<Vec<u8>> {
        /// Values between two rounds of forgetting repeated ones.
        const ROUND: usize = 16 << 10;
        let mut b = bloom::Builder::default();
        let mut limit = ROUND;
        let (mut resource, mut scope, mut trace) = (None, None, None);
        for r in rows {
            if trace != Some(r.trace_id) {
                trace = Some(r.trace_id);
                b.add_text(text_of(r.trace_id.as_bytes()).as_bytes());
            }
            b.add_value(r.name.as_bytes());
            if resource != Some(Arc::as_ptr(&r.resource)) {
                resource = Some(Arc::as_ptr(&r.resource));
                b.add_value(r.service().as_bytes());
                add_values(&mut b, &r.resource.attributes);
            }
            if scope != Some(Arc::as_ptr(&r.scope)) {
                scope = Some(Arc::as_ptr(&r.scope));
                b.add_value(r.scope.name.as_bytes());
                b.add_value(r.scope.version.as_bytes());
                add_values(&mut b, &r.scope.attributes);
            }
            add_values(&mut b, &r.attributes);
            for e in &r.events {
                b.add_value(e.name.as_bytes());
                add_values(&mut b, &e.attributes);
            }
            r.links.iter().for_each(|l| add_values(&mut b, &l.attributes));
            if b.len() > limit {
                b.compact();
                limit = b.len() + ROUND;
            }
        }
        b.compact();
        Some(b.finish())
    }

    fn get_block(
        block: &[u8],
        filter: &RowFilter<'_>,
        source: &mut Source<'_>,
        visit: VisitRow<'_, Self>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let (columns, bytes) = (SpanColumns::read(block)?, LazyBlock::whole(block));
        SpanBlock::new(&columns, &bytes, &[], &mut source.reborrow()).visit(filter, visit)
    }

    fn scan(
        segment: &RowSegment,
        numbers: &[usize],
        filter: &RowFilter<'_>,
        damaged: Damaged<'_>,
        visit: VisitRow<'_, Self>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let read = SpanColumns::read;
        let numbers = numbers.iter().copied();
        segment.each_columns(numbers, filter, damaged, read, |columns, bytes, source| {
            SpanBlock::new(columns, bytes, &[], &mut source.reborrow()).visit(filter, visit)
        })
    }
}
