//! Sends samples on to other systems by remote write, through a queue on disk.
//!
//! What was stored is gathered for a few seconds ([`gather`]), cut into requests, and each request is
//! a file until the other side took it: an outage, a restart or a crash loses nothing. Series are
//! spread over shards by their labels, so that samples of one series stay in order.

pub(crate) mod config;
mod gather;

pub use config::RemoteWrite as Config;

use crate::http::HttpClient;
use crate::relabel::relabel;
use config::Message;
use gather::{Gathered, Taken};
use obs_codec::compression::pack_snappy;
use obs_codec::{remote_write, remote_write2};
use obs_model::{Labels, LabelsBuilder, MetricMetadata, Sample, SampleValue};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Bytes of a queue on disk; past it the oldest requests go.
const QUEUE_BYTES_MAX: u64 = 1 << 30;

/// What became of samples.
#[derive(Debug, Default)]
pub struct Counts {
    pub sent: AtomicU64,
    /// Requests that are tried again.
    pub retried: AtomicU64,
    /// Samples that the other side refused for good, or that fell off a full queue.
    pub dropped: AtomicU64,
    /// Requests waiting on disk.
    pub waiting: AtomicU64,
}

type Points = Vec<(Labels, Sample)>;
/// Metadata by the name of the metric family.
type Known = HashMap<String, MetricMetadata>;

/// One destination.
pub struct Remote {
    config: Config,
    shards: Vec<Shard>,
    external: BTreeMap<String, String>,
    /// Of the metrics that came by: every request of version 2 has that of its series.
    known: Mutex<Known>,
    pub counts: Arc<Counts>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("url", &self.config.url).finish_non_exhaustive()
    }
}

struct Shard {
    folder: PathBuf,
    gathered: Mutex<Gathered>,
    next: AtomicU64,
    /// A file is there to be sent.
    ready: Notify,
}

/// A request on disk.
#[derive(Debug)]
struct Waiting {
    number: u64,
    path: PathBuf,
    bytes: u64,
    message: Message,
}

const ENDINGS: [(Message, &str); 2] = [(Message::V1, ".request"), (Message::V2, ".request2")];

/// Returns the requests in a folder by their number.
fn waiting(folder: &Path) -> Vec<Waiting> {
    let files = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut out: Vec<Waiting> = files
        .filter_map(|f| {
            let path = f.path();
            let name = path.file_name()?.to_str()?;
            // Files that were not finished have another ending.
            let of = |(m, ending): &(Message, &str)| Some((*m, name.strip_suffix(ending)?));
            let (message, number) = ENDINGS.iter().find_map(of)?;
            let number = number.parse().ok()?;
            let bytes = f.metadata().ok()?.len();
            Some(Waiting { number, path, bytes, message })
        })
        .collect();
    out.sort_unstable_by_key(|w| w.number);
    out
}

impl Shard {
    fn new(folder: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let last = waiting(&folder).last().map_or(0, |f| f.number);
        Ok(Self {
            gathered: Mutex::new(Gathered::open(&folder)),
            folder,
            next: AtomicU64::new(last + 1),
            ready: Notify::new(),
        })
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a request as a file, which is whole or not there.
    fn queue(&self, message: Message, samples: usize, body: &[u8]) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ending = ENDINGS.iter().find(|e| e.0 == message).map_or("", |e| e.1);
        let path = self.folder.join(format!("{number}{ending}"));
        let fresh = self.folder.join(format!("{number}.new"));
        let mut file = fs::File::create(&fresh)?;
        // The count of samples, for when the request must be dropped.
        file.write_all(&(samples as u64).to_le_bytes())?;
        file.write_all(body)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        fs::File::open(&self.folder)?.sync_all()
    }

    /// Drops the oldest requests of a queue that is too large.
    fn limit(&self, counts: &Counts) {
        let files = waiting(&self.folder);
        let mut size: u64 = files.iter().map(|f| f.bytes).sum();
        for f in files {
            if size <= QUEUE_BYTES_MAX {
                break;
            }
            size -= f.bytes;
            counts.dropped.fetch_add(samples_of(&f.path), Ordering::Relaxed);
            let _ = fs::remove_file(&f.path);
        }
    }
}

fn samples_of(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap_or_default();
    bytes.first_chunk().map_or(0, |n| u64::from_le_bytes(*n))
}

enum Sent {
    Done,
    /// For good: the other side will never take it.
    Refused(String),
    Later(String, Option<Duration>),
}

async fn post(client: &HttpClient, config: &Config, message: Message, body: Vec<u8>) -> Sent {
    let request = match client.post(&config.url).await {
        Ok(r) => r,
        Err(e) => return Sent::Later(e, None),
    };
    let (content_type, version) = match message {
        Message::V1 => ("application/x-protobuf", "0.1.0"),
        Message::V2 => ("application/x-protobuf;proto=io.prometheus.write.v2.Request", "2.0.0"),
    };
    let mut request = request
        .header("Content-Encoding", "snappy")
        .header("Content-Type", content_type)
        .header("X-Prometheus-Remote-Write-Version", version)
        .timeout(config.remote_timeout.0)
        .body(body);
    for (name, value) in &config.headers {
        request = request.header(name, value);
    }
    let answer = match request.send().await {
        Ok(a) => a,
        Err(e) => return Sent::Later(e.without_url().to_string(), None),
    };
    let status = answer.status();
    if status.is_success() {
        return Sent::Done;
    }
    let wait = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
    let text = crate::http::read_body(answer, 1024).await.unwrap_or_default();
    let text = format!("{status}: {}", String::from_utf8_lossy(&text).trim());
    // Only overload and faults of the other side pass.
    if status.is_server_error() || status == 429 {
        Sent::Later(text, wait.map(Duration::from_secs))
    } else {
        Sent::Refused(text)
    }
}

impl Remote {
    /// Opens the queue of a destination below `folder`, with what a run before left in it.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(
        config: &Config,
        external: &BTreeMap<String, String>,
        folder: &Path,
    ) -> Result<Self, String> {
        let mut hasher = std::hash::DefaultHasher::new();
        config.url.hash(&mut hasher);
        let own = folder.join(format!("{:016x}", hasher.finish()));
        let n = config.shards();
        let shards =
            (0..n).map(|i| Shard::new(own.join(i.to_string()))).collect::<Result<_, _>>()?;
        Ok(Self {
            config: config.clone(),
            shards,
            external: external.clone(),
            known: Mutex::default(),
            counts: Arc::default(),
        })
    }

    /// Takes samples that were stored; when this returns a crash of the process does not lose them.
    pub fn push(&self, points: &[(Labels, Sample)], metadata: &[MetricMetadata]) {
        let is_sent = |s: &Sample| {
            self.config.send_native_histograms
                || self.config.protobuf_message == Message::V2
                || matches!(s.value, SampleValue::Float(_))
        };
        let mut by_shard: Vec<(Points, Vec<MetricMetadata>)> =
            vec![Default::default(); self.shards.len()];
        for (labels, sample) in points.iter().filter(|p| is_sent(&p.1)) {
            let mut b: LabelsBuilder = labels.to_builder();
            for (n, v) in self.external.iter().filter(|(n, _)| labels.get(n).is_empty()) {
                b.set(n, v);
            }
            let rules = &self.config.write_relabel_configs;
            let Some(labels) = relabel(&b.build(), rules) else { continue };
            let mut hasher = std::hash::DefaultHasher::new();
            for pair in labels.iter() {
                pair.hash(&mut hasher);
            }
            let at = (hasher.finish() % self.shards.len().max(1) as u64) as usize;
            if let Some(s) = by_shard.get_mut(at) {
                s.0.push((labels, sample.clone()));
            }
        }
        match self.config.protobuf_message {
            Message::V2 => self.learn(metadata),
            Message::V1 if self.config.metadata_config.send => {
                if let Some((_, list)) = by_shard.first_mut() {
                    list.extend_from_slice(metadata);
                }
            }
            Message::V1 => {}
        }
        for (shard, (points, mut metadata)) in self.shards.iter().zip(by_shard) {
            let mut gathered = shard.gathered();
            metadata.retain(|m| !gathered.has(m));
            if !points.is_empty() || !metadata.is_empty() {
                gathered.add(points, metadata);
            }
            let taken = gathered.take(self.config.queue_config.max_samples_per_send.max(1), false);
            drop(gathered);
            if let Some(taken) = taken {
                self.queue(shard, taken);
            }
        }
    }

    /// Remembers metadata, of as many metrics as a tenant's store does.
    fn learn(&self, metadata: &[MetricMetadata]) {
        const KNOWN_MAX: usize = 20_000;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for m in metadata {
            // Every scrape tells it again.
            let is_new = match known.get(&m.name) {
                Some(before) => before != m,
                None => known.len() < KNOWN_MAX,
            };
            if is_new {
                known.insert(m.name.clone(), m.clone());
            }
        }
    }

    /// Makes requests of what was gathered.
    fn queue(&self, shard: &Shard, taken: Taken) {
        let enough = self.config.queue_config.max_samples_per_send.max(1);
        let mut metadata: Vec<MetricMetadata> = taken.metadata.into_values().collect();
        metadata.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let message = self.config.protobuf_message;
        let parts: Vec<&[(Labels, Sample)]> =
            if taken.points.is_empty() { vec![&[]] } else { taken.points.chunks(enough).collect() };
        for part in parts {
            let body = match message {
                Message::V1 => remote_write::encode(part, &std::mem::take(&mut metadata)),
                Message::V2 => {
                    let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                    remote_write2::encode(part, &known)
                }
            };
            let packed = pack_snappy(&body).map_err(|e| io::Error::other(e.to_string()));
            if let Err(e) = packed.and_then(|b| shard.queue(message, part.len(), &b)) {
                tracing::error!(folder = %shard.folder.display(), error = %e, "samples were not queued for remote write");
                self.counts.dropped.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
        }
        for path in taken.files {
            let _ = fs::remove_file(path);
        }
        shard.limit(&self.counts);
        shard.ready.notify_one();
    }

    /// Queues what is gathered.
    pub fn flush(&self) {
        for s in &self.shards {
            let taken = s.gathered().take(1, true);
            if let Some(taken) = taken {
                self.queue(s, taken);
            }
        }
    }

    /// Sends until told to stop; what is queued then is sent by the next run.
    pub async fn run(self: Arc<Self>, client: HttpClient, stop: CancellationToken) {
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..self.shards.len() {
            let (this, client, stop) = (self.clone(), client.clone(), stop.clone());
            tasks.spawn(async move { this.send_shard(at, &client, &stop).await });
        }
        let gather = self.config.queue_config.batch_send_deadline.0.max(Duration::from_millis(10));
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(gather) => {
                    let this = self.clone();
                    let _ = tokio::task::spawn_blocking(move || this.flush()).await;
                }
            }
        }
        while tasks.join_next().await.is_some() {}
        self.flush();
    }

    async fn send_shard(&self, at: usize, client: &HttpClient, stop: &CancellationToken) {
        let Some(shard) = self.shards.get(at) else { return };
        let url = &self.config.url;
        let queue = &self.config.queue_config;
        let mut backoff = queue.min_backoff.0;
        loop {
            let files = waiting(&shard.folder);
            self.counts.waiting.store(files.len() as u64, Ordering::Relaxed);
            if files.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = shard.ready.notified() => {}
                }
                continue;
            }
            for f in files {
                if stop.is_cancelled() {
                    return;
                }
                let Ok(bytes) = fs::read(&f.path) else { continue };
                let Some((count, body)) = bytes.split_first_chunk() else {
                    let _ = fs::remove_file(&f.path);
                    continue;
                };
                let count = u64::from_le_bytes(*count);
                let sent = tokio::select! {
                    () = stop.cancelled() => return,
                    sent = post(client, &self.config, f.message, body.to_vec()) => sent,
                };
                match sent {
                    Sent::Done => {
                        self.counts.sent.fetch_add(count, Ordering::Relaxed);
                        backoff = queue.min_backoff.0;
                    }
                    Sent::Refused(why) => {
                        tracing::error!(
                            url,
                            samples = count,
                            error = why,
                            "remote write was refused; the samples are dropped"
                        );
                        self.counts.dropped.fetch_add(count, Ordering::Relaxed);
                    }
                    Sent::Later(why, wait) => {
                        self.counts.retried.fetch_add(1, Ordering::Relaxed);
                        let wait = wait.map_or(backoff, |w| w.min(Duration::from_secs(60)));
                        tracing::warn!(url, error = why, "remote write failed; it is tried again");
                        backoff = (backoff * 2).min(queue.max_backoff.0);
                        tokio::select! {
                            () = stop.cancelled() => return,
                            () = tokio::time::sleep(wait) => {}
                        }
                        // The same request again: samples stay in order.
                        break;
                    }
                }
                let _ = fs::remove_file(&f.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn what_is_queued_outlives_the_process_and_keeps_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let c = config(
            "{url: 'http://x/w', write_relabel_configs: [{source_labels: [__name__], regex: drop, action: drop}], queue_config: {max_shards: 2}}",
        );
        let external = BTreeMap::from([("dc".to_owned(), "eu".to_owned())]);
        let open = || Remote::new(&c, &external, dir.path()).unwrap();
        let remote = open();
        let series = |n: &str| Labels::from_pairs([("__name__", n)]);
        let points: Points = (0..5000).map(|i| (series("a"), Sample::float(i, i as f64))).collect();
        remote.push(&points, &[]);
        remote.push(&[(series("drop"), Sample::float(1, 1.0))], &[]);
        remote.flush();
        drop(remote);
        let again = open();
        let files: Vec<_> = again.shards.iter().flat_map(|s| waiting(&s.folder)).collect();
        let counts: Vec<u64> = files.iter().map(|f| samples_of(&f.path)).collect();
        assert_eq!(counts, [2000, 2000, 1000]);
        let body = fs::read(&files[0].path).unwrap();
        let raw = obs_codec::compression::snappy(&body[8..], 1 << 24).unwrap();
        let got = obs_codec::remote_write::decode(&raw, &mut |_, build| build()).unwrap().items;
        assert_eq!(got.points[1].0.to_string(), "a{dc=\"eu\"}");
        assert_eq!(got.points[1999].1, Sample::float(1999, 1999.0));
        // Numbers go on, so that older requests are sent first.
        again.push(&points[..2000], &[]);
        let after: Vec<_> =
            again.shards.iter().flat_map(|s| waiting(&s.folder)).map(|f| f.number).collect();
        assert!(after.windows(2).all(|w| w[0] < w[1]) && after.len() == 4);
    }
}
