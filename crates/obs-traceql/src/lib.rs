//! Traces as wholes: TraceQL, Jaeger's search, and the calls between services.
//!
//! A query is parsed ([`TraceQl::parse`]) and planned: which fields of spans it reads, and whether
//! a span can be judged alone. [`find`] scans the store for spans, newest first, and puts the
//! traces together that answers show; [`measure`] makes series of spans.

mod adjust;
mod ast;
mod compare;
mod critical;
mod dependencies;
mod eval;
mod find;
mod jaeger;
mod lexer;
mod measure;
mod parser;
mod plan;
mod series;
mod tags;
mod trace;
mod tree;
mod types;

pub use adjust::{Adjusted, adjust, go_duration, tell_apart};
pub use compare::{Place, Side, Weighed, compare};
pub use critical::{Stretch, critical_path};
pub use dependencies::{Dependency, dependencies};
pub use find::{Found, FoundSet, FoundSpan, SearchRange, find};
pub use jaeger::{TagFilter, TraceSearch, search};
pub use lexer::duration_ns;
pub use measure::{MeasureRange, measure};
pub use series::{Exemplar, TraceSeries};
pub use tags::{TagValues, intrinsics, tag_values};

use obs_model::SelectError;
use std::fmt;

/// Why a text is no query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// Where, both from 1; none when the query is well formed but means nothing.
    pub position: Option<(usize, usize)>,
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: usize, column: usize, message: String) -> Self {
        Self { position: Some((line, column)), message }
    }

    pub(crate) const fn plain(message: String) -> Self {
        Self { position: None, message }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => {
                write!(f, "parse error at line {line}, col {column}: {}", self.message)
            }
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for ParseError {}

/// Why a query has no answer.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum QueryError {
    #[error("{0}")]
    Bad(String),
    #[error(transparent)]
    Select(#[from] SelectError),
}

/// A query, ready to run.
#[derive(Debug)]
pub struct TraceQl {
    pub(crate) plan: plan::Plan,
    hints: Vec<ast::Hint>,
}

/// Bytes of a query at most.
const TEXT_BYTES_MAX: usize = 64 << 10;

impl TraceQl {
    /// Parses and checks a query.
    ///
    /// # Errors
    /// With place and reason when it is not TraceQL.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.len() > TEXT_BYTES_MAX {
            let message = format!("query is longer than {TEXT_BYTES_MAX} bytes");
            return Err(ParseError::plain(message));
        }
        let query = parser::parse(text)?;
        types::check(&query)?;
        Ok(Self::of(query))
    }

    fn of(query: ast::Query) -> Self {
        Self { plan: plan::Plan::new(&query), hints: query.hints }
    }

    /// Makes a query of tags (key and value, as text) and durations of the trace, the form of
    /// searches before TraceQL.
    pub fn of_tags(tags: &[(String, String)], min_ns: Option<i64>, max_ns: Option<i64>) -> Self {
        use ast::{Expr, Field, Op, Scope};
        use obs_model::FieldValue;
        let compare =
            |op, f: Field, v| Expr::Binary(op, Box::new(Expr::Field(f)), Box::new(Expr::Static(v)));
        let either = |a, b| Expr::Binary(Op::Or, Box::new(a), Box::new(b));
        let tag = |(key, value): &(String, String)| {
            let any = || Field::Attribute { parent: false, scope: Scope::Any, key: key.clone() };
            let text = || FieldValue::Str(value.clone().into());
            let field = match key.as_str() {
                "name" => Field::Name,
                "root.name" => Field::RootName,
                "root.service.name" => Field::RootService,
                _ => any(),
            };
            let mut e = compare(Op::Eq, field, text());
            if let Ok(i) = value.parse() {
                e = either(e, compare(Op::Eq, any(), FieldValue::Int(i)));
            } else if let Ok(f) = value.parse() {
                e = either(e, compare(Op::Eq, any(), FieldValue::Float(f)));
            }
            if let Ok(b) = value.parse() {
                e = either(e, compare(Op::Eq, any(), FieldValue::Bool(b)));
            }
            if key == "error" && value == "true" {
                let error = FieldValue::Status(obs_model::StatusCode::Error);
                e = either(e, compare(Op::Eq, Field::Status, error));
            }
            e
        };
        let bound = |op, ns: Option<i64>| {
            ns.map(|ns| compare(op, Field::TraceDuration, FieldValue::Duration(ns)))
        };
        let parts = tags.iter().map(tag).chain(bound(Op::Ge, min_ns)).chain(bound(Op::Le, max_ns));
        let all = parts
            .reduce(|a, b| Expr::Binary(Op::And, Box::new(a), Box::new(b)))
            .unwrap_or(Expr::Static(FieldValue::Bool(true)));
        Self::of(ast::Query {
            pipeline: vec![ast::Stage::Spansets(ast::SpansetExpr::Filter(all))],
            metric: None,
            second: Vec::new(),
            hints: Vec::new(),
        })
    }

    /// Whether the query makes series.
    pub const fn is_metric(&self) -> bool {
        self.plan.metric.is_some()
    }

    /// Whether `with (exemplars = …)` asks for them; none when the query does not say.
    pub fn wants_exemplars(&self) -> Option<bool> {
        let hint = self.hints.iter().find(|(name, _)| name == "exemplars")?;
        Some(hint.1 != obs_model::FieldValue::Bool(false))
    }
}

#[cfg(test)]
mod tests {
    use obs_model::{Resource, Scope, Span, SpanId, SpanKind, SpanStatus, TimestampNs, TraceId};
    use std::sync::Arc;

    /// A span with a number below another's, or below none's.
    pub(crate) fn span(id: u8, parent: u8, start: i64, end: i64) -> Arc<Span> {
        let of = |n: u8| SpanId::from_slice(&[0, 0, 0, 0, 0, 0, 0, n]);
        Arc::new(Span {
            trace_id: TraceId::from_slice(&[1; 16]).unwrap(),
            span_id: of(id).unwrap(),
            parent_id: of(parent),
            name: "x".into(),
            kind: SpanKind::Internal,
            start: TimestampNs::from_nanos(start),
            end: TimestampNs::from_nanos(end),
            status: SpanStatus::Unset,
            trace_state: String::new(),
            attributes: obs_model::Attributes::default(),
            events: Vec::new(),
            links: Vec::new(),
            resource: Arc::new(Resource::default()),
            scope: Arc::new(Scope::default()),
        })
    }
}
