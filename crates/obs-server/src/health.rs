//! Health, readiness and the process's own metrics.

use crate::state::AppState;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{StatusCode, header};
use obs_model::AppendError;
use serde_json::json;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/health", get(health))
        .route("/health/live", get(|| async { "alive" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
}

/// What the collector's extension `health_check` serves.
pub(crate) fn collector_routes() -> Router<AppState> {
    Router::new().route("/", get(collector_health))
}

async fn collector_health(State(state): State<AppState>) -> Response {
    let up = (state.now().nanos() - state.started.nanos()) / 1_000_000_000;
    let (code, status) = match not_ready(&state) {
        None => (StatusCode::OK, "Server available"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "Server not available"),
    };
    let body = json!({
        "status": status,
        "upSince": state.started.to_string(),
        "uptime": format!("{up}s"),
    });
    (code, Json(body)).into_response()
}

/// What is served while the log is read at start: the process is alive, and nothing is ready.
pub fn starting() -> Router {
    let not_yet = || async {
        let text = "the server is starting: it reads its log; retry later\n";
        (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], text)
    };
    Router::new()
        .route("/health/live", get(|| async { "alive" }))
        .route("/-/healthy", get(|| async { "alive" }))
        .fallback(not_yet)
}

/// Why the server should get no traffic, if so.
fn not_ready(state: &AppState) -> Option<String> {
    if state.is_draining() {
        return Some("draining".into());
    }
    (state.probe)().err().map(|e| e.to_string())
}

async fn ready(State(state): State<AppState>) -> Response {
    match not_ready(&state) {
        None => "ready".into_response(),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "not ready")
            .into_response(),
    }
}

/// `/ready` and `/-/ready` of the peers' APIs: queries work even while writes do not.
pub(crate) async fn prometheus_ready(State(state): State<AppState>) -> Response {
    if state.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable\n").into_response()
    } else {
        "ready\n".into_response()
    }
}

async fn health(State(state): State<AppState>) -> Response {
    let begun = state.now();
    let problem = not_ready(&state);
    let done = state.now();
    let check_ms = (done.nanos() - begun.nanos()) as f64 / 1e6;
    let max = state.limits.query_concurrency;
    let idle = state.gate.available_permits();
    let active = max.saturating_sub(idle);
    let utilization = active as f64 * 100.0 / max.max(1) as f64;
    // Reads go on without writes; only a store that is gone or stopping is unhealthy.
    let (status, code) = match (&problem, (state.probe)()) {
        (None, _) => ("healthy", StatusCode::OK),
        (Some(_), Err(AppendError::DiskFull(_) | AppendError::ReadOnly(_))) => {
            ("degraded", StatusCode::SERVICE_UNAVAILABLE)
        }
        (Some(_), _) => ("unhealthy", StatusCode::SERVICE_UNAVAILABLE),
    };
    let component = if problem.is_none() { "healthy" } else { "unhealthy" };
    let body = json!({
        "status": status,
        "timestamp": done.to_string(),
        "version": state.version,
        "uptime_seconds": (done.nanos() - state.started.nanos()) / 1_000_000_000,
        "database": {"embedded": {"status": component, "latency_ms": check_ms, "error": problem}},
        "pool_stats": {"size": max, "active": active, "idle": idle, "max_connections": max, "min_connections": 0, "utilization_percent": utilization, "near_capacity": utilization > 80.0},
        "components": [{"name": "store", "status": component, "message": problem, "last_check": done.to_string(), "check_duration_ms": check_ms}],
        "check_duration_ms": check_ms,
    });
    (code, Json(body)).into_response()
}

async fn metrics(State(state): State<AppState>) -> Response {
    crate::run::count_permits(&state);
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        state.ingest.telemetry().text(),
    )
        .into_response()
}
