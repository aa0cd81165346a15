//! The syntax tree.

use crate::printer::{push_escaped, quoted};
use obs_model::Matcher;
use std::fmt::Write;

/// Byte range of a node in the query text; for error positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pos {
    pub start: usize,
    pub end: usize,
}

/// The type of an expression's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    Scalar,
    Vector,
    Matrix,
    String,
}

impl ValueType {
    /// Returns Prometheus' words for the type in error texts.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Vector => "instant vector",
            Self::Matrix => "range vector",
            Self::String => "string",
        }
    }
}

/// A text in quotes. Escapes can write bytes that are not UTF-8, which no label has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Literal {
    /// The text, with replacement characters for what is not UTF-8.
    pub text: String,
    /// The bytes, where they are not UTF-8.
    bytes: Option<Vec<u8>>,
}

impl From<String> for Literal {
    fn from(text: String) -> Self {
        Self { text, bytes: None }
    }
}

impl Literal {
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self { text, bytes: None },
            Err(e) => {
                let text = String::from_utf8_lossy(e.as_bytes()).into_owned();
                Self { text, bytes: Some(e.into_bytes()) }
            }
        }
    }

    /// Returns whether this can be a label's name: any UTF-8 that is not empty.
    pub(crate) fn is_label_name(&self) -> bool {
        self.bytes.is_none() && !self.text.is_empty()
    }

    /// Returns the text in double quotes, escaped as Go escapes it.
    pub(crate) fn quoted(&self) -> String {
        let Some(bytes) = &self.bytes else { return quoted(&self.text) };
        let mut out = String::from("\"");
        for chunk in bytes.utf8_chunks() {
            push_escaped(chunk.valid(), &mut out);
            for b in chunk.invalid() {
                let _ = write!(out, "\\x{b:02x}");
            }
        }
        out.push('"');
        out
    }
}

/// The `@` modifier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum At {
    /// Milliseconds.
    Time(i64),
    Start,
    End,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Selector {
    pub matchers: Vec<Matcher>,
    /// Whether the metric's name stands before the braces.
    pub is_named: bool,
    /// Milliseconds, positive into the past.
    pub offset_ms: i64,
    /// Set until the offset is known, when it depends on the query.
    pub offset_expr: Option<DurationExpr>,
    pub at: Option<At>,
    pub extension: Option<Extension>,
    pub pos: Pos,
}

/// How a selector looks past the edges of its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// Takes the last sample before the window for the value at its start.
    Anchored,
    /// Interpolates at both edges.
    Smoothed,
}

/// A duration that is computed, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub enum DurationExpr {
    Seconds(f64),
    /// `step()`: the query's step.
    Step,
    /// `range()`: from the query's start to its end.
    Range,
    Negate(Box<Self>),
    Binary(DurationOp, Box<Self>, Box<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurationOp {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Min,
    Max,
}

impl Selector {
    /// Returns the metric name, if an equality matcher names it.
    pub fn metric_name(&self) -> Option<&str> {
        let is_name =
            |m: &&Matcher| m.name == obs_model::METRIC_NAME && m.op == obs_model::MatchOp::Equal;
        self.matchers.iter().find(is_name).map(|m| m.value.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Atan2,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Unless,
    /// `</`: a histogram's observations below a value.
    TrimUpper,
    /// `>/`: a histogram's observations above a value.
    TrimLower,
}

impl BinaryOp {
    pub const fn is_comparison(self) -> bool {
        matches!(self, Self::Eq | Self::Ne | Self::Lt | Self::Le | Self::Gt | Self::Ge)
    }

    pub const fn is_trim(self) -> bool {
        matches!(self, Self::TrimUpper | Self::TrimLower)
    }

    pub const fn is_set(self) -> bool {
        matches!(self, Self::And | Self::Or | Self::Unless)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
            Self::Atan2 => "atan2",
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::And => "and",
            Self::Or => "or",
            Self::Unless => "unless",
            Self::TrimUpper => "</",
            Self::TrimLower => ">/",
        }
    }
}

/// Which side of a binary operation may repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cardinality {
    #[default]
    OneToOne,
    /// `group_left`.
    ManyToOne,
    /// `group_right`.
    OneToMany,
}

/// How the series of two vectors find each other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Matching {
    pub cardinality: Cardinality,
    /// True for `on`, false for `ignoring` (and for no clause, with no labels).
    pub on: bool,
    pub labels: Vec<String>,
    /// Labels that `group_left`/`group_right` copy from the "one" side.
    pub include: Vec<String>,
    /// Values that stand for a missing sample of the left and of the right side.
    pub fill_left: Option<f64>,
    pub fill_right: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AggregateOp {
    Sum,
    Avg,
    Min,
    Max,
    Count,
    Group,
    Stddev,
    Stdvar,
    Topk,
    Bottomk,
    Quantile,
    CountValues,
    Limitk,
    LimitRatio,
}

impl AggregateOp {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "sum" => Self::Sum,
            "avg" => Self::Avg,
            "min" => Self::Min,
            "max" => Self::Max,
            "count" => Self::Count,
            "group" => Self::Group,
            "stddev" => Self::Stddev,
            "stdvar" => Self::Stdvar,
            "topk" => Self::Topk,
            "bottomk" => Self::Bottomk,
            "quantile" => Self::Quantile,
            "count_values" => Self::CountValues,
            "limitk" => Self::Limitk,
            "limit_ratio" => Self::LimitRatio,
            _ => return None,
        })
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Avg => "avg",
            Self::Min => "min",
            Self::Max => "max",
            Self::Count => "count",
            Self::Group => "group",
            Self::Stddev => "stddev",
            Self::Stdvar => "stdvar",
            Self::Topk => "topk",
            Self::Bottomk => "bottomk",
            Self::Quantile => "quantile",
            Self::CountValues => "count_values",
            Self::Limitk => "limitk",
            Self::LimitRatio => "limit_ratio",
        }
    }

    /// Returns whether native histograms among the samples are passed over.
    pub const fn ignores_histograms(self) -> bool {
        matches!(
            self,
            Self::Min
                | Self::Max
                | Self::Stddev
                | Self::Stdvar
                | Self::Topk
                | Self::Bottomk
                | Self::Quantile
        )
    }

    /// Returns the type of the parameter before the vector, if the operator takes one.
    pub const fn parameter(self) -> Option<ValueType> {
        match self {
            Self::Topk | Self::Bottomk | Self::Quantile | Self::Limitk | Self::LimitRatio => {
                Some(ValueType::Scalar)
            }
            Self::CountValues => Some(ValueType::String),
            _ => None,
        }
    }
}

/// `by` or `without` and its labels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grouping {
    pub without: bool,
    pub labels: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    Number(f64, Pos),
    String(Literal, Pos),
    Selector(Selector),
    /// A selector with a range in milliseconds.
    Matrix {
        selector: Selector,
        range_ms: i64,
        /// Set until the range is known, when it depends on the query.
        range_expr: Option<DurationExpr>,
        pos: Pos,
    },
    Subquery {
        expr: Box<Self>,
        range_ms: i64,
        step_ms: Option<i64>,
        offset_ms: i64,
        range_expr: Option<DurationExpr>,
        step_expr: Option<DurationExpr>,
        offset_expr: Option<DurationExpr>,
        at: Option<At>,
        pos: Pos,
    },
    Paren(Box<Self>),
    /// Unary minus.
    Negate(Box<Self>, Pos),
    Binary {
        op: BinaryOp,
        lhs: Box<Self>,
        rhs: Box<Self>,
        bool_modifier: bool,
        matching: Matching,
        pos: Pos,
    },
    Aggregate {
        op: AggregateOp,
        expr: Box<Self>,
        param: Option<Box<Self>>,
        grouping: Grouping,
        pos: Pos,
    },
    Call {
        function: &'static Function,
        args: Vec<Self>,
        pos: Pos,
    },
}

impl Expr {
    pub fn pos(&self) -> Pos {
        match self {
            Self::Number(_, pos)
            | Self::String(_, pos)
            | Self::Matrix { pos, .. }
            | Self::Subquery { pos, .. }
            | Self::Negate(_, pos)
            | Self::Binary { pos, .. }
            | Self::Aggregate { pos, .. }
            | Self::Call { pos, .. } => *pos,
            Self::Selector(s) => s.pos,
            Self::Paren(inner) => inner.pos(),
        }
    }

    pub fn value_type(&self) -> ValueType {
        match self {
            Self::Number(..) => ValueType::Scalar,
            Self::String(..) => ValueType::String,
            Self::Selector(_) | Self::Aggregate { .. } => ValueType::Vector,
            Self::Matrix { .. } | Self::Subquery { .. } => ValueType::Matrix,
            Self::Paren(e) | Self::Negate(e, _) => e.value_type(),
            Self::Binary { lhs, rhs, .. } => {
                let scalar = |e: &Self| e.value_type() == ValueType::Scalar;
                if scalar(lhs) && scalar(rhs) { ValueType::Scalar } else { ValueType::Vector }
            }
            Self::Call { function, .. } => function.returns,
        }
    }

    /// Returns the expression inside any parentheses.
    pub fn unwrap_parens(&self) -> &Self {
        match self {
            Self::Paren(inner) => inner.unwrap_parens(),
            other => other,
        }
    }
}

/// A function's signature.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: &'static str,
    pub args: &'static [ValueType],
    /// How many of the last arguments may be left out; `usize::MAX` means the last one repeats.
    pub optional: usize,
    pub returns: ValueType,
}

const S: ValueType = ValueType::Scalar;
const V: ValueType = ValueType::Vector;
const M: ValueType = ValueType::Matrix;
const T: ValueType = ValueType::String;
/// The last argument may repeat any number of times, also none.
pub const VARIADIC: usize = usize::MAX;

macro_rules! functions {
    ($($name:literal ($($arg:expr),*) $(opt $opt:expr)? => $ret:expr;)*) => {
        /// Every supported function, sorted by name.
        pub static FUNCTIONS: &[Function] = &[
            $(Function { name: $name, args: &[$($arg),*], optional: 0 $(+ $opt)?, returns: $ret },)*
        ];
    };
}

functions! {
    "abs"(V) => V; "absent"(V) => V; "absent_over_time"(M) => V; "acos"(V) => V; "acosh"(V) => V;
    "asin"(V) => V; "asinh"(V) => V; "atan"(V) => V; "atanh"(V) => V; "avg_over_time"(M) => V;
    "ceil"(V) => V; "changes"(M) => V; "clamp"(V, S, S) => V; "clamp_max"(V, S) => V;
    "clamp_min"(V, S) => V; "cos"(V) => V; "cosh"(V) => V; "count_over_time"(M) => V;
    "day_of_month"(V) opt 1 => V; "day_of_week"(V) opt 1 => V; "day_of_year"(V) opt 1 => V;
    "days_in_month"(V) opt 1 => V; "deg"(V) => V; "delta"(M) => V; "deriv"(M) => V;
    "double_exponential_smoothing"(M, S, S) => V; "end"() => S; "exp"(V) => V; "first_over_time"(M) => V;
    "floor"(V) => V; "histogram_avg"(V) => V; "histogram_count"(V) => V;
    "histogram_fraction"(S, S, V) => V; "histogram_quantile"(S, V) => V;
    "histogram_quantiles"(V, T, S) opt VARIADIC => V; "histogram_stddev"(V) => V;
    "histogram_stdvar"(V) => V; "histogram_sum"(V) => V; "hour"(V) opt 1 => V; "idelta"(M) => V;
    "increase"(M) => V; "info"(V, V) opt 1 => V; "irate"(M) => V; "label_join"(V, T, T, T) opt VARIADIC => V;
    "label_replace"(V, T, T, T, T) => V; "last_over_time"(M) => V; "ln"(V) => V; "log10"(V) => V;
    "log2"(V) => V; "mad_over_time"(M) => V; "max_over_time"(M) => V; "min_over_time"(M) => V;
    "minute"(V) opt 1 => V; "month"(V) opt 1 => V; "pi"() => S; "predict_linear"(M, S) => V;
    "present_over_time"(M) => V; "quantile_over_time"(S, M) => V; "rad"(V) => V; "range"() => S; "rate"(M) => V;
    "resets"(M) => V; "round"(V, S) opt 1 => V; "scalar"(V) => S; "sgn"(V) => V; "sin"(V) => V;
    "sinh"(V) => V; "sort"(V) => V; "sort_by_label"(V, T) opt VARIADIC => V;
    "sort_by_label_desc"(V, T) opt VARIADIC => V; "sort_desc"(V) => V; "sqrt"(V) => V; "start"() => S;
    "stddev_over_time"(M) => V; "stdvar_over_time"(M) => V; "step"() => S; "sum_over_time"(M) => V; "tan"(V) => V;
    "tanh"(V) => V; "time"() => S; "timestamp"(V) => V; "ts_of_first_over_time"(M) => V;
    "ts_of_last_over_time"(M) => V; "ts_of_max_over_time"(M) => V; "ts_of_min_over_time"(M) => V;
    "vector"(S) => V; "year"(V) opt 1 => V;
}

impl Function {
    /// Returns whether Prometheus has the function behind `promql-experimental-functions`.
    pub fn is_experimental(&self) -> bool {
        const NAMES: [&str; 15] = [
            "double_exponential_smoothing",
            "end",
            "first_over_time",
            "histogram_quantiles",
            "info",
            "mad_over_time",
            "range",
            "sort_by_label",
            "sort_by_label_desc",
            "start",
            "step",
            "ts_of_first_over_time",
            "ts_of_last_over_time",
            "ts_of_max_over_time",
            "ts_of_min_over_time",
        ];
        NAMES.contains(&self.name)
    }

    pub fn find(name: &str) -> Option<&'static Self> {
        FUNCTIONS.iter().find(|f| f.name == name)
    }
}
