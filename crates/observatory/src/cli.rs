//! The command line.

use anyhow::{Context as _, Result};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use obs_model::Objects;
use obs_storage::Elsewhere;
use obs_storage::vfs::OsVfs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Parser)]
#[command(
    name = "observatory",
    version,
    about = "Metrics, logs, traces and the cost of every LLM call, in one binary"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server.
    Serve(ServeArgs),
    /// Ask a running server.
    Query(QueryArgs),
    /// Send a test trace, metric or log to a running server.
    Send(SendArgs),
    /// Check files without running anything.
    Check(CheckArgs),
    /// Run tests of rules.
    Test(TestArgs),
    /// List alerts, test receivers and rules of a running server.
    Alert(crate::alert_cli::AlertArgs),
    /// List, compute, import and check prices of models.
    Price(crate::price_cli::PriceArgs),
    /// Ask a running server what calls cost.
    Cost(crate::money_cli::CostArgs),
    /// List, set and check budgets of a running server.
    Budget(crate::money_cli::BudgetArgs),
    /// Look for models whose calls changed.
    Drift(crate::money_cli::DriftArgs),
    /// Show or say what calls, traces and sessions were worth.
    Score(crate::score_cli::ScoreArgs),
    /// Check every byte of a data directory that no server has open.
    Verify(VerifyArgs),
    /// Copy everything a running server has acknowledged into a new directory.
    Backup(BackupArgs),
    /// Make a data directory from a backup.
    Restore(RestoreArgs),
    /// Print the version.
    Version(OutputArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    /// Configuration file; without one the defaults apply.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Data directory [default: ./data].
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// Listener address, NAME=HOST:PORT or NAME=off; NAME may be `all`, PORT 0 takes a free one.
    #[arg(long, value_name = "NAME=ADDR")]
    pub(crate) listen: Vec<String>,
    /// Generate the telemetry of a small LLM platform.
    #[arg(long)]
    pub(crate) demo: bool,
    /// Switch parts of PromQL on, by Prometheus' names, comma-separated.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) enable_feature: Vec<String>,
    /// Let POST /-/quit end the server.
    #[arg(long)]
    pub(crate) enable_lifecycle: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OutputArgs {
    /// Form of the output.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    Promql,
    Logql,
    /// TraceQL.
    Traces,
    Sql,
    /// A selector of series: its samples as they are stored, as OpenMetrics text.
    Openmetrics,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct QueryArgs {
    pub(crate) language: Language,
    /// The query.
    pub(crate) query: String,
    /// Main address of the server.
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    pub(crate) url: String,
    /// Instant of a metric query: Unix seconds or RFC 3339 [default: now].
    #[arg(long)]
    pub(crate) time: Option<String>,
    /// Start of a range query.
    #[arg(long)]
    pub(crate) start: Option<String>,
    /// End of a range query.
    #[arg(long)]
    pub(crate) end: Option<String>,
    /// Step of a range query.
    #[arg(long)]
    pub(crate) step: Option<String>,
    /// Lines of a log query, or traces.
    #[arg(long, default_value_t = 30)]
    pub(crate) limit: u32,
    /// Tenant, sent as X-Scope-OrgID.
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Signal {
    Trace,
    Metric,
    Log,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SendArgs {
    pub(crate) signal: Signal,
    /// OTLP/HTTP address of the server.
    #[arg(long, default_value = "http://127.0.0.1:4318")]
    pub(crate) endpoint: String,
    /// Name of the service that the record claims to come from.
    #[arg(long, default_value = "observatory-send")]
    pub(crate) service: String,
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CheckArgs {
    #[command(subcommand)]
    pub(crate) what: CheckWhat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckWhat {
    /// Check configuration files: observatory.yaml and prometheus.yml.
    Config {
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Check alertmanager.yml, and look for routes and receivers that no alert reaches.
    Alertmanager {
        /// Files, or profile:NAME for a route set that is built in.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Rule files, or pack:NAME: receivers that none of their alerts reaches are findings.
        #[arg(long, value_name = "FILE")]
        rules: Vec<PathBuf>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Check files of objectives, and show the rules that watch them.
    Slo {
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Check rule files, and look for rules that are valid and still wrong.
    Rules {
        /// Rule files, or pack:NAME for one that is built in.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// File with the names of all metrics there are; a rule that reads another is a finding.
        #[arg(long, value_name = "FILE")]
        metrics: Option<PathBuf>,
        /// Check the syntax only.
        #[arg(long)]
        no_lint: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TestArgs {
    #[command(subcommand)]
    pub(crate) what: TestWhat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TestWhat {
    /// Say which receivers an alert reaches, and why.
    Route {
        /// alertmanager.yml, or profile:NAME.
        file: PathBuf,
        /// Labels of the alert, NAME=VALUE.
        #[arg(required = true, value_name = "LABEL=VALUE")]
        labels: Vec<String>,
        /// Fail unless the alert reaches exactly these receivers, in this order.
        #[arg(long, value_delimiter = ',', value_name = "RECEIVER")]
        expect: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Run unit tests in promtool's format.
    Rules {
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Run tests whose name matches this pattern only; may be repeated.
        #[arg(long, value_name = "REGEX")]
        run: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(crate) fn check(a: &CheckArgs) -> Result<ExitCode> {
    match &a.what {
        CheckWhat::Config { files, output } => crate::config::check(files, output.output),
        CheckWhat::Slo { files, output } => crate::rules_cli::check_slos(files, output.output),
        CheckWhat::Alertmanager { files, rules, output } => {
            crate::alert_cli::check(files, rules, output.output)
        }
        CheckWhat::Rules { files, metrics, no_lint, output } => {
            crate::rules_cli::check(files, metrics.as_deref(), *no_lint, output.output)
        }
    }
}

pub(crate) fn test(a: &TestArgs) -> Result<ExitCode> {
    match &a.what {
        TestWhat::Rules { files, run, output } => crate::rules_cli::test(files, run, output.output),
        TestWhat::Route { file, labels, expect, output } => {
            crate::alert_cli::route(file, labels, expect, output.output)
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VerifyArgs {
    pub(crate) dir: PathBuf,
    /// Object store that older segments are in: `data.tier.url` of the server.
    #[arg(long, value_name = "URL")]
    pub(crate) objects: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BackupArgs {
    /// Directory to make, which must not exist, or URL of an object store (s3://BUCKET/PATH, …)
    /// with nothing at its path. Credentials come from the environment.
    pub(crate) to: String,
    /// Main address of the server.
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    pub(crate) url: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RestoreArgs {
    /// Directory or URL that `backup` filled.
    pub(crate) from: String,
    /// Data directory to make; it must be empty or not exist.
    pub(crate) to: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// The command line does not make sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Calls `f` with an object store, on this thread, where its calls may block.
pub(crate) fn with_objects<T>(
    url: &str,
    f: impl FnOnce(Arc<dyn Objects>) -> Result<T>,
) -> Result<T> {
    let runtime = tokio::runtime::Runtime::new().context("failed to start the runtime")?;
    f(obs_objects::open(url, &[], runtime.handle().clone()).map_err(UsageError)?)
}

/// Prints a line; a closed pipe is no error worth reporting.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a line to standard error.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

pub(crate) fn version(a: &OutputArgs) -> Result<ExitCode> {
    match a.output {
        Output::Text => say(&format!("observatory {VERSION}")),
        Output::Json => {
            say(&serde_json::json!({"name": "observatory", "version": VERSION}).to_string())
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn verify(a: &VerifyArgs) -> Result<ExitCode> {
    if !a.dir.join("manifest").is_dir() {
        return Err(UsageError(format!(
            "{} is no data directory: it has no manifest/",
            a.dir.display()
        ))
        .into());
    }
    let check = |elsewhere| obs_storage::verify(&a.dir, &OsVfs, &elsewhere);
    let r = match &a.objects {
        None => check(Elsewhere::Nothing)?,
        Some(url) => with_objects(url, |o| Ok(check(Elsewhere::Moved(o))?))?,
    };
    match a.output.output {
        Output::Json => {
            let findings: Vec<_> = r.findings.iter().map(|f| serde_json::json!({"file": f.file, "problem": f.problem, "damage": f.is_damage})).collect();
            say(&serde_json::json!({"wal_files": r.wal_files, "batches": r.batches, "segments": r.segments, "blocks": r.blocks, "bytes": r.bytes, "unchecked": r.unchecked, "damaged": r.is_damaged(), "findings": findings}).to_string());
        }
        Output::Text => {
            for f in &r.findings {
                say(&format!(
                    "{}: {}: {}",
                    if f.is_damage { "DAMAGE" } else { "note" },
                    f.file,
                    f.problem
                ));
            }
            if r.unchecked > 0 {
                say(&format!(
                    "{} segments in the object store were not checked; name it with --objects URL",
                    r.unchecked
                ));
            }
            say(&format!(
                "{} log files with {} batches, {} segments with {} blocks, {} bytes: {}",
                r.wal_files,
                r.batches,
                r.segments,
                r.blocks,
                r.bytes,
                if r.is_damaged() { "damaged" } else { "sound" }
            ));
        }
    }
    Ok(if r.is_damaged() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}
