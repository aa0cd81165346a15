//! Opening: reading the log into the head, within memory.

use crate::background;
use crate::flush;
use crate::frame::{self, Dictionary, Entries, Entry};
use crate::head::Head;
use crate::manifest::{Edit, State};
use crate::segments::OpenSegment;
use crate::store::{Inner, RecoveryReport};
use crate::vfs::Vfs;
use crate::wal::{self, WAL_MAGIC};
use crate::writer::apply_records;
use std::io;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, PoisonError};
use std::thread::ScopedJoinHandle;

/// Removes segment files that the manifest does not know: a flush or merge that did not finish,
/// whose data is still in the log or in the segments it read.
pub(crate) fn remove_orphans(vfs: &dyn Vfs, dir: &Path, state: &State) {
    let known: std::collections::HashSet<_> = state
        .segments
        .values()
        .filter(|m| !state.moved.contains(&m.id))
        .map(|m| dir.join(m.relative_path()))
        .collect();
    for tenant in vfs.list_dirs(&dir.join("segments")).unwrap_or_default() {
        for signal in vfs.list_dirs(&tenant).unwrap_or_default() {
            for path in vfs.list(&signal).unwrap_or_default() {
                let is_segment = path.extension().is_some_and(|e| e == "seg");
                if is_segment && !known.contains(&path) {
                    let _ = vfs.remove(&path);
                }
            }
        }
    }
}

/// Reads the log from `start` into the head; returns the highest file number seen.
pub(crate) fn replay(inner: &Inner, start: u64, report: &mut RecoveryReport) -> io::Result<u64> {
    std::thread::scope(|scope| {
        let mut last = 0;
        let mut flush: Option<ScopedJoinHandle<'_, bool>> = None;
        let mut can_flush = true;
        for (number, path) in wal::files(&*inner.vfs, &inner.wal_dir())? {
            last = last.max(number);
            if number < start {
                // Left behind by a crash between the manifest's edit and the deletion.
                let _ = inner.vfs.remove(&path);
                continue;
            }
            let file = inner.vfs.open(&path)?;
            report.wal_files += 1;
            report.wal_bytes += file.len();
            replay_file(inner, &*file, report)?;
            inner.account();
            // A log larger than memory becomes segments on the way, as it would have while
            // running; the next file is read meanwhile.
            if can_flush && inner.head().data_bytes() >= inner.config.replay_bytes_max {
                // One head at a time: what is not in segments yet has to stay visible.
                can_flush = flush.take().is_none_or(joined);
                if can_flush {
                    report.flushed += 1;
                    inner.freeze(number + 1);
                    let work = || background::flush_once(inner).is_ok();
                    if inner.config.inline {
                        can_flush = work();
                    } else {
                        flush = Some(scope.spawn(work));
                    }
                }
            }
        }
        // After a failure the head grows and the flusher tries again: a full disk must not keep
        // the store from being read.
        if !flush.take().is_none_or(joined) || !can_flush {
            tracing::warn!("cannot flush while reading the log");
        }
        Ok(last)
    })
}

fn joined(flush: ScopedJoinHandle<'_, bool>) -> bool {
    flush.join().unwrap_or(false)
}

fn replay_file(
    inner: &Inner,
    file: &dyn crate::vfs::ReadFile,
    report: &mut RecoveryReport,
) -> io::Result<()> {
    /// Frames that are decoded and wait for the head.
    const AHEAD: usize = 4;
    let mut head = inner.head.write().unwrap_or_else(PoisonError::into_inner);
    let mut dictionary = Dictionary::default();
    let mut take = |entry| match entry {
        Entry::Series(series) => dictionary.define(series),
        Entry::Batch(b) => apply(&mut head, &mut dictionary, *b),
    };
    if inner.config.inline {
        return decode_file(file, report, take);
    }
    // Decoding and filling the head take about as long as each other.
    std::thread::scope(|scope| {
        let (send, entries) = sync_channel(AHEAD);
        let decoded = scope.spawn(move || {
            decode_file(file, report, |entry| {
                // The other side reads to the end.
                let _ = send.send(entry);
            })
        });
        entries.into_iter().for_each(&mut take);
        decoded.join().unwrap_or_else(|_| Err(io::Error::other("reading the log panicked")))
    })
}

/// Hands what a file's frames say to `take`, in their order.
fn decode_file(
    file: &dyn crate::vfs::ReadFile,
    report: &mut RecoveryReport,
    mut take: impl FnMut(Entry),
) -> io::Result<()> {
    let mut entries = Entries::default();
    let mut undecodable = 0;
    let damage = wal::read_file(file, WAL_MAGIC, |_, kind, payload| {
        match entries.read(kind, payload) {
            Ok(Some(entry)) => {
                report.batches += u64::from(matches!(entry, Entry::Batch(_)));
                take(entry);
            }
            Ok(None) => {}
            Err(_) => undecodable += 1,
        }
        Ok(())
    })?;
    report.bad_frames += damage.bad.len() as u64 + undecodable;
    report.torn_bytes += damage.torn.map_or(0, |(_, n)| n);
    Ok(())
}

fn apply(head: &mut Head, dictionary: &mut Dictionary, b: frame::Decoded) {
    let t = head.tenant_mut(&b.tenant);
    if let Some(known) = dictionary.get_mut(&b.tenant) {
        for (number, sample) in &b.samples {
            // The head keeps its numbers while a file is read.
            if let Some(reference) = known.reference(*number, |l| t.metrics.reference_unindexed(l))
            {
                t.metrics.push(reference, sample);
            }
        }
    }
    // Counted when they were written.
    let _ = apply_records(t, b.records);
}

/// Writes a frozen head's segments and makes them what queries see; returns the rows.
pub(crate) fn publish(
    inner: &Inner,
    frozen: &crate::head::Frozen,
    wal_start: u64,
) -> Result<u64, String> {
    let metas = inner.with_maker(|m| flush::write(m, frozen)).map_err(|e| e.to_string())?;
    let rows = metas.iter().map(|m| m.rows).sum();
    let mut edits = vec![Edit::WalStart(wal_start)];
    for (tenant, (metrics, _)) in &frozen.tenants {
        let all = metrics.metadata.values();
        edits.extend(all.map(|m| Edit::Metadata(tenant.clone(), m.clone())));
    }
    edits.extend(metas.iter().cloned().map(Edit::Add));
    let dir = &inner.config.dir;
    let opened =
        metas.into_iter().map(|m| OpenSegment::new(inner.vfs.clone(), dir, m, inner.kept.clone()));
    let opened: Vec<_> = opened.map(Arc::new).collect();
    inner
        .edit(edits, |view| {
            view.segments.extend(opened);
            view.segments.sort_by_key(|s| (s.meta.order, s.meta.id));
            view.frozen = None;
        })
        .map_err(|e| e.to_string())?;
    for (number, path) in wal::files(&*inner.vfs, &inner.wal_dir()).unwrap_or_default() {
        if number < wal_start {
            let _ = inner.vfs.remove(&path);
        }
    }
    Ok(rows)
}
