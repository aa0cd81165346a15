//! Label sets: sorted, unique names, cheap to clone.

use std::fmt;
use std::sync::Arc;

/// The label that holds a series' metric name.
pub const METRIC_NAME: &str = "__name__";

/// A label set, sorted by name; an empty value is the same as an absent label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// Builds a set from pairs in any order; of equal names the last one wins.
    pub fn from_pairs<N: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let mut builder = LabelsBuilder::default();
        for (name, value) in pairs {
            builder.set(name.as_ref(), value.as_ref());
        }
        builder.build()
    }

    /// Returns the value of a label, or the empty string.
    pub fn get(&self, name: &str) -> &str {
        self.0
            .binary_search_by(|(n, _)| (**n).cmp(name))
            .ok()
            .and_then(|i| self.0.get(i))
            .map_or("", |(_, v)| v)
    }

    pub fn metric_name(&self) -> &str {
        self.get(METRIC_NAME)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (&**n, &**v))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the set without the metric name.
    pub fn without_name(&self) -> Self {
        if self.get(METRIC_NAME).is_empty() {
            self.clone()
        } else {
            self.filter(|n| n != METRIC_NAME)
        }
    }

    /// Returns the labels whose names satisfy `keep`.
    pub fn filter(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|(n, _)| keep(n)).cloned().collect())
    }

    /// Returns a builder that starts from this set.
    pub fn to_builder(&self) -> LabelsBuilder {
        LabelsBuilder { pairs: self.0.to_vec() }
    }

    /// Returns this set with one label set (or removed, when the value is empty).
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut b = self.to_builder();
        b.set(name, value);
        b.build()
    }

    /// Returns the bytes the names and values take.
    pub fn size_bytes(&self) -> usize {
        self.0.iter().map(|(n, v)| n.len() + v.len() + 32).sum()
    }
}

impl fmt::Display for Labels {
    /// Writes `name{a="b"}` as Prometheus prints a series.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.metric_name();
        f.write_str(name)?;
        if self.0.len() == usize::from(!name.is_empty()) && !name.is_empty() {
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

/// Collects labels and sorts them once.
#[derive(Debug, Clone, Default)]
pub struct LabelsBuilder {
    pairs: Vec<(Arc<str>, Arc<str>)>,
}

impl LabelsBuilder {
    /// Sets a label; an empty value removes it.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.pairs.retain(|(n, _)| &**n != name);
        if !value.is_empty() {
            self.pairs.push((name.into(), value.into()));
        }
        self
    }

    /// Adds a label whose name is known to be new, without copying the strings.
    pub fn push_shared(&mut self, name: Arc<str>, value: Arc<str>) {
        if !value.is_empty() {
            self.pairs.push((name, value));
        }
    }

    pub fn build(mut self) -> Labels {
        self.pairs.sort_unstable();
        Labels(self.pairs.into())
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
    }
}
