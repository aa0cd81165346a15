//! The syntax of a query.

use obs_model::{AttributeScope, FieldValue};

/// Where an attribute is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// `.key`: the span, its resource, events, links, instrumentation, in this order.
    Any,
    Of(AttributeScope),
}

/// What a span is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    Attribute { parent: bool, scope: Scope, key: String },
    Duration,
    Name,
    Status,
    StatusMessage,
    Kind,
    ChildCount,
    Parent,
    RootName,
    RootService,
    TraceDuration,
    TraceId,
    TraceStart,
    SpanId,
    ParentId,
    SpanStart,
    EventName,
    EventTimeSinceStart,
    LinkTraceId,
    LinkSpanId,
    InstrumentationName,
    InstrumentationVersion,
    NestedSetLeft,
    NestedSetRight,
    NestedSetParent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
    Regex,
    NotRegex,
    And,
    Or,
}

impl Op {
    pub(crate) const fn is_arithmetic(self) -> bool {
        matches!(self, Self::Add | Self::Sub | Self::Mul | Self::Div | Self::Mod | Self::Pow)
    }

    pub(crate) const fn is_comparison(self) -> bool {
        matches!(self, Self::Eq | Self::Ne | Self::Gt | Self::Ge | Self::Lt | Self::Le)
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
            Self::Eq => "=",
            Self::Ne => "!=",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
            Self::And => "&&",
            Self::Or => "||",
        }
    }
}

/// An expression over one span.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expr {
    Static(FieldValue<'static>),
    Field(Field),
    Not(Box<Self>),
    Neg(Box<Self>),
    Binary(Op, Box<Self>, Box<Self>),
}

/// How two sets of spans of a trace are related.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    Child,
    Parent,
    Descendant,
    Ancestor,
    Sibling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetOp {
    And,
    Or,
    /// `>`, `<`, `>>`, `<<`, `~`; with `not` as `!>`, with `union` as `&>`.
    Structural {
        relation: Relation,
        not: bool,
        union: bool,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SpansetExpr {
    /// `{ … }`; without an expression every span.
    Filter(Expr),
    Binary(SetOp, Box<Self>, Box<Self>),
    /// `( … | … )`
    Pipeline(Pipeline),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aggregate {
    Count,
    Min,
    Max,
    Avg,
    Sum,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scalar {
    Static(FieldValue<'static>),
    Aggregate(Aggregate, Option<Expr>),
    Binary(Op, Box<Self>, Box<Self>),
    Neg(Box<Self>),
    /// `(spanset | aggregate)`: read, and refused as Tempo refuses it.
    Pipeline,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Stage {
    Spansets(SpansetExpr),
    Scalar(Op, Scalar, Scalar),
    By(Expr),
    Coalesce,
    Select(Vec<Field>),
}

pub(crate) type Pipeline = Vec<Stage>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricKind {
    Rate,
    CountOverTime,
    MinOverTime,
    MaxOverTime,
    AvgOverTime,
    SumOverTime,
    QuantileOverTime,
    HistogramOverTime,
    Compare,
}

/// The step from spans to series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Metric {
    pub(crate) kind: MetricKind,
    /// What is measured, of those that measure something.
    pub(crate) of: Option<Field>,
    pub(crate) quantiles: Vec<f64>,
    pub(crate) by: Vec<Field>,
    /// Of `compare`: the selection, how many values an attribute shows, and its time range, Unix ns.
    pub(crate) selection: Option<Expr>,
    pub(crate) top: usize,
    pub(crate) range: Option<(i64, i64)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum SecondStage {
    TopK(usize),
    BottomK(usize),
    Filter(Op, f64),
}

/// `with (name = value)`.
pub(crate) type Hint = (String, FieldValue<'static>);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Query {
    pub(crate) pipeline: Pipeline,
    pub(crate) metric: Option<Metric>,
    pub(crate) second: Vec<SecondStage>,
    pub(crate) hints: Vec<Hint>,
}
