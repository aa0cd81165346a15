//! Log pipelines.

use super::{Fault, Parsed, Parser};
use crate::ast::{
    CompareOp, Conversion, LabelChoice, LabelFilter, LabelFormat, LineFilter, LineMatch, LogExpr,
    Quantity, Stage, Unwrap,
};
use crate::ip::IpFilter;
use crate::lexer::Token;
use crate::parse::{JsonPath, Pattern};
use crate::template::LineTemplate;
use obs_model::{MatchOp, Matcher, go_regex};
use std::collections::BTreeSet;

impl Parser {
    pub(super) fn log_expr(&mut self) -> Parsed<LogExpr> {
        let mut expr = LogExpr { matchers: self.selector()?, stages: Vec::new() };
        self.stages(&mut expr.stages)?;
        Ok(expr)
    }

    /// Reads stages up to an `unwrap` or whatever is no stage.
    pub(super) fn stages(&mut self, stages: &mut Vec<Stage>) -> Parsed<()> {
        loop {
            match self.peek() {
                Token::Op("|=" | "|~" | "!=" | "!~" | "|>" | "!>") => {
                    stages.push(Stage::Line(self.line_filter()?));
                }
                Token::Op("|") => {
                    if self.is_unwrap() {
                        return Ok(());
                    }
                    self.at += 1;
                    stages.push(self.stage()?);
                }
                _ => return Ok(()),
            }
        }
    }

    fn line_filter(&mut self) -> Parsed<LineFilter> {
        let Token::Op(op) = self.next() else { return self.unexpected() };
        let mut any = Vec::new();
        loop {
            any.push(self.line_match(op)?);
            if !self.eat_word("or") {
                return Ok(LineFilter { negated: op.starts_with('!'), any });
            }
        }
    }

    fn line_match(&mut self, op: &str) -> Parsed<LineMatch> {
        let is_contains = matches!(op, "|=" | "!=");
        if self.is_word("ip") && matches!(self.ahead(1), Token::Op("(")) {
            let ip = self.ip()?;
            if !is_contains {
                return Err(Fault::nowhere("filter: invalid operation"));
            }
            if !ip.is_valid() {
                return Err(Fault::nowhere("filter: invalid pattern"));
            }
            return Ok(LineMatch::Ip(ip));
        }
        let text = match self.peek() {
            Token::String(_) => self.string()?,
            _ => return self.unexpected_but("STRING or ip"),
        };
        Ok(match op {
            "|=" | "!=" => LineMatch::Contains(text),
            "|>" | "!>" => LineMatch::Pattern(Pattern::of_filter(&text).map_err(Fault::nowhere)?),
            _ => {
                let regex = go_regex(&text);
                let regex =
                    regex.map_err(|e| Fault::nowhere(format!("error parsing regexp: {e}")))?;
                LineMatch::Regex(regex, text)
            }
        })
    }

    fn ip(&mut self) -> Parsed<IpFilter> {
        self.at += 1;
        self.expect("(")?;
        let text = self.string()?;
        self.expect(")")?;
        Ok(IpFilter::new(text))
    }

    fn stage(&mut self) -> Parsed<Stage> {
        let word = match self.peek().clone() {
            Token::Ident(word) => word,
            Token::Op("(") => return self.label_filter(0).map(Stage::Label),
            _ => return self.unexpected(),
        };
        self.at += 1;
        Ok(match word.to_ascii_lowercase().as_str() {
            "json" => Stage::Json(self.json_fields()?),
            "logfmt" => self.logfmt()?,
            "regexp" => Stage::Regexp(self.regexp()?),
            "pattern" => {
                let text = self.string()?;
                let pattern = Pattern::of_parser(&text);
                Stage::Pattern(pattern.map_err(|m| {
                    Fault::nowhere(format!("error parsing pattern stage {text:?}: {m}"))
                })?)
            }
            "unpack" => Stage::Unpack,
            "line_format" => Stage::LineFormat(self.template("line")?),
            "label_format" => Stage::LabelFormat(self.label_formats()?),
            "decolorize" => Stage::Decolorize,
            "drop" => Stage::Drop(self.choices()?),
            "keep" => Stage::Keep(self.choices()?),
            "distinct" => {
                let mut names = vec![self.identifier()?];
                while self.eat(",") {
                    names.push(self.identifier()?);
                }
                Stage::Distinct(names)
            }
            _ => {
                self.at -= 1;
                Stage::Label(self.label_filter(0)?)
            }
        })
    }

    /// Reads `a, b="c.d"`: (label, expression), the label standing for itself.
    fn fields(&mut self) -> Parsed<Vec<(String, String)>> {
        let mut out = Vec::new();
        if !matches!(self.peek(), Token::Ident(_)) {
            return Ok(out);
        }
        loop {
            let name = self.identifier()?;
            let expression = if self.eat("=") { self.string()? } else { name.clone() };
            out.push((name, expression));
            if !self.eat(",") {
                return Ok(out);
            }
        }
    }

    fn json_fields(&mut self) -> Parsed<Vec<(String, JsonPath)>> {
        let path = |(name, text): (String, String)| match JsonPath::new(&text) {
            Ok(path) => Ok((name, path)),
            Err(m) => Err(Fault::nowhere(format!("cannot parse expression [{text}]: {m}"))),
        };
        self.fields()?.into_iter().map(path).collect()
    }

    fn logfmt(&mut self) -> Parsed<Stage> {
        let (mut strict, mut keep_empty) = (false, false);
        while let Token::Flag(flag) = self.peek() {
            match flag.as_str() {
                "strict" => strict = true,
                "keep-empty" => keep_empty = true,
                _ => return self.unexpected(),
            }
            self.at += 1;
        }
        let fields = self.fields()?;
        for (_, key) in &fields {
            let plain = |c: char| c > ' ' && !matches!(c, '=' | '"');
            if key.is_empty() || !key.chars().all(plain) {
                let message = format!("cannot parse expression [{key}]: not a key");
                return Err(Fault::nowhere(message));
            }
        }
        Ok(Stage::Logfmt { strict, keep_empty, fields })
    }

    fn regexp(&mut self) -> Parsed<regex::Regex> {
        let text = self.string()?;
        let refuse = |m: String| Fault::nowhere(m);
        let regex = go_regex(&text).map_err(|e| refuse(format!("error parsing regexp: {e}")))?;
        let mut seen = BTreeSet::new();
        for name in regex.capture_names().flatten() {
            if !is_label_name(name) {
                return Err(refuse(format!("invalid extracted label name '{name}'")));
            }
            // Rust refuses a name twice by itself.
            seen.insert(name);
        }
        if seen.is_empty() {
            return Err(refuse("at least one named capture must be supplied".into()));
        }
        Ok(regex)
    }

    fn template(&mut self, kind: &str) -> Parsed<LineTemplate> {
        let text = self.string()?;
        LineTemplate::new(&text)
            .map_err(|e| Fault::nowhere(format!("invalid {kind} template: {e}")))
    }

    fn label_formats(&mut self) -> Parsed<Vec<LabelFormat>> {
        let mut out: Vec<LabelFormat> = Vec::new();
        loop {
            let to = self.identifier()?;
            self.expect("=")?;
            let format = if matches!(self.peek(), Token::String(_)) {
                LabelFormat::Template { template: self.template("label")?, to }
            } else {
                LabelFormat::Rename { from: self.identifier()?, to }
            };
            let to = format.target();
            if to == crate::labels::ERROR {
                return Err(Fault::nowhere(format!("{to} cannot be formatted")));
            }
            if out.iter().any(|f| f.target() == to) {
                return Err(Fault::nowhere(format!(
                    "multiple label name '{to}' not allowed in a single format operation"
                )));
            }
            out.push(format);
            if !self.eat(",") {
                return Ok(out);
            }
        }
    }

    fn choices(&mut self) -> Parsed<Vec<LabelChoice>> {
        let mut out = Vec::new();
        loop {
            let is_matcher = matches!(self.ahead(1), Token::Op("=" | "!=" | "=~" | "!~"))
                && matches!(self.ahead(2), Token::String(_));
            out.push(if is_matcher {
                LabelChoice::Matching(self.matcher()?)
            } else {
                LabelChoice::Name(self.identifier()?)
            });
            if !self.eat(",") {
                return Ok(out);
            }
        }
    }

    /// Reads label filters. A comma, or nothing at all between two filters, means `and` and takes
    /// everything that follows, whatever binds it: that is how Loki's grammar resolves it.
    pub(super) fn label_filter(&mut self, min: u8) -> Parsed<LabelFilter> {
        self.deeper(|p| {
            let mut left = p.label_unit()?;
            loop {
                let both = |l, r| LabelFilter::And(Box::new(l), Box::new(r));
                if p.is_op(",") || p.starts_filter() {
                    p.eat(",");
                    left = both(left, p.label_filter(0)?);
                } else if p.is_word("and") {
                    p.at += 1;
                    left = both(left, p.label_filter(2)?);
                } else if min <= 1 && p.is_word("or") {
                    p.at += 1;
                    left = LabelFilter::Or(Box::new(left), Box::new(p.label_filter(2)?));
                } else {
                    return Ok(left);
                }
            }
        })
    }

    fn starts_filter(&self) -> bool {
        match self.peek() {
            Token::Op("(") => true,
            Token::Ident(w) => !w.eq_ignore_ascii_case("and") && !w.eq_ignore_ascii_case("or"),
            _ => false,
        }
    }

    fn label_unit(&mut self) -> Parsed<LabelFilter> {
        if self.eat("(") {
            let inner = self.label_filter(0)?;
            return if self.eat(")") { Ok(inner) } else { self.unexpected() };
        }
        let name = self.identifier()?;
        let op_at = self.at;
        let Token::Op(op) = *self.peek() else { return self.unexpected() };
        let compare = match op {
            "=" | "==" => Some(CompareOp::Equal),
            "!=" => Some(CompareOp::NotEqual),
            ">" => Some(CompareOp::Greater),
            ">=" => Some(CompareOp::GreaterEqual),
            "<" => Some(CompareOp::Less),
            "<=" => Some(CompareOp::LessEqual),
            "=~" | "!~" => None,
            _ => return self.unexpected(),
        };
        self.at += 1;
        if self.is_word("ip") && matches!(self.ahead(1), Token::Op("(")) {
            if matches!(op, "=~" | "!~") {
                return self.unexpected_but("STRING");
            }
            if !matches!(op, "=" | "==" | "!=") {
                return self.unexpected_but("BYTES or NUMBER or DURATION");
            }
            return Ok(LabelFilter::Ip { name, negated: op == "!=", ip: self.ip()? });
        }
        if let Token::String(_) = self.peek() {
            if !matches!(op, "=" | "!=" | "=~" | "!~") {
                return self.unexpected_but("BYTES or NUMBER or DURATION");
            }
            self.at = op_at;
            let op: MatchOp = self.match_op()?;
            let value = self.string()?;
            let matcher = Matcher::new(name, op, value);
            return matcher.map(LabelFilter::Matches).map_err(|e| Fault::nowhere(e.to_string()));
        }
        let Some(op) = compare else { return self.unexpected_but("STRING") };
        let negative = self.eat("-");
        if !negative {
            self.eat("+");
        }
        let (value, mut text) = match self.peek().clone() {
            Token::Number(n) => (Quantity::Number(n), obs_promql::format_float(n)),
            Token::Duration(n, text) => (Quantity::Duration(n), text),
            Token::Bytes(n, text) => (Quantity::Bytes(n), text),
            _ => return self.unexpected(),
        };
        self.at += 1;
        if negative {
            text.insert(0, '-');
        }
        let value = match value {
            Quantity::Number(n) if negative => Quantity::Number(-n),
            Quantity::Duration(n) if negative => Quantity::Duration(-n),
            other => other,
        };
        Ok(LabelFilter::Compare { name, op, value, text })
    }

    /// Returns whether `unwrap` follows the current token.
    fn is_unwrap(&self) -> bool {
        matches!(self.ahead(1), Token::Ident(w) if w.eq_ignore_ascii_case("unwrap"))
    }

    /// Reads `| unwrap …` with its filters, if it stands here.
    pub(super) fn unwrap_stage(&mut self) -> Parsed<Option<Unwrap>> {
        if !self.is_op("|") || !self.is_unwrap() {
            return Ok(None);
        }
        self.at += 2;
        let word = self.identifier()?;
        let conversion = match word.to_ascii_lowercase().as_str() {
            "duration" => Some(Conversion::Duration(false)),
            "duration_seconds" => Some(Conversion::Duration(true)),
            "bytes" => Some(Conversion::Bytes),
            _ => None,
        };
        let (label, conversion) = match conversion {
            Some(c) if self.eat("(") => {
                let label = self.identifier()?;
                self.expect(")")?;
                (label, c)
            }
            _ => (word, Conversion::Number),
        };
        let mut filters = Vec::new();
        while self.eat("|") {
            filters.push(self.label_filter(0)?);
        }
        Ok(Some(Unwrap { label, conversion, filters }))
    }
}

fn is_label_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
