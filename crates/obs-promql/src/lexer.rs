//! Tokens of PromQL.

use crate::ast::{Literal, Pos};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    /// Identifier or keyword, as written.
    Ident(String),
    Number(f64),
    /// Milliseconds.
    Duration(i64),
    String(Literal),
    /// Operator or punctuation.
    Op(&'static str),
    Eof,
}

/// Where and why the text is not PromQL.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LexError {
    pub(crate) at: usize,
    pub(crate) message: String,
}

const OPERATORS: [&str; 26] = [
    "==", "!=", "=~", "!~", "<=", ">=", "</", ">/", "=", "<", ">", "+", "-", "*", "/", "%", "^",
    "(", ")", "{", "}", "[", "]", ",", ":", "@",
];

fn is_ident_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

/// Splits a query into tokens.
pub(crate) fn lex(text: &str) -> Result<Vec<(Token, Pos)>, LexError> {
    let mut out = Vec::new();
    let mut at = 0;
    // Colons are part of names outside brackets, and separate range and step inside.
    let mut brackets = 0_u32;
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
        let next_is_digit = rest.chars().nth(1).is_some_and(|d| d.is_ascii_digit());
        let token = if is_ident_start(c) || (c == ':' && brackets == 0) {
            let allowed =
                |d: char| d.is_ascii_alphanumeric() || d == '_' || (d == ':' && brackets == 0);
            let len = rest.find(|d| !allowed(d)).unwrap_or(rest.len());
            at += len;
            Token::Ident(rest.get(..len).unwrap_or_default().to_owned())
        } else if c.is_ascii_digit() || (c == '.' && next_is_digit) {
            number_or_duration(rest, &mut at)?
        } else if matches!(c, '"' | '\'' | '`') {
            let (value, len) = string(rest, at)?;
            at += len;
            Token::String(value)
        } else {
            let op = OPERATORS.iter().find(|op| rest.starts_with(**op));
            let op =
                op.ok_or_else(|| LexError { at, message: format!("unexpected character: {c:?}") })?;
            match *op {
                "[" => brackets += 1,
                "]" => brackets = brackets.saturating_sub(1),
                _ => {}
            }
            at += op.len();
            Token::Op(op)
        };
        out.push((token, Pos { start, end: at }));
    }
    out.push((Token::Eof, Pos { start: text.len(), end: text.len() }));
    Ok(out)
}

fn number_or_duration(rest: &str, at: &mut usize) -> Result<Token, LexError> {
    let start = *at;
    let bad = |word: &str| LexError {
        at: start,
        message: format!("bad number or duration syntax: {word:?}"),
    };
    if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
        let len = hex.bytes().take_while(|b| b.is_ascii_hexdigit() || *b == b'_').count();
        *at += 2 + len;
        let digits = hex.get(..len).unwrap_or_default().replace('_', "");
        return i64::from_str_radix(&digits, 16)
            .map(|v| Token::Number(v as f64))
            .map_err(|_| bad(rest));
    }
    let bytes = rest.as_bytes();
    let mut len = 0;
    while let Some(b) = bytes.get(len) {
        let exponent_sign = matches!(b, b'+' | b'-')
            && len > 0
            && matches!(bytes.get(len - 1), Some(b'e' | b'E'))
            && bytes.get(len + 1).is_some_and(u8::is_ascii_digit);
        if !(b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_') || exponent_sign) {
            break;
        }
        len += 1;
    }
    let word = rest.get(..len).unwrap_or_default();
    *at += len;
    if let Some(ms) = crate::duration::parse_ms(word) {
        return Ok(Token::Duration(ms));
    }
    if word.starts_with('_') || word.ends_with('_') || word.contains("__") {
        return Err(bad(word));
    }
    word.replace('_', "").parse().map(Token::Number).map_err(|_| bad(word))
}

/// Reads a quoted string with Go's escapes; returns it and its length in the text.
fn string(rest: &str, at: usize) -> Result<(Literal, usize), LexError> {
    let fail = |message: &str| LexError { at, message: message.to_owned() };
    let unknown = || fail("unknown escape sequence in string");
    let mut chars = rest.char_indices();
    let quote = chars.next().map_or('"', |(_, c)| c);
    let mut out = Vec::new();
    let mut utf8 = [0; 4];
    while let Some((i, c)) = chars.next() {
        if c == quote {
            return Ok((Literal::from_bytes(out), i + 1));
        }
        if quote == '`' || c != '\\' {
            if c == '\n' && quote != '`' {
                return Err(fail("unterminated quoted string"));
            }
            out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
            continue;
        }
        let Some((_, escape)) = chars.next() else { break };
        let mut number = |first: &str, n: usize, radix: u32| -> Option<u32> {
            let mut digits = first.to_owned();
            for _ in 0..n {
                digits.push(chars.next()?.1);
            }
            u32::from_str_radix(&digits, radix).ok()
        };
        let unescaped = match escape {
            // These name a byte, and several of them may be one character.
            'x' | '0'..='7' => {
                let byte = match escape {
                    'x' => number("", 2, 16),
                    first => number(&first.to_string(), 2, 8),
                };
                let byte = byte.and_then(|n| u8::try_from(n).ok());
                out.push(byte.ok_or_else(unknown)?);
                continue;
            }
            'a' => Some('\u{7}'),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\u{b}'),
            '\\' => Some('\\'),
            'u' => number("", 4, 16).and_then(char::from_u32),
            'U' => number("", 8, 16).and_then(char::from_u32),
            q if q == quote => Some(q),
            _ => None,
        };
        let c = unescaped.ok_or_else(unknown)?;
        out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
    }
    Err(fail("unterminated quoted string"))
}
