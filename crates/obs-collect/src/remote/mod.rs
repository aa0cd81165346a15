//! Sends samples on to other systems by remote write, through a queue on disk.
//!
//! What was stored is gathered for a few seconds, cut into requests, and each request is a file
//! until the other side took it: an outage or a restart loses nothing that was queued. Series are
//! spread over shards by their labels, so that samples of one series stay in order.

use crate::config::RemoteWrite as Config;
use crate::http::HttpClient;
use crate::relabel::{Rule, relabel};
use obs_codec::compression::pack_snappy;
use obs_codec::remote_write::encode;
use obs_model::{Labels, LabelsBuilder, MetricMetadata, Sample};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Samples of a request, and how long they are gathered.
const BATCH: usize = 2000;
const GATHER: Duration = Duration::from_secs(5);
/// Bytes of a queue on disk; past it the oldest requests go.
const QUEUE_BYTES_MAX: u64 = 1 << 30;
/// Shortest and longest wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(30);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

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

/// One destination.
pub struct Remote {
    url: String,
    shards: Vec<Shard>,
    relabel: Vec<Rule>,
    external: BTreeMap<String, String>,
    pub counts: Arc<Counts>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("url", &self.url).finish_non_exhaustive()
    }
}

struct Shard {
    folder: PathBuf,
    gathered: Mutex<(Points, Vec<MetricMetadata>)>,
    next: AtomicU64,
    /// A file is there to be sent.
    ready: Notify,
}

/// Requests in a folder by their number, with their sizes.
fn waiting(folder: &Path) -> Vec<(u64, PathBuf, u64)> {
    let files = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut out: Vec<(u64, PathBuf, u64)> = files
        .filter_map(|f| {
            let path = f.path();
            // Files that were not finished have another ending.
            let number = path.file_name()?.to_str()?.strip_suffix(".request")?.parse().ok()?;
            let size = f.metadata().ok()?.len();
            Some((number, path, size))
        })
        .collect();
    out.sort_unstable();
    out
}

impl Shard {
    fn new(folder: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let last = waiting(&folder).last().map_or(0, |f| f.0);
        Ok(Self {
            folder,
            gathered: Mutex::default(),
            next: AtomicU64::new(last + 1),
            ready: Notify::new(),
        })
    }

    /// Takes what was gathered, if it fills a request or `all` is wanted.
    fn take(&self, all: bool) -> Option<(Points, Vec<MetricMetadata>)> {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due =
            gathered.0.len() >= BATCH || (all && !(gathered.0.is_empty() && gathered.1.is_empty()));
        is_due.then(|| std::mem::take(&mut *gathered))
    }

    /// Writes requests as files; each is whole or not there.
    fn queue(&self, points: &[(Labels, Sample)], metadata: &[MetricMetadata], counts: &Counts) {
        let mut metadata = metadata;
        let parts: Vec<&[(Labels, Sample)]> =
            if points.is_empty() { vec![&[]] } else { points.chunks(BATCH).collect() };
        for part in parts {
            let Ok(body) = pack_snappy(&encode(part, metadata)) else { continue };
            metadata = &[];
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.folder.join(format!("{number}.request"));
            let fresh = self.folder.join(format!("{number}.new"));
            let write = || {
                let mut file = fs::File::create(&fresh)?;
                // The count of samples, for when the request must be dropped.
                file.write_all(&(part.len() as u64).to_le_bytes())?;
                file.write_all(&body)?;
                file.sync_all()?;
                fs::rename(&fresh, &path)?;
                fs::File::open(&self.folder)?.sync_all()
            };
            if let Err(e) = write() {
                tracing::error!(folder = %self.folder.display(), error = %e, "samples were not queued for remote write");
                counts.dropped.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
        }
        self.limit(counts);
        self.ready.notify_one();
    }

    /// Drops the oldest requests of a queue that is too large.
    fn limit(&self, counts: &Counts) {
        let files = waiting(&self.folder);
        let mut size: u64 = files.iter().map(|f| f.2).sum();
        for (_, path, n) in files {
            if size <= QUEUE_BYTES_MAX {
                break;
            }
            size -= n;
            counts.dropped.fetch_add(samples_of(&path), Ordering::Relaxed);
            let _ = fs::remove_file(&path);
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

async fn post(client: &HttpClient, config: &Config, body: Vec<u8>) -> Sent {
    let request = match client.post(&config.url).await {
        Ok(r) => r,
        Err(e) => return Sent::Later(e, None),
    };
    let mut request = request
        .header("Content-Encoding", "snappy")
        .header("Content-Type", "application/x-protobuf")
        .header("X-Prometheus-Remote-Write-Version", "0.1.0")
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
            url: config.url.clone(),
            shards,
            relabel: config.write_relabel_configs.clone(),
            external: external.clone(),
            counts: Arc::default(),
        })
    }

    /// Takes samples that were stored.
    pub fn push(&self, points: &[(Labels, Sample)], metadata: &[MetricMetadata]) {
        for (labels, sample) in points {
            let mut b: LabelsBuilder = labels.to_builder();
            for (n, v) in self.external.iter().filter(|(n, _)| labels.get(n).is_empty()) {
                b.set(n, v);
            }
            let Some(labels) = relabel(&b.build(), &self.relabel) else { continue };
            let mut hasher = std::hash::DefaultHasher::new();
            for pair in labels.iter() {
                pair.hash(&mut hasher);
            }
            let at = (hasher.finish() % self.shards.len().max(1) as u64) as usize;
            if let Some(s) = self.shards.get(at) {
                let mut gathered = s.gathered.lock().unwrap_or_else(PoisonError::into_inner);
                gathered.0.push((labels, sample.clone()));
            }
        }
        if let Some(s) = self.shards.first().filter(|_| !metadata.is_empty()) {
            let mut gathered = s.gathered.lock().unwrap_or_else(PoisonError::into_inner);
            for m in metadata {
                if !gathered.1.contains(m) {
                    gathered.1.push(m.clone());
                }
            }
        }
        for s in &self.shards {
            if let Some((points, metadata)) = s.take(false) {
                s.queue(&points, &metadata, &self.counts);
            }
        }
    }

    /// Queues what is gathered; at the end of a run, so that nothing is left in memory.
    pub fn flush(&self) {
        for s in &self.shards {
            if let Some((points, metadata)) = s.take(true) {
                s.queue(&points, &metadata, &self.counts);
            }
        }
    }

    /// Sends until told to stop; what is queued then is sent by the next run.
    pub async fn run(self: Arc<Self>, config: Config, client: HttpClient, stop: CancellationToken) {
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..self.shards.len() {
            let (this, config, client, stop) =
                (self.clone(), config.clone(), client.clone(), stop.clone());
            tasks.spawn(async move { this.send_shard(at, &config, &client, &stop).await });
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(GATHER) => {
                    let this = self.clone();
                    let _ = tokio::task::spawn_blocking(move || this.flush()).await;
                }
            }
        }
        while tasks.join_next().await.is_some() {}
        self.flush();
    }

    async fn send_shard(
        &self,
        at: usize,
        config: &Config,
        client: &HttpClient,
        stop: &CancellationToken,
    ) {
        let Some(shard) = self.shards.get(at) else { return };
        let mut backoff = BACKOFF_MIN;
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
            for (_, path, _) in files {
                if stop.is_cancelled() {
                    return;
                }
                let Ok(bytes) = fs::read(&path) else { continue };
                let Some((count, body)) = bytes.split_first_chunk() else {
                    let _ = fs::remove_file(&path);
                    continue;
                };
                let count = u64::from_le_bytes(*count);
                let sent = tokio::select! {
                    () = stop.cancelled() => return,
                    sent = post(client, config, body.to_vec()) => sent,
                };
                match sent {
                    Sent::Done => {
                        self.counts.sent.fetch_add(count, Ordering::Relaxed);
                        backoff = BACKOFF_MIN;
                    }
                    Sent::Refused(why) => {
                        tracing::error!(
                            url = self.url,
                            samples = count,
                            error = why,
                            "remote write was refused; the samples are dropped"
                        );
                        self.counts.dropped.fetch_add(count, Ordering::Relaxed);
                    }
                    Sent::Later(why, wait) => {
                        self.counts.retried.fetch_add(1, Ordering::Relaxed);
                        let wait = wait.map_or(backoff, |w| w.min(Duration::from_secs(60)));
                        tracing::warn!(
                            url = self.url,
                            error = why,
                            "remote write failed; it is tried again"
                        );
                        backoff = (backoff * 2).min(BACKOFF_MAX);
                        tokio::select! {
                            () = stop.cancelled() => return,
                            () = tokio::time::sleep(wait) => {}
                        }
                        // The same request again: samples stay in order.
                        break;
                    }
                }
                let _ = fs::remove_file(&path);
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
        let counts: Vec<u64> = files.iter().map(|f| samples_of(&f.1)).collect();
        assert_eq!(counts, [2000, 2000, 1000]);
        let body = fs::read(&files[0].1).unwrap();
        let raw = obs_codec::compression::snappy(&body[8..], 1 << 24).unwrap();
        let got = obs_codec::remote_write::decode(&raw, &mut |_, build| build()).unwrap().items;
        assert_eq!(got.points[1].0.to_string(), "a{dc=\"eu\"}");
        assert_eq!(got.points[1999].1, Sample::float(1999, 1999.0));
        // Numbers go on, so that older requests are sent first.
        again.push(&points[..2000], &[]);
        let after: Vec<_> =
            again.shards.iter().flat_map(|s| waiting(&s.folder)).map(|f| f.0).collect();
        assert!(after.windows(2).all(|w| w[0] < w[1]) && after.len() == 4);
    }
}
