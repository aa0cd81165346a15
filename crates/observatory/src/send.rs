//! `observatory send`: one test record over OTLP/HTTP, to see that the way in is open.

use crate::cli::{Output, SendArgs, Signal, say};
use crate::client::block_on;
use crate::serve::wall_clock;
use anyhow::{Context as _, Result};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
    metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use std::process::ExitCode;

/// Builds an attribute.
pub(crate) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Builds a text attribute.
pub(crate) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

/// Builds a resource of a service.
pub(crate) fn resource(service: &str, extra: &[(&str, &str)]) -> Option<Resource> {
    let mut attributes = vec![text("service.name", service)];
    attributes.extend(extra.iter().map(|(k, v)| text(k, v)));
    Some(Resource { attributes, ..Resource::default() })
}

/// Builds a scope.
pub(crate) fn scope(name: &str) -> Option<InstrumentationScope> {
    Some(InstrumentationScope {
        name: name.into(),
        version: crate::cli::VERSION.into(),
        ..InstrumentationScope::default()
    })
}

pub(crate) fn run(a: &SendArgs) -> Result<ExitCode> {
    let now = wall_clock().nanos().unsigned_abs();
    // Unique enough for a test record, and readable in the trace view.
    let trace_id = u128::from(now).to_be_bytes().to_vec();
    let span_id = (now | 1).to_be_bytes().to_vec();
    let hex: String = trace_id.iter().map(|b| format!("{b:02x}")).collect();
    let (path, body) = match a.signal {
        Signal::Trace => {
            let span = Span {
                trace_id,
                span_id,
                name: "test span".into(),
                kind: 1,
                start_time_unix_nano: now - 25_000_000,
                end_time_unix_nano: now,
                attributes: vec![text("test", "true")],
                ..Span::default()
            };
            let scope_spans = vec![ScopeSpans {
                scope: scope("observatory.send"),
                spans: vec![span],
                ..ScopeSpans::default()
            }];
            let r = ExportTraceServiceRequest {
                resource_spans: vec![ResourceSpans {
                    resource: resource(&a.service, &[]),
                    scope_spans,
                    ..ResourceSpans::default()
                }],
            };
            ("/v1/traces", r.encode_to_vec())
        }
        Signal::Log => {
            let record = LogRecord {
                time_unix_nano: now,
                severity_number: 9,
                severity_text: "INFO".into(),
                body: Some(AnyValue { value: Some(Value::StringValue("test log record".into())) }),
                trace_id,
                span_id,
                ..LogRecord::default()
            };
            let scope_logs = vec![ScopeLogs {
                scope: scope("observatory.send"),
                log_records: vec![record],
                ..ScopeLogs::default()
            }];
            let r = ExportLogsServiceRequest {
                resource_logs: vec![ResourceLogs {
                    resource: resource(&a.service, &[]),
                    scope_logs,
                    ..ResourceLogs::default()
                }],
            };
            ("/v1/logs", r.encode_to_vec())
        }
        Signal::Metric => {
            let point = NumberDataPoint {
                time_unix_nano: now,
                value: Some(number_data_point::Value::AsInt(1)),
                ..NumberDataPoint::default()
            };
            let sum = Sum {
                data_points: vec![point],
                aggregation_temporality: AggregationTemporality::Cumulative as i32,
                is_monotonic: true,
            };
            let metric = Metric {
                name: "observatory.send".into(),
                data: Some(Data::Sum(sum)),
                ..Metric::default()
            };
            let scope_metrics = vec![ScopeMetrics {
                scope: scope("observatory.send"),
                metrics: vec![metric],
                ..ScopeMetrics::default()
            }];
            let r = ExportMetricsServiceRequest {
                resource_metrics: vec![ResourceMetrics {
                    resource: resource(&a.service, &[]),
                    scope_metrics,
                    ..ResourceMetrics::default()
                }],
            };
            ("/v1/metrics", r.encode_to_vec())
        }
    };
    let url = format!("{}{path}", a.endpoint.trim_end_matches('/'));
    block_on(post(&obs_objects::http_client(), &url, body, a.tenant.as_deref()))?;
    let how = match a.signal {
        Signal::Trace => format!("trace {hex}"),
        Signal::Log => format!("log record of trace {hex}"),
        Signal::Metric => "metric observatory_send_total".into(),
    };
    match a.output.output {
        Output::Text => say(&format!("sent {how} of service {} to {url}", a.service)),
        Output::Json => say(
            &serde_json::json!({"sent": true, "url": url, "trace_id": hex, "service": a.service})
                .to_string(),
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// Posts an OTLP body; anything but a whole success is an error.
pub(crate) async fn post(
    client: &reqwest::Client,
    url: &str,
    body: Vec<u8>,
    tenant: Option<&str>,
) -> Result<()> {
    let mut request = client.post(url).header("content-type", "application/x-protobuf").body(body);
    if let Some(t) = tenant {
        request = request.header("X-Scope-OrgID", t);
    }
    let response = request
        .send()
        .await
        .with_context(|| format!("failed to reach {url}; is the server running?"))?;
    let status = response.status();
    let answer = response.bytes().await.context("failed to read the answer")?;
    anyhow::ensure!(
        status.is_success(),
        "{url} answered {status}: {}",
        String::from_utf8_lossy(&answer)
    );
    anyhow::ensure!(
        answer.is_empty(),
        "{url} refused the record: {}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}
