//! B1: ten times what the server can take, sent without waiting for answers.

use crate::blackbox::{PATIENCE, Sum, Verdicts, check, load, plan, temp};
use crate::load::{Plan, Verdict, body, send};
use crate::server::{Server, Setup};
use crate::sim::Rng;
use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const MEMORY: u64 = 2 << 30;
/// Requests under way at most; more would measure the client.
const IN_FLIGHT: usize = 1500;
/// How many times the capacity is offered.
const TIMES: f64 = 10.0;
/// Batches that wait for their turn, built before so that building costs nothing in the rush.
const READY: usize = 3000;

/// What the senders share.
struct Rush {
    plan: Plan,
    ready: Mutex<VecDeque<(u64, Bytes)>>,
    done: Mutex<Verdicts>,
    accepted_ms: Mutex<Vec<u64>>,
    refused_ms: Mutex<Vec<u64>>,
}

fn locked<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a quantile of a sorted list.
fn quantile(sorted: &[u64], q: usize) -> u64 {
    sorted.get(sorted.len().saturating_sub(1) * q / 100).copied().unwrap_or(0)
}

impl Rush {
    fn build(&self) -> Result<()> {
        let batch = self.plan.next.fetch_add(1, Ordering::Relaxed);
        let bytes = body(batch, self.plan.time_of(batch))?;
        locked(&self.ready).push_back((batch, bytes.into()));
        Ok(())
    }

    /// Sends a batch; one that was refused goes to the end of the line, as it was.
    async fn one(
        &self,
        http: &reqwest::Client,
        server: &Server,
        batch: u64,
        bytes: Bytes,
    ) -> Result<Verdict> {
        let began = Instant::now();
        let verdict = send(http, &server.endpoints, batch, bytes.clone()).await?;
        let ms = began.elapsed().as_millis() as u64;
        match verdict {
            Verdict::Refused => {
                locked(&self.refused_ms).push(ms);
                locked(&self.ready).push_back((batch, bytes));
            }
            Verdict::Acked | Verdict::Unknown => {
                locked(&self.accepted_ms).push(ms);
                locked(&self.done).push((batch, verdict));
                self.build()?;
            }
        }
        Ok(verdict)
    }
}

/// Asks for health and a query now and then; returns the times of the health answers in ms.
async fn watch(server: &Server, stop: &AtomicBool) -> Result<Vec<u64>> {
    let http = obs_objects::http_client();
    let query = "/api/v1/sql?q=SELECT%20service%2C%20count(*)%20FROM%20logs%20GROUP%20BY%201";
    let mut out = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let health = http.get(server.url("ui", "/health/live")?).send().await?;
        ensure!(health.status().is_success(), "not alive: {}", health.status());
        out.push(asked.elapsed().as_millis() as u64);
        // It may be refused; it must be answered.
        let _ = http.get(server.url("ui", query)?).send().await?.bytes().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    out.sort_unstable();
    Ok(out)
}

/// Sends a batch now and then, one at a time, and returns the sorted times of refusals in ms. What
/// the crowd sees has waited for the crowd's own turn on its processor too.
fn probe(rush: &Rush, server: &Server, stop: &AtomicBool) -> Result<Vec<u64>> {
    const PAUSE: Duration = Duration::from_millis(20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let http = obs_objects::http_client();
    let mut out = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PAUSE);
        let Some((batch, bytes)) = locked(&rush.ready).pop_front() else { continue };
        let began = Instant::now();
        let verdict = runtime.block_on(rush.one(&http, server, batch, bytes))?;
        if verdict == Verdict::Refused {
            out.push(began.elapsed().as_millis() as u64);
        }
    }
    out.sort_unstable();
    Ok(out)
}

/// Keeps this process to one half of the processors and returns the other, for the server: offering
/// ten times what a server can take is more work than taking it, and on the same processors it
/// would be the generator that is measured. `None` where there is one processor.
fn part_processors() -> Result<Option<String>> {
    let all = std::thread::available_parallelism().context("how many processors?")?.get();
    if all < 2 {
        return Ok(None);
    }
    let list = |from: usize, to: usize| format!("{from}-{}", to - 1);
    let status = Command::new("taskset")
        .args(["-acp", &list(0, all / 2), &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status()
        .context("failed to run taskset")?;
    ensure!(status.success(), "taskset: {status}");
    Ok(Some(list(all / 2, all)))
}

/// Offers many times the capacity for a while, beside queries and under a memory limit, then kills
/// the server and looks for what it acknowledged.
///
/// # Errors
/// When the server dies, refuses without saying when to come again, or loses something. Needs the
/// right to make control groups.
pub async fn overload(bin: &Path, seconds: u64, seed: u64) -> Result<Value> {
    let began = Instant::now();
    let dir = temp()?;
    let config = "data:\n  disk_reserve_bytes: 0\n";
    let mut setup =
        Setup { memory: Some(MEMORY), ..Setup::new(bin, dir.path().join("data"), config) };
    setup.processors = part_processors()?;
    let server = Arc::new(setup.start(PATIENCE)?);
    let watched = || {
        let stop = Arc::new(AtomicBool::new(false));
        let (server, until) = (server.clone(), stop.clone());
        (stop, tokio::spawn(async move { watch(&server, &until).await }))
    };
    // Capacity: clients that wait for each answer, beside the same queries.
    let (calm, calm_time) = (plan(0, 4)?, Duration::from_secs(10));
    let (stop, watcher) = watched();
    let first = load(&server, &calm, calm_time, async || Ok(())).await?;
    stop.store(true, Ordering::Relaxed);
    watcher.await.context("the watcher died")??;
    let acked = first.iter().filter(|(_, v)| *v == Verdict::Acked).count();
    let capacity = acked as f64 / calm_time.as_secs_f64();

    let rush = Arc::new(Rush {
        plan: plan(1, 4)?,
        ready: Mutex::default(),
        done: Mutex::default(),
        accepted_ms: Mutex::default(),
        refused_ms: Mutex::default(),
    });
    for _ in 0..READY {
        rush.build()?;
    }
    let (stop, watcher) = watched();
    let prober = std::thread::spawn({
        let (rush, server, stop) = (rush.clone(), server.clone(), stop.clone());
        move || probe(&rush, &server, &stop)
    });
    let http = obs_objects::http_client();
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let failure: Arc<Mutex<Option<anyhow::Error>>> = Arc::default();
    let (start, mut offered, mut unsent) = (Instant::now(), 0_u64, 0_u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        let due = (start.elapsed().as_secs_f64() * capacity * TIMES) as u64;
        while offered < due {
            offered += 1;
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                unsent += 1;
                continue;
            };
            let Some((batch, bytes)) = locked(&rush.ready).pop_front() else { continue };
            let (rush, http, server, failure) =
                (rush.clone(), http.clone(), server.clone(), failure.clone());
            tokio::spawn(async move {
                if let Err(e) = rush.one(&http, &server, batch, bytes).await {
                    *locked(&failure) = Some(e);
                }
                drop(slot);
            });
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let rush_time = start.elapsed().as_secs_f64();
    // All answers, so that what was refused is known.
    drop(slots.acquire_many(IN_FLIGHT as u32).await);
    let ended = Instant::now();
    stop.store(true, Ordering::Relaxed);
    let health = watcher.await.context("the watcher died")??;
    let probed = prober.join().map_err(|_| anyhow!("the prober died"))??;
    if let Some(e) = locked(&failure).take() {
        return Err(e);
    }
    let normal = loop {
        let asked = Instant::now();
        server_answers(&server).await?;
        if asked.elapsed() < Duration::from_millis(100) {
            break ended.elapsed();
        }
    };
    let peak = server.peak()?;
    server.signal("KILL")?;
    drop(Arc::into_inner(server));
    let server = setup.start(PATIENCE)?;
    let mut verdicts = locked(&rush.done).clone();
    let goodput = verdicts.iter().filter(|(_, v)| *v == Verdict::Acked).count() as f64 / rush_time;
    verdicts.extend(locked(&rush.ready).iter().map(|(b, _)| (*b, Verdict::Refused)));
    let (mut refused, mut accepted) = (
        std::mem::take(&mut *locked(&rush.refused_ms)),
        std::mem::take(&mut *locked(&rush.accepted_ms)),
    );
    refused.sort_unstable();
    accepted.sort_unstable();
    ensure!(!refused.is_empty(), "nothing was refused: the harness is void");
    let mut sum = Sum::default();
    sum.ready.push(server.ready_after);
    let mut rng = Rng::new(seed);
    check(&server, &calm, &first, &mut sum, &mut rng).await?;
    check(&server, &rush.plan, &verdicts, &mut sum, &mut rng).await?;
    server.stop()?;
    let mut report = sum.report("overload", 1, began);
    let own = json!({
        "processors_of_the_server": setup.processors,
        "capacity_batches_per_s": capacity as u64,
        "offered_per_s": (offered as f64 / rush_time) as u64,
        "not_sent_for_want_of_sockets": unsent,
        "goodput_share": (goodput / capacity * 100.0).round() / 100.0,
        "refused_answers": refused.len(),
        "probes_refused": probed.len(),
        "probe_refused_ms_p50": quantile(&probed, 50),
        "probe_refused_ms_p99": quantile(&probed, 99),
        "refused_ms_p50": quantile(&refused, 50),
        "refused_ms_p90": quantile(&refused, 90),
        "refused_ms_p99": quantile(&refused, 99),
        "accepted_ms_p50": quantile(&accepted, 50),
        "health_ms_p99": quantile(&health, 99),
        "normal_after_ms": normal.as_millis() as u64,
        "peak_bytes": peak,
    });
    if let (Value::Object(all), Value::Object(own)) = (&mut report, own) {
        all.extend(own);
    }
    Ok(report)
}

async fn server_answers(server: &Server) -> Result<()> {
    let http = obs_objects::http_client();
    let answer = http.get(server.url("ui", "/health/ready")?).send().await?;
    ensure!(answer.status().is_success(), "not ready after the rush: {}", answer.status());
    Ok(())
}
