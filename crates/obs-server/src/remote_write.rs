//! Prometheus remote write 1.0.

use crate::body::{self, Refusal};
use crate::state::AppState;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{HeaderMap, StatusCode, header};
use obs_codec::remote_write;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/api/v1/write", post(write))
}

async fn write(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Response {
    match write_inner(&state, &headers, body).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(r) => r.into_text(),
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    let unsupported = |text: String| Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    let full = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media = body::media_type(headers);
    let is_second = full.contains("io.prometheus.write.v2");
    if is_second || !matches!(media.as_str(), "" | "application/x-protobuf") {
        return Err(unsupported(format!(
            "content type {full:?} is not supported; send application/x-protobuf;proto=prometheus.WriteRequest"
        )));
    }
    match headers.get(header::CONTENT_ENCODING).map(|v| v.as_bytes()) {
        None | Some(b"snappy" | b"zstd" | b"gzip") => Ok(()),
        Some(other) => Err(unsupported(format!(
            "content encoding {:?} is not supported; use snappy",
            String::from_utf8_lossy(other)
        ))),
    }
}

async fn write_inner(state: &AppState, headers: &HeaderMap, body: Body) -> Result<(), Refusal> {
    check_headers(headers)?;
    let tenant = crate::tenant::tenant(headers).map_err(Refusal::bad)?;
    let (mut bytes, _held) = body::read(state, &tenant, headers, body, true).await?;
    if headers.get(header::CONTENT_ENCODING).is_none() {
        // Senders that leave the header out still compress.
        bytes = body::unsnap(state, &tenant, &bytes)?;
    }
    let ingest = &state.ingest;
    let decoded =
        remote_write::decode(&bytes, &mut |raw, build| ingest.labels(&tenant, raw, build))
            .map_err(|e| Refusal::bad(e.to_string()))?;
    drop(bytes);
    let w = decoded.items;
    let outcome = ingest.metrics(&tenant, w.points, Vec::new(), w.metadata, state.now()).await?;
    let rejected = decoded.rejected.count + outcome.rejected;
    if rejected == 0 {
        return Ok(());
    }
    // The good samples are stored; what was refused would be refused again.
    let is_limit = outcome.over_limit > 0 && decoded.rejected.count == 0;
    let status = if is_limit { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::BAD_REQUEST };
    let reasons = [decoded.rejected.reasons, outcome.reasons].concat().join("; ");
    Err(Refusal::new(
        status,
        format!("{rejected} samples were refused, {} stored: {reasons}", outcome.accepted),
    ))
}
