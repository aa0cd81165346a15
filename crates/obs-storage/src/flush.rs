//! Writing what a flush took from the head as segments.

use crate::batch::Batch;
use crate::head::Frozen;
use crate::head::metrics::FrozenMetrics;
use crate::manifest::SegmentMeta;
use crate::segment::rows::{Finished, Row, RowWriter};
use crate::segment::series::SeriesWriter;
use crate::segment::{Operations, SegmentError, Signal};
use crate::vfs::Vfs;
use obs_model::{Labels, Sample, TenantId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Segments do not cross days (UTC), so that retention drops whole files.
const DAY_SECONDS: i64 = 86_400;

pub(crate) fn day_of(signal: Signal, time: i64) -> i64 {
    time.div_euclid(signal.per_second() * DAY_SECONDS)
}

/// Makes segment files and their manifest rows.
pub(crate) struct Maker<'a> {
    pub(crate) vfs: &'a dyn Vfs,
    pub(crate) dir: &'a Path,
    /// Gives out segment numbers; each once.
    pub(crate) next_id: &'a dyn Fn() -> u64,
}

/// What a new segment's manifest row says beside what its writer found.
#[derive(Debug, Clone)]
pub(crate) struct Purpose {
    pub(crate) tenant: TenantId,
    pub(crate) signal: Signal,
    /// `None`: as written now.
    pub(crate) order: Option<u64>,
    pub(crate) level: u8,
    pub(crate) cleaned: u64,
    pub(crate) operations: Operations,
}

impl Maker<'_> {
    /// Returns a new number and path, with the folder made.
    pub(crate) fn place(&self, p: &Purpose) -> Result<(u64, PathBuf), SegmentError> {
        let id = (self.next_id)();
        let folder = self.dir.join(format!("segments/{}/{}", p.tenant, p.signal.as_str()));
        self.vfs.create_dir_all(&folder)?;
        Ok((id, folder.join(format!("{id:010}.seg"))))
    }

    pub(crate) fn meta(&self, id: u64, p: Purpose, f: Finished) -> SegmentMeta {
        SegmentMeta {
            id,
            tenant: p.tenant,
            signal: p.signal,
            min_time: f.min,
            max_time: f.max,
            rows: f.rows,
            bytes: f.bytes,
            order: p.order.unwrap_or(id),
            level: p.level,
            cleaned: p.cleaned,
            index: f.index,
            operations: p.operations,
        }
    }
}

/// Writes everything of a frozen head.
pub(crate) fn write(maker: &Maker<'_>, frozen: &Frozen) -> Result<Vec<SegmentMeta>, SegmentError> {
    let mut out = Vec::new();
    // In order of names: the same data makes the same files.
    let mut tenants: Vec<_> = frozen.tenants.iter().collect();
    tenants.sort_by(|a, b| a.0.cmp(b.0));
    for (tenant, (metrics, rows)) in tenants {
        write_series(maker, tenant, metrics, &mut out)?;
        let none = Operations::new();
        write_rows(maker, tenant, rows.logs.batches(), &none, &mut out)?;
        write_rows(maker, tenant, rows.spans.batches(), rows.operations.all(), &mut out)?;
        write_rows(maker, tenant, rows.calls.batches(), &none, &mut out)?;
    }
    Ok(out)
}

fn write_series(
    maker: &Maker<'_>,
    tenant: &TenantId,
    metrics: &FrozenMetrics,
    out: &mut Vec<SegmentMeta>,
) -> Result<(), SegmentError> {
    let mut series: Vec<_> = metrics.series.iter().map(|(l, r)| (l, r)).collect();
    series.sort_by(|a, b| a.0.cmp(b.0));
    let mut days: BTreeMap<i64, (u64, SeriesWriter)> = BTreeMap::new();
    let purpose = Purpose {
        tenant: tenant.clone(),
        signal: Signal::Metrics,
        order: None,
        level: 0,
        cleaned: 0,
        operations: Operations::new(),
    };
    let mut samples: Vec<Sample> = Vec::new();
    for (labels, run) in series {
        run.sorted(&mut samples)?;
        push_by_day(maker, &purpose, &mut days, labels, &samples)?;
    }
    for (_, (id, writer)) in days {
        out.push(maker.meta(id, purpose.clone(), writer.finish()?));
    }
    Ok(())
}

fn push_by_day(
    maker: &Maker<'_>,
    purpose: &Purpose,
    days: &mut BTreeMap<i64, (u64, SeriesWriter)>,
    labels: &Labels,
    samples: &[Sample],
) -> Result<(), SegmentError> {
    let day = |s: &Sample| day_of(Signal::Metrics, s.timestamp.millis());
    for part in samples.chunk_by(|a, b| day(a) == day(b)) {
        let Some(first) = part.first() else { continue };
        let writer = match days.entry(day(first)) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => {
                let (id, path) = maker.place(purpose)?;
                e.insert((id, SeriesWriter::create(maker.vfs, &path)?))
            }
        };
        writer.1.push(labels, part)?;
    }
    Ok(())
}

/// Decoded rows held at once while a flush writes them; bytes.
const SLICE_BYTES: usize = 8 << 20;

fn write_rows<R: Row>(
    maker: &Maker<'_>,
    tenant: &TenantId,
    batches: &[Arc<Batch<R>>],
    operations: &Operations,
    out: &mut Vec<SegmentMeta>,
) -> Result<(), SegmentError> {
    let mut refs: Vec<(usize, usize)> = Vec::new();
    for (b, batch) in batches.iter().enumerate() {
        refs.extend((0..batch.rows.len()).map(|r| (b, r)));
    }
    let row = |(b, r): &(usize, usize)| batches.get(*b).and_then(|b| Some((b, b.rows.get(*r)?)));
    let time = |at: &(usize, usize)| row(at).map_or(0, |(_, r)| r.time);
    // Traces whole and by their first row, so that a slice holds whole traces.
    let mut first: std::collections::HashMap<[u8; 16], i64> = Default::default();
    if R::BY_TRACE {
        for (_, r) in refs.iter().filter_map(row) {
            let t = first.entry(r.trace).or_insert(r.time);
            *t = (*t).min(r.time);
        }
    }
    refs.sort_by_cached_key(|at| {
        let trace = row(at).map_or([0; 16], |(_, r)| r.trace);
        (day_of(R::SIGNAL, time(at)), first.get(&trace).copied().unwrap_or_else(|| time(at)))
    });
    let purpose = Purpose {
        tenant: tenant.clone(),
        signal: R::SIGNAL,
        order: None,
        level: 0,
        cleaned: 0,
        operations: operations.clone(),
    };
    for day in refs.chunk_by(|a, b| day_of(R::SIGNAL, time(a)) == day_of(R::SIGNAL, time(b))) {
        let (id, path) = maker.place(&purpose)?;
        let mut writer = RowWriter::create(maker.vfs, &path)?;
        let (mut rows, mut size) = (Vec::new(), 0);
        for at in day {
            let Some((batch, r)) = row(at) else { continue };
            let record = batch.decode(r)?;
            size += record.size();
            rows.push(record);
            if size >= SLICE_BYTES {
                put(&mut writer, &mut rows)?;
                size = 0;
            }
        }
        put(&mut writer, &mut rows)?;
        out.push(maker.meta(id, purpose.clone(), writer.finish()?));
    }
    Ok(())
}

fn put<R: Row>(writer: &mut RowWriter, rows: &mut Vec<R>) -> Result<(), SegmentError> {
    R::arrange(rows);
    writer.write(rows)?;
    rows.clear();
    Ok(())
}
