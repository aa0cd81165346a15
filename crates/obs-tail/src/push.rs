//! `loki_push_api`: a listener of a job's own that other clients of Loki push to.
//!
//! An answer of 204 says that the lines are stored: a pipeline keeps none back over the end of a
//! request.

use crate::config::{Job, PushApi};
use crate::entry::{Entry, LabelMap, visible_or_job};
use crate::files::{Clock, put};
use crate::ship::{Batch, Shipper};
use crate::stage::Pipeline;
use crate::tls::Secure;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use obs_codec::compression::{DecompressError, decompress, snappy};
use obs_collect::relabel::relabel;
use obs_model::{Labels, LabelsBuilder, LogRecord, TimestampNs};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Bytes of a request, and what they may expand to.
const BODY_MAX: usize = 16 << 20;
const EXPANDED_MAX: usize = 64 << 20;
/// Requests at once.
const REQUESTS_MAX: usize = 32;
/// The label under which a pushed line's tenant goes through relabelling.
const TENANT: &str = "__tenant_id__";

/// Listens for one job.
pub(crate) struct PushReceiver {
    job: Job,
    api: PushApi,
    tls: Option<TlsAcceptor>,
    shipper: Shipper,
    clock: Clock,
    /// Of all requests, so that stages that count do so over all of them; and the last time given.
    pipeline: Mutex<(Pipeline, i64)>,
    places: Semaphore,
}

/// Labels of a pushed stream, and its tenant.
type Relabelled = (LabelMap, Option<String>);
type Refused = (StatusCode, String);

impl PushReceiver {
    pub(crate) fn new(
        job: Job,
        api: PushApi,
        tls: Option<TlsAcceptor>,
        shipper: Shipper,
        clock: Clock,
    ) -> Result<Self, String> {
        let pipeline = Mutex::new((shipper.pipeline(&job)?, 0));
        let places = Semaphore::new(REQUESTS_MAX);
        Ok(Self { job, api, tls, shipper, clock, pipeline, places })
    }

    /// Listens until it is stopped.
    pub(crate) async fn run(self) {
        let (name, address) = (self.job.job_name.clone(), self.api.server.address());
        let (tls, stop) = (self.tls.clone(), self.shipper.stop.clone());
        let listener = match TcpListener::bind(&address).await {
            Ok(l) => l,
            Err(e) => {
                tracing::error!(job = name, address, error = %e, "pushes are not received");
                return;
            }
        };
        let routes = Router::new()
            .route("/loki/api/v1/push", post(push))
            .route("/promtail/api/v1/raw", post(raw))
            .route("/ready", get(|| async { "Ready" }))
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .with_state(Arc::new(self));
        let stopped = stop.clone().cancelled_owned();
        let served = async {
            let Some(tls) = tls else {
                return axum::serve(listener, routes).with_graceful_shutdown(stopped).await;
            };
            let (secure, task) = Secure::over(listener, tls, stop)?;
            let served = axum::serve(secure, routes).with_graceful_shutdown(stopped).await;
            // The port is free when this returns.
            let _ = task.await;
            served
        };
        if let Err(e) = served.await {
            tracing::error!(job = name, error = %e, "pushes are not received");
        }
    }

    /// Relabels what came and brings it through the pipeline to the store.
    async fn take(&self, records: Vec<LogRecord>, tenant: Option<&str>) -> Result<(), Refused> {
        let now = (self.clock)();
        let counts = &self.shipper.counts;
        counts.lines.fetch_add(records.len() as u64, Relaxed);
        counts.bytes.fetch_add(records.iter().map(|r| r.line.len() as u64).sum(), Relaxed);
        let mut batch = Batch::new();
        let pause = {
            let mut held = self.pipeline.lock().unwrap_or_else(PoisonError::into_inner);
            let (pipeline, last_ns) = &mut *held;
            let mut known: Option<(Labels, Option<Relabelled>)> = None;
            for r in records {
                if known.as_ref().is_none_or(|(stream, _)| *stream != r.stream) {
                    known = Some((r.stream.clone(), self.labels(&r.stream, tenant)));
                }
                let Some((_, Some((labels, tenant)))) = &known else { continue };
                let ns = if self.api.use_incoming_timestamp {
                    r.timestamp.nanos()
                } else {
                    // Two lines of one time are still two lines.
                    *last_ns = now.nanos().max(*last_ns + 1);
                    *last_ns
                };
                let mut entry = Entry::new(TimestampNs::from_nanos(ns), r.line, labels);
                entry.tenant.clone_from(tenant);
                entry.metadata =
                    r.attributes.iter().map(|(k, v)| (k.to_owned(), v.to_string())).collect();
                pipeline.take(entry, now, &mut |e| put(&mut batch, e));
            }
            pipeline.flush(now, true, &mut |e| put(&mut batch, e));
            pipeline.pause(now)
        };
        let stored = self.shipper.ship(batch).await;
        // Who sends too fast hears of it late.
        self.shipper.pause(pause).await;
        if stored {
            Ok(())
        } else {
            Err((StatusCode::SERVICE_UNAVAILABLE, "shutting down; send again\n".into()))
        }
    }

    /// Relabels a pushed stream; `None` when that drops it.
    fn labels(&self, stream: &Labels, tenant: Option<&str>) -> Option<(LabelMap, Option<String>)> {
        let mut b: LabelsBuilder = stream.to_builder();
        if let Some(tenant) = tenant {
            b.set(TENANT, tenant);
        }
        for (n, v) in &self.api.labels {
            b.set(n, v);
        }
        let labels = relabel(&b.build(), &self.job.relabel_configs)?;
        let tenant = Some(labels.get(TENANT).to_owned()).filter(|t| !t.is_empty());
        Some((visible_or_job(&labels, &self.job), tenant))
    }

    /// Expands a body by what its headers say.
    fn expanded(headers: &HeaderMap, body: &Bytes) -> Result<Vec<u8>, Refused> {
        let bad = |e: DecompressError| (StatusCode::BAD_REQUEST, format!("{e}\n"));
        decompress(word(headers, header::CONTENT_ENCODING), body, EXPANDED_MAX).map_err(bad)
    }
}

fn word(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// The tenant that a client names.
fn tenant(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-scope-orgid").and_then(|v| v.to_str().ok()).filter(|t| !t.is_empty())
}

fn answer(result: Result<(), Refused>) -> Response {
    match result {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn push(
    State(receiver): State<Arc<PushReceiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let taken = async {
        let _place = receiver.places.acquire().await;
        let media = word(&headers, header::CONTENT_TYPE);
        let bad = |e: String| (StatusCode::BAD_REQUEST, e + "\n");
        let decoded = if media.split(';').next().is_some_and(|m| m.trim() == "application/json") {
            obs_codec::loki::decode_json(&PushReceiver::expanded(&headers, &body)?)
        } else {
            // Anything else is protobuf, which is always packed with snappy.
            let bytes = snappy(&body, EXPANDED_MAX).map_err(|e| bad(e.to_string()))?;
            obs_codec::loki::decode_protobuf(&bytes)
        };
        let decoded = decoded.map_err(|e| bad(e.to_string()))?;
        receiver.take(decoded.items, tenant(&headers)).await?;
        if decoded.rejected.count > 0 {
            receiver.shipper.counts.malformed.fetch_add(decoded.rejected.count, Relaxed);
            return Err(bad(decoded.rejected.reasons.join("; ")));
        }
        Ok(())
    };
    answer(taken.await)
}

/// Plain text: a line is an entry.
async fn raw(
    State(receiver): State<Arc<PushReceiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let taken = async {
        let _place = receiver.places.acquire().await;
        let bytes = PushReceiver::expanded(&headers, &body)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|l| !l.is_empty());
        let record = |line: &str| LogRecord {
            timestamp: (receiver.clock)(),
            line: line.to_owned(),
            ..LogRecord::default()
        };
        receiver.take(lines.map(record).collect(), tenant(&headers)).await
    };
    answer(taken.await)
}
