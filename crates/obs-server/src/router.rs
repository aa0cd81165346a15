//! What each listener serves.

use crate::state::AppState;
use crate::{
    admin, agents, alertmanager, body, health, jaeger, llm, loki, media, money, otlp_http, partial,
    previews, prometheus, remote_write, sampling, scores, sessions, sql, tempo, tempo_grpc, traces,
    ui, views, zipkin,
};
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use tower_http::compression::CompressionLayer;

/// A listener by its role; its name is the one in `--listen NAME=ADDR` and `endpoints.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Listener {
    Ui,
    Prometheus,
    Alertmanager,
    Loki,
    Jaeger,
    JaegerGrpc,
    Tempo,
    OtlpGrpc,
    OtlpHttp,
    JaegerThrift,
    JaegerCollectorGrpc,
    JaegerCompact,
    JaegerBinary,
    Zipkin,
    Sampling,
    /// Health of the collector that this process replaces; off unless configured.
    CollectorHealth,
    /// Its own metrics; off unless configured.
    CollectorMetrics,
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Http,
    Grpc,
    Udp,
}

impl Listener {
    pub const ALL: [Self; 17] = [
        Self::Ui,
        Self::Prometheus,
        Self::Alertmanager,
        Self::Loki,
        Self::Jaeger,
        Self::JaegerGrpc,
        Self::Tempo,
        Self::OtlpGrpc,
        Self::OtlpHttp,
        Self::JaegerThrift,
        Self::JaegerCollectorGrpc,
        Self::JaegerCompact,
        Self::JaegerBinary,
        Self::Zipkin,
        Self::Sampling,
        Self::CollectorHealth,
        Self::CollectorMetrics,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ui => "ui",
            Self::Prometheus => "prometheus",
            Self::Alertmanager => "alertmanager",
            Self::Loki => "loki",
            Self::Jaeger => "jaeger",
            Self::JaegerGrpc => "jaeger-grpc",
            Self::Tempo => "tempo",
            Self::OtlpGrpc => "otlp-grpc",
            Self::OtlpHttp => "otlp-http",
            Self::JaegerThrift => "jaeger-thrift",
            Self::JaegerCollectorGrpc => "jaeger-collector-grpc",
            Self::JaegerCompact => "jaeger-compact",
            Self::JaegerBinary => "jaeger-binary",
            Self::Zipkin => "zipkin",
            Self::Sampling => "sampling",
            Self::CollectorHealth => "collector-health",
            Self::CollectorMetrics => "collector-metrics",
        }
    }

    /// The port that the product it speaks for uses.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Ui => 3000,
            Self::Prometheus => 9090,
            Self::Alertmanager => 9093,
            Self::Loki => 3100,
            Self::Jaeger => 16686,
            Self::JaegerGrpc => 16685,
            Self::Tempo => 3200,
            Self::OtlpGrpc => 4317,
            Self::OtlpHttp => 4318,
            Self::JaegerThrift => 14268,
            Self::JaegerCollectorGrpc => 14250,
            Self::JaegerCompact => 6831,
            Self::JaegerBinary => 6832,
            Self::Zipkin => 9411,
            Self::Sampling => 5778,
            Self::CollectorHealth => 13133,
            Self::CollectorMetrics => 8888,
        }
    }

    /// Whether it listens when nothing says so.
    pub const fn is_on_by_default(self) -> bool {
        !matches!(self, Self::CollectorHealth | Self::CollectorMetrics)
    }

    pub const fn transport(self) -> Transport {
        match self {
            Self::OtlpGrpc | Self::JaegerGrpc | Self::JaegerCollectorGrpc => Transport::Grpc,
            Self::JaegerCompact | Self::JaegerBinary => Transport::Udp,
            _ => Transport::Http,
        }
    }
}

/// What Prometheus serves: queries, remote write, and OTLP under its own path.
fn prometheus_routes() -> Router<AppState> {
    prometheus::routes()
        .merge(remote_write::routes())
        .merge(admin::prometheus_routes())
        .nest("/api/v1/otlp", otlp_http::metric_routes())
}

/// Builds the HTTP routes of a listener. The main port carries every API under a prefix too.
pub fn router(listener: Listener, state: AppState) -> Router {
    let common = health::routes();
    let routes = match listener {
        Listener::Ui => common
            .merge(admin::routes())
            .merge(sql::routes())
            .merge(llm::routes())
            .merge(previews::routes())
            .merge(agents::routes())
            .merge(media::routes())
            .merge(views::routes())
            .merge(scores::routes())
            .merge(sessions::routes())
            .merge(money::routes())
            .merge(traces::routes())
            .merge(otlp_http::routes())
            // Where Langfuse's SDKs send.
            .nest("/api/public/otel", otlp_http::routes())
            .merge(loki::routes())
            .nest("/prometheus", prometheus_routes())
            .nest("/alertmanager", alertmanager::routes())
            .merge(alertmanager::native_routes())
            .nest("/jaeger", jaeger::routes())
            .nest("/tempo", tempo::routes())
            .fallback(ui::serve),
        Listener::Prometheus => common.merge(prometheus_routes()),
        Listener::Alertmanager => {
            common.merge(alertmanager::routes()).merge(alertmanager::port_routes())
        }
        Listener::Loki => common.merge(loki::routes()).merge(loki::port_routes()),
        Listener::Jaeger => common.merge(jaeger::routes()),
        Listener::Tempo => common.merge(tempo::routes()),
        Listener::OtlpHttp => common.merge(otlp_http::routes()),
        Listener::JaegerThrift => common.merge(jaeger::receive::routes()),
        Listener::Zipkin => common.merge(zipkin::routes()),
        Listener::Sampling => common.merge(sampling::routes()),
        Listener::CollectorHealth => common.merge(health::collector_routes()),
        Listener::CollectorMetrics => common,
        // Not HTTP.
        Listener::OtlpGrpc
        | Listener::JaegerGrpc
        | Listener::JaegerCollectorGrpc
        | Listener::JaegerCompact
        | Listener::JaegerBinary => Router::new(),
    };
    routes
        .layer(CompressionLayer::new())
        .layer(middleware::from_fn(partial::mark))
        .layer(middleware::from_fn_with_state((state.clone(), listener), count))
        .layer(middleware::map_request_with_state(state.clone(), body::read_to_end))
        .with_state(state.clone())
        .merge(methods(listener, state))
}

/// gRPC methods on a port of HTTP.
fn methods(listener: Listener, state: AppState) -> Router {
    match listener {
        Listener::Tempo => tempo_grpc::routes(state),
        Listener::Ui => money::authz_routes(state),
        _ => Router::new(),
    }
}

async fn count(
    State((state, listener)): State<(AppState, Listener)>,
    request: Request,
    next: Next,
) -> Response {
    let method = request.method().as_str().to_owned();
    // Arbitrary method names would be arbitrary label values.
    let method = if matches!(
        method.as_str(),
        "GET" | "POST" | "PUT" | "DELETE" | "HEAD" | "OPTIONS" | "PATCH"
    ) {
        method
    } else {
        "other".into()
    };
    let response = next.run(request).await;
    let status = response.status();
    let labels = [listener.name(), method.as_str(), status.as_str()];
    state.ingest.telemetry().http_requests.with_label_values(&labels).inc();
    response
}
