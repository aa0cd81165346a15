//! Exemplars: the newest of all series, bounded, in memory and in the control state.
//!
//! What one request brings is a value there, which goes when the last of its exemplars was displaced
//! by newer ones. So a restart or crash loses none that was acknowledged.

use obs_model::{Exemplar, KeepState, Labels, Matcher, StateChange, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Exemplars kept over all tenants, and their bytes; the oldest go first.
const KEPT_MAX: usize = 100_000;
const BYTES_MAX: usize = 32 << 20;
/// Characters of an exemplar's label names and values, as OpenMetrics limits them.
const LABEL_CHARS_MAX: usize = 128;
/// Where they are in the control state, and how many are one value there at most.
const SPACE: &str = "exemplars";
const TOGETHER: usize = 500;

#[derive(Debug)]
struct Kept {
    /// Number of the value in the control state.
    stored: u64,
    tenant: TenantId,
    labels: Labels,
    exemplar: Exemplar,
}

impl Kept {
    fn size(&self) -> usize {
        size_of::<Self>() + self.labels.size_bytes() + self.exemplar.labels.size_bytes()
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// In order of arrival.
    ring: VecDeque<Kept>,
    bytes: usize,
    /// The newest of each series, to tell a repeated one.
    last: HashMap<(TenantId, Labels), Exemplar>,
    /// Number of the next value in the control state.
    next: u64,
}

impl Inner {
    fn push(&mut self, kept: Kept) {
        self.bytes += kept.size();
        let key = (kept.tenant.clone(), kept.labels.clone());
        self.last.insert(key, kept.exemplar.clone());
        self.ring.push_back(kept);
    }

    /// Lets the oldest go that are too many; returns the values of which none is left.
    fn displace(&mut self) -> Vec<u64> {
        let mut gone = Vec::new();
        while self.ring.len() > KEPT_MAX || self.bytes > BYTES_MAX {
            let Some(old) = self.ring.pop_front() else { break };
            self.bytes -= old.size();
            if self.ring.front().is_none_or(|k| k.stored != old.stored) {
                gone.push(old.stored);
            }
            let key = (old.tenant, old.labels);
            if self.last.get(&key) == Some(&old.exemplar) {
                self.last.remove(&key);
            }
        }
        gone
    }
}

type Pairs = Vec<(String, String)>;

fn pairs(labels: &Labels) -> Pairs {
    labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

/// A value in the control state.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    tenant: String,
    series: Vec<Pairs>,
    /// Place of its series, labels, bits of the value, milliseconds.
    exemplars: Vec<(usize, Pairs, u64, Option<i64>)>,
}

impl Stored {
    fn of(tenant: &TenantId, list: &[(Labels, Exemplar)]) -> Self {
        let mut places: HashMap<&Labels, usize> = HashMap::new();
        let mut out =
            Self { tenant: tenant.to_string(), series: Vec::new(), exemplars: Vec::new() };
        for (labels, e) in list {
            let place = *places.entry(labels).or_insert_with(|| {
                out.series.push(pairs(labels));
                out.series.len() - 1
            });
            let value = e.value.to_bits();
            out.exemplars.push((place, pairs(&e.labels), value, e.timestamp_ms));
        }
        out
    }

    fn read(self, stored: u64) -> Result<Vec<Kept>, String> {
        let tenant: TenantId = TenantId::new(&self.tenant).map_err(|e| e.to_string())?;
        let series: Vec<Labels> = self.series.into_iter().map(Labels::from_pairs).collect();
        let one = |(place, labels, value, timestamp_ms): (usize, Pairs, u64, Option<i64>)| {
            let value = f64::from_bits(value);
            let exemplar = Exemplar { labels: Labels::from_pairs(labels), value, timestamp_ms };
            let labels = series.get(place).cloned().ok_or("a series is missing")?;
            Ok(Kept { stored, tenant: tenant.clone(), labels, exemplar })
        };
        self.exemplars.into_iter().map(one).collect()
    }
}

fn key(number: u64) -> String {
    format!("{number:020}")
}

/// A series with its exemplars in time order.
pub type SeriesExemplars = (Labels, Vec<Exemplar>);

#[derive(Debug, Default)]
pub struct Exemplars {
    inner: Mutex<Inner>,
    control: OnceLock<Arc<dyn KeepState>>,
}

impl Exemplars {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what a run before kept, and keeps there from now on. Called once, at start.
    pub fn keep_in(&self, control: Arc<dyn KeepState>) {
        let mut inner = self.inner();
        for (key, value) in control.list(SPACE) {
            let number = key.parse().unwrap_or(0);
            inner.next = inner.next.max(number + 1);
            let stored = serde_json::from_slice::<Stored>(&value).map_err(|e| e.to_string());
            match stored.and_then(|s| s.read(number)) {
                Ok(list) => list.into_iter().for_each(|k| inner.push(k)),
                Err(e) => tracing::error!(key, error = e, "kept exemplars could not be read"),
            }
        }
        drop(inner);
        let _ = self.control.set(control);
    }

    /// Keeps exemplars; those that are repeated, older than the newest or too large are left out.
    /// Returns how many were kept, when they are durable.
    pub async fn add(
        &self,
        tenant: &TenantId,
        list: impl IntoIterator<Item = (Labels, Exemplar)>,
    ) -> u64 {
        let (kept, changes) = self.take(tenant, list);
        let control = self.control.get().filter(|_| !changes.is_empty());
        if let Some(control) = control
            && let Err(e) = control.put(changes).await
        {
            tracing::warn!(error = %e, "exemplars were not kept: a restart will lose them");
            return 0;
        }
        kept
    }

    /// Takes exemplars into memory, and says what changes in the control state.
    fn take(
        &self,
        tenant: &TenantId,
        list: impl IntoIterator<Item = (Labels, Exemplar)>,
    ) -> (u64, Vec<StateChange>) {
        let mut inner = self.inner();
        let mut fresh = Vec::new();
        let mut newest: HashMap<Labels, Option<i64>> = HashMap::new();
        for (labels, e) in list {
            let chars: usize =
                e.labels.iter().map(|(n, v)| n.chars().count() + v.chars().count()).sum();
            if chars > LABEL_CHARS_MAX {
                continue;
            }
            let known = newest.get(&labels).copied().or_else(|| {
                let last = inner.last.get(&(tenant.clone(), labels.clone()))?;
                Some(last.timestamp_ms)
            });
            if known.is_some_and(|t| t >= e.timestamp_ms) {
                continue;
            }
            newest.insert(labels.clone(), e.timestamp_ms);
            fresh.push((labels, e));
        }
        let first = inner.next;
        for (stored, part) in (first..).zip(fresh.chunks(TOGETHER)) {
            inner.next = stored + 1;
            for (labels, exemplar) in part {
                let (labels, exemplar) = (labels.clone(), exemplar.clone());
                inner.push(Kept { stored, tenant: tenant.clone(), labels, exemplar });
            }
        }
        let gone = inner.displace();
        drop(inner);
        let change = |number, value| {
            let space = SPACE.to_owned();
            StateChange { space, key: key(number), value }
        };
        // Serialising texts and numbers does not fail.
        let value =
            |part: &[(Labels, Exemplar)]| serde_json::to_vec(&Stored::of(tenant, part)).ok();
        let added = (first..).zip(fresh.chunks(TOGETHER)).map(|(n, part)| change(n, value(part)));
        let changes = added.chain(gone.into_iter().map(|n| change(n, None))).collect();
        (fresh.len() as u64, changes)
    }

    /// Returns exemplars of series that match any of the selectors, in `[start, end]` ms.
    pub fn select(
        &self,
        tenant: &TenantId,
        selectors: &[Vec<Matcher>],
        (start, end): (i64, i64),
    ) -> Vec<SeriesExemplars> {
        let inner = self.inner();
        let mut out: HashMap<&Labels, Vec<Exemplar>> = HashMap::new();
        let mut matching: HashMap<&Labels, bool> = HashMap::new();
        for Kept { tenant: of, labels, exemplar: e, .. } in &inner.ring {
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
        self.inner().ring.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exemplar(id: &str, t: i64) -> Exemplar {
        let labels = Labels::from_pairs([("trace_id", id)]);
        Exemplar { labels, value: 1.0, timestamp_ms: Some(t) }
    }

    fn found(store: &Exemplars, name: &str, range: (i64, i64)) -> Vec<SeriesExemplars> {
        store.select(&TenantId::default(), &[vec![Matcher::equal("__name__", name)]], range)
    }

    #[tokio::test]
    async fn repeated_and_large_exemplars_are_left_out() {
        let store = Exemplars::default();
        let series = Labels::from_pairs([("__name__", "a")]);
        let tenant = TenantId::default();
        let mut kept = Vec::new();
        let long = "l".repeat(200);
        for (id, t) in [("x", 1), ("x", 1), ("y", 2), ("z", 1), (&long, 3)] {
            kept.push(store.add(&tenant, [(series.clone(), exemplar(id, t))]).await);
        }
        assert_eq!(kept, [1, 0, 1, 0, 0]);
        assert_eq!(found(&store, "a", (0, 9))[0].1.len(), 2);
        assert_eq!(found(&store, "a", (2, 9))[0].1.len(), 1);
        assert!(found(&store, "b", (0, 9)).is_empty());
    }

    /// Control state in memory.
    #[derive(Debug, Default)]
    struct Memory(Mutex<std::collections::BTreeMap<String, Vec<u8>>>);

    impl KeepState for Memory {
        fn list(&self, _: &str) -> Vec<(String, Vec<u8>)> {
            let all = self.0.lock().unwrap();
            all.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
        }

        fn put(&self, changes: Vec<StateChange>) -> obs_model::StateFuture<'_> {
            let mut all = self.0.lock().unwrap();
            for c in changes {
                match c.value {
                    Some(v) => all.insert(c.key, v),
                    None => all.remove(&c.key),
                };
            }
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn the_next_run_has_them_and_old_ones_leave_the_control_state() {
        let control = Arc::new(Memory::default());
        let tenant = TenantId::default();
        let open = || {
            let store = Exemplars::default();
            store.keep_in(control.clone());
            store
        };
        let name = |n: usize| Labels::from_pairs([("__name__", format!("m{n}"))]);
        let request = |from: usize| (from..from + 1000).map(move |n| (name(n), exemplar("x", 5)));
        let store = open();
        assert_eq!(store.add(&tenant, request(0)).await, 1000);
        let nan = Exemplar { value: f64::NAN, timestamp_ms: None, ..exemplar("你好", 0) };
        assert_eq!(store.add(&tenant, [(name(5000), nan)]).await, 1);
        let again = open();
        assert_eq!(again.len(), 1001);
        let known = found(&again, "m999", (0, 9));
        assert_eq!(known[0].1, [exemplar("x", 5)]);
        assert!(found(&again, "m5000", (0, 9))[0].1[0].value.is_nan());
        assert_eq!(again.add(&tenant, request(0)).await, 0, "they are known still");
        for n in 10..110 {
            again.add(&tenant, request(n * 1000)).await;
        }
        let most = open();
        assert_eq!((again.len(), most.len()), (KEPT_MAX, KEPT_MAX));
        assert_eq!(control.list(SPACE).len(), KEPT_MAX / TOGETHER);
        assert!(found(&most, "m999", (0, 9)).is_empty());
    }
}
