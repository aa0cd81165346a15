//! The HTTP and gRPC surfaces: one module an API, wire structs and status codes.
//!
//! Holds no business logic: requests are decoded, handed to `obs-ingest` or a query engine, and
//! the result is put into the peer's shape. [`router`] says what each listener serves; [`state`]
//! what handlers share.

mod admin;
mod admission;
mod agents;
mod alertmanager;
mod archive;
mod body;
mod grpc;
mod health;
mod jaeger;
mod llm;
mod loki;
mod media;
mod money;
mod otlp_grpc;
mod otlp_http;
mod params;
mod partial;
mod previews;
mod prometheus;
mod remote_write;
pub mod router;
pub mod rule_engine;
mod run;
mod sampling;
mod scores;
mod sessions;
mod sql;
pub mod state;
mod tempo;
mod tempo_grpc;
mod tenant;
mod traces;
mod ui;
mod views;
mod zipkin;

pub use alertmanager::explained;
pub use health::starting;
pub use jaeger::grpc::{serve_collector, serve_query};
pub use jaeger::receive::serve_udp;
pub use loki::{LokiLimits, RawLokiLimits, run_written_rules};
pub use money::stored_prices;
pub use otlp_grpc::serve_grpc;
pub use router::{Listener, Transport, router};
pub use rule_engine::RuleEngine;
pub use state::{AdminApi, AppState, ServerLimits, Workers};
