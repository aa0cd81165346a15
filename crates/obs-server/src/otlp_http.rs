//! OTLP over HTTP: protobuf and JSON.

use crate::body::{self, Refusal};
use crate::state::AppState;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use obs_codec::otlp::{self, JsonRequest};
use obs_codec::{DecodeError, Rejected};
use obs_ingest::Outcome;
use obs_model::{TenantId, TimestampNs};
use obs_process::Source;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

/// What a whole request led to: records refused and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Partial {
    pub(crate) rejected: u64,
    pub(crate) message: String,
}

fn partial(decoder: &Rejected, outcome: Outcome) -> Partial {
    let mut reasons = decoder.reasons.clone();
    reasons.extend(outcome.reasons);
    Partial { rejected: decoder.count + outcome.rejected, message: reasons.join("; ") }
}

/// Stores a trace request.
pub(crate) async fn traces(
    state: AppState,
    tenant: TenantId,
    request: ExportTraceServiceRequest,
) -> Result<Partial, Refusal> {
    let decoded = otlp::decode_traces(request);
    body::count_malformed(&state, "traces", decoded.rejected.count);
    let spans = state.processing.get().spans(Source::Otlp, decoded.items);
    let outcome = state.ingest.spans(&tenant, "otlp", spans, state.now()).await?;
    Ok(partial(&decoded.rejected, outcome))
}

/// Stores a log request.
pub(crate) async fn logs(
    state: AppState,
    tenant: TenantId,
    request: ExportLogsServiceRequest,
) -> Result<Partial, Refusal> {
    let decoded = otlp::decode_logs(request, state.now());
    body::count_malformed(&state, "logs", decoded.rejected.count);
    let logs = state.processing.get().logs(Source::Otlp, decoded.items);
    let outcome = state.ingest.logs(&tenant, logs, state.now()).await?;
    Ok(partial(&decoded.rejected, outcome))
}

/// Stores a metric request.
pub(crate) async fn metrics(
    state: AppState,
    tenant: TenantId,
    mut request: ExportMetricsServiceRequest,
) -> Result<Partial, Refusal> {
    let ingest = &state.ingest;
    state.processing.get().metrics(Source::Otlp, &mut request);
    let naming = state.workers.naming.get();
    let decoded = {
        let found = ingest.naming(&tenant);
        let resolve = |key: &[u8], build: &dyn Fn() -> Result<_, _>| found.labels(key, build);
        otlp::decode_metrics(request, &naming, &resolve)
    };
    body::count_malformed(&state, "metrics", decoded.rejected.count);
    let m = decoded.items;
    let now: TimestampNs = state.now();
    let (_, outcome) = tokio::join!(
        ingest.exemplars().add(&tenant, m.exemplars),
        ingest.metrics(&tenant, m.points, m.deltas, m.metadata, now)
    );
    Ok(partial(&decoded.rejected, outcome?))
}

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/v1/traces", post(post_traces))
        .route("/v1/logs", post(post_logs))
        .route("/v1/metrics", post(post_metrics))
}

/// Metrics alone, as Prometheus takes them below its own prefix.
pub(crate) fn metric_routes() -> Router<AppState> {
    Router::new().route("/v1/metrics", post(post_metrics))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Protobuf,
    Json,
}

/// `google.rpc.Status`, the body of OTLP errors.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// `Export*PartialSuccess` inside `Export*ServiceResponse`; one shape for all signals.
#[derive(Clone, PartialEq, Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    message: String,
}

const fn grpc_code(status: StatusCode) -> i32 {
    match status.as_u16() {
        400 => 3,
        413 | 429 => 8,
        415 => 12,
        _ => 14,
    }
}

fn refuse(format: Format, r: &Refusal) -> Response {
    let code = grpc_code(r.status);
    let mut response = match format {
        Format::Json => (r.status, Json(serde_json::json!({"code": code, "message": r.message})))
            .into_response(),
        Format::Protobuf => {
            let status = RpcStatus { code, message: r.message.clone() };
            (r.status, [(header::CONTENT_TYPE, "application/x-protobuf")], status.encode_to_vec())
                .into_response()
        }
    };
    response.headers_mut().extend(r.headers());
    response
}

fn accept(format: Format, field: &str, p: Partial) -> Response {
    let rejected = i64::try_from(p.rejected).unwrap_or(i64::MAX);
    let is_whole = p.rejected == 0;
    match format {
        Format::Json if is_whole => Json(serde_json::json!({})).into_response(),
        Format::Json => Json(serde_json::json!({"partialSuccess": {field: rejected.to_string(), "errorMessage": p.message}})).into_response(),
        Format::Protobuf => {
            let body = ExportResponse { partial_success: (!is_whole).then_some(PartialSuccess { rejected, message: p.message }) };
            ([(header::CONTENT_TYPE, "application/x-protobuf")], body.encode_to_vec()).into_response()
        }
    }
}

fn format(headers: &HeaderMap) -> Result<Format, Refusal> {
    match body::media_type(headers).as_str() {
        "application/x-protobuf" | "application/protobuf" => Ok(Format::Protobuf),
        "application/json" => Ok(Format::Json),
        other => Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "content type {other:?} is not supported; use application/x-protobuf or application/json"
            ),
        )),
    }
}

/// Reads, parses and stores a request of any signal.
async fn take<T, F>(
    state: AppState,
    headers: HeaderMap,
    body: Body,
    field: &str,
    store: impl FnOnce(AppState, TenantId, T) -> F + Send + 'static,
) -> Response
where
    T: Message + Default + JsonRequest,
    F: Future<Output = Result<Partial, Refusal>> + Send,
{
    let format = match format(&headers) {
        Ok(format) => format,
        Err(r) => return refuse(Format::Json, &r),
    };
    let run = async {
        let tenant = crate::tenant::tenant(&headers).map_err(Refusal::bad)?;
        let (bytes, held) = body::read(&state, &tenant, &headers, body, false).await?;
        let own = state.clone();
        let work = async move {
            let decoded: Result<T, DecodeError> = match format {
                Format::Protobuf => otlp::from_protobuf(&bytes),
                Format::Json => T::from_json(&bytes),
            };
            drop(bytes);
            store(own, tenant, decoded.map_err(|e| Refusal::bad(e.to_string()))?).await
        };
        held.work(&state, work).await
    };
    match run.await {
        Ok(p) => accept(format, field, p),
        Err(r) => refuse(format, &r),
    }
}

async fn post_traces(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Response {
    take(state, headers, body, "rejectedSpans", traces).await
}

pub(crate) async fn post_logs(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    take(state, headers, body, "rejectedLogRecords", logs).await
}

async fn post_metrics(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Response {
    take(state, headers, body, "rejectedDataPoints", metrics).await
}
