//! Tokens.

use crate::parser::{Fault, Parsed};
use crate::units;
use obs_model::go_unquote;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Ident(String),
    Number(f64),
    /// Milliseconds would lose what Go's durations hold: nanoseconds.
    Duration(f64, String),
    Bytes(f64, String),
    /// `[5m]`, in nanoseconds.
    Range(f64),
    String(String),
    /// `--strict`.
    Flag(String),
    Op(&'static str),
    Eof,
}

const OPERATORS: [&str; 31] = [
    "|=", "|~", "|>", "!=", "!~", "!>", "=~", "==", ">=", "<=", "|", "=", ">", "<", "{", "}", "(",
    ")", "]", ",", "+", "-", "*", "/", "%", "^", ":", "@", ".", "!", ";",
];

fn fail<T>(at: usize, message: impl Into<String>) -> Parsed<T> {
    Err(Fault::at(at, message))
}

/// A token with where it starts and ends, in bytes.
pub(crate) type Placed = (Token, usize, usize);

pub(crate) fn lex(text: &str) -> Parsed<Vec<Placed>> {
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
        let token = if c.is_alphabetic() || c == '_' {
            let len = rest.find(|d: char| !(d.is_alphanumeric() || d == '_')).unwrap_or(rest.len());
            at += len;
            Token::Ident(rest.get(..len).unwrap_or_default().to_owned())
        } else if c.is_ascii_digit() || (c == '.' && starts_with_digit(rest.get(1..))) {
            let (token, len) = quantity(rest, at)?;
            at += len;
            token
        } else if matches!(c, '"' | '`') {
            let Some((value, len)) = go_unquote(rest) else {
                return fail(at, "literal not terminated");
            };
            at += len;
            Token::String(value)
        } else if c == '[' {
            let Some(end) = rest.find(']') else {
                return Err(Fault::column(at, "missing closing ']' in duration"));
            };
            let inner = rest.get(1..end).unwrap_or_default().trim();
            let ns = units::query_duration_ns(inner).map_err(|m| Fault::column(at, m))?;
            at += end + 1;
            Token::Range(ns)
        } else if let Some(flag) = rest.strip_prefix("--").filter(|f| f.starts_with(is_letter)) {
            let len = flag.find(|d: char| !(is_letter(d) || d == '-')).unwrap_or(flag.len());
            at += len + 2;
            Token::Flag(flag.get(..len).unwrap_or_default().to_owned())
        } else {
            let op = OPERATORS.iter().find(|op| rest.starts_with(**op));
            let Some(op) = op else {
                return fail(at, format!("syntax error: unexpected {c:?}"));
            };
            at += op.len();
            Token::Op(op)
        };
        out.push((token, start, at));
    }
    out.push((Token::Eof, text.len(), text.len()));
    Ok(out)
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
}

fn starts_with_digit(text: Option<&str>) -> bool {
    text.is_some_and(|t| t.starts_with(|c: char| c.is_ascii_digit()))
}

/// Reads a number, duration or size.
fn quantity(rest: &str, at: usize) -> Parsed<(Token, usize)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '.' || c == '_';
    let mut len = rest.find(|c: char| !is_part(c)).unwrap_or(rest.len());
    let word = rest.get(..len).unwrap_or_default();
    // `1e-5`: the sign belongs to the number.
    let mantissa = word.trim_end_matches(['e', 'E']);
    let is_exponent = mantissa.len() + 1 == word.len() && mantissa.parse::<f64>().is_ok();
    let tail = rest.get(len..).unwrap_or_default();
    if is_exponent && tail.starts_with(['+', '-']) && starts_with_digit(tail.get(1..)) {
        let digits = tail.get(1..).unwrap_or_default();
        len += 1 + digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    }
    let word = rest.get(..len).unwrap_or_default();
    if let Some(n) = number(word) {
        return Ok((Token::Number(n), len));
    }
    if let Ok(ns) = units::query_duration_ns(word) {
        return Ok((Token::Duration(ns, word.to_owned()), len));
    }
    if let Some(n) = units::bytes(word) {
        return Ok((Token::Bytes(n, word.to_owned()), len));
    }
    fail(at, format!("syntax error: unexpected {word}"))
}

fn number(word: &str) -> Option<f64> {
    let hex = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    if let Some(hex) = hex {
        return i64::from_str_radix(hex, 16).ok().map(|n| n as f64);
    }
    // Rust reads names of numbers too, which are identifiers here.
    let plain = word.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    word.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_told_apart() {
        let kinds = |text: &str| lex(text).map(|t| t.into_iter().map(|t| t.0).collect::<Vec<_>>());
        let got = kinds("1.5e-3 5m 1.5s 10KB 0x10 [5m] --strict 3").ok().unwrap();
        assert_eq!(
            got,
            [
                Token::Number(0.0015),
                Token::Duration(3e11, "5m".into()),
                Token::Duration(1.5e9, "1.5s".into()),
                Token::Bytes(10_000.0, "10KB".into()),
                Token::Number(16.0),
                Token::Range(3e11),
                Token::Flag("strict".into()),
                Token::Number(3.0),
                Token::Eof
            ]
        );
    }
}
