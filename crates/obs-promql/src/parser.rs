//! Recursive-descent parser and type check.

mod durations;
mod words;

use crate::ast::{
    AggregateOp, At, BinaryOp, Cardinality, DurationExpr, Expr, Extension, Function, Grouping,
    Matching, Pos, Selector, VARIADIC, ValueType,
};
use crate::dialect::Features;
use crate::lexer::{LexError, Token, lex};
use obs_model::{METRIC_NAME, MatchOp, Matcher};
use words::describe;

/// Nesting past which a query is refused, so that no query can exhaust the stack.
const DEPTH_MAX: usize = 100;
/// Query text past which it is refused, in bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A query that cannot be run, with line and column as Prometheus prints them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: parse error: {message}")]
pub struct ParseError {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

/// Parses and type-checks a query.
///
/// # Errors
/// With position and reason when the text is not supported PromQL.
pub fn parse(text: &str) -> Result<Expr, ParseError> {
    parse_with(text, Features::default())
}

/// Like [`parse`], where parts of the language may be switched off.
pub(crate) fn parse_with(text: &str, features: Features) -> Result<Expr, ParseError> {
    let fail = |at: usize, message: String| {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        ParseError { line, column, message }
    };
    if text.len() > TEXT_BYTES_MAX {
        return Err(fail(0, format!("query is longer than {TEXT_BYTES_MAX} bytes")));
    }
    let tokens = lex(text).map_err(|e| fail(e.at, e.message))?;
    let mut p = Parser { text, tokens, at: 0, depth: 0, any_matchers: false, features };
    let run = |p: &mut Parser<'_>| {
        if *p.peek() == Token::Eof {
            return Err(LexError { at: 0, message: "no expression found in input".into() });
        }
        let e = p.expression(0)?;
        if *p.peek() == Token::Eof { Ok(e) } else { Err(p.unexpected("")) }
    };
    run(&mut p).map_err(|e| fail(e.at, e.message))
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(Token, Pos)>,
    at: usize,
    depth: usize,
    /// Whether a selector may match everything.
    any_matchers: bool,
    features: Features,
}

type Parsed<T> = Result<T, LexError>;

fn binary_op(token: &Token) -> Option<(BinaryOp, u8)> {
    let word = match token {
        Token::Op(op) => (*op).to_owned(),
        Token::Ident(word) => word.to_ascii_lowercase(),
        _ => return None,
    };
    Some(match word.as_str() {
        "or" => (BinaryOp::Or, 1),
        "and" => (BinaryOp::And, 2),
        "unless" => (BinaryOp::Unless, 2),
        "==" => (BinaryOp::Eq, 3),
        "!=" => (BinaryOp::Ne, 3),
        "<" => (BinaryOp::Lt, 3),
        "<=" => (BinaryOp::Le, 3),
        ">" => (BinaryOp::Gt, 3),
        ">=" => (BinaryOp::Ge, 3),
        "+" => (BinaryOp::Add, 4),
        "-" => (BinaryOp::Sub, 4),
        "*" => (BinaryOp::Mul, 5),
        "/" => (BinaryOp::Div, 5),
        "%" => (BinaryOp::Mod, 5),
        "atan2" => (BinaryOp::Atan2, 5),
        "</" => (BinaryOp::TrimUpper, 3),
        ">/" => (BinaryOp::TrimLower, 3),
        "^" => (BinaryOp::Pow, 6),
        _ => return None,
    })
}

impl Parser<'_> {
    /// Returns the next token as it was written.
    fn written(&self) -> &str {
        let pos = self.pos();
        self.text.get(pos.start..pos.end).unwrap_or_default()
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::Eof, |t| &t.0)
    }

    fn peek_second(&self) -> &Token {
        self.tokens.get(self.at + 1).map_or(&Token::Eof, |t| &t.0)
    }

    fn pos(&self) -> Pos {
        self.tokens.get(self.at).or(self.tokens.last()).map(|t| t.1).unwrap_or_default()
    }

    fn last_end(&self) -> usize {
        self.at.checked_sub(1).and_then(|i| self.tokens.get(i)).map_or(0, |t| t.1.end)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn fail<T>(&self, at: usize, message: impl Into<String>) -> Parsed<T> {
        Err(LexError { at, message: message.into() })
    }

    fn unexpected(&self, context: &str) -> LexError {
        let context = if context.is_empty() { String::new() } else { format!(" in {context}") };
        LexError {
            at: self.pos().start,
            message: format!("unexpected {}{context}", describe(self.peek(), self.written())),
        }
    }

    fn eat(&mut self, op: &str) -> bool {
        let hit = matches!(self.peek(), Token::Op(o) if *o == op);
        if hit {
            self.at += 1;
        }
        hit
    }

    fn expect(&mut self, op: &str, context: &str) -> Parsed<()> {
        if self.eat(op) { Ok(()) } else { Err(self.unexpected(context)) }
    }

    fn keyword(&mut self, word: &str) -> bool {
        let hit = matches!(self.peek(), Token::Ident(w) if w.eq_ignore_ascii_case(word));
        if hit {
            self.at += 1;
        }
        hit
    }

    /// Parses operators that bind at least as tightly as `min`.
    fn expression(&mut self, min: u8) -> Parsed<Expr> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.fail(
                self.pos().start,
                format!("expression is nested deeper than {DEPTH_MAX} levels"),
            );
        }
        let mut lhs = self.unary()?;
        while let Some((op, precedence)) = binary_op(self.peek()) {
            if precedence < min {
                break;
            }
            let op_pos = self.pos();
            self.at += 1;
            let (bool_modifier, matching) = self.modifiers(op, op_pos)?;
            // `^` associates to the right, all else to the left.
            let rhs =
                self.expression(if op == BinaryOp::Pow { precedence } else { precedence + 1 })?;
            lhs = self.binary(op, op_pos, lhs, rhs, bool_modifier, matching)?;
        }
        self.depth -= 1;
        Ok(lhs)
    }

    fn modifiers(&mut self, op: BinaryOp, op_pos: Pos) -> Parsed<(bool, Option<Matching>)> {
        let at = self.pos().start;
        let bool_modifier = self.keyword("bool");
        if bool_modifier && !op.is_comparison() {
            return self.fail(at, "bool modifier can only be used on comparison operators");
        }
        let mut m = Matching { on: self.keyword("on"), ..Matching::default() };
        if !m.on && !self.keyword("ignoring") {
            let filled = self.fill(op, &mut m)?;
            return Ok((bool_modifier, filled.then_some(m)));
        }
        m.labels = self.label_list()?;
        let at = self.pos().start;
        for (word, cardinality) in
            [("group_left", Cardinality::ManyToOne), ("group_right", Cardinality::OneToMany)]
        {
            if self.keyword(word) {
                if op.is_set() {
                    return self
                        .fail(at, format!("no grouping allowed for {:?} operation", op.as_str()));
                }
                m.cardinality = cardinality;
                if matches!(self.peek(), Token::Op("(")) {
                    m.include = self.label_list()?;
                }
            }
        }
        if m.on
            && let Some(both) = m.include.iter().find(|l| m.labels.contains(l))
        {
            let text = format!("label {both:?} must not occur in ON and GROUP clause at once");
            return self.fail(op_pos.start, text);
        }
        self.fill(op, &mut m)?;
        Ok((bool_modifier, Some(m)))
    }

    /// Parses `fill(x)`, `fill_left(x)` and `fill_right(x)`; returns whether there was any.
    fn fill(&mut self, op: BinaryOp, m: &mut Matching) -> Parsed<bool> {
        let mut any = false;
        while let Token::Ident(word) = self.peek()
            && matches!(self.peek_second(), Token::Op("("))
            && let lower @ ("fill" | "fill_left" | "fill_right") =
                word.to_ascii_lowercase().as_str()
        {
            let (left, right) = (lower != "fill_right", lower != "fill_left");
            let at = self.pos().start;
            if !self.features.fill_modifiers {
                return self.fail(at, "binop fill modifiers are experimental and not enabled");
            }
            self.at += 2;
            let negative = self.eat("-");
            if !negative {
                self.eat("+");
            }
            let value = match self.next() {
                Token::Number(n) => n,
                Token::Duration(ms) => ms as f64 / 1000.0,
                Token::Ident(w) if w.eq_ignore_ascii_case("inf") => f64::INFINITY,
                Token::Ident(w) if w.eq_ignore_ascii_case("nan") => f64::NAN,
                _ => {
                    self.at -= 1;
                    return Err(self.unexpected("fill modifier, expected number"));
                }
            };
            self.expect(")", "fill modifier")?;
            if op.is_set() {
                return self.fail(at, "filling in missing series not allowed for set operators");
            }
            let value = if negative { -value } else { value };
            if left {
                m.fill_left = Some(value);
            }
            if right {
                m.fill_right = Some(value);
            }
            any = true;
        }
        Ok(any)
    }

    fn binary(
        &self,
        op: BinaryOp,
        op_pos: Pos,
        lhs: Expr,
        rhs: Expr,
        bool_modifier: bool,
        matching: Option<Matching>,
    ) -> Parsed<Expr> {
        let (lt, rt) = (lhs.value_type(), rhs.value_type());
        for (side, t) in [(&lhs, lt), (&rhs, rt)] {
            if !matches!(t, ValueType::Scalar | ValueType::Vector) {
                return self.fail(
                    side.pos().start,
                    "binary expression must contain only scalar and instant vector types",
                );
            }
        }
        let both_scalar = lt == ValueType::Scalar && rt == ValueType::Scalar;
        if both_scalar && op.is_comparison() && !bool_modifier {
            return self.fail(op_pos.start, "comparisons between scalars must use BOOL modifier");
        }
        if op.is_set() && (lt == ValueType::Scalar || rt == ValueType::Scalar) {
            return self.fail(
                op_pos.start,
                format!("set operator {:?} not allowed in binary scalar expression", op.as_str()),
            );
        }
        if matching.as_ref().is_some_and(|m| !m.labels.is_empty())
            && (lt == ValueType::Scalar || rt == ValueType::Scalar)
        {
            return self.fail(op_pos.start, "vector matching only allowed between instant vectors");
        }
        let pos = Pos { start: lhs.pos().start, end: rhs.pos().end };
        Ok(Expr::Binary {
            op,
            lhs: Box::new(lhs),
            rhs: Box::new(rhs),
            bool_modifier,
            matching: matching.unwrap_or_default(),
            pos,
        })
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let start = self.pos().start;
        if self.eat("-") || matches!(self.peek(), Token::Op("+")) {
            let negative = matches!(self.tokens.get(self.at.wrapping_sub(1)), Some((Token::Op("-"), p)) if p.start == start);
            if !negative {
                self.at += 1;
            }
            // Binds like `*`: -2^2 is -(2^2).
            let inner = self.expression(6)?;
            if !matches!(inner.value_type(), ValueType::Scalar | ValueType::Vector) {
                let got = inner.value_type().describe();
                return self.fail(start, format!("unary expression only allowed on expressions of type scalar or instant vector, got {got:?}"));
            }
            let pos = Pos { start, end: inner.pos().end };
            return Ok(match inner {
                e if !negative => e,
                Expr::Number(n, _) => Expr::Number(-n, pos),
                e => Expr::Negate(Box::new(e), pos),
            });
        }
        let primary = self.primary()?;
        self.postfix(primary)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let pos = self.pos();
        match self.next() {
            Token::Number(n) => Ok(Expr::Number(n, pos)),
            Token::Duration(ms) => Ok(Expr::Number(ms as f64 / 1000.0, pos)),
            Token::String(s) => Ok(Expr::String(s, pos)),
            Token::Op("(") => {
                let inner = self.expression(0)?;
                self.expect(")", "paren expression")?;
                Ok(Expr::Paren(Box::new(inner)))
            }
            Token::Op("{") => {
                self.at -= 1;
                self.selector(None, pos)
            }
            Token::Ident(word) => self.word(word, pos),
            _ => {
                self.at -= 1;
                Err(self.unexpected(""))
            }
        }
    }

    fn word(&mut self, word: String, pos: Pos) -> Parsed<Expr> {
        let lower = word.to_ascii_lowercase();
        let called = matches!(self.peek(), Token::Op("("));
        let grouped = matches!(self.peek(), Token::Ident(w) if w.eq_ignore_ascii_case("by") || w.eq_ignore_ascii_case("without"));
        if (called || grouped)
            && let Some(op) = AggregateOp::parse(&lower)
        {
            return self.aggregate(op, pos);
        }
        if called || grouped {
            let Some(function) = Function::find(&word) else {
                return self.fail(pos.start, format!("unknown function with name {word:?}"));
            };
            return self.call(function, pos);
        }
        match lower.as_str() {
            "inf" => Ok(Expr::Number(f64::INFINITY, pos)),
            "nan" => Ok(Expr::Number(f64::NAN, pos)),
            _ => self.selector(Some(word), pos),
        }
    }

    fn call(&mut self, function: &'static Function, pos: Pos) -> Parsed<Expr> {
        if function.is_experimental() && !self.features.experimental_functions {
            return self.fail(pos.start, format!("function {:?} is not enabled", function.name));
        }
        // `info` takes any label matchers, also those that match nothing.
        let is_info = std::mem::replace(&mut self.any_matchers, function.name == "info");
        let args = self.arguments()?;
        self.any_matchers = is_info;
        if function.name == "info"
            && let Some(second) = args.get(1)
            && !matches!(second, Expr::Selector(s) if !s.is_named)
        {
            return self.fail(
                second.pos().start,
                "expected label selectors only, got vector selector instead",
            );
        }
        let most = function.args.len();
        let least = if function.optional == VARIADIC { most - 1 } else { most - function.optional };
        let too_many = function.optional != VARIADIC && args.len() > most;
        if args.len() < least || too_many {
            let how = match (function.optional, args.len() < least) {
                (0, _) => "",
                (_, true) => " at least",
                (_, false) => " at most",
            };
            let want = if args.len() < least { least } else { most };
            let name = function.name;
            return self.fail(
                pos.start,
                format!("expected{how} {want} argument(s) in call to {name:?}, got {}", args.len()),
            );
        }
        for (i, arg) in args.iter().enumerate() {
            let want =
                function.args.get(i).or(function.args.last()).copied().unwrap_or(ValueType::Vector);
            self.check_type(arg, want, &format!("call to function {:?}", function.name))?;
        }
        let pos = Pos { start: pos.start, end: self.last_end() };
        Ok(Expr::Call { function, args, pos })
    }

    fn check_type(&self, e: &Expr, want: ValueType, context: &str) -> Parsed<()> {
        let got = e.value_type();
        if got == want {
            return Ok(());
        }
        self.fail(
            e.pos().start,
            format!("expected type {} in {context}, got {}", want.describe(), got.describe()),
        )
    }

    fn arguments(&mut self) -> Parsed<Vec<Expr>> {
        self.expect("(", "function call")?;
        let mut args = Vec::new();
        while !self.eat(")") {
            args.push(self.expression(0)?);
            if !self.eat(",") {
                self.expect(")", "function call")?;
                break;
            }
        }
        Ok(args)
    }

    fn grouping(&mut self) -> Parsed<Option<Grouping>> {
        let without = self.keyword("without");
        if !without && !self.keyword("by") {
            return Ok(None);
        }
        Ok(Some(Grouping { without, labels: self.label_list()? }))
    }

    fn aggregate(&mut self, op: AggregateOp, pos: Pos) -> Parsed<Expr> {
        if matches!(op, AggregateOp::Limitk | AggregateOp::LimitRatio)
            && !self.features.experimental_functions
        {
            let text = "is experimental and must be enabled with --enable-feature=promql-experimental-functions";
            return self.fail(pos.start, format!("{}() {text}", op.as_str()));
        }
        let before = self.grouping()?;
        let mut args = self.arguments()?;
        let after = if before.is_none() { self.grouping()? } else { None };
        let wanted = 1 + usize::from(op.parameter().is_some());
        if args.len() != wanted {
            return self.fail(pos.start, format!("wrong number of arguments for aggregate expression provided, expected {wanted}, got {}", args.len()));
        }
        let (expr, param) = (args.pop(), args.pop());
        let Some(expr) = expr else { return Err(self.unexpected("aggregation")) };
        self.check_type(&expr, ValueType::Vector, "aggregation expression")?;
        if let (Some(p), Some(want)) = (&param, op.parameter()) {
            self.check_type(p, want, "aggregation parameter")?;
        }
        let pos = Pos { start: pos.start, end: self.last_end() };
        Ok(Expr::Aggregate {
            op,
            expr: Box::new(expr),
            param: param.map(Box::new),
            grouping: before.or(after).unwrap_or_default(),
            pos,
        })
    }

    fn label_list(&mut self) -> Parsed<Vec<String>> {
        self.expect("(", "grouping opts")?;
        let mut out = Vec::new();
        while !self.eat(")") {
            match self.next() {
                Token::Ident(name) if !name.contains(':') => out.push(name),
                Token::String(name) => {
                    if !name.is_label_name() {
                        self.at -= 1;
                        let at = self.pos().start;
                        let text = format!("invalid label name for grouping: {}", name.quoted());
                        return self.fail(at, text);
                    }
                    out.push(name.text);
                }
                _ => {
                    self.at -= 1;
                    return Err(self.unexpected("grouping opts, expected label"));
                }
            }
            if !self.eat(",") {
                self.expect(")", "grouping opts, expected \",\" or \")\"")?;
                break;
            }
        }
        Ok(out)
    }

    fn selector(&mut self, name: Option<String>, pos: Pos) -> Parsed<Expr> {
        let mut matchers = Vec::new();
        let (is_word, mut named) = (name.is_some(), name.is_some());
        if let Some(name) = name {
            matchers.push(Matcher::equal(METRIC_NAME, name));
        }
        if self.eat("{") {
            while !self.eat("}") {
                let at = self.pos().start;
                let (label, quoted) = match self.next() {
                    Token::Ident(l) if !l.contains(':') => (l, false),
                    Token::String(l) => (l.text, true),
                    _ => {
                        self.at -= 1;
                        return Err(self.unexpected("label matching"));
                    }
                };
                let op = match self.peek() {
                    Token::Op("=") => MatchOp::Equal,
                    Token::Op("!=") => MatchOp::NotEqual,
                    Token::Op("=~") => MatchOp::Regex,
                    Token::Op("!~") => MatchOp::NotRegex,
                    Token::Op("," | "}") if quoted => {
                        if named {
                            return self
                                .fail(at, format!("metric name must not be set twice: {label:?}"));
                        }
                        named = true;
                        matchers.push(Matcher::equal(METRIC_NAME, label));
                        self.eat(",");
                        continue;
                    }
                    _ => {
                        return Err(
                            self.unexpected("label matching, expected label matching operator")
                        );
                    }
                };
                self.at += 1;
                let Token::String(value) = self.next() else {
                    self.at -= 1;
                    return Err(self.unexpected("label matching, expected string"));
                };
                let m = Matcher::new(label, op, value.text)
                    .map_err(|e| LexError { at, message: e.to_string() })?;
                if named
                    && m.name == METRIC_NAME
                    && m.op == MatchOp::Equal
                    && matchers.first().is_some_and(|f| f.name == METRIC_NAME)
                {
                    return self.fail(at, "metric name must not be set twice");
                }
                matchers.push(m);
                if !self.eat(",") {
                    self.expect("}", "label matching")?;
                    break;
                }
            }
        }
        if !self.any_matchers && !matchers.iter().any(|m| !m.matches("")) {
            return self
                .fail(pos.start, "vector selector must contain at least one non-empty matcher");
        }
        let pos = Pos { start: pos.start, end: self.last_end() };
        Ok(Expr::Selector(Selector {
            matchers,
            is_named: is_word,
            offset_ms: 0,
            offset_expr: None,
            at: None,
            extension: None,
            pos,
        }))
    }

    /// Parses `[range]`, `[range:step]`, `offset` and `@` after an expression.
    fn postfix(&mut self, mut e: Expr) -> Parsed<Expr> {
        let mut has_offset = false;
        loop {
            let start = self.pos().start;
            if self.eat("[") {
                e = self.brackets(e, start)?;
                has_offset = false;
            } else if self.keyword("offset") {
                if has_offset {
                    return self.fail(start, "offset may not be set multiple times");
                }
                has_offset = true;
                let offset = self.duration_operand("offset")?;
                self.set_modifiers(&mut e, start, Some(offset), None)?;
            } else if self.eat("@") {
                let at = self.at_modifier()?;
                self.set_modifiers(&mut e, start, None, Some(at))?;
            } else {
                let extension = match self.peek() {
                    Token::Ident(w) if w.eq_ignore_ascii_case("anchored") => Extension::Anchored,
                    Token::Ident(w) if w.eq_ignore_ascii_case("smoothed") => Extension::Smoothed,
                    _ => return Ok(e),
                };
                self.at += 1;
                self.extend(&mut e, extension)?;
            }
        }
    }

    fn extend(&self, e: &mut Expr, extension: Extension) -> Parsed<()> {
        let at = e.pos().start;
        let word = if extension == Extension::Anchored { "anchored" } else { "smoothed" };
        if !self.features.extended_range_selectors {
            return self.fail(at, format!("{word} modifier is experimental and not enabled"));
        }
        match e {
            Expr::Selector(s) | Expr::Matrix { selector: s, .. } => match s.extension {
                Some(other) if other != extension => {
                    self.fail(at, "anchored and smoothed modifiers cannot be used together")
                }
                _ => {
                    s.extension = Some(extension);
                    Ok(())
                }
            },
            Expr::Subquery { .. } => {
                self.fail(at, format!("{word} modifier is not supported for subqueries"))
            }
            _ => self.fail(at, format!("{word} modifier not implemented")),
        }
    }

    fn brackets(&mut self, e: Expr, start: usize) -> Parsed<Expr> {
        let (range_ms, range_expr) = self.range("range", start)?;
        let pos = |p: &Self| Pos { start: e.pos().start, end: p.last_end() };
        if self.eat(":") {
            let (step_ms, step_expr) = if matches!(self.peek(), Token::Op("]")) {
                (None, None)
            } else {
                let (ms, open) = self.range("subquery step", start)?;
                (Some(ms), open)
            };
            self.expect("]", "subquery selector")?;
            if e.value_type() != ValueType::Vector {
                let got = e.value_type().describe();
                return self.fail(
                    e.pos().start,
                    format!("subquery is only allowed on instant vector, got {got} instead"),
                );
            }
            let pos = pos(self);
            return Ok(Expr::Subquery {
                expr: Box::new(e),
                range_ms,
                step_ms,
                offset_ms: 0,
                range_expr,
                step_expr,
                offset_expr: None,
                at: None,
                pos,
            });
        }
        self.expect("]", "matrix selector")?;
        let pos = pos(self);
        match e {
            Expr::Selector(s) if s.offset_ms != 0 || s.offset_expr.is_some() || s.at.is_some() => {
                self.fail(start, "no offset or @ modifiers allowed before range")
            }
            Expr::Selector(selector) => Ok(Expr::Matrix { selector, range_ms, range_expr, pos }),
            _ => self.fail(start, "ranges only allowed for vector selectors"),
        }
    }

    fn at_modifier(&mut self) -> Parsed<At> {
        for (word, at) in [("start", At::Start), ("end", At::End)] {
            if self.keyword(word) {
                self.expect("(", "@ modifier")?;
                self.expect(")", "@ modifier")?;
                return Ok(at);
            }
        }
        let negative = self.eat("-");
        let start = self.pos().start;
        match self.next() {
            Token::Number(n) if n.is_finite() && n.abs() < 9e15 => {
                let ms = (n * 1000.0).round() as i64;
                Ok(At::Time(if negative { -ms } else { ms }))
            }
            Token::Number(_) => self.fail(start, "timestamp out of bounds for @ modifier"),
            _ => {
                self.at -= 1;
                Err(self.unexpected("@, expected timestamp"))
            }
        }
    }

    fn set_modifiers(
        &self,
        e: &mut Expr,
        start: usize,
        offset: Option<DurationExpr>,
        new_at: Option<At>,
    ) -> Parsed<()> {
        let (offset_ms, offset_expr, at) = match e {
            Expr::Selector(s) | Expr::Matrix { selector: s, .. } => {
                (&mut s.offset_ms, &mut s.offset_expr, &mut s.at)
            }
            Expr::Subquery { offset_ms, offset_expr, at, .. } => (offset_ms, offset_expr, at),
            _ => {
                let what = if offset.is_some() { "offset" } else { "@" };
                return self.fail(start, format!("{what} modifier must be preceded by an instant vector selector or range vector selector or a subquery"));
            }
        };
        if let Some(o) = offset {
            (*offset_ms, *offset_expr) = self.settle(o, start)?;
        }
        if let Some(a) = new_at {
            if at.is_some() {
                return self.fail(start, "@ <timestamp> may not be set multiple times");
            }
            *at = Some(a);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_name_position_and_reason() {
        let cases = [
            ("", "1:1: parse error: no expression found in input"),
            (
                "rate(foo)",
                r#"1:6: parse error: expected type range vector in call to function "rate", got instant vector"#,
            ),
            ("foo[5m", "1:7: parse error: unexpected end of input in matrix selector"),
            ("{}", "1:1: parse error: vector selector must contain at least one non-empty matcher"),
            (
                "{a=\"\"}",
                "1:1: parse error: vector selector must contain at least one non-empty matcher",
            ),
            ("nope(foo)", r#"1:1: parse error: unknown function with name "nope""#),
            (
                "sum(foo, bar)",
                "1:1: parse error: wrong number of arguments for aggregate expression provided, expected 1, got 2",
            ),
            ("1 == 1", "1:3: parse error: comparisons between scalars must use BOOL modifier"),
            (
                "foo and 1",
                r#"1:5: parse error: set operator "and" not allowed in binary scalar expression"#,
            ),
            (
                "foo +\n  bar[5m]",
                "2:3: parse error: binary expression must contain only scalar and instant vector types",
            ),
            (
                "info(foo, bar)",
                "1:11: parse error: expected label selectors only, got vector selector instead",
            ),
            (
                "foo[5m] anchored smoothed",
                "1:1: parse error: anchored and smoothed modifiers cannot be used together",
            ),
            ("foo{a=~\"(\"}", "1:5: parse error: invalid regular expression \"(\": "),
            ("foo $", "1:5: parse error: unexpected character: '$'"),
            ("(foo)[5m]", "1:6: parse error: ranges only allowed for vector selectors"),
        ];
        for (text, want) in cases {
            let got = parse(text).unwrap_err().to_string();
            assert!(got.starts_with(want), "{text}: {got}");
        }
    }

    #[test]
    fn everything_a_dashboard_writes_parses() {
        let cases = [
            "up",
            "foo:bar:baz{a=\"b\",c!=\"d\",e=~\"f|g\",h!~\"i\",}",
            "{\"weird name\", x='y'}",
            "rate(foo[5m] offset -1h)",
            "sum by (a, b) (rate(x[1m]))",
            "sum(rate(x[1m])) without(a)",
            "histogram_quantile(0.95, sum(rate(b[5m])) by (le))",
            "a / on(x) group_left(y) b",
            "a > bool 1",
            "-a ^ 2",
            "max_over_time(rate(x[5m])[1h:30s] @ end() offset 5m)",
            "foo @ 1609746000",
            "topk(5, a)",
            "count_values(\"v\", a)",
            "1_000 + 0x1F + 5m + Inf + .5e-3",
            "# comment\nup",
            "a or b and c unless d",
            "label_replace(up, \"a\", \"$1\", \"b\", \"(.*)\")",
            "time() - foo",
            "quantile(0.9, a) by (b)",
        ];
        for text in cases {
            parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        }
    }

    #[test]
    fn precedence_is_prometheus() {
        let value = |text: &str| match crate::eval::constant(&parse(text).unwrap()) {
            Some(v) => v,
            None => panic!("{text} is not constant"),
        };
        assert_eq!(value("1 + 2 * 3 ^ 2 ^ 0"), 7.0);
        assert_eq!(value("-2 ^ 2"), -4.0);
        assert_eq!(value("8 / 4 / 2"), 1.0);
        assert_eq!(value("(1 + 2) * 3 == bool 9"), 1.0);
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(parse(&"(".repeat(10_000)).is_err());
        assert!(parse(&format!("{}1", "-".repeat(10_000))).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "[a-z0-9(){}\\[\\]:,.\"'@+*/^=!~<> \\-é]{0,60}") {
            let _ = parse(&text);
        }
    }
}
