//! Label sets by their bytes on the wire.
//!
//! Senders repeat the same labels with every sample. Hashing those bytes costs a tenth of decoding
//! them, and the label set found is the one that the store already knows.

use obs_model::{Labels, TenantId};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher, RandomState};
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_128_with_secret;

const SHARDS: usize = 16;
/// Label sets of a generation in one shard; two generations are kept.
const GENERATION_MAX: usize = 80_000;
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

    fn write_u128(&mut self, v: u128) {
        self.0 = v as u64;
    }
}

type Map = HashMap<u128, Labels, BuildHasherDefault<Identity>>;

#[derive(Debug, Default)]
struct Shard {
    current: Map,
    previous: Map,
}

impl Shard {
    fn get(&mut self, key: u128) -> Option<Labels> {
        if let Some(l) = self.current.get(&key) {
            return Some(l.clone());
        }
        let found = self.previous.get(&key)?.clone();
        self.put(key, found.clone());
        Some(found)
    }

    fn put(&mut self, key: u128, labels: Labels) {
        if self.current.len() >= GENERATION_MAX {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(key, labels);
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
    /// Returns the label set whose wire form is `raw`.
    pub(crate) fn get(
        &self,
        tenant: &TenantId,
        raw: &[u8],
        build: &dyn Fn() -> Result<Labels, String>,
    ) -> Result<Labels, String> {
        let owner = xxh3_128_with_secret(tenant.as_str().as_bytes(), &self.secret);
        let key = xxh3_128_with_secret(raw, &self.secret) ^ owner.rotate_left(1);
        let shard = (key >> 64) as usize % SHARDS;
        let Some(shard) = self.shards.get(shard) else { return build() };
        if let Some(l) = shard.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            return Ok(l);
        }
        let labels = build()?;
        shard.lock().unwrap_or_else(PoisonError::into_inner).put(key, labels.clone());
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
        assert_eq!(all.get(&a, b"raw", &one).unwrap().get("x"), "1");
        assert_eq!(all.get(&a, b"raw", &two).unwrap().get("x"), "1");
        assert_eq!(all.get(&b, b"raw", &two).unwrap().get("x"), "2");
        assert!(all.get(&a, b"bad", &|| Err("no".into())).is_err());
        assert_eq!(all.get(&a, b"bad", &two).unwrap().get("x"), "2");
    }
}
