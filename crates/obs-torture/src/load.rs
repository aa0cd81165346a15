//! Numbered batches of every signal, as clients send them, and their senders.

use crate::sim::Rng;
use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A way of writing to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    RemoteWrite,
    OtlpLogs,
    Loki,
    OtlpTraces,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::RemoteWrite, Self::OtlpLogs, Self::Loki, Self::OtlpTraces];

    pub const fn of(batch: u64) -> Self {
        match batch % 4 {
            0 => Self::RemoteWrite,
            1 => Self::OtlpLogs,
            2 => Self::Loki,
            _ => Self::OtlpTraces,
        }
    }

    /// Records of a batch.
    pub const fn records(self) -> u64 {
        match self {
            Self::RemoteWrite => 1000,
            Self::OtlpLogs | Self::Loki => 400,
            Self::OtlpTraces => 300,
        }
    }

    /// The listener and path that take it.
    pub const fn target(self) -> (&'static str, &'static str) {
        match self {
            Self::RemoteWrite => ("prometheus", "/api/v1/write"),
            Self::OtlpLogs => ("otlp-http", "/v1/logs"),
            Self::Loki => ("loki", "/loki/api/v1/push"),
            Self::OtlpTraces => ("otlp-http", "/v1/traces"),
        }
    }
}

const WORDS: [&str; 24] = [
    "request",
    "model",
    "tokens",
    "timeout",
    "cache",
    "prompt",
    "answer",
    "stream",
    "router",
    "tool",
    "retry",
    "queue",
    "worker",
    "latency",
    "embedding",
    "vector",
    "session",
    "user",
    "budget",
    "policy",
    "gateway",
    "shard",
    "batch",
    "context",
];

/// The text of record `i` of a batch: its numbers, and words that follow from them.
pub fn text(batch: u64, i: u64) -> String {
    let mut rng = Rng::new(batch * 1_000_003 + i);
    let mut out = format!("b={batch:07} s={i:04} id={:016x}", rng.next());
    for _ in 0..4 + rng.below(12) {
        let word = WORDS.get(rng.below(WORDS.len() as u64) as usize).copied().unwrap_or_default();
        let _ = write!(out, " {word}");
    }
    out
}

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

/// The value of series `i` in a batch.
pub const fn value(batch: u64, i: u64) -> f64 {
    (batch * 1000 + i) as f64
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
    KeyValue { key: key.into(), value, ..KeyValue::default() }
}

fn resource() -> Option<Resource> {
    let attributes = vec![attribute("service.name", "torture")];
    Some(Resource { attributes, ..Resource::default() })
}

fn remote_write(batch: u64, ms: i64) -> Result<Vec<u8>> {
    let label = |name: &str, value: String| Label { name: name.into(), value };
    let one = |i: u64| TimeSeries {
        labels: vec![
            label("__name__", "torture_value".into()),
            label("i", format!("{i:04}")),
            label("instance", format!("node-{}", i % 10)),
        ],
        samples: vec![Sample { value: value(batch, i), timestamp: ms }],
    };
    snappy(&WriteRequest { series: (0..Kind::RemoteWrite.records()).map(one).collect() })
}

fn snappy(request: &WriteRequest) -> Result<Vec<u8>> {
    snap::raw::Encoder::new().compress_vec(&request.encode_to_vec()).context("failed to compress")
}

/// The metric of [`many_series`].
pub const MANY: &str = "bench_requests_total";

/// Returns the body of a remote write with a sample of each of some of many series, which have as
/// many labels as those of a fleet of model servers.
///
/// # Errors
/// When it cannot be compressed.
pub fn many_series(series: std::ops::Range<u64>, ms: i64) -> Result<Vec<u8>> {
    let label = |name: &str, value: String| Label { name: name.into(), value };
    let one = |i: u64| TimeSeries {
        labels: vec![
            label("__name__", MANY.into()),
            label("instance", format!("inference-{}.llm.svc:9090", i / 500)),
            label("job", format!("llm-{}", i % 5)),
            label("model", format!("model-{}", i % 12)),
            label("provider", format!("provider-{}", i % 4)),
            label("route", format!("/v1/route-{}", i % 500)),
            label("status", format!("{}", 200 + i % 7)),
        ],
        samples: vec![Sample { value: i as f64, timestamp: ms }],
    };
    snappy(&WriteRequest { series: series.map(one).collect() })
}

fn otlp_logs(batch: u64, ns: u64) -> Vec<u8> {
    let record = |i: u64| LogRecord {
        time_unix_nano: ns + i,
        severity_number: 9,
        body: Some(AnyValue { value: Some(Value::StringValue(text(batch, i))) }),
        attributes: vec![attribute("batch", &batch.to_string())],
        ..LogRecord::default()
    };
    let log_records = (0..Kind::OtlpLogs.records()).map(record).collect();
    let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
    let one = ResourceLogs { resource: resource(), scope_logs, ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![one] }.encode_to_vec()
}

fn loki(batch: u64, ns: u64) -> Vec<u8> {
    let mut out = String::from(r#"{"streams":[{"stream":{"job":"torture"},"values":["#);
    for i in 0..Kind::Loki.records() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, r#"{comma}["{}","{}"]"#, ns + i, text(batch, i));
    }
    out.push_str("]}]}");
    out.into_bytes()
}

fn otlp_traces(batch: u64, ns: u64) -> Vec<u8> {
    let span = |i: u64| Span {
        trace_id: (u128::from(batch) << 64 | u128::from(i / 10 + 1)).to_be_bytes().to_vec(),
        span_id: (batch * 1000 + i + 1).to_be_bytes().to_vec(),
        name: text(batch, i),
        kind: 2,
        start_time_unix_nano: ns + i,
        end_time_unix_nano: ns + i + 1000,
        attributes: vec![
            attribute("batch", &batch.to_string()),
            attribute("turn", &text(batch, i)),
        ],
        ..Span::default()
    };
    let spans = (0..Kind::OtlpTraces.records()).map(span).collect();
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let one = ResourceSpans { resource: resource(), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![one] }.encode_to_vec()
}

/// Returns a batch's request body; its records are at `ns` and the nanoseconds after.
///
/// # Errors
/// When it cannot be compressed.
pub fn body(batch: u64, ns: u64) -> Result<Vec<u8>> {
    Ok(match Kind::of(batch) {
        Kind::RemoteWrite => remote_write(batch, (ns / 1_000_000) as i64)?,
        Kind::OtlpLogs => otlp_logs(batch, ns),
        Kind::Loki => loki(batch, ns),
        Kind::OtlpTraces => otlp_traces(batch, ns),
    })
}

/// What became of a batch, as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Acked,
    /// An answer that says that nothing was stored.
    Refused,
    /// No answer.
    Unknown,
}

/// Numbers and times of the batches of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Time of batch 0; each later one is a millisecond after.
    pub start_ns: u64,
    pub next: Arc<AtomicU64>,
    pub stop: Arc<AtomicBool>,
}

impl Plan {
    pub fn new(start_ns: u64) -> Self {
        Self { start_ns, next: Arc::default(), stop: Arc::default() }
    }

    pub const fn time_of(&self, batch: u64) -> u64 {
        self.start_ns + batch * 1_000_000
    }
}

/// Sends a batch with its body.
///
/// # Errors
/// When the server has no listener for it, or refuses without saying when to come again.
pub async fn send(
    http: &reqwest::Client,
    endpoints: &HashMap<String, String>,
    batch: u64,
    body: impl Into<reqwest::Body>,
) -> Result<Verdict> {
    let kind = Kind::of(batch);
    let (listener, path) = kind.target();
    let address = endpoints.get(listener).context("the server has no such listener")?;
    let mut request = http.post(format!("http://{address}{path}")).body(body);
    request = match kind {
        Kind::RemoteWrite => request
            .header("content-type", "application/x-protobuf")
            .header("content-encoding", "snappy")
            .header("x-prometheus-remote-write-version", "0.1.0"),
        Kind::Loki => request.header("content-type", "application/json"),
        Kind::OtlpLogs | Kind::OtlpTraces => {
            request.header("content-type", "application/x-protobuf")
        }
    };
    // Only an answer that was read whole counts.
    let answer = match request.send().await {
        Ok(r) => {
            let status = r.status();
            let is_temporary = matches!(status.as_u16(), 429 | 503);
            let says_when = r.headers().contains_key("retry-after");
            ensure!(!is_temporary || says_when, "{status} without Retry-After");
            r.bytes().await.map(|_| status)
        }
        Err(e) => Err(e),
    };
    Ok(match answer {
        Ok(status) if status.is_success() => Verdict::Acked,
        Ok(_) => Verdict::Refused,
        Err(_) => Verdict::Unknown,
    })
}

/// Sends one batch.
///
/// # Errors
/// When it cannot be made.
pub async fn once(
    http: &reqwest::Client,
    server: &crate::server::Server,
    plan: &Plan,
    batch: u64,
) -> Result<Verdict> {
    send(http, &server.endpoints, batch, body(batch, plan.time_of(batch))?).await
}

/// Sends batches until told to stop or the server goes away; returns what became of each.
///
/// # Errors
/// When a batch cannot be made.
pub async fn client(
    endpoints: Arc<HashMap<String, String>>,
    plan: Plan,
) -> Result<Vec<(u64, Verdict)>> {
    let http = obs_objects::http_client();
    let mut out = Vec::new();
    while !plan.stop.load(Ordering::Relaxed) {
        let batch = plan.next.fetch_add(1, Ordering::Relaxed);
        let body = body(batch, plan.time_of(batch))?;
        let verdict = send(&http, &endpoints, batch, body).await?;
        out.push((batch, verdict));
        match verdict {
            Verdict::Acked => {}
            Verdict::Refused => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            Verdict::Unknown => break,
        }
    }
    Ok(out)
}
