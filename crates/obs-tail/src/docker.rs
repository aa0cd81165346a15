//! Follows the output of containers through the engine's API.

use crate::config::Job;
use crate::entry::{Entry, LabelMap, visible};
use crate::files::{Clock, put};
use crate::positions::{Position, Positions};
use crate::ship::{Batch, Shipper};
use obs_collect::config::DockerSd;
use obs_collect::http::HttpClient;
use obs_collect::relabel::relabel;
use obs_model::{Labels, LabelsBuilder, TimestampNs};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of one frame, and of a line that spans frames.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// How long until a container whose output ended is asked again.
const AGAIN: Duration = Duration::from_secs(2);

/// A container to follow.
pub(crate) struct Container {
    pub(crate) id: String,
    /// What discovery said of it.
    pub(crate) found: Labels,
    pub(crate) engine: DockerSd,
    pub(crate) folder: PathBuf,
    pub(crate) job: Job,
    pub(crate) positions: Arc<Mutex<Positions>>,
    pub(crate) shipper: Shipper,
    pub(crate) clock: Clock,
}

/// Takes frames out of what the engine sends: `[stream, 0, 0, 0, length]` and so many bytes, or,
/// for a container with a terminal, nothing but bytes.
#[derive(Default)]
struct Frames {
    is_plain: bool,
    bytes: Vec<u8>,
    /// Unfinished lines of output and of errors.
    open: [Vec<u8>; 2],
}

impl Frames {
    fn feed(&mut self, data: &[u8], line: &mut dyn FnMut(bool, &[u8])) -> Result<(), String> {
        if self.is_plain {
            self.lines(false, data, line);
            return Ok(());
        }
        self.bytes.extend_from_slice(data);
        let mut at = 0;
        while let Some(header) = self.bytes.get(at..at + 8) {
            let (Some(kind), Some(len)) = (header.first(), header.get(4..8)) else { break };
            let len = u32::from_be_bytes(len.try_into().unwrap_or_default()) as usize;
            if *kind > 2 || len > FRAME_BYTES_MAX {
                return Err(format!("frame of stream {kind} with {len} bytes"));
            }
            let Some(payload) = self.bytes.get(at + 8..at + 8 + len) else { break };
            let (is_error, payload) = (*kind == 2, payload.to_vec());
            at += 8 + len;
            self.lines(is_error, &payload, line);
        }
        self.bytes.drain(..at);
        Ok(())
    }

    fn lines(&mut self, is_error: bool, data: &[u8], line: &mut dyn FnMut(bool, &[u8])) {
        let [output, errors] = &mut self.open;
        let open = if is_error { errors } else { output };
        let mut rest = data;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (head, tail) = rest.split_at(end);
            open.extend_from_slice(head);
            line(is_error, open);
            open.clear();
            rest = tail.get(1..).unwrap_or_default();
        }
        if open.len() + rest.len() <= FRAME_BYTES_MAX {
            open.extend_from_slice(rest);
        }
    }
}

/// Splits the engine's time off a line.
fn timed(line: &str) -> (Option<TimestampNs>, &str) {
    let Some((time, text)) = line.split_once(' ') else { return (None, line) };
    match TimestampNs::parse_rfc3339(time) {
        Some(t) => (Some(t), text),
        None => (None, line),
    }
}

impl Container {
    fn labels(&self, stream: &str) -> Option<LabelMap> {
        let mut b: LabelsBuilder = self.found.to_builder();
        b.set("__meta_docker_container_log_stream", stream);
        let labels = relabel(&b.build(), &self.job.relabel_configs)?;
        Some(visible(&labels))
    }

    fn key(&self) -> String {
        format!("docker-{}", self.id)
    }

    fn seen(&self) -> u64 {
        let p = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        p.get(&self.key()).map_or(0, |p| p.offset)
    }

    /// Follows the container until it is stopped.
    pub(crate) async fn run(self) {
        let socket = self.engine.socket();
        let client = HttpClient::with_socket(&self.engine.http, &self.folder, socket.as_deref());
        let client = match client {
            Ok(c) => c,
            Err(e) => return tracing::error!(error = e, "containers cannot be read"),
        };
        loop {
            let followed = tokio::select! {
                () = self.shipper.stop.cancelled() => return,
                r = self.follow(&client) => r,
            };
            if let Err(e) = followed {
                tracing::warn!(container = self.id, error = e, "output was not read");
            }
            tokio::select! {
                () = self.shipper.stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    async fn follow(&self, client: &HttpClient) -> Result<(), String> {
        let base = format!("{}/containers/{}", self.engine.base_url(), self.id);
        let show = |e: reqwest::Error| e.without_url().to_string();
        let about = client.get(&format!("{base}/json")).await?.send().await.map_err(show)?;
        let about = obs_collect::http::read_body(about, FRAME_BYTES_MAX).await?;
        let about: serde_json::Value = serde_json::from_slice(&about).map_err(|e| e.to_string())?;
        let is_plain = about.pointer("/Config/Tty").and_then(serde_json::Value::as_bool);
        let seen = self.seen();
        let since = format!("{}.{:09}", seen / 1_000_000_000, seen % 1_000_000_000);
        let url = format!("{base}/logs?stdout=1&stderr=1&timestamps=1&follow=1&since={since}");
        let mut answer = client.get(&url).await?.send().await.map_err(show)?;
        if !answer.status().is_success() {
            return Err(format!("HTTP status {}", answer.status()));
        }
        let mut frames = Frames { is_plain: is_plain.unwrap_or(false), ..Frames::default() };
        let mut pipeline = self.shipper.pipeline(&self.job)?;
        let labels = [self.labels("stdout"), self.labels("stderr")];
        let (mut last, mut last_ns) = (seen, 0_i64);
        while let Some(chunk) = answer.chunk().await.map_err(show)? {
            let now = (self.clock)();
            let mut batch = Batch::new();
            frames.feed(&chunk, &mut |is_error, line| {
                let text = String::from_utf8_lossy(line);
                let (time, line) = timed(text.trim_end_matches('\r'));
                let ns = time.map(TimestampNs::nanos);
                let stamp = ns.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
                // The engine begins with the last one again.
                if stamp > 0 && stamp <= seen {
                    return;
                }
                last = last.max(stamp);
                last_ns = ns.unwrap_or(now.nanos()).max(last_ns + 1);
                let Some(labels) = labels.get(usize::from(is_error)).and_then(Option::as_ref)
                else {
                    return;
                };
                self.shipper.counts.lines.fetch_add(1, Relaxed);
                let time = TimestampNs::from_nanos(last_ns);
                let entry = Entry::new(time, line.to_owned(), labels);
                pipeline.take(entry, now, &mut |e| put(&mut batch, e));
            })?;
            pipeline.flush(now, false, &mut |e| put(&mut batch, e));
            self.shipper.counts.bytes.fetch_add(chunk.len() as u64, Relaxed);
            let is_holding = pipeline.oldest_held().is_some();
            if !self.shipper.ship(batch).await {
                return Ok(());
            }
            self.shipper.pause(pipeline.pause(now)).await;
            if !is_holding {
                let mut p = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
                p.set(&self.key(), Position { offset: last, identity: String::new() });
            }
        }
        let mut batch = Batch::new();
        pipeline.flush((self.clock)(), true, &mut |e| put(&mut batch, e));
        self.shipper.ship(batch).await;
        Ok(())
    }
}

/// Returns the containers among discovered targets: id and labels, each once.
pub(crate) fn containers(targets: &[Labels]) -> Vec<(String, Labels)> {
    let mut out: Vec<(String, Labels)> = Vec::new();
    for t in targets {
        let id = t.get("__meta_docker_container_id");
        if !id.is_empty() && !out.iter().any(|(known, _)| known == id) {
            out.push((id.to_owned(), t.clone()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_apart_wherever_they_are_cut() {
        let frame = |kind: u8, text: &str| {
            let mut out = vec![kind, 0, 0, 0];
            out.extend_from_slice(&(text.len() as u32).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
            out
        };
        let all = [frame(1, "one\ntw"), frame(2, "bad\n"), frame(1, "o\nthree\n")].concat();
        for size in 1..all.len() {
            let mut frames = Frames::default();
            let mut got = Vec::new();
            for part in all.chunks(size) {
                frames
                    .feed(part, &mut |e, l| got.push((e, String::from_utf8_lossy(l).into_owned())))
                    .unwrap();
            }
            let want = [(false, "one"), (true, "bad"), (false, "two"), (false, "three")];
            assert_eq!(got, want.map(|(e, l)| (e, l.to_owned())), "{size}");
        }
        assert!(Frames::default().feed(&[9, 0, 0, 0, 0, 0, 0, 1, 1], &mut |_, _| {}).is_err());
        let (t, line) = timed("2026-01-02T03:04:05.000000001Z hello there");
        assert_eq!((t.map(|t| t.nanos() % 10), line), (Some(1), "hello there"));
    }
}
