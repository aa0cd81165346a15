//! Tokens of TraceQL.

use crate::ParseError;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    /// A keyword or the name of a function or hint.
    Ident(String),
    Int(i64),
    Float(f64),
    /// Nanoseconds.
    Duration(i64),
    String(String),
    /// `resource.key`: the scopes before the key as written (`""`, `"span"`, `"parent.resource"`).
    Attribute(&'static str, String),
    /// `trace:duration`.
    Scoped(String, String),
    Op(&'static str),
    End,
}

/// A token and the byte at which it starts.
pub(crate) type Placed = (Token, usize);

/// Longer ones first where one begins another.
const OPERATORS: [&str; 41] = [
    "!>>", "!<<", "&>>", "&<<", "!>", "!<", "!~", "&>", "&<", "&~", "&&", "||", ">>", "<<", ">=",
    "<=", "!=", "=~", "{", "}", "(", ")", ",", "|", "=", ">", "<", "~", "!", "+", "-", "*", "/",
    "%", "^", "[", "]", ":", ";", "?", "&",
];

const SCOPES: [&str; 8] = [
    "parent.resource.",
    "parent.span.",
    "parent.",
    "resource.",
    "span.",
    "event.",
    "link.",
    "instrumentation.",
];

const INTRINSIC_SCOPES: [&str; 6] = ["trace", "span", "event", "link", "instrumentation", "parent"];

pub(crate) fn fault(text: &str, at: usize, message: impl Into<String>) -> ParseError {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    ParseError::new(line, column, message.into())
}

const fn ends_attribute(c: char) -> bool {
    c.is_whitespace()
        || matches!(
            c,
            '{' | '}' | '(' | ')' | '=' | '~' | '!' | '<' | '>' | '&' | '|' | '^' | ',' | '"'
        )
}

/// Reads an attribute's key, parts of which may be quoted; returns it and its length in bytes.
fn key(rest: &str) -> Result<(String, usize), &'static str> {
    let mut out = String::new();
    let mut at = 0;
    while let Some(c) = rest.get(at..).and_then(|r| r.chars().next()) {
        if c == '"' {
            let tail = rest.get(at..).unwrap_or_default();
            let (part, len) = quoted(tail).ok_or("unexpected EOF, expecting \"")?;
            out.push_str(&part);
            at += len;
        } else if ends_attribute(c) {
            break;
        } else {
            out.push(c);
            at += c.len_utf8();
        }
    }
    if out.is_empty() { Err("expected an attribute") } else { Ok((out, at)) }
}

/// Reads Go's quoted string at the start of the text; returns its value and length in bytes.
fn quoted(text: &str) -> Option<(String, usize)> {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 1;
    loop {
        match bytes.get(i)? {
            b'"' => return Some((String::from_utf8_lossy(&out).into_owned(), i + 1)),
            b'\n' => return None,
            b'\\' => {
                let (value, len) = escape(text.get(i + 1..)?)?;
                out.extend_from_slice(&value);
                i += 1 + len;
            }
            b => {
                out.push(*b);
                i += 1;
            }
        }
    }
}

fn escape(rest: &str) -> Option<(Vec<u8>, usize)> {
    let simple = |b: u8| Some((vec![b], 1));
    let code = |from: usize, digits: usize| {
        let n = u32::from_str_radix(rest.get(from..from + digits)?, 16).ok()?;
        Some(n)
    };
    match rest.as_bytes().first()? {
        b'n' => simple(b'\n'),
        b't' => simple(b'\t'),
        b'r' => simple(b'\r'),
        b'a' => simple(7),
        b'b' => simple(8),
        b'f' => simple(12),
        b'v' => simple(11),
        b'\\' => simple(b'\\'),
        b'"' => simple(b'"'),
        b'\'' => simple(b'\''),
        b'x' => Some((vec![u8::try_from(code(1, 2)?).ok()?], 3)),
        b'u' => Some((char::from_u32(code(1, 4)?)?.to_string().into_bytes(), 5)),
        b'U' => Some((char::from_u32(code(1, 8)?)?.to_string().into_bytes(), 9)),
        _ => None,
    }
}

/// Reads a duration such as `1h30m` or `1.5s`, in nanoseconds.
pub fn duration_ns(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(end)?;
        let factor = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 6e10,
            "h" => 3.6e12,
            "d" => 8.64e13,
            "w" => 6.048e14,
            "y" => 3.1536e16,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * factor;
        rest = tail;
    }
    (total < 9.2e18 && !text.is_empty()).then_some(total as i64)
}

/// Reads a number or duration; returns it and its length in bytes.
fn quantity(rest: &str) -> Option<(Token, usize)> {
    let word = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | 'µ' | 'μ' | '_')))
        .unwrap_or(rest.len());
    let mut end = word;
    // The sign of an exponent.
    if rest.get(..word)?.ends_with(['e', 'E'])
        && !rest.get(..word)?.starts_with("0x")
        && rest.get(word..).is_some_and(|r| r.starts_with(['+', '-']))
    {
        let more = rest.get(word + 1..)?;
        let digits = more.find(|c: char| !c.is_ascii_digit()).unwrap_or(more.len());
        if digits > 0 {
            end = word + 1 + digits;
        }
    }
    let text = rest.get(..end)?;
    if let Ok(i) = text.parse::<i64>() {
        return Some((Token::Int(i), end));
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok().map(|i| (Token::Int(i), end));
    }
    if let Ok(f) = text.parse::<f64>() {
        return Some((Token::Float(f), end));
    }
    duration_ns(text).map(|d| (Token::Duration(d), end))
}

pub(crate) fn lex(text: &str) -> Result<Vec<Placed>, ParseError> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|r| !r.is_empty()) {
        let c = rest.chars().next().unwrap_or(' ');
        let start = at;
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        if rest.starts_with("/*") {
            let end = rest.find("*/").ok_or_else(|| fault(text, at, "comment not terminated"))?;
            at += end + 2;
            continue;
        }
        let second = rest.get(c.len_utf8()..).and_then(|r| r.chars().next());
        let token = if c.is_ascii_digit()
            || (c == '.' && second.is_some_and(|d| d.is_ascii_digit()))
        {
            let (token, len) =
                quantity(rest).ok_or_else(|| fault(text, at, "syntax error: bad number"))?;
            at += len;
            token
        } else if c == '.' {
            let (name, len) = key(rest.get(1..).unwrap_or_default())
                .map_err(|m| fault(text, at, format!("syntax error: {m}")))?;
            at += 1 + len;
            Token::Attribute("", name)
        } else if let Some(scope) = SCOPES.into_iter().find(|s| rest.starts_with(s)) {
            let (name, len) = key(rest.get(scope.len()..).unwrap_or_default())
                .map_err(|m| fault(text, at, format!("syntax error: {m}")))?;
            at += scope.len() + len;
            Token::Attribute(scope.trim_end_matches('.'), name)
        } else if c.is_alphabetic() || c == '_' {
            let word =
                |r: &str| r.find(|d: char| !(d.is_alphanumeric() || d == '_')).unwrap_or(r.len());
            let len = word(rest);
            let name = rest.get(..len).unwrap_or_default();
            at += len;
            let tail = rest.get(len..).unwrap_or_default();
            match tail.strip_prefix(':').filter(|_| INTRINSIC_SCOPES.contains(&name)) {
                Some(tail) => {
                    let len = word(tail);
                    at += 1 + len;
                    Token::Scoped(name.to_owned(), tail.get(..len).unwrap_or_default().to_owned())
                }
                None => Token::Ident(name.to_owned()),
            }
        } else if c == '`' {
            let end = rest.get(1..).and_then(|r| r.find('`'));
            let end = end.ok_or_else(|| fault(text, at, "literal not terminated"))?;
            at += end + 2;
            Token::String(rest.get(1..=end).unwrap_or_default().to_owned())
        } else if c == '"' {
            let (value, len) =
                quoted(rest).ok_or_else(|| fault(text, at, "literal not terminated"))?;
            at += len;
            Token::String(value)
        } else {
            let op = OPERATORS.into_iter().find(|op| rest.starts_with(op));
            let op =
                op.ok_or_else(|| fault(text, at, format!("syntax error: unexpected {c:?}")))?;
            at += op.len();
            Token::Op(op)
        };
        out.push((token, start));
    }
    out.push((Token::End, text.len()));
    Ok(out)
}
