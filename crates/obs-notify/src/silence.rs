//! Silences: matchers that mute alerts for a while, who made them and why.

use crate::ns;
use obs_model::{Labels, MatchOp, Matcher, MatcherError, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// A matcher as the API writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SilenceMatcher {
    pub name: String,
    pub value: String,
    pub is_regex: bool,
    #[serde(default = "yes")]
    pub is_equal: bool,
}

const fn yes() -> bool {
    true
}

impl SilenceMatcher {
    pub const fn op(&self) -> MatchOp {
        match (self.is_regex, self.is_equal) {
            (false, true) => MatchOp::Equal,
            (false, false) => MatchOp::NotEqual,
            (true, true) => MatchOp::Regex,
            (true, false) => MatchOp::NotRegex,
        }
    }

    /// Returns the matcher itself.
    ///
    /// # Errors
    /// When its regular expression is none.
    pub fn matcher(&self) -> Result<Matcher, MatcherError> {
        Matcher::new(&self.name, self.op(), &self.value)
    }

    fn compile(&self) -> Result<Matcher, SilenceError> {
        if self.name.is_empty() {
            return Err(SilenceError::Invalid(
                "invalid label matcher: invalid label name \"\"".into(),
            ));
        }
        self.matcher().map_err(|e| SilenceError::Invalid(format!("invalid label matcher: {e}")))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SilenceState {
    Active,
    Pending,
    Expired,
}

impl SilenceState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pending => "pending",
            Self::Expired => "expired",
        }
    }
}

/// What somebody wants silenced; with an id, in place of that silence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilenceWish {
    pub id: String,
    pub matchers: Vec<SilenceMatcher>,
    pub starts_at: TimestampNs,
    pub ends_at: TimestampNs,
    pub created_by: String,
    pub comment: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Silence {
    pub id: String,
    pub matchers: Vec<SilenceMatcher>,
    #[serde(with = "ns")]
    pub starts_at: TimestampNs,
    #[serde(with = "ns")]
    pub ends_at: TimestampNs,
    #[serde(with = "ns")]
    pub updated_at: TimestampNs,
    pub created_by: String,
    pub comment: String,
    /// The silence that this one took the place of, or empty.
    #[serde(default)]
    pub replaces: String,
}

impl Silence {
    pub fn state(&self, now: TimestampNs) -> SilenceState {
        if now < self.starts_at {
            SilenceState::Pending
        } else if now > self.ends_at || self.ends_at == self.starts_at {
            SilenceState::Expired
        } else {
            SilenceState::Active
        }
    }

    fn compile(&self) -> Result<Vec<Matcher>, SilenceError> {
        self.matchers.iter().map(SilenceMatcher::compile).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SilenceError {
    #[error("silence not found")]
    NotFound,
    #[error("{0}")]
    Invalid(String),
    #[error("silence {0} already expired")]
    AlreadyExpired(String),
    #[error("there may be {0} silences; delete some")]
    TooMany(usize),
}

/// Silences that are not expired.
const SILENCES_MAX: usize = 10_000;
/// Text of one silence, bytes.
const SILENCE_BYTES_MAX: usize = 64 << 10;
/// How long an expired silence is remembered, as Alertmanager's `--data.retention`.
pub(crate) const RETENTION_NS: i64 = 120 * 3_600_000_000_000;

/// All silences, and which may match an alert.
#[derive(Debug, Default)]
pub(crate) struct Silences {
    all: BTreeMap<String, (Silence, Vec<Matcher>)>,
    /// Silences by one of their equality matchers: they match no alert without it.
    by_value: HashMap<(String, String), Vec<String>>,
    /// Those without one.
    others: Vec<String>,
}

/// What a change of silences is, for the store: id and new state; `None` when it is forgotten.
pub(crate) type Change = (String, Option<Silence>);

fn anchor(matchers: &[Matcher]) -> Option<(String, String)> {
    let m = matchers.iter().find(|m| m.op == MatchOp::Equal && !m.value.is_empty())?;
    Some((m.name.clone(), m.value.clone()))
}

impl Silences {
    /// Takes a silence as it is; one whose matchers cannot be read is left out.
    pub(crate) fn insert(&mut self, s: Silence) -> Result<(), SilenceError> {
        let compiled = s.compile()?;
        self.forget(&s.id);
        match anchor(&compiled) {
            Some(key) => self.by_value.entry(key).or_default().push(s.id.clone()),
            None => self.others.push(s.id.clone()),
        }
        self.all.insert(s.id.clone(), (s, compiled));
        Ok(())
    }

    fn forget(&mut self, id: &str) {
        let Some((_, compiled)) = self.all.remove(id) else { return };
        match anchor(&compiled) {
            Some(key) => {
                if let Some(list) = self.by_value.get_mut(&key) {
                    list.retain(|i| i != id);
                    if list.is_empty() {
                        self.by_value.remove(&key);
                    }
                }
            }
            None => self.others.retain(|i| i != id),
        }
    }

    /// Puts a silence back to what it was, or away if it was not.
    pub(crate) fn take_back(&mut self, id: &str, before: Option<Silence>) {
        if before.as_ref().is_none_or(|b| b.id != id) {
            self.forget(id);
        }
        // It compiled before.
        let _ = before.map(|b| self.insert(b));
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Silence> {
        self.all.get(id).map(|s| &s.0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Silence> {
        self.all.values().map(|s| &s.0)
    }

    pub(crate) fn compiled(&self) -> impl Iterator<Item = (&Silence, &[Matcher])> {
        self.all.values().map(|(s, m)| (s, m.as_slice()))
    }

    /// Returns the ids of active silences that mute these labels.
    pub(crate) fn muting(&self, labels: &Labels, now: TimestampNs) -> Vec<String> {
        if self.all.is_empty() {
            return Vec::new();
        }
        let mut out = Vec::new();
        let mut ask = |id: &String| {
            if let Some((s, matchers)) = self.all.get(id)
                && s.state(now) == SilenceState::Active
                && Matcher::all_match(matchers, labels)
            {
                out.push(id.clone());
            }
        };
        if !self.by_value.is_empty() {
            for (name, value) in labels.iter() {
                let key = (name.to_owned(), value.to_owned());
                self.by_value.get(&key).into_iter().flatten().for_each(&mut ask);
            }
        }
        self.others.iter().for_each(&mut ask);
        out.sort();
        out
    }

    /// Makes a silence, or changes one: in place as far as that rewrites no history, otherwise the
    /// old one expires and a new one takes its place. Returns the id and what changed.
    pub(crate) fn set(
        &mut self,
        w: SilenceWish,
        now: TimestampNs,
        new_id: &dyn Fn() -> String,
    ) -> Result<(String, Vec<Change>), SilenceError> {
        let mut s = Silence {
            id: w.id,
            matchers: w.matchers,
            starts_at: w.starts_at,
            ends_at: w.ends_at,
            updated_at: now,
            created_by: w.created_by,
            comment: w.comment,
            replaces: String::new(),
        };
        let invalid = |m: &str| Err(SilenceError::Invalid(format!("invalid silence: {m}")));
        if s.matchers.is_empty() {
            return invalid("at least one matcher required");
        }
        let text = s.matchers.iter().map(|m| m.name.len() + m.value.len()).sum::<usize>();
        if text + s.comment.len() + s.created_by.len() > SILENCE_BYTES_MAX {
            return invalid(&format!("it may have {SILENCE_BYTES_MAX} bytes"));
        }
        let compiled = s.compile()?;
        if compiled.iter().all(|m| m.matches("")) {
            return invalid("at least one matcher must not match the empty string");
        }
        if s.ends_at < s.starts_at {
            return invalid("end time must not be before start time");
        }
        let before = self.get(&s.id).cloned();
        if !s.id.is_empty() && before.is_none() {
            return Err(SilenceError::NotFound);
        }
        let mut changes = Vec::new();
        match before {
            Some(old) if can_update(&old, &s, now) => {
                s.updated_at = now.max(old.updated_at.add_nanos(1));
                s.replaces = old.replaces;
            }
            old => {
                let live = self.iter().filter(|s| s.state(now) != SilenceState::Expired).count();
                if live >= SILENCES_MAX {
                    return Err(SilenceError::TooMany(SILENCES_MAX));
                }
                if let Some(old) = old {
                    if old.state(now) != SilenceState::Expired {
                        changes.extend(self.expire(&old.id, now)?);
                    }
                    s.replaces = old.id;
                }
                s.id = new_id();
                s.starts_at = s.starts_at.max(now);
            }
        }
        self.insert(s.clone())?;
        let id = s.id.clone();
        changes.push((id.clone(), Some(s)));
        Ok((id, changes))
    }

    pub(crate) fn expire(
        &mut self,
        id: &str,
        now: TimestampNs,
    ) -> Result<Vec<Change>, SilenceError> {
        let Some((s, _)) = self.all.get_mut(id) else { return Err(SilenceError::NotFound) };
        match s.state(now) {
            SilenceState::Expired => return Err(SilenceError::AlreadyExpired(id.to_owned())),
            SilenceState::Active => s.ends_at = now,
            SilenceState::Pending => (s.starts_at, s.ends_at) = (now, now),
        }
        // Another instance's clock may be ahead.
        s.updated_at = now.max(s.updated_at.add_nanos(1));
        Ok(vec![(id.to_owned(), Some(s.clone()))])
    }

    /// Forgets what expired long ago.
    pub(crate) fn collect(&mut self, now: TimestampNs) -> Vec<Change> {
        let is_old = |s: &&Silence| s.ends_at.add_nanos(RETENTION_NS) < now;
        let old: Vec<String> = self.iter().filter(is_old).map(|s| s.id.clone()).collect();
        old.iter().for_each(|id| self.forget(id));
        old.into_iter().map(|id| (id, None)).collect()
    }
}

fn can_update(old: &Silence, new: &Silence, now: TimestampNs) -> bool {
    let second = |t: TimestampNs| t.nanos().div_euclid(1_000_000_000);
    old.matchers == new.matchers
        && match old.state(now) {
            SilenceState::Active => {
                second(old.starts_at) == second(new.starts_at) && new.ends_at >= now
            }
            SilenceState::Pending => new.starts_at >= now,
            SilenceState::Expired => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> TimestampNs {
        TimestampNs::from_nanos(s * 1_000_000_000)
    }

    fn wish(id: &str, value: &str, from: i64, to: i64) -> SilenceWish {
        let m = SilenceMatcher {
            name: "a".into(),
            value: value.into(),
            is_regex: false,
            is_equal: true,
        };
        SilenceWish {
            id: id.into(),
            matchers: vec![m],
            starts_at: at(from),
            ends_at: at(to),
            created_by: "me".into(),
            comment: "c".into(),
        }
    }

    #[test]
    fn a_silence_that_cannot_be_changed_in_place_is_replaced() {
        let mut s = Silences::default();
        let next = std::cell::Cell::new(0);
        let id = || {
            next.set(next.get() + 1);
            format!("id{}", next.get())
        };
        let labels = Labels::from_pairs([("a", "x")]);
        assert_eq!(s.set(wish("", "x", 0, 100), at(10), &id).unwrap().0, "id1");
        assert_eq!(s.get("id1").unwrap().starts_at, at(10));
        assert_eq!(s.muting(&labels, at(11)), ["id1"]);
        assert!(s.muting(&labels, at(101)).is_empty());
        // A later end: the same silence.
        assert_eq!(s.set(wish("id1", "x", 10, 200), at(20), &id).unwrap().0, "id1");
        assert_eq!(s.muting(&labels, at(101)), ["id1"]);
        // Other matchers: a new one, and the old one stays as history.
        let (new, changes) = s.set(wish("id1", "y", 10, 200), at(30), &id).unwrap();
        assert_eq!((new.as_str(), changes.len()), ("id2", 2));
        assert_eq!(s.get("id1").unwrap().state(at(31)), SilenceState::Expired);
        assert_eq!(s.get("id2").unwrap().replaces, "id1");
        assert!(s.muting(&labels, at(31)).is_empty());
        assert_eq!(s.expire("id1", at(40)), Err(SilenceError::AlreadyExpired("id1".into())));
        assert_eq!(s.expire("nope", at(40)), Err(SilenceError::NotFound));
        assert_eq!(s.set(wish("nope", "y", 10, 200), at(30), &id), Err(SilenceError::NotFound));
        assert!(s.collect(at(31 + 120 * 3600)).iter().any(|c| c.0 == "id1"));
        assert!(s.get("id1").is_none());
    }

    #[test]
    fn silences_of_everything_are_refused() {
        let mut s = Silences::default();
        let mut w = wish("", "", 0, 100);
        assert!(
            s.set(w.clone(), at(1), &String::new).unwrap_err().to_string().contains("empty string")
        );
        w.matchers = Vec::new();
        assert!(s.set(w, at(1), &String::new).is_err());
        let mut w = wish("", "(", 0, 100);
        w.matchers[0].is_regex = true;
        assert!(s.set(w, at(1), &String::new).is_err());
        assert!(s.set(wish("", "x", 100, 50), at(1), &String::new).is_err());
    }
}
