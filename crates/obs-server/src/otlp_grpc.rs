//! OTLP over gRPC.

use crate::admission::Held;
use crate::body::{RETRY_AFTER_SECONDS, Refusal, too_large};
use crate::otlp_http::{self, Partial};
use crate::state::AppState;
use http::StatusCode;
use obs_model::TenantId;
use opentelemetry_proto::tonic::collector::logs::v1 as logs;
use opentelemetry_proto::tonic::collector::metrics::v1 as metrics;
use opentelemetry_proto::tonic::collector::trace::v1 as trace;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};

#[derive(Debug, Clone)]
struct Service(AppState);

pub(crate) fn status(r: &Refusal) -> Status {
    let code = match r.status {
        StatusCode::BAD_REQUEST => Code::InvalidArgument,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::Unimplemented,
        // Overload is UNAVAILABLE, which every client retries; RESOURCE_EXHAUSTED only some.
        _ => Code::Unavailable,
    };
    let mut s = Status::new(code, r.message.clone());
    if r.is_temporary()
        && let Ok(v) = RETRY_AFTER_SECONDS.to_string().parse()
    {
        s.metadata_mut().insert("retry-after", v);
    }
    s
}

pub(crate) fn tenant<T>(state: &AppState, r: &Request<T>) -> Result<TenantId, Status> {
    if state.is_draining() {
        return Err(Status::unavailable("server is shutting down"));
    }
    match r.metadata().get(crate::tenant::TENANT_HEADER) {
        None => Ok(TenantId::default()),
        Some(v) => v
            .to_str()
            .ok()
            .and_then(|t| TenantId::new(t).ok())
            .ok_or_else(|| Status::invalid_argument("invalid tenant id")),
    }
}

/// Returns a request's tenant, and the memory it holds.
pub(crate) async fn admit<T: Message>(
    state: &AppState,
    r: &Request<T>,
) -> Result<(TenantId, Held), Status> {
    let tenant = tenant(state, r)?;
    let (bytes, (_, max)) = (r.get_ref().encoded_len(), state.limits.bytes_of(&tenant));
    if bytes > max {
        let what = "request is larger than allowed";
        return Err(status(&too_large(state, &tenant, what, "decompressed_bytes", max)));
    }
    let held = Held::new(state, bytes).await.map_err(|e| status(&e))?;
    Ok((tenant, held.turn(state).await.map_err(|e| status(&e))?))
}

/// Returns the numbers of a partial success, or `None` for a whole one.
fn rejected(p: Partial) -> Option<(i64, String)> {
    (p.rejected > 0).then(|| (i64::try_from(p.rejected).unwrap_or(i64::MAX), p.message))
}

#[tonic::async_trait]
impl trace::trace_service_server::TraceService for Service {
    async fn export(
        &self,
        r: Request<trace::ExportTraceServiceRequest>,
    ) -> Result<Response<trace::ExportTraceServiceResponse>, Status> {
        let (tenant, held) = admit(&self.0, &r).await?;
        let work = otlp_http::traces(self.0.clone(), tenant, r.into_inner());
        let partial = held.work(&self.0, work).await.map_err(|e| status(&e))?;
        let partial_success = rejected(partial).map(|(rejected_spans, error_message)| {
            trace::ExportTracePartialSuccess { rejected_spans, error_message }
        });
        Ok(Response::new(trace::ExportTraceServiceResponse { partial_success }))
    }
}

#[tonic::async_trait]
impl logs::logs_service_server::LogsService for Service {
    async fn export(
        &self,
        r: Request<logs::ExportLogsServiceRequest>,
    ) -> Result<Response<logs::ExportLogsServiceResponse>, Status> {
        let (tenant, held) = admit(&self.0, &r).await?;
        let work = otlp_http::logs(self.0.clone(), tenant, r.into_inner());
        let partial = held.work(&self.0, work).await.map_err(|e| status(&e))?;
        let partial_success = rejected(partial).map(|(rejected_log_records, error_message)| {
            logs::ExportLogsPartialSuccess { rejected_log_records, error_message }
        });
        Ok(Response::new(logs::ExportLogsServiceResponse { partial_success }))
    }
}

#[tonic::async_trait]
impl metrics::metrics_service_server::MetricsService for Service {
    async fn export(
        &self,
        r: Request<metrics::ExportMetricsServiceRequest>,
    ) -> Result<Response<metrics::ExportMetricsServiceResponse>, Status> {
        let (tenant, held) = admit(&self.0, &r).await?;
        let work = otlp_http::metrics(self.0.clone(), tenant, r.into_inner());
        let partial = held.work(&self.0, work).await.map_err(|e| status(&e))?;
        let partial_success = rejected(partial).map(|(rejected_data_points, error_message)| {
            metrics::ExportMetricsPartialSuccess { rejected_data_points, error_message }
        });
        Ok(Response::new(metrics::ExportMetricsServiceResponse { partial_success }))
    }
}

/// Serves the three OTLP services until the token is cancelled, then finishes open requests.
///
/// # Errors
/// When the transport fails.
pub async fn serve_grpc(
    state: AppState,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let max = state.limits.expanded_bytes_max();
    let service = Service(state);
    macro_rules! limited {
        ($server:expr) => {
            $server
                .max_decoding_message_size(max)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd)
        };
    }
    tonic::transport::Server::builder()
        .add_service(limited!(trace::trace_service_server::TraceServiceServer::new(
            service.clone()
        )))
        .add_service(limited!(logs::logs_service_server::LogsServiceServer::new(service.clone())))
        .add_service(limited!(metrics::metrics_service_server::MetricsServiceServer::new(service)))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.cancelled_owned())
        .await
}
