//! Runs groups on a clock: each at its interval, shifted so that not all start at once.

use crate::Engine;
use crate::alert::Alert;
use crate::file::RuleGroup;
use crate::group::{Group, Options};
use obs_model::{
    Append, Labels, METRIC_NAME, MatchOp, Matcher, Sample, TenantId, TimestampMs, WriteBatch,
};
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Takes alerts that fire or are resolved.
pub trait AlertSink: Send + Sync {
    fn send(&self, alerts: Vec<Alert>);
}

/// What the manager counts.
#[derive(Debug, Default)]
pub struct Counts {
    pub evaluations: AtomicU64,
    pub failures: AtomicU64,
    pub iterations: AtomicU64,
    /// Iterations whose time came while the one before was running.
    pub missed: AtomicU64,
}

/// What groups run with.
#[derive(Clone)]
pub struct Environment {
    pub engine: Arc<dyn Engine>,
    pub append: Arc<dyn Append>,
    pub tenant: TenantId,
    pub sink: Option<Arc<dyn AlertSink>>,
    /// Wall clock in milliseconds.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// A group as others see it: a copy made after each evaluation.
type Shared = Arc<RwLock<Group>>;

struct Running {
    shared: Shared,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// Runs rule groups and replaces them on reload.
pub struct Manager {
    environment: Environment,
    told: Mutex<Told>,
    groups: Mutex<Vec<Running>>,
    pub counts: Arc<Counts>,
}

/// Groups by file.
type Files = Vec<(String, Vec<RuleGroup>)>;

/// What a manager was told to run.
#[derive(Default)]
struct Told {
    /// Of files, with what holds for all; nothing before the first.
    files: Option<(Files, Options)>,
    /// Of the API, by namespace.
    written: Files,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

/// How long queries look back for `ALERTS_FOR_STATE`: an outage longer than that starts anew, as
/// in Prometheus.
const OUTAGE_MS: i64 = 3_600_000;

impl Manager {
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            told: Mutex::default(),
            groups: Mutex::default(),
            counts: Arc::default(),
        }
    }

    /// Returns all groups as they are now, by file and name.
    pub fn groups(&self) -> Vec<Group> {
        let running = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = |r: &Running| r.shared.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut out: Vec<Group> = running.iter().map(copy).collect();
        out.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
        out
    }

    /// Replaces the groups of files; those that stay keep their alerts, those that go end their
    /// series. Must be called on a runtime.
    pub fn update(&self, files: &[(String, Vec<RuleGroup>)], options: &Options) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.files = Some((files.to_vec(), options.clone()));
        self.apply(&told);
    }

    /// Replaces the groups that were written over an API, by namespace, likewise. Until there are
    /// files they wait.
    pub fn set_written(&self, written: Vec<(String, Vec<RuleGroup>)>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.written = written;
        self.apply(&told);
    }

    fn apply(&self, told: &Told) {
        let Some((files, options)) = &told.files else { return };
        let options = Arc::new(options.clone());
        let mut running = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old: HashMap<(String, String), Running> = running
            .drain(..)
            .map(|r| {
                let g = r.shared.read().unwrap_or_else(PoisonError::into_inner);
                let key = (g.file.clone(), g.name.clone());
                drop(g);
                (key, r)
            })
            .collect();
        for (file, groups) in files.iter().chain(&told.written) {
            for g in groups {
                let mut fresh = Group::new(file, g, &options);
                if let Some(before) = old.remove(&(file.clone(), g.name.clone())) {
                    before.stop.cancel();
                    let state = before.shared.read().unwrap_or_else(PoisonError::into_inner);
                    fresh.take_over(state.clone());
                }
                running.push(self.start(fresh, options.clone()));
            }
        }
        drop(running);
        for gone in old.into_values() {
            gone.stop.cancel();
            let environment = self.environment.clone();
            tokio::spawn(async move {
                let _ = gone.task.await;
                let now = (environment.clock)();
                let ended = gone.shared.read().unwrap_or_else(PoisonError::into_inner).end(now);
                let batch = WriteBatch { points: ended, ..WriteBatch::default() };
                let _ = environment.append.append(&environment.tenant, batch).await;
            });
        }
    }

    fn start(&self, group: Group, options: Arc<Options>) -> Running {
        let stop = CancellationToken::new();
        let shared: Shared = Arc::new(RwLock::new(group));
        let run = run(
            shared.clone(),
            options,
            self.environment.clone(),
            self.counts.clone(),
            stop.clone(),
        );
        Running { shared, stop, task: tokio::spawn(run) }
    }

    /// Stops all groups and waits for those that are running.
    pub async fn stop(&self) {
        let running: Vec<Running> =
            self.groups.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        running.iter().for_each(|r| r.stop.cancel());
        for r in running {
            let _ = r.task.await;
        }
    }
}

/// Shift of a group within its interval, the same after a restart.
fn shift(group: &Group) -> i64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (&group.file, &group.name).hash(&mut hasher);
    (hasher.finish() % group.interval_ms.max(1).unsigned_abs()) as i64
}

async fn run(
    shared: Shared,
    options: Arc<Options>,
    environment: Environment,
    counts: Arc<Counts>,
    stop: CancellationToken,
) {
    let (interval, shift) = {
        let g = shared.read().unwrap_or_else(PoisonError::into_inner);
        (g.interval_ms.max(1), shift(&g))
    };
    let now = (environment.clock)();
    // The next multiple of the interval, shifted.
    let mut due = (now - shift).div_euclid(interval) * interval + shift + interval;
    loop {
        let wait = (due - (environment.clock)()).clamp(0, interval);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(wait.unsigned_abs())) => {}
        }
        let (s, o, e) = (shared.clone(), options.clone(), environment.clone());
        let at = due;
        let done = tokio::task::spawn_blocking(move || evaluate(&s, &o, &e, at)).await;
        if let Ok((evaluations, failures)) = done {
            counts.evaluations.fetch_add(evaluations, Ordering::Relaxed);
            counts.failures.fetch_add(failures, Ordering::Relaxed);
        }
        counts.iterations.fetch_add(1, Ordering::Relaxed);
        due += interval;
        let late = (environment.clock)() - due;
        if late > 0 {
            let missed = late.div_euclid(interval) + 1;
            counts.missed.fetch_add(missed.unsigned_abs(), Ordering::Relaxed);
            due += missed * interval;
        }
    }
}

/// Evaluates a copy of the group, so that readers never wait, and puts it back.
fn evaluate(shared: &Shared, options: &Options, e: &Environment, at: i64) -> (u64, u64) {
    let mut group = shared.read().unwrap_or_else(PoisonError::into_inner).clone();
    let handle = tokio::runtime::Handle::current();
    let mut write = |points: Vec<(Labels, Sample)>| {
        if points.is_empty() {
            return Ok(());
        }
        let batch = WriteBatch { points, ..WriteBatch::default() };
        let done = handle.block_on(e.append.append(&e.tenant, batch)).map_err(|e| e.to_string())?;
        match done.reason {
            Some(reason) if done.rejected > 0 => Err(reason),
            _ => Ok(()),
        }
    };
    let restored = |labels: &Labels| read_state(&*e.engine, labels, at);
    let sent = group.evaluate(&*e.engine, options, at, &restored, &mut write);
    let bad = |r: &&crate::group::RuleState| matches!(r.health, crate::group::Health::Bad(_));
    let failures = group.rules.iter().filter(bad).count();
    for r in group.rules.iter().filter(bad) {
        if let crate::group::Health::Bad(why) = &r.health {
            tracing::warn!(group = group.name, rule = r.rule.name(), error = why, "rule failed");
        }
    }
    let rules = group.rules.len();
    *shared.write().unwrap_or_else(PoisonError::into_inner) = group;
    if let Some(sink) = e.sink.as_ref().filter(|_| !sent.is_empty()) {
        sink.send(sent);
    }
    (rules as u64, failures as u64)
}

/// Reads the newest `ALERTS_FOR_STATE` sample of these labels: when it was written and what it
/// says, both in milliseconds.
fn read_state(engine: &dyn Engine, labels: &Labels, now: i64) -> Option<(i64, i64)> {
    use obs_promql::ast::{Expr, Function, Pos, Selector};
    let matchers: Vec<Matcher> = labels
        .iter()
        .map(|(n, v)| Matcher::new(n, MatchOp::Equal, v))
        .collect::<Result<_, _>>()
        .ok()?;
    let pos = Pos::default();
    let range = Expr::Matrix {
        selector: Selector {
            matchers,
            is_named: true,
            offset_ms: 0,
            offset_expr: None,
            at: None,
            extension: None,
            pos,
        },
        range_ms: OUTAGE_MS,
        range_expr: None,
        pos,
    };
    let ask = |function: &str| {
        let expr =
            Expr::Call { function: Function::find(function)?, args: vec![range.clone()], pos };
        let rows = engine.promql(&expr, now).ok()?;
        // Other alerts may have these labels and more.
        let own = labels.without_name();
        rows.into_iter().find(|(l, _)| l.without_name() == own).map(|r| r.1)
    };
    let (obs_model::SampleValue::Float(value), obs_model::SampleValue::Float(written)) =
        (ask("last_over_time")?, ask("ts_of_last_over_time")?)
    else {
        return None;
    };
    debug_assert!(labels.get(METRIC_NAME) == "ALERTS_FOR_STATE");
    let ms = |seconds: f64| TimestampMs::from_millis((seconds * 1000.0) as i64).millis();
    Some((ms(written), ms(value)))
}
