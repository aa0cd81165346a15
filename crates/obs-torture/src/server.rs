//! The server under test: started, stopped, frozen and killed.

use anyhow::{Context as _, Result, bail};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How servers are started.
#[derive(Debug, Clone)]
pub struct Setup {
    pub bin: PathBuf,
    pub data: PathBuf,
    /// Configuration as YAML.
    pub config: String,
    /// Memory limit of its control group in bytes.
    pub memory: Option<u64>,
    /// Processors that it may use, as `taskset` takes them.
    pub processors: Option<String>,
    pub environment: Vec<(String, String)>,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pub endpoints: Arc<HashMap<String, String>>,
    pub ready_after: Duration,
    group: Option<PathBuf>,
}

impl Setup {
    pub fn new(bin: &Path, data: impl Into<PathBuf>, config: &str) -> Self {
        Self {
            bin: bin.into(),
            data: data.into(),
            config: config.into(),
            memory: None,
            processors: None,
            environment: Vec::new(),
        }
    }

    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// When it does not start within `patience`.
    pub fn start(&self, patience: Duration) -> Result<Server> {
        // Not beside the data, where there may be no room.
        let config = std::env::temp_dir().join(format!("obs-torture-{}.yaml", std::process::id()));
        std::fs::write(&config, &self.config).context("failed to write the configuration")?;
        let group = self.memory.map(make_group).transpose()?;
        // Each program runs the next in its place.
        let mut line: Vec<OsString> = Vec::new();
        if let Some(g) = &group {
            let script = "echo $$ > \"$0\"/cgroup.procs && exec \"$@\"";
            line.extend(["sh".into(), "-c".into(), script.into(), g.into()]);
        }
        if let Some(p) = &self.processors {
            line.extend(["taskset".into(), "-c".into(), p.into()]);
        }
        line.push(self.bin.clone().into());
        let mut line = line.into_iter();
        let mut command = Command::new(line.next().unwrap_or_default());
        command.args(line);
        let log_path = config.with_extension("log");
        let log = std::fs::File::create(&log_path).context("failed to make the server's log")?;
        command
            .args(["serve", "--listen", "all=127.0.0.1:0", "--data"])
            .arg(&self.data)
            .arg("--config")
            .arg(&config)
            .env("LOG_LEVEL", "warn")
            .envs(self.environment.iter().cloned())
            .stdout(Stdio::piped())
            .stderr(log);
        let began = Instant::now();
        let mut child = command.spawn().context("failed to start the server")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut server =
            Server { child, endpoints: Arc::default(), ready_after: Duration::ZERO, group };
        // The file of addresses cannot be written to a full disk; standard output has them too.
        let (sender, addresses) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(read_addresses(stdout)));
        loop {
            if let Ok(Some(map)) = addresses.recv_timeout(Duration::from_millis(2)) {
                server.endpoints = Arc::new(map);
                server.ready_after = began.elapsed();
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait().context("failed to look after it")? {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                bail!("the server ended before it was ready: {status}\n{log}");
            }
            if began.elapsed() > patience {
                bail!("the server is not ready after {patience:?}");
            }
        }
    }
}

/// Reads what a server prints when it is ready: listeners and addresses, then where to look.
fn read_addresses(stdout: std::process::ChildStdout) -> Option<HashMap<String, String>> {
    let mut out = HashMap::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.ok()?;
        if line.starts_with("open ") {
            return Some(out);
        }
        let (name, address) = line.split_once(' ')?;
        out.insert(name.to_owned(), address.trim().to_owned());
    }
    None
}

fn make_group(bytes: u64) -> Result<PathBuf> {
    let group = PathBuf::from(format!("/sys/fs/cgroup/memory/obs-torture-{}", std::process::id()));
    let _ = std::fs::create_dir(&group);
    std::fs::write(group.join("memory.limit_in_bytes"), bytes.to_string())
        .context("no control group with a memory limit can be made here")?;
    Ok(group)
}

impl Server {
    /// Returns the address of a path.
    ///
    /// # Errors
    /// When there is no such listener.
    pub fn url(&self, listener: &str, path: &str) -> Result<String> {
        let address = self.endpoints.get(listener).context("the server has no such listener")?;
        Ok(format!("http://{address}{path}"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its short name.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status()
            .context("failed to run kill")?;
        anyhow::ensure!(status.success(), "failed to send {name}");
        Ok(())
    }

    /// Returns the peak of resident memory in bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn peak(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .context("the server is gone")?;
        let line = text.lines().find(|l| l.starts_with("VmHWM:")).context("no VmHWM")?;
        let kib = line.split_whitespace().nth(1).context("no number")?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// Returns the CPU time used so far; see [`cpu_of`].
    ///
    /// # Errors
    /// When the process is gone.
    pub fn cpu(&self) -> Result<f64> {
        cpu_of(self.pid())
    }

    /// Sends SIGTERM and waits.
    ///
    /// # Errors
    /// When it does not end with exit code 0.
    pub fn stop(mut self) -> Result<()> {
        self.signal("TERM")?;
        let status = self.child.wait().context("failed to wait")?;
        anyhow::ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

/// Returns the CPU time that a process has used, user and system, in seconds.
///
/// # Errors
/// When the process is gone.
pub fn cpu_of(pid: u32) -> Result<f64> {
    /// Clock ticks a second; the same on every Linux that we know.
    const TICKS: f64 = 100.0;
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    let rest = text.rsplit_once(')').context("no command name")?.1;
    let field = |n: usize| rest.split_whitespace().nth(n).and_then(|v| v.parse::<f64>().ok());
    Ok((field(11).context("no utime")? + field(12).context("no stime")?) / TICKS)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(g) = &self.group {
            let _ = std::fs::remove_dir(g);
        }
    }
}
