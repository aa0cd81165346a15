//! What a query must satisfy beyond its syntax: operands of one type, filters that are true or
//! false, aggregates over something that spans have.

use crate::ParseError;
use crate::ast::{
    Aggregate, Expr, Field, Metric, MetricKind, Op, Pipeline, Query, Scalar, SpansetExpr, Stage,
};
use obs_model::{FieldValue, go_regex};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    /// Known once a span is looked at.
    Attribute,
    Nil,
    Bool,
    Int,
    Float,
    Duration,
    Str,
    Status,
    Kind,
}

type Checked<T> = Result<T, ParseError>;

fn fail<T>(message: impl Into<String>) -> Checked<T> {
    Err(ParseError::plain(message.into()))
}

const fn of_value(v: &FieldValue<'_>) -> Type {
    match v {
        FieldValue::Nil => Type::Nil,
        FieldValue::Bool(_) => Type::Bool,
        FieldValue::Int(_) => Type::Int,
        FieldValue::Float(_) => Type::Float,
        FieldValue::Duration(_) => Type::Duration,
        FieldValue::Str(_) => Type::Str,
        FieldValue::Status(_) => Type::Status,
        FieldValue::Kind(_) => Type::Kind,
        FieldValue::List(_) => Type::Attribute,
    }
}

const fn of_field(f: &Field) -> Type {
    match f {
        Field::Attribute { .. } => Type::Attribute,
        Field::Duration | Field::TraceDuration | Field::EventTimeSinceStart => Type::Duration,
        Field::Status => Type::Status,
        Field::Kind => Type::Kind,
        Field::Parent => Type::Nil,
        Field::ChildCount
        | Field::NestedSetLeft
        | Field::NestedSetRight
        | Field::NestedSetParent
        | Field::TraceStart
        | Field::SpanStart => Type::Int,
        _ => Type::Str,
    }
}

impl Type {
    const fn is_numeric(self) -> bool {
        matches!(self, Self::Int | Self::Float | Self::Duration | Self::Attribute)
    }

    fn matches(self, other: Self) -> bool {
        let open = |t| matches!(t, Self::Attribute | Self::Nil);
        open(self) || open(other) || self == other || (self.is_numeric() && other.is_numeric())
    }

    const fn takes(self, op: Op) -> bool {
        match self {
            Self::Attribute => true,
            Self::Bool => matches!(op, Op::And | Op::Or | Op::Eq | Op::Ne),
            Self::Int | Self::Float | Self::Duration => op.is_arithmetic() || op.is_comparison(),
            Self::Str => op.is_comparison() || matches!(op, Op::Regex | Op::NotRegex),
            Self::Nil | Self::Status | Self::Kind => matches!(op, Op::Eq | Op::Ne),
        }
    }
}

fn refers_to_span(e: &Expr) -> bool {
    match e {
        Expr::Static(_) => false,
        Expr::Field(_) => true,
        Expr::Not(e) | Expr::Neg(e) => refers_to_span(e),
        Expr::Binary(_, a, b) => refers_to_span(a) || refers_to_span(b),
    }
}

fn expr(e: &Expr) -> Checked<Type> {
    match e {
        Expr::Static(v) => Ok(of_value(v)),
        Expr::Field(f) => Ok(of_field(f)),
        Expr::Not(inner) => match expr(inner)? {
            Type::Bool | Type::Attribute => Ok(Type::Bool),
            _ => fail("illegal operation for the given type: !"),
        },
        Expr::Neg(inner) => match expr(inner)? {
            t if t.is_numeric() => Ok(t),
            _ => fail("illegal operation for the given type: -"),
        },
        Expr::Binary(op, a, b) => {
            let (ta, tb) = (expr(a)?, expr(b)?);
            if !ta.matches(tb) {
                return fail(format!(
                    "binary operations must operate on the same type: {}",
                    op.as_str()
                ));
            }
            if !ta.takes(*op) || !tb.takes(*op) {
                return fail(format!("illegal operation for the given types: {}", op.as_str()));
            }
            if matches!(op, Op::Regex | Op::NotRegex) {
                let Expr::Static(FieldValue::Str(pattern)) = &**b else {
                    return fail("a regular expression must be a string");
                };
                go_regex(&format!("^(?:{pattern})$"))
                    .map_err(|e| ParseError::plain(format!("invalid regular expression: {e}")))?;
            }
            Ok(if !op.is_arithmetic() {
                Type::Bool
            } else if ta == Type::Attribute {
                tb
            } else {
                ta
            })
        }
    }
}

fn filter(e: &Expr) -> Checked<()> {
    match expr(e)? {
        Type::Bool | Type::Attribute => Ok(()),
        _ => fail("span filter field expressions must resolve to a boolean"),
    }
}

fn spansets(e: &SpansetExpr) -> Checked<()> {
    match e {
        SpansetExpr::Filter(f) => filter(f),
        SpansetExpr::Binary(_, a, b) => spansets(a).and_then(|()| spansets(b)),
        SpansetExpr::Pipeline(p) => pipeline(p),
    }
}

fn scalar(s: &Scalar) -> Checked<Type> {
    match s {
        Scalar::Static(v) => Ok(of_value(v)),
        Scalar::Pipeline => fail("scalar pipelines are not supported"),
        Scalar::Neg(inner) => scalar(inner),
        Scalar::Aggregate(Aggregate::Count, _) => Ok(Type::Int),
        Scalar::Aggregate(_, None) => fail("aggregate needs a field"),
        Scalar::Aggregate(kind, Some(of)) => {
            let t = expr(of)?;
            if !t.is_numeric() {
                return fail("aggregate field expressions must resolve to a number type");
            }
            if !refers_to_span(of) {
                return fail("aggregate field expressions must reference the span");
            }
            Ok(if *kind == Aggregate::Avg && t == Type::Int { Type::Float } else { t })
        }
        Scalar::Binary(op, a, b) => {
            let (ta, tb) = (scalar(a)?, scalar(b)?);
            if !ta.matches(tb) || !ta.takes(*op) || !tb.takes(*op) {
                return fail(format!("illegal operation for the given types: {}", op.as_str()));
            }
            Ok(ta)
        }
    }
}

fn pipeline(p: &Pipeline) -> Checked<()> {
    p.iter().try_for_each(|stage| match stage {
        Stage::Spansets(e) => spansets(e),
        Stage::Scalar(op, a, b) => {
            let (ta, tb) = (scalar(a)?, scalar(b)?);
            if !ta.matches(tb) || !ta.takes(*op) || !tb.takes(*op) {
                return fail(format!("illegal operation for the given types: {}", op.as_str()));
            }
            Ok(())
        }
        Stage::By(e) => {
            expr(e)?;
            if refers_to_span(e) {
                Ok(())
            } else {
                fail("grouping field expressions must reference the span")
            }
        }
        Stage::Coalesce | Stage::Select(_) => Ok(()),
    })
}

fn metric(m: &Metric) -> Checked<()> {
    const BY_MAX: usize = 5;
    if m.by.len() > BY_MAX {
        return fail(format!("currently only {BY_MAX} group by attributes are supported"));
    }
    if let Some(of) = &m.of
        && !of_field(of).is_numeric()
    {
        return fail("metrics need a number or a duration");
    }
    if m.quantiles.iter().any(|q| !(0.0..=1.0).contains(q)) {
        return fail("quantile must be between 0 and 1");
    }
    if let (MetricKind::Compare, Some(selection)) = (m.kind, &m.selection) {
        filter(selection)?;
        if m.top == 0 {
            return fail("compare() top number of values must be greater than 0");
        }
        if let Some((start, end)) = m.range
            && start >= end
        {
            return fail("compare() end timestamp must be greater than start timestamp");
        }
    }
    Ok(())
}

pub(crate) fn check(q: &Query) -> Checked<()> {
    pipeline(&q.pipeline)?;
    q.metric.as_ref().map_or(Ok(()), metric)
}
