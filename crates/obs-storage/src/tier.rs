//! Older segments in an object store.
//!
//! A segment moves in steps, each durable before the next: the manifest notes that an object may
//! exist, the object is written, the manifest says that the segment is read from it, the local
//! file goes. An object whose segment is gone is removed, and only then forgotten by the manifest.

use crate::manifest::{Edit, SegmentMeta, State};
use crate::merge;
use crate::page_cache::{PAGE_BYTES, PageCache};
use crate::segments::OpenSegment;
use crate::store::{Inner, StoreConfig};
use crate::vfs::{ReadFile, Vfs};
use obs_model::{Objects, ReadAt, TimestampNs};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where older segments go, and when.
#[derive(Debug, Clone)]
pub struct TierConfig {
    pub objects: Arc<dyn Objects>,
    /// Segments whose data is all older than this move.
    pub after: Duration,
    /// With more bytes in local segments than this the oldest move before their time.
    pub local_bytes_max: Option<u64>,
    /// Bytes of objects kept on the local disk.
    pub cache_bytes_max: u64,
    /// A random number that names this store among those that share the bucket; used when the
    /// store has none yet.
    pub id: u64,
}

/// Counters since start.
#[derive(Debug, Default)]
pub struct TierStats {
    /// Segments moved, and their bytes.
    pub moved: AtomicU64,
    pub moved_bytes: AtomicU64,
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    pub read_bytes: AtomicU64,
    /// Pages that a read found in the cache, or did not.
    pub hits: AtomicU64,
    pub misses: AtomicU64,
}

/// The object store of a running store.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) config: TierConfig,
    cache: PageCache,
    /// Objects that open segments may read: segment → how often.
    in_use: Mutex<HashMap<u64, u32>>,
    /// Why and until when no request is tried: queries should not wait for each in turn.
    down: Mutex<Option<(Instant, String)>>,
    pause: Duration,
    pub(crate) stats: TierStats,
}

/// Marks errors that say nothing about what is stored, only that it cannot be reached now.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unreachable(String);

pub(crate) fn unreachable(text: String) -> io::Error {
    io::Error::other(Unreachable(text))
}

pub(crate) fn is_unreachable(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|inner| inner.is::<Unreachable>())
}

impl Tier {
    pub(crate) fn open(
        config: TierConfig,
        vfs: Arc<dyn Vfs>,
        store: &StoreConfig,
    ) -> io::Result<Self> {
        /// How long no request is tried after one failed.
        const PAUSE: Duration = Duration::from_secs(5);
        let (dir, reserve) = (store.dir.join("cache"), store.disk_reserve_bytes);
        let cache = PageCache::open(vfs, dir, config.cache_bytes_max, reserve)?;
        let (in_use, down) = (Mutex::default(), Mutex::default());
        let pause = if store.inline { Duration::ZERO } else { PAUSE };
        Ok(Self { config, cache, in_use, down, pause, stats: TierStats::default() })
    }

    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    fn in_use(&self) -> MutexGuard<'_, HashMap<u64, u32>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one request, unless one failed a moment ago.
    fn request<T>(&self, f: impl FnOnce(&dyn Objects) -> io::Result<T>) -> io::Result<T> {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((until, why)) = &*down
            && Instant::now() < *until
        {
            return Err(unreachable(why.clone()));
        }
        *down = None;
        drop(down);
        self.stats.requests.fetch_add(1, Ordering::Relaxed);
        f(&*self.config.objects).map_err(|e| {
            self.stats.failures.fetch_add(1, Ordering::Relaxed);
            if e.kind() == io::ErrorKind::NotFound {
                return e;
            }
            let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
            *down = Some((Instant::now() + self.pause, e.to_string()));
            unreachable(e.to_string())
        })
    }
}

/// A segment that is read from its object.
#[derive(Debug)]
pub(crate) struct Remote {
    /// `None`: the store was opened without its object store.
    tier: Option<Arc<Tier>>,
    key: String,
    segment: u64,
    len: u64,
}

impl Remote {
    pub(crate) fn new(tier: Option<Arc<Tier>>, meta: &SegmentMeta, key: String) -> Arc<Self> {
        if let Some(t) = &tier {
            *t.in_use().entry(meta.id).or_default() += 1;
        }
        Arc::new(Self { tier, key, segment: meta.id, len: meta.bytes })
    }

    fn tier(&self) -> io::Result<&Arc<Tier>> {
        let text = || format!("{} is in an object store, and none is configured", self.key);
        self.tier.as_ref().ok_or_else(|| unreachable(text()))
    }

    pub(crate) fn file(self: &Arc<Self>) -> io::Result<Box<dyn ReadFile>> {
        self.tier()?;
        Ok(Box::new(RemoteFile { remote: self.clone(), ahead: Mutex::default() }))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let Some(tier) = &self.tier else { return };
        let mut in_use = tier.in_use();
        if let Some(n) = in_use.get_mut(&self.segment) {
            *n -= 1;
            if *n == 0 {
                in_use.remove(&self.segment);
            }
        }
    }
}

type Read = Box<dyn Fn(Range<u64>) -> io::Result<Vec<u8>> + Send + Sync>;

/// An object read once from front to back, past the cache.
pub(crate) struct Whole {
    read: Read,
    len: u64,
    /// Where the bytes fetched last begin, and they.
    fetched: Mutex<(u64, Vec<u8>)>,
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Whole {
    pub(crate) fn new(remote: Arc<Remote>) -> Self {
        let len = remote.len;
        let read = move |range| remote.tier()?.request(|o| o.read(&remote.key, range));
        Self { read: Box::new(read), len, fetched: Mutex::default() }
    }

    /// An object of a store that is not open.
    pub(crate) fn of(objects: Arc<dyn Objects>, key: String, len: u64) -> Self {
        let read = move |range| objects.read(&key, range);
        Self { read: Box::new(read), len, fetched: Mutex::default() }
    }
}

impl ReadFile for Whole {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        ReadAt::read_at(self, offset, buf)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

impl ReadAt for Whole {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        const FETCH: u64 = 4 << 20;
        let mut guard = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, bytes) = &mut *guard;
        let end = offset + buf.len() as u64;
        if offset < *start || end > *start + bytes.len() as u64 {
            let to = end.max((offset + FETCH).min(self.len));
            *bytes = (self.read)(offset..to)?;
            *start = offset;
        }
        let from = (offset - *start) as usize;
        let part = bytes.get(from..from + buf.len());
        buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Ahead {
    /// The page after those fetched last, and how many those were.
    next: u64,
    pages: u64,
}

#[derive(Debug)]
struct RemoteFile {
    remote: Arc<Remote>,
    ahead: Mutex<Ahead>,
}

impl RemoteFile {
    /// Fetches a page and, when pages are read one after the other, some that follow.
    fn fetch(&self, page: u64) -> io::Result<Vec<u8>> {
        const AHEAD_MAX: u64 = 8;
        let (r, tier) = (&self.remote, self.remote.tier()?);
        let pages = {
            let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            let pages = if ahead.next == page { (ahead.pages * 2).clamp(1, AHEAD_MAX) } else { 1 };
            *ahead = Ahead { next: page + pages, pages };
            pages
        };
        let start = page * PAGE_BYTES;
        let end = (start + pages * PAGE_BYTES).min(r.len);
        let mut bytes = tier.request(|o| o.read(&r.key, start..end))?;
        tier.stats.read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        for (n, part) in bytes.chunks(PAGE_BYTES as usize).enumerate() {
            tier.cache.put((r.segment, page + n as u64), part);
        }
        bytes.truncate(PAGE_BYTES as usize);
        Ok(bytes)
    }
}

impl ReadFile for RemoteFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (r, tier) = (&self.remote, self.remote.tier()?);
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > r.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let page = at / PAGE_BYTES;
            let counter = |n: &AtomicU64| n.fetch_add(1, Ordering::Relaxed);
            let whole = PAGE_BYTES.min(r.len - page * PAGE_BYTES);
            let from = at - page * PAGE_BYTES;
            let n = ((whole - from) as usize).min(buf.len() - done);
            let to = buf.get_mut(done..done + n).ok_or(io::ErrorKind::UnexpectedEof)?;
            if tier.cache.read((r.segment, page), whole, from, to) {
                counter(&tier.stats.hits);
            } else {
                counter(&tier.stats.misses);
                let bytes = self.fetch(page)?;
                let part = bytes.get(from as usize..from as usize + n);
                to.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            }
            done += n;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.remote.len
    }

    fn forget(&self, offset: u64, len: u64) -> bool {
        let Some(tier) = &self.remote.tier else { return false };
        for page in offset / PAGE_BYTES..=(offset + len.max(1) - 1) / PAGE_BYTES {
            tier.cache.forget((self.remote.segment, page));
        }
        true
    }
}

fn state<T>(inner: &Inner, f: impl FnOnce(&State) -> T) -> io::Result<T> {
    let manifest = inner.manifest.lock().unwrap_or_else(PoisonError::into_inner);
    let text = "the manifest could not be opened for writing";
    manifest.as_ref().map(|m| f(&m.state)).ok_or_else(|| io::Error::other(text))
}

/// Moves what is due, and removes objects that no segment is in; returns how many moved.
pub(crate) fn step(inner: &Inner, now: TimestampNs) -> io::Result<u64> {
    let Some(tier) = &inner.tier else { return Ok(0) };
    collect(inner, tier)?;
    let store = match state(inner, |s| s.store_id)? {
        Some(id) => id,
        None => {
            inner.edit(vec![Edit::StoreId(tier.config.id)], |_| ())?;
            tier.config.id
        }
    };
    let mut moved = 0;
    for s in due(inner, tier, now) {
        if inner.stopping.load(Ordering::Relaxed) {
            break;
        }
        // What is damaged stays where its damage is seen and where a copy may be mended.
        if merge::check(&s).is_err() {
            continue;
        }
        move_one(inner, tier, store, &s)?;
        moved += 1;
    }
    Ok(moved)
}

/// Returns local segments that are to move, the oldest first.
fn due(inner: &Inner, tier: &Tier, now: TimestampNs) -> Vec<Arc<OpenSegment>> {
    let view = inner.view.read().unwrap_or_else(PoisonError::into_inner);
    let mut local: Vec<_> = view.segments.iter().filter(|s| !s.is_remote()).cloned().collect();
    drop(view);
    local.sort_by_key(|s| (s.end_ns(), s.meta.id));
    let after = i64::try_from(tier.config.after.as_nanos()).unwrap_or(i64::MAX);
    let horizon = now.nanos().saturating_sub(after);
    let mut bytes: u64 = local.iter().map(|s| s.meta.bytes).sum();
    local.retain(|s| {
        let is_due = s.end_ns() < horizon || tier.config.local_bytes_max.is_some_and(|m| bytes > m);
        bytes -= if is_due { s.meta.bytes } else { 0 };
        is_due
    });
    local
}

fn move_one(inner: &Inner, tier: &Arc<Tier>, store: u64, s: &OpenSegment) -> io::Result<()> {
    let m = &s.meta;
    let key = format!("segments/{store:016x}/{}/{}/{:010}.seg", m.tenant, m.signal.as_str(), m.id);
    inner.edit(vec![Edit::Object(m.id, key.clone())], |_| ())?;
    let content = s.raw()?;
    tier.request(|o| o.put(&key, m.bytes, &*content))?;
    // No merge may be about to read the local file.
    let _quiet = inner.shaping.lock().unwrap_or_else(PoisonError::into_inner);
    let still_there = state(inner, |s| s.segments.contains_key(&m.id))?;
    if !still_there {
        // It was merged or expired meanwhile: the object is removed by the next step.
        return Ok(());
    }
    let remote = Remote::new(Some(tier.clone()), m, key);
    let opened = Arc::new(OpenSegment::remote(m.clone(), remote, inner.kept.clone()));
    opened.set_swept(s.swept());
    inner.edit(vec![Edit::Moved(m.id)], |view| {
        for slot in view.segments.iter_mut().filter(|x| x.meta.id == m.id) {
            slot.doom();
            *slot = opened.clone();
        }
    })?;
    tier.stats.moved.fetch_add(1, Ordering::Relaxed);
    tier.stats.moved_bytes.fetch_add(m.bytes, Ordering::Relaxed);
    Ok(())
}

/// Removes the objects of segments that are gone, once no query reads them.
fn collect(inner: &Inner, tier: &Tier) -> io::Result<()> {
    let gone = state(inner, |s| {
        let gone = s.objects.iter().filter(|(id, _)| !s.segments.contains_key(id));
        gone.map(|(id, key)| (*id, key.clone())).collect::<Vec<_>>()
    })?;
    for (id, key) in gone {
        if tier.in_use().contains_key(&id) {
            continue;
        }
        tier.cache.forget_segment(id);
        tier.request(|o| o.remove(&key))?;
        inner.edit(vec![Edit::ObjectGone(id)], |_| ())?;
    }
    Ok(())
}
