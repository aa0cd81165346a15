//! A set that remembers the recent past within a bound.

use std::collections::HashSet;
use std::hash::Hash;

/// Remembers at least the last `capacity` items and at most twice as many.
#[derive(Debug)]
pub(crate) struct Seen<T> {
    young: HashSet<T>,
    old: HashSet<T>,
    capacity: usize,
}

impl<T: Eq + Hash> Seen<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashSet::new(), old: HashSet::new(), capacity }
    }

    pub(crate) fn contains(&self, item: &T) -> bool {
        self.young.contains(item) || self.old.contains(item)
    }

    pub(crate) fn insert(&mut self, item: T) {
        if self.young.len() >= self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(item);
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
