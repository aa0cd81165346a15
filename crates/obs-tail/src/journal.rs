//! Follows systemd's journal through `journalctl`, which knows every form the journal's files have.

use crate::config::{Job, Journal};
use crate::entry::{Entry, visible_or_job};
use crate::files::{Clock, put};
use crate::positions::{Position, Positions};
use crate::ship::{Batch, Shipper};
use obs_collect::relabel::relabel;
use obs_model::{LabelsBuilder, TimestampNs};
use serde_json::{Map, Value};
use std::process::Stdio;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

/// How long after its end the command is started again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long entries wait for others, and how many go together.
const GATHER: Duration = Duration::from_millis(100);
const GATHERED_MAX: usize = 1000;
/// Bytes of an entry; longer ones are passed over.
const ENTRY_BYTES_MAX: u64 = 16 << 20;
/// How far back is read at first, as Promtail's default.
const MAX_AGE: &str = "7h";
const PRIORITIES: [&str; 8] =
    ["emerg", "alert", "crit", "error", "warning", "notice", "info", "debug"];

/// The journal of one job.
pub(crate) struct Reader {
    pub(crate) job: Job,
    pub(crate) journal: Journal,
    pub(crate) positions: Arc<Mutex<Positions>>,
    pub(crate) shipper: Shipper,
    pub(crate) clock: Clock,
}

/// Returns a field as text: bytes that are no text come as a list of numbers, and a field that is
/// there several times as a list of texts, of which the last holds.
fn text(v: &Value) -> Option<String> {
    match v {
        Value::String(s) => Some(s.clone()),
        Value::Array(list) if list.iter().all(Value::is_u64) => {
            let bytes = list.iter().filter_map(|n| u8::try_from(n.as_u64()?).ok());
            Some(String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned())
        }
        Value::Array(list) => list.last().and_then(text),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

/// What one entry says.
struct Said {
    cursor: String,
    at: TimestampNs,
    fields: Map<String, Value>,
}

fn read(line: &[u8]) -> Option<Said> {
    let Value::Object(fields) = serde_json::from_slice(line).ok()? else { return None };
    let cursor = fields.get("__CURSOR")?.as_str()?.to_owned();
    let micros: i64 = fields.get("__REALTIME_TIMESTAMP").and_then(text)?.parse().ok()?;
    Some(Said { cursor, at: TimestampNs::from_nanos(micros.checked_mul(1000)?), fields })
}

impl Reader {
    fn key(&self) -> String {
        format!("cursor-{}", self.job.job_name)
    }

    fn position(&self) -> Option<Position> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).get(&self.key()).cloned()
    }

    fn command(&self, from: Option<&Position>) -> Command {
        let mut c = Command::new("journalctl");
        c.args(["--output=json", "--all", "--follow", "--no-tail", "--no-pager", "--quiet"]);
        if let Some(path) = &self.journal.path {
            c.arg("--directory").arg(path);
        }
        match from {
            Some(p) if !p.identity.is_empty() => {
                c.arg(format!("--after-cursor={}", p.identity));
            }
            _ => {
                let age = self.journal.max_age.as_deref().unwrap_or(MAX_AGE);
                // The same units as there: 7h, 30m, 90s.
                c.arg(format!("--since=-{age}"));
            }
        }
        c.args(self.journal.matches.split_whitespace());
        c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        c
    }

    /// Makes a line of an entry; `None` for one that has none, or that relabelling leaves out.
    fn entry(&self, said: &Said) -> Option<Entry> {
        let field = |name: &str| said.fields.get(name).and_then(text);
        let line = if self.journal.json {
            Value::Object(said.fields.clone()).to_string()
        } else {
            field("MESSAGE")?
        };
        let mut b = LabelsBuilder::default();
        for (n, v) in &self.journal.labels {
            b.set(n, v);
        }
        for (name, v) in &said.fields {
            if let Some(v) = text(v) {
                b.set(&format!("__journal_{}", name.to_lowercase()), &v);
            }
        }
        let priority = field("PRIORITY").and_then(|p| p.parse::<usize>().ok());
        let keyword = priority.and_then(|p| PRIORITIES.get(p).copied());
        if let Some(keyword) = keyword {
            b.set("__journal_priority_keyword", keyword);
        }
        let labels = relabel(&b.build(), &self.job.relabel_configs)?;
        Some(Entry::new(said.at, line, &visible_or_job(&labels, &self.job)))
    }

    /// Follows the journal until it is stopped.
    pub(crate) async fn run(self) {
        loop {
            let followed = tokio::select! {
                () = self.shipper.stop.cancelled() => return,
                r = self.follow() => r,
            };
            if let Err(e) = followed {
                tracing::warn!(job = self.job.job_name, error = e, "the journal was not read");
            }
            tokio::select! {
                () = self.shipper.stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    async fn follow(&self) -> Result<(), String> {
        let mut pipeline = self.shipper.pipeline(&self.job)?;
        let mut child = self
            .command(self.position().as_ref())
            .spawn()
            .map_err(|e| format!("journalctl cannot be started: {e}"))?;
        let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
            return Err("journalctl has no output".into());
        };
        // What it complains of is told when it ends; it must not wait for anyone to read it.
        let complaints = tokio::spawn(async move {
            let mut text = String::new();
            let _ = err.take(4096).read_to_string(&mut text).await;
            text.lines().next().unwrap_or_default().to_owned()
        });
        let mut out = BufReader::new(out);
        let mut line = Vec::new();
        let mut batch = Batch::new();
        let mut reached: Option<Position> = None;
        let (mut gathered, mut is_over) = (0, false);
        let mut until = None;
        loop {
            let waiting = async move {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let mut is_due = gathered >= GATHERED_MAX;
            if !is_due {
                let mut limited = (&mut out).take(ENTRY_BYTES_MAX);
                tokio::select! {
                    () = waiting => is_due = true,
                    read = limited.read_until(b'\n', &mut line) => {
                        is_over = read.map_err(|e| e.to_string())? == 0;
                        is_due = is_over;
                    }
                }
            }
            let now = (self.clock)();
            if line.ends_with(b"\n") {
                self.shipper.counts.bytes.fetch_add(line.len() as u64, Relaxed);
                match read(&line) {
                    None => drop(self.shipper.counts.malformed.fetch_add(1, Relaxed)),
                    Some(said) => {
                        self.shipper.counts.lines.fetch_add(1, Relaxed);
                        if let Some(e) = self.entry(&said) {
                            pipeline.take(e, now, &mut |e| put(&mut batch, e));
                        }
                        let offset = u64::try_from(said.at.nanos() / 1000).unwrap_or(0);
                        reached = Some(Position { offset, identity: said.cursor });
                    }
                }
                line.clear();
                gathered += 1;
                until = until.or(Some(tokio::time::Instant::now() + GATHER));
            } else if line.len() as u64 >= ENTRY_BYTES_MAX {
                // Its rest comes as a line that is none.
                self.shipper.counts.too_long.fetch_add(1, Relaxed);
                line.clear();
            }
            if !is_due {
                continue;
            }
            pipeline.flush(now, is_over, &mut |e| put(&mut batch, e));
            let is_holding = pipeline.oldest_held().is_some();
            if !self.shipper.ship(std::mem::take(&mut batch)).await {
                return Ok(());
            }
            if let Some(p) = reached.take_if(|_| !is_holding) {
                self.positions.lock().unwrap_or_else(PoisonError::into_inner).set(&self.key(), p);
            }
            self.shipper.pause(pipeline.pause(now)).await;
            (gathered, until) = (0, None);
            if is_over {
                let status = child.wait().await.map_err(|e| e.to_string())?;
                let said = complaints.await.unwrap_or_default();
                return Err(format!("journalctl ended: {status} {said}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_whatever_their_fields_hold() {
        let line = br#"{"__CURSOR":"s=1;i=2","__REALTIME_TIMESTAMP":"1790000000000001","MESSAGE":[104,105,255],"PRIORITY":"3","TAG":["a","b"],"GONE":null}"#;
        let said = read(line).unwrap();
        assert_eq!((said.cursor.as_str(), said.at.nanos()), ("s=1;i=2", 1_790_000_000_000_001_000));
        assert_eq!(text(&said.fields["MESSAGE"]).unwrap(), "hi\u{fffd}");
        assert_eq!(text(&said.fields["TAG"]).unwrap(), "b");
        assert_eq!(text(&said.fields["GONE"]), None);
        for bad in [&b"[]"[..], b"{", b"{}", br#"{"__CURSOR":"x","__REALTIME_TIMESTAMP":"no"}"#] {
            assert!(read(bad).is_none());
        }
    }
}
