//! Faults put on the real program from outside: kills, power cuts, full disks, little memory.

use crate::load::{Plan, Verdict, client};
use crate::oracle;
use crate::server::{Server, Setup};
use crate::sim::Rng;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const CLIENTS: usize = 6;
const HOUR_NS: u64 = 3_600_000_000_000;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Small heads, so that faults meet flushes and merges too.
pub(crate) const SMALL: &str = "data:\n  head_bytes: 4194304\n  disk_reserve_bytes: 0\n";

/// Times of run `n` of `runs`: an hour each, all in the past.
#[expect(clippy::disallowed_methods, reason = "data is labelled with the time of day")]
pub(crate) fn plan(n: u64, runs: u64) -> Result<Plan> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let hour = now.as_nanos() as u64 / HOUR_NS;
    Ok(Plan::new((hour - runs - 2 + n) * HOUR_NS))
}

pub(crate) type Verdicts = Vec<(u64, Verdict)>;

/// Loads a server for a while; `end` stops it in its own way before the clients are told to stop.
pub(crate) async fn load(
    server: &Server,
    plan: &Plan,
    time: Duration,
    end: impl AsyncFnOnce() -> Result<()>,
) -> Result<Verdicts> {
    let spawn = |_| tokio::spawn(client(server.endpoints.clone(), plan.clone()));
    let clients: Vec<_> = (0..CLIENTS).map(spawn).collect();
    tokio::time::sleep(time).await;
    end().await?;
    plan.stop.store(true, Ordering::Relaxed);
    let mut out = Vec::new();
    for c in clients {
        out.extend(c.await.context("a client died")??);
    }
    Ok(out)
}

/// A sum over runs.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    acked: u64,
    unknown: u64,
    unknown_stored: u64,
    refused: u64,
    pub(crate) ready: Vec<Duration>,
}

impl Sum {
    pub(crate) fn add(&mut self, f: oracle::Found) {
        self.acked += f.acked;
        self.unknown += f.unknown_batches;
        self.unknown_stored += f.unknown_stored;
        self.refused += f.refused_batches;
    }

    pub(crate) fn report(mut self, harness: &str, runs: u64, began: Instant) -> Value {
        self.ready.sort();
        let at = |q: usize| {
            self.ready
                .get(self.ready.len().saturating_sub(1) * q / 100)
                .map_or(0, Duration::as_millis)
        };
        json!({
            "harness": harness, "runs": runs, "acknowledged": self.acked, "lost": 0,
            "unknown_batches": self.unknown, "unknown_stored": self.unknown_stored,
            "refused_batches": self.refused, "ready_ms_p50": at(50), "ready_ms_p99": at(99),
            "seconds": began.elapsed().as_secs(),
        })
    }
}

pub(crate) async fn check(
    server: &Server,
    plan: &Plan,
    verdicts: &Verdicts,
    sum: &mut Sum,
    rng: &mut Rng,
) -> Result<()> {
    sum.add(oracle::check(server, plan, verdicts).await?);
    let acked: Vec<u64> =
        verdicts.iter().filter(|(_, v)| *v == Verdict::Acked).map(|(b, _)| *b).collect();
    for _ in 0..3 {
        if let Some(b) = acked.get(rng.below(acked.len().max(1) as u64) as usize) {
            oracle::compare(server, plan, *b).await?;
        }
    }
    Ok(())
}

pub(crate) fn temp() -> Result<tempfile::TempDir> {
    tempfile::tempdir().context("failed to make a directory")
}

/// Keeps the directory of a run that failed, to be looked at.
pub(crate) fn keep<T>(dir: tempfile::TempDir, result: Result<T>) -> Result<T> {
    if result.is_ok() {
        return result;
    }
    let kept = dir.keep();
    result.with_context(|| format!("its data is in {}", kept.display()))
}

/// A1: `kill -9` under load, again and again, on one data directory.
///
/// # Errors
/// What was lost, altered or invented.
pub async fn kill(bin: &Path, runs: u64, seed: u64) -> Result<Value> {
    let dir = temp()?;
    let result = kill_in(bin, dir.path(), runs, seed).await;
    keep(dir, result)
}

async fn kill_in(bin: &Path, dir: &Path, runs: u64, seed: u64) -> Result<Value> {
    let began = Instant::now();
    let setup = Setup::new(bin, dir.join("data"), SMALL);
    let mut rng = Rng::new(seed);
    let mut sum = Sum::default();
    let mut all: Vec<(Plan, Verdicts)> = Vec::new();
    let mut server = setup.start(PATIENCE)?;
    for n in 0..runs {
        let plan = plan(n, runs)?;
        let time = Duration::from_millis(200 + rng.below(1000));
        let verdicts = load(&server, &plan, time, async || server.signal("KILL")).await?;
        drop(server);
        server = setup.start(PATIENCE)?;
        sum.ready.push(server.ready_after);
        let result = check(&server, &plan, &verdicts, &mut sum, &mut rng).await;
        result.with_context(|| format!("run {n} of seed {seed}"))?;
        all.push((plan, verdicts));
    }
    // Later kills, flushes and merges have not touched what was there.
    for _ in 0..20 {
        if let Some((plan, verdicts)) = all.get(rng.below(runs) as usize) {
            oracle::check(&server, plan, verdicts).await.context("an earlier run")?;
        }
    }
    server.stop()?;
    verify(bin, &setup.data)?;
    Ok(sum.report("kill", runs, began))
}

pub(crate) fn verify(bin: &Path, data: &Path) -> Result<()> {
    let out = Command::new(bin).arg("verify").arg(data).output().context("failed to verify")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(out.status.success(), "verify: {text}");
    Ok(())
}

pub(crate) fn run(command: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(command).args(args).output();
    let out = out.with_context(|| format!("failed to run {command}"))?;
    ensure!(out.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// A mounted file system; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn image(image: &Path, at: &Path) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        run("mount", &["-o", "loop", path(image)?, path(at)?])?;
        Ok(Self(at.into()))
    }

    fn tmpfs(at: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", path(at)?])?;
        Ok(Self(at.into()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.0.to_string_lossy()]);
    }
}

pub(crate) fn path(p: &Path) -> Result<&str> {
    p.to_str().context("a path is no text")
}

/// A2: the power goes: the disk's image is copied while the server is frozen, and a server is
/// started on the copy. Needs the right to mount.
///
/// # Errors
/// What was lost, altered or invented, or that the control lost nothing.
pub async fn power(bin: &Path, runs: u64, seed: u64) -> Result<Value> {
    let began = Instant::now();
    let dir = temp()?;
    let (image, copy) = (dir.path().join("disk"), dir.path().join("copy"));
    std::fs::File::create(&image)?.set_len(1 << 30)?;
    run("mkfs.ext4", &["-q", path(&image)?])?;
    let (at, at_copy) = (dir.path().join("at"), dir.path().join("at-copy"));
    let disk = Mount::image(&image, &at)?;
    let setup = |at: &Path| Setup::new(bin, at.join("data"), SMALL);
    let mut rng = Rng::new(seed);
    let mut sum = Sum::default();
    let mut control_lost = 0;
    for n in 0..runs {
        let _ = std::fs::remove_dir_all(at.join("data"));
        let server = setup(&at).start(PATIENCE)?;
        let plan = plan(n, runs)?;
        let time = Duration::from_millis(500 + rng.below(1500));
        // The control: a file written beside the store and never synced.
        let control = at.join(format!("control-{n}"));
        std::fs::write(&control, vec![7_u8; 64 << 10])?;
        let cut = async || {
            server.signal("STOP")?;
            run("cp", &["--sparse=always", path(&image)?, path(&copy)?])?;
            server.signal("KILL")
        };
        let verdicts = load(&server, &plan, time, cut).await?;
        drop(server);
        let restored = Mount::image(&copy, &at_copy)?;
        let control = at_copy.join(format!("control-{n}"));
        control_lost += u64::from(std::fs::read(control).is_ok_and(|b| b != vec![7_u8; 64 << 10]))
            + u64::from(!at_copy.join(format!("control-{n}")).exists());
        let server = setup(&at_copy).start(PATIENCE)?;
        sum.ready.push(server.ready_after);
        let result = check(&server, &plan, &verdicts, &mut sum, &mut rng).await;
        result.with_context(|| format!("run {n} of seed {seed}"))?;
        server.stop()?;
        verify(bin, &at_copy.join("data"))?;
        drop(restored);
    }
    drop(disk);
    ensure!(control_lost > 0, "no cut lost the file that was never synced: the harness is void");
    let mut report = sum.report("power", runs, began);
    if let Value::Object(o) = &mut report {
        o.insert("control_lost".into(), control_lost.into());
    }
    Ok(report)
}

/// A8: a full disk: writes are refused, reads go on, a kill loses nothing, the server starts on the
/// full disk and takes writes again when there is room. Needs the right to mount.
///
/// # Errors
/// Which of these did not hold.
pub async fn full(bin: &Path, seed: u64) -> Result<Value> {
    let began = Instant::now();
    let dir = temp()?;
    let at = dir.path().join("disk");
    let _disk = Mount::tmpfs(&at, 96 << 20)?;
    let config = "data:\n  head_bytes: 4194304\n  disk_reserve_bytes: 16777216\n";
    let setup = Setup::new(bin, at.join("data"), config);
    let mut rng = Rng::new(seed);
    let mut sum = Sum::default();
    // Room for the server to write some and meet the reserve.
    let filler = at.join("filler");
    std::fs::write(&filler, vec![1_u8; 56 << 20])?;
    let server = setup.start(PATIENCE)?;
    let first = plan(0, 4)?;
    let verdicts = load(&server, &first, Duration::from_secs(8), async || Ok(())).await?;
    let refused = verdicts.iter().filter(|(_, v)| *v == Verdict::Refused).count();
    ensure!(refused > 0, "the disk was never full: the harness is void");
    check(&server, &first, &verdicts, &mut sum, &mut rng).await.context("reading while full")?;
    server.signal("KILL")?;
    drop(server);
    // Not one block left.
    let rest = at.join("rest");
    let _ = run("dd", &["if=/dev/zero", &format!("of={}", path(&rest)?), "bs=4096"]);
    let server = setup.start(PATIENCE).context("starting on a full disk")?;
    sum.ready.push(server.ready_after);
    oracle::check(&server, &first, &verdicts).await.context("after a kill while full")?;
    server.signal("KILL")?;
    drop(server);
    let _ = std::fs::remove_file(&rest);
    let server = setup.start(PATIENCE)?;
    let during = plan(1, 4)?;
    let refused = load(&server, &during, Duration::from_secs(1), async || Ok(())).await?;
    ensure!(refused.iter().any(|(_, v)| *v == Verdict::Refused), "a full disk took everything");
    std::fs::remove_file(&filler)?;
    let freed = Instant::now();
    let resumed = loop {
        let probe =
            obs_objects::http_client().get(server.url("ui", "/health/ready")?).send().await?;
        if probe.status().is_success() {
            break freed.elapsed();
        }
        if freed.elapsed() > Duration::from_secs(5) {
            bail!("writes are still refused 5 s after space returned");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let after = plan(2, 4)?;
    let verdicts = load(&server, &after, Duration::from_secs(1), async || Ok(())).await?;
    let acked = verdicts.iter().filter(|(_, v)| *v == Verdict::Acked).count();
    ensure!(acked > 0, "nothing was taken after space returned");
    check(&server, &after, &verdicts, &mut sum, &mut rng).await?;
    server.stop()?;
    verify(bin, &setup.data)?;
    let mut report = sum.report("full", 1, began);
    if let Value::Object(o) = &mut report {
        o.insert("resumed_ms".into(), (resumed.as_millis() as u64).into());
    }
    Ok(report)
}

fn log_files(data: &Path) -> Result<(usize, u64)> {
    let mut out = (0, 0);
    for entry in std::fs::read_dir(data.join("wal"))? {
        out.0 += 1;
        out.1 += entry?.metadata()?.len();
    }
    Ok(out)
}

/// Fills a data directory with a log of at least `bytes`, all of it unflushed.
async fn long_log(bin: &Path, data: &Path, bytes: u64) -> Result<(Plan, Verdicts)> {
    let config = "data:\n  head_bytes: 6000000000\n  disk_reserve_bytes: 0\n";
    let setup = Setup::new(bin, data, config);
    let server = setup.start(PATIENCE)?;
    let plan = plan(0, 4)?;
    let long_enough = async || {
        while log_files(data)?.1 < bytes {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        server.signal("KILL")
    };
    let verdicts = load(&server, &plan, Duration::ZERO, long_enough).await?;
    Ok((plan, verdicts))
}

/// A10: kills while the log is being read, twenty in a row.
///
/// # Errors
/// What was lost, or that the log grew.
pub async fn replay(bin: &Path, kills: u64, seed: u64) -> Result<Value> {
    let began = Instant::now();
    let dir = temp()?;
    let data = dir.path().join("data");
    let (plan, verdicts) = long_log(bin, &data, 300 << 20).await?;
    let mut rng = Rng::new(seed);
    let mut sum = Sum::default();
    let before = log_files(&data)?;
    let config = "data:\n  disk_reserve_bytes: 0\n";
    let setup = Setup::new(bin, data.clone(), config);
    for _ in 0..kills {
        let time = Duration::from_millis(20 + rng.below(400));
        // Killed while it starts; whether it got ready before does not matter.
        drop(setup.start(time));
    }
    let after = log_files(&data)?;
    ensure!(
        after.0 <= before.0 + kills as usize && after.1 <= before.1 + (1 << 20),
        "the log grew from {before:?} to {after:?}"
    );
    let server = setup.start(PATIENCE)?;
    sum.ready.push(server.ready_after);
    check(&server, &plan, &verdicts, &mut sum, &mut rng).await?;
    server.stop()?;
    verify(bin, &data)?;
    Ok(sum.report("replay", kills, began))
}

/// A11: a log of 2 GiB is read under a memory limit of 1 GiB, twice.
///
/// # Errors
/// When the server dies or loses something. Needs the right to make control groups.
pub async fn memory(bin: &Path, seed: u64) -> Result<Value> {
    let began = Instant::now();
    let dir = temp()?;
    let data = dir.path().join("data");
    let (plan, verdicts) = long_log(bin, &data, 2 << 30).await?;
    let log = log_files(&data)?.1;
    let mut sum = Sum::default();
    let config = "data:\n  disk_reserve_bytes: 0\n";
    let setup = Setup { memory: Some(1 << 30), ..Setup::new(bin, data, config) };
    // Killed in the middle, as the kernel would.
    drop(setup.start(Duration::from_secs(3)));
    let server = setup.start(PATIENCE)?;
    sum.ready.push(server.ready_after);
    let peak = server.peak()?;
    check(&server, &plan, &verdicts, &mut sum, &mut Rng::new(seed)).await?;
    server.stop()?;
    let mut report = sum.report("memory", 1, began);
    if let Value::Object(o) = &mut report {
        o.insert("log_bytes".into(), log.into());
        o.insert("peak_bytes".into(), peak.into());
    }
    Ok(report)
}

/// A13: every successful answer follows an `fdatasync` that began after its request was read.
///
/// # Errors
/// When one does not, or strace cannot run.
pub async fn strace(bin: &Path, requests: u64) -> Result<Value> {
    let began = Instant::now();
    let dir = temp()?;
    let setup = Setup::new(bin, dir.path().join("data"), SMALL);
    let server = setup.start(PATIENCE)?;
    let trace = dir.path().join("trace");
    let mut tracer = Command::new("strace")
        .args(["-f", "-q", "-e", "trace=fdatasync,write,writev,sendto,sendmsg", "-s", "24", "-o"])
        .args([path(&trace)?, "-p", &server.pid().to_string()])
        .spawn()
        .context("failed to run strace")?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let plan = plan(0, 1)?;
    let http = obs_objects::http_client();
    let mut acked = 0;
    for batch in 0..requests {
        let one = Plan::new(plan.start_ns);
        one.next.store(batch, Ordering::Relaxed);
        acked += u64::from(crate::load::once(&http, &server, &one, batch).await? == Verdict::Acked);
    }
    run("kill", &["-INT", &tracer.id().to_string()])?;
    tracer.wait()?;
    let text = std::fs::read_to_string(&trace).context("no trace")?;
    let (mut answers, mut covered, mut synced) = (0_u64, 0_u64, false);
    for line in text.lines() {
        if line.contains("fdatasync") && line.trim_end().ends_with("= 0") {
            synced = true;
        } else if line.contains("\"HTTP/1.1 2") {
            answers += 1;
            covered += u64::from(std::mem::take(&mut synced));
        }
    }
    ensure!(acked == requests && answers >= requests, "{answers} answers of {requests} were seen");
    ensure!(covered == answers, "{} answers came before their sync", answers - covered);
    Ok(json!({
        "harness": "strace", "requests": requests, "answers": answers, "after_sync": covered,
        "seconds": began.elapsed().as_secs(),
    }))
}
