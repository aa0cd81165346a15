//! Metric queries.

use super::{Fault, Operand, Parsed, Parser};
use crate::ast::{Groups, LogExpr, LogRange, Query, RangeAggregation, RangeOp, Unwrap};
use crate::lexer::Token;
use obs_model::{METRIC_NAME, Matcher};
use obs_promql::ast::{
    AggregateOp, BinaryOp, Cardinality, Expr, Function, Grouping, Matching, Selector,
};

/// Finds a vector aggregation; `approx_topk` is answered exactly.
pub(super) fn aggregate(word: &str) -> Option<AggregateOp> {
    Some(match word {
        "sum" => AggregateOp::Sum,
        "avg" => AggregateOp::Avg,
        "min" => AggregateOp::Min,
        "max" => AggregateOp::Max,
        "count" => AggregateOp::Count,
        "stddev" => AggregateOp::Stddev,
        "stdvar" => AggregateOp::Stdvar,
        "topk" | "approx_topk" => AggregateOp::Topk,
        "bottomk" => AggregateOp::Bottomk,
        _ => return None,
    })
}

/// What a range aggregation is over, while it is read.
#[derive(Default)]
struct RangeOf {
    expr: LogExpr,
    unwrap: Option<Unwrap>,
    range_ns: Option<f64>,
    offset_ns: Option<f64>,
}

fn to_ms(ns: f64) -> i64 {
    (ns / 1e6) as i64
}

fn type_of(log: &LogExpr) -> &'static str {
    if log.stages.is_empty() { "*syntax.MatchersExpr" } else { "*syntax.PipelineExpr" }
}

/// Computes an operation of two literals as Loki does while it parses.
fn fold(op: BinaryOp, l: f64, r: f64) -> f64 {
    let truth = |b: bool| f64::from(u8::from(b));
    match op {
        BinaryOp::Add => l + r,
        BinaryOp::Sub => l - r,
        BinaryOp::Mul => l * r,
        BinaryOp::Div | BinaryOp::Mod if r == 0.0 => f64::NAN,
        BinaryOp::Div => l / r,
        BinaryOp::Mod => l % r,
        BinaryOp::Pow => l.powf(r),
        BinaryOp::Eq => truth(l == r),
        BinaryOp::Ne => truth(l != r),
        BinaryOp::Gt => truth(l > r),
        BinaryOp::Ge => truth(l >= r),
        BinaryOp::Lt => truth(l < r),
        BinaryOp::Le => truth(l <= r),
        _ => f64::NAN,
    }
}

impl Parser {
    /// Parses operators that bind at least as tightly as `min`.
    pub(super) fn binary(&mut self, min: u8) -> Parsed<Operand> {
        self.deeper(|p| {
            let mut left = p.unit()?;
            while let Some((op, text, precedence)) = p.binary_op() {
                if precedence < min {
                    break;
                }
                p.at += 1;
                let bool_modifier = p.eat_word("bool");
                let matching = p.matching()?;
                let tighter = if op == BinaryOp::Pow { precedence } else { precedence + 1 };
                let right = p.binary(tighter)?;
                left = Operand::Metric(join(op, text, (left, right), bool_modifier, matching)?);
            }
            Ok(left)
        })
    }

    /// Reads a parenthesis that closes an expression, behind which an operator may stand as well:
    /// too much to name.
    fn close(&mut self) -> Parsed<()> {
        if self.eat(")") { Ok(()) } else { self.unexpected() }
    }

    /// Parses an expression that must be a metric.
    fn metric(&mut self) -> Parsed<Expr> {
        match self.binary(0)? {
            Operand::Metric(expr) => Ok(expr),
            Operand::Log(_) => self.unexpected(),
        }
    }

    fn binary_op(&self) -> Option<(BinaryOp, &'static str, u8)> {
        Some(match self.peek() {
            Token::Ident(w) => match w.to_ascii_lowercase().as_str() {
                "or" => (BinaryOp::Or, "or", 1),
                "and" => (BinaryOp::And, "and", 2),
                "unless" => (BinaryOp::Unless, "unless", 2),
                _ => return None,
            },
            Token::Op(op) => match *op {
                "==" => (BinaryOp::Eq, op, 3),
                "!=" => (BinaryOp::Ne, op, 3),
                ">" => (BinaryOp::Gt, op, 3),
                ">=" => (BinaryOp::Ge, op, 3),
                "<" => (BinaryOp::Lt, op, 3),
                "<=" => (BinaryOp::Le, op, 3),
                "+" => (BinaryOp::Add, op, 4),
                "-" => (BinaryOp::Sub, op, 4),
                "*" => (BinaryOp::Mul, op, 5),
                "/" => (BinaryOp::Div, op, 5),
                "%" => (BinaryOp::Mod, op, 5),
                "^" => (BinaryOp::Pow, op, 6),
                _ => return None,
            },
            _ => return None,
        })
    }

    fn matching(&mut self) -> Parsed<Matching> {
        let mut m = Matching { on: self.eat_word("on"), ..Matching::default() };
        if m.on || self.eat_word("ignoring") {
            m.labels = self.label_list()?;
            for (word, cardinality) in
                [("group_left", Cardinality::ManyToOne), ("group_right", Cardinality::OneToMany)]
            {
                if self.eat_word(word) {
                    m.cardinality = cardinality;
                    if self.is_op("(") {
                        m.include = self.label_list()?;
                    }
                }
            }
        }
        Ok(m)
    }

    fn label_list(&mut self) -> Parsed<Vec<String>> {
        self.expect("(")?;
        self.list(")", ", or )", Self::identifier)
    }

    fn unit(&mut self) -> Parsed<Operand> {
        let at = self.start();
        match self.peek().clone() {
            Token::Op("{") => self.log_expr().map(Operand::Log),
            Token::Op("(") => {
                self.at += 1;
                let inner = self.binary(0)?;
                self.close()?;
                match inner {
                    Operand::Metric(e @ Expr::Number(..)) => Ok(Operand::Metric(e)),
                    Operand::Metric(e) => Ok(Operand::Metric(Expr::Paren(Box::new(e)))),
                    Operand::Log(mut log) => {
                        // The pipeline may go on behind the parenthesis.
                        self.stages(&mut log.stages)?;
                        Ok(Operand::Log(log))
                    }
                }
            }
            Token::Op("-" | "+") | Token::Number(_) => {
                let n = self.number()?;
                Ok(Operand::Metric(Expr::Number(n, self.pos_from(at))))
            }
            Token::Ident(word) => self.call(&word, at).map(Operand::Metric),
            _ => self.unexpected(),
        }
    }

    /// Reads `variants (…, …) of (…)`, which is a query of its own and no operand.
    pub(super) fn variants(&mut self) -> Parsed<Query> {
        self.at += 2;
        let mut exprs = Vec::new();
        loop {
            let expr = self.metric()?;
            if matches!(expr, Expr::Number(..)) {
                return Err(Fault::nowhere("a variant must read lines, not be a literal"));
            }
            exprs.push(expr);
            if !self.eat(",") {
                break;
            }
        }
        self.expect(")")?;
        if !self.eat_word("of") {
            return self.unexpected_but("of");
        }
        self.expect("(")?;
        let mut of = RangeOf::default();
        self.log_range(&mut of)?;
        let Some(range_ns) = of.range_ns.filter(|_| of.unwrap.is_none()) else {
            return self.unexpected();
        };
        self.expect(")")?;
        let of = LogRange {
            expr: of.expr,
            range_ms: to_ms(range_ns).max(1),
            offset_ms: to_ms(of.offset_ns.unwrap_or(0.0)),
        };
        Ok(self.metric_query(exprs, Some(of)))
    }

    fn call(&mut self, word: &str, at: usize) -> Parsed<Expr> {
        let word = word.to_ascii_lowercase();
        let word = word.as_str();
        let is_call = matches!(self.ahead(1), Token::Op("("));
        let is_grouped = super::is_grouping(self.ahead(1));
        if let Some(op) = RangeOp::find(word).filter(|_| is_call) {
            self.at += 1;
            return self.range_aggregation(op, at);
        }
        if let Some(op) = aggregate(word).filter(|_| is_call || is_grouped) {
            self.at += 1;
            return self.aggregation(op, word, at);
        }
        let function = Function::find(word).filter(|_| is_call);
        match (word, function) {
            ("vector", Some(function)) => {
                self.at += 2;
                let from = self.start();
                let n = self.number()?;
                let args = vec![Expr::Number(n, self.pos_from(from))];
                self.expect(")")?;
                Ok(Expr::Call { function, args, pos: self.pos_from(at) })
            }
            ("sort" | "sort_desc", Some(function)) => {
                self.at += 2;
                let args = vec![self.metric()?];
                self.close()?;
                Ok(Expr::Call { function, args, pos: self.pos_from(at) })
            }
            ("label_replace", Some(function)) => {
                self.at += 2;
                let mut args = vec![self.metric()?];
                for i in 0..4 {
                    if i == 0 && !self.is_op(",") {
                        return self.unexpected();
                    }
                    self.expect(",")?;
                    let from = self.start();
                    let text = self.string()?;
                    args.push(Expr::String(text.into(), self.pos_from(from)));
                }
                self.expect(")")?;
                if let Some(Expr::String(regex, _)) = args.last()
                    && let Err(e) = obs_model::go_regex(&regex.text)
                {
                    return Err(Fault::nowhere(format!("invalid regex in label_replace: {e}")));
                }
                Ok(Expr::Call { function, args, pos: self.pos_from(at) })
            }
            _ => self.unexpected(),
        }
    }

    fn aggregation(&mut self, op: AggregateOp, word: &str, at: usize) -> Parsed<Expr> {
        let before = self.grouping()?;
        self.expect("(")?;
        let mut param = None;
        let is_number = matches!(self.peek(), Token::Number(_))
            || (matches!(self.peek(), Token::Op("-" | "+"))
                && matches!(self.ahead(1), Token::Number(_)));
        let from = self.at;
        if is_number {
            let start = self.start();
            let n = self.number()?;
            if self.eat(",") {
                param = Some((n, self.pos_from(start)));
            } else {
                self.at = from;
            }
        }
        let inner = self.metric()?;
        self.close()?;
        let after = if before.is_none() { self.grouping()? } else { None };
        let grouping = before.or(after);
        let name = op.parameter().is_some();
        let refuse = |m: String| Err(Fault::nowhere(m));
        let param = match param {
            Some((n, _)) if !name => {
                return refuse(format!("unsupported parameter for operation {word}({n},"));
            }
            None if name => return refuse(format!("parameter required for operation {word}")),
            Some((n, _)) if n.fract() != 0.0 => {
                return refuse(format!("invalid parameter {word}({n},"));
            }
            Some((n, _)) if n <= 0.0 => {
                return refuse(format!("invalid parameter (must be greater than 0) {word}({n}"));
            }
            Some((n, pos)) => Some(Box::new(Expr::Number(n, pos))),
            None => None,
        };
        if op == AggregateOp::Sum {
            self.push_down(&inner, grouping.as_ref());
        }
        Ok(Expr::Aggregate {
            op,
            expr: Box::new(inner),
            param,
            grouping: grouping.unwrap_or_default(),
            pos: self.pos_from(at),
        })
    }

    /// Lets a range aggregation group as the sum around it will.
    fn push_down(&mut self, inner: &Expr, grouping: Option<&Grouping>) {
        let Expr::Selector(s) = inner else { return };
        let range = crate::ast::range_index(&s.matchers).and_then(|i| self.ranges.get_mut(i));
        let Some(range) = range.filter(|r| r.groups.is_none()) else { return };
        let is_additive = matches!(
            range.op,
            RangeOp::Bytes | RangeOp::BytesRate | RangeOp::Sum | RangeOp::Rate | RangeOp::Count
        );
        if is_additive {
            range.pushed =
                Some(grouping.map_or(Groups { without: false, labels: Vec::new() }, |g| Groups {
                    without: g.without,
                    labels: g.labels.clone(),
                }));
        }
    }

    fn grouping(&mut self) -> Parsed<Option<Grouping>> {
        let without = self.eat_word("without");
        if !without && !self.eat_word("by") {
            return Ok(None);
        }
        Ok(Some(Grouping { without, labels: self.label_list()? }))
    }

    fn range_aggregation(&mut self, op: RangeOp, at: usize) -> Parsed<Expr> {
        self.expect("(")?;
        let mut param = None;
        if !matches!(self.peek(), Token::Op("{" | "(")) {
            param = Some(self.number()?);
            self.expect(",")?;
        }
        let mut range = RangeOf::default();
        self.log_range(&mut range)?;
        let Some(range_ns) = range.range_ns else { return self.unexpected() };
        self.expect(")")?;
        let groups = self.grouping()?;
        let refuse = |m: String| Err(Fault::nowhere(m));
        let name = op.name();
        match (op, param) {
            (RangeOp::Quantile, None) => {
                return refuse(format!("parameter required for operation {name}"));
            }
            (RangeOp::Quantile, Some(_)) | (_, None) => {}
            (_, Some(n)) => {
                return refuse(format!("parameter {n} not supported for operation {name}"));
            }
        }
        if groups.is_some() && !op.takes_grouping() {
            return refuse(format!("grouping not allowed for {name} aggregation"));
        }
        if range.unwrap.is_some() && !op.takes_unwrap() {
            return refuse(format!("invalid aggregation {name} with unwrap"));
        }
        if range.unwrap.is_none() && !op.takes_lines() {
            return refuse(format!("invalid aggregation {name} without unwrap"));
        }
        let selector = format!("range_{}", self.ranges.len());
        self.ranges.push(RangeAggregation {
            op,
            param,
            expr: range.expr,
            unwrap: range.unwrap,
            range_ms: to_ms(range_ns).max(1),
            offset_ms: to_ms(range.offset_ns.unwrap_or(0.0)),
            groups: groups.map(|g| Groups { without: g.without, labels: g.labels }),
            pushed: None,
        });
        Ok(Expr::Selector(Selector {
            matchers: vec![Matcher::equal(METRIC_NAME, selector)],
            is_named: true,
            offset_ms: 0,
            offset_expr: None,
            at: None,
            extension: None,
            pos: self.pos_from(at),
        }))
    }

    /// Reads selector, pipeline, range and offset, in the orders that the grammar allows, with any
    /// parentheses.
    fn log_range(&mut self, out: &mut RangeOf) -> Parsed<()> {
        self.deeper(|p| {
            if p.eat("(") {
                p.log_range(out)?;
                p.expect(")")?;
            } else {
                out.expr.matchers = p.selector()?;
            }
            loop {
                match p.peek().clone() {
                    Token::Range(ns) if out.range_ns.is_none() => {
                        p.at += 1;
                        out.range_ns = Some(ns);
                    }
                    Token::Ident(w)
                        if w.eq_ignore_ascii_case("offset")
                            && out.range_ns.is_some()
                            && out.offset_ns.is_none() =>
                    {
                        p.at += 1;
                        let sign = if p.eat("-") { -1.0 } else { 1.0 };
                        let Token::Duration(ns, _) = *p.peek() else {
                            return p.unexpected_but("DURATION");
                        };
                        p.at += 1;
                        out.offset_ns = Some(sign * ns);
                    }
                    Token::Op("|" | "|=" | "|~" | "!=" | "!~" | "|>" | "!>")
                        if out.unwrap.is_none() =>
                    {
                        p.stages(&mut out.expr.stages)?;
                        out.unwrap = p.unwrap_stage()?;
                    }
                    _ => return Ok(()),
                }
            }
        })
    }
}

fn join(
    op: BinaryOp,
    text: &str,
    legs: (Operand, Operand),
    bool_modifier: bool,
    matching: Matching,
) -> Parsed<Expr> {
    let refuse = |leg: &str, log: &LogExpr| {
        Err(Fault::nowhere(format!(
            "unexpected type for {leg} leg of binary operation ({text}): {}",
            type_of(log)
        )))
    };
    let (left, right) = match legs {
        (Operand::Log(log), _) => return refuse("left", &log),
        (_, Operand::Log(log)) => return refuse("right", &log),
        (Operand::Metric(l), Operand::Metric(r)) => (l, r),
    };
    if op.is_set() {
        for (leg, e) in [("left", &left), ("right", &right)] {
            if let Expr::Number(n, _) = e {
                return Err(Fault::nowhere(format!(
                    "unexpected literal for {leg} leg of logical/set binary operation ({text}): {n:.6}"
                )));
            }
        }
    }
    let pos = obs_promql::ast::Pos { start: left.pos().start, end: right.pos().end };
    if let (Expr::Number(l, _), Expr::Number(r, _)) = (&left, &right) {
        return Ok(Expr::Number(fold(op, *l, *r), pos));
    }
    Ok(Expr::Binary { op, lhs: Box::new(left), rhs: Box::new(right), bool_modifier, matching, pos })
}
