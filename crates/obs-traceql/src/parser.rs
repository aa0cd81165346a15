//! From text to [`Query`]: recursive descent over the grammar of Tempo's reference.

use crate::ParseError;
use crate::ast::{
    Aggregate, Expr, Field, Hint, Metric, MetricKind, Op, Pipeline, Query, Relation, Scalar, Scope,
    SecondStage, SetOp, SpansetExpr, Stage,
};
use crate::lexer::{Placed, Token, fault, lex};
use obs_model::{AttributeScope, FieldValue, SpanKind, StatusCode};

type Parsed<T> = Result<T, ParseError>;

/// Brackets within brackets; a query of thousands would end the stack.
const DEPTH_MAX: usize = 100;

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Placed>,
    at: usize,
    depth: usize,
}

/// Parses a query.
pub(crate) fn parse(text: &str) -> Parsed<Query> {
    let mut p = Parser { text, tokens: lex(text)?, at: 0, depth: 0 };
    let query = p.query()?;
    if *p.peek() != Token::End {
        return Err(p.unexpected());
    }
    Ok(query)
}

fn describe(t: &Token) -> String {
    match t {
        Token::Ident(i) => i.clone(),
        Token::Int(_) => "INTEGER".into(),
        Token::Float(_) => "FLOAT".into(),
        Token::Duration(_) => "DURATION".into(),
        Token::String(_) => "STRING".into(),
        Token::Attribute(..) => "IDENTIFIER".into(),
        Token::Scoped(scope, name) => format!("{scope}:{name}"),
        Token::Op(op) => (*op).to_owned(),
        Token::End => "$end".into(),
    }
}

/// Comparison of spans' fields by name of the token; the precedence, higher binds tighter.
fn binary(token: &Token) -> Option<(Op, u8)> {
    let Token::Op(op) = token else { return None };
    Some(match *op {
        "&&" => (Op::And, 1),
        "||" => (Op::Or, 1),
        "=" => (Op::Eq, 2),
        "!=" => (Op::Ne, 2),
        ">" => (Op::Gt, 2),
        ">=" => (Op::Ge, 2),
        "<" => (Op::Lt, 2),
        "<=" => (Op::Le, 2),
        "=~" => (Op::Regex, 2),
        "!~" => (Op::NotRegex, 2),
        "+" => (Op::Add, 3),
        "-" => (Op::Sub, 3),
        "*" => (Op::Mul, 5),
        "/" => (Op::Div, 5),
        "%" => (Op::Mod, 5),
        "^" => (Op::Pow, 6),
        _ => return None,
    })
}

fn structural(token: &Token) -> Option<(SetOp, u8)> {
    let Token::Op(op) = token else { return None };
    let relation = |text: &str| {
        Some(match text {
            ">" => Relation::Child,
            "<" => Relation::Parent,
            ">>" => Relation::Descendant,
            "<<" => Relation::Ancestor,
            "~" => Relation::Sibling,
            _ => return None,
        })
    };
    match *op {
        "&&" => return Some((SetOp::And, 1)),
        "||" => return Some((SetOp::Or, 1)),
        _ => {}
    }
    let (not, union) = (op.starts_with('!'), op.starts_with('&'));
    let relation = relation(op.trim_start_matches(['!', '&']))?;
    Some((SetOp::Structural { relation, not, union }, 2))
}

fn intrinsic(name: &str) -> Option<Field> {
    Some(match name {
        "duration" => Field::Duration,
        "childCount" => Field::ChildCount,
        "name" => Field::Name,
        "status" => Field::Status,
        "statusMessage" => Field::StatusMessage,
        "kind" => Field::Kind,
        "parent" => Field::Parent,
        "rootName" => Field::RootName,
        "rootServiceName" => Field::RootService,
        "traceDuration" => Field::TraceDuration,
        "nestedSetLeft" => Field::NestedSetLeft,
        "nestedSetRight" => Field::NestedSetRight,
        "nestedSetParent" => Field::NestedSetParent,
        _ => return None,
    })
}

fn scoped_intrinsic(scope: &str, name: &str) -> Option<Field> {
    Some(match (scope, name) {
        ("trace", "duration") => Field::TraceDuration,
        ("trace", "rootName") => Field::RootName,
        ("trace", "rootService") => Field::RootService,
        ("trace", "id") => Field::TraceId,
        ("trace", "start") => Field::TraceStart,
        ("span", "duration") => Field::Duration,
        ("span", "name") => Field::Name,
        ("span", "kind") => Field::Kind,
        ("span", "status") => Field::Status,
        ("span", "statusMessage") => Field::StatusMessage,
        ("span", "id") => Field::SpanId,
        ("span", "parentID") => Field::ParentId,
        ("span", "childCount") => Field::ChildCount,
        ("span", "start") => Field::SpanStart,
        ("event", "name") => Field::EventName,
        ("event", "timeSinceStart") => Field::EventTimeSinceStart,
        ("link", "traceID") => Field::LinkTraceId,
        ("link", "spanID") => Field::LinkSpanId,
        ("instrumentation", "name") => Field::InstrumentationName,
        ("instrumentation", "version") => Field::InstrumentationVersion,
        _ => return None,
    })
}

/// Returns the field that a word or attribute names, as the tag APIs and `by` write it.
pub(crate) fn field(text: &str) -> Option<Field> {
    let tokens = lex(text).ok()?;
    match tokens.as_slice() {
        [(first, 0), (Token::End, _)] => field_token(first),
        _ => None,
    }
}

fn field_token(t: &Token) -> Option<Field> {
    match t {
        Token::Ident(name) => intrinsic(name),
        Token::Scoped(scope, name) => scoped_intrinsic(scope, name),
        Token::Attribute(scope, key) => {
            let (parent, rest) = match scope.strip_prefix("parent") {
                Some(rest) => (true, rest.trim_start_matches('.')),
                None => (false, *scope),
            };
            let scope = match rest {
                "span" => Scope::Of(AttributeScope::Span),
                "resource" => Scope::Of(AttributeScope::Resource),
                "event" => Scope::Of(AttributeScope::Event),
                "link" => Scope::Of(AttributeScope::Link),
                "instrumentation" => Scope::Of(AttributeScope::Instrumentation),
                _ => Scope::Any,
            };
            Some(Field::Attribute { parent, scope, key: key.clone() })
        }
        _ => None,
    }
}

fn constant(word: &str) -> Option<FieldValue<'static>> {
    Some(match word {
        "true" => FieldValue::Bool(true),
        "false" => FieldValue::Bool(false),
        "nil" => FieldValue::Nil,
        "ok" => FieldValue::Status(StatusCode::Ok),
        "error" => FieldValue::Status(StatusCode::Error),
        "unset" => FieldValue::Status(StatusCode::Unset),
        "unspecified" => FieldValue::Kind(SpanKind::Unspecified),
        "internal" => FieldValue::Kind(SpanKind::Internal),
        "server" => FieldValue::Kind(SpanKind::Server),
        "client" => FieldValue::Kind(SpanKind::Client),
        "producer" => FieldValue::Kind(SpanKind::Producer),
        "consumer" => FieldValue::Kind(SpanKind::Consumer),
        _ => return None,
    })
}

fn aggregate(word: &str) -> Option<Aggregate> {
    Some(match word {
        "count" => Aggregate::Count,
        "min" => Aggregate::Min,
        "max" => Aggregate::Max,
        "avg" => Aggregate::Avg,
        "sum" => Aggregate::Sum,
        _ => return None,
    })
}

fn metric_kind(word: &str) -> Option<MetricKind> {
    Some(match word {
        "rate" => MetricKind::Rate,
        "count_over_time" => MetricKind::CountOverTime,
        "min_over_time" => MetricKind::MinOverTime,
        "max_over_time" => MetricKind::MaxOverTime,
        "avg_over_time" => MetricKind::AvgOverTime,
        "sum_over_time" => MetricKind::SumOverTime,
        "quantile_over_time" => MetricKind::QuantileOverTime,
        "histogram_over_time" => MetricKind::HistogramOverTime,
        "compare" => MetricKind::Compare,
        _ => return None,
    })
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |t| &t.0)
    }

    fn peek_at(&self, ahead: usize) -> &Token {
        self.tokens.get(self.at + ahead).map_or(&Token::End, |t| &t.0)
    }

    fn next(&mut self) -> Token {
        let t = self.peek().clone();
        self.at += 1;
        t
    }

    fn is(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(o) if *o == op)
    }

    fn eat(&mut self, op: &str) -> bool {
        let hit = self.is(op);
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, op: &'static str) -> Parsed<()> {
        if self.eat(op) {
            return Ok(());
        }
        let mut e = self.unexpected();
        e.message.push_str(&format!(", expecting {op}"));
        Err(e)
    }

    fn word(&self) -> &str {
        if let Token::Ident(w) = self.peek() { w } else { "" }
    }

    fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        let at = self.tokens.get(self.at).map_or(self.text.len(), |t| t.1);
        Err(fault(self.text, at, message))
    }

    fn unexpected(&self) -> ParseError {
        let at = self.tokens.get(self.at).map_or(self.text.len(), |t| t.1);
        fault(self.text, at, format!("syntax error: unexpected {}", describe(self.peek())))
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= DEPTH_MAX {
            return self.fail("query is nested too deeply");
        }
        self.depth += 1;
        let result = f(self);
        self.depth -= 1;
        result
    }

    fn query(&mut self) -> Parsed<Query> {
        let mut q = Query {
            pipeline: self.pipeline()?,
            metric: None,
            second: Vec::new(),
            hints: Vec::new(),
        };
        // The pipeline ends before a stage that makes series.
        if self.is("|") {
            self.at += 1;
            q.metric = Some(self.metric()?);
        }
        while q.metric.is_some() {
            if self.eat("|") {
                let kind = self.word().to_owned();
                if kind != "topk" && kind != "bottomk" {
                    return Err(self.unexpected());
                }
                self.at += 1;
                self.expect("(")?;
                let n = match self.next() {
                    Token::Int(n) if n > 0 => n as usize,
                    _ => {
                        self.at -= 1;
                        return self.fail(format!("{kind}() needs a positive number"));
                    }
                };
                self.expect(")")?;
                q.second.push(if kind == "topk" {
                    SecondStage::TopK(n)
                } else {
                    SecondStage::BottomK(n)
                });
                continue;
            }
            let Some((op, _)) = binary(self.peek()).filter(|(op, _)| op.is_comparison()) else {
                break;
            };
            self.at += 1;
            let value = self.scalar_static()?;
            let Some(value) = (if let FieldValue::Duration(ns) = value {
                Some(ns as f64 / 1e9)
            } else {
                value.as_f64()
            }) else {
                return self.fail("a metric is compared with a number");
            };
            q.second.push(SecondStage::Filter(op, value));
        }
        if self.word() == "with" {
            self.at += 1;
            q.hints = self.hints()?;
        }
        Ok(q)
    }

    fn hints(&mut self) -> Parsed<Vec<Hint>> {
        self.expect("(")?;
        let mut out = Vec::new();
        loop {
            let Token::Ident(name) = self.peek().clone() else { return Err(self.unexpected()) };
            self.at += 1;
            self.expect("=")?;
            let Some(value) = self.statics() else { return Err(self.unexpected()) };
            out.push((name, value));
            if !self.eat(",") {
                break;
            }
        }
        self.expect(")")?;
        Ok(out)
    }

    /// Stages up to the end, a closing bracket, or a stage that makes series.
    fn pipeline(&mut self) -> Parsed<Pipeline> {
        let mut out = vec![self.stage(true)?];
        while self.is("|") {
            if let Token::Ident(word) = self.peek_at(1)
                && metric_kind(word).is_some()
            {
                break;
            }
            self.at += 1;
            out.push(self.stage(false)?);
        }
        Ok(out)
    }

    fn stage(&mut self, first: bool) -> Parsed<Stage> {
        match self.word() {
            "by" => {
                self.at += 1;
                self.expect("(")?;
                let e = self.expr(0)?;
                self.expect(")")?;
                return Ok(Stage::By(e));
            }
            "coalesce" if !first => {
                self.at += 1;
                self.expect("(")?;
                self.expect(")")?;
                return Ok(Stage::Coalesce);
            }
            "select" if !first => {
                self.at += 1;
                return Ok(Stage::Select(self.fields()?));
            }
            _ => {}
        }
        if self.starts_scalar() {
            return self.scalar_filter();
        }
        Ok(Stage::Spansets(self.spansets(0)?))
    }

    /// Looks past opening brackets: whether a scalar or a set of spans comes.
    fn starts_scalar(&self) -> bool {
        let mut i = 0;
        while matches!(self.peek_at(i), Token::Op("(")) {
            i += 1;
        }
        match self.peek_at(i) {
            Token::Ident(w) => aggregate(w).is_some(),
            Token::Int(_) | Token::Float(_) | Token::Duration(_) | Token::Op("-") => true,
            _ => i > 0 && self.pipeline_in_brackets(i),
        }
    }

    /// Whether the brackets ahead hold a pipeline that ends in an aggregate: `({…} | count())`.
    fn pipeline_in_brackets(&self, from: usize) -> bool {
        let mut depth = from;
        let mut i = from;
        let mut last_stage_is_scalar = false;
        loop {
            match self.peek_at(i) {
                Token::Op("(") => depth += 1,
                Token::Op(")") => {
                    depth -= 1;
                    if depth == 0 {
                        return last_stage_is_scalar;
                    }
                }
                Token::Op("|") => {
                    last_stage_is_scalar =
                        matches!(self.peek_at(i + 1), Token::Ident(w) if aggregate(w).is_some());
                }
                // A comparison makes a filter of it.
                Token::Op("=" | "!=" | ">" | "<" | ">=" | "<=") if last_stage_is_scalar => {
                    return depth == 0;
                }
                Token::End => return false,
                _ => {}
            }
            i += 1;
        }
    }

    fn scalar_filter(&mut self) -> Parsed<Stage> {
        let lhs = self.scalar(0)?;
        let Some((op, _)) = binary(self.peek()).filter(|(op, _)| op.is_comparison()) else {
            return Err(self.unexpected());
        };
        self.at += 1;
        let rhs = self.scalar(0)?;
        Ok(Stage::Scalar(op, lhs, rhs))
    }

    fn scalar(&mut self, least: u8) -> Parsed<Scalar> {
        self.deeper(|p| {
            let mut lhs = p.scalar_operand()?;
            while let Some((op, level)) =
                binary(p.peek()).filter(|(op, level)| op.is_arithmetic() && *level >= least)
            {
                p.at += 1;
                let rhs = p.scalar(if op == Op::Pow { level } else { level + 1 })?;
                lhs = Scalar::Binary(op, Box::new(lhs), Box::new(rhs));
            }
            Ok(lhs)
        })
    }

    fn scalar_operand(&mut self) -> Parsed<Scalar> {
        if self.is("(") {
            let inner_pipeline = self.pipeline_in_brackets(0);
            self.at += 1;
            if inner_pipeline && !self.starts_scalar() {
                self.scalar_pipeline()?;
                self.expect(")")?;
                return Ok(Scalar::Pipeline);
            }
            let s = self.scalar(0)?;
            self.expect(")")?;
            return Ok(s);
        }
        if self.eat("-") {
            return Ok(Scalar::Neg(Box::new(self.scalar(4)?)));
        }
        if let Some(kind) = aggregate(self.word()) {
            self.at += 1;
            self.expect("(")?;
            let of = if kind == Aggregate::Count { None } else { Some(self.expr(0)?) };
            self.expect(")")?;
            return Ok(Scalar::Aggregate(kind, of));
        }
        match self.peek() {
            Token::Int(_) | Token::Float(_) | Token::Duration(_) => {
                Ok(Scalar::Static(self.scalar_static()?))
            }
            _ => Err(self.unexpected()),
        }
    }

    /// `{…} | … | aggregate`, the last of which makes the scalar.
    fn scalar_pipeline(&mut self) -> Parsed<()> {
        self.stage(true)?;
        loop {
            self.expect("|")?;
            if let Some(kind) = aggregate(self.word()) {
                let before = self.at;
                self.at += 1;
                self.expect("(")?;
                if kind != Aggregate::Count {
                    self.expr(0)?;
                }
                self.expect(")")?;
                if self.is(")") {
                    return Ok(());
                }
                self.at = before;
            }
            self.stage(false)?;
        }
    }

    fn scalar_static(&mut self) -> Parsed<FieldValue<'static>> {
        let negative = self.eat("-");
        let value = match self.next() {
            Token::Int(i) => FieldValue::Int(if negative { -i } else { i }),
            Token::Float(f) => FieldValue::Float(if negative { -f } else { f }),
            Token::Duration(d) => FieldValue::Duration(if negative { -d } else { d }),
            _ => {
                self.at -= 1;
                return Err(self.unexpected());
            }
        };
        Ok(value)
    }

    fn spansets(&mut self, least: u8) -> Parsed<SpansetExpr> {
        self.deeper(|p| {
            let mut lhs = p.spanset_operand()?;
            while let Some((op, level)) = structural(p.peek()).filter(|(_, l)| *l >= least) {
                p.at += 1;
                let rhs = p.spansets(level + 1)?;
                lhs = SpansetExpr::Binary(op, Box::new(lhs), Box::new(rhs));
            }
            Ok(lhs)
        })
    }

    fn spanset_operand(&mut self) -> Parsed<SpansetExpr> {
        if self.eat("(") {
            let mut inner = self.pipeline()?;
            self.expect(")")?;
            return Ok(match inner.pop() {
                Some(Stage::Spansets(e)) if inner.is_empty() => e,
                last => SpansetExpr::Pipeline(inner.into_iter().chain(last).collect()),
            });
        }
        self.expect("{")?;
        if self.eat("}") {
            return Ok(SpansetExpr::Filter(Expr::Static(FieldValue::Bool(true))));
        }
        let e = self.expr(0)?;
        self.expect("}")?;
        Ok(SpansetExpr::Filter(e))
    }

    fn expr(&mut self, least: u8) -> Parsed<Expr> {
        self.deeper(|p| {
            let mut lhs = p.operand()?;
            while let Some((op, level)) = binary(p.peek()).filter(|(_, l)| *l >= least) {
                p.at += 1;
                let rhs = p.expr(if op == Op::Pow { level } else { level + 1 })?;
                lhs = Expr::Binary(op, Box::new(lhs), Box::new(rhs));
            }
            Ok(lhs)
        })
    }

    fn statics(&mut self) -> Option<FieldValue<'static>> {
        let v = match self.peek() {
            Token::Int(i) => FieldValue::Int(*i),
            Token::Float(f) => FieldValue::Float(*f),
            Token::Duration(d) => FieldValue::Duration(*d),
            Token::String(s) => FieldValue::Str(s.clone().into()),
            Token::Ident(w) => constant(w)?,
            _ => return None,
        };
        self.at += 1;
        Some(v)
    }

    fn operand(&mut self) -> Parsed<Expr> {
        if self.eat("(") {
            let e = self.expr(0)?;
            self.expect(")")?;
            return Ok(e);
        }
        if self.eat("!") {
            return Ok(Expr::Not(Box::new(self.expr(4)?)));
        }
        if self.eat("-") {
            // A number keeps its sign; anything else is negated.
            return Ok(match self.expr(4)? {
                Expr::Static(FieldValue::Int(i)) => Expr::Static(FieldValue::Int(-i)),
                Expr::Static(FieldValue::Float(f)) => Expr::Static(FieldValue::Float(-f)),
                Expr::Static(FieldValue::Duration(d)) => Expr::Static(FieldValue::Duration(-d)),
                e => Expr::Neg(Box::new(e)),
            });
        }
        if let Some(v) = self.statics() {
            return Ok(Expr::Static(v));
        }
        match field_token(self.peek()) {
            Some(f) => {
                self.at += 1;
                Ok(Expr::Field(f))
            }
            None => Err(self.unexpected()),
        }
    }

    fn field(&mut self) -> Parsed<Field> {
        match field_token(self.peek()) {
            Some(f) => {
                self.at += 1;
                Ok(f)
            }
            None => Err(self.unexpected()),
        }
    }

    fn fields(&mut self) -> Parsed<Vec<Field>> {
        self.expect("(")?;
        let mut out = vec![self.field()?];
        while self.eat(",") {
            out.push(self.field()?);
        }
        self.expect(")")?;
        Ok(out)
    }

    fn metric(&mut self) -> Parsed<Metric> {
        let Some(kind) = metric_kind(self.word()) else { return Err(self.unexpected()) };
        self.at += 1;
        self.expect("(")?;
        let mut m = Metric {
            kind,
            of: None,
            quantiles: Vec::new(),
            by: Vec::new(),
            selection: None,
            top: 10,
            range: None,
        };
        match kind {
            MetricKind::Rate | MetricKind::CountOverTime => {}
            MetricKind::Compare => {
                self.expect("{")?;
                m.selection = Some(if self.is("}") {
                    Expr::Static(FieldValue::Bool(true))
                } else {
                    self.expr(0)?
                });
                self.expect("}")?;
                let mut numbers = Vec::new();
                while self.eat(",") {
                    match self.next() {
                        Token::Int(i) => numbers.push(i),
                        _ => {
                            self.at -= 1;
                            return Err(self.unexpected());
                        }
                    }
                }
                match numbers.as_slice() {
                    [] => {}
                    [top] => m.top = usize::try_from(*top).unwrap_or(0),
                    [top, start, end] => {
                        m.top = usize::try_from(*top).unwrap_or(0);
                        m.range = Some((*start, *end));
                    }
                    _ => {
                        return self.fail("compare() takes a number of values, a start and an end");
                    }
                }
            }
            MetricKind::QuantileOverTime => {
                m.of = Some(self.field()?);
                while self.eat(",") {
                    match self.next() {
                        Token::Int(i) => m.quantiles.push(i as f64),
                        Token::Float(f) => m.quantiles.push(f),
                        _ => {
                            self.at -= 1;
                            return Err(self.unexpected());
                        }
                    }
                }
                if m.quantiles.is_empty() {
                    return Err(self.unexpected());
                }
            }
            _ => m.of = Some(self.field()?),
        }
        self.expect(")")?;
        if self.word() == "by" && kind != MetricKind::Compare {
            self.at += 1;
            m.by = self.fields()?;
        }
        Ok(m)
    }
}
