//! The table of what a million items cost: CPU time, bytes on disk, memory.

use crate::load::{Kind, MANY, Plan, Verdict, many_series, once};
use crate::server::{Server, Setup, cpu_of};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One line of the table.
struct Work {
    name: &'static str,
    listener: &'static str,
    path: &'static str,
    /// Arguments of the external generator; none where it has no such data.
    external: &'static [&'static str],
    /// What our own generator sends instead, and how that is called; no items: it has none.
    own: Kind,
    own_name: &'static str,
    items: u64,
    /// The signals whose segments hold it.
    signals: &'static [&'static str],
}

const WORKS: &[Work] = &[
    Work {
        name: "remote write, 10k series",
        listener: "prometheus",
        path: "/api/v1/write",
        external: &["metrics", "--series", "10000", "--hours", "1.1"],
        own: Kind::RemoteWrite,
        own_name: "remote write, 1k series",
        items: 2_000_000,
        signals: &["metrics"],
    },
    Work {
        name: "remote write, 100k series",
        listener: "prometheus",
        path: "/api/v1/write",
        external: &["metrics", "--series", "100000", "--hours", "0.6"],
        own: Kind::RemoteWrite,
        own_name: "remote write, 100k series",
        items: 0,
        signals: &["metrics"],
    },
    Work {
        name: "Loki push",
        listener: "loki",
        path: "/loki/api/v1/push",
        external: &["logs", "--count", "2400000"],
        own: Kind::Loki,
        own_name: "Loki push",
        items: 1_000_000,
        signals: &["logs"],
    },
    Work {
        name: "OTLP logs",
        listener: "otlp-http",
        path: "/v1/logs",
        external: &["logs", "--protocol", "otlp-http", "--count", "1200000"],
        own: Kind::OtlpLogs,
        own_name: "OTLP logs",
        items: 1_000_000,
        signals: &["logs"],
    },
    Work {
        name: "OTLP traces",
        listener: "otlp-grpc",
        path: "/",
        external: &["traces", "--count", "235000"],
        own: Kind::OtlpTraces,
        own_name: "OTLP/HTTP traces",
        items: 500_000,
        signals: &["spans", "calls"],
    },
    Work {
        name: "OTLP metrics",
        listener: "otlp-http",
        path: "/v1/metrics",
        external: &["metrics", "--protocol", "otlp-http", "--series", "10000", "--hours", "1.1"],
        own: Kind::RemoteWrite,
        own_name: "OTLP metrics",
        items: 0,
        signals: &["metrics"],
    },
];

/// What a generator sent, and the CPU seconds that it took itself: they tell one machine, or one
/// hour of it, from another.
struct Sent {
    items: u64,
    cpu: f64,
}

struct Measured {
    sent: Sent,
    cpu: f64,
    bytes: u64,
    peak: u64,
    restart: Duration,
}

fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|e| {
            if e.path().is_dir() {
                bytes_below(&e.path())
            } else {
                e.metadata().map_or(0, |m| m.len())
            }
        })
        .sum()
}

/// Sends the data of `loadgen`, if there is one, else our own.
async fn send(w: &Work, server: &Server, loadgen: Option<&Path>) -> Result<Option<Sent>> {
    if let Some(loadgen) = loadgen {
        let url = server.url(w.listener, w.path)?;
        let out = Command::new(loadgen).arg("gen").args(w.external).args(["--url", &url]).output();
        let out = out.context("failed to run the generator")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let last = text.lines().last().unwrap_or_default();
        let json: Value = serde_json::from_str(last)
            .with_context(|| format!("the generator printed {last:?}"))?;
        let number = |name: &str| json.get(name).and_then(Value::as_u64).unwrap_or(0);
        ensure!(number("refused") == 0, "some were refused: {json}");
        let cpu = json.get("client_cpu_s").and_then(Value::as_f64).unwrap_or(0.0);
        return Ok(Some(Sent { items: number("items"), cpu }));
    }
    if w.items == 0 {
        return Ok(None);
    }
    // Batches of one kind are four numbers apart.
    let first = Kind::ALL.iter().position(|k| *k == w.own).unwrap_or(0) as u64;
    let batches = w.items / w.own.records();
    let next = AtomicU64::new(0);
    let plan = Plan::new(1_780_000_000_000_000_000);
    let http = obs_objects::http_client();
    let worker = async || -> Result<()> {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= batches {
                return Ok(());
            }
            let verdict = once(&http, server, &plan, first + 4 * n).await?;
            ensure!(verdict == Verdict::Acked, "a batch was not taken: {verdict:?}");
        }
    };
    let before = cpu_of(std::process::id())?;
    tokio::try_join!(worker(), worker(), worker(), worker())?;
    let cpu = cpu_of(std::process::id())? - before;
    Ok(Some(Sent { items: batches * w.own.records(), cpu }))
}

async fn one(w: &Work, bin: &Path, loadgen: Option<&Path>) -> Result<Option<Measured>> {
    let dir = tempfile::tempdir()?;
    let setup = Setup::new(bin, dir.path().join("data"), "# defaults\n");
    let server = setup.start(Duration::from_secs(30))?;
    let before = server.cpu()?;
    let Some(sent) = send(w, &server, loadgen).await? else { return Ok(None) };
    // All of it in segments, and these merged: what it costs in the long run.
    let compact = server.url("ui", "/api/v1/storage/compact")?;
    let answer = obs_objects::http_client().post(compact).send().await?;
    ensure!(answer.status().is_success(), "failed to merge: {}", answer.status());
    let (cpu, peak) = (server.cpu()? - before, server.peak()?);
    let segments = setup.data.join("segments/default");
    let bytes = w.signals.iter().map(|s| bytes_below(&segments.join(s))).sum();
    server.signal("KILL")?;
    drop(server);
    let restart = setup.start(Duration::from_secs(60))?.ready_after;
    Ok(Some(Measured { sent, cpu, bytes, peak, restart }))
}

/// What a million series that are all written to cost.
struct Million {
    peak: u64,
    counted: Duration,
    log: u64,
    restart: Duration,
}

/// Writes to a million series three times, counts them by a query, kills the server and counts
/// them again.
async fn million(bin: &Path) -> Result<Million> {
    const SERIES: u64 = 1_000_000;
    const BODY: u64 = 2_000;
    const START_MS: i64 = 1_780_000_000_000;
    let dir = tempfile::tempdir()?;
    // The program has some series of its own.
    let config = "limits:\n  series: 1100000\n  series_per_tenant: 1100000\n";
    let setup = Setup::new(bin, dir.path().join("data"), config);
    let server = setup.start(Duration::from_secs(30))?;
    let url = server.url("prometheus", "/api/v1/write")?;
    let http = obs_objects::http_client();
    let next = AtomicU64::new(0);
    let worker = async || -> Result<()> {
        loop {
            let at = next.fetch_add(BODY, Ordering::Relaxed);
            if at >= 3 * SERIES {
                return Ok(());
            }
            let time = START_MS + (at / SERIES) as i64 * 15_000;
            let first = at % SERIES;
            let body = many_series(first..first + BODY, time)?;
            let answer = http.post(&url).body(body).send().await?;
            ensure!(answer.status().is_success(), "not taken: {}", answer.text().await?);
        }
    };
    tokio::try_join!(worker(), worker(), worker(), worker())?;
    let count = async |server: &Server| -> Result<Duration> {
        let url = server.url("prometheus", "/api/v1/query")?;
        let query =
            [("query", format!("count({MANY})")), ("time", (START_MS / 1000 + 60).to_string())];
        let began = Instant::now();
        let answer = http.get(url).query(&query).send().await?.text().await?;
        let found: Value = serde_json::from_str(&answer)?;
        let value = found.pointer("/data/result/0/value/1").and_then(Value::as_str);
        ensure!(value == Some("1000000"), "counted wrongly: {answer}");
        Ok(began.elapsed())
    };
    count(&server).await?;
    let counted = count(&server).await?;
    let peak = server.peak()?;
    server.signal("KILL")?;
    drop(server);
    let log = bytes_below(&setup.data.join("wal"));
    let server = setup.start(Duration::from_secs(60))?;
    count(&server).await?;
    Ok(Million { peak, counted, log, restart: server.ready_after })
}

/// Returns the time from an acknowledged line until a query finds it.
async fn visible(bin: &Path) -> Result<Duration> {
    let dir = tempfile::tempdir()?;
    let setup = Setup::new(bin, dir.path().join("data"), "# defaults\n");
    let server = Arc::new(setup.start(Duration::from_secs(30))?);
    let plan = Plan::new(1_780_000_000_000_000_000);
    let http = obs_objects::http_client();
    ensure!(once(&http, &server, &plan, 2).await? == Verdict::Acked, "not taken");
    let began = Instant::now();
    let verdicts = [(2, Verdict::Acked)];
    while crate::oracle::check(&server, &plan, &verdicts).await.is_err() {
        ensure!(began.elapsed() < Duration::from_secs(10), "still not visible after 10 s");
    }
    Ok(began.elapsed())
}

/// Prints the table, a line as soon as it is measured; only lines whose names contain `only`.
///
/// # Errors
/// When a server does not start or take everything.
pub async fn run(bin: &Path, loadgen: Option<PathBuf>, runs: usize, only: &str) -> Result<()> {
    const MILLION: &str = "1,000,000 active series";
    const VISIBLE: &str = "acknowledged → found by a query";
    let mut out = std::io::stdout();
    let source = if loadgen.is_some() { "the given generator" } else { "our own generator" };
    writeln!(
        out,
        "data of {source}; CPU is utime + stime after flush and merges; median of {runs}\n"
    )?;
    writeln!(out, "| work | items | CPU-s/M | of the generator | B/item | peak MB | restart ms |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for w in WORKS.iter().filter(|w| w.name.contains(only)) {
        let mut results = Vec::new();
        for _ in 0..runs.max(1) {
            results.extend(one(w, bin, loadgen.as_deref()).await.context(w.name)?);
        }
        results.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
        let Some(r) = results.get(results.len() / 2) else { continue };
        let items = r.sent.items as f64;
        writeln!(
            out,
            "| {} | {} | {:.2} | {:.2} | {:.2} | {} | {} |",
            if loadgen.is_some() { w.name } else { w.own_name },
            r.sent.items,
            r.cpu / items * 1e6,
            r.sent.cpu / items * 1e6,
            r.bytes as f64 / items,
            r.peak >> 20,
            r.restart.as_millis()
        )?;
    }
    if MILLION.contains(only) {
        let m = million(bin).await.context("a million series")?;
        writeln!(
            out,
            "\n{MILLION}: peak {} MB; counted by a query in {} ms; after a kill ready in {} ms, with {} MB of log",
            m.peak >> 20,
            m.counted.as_millis(),
            m.restart.as_millis(),
            m.log >> 20
        )?;
    }
    if VISIBLE.contains(only) {
        writeln!(out, "{VISIBLE}: {} ms", visible(bin).await?.as_millis())?;
    }
    Ok(())
}
