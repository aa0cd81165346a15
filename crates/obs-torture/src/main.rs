//! `obs-torture`: the long versions of the harnesses, bounded and seeded.

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use obs_torture::{alerts, bench, blackbox, faults, model, overload, state, tail};
use serde_json::Value;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Parser)]
#[command(about = "Fault harnesses for the store and the program. A failure names its seed.")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Simulated lives of the store on a disk that loses power and fails (A3).
    Sim {
        #[arg(long, default_value_t = 0)]
        seed: u64,
        #[arg(long, default_value_t = 10_000)]
        seeds: u64,
    },
    /// Flipped bits, and overwritten pages, in every kind of file (A6).
    Flip {
        #[arg(long, default_value_t = 0)]
        seed: u64,
        #[arg(long, default_value_t = 1_000)]
        flips: u64,
        #[arg(long, default_value_t = 200)]
        pages: u64,
    },
    /// Logs cut at any byte, with garbage, zeroed and repeated pages (A5).
    Tail {
        #[arg(long, default_value_t = 0)]
        seed: u64,
        #[arg(long, default_value_t = 2_000)]
        cuts: u64,
        /// Offsets before the end, each of which is cut at.
        #[arg(long, default_value_t = 4_096)]
        last: usize,
    },
    /// `kill -9` under load (A1).
    Kill {
        #[command(flatten)]
        program: Program,
        #[arg(long, default_value_t = 200)]
        runs: u64,
    },
    /// `kill -9` while alerts fire and their receiver fails now and then (E1, E2).
    Alerts {
        #[command(flatten)]
        program: Program,
        #[arg(long, default_value_t = 100)]
        kills: u64,
    },
    /// Power cuts: copies of a mounted disk's image (A2). Needs root.
    Power {
        #[command(flatten)]
        program: Program,
        #[arg(long, default_value_t = 50)]
        runs: u64,
    },
    /// A full disk (A8). Needs root.
    Full {
        #[command(flatten)]
        program: Program,
    },
    /// Kills while the log is read (A10).
    Replay {
        #[command(flatten)]
        program: Program,
        #[arg(long, default_value_t = 20)]
        kills: u64,
    },
    /// A log of 2 GiB under a memory limit of 1 GiB (A11). Needs root.
    Memory {
        #[command(flatten)]
        program: Program,
    },
    /// Ten times the capacity, and queries, under a memory limit of 2 GiB (B1). Needs root.
    Overload {
        #[command(flatten)]
        program: Program,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Failing, short and slow calls of the file system under the program (A7). Needs a C compiler.
    Faults {
        #[command(flatten)]
        program: Program,
        /// Runs of each of the scenarios.
        #[arg(long, default_value_t = 6)]
        rounds: u64,
    },
    /// Deletes, and a kill right after each (A12).
    State {
        #[command(flatten)]
        program: Program,
        #[arg(long, default_value_t = 100)]
        runs: u64,
    },
    /// The table of costs a million items.
    Bench {
        #[command(flatten)]
        program: Program,
        /// A generator that takes `gen KIND … --url URL`; without one our own data is sent.
        #[arg(long)]
        loadgen: Option<PathBuf>,
        #[arg(long, default_value_t = 1)]
        runs: usize,
        /// Measures only the lines whose names contain this.
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Answers and syncs in the order of system calls (A13). Needs strace.
    Strace {
        #[command(flatten)]
        program: Program,
        #[arg(long, default_value_t = 100)]
        requests: u64,
    },
}

#[derive(Debug, clap::Args)]
struct Program {
    /// The `observatory` to test.
    #[arg(long)]
    bin: PathBuf,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn block_on(f: impl Future<Output = Result<Value>>) -> Result<Value> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build()?.block_on(f)
}

fn say(value: &Value) {
    let _ = writeln!(std::io::stdout(), "{value}");
}

fn main() -> Result<()> {
    let began = Instant::now();
    match Args::parse().what {
        What::Sim { seed, seeds } => {
            let mut total = model::Tally::default();
            for s in seed..seed + seeds {
                let t = match model::run(s) {
                    Ok(t) => t,
                    Err(e) => bail!("seed {s}: {e}"),
                };
                total.acked += t.acked;
                total.unknown += t.unknown;
                total.crashes += t.crashes;
                total.checks += t.checks;
                total.injected += t.injected;
                total.crashed_in.extend(t.crashed_in);
            }
            say(&serde_json::json!({
                "harness": "sim", "first_seed": seed, "seeds": seeds, "failures": 0,
                "acknowledged": total.acked, "unknown": total.unknown, "crashes": total.crashes,
                "checks": total.checks, "faults": total.injected,
                "crashed_in": total.crashed_in, "seconds": began.elapsed().as_secs(),
            }));
        }
        What::Flip { seed, flips, pages } => {
            let (mut lost, mut worst) = (0, 0);
            for s in seed..seed + flips + pages {
                let page = s >= seed + flips;
                match model::damage(s, page) {
                    Ok((_, n)) => {
                        lost += n;
                        worst = worst.max(n);
                    }
                    Err(e) => bail!("seed {s}: {e}"),
                }
            }
            say(&serde_json::json!({
                "harness": "flip", "first_seed": seed, "flips": flips, "pages": pages,
                "detected": flips + pages, "altered": 0, "writes_lost": lost,
                "most_lost_at_once": worst, "seconds": began.elapsed().as_secs(),
            }));
        }
        What::Tail { seed, cuts, last } => say(&tail::run(seed, cuts, last)?),
        What::Kill { program: p, runs } => {
            say(&block_on(blackbox::kill(&p.bin, runs, p.seed))?);
        }
        What::Alerts { program: p, kills } => {
            say(&block_on(alerts::alerts(&p.bin, kills, p.seed))?);
        }
        What::Power { program: p, runs } => {
            say(&block_on(blackbox::power(&p.bin, runs, p.seed))?);
        }
        What::Full { program: p } => say(&block_on(blackbox::full(&p.bin, p.seed))?),
        What::Replay { program: p, kills } => {
            say(&block_on(blackbox::replay(&p.bin, kills, p.seed))?);
        }
        What::Memory { program: p } => say(&block_on(blackbox::memory(&p.bin, p.seed))?),
        What::Overload { program: p, seconds } => {
            say(&block_on(overload::overload(&p.bin, seconds, p.seed))?);
        }
        What::Faults { program: p, rounds } => {
            say(&block_on(faults::faults(&p.bin, rounds, p.seed))?);
        }
        What::State { program: p, runs } => {
            say(&block_on(state::state(&p.bin, runs, p.seed))?);
        }
        What::Bench { program: p, loadgen, runs, only } => {
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?
                .block_on(bench::run(&p.bin, loadgen, runs, &only))?;
        }
        What::Strace { program: p, requests } => {
            say(&block_on(blackbox::strace(&p.bin, requests))?);
        }
    }
    Ok(())
}
