//! Pages of objects on the local disk, as many as fit.
//!
//! What is here can be fetched again: files are not synced, and a page that does not match the
//! checksums of the blocks in it is dropped and fetched anew.

use crate::vfs::Vfs;
use obs_model::Lru;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of an object that are fetched and kept together.
pub(crate) const PAGE_BYTES: u64 = 1 << 20;

/// Segment and page.
type Key = (u64, u64);

#[derive(Debug)]
pub(crate) struct PageCache {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    reserve: u64,
    /// Their lengths.
    known: Mutex<Lru<Key, u64>>,
}

impl PageCache {
    /// Takes over what an earlier process left in `dir`.
    pub(crate) fn open(
        vfs: Arc<dyn Vfs>,
        dir: PathBuf,
        bytes_max: u64,
        reserve: u64,
    ) -> io::Result<Self> {
        vfs.create_dir_all(&dir)?;
        let this = Self { vfs, dir, reserve, known: Mutex::new(Lru::new(bytes_max)) };
        for path in this.vfs.list(&this.dir)? {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let key =
                name.split_once('.').and_then(|(s, p)| Some((s.parse().ok()?, p.parse().ok()?)));
            match (key, this.vfs.open(&path)) {
                (Some(key), Ok(file)) => this.note(key, file.len()),
                _ => drop(this.vfs.remove(&path)),
            }
        }
        Ok(this)
    }

    /// Notes a page that is on the disk, and removes those that it leaves no room for.
    fn note(&self, key: Key, len: u64) {
        let gone = self.known().put(key, len, len);
        for key in gone {
            let _ = self.vfs.remove(&self.path(key));
        }
    }

    fn known(&self) -> MutexGuard<'_, Lru<Key, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, (segment, page): Key) -> PathBuf {
        self.dir.join(format!("{segment:010}.{page}"))
    }

    /// Returns how many bytes are kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.known().bytes()
    }

    /// Reads from a page of `whole` bytes if it is here; one cut short by a crash is not.
    pub(crate) fn read(&self, key: Key, whole: u64, offset: u64, buf: &mut [u8]) -> bool {
        let is_whole = self.known().get(&key) == Some(&whole);
        let path = self.path(key);
        let mut read = || self.vfs.open(&path)?.read_at(offset, buf);
        let done = is_whole && read().is_ok();
        if !done {
            self.forget(key);
        }
        done
    }

    /// Keeps a page, if there is room on the disk.
    pub(crate) fn put(&self, key: Key, bytes: &[u8]) {
        let len = bytes.len() as u64;
        let known = self.known();
        if len > known.bytes_max() || known.contains(&key) {
            return;
        }
        drop(known);
        let is_short = |(free, _): (u64, u64)| free < self.reserve.saturating_add(len);
        if self.vfs.space(&self.dir).is_ok_and(is_short) {
            return;
        }
        let path = self.path(key);
        let write = || self.vfs.create(&path)?.append(bytes);
        match write() {
            Ok(()) => self.note(key, len),
            // Another query wrote it at the same time.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => drop(self.vfs.remove(&path)),
        }
    }

    /// Drops a page.
    pub(crate) fn forget(&self, key: Key) {
        if self.known().remove(&key) {
            let _ = self.vfs.remove(&self.path(key));
        }
    }

    /// Drops all pages of a segment.
    pub(crate) fn forget_segment(&self, segment: u64) {
        let keys: Vec<Key> = self.known().keys().filter(|k| k.0 == segment).copied().collect();
        for key in keys {
            self.forget(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::OsVfs;

    fn get(cache: &PageCache, key: Key) -> Option<Vec<u8>> {
        let mut out = vec![0; 10];
        cache.read(key, 10, 0, &mut out).then_some(out)
    }

    #[test]
    fn the_pages_used_last_stay_also_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || PageCache::open(Arc::new(OsVfs), dir.path().join("cache"), 30, 0).unwrap();
        let cache = open();
        for page in 0..3 {
            cache.put((1, page), &[page as u8; 10]);
        }
        assert_eq!(get(&cache, (1, 0)), Some(vec![0; 10]));
        cache.put((2, 0), &[9; 10]);
        assert_eq!((get(&cache, (1, 1)), cache.bytes()), (None, 30));
        assert_eq!(get(&cache, (1, 0)), Some(vec![0; 10]));
        // Larger than everything: not kept, nothing thrown out for it.
        cache.put((3, 0), &[0; 31]);
        assert_eq!(cache.bytes(), 30);
        cache.forget_segment(1);
        assert_eq!(cache.bytes(), 10);
        std::fs::write(dir.path().join("cache/strange"), b"x").unwrap();
        let again = open();
        assert_eq!((get(&again, (2, 0)), again.bytes()), (Some(vec![9; 10]), 10));
        assert!(!dir.path().join("cache/strange").exists());
    }
}
