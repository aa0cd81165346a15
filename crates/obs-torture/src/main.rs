//! `obs-torture`: the long versions of the harnesses, bounded and seeded.

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use obs_torture::model;
use std::io::Write as _;
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
}

fn say(value: &serde_json::Value) {
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
    }
    Ok(())
}
