//! The configuration of an OpenTelemetry Collector, and what its processors do to records.
//!
//! [`read`] turns the file into [`Collector`]: where receivers listen, what is scraped, how is
//! sampled, and the [`Pipelines`] that records pass through before they are stored.

mod config;
mod context;
mod detect;
mod metrics;
mod ottl;
mod pipeline;
mod processors;

pub use config::{Collector, Dimension, Endpoint, read};
pub use obs_codec::otlp::label_name;
pub use pipeline::{Done, Pipelines, Processing, Signal, Source};
