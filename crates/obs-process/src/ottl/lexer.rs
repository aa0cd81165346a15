//! Words of the language.

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    /// Lower-case first letter: paths, editors, `and`, `nil`, …
    Word(String),
    /// Upper-case first letter: functions and enumerations.
    Name(String),
    String(String),
    Int(i64),
    Double(f64),
    Bytes(Vec<u8>),
    /// Punctuation and operators.
    Sign(&'static str),
}

const SIGNS: [&str; 20] = [
    "==", "!=", "<=", ">=", "<", ">", "=", "(", ")", "[", "]", "{", "}", ",", ".", ":", "+", "-",
    "*", "/",
];

/// Reads a quoted string with Go's escapes; returns it and the bytes it takes.
fn string(text: &str) -> Result<(String, usize), String> {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((out, at + 1)),
            '\\' => match chars.next().map(|(_, e)| e) {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(e @ ('"' | '\\' | '\'')) => out.push(e),
                // A regular expression in YAML often has its escapes once.
                Some(e) => {
                    out.push('\\');
                    out.push(e);
                }
                None => break,
            },
            c => out.push(c),
        }
    }
    Err(format!("string {text} is never closed"))
}

/// Splits a text into words, each with the byte where it begins.
pub(crate) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, String> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|r| !r.is_empty()) {
        let Some(c) = rest.chars().next() else { break };
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        let run = |f: &dyn Fn(char) -> bool| rest.find(|c| !f(c)).unwrap_or(rest.len());
        let (token, len) = if c == '"' {
            let (s, len) = string(rest)?;
            (Token::String(s), len)
        } else if let Some(digits) = rest.strip_prefix("0x") {
            let len = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
            let digits = digits.get(..len).unwrap_or_default();
            if len % 2 == 1 || len == 0 {
                return Err(format!("0x{digits} is no whole number of bytes"));
            }
            let byte = |i| u8::from_str_radix(digits.get(i..i + 2).unwrap_or_default(), 16).ok();
            (Token::Bytes((0..len).step_by(2).filter_map(byte).collect()), len + 2)
        } else if c.is_ascii_digit() {
            let len = run(&|c| c.is_ascii_digit() || c == '.');
            let number = rest.get(..len).unwrap_or_default();
            let fail = || format!("{number} is no number");
            if number.contains('.') {
                (Token::Double(number.parse().map_err(|_| fail())?), len)
            } else {
                (Token::Int(number.parse().map_err(|_| fail())?), len)
            }
        } else if c.is_ascii_alphabetic() || c == '_' {
            let len = run(&|c| c.is_ascii_alphanumeric() || c == '_');
            let word = rest.get(..len).unwrap_or_default().to_owned();
            (if c.is_ascii_uppercase() { Token::Name(word) } else { Token::Word(word) }, len)
        } else if let Some(sign) = SIGNS.iter().find(|s| rest.starts_with(**s)) {
            (Token::Sign(sign), sign.len())
        } else {
            return Err(format!("unexpected {c:?} at column {}", at + 1));
        };
        out.push((at, token));
        at += len;
    }
    Ok(out)
}
