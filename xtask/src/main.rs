//! Checks of the repository that cargo does not make: `cargo run -p xtask -- tidy`.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Layer of each crate: a crate may depend on lower layers only. The table is the architecture;
/// a new edge upwards is a decision, made here.
const LAYERS: &[(&str, u8)] = &[
    ("obs-model", 0),
    ("obs-codec", 1),
    ("obs-storage", 1),
    ("obs-objects", 1),
    ("obs-control", 1),
    ("obs-llm", 1),
    ("obs-promql", 1),
    ("obs-ui", 1),
    ("obs-template", 1),
    ("obs-logql", 2),
    ("obs-traceql", 2),
    ("obs-sql", 2),
    ("obs-ingest", 2),
    ("obs-process", 2),
    ("obs-collect", 2),
    ("obs-rules", 3),
    ("obs-tail", 3),
    ("obs-notify", 3),
    ("obs-server", 4),
    ("observatory", 5),
];
/// Crates that only tests may depend on.
const TEST_ONLY: [&str; 2] = ["obs-testkit", "obs-torture"];
/// Crates that only one of ours may link.
const SOLE_USERS: &[(&str, &[&str])] =
    &[("datafusion", &["obs-sql"]), ("axum", &["obs-server", "obs-tail", "observatory"])];
/// Lines of a source file without its tests.
const FILE_LINES_MAX: usize = 800;

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy(),
        _ => Err(anyhow::anyhow!("usage: xtask tidy")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn tidy() -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("failed to run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed");
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("failed to parse cargo metadata")?;
    let mut problems = Vec::new();
    for package in list(&metadata, "packages") {
        edges(package, &mut problems);
    }
    let root = metadata
        .get("workspace_root")
        .and_then(Value::as_str)
        .context("cargo metadata names no workspace root")?;
    sources(&Path::new(root).join("crates"), &mut problems)?;
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{} problems\n{}", problems.len(), problems.join("\n"))
}

fn list<'a>(v: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    v.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(v: &'a Value, name: &str) -> &'a str {
    v.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn edges(package: &Value, problems: &mut Vec<String>) {
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let name = text(package, "name");
    if name == "xtask" || TEST_ONLY.contains(&name) {
        return;
    }
    let Some(own) = layers.get(name) else {
        problems.push(format!("{name} has no layer in xtask's table"));
        return;
    };
    for dependency in
        list(package, "dependencies").filter(|d| d.get("kind").is_none_or(Value::is_null))
    {
        let other = text(dependency, "name");
        if TEST_ONLY.contains(&other) {
            problems.push(format!("{name} depends on {other} outside its tests"));
        }
        if let Some(layer) = layers.get(other)
            && (layer > own || (layer == own && !(name == "obs-logql" && other == "obs-promql")))
        {
            problems.push(format!("{name} (layer {own}) depends on {other} (layer {layer})"));
        }
        for (heavy, users) in SOLE_USERS {
            if other == *heavy && !users.contains(&name) {
                problems.push(format!("{name} links {heavy}, which is for {}", users.join(", ")));
            }
        }
    }
}

fn sources(dir: &Path, problems: &mut Vec<String>) -> Result<()> {
    for entry in
        std::fs::read_dir(dir).with_context(|| format!("failed to list {}", dir.display()))?
    {
        let path = entry.context("failed to read a folder")?.path();
        if path.is_dir() {
            if !path.ends_with("node_modules") {
                sources(&path, problems)?;
            }
            continue;
        }
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let source = std::fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        let product = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let lines = product.lines().count();
        if lines > FILE_LINES_MAX {
            problems.push(format!(
                "{}: {lines} lines without tests, at most {FILE_LINES_MAX}; split it by concept",
                path.display()
            ));
        }
        if !source.starts_with("//!") {
            problems.push(format!("{}: does not say in a `//!` what it owns", path.display()));
        }
    }
    Ok(())
}
