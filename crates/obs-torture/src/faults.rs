//! A7: calls of the file system fail under the real program, by a library loaded before it.
//!
//! The library is C, compiled when the harness runs. A sync that it fails also loses what was not
//! synced, so that an acknowledgement for such data is found out.

use crate::blackbox::{PATIENCE, SMALL, Sum, check, load, plan, temp, verify};
use crate::load::Verdict;
use crate::server::{Server, Setup};
use crate::sim::Rng;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SOURCE: &str = include_str!("../faultlib/fault.c");

/// What fails: a name, the rule with the number of the first call left out, the most that number
/// may be, and whether the store must end up read-only.
struct Scenario {
    name: &'static str,
    call: &'static str,
    path: &'static str,
    rest: &'static str,
    first_max: u64,
    is_final: bool,
}

const fn scenario(
    name: &'static str,
    call: &'static str,
    path: &'static str,
    rest: &'static str,
    first_max: u64,
) -> Scenario {
    Scenario { name, call, path, rest, first_max, is_final: false }
}

const SCENARIOS: [Scenario; 13] = [
    scenario("one sync of the log", "fdatasync", "/wal/", "1:errno:5", 50),
    Scenario {
        is_final: true,
        ..scenario("every sync of the log", "fdatasync", "/wal/", "1000000:errno:5", 50)
    },
    scenario("one write to the log", "write", "/wal/", "1:errno:5", 50),
    scenario("a short write to the log, then no space", "write", "/wal/", "1:short:700", 50),
    scenario("no space for one write to the log", "write", "/wal/", "1:errno:28", 50),
    scenario("a sync of the log's folder", "fsync", "/wal", "1:errno:5", 3),
    scenario("a new log file", "create", "/wal/", "1:errno:5", 3),
    scenario("a sync of a segment", "fdatasync", "/segments/", "1:errno:5", 4),
    scenario("no space for a segment", "write", "/segments/", "1:errno:28", 4),
    scenario("a new segment", "create", "/segments/", "1:errno:24", 4),
    scenario("a sync of the manifest", "fdatasync", "/manifest/", "1:errno:5", 6),
    scenario("slow syncs", "fdatasync", "/wal/", "4:delay:500", 20),
    scenario("a renamed file", "rename", "/endpoints.json", "1:errno:5", 1),
];

fn build(dir: &Path) -> Result<String> {
    let (source, library) = (dir.join("fault.c"), dir.join("fault.so"));
    std::fs::write(&source, SOURCE).context("failed to write the library's source")?;
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .status()
        .context("failed to run cc")?;
    ensure!(status.success(), "the fault library does not compile");
    Ok(library.to_string_lossy().into_owned())
}

/// What the library wrote down.
#[derive(Debug, Default)]
struct Log {
    faults: u64,
    /// Files that were synced again after a sync of them failed.
    synced_again: BTreeSet<String>,
}

fn read_log(path: &Path) -> Result<Log> {
    let text = std::fs::read_to_string(path).context("the fault library was not loaded")?;
    let mut out = Log::default();
    let mut failed = BTreeSet::new();
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let (call, what, file) = (words.next(), words.next(), words.next().unwrap_or_default());
        match (call, what) {
            (Some("start"), _) => {}
            (_, Some("fault")) => out.faults += 1,
            (Some("fdatasync"), Some(_)) if failed.contains(file) => {
                out.synced_again.insert(file.to_owned());
            }
            (Some("fdatasync"), Some("failed")) => {
                failed.insert(file.to_owned());
            }
            _ => {}
        }
    }
    Ok(out)
}

/// Waits until the server says that it does not take writes.
async fn wait_for_red(server: &Server) -> Result<Duration> {
    let began = Instant::now();
    let http = obs_objects::http_client();
    while began.elapsed() < Duration::from_secs(2) {
        let ready = http.get(server.url("ui", "/health/ready")?).send().await?;
        if !ready.status().is_success() {
            return Ok(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("every sync fails and the server is ready after 2 s");
}

/// Runs every scenario `rounds` times, with faults at other calls each time.
///
/// # Errors
/// What was lost, or which rule was broken. Needs a C compiler.
pub async fn faults(bin: &Path, rounds: u64, seed: u64) -> Result<Value> {
    let began = Instant::now();
    let dir = temp()?;
    let library = build(dir.path())?;
    let mut rng = Rng::new(seed);
    let mut sum = Sum::default();
    let mut hits: BTreeMap<&str, u64> = BTreeMap::new();
    let runs = rounds * SCENARIOS.len() as u64;
    for run in 0..runs {
        let at = usize::try_from(run).unwrap_or(0) % SCENARIOS.len();
        let Some(s) = SCENARIOS.get(at) else { continue };
        let first = 1 + rng.below(s.first_max);
        let told = || format!("{} (call {first}, run {run} of seed {seed})", s.name);
        let hit = one(bin, dir.path(), &library, s, (run, runs), first, &mut sum, &mut rng);
        *hits.entry(s.name).or_default() += hit.await.with_context(told)?;
    }
    // The control: each kind of fault did happen.
    if let Some((name, _)) = hits.iter().find(|(_, n)| **n == 0) {
        bail!("{name}: never happened, the harness is void");
    }
    let mut report = sum.report("faults", runs, began);
    if let Value::Object(o) = &mut report {
        o.insert("faults".into(), json!(hits));
    }
    Ok(report)
}

async fn one(
    bin: &Path,
    dir: &Path,
    library: &str,
    s: &Scenario,
    (run, runs): (u64, u64),
    first: u64,
    sum: &mut Sum,
    rng: &mut Rng,
) -> Result<u64> {
    let (data, log) = (dir.join(format!("data-{run}")), dir.join(format!("log-{run}")));
    let healthy = Setup::new(bin, &data, SMALL);
    // The directory exists already: faults are for a server at work.
    healthy.start(PATIENCE)?.stop()?;
    let rules = format!("{}:{}:{first}:{}", s.call, s.path, s.rest);
    let environment = vec![
        ("LD_PRELOAD".to_owned(), library.to_owned()),
        ("FAULT_RULES".to_owned(), rules),
        ("FAULT_LOG".to_owned(), log.to_string_lossy().into_owned()),
    ];
    let faulty = Setup { environment, ..healthy.clone() };
    let plan = plan(run, runs)?;
    let mut verdicts = Vec::new();
    match faulty.start(PATIENCE) {
        Ok(server) => {
            let time = Duration::from_millis(1200 + rng.below(800));
            let end = async || {
                if s.is_final {
                    wait_for_red(&server).await?;
                }
                server.signal("KILL")
            };
            verdicts = load(&server, &plan, time, end).await?;
        }
        // A store that cannot begin a file may refuse to start; it must start afterwards.
        Err(e) => ensure!(read_log(&log)?.faults > 0, "does not start: {e:#}"),
    }
    // A write whose sync failed is answered as refused, and may be there.
    for (_, v) in verdicts.iter_mut().filter(|(_, v)| *v == Verdict::Refused) {
        *v = Verdict::Unknown;
    }
    let found = read_log(&log)?;
    ensure!(
        found.synced_again.is_empty(),
        "synced again after a failure: {:?}",
        found.synced_again
    );
    let server = healthy.start(PATIENCE)?;
    sum.ready.push(server.ready_after);
    check(&server, &plan, &verdicts, sum, rng).await?;
    server.stop()?;
    verify(bin, &data)?;
    let _ = std::fs::remove_dir_all(&data);
    Ok(found.faults)
}
