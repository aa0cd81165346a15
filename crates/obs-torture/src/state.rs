//! A12: requests that change state, and a kill right after them.
//!
//! The state that exists so far is what was deleted: a tenant, a trace, samples of a series. What was
//! answered with success must hold after the kill; what was not answered holds or does not.

use crate::blackbox::{PATIENCE, SMALL, plan, temp, verify};
use crate::load::{Kind, Plan, Verdict, once};
use crate::oracle::{number, sql_of, time};
use crate::server::{Server, Setup};
use crate::sim::Rng;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// One change: the request, and what is counted to see it.
struct Change {
    listener: &'static str,
    method: reqwest::Method,
    path: String,
    count: String,
    tenant: String,
    before: u64,
    after: u64,
}

async fn count(server: &Server, c: &Change) -> Result<u64> {
    let rows = sql_of(server, &c.tenant, &c.count).await?;
    Ok(number(rows.first().context("no row")?, "n")? as u64)
}

async fn put(http: &reqwest::Client, server: &Server, plan: &Plan, batch: u64) -> Result<()> {
    let verdict = once(http, server, plan, batch).await?;
    ensure!(verdict == Verdict::Acked, "batch {batch} was not taken");
    Ok(())
}

/// Writes what the change of run `n` will delete.
async fn prepare(http: &reqwest::Client, server: &Server, plan: &Plan, n: u64) -> Result<Change> {
    let range = |batch: u64| {
        let (from, to) = (time(plan.time_of(batch)), time(plan.time_of(batch + 1)));
        format!("ts >= {from} AND ts < {to}")
    };
    // The kind of a batch follows from its number.
    let (spans, samples) = (n * 4 + 3, n * 4);
    Ok(match n % 3 {
        0 => {
            let tenant = format!("tenant-{n}");
            let line = format!(
                r#"{{"streams":[{{"stream":{{"a":"b"}},"values":[["{}","one"],["{}","two"]]}}]}}"#,
                plan.time_of(n),
                plan.time_of(n) + 1
            );
            let push = http
                .post(server.url("loki", "/loki/api/v1/push")?)
                .header("content-type", "application/json")
                .header("x-scope-orgid", &tenant)
                .body(line);
            ensure!(push.send().await?.status().is_success(), "a push was refused");
            Change {
                listener: "ui",
                method: reqwest::Method::DELETE,
                path: format!("/api/v1/tenants/{tenant}"),
                count: "SELECT count(*) AS n FROM logs".into(),
                tenant,
                before: 2,
                after: 0,
            }
        }
        1 => {
            put(http, server, plan, spans).await?;
            let all = Kind::of(spans).records();
            Change {
                listener: "ui",
                method: reqwest::Method::DELETE,
                // Ten spans are in each trace of a batch.
                path: format!("/api/v1/traces/{:032x}", u128::from(spans) << 64 | 1),
                count: format!("SELECT count(*) AS n FROM spans WHERE {}", range(spans)),
                tenant: "default".into(),
                before: all,
                after: all - 10,
            }
        }
        _ => {
            put(http, server, plan, samples).await?;
            let all = Kind::of(samples).records();
            let ms = plan.time_of(samples) / 1_000_000;
            let seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
            Change {
                listener: "prometheus",
                method: reqwest::Method::POST,
                path: format!(
                    "/api/v1/admin/tsdb/delete_series?match[]=torture_value%7Bi=%220007%22%7D&start={seconds}&end={seconds}"
                ),
                count: format!("SELECT count(*) AS n FROM metrics WHERE {}", range(samples)),
                tenant: "default".into(),
                before: all,
                after: all - 1,
            }
        }
    })
}

/// Kills the server up to 50 ms after a change was asked for, again and again.
///
/// # Errors
/// When a change that was answered is gone, or something else changed.
pub async fn state(bin: &Path, runs: u64, seed: u64) -> Result<Value> {
    let began = Instant::now();
    let dir = temp()?;
    let setup = Setup::new(bin, dir.path().join("data"), SMALL);
    let mut rng = Rng::new(seed);
    let plan = plan(0, 1)?;
    let (mut answered, mut unanswered, mut held) = (0_u64, 0_u64, 0_u64);
    let mut done: Vec<(Change, u64)> = Vec::new();
    let mut server = setup.start(PATIENCE)?;
    for n in 0..runs {
        let http = obs_objects::http_client();
        let change = prepare(&http, &server, &plan, n).await?;
        ensure!(count(&server, &change).await? == change.before, "run {n}: not there before");
        let url = server.url(change.listener, &change.path)?;
        let request = tokio::spawn(http.request(change.method.clone(), url).send());
        tokio::time::sleep(Duration::from_millis(rng.below(50))).await;
        server.signal("KILL")?;
        let is_answered = match request.await.context("a client died")? {
            Ok(a) if a.status().is_success() => true,
            Ok(a) => bail!("run {n} of seed {seed}: {}: {}", change.path, a.status()),
            Err(_) => false,
        };
        drop(server);
        server = setup.start(PATIENCE)?;
        let left = count(&server, &change).await?;
        let is_good = left == change.after || (!is_answered && left == change.before);
        ensure!(is_good, "run {n} of seed {seed}: {left} left after {}", change.path);
        *(if is_answered { &mut answered } else { &mut unanswered }) += 1;
        held += u64::from(!is_answered && left == change.after);
        done.push((change, left));
    }
    // What was decided stays decided through all later kills.
    for (change, left) in &done {
        ensure!(count(&server, change).await? == *left, "{} came undone", change.path);
    }
    server.stop()?;
    verify(bin, &setup.data)?;
    ensure!(answered > 0 && unanswered > 0, "{answered} answered, {unanswered} not: void");
    Ok(json!({
        "harness": "state", "runs": runs, "answered": answered, "lost": 0,
        "unanswered": unanswered, "unanswered_done": held, "seconds": began.elapsed().as_secs(),
    }))
}
