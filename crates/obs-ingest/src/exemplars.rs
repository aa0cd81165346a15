//! Exemplars: the newest of each series, in memory and bounded.

use obs_model::{Exemplar, Labels, Matcher, TenantId};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Exemplars kept over all tenants; the oldest go first.
const KEPT_MAX: usize = 100_000;
/// Bytes of an exemplar's label names and values, as OpenMetrics limits them.
const LABEL_BYTES_MAX: usize = 128;

#[derive(Debug, Default)]
struct Inner {
    /// In order of arrival.
    ring: VecDeque<(TenantId, Labels, Exemplar)>,
    /// The newest of each series, to tell a repeated one.
    last: HashMap<(TenantId, Labels), Exemplar>,
}

/// A series with its exemplars in time order.
pub type SeriesExemplars = (Labels, Vec<Exemplar>);

#[derive(Debug, Default)]
pub struct Exemplars(Mutex<Inner>);

impl Exemplars {
    /// Keeps exemplars; those that are repeated, older than the newest or too large are left out.
    /// Returns how many were kept.
    pub fn add(
        &self,
        tenant: &TenantId,
        list: impl IntoIterator<Item = (Labels, Exemplar)>,
    ) -> u64 {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = 0;
        for (labels, e) in list {
            let size: usize =
                e.labels.iter().map(|(n, v)| n.chars().count() + v.chars().count()).sum();
            if size > LABEL_BYTES_MAX {
                continue;
            }
            let key = (tenant.clone(), labels.clone());
            if let Some(last) = inner.last.get(&key)
                && (*last == e || last.timestamp_ms >= e.timestamp_ms)
            {
                continue;
            }
            inner.last.insert(key, e.clone());
            inner.ring.push_back((tenant.clone(), labels, e));
            kept += 1;
            if inner.ring.len() > KEPT_MAX
                && let Some((tenant, labels, old)) = inner.ring.pop_front()
            {
                let key = (tenant, labels);
                if inner.last.get(&key) == Some(&old) {
                    inner.last.remove(&key);
                }
            }
        }
        kept
    }

    /// Returns exemplars of series that match any of the selectors, in `[start, end]` ms.
    pub fn select(
        &self,
        tenant: &TenantId,
        selectors: &[Vec<Matcher>],
        (start, end): (i64, i64),
    ) -> Vec<SeriesExemplars> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out: HashMap<&Labels, Vec<Exemplar>> = HashMap::new();
        let mut matching: HashMap<&Labels, bool> = HashMap::new();
        for (of, labels, e) in &inner.ring {
            let at = e.timestamp_ms.unwrap_or(0);
            if of != tenant || at < start || at > end {
                continue;
            }
            let hit = *matching
                .entry(labels)
                .or_insert_with(|| selectors.iter().any(|m| Matcher::all_match(m, labels)));
            if hit {
                out.entry(labels).or_default().push(e.clone());
            }
        }
        let mut out: Vec<SeriesExemplars> =
            out.into_iter().map(|(l, list)| (l.clone(), list)).collect();
        out.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, list) in &mut out {
            list.sort_by_key(|e| e.timestamp_ms);
        }
        out
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ring.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_and_large_exemplars_are_left_out() {
        let store = Exemplars::default();
        let series = Labels::from_pairs([("__name__", "a")]);
        let e = |id: &str, t| Exemplar {
            labels: Labels::from_pairs([("trace_id", id)]),
            value: 1.0,
            timestamp_ms: Some(t),
        };
        let tenant = TenantId::default();
        let add = |x: Exemplar| store.add(&tenant, [(series.clone(), x)]);
        assert_eq!([add(e("x", 1)), add(e("x", 1)), add(e("y", 2)), add(e("z", 1))], [1, 0, 1, 0]);
        assert_eq!(add(e(&"l".repeat(200), 3)), 0);
        let all = vec![vec![Matcher::equal("__name__", "a")]];
        assert_eq!(store.select(&tenant, &all, (0, 9))[0].1.len(), 2);
        assert_eq!(store.select(&tenant, &all, (2, 9))[0].1.len(), 1);
        assert!(store.select(&tenant, &[vec![Matcher::equal("__name__", "b")]], (0, 9)).is_empty());
    }
}
