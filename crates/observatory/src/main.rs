//! `observatory`: the whole observability stack of a team that runs LLM applications.

mod alert_cli;
mod alerting;
mod backup;
mod cli;
mod client;
mod collector;
mod config;
mod control;
mod demo;
mod limits;
mod loki;
mod memory;
mod money_cli;
mod notifier;
mod price_cli;
mod prometheus;
mod retention;
mod rules_cli;
mod sampling;
mod score_cli;
mod send;
mod serve;
mod tailing;
mod tier;

use clap::Parser as _;
use std::process::ExitCode;

// Returns freed memory to the system sooner than glibc's allocator under many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    let result = match args.command {
        cli::Command::Serve(a) => serve::run(&a),
        cli::Command::Query(a) => client::query(&a),
        cli::Command::Send(a) => send::run(&a),
        cli::Command::Check(a) => cli::check(&a),
        cli::Command::Test(a) => cli::test(&a),
        cli::Command::Alert(a) => alert_cli::run(&a),
        cli::Command::Price(a) => price_cli::run(&a),
        cli::Command::Cost(a) => money_cli::cost(&a),
        cli::Command::Budget(a) => money_cli::budget(&a),
        cli::Command::Drift(a) => money_cli::drift(&a),
        cli::Command::Score(a) => score_cli::score(&a),
        cli::Command::Verify(a) => cli::verify(&a),
        cli::Command::Backup(a) => backup::backup(&a),
        cli::Command::Restore(a) => backup::restore(&a),
        cli::Command::Version(a) => cli::version(&a),
    };
    match result {
        Ok(code) => code,
        Err(e) => {
            cli::complain(&format!("error: {e:#}"));
            // A usage or configuration error is 2, a finding is 1.
            ExitCode::from(if e.is::<config::ConfigError>() || e.is::<cli::UsageError>() {
                2
            } else {
                1
            })
        }
    }
}
