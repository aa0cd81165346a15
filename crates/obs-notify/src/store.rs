//! What survives a crash: alerts, silences, the notification log, acknowledgements; each a value of
//! the control state.

use crate::alert::Alert;
use crate::log::Entry;
use crate::ns;
use crate::silence::{self, Silence};
use obs_model::{KeepState, Shared, StateChange, TimestampNs};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

pub(crate) const ALERTS: &str = "alerts";
pub(crate) const SILENCES: &str = "silences";
pub(crate) const LOG: &str = "notifications";
const OWED: &str = "notifications owed";
pub(crate) const ACKNOWLEDGED: &str = "acknowledged";

/// How long an ended alert is shared: an instance that starts meanwhile must hear of the end.
const ENDED_NS: i64 = 3_600_000_000_000;
/// How long an acknowledgement is shared with instances that start.
const ACKNOWLEDGED_NS: i64 = 30 * 24 * 3_600_000_000_000;

/// Who said that they are on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    pub owner: String,
    pub note: String,
    #[serde(with = "ns")]
    pub at: TimestampNs,
}

/// What a receiver was to hear and perhaps did not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Owed {
    #[serde(with = "ns")]
    pub(crate) at: TimestampNs,
    /// Whether it may have heard it.
    pub(crate) is_unsure: bool,
    /// Of the first notification of a group: the alerts, as they were.
    pub(crate) alerts: Vec<Alert>,
}

/// A value to be kept or forgotten, and what other instances are to hear of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) state: StateChange,
    /// Whether it is for this instance's own store too.
    pub(crate) is_kept: bool,
    /// When it was said and until when it matters, if others are to hear of it.
    shared: Option<(TimestampNs, TimestampNs)>,
}

fn change<T: Serialize>(
    space: &str,
    key: String,
    value: Option<&T>,
    shared: Option<(TimestampNs, TimestampNs)>,
) -> Change {
    // What is kept are maps with texts as keys and numbers: nothing that JSON lacks.
    let value = value.map(|v| serde_json::to_vec(v).unwrap_or_default());
    Change { state: StateChange { space: space.to_owned(), key, value }, is_kept: true, shared }
}

/// Writes the fingerprint of an alert as a key.
fn id_key(id: u64) -> String {
    format!("{id:016x}")
}

/// Reads the fingerprint of an alert.
pub(crate) fn read_id(key: &str) -> Option<u64> {
    u64::from_str_radix(key, 16).ok()
}

impl Change {
    /// An alert; that it is forgotten is every instance's own matter.
    pub(crate) fn alert(id: u64, a: Option<&Alert>) -> Self {
        let shared = a.map(|a| (a.updated_at, a.ends_at.add_nanos(ENDED_NS)));
        change(ALERTS, id_key(id), a, shared)
    }

    /// A silence; see [`Self::alert`].
    pub(crate) fn silence(id: &str, s: Option<&Silence>) -> Self {
        let shared = s.map(|s| (s.updated_at, s.ends_at.add_nanos(silence::RETENTION_NS)));
        change(SILENCES, id.to_owned(), s, shared)
    }

    /// An entry of the log; see [`Self::alert`].
    pub(crate) fn log(key: &str, e: Option<&Entry>) -> Self {
        change(LOG, key.to_owned(), e, e.map(|e| (e.at, e.expires_at)))
    }

    pub(crate) fn owed(key: &str, o: Option<&Owed>) -> Self {
        change(OWED, key.to_owned(), o, None)
    }

    /// Who is on an alert; with a time for nobody when somebody said so.
    pub(crate) fn acknowledgement(
        id: u64,
        a: Option<&Acknowledgement>,
        taken_back: Option<TimestampNs>,
    ) -> Self {
        let stamp = a.map(|a| a.at).or(taken_back);
        let shared = stamp.map(|t| (t, t.add_nanos(ACKNOWLEDGED_NS)));
        change(ACKNOWLEDGED, id_key(id), a, shared)
    }

    /// The same for others only.
    pub(crate) fn shared_only(self) -> Self {
        Self { is_kept: false, ..self }
    }

    /// The same for the own store only: others said it.
    pub(crate) fn kept_only(self) -> Self {
        Self { shared: None, ..self }
    }

    /// Returns what others are to hear.
    pub(crate) fn to_shared(&self) -> Option<Shared> {
        let (stamp, until) = self.shared?;
        let StateChange { space, key, value } = self.state.clone();
        Some(Shared { space, key, stamp, until, value })
    }
}

/// What a process before this one left.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) alerts: Vec<Alert>,
    pub(crate) silences: Vec<Silence>,
    pub(crate) log: HashMap<String, Entry>,
    pub(crate) owed: HashMap<String, Owed>,
    pub(crate) acknowledged: HashMap<u64, Acknowledgement>,
}

fn list<T: DeserializeOwned>(state: &dyn KeepState, space: &str) -> Vec<(String, T)> {
    let read = |(key, value): (String, Vec<u8>)| match serde_json::from_slice(&value) {
        Ok(v) => Some((key, v)),
        Err(e) => {
            tracing::error!(space, key, error = %e, "a stored value cannot be read and is left out");
            None
        }
    };
    state.list(space).into_iter().filter_map(read).collect()
}

impl Restored {
    pub(crate) fn read(state: &dyn KeepState) -> Self {
        Self {
            alerts: list(state, ALERTS).into_iter().map(|x| x.1).collect(),
            silences: list(state, SILENCES).into_iter().map(|x| x.1).collect(),
            log: list(state, LOG).into_iter().collect(),
            owed: list(state, OWED).into_iter().collect(),
            acknowledged: list(state, ACKNOWLEDGED)
                .into_iter()
                .filter_map(|(k, v)| Some((read_id(&k)?, v)))
                .collect(),
        }
    }
}
