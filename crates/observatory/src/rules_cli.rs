//! `observatory check rules` and `observatory test rules`.

use crate::cli::{Output, complain, say};
use crate::prometheus::read_rules;
use anyhow::{Context as _, Result};
use obs_rules::file::RuleFile;
use obs_rules::{lint, packs, unit_test};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Reads a rule file, or a built-in pack as `pack:NAME`.
pub(crate) fn read_any(path: &Path) -> Result<RuleFile> {
    let name = path.display().to_string();
    let Some(name) = name.strip_prefix("pack:") else { return Ok(read_rules(path)?) };
    match packs::PACKS.iter().find(|p| p.0 == name) {
        Some((_, _, text)) => Ok(obs_rules::file::read(text)),
        None => anyhow::bail!("{name:?} is no rule pack"),
    }
}

/// Files and, beside them, the names of built-in packs as `pack:NAME`.
pub(crate) fn check(
    files: &[PathBuf],
    known: Option<&Path>,
    no_lint: bool,
    output: Output,
) -> Result<ExitCode> {
    let known: Option<BTreeSet<String>> = match known {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("failed to read {}", path.display()))?;
            Some(text.split_whitespace().map(str::to_owned).collect())
        }
    };
    let mut bad = false;
    let mut report = Vec::new();
    for path in files {
        let shown = path.display().to_string();
        let file = read_any(path)?;
        let found = if no_lint { Vec::new() } else { lint::lint(&file, known.as_ref()) };
        let rules: usize = file.groups.iter().map(|g| g.rules.len()).sum();
        bad |= !file.errors.is_empty() || !found.is_empty();
        if output == Output::Text {
            say(&format!("Checking {shown}"));
            for w in &file.warnings {
                say(&format!("  note: {w}"));
            }
            for e in &file.errors {
                complain(&format!("  FAILED: {shown}: {e}"));
            }
            for f in &found {
                complain(&format!(
                    "  {}: {shown}:{}: group {:?}, rule {:?}: {}",
                    f.kind, f.line, f.group, f.rule, f.message
                ));
            }
            if file.errors.is_empty() {
                say(&format!("  SUCCESS: {rules} rules found"));
            }
        }
        let errors: Vec<_> = file.errors.iter().map(|e| json!({"line": e.line.map(|l| l.0), "column": e.line.map(|l| l.1), "message": e.message})).collect();
        let findings: Vec<_> = found.iter().map(|f| json!({"kind": f.kind, "group": f.group, "rule": f.rule, "line": f.line, "message": f.message})).collect();
        report.push(json!({"file": shown, "rules": rules, "errors": errors, "findings": findings}));
    }
    if output == Output::Json {
        say(&json!({"ok": !bad, "files": report}).to_string());
    }
    Ok(if bad { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Shows the rules that objectives become.
pub(crate) fn check_slos(files: &[PathBuf], output: Output) -> Result<ExitCode> {
    let (mut bad, mut report) = (false, Vec::new());
    for path in files {
        let shown = path.display().to_string();
        match crate::prometheus::read_slos(path) {
            Err(e) => {
                bad = true;
                if output == Output::Text {
                    complain(&format!("FAILED: {e}"));
                }
                report.push(json!({"file": shown, "error": e.message}));
            }
            Ok(file) => {
                let rules: Vec<_> = file.groups.iter().flat_map(|g| &g.rules).collect();
                if output == Output::Text {
                    say(&format!("{shown}: {} rules", rules.len()));
                    for r in &rules {
                        let kind = if r.is_alert() { "alert" } else { "record" };
                        say(&format!("  {kind} {}: {}", r.name(), r.query_text()));
                    }
                }
                let list: Vec<_> = rules.iter().map(|r| json!({"name": r.name(), "is_alert": r.is_alert(), "query": r.query_text(), "labels": r.labels})).collect();
                report.push(json!({"file": shown, "rules": list}));
            }
        }
    }
    if output == Output::Json {
        say(&json!({"ok": !bad, "files": report}).to_string());
    }
    Ok(if bad { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

pub(crate) fn test(files: &[PathBuf], run: &[String], output: Output) -> Result<ExitCode> {
    let mut bad = false;
    let mut report = Vec::new();
    let wanted = run
        .iter()
        .map(|r| regex::Regex::new(r).map_err(|e| crate::cli::UsageError(format!("--run: {e}"))))
        .collect::<Result<Vec<_>, _>>()?;
    for path in files {
        let shown = path.display().to_string();
        let text =
            std::fs::read_to_string(path).with_context(|| format!("failed to read {shown}"))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let load = |pattern: &str| {
            if let Some(name) = pattern.strip_prefix("pack:") {
                let pack = packs::PACKS.iter().find(|p| p.0 == name);
                let (_, _, text) = pack.ok_or_else(|| format!("{name:?} is no rule pack"))?;
                return Ok(vec![(pattern.to_owned(), (*text).to_owned())]);
            }
            let mut out = Vec::new();
            for p in obs_collect::config::expand(folder, pattern) {
                let name = p.display().to_string();
                out.push((
                    name.clone(),
                    std::fs::read_to_string(&p).map_err(|e| format!("{name}: {e}"))?,
                ));
            }
            if out.is_empty() {
                return Err(format!("no file is called {pattern}"));
            }
            Ok(out)
        };
        let only = |name: &str| wanted.is_empty() || wanted.iter().any(|r| r.is_match(name));
        let failures = match unit_test::run(&text, &load, &only) {
            Ok(verdict) => verdict.failures,
            Err(e) => vec![e],
        };
        bad |= !failures.is_empty();
        if output == Output::Text {
            say(&format!("Unit Testing:  {shown}"));
            if failures.is_empty() {
                say("  SUCCESS");
            } else {
                complain("  FAILED:");
                failures.iter().for_each(|f| complain(f));
            }
            say("");
        }
        report.push(json!({"file": shown, "failures": failures}));
    }
    if output == Output::Json {
        say(&json!({"ok": !bad, "files": report}).to_string());
    }
    Ok(if bad { ExitCode::from(1) } else { ExitCode::SUCCESS })
}
