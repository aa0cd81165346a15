//! A bounded map that forgets what was not used for longest.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    used: u64,
}

/// Values with their sizes; the sum stays below a maximum.
#[derive(Debug)]
pub struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    by_use: BTreeMap<u64, K>,
    bytes: u64,
    bytes_max: u64,
    uses: u64,
}

impl<K: Hash + Eq + Clone, V> Lru<K, V> {
    /// Keeps values of `bytes_max` bytes together.
    pub fn new(bytes_max: u64) -> Self {
        let (entries, by_use) = (HashMap::new(), BTreeMap::new());
        Self { entries, by_use, bytes: 0, bytes_max, uses: 0 }
    }

    /// Returns the bytes in use.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }

    /// Returns a value and notes that it was used.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        self.uses += 1;
        let e = self.entries.get_mut(key)?;
        if let Some(key) = self.by_use.remove(&e.used) {
            self.by_use.insert(self.uses, key);
        }
        e.used = self.uses;
        Some(&e.value)
    }

    /// Adds a value; returns the keys that had to go for it.
    pub fn put(&mut self, key: K, value: V, bytes: u64) -> Vec<K> {
        self.remove(&key);
        self.uses += 1;
        self.by_use.insert(self.uses, key.clone());
        self.bytes += bytes;
        self.entries.insert(key, Entry { value, bytes, used: self.uses });
        let mut gone = Vec::new();
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_use.first_key_value() else { break };
            let oldest = oldest.clone();
            self.remove(&oldest);
            gone.push(oldest);
        }
        gone
    }

    /// Lets a value go; returns whether there was one.
    pub fn remove(&mut self, key: &K) -> bool {
        let Some(e) = self.entries.remove(key) else { return false };
        self.by_use.remove(&e.used);
        self.bytes -= e.bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays() {
        let mut l = Lru::new(30);
        for k in 0..3 {
            assert!(l.put(k, k * 10, 10).is_empty());
        }
        assert_eq!(l.get(&0), Some(&0));
        assert_eq!(l.put(3, 30, 10), [1]);
        assert_eq!(l.get(&1), None);
        assert_eq!(l.bytes(), 30);
        assert_eq!(l.put(0, 5, 20), [2]);
        assert_eq!(l.get(&0), Some(&5));
        assert_eq!(l.bytes(), 30);
        // Larger than everything: nothing is left, and it is not kept either.
        assert_eq!(l.put(9, 0, 31).len(), 3);
        assert_eq!(l.bytes(), 0);
    }
}
