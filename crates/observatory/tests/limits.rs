//! Every limit of a tenant: what is at it passes, what is past it is refused by name, and other
//! tenants are not touched.

use crate::support::Server;
use serde_json::{Value, json};

const CONFIG: &str = "
limits:
  tenants:
    small:
      series: 2
      labels_per_series: 3
      label_name_bytes: 12
      label_value_bytes: 10
      log_line_bytes: 20
      attributes: 2
      body_bytes: 3000
      decompressed_bytes: 4000
      future: 1m
data:
  disk_reserve_bytes: 0
";

fn attributes(list: &[(&str, &str)]) -> Value {
    let one = |(k, v): &(&str, &str)| json!({"key": k, "value": {"stringValue": v}});
    list.iter().map(one).collect()
}

fn metric(name: &str, labels: &[(&str, &str)], now: u64) -> Value {
    let point =
        json!({"timeUnixNano": now.to_string(), "asDouble": 1, "attributes": attributes(labels)});
    let metric = json!({"name": name, "gauge": {"dataPoints": [point]}});
    json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]})
}

fn span(count: usize, now: u64) -> Value {
    let keys: Vec<String> = (0..count).map(|i| format!("k{i}")).collect();
    let list: Vec<(&str, &str)> = keys.iter().map(|k| (k.as_str(), "v")).collect();
    let span = json!({
        "traceId": "0102030405060708090a0b0c0d0e0f10", "spanId": "0102030405060708",
        "name": "the offender", "startTimeUnixNano": now.to_string(),
        "endTimeUnixNano": (now + 5).to_string(), "attributes": attributes(&list),
    });
    json!({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
}

fn line(length: usize, at: u64) -> Value {
    json!({"streams": [{"stream": {"app": "shop"}, "values": [[at.to_string(), "x".repeat(length)]]}]})
}

fn stream(labels: &[(&str, &str)], at: u64) -> Value {
    let labels: std::collections::BTreeMap<_, _> = labels.iter().copied().collect();
    json!({"streams": [{"stream": labels, "values": [[at.to_string(), "x"]]}]})
}

/// A request of exactly so many bytes.
fn padded(bytes: usize, now: u64) -> Vec<u8> {
    let mut text = line(5, now).to_string();
    text.push_str(&" ".repeat(bytes - text.len()));
    text.into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

struct Case {
    limit: &'static str,
    /// Words of the refusal that name the offender.
    offender: &'static str,
    listener: &'static str,
    path: &'static str,
    at: Vec<u8>,
    past: Vec<u8>,
    packed: bool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_limits_hold_at_the_edge_and_name_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.yaml");
    std::fs::write(&file, CONFIG).unwrap();
    let server = Server::start(&dir.path().join("data"), &["--config", file.to_str().unwrap()]);
    let now = crate::support::now_ns();
    let case = |limit, offender, (listener, path), at: Value, past: Value| {
        let (at, past) = (at.to_string().into_bytes(), past.to_string().into_bytes());
        Case { limit, offender, listener, path, at, past, packed: false }
    };
    let bytes = |limit, at, past, packed| {
        let (listener, path) = ("loki", "/loki/api/v1/push");
        Case { limit, offender: "tenant small", listener, path, at, past, packed }
    };
    let (metrics, loki) = (("otlp-http", "/v1/metrics"), ("loki", "/loki/api/v1/push"));
    let traces = ("otlp-http", "/v1/traces");
    let minute = 60_000_000_000;
    let cases = [
        case(
            "labels_per_series",
            "series m{a=\"1\"",
            metrics,
            metric("m", &[("a", "1"), ("b", "1")], now),
            metric("m", &[("a", "1"), ("b", "1"), ("c", "1")], now),
        ),
        case(
            "label_name_bytes",
            "series m: label name abcdefghijklm",
            metrics,
            metric("m", &[("abcdefghijkl", "1")], now),
            metric("m", &[("abcdefghijklm", "1")], now),
        ),
        case(
            "label_value_bytes",
            "series m: value of label \"a\"",
            metrics,
            metric("m", &[("a", "1"), ("b", "1")], now + 1_000_000),
            metric("m", &[("a", "12345678901"), ("b", "1")], now),
        ),
        // Two series are there by now.
        case(
            "series_per_tenant",
            "new series",
            metrics,
            metric("m", &[("a", "1"), ("b", "1")], now + 2_000_000),
            metric("third", &[], now),
        ),
        case(
            "labels_per_series",
            "stream {a=\"1\"",
            loki,
            stream(&[("a", "1"), ("b", "1")], now),
            stream(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")], now),
        ),
        case(
            "label_name_bytes",
            "stream {abcdefghijklm=\"1\"",
            loki,
            stream(&[("abcdefghijkl", "1")], now),
            stream(&[("abcdefghijklm", "1")], now),
        ),
        case(
            "label_value_bytes",
            "value of label \"a\"",
            loki,
            stream(&[("a", "1234567890")], now),
            stream(&[("a", "12345678901")], now),
        ),
        case("log_line_bytes", "{app=\"shop\"}", loki, line(20, now), line(21, now)),
        case("future", "{app=\"shop\"}", loki, line(1, now + minute), line(2, now + 3 * minute)),
        case("attributes", "span \"the offender\"", traces, span(2, now), span(3, now)),
        bytes("body_bytes", padded(3000, now), padded(3001, now), false),
        bytes("decompressed_bytes", gzip(&padded(4000, now)), gzip(&padded(4001, now)), true),
    ];
    let client = obs_objects::http_client();
    let send = async |c: &Case, tenant: &str, body: &[u8]| {
        let mut r = client
            .post(server.url(c.listener, c.path))
            .header("content-type", "application/json")
            .header("x-scope-orgid", tenant)
            .body(body.to_vec());
        if c.packed {
            r = r.header("content-encoding", "gzip");
        }
        let answer = r.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap().replace("\\\"", "\"");
        let refused = text.contains("errorMessage") && !text.contains("\"errorMessage\":\"\"");
        ((200..300).contains(&status) && !refused, status, text)
    };
    for c in &cases {
        let (good, status, text) = send(c, "small", &c.at).await;
        assert!(good, "{} at the limit: {status} {text}", c.limit);
        let (good, status, text) = send(c, "small", &c.past).await;
        assert!(!good, "{} past the limit: {status} {text}", c.limit);
        let named = format!("limits.{}", c.limit);
        assert!(text.contains(&named) && text.contains(c.offender), "{named}: {text}");
        let (good, status, text) = send(c, "large", &c.past).await;
        assert!(good, "{} of another tenant: {status} {text}", c.limit);
    }
    let metrics = client.get(server.url("ui", "/metrics")).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for c in &cases {
        let name = c.limit.trim_end_matches("_per_tenant");
        let counted = metrics.lines().any(|l| {
            l.starts_with("obs_rejected_total") && l.contains(&format!("reason=\"{name}\""))
        });
        assert!(counted, "{name} is not counted");
    }
    for name in ["body_bytes", "labels_per_series", "series", "memory_bytes", "log_line_bytes"] {
        assert!(metrics.contains(&format!("obs_limit{{name=\"{name}\"}}")), "{name} is not shown");
    }
}
