//! The state of an alert rule: which alerts are pending and which fire.

use obs_model::{Labels, SampleValue};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Resolved, and kept a while so that receivers hear of it.
    Inactive,
    Pending,
    Firing,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Firing => "firing",
        }
    }
}

/// One alert; times in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert {
    pub state: State,
    pub labels: Labels,
    pub annotations: BTreeMap<String, String>,
    pub value: SampleValue,
    /// The expression that found it; set when it is sent.
    pub expr: Arc<str>,
    pub active_at: i64,
    pub fired_at: Option<i64>,
    pub resolved_at: Option<i64>,
    /// Since when it fires only because it is kept firing.
    pub keep_firing_since: Option<i64>,
    pub last_sent_at: Option<i64>,
    /// Until when it holds unless it is sent again.
    pub valid_until: Option<i64>,
}

/// How long a resolved alert is remembered.
const RESOLVED_RETENTION_MS: i64 = 15 * 60_000;

/// What a rule found: an alert's labels, annotations and value.
#[derive(Debug, Clone)]
pub struct Found {
    pub labels: Labels,
    pub annotations: BTreeMap<String, String>,
    pub value: SampleValue,
}

/// All alerts of a rule by their labels.
#[derive(Debug, Clone, Default)]
pub struct Alerts {
    active: HashMap<Labels, Alert>,
}

impl Alerts {
    /// Takes what the rule's expression gave at `now`.
    pub fn update(&mut self, now: i64, found: Vec<Found>, for_ms: i64, keep_firing_for_ms: i64) {
        let mut present = std::collections::HashSet::with_capacity(found.len());
        for f in found {
            present.insert(f.labels.clone());
            match self.active.get_mut(&f.labels) {
                Some(a) if a.state != State::Inactive => {
                    a.value = f.value;
                    a.annotations = f.annotations;
                }
                _ => {
                    let alert = Alert {
                        state: State::Pending,
                        labels: f.labels.clone(),
                        annotations: f.annotations,
                        value: f.value,
                        expr: Arc::default(),
                        active_at: now,
                        fired_at: None,
                        resolved_at: None,
                        keep_firing_since: None,
                        last_sent_at: None,
                        valid_until: None,
                    };
                    self.active.insert(f.labels, alert);
                }
            }
        }
        self.active.retain(|labels, a| {
            if !present.contains(labels) {
                let mut kept = false;
                if a.state == State::Firing && keep_firing_for_ms > 0 {
                    let since = *a.keep_firing_since.get_or_insert(now);
                    kept = now - since < keep_firing_for_ms;
                }
                let is_old = a.resolved_at.is_some_and(|t| now - t > RESOLVED_RETENTION_MS);
                if a.state == State::Pending || is_old {
                    return false;
                }
                if a.state != State::Inactive && !kept {
                    a.state = State::Inactive;
                    a.resolved_at = Some(now);
                }
                if !kept {
                    return true;
                }
            } else {
                a.keep_firing_since = None;
            }
            if a.state == State::Pending && now - a.active_at >= for_ms {
                a.state = State::Firing;
                a.fired_at = Some(now);
            }
            true
        });
    }

    /// Returns pending and firing alerts, sorted by labels.
    pub fn active(&self) -> Vec<&Alert> {
        let mut out: Vec<&Alert> =
            self.active.values().filter(|a| a.state != State::Inactive).collect();
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        out
    }

    pub fn clear(&mut self) {
        self.active.clear();
    }

    /// Returns the most alarming state.
    pub fn state(&self) -> State {
        let rank = |a: &Alert| match a.state {
            State::Inactive => 0,
            State::Pending => 1,
            State::Firing => 2,
        };
        self.active.values().max_by_key(|a| rank(a)).map_or(State::Inactive, |a| a.state)
    }

    /// Sets back when an alert became active, after a restart.
    pub fn restore(&mut self, labels: &Labels, active_at: i64) {
        if let Some(a) = self.active.get_mut(labels) {
            a.active_at = active_at;
        }
    }

    /// Returns alerts that receivers are to hear of now, marked as sent: those that fire or are
    /// resolved, each anew when it changed or `resend_ms` passed.
    pub fn to_send(&mut self, now: i64, resend_ms: i64, interval_ms: i64) -> Vec<Alert> {
        let mut out = Vec::new();
        for a in self.active.values_mut() {
            let is_due = match (a.state, a.last_sent_at) {
                (State::Pending, _) => false,
                (_, None) => a.state == State::Firing,
                (_, Some(sent)) => {
                    a.resolved_at.is_some_and(|t| t > sent) || sent + resend_ms < now
                }
            };
            if !is_due {
                continue;
            }
            a.last_sent_at = Some(now);
            // A few missed evaluations must not resolve an alert at its receiver.
            a.valid_until = Some(now + 4 * resend_ms.max(interval_ms));
            out.push(a.clone());
        }
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Found {
        Found {
            labels: Labels::from_pairs([("alertname", name)]),
            annotations: BTreeMap::new(),
            value: SampleValue::Float(1.0),
        }
    }

    #[test]
    fn pending_then_firing_then_resolved() {
        let mut a = Alerts::default();
        a.update(0, vec![found("x")], 60_000, 0);
        assert_eq!(a.state(), State::Pending);
        assert!(a.to_send(0, 60_000, 15_000).is_empty());
        a.update(60_000, vec![found("x")], 60_000, 0);
        assert_eq!(a.state(), State::Firing);
        assert_eq!(a.to_send(60_000, 60_000, 15_000).len(), 1);
        assert!(a.to_send(75_000, 60_000, 15_000).is_empty());
        assert_eq!(a.to_send(120_001, 60_000, 15_000).len(), 1);
        a.update(130_000, vec![], 60_000, 0);
        assert_eq!(a.state(), State::Inactive);
        assert_eq!(a.to_send(130_000, 60_000, 15_000)[0].resolved_at, Some(130_000));
        assert!(a.active().is_empty());
        a.update(130_000 + RESOLVED_RETENTION_MS + 1, vec![], 60_000, 0);
        assert!(a.active.is_empty());
    }

    #[test]
    fn a_pending_alert_that_goes_leaves_nothing() {
        let mut a = Alerts::default();
        a.update(0, vec![found("x")], 60_000, 0);
        a.update(15_000, vec![], 60_000, 0);
        assert!(a.active.is_empty());
    }

    #[test]
    fn alerts_are_kept_firing() {
        let mut a = Alerts::default();
        a.update(0, vec![found("x")], 0, 60_000);
        assert_eq!(a.state(), State::Firing);
        a.update(30_000, vec![], 0, 60_000);
        assert_eq!(a.state(), State::Firing);
        // Seen again: the time starts anew.
        a.update(45_000, vec![found("x")], 0, 60_000);
        a.update(60_000, vec![], 0, 60_000);
        a.update(119_000, vec![], 0, 60_000);
        assert_eq!(a.state(), State::Firing);
        a.update(120_000, vec![], 0, 60_000);
        assert_eq!(a.state(), State::Inactive);
    }
}
