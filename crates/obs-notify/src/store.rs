//! What survives a crash: alerts, silences, the notification log, acknowledgements; each a value of
//! the control state.

use crate::alert::Alert;
use crate::log::Entry;
use crate::ns;
use crate::silence::Silence;
use obs_model::{KeepState, StateChange, TimestampNs};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

const ALERTS: &str = "alerts";
const SILENCES: &str = "silences";
const LOG: &str = "notifications";
const OWED: &str = "notifications owed";
const ACKNOWLEDGED: &str = "acknowledged";

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

/// A value to be kept or forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change(pub(crate) StateChange);

fn change<T: Serialize>(space: &str, key: String, value: Option<&T>) -> Change {
    // What is kept are maps with texts as keys and numbers: nothing that JSON lacks.
    let value = value.map(|v| serde_json::to_vec(v).unwrap_or_default());
    Change(StateChange { space: space.to_owned(), key, value })
}

impl Change {
    pub(crate) fn alert(id: u64, a: Option<&Alert>) -> Self {
        change(ALERTS, format!("{id:016x}"), a)
    }

    pub(crate) fn silence(id: &str, s: Option<&Silence>) -> Self {
        change(SILENCES, id.to_owned(), s)
    }

    pub(crate) fn log(key: &str, e: Option<&Entry>) -> Self {
        change(LOG, key.to_owned(), e)
    }

    pub(crate) fn owed(key: &str, o: Option<&Owed>) -> Self {
        change(OWED, key.to_owned(), o)
    }

    pub(crate) fn acknowledgement(id: u64, a: Option<&Acknowledgement>) -> Self {
        change(ACKNOWLEDGED, format!("{id:016x}"), a)
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
        let id = |key: &str| u64::from_str_radix(key, 16).ok();
        Self {
            alerts: list(state, ALERTS).into_iter().map(|x| x.1).collect(),
            silences: list(state, SILENCES).into_iter().map(|x| x.1).collect(),
            log: list(state, LOG).into_iter().collect(),
            owed: list(state, OWED).into_iter().collect(),
            acknowledged: list(state, ACKNOWLEDGED)
                .into_iter()
                .filter_map(|(k, v)| Some((id(&k)?, v)))
                .collect(),
        }
    }
}
