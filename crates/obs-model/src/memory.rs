//! The memory that all parts of the process draw from.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Bytes that recent data, requests that write, queries, merges and replay share.
#[derive(Debug)]
pub struct MemoryPool {
    max: i64,
    /// What queries leave for the others.
    reserve: i64,
    used: AtomicI64,
}

impl MemoryPool {
    /// Shares `max` bytes, of which queries leave `reserve` to writes and merges.
    pub const fn new(max: i64, reserve: i64) -> Self {
        Self { max, reserve, used: AtomicI64::new(0) }
    }

    /// A pool that is never empty.
    pub const fn unlimited() -> Self {
        Self::new(i64::MAX, 0)
    }

    /// Returns the bytes in use.
    pub fn used(&self) -> i64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the bytes there are.
    pub const fn max(&self) -> i64 {
        self.max
    }

    pub(crate) const fn queries_max(&self) -> i64 {
        self.max - self.reserve
    }

    /// Adds to what is in use, also past the end; returns the sum.
    pub(crate) fn add(&self, bytes: i64) -> i64 {
        self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes)
    }

    pub(crate) fn give_back(&self, bytes: i64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes bytes if they are left.
    pub fn try_take(self: &Arc<Self>, bytes: usize) -> Option<MemoryShare> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.add(bytes) > self.max {
            self.give_back(bytes);
            return None;
        }
        Some(MemoryShare { pool: self.clone(), bytes: AtomicI64::new(bytes) })
    }

    /// Returns a share of nothing, to be set to what is in use whether it fits or not.
    pub fn share(self: &Arc<Self>) -> MemoryShare {
        MemoryShare { pool: self.clone(), bytes: AtomicI64::new(0) }
    }
}

/// Bytes of a pool in use by one part; they go back when it is dropped.
#[derive(Debug)]
pub struct MemoryShare {
    pool: Arc<MemoryPool>,
    bytes: AtomicI64,
}

impl MemoryShare {
    /// Changes what is in use.
    pub fn set(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        self.pool.add(bytes - before);
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.pool.give_back(*self.bytes.get_mut());
    }
}
