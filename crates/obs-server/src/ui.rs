//! The web page: embedded assets, with the application's page for every route of its own.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use obs_ui::{Asset, asset};

/// Paths that belong to APIs: a miss there is a 404, never the page.
const RESERVED: [&str; 13] = [
    "/api",
    "/v1",
    "/loki",
    "/metrics",
    "/-/",
    "/federate",
    "/health",
    "/ready",
    "/debug",
    "/otlp",
    "/prometheus",
    "/jaeger",
    "/alertmanager",
];

const POLICY: &str = "default-src 'self'; img-src 'self' data:; connect-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; base-uri 'self'; form-action 'self'";

/// Serves an asset, or the page when a browser asks for one of its routes.
pub(crate) async fn serve(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path();
    if method != Method::GET && method != Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    if let Some(found) = asset(path.trim_start_matches('/')) {
        let is_versioned = uri.query().is_some_and(|q| q.starts_with("v="));
        return respond(found, &headers, is_versioned);
    }
    let wants_page = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|a| a.contains("text/html"));
    let is_reserved = RESERVED.iter().any(|r| path.starts_with(r));
    match asset("index.html") {
        Some(page) if wants_page && !is_reserved => respond(page, &headers, false),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
    }
}

fn respond(a: &'static Asset, headers: &HeaderMap, is_versioned: bool) -> Response {
    let matches = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains(a.etag));
    let accepts =
        headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let (encoding, bytes) = if accepts.contains("br") {
        (Some("br"), a.brotli)
    } else if accepts.contains("gzip") {
        (Some("gzip"), a.gzip)
    } else {
        (None, a.raw)
    };
    let mut response = if matches {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Response::new(Body::from(bytes))
    };
    let h = response.headers_mut();
    h.insert(header::CONTENT_TYPE, HeaderValue::from_static(a.mime));
    h.insert(header::ETAG, HeaderValue::from_static(a.etag));
    h.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    h.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static(if is_versioned {
            "public, max-age=31536000, immutable"
        } else {
            "no-cache"
        }),
    );
    h.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    h.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    h.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    if let Some(e) = encoding.filter(|_| !matches) {
        h.insert(header::CONTENT_ENCODING, HeaderValue::from_static(e));
    }
    response
}
