//! Keeps sources in step with the configuration and with what discovery finds.

use crate::config::{Job, LimitsConfig, PromtailConfig};
use crate::docker::{Container, containers};
use crate::files::{Clock, Files, Target};
use crate::journal::Reader;
use crate::positions::Positions;
use crate::push::PushReceiver;
use crate::ship::{Rate, Shipper};
use crate::stage::Limits;
use crate::syslog::Receiver;
use crate::tls;
use crate::{Counts, LogSink};
use obs_collect::config::Discovery;
use obs_collect::discovery;
use obs_collect::relabel::relabel;
use obs_collect::target::TargetGroup;
use obs_model::{Labels, LabelsBuilder};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How often positions are written, at most.
const SAVE: Duration = Duration::from_secs(1);

struct Running {
    job: Job,
    stop: CancellationToken,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

struct Inner {
    sink: Arc<dyn LogSink>,
    clock: Clock,
    host: String,
    counts: Arc<Counts>,
    jobs: Mutex<BTreeMap<String, Running>>,
    positions: Mutex<Option<(PathBuf, Arc<Mutex<Positions>>)>>,
    /// What all sources may read together, and the limits that say so.
    rate: Mutex<(LimitsConfig, Option<Arc<Rate>>)>,
    stop: CancellationToken,
}

/// All jobs. Clone it freely.
#[derive(Clone)]
pub struct Manager(Arc<Inner>);

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

fn locked<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what a job discovers with.
fn discovered_by(job: &Job) -> Discovery {
    let mut out = Discovery {
        static_configs: job.static_configs.clone(),
        file_sd_configs: job.file_sd_configs.clone(),
        docker_sd_configs: job.docker_sd_configs.clone(),
        kubernetes_sd_configs: job.kubernetes_sd_configs.clone(),
        ..Discovery::default()
    };
    // Files need no host; one target carries the labels.
    for s in &mut out.static_configs {
        s.targets = vec!["localhost".into()];
    }
    out
}

/// Joins each target with the labels of its group.
fn flattened(groups: &[TargetGroup]) -> Vec<Labels> {
    let joined = |g: &TargetGroup, t: &Labels| {
        let mut b: LabelsBuilder = g.labels.to_builder();
        for (n, v) in t.iter() {
            b.set(n, v);
        }
        b.build()
    };
    groups.iter().flat_map(|g| g.targets.iter().map(move |t| joined(g, t))).collect()
}

/// Returns the files that a discovered target names, if it names any. Those of another host, which
/// `__host__` names, are somebody else's, as in Promtail.
fn file_target(found: &Labels, job: &Job, host: &str) -> Option<Target> {
    let labels = relabel(found, &job.relabel_configs)?;
    if !["", host].contains(&labels.get("__host__")) {
        return None;
    }
    let pattern = labels.get("__path__").to_owned();
    if pattern.is_empty() {
        return None;
    }
    let exclude = labels.get("__path_exclude__");
    Some(Target {
        pattern,
        exclude: (!exclude.is_empty()).then(|| exclude.to_owned()),
        labels: labels.filter(|n| !n.starts_with("__")),
    })
}

impl Manager {
    /// `host` is what `__host__` says of this machine's files.
    pub fn new(sink: Arc<dyn LogSink>, clock: Clock, host: String) -> Self {
        Self(Arc::new(Inner {
            sink,
            clock,
            host,
            counts: Arc::default(),
            jobs: Mutex::default(),
            positions: Mutex::default(),
            rate: Mutex::default(),
            stop: CancellationToken::new(),
        }))
    }

    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Takes a new configuration; `folder` is what paths in it are relative to, `positions` the
    /// file of positions unless the configuration names one. Jobs that did not change go on
    /// undisturbed. Must be called on a runtime.
    ///
    /// # Errors
    /// When a job cannot be started; the others are.
    pub fn update(
        &self,
        config: &PromtailConfig,
        folder: &Path,
        positions: &Path,
    ) -> Result<(), String> {
        let file = config.positions.filename.clone().unwrap_or_else(|| positions.to_owned());
        let positions = self.positions(&file);
        {
            let mut rate = locked(&self.0.rate);
            if rate.0 != config.limits_config {
                *rate =
                    (config.limits_config.clone(), Rate::new(&config.limits_config).map(Arc::new));
            }
        }
        let mut old = std::mem::take(&mut *locked(&self.0.jobs));
        let mut fresh: BTreeMap<String, Running> = BTreeMap::new();
        let mut start = Vec::new();
        for (i, job) in config.scrape_configs.iter().enumerate() {
            // Promtail allows jobs of one name.
            let name = if fresh.contains_key(&job.job_name) || job.job_name.is_empty() {
                format!("{}#{i}", job.job_name)
            } else {
                job.job_name.clone()
            };
            match old.remove(&name) {
                Some(running) if running.job == *job => drop(fresh.insert(name, running)),
                before => {
                    let running = Running {
                        job: job.clone(),
                        stop: self.0.stop.child_token(),
                        tasks: Arc::default(),
                    };
                    let before = before.map(|b| {
                        b.stop.cancel();
                        std::mem::take(&mut *locked(&b.tasks))
                    });
                    start.push((name.clone(), before.unwrap_or_default()));
                    fresh.insert(name, running);
                }
            }
        }
        old.into_values().for_each(|gone| gone.stop.cancel());
        for (name, before) in start {
            let Some(running) = fresh.get(&name) else { continue };
            self.start(running, config, folder, &positions, before)
                .map_err(|e| format!("job {name:?}: {e}"))?;
        }
        *locked(&self.0.jobs) = fresh;
        Ok(())
    }

    fn positions(&self, file: &Path) -> Arc<Mutex<Positions>> {
        let mut known = locked(&self.0.positions);
        if let Some((path, positions)) = &*known
            && path == file
        {
            return positions.clone();
        }
        let positions = Arc::new(Mutex::new(Positions::open(file)));
        *known = Some((file.to_owned(), positions.clone()));
        let (saved, stop) = (Arc::downgrade(&positions), self.0.stop.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(SAVE) => {}
                }
                let Some(positions) = saved.upgrade() else { return };
                let save = tokio::task::spawn_blocking(move || locked(&positions).save());
                if let Ok(Err(e)) = save.await {
                    tracing::error!(error = %e, "positions were not saved");
                }
            }
        });
        positions
    }

    fn start(
        &self,
        running: &Running,
        config: &PromtailConfig,
        folder: &Path,
        positions: &Arc<Mutex<Positions>>,
        before: Vec<JoinHandle<()>>,
    ) -> Result<(), String> {
        let job = running.job.clone();
        let clients = config.clients.iter().chain(&config.client);
        let external: BTreeMap<String, String> =
            clients.flat_map(|c| c.external_labels.clone()).collect();
        let shipper = Shipper {
            sink: self.0.sink.clone(),
            counts: self.0.counts.clone(),
            stop: running.stop.clone(),
            external: Arc::new(external),
            rate: locked(&self.0.rate).1.clone(),
            limits: Limits::default(),
        };
        let clock = self.0.clock.clone();
        let spawn = |task: JoinHandle<()>| locked(&running.tasks).push(task);
        if let Some(journal) = job.journal.clone() {
            let (job, positions) = (job.clone(), positions.clone());
            let reader = Reader { job, journal, positions, shipper, clock };
            spawn(tokio::spawn(async move {
                for task in before {
                    let _ = task.await;
                }
                reader.run().await;
            }));
            return Ok(());
        }
        if let Some(syslog) = job.syslog.clone() {
            let tls = syslog.tls_config.as_ref().map(|c| tls::acceptor(c, false, folder));
            let receiver = Receiver {
                job: job.clone(),
                syslog,
                tls: tls.transpose()?,
                shipper: shipper.clone(),
                clock: clock.clone(),
            };
            spawn(tokio::spawn(async move {
                // The listener of the job that this one replaces must be closed.
                for task in before {
                    let _ = task.await;
                }
                receiver.run().await;
            }));
            return Ok(());
        }
        if let Some(api) = job.loki_push_api.clone() {
            let tls = api.server.http_tls_config.as_ref().map(|c| c.acceptor(folder));
            let receiver = PushReceiver::new(job, api, tls.transpose()?, shipper, clock)?;
            spawn(tokio::spawn(async move {
                for task in before {
                    let _ = task.await;
                }
                receiver.run().await;
            }));
            return Ok(());
        }
        let targets: Arc<Mutex<Vec<Target>>> = Arc::default();
        let files = Files::new(
            job.clone(),
            config.limits_config.clone(),
            targets.clone(),
            positions.clone(),
            shipper.clone(),
            clock.clone(),
        );
        spawn(tokio::spawn(async move {
            for task in before {
                let _ = task.await;
            }
            files.run().await;
        }));
        let found: Mutex<HashMap<usize, Vec<TargetGroup>>> = Mutex::default();
        let followed: Mutex<HashMap<String, CancellationToken>> = Mutex::default();
        let tasks = running.tasks.clone();
        let (place, positions) = (folder.to_owned(), positions.clone());
        let (sources, host) = (discovered_by(&job), self.0.host.clone());
        let report = move |source: usize, groups: Vec<TargetGroup>| {
            let all: Vec<Labels> = {
                let mut found = locked(&found);
                found.insert(source, groups);
                found.values().flat_map(|g| flattened(g)).collect()
            };
            let files = all.iter().filter_map(|l| file_target(l, &job, &host));
            *locked(&targets) = files.collect();
            let mut followed = locked(&followed);
            let now = containers(&all);
            followed.retain(|id, stop| {
                let stays = now.iter().any(|(known, _)| known == id);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            for (id, labels) in now {
                // Relabelling may leave a container out.
                let kept = relabel(&labels, &job.relabel_configs);
                let Some(engine) = job.docker_sd_configs.first().filter(|_| kept.is_some()) else {
                    continue;
                };
                if followed.contains_key(&id) {
                    continue;
                }
                let stop = shipper.stop.child_token();
                followed.insert(id.clone(), stop.clone());
                let container = Container {
                    id,
                    found: labels,
                    engine: engine.clone(),
                    folder: place.clone(),
                    job: job.clone(),
                    positions: positions.clone(),
                    shipper: Shipper { stop, ..shipper.clone() },
                    clock: clock.clone(),
                };
                let mut list = locked(&tasks);
                list.retain(|t| !t.is_finished());
                list.push(tokio::spawn(container.run()));
            }
        };
        discovery::start(&sources, folder, report, &running.stop);
        Ok(())
    }

    /// Ends all sources and saves how far they were read.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        let tasks: Vec<_> = {
            let jobs = std::mem::take(&mut *locked(&self.0.jobs));
            jobs.into_values().flat_map(|r| std::mem::take(&mut *locked(&r.tasks))).collect()
        };
        for t in tasks {
            let _ = t.await;
        }
        let known = locked(&self.0.positions).clone();
        if let Some((_, positions)) = known {
            let saved = tokio::task::spawn_blocking(move || locked(&positions).save()).await;
            if let Ok(Err(e)) = saved {
                tracing::error!(error = %e, "positions were not saved");
            }
        }
    }
}
