//! `observatory alert`, `check alertmanager` and `test route`.

use crate::cli::{Output, OutputArgs, UsageError, complain, say};
use crate::client::{Call, call};
use crate::rules_cli::read_any;
use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};
use obs_model::Labels;
use obs_rules::file::Rule;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, ClapArgs)]
pub(crate) struct AlertArgs {
    #[command(subcommand)]
    what: What,
    /// Main address of the server.
    #[arg(long, global = true, default_value = "http://127.0.0.1:3000")]
    url: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the alerts that fire.
    List {
        /// Matchers: severity="critical", team=~"a|b".
        filter: Vec<String>,
    },
    /// Send a test to a receiver and show what it answered.
    Test {
        receiver: String,
        /// Labels of the test, NAME=VALUE.
        #[arg(value_name = "LABEL=VALUE")]
        labels: Vec<String>,
    },
    /// Say who is on an alert; its receivers are not reminded of it meanwhile.
    Ack {
        fingerprint: String,
        #[arg(long)]
        owner: String,
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Say when a rule would have fired.
    Backtest {
        /// The rule's expression.
        expr: String,
        #[arg(long = "for", default_value = "")]
        hold: String,
        #[arg(long, default_value = "")]
        keep_firing_for: String,
        /// RFC 3339 or Unix seconds [default: a day ago].
        #[arg(long, default_value = "")]
        start: String,
        #[arg(long, default_value = "")]
        end: String,
        /// Seconds between evaluations.
        #[arg(long)]
        step: Option<f64>,
    },
}

fn pairs(texts: &[String]) -> Result<BTreeMap<String, String>> {
    let one = |t: &String| {
        let (n, v) =
            t.split_once('=').ok_or_else(|| UsageError(format!("{t:?} is not NAME=VALUE")))?;
        Ok((n.trim().to_owned(), v.trim_matches('"').to_owned()))
    };
    texts.iter().map(one).collect()
}

/// Asks the server; the error text is its own.
fn ask(
    a: &AlertArgs,
    method: reqwest::Method,
    path: &str,
    params: &[(String, String)],
    body: Option<Value>,
) -> Result<Result<Value, String>> {
    let body = body.map(|b| ("application/json", b.to_string()));
    let (ok, text) = call(Call { method, server: &a.url, path, params, tenant: None, body })?;
    let v: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if ok {
        return Ok(Ok(v));
    }
    let message = v.get("error").and_then(Value::as_str).map_or(text.clone(), str::to_owned);
    Ok(Err(message))
}

fn str_of<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn labels_text(v: &Value) -> String {
    let pairs = v.as_object().into_iter().flatten();
    let list: Vec<String> = pairs.map(|(n, v)| format!("{n}={v}")).collect();
    format!("{{{}}}", list.join(", "))
}

fn when(v: Option<&Value>) -> String {
    let ms = v.and_then(Value::as_f64).unwrap_or_default();
    obs_model::TimestampMs::from_millis(ms as i64).to_string()
}

pub(crate) fn run(a: &AlertArgs) -> Result<ExitCode> {
    let post = reqwest::Method::POST;
    let answer = match &a.what {
        What::List { filter } => {
            let params: Vec<(String, String)> =
                filter.iter().map(|f| ("filter".to_owned(), f.clone())).collect();
            ask(a, reqwest::Method::GET, "/api/v1/alerting/alerts", &params, None)?
        }
        What::Test { receiver, labels } => {
            let body = json!({"receiver": receiver, "labels": pairs(labels)?});
            ask(a, post, "/api/v1/alerting/receivers/test", &[], Some(body))?
        }
        What::Ack { fingerprint, owner, note } => {
            let body = json!({"fingerprint": fingerprint, "owner": owner, "note": note});
            ask(a, post, "/api/v1/alerting/acknowledge", &[], Some(body))?
        }
        What::Backtest { expr, hold, keep_firing_for, start, end, step } => {
            let body = json!({"expr": expr, "for": hold, "keep_firing_for": keep_firing_for, "start": start, "end": end, "step": step});
            ask(a, post, "/api/v1/alerting/backtest", &[], Some(body))?
        }
    };
    let v = match answer {
        Ok(v) => v,
        Err(e) => {
            complain(&format!("error: {e}"));
            return Ok(ExitCode::from(1));
        }
    };
    if a.output.output == Output::Json {
        say(&v.to_string());
    } else {
        show(&a.what, &v);
    }
    let results = v.get("results").and_then(Value::as_array).into_iter().flatten();
    let failed = results.filter(|r| r.get("ok") == Some(&Value::Bool(false))).count();
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn show(what: &What, v: &Value) {
    let list = |key: &str| v.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    match what {
        What::List { .. } => {
            for x in list("alerts") {
                let ack = x.get("acknowledged").filter(|k| !k.is_null());
                let owner =
                    ack.map(|k| format!("  on it: {}", str_of(k, "owner"))).unwrap_or_default();
                let labels = x.get("labels").map(labels_text).unwrap_or_default();
                say(&format!(
                    "{}  {}  {}  {labels}{owner}",
                    str_of(&x, "fingerprint"),
                    when(x.get("starts_at_ms")),
                    str_of(&x, "state")
                ));
            }
        }
        What::Test { .. } => {
            for r in list("results") {
                let error = r.get("error").and_then(Value::as_str).unwrap_or("delivered");
                say(&format!("{}: {error}", str_of(&r, "integration")));
            }
        }
        What::Ack { .. } => say("acknowledged"),
        What::Backtest { .. } => {
            let n = v.get("fired").and_then(Value::as_u64).unwrap_or_default();
            say(&format!(
                "would have fired {n} time{} from {} to {}",
                if n == 1 { "" } else { "s" },
                when(v.get("start_ms")),
                when(v.get("end_ms"))
            ));
            for f in list("firings") {
                let ended = f.get("resolved_at_ms").filter(|e| !e.is_null());
                let ended = ended.map_or_else(|| "still firing".to_owned(), |e| when(Some(e)));
                let labels = f.get("labels").map(labels_text).unwrap_or_default();
                say(&format!("  {}  to  {ended}  {labels}", when(f.get("fired_at_ms"))));
            }
        }
    }
}

/// Reads rule files and built-in packs.
fn alert_labels(files: &[PathBuf]) -> Result<Vec<Labels>> {
    let mut out = Vec::new();
    for path in files {
        let file = read_any(path)?;
        out.extend(file.groups.iter().flat_map(|g| &g.rules).filter_map(Rule::alert_labels));
    }
    Ok(out)
}

pub(crate) fn check(files: &[PathBuf], rules: &[PathBuf], output: Output) -> Result<ExitCode> {
    let alerts = alert_labels(rules)?;
    let (mut bad, mut report) = (false, Vec::new());
    for path in files {
        let shown = path.display().to_string();
        let entry = match crate::alerting::read_config(path) {
            Err(e) => {
                if output == Output::Text {
                    complain(&format!("FAILED: {e}"));
                }
                bad = true;
                json!({"file": shown, "error": e.message, "line": e.place.map(|p| p.0), "column": e.place.map(|p| p.1)})
            }
            Ok(c) => {
                let names: Vec<String> = c.receivers.iter().map(|r| r.name.clone()).collect();
                let findings = c.routes.lint(&names, &alerts);
                bad |= !findings.is_empty();
                if output == Output::Text {
                    say(&format!(
                        "{shown}: {} routes, {} receivers, {} inhibition rules",
                        c.routes.nodes.len(),
                        c.receivers.len(),
                        c.inhibit.len(),
                    ));
                    findings.iter().for_each(|f| complain(&format!("  {f}")));
                }
                let list: Vec<Value> = findings
                    .iter()
                    .map(|f| json!({"kind": f.kind, "message": f.message}))
                    .collect();
                json!({"file": shown, "routes": c.routes.nodes.len(), "receivers": names, "findings": list})
            }
        };
        report.push(entry);
    }
    if output == Output::Json {
        say(&json!({"ok": !bad, "files": report}).to_string());
    }
    Ok(ExitCode::from(u8::from(bad)))
}

pub(crate) fn route(
    file: &Path,
    labels: &[String],
    expect: &[String],
    output: Output,
) -> Result<ExitCode> {
    let config = crate::alerting::read_config(file)?;
    let v = obs_server::explained(&config, &Labels::from_pairs(pairs(labels)?));
    let receivers: Vec<&str> = v
        .get("receivers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if output == Output::Json {
        say(&v.to_string());
    } else {
        for s in v.get("steps").and_then(Value::as_array).into_iter().flatten() {
            let is = |key: &str| s.get(key) == Some(&Value::Bool(true));
            let verdict = match (is("matched"), is("receives")) {
                (false, _) => "no match".to_owned(),
                (true, true) => {
                    let group = s.get("group").map(labels_text).unwrap_or_default();
                    let end = if is("ends") { "; the search ends here" } else { "" };
                    format!("→ {} in group {group}{end}", str_of(s, "receiver"))
                }
                (true, false) => "matches; a route below it receives".to_owned(),
            };
            let depth = s.get("depth").and_then(Value::as_u64).unwrap_or_default() as usize;
            say(&format!("{}{}: {verdict}", "  ".repeat(depth), str_of(s, "title")));
        }
        say(&format!("receivers: {}", receivers.join(", ")));
    }
    let wrong = !expect.is_empty() && *expect != receivers;
    if wrong {
        complain(&format!("error: expected {}", expect.join(", ")));
    }
    Ok(ExitCode::from(u8::from(wrong)))
}
