//! The notification log: what each receiver was told last of each group.

use crate::ns;
use obs_model::TimestampNs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a receiver was told of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(with = "ns")]
    pub at: TimestampNs,
    /// Fingerprints.
    pub firing: BTreeSet<u64>,
    pub resolved: BTreeSet<u64>,
    /// When it may be forgotten.
    #[serde(with = "ns")]
    pub expires_at: TimestampNs,
    /// How many notifications there were before this one.
    pub sequence: u64,
    /// What a receiver needs to change its message later.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub memory: BTreeMap<String, String>,
    /// When the last notifications before this one were, as far as its teller knew of them; ns, the
    /// oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<i64>,
}

/// Notifications that an entry remembers the times of.
const HISTORY_MAX: usize = 16;

impl Entry {
    /// Returns the history of the entry that comes after this one.
    pub(crate) fn history_of_next(&self) -> Vec<i64> {
        let skipped = (self.history.len() + 1).saturating_sub(HISTORY_MAX);
        self.history.iter().skip(skipped).copied().chain([self.at.nanos()]).collect()
    }

    /// Returns whether this was told by somebody who did not know of an earlier entry.
    fn is_apart_from(&self, earlier: &Self) -> bool {
        let at = earlier.at.nanos();
        let is_complete = self.history.len() as u64 == self.sequence;
        let reaches_back = self.history.first().is_some_and(|oldest| *oldest <= at);
        (is_complete || reaches_back) && !self.history.contains(&at)
    }

    /// Adds what an earlier entry told and this one's teller did not know: the receiver may believe
    /// that it fires still.
    pub(crate) fn join(&mut self, earlier: &Self) {
        if self.is_apart_from(earlier) {
            let untold = earlier.firing.difference(&self.resolved).copied();
            self.firing.extend(untold.collect::<Vec<_>>());
        }
    }
}

/// Why a group is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    First,
    Firing,
    Resolved,
    Repeat,
}

/// Returns whether a receiver is to be told, and why: Alertmanager's rules.
pub(crate) fn needs_update(
    entry: Option<&Entry>,
    firing: &BTreeSet<u64>,
    resolved: &BTreeSet<u64>,
    sends_resolved: bool,
    repeat: Duration,
    now: TimestampNs,
) -> Option<Why> {
    let Some(entry) = entry else { return (!firing.is_empty()).then_some(Why::First) };
    if !firing.is_subset(&entry.firing) {
        return Some(Why::Firing);
    }
    if firing.is_empty() {
        // Of what came and went in between it knows nothing.
        return (!entry.firing.is_empty()).then_some(Why::Resolved);
    }
    if sends_resolved && !resolved.is_subset(&entry.resolved) {
        return Some(Why::Resolved);
    }
    let repeat_ns = i64::try_from(repeat.as_nanos()).unwrap_or(i64::MAX);
    (entry.at.nanos() < now.nanos().saturating_sub(repeat_ns)).then_some(Why::Repeat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receivers_are_told_of_what_they_do_not_know() {
        let at = |s: i64| TimestampNs::from_nanos(s * 1_000_000_000);
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
        let entry = |firing: &[u64], resolved: &[u64]| Entry {
            history: Vec::new(),
            at: at(100),
            firing: set(firing),
            resolved: set(resolved),
            expires_at: at(1000),
            sequence: 0,
            memory: BTreeMap::new(),
        };
        let hour = Duration::from_secs(3600);
        for (known, firing, resolved, sends_resolved, now, want) in [
            (None, &[1][..], &[][..], true, 100, Some(Why::First)),
            (None, &[], &[1], true, 100, None),
            (Some(entry(&[1], &[])), &[1], &[], true, 200, None),
            (Some(entry(&[1], &[])), &[1, 2], &[], true, 200, Some(Why::Firing)),
            (Some(entry(&[1, 2], &[])), &[1], &[2], true, 200, Some(Why::Resolved)),
            (Some(entry(&[1, 2], &[])), &[1], &[2], false, 200, None),
            (Some(entry(&[1], &[])), &[], &[1], false, 200, Some(Why::Resolved)),
            (Some(entry(&[], &[1])), &[], &[2], true, 200, None),
            (Some(entry(&[1], &[2])), &[1], &[2], true, 200, None),
            (Some(entry(&[1], &[])), &[1], &[], true, 3700, None),
            (Some(entry(&[1], &[])), &[1], &[], true, 3701, Some(Why::Repeat)),
        ] {
            let got = needs_update(
                known.as_ref(),
                &set(firing),
                &set(resolved),
                sends_resolved,
                hour,
                at(now),
            );
            assert_eq!(got, want, "{known:?} {firing:?} {resolved:?} {now}");
        }
    }
}
