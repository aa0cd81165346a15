//! The contracts of the command line and the APIs, as scripts and Grafana use them.

use crate::support::{BIN, Server, eventually, now_ns};
use serde_json::Value;
use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(BIN).args(args).output().unwrap()
}

fn out(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned()
}

async fn json(url: String) -> Value {
    obs_objects::http_client().get(url).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_send_sends_every_query_finds() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let (otlp, ui) = (server.url("otlp-http", ""), server.url("ui", ""));
    for signal in ["trace", "metric", "log"] {
        let sent = run(&["send", signal, "--endpoint", &otlp, "--service", "hello"]);
        assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    }
    let query = |language: &str, text: &str| out(&run(&["query", language, text, "--url", &ui]));
    assert!(query("promql", "observatory_send_total").contains("job=\"hello\""));
    assert!(query("logql", "{service_name=\"hello\"}").contains("test log record"));
    assert!(query("sql", "SELECT service, name FROM spans").contains("test span"));
    let json_out: Value = serde_json::from_str(&out(&run(&[
        "query",
        "sql",
        "SELECT 1 AS one",
        "--url",
        &ui,
        "--output",
        "json",
    ])))
    .unwrap();
    assert_eq!(json_out["rows"][0]["one"], 1);
    assert_eq!(run(&["query", "promql", "rate(", "--url", &ui]).status.code(), Some(1));
    assert_eq!(run(&["query", "cobol", "x"]).status.code(), Some(2));
    assert_eq!(
        run(&["query", "promql", "up", "--url", "http://127.0.0.1:9"]).status.code(),
        Some(1)
    );
    assert!(out(&run(&["version"])).starts_with("observatory "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_readiness_drain_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let health = json(server.url("ui", "/health")).await;
    assert_eq!(health["status"], "healthy");
    assert!(health["pool_stats"]["max_connections"].as_u64().unwrap() > 0);
    for (path, text) in [("/health/live", "alive"), ("/health/ready", "ready")] {
        assert_eq!(
            obs_objects::http_client()
                .get(server.url("ui", path))
                .send()
                .await
                .unwrap()
                .text()
                .await
                .unwrap(),
            text
        );
    }
    run(&["send", "log", "--endpoint", &server.url("otlp-http", "")]);
    // Another server on the same directory is refused and harms nothing.
    let second =
        run(&["serve", "--listen", "all=127.0.0.1:0", "--data", dir.path().to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another process"));
    assert_eq!(server.terminate(), Some(0));
    assert!(!dir.path().join("endpoints.json").exists());
    let server = Server::start(dir.path(), &[]);
    let found =
        json(server.url("ui", "/api/v1/sql?q=SELECT%20count(*)%20AS%20n%20FROM%20logs")).await;
    assert_eq!(found["rows"][0]["n"], 1);
}

#[test]
fn configuration_errors_say_where_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("observatory.yaml");
    std::fs::write(&path, "limits:\n  query_timout: 5s\n").unwrap();
    let path = path.to_str().unwrap();
    for args in [&["check", "config", path][..], &["serve", "--config", path]] {
        let o = run(args);
        let text = String::from_utf8_lossy(&o.stderr);
        assert!(
            text.contains(":2:3: unknown key \"query_timout\"; did you mean \"query_timeout\"?"),
            "{text}"
        );
        assert_eq!(o.status.code(), Some(if args[0] == "serve" { 2 } else { 1 }));
    }
    let o = run(&["serve", "--listen", "promtheus=1"]);
    assert!(String::from_utf8_lossy(&o.stderr).contains("did you mean \"prometheus\"?"));
    assert_eq!(o.status.code(), Some(2));
}

/// What Grafana's data sources ask first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grafana_takes_us_for_its_data_sources() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let sum = json(server.url("prometheus", "/api/v1/query?query=1%2B1&time=4")).await;
    assert_eq!(sum["data"], serde_json::json!({"resultType": "scalar", "result": [4, "2"]}));
    let build = json(server.url("prometheus", "/api/v1/status/buildinfo")).await;
    assert!(build["data"]["version"].is_string() && build["data"]["features"].is_null());
    let sum =
        json(server.url("loki", "/loki/api/v1/query?query=vector(1)%2Bvector(1)&time=4000000000"))
            .await;
    assert_eq!(sum["data"]["result"][0]["value"][1], "2");
    let services = json(server.url("jaeger", "/api/services")).await;
    assert!(services["data"].is_array());
    // POST forms work as GET does.
    let form = obs_objects::http_client()
        .post(server.url("prometheus", "/api/v1/query"))
        .form(&[("query", "vector(7)"), ("time", "5")])
        .send()
        .await
        .unwrap();
    assert_eq!(
        form.json::<Value>().await.unwrap()["data"]["result"][0]["value"],
        serde_json::json!([5, "7"])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_do_not_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    run(&["send", "log", "--endpoint", &server.url("otlp-http", ""), "--tenant", "team-a"]);
    let count = async |tenant: &str| {
        let r = obs_objects::http_client()
            .get(server.url("ui", "/api/v1/sql?q=SELECT%20count(*)%20AS%20n%20FROM%20logs"))
            .header("X-Scope-OrgID", tenant)
            .send()
            .await
            .unwrap();
        r.json::<Value>().await.unwrap()["rows"][0]["n"].clone()
    };
    assert_eq!(count("team-a").await, 1);
    assert_eq!(count("team-b").await, 0);
}

/// Exponential and delta metrics through the wire to PromQL, and own metrics in the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_kind_reaches_promql() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    let client = obs_objects::http_client();
    let start = now_ns() - 60_000_000_000;
    for i in 1..=4_u64 {
        let t = start + i * 15_000_000_000;
        let points = format!(
            r#"{{"name":"d","sum":{{"aggregationTemporality":1,"isMonotonic":true,"dataPoints":[{{"timeUnixNano":"{t}","asInt":"5"}}]}}}},
               {{"name":"e","exponentialHistogram":{{"aggregationTemporality":2,"dataPoints":[{{"timeUnixNano":"{t}","count":"{n}","sum":{n},"scale":0,"positive":{{"offset":0,"bucketCounts":["{n}"]}}}}]}}}},
               {{"name":"s","summary":{{"dataPoints":[{{"timeUnixNano":"{t}","count":"1","sum":2,"quantileValues":[{{"quantile":0.5,"value":3}}]}}]}}}}"#,
            n = i * 10
        );
        let body =
            format!(r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{points}]}}]}}]}}"#);
        let r = client
            .post(server.url("otlp-http", "/v1/metrics"))
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!((r.status().as_u16(), r.text().await.unwrap()), (200, "{}".to_owned()));
    }
    let at = (start + 60_000_000_000) as f64 / 1e9;
    let value = async |query: &str| -> String {
        let r = client
            .get(server.url("prometheus", "/api/v1/query"))
            .query(&[("query", query), ("time", &at.to_string())])
            .send()
            .await
            .unwrap();
        let v: Value = r.json().await.unwrap();
        v["data"]["result"][0]["value"][1]
            .as_str()
            .unwrap_or_else(|| panic!("{query}: {v}"))
            .to_owned()
    };
    assert_eq!(value("d_total").await, "20");
    assert_eq!(value("histogram_count(e)").await, "40");
    assert_eq!(value("histogram_quantile(1, e)").await, "2");
    assert_eq!(value("s{quantile=\"0.5\"}").await, "3");
    eventually("own metrics in the store", || async {
        let r =
            json(server.url("prometheus", "/api/v1/query?query=storage_items_written_total")).await;
        r["data"]["result"].as_array().is_some_and(|a| !a.is_empty()).then_some(())
    })
    .await;
}

/// Price files are read again on demand; a broken one changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_takes_new_prices_and_keeps_old_ones_when_they_are_broken() {
    let dir = tempfile::tempdir().unwrap();
    let prices = dir.path().join("prices.json");
    let write = |version: &str| {
        let record = r#"{"provider":"acme","model":"m","input":"1","output":"2"}"#;
        std::fs::write(&prices, format!(r#"{{"version":"{version}","prices":[{record}]}}"#))
            .unwrap();
    };
    write("one");
    let config = dir.path().join("observatory.yaml");
    std::fs::write(&config, "prices:\n  files: [prices.json]\n").unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &["--config", config.to_str().unwrap()]);
    let version = async || json(server.url("ui", "/api/v1/prices")).await["version"].clone();
    let reload = async || {
        let r = obs_objects::http_client()
            .post(server.url("prometheus", "/-/reload"))
            .send()
            .await
            .unwrap();
        (r.status().as_u16(), r.text().await.unwrap())
    };
    assert_eq!(version().await, "one");
    write("two");
    assert_eq!(reload().await.0, 200);
    assert_eq!(version().await, "two");
    std::fs::write(&prices, "{").unwrap();
    let (status, text) = reload().await;
    assert_eq!(status, 500);
    assert!(text.contains("prices.json"), "{text}");
    assert_eq!(version().await, "two");
    write("three");
    server.signal("HUP");
    eventually("the reload", || async { (version().await == "three").then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_reads_its_log_is_alive_and_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("c.yaml"));
    std::fs::write(&file, "data:\n  head_bytes: 4000000000\n  disk_reserve_bytes: 0\n").unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let server = Server::start(&data, &config);
    let client = obs_objects::http_client();
    // A log that takes a while to read.
    for batch in 0..24 {
        let now = now_ns();
        let line = |i: u64| format!(r#"["{}","{batch} {i} {}"]"#, now + i, "x".repeat(200));
        let lines: Vec<String> = (0..5000).map(line).collect();
        let body =
            format!(r#"{{"streams":[{{"stream":{{"a":"b"}},"values":[{}]}}]}}"#, lines.join(","));
        let push = client.post(server.url("loki", "/loki/api/v1/push"));
        let answer = push.header("content-type", "application/json").body(body).send().await;
        assert_eq!(answer.unwrap().status(), 204);
    }
    server.kill();
    // Known before the server says it, and none that the system gives to connections: who asks
    // such a port before anybody listens may be connected to itself.
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let first = 10_000 + (std::process::id() % 10_000) as u16;
    let port = (first..20_000).chain(10_000..first).find(free).unwrap();
    let ui = format!("ui=127.0.0.1:{port}");
    let base = format!("http://127.0.0.1:{port}");
    let looking = tokio::spawn(async move {
        let mut seen = (0, 0);
        loop {
            let get = |path: &str| client.get(format!("{base}{path}")).send();
            let Ok(ready) = get("/health/ready").await else { continue };
            if ready.status() == 200 {
                return seen;
            }
            assert_eq!(
                (ready.status().as_u16(), &ready.headers()["retry-after"]),
                (503, &"1".parse().unwrap())
            );
            seen.0 += 1;
            if let Ok(live) = get("/health/live").await {
                assert_eq!(live.status(), 200);
                seen.1 += 1;
            }
        }
    });
    let server = Server::start(&data, &[&config[..], &["--listen", &ui]].concat());
    let (not_ready, alive) = looking.await.unwrap();
    assert!(not_ready > 0 && alive > 0, "{not_ready} {alive}");
    drop(server);
}
