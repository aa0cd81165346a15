//! Expressions over one span: compiled to places in the list of wanted fields, then evaluated.

use crate::ast::{Expr, Field, Op, Scope};
use obs_model::{AttributeScope, FieldValue, SpanField, go_regex};
use regex::Regex;
use std::cmp::Ordering;

/// What a span is asked for, once it is known where that comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wanted {
    /// A field that the store reads.
    Stored(usize),
    /// The same field of the parent span.
    OfParent(usize),
    Duration,
    SpanId,
    ParentId,
    TraceId,
    SpanStart,
    /// Whether the span has no parent: −1 or 1, as numbers of a nested set begin.
    RootMark,
    /// The rest needs the trace.
    Parent,
    ChildCount,
    RootName,
    RootService,
    TraceDuration,
    TraceStart,
    NestedSetLeft,
    NestedSetRight,
    NestedSetParent,
}

impl Wanted {
    /// Whether a span alone cannot tell.
    pub(crate) const fn needs_trace(self) -> bool {
        !matches!(
            self,
            Self::Stored(_)
                | Self::Duration
                | Self::SpanId
                | Self::ParentId
                | Self::TraceId
                | Self::SpanStart
                | Self::RootMark
        )
    }
}

/// The fields that a query reads of each span.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    pub(crate) stored: Vec<SpanField>,
}

impl Fields {
    fn place(&mut self, f: SpanField) -> usize {
        self.stored.iter().position(|x| *x == f).unwrap_or_else(|| {
            self.stored.push(f);
            self.stored.len() - 1
        })
    }

    pub(crate) fn want(&mut self, f: &Field) -> Wanted {
        let stored = match f {
            Field::Duration => return Wanted::Duration,
            Field::SpanId => return Wanted::SpanId,
            Field::ParentId => return Wanted::ParentId,
            Field::TraceId => return Wanted::TraceId,
            Field::SpanStart => return Wanted::SpanStart,
            Field::ChildCount => return Wanted::ChildCount,
            Field::Parent => return Wanted::Parent,
            Field::TraceDuration => return Wanted::TraceDuration,
            Field::TraceStart => return Wanted::TraceStart,
            Field::NestedSetLeft => return Wanted::NestedSetLeft,
            Field::NestedSetRight => return Wanted::NestedSetRight,
            Field::NestedSetParent => return Wanted::NestedSetParent,
            Field::RootName => {
                self.place(SpanField::Name);
                return Wanted::RootName;
            }
            Field::RootService => {
                self.place(SpanField::Service);
                return Wanted::RootService;
            }
            Field::Attribute { parent, scope, key } => {
                let field = match scope {
                    Scope::Any => SpanField::AnyAttribute(key.clone()),
                    Scope::Of(s) => SpanField::Attribute(*s, key.clone()),
                };
                let at = self.place(field);
                return if *parent { Wanted::OfParent(at) } else { Wanted::Stored(at) };
            }
            Field::Name => SpanField::Name,
            Field::Status => SpanField::Status,
            Field::StatusMessage => SpanField::StatusMessage,
            Field::Kind => SpanField::Kind,
            Field::EventName => SpanField::EventNames,
            Field::EventTimeSinceStart => SpanField::EventTimes,
            Field::LinkTraceId => SpanField::LinkTraces,
            Field::LinkSpanId => SpanField::LinkSpans,
            Field::InstrumentationName => SpanField::ScopeName,
            Field::InstrumentationVersion => SpanField::ScopeVersion,
        };
        Wanted::Stored(self.place(stored))
    }
}

/// Returns how a field is written in answers: `resource.service.name`, `.key`, `status`.
pub(crate) fn spelled(f: &Field) -> String {
    let plain = match f {
        Field::Attribute { parent, scope, key } => {
            let prefix = if *parent { "parent" } else { "" };
            let scope = match scope {
                Scope::Any => "",
                Scope::Of(s) => scope_name(*s),
            };
            let dot = if prefix.is_empty() || scope.is_empty() { "" } else { "." };
            return format!("{prefix}{dot}{scope}.{key}");
        }
        Field::Duration => "duration",
        Field::Name => "name",
        Field::Status => "status",
        Field::StatusMessage => "statusMessage",
        Field::Kind => "kind",
        Field::ChildCount => "childCount",
        Field::Parent => "parent",
        Field::RootName => "rootName",
        Field::RootService => "rootServiceName",
        Field::TraceDuration => "traceDuration",
        Field::TraceId => "trace:id",
        Field::TraceStart => "trace:start",
        Field::SpanId => "span:id",
        Field::ParentId => "span:parentID",
        Field::SpanStart => "span:start",
        Field::EventName => "event:name",
        Field::EventTimeSinceStart => "event:timeSinceStart",
        Field::LinkTraceId => "link:traceID",
        Field::LinkSpanId => "link:spanID",
        Field::InstrumentationName => "instrumentation:name",
        Field::InstrumentationVersion => "instrumentation:version",
        Field::NestedSetLeft => "nestedSetLeft",
        Field::NestedSetRight => "nestedSetRight",
        Field::NestedSetParent => "nestedSetParent",
    };
    plain.to_owned()
}

pub(crate) const fn scope_name(s: AttributeScope) -> &'static str {
    match s {
        AttributeScope::Span => "span",
        AttributeScope::Resource => "resource",
        AttributeScope::Event => "event",
        AttributeScope::Link => "link",
        AttributeScope::Instrumentation => "instrumentation",
    }
}

/// A compiled expression.
#[derive(Debug)]
pub(crate) enum Node {
    Constant(FieldValue<'static>),
    Read(Wanted),
    Not(Box<Self>),
    Neg(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    IsNil(Box<Self>, bool),
    /// Whether it must match, or must not.
    Regex(Box<Self>, Regex, bool),
    Binary(Op, Box<Self>, Box<Self>),
}

/// Answers what a span is asked for.
pub(crate) trait Env {
    fn read(&self, w: Wanted) -> FieldValue<'_>;
}

fn is_root_test(op: Op, a: &Expr, b: &Expr) -> bool {
    let parent = matches!(a, Expr::Field(Field::NestedSetParent));
    let Expr::Static(FieldValue::Int(n)) = b else { return false };
    parent && matches!((op, n), (Op::Lt | Op::Ge, 0) | (Op::Le | Op::Eq | Op::Ne | Op::Gt, -1))
}

impl Node {
    pub(crate) fn compile(e: &Expr, fields: &mut Fields) -> Self {
        match e {
            Expr::Static(v) => Self::Constant(v.clone()),
            Expr::Field(f) => Self::Read(fields.want(f)),
            Expr::Not(inner) => Self::Not(Box::new(Self::compile(inner, fields))),
            Expr::Neg(inner) => Self::Neg(Box::new(Self::compile(inner, fields))),
            // Whether a span is a root is all that pages ask of nested sets; that needs no trace.
            Expr::Binary(op, a, b) if is_root_test(*op, a, b) => Self::Binary(
                *op,
                Box::new(Self::Read(Wanted::RootMark)),
                Box::new(Self::compile(b, fields)),
            ),
            Expr::Binary(op, a, b) => {
                let is_nil = |e: &Expr| matches!(e, Expr::Static(FieldValue::Nil));
                let (na, nb) = (Self::compile(a, fields), Self::compile(b, fields));
                let (na, nb) = (Box::new(na), Box::new(nb));
                match op {
                    Op::And => Self::And(na, nb),
                    Op::Or => Self::Or(na, nb),
                    Op::Eq | Op::Ne if is_nil(b) => Self::IsNil(na, *op == Op::Eq),
                    Op::Eq | Op::Ne if is_nil(a) => Self::IsNil(nb, *op == Op::Eq),
                    Op::Regex | Op::NotRegex => {
                        let pattern = match &**b {
                            Expr::Static(FieldValue::Str(s)) => s.as_ref(),
                            _ => "",
                        };
                        match go_regex(&format!("^(?:{pattern})$")) {
                            Ok(r) => Self::Regex(na, r, *op == Op::Regex),
                            // The type check refused it.
                            Err(_) => Self::Constant(FieldValue::Bool(false)),
                        }
                    }
                    op => Self::Binary(*op, na, nb),
                }
            }
        }
    }

    /// Calls `f` with everything that is read.
    pub(crate) fn reads(&self, f: &mut dyn FnMut(Wanted)) {
        match self {
            Self::Constant(_) => {}
            Self::Read(w) => f(*w),
            Self::Not(a) | Self::Neg(a) | Self::IsNil(a, _) | Self::Regex(a, ..) => a.reads(f),
            Self::And(a, b) | Self::Or(a, b) | Self::Binary(_, a, b) => {
                a.reads(f);
                b.reads(f);
            }
        }
    }

    pub(crate) fn needs_trace(&self) -> bool {
        let mut needs = false;
        self.reads(&mut |w| needs |= w.needs_trace());
        needs
    }

    pub(crate) fn holds(&self, env: &dyn Env) -> bool {
        match self {
            Self::And(a, b) => a.holds(env) && b.holds(env),
            Self::Or(a, b) => a.holds(env) || b.holds(env),
            other => other.value(env) == FieldValue::Bool(true),
        }
    }

    pub(crate) fn value<'a>(&'a self, env: &'a dyn Env) -> FieldValue<'a> {
        match self {
            Self::Constant(v) => v.lend(),
            Self::Read(w) => env.read(*w),
            Self::Not(a) => match a.value(env) {
                FieldValue::Bool(b) => FieldValue::Bool(!b),
                _ => FieldValue::Nil,
            },
            Self::Neg(a) => match a.value(env) {
                FieldValue::Int(i) => FieldValue::Int(i.wrapping_neg()),
                FieldValue::Float(f) => FieldValue::Float(-f),
                FieldValue::Duration(d) => FieldValue::Duration(d.wrapping_neg()),
                _ => FieldValue::Nil,
            },
            Self::And(..) | Self::Or(..) => FieldValue::Bool(self.holds(env)),
            Self::IsNil(a, wanted) => FieldValue::Bool(a.value(env).is_nil() == *wanted),
            Self::Regex(a, r, wanted) => {
                let one = |v: &FieldValue<'_>| matches!(v, FieldValue::Str(s) if r.is_match(s) == *wanted);
                FieldValue::Bool(match a.value(env) {
                    FieldValue::List(l) if *wanted => l.iter().any(one),
                    FieldValue::List(l) => l.iter().all(one),
                    v => one(&v),
                })
            }
            Self::Binary(op, a, b) => binary(*op, a.value(env), b.value(env)),
        }
    }
}

pub(crate) fn binary<'a>(op: Op, a: FieldValue<'a>, b: FieldValue<'a>) -> FieldValue<'a> {
    if op.is_arithmetic() { arithmetic(op, &a, &b) } else { FieldValue::Bool(compare(op, &a, &b)) }
}

/// Compares; values of different types, and absent ones, are neither equal nor unequal. Of a list
/// any element must satisfy the comparison, of `!=` every element.
fn compare(op: Op, a: &FieldValue<'_>, b: &FieldValue<'_>) -> bool {
    match (a, b) {
        (FieldValue::List(l), other) if !matches!(other, FieldValue::List(_)) => {
            let mut each = l.iter().map(|x| compare(op, x, other));
            return if op == Op::Ne { each.all(|x| x) } else { each.any(|x| x) };
        }
        (other, FieldValue::List(l)) if !matches!(other, FieldValue::List(_)) => {
            let mut each = l.iter().map(|x| compare(op, other, x));
            return if op == Op::Ne { each.all(|x| x) } else { each.any(|x| x) };
        }
        _ => {}
    }
    let order = match (a, b) {
        (
            FieldValue::Int(x) | FieldValue::Duration(x),
            FieldValue::Int(y) | FieldValue::Duration(y),
        ) => Some(x.cmp(y)),
        (FieldValue::Str(x), FieldValue::Str(y)) => Some(x.cmp(y)),
        (FieldValue::Bool(x), FieldValue::Bool(y)) => Some(x.cmp(y)),
        (FieldValue::Status(x), FieldValue::Status(y)) => Some(x.cmp(y)),
        (FieldValue::Kind(x), FieldValue::Kind(y)) => Some(x.to_otlp().cmp(&y.to_otlp())),
        (FieldValue::List(_), FieldValue::List(_)) => Some(a.total_cmp(b)),
        _ => match (a.as_f64(), b.as_f64()) {
            (Some(x), Some(y)) => {
                if op == Op::Ne && (x.is_nan() || y.is_nan()) {
                    return true;
                }
                x.partial_cmp(&y)
            }
            _ => None,
        },
    };
    order.is_some_and(|o| match op {
        Op::Eq => o == Ordering::Equal,
        Op::Ne => o != Ordering::Equal,
        Op::Gt => o == Ordering::Greater,
        Op::Ge => o != Ordering::Less,
        Op::Lt => o == Ordering::Less,
        Op::Le => o != Ordering::Greater,
        _ => false,
    })
}

fn arithmetic<'a>(op: Op, a: &FieldValue<'a>, b: &FieldValue<'a>) -> FieldValue<'a> {
    if let (FieldValue::Int(x), FieldValue::Int(y)) = (a, b) {
        let result = match op {
            Op::Add => x.checked_add(*y),
            Op::Sub => x.checked_sub(*y),
            Op::Mul => x.checked_mul(*y),
            Op::Div => x.checked_div(*y),
            Op::Mod => x.checked_rem(*y),
            _ => u32::try_from(*y).ok().and_then(|p| x.checked_pow(p)),
        };
        if let Some(i) = result {
            return FieldValue::Int(i);
        }
        if *y == 0 {
            return FieldValue::Nil;
        }
    }
    let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else { return FieldValue::Nil };
    let result = match op {
        Op::Add => x + y,
        Op::Sub => x - y,
        Op::Mul => x * y,
        Op::Div => x / y,
        Op::Mod => x % y,
        _ => x.powf(y),
    };
    FieldValue::Float(result)
}
