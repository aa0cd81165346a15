//! `observatory price`: the price book without a server.

use crate::cli::{Output, OutputArgs, UsageError, complain, say};
use anyhow::{Context as _, Result};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use obs_llm::{
    BookFile, Imported, PriceBook, PriceRecord, import_csv, import_litellm, import_origin,
    usage_call,
};
use obs_model::{Money, TimestampNs, TokenUsage};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, ClapArgs)]
pub(crate) struct PriceArgs {
    #[command(subcommand)]
    what: What,
    /// Price file on top of the embedded book; may be repeated.
    #[arg(long = "file", global = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// model_prices_and_context_window.json of LiteLLM.
    Litellm,
    /// Pricing tables of Cost Ops, or rows with prices by the thousand.
    CostOps,
    /// A table whose header names the keys of a record.
    Csv,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List prices, USD per million tokens.
    List {
        #[arg(long)]
        provider: Option<String>,
        /// Part of the model's name.
        #[arg(long)]
        model: Option<String>,
    },
    /// Price one call, and tell by which record.
    Calc(CalcArgs),
    /// Make a price file of another's table.
    Import {
        table: PathBuf,
        #[arg(long, value_enum)]
        from: Table,
        /// Version that the prices are named by, such as acme-2026-11.
        #[arg(long)]
        version: String,
        /// Keep these providers only; may be repeated.
        #[arg(long)]
        provider: Vec<String>,
        /// Where to write it [default: standard output].
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Check price files.
    Check {
        #[arg(required = true)]
        tables: Vec<PathBuf>,
    },
}

#[derive(Debug, ClapArgs)]
struct CalcArgs {
    #[arg(long)]
    provider: String,
    #[arg(long)]
    model: String,
    /// Input tokens, cached ones apart.
    #[arg(long, visible_alias = "input-tokens", default_value_t = 0)]
    input: u64,
    #[arg(long, default_value_t = 0)]
    cache_read: u64,
    #[arg(long, default_value_t = 0)]
    cache_write: u64,
    #[arg(long, default_value_t = 0)]
    cache_write_1h: u64,
    /// Output tokens, reasoning apart.
    #[arg(long, default_value_t = 0)]
    output_tokens: u64,
    #[arg(long, default_value_t = 0)]
    reasoning: u64,
    #[arg(long, default_value = "")]
    service_tier: String,
    #[arg(long, default_value = "")]
    region: String,
    /// Day of the call [default: today].
    #[arg(long)]
    date: Option<String>,
}

pub(crate) fn run(a: &PriceArgs) -> Result<ExitCode> {
    let output = a.output.output;
    match &a.what {
        What::List { provider, model } => {
            list(&book(&a.files)?, provider.as_deref(), model.as_deref(), output);
            Ok(ExitCode::SUCCESS)
        }
        What::Calc(c) => calc(&book(&a.files)?, c, output),
        What::Import { table, from, version, provider, out } => {
            import(table, *from, version, provider, out.as_deref())
        }
        What::Check { tables } => check(tables, output),
    }
}

fn book(files: &[PathBuf]) -> Result<PriceBook> {
    let mut book = PriceBook::embedded();
    for path in files {
        book.add_json(&read(path)?).with_context(|| path.display().to_string())?;
    }
    Ok(book)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

fn list(book: &PriceBook, provider: Option<&str>, model: Option<&str>, output: Output) {
    let wanted = |r: &PriceRecord| {
        provider.is_none_or(|p| p == r.provider)
            && model.is_none_or(|m| r.model.contains(&m.to_lowercase()))
    };
    let records: Vec<_> = book.records().into_iter().filter(|(_, r)| wanted(r)).collect();
    if output == Output::Json {
        let rows: Vec<_> = records.iter().map(|(id, r)| json!({"id": id, "record": r})).collect();
        say(&json!({"version": book.version(), "prices": rows}).to_string());
        return;
    }
    let show = |m: Option<Money>| m.map_or_else(|| "-".into(), |m| m.normalize().to_string());
    for (_, r) in &records {
        let more: Vec<&str> = [
            (!r.tiers.is_empty(), "tiers"),
            (r.modes.contains_key("batch"), "batch"),
            (r.modes.contains_key("priority"), "priority"),
            (r.modes.contains_key("flex"), "flex"),
        ]
        .into_iter()
        .filter_map(|(is, name)| is.then_some(name))
        .collect();
        let region = if r.region.is_empty() { String::new() } else { format!(" [{}]", r.region) };
        say(&format!(
            "{:<18} {:<44} in {:>8} out {:>8} cached {:>8} write {:>8} {}",
            r.provider,
            format!("{}{region}", r.model),
            show(r.rates.input),
            show(r.rates.output),
            show(r.rates.cache_read),
            show(r.rates.cache_write),
            more.join(",")
        ));
    }
    say(&format!("{} prices of book {}", records.len(), book.version()));
}

fn calc(book: &PriceBook, a: &CalcArgs, output: Output) -> Result<ExitCode> {
    let start = match &a.date {
        None => crate::serve::wall_clock(),
        Some(d) => TimestampNs::parse_rfc3339(&format!("{d}T12:00:00Z"))
            .ok_or_else(|| UsageError(format!("{d:?} is not a date (YYYY-MM-DD)")))?,
    };
    let mut call = usage_call(&a.provider, &a.model, start);
    call.service_tier.clone_from(&a.service_tier);
    call.region.clone_from(&a.region);
    let tokens = TokenUsage {
        input: a.input,
        cache_read: a.cache_read,
        cache_write: a.cache_write,
        cache_write_1h: a.cache_write_1h,
        output: a.output_tokens,
        reasoning: a.reasoning,
        ..TokenUsage::default()
    };
    let Some(cost) = book.price(&call, &tokens) else {
        let why = match book.explain(&call) {
            None => "the book has no price for this model".to_owned(),
            Some(m) => format!("{} has no price for a part of this usage", m.id),
        };
        if output == Output::Json {
            say(&json!({"state": "unpriced", "reason": why}).to_string());
        } else {
            complain(&format!("unpriced: {why}"));
        }
        return Ok(ExitCode::from(1));
    };
    let how = book.explain(&call).map_or("", |m| m.how);
    let parts = cost.parts();
    if output == Output::Json {
        let parts: serde_json::Map<String, serde_json::Value> = parts
            .iter()
            .map(|(n, m)| ((*n).to_owned(), m.normalize().to_string().into()))
            .collect();
        let total = cost.total().normalize().to_string();
        say(&json!({"state": "priced", "total_usd": total, "parts": parts, "price_id": cost.price_id, "matched_by": how}).to_string());
    } else {
        for (name, m) in parts.iter().filter(|(_, m)| !m.is_zero()) {
            say(&format!("{name:<12} ${}", m.normalize()));
        }
        say(&format!("{:<12} ${}", "total", cost.total().normalize()));
        say(&format!("by {} ({how})", cost.price_id));
    }
    Ok(ExitCode::SUCCESS)
}

fn import(
    table: &Path,
    from: Table,
    version: &str,
    providers: &[String],
    out: Option<&Path>,
) -> Result<ExitCode> {
    let text = read(table)?;
    let read = match from {
        Table::Litellm => import_litellm(&text),
        Table::CostOps => import_origin(&text),
        Table::Csv => import_csv(&text),
    };
    let Imported { mut records, skipped } = read.with_context(|| table.display().to_string())?;
    records.retain(|r| providers.is_empty() || providers.contains(&r.provider));
    let n = records.len();
    let file = BookFile { version: version.to_owned(), prices: records, ..BookFile::default() };
    // What is written can be read: the book itself checks it.
    PriceBook::default().add_file(file.clone())?;
    // A record a line, so that versions can be compared.
    let mut text = format!("{{\n\"version\": {},\n\"prices\": [\n", json!(file.version));
    for (i, r) in file.prices.iter().enumerate() {
        text.push_str(&serde_json::to_string(r)?);
        text.push_str(if i + 1 < n { ",\n" } else { "\n" });
    }
    text.push_str("]\n}\n");
    match out {
        None => say(text.trim_end()),
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("failed to write {}", path.display()))?,
    }
    let mut reasons = std::collections::BTreeMap::new();
    for (_, why) in &skipped {
        *reasons.entry(why).or_insert(0) += 1;
    }
    complain(&format!("{n} prices; {} entries left out", skipped.len()));
    for (why, count) in reasons {
        complain(&format!("  {count}: {why}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn check(tables: &[PathBuf], output: Output) -> Result<ExitCode> {
    let mut bad = false;
    for path in tables {
        let mut book = PriceBook::default();
        let problem = book.add_json(&read(path)?).err().map(|e| e.to_string());
        bad |= problem.is_some();
        if output == Output::Json {
            say(&json!({"file": path.display().to_string(), "prices": book.len(), "problem": problem}).to_string());
        } else {
            match problem {
                Some(p) => complain(&format!("{}: {p}", path.display())),
                None => say(&format!("{}: {} prices", path.display(), book.len())),
            }
        }
    }
    Ok(ExitCode::from(u8::from(bad)))
}
