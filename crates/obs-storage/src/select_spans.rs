//! Spans and calls: traces by id, spans and calls of a range.

use crate::batch::Batch;
use crate::head::rows::scan;
use crate::segment::rows::{Row, RowFilter};
use crate::segment::{Signal, kind_of};
use crate::segments::OpenSegment;
use crate::select::Snapshot;
use crate::store::Store;
use foldhash::{HashMap, HashSet};
use obs_model::{
    AttributeScope, Budget, CallSelection, LlmCall, SelectError, SelectSpans, Span, SpanId,
    SpanKind, SpanScan, SpanSelection, TenantId, TimestampNs, TraceId, Visit, VisitSpans,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Newest first, so that searches with a limit end early.
fn newest_first(segments: &mut [Arc<OpenSegment>]) {
    segments.sort_by_key(|s| std::cmp::Reverse(s.meta.max_time));
}

impl Store {
    /// Visits rows, newest part of the store first.
    fn visit_newest<R: Row>(
        &self,
        mut snapshot: Snapshot<Vec<Arc<Batch<R>>>>,
        filter: &RowFilter<'_>,
        budget: &Budget,
        contains: &dyn Fn(&R) -> bool,
        identity: impl Fn(&R) -> (TraceId, SpanId, i64),
        visit: Visit<'_, R>,
    ) -> Result<(), SelectError> {
        // A request that was sent again, its answer lost, is found once.
        let mut seen: HashSet<(TraceId, SpanId, i64)> = HashSet::default();
        let mut one = |r: R| {
            if !contains(&r) {
                budget.take(1, 0)?;
                return Ok(ControlFlow::Continue(()));
            }
            let key = identity(&r);
            budget.take(1, size_of_val(&key))?;
            Ok(if seen.insert(key) { visit(&Arc::new(r)) } else { ControlFlow::Continue(()) })
        };
        for batches in snapshot.heads.iter().rev() {
            if scan(batches, filter, true, &|_, _| true, &mut one)?.is_break() {
                return Ok(());
            }
        }
        newest_first(&mut snapshot.segments);
        for s in &snapshot.segments {
            let flow =
                self.scan_segment(s, &snapshot.tombstones, filter, true, budget, &mut one)?;
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl SelectSpans for Store {
    fn trace(
        &self,
        tenant: &TenantId,
        id: TraceId,
        budget: &Budget,
    ) -> Result<Vec<Arc<Span>>, SelectError> {
        let list = self.traces(tenant, &[id], budget)?;
        Ok(list.into_iter().next().unwrap_or_default())
    }

    fn traces(
        &self,
        tenant: &TenantId,
        ids: &[TraceId],
        budget: &Budget,
    ) -> Result<Vec<Vec<Arc<Span>>>, SelectError> {
        let all = (i64::MIN, i64::MAX);
        let snapshot =
            self.rows_snapshot(tenant, Signal::Spans, all, |rows| rows.spans.batches().to_vec());
        let mut wanted = ids.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let filter = RowFilter { traces: &wanted, ..RowFilter::ALL };
        let mut found: HashMap<TraceId, Vec<Arc<Span>>> = HashMap::default();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut keep = |s: Span| {
            budget.take(1, s.size_bytes())?;
            found.entry(s.trace_id).or_default().push(Arc::new(s));
            Ok(ControlFlow::Continue(()))
        };
        for batches in &snapshot.heads {
            let _ = scan(batches, &filter, false, &|_, _| true, &mut keep)?;
        }
        for s in &snapshot.segments {
            let _ =
                self.scan_segment(s, &snapshot.tombstones, &filter, false, budget, &mut keep)?;
        }
        let mut trace = |id: &TraceId| {
            let mut spans = found.remove(id).unwrap_or_default();
            spans.sort_by_key(|s| (s.start, s.span_id));
            // Both sides of a call may share an id, as in Zipkin; a repeated request has all equal.
            let mut seen = HashSet::default();
            spans.retain(|s| seen.insert((s.span_id, s.start, s.kind.to_otlp())));
            spans
        };
        Ok(ids.iter().map(&mut trace).collect())
    }

    fn scan_spans(
        &self,
        tenant: &TenantId,
        scan: &SpanScan<'_>,
        budget: &Budget,
        visitor: &mut dyn VisitSpans,
    ) -> Result<(), SelectError> {
        let (start, end) = (scan.start.nanos(), scan.end.nanos());
        let snapshot = self.rows_snapshot(tenant, Signal::Spans, (start, end), |rows| {
            rows.spans.overlapping(start, end)
        });
        self.scan_span_parts(&snapshot, scan, budget, visitor)
    }

    fn attribute_keys(
        &self,
        tenant: &TenantId,
        start: TimestampNs,
        end: TimestampNs,
        budget: &Budget,
    ) -> Result<BTreeSet<(AttributeScope, String)>, SelectError> {
        let (start, end) = (start.nanos(), end.nanos());
        let snapshot = self.rows_snapshot(tenant, Signal::Spans, (start, end), |rows| {
            rows.spans.overlapping(start, end)
        });
        self.span_keys(&snapshot, (start, end), budget)
    }

    fn select_spans(
        &self,
        tenant: &TenantId,
        selection: &SpanSelection,
        budget: &Budget,
        visit: Visit<'_, Span>,
    ) -> Result<(), SelectError> {
        let (start, end) = (selection.start.nanos(), selection.end.nanos());
        let snapshot = self.rows_snapshot(tenant, Signal::Spans, (start, end), |rows| {
            rows.spans.overlapping(start, end)
        });
        let filter = RowFilter { start, end, ..RowFilter::ALL };
        let of_span = |s: &Span| (s.trace_id, s.span_id, s.start.nanos());
        self.visit_newest(snapshot, &filter, budget, &|s| selection.contains(s), of_span, visit)
    }

    fn operations(
        &self,
        tenant: &TenantId,
        _budget: &Budget,
    ) -> Result<BTreeMap<String, Vec<(String, SpanKind)>>, SelectError> {
        let all = (i64::MIN, i64::MAX);
        let snapshot =
            self.rows_snapshot(tenant, Signal::Spans, all, |rows| rows.operations.all().clone());
        let mut known = BTreeSet::new();
        snapshot.heads.into_iter().for_each(|o| known.extend(o));
        for s in &snapshot.segments {
            if !snapshot.tombstones.of(&s.meta).everything() {
                known.extend(s.meta.operations.iter().cloned());
            }
        }
        let mut out: BTreeMap<String, Vec<(String, SpanKind)>> = BTreeMap::new();
        for (service, operation, kind) in known {
            out.entry(service).or_default().push((operation, kind_of(kind)));
        }
        Ok(out)
    }

    fn select_calls(
        &self,
        tenant: &TenantId,
        selection: &CallSelection,
        budget: &Budget,
        visit: Visit<'_, LlmCall>,
    ) -> Result<(), SelectError> {
        let (start, end) = (selection.start.nanos(), selection.end.nanos());
        let snapshot = self.rows_snapshot(tenant, Signal::Calls, (start, end), |rows| {
            rows.calls.overlapping(start, end)
        });
        let filter = RowFilter {
            start,
            end,
            traces: selection.trace_id.as_slice(),
            revisions_only: selection.revisions_only,
            ..RowFilter::ALL
        };
        // A revision is a row of its own, not a repetition.
        let of_call = |c: &LlmCall| (c.trace_id, c.span_id, i64::from(c.revision));
        self.visit_newest(snapshot, &filter, budget, &|c| selection.contains(c), of_call, visit)
    }
}
