//! Reading ingest bodies: size caps, decompression, and the answers to failures.

use crate::admission::Held;
use crate::state::AppState;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use obs_codec::compression::{DecompressError, decompress, snappy};
use obs_model::{AppendError, StateError, TenantId};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;

/// Why a body or its records were refused, independent of the API's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

/// Seconds after which a refused client is asked to come again.
pub(crate) const RETRY_AFTER_SECONDS: u64 = 1;

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Returns whether the same request may succeed later.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    }

    pub(crate) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        if self.is_temporary() {
            vec![(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS))]
        } else {
            Vec::new()
        }
    }

    /// Answers as plain text.
    pub(crate) fn into_text(self) -> Response {
        let mut response = (self.status, format!("{}\n", self.message)).into_response();
        response.headers_mut().extend(self.headers());
        response
    }
}

impl From<AppendError> for Refusal {
    fn from(e: AppendError) -> Self {
        let status = match e {
            AppendError::Overloaded(_) => StatusCode::TOO_MANY_REQUESTS,
            AppendError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            // A 500 would make OTLP clients drop what they could send again.
            AppendError::DiskFull(_)
            | AppendError::ReadOnly(_)
            | AppendError::Closed
            | AppendError::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, e.to_string())
    }
}

impl From<StateError> for Refusal {
    fn from(e: StateError) -> Self {
        let status = match e {
            StateError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            StateError::Full { .. } | StateError::Busy => StatusCode::TOO_MANY_REQUESTS,
            StateError::Io(_) | StateError::Closed => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, e.to_string())
    }
}

/// Refuses, and counts, a request that is over a limit of its tenant; bytes.
pub(crate) fn too_large(
    state: &AppState,
    tenant: &TenantId,
    what: &str,
    limit: &str,
    max: usize,
) -> Refusal {
    state.ingest.telemetry().rejected.with_label_values(&["any", limit]).inc();
    let text =
        format!("{what}; limits.{limit} of tenant {tenant} is {max} bytes: send smaller batches");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text)
}

/// Counts records that a decoder refused.
pub(crate) fn count_malformed(state: &AppState, signal: &str, records: u64) {
    if records > 0 {
        let rejected = &state.ingest.telemetry().rejected;
        rejected.with_label_values(&[signal, "malformed"]).inc_by(records);
    }
}

/// Reads the rest of a body and forgets it.
async fn discard(body: Body, bytes_max: usize) {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut body = Limited::new(body, bytes_max);
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(PATIENCE, all).await;
}

/// A body that is read to its end, for a while and up to a limit, when nobody wants the rest: a
/// client that is still sending when the connection closes would not see the answer.
struct ReadToEnd {
    body: Body,
    bytes_max: usize,
    is_done: bool,
}

impl HttpBody for ReadToEnd {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let next = Pin::new(&mut self.body).poll_frame(context);
        self.is_done = matches!(next, Poll::Ready(None | Some(Err(_))));
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ReadToEnd {
    fn drop(&mut self) {
        if self.is_done || self.body.is_end_stream() {
            return;
        }
        // The answer goes out meanwhile.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(discard(std::mem::take(&mut self.body), self.bytes_max));
        }
    }
}

/// Lets clients see the answers to requests whose bodies are not wanted.
pub(crate) async fn read_to_end(State(state): State<AppState>, request: Request) -> Request {
    // Most requests have none.
    if request.body().is_end_stream() {
        return request;
    }
    let bytes_max = state.limits.body_bytes_max;
    request.map(|body| Body::new(ReadToEnd { body, bytes_max, is_done: false }))
}

/// Reads a body whole and expands it. The memory is held until the second value is dropped.
/// `always_packed`: the API's bodies are compressed even when no header says so, and the caller
/// expands them.
pub(crate) async fn read(
    state: &AppState,
    tenant: &TenantId,
    headers: &HeaderMap,
    body: Body,
    always_packed: bool,
) -> Result<(Vec<u8>, Held), Refusal> {
    if state.is_draining() {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "server is shutting down"));
    }
    let (bytes_max, expanded_max) = state.limits.bytes_of(tenant);
    let too_large = |what: &str, limit, max| too_large(state, tenant, what, limit, max);
    /// What compressed telemetry expands to, seldom more.
    const RATIO: usize = 20;
    /// Bodies that take longer do not keep others waiting.
    const HASTE: Duration = Duration::from_millis(200);
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let length: usize = length.unwrap_or(usize::MAX).min(bytes_max);
    let is_packed = always_packed || headers.contains_key(header::CONTENT_ENCODING);
    let ratio = if is_packed { RATIO } else { 1 };
    let likely = length.saturating_mul(ratio).min(expanded_max);
    let mut held = Held::new(state, likely).await?;
    let mut arriving = std::pin::pin!(Limited::new(body, bytes_max).collect());
    let collected = match tokio::time::timeout(HASTE, &mut arriving).await {
        Ok(collected) => collected,
        Err(_) => {
            held.leave_line();
            arriving.await
        }
    };
    let bytes = collected.map_err(|e| {
        if e.is::<LengthLimitError>() {
            too_large("request body is larger than allowed", "body_bytes", bytes_max)
        } else {
            Refusal::bad(format!("request body was cut short: {e}"))
        }
    })?;
    let encoding = headers
        .get(header::CONTENT_ENCODING)
        .map_or(Ok(""), |v| v.to_str())
        .unwrap_or("?")
        .to_owned();
    let raw = bytes.to_bytes();
    if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") {
        if !always_packed {
            held.shrink(raw.len());
        }
        return Ok((raw.to_vec(), held.turn(state).await?));
    }
    let mut held = held.turn(state).await?;
    let expanded = state.work.spawn(async move { decompress(&encoding, &raw, expanded_max) }).await;
    let expanded =
        expanded.map_err(|e| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, e.to_string()))?;
    let bytes = expanded.map_err(|e| {
        let status = match e {
            DecompressError::Unsupported(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            DecompressError::TooLarge { .. } => {
                return too_large(&e.to_string(), "decompressed_bytes", expanded_max);
            }
            DecompressError::Damaged { .. } => StatusCode::BAD_REQUEST,
        };
        Refusal::new(status, e.to_string())
    })?;
    held.shrink(bytes.len());
    Ok((bytes, held))
}

/// Expands a raw snappy block, the form of remote write and Loki push.
pub(crate) fn unsnap(
    state: &AppState,
    tenant: &TenantId,
    bytes: &[u8],
) -> Result<Vec<u8>, Refusal> {
    let (_, max) = state.limits.bytes_of(tenant);
    snappy(bytes, max).map_err(|e| match e {
        DecompressError::TooLarge { .. } => {
            too_large(state, tenant, &e.to_string(), "decompressed_bytes", max)
        }
        _ => Refusal::bad(e.to_string()),
    })
}

/// Returns the media type without parameters, in lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let full = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    full.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}
