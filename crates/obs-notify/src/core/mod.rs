//! The state machine: alerts in, notifications out. It has no clock and no sockets.
//!
//! Every change that must survive a crash is returned as one to keep; what drives the machine makes
//! it durable before it acts on the rest.

mod deliver;
mod peers;

pub(crate) use deliver::Ended;

use crate::alert::{Alert, fingerprint};
use crate::config::{Config, Integration};
use crate::core::deliver::Told;
use crate::core::peers::Peers;
use crate::data::Notification;
use crate::inhibit::Inhibitor;
use crate::log::Entry;
use crate::silence::{Silence, SilenceError, SilenceWish, Silences};
use crate::store::{Acknowledgement, Change, Owed, Restored};
use obs_model::{Labels, Matcher, TimestampNs};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Alerts that are known at once, at most.
const ALERTS_MAX: usize = 100_000;

/// How long a receiver may be out of reach and still hear of alerts that came and went meanwhile.
const OWED_NS: i64 = 48 * 3_600_000_000_000;

/// A group by its route and labels.
type GroupId = (usize, Labels);

#[derive(Debug)]
struct Group {
    key: String,
    alerts: BTreeSet<u64>,
    next: TimestampNs,
    has_flushed: bool,
    /// Deliveries under way.
    open: usize,
    /// Whether one of this flush failed.
    failed: bool,
    /// What the flush told of as resolved, with the version that was told of.
    resolved: Vec<(u64, TimestampNs)>,
}

/// A notification to be delivered.
#[derive(Debug, Clone)]
pub struct Job {
    /// Receiver, kind and place of the integration: `ops/slack/0`.
    pub integration: String,
    pub notification: Notification,
    /// When to give up; the group's next flush tries again.
    pub deadline: TimestampNs,
    log_key: String,
    /// When the receiver was told last, as far as this instance knew.
    known: TimestampNs,
    group: GroupId,
    told: Told,
    repeat: Duration,
    /// Configurations are numbered: a job of an old one says nothing about groups of the new.
    generation: u64,
}

impl Job {
    /// The key of the notification log, and of the claim.
    pub(crate) fn log_key(&self) -> &str {
        &self.log_key
    }

    pub(crate) const fn known(&self) -> TimestampNs {
        self.known
    }
}

/// What a moment calls for.
#[derive(Debug, Default)]
pub struct Tick {
    pub(crate) changes: Vec<Change>,
    pub jobs: Vec<Job>,
}

/// Why an alert is silent, if it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlertStatus {
    pub silenced_by: Vec<String>,
    pub inhibited_by: Vec<String>,
    /// Time intervals of its routes.
    pub muted_by: Vec<String>,
}

impl AlertStatus {
    pub fn is_suppressed(&self) -> bool {
        !self.silenced_by.is_empty() || !self.inhibited_by.is_empty() || !self.muted_by.is_empty()
    }
}

/// An alert as the API lists it.
#[derive(Debug, Clone)]
pub struct Listed {
    pub id: u64,
    pub alert: Arc<Alert>,
    pub status: AlertStatus,
    pub receivers: Vec<String>,
    pub acknowledged: Option<Acknowledgement>,
}

/// How many alerts fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AlertCounts {
    pub active: usize,
    pub suppressed: usize,
    /// Those whose receivers tell nobody.
    pub unrouted: usize,
}

/// A group as the API lists it.
#[derive(Debug, Clone)]
pub struct GroupView {
    pub labels: Labels,
    pub receiver: String,
    pub key: String,
    pub route: usize,
    pub alerts: Vec<Listed>,
    /// When its receivers are looked at next.
    pub next: TimestampNs,
    /// When its receivers were told last.
    pub notified: Option<TimestampNs>,
}

/// Alerts, groups, silences and the log, under one configuration.
#[derive(Debug)]
pub struct Core {
    config: Arc<Config>,
    external_url: String,
    alerts: HashMap<u64, Arc<Alert>>,
    /// Groups that hold an alert.
    memberships: HashMap<u64, u32>,
    groups: HashMap<GroupId, Group>,
    inhibitor: Inhibitor,
    silences: Silences,
    log: HashMap<String, Entry>,
    acknowledged: HashMap<u64, Acknowledgement>,
    /// What receivers were to hear and perhaps did not, by log key.
    owed: HashMap<String, Owed>,
    /// Alerts that the disk does not have as they are.
    unkept: BTreeSet<u64>,
    /// (group key, integration) that a delivery is under way for.
    busy: BTreeSet<String>,
    generation: u64,
    collected_at: TimestampNs,
    /// What is known of other instances, if there are any.
    peers: Option<Peers>,
}

fn plus(t: TimestampNs, d: Duration) -> TimestampNs {
    t.add_nanos(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Returns now, or the moment after what was said before: another instance's clock may be ahead, and
/// what is said later must hold.
fn after(before: Option<TimestampNs>, now: TimestampNs) -> TimestampNs {
    before.map_or(now, |t| now.max(t.add_nanos(1)))
}

/// Writes labels as Prometheus' `LabelSet` prints.
fn set_text(labels: &Labels) -> String {
    let one = |(n, v): (&str, &str)| format!("{n}={v:?}");
    format!("{{{}}}", labels.iter().map(one).collect::<Vec<_>>().join(", "))
}

impl Core {
    /// Takes up where a process before this one ended.
    pub(crate) fn restore(
        config: Arc<Config>,
        external_url: &str,
        restored: Restored,
        now: TimestampNs,
    ) -> Self {
        let mut core = Self {
            inhibitor: Inhibitor::new(&config.inhibit),
            external_url: external_url.to_owned(),
            alerts: HashMap::new(),
            memberships: HashMap::new(),
            groups: HashMap::new(),
            silences: Silences::default(),
            log: restored.log,
            acknowledged: restored.acknowledged,
            owed: restored.owed,
            unkept: BTreeSet::new(),
            busy: BTreeSet::new(),
            generation: 0,
            collected_at: now,
            peers: None,
            config,
        };
        for s in restored.silences {
            let id = s.id.clone();
            if let Err(e) = core.silences.insert(s) {
                tracing::error!(silence = id, error = %e, "a stored silence is left out");
            }
        }
        for mut a in restored.alerts {
            // Who sends it was not heard while nobody listened: it has until then to say so again.
            if a.ends_at > a.updated_at {
                a.ends_at = a.ends_at.max(plus(now, core.config.resolve_timeout));
            }
            core.alerts.insert(fingerprint(&a.labels), Arc::new(a));
        }
        core.regroup(now);
        core
    }

    /// Puts another configuration in force: groups are made anew, what was told is known still.
    pub fn reconfigure(&mut self, config: Arc<Config>, now: TimestampNs) {
        self.generation += 1;
        self.inhibitor = Inhibitor::new(&config.inhibit);
        self.config = config;
        self.groups.clear();
        self.memberships.clear();
        self.busy.clear();
        self.regroup(now);
    }

    fn regroup(&mut self, now: TimestampNs) {
        let all: Vec<Arc<Alert>> = self.alerts.values().cloned().collect();
        for a in all {
            let id = fingerprint(&a.labels);
            if !a.is_resolved(now) {
                self.inhibitor.add(id, &a.labels);
            }
            self.assign(id, &a, now, true);
        }
    }

    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Takes alerts; those beyond the limit are left out and counted. Returns what is to be kept,
    /// of which alerts, and how many were left out.
    pub(crate) fn put(
        &mut self,
        alerts: Vec<Alert>,
        now: TimestampNs,
    ) -> (Vec<Change>, Vec<u64>, usize) {
        let (mut changes, mut changed, mut refused) = (Vec::new(), Vec::new(), 0);
        for a in alerts {
            let id = fingerprint(&a.labels);
            let old = self.alerts.get(&id).cloned();
            if old.is_none() && self.alerts.len() >= ALERTS_MAX {
                refused += 1;
                continue;
            }
            let new = match &old {
                Some(o) => Alert::merge(o, a),
                None => a,
            };
            let is_unkept = self.unkept.remove(&id);
            if is_unkept || old.as_ref().is_none_or(|o| new.says_more_than(o, now)) {
                changes.push(Change::alert(id, Some(&new)));
                changed.push(id);
                self.told_peers(id, &new);
            } else if self.must_tell_peers(id, &new, now) {
                changes.push(Change::alert(id, Some(&new)).shared_only());
                self.told_peers(id, &new);
            }
            self.take(id, new, now, false);
        }
        (changes, changed, refused)
    }

    /// Takes an alert as it is from now on.
    fn take(&mut self, id: u64, new: Alert, now: TimestampNs, anew: bool) {
        let new = Arc::new(new);
        self.alerts.insert(id, new.clone());
        if new.is_resolved(now) {
            self.inhibitor.remove(id, &new.labels);
        } else {
            self.inhibitor.add(id, &new.labels);
        }
        self.assign(id, &new, now, anew);
    }

    /// Hears that these alerts could not be kept: they are new when they come again.
    pub(crate) fn not_kept(&mut self, ids: Vec<u64>) {
        self.unkept.extend(ids);
    }

    /// Puts an alert into the groups of its routes. Groups that are made anew, after a start or
    /// with another configuration, go on where they were.
    fn assign(&mut self, id: u64, a: &Alert, now: TimestampNs, anew: bool) {
        let config = self.config.clone();
        for route in config.routes.find(&a.labels) {
            let labels = config.routes.group_labels(route, &a.labels);
            let Some(r) = config.routes.get(route) else { continue };
            let group_id = (route, labels);
            if !self.groups.contains_key(&group_id) {
                let key = format!("{}:{}", r.key, set_text(&group_id.1));
                let told = if anew { self.last_told(route, &key) } else { None };
                let group = Group {
                    key,
                    alerts: BTreeSet::new(),
                    next: told
                        .map_or(plus(now, r.group_wait), |t| plus(t, r.group_interval).max(now)),
                    has_flushed: told.is_some(),
                    open: 0,
                    failed: false,
                    resolved: Vec::new(),
                };
                self.groups.insert(group_id.clone(), group);
            }
            let Some(g) = self.groups.get_mut(&group_id) else { continue };
            if g.alerts.insert(id) {
                *self.memberships.entry(id).or_default() += 1;
            }
            // An alert that has waited long enough elsewhere does not wait again.
            if !g.has_flushed && plus(a.starts_at, r.group_wait) < now {
                g.next = g.next.min(now);
            }
        }
    }

    fn log_keys(&self, route: usize, key: &str) -> Vec<String> {
        let Some(r) = self.config.routes.get(route) else { return Vec::new() };
        let Some(receiver) = self.config.receiver(&r.receiver) else { return Vec::new() };
        let of = |i: &Integration| format!("{key}:{}", i.key(&receiver.name));
        receiver.integrations.iter().map(of).collect()
    }

    fn last_told(&self, route: usize, key: &str) -> Option<TimestampNs> {
        self.log_keys(route, key).iter().filter_map(|k| self.log.get(k)).map(|e| e.at).max()
    }

    /// Returns when something is to be done next.
    pub fn next(&self) -> Option<TimestampNs> {
        self.groups.values().map(|g| g.next).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: TimestampNs) -> Tick {
        let mut tick = Tick::default();
        let due: Vec<GroupId> =
            self.groups.iter().filter(|(_, g)| g.next <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.flush(&id, now, &mut tick);
        }
        if now.nanos() - self.collected_at.nanos() > 30_000_000_000 {
            self.collect(now, &mut tick);
        }
        tick
    }

    /// Forgets silences and log entries that have had their time.
    fn collect(&mut self, now: TimestampNs, tick: &mut Tick) {
        self.collected_at = now;
        for (id, s) in self.silences.collect(now) {
            tick.changes.push(Change::silence(&id, s.as_ref()));
        }
        let old: Vec<String> =
            self.log.iter().filter(|(_, e)| e.expires_at < now).map(|(k, _)| k.clone()).collect();
        for key in old {
            self.log.remove(&key);
            tick.changes.push(Change::log(&key, None));
        }
        let old: Vec<String> = self
            .owed
            .iter()
            .filter(|(_, o)| o.at.add_nanos(OWED_NS) < now)
            .map(|(k, _)| k.clone())
            .collect();
        for key in old {
            self.owed.remove(&key);
            tick.changes.push(Change::owed(&key, None));
        }
        let gone: Vec<u64> =
            self.acknowledged.keys().filter(|id| !self.alerts.contains_key(id)).copied().collect();
        for id in gone {
            self.acknowledged.remove(&id);
            tick.changes.push(Change::acknowledgement(id, None, None));
        }
    }

    /// Returns the intervals that keep a route silent now: those that mute it, or, when none of
    /// those in which it is active holds, these.
    fn silent_by(&self, route: usize, now: TimestampNs) -> Vec<String> {
        let Some(r) = self.config.routes.get(route) else { return Vec::new() };
        let holds = |name: &String| {
            self.config.intervals.get(name).is_some_and(|list| list.iter().any(|i| i.contains(now)))
        };
        let mut out: Vec<String> = r.mute.iter().filter(|n| holds(n)).cloned().collect();
        if !r.active.is_empty() && !r.active.iter().any(holds) {
            out.extend(r.active.iter().cloned());
        }
        out
    }

    fn inhibited_by(&self, labels: &Labels, now: TimestampNs) -> Option<u64> {
        self.inhibitor.inhibitor(labels, now, &|id| self.alerts.get(&id).map(Arc::as_ref))
    }

    fn flush(&mut self, id: &GroupId, now: TimestampNs, tick: &mut Tick) {
        let Some(interval) = self.config.routes.get(id.0).map(|r| r.group_interval) else { return };
        let Some(g) = self.groups.get_mut(id) else { return };
        g.next = plus(now, interval);
        g.has_flushed = true;
        let (key, under_way) = (g.key.clone(), g.open > 0);
        let mut alerts: Vec<(u64, Arc<Alert>)> =
            g.alerts.iter().filter_map(|i| Some((*i, self.alerts.get(i)?.clone()))).collect();
        let order = |a: &Alert| {
            let of = |n: &str| a.labels.get(n).to_owned();
            (of("job"), of("instance"), a.labels.clone())
        };
        alerts.sort_by_cached_key(|(_, a)| order(a));
        let resolved: Vec<(u64, TimestampNs)> = alerts
            .iter()
            .filter(|(_, a)| a.is_resolved(now))
            .map(|(i, a)| (*i, a.updated_at))
            .collect();
        for (i, a) in alerts.iter().filter(|(_, a)| a.is_resolved(now)) {
            // One that nobody says any more has ended: that must hold after a crash too.
            if a.ends_at > a.updated_at {
                let mut ended = Alert::clone(a);
                ended.updated_at = ended.ends_at;
                tick.changes.push(Change::alert(*i, Some(&ended)));
            }
            self.inhibitor.remove(*i, &a.labels);
        }
        if under_way {
            // Whoever is slow is told of the change at the next flush.
            if let Some(g) = self.groups.get_mut(id) {
                g.failed = true;
            }
        } else if let Some(g) = self.groups.get_mut(id) {
            g.resolved = resolved;
            g.failed = false;
        }
        if self.silent_by(id.0, now).is_empty() {
            alerts.retain(|(_, a)| {
                self.inhibited_by(&a.labels, now).is_none()
                    && self.silences.muting(&a.labels, now).is_empty()
            });
        } else {
            alerts.clear();
        }
        let started = self.jobs(id, &key, &alerts, now, tick);
        if let Some(g) = self.groups.get_mut(id) {
            g.open += started;
            if g.open == 0 {
                self.settle(id, &mut tick.changes);
            }
        }
    }

    // Silences.

    pub(crate) fn set_silence(
        &mut self,
        w: SilenceWish,
        now: TimestampNs,
    ) -> Result<(String, Vec<Change>), SilenceError> {
        let (id, changed) = self.silences.set(w, now, &|| uuid::Uuid::new_v4().to_string())?;
        Ok((id, changed.iter().map(|(id, s)| Change::silence(id, s.as_ref())).collect()))
    }

    pub(crate) fn expire_silence(
        &mut self,
        id: &str,
        now: TimestampNs,
    ) -> Result<Vec<Change>, SilenceError> {
        let changed = self.silences.expire(id, now)?;
        Ok(changed.iter().map(|(id, s)| Change::silence(id, s.as_ref())).collect())
    }

    /// Undoes a change of a silence that could not be kept.
    pub(crate) fn take_back(&mut self, id: &str, before: Option<Silence>) {
        self.silences.take_back(id, before);
    }

    pub fn silence(&self, id: &str) -> Option<&Silence> {
        self.silences.get(id)
    }

    /// Returns the silences with their matchers, ready to be held against labels.
    pub fn silences_compiled(&self) -> impl Iterator<Item = (&Silence, &[Matcher])> {
        self.silences.compiled()
    }

    pub fn silences(&self) -> impl Iterator<Item = &Silence> {
        self.silences.iter()
    }

    // Acknowledgements.

    pub(crate) fn acknowledgement(&self, id: u64) -> Option<&Acknowledgement> {
        self.acknowledged.get(&id)
    }

    pub(crate) fn acknowledge(
        &mut self,
        id: u64,
        a: Option<Acknowledgement>,
        now: TimestampNs,
    ) -> Option<Vec<Change>> {
        if !self.alerts.contains_key(&id) {
            return None;
        }
        let now = after(self.acknowledged.get(&id).map(|a| a.at), now);
        let a = a.map(|a| Acknowledgement { at: now, ..a });
        let change = Change::acknowledgement(id, a.as_ref(), Some(now));
        match a {
            Some(a) => self.acknowledged.insert(id, a),
            None => self.acknowledged.remove(&id),
        };
        Some(vec![change])
    }

    // Views.

    pub fn status(&self, labels: &Labels, routes: &[usize], now: TimestampNs) -> AlertStatus {
        let mut muted_by = Vec::new();
        // Silent by time is what no route tells of.
        for r in routes {
            let by = self.silent_by(*r, now);
            if by.is_empty() {
                muted_by.clear();
                break;
            }
            muted_by.extend(by);
        }
        muted_by.sort();
        muted_by.dedup();
        AlertStatus {
            silenced_by: self.silences.muting(labels, now),
            inhibited_by: self
                .inhibited_by(labels, now)
                .map(|i| format!("{i:016x}"))
                .into_iter()
                .collect(),
            muted_by,
        }
    }

    fn listed(&self, id: u64, a: &Arc<Alert>, now: TimestampNs) -> Listed {
        let routes = self.config.routes.find(&a.labels);
        let mut receivers: Vec<String> = Vec::new();
        for r in routes.iter().filter_map(|r| self.config.routes.get(*r)) {
            if !receivers.contains(&r.receiver) {
                receivers.push(r.receiver.clone());
            }
        }
        Listed {
            id,
            alert: a.clone(),
            status: self.status(&a.labels, &routes, now),
            receivers,
            acknowledged: self.acknowledged.get(&id).cloned(),
        }
    }

    /// Returns the alerts that fire, in no order.
    pub fn firing(&self, now: TimestampNs) -> Vec<Arc<Alert>> {
        self.alerts.values().filter(|a| !a.is_resolved(now)).cloned().collect()
    }

    /// Returns the alerts that fire and match, by fingerprint.
    pub fn list(&self, matchers: &[Matcher], now: TimestampNs) -> Vec<Listed> {
        let mut ids: Vec<(&u64, &Arc<Alert>)> = self
            .alerts
            .iter()
            .filter(|(_, a)| !a.is_resolved(now) && Matcher::all_match(matchers, &a.labels))
            .collect();
        ids.sort_by_key(|x| *x.0);
        ids.into_iter().map(|(id, a)| self.listed(*id, a, now)).collect()
    }

    /// Returns the groups and their firing alerts, by labels and receiver.
    pub fn groups(&self, matchers: &[Matcher], now: TimestampNs) -> Vec<GroupView> {
        let mut out = Vec::new();
        for ((route, labels), g) in &self.groups {
            let Some(r) = self.config.routes.get(*route) else { continue };
            let alerts: Vec<Listed> = g
                .alerts
                .iter()
                .filter_map(|id| Some((id, self.alerts.get(id)?)))
                .filter(|(_, a)| !a.is_resolved(now) && Matcher::all_match(matchers, &a.labels))
                .map(|(id, a)| self.listed(*id, a, now))
                .collect();
            if alerts.is_empty() {
                continue;
            }
            out.push(GroupView {
                labels: labels.clone(),
                receiver: r.receiver.clone(),
                key: g.key.clone(),
                route: *route,
                alerts,
                next: g.next,
                notified: self.last_told(*route, &g.key),
            });
        }
        out.sort_by(|a, b| (&a.labels, &a.receiver, &a.key).cmp(&(&b.labels, &b.receiver, &b.key)));
        out
    }

    /// Counts the alerts that fire.
    pub fn counts(&self, now: TimestampNs) -> AlertCounts {
        let mut out = AlertCounts::default();
        // Receivers that tell nobody.
        let empty = |r: &usize| {
            let receiver =
                self.config.routes.get(*r).and_then(|r| self.config.receiver(&r.receiver));
            receiver.is_none_or(|r| r.integrations.is_empty())
        };
        for a in self.alerts.values().filter(|a| !a.is_resolved(now)) {
            let is_silent = !self.silences.muting(&a.labels, now).is_empty()
                || self.inhibited_by(&a.labels, now).is_some();
            *(if is_silent { &mut out.suppressed } else { &mut out.active }) += 1;
            // A watchdog that nobody listens to is no page that nobody gets.
            let untold = self.config.routes.find(&a.labels).iter().all(empty);
            out.unrouted += usize::from(untold && a.labels.get("severity") != "none");
        }
        out
    }
}

#[cfg(test)]
mod tests;
