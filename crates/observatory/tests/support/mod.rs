//! Starts the real binary and talks to it.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Path of the binary under test.
pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_observatory");

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) endpoints: HashMap<String, String>,
}

impl Server {
    /// Starts on free ports and waits until it is ready.
    pub(crate) fn start(dir: &Path, extra: &[&str]) -> Self {
        let _ = std::fs::remove_file(dir.join("endpoints.json"));
        let child = Command::new(BIN)
            .args(["serve", "--listen", "all=127.0.0.1:0", "--data"])
            .arg(dir)
            .args(extra)
            .env("LOG_LEVEL", "warn")
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let mut server = Self { child, endpoints: HashMap::new() };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(text) = std::fs::read_to_string(dir.join("endpoints.json")) {
                server.endpoints =
                    serde_json::from_str(&text).expect("endpoints.json is an object of strings");
                return server;
            }
            assert!(
                server.child.try_wait().unwrap().is_none(),
                "the server ended before it was ready"
            );
            assert!(Instant::now() < deadline, "the server is not ready after 30 s");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn url(&self, listener: &str, path: &str) -> String {
        format!("http://{}{path}", self.endpoints[listener])
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal by its short name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(status.success());
    }

    /// SIGTERM; returns the exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().unwrap().code()
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(v) = check().await {
            return v;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}
