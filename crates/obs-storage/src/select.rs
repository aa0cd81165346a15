//! The read ports: what was asked for, from segments, the head being flushed, and the head.

use crate::batch::{Batch, RowRef};
use crate::head::metrics::{Run, sort_unique};
use crate::head::rows::scan;
use crate::head::{Frozen, Rows};
use crate::segment::logs::{LogBlock, LogColumns, streams_of, visit_rows};
use crate::segment::rows::{Row, RowFilter, RowSegment};
use crate::segment::{SegmentError, Signal};
use crate::segments::{OpenSegment, Tombstones, wanted};
use crate::store::{Store, View};
use crate::stretches::Plan;
use foldhash::{HashMap, HashSet};
use obs_model::{
    Budget, ColumnSeries, Direction, Labels, LogRecord, LogRows, LogScan, LogSelection, Matcher,
    MetricMetadata, Moment, Sample, Samples, SelectError, SelectLogs, SelectSeries, Series,
    SeriesSelection, TenantId, TimestampMs, Visit, VisitScan,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// What a query reads, taken at one moment: nothing is seen twice or not at all while a flush or
/// merge goes on.
pub(crate) struct Snapshot<T> {
    pub(crate) segments: Vec<Arc<OpenSegment>>,
    pub(crate) tombstones: Arc<Tombstones>,
    /// Of the head being flushed, then of the head.
    pub(crate) heads: Vec<T>,
}

impl Store {
    fn snapshot<T>(
        &self,
        tenant: &TenantId,
        signal: Signal,
        range: (i64, i64),
        frozen: impl FnOnce(&Frozen) -> Option<T>,
        head: impl FnOnce(&crate::head::TenantHead) -> T,
    ) -> Snapshot<T> {
        let view: &View = &self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let segments = view.segments.iter().filter(|s| wanted(s, tenant, signal, range));
        let mut heads: Vec<T> = view.frozen.as_deref().and_then(frozen).into_iter().collect();
        heads.extend(self.inner.head().tenants.get(tenant).map(head));
        Snapshot {
            segments: segments.cloned().collect(),
            tombstones: view.tombstones.clone(),
            heads,
        }
    }

    pub(crate) fn rows_snapshot<T>(
        &self,
        tenant: &TenantId,
        signal: Signal,
        range: (i64, i64),
        f: impl Fn(&Rows) -> T,
    ) -> Snapshot<T> {
        self.snapshot(
            tenant,
            signal,
            range,
            |frozen| frozen.tenants.get(tenant).map(|(_, rows)| f(rows)),
            |t| f(&t.rows),
        )
    }

    /// Notes that part of a segment could not be read.
    pub(crate) fn note(
        &self,
        budget: &Budget,
        s: &OpenSegment,
        e: &SegmentError,
        (min, max): (i64, i64),
    ) {
        self.inner.stats.damaged_reads.fetch_add(1, Ordering::Relaxed);
        let seconds = |t: i64| t.div_euclid(s.meta.signal.per_second());
        let text = format!(
            "{} of {} from {} to {} (Unix seconds) could not be read: {e}",
            s.meta.signal.as_str(),
            s.meta.tenant,
            seconds(min),
            seconds(max)
        );
        tracing::error!(file = %s.path().display(), text, "an answer is partial");
        budget.note_missing(text);
    }

    /// Scans a segment's rows; a block that is damaged is noted and passed over.
    pub(crate) fn scan_segment<R: Row>(
        &self,
        s: &OpenSegment,
        tombstones: &Tombstones,
        filter: &RowFilter<'_>,
        reverse: bool,
        budget: &Budget,
        visit: &mut dyn FnMut(R) -> Result<ControlFlow<()>, SegmentError>,
    ) -> Result<ControlFlow<()>, SelectError> {
        let hidden = tombstones.of(&s.meta);
        if hidden.everything() {
            return Ok(ControlFlow::Continue(()));
        }
        let mut visible = |r: R| {
            if hidden.hides(&r) {
                return Ok(ControlFlow::Continue(()));
            }
            visit(r)
        };
        let mut damaged =
            |e: &SegmentError, min: i64, max: i64| self.note(budget, s, e, (min, max));
        let rows: Option<&RowSegment> = match s.rows() {
            Ok(rows) => rows,
            Err(e) if e.costs_a_part() => {
                damaged(&e, s.meta.min_time, s.meta.max_time);
                None
            }
            Err(e) => return Err(e.into()),
        };
        match rows {
            Some(rows) => Ok(rows.scan(filter, reverse, &mut damaged, &mut visible)?),
            None => Ok(ControlFlow::Continue(())),
        }
    }
}

/// Samples by series, as they are found.
#[derive(Default)]
struct Found {
    places: HashMap<Labels, u32>,
    /// In the order in which they were found first: that of a segment is the one that is wanted,
    /// and what is sorted already is sorted at once.
    list: Vec<(ColumnSeries, InOrder)>,
}

/// Whether samples are in order of time: what one segment has of a series is.
type InOrder = bool;

impl Found {
    fn reserve(&mut self, series: usize) {
        self.places.reserve(series);
        self.list.reserve(series);
    }

    /// Takes the samples, all of them later written than those taken before.
    fn add(&mut self, labels: &Labels, samples: Samples, ordered: InOrder) {
        if samples.is_empty() {
            return;
        }
        if let Some(place) = self.places.get(labels) {
            let Some((series, in_order)) = self.list.get_mut(*place as usize) else { return };
            let follows = series.samples.last_time() < samples.first_time();
            *in_order &= ordered && follows;
            series.samples.append(samples);
            return;
        }
        self.places.insert(labels.clone(), self.list.len() as u32);
        self.list.push((ColumnSeries { labels: labels.clone(), samples }, ordered));
    }

    /// Returns the series in order of their labels, their samples in order of time, one a time.
    fn sorted(self) -> Vec<ColumnSeries> {
        drop(self.places);
        let mut out: Vec<ColumnSeries> = self
            .list
            .into_iter()
            .map(|(mut series, in_order)| {
                if !in_order && !series.samples.is_ascending() {
                    let mut samples = std::mem::take(&mut series.samples).into_vec();
                    sort_unique(&mut samples);
                    series.samples = samples.into();
                }
                series
            })
            .collect();
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        out
    }
}

impl SelectSeries for Store {
    fn select(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Series>, SelectError> {
        let columns = self.select_columns(tenant, selection, budget)?;
        let singly = |s: &ColumnSeries| s.samples.len() * size_of::<Sample>();
        budget.take(0, columns.iter().map(singly).sum())?;
        Ok(columns.into_iter().map(Into::into).collect())
    }

    fn select_columns(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<ColumnSeries>, SelectError> {
        let range = (selection.start.millis(), selection.end.millis());
        let matchers = selection.matchers;
        // Copies of the runs: decoding them would hold up writes.
        let from_frozen = |f: &Frozen| -> Option<Vec<(Labels, Run)>> {
            let (metrics, _) = f.tenants.get(tenant)?;
            let hit = |(l, r): &&(Labels, Run)| {
                r.max >= range.0 && r.min <= range.1 && Matcher::all_match(matchers, l)
            };
            Some(metrics.series.iter().filter(hit).cloned().collect())
        };
        let snapshot = self.snapshot(tenant, Signal::Metrics, range, from_frozen, |t| {
            let hits = t.metrics.matching(matchers, range.0, range.1);
            hits.map(|s| (s.labels.clone(), s.run.clone())).collect()
        });
        let mut found = Found::default();
        found.reserve(snapshot.heads.iter().map(Vec::len).max().unwrap_or(0));
        let mut keep =
            |labels: &Labels, samples: Samples, ordered: bool| -> Result<(), SegmentError> {
                budget.take(samples.len(), samples.size_bytes())?;
                found.add(labels, samples, ordered);
                Ok(())
            };
        // Older writes first, so that of equal timestamps the last written wins.
        for s in &snapshot.segments {
            let hidden = snapshot.tombstones.of(&s.meta);
            if hidden.everything() {
                continue;
            }
            let mut damaged =
                |e: &SegmentError, min: i64, max: i64| self.note(budget, s, e, (min, max));
            let series = match s.series() {
                Ok(Some(series)) => series,
                Ok(None) => continue,
                Err(e) if e.costs_a_part() => {
                    damaged(&e, s.meta.min_time, s.meta.max_time);
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            series.select(matchers, range, &mut damaged, &mut |labels, mut samples| {
                hidden.filter(labels, &mut samples);
                keep(labels, samples, true)
            })?;
        }
        for (labels, run) in snapshot.heads.iter().flatten() {
            let mut samples = Vec::new();
            run.read(range.0, range.1, &mut samples).map_err(SegmentError::from)?;
            keep(labels, samples.into(), false)?;
        }
        Ok(found.sorted())
    }

    fn label_sets(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        let range = (selection.start.millis(), selection.end.millis());
        let matchers = selection.matchers;
        let from_frozen = |f: &Frozen| -> Option<Vec<Labels>> {
            let (metrics, _) = f.tenants.get(tenant)?;
            let hit = |(l, r): &&(Labels, Run)| {
                r.max >= range.0 && r.min <= range.1 && Matcher::all_match(matchers, l)
            };
            Some(metrics.series.iter().filter(hit).map(|(l, _)| l.clone()).collect())
        };
        let snapshot = self.snapshot(tenant, Signal::Metrics, range, from_frozen, |t| {
            t.metrics.matching(matchers, range.0, range.1).map(|s| s.labels.clone()).collect()
        });
        let mut out: HashSet<Labels> = snapshot.heads.into_iter().flatten().collect();
        for s in &snapshot.segments {
            budget.check()?;
            let hidden = snapshot.tombstones.of(&s.meta);
            let mut damaged =
                |e: &SegmentError, min: i64, max: i64| self.note(budget, s, e, (min, max));
            let series = match s.series() {
                Ok(Some(series)) if !hidden.everything() => series,
                Ok(_) => continue,
                Err(e) if e.costs_a_part() => {
                    damaged(&e, s.meta.min_time, s.meta.max_time);
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            if hidden.is_empty() {
                series.label_sets(matchers, range, &mut damaged, &mut |l| {
                    out.insert(l);
                })?;
            } else {
                // A series may have lost all its samples.
                series.select(matchers, range, &mut damaged, &mut |labels, mut samples| {
                    hidden.filter(labels, &mut samples);
                    if !samples.is_empty() {
                        out.insert(labels.clone());
                    }
                    Ok(())
                })?;
            }
        }
        budget.take(out.len(), out.iter().map(Labels::size_bytes).sum())?;
        let mut out: Vec<Labels> = out.into_iter().collect();
        out.sort_unstable();
        Ok(out)
    }

    fn metadata(&self, tenant: &TenantId) -> BTreeMap<String, MetricMetadata> {
        let mut out = self.known_metadata(tenant);
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((metrics, _)) = view.frozen.as_ref().and_then(|f| f.tenants.get(tenant)) {
            out.extend(metrics.metadata.clone());
        }
        if let Some(t) = self.inner.head().tenants.get(tenant) {
            out.extend(t.metrics.metadata.clone());
        }
        out
    }

    fn watch(&self, tenant: &TenantId, until: TimestampMs) -> Option<Moment> {
        Some(self.inner.changes.watch(tenant, until))
    }

    fn changed_since(&self, tenant: &TenantId, moment: Moment) -> Option<TimestampMs> {
        self.inner.changes.since(tenant, moment)
    }
}

type LogSnapshot = Snapshot<Vec<Arc<Batch<LogRecord>>>>;

impl Store {
    /// Collects the records of one time window, sorted, and how many bytes the budget gave.
    fn log_window(
        &self,
        snapshot: &LogSnapshot,
        selection: &LogSelection<'_>,
        (start, end): (i64, i64),
        budget: &Budget,
    ) -> Result<(Vec<Arc<LogRecord>>, usize), SelectError> {
        let filter = RowFilter {
            start,
            end,
            traces: selection.trace_id.as_slice(),
            matchers: selection.matchers,
            needles: selection.needles,
            ..RowFilter::ALL
        };
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut keep = |r: LogRecord| {
            budget.take(1, r.size_bytes())?;
            bytes += r.size_bytes();
            out.push(Arc::new(r));
            Ok(ControlFlow::Continue(()))
        };
        for s in snapshot.segments.iter().filter(|s| s.meta.overlaps(start, end)) {
            budget.check()?;
            let _ =
                self.scan_segment(s, &snapshot.tombstones, &filter, false, budget, &mut keep)?;
        }
        for batches in &snapshot.heads {
            for b in batches {
                budget.check()?;
                let one = std::slice::from_ref(b);
                let matching: Vec<bool> = b
                    .tables
                    .streams
                    .iter()
                    .map(|s| Matcher::all_match(filter.matchers, s))
                    .collect();
                if !matching.contains(&true) {
                    continue;
                }
                let also = |b: &Batch<LogRecord>, row: &RowRef| {
                    let body = b.body(row);
                    filter
                        .needles
                        .iter()
                        .all(|n| memchr::memmem::find(body, n.as_bytes()).is_some())
                };
                let _ = scan(one, &filter, false, &also, &mut |r: LogRecord| {
                    let hit = Matcher::all_match(filter.matchers, &r.stream)
                        && filter.needles.iter().all(|n| r.line.contains(n.as_str()));
                    if hit { keep(r) } else { Ok(ControlFlow::Continue(())) }
                })?;
            }
        }
        out.sort_by_key(|r| r.timestamp);
        drop_repeated(&mut out);
        if selection.direction == Direction::Backward {
            out.reverse();
        }
        Ok((out, bytes))
    }

    /// Visits the records of a range in order, window by window.
    fn each_window(
        &self,
        snapshot: &LogSnapshot,
        selection: &LogSelection<'_>,
        (start, end): (i64, i64),
        budget: &Budget,
        visit: Visit<'_, LogRecord>,
    ) -> Result<ControlFlow<()>, SelectError> {
        let mut step = LOG_WINDOW_NS;
        let (mut from, mut to) = (start, end);
        while from < to {
            let (a, b) = match selection.direction {
                Direction::Forward => (from, from.saturating_add(step).min(to)),
                Direction::Backward => (to.saturating_sub(step).max(from), to),
            };
            let (rows, bytes) = self.log_window(snapshot, selection, (a, b), budget)?;
            for r in rows {
                if visit(&r).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            // What the visitor keeps it accounts for.
            budget.release(bytes);
            match selection.direction {
                Direction::Forward => from = b,
                Direction::Backward => to = a,
            }
            step = match bytes {
                0..LOG_WINDOW_BYTES => step.saturating_mul(LOG_WINDOW_GROWTH),
                _ => (step / 2).max(LOG_WINDOW_NS / 64),
            };
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Visits the wanted rows of a segment of which no other source has any.
    fn scan_alone(
        &self,
        s: &OpenSegment,
        tombstones: &Tombstones,
        filter: &RowFilter<'_>,
        scan: LogScan<'_>,
        budget: &Budget,
        visit: VisitScan<'_>,
    ) -> Result<ControlFlow<()>, SelectError> {
        let hidden = tombstones.of(&s.meta);
        let mut damaged =
            |e: &SegmentError, min: i64, max: i64| self.note(budget, s, e, (min, max));
        let rows = match s.rows() {
            Ok(Some(rows)) if !hidden.everything() => rows,
            Ok(_) => return Ok(ControlFlow::Continue(())),
            Err(e) if e.costs_a_part() => {
                damaged(&e, s.meta.min_time, s.meta.max_time);
                return Ok(ControlFlow::Continue(()));
            }
            Err(e) => return Err(e.into()),
        };
        // A deleted record may be told by what a scan does not set.
        let one_by_one = !hidden.is_empty();
        let (numbers, read) = (0..rows.blocks.len(), LogColumns::read);
        let out =
            rows.each_columns(numbers, filter, &mut damaged, read, |columns, bytes, source| {
                budget.check()?;
                let mut seen = 0;
                let mut one = |r: &LogRecord, rows: LogRows<'_>| {
                    seen += rows.count();
                    Ok(visit(r, rows))
                };
                let block = LogBlock { columns, bytes };
                let flow = if one_by_one {
                    block.visit(filter, source, &mut |r| {
                        let is_wanted = !hidden.hides(&r) && (scan.accept)(&r.stream);
                        let time = r.timestamp.nanos();
                        if is_wanted {
                            one(&r, LogRows::one(&time)).map(|flow| flow.map_continue(|_| ()))
                        } else {
                            Ok(ControlFlow::Continue(()))
                        }
                    })?
                } else {
                    visit_rows(block, filter, scan, source, &mut one)?
                };
                budget.take(seen, 0)?;
                Ok(flow)
            })?;
        Ok(out)
    }

    fn log_snapshot(&self, tenant: &TenantId, start: i64, end: i64) -> LogSnapshot {
        self.rows_snapshot(tenant, Signal::Logs, (start, end), |rows| {
            rows.logs.overlapping(start, end)
        })
    }
}

/// Clips a range to what there is; `None` when there is nothing.
fn bounds_of(snapshot: &LogSnapshot, start: i64, end: i64) -> Option<(i64, i64)> {
    let segments = snapshot.segments.iter().map(|s| (s.meta.min_time, s.meta.max_time));
    let heads = snapshot.heads.iter().flatten().filter_map(|b| b.bounds());
    let bounds: Vec<_> = segments.chain(heads).collect();
    let min = bounds.iter().map(|b| b.0).min()?;
    let max = bounds.iter().map(|b| b.1).max()?;
    Some((start.max(min), end.min(max.saturating_add(1))))
}

/// Records that a request brought twice, its answer lost: the same in everything.
fn drop_repeated(rows: &mut Vec<Arc<LogRecord>>) {
    /// Records of one time that are compared with one another.
    const NEAR: usize = 64;
    let mut kept: Vec<Arc<LogRecord>> = Vec::with_capacity(rows.len());
    for r in rows.drain(..) {
        let near = kept.iter().rev().take(NEAR).take_while(|k| k.timestamp == r.timestamp);
        if !near.clone().any(|k| **k == *r) {
            kept.push(r);
        }
    }
    *rows = kept;
}

/// First window of a log scan; each next one is longer, so that a limit is reached after reading
/// little and a full scan takes few rounds.
const LOG_WINDOW_NS: i64 = 60_000_000_000;
const LOG_WINDOW_GROWTH: i64 = 4;
/// Windows with more than this get shorter again.
const LOG_WINDOW_BYTES: usize = 32 << 20;

impl SelectLogs for Store {
    fn select_logs(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
        visit: Visit<'_, LogRecord>,
    ) -> Result<(), SelectError> {
        let (start, end) = (selection.start.nanos(), selection.end.nanos());
        let snapshot = self.log_snapshot(tenant, start, end);
        let Some((start, end)) = bounds_of(&snapshot, start, end) else { return Ok(()) };
        self.each_window(&snapshot, selection, (start, end), budget, visit).map(|_| ())
    }

    fn scan_logs(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        scan: LogScan<'_>,
        budget: &Budget,
        visit: VisitScan<'_>,
    ) -> Result<(), SelectError> {
        let (start, end) = (selection.start.nanos(), selection.end.nanos());
        let snapshot = self.log_snapshot(tenant, start, end);
        let heads = snapshot.heads.iter().flatten().filter_map(|b| b.bounds());
        let kept = &self.inner.kept;
        let plan = Plan::of(&snapshot.segments, heads, (start, end), kept, budget);
        let mut accepted = |r: &Arc<LogRecord>| {
            if !(scan.accept)(&r.stream) {
                return ControlFlow::Continue(());
            }
            visit(r, LogRows::one(&r.timestamp.nanos())).map_continue(|_| ())
        };
        for range in plan.together {
            let flow = self.each_window(&snapshot, selection, range, budget, &mut accepted)?;
            if flow.is_break() {
                return Ok(());
            }
        }
        for (segment, start, end) in plan.alone {
            let Some(s) = snapshot.segments.get(segment) else { continue };
            let filter = RowFilter {
                start,
                end,
                traces: selection.trace_id.as_slice(),
                matchers: selection.matchers,
                needles: selection.needles,
                ..RowFilter::ALL
            };
            if self.scan_alone(s, &snapshot.tombstones, &filter, scan, budget, visit)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn streams(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        let (start, end) = (selection.start.nanos(), selection.end.nanos());
        let snapshot = self.log_snapshot(tenant, start, end);
        let filter = RowFilter { start, end, matchers: selection.matchers, ..RowFilter::ALL };
        let mut out = BTreeSet::new();
        for batch in snapshot.heads.iter().flatten() {
            budget.check()?;
            let candidates =
                batch.tables.streams.iter().filter(|s| Matcher::all_match(selection.matchers, s));
            let unknown: Vec<&Labels> = candidates.filter(|s| !out.contains(*s)).collect();
            let inside = batch.bounds().is_some_and(|(min, max)| min >= start && max < end);
            if unknown.is_empty() {
                continue;
            }
            if inside {
                out.extend(unknown.into_iter().cloned());
                continue;
            }
            let one = std::slice::from_ref(batch);
            let _ = scan(one, &filter, false, &|_, _| true, &mut |r: LogRecord| {
                if Matcher::all_match(selection.matchers, &r.stream) {
                    out.insert(r.stream);
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        for s in &snapshot.segments {
            budget.check()?;
            let hidden = snapshot.tombstones.of(&s.meta);
            if hidden.everything() {
                continue;
            }
            let mut add = |l: &Labels| {
                if !out.contains(l) {
                    out.insert(l.clone());
                }
            };
            let mut damaged =
                |e: &SegmentError, min: i64, max: i64| self.note(budget, s, e, (min, max));
            match s.rows() {
                // A stream may have lost all its records.
                Ok(Some(rows)) if !hidden.is_empty() => {
                    let _ = rows.scan(&filter, false, &mut damaged, &mut |r: LogRecord| {
                        if !hidden.hides(&r) {
                            add(&r.stream);
                        }
                        Ok(ControlFlow::Continue(()))
                    })?;
                }
                Ok(Some(rows)) => {
                    let (numbers, read) = (0..rows.blocks.len(), LogColumns::read);
                    let _ =
                        rows.each_columns(numbers, &filter, &mut damaged, read, |c, _, _| {
                            streams_of(c, &filter, &mut add);
                            Ok(ControlFlow::Continue(()))
                        })?;
                }
                Ok(None) => {}
                Err(e) if e.costs_a_part() => damaged(&e, s.meta.min_time, s.meta.max_time),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(out.into_iter().collect())
    }
}
