//! What was seen lately, within bounds: two generations, the older of which is dropped whole.

use foldhash::HashMap;
use std::hash::Hash;

/// The values of the latest keys.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
}

/// The latest items.
pub(crate) type Seen<K> = Recent<K, ()>;

impl<K: Eq + Hash, V> Recent<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), capacity }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

impl<K: Eq + Hash> Seen<K> {
    pub(crate) fn insert(&mut self, item: K) {
        self.put(item, ());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_items_are_remembered_and_the_rest_forgotten() {
        let mut s = Seen::new(10);
        (0..100).for_each(|i| s.insert(i));
        assert!((90..100).all(|i| s.contains(&i)));
        assert!(!s.contains(&0));
        assert!(s.young.len() + s.old.len() <= 20);
    }
}
