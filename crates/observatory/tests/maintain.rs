//! What administrators do: flush, back up, restore, delete; and what a damaged block looks like.

use crate::support::{BIN, Server};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn run(args: &[&str]) -> (Option<i32>, String) {
    let o = Command::new(BIN).args(args).output().unwrap();
    let text = [o.stdout, o.stderr].concat();
    (o.status.code(), String::from_utf8_lossy(&text).into_owned())
}

async fn count(server: &Server, table: &str) -> (Value, Value) {
    let url =
        server.url("ui", &format!("/api/v1/sql?q=SELECT%20count(*)%20AS%20n%20FROM%20{table}"));
    let answer: Value =
        obs_objects::http_client().get(url).send().await.unwrap().json().await.unwrap();
    (answer["rows"][0]["n"].clone(), answer["partial"].clone())
}

async fn post(url: String) -> u16 {
    obs_objects::http_client().post(url).send().await.unwrap().status().as_u16()
}

fn send(server: &Server, signal: &str, service: &str) {
    let otlp = server.url("otlp-http", "");
    let (code, text) = run(&["send", signal, "--endpoint", &otlp, "--service", service]);
    assert_eq!(code, Some(0), "{text}");
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut folders = vec![dir.join("segments")];
    while let Some(f) = folders.pop() {
        for entry in std::fs::read_dir(f).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { out.push(path) }
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_while_running_brings_everything_back() {
    let dir = tempfile::tempdir().unwrap();
    let (data, copy, back) =
        (dir.path().join("data"), dir.path().join("copy"), dir.path().join("back"));
    let server = Server::start(&data, &[]);
    for signal in ["trace", "metric", "log"] {
        send(&server, signal, "before");
    }
    let (copy, back) = (copy.to_str().unwrap(), back.to_str().unwrap());
    let (code, text) = run(&["backup", copy, "--url", &server.url("ui", "")]);
    assert_eq!(code, Some(0), "{text}");
    send(&server, "log", "after");
    // Again to the same place is refused and harms nothing.
    assert_eq!(run(&["backup", copy, "--url", &server.url("ui", "")]).0, Some(2));
    drop(server);
    assert_eq!(run(&["verify", copy]).0, Some(0));
    let (code, text) = run(&["restore", copy, back]);
    assert_eq!(code, Some(0), "{text}");
    let server = Server::start(Path::new(back), &[]);
    for table in ["spans", "logs"] {
        assert_eq!(count(&server, table).await.0, 1, "{table}");
    }
    let (_, text) =
        run(&["query", "promql", "observatory_send_total", "--url", &server.url("ui", "")]);
    assert!(text.contains("before"), "{text}");
    // One flipped bit in the backup, and it is not restored.
    let victim = segments(Path::new(copy)).pop().unwrap();
    let mut bytes = std::fs::read(&victim).unwrap();
    bytes[20] ^= 4;
    std::fs::write(&victim, bytes).unwrap();
    let other = dir.path().join("other");
    let (code, text) = run(&["restore", copy, other.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(text.contains("damaged") && !other.exists(), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_data_is_gone_at_once_and_stays_gone() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    for signal in ["trace", "metric", "log"] {
        send(&server, signal, "svc");
    }
    let spans = obs_objects::http_client()
        .get(server.url("ui", "/api/v1/sql?q=SELECT%20trace_id%20FROM%20spans"))
        .send();
    let spans: Value = spans.await.unwrap().json().await.unwrap();
    let trace = spans["rows"][0]["trace_id"].as_str().unwrap().to_owned();
    let client = obs_objects::http_client();
    let of_trace = server.url("ui", &format!("/api/v1/traces/{trace}"));
    let forged = client.delete(&of_trace).header("Origin", "https://evil.example").send();
    assert_eq!(forged.await.unwrap().status(), 403);
    assert_eq!(count(&server, "spans").await.0, 1);
    for _ in 0..2 {
        assert_eq!(client.delete(&of_trace).send().await.unwrap().status(), 200);
        assert_eq!(count(&server, "spans").await.0, 0);
    }
    let admin = |what: &str| server.url("prometheus", &format!("/api/v1/admin/tsdb/{what}"));
    assert_eq!(post(admin("delete_series")).await, 400);
    assert_eq!(post(admin("delete_series?match[]=observatory_send_total")).await, 204);
    let metric = |server: &Server| {
        run(&["query", "promql", "observatory_send_total", "--url", &server.url("ui", "")]).1
    };
    assert!(!metric(&server).contains("svc"));
    assert_eq!(post(admin("clean_tombstones")).await, 204);
    // What is sent afterwards is not deleted.
    send(&server, "metric", "svc");
    assert!(metric(&server).contains("svc"));
    server.kill();
    let server = Server::start(dir.path(), &[]);
    assert_eq!(count(&server, "spans").await.0, 0);
    assert_eq!(count(&server, "logs").await.0, 1);
    let tenant = server.url("ui", "/api/v1/tenants/default");
    assert_eq!(client.delete(tenant).send().await.unwrap().status(), 200);
    assert_eq!(count(&server, "logs").await.0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_a_damaged_block_is_partial_and_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    for signal in ["trace", "metric", "log"] {
        send(&server, signal, "svc");
    }
    assert_eq!(post(server.url("ui", "/api/v1/storage/flush")).await, 200);
    server.kill();
    for path in segments(dir.path()) {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[12] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let (code, text) = run(&["verify", dir.path().to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    let server = Server::start(dir.path(), &[]);
    assert_eq!(count(&server, "logs").await, (0.into(), true.into()));
    for (listener, path, member) in [
        ("prometheus", "/api/v1/query?query=observatory_send_total", "warnings"),
        ("loki", "/loki/api/v1/query_range?query=%7Bservice_name%3D%22svc%22%7D", "warnings"),
        ("jaeger", "/api/traces?service=svc", "errors"),
    ] {
        let response =
            obs_objects::http_client().get(server.url(listener, path)).send().await.unwrap();
        assert_eq!(response.headers()["x-observatory-partial"], "true", "{listener}");
        let answer: Value = response.json().await.unwrap();
        let said = answer[member][0].to_string();
        assert!(said.contains("partial answer") && said.contains("from"), "{listener}: {answer}");
    }
    // New data is taken and found beside the damage.
    send(&server, "log", "svc");
    assert_eq!(count(&server, "logs").await, (1.into(), true.into()));
}
