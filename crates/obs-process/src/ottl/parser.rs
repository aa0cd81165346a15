//! Words → statements and conditions. What a record has not got is refused here, not when a record
//! comes.

use super::lexer::{Token, tokens};
use super::{
    Arithmetic, Comparison, Cond, Editor, Expr, FUNCTIONS, Function, Key, Place, Statement,
    Strategy, Target,
};
use crate::context::{Of, field};
use obs_model::{AttributeValue, go_regex};
use regex::Regex;

/// Nesting past which a statement is refused: a parenthesis is read in two ways.
const DEPTH_MAX: usize = 24;

/// Numbers that have names.
const ENUMS: &[(&str, i64)] = &[
    ("SPAN_KIND_UNSPECIFIED", 0),
    ("SPAN_KIND_INTERNAL", 1),
    ("SPAN_KIND_SERVER", 2),
    ("SPAN_KIND_CLIENT", 3),
    ("SPAN_KIND_PRODUCER", 4),
    ("SPAN_KIND_CONSUMER", 5),
    ("STATUS_CODE_UNSET", 0),
    ("STATUS_CODE_OK", 1),
    ("STATUS_CODE_ERROR", 2),
    ("METRIC_DATA_TYPE_NONE", 0),
    ("METRIC_DATA_TYPE_GAUGE", 1),
    ("METRIC_DATA_TYPE_SUM", 2),
    ("METRIC_DATA_TYPE_HISTOGRAM", 3),
    ("METRIC_DATA_TYPE_EXPONENTIAL_HISTOGRAM", 4),
    ("METRIC_DATA_TYPE_SUMMARY", 5),
    ("AGGREGATION_TEMPORALITY_UNSPECIFIED", 0),
    ("AGGREGATION_TEMPORALITY_DELTA", 1),
    ("AGGREGATION_TEMPORALITY_CUMULATIVE", 2),
];

/// Returns the number of an enumeration's name.
pub(crate) fn enumerated(name: &str) -> Option<i64> {
    if let Some(rest) = name.strip_prefix("SEVERITY_NUMBER_") {
        const LEVELS: [&str; 6] = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"];
        if rest == "UNSPECIFIED" {
            return Some(0);
        }
        let level = rest.trim_end_matches(|c: char| c.is_ascii_digit());
        let step = rest.get(level.len()..).filter(|s| !s.is_empty()).unwrap_or("1");
        let base = LEVELS.iter().position(|l| *l == level)?;
        let step: usize = step.parse().ok().filter(|s| (1..=4).contains(s))?;
        return i64::try_from(base * 4 + step).ok();
    }
    ENUMS.iter().find(|e| e.0 == name).map(|e| e.1)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    of: Of,
    depth: usize,
}

type Parsed<T> = Result<T, String>;

/// An argument, with its name if it has one.
struct Argument {
    name: Option<String>,
    value: Expr,
}

/// Parses a statement over records of a kind.
pub(crate) fn statement(text: &str, of: Of) -> Parsed<Statement> {
    let run = || {
        let mut p = Parser { tokens: tokens(text)?, at: 0, of, depth: 0 };
        let s = p.statement()?;
        p.end()?;
        Ok(s)
    };
    run().map_err(|e: String| format!("{text:?}: {e}"))
}

/// Parses a condition over records of a kind.
pub(crate) fn condition(text: &str, of: Of) -> Parsed<Cond> {
    let run = || {
        let mut p = Parser { tokens: tokens(text)?, at: 0, of, depth: 0 };
        let c = p.or()?;
        p.end()?;
        Ok(c)
    };
    run().map_err(|e: String| format!("{text:?}: {e}"))
}

fn literal_text(e: &Expr) -> Option<&str> {
    if let Expr::Literal(v) = e { v.as_str() } else { None }
}

fn pattern(e: &Expr) -> Parsed<Regex> {
    let text = literal_text(e).ok_or("a pattern must be a string")?;
    go_regex(text).map_err(|e| format!("{text:?} is no regular expression: {e}"))
}

/// Turns a glob of `*` and `?` into a pattern of the whole value.
fn glob(e: &Expr) -> Parsed<Regex> {
    let text = literal_text(e).ok_or("a pattern must be a string")?;
    let escaped = regex::escape(text).replace("\\*", "(?s:.*)").replace("\\?", "(?s:.)");
    Regex::new(&format!("^{escaped}$")).map_err(|e| e.to_string())
}

fn literal_int(e: &Expr) -> Parsed<usize> {
    match e {
        Expr::Literal(AttributeValue::Int(i)) => {
            usize::try_from(*i).map_err(|_| format!("{i} must not be negative"))
        }
        _ => Err("a whole number is wanted".into()),
    }
}

fn list(e: Expr) -> Parsed<Vec<Expr>> {
    if let Expr::List(l) = e { Ok(l) } else { Err("a list is wanted".into()) }
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|t| &t.1)
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Token::Sign(s)) if *s == sign)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(w)) if w == word)
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Parsed<()> {
        if self.take(sign) { Ok(()) } else { Err(self.unexpected(&format!("{sign:?}"))) }
    }

    fn unexpected(&self, wanted: &str) -> String {
        match self.tokens.get(self.at) {
            Some((at, _)) => format!("{wanted} is wanted at column {}", at + 1),
            None => format!("{wanted} is wanted at the end"),
        }
    }

    fn end(&self) -> Parsed<()> {
        if self.at >= self.tokens.len() { Ok(()) } else { Err(self.unexpected("the end")) }
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("it is nested too deeply".into());
        }
        let out = f(self);
        self.depth -= 1;
        out
    }

    fn statement(&mut self) -> Parsed<Statement> {
        let Some(Token::Word(name)) = self.peek().cloned() else {
            return Err(self.unexpected("the name of an editor"));
        };
        self.at += 1;
        let args = self.arguments()?;
        let editor = self.editor(&name, args).map_err(|e| format!("{name}: {e}"))?;
        let condition = if self.take_word("where") { Some(self.or()?) } else { None };
        Ok(Statement { editor, condition })
    }

    fn arguments(&mut self) -> Parsed<Vec<Argument>> {
        self.expect("(")?;
        let mut out = Vec::new();
        while !self.take(")") {
            if !out.is_empty() {
                self.expect(",")?;
            }
            let named = match (self.peek(), self.tokens.get(self.at + 1)) {
                (Some(Token::Word(w)), Some((_, Token::Sign("=")))) => Some(w.clone()),
                _ => None,
            };
            self.at += if named.is_some() { 2 } else { 0 };
            out.push(Argument { name: named, value: self.deeper(Self::sum)? });
        }
        Ok(out)
    }

    fn editor(&self, name: &str, args: Vec<Argument>) -> Parsed<Editor> {
        let (mut named, mut plain) = (Vec::new(), Vec::new());
        for a in args {
            match a.name {
                Some(n) => named.push((n, a.value)),
                None => plain.push(a.value),
            }
        }
        let mut plain = plain.into_iter();
        let mut next = |key: &str| -> Parsed<Expr> {
            let by_name = named.iter().position(|(n, _)| n == key).map(|i| named.swap_remove(i).1);
            by_name.or_else(|| plain.next()).ok_or_else(|| format!("argument {key} is missing"))
        };
        let place = |e: Expr| match e {
            Expr::Place(p) => self.settable(p),
            _ => Err("the first argument must be a path".to_owned()),
        };
        let target = place(next("target")?)?;
        let editor = match name {
            "set" => Editor::Set(target, next("value")?),
            "append" => match next("value") {
                Ok(v) => Editor::Append(target, v),
                Err(_) => Editor::Append(target, next("values")?),
            },
            "delete_key" => Editor::DeleteKeys(target, vec![next("key")?]),
            "delete_keys" => Editor::DeleteKeys(target, list(next("keys")?)?),
            "delete_matching_keys" => Editor::DeleteMatching(target, pattern(&next("pattern")?)?),
            "keep_keys" => Editor::KeepKeys(target, list(next("keys")?)?),
            "keep_matching_keys" => Editor::KeepMatching(target, pattern(&next("pattern")?)?),
            "flatten" => {
                let prefix = next("prefix").ok();
                Editor::Flatten(target, prefix.and_then(|p| literal_text(&p).map(str::to_owned)))
            }
            "limit" => {
                let n = literal_int(&next("limit")?)?;
                let keep = list(next("priority_keys")?)?;
                let keep = keep.iter().filter_map(literal_text).map(str::to_owned).collect();
                Editor::Limit(target, n, keep)
            }
            "merge_maps" => {
                let source = next("source")?;
                let strategy = match literal_text(&next("strategy")?) {
                    Some("insert") => Strategy::Insert,
                    Some("update") => Strategy::Update,
                    Some("upsert") => Strategy::Upsert,
                    _ => return Err("the strategy is insert, update or upsert".into()),
                };
                Editor::Merge(target, source, strategy)
            }
            "replace_match" => {
                Editor::ReplaceMatch(target, glob(&next("pattern")?)?, next("replacement")?)
            }
            "replace_all_matches" => {
                Editor::ReplaceAllMatches(target, glob(&next("pattern")?)?, next("replacement")?)
            }
            "replace_pattern" => {
                Editor::ReplacePattern(target, pattern(&next("regex")?)?, next("replacement")?)
            }
            "replace_all_patterns" => {
                let of_keys = match literal_text(&next("mode")?) {
                    Some("key") => true,
                    Some("value") => false,
                    _ => return Err("the mode is key or value".into()),
                };
                let regex = pattern(&next("regex")?)?;
                Editor::ReplaceAllPatterns(target, of_keys, regex, next("replacement")?)
            }
            "truncate_all" => Editor::Truncate(target, literal_int(&next("limit")?)?),
            _ => return Err("no editor has this name; docs/collector.md lists them".into()),
        };
        if plain.next().is_some() || !named.is_empty() {
            return Err("there are too many arguments".into());
        }
        Ok(editor)
    }

    fn settable(&self, place: Place) -> Parsed<Place> {
        if let Target::Field(of, f) = place.target {
            let settable = crate::context::is_settable(of, f);
            if !settable {
                return Err("this field cannot be changed".into());
            }
            if !place.keys.is_empty() {
                return Err("this field has no keys".into());
            }
        }
        Ok(place)
    }

    fn or(&mut self) -> Parsed<Cond> {
        let mut out = vec![self.and()?];
        while self.take_word("or") {
            out.push(self.and()?);
        }
        Ok(if out.len() == 1 { out.swap_remove(0) } else { Cond::Or(out) })
    }

    fn and(&mut self) -> Parsed<Cond> {
        let mut out = vec![self.not()?];
        while self.take_word("and") {
            out.push(self.not()?);
        }
        Ok(if out.len() == 1 { out.swap_remove(0) } else { Cond::And(out) })
    }

    fn not(&mut self) -> Parsed<Cond> {
        if self.take_word("not") {
            return Ok(Cond::Not(Box::new(self.deeper(Self::not)?)));
        }
        // A parenthesis holds a condition or the beginning of a sum.
        if self.is_sign("(") {
            let before = self.at;
            self.at += 1;
            let inner = self.deeper(Self::or);
            let is_whole = inner.is_ok() && self.take(")") && !self.is_operand();
            if let (Ok(c), true) = (inner, is_whole) {
                return Ok(c);
            }
            self.at = before;
        }
        let left = self.deeper(Self::sum)?;
        let Some(op) = self.comparison() else {
            let is_truth = matches!(
                left,
                Expr::Literal(AttributeValue::Bool(_)) | Expr::Place(_) | Expr::Call { .. }
            );
            return if is_truth {
                Ok(Cond::Is(left))
            } else {
                Err(self.unexpected("a comparison"))
            };
        };
        self.at += 1;
        Ok(Cond::Compare(left, op, self.deeper(Self::sum)?))
    }

    /// Returns whether what was just read is one side of something.
    fn is_operand(&self) -> bool {
        self.comparison().is_some() || ["+", "-", "*", "/"].iter().any(|s| self.is_sign(s))
    }

    fn comparison(&self) -> Option<Comparison> {
        let Some(Token::Sign(s)) = self.peek() else { return None };
        Some(match *s {
            "==" => Comparison::Eq,
            "!=" => Comparison::Ne,
            "<" => Comparison::Lt,
            "<=" => Comparison::Le,
            ">" => Comparison::Gt,
            ">=" => Comparison::Ge,
            _ => return None,
        })
    }

    fn sum(&mut self) -> Parsed<Expr> {
        self.chain(&[("+", Arithmetic::Add), ("-", Arithmetic::Sub)], Self::product)
    }

    fn product(&mut self) -> Parsed<Expr> {
        self.chain(&[("*", Arithmetic::Mul), ("/", Arithmetic::Div)], Self::value)
    }

    /// Reads operands between operators of one rank, from the left.
    fn chain(
        &mut self,
        ranked: &[(&str, Arithmetic)],
        operand: fn(&mut Self) -> Parsed<Expr>,
    ) -> Parsed<Expr> {
        let mut left = operand(self)?;
        while let Some((_, op)) = ranked.iter().find(|(sign, _)| self.is_sign(sign)) {
            self.at += 1;
            left = Expr::Math(Box::new(left), *op, Box::new(operand(self)?));
        }
        Ok(left)
    }

    fn value(&mut self) -> Parsed<Expr> {
        let Some(token) = self.peek().cloned() else { return Err(self.unexpected("a value")) };
        self.at += 1;
        let literal = |v: AttributeValue| Ok(Expr::Literal(v));
        match token {
            Token::String(s) => literal(s.into()),
            Token::Int(i) => literal(i.into()),
            Token::Double(d) => literal(d.into()),
            Token::Bytes(b) => literal(AttributeValue::Bytes(b)),
            Token::Sign("-") => match self.deeper(Self::value)? {
                Expr::Literal(AttributeValue::Int(i)) => literal(i.wrapping_neg().into()),
                Expr::Literal(AttributeValue::Double(d)) => literal((-d).into()),
                _ => Err("only numbers are negated".into()),
            },
            Token::Sign("+") => self.deeper(Self::value),
            Token::Sign("(") => {
                let inner = self.deeper(Self::sum)?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => {
                let mut items = Vec::new();
                while !self.take("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    items.push(self.deeper(Self::sum)?);
                }
                Ok(Expr::List(items))
            }
            Token::Sign("{") => {
                let mut items = Vec::new();
                while !self.take("}") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    let Some(Token::String(key)) = self.peek().cloned() else {
                        return Err(self.unexpected("a key"));
                    };
                    self.at += 1;
                    self.expect(":")?;
                    items.push((key, self.deeper(Self::sum)?));
                }
                Ok(Expr::Map(items))
            }
            Token::Sign(_) => {
                self.at -= 1;
                Err(self.unexpected("a value"))
            }
            Token::Word(w) if w == "nil" => literal(AttributeValue::Empty),
            Token::Word(w) if w == "true" || w == "false" => literal((w == "true").into()),
            Token::Word(w) => self.path(w),
            Token::Name(name) if self.is_sign("(") => self.call(&name),
            Token::Name(name) => match enumerated(&name) {
                Some(i) => literal(i.into()),
                None => Err(format!("{name} is no known constant")),
            },
        }
    }

    fn call(&mut self, name: &str) -> Parsed<Expr> {
        let Some((_, function, min, max)) = FUNCTIONS.iter().find(|f| f.0 == name) else {
            return Err(format!("no function is called {name}; docs/collector.md lists them"));
        };
        let args: Vec<Expr> = self.arguments()?.into_iter().map(|a| a.value).collect();
        if args.len() < *min || args.len() > *max {
            return Err(format!("{name} takes {min} to {max} arguments, not {}", args.len()));
        }
        let has_pattern = matches!(function, Function::IsMatch | Function::ExtractPatterns);
        let regex = args.get(1).filter(|_| has_pattern).map(pattern).transpose()?;
        if *function == Function::IsRootSpan && !(self.of == Of::Span || self.of == Of::Event) {
            return Err(format!("{name} is of spans alone"));
        }
        let keys = self.keys()?;
        Ok(Expr::Call { function: *function, args, regex, keys })
    }

    fn keys(&mut self) -> Parsed<Vec<Key>> {
        let mut keys = Vec::new();
        while self.take("[") {
            keys.push(match self.peek().cloned() {
                Some(Token::String(s)) => Key::Name(s),
                Some(Token::Int(i)) => Key::Index(usize::try_from(i).unwrap_or(usize::MAX)),
                _ => return Err(self.unexpected("a key")),
            });
            self.at += 1;
            self.expect("]")?;
        }
        Ok(keys)
    }

    fn path(&mut self, first: String) -> Parsed<Expr> {
        let mut words = vec![first];
        while self.take(".") {
            let Some(Token::Word(w)) = self.peek().cloned() else {
                return Err(self.unexpected("the name of a field"));
            };
            self.at += 1;
            words.push(w);
        }
        let keys = self.keys()?;
        let whole = words.join(".");
        let named = words.first().and_then(|w| Of::named(w)).filter(|_| words.len() > 1);
        let of = named.unwrap_or(self.of);
        let rest = words.get(usize::from(named.is_some())..).unwrap_or_default().join(".");
        if !self.of.sees(of) {
            return Err(format!("{whole}: a statement about this has no such part"));
        }
        let target = match rest.as_str() {
            "attributes" if of.has_attributes() => Target::Attributes(of),
            "cache" => Target::Cache,
            _ => match field(of, &rest) {
                Some((f, _)) if keys.is_empty() => Target::Field(of, f),
                Some(_) => return Err(format!("{whole} has no keys")),
                None => return Err(format!("{whole} is no path that can be used here")),
            },
        };
        Ok(Expr::Place(Place { target, keys }))
    }
}
