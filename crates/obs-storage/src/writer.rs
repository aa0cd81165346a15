//! The one thread that writes the log: group commit, then the head.

use crate::frame::{self, Records};
use crate::head::metrics::MetricsHead;
use crate::store::Inner;
use crate::wal::{self, FRAME_BATCH, FRAME_BYTES_MAX, FRAME_SERIES, WalFile};
use obs_model::{AppendError, Appended, Labels, Sample, TenantId, TimestampMs};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// What the writer thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Append(Box<Pending>),
    /// Hand the head to the flusher; answered with the number of the
    /// flush that is now under way, and whether it began just now.
    Freeze(oneshot::Sender<Result<(u64, bool), String>>),
    Stop,
}

/// A write on its way to the log.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) tenant: TenantId,
    pub(crate) records: Records,
    pub(crate) points: Vec<(Labels, Sample)>,
    /// Bytes taken from the queue's budget.
    pub(crate) bytes: usize,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
}

/// A pending write whose series have numbers.
struct Numbered {
    pending: Pending,
    /// Number of each point's series; `None` if the series was refused.
    series: Vec<Option<u32>>,
    outcome: Appended,
}

pub(crate) struct Writer {
    inner: Arc<Inner>,
    wal: WalFile,
    failures_in_row: u32,
    /// Kept between groups: its pages are warm.
    frames: Vec<u8>,
}

impl Writer {
    pub(crate) const fn new(inner: Arc<Inner>, wal: WalFile) -> Self {
        Self { inner, wal, failures_in_row: 0, frames: Vec::new() }
    }

    /// Serves commands until told to stop or all senders are gone.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        /// Bytes gathered into one sync.
        const GROUP_BYTES: usize = 1 << 20;
        /// How often the size of the head is looked at when nothing is written.
        const TICK: Duration = Duration::from_secs(1);
        loop {
            let mut group = Vec::new();
            let mut bytes = 0;
            let mut next = match commands.recv_timeout(TICK) {
                Ok(c) => Some(c),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut freezes = Vec::new();
            let mut stop = false;
            while let Some(command) = next {
                match command {
                    Command::Append(p) => {
                        bytes += p.bytes;
                        group.push(*p);
                    }
                    Command::Freeze(reply) => freezes.push(reply),
                    Command::Stop => stop = true,
                }
                next = if bytes < GROUP_BYTES && !stop { commands.try_recv().ok() } else { None };
            }
            if !group.is_empty() {
                self.commit(group);
                self.inner.account();
            }
            if !freezes.is_empty() {
                let result = self.freeze().map_err(|e| e.to_string());
                for reply in freezes {
                    let _ = reply.send(result.clone());
                }
            } else if self.inner.wants_flush()
                && let Err(e) = self.freeze()
            {
                tracing::error!(error = %e, "cannot begin a flush; the head grows on");
            }
            if stop {
                return;
            }
        }
    }

    /// Writes a group to the log, syncs, applies it to the head and answers.
    pub(crate) fn commit(&mut self, group: Vec<Pending>) {
        let total: usize = group.iter().map(|p| p.bytes).sum();
        let refusal = self.inner.check_writable().and_then(|()| self.inner.wait_for_room());
        if let Err(refusal) = refusal {
            self.inner.stats.refused.fetch_add(group.len() as u64, Ordering::Relaxed);
            for p in group {
                let _ = p.reply.send(Err(refusal.clone()));
            }
            self.inner.queued_bytes.fetch_sub(total, Ordering::Relaxed);
            return;
        }
        self.frames.clear();
        let accepted = self.number_and_frame(group);
        let result = self.wal.commit(&self.frames);
        self.inner.stats.wal_syncs.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(()) => {
                self.failures_in_row = 0;
                self.inner.stats.wal_bytes.fetch_add(self.frames.len() as u64, Ordering::Relaxed);
                self.apply(accepted);
            }
            Err(e) => self.seal_after(&e, accepted),
        }
        self.inner.queued_bytes.fetch_sub(total, Ordering::Relaxed);
        const KEPT: usize = 8 << 20;
        if self.frames.capacity() > KEPT {
            self.frames = Vec::new();
        }
        // Big files would make one replay unit too large; a freeze also rotates.
        if self.wal.bytes >= self.inner.config.wal_file_bytes_max
            && let Err(e) = self.rotate()
        {
            tracing::error!(error = %e, "cannot open a new log file");
        }
    }

    fn number_and_frame(&mut self, group: Vec<Pending>) -> Vec<Numbered> {
        let mut accepted = Vec::with_capacity(group.len());
        let mut head = self.inner.head.write().unwrap_or_else(PoisonError::into_inner);
        let mut node_series = head.series();
        for pending in group {
            let limits = &self.inner.config;
            let mut new_series = Vec::new();
            let mut outcome = Appended::default();
            let metrics = &mut head.tenant_mut(&pending.tenant).metrics;
            let before = metrics.series_count();
            let numbered = number(
                metrics,
                &pending.points,
                self.wal.number,
                (limits.series_max.saturating_sub(node_series), limits.series_of(&pending.tenant)),
                &mut new_series,
                &mut outcome,
            );
            node_series += metrics.series_count() - before;
            let definitions =
                (!new_series.is_empty()).then(|| frame::put_series(&pending.tenant, &new_series));
            // Twice: a definition lost to damage would cost every sample that refers to it.
            let define = |frames: &mut Vec<u8>| {
                if let Some(d) = &definitions {
                    wal::put_frame(frames, FRAME_SERIES | wal::continues(frames), d);
                }
            };
            let start = self.frames.len();
            define(&mut self.frames);
            let kind = FRAME_BATCH | wal::continues(&self.frames);
            let at = wal::begin_frame(&mut self.frames, kind);
            let points = || numbered.iter().zip(&pending.points);
            let list = points().filter_map(|(n, (_, s))| Some(((*n)?, s)));
            let count = points().filter(|(n, _)| n.is_some()).count();
            frame::put_batch(&mut self.frames, &pending.tenant, &pending.records, count, list);
            let bytes = wal::end_frame(&mut self.frames, at);
            define(&mut self.frames);
            if bytes > FRAME_BYTES_MAX {
                self.frames.truncate(start);
                // Its series have their numbers now, which later writes use.
                define(&mut self.frames);
                define(&mut self.frames);
                let refusal = AppendError::TooLarge { bytes, max: FRAME_BYTES_MAX };
                let _ = pending.reply.send(Err(refusal));
                continue;
            }
            accepted.push(Numbered { pending, series: numbered, outcome });
        }
        accepted
    }

    fn apply(&self, accepted: Vec<Numbered>) {
        let mut replies = Vec::with_capacity(accepted.len());
        {
            let mut head = self.inner.head.write().unwrap_or_else(PoisonError::into_inner);
            for n in accepted {
                let Pending { tenant, records, points, reply, .. } = n.pending;
                let t = head.tenant_mut(&tenant);
                let mut earliest = None;
                for (number, (_, sample)) in n.series.iter().zip(&points) {
                    if let Some(number) = number {
                        t.metrics.push(*number, sample);
                        let time = sample.timestamp;
                        earliest = Some(earliest.map_or(time, |e: TimestampMs| e.min(time)));
                    }
                }
                if let Some(earliest) = earliest {
                    self.inner.changes.note(&tenant, earliest);
                }
                let dropped = apply_records(t, records);
                self.inner.stats.names_dropped.fetch_add(dropped, Ordering::Relaxed);
                replies.push((reply, n.outcome));
            }
        }
        for (reply, outcome) in replies {
            let _ = reply.send(Ok(outcome));
        }
    }

    /// After a failed write or sync the file's tail is unknown: no further byte goes to it.
    fn seal_after(&mut self, error: &std::io::Error, group: Vec<Numbered>) {
        tracing::error!(error = %error, file = self.wal.number, "log write failed; file is sealed");
        self.failures_in_row += 1;
        self.inner.stats.wal_failures.fetch_add(1, Ordering::Relaxed);
        for n in group {
            let _ = n.pending.reply.send(Err(AppendError::Failed(error.to_string())));
        }
        let is_full = error.kind() == std::io::ErrorKind::StorageFull;
        match self.rotate() {
            // A full disk heals by itself: the next write tries again.
            Ok(()) if self.failures_in_row < 2 || is_full => {}
            Err(_) if is_full => self.inner.note_full_disk(),
            _ => self.inner.set_read_only("the log failed twice in a row"),
        }
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        let number = self.inner.next_wal_number(self.wal.number);
        self.wal = WalFile::create(&*self.inner.vfs, &self.inner.wal_dir(), number)?;
        Ok(())
    }

    /// Hands the head to the flusher, unless it is still busy with the one before.
    pub(crate) fn freeze(&mut self) -> Result<(u64, bool), std::io::Error> {
        if let Some(number) = self.inner.flush_under_way() {
            return Ok((number, false));
        }
        if self.inner.head().data_bytes() == 0 {
            return Ok((0, true));
        }
        self.rotate()?;
        Ok((self.inner.freeze(self.wal.number), true))
    }
}

/// Gives every point's series its number, within the limits, and notes those whose labels the log
/// file does not have yet.
fn number(
    metrics: &mut MetricsHead,
    points: &[(Labels, Sample)],
    wal_file: u64,
    (node_left, tenant_max): (usize, usize),
    new_series: &mut Vec<(u32, Labels)>,
    outcome: &mut Appended,
) -> Vec<Option<u32>> {
    let tenant_left = tenant_max.saturating_sub(metrics.series_count());
    let mut left = node_left.min(tenant_left);
    let mut last = None;
    points
        .iter()
        .map(|(labels, _)| {
            let number = match metrics.find_behind(last, labels) {
                Some(n) => n,
                None if left == 0 => {
                    outcome.rejected += 1;
                    outcome.reason.get_or_insert_with(|| {
                        if node_left < tenant_left {
                            format!("{labels}: new series, and the process has its most (limits.series)")
                        } else {
                            format!("{labels}: new series, and the tenant has {tenant_max} (limits.series_per_tenant)")
                        }
                    });
                    return None;
                }
                None => {
                    left -= 1;
                    metrics.reference(labels)
                }
            };
            last = Some(number);
            let series = metrics.get_mut(number)?;
            if std::mem::replace(&mut series.wal_file, wal_file) != wal_file {
                new_series.push((number, labels.clone()));
            }
            Some(number)
        })
        .collect()
}

/// Adds records to a tenant's head; returns how many names found no room in its lists of metric
/// metadata and operations. The records themselves are all added.
pub(crate) fn apply_records(t: &mut crate::head::TenantHead, records: Records) -> u64 {
    const METADATA_MAX: usize = 20_000;
    /// Of one metric: all of them go into one edit of the manifest.
    const TEXT_BYTES_MAX: usize = 4 << 10;
    let mut dropped = 0;
    for m in records.metadata {
        let known = &mut t.metrics.metadata;
        let is_short = m.name.len() + m.help.len() + m.unit.len() <= TEXT_BYTES_MAX;
        if is_short && (known.len() < METADATA_MAX || known.contains_key(&m.name)) {
            known.insert(m.name.clone(), m);
        } else {
            dropped += 1;
        }
    }
    for o in records.operations {
        dropped += u64::from(!t.rows.operations.add(o));
    }
    t.rows.logs.push(records.logs);
    t.rows.spans.push(records.spans);
    t.rows.calls.push(records.calls);
    dropped
}
