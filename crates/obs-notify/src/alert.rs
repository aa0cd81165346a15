//! An alert as receivers of alerts know it: labels, and from when to when it fires.

use crate::ns;
use obs_model::{Labels, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An alert that somebody sent.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAlert {
    pub labels: Labels,
    pub annotations: BTreeMap<String, String>,
    pub starts_at: Option<TimestampNs>,
    /// A past time says that it is resolved, none that it fires until nobody says so any more.
    pub ends_at: Option<TimestampNs>,
    pub generator_url: String,
}

/// What makes an alert unacceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlertError {
    #[error("at least one label pair required")]
    NoLabels,
    #[error("start time must be before end time")]
    EndsBeforeStart,
    #[error("invalid label set: invalid name {0:?}")]
    BadName(String),
    #[error("an alert may have {bytes_max} bytes; this one has {bytes}")]
    TooLarge { bytes: usize, bytes_max: usize },
}

/// Labels and annotations of one alert, in bytes.
const ALERT_BYTES_MAX: usize = 256 << 10;

/// An alert that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    #[serde(with = "label_map")]
    pub labels: Labels,
    pub annotations: BTreeMap<String, String>,
    #[serde(with = "ns")]
    pub starts_at: TimestampNs,
    /// It is resolved once this is past.
    #[serde(with = "ns")]
    pub ends_at: TimestampNs,
    #[serde(with = "ns")]
    pub updated_at: TimestampNs,
    pub generator_url: String,
    /// Whether the end is our guess because the sender named none.
    pub timeout: bool,
}

/// Writes labels as an object.
mod label_map {
    use obs_model::Labels;
    use serde::{Deserialize as _, Deserializer, Serializer};
    use std::collections::BTreeMap;

    pub(super) fn serialize<S: Serializer>(l: &Labels, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(l.iter())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Labels, D::Error> {
        BTreeMap::<String, String>::deserialize(d).map(Labels::from_pairs)
    }
}

/// Returns the identity of a label set, as Prometheus computes it: FNV-1a over names and values.
pub fn fingerprint(labels: &Labels) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |b: u8| h = (h ^ u64::from(b)).wrapping_mul(PRIME);
    for (name, value) in labels.iter() {
        name.bytes().for_each(&mut add);
        add(255);
        value.bytes().for_each(&mut add);
        add(255);
    }
    h
}

/// Bytes of an alert's texts.
fn size(labels: &Labels, annotations: &BTreeMap<String, String>, url: &str) -> usize {
    let labels: usize = labels.iter().map(|(n, v)| n.len() + v.len()).sum();
    let annotations: usize = annotations.iter().map(|(n, v)| n.len() + v.len()).sum();
    labels + annotations + url.len()
}

impl NewAlert {
    /// Fills in what was left out.
    ///
    /// # Errors
    /// When Alertmanager would refuse the alert, or when it is too large.
    pub fn admit(self, now: TimestampNs, resolve_timeout_ns: i64) -> Result<Alert, AlertError> {
        if self.labels.is_empty() {
            return Err(AlertError::NoLabels);
        }
        let bytes = size(&self.labels, &self.annotations, &self.generator_url);
        if bytes > ALERT_BYTES_MAX {
            return Err(AlertError::TooLarge { bytes, bytes_max: ALERT_BYTES_MAX });
        }
        if let Some((name, _)) = self.labels.iter().find(|(n, _)| n.is_empty()) {
            return Err(AlertError::BadName(name.to_owned()));
        }
        let starts_at = self.starts_at.or(self.ends_at).unwrap_or(now);
        let ends_at = self.ends_at.unwrap_or_else(|| now.add_nanos(resolve_timeout_ns));
        if ends_at < starts_at {
            return Err(AlertError::EndsBeforeStart);
        }
        Ok(Alert {
            labels: self.labels,
            annotations: self.annotations,
            starts_at,
            ends_at,
            updated_at: now,
            generator_url: self.generator_url,
            timeout: self.ends_at.is_none(),
        })
    }
}

impl Alert {
    pub fn name(&self) -> &str {
        self.labels.get("alertname")
    }

    /// Bytes of its texts.
    pub fn size(&self) -> usize {
        size(&self.labels, &self.annotations, &self.generator_url)
    }

    pub fn is_resolved(&self, now: TimestampNs) -> bool {
        self.ends_at <= now
    }

    /// Joins what was known with what is said now.
    pub fn merge(old: &Self, new: Self) -> Self {
        let overlaps = (new.ends_at > old.starts_at && new.ends_at < old.ends_at)
            || (new.starts_at > old.starts_at && new.starts_at < old.ends_at);
        if !overlaps {
            return new;
        }
        let mut out = new;
        out.starts_at = out.starts_at.min(old.starts_at);
        // What each said of itself when it was said.
        if out.ends_at <= out.updated_at {
            if old.ends_at <= out.updated_at {
                out.ends_at = out.ends_at.max(old.ends_at);
            }
        } else if old.ends_at > out.ends_at && !old.timeout {
            out.ends_at = old.ends_at;
        }
        out
    }

    /// Whether a new version says more than that the alert still fires.
    pub fn says_more_than(&self, old: &Self, now: TimestampNs) -> bool {
        self.annotations != old.annotations
            || self.starts_at != old.starts_at
            || self.generator_url != old.generator_url
            || self.is_resolved(now) != old.is_resolved(now)
            || self.timeout != old.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> TimestampNs {
        TimestampNs::from_nanos(s * 1_000_000_000)
    }

    fn alert(starts: i64, ends: i64, updated: i64, timeout: bool) -> Alert {
        Alert {
            labels: Labels::from_pairs([("alertname", "x")]),
            annotations: BTreeMap::new(),
            starts_at: at(starts),
            ends_at: at(ends),
            updated_at: at(updated),
            generator_url: String::new(),
            timeout,
        }
    }

    #[test]
    fn fingerprints_are_those_of_prometheus() {
        // From Prometheus' own tests of LabelSet.Fingerprint.
        assert_eq!(format!("{:016x}", fingerprint(&Labels::default())), "cbf29ce484222325");
        let l = Labels::from_pairs([
            ("first_name", "electro"),
            ("occupation", "robot"),
            ("manufacturer", "westinghouse"),
        ]);
        assert_eq!(fingerprint(&l), 5_911_716_720_268_894_962);
    }

    #[test]
    fn versions_of_an_alert_merge_as_in_alertmanager() {
        let merged = |old: Alert, new: Alert| {
            let m = Alert::merge(&old, new);
            (m.starts_at.nanos() / 1_000_000_000, m.ends_at.nanos() / 1_000_000_000)
        };
        // Told again: the earlier start, the later end.
        assert_eq!(merged(alert(0, 100, 10, true), alert(50, 200, 60, true)), (0, 200));
        // Resolved by name: its end holds.
        assert_eq!(merged(alert(0, 100, 10, true), alert(0, 60, 60, false)), (0, 60));
        // A named end that is later than a guessed one holds.
        assert_eq!(merged(alert(0, 300, 10, false), alert(0, 200, 60, true)), (0, 300));
        // Two resolutions: the later end.
        assert_eq!(merged(alert(0, 50, 55, false), alert(0, 40, 60, false)), (0, 50));
        // Fires again after the end: a new alert.
        assert_eq!(merged(alert(0, 50, 55, false), alert(70, 400, 75, true)), (70, 400));
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let new = |starts: Option<i64>, ends: Option<i64>| {
            NewAlert {
                labels: Labels::from_pairs([("a", "b")]),
                annotations: BTreeMap::new(),
                starts_at: starts.map(at),
                ends_at: ends.map(at),
                generator_url: String::new(),
            }
            .admit(at(1000), 300_000_000_000)
            .map(|a| {
                (a.starts_at.nanos() / 1_000_000_000, a.ends_at.nanos() / 1_000_000_000, a.timeout)
            })
        };
        assert_eq!(new(None, None), Ok((1000, 1300, true)));
        assert_eq!(new(None, Some(900)), Ok((900, 900, false)));
        assert_eq!(new(Some(500), None), Ok((500, 1300, true)));
        assert_eq!(new(Some(500), Some(400)), Err(AlertError::EndsBeforeStart));
    }
}
