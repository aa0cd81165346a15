//! LogQL: parser, pipeline stages, log and metric queries.
//!
//! Behaviour is that of Loki 3. A metric query's vector algebra is PromQL's: each range
//! aggregation over logs is computed here, step by step, and stands in a PromQL expression as a
//! series ([`metric`]). Stages and functions that are not supported yet are refused by name.

pub mod ast;
mod metric;
mod parser;
mod pipeline;
mod query;

pub use metric::{run_instant, run_range};
pub use parser::{ParseError, parse};
pub use pipeline::record_labels;
pub use query::{LogStream, QueryError, run_logs};
