//! OTLP protobuf bytes to spans: what every ingested span costs before it is stored.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use obs_codec::otlp;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use std::hint::black_box;

const SPANS: u64 = 1000;

fn body() -> Vec<u8> {
    let attribute = |i: u64| KeyValue {
        key: format!("gen_ai.attribute.{i}"),
        value: Some(AnyValue { value: Some(Value::StringValue(format!("value {i}"))) }),
        ..KeyValue::default()
    };
    let span = |i: u64| Span {
        trace_id: (u128::from(i / 9) + 1).to_be_bytes().to_vec(),
        span_id: (i + 1).to_be_bytes().to_vec(),
        name: "chat gpt-4o".into(),
        start_time_unix_nano: 1_700_000_000_000_000_000 + i,
        end_time_unix_nano: 1_700_000_001_000_000_000 + i,
        attributes: (0..10).map(attribute).collect(),
        ..Span::default()
    };
    let scope_spans =
        vec![ScopeSpans { spans: (0..SPANS).map(span).collect(), ..ScopeSpans::default() }];
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }],
    }
    .encode_to_vec()
}

fn decode(c: &mut Criterion) {
    let body = body();
    let mut group = c.benchmark_group("otlp");
    group.throughput(Throughput::Elements(SPANS));
    group.bench_function("decode spans", |b| {
        b.iter(|| otlp::decode_traces(otlp::from_protobuf(black_box(&body)).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
