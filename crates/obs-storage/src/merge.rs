//! Merging small segments into larger ones, and taking deleted data out.
//!
//! Samples are merged series by series, so that late ones land in place and repeated ones become
//! one. Blocks of records are copied as they are, unless something in them was deleted or is in
//! another input too. A segment
//! with damage is left alone: merging it would make the loss look like a fact.

use crate::flush::{Maker, Purpose, day_of};
use crate::head::metrics::sort_unique;
use crate::manifest::{Edit, SegmentMeta};
use crate::repeated::{Repeated, repeated};
use crate::segment::rows::{Row, RowFilter, RowWriter};
use crate::segment::series::{BlockCache, Found, SeriesSegment, SeriesWriter};
use crate::segment::{KnownOperations, SegmentError, Signal};
use crate::segments::{Hidden, OpenSegment, SegmentData, Tombstones};
use crate::store::Inner;
use crate::sweep::Sweep;
use obs_model::{Labels, LlmCall, LogRecord, Sample, Samples, Span, TimestampNs};
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Segments of one level that are merged into one of the next.
const FAN_IN: usize = 4;
/// Levels after which a segment is left alone.
const LEVEL_MAX: u8 = 6;

/// Does the most urgent piece of work; returns whether there was any.
pub(crate) fn step(inner: &Inner) -> Result<bool, SegmentError> {
    // What this reads must neither move nor expire meanwhile.
    let _quiet = inner.shaping.lock().unwrap_or_else(PoisonError::into_inner);
    let (segments, tombstones) = {
        let view = inner.view.read().unwrap_or_else(PoisonError::into_inner);
        (view.segments.clone(), view.tombstones.clone())
    };
    if finish_deletes(inner, &segments, &tombstones)? {
        return Ok(true);
    }
    let (inputs, sweep) = match pick_deletes(inner, &segments, &tombstones) {
        Some(s) => (vec![s], None),
        None => match pick_sweep(inner, &segments) {
            Some((s, sweep)) => (vec![s], Some(sweep)),
            None => match pick(inner, &segments) {
                Some(inputs) => (inputs, None),
                None => return Ok(false),
            },
        },
    };
    drop(segments);
    let result = match (inputs.as_slice(), &sweep) {
        ([s], Some(sweep)) => apply_sweep(inner, s, sweep, &tombstones),
        _ => merge(inner, &inputs, &tombstones, None),
    };
    if let Err(e) = &result
        && e.is_damage()
    {
        // Which input is damaged is found when each is looked at alone.
        let mut left_alone = inner.left_alone.lock().unwrap_or_else(PoisonError::into_inner);
        for s in &inputs {
            if inputs.len() == 1 || check(s).is_err() {
                tracing::error!(file = %s.path().display(), error = %e, "segment is damaged and is not merged");
                left_alone.insert(s.meta.id);
            }
        }
        return Ok(true);
    }
    result.map(|()| true)
}

/// Reads every block of a segment.
pub(crate) fn check(s: &OpenSegment) -> Result<(), SegmentError> {
    match s.data()? {
        SegmentData::Metrics(m) => m.all_blocks().try_for_each(|b| m.file().read(b).map(|_| ()))?,
        SegmentData::Rows(r) => r.all_blocks().try_for_each(|b| r.file().read(b).map(|_| ()))?,
    }
    Ok(())
}

fn finish_deletes(
    inner: &Inner,
    segments: &[Arc<OpenSegment>],
    tombstones: &Tombstones,
) -> Result<bool, SegmentError> {
    let open = |id: u64| {
        segments.iter().any(|s| {
            let t = tombstones.iter().find(|t| t.id == id);
            t.is_some_and(|t| {
                s.meta.tenant == t.tenant && s.meta.order < t.before && s.meta.cleaned < t.id
            }) && !tombstones.of(&s.meta).is_empty()
        })
    };
    let done: Vec<u64> = tombstones.iter().map(|t| t.id).filter(|id| !open(*id)).collect();
    if done.is_empty() {
        return Ok(false);
    }
    let edits = done.iter().map(|id| Edit::Deleted(*id)).collect();
    inner.edit(edits, |view| view.tombstones = Arc::new(view.tombstones.without(&done)))?;
    Ok(true)
}

fn healthy<'a>(
    inner: &Inner,
    segments: &'a [Arc<OpenSegment>],
) -> impl Iterator<Item = &'a Arc<OpenSegment>> {
    let left_alone = inner.left_alone.lock().unwrap_or_else(PoisonError::into_inner).clone();
    segments.iter().filter(move |s| !left_alone.contains(&s.meta.id))
}

/// Chooses a segment that holds deleted data.
fn pick_deletes(
    inner: &Inner,
    segments: &[Arc<OpenSegment>],
    tombstones: &Tombstones,
) -> Option<Arc<OpenSegment>> {
    healthy(inner, segments).find(|s| !tombstones.of(&s.meta).is_empty()).cloned()
}

/// Chooses a segment in which some labels' data has expired.
fn pick_sweep(inner: &Inner, segments: &[Arc<OpenSegment>]) -> Option<(Arc<OpenSegment>, Sweep)> {
    let now = TimestampNs::from_nanos(inner.retain_now.load(Ordering::Relaxed));
    let rules = &inner.config.retention;
    healthy(inner, segments).find_map(|s| Some((s.clone(), Sweep::due(rules, s, now)?)))
}

/// Takes expired rows out of a segment, and notes that this was done.
fn apply_sweep(
    inner: &Inner,
    s: &Arc<OpenSegment>,
    sweep: &Sweep,
    tombstones: &Tombstones,
) -> Result<(), SegmentError> {
    if sweep.finds(s)? {
        merge(inner, std::slice::from_ref(s), tombstones, Some(sweep))?;
        inner.note_lost(s);
        return Ok(());
    }
    inner.edit(vec![Edit::Swept(s.meta.id, sweep.number)], |_| s.set_swept(sweep.number))?;
    Ok(())
}

/// Chooses segments that are next to each other in order of writing.
fn pick(inner: &Inner, segments: &[Arc<OpenSegment>]) -> Option<Vec<Arc<OpenSegment>>> {
    let mut groups: BTreeMap<_, Vec<&Arc<OpenSegment>>> = BTreeMap::new();
    // What moved to the object store is read again only to take deleted data out.
    for s in healthy(inner, segments).filter(|s| !s.is_remote()) {
        let m = &s.meta;
        let day = day_of(m.signal, m.min_time);
        groups.entry((m.tenant.clone(), m.signal, day)).or_default().push(s);
    }
    let mut best: Option<(u8, Vec<Arc<OpenSegment>>)> = None;
    for group in groups.into_values() {
        for run in group.chunk_by(|a, b| a.meta.level == b.meta.level) {
            let level = run.first().map_or(0, |s| s.meta.level);
            if level >= LEVEL_MAX {
                continue;
            }
            let mut bytes = 0;
            let fits = |s: &&&Arc<OpenSegment>| {
                bytes += s.meta.bytes;
                bytes <= inner.config.segment_bytes_max
            };
            let chosen: Vec<_> = run.iter().take(FAN_IN * 2).take_while(fits).collect();
            let better = best.as_ref().is_none_or(|(l, _)| level < *l);
            if chosen.len() >= FAN_IN && better {
                best = Some((level, chosen.into_iter().copied().cloned().collect()));
            }
        }
    }
    best.map(|(_, list)| list)
}

fn merge(
    inner: &Inner,
    inputs: &[Arc<OpenSegment>],
    tombstones: &Tombstones,
    sweep: Option<&Sweep>,
) -> Result<(), SegmentError> {
    let Some(first) = inputs.first().map(|s| &s.meta) else { return Ok(()) };
    let lost: Vec<Lost<'_>> =
        inputs.iter().map(|s| Lost { hidden: tombstones.of(&s.meta), sweep }).collect();
    let last = |(s, l): (&Arc<OpenSegment>, &Lost<'_>)| s.meta.cleaned.max(l.hidden.last());
    let cleaned = inputs.iter().zip(&lost).map(last).max();
    let mut operations = KnownOperations::default();
    for s in inputs {
        for o in &s.meta.operations {
            operations.add(o.clone());
        }
    }
    let purpose = Purpose {
        tenant: first.tenant.clone(),
        signal: first.signal,
        order: inputs.iter().map(|s| s.meta.order).max(),
        level: if inputs.len() > 1 { first.level + 1 } else { first.level },
        cleaned: cleaned.unwrap_or(0),
        operations: operations.into_all(),
    };
    // Of spans and calls readers leave out what they have seen.
    let repeated = match first.signal {
        Signal::Logs if inputs.len() > 1 => {
            repeated(inputs, &|i, r| lost.get(i).is_some_and(|l| l.has_row(r)))?
        }
        _ => Vec::new(),
    };
    let made = inner.with_maker(|maker| match first.signal {
        Signal::Metrics => merge_series(maker, &purpose, inputs, &lost),
        Signal::Logs => merge_rows::<LogRecord>(maker, &purpose, inputs, &lost, &repeated),
        Signal::Spans => merge_rows::<Span>(maker, &purpose, inputs, &lost, &repeated),
        Signal::Calls => merge_rows::<LlmCall>(maker, &purpose, inputs, &lost, &repeated),
    })?;
    // What was decided about all inputs holds for what was made of them.
    let mut decided = inputs.iter().map(|s| sweep.map_or(s.swept(), |x| x.number));
    let swept = decided.next().filter(|first| decided.all(|d| d == *first)).unwrap_or(0);
    replace(inner, inputs, made, swept)
}

/// Puts a segment in the place of those it was made from.
fn replace(
    inner: &Inner,
    inputs: &[Arc<OpenSegment>],
    made: Option<SegmentMeta>,
    swept: u64,
) -> Result<(), SegmentError> {
    let ids: Vec<u64> = inputs.iter().map(|s| s.meta.id).collect();
    let mut edits: Vec<Edit> = ids.iter().map(|id| Edit::Remove(*id)).collect();
    edits.extend(made.clone().map(Edit::Add));
    let dir = &inner.config.dir;
    if swept != 0 {
        edits.extend(made.as_ref().map(|m| Edit::Swept(m.id, swept)));
    }
    let opened =
        made.map(|m| Arc::new(OpenSegment::new(inner.vfs.clone(), dir, m, inner.kept.clone())));
    opened.iter().for_each(|s| s.set_swept(swept));
    inner.edit(edits, |view| {
        view.segments.retain(|s| !ids.contains(&s.meta.id));
        view.segments.extend(opened);
        view.segments.sort_by_key(|s| (s.meta.order, s.meta.id));
    })?;
    inner.stats.merges.fetch_add(1, Ordering::Relaxed);
    let bytes = inputs.iter().map(|s| s.meta.bytes).sum();
    inner.stats.merged_bytes.fetch_add(bytes, Ordering::Relaxed);
    inputs.iter().for_each(|s| s.doom());
    Ok(())
}

/// What a merge leaves out of one input: what was deleted, and what expired by its labels.
struct Lost<'a> {
    hidden: Hidden<'a>,
    sweep: Option<&'a Sweep>,
}

impl Lost<'_> {
    const fn is_nothing(&self) -> bool {
        self.hidden.is_empty() && self.sweep.is_none()
    }

    fn has_row<R: Row>(&self, row: &R) -> bool {
        self.hidden.hides(row) || self.sweep.is_some_and(|s| s.drops_row(row))
    }

    fn filter(&self, labels: &Labels, samples: &mut Samples) {
        self.hidden.filter(labels, samples);
        if self.sweep.is_some_and(|s| s.drops_labels(labels)) {
            *samples = Samples::default();
        }
    }
}

/// One input of a merge of samples, read page by page.
struct Cursor<'a> {
    segment: &'a SeriesSegment,
    lost: &'a Lost<'a>,
    page: usize,
    found: VecDeque<Found>,
    cache: BlockCache,
}

const ALL: (i64, i64) = (i64::MIN, i64::MAX);

impl Cursor<'_> {
    fn head(&mut self) -> Result<Option<&Found>, SegmentError> {
        while self.found.is_empty() && self.page < self.segment.pages() {
            self.found = self.segment.page(self.page, &[], ALL)?.into();
            self.page += 1;
        }
        Ok(self.found.front())
    }
}

fn merge_series(
    maker: &Maker<'_>,
    purpose: &Purpose,
    inputs: &[Arc<OpenSegment>],
    lost: &[Lost<'_>],
) -> Result<Option<SegmentMeta>, SegmentError> {
    let mut cursors = Vec::new();
    for (s, lost) in inputs.iter().zip(lost) {
        if let Some(segment) = s.series()?.filter(|_| !lost.hidden.everything()) {
            let (found, cache) = (VecDeque::new(), BlockCache::default());
            cursors.push(Cursor { segment, lost, page: 0, found, cache });
        }
    }
    let (id, path) = maker.place(purpose)?;
    let mut writer = SeriesWriter::create(maker.vfs, &path)?;
    let mut samples: Vec<Sample> = Vec::new();
    loop {
        let mut least = None;
        for c in &mut cursors {
            if let Some(f) = c.head()?
                && least.as_ref().is_none_or(|l| f.labels < *l)
            {
                least = Some(f.labels.clone());
            }
        }
        let Some(labels) = least else { break };
        samples.clear();
        // Older inputs come first: of equal times the last written stays.
        for c in &mut cursors {
            let is_next = c.head()?.is_some_and(|f| f.labels == labels);
            let Some(found) = c.found.pop_front_if(|_| is_next) else { continue };
            let mut failure = None;
            let mut damaged = |e: &SegmentError, _: i64, _: i64| failure = Some(e.copy());
            let found = std::slice::from_ref(&found);
            c.segment.visit(found, ALL, &mut c.cache, &mut damaged, &mut |l, mut s| {
                c.lost.filter(l, &mut s);
                samples.append(&mut s.into_vec());
                Ok(())
            })?;
            if let Some(e) = failure {
                return Err(e);
            }
        }
        sort_unique(&mut samples);
        writer.push(&labels, &samples)?;
    }
    finish(maker, purpose, id, &path, writer.finish()?)
}

/// An output without rows is not kept.
fn finish(
    maker: &Maker<'_>,
    purpose: &Purpose,
    id: u64,
    path: &std::path::Path,
    done: crate::segment::rows::Finished,
) -> Result<Option<SegmentMeta>, SegmentError> {
    if done.rows == 0 {
        maker.vfs.remove(path)?;
        return Ok(None);
    }
    Ok(Some(maker.meta(id, purpose.clone(), done)))
}

fn merge_rows<R: Row>(
    maker: &Maker<'_>,
    purpose: &Purpose,
    inputs: &[Arc<OpenSegment>],
    lost: &[Lost<'_>],
    repeated: &[Repeated],
) -> Result<Option<SegmentMeta>, SegmentError> {
    let (id, path) = maker.place(purpose)?;
    let mut writer = RowWriter::create(maker.vfs, &path)?;
    for (i, (s, lost)) in inputs.iter().zip(lost).enumerate() {
        let Some(rows) = s.rows()?.filter(|_| !lost.hidden.everything()) else { continue };
        let repeated = repeated.get(i).filter(|r| !r.is_empty());
        if lost.is_nothing() && repeated.is_none() {
            writer.copy(rows)?;
            continue;
        }
        for n in 0..rows.blocks.len() {
            let twice = repeated.and_then(|r| r.get(&n)).map_or(&[][..], Vec::as_slice);
            let mut kept: Vec<R> = Vec::new();
            let mut row = 0;
            let _ = rows.visit_block::<R>(n, &RowFilter::ALL, &mut |r| {
                if !lost.has_row(&r) && twice.binary_search(&row).is_err() {
                    kept.push(r);
                }
                row += 1;
                Ok(ControlFlow::Continue(()))
            })?;
            writer.write(&kept)?;
        }
    }
    finish(maker, purpose, id, &path, writer.finish()?)
}
