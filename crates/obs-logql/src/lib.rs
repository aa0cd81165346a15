//! LogQL: parser, pipeline stages, log and metric queries.
//!
//! Behaviour is that of Loki 3. A metric query's vector algebra is PromQL's: each range
//! aggregation over logs is computed here, step by step ([`range`]), and stands in a PromQL
//! expression as a series ([`metric`]). Read [`ast`] next.

pub mod ast;
mod fields;
mod forms;
mod ip;
mod labels;
mod lexer;
mod members;
mod metric;
mod parse;
mod parser;
mod pipeline;
mod printer;
mod query;
mod range;
mod template;
mod units;

pub use fields::{Field, FieldType, Fields};
pub use forms::{Form, Forms};
pub use metric::{run_instant, run_range};
pub use parse::each_pair;
pub use parser::{ParseError, parse, parse_selector};
pub use pipeline::strip_ansi;
pub use printer::pretty;
pub use query::{Follower, LabelMap, LogEntry, LogOptions, LogStream, QueryError, run_logs};
pub use template::LineTemplate;
pub use units::bytes as parse_bytes;
