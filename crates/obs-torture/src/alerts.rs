//! E1 and E2: `kill -9` at random while alerts fire and resolve and their receiver fails now and
//! then. In the end the receiver must know what is true.

use crate::server::{Server, Setup};
use crate::sim::Rng;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const ALERTS: u64 = 200;
const GROUPS: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(30);

/// What a receiver heard.
#[derive(Debug, Default)]
struct Heard {
    /// Idempotency key → how often it was taken.
    keys: HashMap<String, u64>,
    /// Alert → whether it fires, as told last.
    firing: BTreeMap<String, bool>,
    notifications: u64,
    refused: u64,
}

/// A receiver of webhooks that fails as often as it is told to: refuses, or breaks off after it
/// took a message.
struct Receiver {
    address: String,
    heard: Arc<Mutex<Heard>>,
    /// Failures in a hundred requests.
    faults: Arc<AtomicU64>,
}

impl Receiver {
    fn start(seed: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("failed to listen")?;
        let address = listener.local_addr()?.to_string();
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let faults: Arc<AtomicU64> = Arc::default();
        let (h, f) = (heard.clone(), faults.clone());
        std::thread::spawn(move || {
            for (n, stream) in listener.incoming().flatten().enumerate() {
                let (h, f) = (h.clone(), f.clone());
                let mut rng = Rng::new(seed ^ n as u64);
                std::thread::spawn(move || while serve(&stream, &h, &f, &mut rng).is_ok() {});
            }
        });
        Ok(Self { address, heard, faults })
    }
}

/// Takes one request of a connection.
fn serve(
    stream: &TcpStream,
    heard: &Mutex<Heard>,
    faults: &AtomicU64,
    rng: &mut Rng,
) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut key, mut line) = (0, String::new(), String::new());
    loop {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the connection ended");
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            if line.trim().is_empty() {
                break;
            }
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse()?,
            "idempotency-key" => value.clone_into(&mut key),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let fault = rng.below(100) < faults.load(Ordering::Relaxed);
    let refuses = fault && rng.below(2) == 0;
    let mut h = heard.lock().unwrap_or_else(PoisonError::into_inner);
    if refuses {
        h.refused += 1;
    } else {
        let v: Value = serde_json::from_slice(&body)?;
        for a in v.get("alerts").and_then(Value::as_array).into_iter().flatten() {
            let name = a.pointer("/labels/alertname").and_then(Value::as_str).unwrap_or_default();
            let fires = a.get("status").and_then(Value::as_str) == Some("firing");
            h.firing.insert(name.to_owned(), fires);
        }
        *h.keys.entry(key).or_default() += 1;
        h.notifications += 1;
    }
    drop(h);
    ensure!(refuses || !fault, "breaks off before the answer");
    let status = if refuses { "503 Service Unavailable" } else { "200 OK" };
    let mut out = stream;
    out.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
    Ok(())
}

async fn post(client: &reqwest::Client, server: &Server, alerts: &[(u64, bool)]) -> Result<()> {
    let one = |(n, fires): &(u64, bool)| {
        let end = if *fires { "2100-01-01T00:00:00Z" } else { "2001-01-01T00:00:00Z" };
        let labels = json!({"alertname": format!("a{n}"), "group": (n % GROUPS).to_string()});
        // One that ends is said to have ended now: an end long ago would end nothing.
        if *fires {
            json!({"labels": labels, "endsAt": end})
        } else {
            json!({"labels": labels, "startsAt": now(-1), "endsAt": now(0)})
        }
    };
    let body = Value::Array(alerts.iter().map(one).collect());
    let url = server.url("alertmanager", "/api/v2/alerts")?;
    let answer = client.post(url).header("Content-Type", "application/json").body(body.to_string());
    answer.timeout(Duration::from_secs(5)).send().await?.error_for_status()?;
    Ok(())
}

/// The time of day, shifted by seconds.
#[expect(clippy::disallowed_methods, reason = "alerts name the time of day")]
fn now(shift: i64) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let ns = i64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX);
    obs_model::TimestampNs::from_nanos(ns + shift * 1_000_000_000).to_string()
}

/// Runs the program through kills and failures of its receiver.
///
/// # Errors
/// With what the receiver does not know in the end, or heard more often than it may.
pub async fn alerts(bin: &Path, kills: u64, seed: u64) -> Result<Value> {
    let dir = tempfile::tempdir().context("failed to make a folder")?;
    let receiver = Receiver::start(seed)?;
    let config = dir.path().join("alertmanager.yml");
    std::fs::write(
        &config,
        format!(
            "route: {{receiver: r, group_by: [group], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}\nreceivers: [{{name: r, webhook_configs: [{{url: 'http://{}/'}}]}}]\n",
            receiver.address
        ),
    )?;
    let yaml = format!(
        "alertmanager: {{config_file: '{}'}}\noutbound: {{allow: [127.0.0.1]}}\n",
        config.display()
    );
    let setup = Setup::new(bin, dir.path().join("data"), &yaml);
    let client = obs_objects::http_client();
    let mut rng = Rng::new(seed);
    let mut truth: BTreeMap<u64, bool> = BTreeMap::new();
    let mut untold: BTreeMap<u64, bool> = BTreeMap::new();
    receiver.faults.store(10, Ordering::Relaxed);
    let began = Instant::now();
    let mut server = setup.start(PATIENCE)?;
    for _ in 0..kills {
        let until = Instant::now() + Duration::from_millis(300 + rng.below(1500));
        while Instant::now() < until {
            for _ in 0..=rng.below(10) {
                let n = rng.below(ALERTS);
                let fires = !truth.get(&n).copied().unwrap_or(false);
                truth.insert(n, fires);
                untold.insert(n, fires);
            }
            let list: Vec<(u64, bool)> = untold.iter().map(|(n, f)| (*n, *f)).collect();
            // Only what was acknowledged counts as said.
            if post(&client, &server, &list).await.is_ok() {
                untold.clear();
            }
            tokio::time::sleep(Duration::from_millis(rng.below(120))).await;
        }
        server.signal("KILL")?;
        drop(server);
        server = setup.start(PATIENCE)?;
    }
    receiver.faults.store(0, Ordering::Relaxed);
    let list: Vec<(u64, bool)> = untold.iter().map(|(n, f)| (*n, *f)).collect();
    post(&client, &server, &list).await.context("the last alerts")?;
    // Attempts end after 10 s at most, and each group is looked at every second.
    let right = |h: &Heard| {
        truth
            .iter()
            .all(|(n, fires)| h.firing.get(&format!("a{n}")).copied().unwrap_or(false) == *fires)
    };
    for _ in 0..300 {
        if right(&receiver.heard.lock().unwrap_or_else(PoisonError::into_inner)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Nothing more is said once everything is known.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let h = receiver.heard.lock().unwrap_or_else(PoisonError::into_inner);
    let wrong: Vec<String> = truth
        .iter()
        .filter(|(n, f)| h.firing.get(&format!("a{n}")).copied().unwrap_or(false) != **f)
        .map(|(n, f)| format!("a{n} fires: {f}"))
        .collect();
    ensure!(wrong.is_empty(), "seed {seed}: the receiver believes otherwise: {wrong:?}");
    let again: u64 = h.keys.values().map(|n| n - 1).sum();
    let report = json!({
        "test": "alerts", "kills": kills, "seconds": began.elapsed().as_secs(),
        "notifications": h.notifications, "refused": h.refused,
        "taken_again_under_the_same_key": again, "wrong": 0,
    });
    drop(h);
    server.stop()?;
    Ok(report)
}
