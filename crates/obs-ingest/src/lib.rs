//! The write path between the decoders and the store: checks, deltas, LLM calls, derived series.
//!
//! [`Ingest`] takes decoded records, refuses what breaks a limit (and says so), turns delta
//! points into cumulative ones, finds and prices LLM calls, and hands one batch to an
//! `Append`. It decodes nothing and touches no disk.

mod booking;
mod contexts;
mod correlate;
mod deltas;
mod derive;
mod drifts;
mod exemplars;
mod identity;
mod limits;
mod pipeline;
mod purses;
mod red;
mod sampling;
mod seen;
mod tail;
mod tails;
mod telemetry;
mod watch;

pub use booking::{Booking, WatchCalls};
pub use derive::Derived;
pub use drifts::{Checked, DriftAsk, Drifts, Incident};
pub use exemplars::{Exemplars, SeriesExemplars};
pub use limits::{Limits, TenantLimits, Violation};
pub use pipeline::{Ingest, Outcome, SpanRules};
pub use purses::{PurseError, Purses, Settled};
pub use red::{SpanDimension, weight};
pub use sampling::{DEFAULT_PROBABILITY, Rate, Sampling, Strategies, Strategy};
pub use tail::{RawTail, TailConfig};
pub use telemetry::Telemetry;
pub use watch::Watch;
