//! What instances that share a store tell each other.
//!
//! Each instance has the whole state machine. What it is told it tells the others: alerts, silences,
//! acknowledgements, and what receivers were told. Of two versions of a value the one said last
//! holds, so the order in which they arrive does not matter. Who may tell a receiver is settled by
//! claims, see [`crate::driver`].

use super::{ALERTS_MAX, Core, plus};
use crate::alert::{Alert, fingerprint};
use crate::log::Entry;
use crate::silence::Silence;
use crate::store::{ACKNOWLEDGED, ALERTS, Acknowledgement, Change, LOG, Owed, SILENCES, read_id};
use obs_model::{Shared, TimestampNs};
use serde::de::DeserializeOwned;
use std::collections::{BTreeSet, HashMap};

/// What is known of other instances.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// Until when alerts fire as the others know it.
    told: HashMap<u64, TimestampNs>,
    /// Alerts whose last word came from another instance.
    foreign: BTreeSet<u64>,
}

impl Peers {
    pub(super) fn forget(&mut self, id: u64) {
        self.told.remove(&id);
        self.foreign.remove(&id);
    }
}

fn read<T: DeserializeOwned>(s: &Shared) -> Option<T> {
    let value = s.value.as_deref()?;
    serde_json::from_slice(value)
        .map_err(|e| {
            tracing::error!(space = s.space, key = s.key, error = %e, "a shared value cannot be read");
        })
        .ok()
}

impl Core {
    /// From now on there are other instances.
    pub(crate) fn share(&mut self) {
        self.peers.get_or_insert_default();
    }

    #[cfg(test)]
    pub(crate) const fn shares(&self) -> bool {
        self.peers.is_some()
    }

    /// Whether an alert that fires on must be told others, lest they take it for ended.
    pub(super) fn must_tell_peers(&self, id: u64, a: &Alert, now: TimestampNs) -> bool {
        let Some(p) = &self.peers else { return false };
        let left = |t: TimestampNs| t.nanos().saturating_sub(now.nanos());
        p.told.get(&id).is_none_or(|t| left(*t) < left(a.ends_at) / 2)
    }

    /// Notes that others hear of an alert, whose last word is ours.
    pub(super) fn told_peers(&mut self, id: u64, a: &Alert) {
        if let Some(p) = &mut self.peers {
            p.told.insert(id, a.ends_at);
            p.foreign.remove(&id);
        }
    }

    /// Returns all that others are to know.
    pub(crate) fn everything(&self) -> Vec<Shared> {
        let alerts = self.alerts.iter().map(|(id, a)| Change::alert(*id, Some(a)));
        let silences = self.silences.iter().map(|s| Change::silence(&s.id, Some(s)));
        let log = self.log.iter().map(|(k, e)| Change::log(k, Some(e)));
        let acknowledged =
            self.acknowledged.iter().map(|(id, a)| Change::acknowledgement(*id, Some(a), None));
        let all = alerts.chain(silences).chain(log).chain(acknowledged);
        all.filter_map(|c| c.to_shared()).collect()
    }

    /// Takes what others said as far as it is news; returns what is to be kept of it.
    pub(crate) fn merge(&mut self, values: &[Shared], now: TimestampNs) -> Vec<Change> {
        let mut changes = Vec::new();
        for s in values {
            match s.space.as_str() {
                ALERTS => changes.extend(read(s).and_then(|a| self.merge_alert(a, now))),
                SILENCES => changes.extend(read(s).and_then(|s| self.merge_silence(s))),
                LOG => {
                    if let Some(e) = read(s) {
                        changes.extend(self.merge_log(&s.key, e, now));
                    }
                }
                ACKNOWLEDGED => changes.extend(self.merge_acknowledgement(s)),
                _ => {}
            }
        }
        changes.into_iter().map(Change::kept_only).collect()
    }

    fn merge_alert(&mut self, a: Alert, now: TimestampNs) -> Option<Change> {
        let id = fingerprint(&a.labels);
        let (old, ends_at) = (self.alerts.get(&id).cloned(), a.ends_at);
        let joined = match old.as_deref() {
            None if self.alerts.len() >= ALERTS_MAX => return None,
            None => a,
            // The younger one is told of the older one.
            Some(o) if a.updated_at < o.updated_at => Alert::merge(&a, o.clone()),
            Some(o) => Alert::merge(o, a),
        };
        if let Some(p) = &mut self.peers {
            p.told.insert(id, ends_at);
        }
        if old.as_deref() == Some(&joined) {
            return None;
        }
        if let Some(p) = &mut self.peers {
            p.foreign.insert(id);
        }
        let says_more = old.as_ref().is_none_or(|o| joined.says_more_than(o, now));
        let change = says_more.then(|| Change::alert(id, Some(&joined)));
        self.take(id, joined, now, true);
        change
    }

    fn merge_silence(&mut self, s: Silence) -> Option<Change> {
        if self.silences.get(&s.id).is_some_and(|known| known.updated_at >= s.updated_at) {
            return None;
        }
        let change = Change::silence(&s.id, Some(&s));
        let id = s.id.clone();
        match self.silences.insert(s) {
            Ok(()) => Some(change),
            Err(e) => {
                tracing::error!(silence = id, error = %e, "a shared silence is left out");
                None
            }
        }
    }

    fn merge_log(&mut self, key: &str, mut e: Entry, now: TimestampNs) -> Vec<Change> {
        if e.expires_at < now || self.log.get(key).is_some_and(|known| known.at >= e.at) {
            return Vec::new();
        }
        if let Some(known) = self.log.get(key) {
            e.join(known);
        }
        let mut changes = vec![Change::log(key, Some(&e))];
        // What the receiver heard from another instance it need not hear late from this one.
        let is_settled = self.owed.get(key).is_some_and(|o| !o.is_unsure || e.at >= o.at);
        self.log.insert(key.to_owned(), e);
        if is_settled && !self.busy.contains(key) {
            changes.extend(self.settled(key));
        }
        changes
    }

    /// Takes over what a dead instance was to tell: whoever it was to tell may have heard it.
    pub(crate) fn adopt(&mut self, key: &str, now: TimestampNs) -> Change {
        let mine = self.owed.remove(key);
        let alerts = mine.map(|o| o.alerts).unwrap_or_default();
        let owed = Owed { at: now, is_unsure: true, alerts };
        let change = Change::owed(key, Some(&owed));
        self.owed.insert(key.to_owned(), owed);
        change
    }

    fn merge_acknowledgement(&mut self, s: &Shared) -> Option<Change> {
        let id = read_id(&s.key)?;
        if self.acknowledged.get(&id).is_some_and(|known| known.at >= s.stamp) {
            return None;
        }
        if s.value.is_none() {
            self.acknowledged.remove(&id)?;
            return Some(Change::acknowledgement(id, None, None));
        }
        let a: Acknowledgement = read(s)?;
        // It was said of an alert that ended, and fires anew.
        if self.alerts.get(&id).is_some_and(|alert| alert.starts_at > a.at) {
            return None;
        }
        let change = Change::acknowledgement(id, Some(&a), None);
        self.acknowledged.insert(id, a);
        Some(change)
    }

    /// Lets alerts that other instances know of fire on: while those cannot be heard, who does not
    /// say any more that they fire is not known to be silent.
    pub(crate) fn wait_for_peers(&mut self, now: TimestampNs) {
        let Some(p) = &mut self.peers else { return };
        let until = plus(now, self.config.resolve_timeout);
        for id in &p.foreign {
            let Some(a) = self.alerts.get_mut(id) else { continue };
            if !a.is_resolved(now) && a.ends_at > a.updated_at && a.ends_at < until {
                std::sync::Arc::make_mut(a).ends_at = until;
            }
        }
    }
}
