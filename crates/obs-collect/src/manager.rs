//! Keeps discovery and scrape loops in step with the configuration.

use crate::Sink;
use crate::config::{PrometheusConfig, ScrapeConfig};
use crate::discovery;
use crate::http::HttpClient;
use crate::scrape::{Clock, Loop, Status};
use crate::target::{Made, Target, TargetGroup};
use obs_model::Labels;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A target as the API shows it.
#[derive(Debug, Clone)]
pub struct ActiveTarget {
    pub job: String,
    pub target: Target,
    pub url: String,
    pub status: Status,
}

/// Dropped targets of a job that are kept to be shown.
const DROPPED_MAX: usize = 1000;

struct Running {
    target: Target,
    url: String,
    status: Arc<Mutex<Status>>,
    stop: CancellationToken,
    ended: CancellationToken,
    task: JoinHandle<()>,
}

/// What is known of one job.
struct Job {
    config: Arc<ScrapeConfig>,
    client: HttpClient,
    stop: CancellationToken,
    found: HashMap<usize, Vec<TargetGroup>>,
    running: Vec<Running>,
    dropped: Vec<Labels>,
    dropped_count: usize,
    problem: Option<String>,
}

struct Inner {
    sink: Arc<dyn Sink>,
    clock: Clock,
    config: Mutex<Arc<PrometheusConfig>>,
    jobs: Mutex<BTreeMap<String, Job>>,
}

/// All jobs. Clone it freely.
#[derive(Clone)]
pub struct Manager(Arc<Inner>);

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

impl Manager {
    pub fn new(sink: Arc<dyn Sink>, clock: Clock) -> Self {
        Self(Arc::new(Inner { sink, clock, config: Mutex::default(), jobs: Mutex::default() }))
    }

    /// Takes a new configuration. Jobs that did not change are not disturbed. Must be called on a
    /// runtime.
    ///
    /// # Errors
    /// When a job's credentials cannot be used; nothing is changed then.
    pub fn update(&self, config: PrometheusConfig) -> Result<(), String> {
        let config = Arc::new(config);
        let mut clients = HashMap::new();
        for job in &config.scrape_configs {
            let client = HttpClient::new(&job.http, &config.folder)
                .map_err(|e| format!("job {:?}: {e}", job.job_name))?;
            clients.insert(job.job_name.clone(), client);
        }
        let before = {
            let mut current = self.0.config.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, config.clone())
        };
        let same_global = before.global == config.global && before.folder == config.folder;
        let mut jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut *jobs);
        let mut fresh = Vec::new();
        for c in &config.scrape_configs {
            let name = c.job_name.clone();
            let kept = old.remove(&name).filter(|o| {
                let same = same_global && *o.config == *c;
                if !same {
                    o.stop.cancel();
                }
                same
            });
            // The loops of a changed job end without ending their series: most go on at once.
            if let Some(job) = kept {
                jobs.insert(name, job);
                continue;
            }
            let Some(client) = clients.remove(&name) else { continue };
            let job = Job {
                config: Arc::new(c.clone()),
                client,
                stop: CancellationToken::new(),
                found: HashMap::new(),
                running: Vec::new(),
                dropped: Vec::new(),
                dropped_count: 0,
                problem: None,
            };
            fresh.push((name.clone(), job.stop.clone(), job.config.clone()));
            jobs.insert(name, job);
        }
        for gone in old.into_values() {
            gone.stop.cancel();
            gone.running.iter().for_each(|r| r.ended.cancel());
            gone.running.iter().for_each(|r| r.stop.cancel());
        }
        drop(jobs);
        for (name, stop, job) in fresh {
            // Weak: a stopped manager must not be kept alive by its discoverers.
            let inner = Arc::downgrade(&self.0);
            let token = stop.clone();
            let report = move |source, groups| {
                if let Some(inner) = inner.upgrade()
                    && !token.is_cancelled()
                {
                    Self(inner).found(&name, source, groups);
                }
            };
            discovery::start(&job.discovery, &config.folder, report, &stop);
        }
        Ok(())
    }

    /// Takes what a source of a job found and starts and stops loops.
    fn found(&self, name: &str, source: usize, groups: Vec<TargetGroup>) {
        let config = self.0.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(job) = jobs.get_mut(name) else { return };
        job.found.insert(source, groups);
        let mut wanted: Vec<Target> = Vec::new();
        job.dropped.clear();
        job.dropped_count = 0;
        job.problem = None;
        for g in job.found.values().flatten() {
            for t in &g.targets {
                match Target::make(&config, &job.config, &g.labels, t) {
                    Ok(Made::Target(t)) => {
                        // Two that became the same are scraped once.
                        let same = |o: &Target| {
                            o.labels == t.labels && o.url(&job.config) == t.url(&job.config)
                        };
                        if !wanted.iter().any(same) {
                            wanted.push(*t);
                        }
                    }
                    Ok(Made::Dropped(labels)) => {
                        job.dropped_count += 1;
                        if job.dropped.len() < DROPPED_MAX {
                            job.dropped.push(labels);
                        }
                    }
                    Err(e) => {
                        tracing::warn!(job = name, target = %t, error = e, "target cannot be used");
                        job.problem = Some(e);
                    }
                }
            }
        }
        let limit = job.config.target_limit.or(config.global.target_limit).unwrap_or(0);
        if limit > 0 && wanted.len() > limit {
            let n = wanted.len();
            tracing::error!(
                job = name,
                "target_limit exceeded (number of targets: {n}, limit: {limit})"
            );
            job.problem =
                Some(format!("target_limit exceeded (number of targets: {n}, limit: {limit})"));
            wanted.clear();
        }
        let (kept, gone): (Vec<Running>, Vec<Running>) =
            std::mem::take(&mut job.running).into_iter().partition(|r| wanted.contains(&r.target));
        for r in gone {
            r.ended.cancel();
            r.stop.cancel();
        }
        job.running = kept;
        for t in wanted {
            if job.running.iter().any(|r| r.target == t) {
                continue;
            }
            let made = Loop::new(
                &config,
                &job.config,
                t,
                job.client.clone(),
                self.0.sink.clone(),
                self.0.clock.clone(),
            );
            match made {
                Ok(l) => {
                    let (stop, ended) = (job.stop.child_token(), CancellationToken::new());
                    let (target, url, status) = (l.target.clone(), l.url.clone(), l.status.clone());
                    let task = tokio::spawn(l.run(stop.clone(), ended.clone()));
                    job.running.push(Running { target, url, status, stop, ended, task });
                }
                Err(e) => job.problem = Some(e),
            }
        }
    }

    /// Returns all targets that are scraped, by job and address.
    pub fn active(&self) -> Vec<ActiveTarget> {
        let jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = Vec::new();
        for (name, job) in jobs.iter() {
            for r in &job.running {
                let status = r.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let (job, target, url) = (name.clone(), r.target.clone(), r.url.clone());
                out.push(ActiveTarget { job, target, url, status });
            }
        }
        out.sort_by(|a, b| (&a.job, &a.url).cmp(&(&b.job, &b.url)));
        out
    }

    /// Returns the labels of dropped targets by job, and how many there are.
    pub fn dropped(&self) -> Vec<(String, usize, Vec<Labels>)> {
        let jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.iter().map(|(n, j)| (n.clone(), j.dropped_count, j.dropped.clone())).collect()
    }

    /// Returns the names of all jobs.
    pub fn jobs(&self) -> Vec<String> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Returns the configuration in force.
    pub fn config(&self) -> Arc<PrometheusConfig> {
        self.0.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops everything and waits for scrapes under way.
    pub async fn stop(&self) {
        let jobs = std::mem::take(&mut *self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner));
        jobs.values().for_each(|j| j.stop.cancel());
        for job in jobs.into_values() {
            for r in job.running {
                let _ = r.task.await;
            }
        }
    }
}
