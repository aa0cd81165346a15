//! What receivers are told, and what is noted of it.
//!
//! Before a notification goes out it is noted that it does; what is not noted as delivered after
//! that may or may not have arrived. So a receiver hears of every alert that fired even if it was
//! out of reach while it did, and of the present state whenever it may believe another.

use super::{Core, GroupId, Job, Tick, after, plus};
use crate::alert::{Alert, fingerprint};
use crate::config::Integration;
use crate::data::Notification;
use crate::log::{Entry, Why, needs_update};
use crate::receivers::idempotency_key;
use crate::store::{Change, Owed};
use obs_model::TimestampNs;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// An attempt may take this long even where groups are told of more often.
const DEADLINE_MIN: Duration = Duration::from_secs(10);

/// Text of the alerts that a late notification tells of, bytes; escaped it is within what the store
/// takes as one value.
const OWED_BYTES_MAX: usize = 512 << 10;

/// The state that a notification tells of.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    firing: BTreeSet<u64>,
    resolved: BTreeSet<u64>,
    sequence: u64,
    /// Whether the receiver may have believed something else before.
    was_unsure: bool,
    /// Whether it tells late that alerts fired which have ended by now.
    is_late: bool,
}

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With what to remember for the next one.
    Delivered(BTreeMap<String, String>),
    /// It did not arrive, and may later.
    Unreached,
    /// It may have arrived.
    Unknown,
    /// It did not arrive and never will.
    Refused,
    /// Another instance does it, or did; when to look again.
    Elsewhere(TimestampNs),
}

/// What a flush found.
struct Found<'a> {
    id: &'a GroupId,
    key: &'a str,
    alerts: &'a [(u64, Arc<Alert>)],
    firing: BTreeSet<u64>,
    resolved: BTreeSet<u64>,
    now: TimestampNs,
}

impl Core {
    /// Starts what the receiver's integrations are to be told; returns how many deliveries that is.
    pub(super) fn jobs(
        &mut self,
        id: &GroupId,
        key: &str,
        alerts: &[(u64, Arc<Alert>)],
        now: TimestampNs,
        tick: &mut Tick,
    ) -> usize {
        let config = self.config.clone();
        let route = config.routes.get(id.0);
        let receiver = route.and_then(|r| config.receiver(&r.receiver));
        let (Some(r), Some(receiver), false) = (route, receiver, alerts.is_empty()) else {
            return 0;
        };
        let ids = |resolved: bool| -> BTreeSet<u64> {
            alerts.iter().filter(|(_, a)| a.is_resolved(now) == resolved).map(|x| x.0).collect()
        };
        let f = Found { id, key, alerts, firing: ids(false), resolved: ids(true), now };
        let mut started = 0;
        for i in &receiver.integrations {
            let integration = i.key(&receiver.name);
            let log_key = format!("{key}:{integration}");
            if self.busy.contains(&log_key) {
                continue;
            }
            let Some((notification, told)) =
                self.tell(&f, i, &log_key, &receiver.name, r.repeat_interval)
            else {
                continue;
            };
            let job = Job {
                integration,
                notification,
                deadline: plus(now, r.group_interval.max(DEADLINE_MIN)),
                known: self.log.get(&log_key).map_or(TimestampNs::MIN, |e| e.at),
                log_key,
                group: id.clone(),
                told,
                repeat: r.repeat_interval,
                generation: self.generation,
            };
            if job.notification.alerts.is_empty() {
                // It hears of firing alerts only, and none is left: that it is over is noted.
                tick.changes.extend(self.note(&job, BTreeMap::new(), now));
                continue;
            }
            if !job.told.is_late {
                let first = !self.log.contains_key(&job.log_key);
                let mut room = OWED_BYTES_MAX;
                let snapshot = job.notification.alerts.iter().filter(|_| first).take_while(|a| {
                    let fits = a.size() <= room;
                    room = room.saturating_sub(a.size());
                    fits
                });
                let owed = Owed {
                    at: now,
                    is_unsure: true,
                    alerts: snapshot.map(|a| Alert::clone(a)).collect(),
                };
                // What fired before still counts as untold.
                if !(first && job.told.firing.is_empty() && self.owed.contains_key(&job.log_key)) {
                    tick.changes.push(Change::owed(&job.log_key, Some(&owed)));
                    self.owed.insert(job.log_key.clone(), owed);
                }
            }
            self.busy.insert(job.log_key.clone());
            tick.jobs.push(job);
            started += 1;
        }
        started
    }

    /// Returns what an integration is to be told, if anything.
    fn tell(
        &self,
        f: &Found<'_>,
        i: &Integration,
        log_key: &str,
        receiver: &str,
        repeat: Duration,
    ) -> Option<(Notification, Told)> {
        let entry = self.log.get(log_key);
        let owed = self.owed.get(log_key);
        let why = needs_update(entry, &f.firing, &f.resolved, i.send_resolved, repeat, f.now);
        let make = |alerts: Vec<Arc<Alert>>, at: TimestampNs, told: Told| {
            let key = idempotency_key(log_key, &told.firing, &told.resolved, told.sequence);
            let notification = Notification {
                receiver: receiver.to_owned(),
                group_key: f.key.to_owned(),
                group_labels: f.id.1.clone(),
                alerts,
                external_url: self.external_url.clone(),
                now: at,
                idempotency_key: key,
                memory: entry.map(|e| e.memory.clone()).unwrap_or_default(),
            };
            (notification, told)
        };
        let late = owed.filter(|o| {
            why.is_none() && entry.is_none() && f.firing.is_empty() && !o.alerts.is_empty()
        });
        if let Some(o) = late {
            let alerts: Vec<Arc<Alert>> = o.alerts.iter().cloned().map(Arc::new).collect();
            // As it was then: of some of them it says already that they have ended.
            let ids = |resolved: bool| -> BTreeSet<u64> {
                let such = alerts.iter().filter(|a| a.is_resolved(o.at) == resolved);
                such.map(|a| fingerprint(&a.labels)).collect()
            };
            let told = Told {
                firing: ids(false),
                resolved: ids(true),
                sequence: 0,
                was_unsure: o.is_unsure,
                is_late: true,
            };
            return Some(make(alerts, o.at, told));
        }
        // Somebody who may believe something else is told how it is.
        let unsure = owed.is_some_and(|o| o.is_unsure) && entry.is_some();
        // Who said that they are on it need not be told again that it still fires.
        let is_owned = f.firing.iter().all(|x| self.acknowledged.contains_key(x));
        if !unsure && (why.is_none() || (why == Some(Why::Repeat) && is_owned)) {
            return None;
        }
        let shown = f.alerts.iter().filter(|(_, a)| i.send_resolved || !a.is_resolved(f.now));
        let told = Told {
            firing: f.firing.clone(),
            resolved: f.resolved.clone(),
            sequence: entry.map_or(0, |e| e.sequence + 1),
            was_unsure: owed.is_some_and(|o| o.is_unsure),
            is_late: false,
        };
        Some(make(shown.map(|x| x.1.clone()).collect(), f.now, told))
    }

    /// Notes that a receiver knows what a job tells.
    fn note(
        &mut self,
        job: &Job,
        memory: BTreeMap<String, String>,
        now: TimestampNs,
    ) -> Vec<Change> {
        let entry = Entry {
            at: after(self.log.get(&job.log_key).map(|e| e.at), now),
            firing: job.told.firing.clone(),
            resolved: job.told.resolved.clone(),
            expires_at: plus(now, job.repeat.saturating_mul(2)),
            sequence: job.told.sequence,
            memory,
            history: self.log.get(&job.log_key).map(Entry::history_of_next).unwrap_or_default(),
        };
        let mut changes = vec![Change::log(&job.log_key, Some(&entry))];
        self.log.insert(job.log_key.clone(), entry);
        changes.extend(self.settled(&job.log_key));
        changes
    }

    pub(super) fn settled(&mut self, log_key: &str) -> Option<Change> {
        self.owed.remove(log_key).map(|_| Change::owed(log_key, None))
    }

    /// Returns whether the receiver was told of the group after a job was made, as far as is known.
    pub(crate) fn was_told_since(&self, job: &Job) -> bool {
        self.log.get(&job.log_key).is_some_and(|e| e.at > job.known)
    }

    /// Notes how a delivery ended. Returns what is to be kept.
    pub(crate) fn finish(&mut self, job: &Job, ended: Ended, now: TimestampNs) -> Vec<Change> {
        let delivered = matches!(ended, Ended::Delivered(_));
        let again = match ended {
            Ended::Elsewhere(t) => Some(t),
            _ => None,
        };
        let mut changes = match ended {
            Ended::Delivered(memory) => self.note(job, memory, now),
            Ended::Refused => self.settled(&job.log_key).into_iter().collect(),
            Ended::Unknown => Vec::new(),
            // What another instance told after all that is known here is what the receiver knows.
            Ended::Elsewhere(_)
                if self
                    .log
                    .get(&job.log_key)
                    .is_some_and(|e| e.at > job.known || !job.told.was_unsure) =>
            {
                self.settled(&job.log_key).into_iter().collect()
            }
            Ended::Unreached | Ended::Elsewhere(_) => match self.owed.get_mut(&job.log_key) {
                Some(o) if o.alerts.is_empty() && !job.told.was_unsure => {
                    self.settled(&job.log_key).into_iter().collect()
                }
                Some(o) => {
                    o.is_unsure = job.told.was_unsure;
                    vec![Change::owed(&job.log_key, Some(o))]
                }
                None => Vec::new(),
            },
        };
        if job.generation != self.generation {
            return changes;
        }
        self.busy.remove(&job.log_key);
        if let Some(g) = self.groups.get_mut(&job.group) {
            g.open = g.open.saturating_sub(1);
            // After what came late comes that it has ended.
            g.failed |= !delivered || job.told.is_late;
            if delivered && job.told.is_late {
                g.next = now;
            }
            g.next = again.map_or(g.next, |t| t.min(g.next));
            if g.open == 0 {
                self.settle(&job.group, &mut changes);
            }
        }
        changes
    }

    /// Ends a flush: what everybody knows is resolved, and is so still, leaves the group; a group
    /// without alerts goes.
    pub(super) fn settle(&mut self, id: &GroupId, changes: &mut Vec<Change>) {
        let Some(g) = self.groups.get_mut(id) else { return };
        let told = std::mem::take(&mut g.resolved);
        if !g.failed {
            for (alert, version) in told {
                if self.alerts.get(&alert).is_some_and(|a| a.updated_at == version)
                    && g.alerts.remove(&alert)
                    && let Some(n) = self.memberships.get_mut(&alert)
                {
                    *n -= 1;
                    if *n == 0 {
                        self.memberships.remove(&alert);
                        self.alerts.remove(&alert);
                        if let Some(p) = &mut self.peers {
                            p.forget(alert);
                        }
                        changes.push(Change::alert(alert, None));
                        if self.acknowledged.remove(&alert).is_some() {
                            changes.push(Change::acknowledgement(alert, None, None));
                        }
                    }
                }
            }
        }
        if g.alerts.is_empty() {
            self.groups.remove(id);
        }
    }
}
