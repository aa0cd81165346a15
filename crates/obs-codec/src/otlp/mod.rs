//! OTLP 1.x, protobuf and JSON.

mod common;
mod encode;
mod logs;
mod metrics;
mod names;
mod traces;

pub use common::attributes;
pub use encode::{JsonDialect, encode_traces, json_traces, json_value, proto_attributes};
pub use logs::{decode_logs, stream_labels};
pub use metrics::{Metrics, Resolve, decode_metrics};
pub use names::{LiveNaming, Naming, Promoted, Translation, label_name};
pub use traces::decode_traces;

use crate::DecodeError;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

/// Parses a request of any signal from protobuf.
///
/// # Errors
/// When the bytes are not that message.
pub fn from_protobuf<T: prost::Message + Default>(body: &[u8]) -> Result<T, DecodeError> {
    T::decode(body).map_err(|e| DecodeError { format: "OTLP protobuf", reason: e.to_string() })
}

/// A request that has an OTLP JSON form.
pub trait JsonRequest: Sized {
    /// # Errors
    /// When the text is not that message.
    fn from_json(body: &[u8]) -> Result<Self, DecodeError>;
}

macro_rules! json {
    ($($t:ty),*) => {
        $(impl JsonRequest for $t {
            fn from_json(body: &[u8]) -> Result<Self, DecodeError> {
                serde_json::from_slice(body).map_err(|e| DecodeError { format: "OTLP JSON", reason: e.to_string() })
            }
        })*
    };
}

json!(ExportLogsServiceRequest, ExportMetricsServiceRequest, ExportTraceServiceRequest);
