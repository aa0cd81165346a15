//! PromQL: lexer, parser with type check, evaluator and functions.
//!
//! Behaviour is that of Prometheus 3: left-open ranges, staleness markers, five minutes of
//! look-back, extrapolated rates, native histograms. The evaluator reads series through
//! `obs_model::SelectSeries` and knows no storage type, no HTTP and no clock. What is not
//! supported yet is refused by the parser by name, never approximated. Answers to range queries are
//! kept and continued by [`ResultsCache`]. Read [`ast`] next.

pub mod ast;
mod dialect;
pub mod duration;
mod duration_expr;
mod eval;
mod lexer;
mod parser;
mod printer;
mod results;

pub use dialect::{Dialect, Features, Settings};
pub use eval::{
    Annotations, EvalError, Output, QueryOptions, evaluate_instant, evaluate_range, format_float,
};
pub use parser::{ParseError, parse};
pub use printer::pretty;
pub use results::{RangeQuery, ResultsCache, Reuse};
