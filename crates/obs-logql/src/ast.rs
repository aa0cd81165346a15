//! The syntax tree.

use obs_model::Matcher;
use regex::Regex;

/// A parsed query.
#[derive(Debug, Clone)]
pub enum Query {
    Log(LogExpr),
    Metric(MetricExpr),
}

/// A stream selector and its pipeline.
#[derive(Debug, Clone)]
pub struct LogExpr {
    pub matchers: Vec<Matcher>,
    pub stages: Vec<Stage>,
}

impl LogExpr {
    /// Returns texts that every line of the result contains: what the leading line filters say.
    pub fn needles(&self) -> Vec<String> {
        let leading = self.stages.iter().map_while(|s| match s {
            Stage::Line(f) => Some(f),
            Stage::Json | Stage::Logfmt | Stage::Label(_) => None,
        });
        leading
            .filter(|f| !f.negated)
            .filter_map(|f| match f.any.as_slice() {
                [LineMatch::Contains(text)] if !text.is_empty() => Some(text.clone()),
                _ => None,
            })
            .collect()
    }
}

#[derive(Debug, Clone)]
pub enum Stage {
    Line(LineFilter),
    Json,
    Logfmt,
    Label(LabelFilter),
}

/// A line filter; the line must (not) match any of the alternatives.
#[derive(Debug, Clone)]
pub struct LineFilter {
    pub negated: bool,
    pub any: Vec<LineMatch>,
}

#[derive(Debug, Clone)]
pub enum LineMatch {
    Contains(String),
    Regex(Regex),
}

#[derive(Debug, Clone)]
pub enum LabelFilter {
    Matches(Matcher),
    Compare { name: String, op: CompareOp, value: Quantity },
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
}

/// The right side of a numeric label filter: how the label's text is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quantity {
    Number(f64),
    /// Nanoseconds.
    Duration(f64),
    Bytes(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeOp {
    Rate,
    Count,
    BytesRate,
    Bytes,
}

/// An aggregation over log ranges; its result at each step is a series of the metric expression.
#[derive(Debug, Clone)]
pub struct RangeAggregation {
    pub op: RangeOp,
    pub expr: LogExpr,
    pub range_ms: i64,
    pub offset_ms: i64,
}

/// A PromQL expression whose selectors name entries of `ranges`.
#[derive(Debug, Clone)]
pub struct MetricExpr {
    pub expr: obs_promql::ast::Expr,
    pub ranges: Vec<RangeAggregation>,
}
