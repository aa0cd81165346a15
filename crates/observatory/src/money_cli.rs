//! `observatory cost`, `budget` and `drift`: what a running server says of calls.

use crate::cli::{Output, OutputArgs, UsageError, complain, say};
use crate::client::{Call, call, fetch, table};
use crate::serve::wall_clock;
use anyhow::{Context as _, Result};
use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, ClapArgs)]
pub(crate) struct Server {
    /// Main address of the server.
    #[arg(long, global = true, default_value = "http://127.0.0.1:3000")]
    url: String,
    /// Tenant, sent as X-Scope-OrgID.
    #[arg(long, global = true)]
    tenant: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CostArgs {
    #[command(subcommand)]
    what: Cost,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, ClapArgs)]
struct Range {
    /// First day or moment.
    #[arg(long)]
    from: Option<String>,
    /// Day or moment after the last.
    #[arg(long)]
    to: Option<String>,
    /// A whole month, YYYY-MM; without a value the current one.
    #[arg(long, num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["from", "to"])]
    month: Option<String>,
    /// Only calls with this attribute, NAME=VALUE; may be repeated.
    #[arg(long = "where", value_name = "NAME=VALUE")]
    filters: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Cost {
    /// Sums by up to four attributes, such as team,model or day.
    Report {
        #[arg(long, default_value = "model")]
        by: String,
        #[arg(long, default_value_t = 50)]
        limit: u32,
        #[command(flatten)]
        range: Range,
    },
    /// Calls whose cost is not known, or not for certain.
    Unpriced {
        #[command(flatten)]
        range: Range,
    },
    /// What prompt caches saved, by model and prompt.
    Cache {
        #[command(flatten)]
        range: Range,
    },
    /// What moved most against the stretch of time before.
    Movers {
        #[arg(long, default_value = "model")]
        by: String,
        #[arg(long, default_value_t = 20)]
        limit: u32,
        #[command(flatten)]
        range: Range,
    },
    /// What a success cost, by what scores say of traces or sessions.
    Outcomes {
        /// Name of the score that decides.
        #[arg(long, default_value = "user_feedback")]
        score: String,
        /// A score above this is a success.
        #[arg(long, default_value_t = 0.0)]
        above: f64,
        /// trace or session.
        #[arg(long, default_value = "trace")]
        unit: String,
        #[arg(long, default_value = "prompt_version")]
        by: String,
        #[command(flatten)]
        range: Range,
    },
    /// Cost by second of GPU, where series of GPUs are there.
    Gpu {
        /// What an hour of a GPU costs, USD.
        #[arg(long)]
        hour_usd: Option<String>,
        /// Which GPUs: a series selector such as {instance="a"}.
        #[arg(long)]
        gpus: Option<String>,
        #[command(flatten)]
        range: Range,
    },
    /// What the coming days will cost.
    Forecast {
        #[arg(long, default_value_t = 30)]
        days: u32,
        #[arg(long = "where", value_name = "NAME=VALUE")]
        filters: Vec<String>,
    },
    /// Price the calls of a period again by the book in force; shows the difference.
    Reprice {
        #[command(flatten)]
        range: Range,
        /// Write the difference into the ledger.
        #[arg(long)]
        apply: bool,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Write calls, or the ledger's entries, into a file.
    Export {
        /// traces (calls) or ledger.
        #[arg(value_parser = ["traces", "ledger"])]
        what: String,
        /// csv, json, jsonl or parquet.
        #[arg(long, default_value = "csv")]
        format: String,
        /// Where to; not over a file that is there.
        #[arg(long, value_name = "FILE")]
        to_file: PathBuf,
        #[arg(long, default_value_t = 1_000_000)]
        limit: u64,
        #[command(flatten)]
        range: Range,
    },
    /// Compare an invoice (CSV with date, model and cost) with the ledger.
    Reconcile {
        invoice: PathBuf,
        #[arg(long)]
        provider: Option<String>,
        /// Difference of a row that still matches, USD.
        #[arg(long, default_value = "0.01")]
        tolerance: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BudgetArgs {
    #[command(subcommand)]
    what: Budget,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum Budget {
    /// List budgets and what is left of them.
    List,
    /// Add a budget, or change the one of this name.
    Set {
        name: String,
        /// Amount in USD, tokens or requests.
        #[arg(long)]
        limit: String,
        #[arg(long, default_value = "usd")]
        unit: String,
        /// daily, weekly, monthly, quarterly, yearly, rolling or total.
        #[arg(long, default_value = "monthly")]
        period: String,
        #[arg(long, default_value_t = 0)]
        rolling_days: u32,
        #[arg(long, default_value = "UTC")]
        time_zone: String,
        /// NAME=VALUE; may be repeated. A value may end in *.
        #[arg(long)]
        scope: Vec<String>,
        /// Tell of spend beyond the limit, but refuse nothing.
        #[arg(long)]
        soft: bool,
    },
    /// Delete a budget.
    Delete { id: String },
    /// Tell whether a call would be let through; exit 1 if not.
    Check {
        #[arg(long)]
        provider: String,
        #[arg(long)]
        model: String,
        #[arg(long, default_value_t = 0)]
        input_tokens: u64,
        #[arg(long, default_value_t = 0)]
        max_output_tokens: u64,
        #[arg(long)]
        scope: Vec<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DriftArgs {
    #[command(subcommand)]
    what: Drift,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum Drift {
    /// Compare the latest calls of each model with those before; exit 1 if one drifts.
    Check {
        #[arg(long, default_value = "")]
        model: String,
        /// Pinned baseline: first day.
        #[arg(long, default_value = "", requires = "baseline_to")]
        baseline_from: String,
        /// Day after its last.
        #[arg(long, default_value = "", requires = "baseline_from")]
        baseline_to: String,
    },
    /// List drifts that began and ended.
    Incidents,
}

fn pairs(list: &[String]) -> Result<Vec<(String, String)>> {
    let one = |t: &String| {
        let pair = t.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        pair.ok_or_else(|| UsageError(format!("{t:?} is not NAME=VALUE")).into())
    };
    list.iter().map(one).collect()
}

impl Range {
    fn params(&self) -> Result<Vec<(String, String)>> {
        let mut out = pairs(&self.filters)?;
        if let Some(month) = &self.month {
            let now = wall_clock().to_string();
            let month = if month.is_empty() { now.get(..7).unwrap_or_default() } else { month };
            let parts = month.split_once('-').and_then(|(y, m)| {
                Some((
                    y.parse::<u32>().ok()?,
                    m.parse::<u32>().ok().filter(|m| (1..=12).contains(m))?,
                ))
            });
            let (y, m) =
                parts.ok_or_else(|| UsageError(format!("{month:?} is not a month (YYYY-MM)")))?;
            let (y2, m2) = if m == 12 { (y + 1, 1) } else { (y, m + 1) };
            out.push(("from".into(), format!("{y:04}-{m:02}-01")));
            out.push(("to".into(), format!("{y2:04}-{m2:02}-01")));
        }
        out.extend(self.from.clone().map(|t| ("from".to_owned(), t)));
        out.extend(self.to.clone().map(|t| ("to".to_owned(), t)));
        Ok(out)
    }
}

pub(crate) enum Body {
    None,
    Json(Value),
    Csv(String),
}

/// Asks the server; `Err` with its own words when it refuses.
pub(crate) fn ask(
    s: &Server,
    method: reqwest::Method,
    path: &str,
    params: &[(String, String)],
    body: Body,
) -> Result<Result<Value, String>> {
    let body = match body {
        Body::None => None,
        Body::Json(v) => Some(("application/json", v.to_string())),
        Body::Csv(text) => Some(("text/csv", text)),
    };
    let tenant = s.tenant.as_deref();
    let (ok, text) = call(Call { method, server: &s.url, path, params, tenant, body })?;
    let json: Value = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).with_context(|| format!("not understood: {text}"))?
    };
    if ok {
        return Ok(Ok(json.get("data").cloned().unwrap_or(json)));
    }
    let message = json.get("error").and_then(|e| e.get("message")).and_then(Value::as_str);
    Ok(Err(message.map_or(text, str::to_owned)))
}

/// Prints an answer, or the server's refusal.
pub(crate) fn finish(
    s: &Server,
    answer: Result<Value, String>,
    print: impl FnOnce(&Value),
) -> Result<ExitCode> {
    match answer {
        Err(e) => {
            complain(&format!("error: {e}"));
            Ok(ExitCode::from(1))
        }
        Ok(v) => {
            if s.output.output == Output::Json {
                say(&v.to_string());
            } else {
                print(&v);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

pub(crate) fn cell(v: &Value, key: &str) -> String {
    match v.get(key) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(s)) if s.is_empty() => "(none)".to_owned(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Number(n)) if n.is_f64() => format!("{:.2}", n.as_f64().unwrap_or(f64::NAN)),
        Some(other) => other.to_string(),
    }
}

pub(crate) fn print_rows(list: Option<&Value>, columns: &[&str]) {
    let rows: Vec<Vec<String>> = list
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|r| columns.iter().map(|c| cell(r, c)).collect())
        .collect();
    let header: Vec<String> = columns.iter().map(|c| c.replace('_', " ")).collect();
    table(&header.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
}

/// Has the server make a file, waits for it and fetches it.
fn export(s: &Server, path: &str, ask_for: Value, file: &Path) -> Result<Result<Value, String>> {
    let out = std::fs::File::create_new(file)
        .with_context(|| format!("failed to create {}", file.display()))?;
    let done = export_into(s, path, ask_for, out);
    if !matches!(done, Ok(Ok(_))) {
        let _ = std::fs::remove_file(file);
    }
    done
}

fn export_into(
    s: &Server,
    path: &str,
    ask_for: Value,
    out: std::fs::File,
) -> Result<Result<Value, String>> {
    use reqwest::Method;
    let mut job = match ask(s, Method::POST, path, &[], Body::Json(ask_for))? {
        Ok(job) => job,
        Err(e) => return Ok(Err(e)),
    };
    let path = format!("/api/v1/export/jobs/{}", cell(&job, "job_id"));
    while matches!(cell(&job, "status").as_str(), "pending" | "processing") {
        std::thread::sleep(Duration::from_millis(200));
        job = match ask(s, Method::GET, &path, &[], Body::None)? {
            Ok(job) => job,
            Err(e) => return Ok(Err(e)),
        };
    }
    if cell(&job, "status") != "completed" {
        return Ok(Err(format!("the export is {}: {}", cell(&job, "status"), cell(&job, "error"))));
    }
    let url = format!("{}{path}/download", s.url.trim_end_matches('/'));
    fetch(&url, s.tenant.as_deref(), out)?;
    // It was made for this file alone.
    let _ = ask(s, Method::DELETE, &path, &[], Body::None)?;
    Ok(Ok(job))
}

pub(crate) fn cost(a: &CostArgs) -> Result<ExitCode> {
    use reqwest::Method;
    let s = &a.server;
    let read =
        |path: &str, params: &[(String, String)]| ask(s, Method::GET, path, params, Body::None);
    match &a.what {
        Cost::Report { by, limit, range } => {
            let mut params = range.params()?;
            params.push(("group_by".into(), by.clone()));
            params.push(("limit".into(), limit.to_string()));
            finish(s, read("/api/v1/costs", &params)?, |v| {
                let names: Vec<&str> = by.split(',').map(str::trim).collect();
                let rest = [
                    "requests",
                    "input_tokens",
                    "cached_tokens",
                    "output_tokens",
                    "unpriced_requests",
                    "percentage",
                    "total_cost",
                ];
                print_rows(v.get("groups"), &[names.as_slice(), &rest].concat());
                let total = v.get("total").unwrap_or(&Value::Null);
                say(&format!(
                    "total ${} over {} requests, {} without a price",
                    cell(total, "total_cost"),
                    cell(total, "requests"),
                    cell(total, "unpriced_requests")
                ));
            })
        }
        Cost::Export { what, format, to_file, limit, range } => {
            let mut asked = json!({"format": format, "limit": limit});
            let mut filters: Map<String, Value> = Map::new();
            for (name, value) in range.params()? {
                match name.as_str() {
                    "from" | "to" => asked[name] = value.into(),
                    _ => {
                        let list = filters.entry(name).or_insert_with(|| json!([]));
                        list.as_array_mut().into_iter().for_each(|l| l.push(value.clone().into()));
                    }
                }
            }
            asked["filters"] = filters.into();
            let path = format!("/api/v1/export/{what}");
            finish(s, export(s, &path, asked, to_file)?, |v| {
                let more =
                    if v.get("truncated") == Some(&json!(true)) { "; there are more" } else { "" };
                say(&format!("{} rows in {}{more}", cell(v, "rows"), to_file.display()));
            })
        }
        Cost::Unpriced { range } => {
            finish(s, read("/api/v1/costs/unpriced", &range.params()?)?, |v| {
                let columns = [
                    "state",
                    "provider",
                    "model",
                    "requests",
                    "total_tokens",
                    "cost_at_least",
                    "cost_at_most",
                    "evidence",
                ];
                print_rows(v.get("items"), &columns);
            })
        }
        Cost::Cache { range } => finish(s, read("/api/v1/costs/cache", &range.params()?)?, |v| {
            let columns = [
                "model",
                "prompt",
                "requests",
                "hit_ratio",
                "saved_usd",
                "write_premium_usd",
                "net_usd",
                "wasted_write_tokens",
                "hour_would_save_usd",
            ];
            print_rows(v.get("items"), &columns);
        }),
        Cost::Movers { by, limit, range } => {
            let mut params = range.params()?;
            params.push(("dimension".into(), by.clone()));
            params.push(("limit".into(), limit.to_string()));
            finish(s, read("/api/v1/costs/movers", &params)?, |v| {
                let columns = ["value", "change", "change_percent", "by_volume", "by_unit_cost"];
                print_rows(v.get("movers"), &columns);
                let total = v.get("total").unwrap_or(&Value::Null);
                say(&format!(
                    "total ${} to ${} ({})",
                    cell(total, "before"),
                    cell(total, "now"),
                    cell(total, "change")
                ));
            })
        }
        Cost::Outcomes { score, above, unit, by, range } => {
            let mut params = range.params()?;
            let more =
                [("score", score), ("unit", unit), ("by", by), ("above", &above.to_string())];
            params.extend(more.map(|(n, v)| (n.to_owned(), v.clone())));
            finish(s, read("/api/v1/costs/outcomes", &params)?, |v| {
                let rest = ["scored", "successes", "total_cost", "cost_per_success"];
                print_rows(v.get("groups"), &[&[by.as_str()], &rest[..]].concat());
                let total = v.get("total").unwrap_or(&Value::Null);
                say(&format!(
                    "{} of {} succeeded, ${} each",
                    cell(total, "successes"),
                    cell(total, "scored"),
                    cell(total, "cost_per_success")
                ));
            })
        }
        Cost::Gpu { hour_usd, gpus, range } => {
            let mut params = range.params()?;
            params.extend(hour_usd.clone().map(|v| ("gpu_hour_usd".to_owned(), v)));
            params.extend(gpus.clone().map(|v| ("gpus".to_owned(), v)));
            finish(s, read("/api/v1/costs/gpu", &params)?, |v| {
                let number = |v: &Value, key: &str| {
                    v.get(key).and_then(Value::as_f64).map_or("-".to_owned(), |n| format!("{n:.6}"))
                };
                for (name, key) in [
                    ("GPU seconds", "gpu_seconds"),
                    ("busy", "busy_gpu_seconds"),
                    ("USD of calls per GPU second", "usd_per_gpu_second"),
                    ("tokens per GPU second", "tokens_per_gpu_second"),
                ] {
                    say(&format!("{name}: {}", number(v, key)));
                }
                if let Some(h) = v.get("hardware").filter(|h| !h.is_null()) {
                    say(&format!(
                        "hardware: ${} of which idle ${}; ${} per million tokens",
                        number(h, "total_usd"),
                        number(h, "idle_usd"),
                        number(h, "usd_per_million_tokens")
                    ));
                }
            })
        }
        Cost::Forecast { days, filters } => {
            let mut params = pairs(filters)?;
            params.push(("horizon_days".into(), days.to_string()));
            finish(s, read("/api/v1/costs/forecast", &params)?, |v| {
                print_rows(v.get("forecast"), &["date", "cost", "lower", "upper"]);
                let total = v.get("total").unwrap_or(&Value::Null);
                say(&format!(
                    "{}: ${} in {days} days, ${} to ${}",
                    cell(v, "method"),
                    cell(total, "cost"),
                    cell(total, "lower"),
                    cell(total, "upper")
                ));
            })
        }
        Cost::Reprice { range, apply, reason } => {
            let mut filter = serde_json::Map::new();
            let (mut from, mut to) = (None, None);
            for (name, value) in range.params()? {
                match name.as_str() {
                    "from" => from = Some(value),
                    "to" => to = Some(value),
                    _ => drop(filter.insert(name, value.into())),
                }
            }
            let (Some(from), Some(to)) = (from, to) else {
                return Err(
                    UsageError("name the period: --from and --to, or --month".into()).into()
                );
            };
            let body =
                json!({"from": from, "to": to, "filter": filter, "apply": apply, "reason": reason});
            let answer = ask(s, Method::POST, "/api/v1/costs/reprice", &[], Body::Json(body))?;
            finish(s, answer, |v| {
                print_rows(
                    v.get("by_model"),
                    &["provider", "model", "calls", "before_usd", "after_usd"],
                );
                say(&format!(
                    "{} calls, ${} to ${} ({}) by book {}; {}",
                    cell(v, "calls"),
                    cell(v, "before_usd"),
                    cell(v, "after_usd"),
                    cell(v, "difference_usd"),
                    cell(v, "price_book"),
                    if *apply { "applied" } else { "not applied: add --apply" }
                ));
            })
        }
        Cost::Reconcile { invoice, provider, tolerance } => {
            let text = std::fs::read_to_string(invoice)
                .with_context(|| format!("failed to read {}", invoice.display()))?;
            let mut params = vec![("tolerance".to_owned(), tolerance.clone())];
            params.extend(provider.clone().map(|p| ("provider".to_owned(), p)));
            let answer = ask(s, Method::POST, "/api/v1/costs/reconcile", &params, Body::Csv(text))?;
            let differs = answer.as_ref().is_ok_and(|v| {
                let rows = v.get("rows").and_then(Value::as_array);
                rows.is_some_and(|r| r.iter().any(|r| cell(r, "status") != "matches"))
            });
            let code = finish(s, answer, |v| {
                let columns = [
                    "date",
                    "model",
                    "invoice_usd",
                    "ledger_usd",
                    "difference_usd",
                    "calls",
                    "unpriced_calls",
                    "status",
                ];
                print_rows(v.get("rows"), &columns);
                say(&format!(
                    "invoice ${}, ledger ${}, difference {}",
                    cell(v, "invoice_usd"),
                    cell(v, "ledger_usd"),
                    cell(v, "difference_usd")
                ));
            })?;
            Ok(if differs { ExitCode::from(1) } else { code })
        }
    }
}

pub(crate) fn budget(a: &BudgetArgs) -> Result<ExitCode> {
    use reqwest::Method;
    let s = &a.server;
    let scope_of = |list: &[String]| -> Result<Value> {
        Ok(pairs(list)?
            .into_iter()
            .map(|(k, v)| (k, v.into()))
            .collect::<serde_json::Map<_, _>>()
            .into())
    };
    match &a.what {
        Budget::List => {
            let answer = ask(s, Method::GET, "/api/v1/budgets", &[], Body::None)?;
            finish(s, answer, |v| {
                let columns = [
                    "id",
                    "period",
                    "unit",
                    "limit",
                    "current_spend",
                    "reserved",
                    "utilization_percent",
                    "projected_spend",
                    "burn_rate",
                    "state",
                ];
                print_rows(v.get("budgets"), &columns);
            })
        }
        Budget::Set { name, limit, unit, period, rolling_days, time_zone, scope, soft } => {
            let body = json!({
                "name": name, "limit": limit, "unit": unit, "period": period, "rolling_days": rolling_days,
                "time_zone": time_zone, "scope": scope_of(scope)?, "hard": !soft,
            });
            let answer = ask(s, Method::POST, "/api/v1/budgets", &[], Body::Json(body))?;
            finish(s, answer, |v| {
                say(&format!(
                    "{}: {} of {} spent",
                    cell(v, "id"),
                    cell(v, "current_spend"),
                    cell(v, "limit")
                ));
            })
        }
        Budget::Delete { id } => {
            let path = format!("/api/v1/budgets/{id}");
            let answer = ask(s, Method::DELETE, &path, &[], Body::None)?;
            finish(s, answer, |_| say(&format!("{id} deleted")))
        }
        Budget::Check { provider, model, input_tokens, max_output_tokens, scope } => {
            let body = json!({
                "provider": provider, "model": model, "input_tokens": input_tokens,
                "max_output_tokens": max_output_tokens, "scope": scope_of(scope)?,
            });
            let answer = ask(s, Method::POST, "/api/v1/budgets/check", &[], Body::Json(body))?;
            finish(s, answer, |v| say(&format!("allowed: ${} at most", cell(v, "amount_usd"))))
        }
    }
}

pub(crate) fn drift(a: &DriftArgs) -> Result<ExitCode> {
    use reqwest::Method;
    let s = &a.server;
    match &a.what {
        Drift::Check { model, baseline_from, baseline_to } => {
            let body =
                json!({"model": model, "baseline_from": baseline_from, "baseline_to": baseline_to});
            let answer = ask(s, Method::POST, "/api/v1/drift/check", &[], Body::Json(body))?;
            let drifted =
                answer.as_ref().is_ok_and(|v| v.get("drift_detected") == Some(&Value::Bool(true)));
            let code = finish(s, answer, |v| {
                print_rows(v.get("scope_results"), &["model", "scope", "status", "score", "calls"]);
            })?;
            Ok(if drifted { ExitCode::from(1) } else { code })
        }
        Drift::Incidents => {
            let answer = ask(s, Method::GET, "/api/v1/drift/incidents", &[], Body::None)?;
            finish(s, answer, |v| {
                let columns =
                    ["opened_at", "status", "severity", "model", "scope", "score", "summary"];
                print_rows(v.get("incidents"), &columns);
            })
        }
    }
}
