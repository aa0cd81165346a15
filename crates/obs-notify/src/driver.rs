//! Drives the state machine: a task that ticks it, one that delivers per notification, and the
//! handles by which alerts and silences come in.
//!
//! Where instances share a store, a delivery is claimed there first: of several that are to tell a
//! receiver the same thing one does. While the store is out of reach each tells by itself, since a
//! page too many is better than one too few.

use crate::alert::{AlertError, NewAlert};
use crate::config::Config;
use crate::core::{Core, Ended, Job, Tick};
use crate::guard::Outbound;
use crate::receivers::{Outcome, Sender};
use crate::silence::{SilenceError, SilenceWish};
use crate::store::{Acknowledgement, Change, LOG, Restored};
use crate::together::{Members, Together};
use obs_model::{Claim, KeepState, ShareState, Shared, StateChange, StateError, TimestampNs};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Deliveries of one integration at once: a slow receiver must not take the places of others.
const DELIVERIES_EACH: usize = 8;
/// First and longest pause between attempts.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a start waits to hear what other instances said.
const FIRST_NEWS: Duration = Duration::from_secs(5);
/// When to look again at a delivery that another instance has claimed.
const LOOK_AGAIN_NS: i64 = 5_000_000_000;

/// What the dispatcher runs in.
#[derive(Clone)]
pub struct Environment {
    pub state: Arc<dyn KeepState>,
    /// What this instance shares with others.
    pub shared: Option<Arc<dyn ShareState>>,
    /// Wall clock.
    pub clock: Arc<dyn Fn() -> TimestampNs + Send + Sync>,
    /// Where links in messages lead.
    pub external_url: String,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("external_url", &self.external_url)
            .finish_non_exhaustive()
    }
}

/// Why alerts were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// Some are invalid; the others were taken.
    #[error("{}", join(.0))]
    Invalid(Vec<AlertError>),
    #[error("{0} alerts were not taken: too many are known; resolve or drop some")]
    TooMany(usize),
    #[error(transparent)]
    State(#[from] StateError),
}

fn join(errors: &[AlertError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What is counted, by integration kind where it says so.
#[derive(Debug, Default)]
pub struct Counts {
    pub received_firing: AtomicU64,
    pub received_resolved: AtomicU64,
    pub invalid: AtomicU64,
    /// Kind → (notifications, failed ones, attempts, failed attempts).
    pub sent: Mutex<BTreeMap<&'static str, [u64; 4]>>,
    /// Notifications that another instance sent.
    pub left_to_others: AtomicU64,
}

impl Counts {
    fn add(&self, kind: &'static str, index: usize) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = sent.entry(kind).or_default().get_mut(index) {
            *n += 1;
        }
    }
}

/// A notification and what became of it.
#[derive(Debug, Clone)]
pub struct Sent {
    pub at: TimestampNs,
    /// Receiver, kind and place: `ops/slack/0`.
    pub integration: String,
    pub group_key: String,
    /// `firing` or `resolved`.
    pub status: &'static str,
    pub alerts: usize,
    /// Why it was not taken, if it was not.
    pub error: Option<String>,
}

/// Notifications that are remembered for the page.
const RECENT_MAX: usize = 200;

/// An integration that can be sent to.
struct Target {
    sender: Sender,
    kind: &'static str,
    places: Arc<Semaphore>,
}

struct Inner {
    core: Mutex<Core>,
    targets: Mutex<HashMap<String, Arc<Target>>>,
    environment: Environment,
    wake: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
    counts: Counts,
    /// Changes that are on their way to the disk.
    open_changes: AtomicU64,
    /// The error of the last attempt of each integration that failed last, for the page.
    troubles: Mutex<BTreeMap<String, (TimestampNs, String)>>,
    recent: Mutex<VecDeque<Sent>>,
    together: Option<Together>,
}

/// The running Alertmanager; cheap to clone.
#[derive(Clone)]
pub struct Dispatcher(Arc<Inner>);

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").finish_non_exhaustive()
    }
}

fn targets(
    config: &Config,
    outbound: &Arc<Outbound>,
) -> Result<HashMap<String, Arc<Target>>, String> {
    let mut out = HashMap::new();
    for r in &config.receivers {
        for i in &r.integrations {
            let sender =
                Sender::new(i.clone(), config.templates.clone(), outbound.clone(), &config.folder)
                    .map_err(|e| format!("receiver {:?}: {e}", r.name))?;
            let key = i.key(&r.name);
            let places = Arc::new(Semaphore::new(DELIVERIES_EACH));
            out.insert(key, Arc::new(Target { sender, kind: i.kind.name(), places }));
        }
    }
    Ok(out)
}

fn states(changes: Vec<Change>) -> Vec<StateChange> {
    changes.into_iter().filter(|c| c.is_kept).map(|c| c.state).collect()
}

impl Dispatcher {
    /// Takes up where the process before ended; [`Self::run`] makes it tick.
    ///
    /// # Errors
    /// When a receiver's settings cannot be used.
    pub fn new(
        config: Config,
        outbound: Outbound,
        environment: Environment,
    ) -> Result<Self, String> {
        let targets = targets(&config, &Arc::new(outbound))?;
        let restored = Restored::read(&*environment.state);
        let now = (environment.clock)();
        let mut core = Core::restore(Arc::new(config), &environment.external_url, restored, now);
        let together = environment.shared.clone().map(Together::new);
        if together.is_some() {
            core.share();
        }
        Ok(Self(Arc::new(Inner {
            core: Mutex::new(core),
            targets: Mutex::new(targets),
            environment,
            wake: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            counts: Counts::default(),
            open_changes: AtomicU64::new(0),
            troubles: Mutex::default(),
            recent: Mutex::default(),
            together,
        })))
    }

    /// Puts another configuration in force.
    ///
    /// # Errors
    /// When a receiver's settings cannot be used; the old configuration stays.
    pub fn reconfigure(&self, config: Config, outbound: Outbound) -> Result<(), String> {
        // Templates and addresses may have changed even if the text has not.
        let fresh = targets(&config, &Arc::new(outbound))?;
        let now = self.now();
        let mut core = self.core();
        *self.0.targets.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        if core.config().text == config.text {
            return Ok(());
        }
        core.reconfigure(Arc::new(config), now);
        drop(core);
        self.0.wake.notify_one();
        Ok(())
    }

    /// Returns the state machine, locked: hold it shortly.
    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.0.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> TimestampNs {
        (self.0.environment.clock)()
    }

    pub fn external_url(&self) -> &str {
        &self.0.environment.external_url
    }

    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Returns integrations whose last delivery failed: when, and why.
    pub fn troubles(&self) -> BTreeMap<String, (TimestampNs, String)> {
        self.0.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the notifications since the start, the newest first; a few hundred at most.
    pub fn recent(&self) -> Vec<Sent> {
        let recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().rev().cloned().collect()
    }

    fn remember(&self, job: &Job, error: Option<String>) {
        let n = &job.notification;
        let sent = Sent {
            at: self.now(),
            integration: job.integration.clone(),
            group_key: n.group_key.clone(),
            status: n.status(),
            alerts: n.alerts.len(),
            error,
        };
        let mut recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(sent);
    }

    /// Takes alerts; when it returns, they are durable.
    ///
    /// # Errors
    /// When some are invalid (the others were taken), there are too many, or the disk fails.
    pub async fn put(&self, alerts: Vec<NewAlert>) -> Result<(), PutError> {
        let now = self.now();
        let (mut valid, mut bad) = (Vec::with_capacity(alerts.len()), Vec::new());
        let (kept, changed, refused) = {
            let mut core = self.core();
            let timeout = core.config().resolve_timeout;
            let timeout_ns = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
            for a in alerts {
                match a.admit(now, timeout_ns) {
                    Ok(a) => {
                        self.count_received(a.is_resolved(now));
                        valid.push(a);
                    }
                    Err(e) => bad.push(e),
                }
            }
            let (changes, changed, refused) = core.put(valid, now);
            (self.keep(&core, changes), changed, refused)
        };
        self.0.counts.invalid.fetch_add(bad.len() as u64, Ordering::Relaxed);
        if let Err(e) = kept.await {
            // What comes again must not be taken for known.
            self.core().not_kept(changed);
            return Err(e.into());
        }
        self.0.wake.notify_one();
        if refused > 0 {
            return Err(PutError::TooMany(refused));
        }
        if bad.is_empty() { Ok(()) } else { Err(PutError::Invalid(bad)) }
    }

    fn count_received(&self, is_resolved: bool) {
        let c = &self.0.counts;
        let counter = if is_resolved { &c.received_resolved } else { &c.received_firing };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Hands changes to the store, in the order in which the state machine made them: that is why
    /// it must be locked still. Resolves when they are durable, and all changes before them.
    fn keep(
        &self,
        _locked: &MutexGuard<'_, Core>,
        changes: Vec<Change>,
    ) -> impl Future<Output = Result<(), StateError>> + '_ {
        if let Some(t) = &self.0.together {
            t.say(changes.iter().filter_map(Change::to_shared));
        }
        let open = &self.0.open_changes;
        let states = states(changes);
        let nothing = states.is_empty() && open.load(Ordering::Acquire) == 0;
        let future = (!nothing).then(|| {
            open.fetch_add(1, Ordering::AcqRel);
            self.0.environment.state.put(states)
        });
        async move {
            let Some(future) = future else { return Ok(()) };
            let done = future.await;
            open.fetch_sub(1, Ordering::AcqRel);
            done
        }
    }

    /// Makes or changes a silence; returns its id once it is durable.
    ///
    /// # Errors
    /// When it is refused, or the disk fails.
    pub async fn set_silence(
        &self,
        w: SilenceWish,
    ) -> Result<Result<String, SilenceError>, StateError> {
        let now = self.now();
        let (kept, id, before) = {
            let mut core = self.core();
            let before = core.silence(&w.id).cloned();
            match core.set_silence(w, now) {
                Ok((id, changes)) => (self.keep(&core, changes), id, before),
                Err(e) => return Ok(Err(e)),
            }
        };
        if let Err(e) = kept.await {
            self.core().take_back(&id, before);
            return Err(e);
        }
        Ok(Ok(id))
    }

    /// Ends a silence.
    ///
    /// # Errors
    /// See [`Self::set_silence`].
    pub async fn expire_silence(&self, id: &str) -> Result<Result<(), SilenceError>, StateError> {
        let now = self.now();
        let (kept, before) = {
            let mut core = self.core();
            let before = core.silence(id).cloned();
            match core.expire_silence(id, now) {
                Ok(changes) => (self.keep(&core, changes), before),
                Err(e) => return Ok(Err(e)),
            }
        };
        if let Err(e) = kept.await {
            self.core().take_back(id, before);
            return Err(e);
        }
        Ok(Ok(()))
    }

    /// Notes who is on an alert, or nobody; `false` when there is no such alert.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn acknowledge(
        &self,
        id: u64,
        who: Option<(String, String)>,
    ) -> Result<bool, StateError> {
        let at = self.now();
        let a = who.map(|(owner, note)| Acknowledgement { owner, note, at });
        let (kept, before) = {
            let mut core = self.core();
            let before = core.acknowledgement(id).cloned();
            match core.acknowledge(id, a, at) {
                Some(changes) => (self.keep(&core, changes), before),
                None => return Ok(false),
            }
        };
        if let Err(e) = kept.await {
            let _ = self.core().acknowledge(id, before, at);
            return Err(e);
        }
        Ok(true)
    }

    /// Sends a notification to all integrations of a receiver now, outside of groups and the log.
    /// Returns what came of each; `None` when there is no such receiver.
    pub async fn send_test(
        &self,
        receiver: &str,
        alert: NewAlert,
    ) -> Option<Vec<(String, Outcome)>> {
        let now = self.now();
        let alert = Arc::new(alert.admit(now, 300_000_000_000).ok()?);
        let config = self.core().config().clone();
        let integrations = &config.receiver(receiver)?.integrations;
        let mut out = Vec::new();
        for key in integrations.iter().map(|i| i.key(receiver)) {
            let target = self.target(&key)?;
            let n = crate::Notification {
                receiver: receiver.to_owned(),
                group_key: format!("{{}}/test:{{alertname={:?}}}", alert.name()),
                group_labels: alert.labels.filter(|n| n == "alertname"),
                alerts: vec![alert.clone()],
                external_url: self.0.environment.external_url.clone(),
                now,
                idempotency_key: uuid::Uuid::new_v4().simple().to_string(),
                memory: BTreeMap::new(),
            };
            let outcome = target.sender.send(&n).await;
            out.push((key, outcome));
        }
        Some(out)
    }

    fn target(&self, key: &str) -> Option<Arc<Target>> {
        self.0.targets.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Ticks until it is stopped.
    pub async fn run(self) {
        if let Some(t) = &self.0.together {
            // What others have told already is not told again.
            let _ = tokio::time::timeout(FIRST_NEWS, t.exchange(&self)).await;
            let this = self.clone();
            self.0.tasks.spawn(async move { this.listen().await });
        }
        loop {
            let now = self.now();
            let (kept, jobs) = {
                let mut core = self.core();
                let Tick { changes, jobs } = core.tick(now);
                (self.keep(&core, changes), jobs)
            };
            self.start(kept.await, jobs);
            let next = self.core().next();
            let wait = next.map_or(1_000_000_000, |t| t.nanos().saturating_sub(self.now().nanos()));
            // The wall clock may jump: it is looked at every second.
            let wait = Duration::from_nanos(wait.clamp(10_000_000, 1_000_000_000).unsigned_abs());
            tokio::select! {
                () = self.0.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.0.wake.notified() => {}
            }
        }
    }

    /// Starts the deliveries of a tick once what it changed is durable.
    fn start(&self, kept: Result<(), StateError>, jobs: Vec<Job>) {
        if let Err(e) = kept {
            // Pages go out all the same: one too many is better than one too few.
            tracing::error!(error = %e, "the state of alerts could not be kept");
        }
        for job in jobs {
            let this = self.clone();
            self.0.tasks.spawn(async move { this.deliver(job).await });
        }
    }

    /// Delivers one notification, with pauses between attempts, until it is taken, refused, or the
    /// group's next flush takes over.
    async fn deliver(&self, job: Job) {
        let Some(target) = self.target(&job.integration) else {
            let now = self.now();
            let _ = self.core().finish(&job, Ended::Refused, now);
            return;
        };
        let elsewhere = self.claimed_elsewhere(&job).await;
        let is_ours = elsewhere.is_none();
        let mut error = None;
        let (ended, said) = if let Some(x) = elsewhere {
            self.0.counts.left_to_others.fetch_add(1, Ordering::Relaxed);
            x
        } else {
            let (ended, why) = self.send(&job, &target).await;
            error = why;
            (ended, None)
        };
        let now = self.now();
        let kept = {
            let mut core = self.core();
            let mut changes = core.merge(said.as_slice(), now);
            changes.extend(core.finish(&job, ended, now));
            self.keep(&core, changes)
        };
        if let Err(e) = kept.await {
            tracing::error!(error = %e, "a sent notification could not be noted; it may be sent twice");
        }
        if is_ours {
            // What is shown as sent is not sent again after a crash.
            self.remember(&job, error);
        }
        if let Some(t) = self.0.together.as_ref().filter(|_| is_ours) {
            // In the transaction that says what was told, or after it.
            t.release(job.log_key());
        }
        self.0.wake.notify_one();
    }

    /// Sends a notification and counts it; returns what came of it, with the last error.
    async fn send(&self, job: &Job, target: &Target) -> (Ended, Option<String>) {
        self.0.counts.add(target.kind, 0);
        let (ended, error) = self.attempts(job, target).await;
        if matches!(ended, Ended::Delivered(_)) {
            self.0.troubles.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.integration);
        } else {
            self.0.counts.add(target.kind, 1);
        }
        (ended, error)
    }

    /// Claims a delivery; returns how it ended here if another instance does it or did, and what
    /// that one said.
    async fn claimed_elsewhere(&self, job: &Job) -> Option<(Ended, Option<Shared>)> {
        let together = self.0.together.as_ref()?;
        let claim = tokio::select! {
            c = together.claim(LOG, job.log_key(), job.known()) => c,
            () = self.0.stop.cancelled() => return Some((Ended::Unreached, None)),
        };
        let Some(claim) = claim else {
            // Alone by now, but others may have been heard while this waited.
            let told = self.core().was_told_since(job);
            return told.then(|| (Ended::Elsewhere(self.now()), None));
        };
        match claim {
            Claim::Ours => None,
            Claim::Theirs => Some((Ended::Elsewhere(self.now().add_nanos(LOOK_AGAIN_NS)), None)),
            Claim::Done(said) => Some((Ended::Elsewhere(self.now()), Some(said))),
        }
    }

    /// Exchanges news with other instances until it is stopped.
    async fn listen(&self) {
        let Some(t) = &self.0.together else { return };
        while !self.0.stop.is_cancelled() {
            t.exchange(self).await;
            tokio::select! {
                () = self.0.stop.cancelled() => {}
                () = t.pause() => {}
            }
        }
    }

    /// Takes what others said.
    pub(crate) async fn hear(&self, values: &[Shared], abandoned: &[String]) {
        let now = self.now();
        let kept = {
            let mut core = self.core();
            let mut changes = core.merge(values, now);
            changes.extend(abandoned.iter().map(|key| core.adopt(key, now)));
            self.keep(&core, changes)
        };
        if let Err(e) = kept.await {
            tracing::error!(error = %e, "what another instance said could not be kept");
        }
        self.0.wake.notify_one();
    }

    /// Others cannot be heard.
    pub(crate) fn hear_nothing(&self) {
        let now = self.now();
        self.core().wait_for_peers(now);
    }

    /// Returns the instances that share a store, and whether it is within reach; `None` without
    /// such a store.
    pub fn together(&self) -> Option<Members> {
        self.0.together.as_ref().map(Together::members)
    }

    /// Tries until the receiver took or refused it, or there is no time left; tells why it was not
    /// taken.
    async fn attempts(&self, job: &Job, target: &Target) -> (Ended, Option<String>) {
        let mut pause = PAUSE_FIRST;
        let mut may_have_arrived = false;
        loop {
            let outcome = {
                let Ok(_place) = target.places.acquire().await else {
                    return (Ended::Unreached, None);
                };
                self.0.counts.add(target.kind, 2);
                target.sender.send(&job.notification).await
            };
            let (why, after) = match outcome {
                Outcome::Sent(memory) => return (Ended::Delivered(memory), None),
                Outcome::Failed { why } => {
                    self.0.counts.add(target.kind, 3);
                    tracing::error!(
                        integration = job.integration,
                        group = job.notification.group_key,
                        error = why,
                        "a notification was refused"
                    );
                    self.trouble(&job.integration, why.clone());
                    return (Ended::Refused, Some(why));
                }
                Outcome::Retry { why, after, may_have_arrived: may } => {
                    may_have_arrived |= may;
                    (why, after)
                }
            };
            self.0.counts.add(target.kind, 3);
            tracing::warn!(
                integration = job.integration,
                error = why,
                "a notification was not delivered; it is tried again"
            );
            self.trouble(&job.integration, why.clone());
            let gave_up = if may_have_arrived { Ended::Unknown } else { Ended::Unreached };
            let wait = after.unwrap_or(pause);
            pause = (pause * 3 / 2).min(PAUSE_MAX);
            let left = job.deadline.nanos().saturating_sub(self.now().nanos());
            if i64::try_from(wait.as_nanos()).unwrap_or(i64::MAX) > left {
                return (gave_up, Some(why));
            }
            tokio::select! {
                () = self.0.stop.cancelled() => return (gave_up, Some(why)),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn trouble(&self, integration: &str, why: String) {
        let now = self.now();
        let mut all = self.0.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(integration.to_owned(), (now, why));
    }

    /// Stops ticking and waits for the attempts that are under way.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        if let Some(t) = &self.0.together {
            t.leave(self).await;
        }
    }
}
