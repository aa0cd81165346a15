//! Prometheus remote write 1.0 and 2.0, and remote read.

use crate::body::{self, Refusal};
use crate::run::blocking;
use crate::state::AppState;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use obs_codec::remote_read;
use obs_codec::remote_write::{self, Intern};
use obs_codec::remote_write2::{self, Brought};
use obs_model::{SeriesSelection, TenantId, TimestampMs};

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/api/v1/write", post(write)).route("/api/v1/read", post(read))
}

async fn write(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Response {
    let (written, mut response) = match write_inner(&state, &headers, body).await {
        Ok((written, None)) => (written, StatusCode::NO_CONTENT.into_response()),
        Ok((written, Some(r))) => (written, r.into_text()),
        Err(r) => (Brought::default(), r.into_text()),
    };
    if is_second(&headers) {
        for (name, n) in [
            ("x-prometheus-remote-write-samples-written", written.samples),
            ("x-prometheus-remote-write-histograms-written", written.histograms),
            ("x-prometheus-remote-write-exemplars-written", written.exemplars),
        ] {
            response.headers_mut().insert(name, HeaderValue::from(n));
        }
    }
    response
}

/// Returns whether the request is of version 2.0.
fn is_second(headers: &HeaderMap) -> bool {
    let full = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    full.replace(' ', "").contains("proto=io.prometheus.write.v2.Request")
}

fn check_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    let unsupported = |text: String| Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    let full = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media = body::media_type(headers);
    let compact = full.replace(' ', "");
    let is_known = compact.split_once("proto=").is_none_or(|(_, p)| {
        let p = p.split(';').next().unwrap_or_default();
        matches!(p, "prometheus.WriteRequest" | "io.prometheus.write.v2.Request")
    });
    if !is_known || !matches!(media.as_str(), "" | "application/x-protobuf") {
        return Err(unsupported(format!(
            "content type {full:?} is not supported; send application/x-protobuf with proto=prometheus.WriteRequest or proto=io.prometheus.write.v2.Request"
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

/// What was stored of a request, and why the rest was not.
type Written = (Brought, Option<Refusal>);

async fn write_inner(
    state: &AppState,
    headers: &HeaderMap,
    body: Body,
) -> Result<Written, Refusal> {
    check_headers(headers)?;
    let tenant = crate::tenant::tenant(headers).map_err(Refusal::bad)?;
    let (bytes, held) = body::read(state, &tenant, headers, body, true).await?;
    // Senders that leave the header out still compress.
    let is_packed = headers.get(header::CONTENT_ENCODING).is_none();
    let (own, is_second) = (state.clone(), is_second(headers));
    let work = async move {
        let bytes = if is_packed { body::unsnap(&own, &tenant, &bytes)? } else { bytes };
        store(&own, &tenant, bytes, is_second).await
    };
    held.work(state, work).await
}

async fn store(
    state: &AppState,
    tenant: &TenantId,
    bytes: Vec<u8>,
    is_second: bool,
) -> Result<Written, Refusal> {
    let ingest = &state.ingest;
    let fail = |e: obs_codec::DecodeError| Refusal::bad(e.to_string());
    let (decoded, brought) = {
        let naming = ingest.naming(tenant);
        let intern: Intern<'_> = &mut |raw, build| naming.labels(raw, build);
        if is_second {
            remote_write2::decode(&bytes, intern).map_err(fail)?
        } else {
            (remote_write::decode(&bytes, intern).map_err(fail)?, Brought::default())
        }
    };
    drop(bytes);
    body::count_malformed(state, "metrics", decoded.rejected.count);
    let w = decoded.items;
    let (kept, outcome) = tokio::join!(
        ingest.exemplars().add(tenant, w.exemplars),
        ingest.metrics(tenant, w.points, Vec::new(), w.metadata, state.now())
    );
    let outcome = outcome?;
    let written = Brought {
        samples: brought.samples.saturating_sub(outcome.rejected),
        histograms: brought.histograms,
        exemplars: kept.min(brought.exemplars),
    };
    let rejected = decoded.rejected.count + outcome.rejected;
    if rejected == 0 {
        return Ok((written, None));
    }
    // The good samples are stored; what was refused would be refused again.
    let is_limit = outcome.over_limit > 0 && decoded.rejected.count == 0;
    let status = if is_limit { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::BAD_REQUEST };
    let reasons = [decoded.rejected.reasons, outcome.reasons].concat().join("; ");
    let text = format!("{rejected} samples were refused, {} stored: {reasons}", outcome.accepted);
    Ok((written, Some(Refusal::new(status, text))))
}

/// Queries of one remote-read request.
const READ_QUERIES_MAX: usize = 64;

async fn read(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Response {
    match read_inner(&state, &headers, body).await {
        Ok(r) => r,
        Err(r) => r.into_text(),
    }
}

async fn read_inner(
    state: &AppState,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let tenant = crate::tenant::tenant(headers).map_err(Refusal::bad)?;
    let (mut bytes, held) = body::read(state, &tenant, headers, body, true).await?;
    if headers.get(header::CONTENT_ENCODING).is_none() {
        bytes = body::unsnap(state, &tenant, &bytes)?;
    }
    let request = remote_read::decode(&bytes).map_err(|e| Refusal::bad(e.to_string()))?;
    // What is read counts as a query, not as a write.
    drop((bytes, held));
    if request.queries.len() > READ_QUERIES_MAX {
        return Err(Refusal::bad(format!("more than {READ_QUERIES_MAX} queries in a request")));
    }
    let run = move |s: &AppState, budget: &obs_model::Budget| {
        let mut results = Vec::with_capacity(request.queries.len());
        for q in &request.queries {
            let selection = SeriesSelection {
                matchers: &q.matchers,
                start: TimestampMs::from_millis(q.start),
                end: TimestampMs::from_millis(q.end),
            };
            results.push(s.source.select(&tenant, &selection, budget)?);
        }
        let chunks = if request.wants_chunks { remote_read::encode_chunks(&results) } else { None };
        Ok(match chunks {
            Some(frames) => (frames, true),
            None => (remote_read::encode_samples(&results), false),
        })
    };
    let done = blocking(state, "metric_repository", "remote_read", run).await;
    let (bytes, chunked) = done.map_err(|f| Refusal::new(f.status(), f.message()))?;
    if chunked {
        let kind = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";
        return Ok(([(header::CONTENT_TYPE, kind)], bytes).into_response());
    }
    let packed = obs_codec::compression::pack_snappy(&bytes)
        .map_err(|e| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, e.to_string()))?;
    let headers =
        [(header::CONTENT_TYPE, "application/x-protobuf"), (header::CONTENT_ENCODING, "snappy")];
    Ok((headers, packed).into_response())
}
