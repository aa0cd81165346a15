//! A file system in memory that loses power.
//!
//! Every file has what was written and what was synced; every folder the names it shows and the
//! names that are durable. At a crash what was not synced is kept, torn, reordered or lost by the
//! seed. Calls can also fail as disks do: no space, input/output errors, writes cut short.

use obs_model::{Objects, ReadAt};
use obs_storage::vfs::{Lock, ReadFile, Vfs, WriteFile};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A small generator of pseudo-random numbers (SplitMix64): the same seed, the same run.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`.
    pub const fn below(&mut self, n: u64) -> u64 {
        self.next() % if n == 0 { 1 } else { n }
    }

    /// Returns true once in `n` times.
    pub const fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug, Default, Clone)]
struct Data {
    bytes: Vec<u8>,
    synced: usize,
}

#[derive(Debug, Default, Clone)]
struct Dir {
    /// Name → file number.
    shown: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
}

/// What goes wrong besides the crash: each is "once in so many calls", 0 for never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub error: u64,
    pub no_space: u64,
    pub short_write: u64,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    files: BTreeMap<u64, Data>,
    dirs: BTreeMap<PathBuf, Dir>,
    next_file: u64,
    calls: u64,
    /// Power fails at this call.
    crash_at: u64,
    off: bool,
    faults: Faults,
    /// Handles of before a crash are dead.
    epoch: u64,
    /// Which kinds of call the power failed at.
    crashed_in: BTreeSet<&'static str>,
    injected: u64,
    /// Objects by key: whole or not there, and safe once stored.
    bucket: BTreeMap<String, Vec<u8>>,
}

/// The file system; clones share it.
#[derive(Debug, Clone)]
pub struct SimVfs(Arc<Mutex<State>>);

fn power_off() -> io::Error {
    io::Error::other("power is off")
}

impl State {
    /// Counts a call; the power may fail at it.
    fn call(&mut self, kind: &'static str) -> io::Result<()> {
        if self.off {
            return Err(power_off());
        }
        self.calls += 1;
        if self.calls >= self.crash_at {
            self.off = true;
            self.crashed_in.insert(kind);
            return Err(power_off());
        }
        Ok(())
    }

    fn fault(&mut self) -> io::Result<()> {
        let Faults { error, no_space, .. } = self.faults;
        if error > 0 && self.rng.one_in(error) {
            self.injected += 1;
            return Err(io::Error::other("simulated input/output error"));
        }
        if no_space > 0 && self.rng.one_in(no_space) {
            self.injected += 1;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn find(&self, path: &Path) -> Option<u64> {
        let dir = self.dirs.get(path.parent()?)?;
        dir.shown.get(path).copied()
    }
}

impl SimVfs {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: Rng::new(seed ^ 0xd15c),
            files: BTreeMap::new(),
            dirs: BTreeMap::new(),
            next_file: 1,
            calls: 0,
            crash_at: u64::MAX,
            off: false,
            faults: Faults::default(),
            epoch: 0,
            crashed_in: BTreeSet::new(),
            injected: 0,
            bucket: BTreeMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the power fail at a call from now.
    pub fn crash_in(&self, calls: u64) {
        let mut s = self.state();
        s.crash_at = s.calls.saturating_add(calls);
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Returns whether the power is off.
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// Returns the kinds of call that the power failed at, and how many other faults there were.
    pub fn coverage(&self) -> (BTreeSet<&'static str>, u64) {
        let s = self.state();
        (s.crashed_in.clone(), s.injected)
    }

    /// Turns the power off and on again: what was not synced is decided by the seed.
    pub fn restart(&self) {
        let mut guard = self.state();
        let s = &mut *guard;
        for dir in s.dirs.values_mut() {
            // Each change of the folder that was not synced may have reached the disk or not.
            let names: BTreeSet<PathBuf> =
                dir.shown.keys().chain(dir.durable.keys()).cloned().collect();
            for name in names {
                let (shown, durable) = (dir.shown.get(&name), dir.durable.get(&name));
                if shown != durable && s.rng.one_in(2) {
                    match shown.copied() {
                        Some(f) => dir.durable.insert(name, f),
                        None => dir.durable.remove(&name),
                    };
                }
            }
            dir.shown = dir.durable.clone();
        }
        for data in s.files.values_mut() {
            lose_unsynced(&mut s.rng, data);
        }
        s.off = false;
        s.crash_at = u64::MAX;
        s.epoch += 1;
    }

    /// Flips one bit of a random file, or overwrites a page of it; returns what was done.
    pub fn damage(&self, whole_page: bool) -> Option<String> {
        let mut guard = self.state();
        let s = &mut *guard;
        let names: Vec<(PathBuf, u64)> = s
            .dirs
            .values()
            .flat_map(|d| d.shown.iter().map(|(p, f)| (p.clone(), *f)))
            .filter(|(_, f)| s.files.get(f).is_some_and(|d| !d.bytes.is_empty()))
            .collect();
        let at = s.rng.below(names.len() as u64) as usize;
        let (name, file) = names.get(at)?.clone();
        let data = s.files.get_mut(&file)?;
        let i = s.rng.below(data.bytes.len() as u64) as usize;
        if whole_page {
            let fill = s.rng.next() as u8;
            data.bytes.iter_mut().skip(i).take(4096).for_each(|b| *b ^= fill | 1);
        } else {
            let bit = s.rng.below(8);
            *data.bytes.get_mut(i)? ^= 1 << bit;
        }
        Some(format!("{} byte {i}", name.display()))
    }

    /// Returns the files and their lengths.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let s = self.state();
        let shown = s.dirs.values().flat_map(|d| &d.shown);
        shown.map(|(p, f)| (p.clone(), s.files.get(f).map_or(0, |d| d.bytes.len()))).collect()
    }

    /// Returns a copy that goes its own way.
    #[must_use]
    pub fn fork(&self) -> Self {
        let s = self.state();
        Self(Arc::new(Mutex::new(State {
            rng: s.rng.clone(),
            files: s.files.clone(),
            dirs: s.dirs.clone(),
            crashed_in: s.crashed_in.clone(),
            bucket: s.bucket.clone(),
            ..*s
        })))
    }

    /// Returns the bytes of all objects in the bucket.
    pub fn bucket_bytes(&self) -> u64 {
        self.state().bucket.values().map(|o| o.len() as u64).sum()
    }

    /// Makes the outcome of later calls depend on another seed.
    pub fn reseed(&self, seed: u64) {
        self.state().rng = Rng::new(seed);
    }
}

/// Keeps a part of what was written after the last sync: whole, cut at a sector, or with sectors
/// missing in between.
fn lose_unsynced(rng: &mut Rng, data: &mut Data) {
    const SECTOR: usize = 512;
    let unsynced = data.bytes.len() - data.synced;
    if unsynced > 0 {
        match rng.below(4) {
            0 => data.bytes.truncate(data.synced),
            1 => {}
            2 => {
                let keep = rng.below(unsynced as u64 + 1) as usize;
                // Half the time at a sector's border, else anywhere.
                let end = data.synced + keep;
                let end = if rng.one_in(2) { end / SECTOR * SECTOR } else { end };
                data.bytes.truncate(end.max(data.synced));
            }
            _ => {
                let start = data.synced;
                let tail = data.bytes.get_mut(start..).unwrap_or_default();
                for sector in tail.chunks_mut(SECTOR) {
                    if rng.one_in(3) {
                        sector.fill(0);
                    }
                }
            }
        }
    }
    data.synced = data.bytes.len();
}

#[derive(Debug)]
struct SimWrite {
    fs: SimVfs,
    file: u64,
    epoch: u64,
}

impl WriteFile for SimWrite {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut guard = self.fs.state();
        let s = &mut *guard;
        if s.epoch != self.epoch {
            return Err(power_off());
        }
        // The power may fail in the middle of a write: part of it is in the page cache.
        let crash = s.call("append");
        let keep =
            if crash.is_err() { s.rng.below(bytes.len() as u64 + 1) as usize } else { bytes.len() };
        let short = crash.is_ok() && s.faults.short_write > 0 && s.rng.one_in(s.faults.short_write);
        let keep = if short { s.rng.below(keep as u64 + 1) as usize } else { keep };
        let fault = if short || crash.is_err() { Ok(()) } else { s.fault() };
        let Some(data) = s.files.get_mut(&self.file) else { return Err(power_off()) };
        if fault.is_ok() {
            data.bytes.extend_from_slice(bytes.get(..keep).unwrap_or_default());
        }
        if short {
            s.injected += 1;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        crash.and(fault)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut s = self.fs.state();
        if s.epoch != self.epoch {
            return Err(power_off());
        }
        s.call("sync")?;
        if let Err(e) = s.fault() {
            // After a failed sync the pages are clean and the data is gone: the next sync lies.
            if let Some(data) = s.files.get_mut(&self.file) {
                let lost = data.synced;
                data.bytes.truncate(lost);
            }
            return Err(e);
        }
        if let Some(data) = s.files.get_mut(&self.file) {
            data.synced = data.bytes.len();
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SimRead {
    fs: SimVfs,
    file: u64,
    len: u64,
}

impl ReadFile for SimRead {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let s = self.fs.state();
        if s.off {
            return Err(power_off());
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let data = s.files.get(&self.file).map_or(&[][..], |d| &d.bytes);
        let end = start.saturating_add(buf.len());
        let part =
            data.get(start..end).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }
}

impl Vfs for SimVfs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let mut guard = self.state();
        let s = &mut *guard;
        s.call("create")?;
        s.fault()?;
        if s.find(path).is_some() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let file = s.next_file;
        s.next_file += 1;
        s.files.insert(file, Data::default());
        let parent = path.parent().unwrap_or(path).to_owned();
        s.dir(&parent)?.shown.insert(path.to_owned(), file);
        s.call("sync of the folder of a new file")?;
        s.fault()?;
        s.dir(&parent)?.durable.insert(path.to_owned(), file);
        let epoch = s.epoch;
        Ok(Box::new(SimWrite { fs: self.clone(), file, epoch }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let s = self.state();
        if s.off {
            return Err(power_off());
        }
        let file = s.find(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let len = s.files.get(&file).map_or(0, |d| d.bytes.len()) as u64;
        Ok(Box::new(SimRead { fs: self.clone(), file, len }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut s = self.state();
        if s.off {
            return Err(power_off());
        }
        Ok(s.dir(dir)?.shown.keys().cloned().collect())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut s = self.state();
        s.call("create folder")?;
        s.dirs.entry(dir.to_owned()).or_default();
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut s = self.state();
        s.call("remove")?;
        let parent = path.parent().unwrap_or(path).to_owned();
        let removed = s.dir(&parent)?.shown.remove(path);
        removed.map(|_| ()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn lock(&self, _path: &Path) -> io::Result<Option<Lock>> {
        Ok(Some(Arc::new(())))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut s = self.state();
        s.call("sync of a folder")?;
        let d = s.dir(dir)?;
        d.durable = d.shown.clone();
        Ok(())
    }

    fn list_dirs(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let s = self.state();
        let mut out: Vec<PathBuf> = s
            .dirs
            .keys()
            .filter_map(|d| {
                let rest = d.strip_prefix(dir).ok()?;
                rest.components().next().map(|c| dir.join(c))
            })
            .collect();
        out.sort();
        out.dedup();
        Ok(out)
    }

    fn space(&self, _path: &Path) -> io::Result<(u64, u64)> {
        Ok((1 << 40, 1 << 41))
    }
}

/// The bucket beside the file system: its requests fail and are cut off by the same power.
impl Objects for SimVfs {
    fn put(&self, key: &str, len: u64, content: &dyn ReadAt) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        content.read_at(0, &mut bytes)?;
        let mut s = self.state();
        let crash = s.call("put of an object");
        let fault = if crash.is_ok() { s.fault() } else { Ok(()) };
        // A request that failed may have been carried out.
        if (crash.is_ok() && fault.is_ok()) || s.rng.one_in(2) {
            s.bucket.insert(key.to_owned(), bytes);
        }
        crash.and(fault)
    }

    fn read(&self, key: &str, range: std::ops::Range<u64>) -> io::Result<Vec<u8>> {
        let s = self.state();
        if s.off {
            return Err(power_off());
        }
        let all = s.bucket.get(key).ok_or(io::ErrorKind::NotFound)?;
        let part = all.get(range.start as usize..range.end as usize);
        Ok(part.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
    }

    fn remove(&self, key: &str) -> io::Result<()> {
        let mut s = self.state();
        let crash = s.call("removal of an object");
        let fault = if crash.is_ok() { s.fault() } else { Ok(()) };
        if (crash.is_ok() && fault.is_ok()) || s.rng.one_in(2) {
            s.bucket.remove(key);
        }
        crash.and(fault)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let s = self.state();
        let inside = s.bucket.iter().filter(|(k, _)| k.starts_with(folder));
        Ok(inside.map(|(k, v)| (k.clone(), v.len() as u64)).collect())
    }
}
