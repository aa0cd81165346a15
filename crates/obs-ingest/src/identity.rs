//! Label sets by their bytes on the wire.
//!
//! Senders repeat the same labels with every sample. Hashing those bytes costs a tenth of decoding
//! them, and the label set found is the one that the store already knows.

use obs_model::{Labels, TenantId};
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher, RandomState};
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_128_with_secret;

const SHARDS: usize = 16;
/// Label sets of a generation in one shard; two generations are kept.
const GENERATION_MAX: usize = 80_000;
/// No place is behind this one.
const NOWHERE: u32 = u32::MAX - 1;
/// Bytes of the secret that keeps strangers from making two label sets collide.
const SECRET_BYTES: usize = 192;

/// Keys are hashes already.
#[derive(Debug, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn write_u64(&mut self, v: u64) {
        self.0 = v;
    }
}

/// Label sets in the order in which they were met.
#[derive(Debug, Default)]
struct Generation {
    /// By half of the key.
    places: HashMap<u64, u32, BuildHasherDefault<Identity>>,
    list: Vec<(u128, Labels)>,
}

impl Generation {
    /// Returns the place of a key, which is likely to be the one behind `last`: senders name their
    /// series in the same order each time, and what lies side by side is there before it is asked
    /// for. A table of all keys is a miss of the processor's cache each time.
    fn find(&self, key: u128, last: u32) -> Option<u32> {
        let is_it = |place: &u32| self.list.get(*place as usize).is_some_and(|(k, _)| *k == key);
        let next = Some(last.wrapping_add(1)).filter(is_it);
        next.or_else(|| self.places.get(&(key as u64)).copied().filter(is_it))
    }

    fn labels(&self, place: u32) -> Option<Labels> {
        self.list.get(place as usize).map(|(_, l)| l.clone())
    }
}

#[derive(Debug, Default)]
struct Shard {
    current: Generation,
    previous: Generation,
}

impl Shard {
    /// Returns the labels of a key, and moves `last` to its place.
    fn get(&mut self, key: u128, last: &Cell<u32>) -> Option<Labels> {
        if let Some(place) = self.current.find(key, last.get()) {
            last.set(place);
            return self.current.labels(place);
        }
        let place = self.previous.find(key, NOWHERE)?;
        let found = self.previous.labels(place)?;
        self.put(key, found.clone(), last);
        Some(found)
    }

    fn put(&mut self, key: u128, labels: Labels, last: &Cell<u32>) {
        if self.current.list.len() >= GENERATION_MAX {
            self.previous = std::mem::take(&mut self.current);
        }
        let place = self.current.list.len() as u32;
        last.set(place);
        self.current.places.insert(key as u64, place);
        self.current.list.push((key, labels));
    }
}

/// Known label sets. What was not used for a while is forgotten.
#[derive(Debug)]
pub(crate) struct Identities {
    shards: Vec<Mutex<Shard>>,
    secret: [u8; SECRET_BYTES],
}

impl Default for Identities {
    fn default() -> Self {
        let mut secret = [0; SECRET_BYTES];
        for chunk in secret.chunks_mut(8) {
            let word = std::hash::BuildHasher::hash_one(&RandomState::new(), 0_u8).to_le_bytes();
            chunk.copy_from_slice(&word);
        }
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), secret }
    }
}

impl Identities {
    /// Begins a request of a tenant.
    pub(crate) fn request(&self, tenant: &TenantId) -> Request<'_> {
        let owner = xxh3_128_with_secret(tenant.as_str().as_bytes(), &self.secret);
        let last = std::array::from_fn(|_| Cell::new(NOWHERE));
        Request { all: self, owner: owner.rotate_left(1), last }
    }
}

/// The label sets that one request names.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    all: &'a Identities,
    owner: u128,
    /// By shard: the place found last.
    last: [Cell<u32>; SHARDS],
}

impl Request<'_> {
    /// Returns the label set whose wire form is `raw`.
    pub(crate) fn get(
        &self,
        raw: &[u8],
        build: &dyn Fn() -> Result<Labels, String>,
    ) -> Result<Labels, String> {
        let key = xxh3_128_with_secret(raw, &self.all.secret) ^ self.owner;
        let shard = (key >> 64) as usize % SHARDS;
        let (Some(shard), Some(last)) = (self.all.shards.get(shard), self.last.get(shard)) else {
            return build();
        };
        if let Some(l) = shard.lock().unwrap_or_else(PoisonError::into_inner).get(key, last) {
            return Ok(l);
        }
        let labels = build()?;
        shard.lock().unwrap_or_else(PoisonError::into_inner).put(key, labels.clone(), last);
        Ok(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_sets_are_built_once_and_kept_apart_by_tenant() {
        let all = Identities::default();
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let one = || Ok(Labels::from_pairs([("x", "1")]));
        let two = || Ok(Labels::from_pairs([("x", "2")]));
        let get = |tenant, raw: &[u8], build: &dyn Fn() -> Result<Labels, String>| {
            all.request(tenant).get(raw, build)
        };
        assert_eq!(get(&a, b"raw", &one).unwrap().get("x"), "1");
        assert_eq!(get(&a, b"raw", &two).unwrap().get("x"), "1");
        assert_eq!(get(&b, b"raw", &two).unwrap().get("x"), "2");
        assert!(get(&a, b"bad", &|| Err("no".into())).is_err());
        assert_eq!(get(&a, b"bad", &two).unwrap().get("x"), "2");
    }

    #[test]
    fn any_order_finds_the_same() {
        let all = Identities::default();
        let tenant = TenantId::default();
        let orders = [
            (0..500).collect::<Vec<u32>>(),
            (0..500).collect(),
            (0..500).rev().collect(),
            (0..1000).map(|i| i * 7 % 500).collect(),
            (0..600).collect(),
        ];
        for order in orders {
            let request = all.request(&tenant);
            for i in order {
                let labels = || Ok(Labels::from_pairs([("x", i.to_string())]));
                let found = request.get(&i.to_le_bytes(), &labels).unwrap();
                assert_eq!(found, labels().unwrap());
            }
        }
        let met: usize = all.shards.iter().map(|s| s.lock().unwrap().current.list.len()).sum();
        assert_eq!(met, 600);
    }
}
