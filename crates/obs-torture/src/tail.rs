//! A5: logs whose last write was cut, and logs with foreign bytes in them.

use crate::sim::Rng;
use anyhow::{Context as _, Result, bail, ensure};
use obs_model::{
    Append as _, Budget, Labels, LogRecord, LogSelection, Sample, SelectLogs as _,
    SelectSeries as _, SeriesSelection, TenantId, TimestampMs, TimestampNs, WriteBatch,
};
use obs_storage::vfs::OsVfs;
use obs_storage::{Store, StoreConfig};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const BATCHES: u64 = 300;
const PAGE: usize = 4096;

fn open(dir: &Path) -> Result<Store> {
    let config = StoreConfig {
        disk_reserve_bytes: 0,
        head_bytes_max: 1 << 30,
        inline: true,
        ..StoreConfig::new(dir)
    };
    Store::open(config, Arc::new(OsVfs)).context("the store does not open")
}

fn batch(n: u64) -> WriteBatch {
    let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("i", (n % 5).to_string())]);
    let log = LogRecord {
        stream: Labels::from_pairs([("app", "a")]),
        timestamp: TimestampNs::from_nanos(n as i64),
        observed: TimestampNs::from_nanos(n as i64),
        line: format!("{n} {}", "x".repeat((n * 37 % 900) as usize)),
        severity_number: 9,
        ..LogRecord::default()
    };
    WriteBatch {
        points: vec![(labels, Sample::float(n as i64, n as f64))],
        logs: vec![log],
        ..WriteBatch::default()
    }
}

/// Returns the numbers of the batches whose log record is there, and of those whose sample is.
fn read(store: &Store) -> Result<(BTreeSet<u64>, BTreeSet<u64>)> {
    let (tenant, budget) = (TenantId::default(), Budget::new(i64::MAX, i64::MAX));
    let selection = LogSelection::ALL;
    let mut logs = BTreeSet::new();
    let mut wrong = None;
    store.select_logs(&tenant, &selection, &budget, &mut |r| {
        let n = r.timestamp.nanos() as u64;
        if batch(n).logs.first() != Some(r) || !logs.insert(n) {
            wrong = Some(n);
        }
        ControlFlow::Continue(())
    })?;
    if let Some(n) = wrong {
        bail!("log record {n} was altered or is there twice");
    }
    let all = SeriesSelection { matchers: &[], start: TimestampMs::MIN, end: TimestampMs::MAX };
    let mut samples = BTreeSet::new();
    for series in store.select(&tenant, &all, &budget)? {
        for s in &series.samples {
            let n = s.timestamp.millis() as u64;
            let (labels, sample) =
                batch(n).points.into_iter().next().context("a batch without a point")?;
            ensure!(labels == series.labels && sample == *s, "sample {n} was altered");
            samples.insert(n);
        }
    }
    Ok((logs, samples))
}

struct Original {
    dir: PathBuf,
    log: PathBuf,
    bytes: Vec<u8>,
    /// Where each batch's bytes are in the log, what it needs before it included.
    places: Vec<Range<usize>>,
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

impl Original {
    fn make(dir: PathBuf) -> Result<Self> {
        let store = open(&dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let newest = || -> Result<PathBuf> {
            let mut files: Vec<PathBuf> = std::fs::read_dir(dir.join("wal"))?
                .map(|e| Ok(e?.path()))
                .collect::<std::io::Result<_>>()?;
            files.sort();
            files.pop().context("no log")
        };
        let log = newest()?;
        let len = || Ok::<usize, anyhow::Error>(std::fs::metadata(&log)?.len() as usize);
        let mut places = Vec::new();
        for n in 0..BATCHES {
            let start = len()?;
            runtime.block_on(store.append(&TenantId::default(), batch(n)))?;
            places.push(start..len()?);
        }
        drop(store);
        ensure!(newest()? == log, "the log has a second file");
        let bytes = std::fs::read(&log)?;
        Ok(Self { log: log.strip_prefix(&dir)?.into(), dir, bytes, places })
    }

    /// Opens a copy with another log; returns what is there.
    fn with(&self, bytes: &[u8]) -> Result<(BTreeSet<u64>, BTreeSet<u64>)> {
        let dir = tempfile::tempdir()?;
        let at = dir.path().join("data");
        copy(&self.dir, &at)?;
        std::fs::write(at.join(&self.log), bytes)?;
        read(&open(&at)?)
    }

    /// Checks that all batches but those whose bytes overlap `gone` have their log record.
    fn check(&self, bytes: &[u8], gone: &Range<usize>) -> Result<u64> {
        let (logs, samples) = self.with(bytes)?;
        let mut lost = 0;
        for (n, place) in (0..).zip(&self.places) {
            let is_touched = place.start < gone.end && gone.start < place.end;
            if !is_touched && !logs.contains(&n) {
                bail!("batch {n} at bytes {place:?} is lost, {gone:?} were touched");
            }
            lost += u64::from(!logs.contains(&n));
        }
        let known = |n: &u64| *n < BATCHES;
        ensure!(logs.iter().chain(&samples).all(known), "a batch was invented");
        Ok(lost)
    }

    fn truncated(&self, at: usize) -> Result<()> {
        let (logs, samples) = self.with(self.bytes.get(..at).context("past the end")?)?;
        for (n, place) in (0..).zip(&self.places) {
            let whole = place.end <= at;
            if logs.contains(&n) != whole || samples.contains(&n) != whole {
                bail!("cut at byte {at}: batch {n} at {place:?} is there: {}", logs.contains(&n));
            }
        }
        Ok(())
    }
}

/// Truncates a log at `cuts` random offsets and at each of its last 4096, appends garbage, zeroes
/// pages and repeats pages.
///
/// # Errors
/// What was lost beyond the bytes that were touched, or altered.
pub fn run(seed: u64, cuts: u64, last: usize) -> Result<Value> {
    let began = Instant::now();
    let dir = tempfile::tempdir()?;
    let original = Original::make(dir.path().join("data"))?;
    let len = original.bytes.len();
    let mut rng = Rng::new(seed);
    for _ in 0..cuts {
        original.truncated(rng.below(len as u64 + 1) as usize)?;
    }
    for back in 0..last.min(len) {
        original.truncated(len - back)?;
    }
    let others = (cuts / 4).max(10);
    let (mut zeroed, mut repeated) = (0, 0);
    for _ in 0..others {
        let mut bytes = original.bytes.clone();
        bytes.extend((0..1 + rng.below(8192)).map(|_| rng.next() as u8));
        original.check(&bytes, &(len..len)).context("garbage at the end")?;
        let at = rng.below((len / PAGE) as u64) as usize * PAGE;
        let page = at..(at + PAGE).min(len);
        let mut bytes = original.bytes.clone();
        bytes.get_mut(page.clone()).context("no page")?.fill(0);
        // The file's first bytes name its format; without them it is still read.
        zeroed += original.check(&bytes, &page).context("a page of zeros")?;
        let mut bytes = original.bytes.clone();
        let copy = original.bytes.get(page.clone()).context("no page")?.to_vec();
        bytes.splice(page.end..page.end, copy);
        let cut = page.end.saturating_sub(1)..page.end + 1;
        repeated += original.check(&bytes, &cut).context("a page twice")?;
    }
    Ok(json!({
        "harness": "tail", "cuts": cuts + last.min(len) as u64, "garbage": others, "zeroed": others,
        "repeated": others, "failures": 0, "lost_to_zeroed_pages": zeroed,
        "lost_to_repeated_pages": repeated, "seconds": began.elapsed().as_secs(),
    }))
}
