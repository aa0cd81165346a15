//! Parser of queries; the part for log pipelines is in `pipeline`, for metrics in `metric`.

mod metric;
mod pipeline;

use crate::ast::{LogExpr, LogRange, MetricExpr, Query, RangeAggregation};
use crate::lexer::{Placed, Token, lex};
use obs_model::{MatchOp, Matcher};
use obs_promql::ast::{Expr, Pos};

/// Parentheses and operators that may nest.
const DEPTH_MAX: usize = 100;
const TEXT_BYTES_MAX: usize = 128 * 1024;

/// A query that cannot be run, with line and column as Loki prints them: without either when the
/// fault has no place, and with line 0 when it lies within a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, column, message } = self;
        if *line == 0 && *column == 0 {
            return write!(f, "parse error : {message}");
        }
        write!(f, "parse error at line {line}, col {column}: {message}")
    }
}

impl std::error::Error for ParseError {}

#[derive(Debug)]
enum Place {
    /// A byte of the text.
    At(usize),
    /// A byte of the text, of which only the column is told.
    Column(usize),
    Nowhere,
}

#[derive(Debug)]
pub(crate) struct Fault {
    place: Place,
    message: String,
}

impl Fault {
    pub(crate) fn at(at: usize, message: impl Into<String>) -> Self {
        Self { place: Place::At(at), message: message.into() }
    }

    pub(crate) fn column(at: usize, message: impl Into<String>) -> Self {
        Self { place: Place::Column(at), message: message.into() }
    }

    pub(crate) fn nowhere(message: impl Into<String>) -> Self {
        Self { place: Place::Nowhere, message: message.into() }
    }

    fn locate(self, text: &str) -> ParseError {
        let (at, tells_line) = match self.place {
            Place::At(at) => (at, true),
            Place::Column(at) => (at, false),
            Place::Nowhere => return ParseError { line: 0, column: 0, message: self.message },
        };
        let before = text.get(..at).unwrap_or(text);
        let column = before.chars().rev().take_while(|c| *c != '\n').count();
        let line = before.matches('\n').count() + 1;
        if tells_line {
            ParseError { line, column: column + 1, message: self.message }
        } else {
            ParseError { line: 0, column, message: self.message }
        }
    }
}

pub(crate) type Parsed<T> = Result<T, Fault>;

/// Parses a query.
///
/// # Errors
/// With position and reason when the text is no LogQL.
pub fn parse(text: &str) -> Result<Query, ParseError> {
    let run = || {
        if text.len() > TEXT_BYTES_MAX {
            let message = format!("input size too long ({} > {TEXT_BYTES_MAX})", text.len());
            return Err(Fault::nowhere(message));
        }
        let mut p = Parser { tokens: lex(text)?, at: 0, depth: 0, ranges: Vec::new() };
        p.query()
    };
    run().map_err(|f: Fault| f.locate(text))
}

/// Parses a stream selector, as the `match` parameters of the API carry it; `{}` is allowed.
///
/// # Errors
/// See [`parse`].
pub fn parse_selector(text: &str) -> Result<Vec<Matcher>, ParseError> {
    let run = || {
        let mut p = Parser { tokens: lex(text)?, at: 0, depth: 0, ranges: Vec::new() };
        let matchers = p.matchers()?;
        if *p.peek() == Token::Eof { Ok(matchers) } else { p.unexpected() }
    };
    run().map_err(|f: Fault| f.locate(text))
}

struct Parser {
    tokens: Vec<Placed>,
    at: usize,
    depth: usize,
    ranges: Vec<RangeAggregation>,
}

/// A leg of a binary operation; only metrics can be legs, but that is found out late.
enum Operand {
    Metric(Expr),
    Log(LogExpr),
}

impl Parser {
    fn peek(&self) -> &Token {
        self.ahead(0)
    }

    fn ahead(&self, n: usize) -> &Token {
        self.tokens.get(self.at + n).map_or(&Token::Eof, |t| &t.0)
    }

    fn start(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |t| t.1)
    }

    fn pos_from(&self, start: usize) -> Pos {
        let before = self.at.checked_sub(1).and_then(|i| self.tokens.get(i));
        Pos { start, end: before.map_or(start, |t| t.2) }
    }

    fn next(&mut self) -> Token {
        let t = self.peek().clone();
        self.at += 1;
        t
    }

    /// Says that the current token is wrong.
    fn unexpected<T>(&self) -> Parsed<T> {
        self.unexpected_but("")
    }

    fn unexpected_but<T>(&self, expected: &str) -> Parsed<T> {
        let what = match self.peek() {
            Token::Ident(w) if is_keyword(&w.to_ascii_lowercase(), self.ahead(1)) => {
                w.to_ascii_lowercase()
            }
            Token::Ident(_) => "IDENTIFIER".into(),
            Token::Number(_) => "NUMBER".into(),
            Token::Duration(..) => "DURATION".into(),
            Token::Bytes(..) => "BYTES".into(),
            Token::Range(_) => "RANGE".into(),
            Token::String(_) => "STRING".into(),
            Token::Flag(_) => "PARSER_FLAG".into(),
            Token::Op(op) => (*op).into(),
            Token::Eof => "$end".into(),
        };
        let mut message = format!("syntax error: unexpected {what}");
        if !expected.is_empty() {
            message.push_str(", expecting ");
            message.push_str(expected);
        }
        Err(Fault::at(self.start(), message))
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(o) if *o == op)
    }

    fn eat(&mut self, op: &str) -> bool {
        let hit = self.is_op(op);
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, op: &str) -> Parsed<()> {
        if self.eat(op) { Ok(()) } else { self.unexpected_but(op) }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Ident(w) if w.eq_ignore_ascii_case(word))
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let hit = self.is_word(word);
        self.at += usize::from(hit);
        hit
    }

    fn identifier(&mut self) -> Parsed<String> {
        match self.peek().clone() {
            Token::Ident(name) => {
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected_but("IDENTIFIER"),
        }
    }

    fn string(&mut self) -> Parsed<String> {
        match self.peek().clone() {
            Token::String(s) => {
                self.at += 1;
                Ok(s)
            }
            _ => self.unexpected_but("STRING"),
        }
    }

    /// Reads a number with or without a sign.
    fn number(&mut self) -> Parsed<f64> {
        let negative = self.eat("-");
        if !negative {
            self.eat("+");
        }
        match *self.peek() {
            Token::Number(n) => {
                self.at += 1;
                Ok(if negative { -n } else { n })
            }
            _ => self.unexpected_but("NUMBER"),
        }
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Fault::at(self.start(), "expression is nested too deeply"));
        }
        let out = f(self);
        self.depth -= 1;
        out
    }

    /// Reads items between commas up to and with `close`; a comma may stand before it. `otherwise` is
    /// what an error says may stand behind an item.
    fn list<T>(
        &mut self,
        close: &str,
        otherwise: &str,
        item: impl Fn(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let mut out = Vec::new();
        while !self.eat(close) {
            out.push(item(self)?);
            if !self.eat(",") {
                if !self.eat(close) {
                    return self.unexpected_but(otherwise);
                }
                break;
            }
        }
        Ok(out)
    }

    fn query(&mut self) -> Parsed<Query> {
        let query = if self.is_word("variants") && matches!(self.ahead(1), Token::Op("(")) {
            self.variants()?
        } else {
            match self.binary(0)? {
                Operand::Log(log) => Query::Log(log),
                Operand::Metric(expr) => self.metric_query(vec![expr], None),
            }
        };
        if *self.peek() == Token::Eof { Ok(query) } else { self.unexpected() }
    }

    fn metric_query(&mut self, exprs: Vec<Expr>, of: Option<LogRange>) -> Query {
        Query::Metric(MetricExpr { exprs, ranges: std::mem::take(&mut self.ranges), of })
    }

    fn matchers(&mut self) -> Parsed<Vec<Matcher>> {
        self.expect("{")?;
        self.list("}", "} or ,", Self::matcher)
    }

    fn selector(&mut self) -> Parsed<Vec<Matcher>> {
        let matchers = self.matchers()?;
        if !matchers.iter().any(|m| !m.matches("")) {
            return Err(Fault::nowhere(
                "queries require at least one regexp or equality matcher that does not have an empty-compatible value. For instance, app=~\".*\" does not meet this requirement, but app=~\".+\" will",
            ));
        }
        Ok(matchers)
    }

    fn matcher(&mut self) -> Parsed<Matcher> {
        let name = self.identifier()?;
        let op = self.match_op()?;
        let value = self.string()?;
        // Go's own words for what is wrong are not ours to give.
        Matcher::new(name, op, value).map_err(|e| Fault::nowhere(e.to_string()))
    }

    fn match_op(&mut self) -> Parsed<MatchOp> {
        let op = match self.peek() {
            Token::Op("=") => MatchOp::Equal,
            Token::Op("!=") => MatchOp::NotEqual,
            Token::Op("=~") => MatchOp::Regex,
            Token::Op("!~") => MatchOp::NotRegex,
            _ => return self.unexpected_but("= or =~ or !~ or !="),
        };
        self.at += 1;
        Ok(op)
    }
}

fn is_grouping(t: &Token) -> bool {
    matches!(t, Token::Ident(w) if w.eq_ignore_ascii_case("by") || w.eq_ignore_ascii_case("without"))
}

/// Returns whether a word is printed as itself in errors, as tokens of the grammar are.
fn is_keyword(word: &str, next: &Token) -> bool {
    /// Words that are such only before a parenthesis.
    const CALLED: [&str; 9] = [
        "duration",
        "duration_seconds",
        "bytes",
        "ip",
        "sort",
        "sort_desc",
        "vector",
        "label_replace",
        "variants",
    ];
    const ALWAYS: [&str; 24] = [
        "by",
        "without",
        "bool",
        "offset",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "json",
        "regexp",
        "logfmt",
        "pattern",
        "unpack",
        "unwrap",
        "line_format",
        "label_format",
        "decolorize",
        "drop",
        "keep",
        "distinct",
        "and",
        "or",
        "unless",
        "of",
    ];
    let is_call = matches!(next, Token::Op("(")) || is_grouping(next);
    ALWAYS.contains(&word)
        || (is_call
            && (crate::ast::RangeOp::find(word).is_some()
                || metric::aggregate(word).is_some()
                || CALLED.contains(&word)))
}
