//! Where Zipkin's reporters send spans: JSON of versions 1 and 2, protobuf, Thrift.

use crate::body::{self, Refusal};
use crate::jaeger::receive::store;
use crate::state::AppState;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use obs_codec::zipkin::{decode_v1_json, decode_v1_thrift, decode_v2_json, decode_v2_proto};
use obs_process::Source;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/api/v2/spans", post(v2)).route("/api/v1/spans", post(v1))
}

async fn receive(state: AppState, headers: HeaderMap, body: Body, version: u8) -> Response {
    let work = async {
        let tenant = crate::tenant::tenant(&headers).map_err(Refusal::bad)?;
        let (bytes, held) = body::read(&state, &tenant, &headers, body, false).await?;
        let (own, kind) = (state.clone(), body::media_type(&headers));
        let work = async move {
            let now = own.now();
            let decoded = match (version, kind.as_str()) {
                (2, "application/x-protobuf" | "application/protobuf") => {
                    decode_v2_proto(&bytes, now)
                }
                (1, "application/x-thrift") => decode_v1_thrift(&bytes, now),
                (1, _) => decode_v1_json(&bytes, now),
                // Reporters do not always name JSON.
                _ => decode_v2_json(&bytes, now),
            };
            store(&own, &tenant, Source::Zipkin, decoded).await
        };
        held.work(&state, work).await
    };
    match work.await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(refusal) => refusal.into_text(),
    }
}

async fn v2(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Response {
    receive(state, headers, body, 2).await
}

async fn v1(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Response {
    receive(state, headers, body, 1).await
}
