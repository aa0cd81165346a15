//! Lexer and parser.

use crate::ast::{
    CompareOp, LabelFilter, LineFilter, LineMatch, LogExpr, MetricExpr, Quantity, Query,
    RangeAggregation, RangeOp, Stage,
};
use obs_model::{METRIC_NAME, MatchOp, Matcher};
use obs_promql::ast::{
    AggregateOp, BinaryOp, Cardinality, Expr, Function, Grouping, Matching, Pos, Selector,
};

const DEPTH_MAX: usize = 100;
const TEXT_BYTES_MAX: usize = 128 * 1024;

/// A query that cannot be run, with line and column as Loki prints them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse error at line {line}, col {column}: {message}")]
pub struct ParseError {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Ident(String),
    /// A number, duration or byte size, as written.
    Quantity(String),
    String(String),
    Op(&'static str),
    Eof,
}

struct Fault {
    at: usize,
    message: String,
}

type Parsed<T> = Result<T, Fault>;

const OPERATORS: [&str; 30] = [
    "|=", "|~", "|>", "!=", "!~", "!>", "=~", "==", ">=", "<=", "|", "=", ">", "<", "{", "}", "(",
    ")", "[", "]", ",", "+", "-", "*", "/", "%", "^", ":", "@", ".",
];

fn lex(text: &str) -> Parsed<Vec<(Token, usize, usize)>> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|r| !r.is_empty()) {
        let c = rest.chars().next().unwrap_or(' ');
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        if c == '#' {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        let start = at;
        let word = |extra: &str| {
            rest.find(|d: char| !(d.is_ascii_alphanumeric() || d == '_' || extra.contains(d)))
                .unwrap_or(rest.len())
        };
        let token = if c.is_ascii_alphabetic() || c == '_' {
            at += word("");
            Token::Ident(text.get(start..at).unwrap_or_default().to_owned())
        } else if c.is_ascii_digit() {
            at += word(".");
            Token::Quantity(text.get(start..at).unwrap_or_default().to_owned())
        } else if c == '`' {
            let end = rest
                .get(1..)
                .and_then(|r| r.find('`'))
                .ok_or_else(|| Fault { at, message: "literal not terminated".into() })?;
            at += end + 2;
            Token::String(rest.get(1..=end).unwrap_or_default().to_owned())
        } else if c == '"' {
            let (value, len) = quoted(rest)
                .ok_or_else(|| Fault { at, message: "literal not terminated".into() })?;
            at += len;
            Token::String(value)
        } else {
            let op = OPERATORS.iter().find(|op| rest.starts_with(**op));
            let op = op.ok_or_else(|| Fault {
                at,
                message: format!("syntax error: unexpected character {c:?}"),
            })?;
            at += op.len();
            Token::Op(op)
        };
        out.push((token, start, at));
    }
    out.push((Token::Eof, text.len(), text.len()));
    Ok(out)
}

/// Reads a double-quoted string with Go's common escapes; returns it and its length.
fn quoted(rest: &str) -> Option<(String, usize)> {
    let mut out = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((out, i + 1)),
            '\n' => return None,
            '\\' => out.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'u' => {
                    let hex: String = (0..4).map_while(|_| chars.next().map(|(_, c)| c)).collect();
                    char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?
                }
                other @ ('"' | '\\' | '\'' | '/') => other,
                _ => return None,
            }),
            c => out.push(c),
        }
    }
    None
}

/// Parses a query.
///
/// # Errors
/// With position and reason when the text is not supported LogQL.
pub fn parse(text: &str) -> Result<Query, ParseError> {
    let place = |f: Fault| {
        let before = text.get(..f.at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        ParseError { line, column, message: f.message }
    };
    if text.len() > TEXT_BYTES_MAX {
        return Err(place(Fault {
            at: 0,
            message: format!("query is longer than {TEXT_BYTES_MAX} bytes"),
        }));
    }
    let tokens = lex(text).map_err(place)?;
    let mut p = Parser { tokens, at: 0, depth: 0, ranges: Vec::new() };
    p.query().map_err(place)
}

struct Parser {
    tokens: Vec<(Token, usize, usize)>,
    at: usize,
    depth: usize,
    ranges: Vec<RangeAggregation>,
}

fn pos(start: usize, end: usize) -> Pos {
    Pos { start, end }
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::Eof, |t| &t.0)
    }

    fn start(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |t| t.1)
    }

    fn next(&mut self) -> Token {
        let t = self.peek().clone();
        self.at += 1;
        t
    }

    fn fail<T>(&self, at: usize, message: impl Into<String>) -> Parsed<T> {
        Err(Fault { at, message: message.into() })
    }

    fn unexpected<T>(&self) -> Parsed<T> {
        let what = match self.peek() {
            Token::Ident(s) => s.clone(),
            Token::Quantity(_) => "NUMBER".into(),
            Token::String(_) => "STRING".into(),
            Token::Op(op) => (*op).into(),
            Token::Eof => "$end".into(),
        };
        self.fail(self.start(), format!("syntax error: unexpected {what}"))
    }

    fn eat(&mut self, op: &str) -> bool {
        let hit = matches!(self.peek(), Token::Op(o) if *o == op);
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, op: &str) -> Parsed<()> {
        if self.eat(op) { Ok(()) } else { self.unexpected() }
    }

    fn keyword(&mut self, word: &str) -> bool {
        let hit = matches!(self.peek(), Token::Ident(w) if w.eq_ignore_ascii_case(word));
        self.at += usize::from(hit);
        hit
    }

    fn query(&mut self) -> Parsed<Query> {
        let mut ahead = self.at;
        while matches!(self.tokens.get(ahead), Some((Token::Op("("), ..))) {
            ahead += 1;
        }
        let query = if matches!(self.tokens.get(ahead), Some((Token::Op("{"), ..))) {
            let parens = ahead - self.at;
            self.at = ahead;
            let log = self.log_expr()?;
            for _ in 0..parens {
                self.expect(")")?;
            }
            Query::Log(log)
        } else {
            let expr = self.metric(0)?;
            Query::Metric(MetricExpr { expr, ranges: std::mem::take(&mut self.ranges) })
        };
        if *self.peek() == Token::Eof { Ok(query) } else { self.unexpected() }
    }

    fn log_expr(&mut self) -> Parsed<LogExpr> {
        Ok(LogExpr { matchers: self.selector()?, stages: self.stages()? })
    }

    fn stages(&mut self) -> Parsed<Vec<Stage>> {
        let mut stages = Vec::new();
        loop {
            match self.peek() {
                Token::Op("|=" | "|~" | "!=" | "!~") => {
                    stages.push(Stage::Line(self.line_filter()?))
                }
                Token::Op("|") => {
                    self.at += 1;
                    stages.push(self.stage()?);
                }
                Token::Op("|>" | "!>") => {
                    return self.fail(self.start(), "pattern line filters are not supported yet");
                }
                _ => return Ok(stages),
            }
        }
    }

    fn selector(&mut self) -> Parsed<Vec<Matcher>> {
        let open = self.start();
        self.expect("{")?;
        let mut matchers = Vec::new();
        while !self.eat("}") {
            let at = self.start();
            let Token::Ident(name) = self.next() else {
                self.at -= 1;
                return self.unexpected();
            };
            let op = self.match_op()?;
            let Token::String(value) = self.next() else {
                self.at -= 1;
                return self.unexpected();
            };
            matchers.push(
                Matcher::new(name, op, value).map_err(|e| Fault { at, message: e.to_string() })?,
            );
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        if !matchers.iter().any(|m| !m.matches("")) {
            let text = "queries require at least one regexp or equality matcher that does not have an empty-compatible value. For instance, app=~\".*\" does not meet this requirement, but app=~\".+\" will";
            return self.fail(open, text);
        }
        Ok(matchers)
    }

    fn match_op(&mut self) -> Parsed<MatchOp> {
        let op = match self.peek() {
            Token::Op("=") => MatchOp::Equal,
            Token::Op("!=") => MatchOp::NotEqual,
            Token::Op("=~") => MatchOp::Regex,
            Token::Op("!~") => MatchOp::NotRegex,
            _ => return self.unexpected(),
        };
        self.at += 1;
        Ok(op)
    }

    fn line_filter(&mut self) -> Parsed<LineFilter> {
        let Token::Op(op) = self.next() else { return self.unexpected() };
        let mut any = Vec::new();
        loop {
            let at = self.start();
            match self.next() {
                Token::String(s) if matches!(op, "|=" | "!=") => any.push(LineMatch::Contains(s)),
                Token::String(s) => {
                    let regex = regex::RegexBuilder::new(&s).size_limit(1 << 20).build();
                    any.push(LineMatch::Regex(regex.map_err(|e| Fault {
                        at,
                        message: format!("error parsing regexp: {e}"),
                    })?));
                }
                Token::Ident(f) if f == "ip" => {
                    return self.fail(at, "ip() filters are not supported yet");
                }
                _ => {
                    self.at -= 1;
                    return self.unexpected();
                }
            }
            if !self.keyword("or") {
                return Ok(LineFilter { negated: op.starts_with('!'), any });
            }
        }
    }

    fn stage(&mut self) -> Parsed<Stage> {
        let at = self.start();
        let next_is_op = matches!(
            self.tokens.get(self.at + 1),
            Some((Token::Op("=" | "==" | "!=" | "=~" | "!~" | ">" | ">=" | "<" | "<="), ..))
        );
        if !next_is_op && let Token::Ident(word) = self.peek().clone() {
            match word.as_str() {
                "json" | "logfmt" => {
                    self.at += 1;
                    if matches!(self.peek(), Token::Ident(_) | Token::String(_))
                        || matches!(self.peek(), Token::Op("-"))
                    {
                        return self.fail(
                            self.start(),
                            format!(
                                "expressions and flags of the {word} parser are not supported yet"
                            ),
                        );
                    }
                    return Ok(if word == "json" { Stage::Json } else { Stage::Logfmt });
                }
                "pattern" | "regexp" | "unpack" | "line_format" | "label_format" | "decolorize"
                | "drop" | "keep" | "distinct" | "unwrap" => {
                    return self.fail(at, format!("stage {word:?} is not supported yet"));
                }
                _ => {}
            }
        }
        self.label_or().map(Stage::Label)
    }

    fn label_or(&mut self) -> Parsed<LabelFilter> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.fail(self.start(), "expression is nested too deeply");
        }
        let mut left = self.label_and()?;
        while self.keyword("or") {
            left = LabelFilter::Or(Box::new(left), Box::new(self.label_and()?));
        }
        self.depth -= 1;
        Ok(left)
    }

    fn label_and(&mut self) -> Parsed<LabelFilter> {
        let mut left = self.label_unit()?;
        // A comma, or nothing but the next filter, is an `and` too.
        while self.keyword("and") || self.eat(",") {
            left = LabelFilter::And(Box::new(left), Box::new(self.label_unit()?));
        }
        Ok(left)
    }

    fn label_unit(&mut self) -> Parsed<LabelFilter> {
        if self.eat("(") {
            let inner = self.label_or()?;
            self.expect(")")?;
            return Ok(inner);
        }
        let at = self.start();
        let Token::Ident(name) = self.next() else {
            self.at -= 1;
            return self.unexpected();
        };
        let Token::Op(op) = self.next() else {
            self.at -= 1;
            return self.unexpected();
        };
        match self.next() {
            Token::String(value) => {
                let op = match op {
                    "=" => MatchOp::Equal,
                    "!=" => MatchOp::NotEqual,
                    "=~" => MatchOp::Regex,
                    "!~" => MatchOp::NotRegex,
                    _ => {
                        self.at -= 1;
                        return self.unexpected();
                    }
                };
                Matcher::new(name, op, value)
                    .map(LabelFilter::Matches)
                    .map_err(|e| Fault { at, message: e.to_string() })
            }
            Token::Quantity(text) => self.compare(name, op, &text, 1.0),
            Token::Op("-") => match self.next() {
                Token::Quantity(text) => self.compare(name, op, &text, -1.0),
                _ => {
                    self.at -= 1;
                    self.unexpected()
                }
            },
            Token::Ident(f) if f == "ip" => self.fail(at, "ip() filters are not supported yet"),
            _ => {
                self.at -= 1;
                self.unexpected()
            }
        }
    }

    fn compare(&self, name: String, op: &str, text: &str, sign: f64) -> Parsed<LabelFilter> {
        let op = match op {
            "=" | "==" => CompareOp::Equal,
            "!=" => CompareOp::NotEqual,
            ">" => CompareOp::Greater,
            ">=" => CompareOp::GreaterEqual,
            "<" => CompareOp::Less,
            "<=" => CompareOp::LessEqual,
            _ => return self.unexpected(),
        };
        let quantity = text.parse().map(|n: f64| Quantity::Number(n * sign)).ok();
        let quantity = quantity.or_else(|| {
            crate::pipeline::parse_duration_ns(text).map(|n| Quantity::Duration(n * sign))
        });
        let quantity = quantity.or_else(|| crate::pipeline::parse_bytes(text).map(Quantity::Bytes));
        match quantity {
            Some(value) => Ok(LabelFilter::Compare { name, op, value }),
            None => self.fail(
                self.start(),
                format!("syntax error: {text:?} is no number, duration or size"),
            ),
        }
    }

    /// Parses metric operators that bind at least as tightly as `min`.
    fn metric(&mut self, min: u8) -> Parsed<Expr> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.fail(self.start(), "expression is nested too deeply");
        }
        let mut left = self.metric_unit()?;
        while let Some((op, precedence)) = self.binary_op() {
            if precedence < min {
                break;
            }
            self.at += 1;
            let bool_modifier = self.keyword("bool");
            let matching = self.matching()?;
            let right =
                self.metric(if op == BinaryOp::Pow { precedence } else { precedence + 1 })?;
            let p = pos(left.pos().start, right.pos().end);
            left = Expr::Binary {
                op,
                lhs: Box::new(left),
                rhs: Box::new(right),
                bool_modifier,
                matching,
                pos: p,
            };
        }
        self.depth -= 1;
        Ok(left)
    }

    fn binary_op(&self) -> Option<(BinaryOp, u8)> {
        Some(match self.peek() {
            Token::Ident(w) => match w.as_str() {
                "or" => (BinaryOp::Or, 1),
                "and" => (BinaryOp::And, 2),
                "unless" => (BinaryOp::Unless, 2),
                _ => return None,
            },
            Token::Op(op) => match *op {
                "==" => (BinaryOp::Eq, 3),
                "!=" => (BinaryOp::Ne, 3),
                ">" => (BinaryOp::Gt, 3),
                ">=" => (BinaryOp::Ge, 3),
                "<" => (BinaryOp::Lt, 3),
                "<=" => (BinaryOp::Le, 3),
                "+" => (BinaryOp::Add, 4),
                "-" => (BinaryOp::Sub, 4),
                "*" => (BinaryOp::Mul, 5),
                "/" => (BinaryOp::Div, 5),
                "%" => (BinaryOp::Mod, 5),
                "^" => (BinaryOp::Pow, 6),
                _ => return None,
            },
            _ => return None,
        })
    }

    fn matching(&mut self) -> Parsed<Matching> {
        let mut m = Matching { on: self.keyword("on"), ..Matching::default() };
        if m.on || self.keyword("ignoring") {
            m.labels = self.label_list()?;
            for (word, cardinality) in
                [("group_left", Cardinality::ManyToOne), ("group_right", Cardinality::OneToMany)]
            {
                if self.keyword(word) {
                    m.cardinality = cardinality;
                    if matches!(self.peek(), Token::Op("(")) {
                        m.include = self.label_list()?;
                    }
                }
            }
        }
        Ok(m)
    }

    fn label_list(&mut self) -> Parsed<Vec<String>> {
        self.expect("(")?;
        let mut out = Vec::new();
        while !self.eat(")") {
            let Token::Ident(name) = self.next() else {
                self.at -= 1;
                return self.unexpected();
            };
            out.push(name);
            if !self.eat(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(out)
    }

    fn metric_unit(&mut self) -> Parsed<Expr> {
        let at = self.start();
        match self.next() {
            Token::Op("(") => {
                let inner = self.metric(0)?;
                self.expect(")")?;
                Ok(Expr::Paren(Box::new(inner)))
            }
            Token::Op("-") => match self.next() {
                Token::Quantity(n) => {
                    self.number(&n, at).map(|n| Expr::Number(-n, pos(at, self.start())))
                }
                _ => {
                    self.at -= 1;
                    self.unexpected()
                }
            },
            Token::Quantity(n) => {
                self.number(&n, at).map(|n| Expr::Number(n, pos(at, self.start())))
            }
            Token::Ident(word) => self.call(&word, at),
            _ => {
                self.at -= 1;
                self.unexpected()
            }
        }
    }

    fn number(&self, text: &str, at: usize) -> Parsed<f64> {
        text.parse().or_else(|_| self.fail(at, format!("syntax error: {text:?} is not a number")))
    }

    fn call(&mut self, word: &str, at: usize) -> Parsed<Expr> {
        let range = match word {
            "rate" => Some(RangeOp::Rate),
            "count_over_time" => Some(RangeOp::Count),
            "bytes_rate" => Some(RangeOp::BytesRate),
            "bytes_over_time" => Some(RangeOp::Bytes),
            _ => None,
        };
        if let Some(op) = range {
            return self.range_aggregation(op, at);
        }
        if let Some(op) = AggregateOp::parse(word).filter(|op| {
            !matches!(op, AggregateOp::Group | AggregateOp::Quantile | AggregateOp::CountValues)
        }) {
            return self.aggregation(op, at);
        }
        match (word, Function::find(word)) {
            ("vector" | "sort" | "sort_desc", Some(function)) => {
                self.expect("(")?;
                let arg = self.metric(0)?;
                self.expect(")")?;
                Ok(Expr::Call { function, args: vec![arg], pos: pos(at, self.start()) })
            }
            _ if word.ends_with("_over_time")
                || matches!(
                    word,
                    "label_replace" | "rate_counter" | "approx_topk" | "variants"
                ) =>
            {
                self.fail(at, format!("function {word:?} is not supported yet"))
            }
            _ => self.fail(at, format!("syntax error: unexpected {word}")),
        }
    }

    fn aggregation(&mut self, op: AggregateOp, at: usize) -> Parsed<Expr> {
        let before = self.grouping()?;
        self.expect("(")?;
        let param = if op.parameter().is_some() {
            let p = self.metric(0)?;
            self.expect(",")?;
            Some(Box::new(p))
        } else {
            None
        };
        let inner = self.metric(0)?;
        self.expect(")")?;
        let grouping = match before {
            Some(g) => g,
            None => self.grouping()?.unwrap_or_default(),
        };
        Ok(Expr::Aggregate {
            op,
            expr: Box::new(inner),
            param,
            grouping,
            pos: pos(at, self.start()),
        })
    }

    fn grouping(&mut self) -> Parsed<Option<Grouping>> {
        let without = self.keyword("without");
        if !without && !self.keyword("by") {
            return Ok(None);
        }
        Ok(Some(Grouping { without, labels: self.label_list()? }))
    }

    fn range_aggregation(&mut self, op: RangeOp, at: usize) -> Parsed<Expr> {
        self.expect("(")?;
        // The range may stand after the selector or after the whole pipeline.
        let matchers = self.selector()?;
        let mut range = self.range()?;
        let expr = LogExpr { matchers, stages: self.stages()? };
        if range.is_none() {
            range = self.range()?;
        }
        let Some(range_ms) = range else { return self.unexpected() };
        let offset_ms = if self.keyword("offset") { self.duration()? } else { 0 };
        self.expect(")")?;
        if matches!(self.peek(), Token::Ident(w) if w == "by" || w == "without") {
            return self.fail(self.start(), "grouping not allowed for this range aggregation");
        }
        let name = format!("range_{}", self.ranges.len());
        self.ranges.push(RangeAggregation { op, expr, range_ms, offset_ms });
        let matchers = vec![Matcher::equal(METRIC_NAME, name)];
        Ok(Expr::Selector(Selector {
            matchers,
            is_named: true,
            offset_ms: 0,
            offset_expr: None,
            at: None,
            extension: None,
            pos: pos(at, self.start()),
        }))
    }

    fn range(&mut self) -> Parsed<Option<i64>> {
        if !self.eat("[") {
            return Ok(None);
        }
        let ms = self.duration()?;
        self.expect("]")?;
        Ok(Some(ms))
    }

    fn duration(&mut self) -> Parsed<i64> {
        let at = self.start();
        let Token::Quantity(text) = self.next() else {
            self.at -= 1;
            return self.unexpected();
        };
        let ms = crate::pipeline::parse_duration_ns(&text)
            .map(|ns| (ns / 1e6) as i64)
            .filter(|ms| *ms > 0);
        ms.map_or_else(|| self.fail(at, format!("not a valid duration string: {text:?}")), Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dashboards_write_parses() {
        for text in [
            r#"{app="a"}"#,
            r#"{app=~"a|b", env!="x"} |= "err" != "timeout" |~ "a.*b""#,
            r#"{a="b"} | json | level="error" and duration > 1.5s or status >= 500"#,
            r#"{a="b"} | logfmt | size > 10KB, x="y""#,
            r#"rate({a="b"}[5m])"#,
            r#"sum by (level) (count_over_time({a="b"} |= "x" | json [1m] offset 5m))"#,
            r#"sum(rate({a="b"}[1m])) / sum(rate({a="c"}[1m])) * 100"#,
            "vector(1)+vector(1)",
            r#"topk(5, sum(rate({a="b"}[1m])) by (x))"#,
            r#"({a="b"} |= `raw "x"`)"#,
            r#"{a="b"} |= "x" or "y""#,
            r#"{a="b"} | (x=1 or y=2) and z!~"q""#,
        ] {
            parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        }
    }

    #[test]
    fn errors_say_where() {
        let cases = [
            ("{", "parse error at line 1, col 2: syntax error: unexpected $end"),
            ("{}", "parse error at line 1, col 1: queries require at least one"),
            (r#"{a=~".*"}"#, "parse error at line 1, col 1: queries require at least one"),
            (
                r#"{a="b"} | line_format "x""#,
                "parse error at line 1, col 11: stage \"line_format\" is not supported yet",
            ),
            (
                r#"sum_over_time({a="b"} | unwrap x [5m])"#,
                "parse error at line 1, col 1: function \"sum_over_time\" is not supported yet",
            ),
            (r#"rate({a="b"})"#, "parse error at line 1, col 13: syntax error: unexpected )"),
            (r#"{a="b"} |= "x"#, "parse error at line 1, col 12: literal not terminated"),
        ];
        for (text, want) in cases {
            let got = parse(text).unwrap_err().to_string();
            assert!(got.starts_with(want), "{text}: {got}");
        }
        assert!(parse(&"(".repeat(5000)).is_err());
    }
}
