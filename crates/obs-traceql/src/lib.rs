//! Traces as wholes: search by Jaeger's parameters, and the dependencies between services.
//!
//! A search scans spans of the time range, picks traces with a matching span, and returns each
//! trace whole. TraceQL comes here later.

mod dependencies;
mod search;

pub use dependencies::{Dependency, dependencies};
pub use search::{TagFilter, TraceSearch, search};
