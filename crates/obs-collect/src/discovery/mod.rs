//! Finds targets: in the file itself, in other files, over HTTP, in DNS, in a cluster.

mod dns;
mod docker;
mod kubernetes;

use crate::config::{Discovery, FileSd, HttpSd, StaticConfig, expand};
use crate::http::{HttpClient, read_body};
use crate::target::TargetGroup;
use obs_model::Labels;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Where a discoverer puts what it found: all groups of one source, replacing those before.
pub type Report = Arc<dyn Fn(Vec<TargetGroup>) + Send + Sync>;

/// How often files are looked at; a changed file counts at once.
const LOOK: Duration = Duration::from_secs(2);
/// Bytes of a file or answer that lists targets.
const LIST_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    #[serde(default)]
    targets: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

fn group(
    targets: &[String],
    labels: &BTreeMap<String, String>,
    meta: &[(&str, &str)],
) -> TargetGroup {
    let own = labels.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    TargetGroup {
        targets: targets
            .iter()
            .map(|t| Labels::from_pairs([("__address__", t.as_str())]))
            .collect(),
        labels: Labels::from_pairs(own.chain(meta.iter().copied())),
    }
}

/// Returns the targets of `static_configs`.
pub fn of_static(list: &[StaticConfig]) -> Vec<TargetGroup> {
    list.iter().map(|c| group(&c.targets, &c.labels, &[])).collect()
}

/// Starts all that targets are found with; each source reports under its number.
pub fn start(
    from: &Discovery,
    folder: &Path,
    report: impl Fn(usize, Vec<TargetGroup>) + Send + Sync + 'static,
    stop: &CancellationToken,
) {
    let report = Arc::new(report);
    let mut source = 0;
    let mut next = || {
        source += 1;
        let (report, n) = (report.clone(), source);
        let report: Report = Arc::new(move |groups| report(n, groups));
        report
    };
    if !from.static_configs.is_empty() {
        next()(of_static(&from.static_configs));
    }
    for c in &from.file_sd_configs {
        tokio::spawn(files(c.clone(), folder.to_owned(), next(), stop.clone()));
    }
    for c in &from.http_sd_configs {
        tokio::spawn(over_http(c.clone(), folder.to_owned(), next(), stop.clone()));
    }
    for c in &from.dns_sd_configs {
        tokio::spawn(dns::run(c.clone(), next(), stop.clone()));
    }
    for c in &from.docker_sd_configs {
        tokio::spawn(docker::run(c.clone(), folder.to_owned(), next(), stop.clone()));
    }
    for c in &from.kubernetes_sd_configs {
        tokio::spawn(kubernetes::run(c.clone(), folder.to_owned(), next(), stop.clone()));
    }
}

async fn rest(stop: &CancellationToken, time: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}

type Stamp = (PathBuf, Option<std::time::SystemTime>, u64);

fn stamps(c: &FileSd, folder: &Path) -> Vec<Stamp> {
    let paths = c.files.iter().flat_map(|p| expand(folder, p));
    paths
        .map(|p| {
            let meta = std::fs::metadata(&p).ok();
            let size = meta.as_ref().map_or(0, std::fs::Metadata::len);
            (p, meta.and_then(|m| m.modified().ok()), size)
        })
        .collect()
}

fn read_file(path: &Path) -> Result<Vec<TargetGroup>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    if text.len() > LIST_BYTES_MAX {
        return Err(format!("file is longer than {LIST_BYTES_MAX} bytes"));
    }
    // JSON is YAML too.
    let raw: Option<Vec<RawGroup>> =
        serde_saphyr::from_str(&text).map_err(|e| e.without_snippet().to_string())?;
    let shown = path.display().to_string();
    let meta = [("__meta_filepath", shown.as_str())];
    Ok(raw.into_iter().flatten().map(|g| group(&g.targets, &g.labels, &meta)).collect())
}

async fn files(c: FileSd, folder: PathBuf, report: Report, stop: CancellationToken) {
    let mut seen: Option<Vec<Stamp>> = None;
    let mut known: BTreeMap<PathBuf, Vec<TargetGroup>> = BTreeMap::new();
    loop {
        let (config, place) = (c.clone(), folder.clone());
        let now =
            tokio::task::spawn_blocking(move || stamps(&config, &place)).await.unwrap_or_default();
        if seen.as_ref() != Some(&now) {
            known.retain(|p, _| now.iter().any(|s| s.0 == *p));
            for (path, ..) in &now {
                match read_file(path) {
                    Ok(groups) => {
                        known.insert(path.clone(), groups);
                    }
                    // A file in the middle of a change keeps what it said before.
                    Err(e) => {
                        tracing::warn!(file = %path.display(), error = e, "targets were not read");
                    }
                }
            }
            report(known.values().flatten().cloned().collect());
            seen = Some(now);
        }
        if !rest(&stop, LOOK.min(c.refresh_interval.0).max(Duration::from_millis(100))).await {
            return;
        }
    }
}

async fn fetch(c: &HttpSd, client: &HttpClient) -> Result<Vec<TargetGroup>, String> {
    let request = client.get(&c.url).await?;
    let seconds = c.refresh_interval.0.as_secs_f64().to_string();
    let request = request
        .header("Accept", "application/json")
        .header("X-Prometheus-Refresh-Interval-Seconds", seconds)
        .timeout(c.refresh_interval.0.max(Duration::from_secs(1)));
    let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
    if answer.status() != 200 {
        return Err(format!("server returned HTTP status {}", answer.status()));
    }
    let body = read_body(answer, LIST_BYTES_MAX).await?;
    let raw: Vec<RawGroup> = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
    let meta = [("__meta_url", c.url.as_str())];
    Ok(raw.iter().map(|g| group(&g.targets, &g.labels, &meta)).collect())
}

async fn over_http(c: HttpSd, folder: PathBuf, report: Report, stop: CancellationToken) {
    let client = match HttpClient::new(&c.http, &folder) {
        Ok(client) => client,
        Err(e) => {
            tracing::error!(url = c.url, error = e, "targets cannot be discovered");
            return;
        }
    };
    loop {
        match fetch(&c, &client).await {
            Ok(groups) => report(groups),
            // The targets stay that were found before.
            Err(e) => tracing::warn!(url = c.url, error = e, "targets were not discovered"),
        }
        if !rest(&stop, c.refresh_interval.0.max(Duration::from_secs(1))).await {
            return;
        }
    }
}
