//! `observatory score`: what calls, traces and sessions were worth.

use crate::cli::say;
use crate::client::table;
use crate::money_cli::{Body, Server, ask, cell, finish, print_rows};
use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(Debug, ClapArgs)]
pub(crate) struct ScoreArgs {
    #[command(subcommand)]
    what: ScoreCommand,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum ScoreCommand {
    /// Means with their intervals, by name and one attribute.
    Summary {
        /// model, service, source, prompt_version, session_id or user_id.
        #[arg(long, default_value = "model")]
        by: String,
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        start: Option<String>,
        #[arg(long)]
        end: Option<String>,
    },
    /// The latest scores.
    List {
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        trace_id: Option<String>,
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Say what something was worth.
    Set {
        name: String,
        value: f64,
        #[arg(long, required_unless_present_any = ["response_id", "session_id"])]
        trace_id: Option<String>,
        #[arg(long)]
        span_id: Option<String>,
        #[arg(long)]
        response_id: Option<String>,
        #[arg(long)]
        session_id: Option<String>,
        #[arg(long, default_value = "human")]
        source: String,
        #[arg(long)]
        comment: Option<String>,
    },
}

pub(crate) fn score(a: &ScoreArgs) -> Result<ExitCode> {
    use reqwest::Method;
    let s = &a.server;
    let given = |list: &[(&str, Option<String>)]| -> Vec<(String, String)> {
        list.iter().filter_map(|(n, v)| Some(((*n).to_owned(), v.clone()?))).collect()
    };
    match &a.what {
        ScoreCommand::Summary { by, name, start, end } => {
            let params = given(&[
                ("by", Some(by.clone())),
                ("name", name.clone()),
                ("start", start.clone()),
                ("end", end.clone()),
            ]);
            let answer = ask(s, Method::GET, "/api/v1/scores/summary", &params, Body::None)?;
            finish(s, answer, |v| {
                let groups = v.get("groups").and_then(Value::as_array).into_iter().flatten();
                let rows: Vec<Vec<String>> = groups
                    .map(|g| {
                        let stats = g.get("stats").unwrap_or(&Value::Null);
                        let of = |k: &str| cell(stats, k);
                        vec![
                            cell(g, "name"),
                            cell(g, "key"),
                            cell(g, "count"),
                            of("mean"),
                            of("low"),
                            of("high"),
                            of("positive"),
                        ]
                    })
                    .collect();
                table(&["name", by, "count", "mean", "low", "high", "positive"], &rows);
            })
        }
        ScoreCommand::List { name, trace_id, limit } => {
            let params = given(&[
                ("name", name.clone()),
                ("trace_id", trace_id.clone()),
                ("limit", Some(limit.to_string())),
            ]);
            let answer = ask(s, Method::GET, "/api/v1/scores", &params, Body::None)?;
            finish(s, answer, |v| {
                let columns =
                    ["name", "value", "label", "source", "model", "trace_id", "explanation"];
                print_rows(v.get("scores"), &columns);
            })
        }
        ScoreCommand::Set {
            name,
            value,
            trace_id,
            span_id,
            response_id,
            session_id,
            source,
            comment,
        } => {
            let mut body = json!({"name": name, "value": value, "source": source});
            for (key, v) in [
                ("trace_id", trace_id),
                ("span_id", span_id),
                ("response_id", response_id),
                ("session_id", session_id),
                ("comment", comment),
            ] {
                if let Some(v) = v {
                    body[key] = json!(v);
                }
            }
            let answer = ask(s, Method::POST, "/api/v1/scores", &[], Body::Json(body))?;
            finish(s, answer, |_| say(&format!("{name} {value} stored")))
        }
    }
}
