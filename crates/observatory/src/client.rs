//! `observatory query`: asks a running server over its HTTP APIs.

use crate::cli::{Language, Output, QueryArgs, complain, say};
use anyhow::{Context as _, Result};
use obs_traceql::TraceQl;
use serde_json::Value;
use std::io::Write;
use std::process::ExitCode;

/// Runs a future on a small runtime of its own.
pub(crate) fn block_on<T>(f: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start a runtime")?
        .block_on(f)
}

/// A request to the server.
pub(crate) struct Call<'a> {
    pub(crate) method: reqwest::Method,
    /// Main address of the server.
    pub(crate) server: &'a str,
    pub(crate) path: &'a str,
    pub(crate) params: &'a [(String, String)],
    pub(crate) tenant: Option<&'a str>,
    /// Content type and text.
    pub(crate) body: Option<(&'static str, String)>,
}

/// Makes a request; returns whether it went well, and the answer.
pub(crate) fn call(c: Call<'_>) -> Result<(bool, String)> {
    let url = format!("{}{}", c.server.trim_end_matches('/'), c.path);
    block_on(async {
        let mut request = obs_objects::http_client().request(c.method, &url).query(c.params);
        if let Some(t) = c.tenant {
            request = request.header("X-Scope-OrgID", t);
        }
        if let Some((kind, text)) = c.body {
            request = request.header("Content-Type", kind).body(text);
        }
        let answer = request.send().await;
        let answer =
            answer.with_context(|| format!("failed to reach {url}; is the server running?"))?;
        let ok = answer.status().is_success();
        Ok((ok, answer.text().await.context("failed to read the answer")?))
    })
}

/// Writes what an address answers, piece by piece. What the server says against it is the error.
fn pass_on(url: &str, tenant: Option<&str>, out: &mut impl Write) -> Result<()> {
    block_on(async {
        let mut request = obs_objects::http_client().get(url);
        if let Some(t) = tenant {
            request = request.header("X-Scope-OrgID", t);
        }
        let answer = request.send().await;
        let mut answer =
            answer.with_context(|| format!("failed to reach {url}; is the server running?"))?;
        if !answer.status().is_success() {
            let status = answer.status();
            let body = answer.text().await.context("failed to read the answer")?;
            anyhow::bail!("{status}: {}", told(&body));
        }
        while let Some(piece) = answer.chunk().await.context("the answer was cut off")? {
            out.write_all(&piece)?;
        }
        Ok(())
    })
}

/// Writes what an address answers into a file.
pub(crate) fn fetch(url: &str, tenant: Option<&str>, mut out: std::fs::File) -> Result<()> {
    pass_on(url, tenant, &mut out)?;
    out.sync_all().context("failed to write the file")
}

/// Returns what the body of an error says.
fn told(body: &str) -> String {
    let json: Option<Value> = serde_json::from_str(body).ok();
    let text = json.as_ref().and_then(|j| j.get("error")).and_then(Value::as_str);
    text.unwrap_or(body.trim()).to_owned()
}

/// Writes the samples of a selector as they are stored.
fn dump(a: &QueryArgs) -> Result<ExitCode> {
    let mut params = url::form_urlencoded::Serializer::new(String::new());
    params.append_pair("match[]", &a.query);
    for (name, value) in [("start", &a.start), ("end", &a.end)] {
        if let Some(v) = value {
            params.append_pair(name, v);
        }
    }
    let path = "prometheus/api/v1/export/openmetrics";
    let url = format!("{}/{path}?{}", a.url.trim_end_matches('/'), params.finish());
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    pass_on(&url, a.tenant.as_deref(), &mut out)?;
    out.flush().context("failed to write")?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn query(a: &QueryArgs) -> Result<ExitCode> {
    let is_range = a.start.is_some() || a.step.is_some();
    let mut params: Vec<(&str, String)> = Vec::new();
    let mut add = |name: &'static str, value: &Option<String>| {
        params.extend(value.as_ref().map(|v| (name, v.clone())))
    };
    add("start", &a.start);
    add("end", &a.end);
    add("step", &a.step);
    add("time", &a.time);
    let path = match a.language {
        Language::Promql => {
            params.push(("query", a.query.clone()));
            if is_range { "/prometheus/api/v1/query_range" } else { "/prometheus/api/v1/query" }
        }
        Language::Logql => {
            params.push(("query", a.query.clone()));
            params.push(("limit", a.limit.to_string()));
            let is_log = a.query.trim_start().starts_with(['{', '(']);
            if is_range || is_log { "/loki/api/v1/query_range" } else { "/loki/api/v1/query" }
        }
        Language::Traces => {
            params.push(("q", a.query.clone()));
            params.push(("limit", a.limit.to_string()));
            // A text that is no query is refused by the server, in its words.
            match TraceQl::parse(&a.query) {
                Ok(q) if q.is_metric() && is_range => "/tempo/api/metrics/query_range",
                Ok(q) if q.is_metric() => "/tempo/api/metrics/query",
                _ => "/tempo/api/search",
            }
        }
        Language::Sql => {
            params.push(("q", a.query.clone()));
            "/api/v1/sql"
        }
        Language::Openmetrics => return dump(a),
    };
    // Queries may be longer than an address may be.
    let is_form = !matches!(a.language, Language::Traces);
    let form = is_form.then(|| {
        let text =
            url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&params).finish();
        ("application/x-www-form-urlencoded", text)
    });
    let params: Vec<(String, String)> =
        params.into_iter().map(|(n, v)| (n.to_owned(), v)).filter(|_| !is_form).collect();
    let (ok, body) = call(Call {
        method: if is_form { reqwest::Method::POST } else { reqwest::Method::GET },
        server: &a.url,
        path,
        params: &params,
        tenant: a.tenant.as_deref(),
        body: form,
    })?;
    if !ok {
        complain(&format!("error: {}", told(&body)));
        return Ok(ExitCode::from(1));
    }
    if a.output.output == Output::Json {
        say(body.trim_end());
    } else {
        print(&serde_json::from_str(&body).context("failed to parse the answer")?);
    }
    Ok(ExitCode::SUCCESS)
}

fn text(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

fn series_name(labels: &Value) -> String {
    let pairs = labels.as_object().into_iter().flatten();
    let name = labels.get("__name__").and_then(Value::as_str).unwrap_or_default();
    let rest: Vec<String> =
        pairs.filter(|(n, _)| *n != "__name__").map(|(n, v)| format!("{n}={v}")).collect();
    if rest.is_empty() && !name.is_empty() {
        name.to_owned()
    } else {
        format!("{name}{{{}}}", rest.join(", "))
    }
}

fn print_traces(traces: &[Value]) {
    let row = |t: &Value| {
        let of = |key: &str| t.get(key).map(text).unwrap_or_default();
        let start = of("startTimeUnixNano").parse().map(obs_model::TimestampNs::from_nanos);
        let sets = t.get("spanSets").and_then(Value::as_array).into_iter().flatten();
        let matched: u64 = sets.filter_map(|s| s.get("matched")?.as_u64()).sum();
        vec![
            start.map(|t| t.to_string()).unwrap_or_default(),
            format!("{:0>32}", of("traceID")),
            format!("{}: {}", of("rootServiceName"), of("rootTraceName")),
            matched.to_string(),
            of("durationMs"),
        ]
    };
    let names = ["start", "trace", "root", "matched spans", "duration ms"];
    table(&names, &traces.iter().map(row).collect::<Vec<_>>());
}

fn print(answer: &Value) {
    if let (Some(columns), Some(rows)) = (
        answer.get("columns").and_then(Value::as_array),
        answer.get("rows").and_then(Value::as_array),
    ) {
        let names: Vec<&str> = columns.iter().filter_map(|c| c.get("name")?.as_str()).collect();
        let cells = rows.iter().map(|r| {
            names
                .iter()
                .map(|n| r.get(*n).filter(|v| !v.is_null()).map(text).unwrap_or_default())
                .collect::<Vec<_>>()
        });
        table(&names, &cells.collect::<Vec<_>>());
        return;
    }
    if let Some(traces) = answer.get("traces").and_then(Value::as_array) {
        return print_traces(traces);
    }
    if let Some(series) = answer.get("series").and_then(Value::as_array) {
        for s in series {
            let name = s.get("promLabels").map(text).unwrap_or_default();
            match s.get("value") {
                Some(v) => say(&format!("{name} => {}", text(v))),
                None => say(&name),
            }
            for point in s.get("samples").and_then(Value::as_array).into_iter().flatten() {
                let of = |key: &str| point.get(key).map(text).unwrap_or_default();
                let seconds = of("timestampMs").parse::<f64>().unwrap_or(0.0) / 1000.0;
                say(&format!("  {} @[{seconds}]", of("value")));
            }
        }
        return;
    }
    let data = answer.get("data").unwrap_or(&Value::Null);
    let result = data.get("result").unwrap_or(&Value::Null);
    match data.get("resultType").and_then(Value::as_str) {
        Some("vector") => result.as_array().into_iter().flatten().for_each(|r| {
            let value = r
                .get("value")
                .or(r.get("histogram"))
                .and_then(|v| v.get(1))
                .map(text)
                .unwrap_or_default();
            say(&format!("{} => {value}", series_name(r.get("metric").unwrap_or(&Value::Null))));
        }),
        Some("matrix") => result.as_array().into_iter().flatten().for_each(|r| {
            say(&series_name(r.get("metric").unwrap_or(&Value::Null)));
            for kind in ["values", "histograms"] {
                for point in r.get(kind).and_then(Value::as_array).into_iter().flatten() {
                    say(&format!(
                        "  {} @[{}]",
                        point.get(1).map(text).unwrap_or_default(),
                        point.get(0).map(text).unwrap_or_default()
                    ));
                }
            }
        }),
        Some("streams") => {
            let mut lines: Vec<(String, String)> = Vec::new();
            for s in result.as_array().into_iter().flatten() {
                for v in s.get("values").and_then(Value::as_array).into_iter().flatten() {
                    lines.push((
                        v.get(0).map(text).unwrap_or_default(),
                        v.get(1).map(text).unwrap_or_default(),
                    ));
                }
            }
            lines.sort();
            for (ns, line) in lines {
                let time = ns
                    .parse()
                    .map(|n| obs_model::TimestampNs::from_nanos(n).to_string())
                    .unwrap_or(ns);
                say(&format!("{time} {line}"));
            }
        }
        _ => say(&result.get(1).map_or_else(|| data.to_string(), text)),
    }
}

pub(crate) fn table(names: &[&str], rows: &[Vec<String>]) {
    let width = |i: usize| {
        rows.iter()
            .filter_map(|r| r.get(i))
            .map(|c| c.chars().count())
            .chain(names.get(i).map(|n| n.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| -> String {
        let padded: Vec<String> = cells.zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    say(&line(&mut names.iter().copied()));
    for r in rows {
        say(&line(&mut r.iter().map(String::as_str)));
    }
}
