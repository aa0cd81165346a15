//! Taking in Loki pushes.

use crate::body::{self, Refusal};
use crate::state::AppState;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use obs_model::TenantId;
use obs_process::Source;

pub(super) async fn push(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match take(&state, &headers, body).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(r) => r.into_text(),
    }
}

async fn take(state: &AppState, headers: &HeaderMap, body: Body) -> Result<(), Refusal> {
    let tenant = crate::tenant::tenant(headers).map_err(Refusal::bad)?;
    let media = body::media_type(headers);
    let (bytes, held) =
        body::read(state, &tenant, headers, body, media != "application/json").await?;
    let own = state.clone();
    held.work(state, async move { store(&own, &tenant, &media, bytes).await }).await
}

async fn store(
    state: &AppState,
    tenant: &TenantId,
    media: &str,
    bytes: Vec<u8>,
) -> Result<(), Refusal> {
    let decoded = match media {
        "application/json" => obs_codec::loki::decode_json(&bytes),
        // Loki takes anything else for protobuf, which is always snappy-compressed.
        "application/x-protobuf" | "" => {
            obs_codec::loki::decode_protobuf(&body::unsnap(state, tenant, &bytes)?)
        }
        other => {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("content type {other:?} is not supported"),
            ));
        }
    };
    drop(bytes);
    let mut decoded = decoded.map_err(|e| Refusal::bad(e.to_string()))?;
    body::count_malformed(state, "logs", decoded.rejected.count);
    let count = |reason: &str, n: u64| {
        state.ingest.telemetry().rejected.with_label_values(&["logs", reason]).inc_by(n);
    };
    let sent = decoded.items.len() as u64;
    let screened = state.loki.screen(tenant, &mut decoded.items, state.now());
    let refused = screened.inspect_err(|_| count("rate_limited", sent))?;
    refused.reasons().for_each(|(reason, n)| count(reason, n));
    let logs = state.processing.get().logs(Source::Loki, decoded.items);
    let outcome = state.ingest.logs(tenant, logs, state.now()).await?;
    let rejected = decoded.rejected.count + outcome.rejected;
    if rejected == 0 && refused.is_empty() {
        return Ok(());
    }
    if !refused.is_empty() {
        let others = [decoded.rejected.reasons, outcome.reasons].concat();
        return Err(refused.into_refusal(&others));
    }
    // The good entries are stored; the client must not send them again.
    let reasons = [decoded.rejected.reasons, outcome.reasons].concat().join("; ");
    Err(Refusal::bad(format!(
        "{rejected} entries were refused, {} stored: {reasons}",
        outcome.accepted
    )))
}
