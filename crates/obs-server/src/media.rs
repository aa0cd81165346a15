//! Images, sounds and documents that spans hold in their messages.

use crate::llm::{native_error, native_failure};
use crate::params::Params;
use crate::run::blocking;
use crate::state::AppState;
use crate::traces::talk_of;
use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderValue, StatusCode, header};
use obs_llm::inline_bytes;
use obs_model::{SpanId, TraceId};

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/api/v1/traces/{id}/spans/{span}/media/{place}", get(media))
}

/// What browsers show without running anything that is in it. The rest is a download: markup and
/// scripts that a user of an application sent must not run as a page of ours.
const SHOWN: [&str; 14] = [
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
    "audio/wav",
    "audio/x-wav",
    "audio/mpeg",
    "audio/mp3",
    "audio/ogg",
    "audio/webm",
    "audio/flac",
    "video/mp4",
    "video/webm",
    "video/ogg",
];

async fn media(
    State(state): State<AppState>,
    Path((id, span, place)): Path<(String, String, usize)>,
    p: Params,
) -> Response {
    let (Some(id), Some(span)) = (TraceId::parse(&id), SpanId::parse(&span)) else {
        return native_error(StatusCode::BAD_REQUEST, "trace or span id is not hexadecimal");
    };
    let tenant = p.tenant.clone();
    let found = blocking(&state, "trace_repository", "media", move |s, b| {
        let talk = talk_of(s, &tenant, (id, span), b)?;
        Ok(talk.and_then(|(_, c)| {
            let (m, data) = c.inline_media().nth(place)?;
            Some((m.mime_type.to_ascii_lowercase(), inline_bytes(data)))
        }))
    });
    match found.await {
        Err(f) => native_failure(&f),
        Ok(None) => native_error(StatusCode::NOT_FOUND, "the span holds no such media"),
        Ok(Some((_, None))) => {
            native_error(StatusCode::UNPROCESSABLE_ENTITY, "the media is not base64")
        }
        Ok(Some((mime, Some(bytes)))) => served(&mime, bytes),
    }
}

fn served(mime: &str, bytes: Vec<u8>) -> Response {
    let shown = SHOWN.iter().find(|m| **m == mime).copied();
    let headers = [
        (header::CONTENT_TYPE, shown.unwrap_or("application/octet-stream")),
        (header::CONTENT_DISPOSITION, if shown.is_some() { "inline" } else { "attachment" }),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
        // What a span holds does not change.
        (header::CACHE_CONTROL, "private, max-age=3600, immutable"),
    ];
    let headers = headers.map(|(n, v)| (n, HeaderValue::from_static(v)));
    (headers, bytes).into_response()
}
