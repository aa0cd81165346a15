//! Bad input: a clear answer, flat memory, and the good rest of a batch kept.

use crate::support::{Server, now_ns};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use std::io::Write as _;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

/// A gzip stream of about 1 MB that expands to 1 GiB.
fn bomb() -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let block = vec![b' '; 1 << 20];
    for _ in 0..1024 {
        e.write_all(&block).unwrap();
    }
    e.finish().unwrap()
}

fn span(id: &str, start: u64) -> String {
    format!(
        r#"{{"traceId":"{id}","spanId":"00000000000000ff","name":"x","startTimeUnixNano":"{start}","endTimeUnixNano":"{start}"}}"#
    )
}

fn traces(spans: &[String]) -> String {
    format!(
        r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"hostile"}}}}]}},"scopeSpans":[{{"spans":[{}]}}]}}]}}"#,
        spans.join(",")
    )
}

/// A case: name, content type, content encoding, body, expected status, text in the answer.
type Case = (&'static str, &'static str, &'static str, Vec<u8>, u16, &'static str);

const JSON: &str = "application/json";
const PROTO: &str = "application/x-protobuf";

fn cases() -> Vec<Case> {
    let now = now_ns();
    let good = || span(&"1".repeat(32), now);
    let one = |bad: String| traces(&[good(), bad]).into_bytes();
    let whole = gzip(traces(&[good()]).as_bytes());
    let bad_utf8 = {
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans {
                    spans: vec![Span { name: "aaaa".into(), ..Span::default() }],
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let mut bytes = request.encode_to_vec();
        let at = bytes.windows(4).position(|w| w == b"aaaa").unwrap();
        bytes[at] = 0xff;
        bytes
    };
    // Deep enough to overflow a recursive reader's stack.
    let deep =
        format!("{}{}", r#"{"resourceSpans":"#.repeat(20_000), "}".repeat(20_000)).into_bytes();
    vec![
        ("empty JSON body", JSON, "", b"".to_vec(), 400, "OTLP JSON"),
        ("empty protobuf is an empty request", PROTO, "", b"".to_vec(), 200, ""),
        ("not JSON", JSON, "", b"hello".to_vec(), 400, "OTLP JSON"),
        ("not protobuf", PROTO, "", vec![0xff; 64], 400, "OTLP protobuf"),
        ("JSON as protobuf", PROTO, "", traces(&[good()]).into_bytes(), 400, "OTLP protobuf"),
        ("deep nesting", JSON, "", deep, 400, "OTLP JSON"),
        ("bad UTF-8 in a string", PROTO, "", bad_utf8, 400, "UTF-8"),
        (
            "bad UTF-8 in JSON",
            JSON,
            "",
            b"{\"resourceSpans\":[{\"schemaUrl\":\"\xff\"}]}".to_vec(),
            400,
            "OTLP JSON",
        ),
        ("wrong content type", "text/plain", "", b"x".to_vec(), 415, "text/plain"),
        ("wrong encoding", JSON, "br", b"x".to_vec(), 415, "br"),
        ("truncated gzip", JSON, "gzip", whole[..whole.len() - 7].to_vec(), 400, "gzip"),
        ("gzip that is none", JSON, "gzip", b"nothing".to_vec(), 400, "gzip"),
        ("zstd that is none", JSON, "zstd", b"nothing".to_vec(), 400, "zstd"),
        ("1 GiB in 1 MB", JSON, "gzip", bomb(), 413, "expands"),
        ("body over the cap", JSON, "", vec![b' '; (16 << 20) + 1], 413, "larger"),
        ("good gzip", JSON, "gzip", whole, 200, "{}"),
        (
            "good zstd",
            JSON,
            "zstd",
            zstd::encode_all(traces(&[good()]).as_bytes(), 1).unwrap(),
            200,
            "{}",
        ),
        ("short trace id", JSON, "", one(span("1234", now)), 200, "invalid trace id"),
        ("long trace id", JSON, "", one(span(&"1".repeat(34), now)), 200, "invalid trace id"),
        ("zero trace id", JSON, "", one(span(&"0".repeat(32), now)), 200, "invalid trace id"),
        ("no start time", JSON, "", one(span(&"2".repeat(32), 0)), 200, "no start time"),
        // Year 1 has no unsigned nanoseconds; the year 3000 has none that fit 64 bits either.
        (
            "year 1",
            JSON,
            "",
            traces(&[
                good(),
                span(&"2".repeat(32), 0).replace("\"0\"", "\"-62135596800000000000\""),
            ])
            .into_bytes(),
            400,
            "OTLP JSON",
        ),
        (
            "year 2500",
            JSON,
            "",
            one(span(&"2".repeat(32), 16_725_225_600_000_000_000)),
            200,
            "past the year 2262",
        ),
        (
            "year 2200",
            JSON,
            "",
            one(span(&"2".repeat(32), 7_258_118_400_000_000_000)),
            200,
            "in the future",
        ),
        (
            "year 3000",
            JSON,
            "",
            traces(&[span(&"2".repeat(32), 0).replace("\"0\"", "\"32503680000000000000\"")])
                .into_bytes(),
            400,
            "OTLP JSON",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_clearly_and_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let client = obs_objects::http_client();
    let before = server.resident();
    let mut kept = 0;
    for (name, kind, encoding, body, status, text) in cases() {
        let mut request = client
            .post(server.url("otlp-http", "/v1/traces"))
            .header("content-type", kind)
            .body(body);
        if !encoding.is_empty() {
            request = request.header("content-encoding", encoding);
        }
        let answer = request.send().await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let got = answer.status().as_u16();
        let bytes = answer.bytes().await.unwrap();
        let answer = String::from_utf8_lossy(&bytes);
        assert_eq!(got, status, "{name}: {answer}");
        assert!(answer.contains(text), "{name}: {answer:?} does not say {text:?}");
        if status == 200 && kind == JSON {
            kept += 1;
            let partial = answer.contains("partialSuccess");
            assert_eq!(partial, !text.starts_with('{'), "{name}: {answer}");
            assert!(!partial || answer.contains(r#""rejectedSpans":"1""#), "{name}: {answer}");
        }
    }
    assert!(kept > 6);
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "resident memory grew by {grown} bytes");
    // The good span that stood beside each bad one is there, once.
    let sql = "SELECT count(*) AS n FROM spans WHERE service = 'hostile'";
    let rows: serde_json::Value = client
        .get(server.url("ui", "/api/v1/sql"))
        .query(&[("q", sql)])
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(rows["rows"][0]["n"], 1);
    let metrics =
        client.get(server.url("ui", "/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("obs_rejected_total{reason=\"malformed\",signal=\"traces\"}"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_takes_both_compressions_and_refuses_bombs() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let request = |name: String| {
        let span = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            name,
            start_time_unix_nano: now_ns(),
            end_time_unix_nano: now_ns(),
            ..Span::default()
        };
        let bad = Span { trace_id: vec![1; 3], ..span.clone() };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans { spans: vec![span, bad], ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        }
    };
    for encoding in
        [tonic::codec::CompressionEncoding::Gzip, tonic::codec::CompressionEncoding::Zstd]
    {
        let mut client = TraceServiceClient::connect(server.url("otlp-grpc", ""))
            .await
            .unwrap()
            .send_compressed(encoding);
        let partial =
            client.export(request("x".into())).await.unwrap().into_inner().partial_success.unwrap();
        assert_eq!(partial.rejected_spans, 1);
        assert!(partial.error_message.contains("invalid trace id"), "{}", partial.error_message);
        let before = server.resident();
        // 100 MB of zeros travel as 100 kB and must not be expanded past the limit.
        let refused = client.export(request("\0".repeat(100 << 20))).await.unwrap_err();
        assert!(
            matches!(refused.code(), tonic::Code::OutOfRange | tonic::Code::ResourceExhausted),
            "{refused:?}"
        );
        assert!(server.resident().saturating_sub(before) < 200 << 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_doors_refuse_clearly_too() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let client = obs_objects::http_client();
    let now = now_ns();
    let push = |body: String| {
        client
            .post(server.url("loki", "/loki/api/v1/push"))
            .header("content-type", JSON)
            .body(body)
            .send()
    };
    let good = format!(r#"["{now}","good"]"#);
    let mixed =
        format!(r#"{{"streams":[{{"stream":{{"app":"x"}},"values":[{good},["soon","bad"]]}}]}}"#);
    let answer = push(mixed).await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await.unwrap().contains("1 entries were refused, 1 stored"));
    assert_eq!(push("[]".into()).await.unwrap().status(), 400);
    assert_eq!(
        push(format!(r#"{{"streams":[{{"stream":{{"app":"x"}},"values":[{good}]}}]}}"#))
            .await
            .unwrap()
            .status(),
        204
    );
    let gets: &[(&str, &str, u16, &str)] = &[
        ("prometheus", "/api/v1/query?query=rate(up)", 400, "expected type range vector"),
        ("prometheus", "/api/v1/query?query=info(up,up)", 400, "label selectors only"),
        (
            "prometheus",
            "/api/v1/query_range?query=up&start=0&end=100000&step=1",
            400,
            "11,000 points",
        ),
        ("prometheus", "/api/v1/query_range?query=up&start=5&end=1&step=1", 400, "before start"),
        ("prometheus", "/api/v1/query?query=up&time=never", 400, "valid timestamp"),
        ("prometheus", "/api/v1/series", 400, "no match[]"),
        (
            "loki",
            "/loki/api/v1/query_range?query={app=%22x%22}|line_format%20%22{{a%22",
            400,
            "invalid line template",
        ),
        ("loki", "/loki/api/v1/query?query={app=%22x%22}", 400, "instant query"),
        ("loki", "/loki/api/v1/query_range?query={}", 400, "at least one"),
        ("jaeger", "/api/traces/zz", 400, "invalid syntax"),
        ("jaeger", "/api/traces/1", 404, "trace not found"),
        ("jaeger", "/api/traces?service=x&minDuration=fast", 400, "invalid duration"),
        ("ui", "/api/v1/sql?q=DROP%20TABLE%20logs", 400, "not supported"),
        ("ui", "/api/v1/sql", 400, "missing"),
        ("ui", "/api/nothing", 404, ""),
    ];
    for (listener, path, status, text) in gets {
        let answer = client
            .get(server.url(listener, path))
            .header("accept", "text/html")
            .send()
            .await
            .unwrap();
        let got = answer.status().as_u16();
        let body = answer.text().await.unwrap();
        assert_eq!(got, *status, "{path}: {body}");
        assert!(body.contains(text), "{path}: {body}");
    }
    // A series with a label twice, in a snappy block that is one literal.
    let label = b"\x0a\x06\x0a\x01a\x12\x01b";
    let sample = b"\x12\x0b\x09\0\0\0\0\0\0\xf0\x3f\x10\x01";
    let series = [label.as_slice(), label, sample].concat();
    let body = [b"\x0a", &[series.len() as u8][..], &series].concat();
    let packed = [&[body.len() as u8, (body.len() as u8 - 1) << 2][..], &body].concat();
    let sent = client.post(server.url("prometheus", "/api/v1/write")).body(packed);
    let answer = sent.send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let text = answer.text().await.unwrap();
    assert!(text.contains("1 samples were refused, 0 stored"), "{text}");
    let metrics =
        client.get(server.url("ui", "/metrics")).send().await.unwrap().text().await.unwrap();
    let counted = "obs_rejected_total{reason=\"malformed\",signal=\"metrics\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    // A snappy block that says it holds 100 MiB.
    let swollen = vec![0x80, 0x80, 0x80, 0x32, 0];
    for (listener, path) in [("prometheus", "/api/v1/write"), ("loki", "/loki/api/v1/push")] {
        let sent = client
            .post(server.url(listener, path))
            .header("content-type", "application/x-protobuf")
            .body(swollen.clone());
        let answer = sent.send().await.unwrap();
        assert_eq!(answer.status(), 413, "{path}");
        assert!(answer.text().await.unwrap().contains("decompressed_bytes"), "{path}");
    }
    let bad_tenant = client
        .get(server.url("prometheus", "/api/v1/labels"))
        .header("X-Scope-OrgID", "../x")
        .send()
        .await
        .unwrap();
    assert_eq!(bad_tenant.status(), 400);
}
