//! Log records.

use super::common::{attributes, resource, value};
use super::names::label_name;
use crate::{Decoded, Rejected};
use obs_model::{
    AttributeValue, Labels, LabelsBuilder, LogRecord, Resource, SpanId, TimestampNs, TraceId,
};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use std::sync::Arc;

/// Resource attributes that become stream labels; Loki's default list.
const STREAM_ATTRIBUTES: [&str; 20] = [
    "cloud.availability_zone",
    "cloud.region",
    "container.name",
    "deployment.environment",
    "deployment.environment.name",
    "k8s.cluster.name",
    "k8s.container.name",
    "k8s.cronjob.name",
    "k8s.daemonset.name",
    "k8s.deployment.name",
    "k8s.job.name",
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.replicaset.name",
    "k8s.statefulset.name",
    "service.instance.id",
    "service.name",
    "service.namespace",
    "host.name",
    "process.executable.name",
];

/// Returns the stream of a resource: Loki's index labels, `unknown_service` without a name.
pub fn stream_labels(resource: &Resource) -> Labels {
    let mut b = LabelsBuilder::default();
    for name in STREAM_ATTRIBUTES {
        if let Some(v) = resource.attributes.get(name) {
            b.set(&label_name(name), &v.to_string());
        }
    }
    b.set("service_name", resource.service());
    b.build()
}

/// Converts a request. `now` stands in for records that carry no time at all.
pub fn decode_logs(request: ExportLogsServiceRequest, now: TimestampNs) -> Decoded<Vec<LogRecord>> {
    let (mut items, mut rejected) = (Vec::new(), Rejected::default());
    for rl in request.resource_logs {
        let resource = resource(rl.resource);
        let stream = stream_labels(&resource);
        for sl in rl.scope_logs {
            for r in sl.log_records {
                if !matches!(r.trace_id.len(), 0 | 16) || !matches!(r.span_id.len(), 0 | 8) {
                    rejected.add(format!(
                        "invalid trace id of {} bytes or span id of {} bytes",
                        r.trace_id.len(),
                        r.span_id.len()
                    ));
                    continue;
                }
                let time = |ns: u64| {
                    if ns == 0 { Some(None) } else { TimestampNs::from_unsigned(ns).map(Some) }
                };
                let (Some(timestamp), Some(observed)) =
                    (time(r.time_unix_nano), time(r.observed_time_unix_nano))
                else {
                    rejected.add("time is past the year 2262");
                    continue;
                };
                let timestamp = timestamp.or(observed).unwrap_or(now);
                let line = match value(r.body, 0) {
                    AttributeValue::String(s) => s,
                    other => other.to_string(),
                };
                items.push(LogRecord {
                    stream: stream.clone(),
                    timestamp,
                    observed: observed.unwrap_or(timestamp),
                    line,
                    severity_number: u8::try_from(r.severity_number).unwrap_or(0),
                    severity_text: r.severity_text,
                    event_name: r.event_name,
                    trace_id: TraceId::from_slice(&r.trace_id),
                    span_id: SpanId::from_slice(&r.span_id),
                    attributes: attributes(r.attributes),
                    resource: Arc::clone(&resource),
                });
            }
        }
    }
    Decoded { items, rejected }
}
