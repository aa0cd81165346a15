//! Reads one target again and again.

use crate::config::{PrometheusConfig, ScrapeConfig};
use crate::http::{HttpClient, read_body};
use crate::relabel::relabel;
use crate::target::Target;
use crate::{Batch, Sink};
use obs_codec::compression::decompress;
use obs_codec::exposition::{Format, Page, Scraped, parse, series_labels};
use obs_model::{
    Labels, LabelsBuilder, METRIC_NAME, MetricMetadata, STALE_NAN_BITS, Sample, TimestampMs,
};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Wall clock in milliseconds.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Limits of a page; 0 means none, except for the body.
#[derive(Debug, Clone, Copy)]
struct Limits {
    body: usize,
    samples: usize,
    labels: usize,
    name_bytes: usize,
    value_bytes: usize,
}

/// Body past which a page is refused when the configuration sets no limit, in bytes.
const BODY_BYTES_MAX: usize = 256 << 20;

/// How a target is, for the API.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Empty before the first scrape.
    pub health: Option<bool>,
    pub last_error: String,
    /// Milliseconds.
    pub last_scrape: i64,
    pub last_duration: Duration,
    pub metadata: Vec<MetricMetadata>,
}

/// One target's loop.
pub(crate) struct Loop {
    pub(crate) target: Target,
    pub(crate) url: String,
    job: Arc<ScrapeConfig>,
    client: HttpClient,
    sink: Arc<dyn Sink>,
    clock: Clock,
    limits: Limits,
    accept: &'static str,
    pub(crate) status: Arc<Mutex<Status>>,
}

impl fmt::Debug for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loop").field("url", &self.url).finish_non_exhaustive()
    }
}

const ACCEPT: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
/// With protobuf first, for native histograms.
const ACCEPT_PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

/// What a loop remembers of the page before.
#[derive(Default)]
struct Memory {
    /// Labels by the series' text, `None` for those that relabelling drops; and the scrape they
    /// were last seen in.
    series: HashMap<String, (Option<Labels>, u64)>,
    /// Series to mark stale when they are not seen, and when they were last.
    live: HashMap<Labels, u64>,
    scrape: u64,
}

impl Loop {
    pub(crate) fn new(
        c: &PrometheusConfig,
        job: &Arc<ScrapeConfig>,
        target: Target,
        client: HttpClient,
        sink: Arc<dyn Sink>,
        clock: Clock,
    ) -> Result<Self, String> {
        let g = &c.global;
        let bytes = job.body_size_limit.or(g.body_size_limit).map_or(0, |b| b.0);
        let limits = Limits {
            body: match usize::try_from(bytes) {
                Ok(0) | Err(_) => BODY_BYTES_MAX,
                Ok(n) => n,
            },
            samples: job.sample_limit.or(g.sample_limit).unwrap_or(0),
            labels: job.label_limit.or(g.label_limit).unwrap_or(0),
            name_bytes: job.label_name_length_limit.or(g.label_name_length_limit).unwrap_or(0),
            value_bytes: job.label_value_length_limit.or(g.label_value_length_limit).unwrap_or(0),
        };
        let protocols = job.scrape_protocols.as_ref().or(g.scrape_protocols.as_ref());
        let accept = match protocols {
            Some(list) if list.first().is_some_and(|p| p == "PrometheusProto") => ACCEPT_PROTOBUF,
            _ => ACCEPT,
        };
        let url = target.url(job)?.to_string();
        let (job, status) = (job.clone(), Arc::default());
        Ok(Self { target, url, job, client, sink, clock, limits, accept, status })
    }

    /// Scrapes at the target's interval until told to stop; `ended` says whether the target is gone
    /// for good, which ends its series.
    pub(crate) async fn run(self, stop: CancellationToken, ended: CancellationToken) {
        let interval = self.target.interval.as_millis().max(1) as i64;
        // Targets are spread over the interval, each always at its own place.
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&(&self.url, self.target.labels.to_string()), &mut hasher);
        let shift = (std::hash::Hasher::finish(&hasher) % interval.unsigned_abs()) as i64;
        let mut memory = Memory::default();
        let now = (self.clock)();
        let mut due = (now - shift).div_euclid(interval) * interval + shift + interval;
        loop {
            let wait = (due - (self.clock)()).clamp(0, interval);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(Duration::from_millis(wait.unsigned_abs())) => {}
            }
            // Timers are a little late; samples at even distances compress better.
            let late = (self.clock)() - due;
            let tolerance = (interval / 100).min(2);
            let at = if late >= 0 && late <= tolerance { due } else { due + late.max(0) };
            self.scrape(&mut memory, at).await;
            due += interval;
            let behind = (self.clock)() - due;
            if behind > 0 {
                due += (behind / interval + 1) * interval;
            }
        }
        if ended.is_cancelled() {
            self.end(&mut memory, (self.clock)()).await;
        }
    }

    /// Ends all series of the target.
    async fn end(&self, memory: &mut Memory, at: i64) {
        let mut batch = Batch::default();
        for labels in std::mem::take(&mut memory.live).into_keys() {
            batch.points.push((labels, stale(at)));
        }
        for name in REPORTS {
            batch.points.push((self.target.labels.with(METRIC_NAME, name), stale(at)));
        }
        let _ = self.sink.write(batch).await;
    }

    async fn scrape(&self, memory: &mut Memory, at: i64) {
        let began = Instant::now();
        let read = tokio::time::timeout(self.target.timeout, self.read()).await;
        let read = read.unwrap_or_else(|_| Err("context deadline exceeded".into()));
        let took = began.elapsed();
        memory.scrape += 1;
        let mut batch = Batch::default();
        let mut scraped = 0;
        let result = read.and_then(|page| {
            scraped = page.samples.len();
            self.take(page, memory, at, &mut batch)
        });
        let (kept, added, mut error) = match result {
            Ok((kept, added)) => (kept, added, None),
            Err(e) => {
                batch = Batch::default();
                (0, 0, Some(e))
            }
        };
        let seen = if error.is_none() { memory.scrape } else { u64::MAX };
        memory.live.retain(|labels, last| {
            let lives = *last == seen;
            if !lives {
                batch.points.push((labels.clone(), stale(at)));
            }
            lives
        });
        let n = memory.scrape;
        memory.series.retain(|_, (_, last)| n - *last < 10);
        let metadata = batch.metadata.clone();
        let reports = |ok: bool| {
            let values = [
                f64::from(u8::from(ok)),
                took.as_secs_f64(),
                scraped as f64,
                kept as f64,
                added as f64,
            ];
            let row = |(name, v): (&str, f64)| {
                (self.target.labels.with(METRIC_NAME, name), Sample::float(at, v))
            };
            REPORTS.into_iter().zip(values).map(row).collect::<Vec<_>>()
        };
        batch.points.extend(reports(error.is_none()));
        if let Err(e) = self.sink.write(batch).await {
            // What was refused is refused; that the target answered is still true.
            tracing::warn!(url = self.url, error = e, "scraped samples were not all stored");
            error.get_or_insert(e);
        }
        let mut s = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        s.health = Some(error.is_none());
        s.last_error = error.unwrap_or_default();
        s.last_scrape = at;
        s.last_duration = took;
        if !metadata.is_empty() {
            s.metadata = metadata;
        }
    }

    async fn read(&self) -> Result<Page, String> {
        let timeout = self.target.timeout;
        let mut request = self.client.get(&self.url).await?;
        request = request
            .header("Accept", self.accept)
            .header("X-Prometheus-Scrape-Timeout-Seconds", timeout.as_secs_f64().to_string())
            .timeout(timeout);
        if self.job.enable_compression {
            request = request.header("Accept-Encoding", "gzip");
        }
        let answer = request.send().await.map_err(|e| reason(&e))?;
        let status = answer.status();
        if status != 200 {
            return Err(format!("server returned HTTP status {status}"));
        }
        let header = |name: &str| {
            let value = answer.headers().get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (kind, encoding) = (header("content-type"), header("content-encoding"));
        let format = match Format::of(&kind) {
            Some(f) => f,
            None => match self.job.fallback_scrape_protocol.as_deref() {
                Some("PrometheusProto") => Format::Protobuf,
                Some("OpenMetricsText1.0.0" | "OpenMetricsText0.0.1") => Format::OpenMetrics,
                Some(_) => Format::Text,
                None if kind.is_empty() => {
                    return Err("non-compliant scrape target sending blank Content-Type and no fallback_scrape_protocol specified for target".into());
                }
                None => {
                    return Err(format!(
                        "received unsupported Content-Type {kind:?} and no fallback_scrape_protocol specified for target"
                    ));
                }
            },
        };
        let max = self.limits.body;
        let body = read_body(answer, max).await?;
        let work = move || {
            let body = if encoding.is_empty() {
                body
            } else {
                decompress(&encoding, &body, max).map_err(|e| match e {
                    obs_codec::compression::DecompressError::TooLarge { .. } => {
                        "body size limit exceeded".to_owned()
                    }
                    e => e.to_string(),
                })?
            };
            parse(format, &body).map_err(|e| e.reason)
        };
        // A large page takes a while to read.
        tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
    }

    /// Turns a page into samples; returns how many are left after relabelling and how many series
    /// are new.
    fn take(
        &self,
        page: Page,
        memory: &mut Memory,
        at: i64,
        batch: &mut Batch,
    ) -> Result<(usize, usize), String> {
        let (mut kept, mut added) = (0, 0);
        for s in page.samples {
            let Some(labels) = self.labels(&s, memory)? else { continue };
            kept += 1;
            if self.limits.samples > 0 && kept > self.limits.samples {
                return Err("sample limit exceeded".into());
            }
            let own = s.timestamp.filter(|_| self.job.honor_timestamps);
            // A series with times of its own is not ended: its exporter knows better.
            if own.is_none() || self.job.track_timestamps_staleness {
                let n = memory.scrape;
                if memory.live.insert(labels.clone(), n).is_none() {
                    added += 1;
                }
            }
            for mut e in s.exemplars {
                e.timestamp_ms.get_or_insert(at);
                batch.exemplars.push((labels.clone(), e));
            }
            let timestamp = TimestampMs::from_millis(own.unwrap_or(at));
            batch.points.push((labels, Sample { timestamp, value: s.value }));
        }
        batch.metadata = page.metadata;
        Ok((kept, added))
    }

    fn labels(&self, s: &Scraped, memory: &mut Memory) -> Result<Option<Labels>, String> {
        let n = memory.scrape;
        if let Some((labels, last)) = memory.series.get_mut(s.series.as_str()) {
            *last = n;
            return Ok(labels.clone());
        }
        let own = series_labels(&s.series)?;
        let labels = self.join(&own);
        let labels = relabel(&labels, &self.job.metric_relabel_configs)
            .filter(|l| !l.metric_name().is_empty());
        if let Some(l) = &labels {
            self.check(l)?;
            if let Err(e) = self.sink.admit(l) {
                tracing::warn!(url = self.url, error = e, "series is left out");
                memory.series.insert(s.series.clone(), (None, n));
                return Ok(None);
            }
        }
        memory.series.insert(s.series.clone(), (labels.clone(), n));
        Ok(labels)
    }

    fn check(&self, l: &Labels) -> Result<(), String> {
        let limits = &self.limits;
        let name = l.metric_name();
        let count = l.iter().count();
        if limits.labels > 0 && count > limits.labels {
            let max = limits.labels;
            return Err(format!(
                "label_limit exceeded (metric: {name:.50}, number of labels: {count}, limit: {max})"
            ));
        }
        for (n, v) in l.iter() {
            if limits.name_bytes > 0 && n.len() > limits.name_bytes {
                let (got, max) = (n.len(), limits.name_bytes);
                return Err(format!(
                    "label_name_length_limit exceeded (metric: {name:.50}, label name: {n:.50}, length: {got}, limit: {max})"
                ));
            }
            if limits.value_bytes > 0 && v.len() > limits.value_bytes {
                let (got, max) = (v.len(), limits.value_bytes);
                return Err(format!(
                    "label_value_length_limit exceeded (metric: {name:.50}, label name: {n:.50}, value: {v:.50}, length: {got}, limit: {max})"
                ));
            }
        }
        Ok(())
    }

    /// Joins a sample's labels with the target's.
    fn join(&self, own: &Labels) -> Labels {
        let target = &self.target.labels;
        let mut b = LabelsBuilder::default();
        if self.job.honor_labels {
            for (n, v) in target.iter().filter(|(n, _)| own.get(n).is_empty()) {
                b.push(n, v);
            }
            for (n, v) in own.iter() {
                b.push(n, v);
            }
            return b.build();
        }
        for (n, v) in target.iter() {
            b.push(n, v);
        }
        for (n, v) in own.iter() {
            let mut name = n.to_owned();
            while !target.get(&name).is_empty() || (name != n && !own.get(&name).is_empty()) {
                name = format!("exported_{name}");
            }
            b.push(name, v);
        }
        b.build()
    }
}

/// Samples that every scrape writes beside those of the page.
const REPORTS: [&str; 5] = [
    "up",
    "scrape_duration_seconds",
    "scrape_samples_scraped",
    "scrape_samples_post_metric_relabeling",
    "scrape_series_added",
];

fn stale(at: i64) -> Sample {
    Sample::float(at, f64::from_bits(STALE_NAN_BITS))
}

/// Returns an error's innermost reason; the outer ones repeat the address.
fn reason(e: &reqwest::Error) -> String {
    if e.is_timeout() {
        return "context deadline exceeded".into();
    }
    let mut source: &dyn std::error::Error = e;
    while let Some(inner) = source.source() {
        source = inner;
    }
    source.to_string()
}
