//! Compares what a server shows with what its clients were told.

use crate::load::{Kind, Plan, Verdict, text, value};
use crate::server::Server;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What a check found.
#[derive(Debug, Default, Clone, Copy)]
pub struct Found {
    pub acked: u64,
    pub unknown_batches: u64,
    pub unknown_stored: u64,
    pub refused_batches: u64,
}

/// Nanoseconds as SQL reads them.
pub(crate) fn time(ns: u64) -> String {
    format!("to_timestamp_nanos({ns})")
}

async fn sql(server: &Server, query: &str) -> Result<Vec<Value>> {
    sql_of(server, "default", query).await
}

/// Returns the rows of a query of a tenant.
pub(crate) async fn sql_of(server: &Server, tenant: &str, query: &str) -> Result<Vec<Value>> {
    let request = obs_objects::http_client()
        .get(server.url("ui", "/api/v1/sql")?)
        .header("x-scope-orgid", tenant)
        .query(&[("q", query)]);
    let answer: Value = request.send().await?.json().await?;
    ensure!(answer.get("partial").is_none(), "an answer is partial: {answer}");
    let rows = answer.get("rows").and_then(Value::as_array);
    rows.cloned().with_context(|| format!("no rows: {answer}"))
}

pub(crate) fn number(row: &Value, name: &str) -> Result<f64> {
    let v = row.get(name).with_context(|| format!("no {name} in {row}"))?;
    let parsed = v.as_f64().or_else(|| v.as_str().and_then(|s| s.parse().ok()));
    parsed.with_context(|| format!("{name} is no number in {row}"))
}

type Stored = BTreeMap<u64, (f64, f64)>;

/// Returns (records, distinct records or the sum of values) by batch.
async fn stored(server: &Server, plan: &Plan, upto: u64) -> Result<Stored> {
    /// Batches asked for at once: their records fit into a query's memory.
    const SLICE: usize = 1500;
    let mut out = BTreeMap::new();
    for first in (0..=upto).step_by(SLICE) {
        slice(server, plan, first..(first + SLICE as u64).min(upto + 1), &mut out).await?;
    }
    Ok(out)
}

async fn slice(server: &Server, plan: &Plan, batches: Range<u64>, out: &mut Stored) -> Result<()> {
    let start = plan.start_ns;
    let (from, end) = (plan.time_of(batches.start), plan.time_of(batches.end));
    let range = format!("ts >= {} AND ts < {}", time(from), time(end));
    let by_text = |table: &str, column: &str| {
        format!(
            "SELECT CAST(substr({column}, 3, 7) AS BIGINT) AS b, count(*) AS c, \
             count(DISTINCT substr({column}, 13, 4)) AS d FROM {table} WHERE {range} GROUP BY 1"
        )
    };
    let queries = [
        by_text("logs", "line"),
        by_text("spans", "name"),
        format!(
            "SELECT (CAST(ts AS BIGINT) - {start}) / 1000000 AS b, count(*) AS c, sum(value) AS d \
             FROM metrics WHERE name = 'torture_value' AND {range} GROUP BY 1"
        ),
    ];
    for q in queries {
        for row in sql(server, &q).await? {
            let batch = number(&row, "b")? as u64;
            let before = out.insert(batch, (number(&row, "c")?, number(&row, "d")?));
            ensure!(before.is_none(), "batch {batch} is in two tables");
        }
    }
    Ok(())
}

/// Checks every batch of a plan: acknowledged ones are there whole and once, refused ones are not
/// there, the rest is there whole or not at all, and nothing else is there.
///
/// # Errors
/// The first thing that is wrong.
pub async fn check(server: &Server, plan: &Plan, verdicts: &[(u64, Verdict)]) -> Result<Found> {
    let upto = verdicts.iter().map(|(b, _)| *b).max().unwrap_or(0);
    let mut stored = stored(server, plan, upto).await?;
    let mut found = Found::default();
    for (batch, verdict) in verdicts {
        let kind = Kind::of(*batch);
        let n = kind.records();
        let whole = match kind {
            Kind::RemoteWrite => (n as f64, (0..n).map(|i| value(*batch, i)).sum()),
            _ => (n as f64, n as f64),
        };
        let here = stored.remove(batch);
        if let Some(got) = here
            && got != whole
        {
            bail!("batch {batch} ({kind:?}, {verdict:?}) is there as {got:?}, not {whole:?}");
        }
        match (verdict, here.is_some()) {
            (Verdict::Acked, true) => found.acked += n,
            (Verdict::Acked, false) => {
                bail!("batch {batch} ({kind:?}) was acknowledged and is lost")
            }
            (Verdict::Refused, true) => bail!("batch {batch} ({kind:?}) was refused and is there"),
            (Verdict::Refused, false) => found.refused_batches += 1,
            (Verdict::Unknown, is_here) => {
                found.unknown_batches += 1;
                found.unknown_stored += u64::from(is_here);
            }
        }
    }
    if let Some((batch, _)) = stored.first_key_value() {
        bail!("batch {batch} was never sent and is there");
    }
    Ok(found)
}

/// Compares every byte of one batch of log lines or spans.
///
/// # Errors
/// When a record differs.
pub async fn compare(server: &Server, plan: &Plan, batch: u64) -> Result<()> {
    let (table, column) = match Kind::of(batch) {
        Kind::RemoteWrite => return Ok(()),
        Kind::OtlpLogs | Kind::Loki => ("logs", "line"),
        Kind::OtlpTraces => ("spans", "name"),
    };
    let (from, to) = (time(plan.time_of(batch)), time(plan.time_of(batch + 1)));
    let query = format!("SELECT {column} AS t FROM {table} WHERE ts >= {from} AND ts < {to}");
    let rows = sql(server, &query).await?;
    let got: BTreeSet<&str> = rows.iter().filter_map(|r| r.get("t")?.as_str()).collect();
    let want: Vec<String> = (0..Kind::of(batch).records()).map(|i| text(batch, i)).collect();
    let want: BTreeSet<&str> = want.iter().map(String::as_str).collect();
    ensure!(got == want, "batch {batch} was altered");
    Ok(())
}
