//! Where Jaeger's clients send spans: Thrift over HTTP and over UDP.

use crate::body::{self, Refusal};
use crate::sampling;
use crate::state::AppState;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use obs_codec::jaeger::{Protocol, decode_batch, decode_datagram};
use obs_codec::{DecodeError, Decoded};
use obs_model::{Span, TenantId};
use obs_process::Source;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/api/traces", post(traces)).merge(sampling::collector_routes())
}

/// Stores what was decoded; spans that are malformed or over a limit are counted and left out.
pub(crate) async fn store(
    state: &AppState,
    tenant: &TenantId,
    source: Source,
    decoded: Result<Decoded<Vec<Span>>, DecodeError>,
) -> Result<(), Refusal> {
    let decoded = decoded.map_err(|e| {
        body::count_malformed(state, "traces", 1);
        Refusal::bad(format!("unable to process request body: {e}"))
    })?;
    let count = decoded.rejected.count;
    body::count_malformed(state, "traces", count);
    // Nothing of the request is any good.
    if count > 0 && decoded.items.is_empty() {
        return Err(Refusal::bad(decoded.rejected.message()));
    }
    let name = if source == Source::Zipkin { "zipkin" } else { "jaeger" };
    let spans = state.processing.get().spans(source, decoded.items);
    state.ingest.spans(tenant, name, spans, state.now()).await?;
    Ok(())
}

async fn traces(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Response {
    let protocol = match body::media_type(&headers).as_str() {
        "application/x-thrift" | "application/vnd.apache.thrift.binary" => Protocol::Binary,
        "application/vnd.apache.thrift.compact" => Protocol::Compact,
        other => {
            let text = format!(
                "Unsupported content type: {other}; send application/x-thrift, application/vnd.apache.thrift.binary or .compact"
            );
            return Refusal::bad(text).into_text();
        }
    };
    let work = async {
        let tenant = crate::tenant::tenant(&headers).map_err(Refusal::bad)?;
        let (bytes, held) = body::read(&state, &tenant, &headers, body, false).await?;
        let own = state.clone();
        let work = async move {
            store(&own, &tenant, Source::Jaeger, decode_batch(&bytes, protocol)).await
        };
        held.work(&state, work).await
    };
    match work.await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(refusal) => refusal.into_text(),
    }
}

/// Takes datagrams until the token is cancelled. Nobody waits for an answer: what cannot be stored
/// is counted.
pub async fn serve_udp(state: AppState, socket: UdpSocket, compact: bool, stop: CancellationToken) {
    let protocol = if compact { Protocol::Compact } else { Protocol::Binary };
    let mut buffer = vec![0; 65_536];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let Ok((len, from)) = received else { continue };
        let datagram = buffer.get(..len).unwrap_or_default();
        let decoded = decode_datagram(datagram, protocol, state.now());
        if let Err(r) = store(&state, &TenantId::default(), Source::Jaeger, decoded).await {
            if r.status != StatusCode::BAD_REQUEST {
                let rejected = &state.ingest.telemetry().rejected;
                rejected.with_label_values(&["traces", "overload"]).inc();
            }
            tracing::debug!(%from, error = r.message, "datagram was not stored");
        }
    }
}
