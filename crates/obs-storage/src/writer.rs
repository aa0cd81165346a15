//! The one thread that writes: group commit to the log, then the head; and the flush to segments.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::checked;
use crate::head::Head;
use crate::manifest::{Manifest, SegmentMeta};
use crate::records::{Record, Shared, get_histogram, get_labels, put_histogram, put_labels};
use crate::segment::{SegmentError, Signal, metrics, rows};
use crate::store::{Inner, OpenSegment};
use crate::vfs::Vfs;
use crate::wal::{self, FRAME_BATCH, FRAME_BYTES_MAX, WalFile};
use obs_model::{
    AppendError, MetricKind, MetricMetadata, Sample, SampleValue, TenantId, TimestampMs, WriteBatch,
};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// What the writer thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Append(Box<Pending>),
    /// Turn the head into segments; answered when the manifest names them.
    Flush(oneshot::Sender<Result<(), String>>),
    Stop,
}

/// A write on its way to the log.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) tenant: TenantId,
    pub(crate) batch: WriteBatch,
    /// Binary form of the batch's records, made by the caller's thread.
    pub(crate) records: Vec<u8>,
    pub(crate) bytes: usize,
    pub(crate) reply: oneshot::Sender<Result<(), AppendError>>,
}

/// Encodes everything of a batch but its samples, whose series numbers only the writer knows.
pub(crate) fn encode_records(batch: &WriteBatch) -> Vec<u8> {
    fn list<R: Record>(e: &mut Encoder, shared: &mut Shared, items: &[R]) {
        e.len(items.len());
        items.iter().for_each(|i| i.encode(e, shared));
    }
    let (mut e, mut shared) = (Encoder::default(), Shared::default());
    list(&mut e, &mut shared, &batch.logs);
    list(&mut e, &mut shared, &batch.spans);
    list(&mut e, &mut shared, &batch.calls);
    e.len(batch.metadata.len());
    for m in &batch.metadata {
        for s in [&m.name, m.kind.as_str(), &m.help, &m.unit] {
            e.str(s);
        }
    }
    e.bytes
}

fn put_samples(e: &mut Encoder, samples: &[Sample]) {
    e.len(samples.len());
    let mut last = 0;
    for s in samples {
        let t = s.timestamp.millis();
        e.int(t.wrapping_sub(last));
        last = t;
        match &s.value {
            SampleValue::Float(f) => {
                e.u8(0);
                e.f64(*f);
            }
            SampleValue::Histogram(h) => {
                e.u8(1);
                put_histogram(e, h);
            }
        }
    }
}

fn get_samples(d: &mut Decoder<'_>) -> Result<Vec<Sample>, Malformed> {
    let mut last = 0_i64;
    (0..d.len()?)
        .map(|_| {
            last = last.wrapping_add(d.int()?);
            let value = match d.u8()? {
                0 => SampleValue::Float(d.f64()?),
                1 => SampleValue::Histogram(Arc::new(get_histogram(d)?)),
                _ => return Err(d.bad()),
            };
            Ok(Sample { timestamp: TimestampMs::from_millis(last), value })
        })
        .collect()
}

/// Encodes a whole frame payload, giving every series its number and, once a log file, its
/// labels.
fn encode_frame(head: &mut Head, wal_file: u64, p: &Pending) -> Vec<u8> {
    let mut e = Encoder::default();
    e.str(p.tenant.as_str());
    e.raw(&p.records);
    e.len(p.batch.series.len());
    if p.batch.series.is_empty() {
        return e.bytes;
    }
    let metrics = &mut head.tenant_mut(&p.tenant).metrics;
    for s in &p.batch.series {
        let (reference, _) = metrics.reference(&s.labels);
        e.uint(reference.into());
        let known = metrics
            .get_mut(reference)
            .is_some_and(|h| std::mem::replace(&mut h.wal_file, wal_file) == wal_file);
        e.u8(u8::from(!known));
        if !known {
            put_labels(&mut e, &s.labels);
        }
        put_samples(&mut e, &s.samples);
    }
    e.bytes
}

/// Applies a durable batch to the head.
fn apply(head: &mut Head, tenant: &TenantId, batch: WriteBatch, bytes: usize) {
    head.bytes += bytes;
    let t = head.tenant_mut(tenant);
    for s in batch.series {
        let (reference, _) = t.metrics.reference(&s.labels);
        t.metrics.push(reference, s.samples);
    }
    for m in batch.metadata {
        t.metrics.metadata.insert(m.name.clone(), m);
    }
    batch.logs.into_iter().for_each(|r| t.logs.push(r));
    batch.spans.into_iter().for_each(|s| t.spans.push(s));
    batch.calls.into_iter().for_each(|c| t.spans.push_call(c));
}

/// Labels by (tenant, series number), as one log file defines them.
pub(crate) type Dictionary = HashMap<(TenantId, u64), obs_model::Labels>;

/// Decodes a frame of a log file whose definitions so far are in `dictionary`.
pub(crate) fn decode_frame(
    payload: &[u8],
    dictionary: &mut Dictionary,
) -> Result<(TenantId, WriteBatch), Malformed> {
    fn list<R: Record>(d: &mut Decoder<'_>, shared: &mut Shared) -> Result<Vec<R>, Malformed> {
        (0..d.len()?).map(|_| R::decode(d, shared)).collect()
    }
    let mut d = Decoder::new(payload);
    let tenant = TenantId::new(d.str()?).map_err(|_| d.bad())?;
    let mut r = Decoder::new(d.raw()?);
    let mut shared = Shared::default();
    let mut batch = WriteBatch {
        logs: list(&mut r, &mut shared)?,
        spans: list(&mut r, &mut shared)?,
        calls: list(&mut r, &mut shared)?,
        ..WriteBatch::default()
    };
    for _ in 0..r.len()? {
        batch.metadata.push(MetricMetadata {
            name: r.string()?,
            kind: MetricKind::parse(r.str()?),
            help: r.string()?,
            unit: r.string()?,
        });
    }
    for _ in 0..d.len()? {
        let key = (tenant.clone(), d.uint()?);
        if d.u8()? == 1 {
            dictionary.insert(key.clone(), get_labels(&mut d)?);
        }
        let labels = dictionary.get(&key).cloned();
        let samples = get_samples(&mut d)?;
        // A definition lost to damage costs the samples that refer to it, not the frame.
        if let Some(labels) = labels {
            batch.series.push(obs_model::Series { labels, samples });
        }
    }
    Ok((tenant, batch))
}

/// Estimates the bytes that a batch will take in the head.
pub(crate) fn batch_bytes(batch: &WriteBatch) -> usize {
    let sample = |s: &Sample| match &s.value {
        SampleValue::Float(_) => 12,
        SampleValue::Histogram(h) => h.size_bytes(),
    };
    batch.series.iter().map(|s| 64 + s.samples.iter().map(sample).sum::<usize>()).sum::<usize>()
        + batch.logs.iter().map(|l| l.size_bytes()).sum::<usize>()
        + batch.spans.iter().map(|s| s.size_bytes()).sum::<usize>()
        + batch.calls.iter().map(|c| c.size_bytes()).sum::<usize>()
}

/// Replays a decoded batch into the head at start.
pub(crate) fn replay(head: &mut Head, tenant: &TenantId, batch: WriteBatch) {
    let bytes = batch_bytes(&batch);
    apply(head, tenant, batch, bytes);
}

pub(crate) struct Writer {
    inner: Arc<Inner>,
    manifest: Manifest,
    wal: WalFile,
    /// Never used twice, also after a flush that failed and left files behind.
    next_segment: i64,
    failures_in_row: u32,
}

impl Writer {
    pub(crate) const fn new(
        inner: Arc<Inner>,
        manifest: Manifest,
        wal: WalFile,
        next_segment: i64,
    ) -> Self {
        Self { inner, manifest, wal, next_segment, failures_in_row: 0 }
    }

    /// Serves commands until told to stop or all senders are gone.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        /// Bytes gathered into one sync.
        const GROUP_BYTES: usize = 1 << 20;
        /// How often the age and size of the head are looked at when nothing is written.
        const TICK: Duration = Duration::from_secs(1);
        loop {
            let mut group = Vec::new();
            let mut bytes = 0;
            let mut next = match commands.recv_timeout(TICK) {
                Ok(c) => Some(c),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut flush_replies = Vec::new();
            let mut stop = false;
            while let Some(command) = next {
                match command {
                    Command::Append(p) => {
                        bytes += p.bytes;
                        group.push(*p);
                    }
                    Command::Flush(reply) => flush_replies.push(reply),
                    Command::Stop => stop = true,
                }
                next = if bytes < GROUP_BYTES && !stop { commands.try_recv().ok() } else { None };
            }
            if !group.is_empty() {
                self.commit(group);
            }
            if !flush_replies.is_empty() || self.head_is_full() {
                let result = self.flush().map_err(|e| e.to_string());
                if let Err(e) = &result {
                    tracing::error!(error = %e, "flush failed; the head is kept and the next flush tries again");
                }
                for reply in flush_replies {
                    let _ = reply.send(result.clone());
                }
            }
            if stop {
                return;
            }
        }
    }

    /// While flushes fail the head grows; past this many times its size writes are refused.
    fn check_head(&self) -> Result<(), AppendError> {
        const OVERDUE: usize = 4;
        let head = self.inner.head.read().unwrap_or_else(PoisonError::into_inner);
        if head.bytes < self.inner.config.head_bytes_max.saturating_mul(OVERDUE) {
            return Ok(());
        }
        Err(AppendError::Overloaded("memory of data that could not be flushed"))
    }

    fn head_is_full(&self) -> bool {
        let head = self.inner.head.read().unwrap_or_else(PoisonError::into_inner);
        head.bytes >= self.inner.config.head_bytes_max
    }

    /// Writes a group to the log, syncs, applies it to the head and answers.
    fn commit(&mut self, group: Vec<Pending>) {
        let total: usize = group.iter().map(|p| p.bytes).sum();
        if let Err(refusal) = self.inner.check_writable().and_then(|()| self.check_head()) {
            self.inner.queued_bytes.fetch_sub(total, Ordering::Relaxed);
            for p in group {
                let _ = p.reply.send(Err(refusal.clone()));
            }
            return;
        }
        let mut frames = Vec::with_capacity(total);
        let mut accepted = Vec::with_capacity(group.len());
        {
            let mut head = self.inner.head.write().unwrap_or_else(PoisonError::into_inner);
            for p in group {
                let payload = encode_frame(&mut head, self.wal.number, &p);
                if payload.len() > FRAME_BYTES_MAX {
                    let _ = p.reply.send(Err(AppendError::TooLarge {
                        bytes: payload.len(),
                        max: FRAME_BYTES_MAX,
                    }));
                    continue;
                }
                wal::put_frame(&mut frames, FRAME_BATCH, &payload);
                accepted.push(p);
            }
        }
        let result = self.wal.commit(&frames);
        self.inner.stats.wal_syncs.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(()) => {
                self.failures_in_row = 0;
                self.inner.stats.wal_bytes.fetch_add(frames.len() as u64, Ordering::Relaxed);
                let mut head = self.inner.head.write().unwrap_or_else(PoisonError::into_inner);
                let mut replies = Vec::with_capacity(accepted.len());
                for p in accepted {
                    apply(&mut head, &p.tenant, p.batch, p.bytes);
                    replies.push(p.reply);
                }
                drop(head);
                for r in replies {
                    let _ = r.send(Ok(()));
                }
            }
            Err(e) => self.seal_after(&e, accepted),
        }
        self.inner.queued_bytes.fetch_sub(total, Ordering::Relaxed);
        // Big files would make one replay unit too large; a flush also rotates.
        if self.wal.bytes >= self.inner.config.wal_file_bytes_max
            && let Err(e) = self.rotate()
        {
            tracing::error!(error = %e, "cannot open a new log file");
        }
    }

    /// After a failed write or sync the file's tail is unknown: no further byte goes to it.
    fn seal_after(&mut self, error: &std::io::Error, group: Vec<Pending>) {
        tracing::error!(error = %error, file = self.wal.number, "log write failed; file is sealed");
        self.failures_in_row += 1;
        self.inner.stats.wal_failures.fetch_add(1, Ordering::Relaxed);
        for p in group {
            let _ = p.reply.send(Err(AppendError::Failed(error.to_string())));
        }
        if self.failures_in_row >= 2 || self.rotate().is_err() {
            self.inner.set_read_only("the log failed twice in a row");
        }
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        self.wal = WalFile::create(&*self.inner.vfs, &self.inner.wal_dir(), self.wal.number + 1)?;
        Ok(())
    }

    /// Turns the head into segments. Writes wait meanwhile: a flush of a full head takes well
    /// under a second, and the queue in front of the writer is bounded.
    fn flush(&mut self) -> Result<(), FlushError> {
        {
            let head = self.inner.head.read().unwrap_or_else(PoisonError::into_inner);
            if head.bytes == 0 {
                return Ok(());
            }
        }
        self.rotate()?;
        let (metas, opened, metadata) = {
            let head = self.inner.head.read().unwrap_or_else(PoisonError::into_inner);
            write_segments(&*self.inner.vfs, &self.inner.config.dir, &head, &mut self.next_segment)?
        };
        self.manifest.commit_flush(&metas, &metadata, self.wal.number)?;
        {
            let mut segments = self.inner.segments.write().unwrap_or_else(PoisonError::into_inner);
            let mut head = self.inner.head.write().unwrap_or_else(PoisonError::into_inner);
            segments.extend(opened);
            let mut known = self.inner.metadata.write().unwrap_or_else(PoisonError::into_inner);
            for (tenant, m) in metadata {
                known.entry(tenant).or_default().insert(m.name.clone(), m);
            }
            *head = Head::default();
        }
        self.inner.stats.flushes.fetch_add(1, Ordering::Relaxed);
        for (number, path) in wal::files(&*self.inner.vfs, &self.inner.wal_dir())? {
            if number < self.wal.number {
                self.inner.vfs.remove(&path)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum FlushError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error(transparent)]
    Manifest(#[from] crate::manifest::ManifestError),
}

type Written = (Vec<SegmentMeta>, Vec<Arc<OpenSegment>>, Vec<(TenantId, MetricMetadata)>);

fn write_segments(
    vfs: &dyn Vfs,
    dir: &Path,
    head: &Head,
    next_id: &mut i64,
) -> Result<Written, SegmentError> {
    let (mut metas, mut opened, mut metadata) = (Vec::new(), Vec::new(), Vec::new());
    let mut made_dirs = HashSet::new();
    for (tenant, t) in &head.tenants {
        metadata.extend(t.metrics.metadata.values().map(|m| (tenant.clone(), m.clone())));
        let mut add = |signal,
                       bytes: Vec<u8>,
                       rows: usize,
                       (min_time, max_time),
                       operations|
         -> Result<(), SegmentError> {
            let meta = SegmentMeta {
                id: *next_id,
                tenant: tenant.clone(),
                signal,
                min_time,
                max_time,
                rows: rows as i64,
                bytes: bytes.len() as i64,
                operations,
            };
            *next_id += 1;
            let path = dir.join(meta.relative_path());
            if let Some(parent) = path.parent()
                && made_dirs.insert(parent.to_owned())
            {
                vfs.create_dir_all(parent)?;
            }
            checked::write(vfs, &path, &bytes)?;
            opened.push(Arc::new(OpenSegment::open(vfs, dir, meta.clone())?));
            metas.push(meta);
            Ok(())
        };
        let series = t.metrics.to_chunks()?;
        if !series.is_empty() {
            let chunks = || series.iter().flat_map(|(_, c)| c);
            let bounds = (
                chunks().map(|c| c.min).min().unwrap_or(0),
                chunks().map(|c| c.max).max().unwrap_or(0),
            );
            add(
                Signal::Metrics,
                metrics::encode(&series)?,
                chunks().count(),
                bounds,
                Default::default(),
            )?;
        }
        let mut logs = t.logs.all();
        if let Some(bounds) = t.logs.bounds() {
            add(Signal::Logs, rows::encode(&mut logs)?, logs.len(), bounds, Default::default())?;
        }
        let mut spans = t.spans.spans.clone();
        if let Some(bounds) = time_bounds(&spans) {
            add(
                Signal::Spans,
                rows::encode(&mut spans)?,
                spans.len(),
                bounds,
                t.spans.operations.clone(),
            )?;
        }
        let mut calls = t.spans.calls.clone();
        if let Some(bounds) = time_bounds(&calls) {
            add(Signal::Calls, rows::encode(&mut calls)?, calls.len(), bounds, Default::default())?;
        }
    }
    Ok((metas, opened, metadata))
}

fn time_bounds<R: rows::Row>(rows: &[Arc<R>]) -> Option<(i64, i64)> {
    let times = || rows.iter().map(|r| r.time());
    Some((times().min()?, times().max()?))
}
