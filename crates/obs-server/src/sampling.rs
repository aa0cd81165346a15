//! What clients are told about sampling: over HTTP, as Jaeger's agent and collector tell it, and
//! for gRPC.

use crate::params::Params;
use crate::state::AppState;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_codec::jaeger::proto::{
    OperationSampling, PerOperationSampling, ProbabilisticSampling, RateLimitingSampling,
    SamplingResponse,
};
use obs_ingest::{DEFAULT_PROBABILITY, Rate, Strategy};
use serde_json::{Value, json};

/// The agent's port.
pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/sampling", get(sampling)).route("/api/sampling", get(sampling)).route(
        "/baggageRestrictions",
        // No restrictions; old clients ask.
        get(|| async { Json(json!([])) }),
    )
}

/// The collector's port.
pub(crate) fn collector_routes() -> Router<AppState> {
    Router::new().route("/api/sampling", get(sampling))
}

fn share(s: &Strategy) -> f64 {
    match s.rate {
        Rate::Probability(p) => p,
        // Operations have shares beside the service's rate; others get the usual one.
        Rate::PerSecond(_) => DEFAULT_PROBABILITY,
    }
}

async fn sampling(State(state): State<AppState>, p: Params) -> Response {
    let mut services = p.all("service");
    let (Some(service), None) = (services.next(), services.next()) else {
        let text = "'service' parameter must be provided once";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let s = state.ingest.sampling().strategy(service);
    let mut out = match s.rate {
        Rate::Probability(p) => {
            json!({"strategyType": "PROBABILISTIC", "probabilisticSampling": {"samplingRate": p}})
        }
        Rate::PerSecond(n) => json!({
            "strategyType": "RATE_LIMITING",
            "rateLimitingSampling": {"maxTracesPerSecond": n.round() as i64},
        }),
    };
    if !s.operations.is_empty()
        && let Value::Object(o) = &mut out
    {
        let one = |(name, p): (&String, &f64)| json!({"operation": name, "probabilisticSampling": {"samplingRate": p}});
        let operations = json!({
            "defaultSamplingProbability": share(&s),
            "defaultLowerBoundTracesPerSecond": s.lower_bound,
            "perOperationStrategies": s.operations.iter().map(one).collect::<Vec<_>>(),
        });
        o.insert("operationSampling".into(), operations);
    }
    Json(out).into_response()
}

/// Returns the same answer as a message.
pub(crate) fn proto(state: &AppState, service: &str) -> SamplingResponse {
    let s = state.ingest.sampling().strategy(service);
    let mut out = SamplingResponse::default();
    match s.rate {
        Rate::Probability(rate) => out.probabilistic = Some(ProbabilisticSampling { rate }),
        Rate::PerSecond(n) => {
            out.strategy = 1;
            out.rate_limiting = Some(RateLimitingSampling { traces_per_second: n.round() as i32 });
        }
    }
    if !s.operations.is_empty() {
        let one = |(name, rate): (&String, &f64)| OperationSampling {
            operation: name.clone(),
            probabilistic: Some(ProbabilisticSampling { rate: *rate }),
        };
        out.operations = Some(PerOperationSampling {
            default_probability: share(&s),
            default_lower_bound: s.lower_bound,
            operations: s.operations.iter().map(one).collect(),
            default_upper_bound: 0.0,
        });
    }
    out
}
