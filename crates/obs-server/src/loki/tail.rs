//! Following a query: entries over a WebSocket as they are stored.

use super::{Api, bad, bounds, failure, limit, parsed, write_streams};
use crate::params::Params;
use crate::run::blocking;
use crate::state::AppState;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use obs_ingest::Watch;
use obs_logql::ast::{LogExpr, Query};
use obs_logql::{Follower, LabelMap, LogEntry, LogOptions, LogStream, run_logs};
use obs_model::{Direction, LogRecord, TenantId, TimestampNs};
use serde_json::json;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Entries and bytes that a slow reader may be behind; what comes then is dropped and told.
const ENTRIES_BEHIND: usize = 10_000;
const BYTES_BEHIND: usize = 1 << 20;
/// Tails at once.
const TAILS_MAX: usize = 64;
static TAILS: AtomicUsize = AtomicUsize::new(0);

#[derive(Default)]
struct Backlog {
    entries: Vec<(LabelMap, TimestampNs, String)>,
    bytes: usize,
    dropped: Vec<(LabelMap, TimestampNs)>,
}

/// Takes what matches a query from the records that were just stored.
struct Tail {
    tenant: TenantId,
    expr: LogExpr,
    backlog: Mutex<Backlog>,
    arrived: Notify,
}

impl Tail {
    fn backlog(&self) -> std::sync::MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Tail {
    fn stored(&self, tenant: &TenantId, records: &[LogRecord]) {
        if *tenant != self.tenant {
            return;
        }
        let mut follower = Follower::new(&self.expr);
        for r in records {
            let Some((labels, line)) = follower.take(r) else { continue };
            let mut b = self.backlog();
            if b.entries.len() >= ENTRIES_BEHIND || b.bytes + line.len() > BYTES_BEHIND {
                if b.dropped.len() < ENTRIES_BEHIND {
                    b.dropped.push((labels, r.timestamp));
                }
                continue;
            }
            b.bytes += line.len();
            b.entries.push((labels, r.timestamp, line));
        }
        self.arrived.notify_one();
    }
}

/// A place among the tails.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let taken = TAILS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
            (n < TAILS_MAX).then_some(n + 1)
        });
        taken.ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TAILS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn message(streams: &[LogStream], dropped: &[(LabelMap, TimestampNs)]) -> Message {
    let mut body = String::from("{\"streams\":[");
    write_streams(&mut body, streams);
    body.push(']');
    if !dropped.is_empty() {
        let row = |(l, t): &(LabelMap, TimestampNs)| json!({"labels": l, "timestamp": t.nanos().to_string()});
        let rows: Vec<_> = dropped.iter().map(row).collect();
        let _ = write!(body, ",\"dropped_entries\":{}", json!(rows));
    }
    body.push('}');
    Message::Text(body.into())
}

/// Joins entries of the same labels that follow each other.
fn grouped(entries: Vec<(LabelMap, TimestampNs, String)>) -> Vec<LogStream> {
    let mut out: Vec<LogStream> = Vec::new();
    for (labels, timestamp, line) in entries {
        let entry = LogEntry { timestamp, line, categories: None };
        match out.last_mut() {
            Some(s) if s.labels == labels => s.entries.push(entry),
            _ => out.push(LogStream { labels, entries: vec![entry] }),
        }
    }
    out
}

pub(super) async fn tail(
    upgrade: WebSocketUpgrade,
    State(state): State<AppState>,
    p: Params,
) -> Api<Response> {
    let Query::Log(expr) = parsed(&p)? else {
        return Err(bad("tailing requires a log query, not a metric query"));
    };
    let delay: u64 = p.number("delay_for", 0).map_err(bad)?;
    if delay > 5 {
        return Err(bad("delay_for can't be greater than 5"));
    }
    let limit = limit(&state, &p)?;
    let range = bounds(&state, &p)?;
    let Some(place) = Place::take() else {
        return Err(super::ApiError(
            http::StatusCode::TOO_MANY_REQUESTS,
            format!("max concurrent tail requests limit exceeded, count > limit ({TAILS_MAX})"),
        ));
    };
    let tail = Arc::new(Tail {
        tenant: p.tenant.clone(),
        expr: expr.clone(),
        backlog: Mutex::default(),
        arrived: Notify::new(),
    });
    // From here on nothing is missed; what the query finds as well is sent once.
    state.ingest.watch(&tail);
    let options =
        LogOptions { direction: Direction::Backward, limit, interval_ns: 0, categorize: false };
    let tenant = p.tenant.clone();
    let mut past = blocking(&state, "log_repository", "tail", move |s, budget| {
        run_logs(&*s.source, &tenant, &expr, range, options, budget).map_err(failure)
    })
    .await?;
    for s in &mut past {
        s.entries.reverse();
    }
    let run = move |socket| async move {
        follow(socket, &state, &tail, past, Duration::from_secs(delay)).await;
        drop(place);
    };
    Ok(upgrade.on_upgrade(run))
}

async fn follow(
    mut socket: WebSocket,
    state: &AppState,
    tail: &Tail,
    past: Vec<LogStream>,
    delay: Duration,
) {
    const HEARTBEAT: Duration = Duration::from_secs(15);
    const POLL: Duration = Duration::from_secs(1);
    let sent: std::collections::HashSet<(i64, String)> = past
        .iter()
        .flat_map(|s| s.entries.iter().map(|e| (e.timestamp.nanos(), e.line.clone())))
        .collect();
    if !past.is_empty() && socket.send(message(&past, &[])).await.is_err() {
        return;
    }
    let mut is_first = true;
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut poll = tokio::time::interval(POLL);
    loop {
        tokio::select! {
            () = tail.arrived.notified() => {
                tokio::time::sleep(delay).await;
                let mut b = std::mem::take(&mut *tail.backlog());
                if std::mem::take(&mut is_first) {
                    b.entries.retain(|(_, t, line)| !sent.contains(&(t.nanos(), line.clone())));
                }
                if b.entries.is_empty() && b.dropped.is_empty() {
                    continue;
                }
                let streams = grouped(b.entries);
                if socket.send(message(&streams, &b.dropped)).await.is_err() {
                    return;
                }
            }
            _ = heartbeat.tick() => {
                if socket.send(Message::Ping(Vec::new().into())).await.is_err() {
                    return;
                }
            }
            _ = poll.tick() => {
                if state.is_draining() {
                    let _ = socket.send(Message::Close(None)).await;
                    return;
                }
            }
            incoming = socket.recv() => match incoming {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
}
