//! Label sets: sorted, unique names, cheap to clone, one allocation each.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

/// The label that holds the metric name.
pub const METRIC_NAME: &str = "__name__";

/// Returns whether a label is about the metric itself: its name, type or unit. What changes a
/// series' meaning drops these together.
pub fn is_metadata(name: &str) -> bool {
    matches!(name, METRIC_NAME | "__type__" | "__unit__")
}

/// Keyed for the process: label sets come from strangers.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A sorted set of labels without empty values (an empty value is an absent label).
///
/// The names and values lie in one text, each behind its length, and the hash is kept beside it:
/// a store holds a million of these and looks them up by the thousand.
#[derive(Clone)]
pub struct Labels {
    hash: u64,
    text: Arc<str>,
}

/// Lengths below this take one byte.
const SHORT: usize = 64;

fn put(out: &mut String, part: &str) {
    let n = part.len();
    if n < SHORT {
        out.push(n as u8 as char);
    } else {
        out.push((SHORT as u8 + ((n >> 28) & 0x3f) as u8) as char);
        for shift in [21, 14, 7, 0] {
            out.push(((n >> shift) & 0x7f) as u8 as char);
        }
    }
    out.push_str(part);
}

/// Splits the first part off a text made by [`put`].
fn take(text: &str) -> Option<(&str, &str)> {
    let first = usize::from(*text.as_bytes().first()?);
    let (len, at) = if first < SHORT {
        (first, 1)
    } else {
        let low = text.as_bytes().get(1..5)?;
        (low.iter().fold(first - SHORT, |n, b| (n << 7) | usize::from(*b)), 5)
    };
    Some((text.get(at..at + len)?, text.get(at + len..)?))
}

/// Iterates over names and values in order of names.
#[derive(Debug, Clone)]
pub struct LabelsIter<'a>(&'a str);

impl<'a> Iterator for LabelsIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = take(self.0)?;
        let (value, rest) = take(rest)?;
        self.0 = rest;
        Some((name, value))
    }
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for Labels {}

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.text, &other.text) {
            return Ordering::Equal;
        }
        // Most label sets that are compared begin alike: what is the same byte for byte is passed
        // over, and the first part that differs decides.
        let (a, b) = (self.text.as_bytes(), other.text.as_bytes());
        let differs = first_difference(a, b);
        let mut at = 0;
        let mut rest = &*self.text;
        while let Some((_, after)) = take(rest) {
            let next = self.text.len() - after.len();
            if next > differs {
                break;
            }
            (at, rest) = (next, after);
        }
        let part = |text: &'_ str| -> Option<(usize, usize)> {
            let (part, after) = take(text.get(at..)?)?;
            Some((text.len() - after.len() - part.len(), text.len() - after.len()))
        };
        match (part(&self.text), part(&other.text)) {
            (Some((from, to)), Some((f, t))) => a.get(from..to).cmp(&b.get(f..t)),
            (a, b) => a.is_some().cmp(&b.is_some()),
        }
    }
}

/// Returns where two texts first differ, or the length of the shorter one.
fn first_difference(a: &[u8], b: &[u8]) -> usize {
    const WORD: usize = 16;
    let same = a.chunks_exact(WORD).zip(b.chunks_exact(WORD)).take_while(|(a, b)| a == b).count();
    let from = same * WORD;
    let (a, b) = (a.get(from..).unwrap_or_default(), b.get(from..).unwrap_or_default());
    from + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Default for Labels {
    fn default() -> Self {
        Self::from_sorted(std::iter::empty())
    }
}

impl Labels {
    /// Builds a set from pairs in any order; of repeated names the last wins.
    pub fn from_pairs<N: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let mut builder = LabelsBuilder::default();
        for (name, value) in pairs {
            builder.set(name.as_ref(), value.as_ref());
        }
        builder.build()
    }

    /// Builds a set from pairs in any order whose names are unique; empty values are left out.
    pub fn from_unique<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().filter(|(_, v)| !v.is_empty()).collect();
        pairs.sort_unstable();
        Self::from_sorted(pairs.into_iter())
    }

    /// Builds a set from pairs that are sorted by name, unique and not empty.
    pub fn from_sorted<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut text = String::with_capacity(256);
        for (name, value) in pairs {
            put(&mut text, name);
            put(&mut text, value);
        }
        Self { hash: HASHER.hash_one(text.as_bytes()), text: text.into() }
    }

    /// Returns the value of a label, or the empty string when it is absent.
    pub fn get(&self, name: &str) -> &str {
        self.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v)
    }

    /// Returns the metric name, or the empty string.
    pub fn metric_name(&self) -> &str {
        self.get(METRIC_NAME)
    }

    /// Iterates over names and values in order of names.
    pub fn iter(&self) -> LabelsIter<'_> {
        LabelsIter(&self.text)
    }

    pub fn len(&self) -> usize {
        self.iter().count()
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Returns the set without the metric name, and what is said of the metric beside its name.
    pub fn without_name(&self) -> Self {
        if self.iter().any(|(n, _)| is_metadata(n)) {
            self.filter(|n| !is_metadata(n))
        } else {
            self.clone()
        }
    }

    /// Returns the labels whose names pass.
    pub fn filter(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self::from_sorted(self.iter().filter(|(n, _)| keep(n)))
    }

    /// Returns a builder that starts from these labels.
    pub fn to_builder(&self) -> LabelsBuilder {
        LabelsBuilder { pairs: self.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect() }
    }

    /// Returns a copy with one label set (or removed, when the value is empty).
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut b = self.to_builder();
        b.set(name, value);
        b.build()
    }

    /// Returns the bytes that the set takes in memory, about.
    pub fn size_bytes(&self) -> usize {
        self.text.len() + 32
    }

    /// Returns the hash of the set, the same for equal sets within one process.
    pub const fn hash_value(&self) -> u64 {
        self.hash
    }
}

impl fmt::Display for Labels {
    /// Writes `name{a="b"}` as Prometheus prints a series.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.metric_name();
        f.write_str(name)?;
        if self.len() == usize::from(!name.is_empty()) && !name.is_empty() {
            return Ok(());
        }
        f.write_str("{")?;
        for (i, (n, v)) in self.iter().filter(|(n, _)| *n != METRIC_NAME).enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{n}={v:?}")?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Collects labels in any order.
#[derive(Debug, Clone, Default)]
pub struct LabelsBuilder {
    pairs: Vec<(String, String)>,
}

impl LabelsBuilder {
    /// Sets a label; an empty value removes it.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.pairs.retain(|(n, _)| n != name);
        if !value.is_empty() {
            self.pairs.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Adds a label whose name is not in the set yet; an empty value adds nothing.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.pairs.push((name.into(), value));
        }
    }

    pub fn build(mut self) -> Labels {
        self.pairs.sort_unstable();
        Labels::from_sorted(self.pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_insertion_does_not_matter() {
        let a = Labels::from_pairs([("b", "2"), ("a", "1"), ("a", "3")]);
        assert_eq!(a, Labels::from_pairs([("a", "3"), ("b", "2"), ("c", "")]));
        assert_eq!(a.get("a"), "3");
        assert_eq!(a.get("zz"), "");
        assert_eq!(a.with(METRIC_NAME, "m").to_string(), r#"m{a="3", b="2"}"#);
        assert!(a.with("a", "") > a);
        assert_eq!(a, Labels::from_unique([("b", "2"), ("c", ""), ("a", "3")]));
    }

    #[test]
    fn the_order_is_that_of_names_and_values() {
        let long = "v".repeat(100);
        let pairs = ["", "a", "ab", "b", &long];
        let mut sets = vec![Labels::default()];
        for n in ["a", "aa", "b", "zzzzzzzzzzzzzzzzzzzzzzzzzzz"] {
            for v in pairs {
                for m in ["a", "c"] {
                    for w in pairs {
                        sets.push(Labels::from_pairs([(n, v), (m, w)]));
                    }
                }
            }
        }
        for a in &sets {
            for b in &sets {
                assert_eq!(a.cmp(b), a.iter().cmp(b.iter()), "{a} {b}");
            }
        }
    }

    #[test]
    fn values_of_any_length_come_back() {
        for n in [1, 63, 64, 127, 128, 16_383, 16_384, 3_000_000] {
            let (name, value) = ("n".repeat(n.min(300)), "é".repeat(n));
            let l = Labels::from_pairs([("a", "1"), (name.as_str(), value.as_str())]);
            assert_eq!(l.iter().collect::<Vec<_>>(), [("a", "1"), (&name, &value)]);
            assert_eq!(l.get(&name), value);
        }
    }
}
