//! `kill -9` under load: nothing acknowledged is lost, nothing is invented.

use crate::support::{Server, now_ns};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const KILLS: u64 = 10;
const WRITERS: u64 = 4;

fn body(n: u64, signal: &str) -> String {
    let t = now_ns();
    let resource =
        r#""resource":{"attributes":[{"key":"service.name","value":{"stringValue":"crash"}}]}"#;
    match signal {
        "logs" => format!(
            r#"{{"resourceLogs":[{{{resource},"scopeLogs":[{{"logRecords":[{{"timeUnixNano":"{t}","body":{{"stringValue":"n={n}"}}}}]}}]}}]}}"#
        ),
        "traces" => format!(
            r#"{{"resourceSpans":[{{{resource},"scopeSpans":[{{"spans":[{{"traceId":"{:032x}","spanId":"{:016x}","name":"n={n}","startTimeUnixNano":"{t}","endTimeUnixNano":"{t}"}}]}}]}}]}}"#,
            n + 1,
            n + 1
        ),
        _ => format!(
            r#"{{"resourceMetrics":[{{{resource},"scopeMetrics":[{{"metrics":[{{"name":"crash.value","gauge":{{"dataPoints":[{{"timeUnixNano":"{t}","asInt":"{n}","attributes":[{{"key":"n","value":{{"stringValue":"{n}"}}}}]}}]}}}}]}}]}}]}}"#
        ),
    }
}

const SIGNALS: [&str; 3] = ["logs", "traces", "metrics"];

/// Writes numbered records until the server goes away; returns those that were acknowledged.
async fn write(url: String, counter: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Vec<u64> {
    let client = obs_objects::http_client();
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let n = counter.fetch_add(1, Ordering::Relaxed);
        let signal = SIGNALS[(n % 3) as usize];
        let sent = client
            .post(format!("{url}/v1/{signal}"))
            .header("content-type", "application/json")
            .body(body(n, signal))
            .send()
            .await;
        match sent {
            Ok(r) if r.status().is_success() => acknowledged.push(n),
            // Sent but not answered: either fate is right.
            _ => break,
        }
    }
    acknowledged
}

/// Returns every number that the server knows, by signal.
async fn stored(server: &Server) -> Vec<HashSet<u64>> {
    let client = obs_objects::http_client();
    let mut out = Vec::new();
    for (sql, column) in [
        ("SELECT line AS v FROM logs WHERE service = 'crash'", "v"),
        ("SELECT name AS v FROM spans WHERE service = 'crash'", "v"),
        (
            "SELECT 'n=' || CAST(CAST(value AS BIGINT) AS VARCHAR) AS v FROM metrics WHERE name = 'crash_value'",
            "v",
        ),
    ] {
        let r =
            client.get(server.url("ui", "/api/v1/sql")).query(&[("q", sql)]).send().await.unwrap();
        let json: serde_json::Value = r.json().await.unwrap();
        let rows = json["rows"].as_array().unwrap_or_else(|| panic!("{json}"));
        out.push(
            rows.iter()
                .map(|r| r[column].as_str().unwrap().trim_start_matches("n=").parse().unwrap())
                .collect(),
        );
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_over_ten_kills() {
    let dir = tempfile::tempdir().unwrap();
    // A small head, so that kills also hit flushes.
    let config = dir.path().join("observatory.yaml");
    std::fs::write(&config, "data:\n  head_bytes: 1048576\n  disk_reserve_bytes: 0\n").unwrap();
    let config = ["--config", config.to_str().unwrap()];
    let data = dir.path().join("data");
    let counter = Arc::new(AtomicU64::new(0));
    let mut acknowledged: HashSet<u64> = HashSet::new();
    for round in 0..KILLS {
        let server = Server::start(&data, &config);
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                tokio::spawn(write(server.url("otlp-http", ""), counter.clone(), stop.clone()))
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300 + 137 * round % 500)).await;
        server.kill();
        stop.store(true, Ordering::Relaxed);
        for w in writers {
            acknowledged.extend(w.await.unwrap());
        }
        assert!(acknowledged.len() as u64 > round * 10, "round {round} wrote next to nothing");
    }
    let server = Server::start(&data, &config);
    let found = stored(&server).await;
    let sent = counter.load(Ordering::Relaxed);
    for (i, numbers) in found.iter().enumerate() {
        let lost: Vec<_> =
            acknowledged.iter().filter(|n| **n % 3 == i as u64 && !numbers.contains(n)).collect();
        assert!(
            lost.is_empty(),
            "{} of {} {} were acknowledged and lost: {lost:?}",
            lost.len(),
            acknowledged.len(),
            SIGNALS[i]
        );
        assert!(
            numbers.iter().all(|n| *n < sent && n % 3 == i as u64),
            "{} were invented",
            SIGNALS[i]
        );
    }
    println!("{} acknowledged of {sent} sent over {KILLS} kills, 0 lost", acknowledged.len());
    assert_eq!(server.terminate(), Some(0));
    let verify =
        std::process::Command::new(crate::support::BIN).arg("verify").arg(&data).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
}
