//! JSON lines, read in one pass and as leniently as Loki reads them: what stands before a fault
//! has become labels, what is skipped is not looked into.

use super::{push_sanitised, sanitise};
use crate::labels::{Entry, Kind};

const OBJECT: &str = "Value looks like object, but can't find closing '}' symbol";
const ARRAY: &str = "Value is array, but can't find closing ']' symbol";
const STRING: &str = "Value is string, but can't find closing '\"' symbol";
const LITERAL: &str =
    "Value looks like Number/Boolean/None, but can't find its end: ',' or '}' symbol";
const UNKNOWN: &str = "Unknown value type";
const NOT_AN_OBJECT: &str = "expecting json object(6), but it is not";
const DEPTH_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    String,
    Number,
    Bool,
    Null,
    Object,
    Array,
}

/// A value as it stands in the text; strings without their quotes, still escaped.
#[derive(Debug, Clone, Copy)]
struct Raw<'a> {
    kind: Type,
    text: &'a str,
}

fn skip_space(text: &str) -> &str {
    text.trim_start_matches([' ', '\n', '\r', '\t'])
}

/// Returns the length of a string's inside, from behind its opening quote.
fn string_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes.get(at) == Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

/// Returns the length of an object or array, brackets included.
fn block_end(text: &str, open: u8, close: u8) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(b) = bytes.get(at) {
        if *b == b'"' {
            at += 1 + string_end(text.get(at + 1..)?)?;
        } else if *b == open {
            depth += 1;
        } else if *b == close {
            depth -= 1;
            if depth == 0 {
                return Some(at + 1);
            }
        }
        at += 1;
    }
    None
}

/// Reads a value; returns it and what follows.
fn value(text: &str) -> Result<(Raw<'_>, &str), &'static str> {
    let text = skip_space(text);
    let split = |kind, from: usize, to: usize, next: usize| {
        let raw = Raw { kind, text: text.get(from..to).unwrap_or_default() };
        (raw, text.get(next..).unwrap_or_default())
    };
    match text.as_bytes().first() {
        Some(b'"') => {
            let len = text.get(1..).and_then(string_end).ok_or(STRING)?;
            Ok(split(Type::String, 1, len + 1, len + 2))
        }
        Some(b'{') => {
            let len = block_end(text, b'{', b'}').ok_or(OBJECT)?;
            Ok(split(Type::Object, 0, len, len))
        }
        Some(b'[') => {
            let len = block_end(text, b'[', b']').ok_or(ARRAY)?;
            Ok(split(Type::Array, 0, len, len))
        }
        _ => {
            let len = text.find([' ', '\n', '\r', '\t', ',', '}', ']']).ok_or(LITERAL)?;
            let kind = match text.get(..len).unwrap_or_default() {
                "true" | "false" => Type::Bool,
                "null" => Type::Null,
                t if t.starts_with(|c: char| c.is_ascii_digit() || c == '-') => Type::Number,
                _ => return Err(UNKNOWN),
            };
            Ok(split(kind, 0, len, len))
        }
    }
}

/// Visits the fields of an object; keys are still escaped. The visitor stops it with false.
fn each<'a>(
    text: &'a str,
    visit: &mut dyn FnMut(&'a str, Raw<'a>) -> Result<bool, &'static str>,
) -> Result<bool, &'static str> {
    let mut rest = skip_space(text).strip_prefix('{').ok_or(OBJECT)?;
    rest = skip_space(rest);
    if rest.starts_with('}') {
        return Ok(true);
    }
    while !rest.is_empty() {
        let Some(key) = rest.strip_prefix('"') else {
            // A comma may stand before the end.
            return if rest.starts_with('}') { Ok(true) } else { Err(OBJECT) };
        };
        let len = string_end(key).ok_or(STRING)?;
        let (key, tail) = key.split_at(len);
        let tail = skip_space(tail.get(1..).unwrap_or_default()).strip_prefix(':');
        let (found, tail) = value(tail.ok_or(OBJECT)?)?;
        if !visit(key, found)? {
            return Ok(false);
        }
        rest = skip_space(tail);
        match rest.as_bytes().first() {
            Some(b'}') => return Ok(true),
            Some(b',') => rest = skip_space(rest.get(1..).unwrap_or_default()),
            None => return Err(ARRAY),
            _ => return Err(OBJECT),
        }
    }
    Err(OBJECT)
}

/// Undoes a string's escapes; what is no text (half a surrogate pair) is replaced.
fn unescape(raw: &str) -> std::borrow::Cow<'_, str> {
    if !raw.contains('\\') {
        return raw.into();
    }
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    let hex = |s: &str| u32::from_str_radix(s.get(..4)?, 16).ok();
    while let Some((plain, tail)) = rest.split_once('\\') {
        out.push_str(plain);
        let Some(letter) = tail.chars().next() else {
            rest = "";
            break;
        };
        rest = tail.get(letter.len_utf8()..).unwrap_or_default();
        match letter {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'u' => {
                let Some(high) = hex(rest) else {
                    out.push(char::REPLACEMENT_CHARACTER);
                    continue;
                };
                rest = rest.get(4..).unwrap_or_default();
                let low = rest.strip_prefix("\\u").and_then(hex);
                let mut code = high;
                if (0xd800..0xdc00).contains(&high)
                    && let Some(low) = low.filter(|l| (0xdc00..0xe000).contains(l))
                {
                    code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                    rest = rest.get(6..).unwrap_or_default();
                }
                out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            other => out.push(other),
        }
    }
    out.push_str(rest);
    out.into()
}

/// Extracts every field that is no array and not null; objects are flattened with `_`.
pub(crate) fn json(line: &str, entry: &mut Entry<'_>) {
    let mut prefix = String::new();
    if let Err(details) = object(line, &mut prefix, entry, 0) {
        entry.set_error("JSONParserErr", details);
    }
}

fn object(
    text: &str,
    prefix: &mut String,
    entry: &mut Entry<'_>,
    depth: usize,
) -> Result<bool, &'static str> {
    let mark = prefix.len();
    each(text, &mut |key, found| {
        match found.kind {
            Type::Array | Type::Null => return Ok(true),
            Type::Object if depth >= DEPTH_MAX => return Ok(true),
            _ if mark == 0 && !entry.may_want(key, found.kind == Type::Object) => return Ok(true),
            _ => {}
        }
        let key = unescape(key);
        if mark == 0 {
            prefix.push_str(&sanitise(&key));
        } else {
            prefix.push('_');
            push_sanitised(prefix, &key);
        }
        let go_on = match found.kind {
            Type::Object => object(found.text, prefix, entry, depth + 1),
            Type::String => {
                let text = unescape(found.text);
                entry.extract(prefix, &text);
                Ok(!entry.has_all())
            }
            _ => {
                entry.extract(prefix, found.text);
                Ok(!entry.has_all())
            }
        };
        prefix.truncate(mark);
        go_on
    })
}

/// Puts the line that Promtail's `pack` stage wrapped back, with its labels.
pub(crate) fn unpack(line: &str, entry: &mut Entry<'_>) -> Option<String> {
    if !skip_space(line).starts_with('{') {
        entry.set_error("JSONParserErr", NOT_AN_OBJECT);
        return None;
    }
    let mut out = None;
    let result = each(line, &mut |key, found| {
        if found.kind == Type::String {
            let (key, text) = (unescape(key), unescape(found.text));
            if key == "_entry" {
                out = Some(text.into_owned());
            } else {
                entry.extract(&sanitise(&key), &text);
            }
        }
        Ok(true)
    });
    if let Err(details) = result {
        entry.set_error("JSONParserErr", details);
        return None;
    }
    out
}

/// A path to a field: `a.b["c d"][0]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath {
    text: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl JsonPath {
    /// Parses a path.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut rest = text.trim();
        let wrong = |rest: &str| format!("syntax error: unexpected {rest:?}");
        while !rest.is_empty() {
            if let Some(tail) = rest.strip_prefix('[') {
                let (step, tail) = if let Some(key) = tail.strip_prefix('"') {
                    let len = string_end(key).ok_or_else(|| wrong(rest))?;
                    let name = unescape(key.get(..len).unwrap_or_default()).into_owned();
                    (Step::Key(name), key.get(len + 1..).unwrap_or_default())
                } else {
                    let len = tail.find(']').ok_or_else(|| wrong(rest))?;
                    let (digits, tail) = tail.split_at(len);
                    (Step::Index(digits.trim().parse().map_err(|_| wrong(rest))?), tail)
                };
                steps.push(step);
                rest = tail.strip_prefix(']').ok_or_else(|| wrong(rest))?;
                continue;
            }
            let tail = if steps.is_empty() {
                rest
            } else {
                rest.strip_prefix('.').ok_or_else(|| wrong(rest))?
            };
            let len = tail.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(tail.len());
            let (name, after) = tail.split_at(len);
            if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
                return Err(wrong(rest));
            }
            steps.push(Step::Key(name.to_owned()));
            rest = after;
        }
        if steps.is_empty() {
            return Err("syntax error: unexpected $end".into());
        }
        Ok(Self { text: text.to_owned(), steps })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn find<'a>(&self, line: &'a str) -> Option<Raw<'a>> {
        let mut at = Raw { kind: Type::Object, text: line };
        for step in &self.steps {
            at = match step {
                Step::Key(name) => {
                    let mut hit = None;
                    let _ = each(at.text, &mut |key, found| {
                        if hit.is_none() && unescape(key) == *name {
                            hit = Some(found);
                        }
                        Ok(hit.is_none())
                    });
                    hit?
                }
                Step::Index(n) if at.kind == Type::Array => element(at.text, *n)?,
                Step::Index(_) => return None,
            };
        }
        Some(at)
    }
}

fn element(text: &str, n: usize) -> Option<Raw<'_>> {
    let mut rest = text.strip_prefix('[')?;
    for i in 0.. {
        let (found, tail) = value(rest).ok()?;
        if i == n {
            return Some(found);
        }
        rest = skip_space(tail).strip_prefix(',')?;
    }
    None
}

/// Extracts what expressions name; one that finds nothing gives an empty label.
pub(crate) fn fields(line: &str, fields: &[(String, JsonPath)], entry: &mut Entry<'_>) {
    let start = skip_space(line);
    if !start.starts_with(['{', '[', '"']) && value(line).is_err() {
        entry.set_error("JSONParserErr", "");
        return;
    }
    for (name, path) in fields {
        match path.find(line) {
            Some(raw) => {
                let text = match raw.kind {
                    Type::Null => "".into(),
                    Type::String => unescape(raw.text),
                    _ => raw.text.into(),
                };
                entry.extract(name, &text);
            }
            None if entry.get(name).is_none() => entry.set(Kind::Parsed, name, ""),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::tests::{extracted, pairs};

    #[test]
    fn fields_become_labels() {
        let got = extracted(|e| {
            json(
                r#"{"a":{"b-c":1.5},"app":"other","list":[1],"t":true,"n":null,"s":"x \"y\" \u00fc","9k":"z","e":""}"#,
                e,
            );
        });
        let want = [
            ("_9k", "z"),
            ("a_b_c", "1.5"),
            ("app_extracted", "other"),
            ("e", ""),
            ("s", "x \"y\" ü"),
            ("t", "true"),
        ];
        assert_eq!(got, pairs(&want));
    }

    #[test]
    fn faults_are_told_and_what_stands_before_them_stays() {
        for (line, kept, details) in [
            ("nope", None, OBJECT),
            ("{n}", None, OBJECT),
            ("", None, OBJECT),
            (r#"{"a":"x","b":"#, Some("x"), LITERAL),
            (r#"{"a":"x","b":"y"#, Some("x"), STRING),
            (r#"{"a":"x","b":what}"#, Some("x"), UNKNOWN),
            (r#"{"a":"x""#, Some("x"), ARRAY),
            (r#"{"a":"x" "b":1}"#, Some("x"), OBJECT),
        ] {
            let got = extracted(|e| json(line, e));
            let of = |name: &str| got.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
            assert_eq!(of("__error__"), Some("JSONParserErr"), "{line}");
            assert_eq!(of("__error_details__"), Some(details), "{line}");
            assert_eq!(of("a"), kept, "{line}");
        }
        assert_eq!(extracted(|e| json(r#"{"a":1} trailing"#, e)), pairs(&[("a", "1")]));
    }

    #[test]
    fn paths_reach_into_values() {
        let line =
            r#"{"app":"foo","pod":{"uuid":"x","list":[{"a":"1"},2],"k e y":null},"z":{"q":1}}"#;
        let expressions = [
            ("app", "app"),
            ("a", "pod.list[0].a"),
            ("b", r#"pod["list"][1]"#),
            ("c", "pod.list[7]"),
            ("d", r#"pod["k e y"]"#),
            ("o", "z"),
            ("x", "nope"),
        ];
        let list: Vec<_> =
            expressions.iter().map(|(n, p)| ((*n).to_owned(), JsonPath::new(p).unwrap())).collect();
        let got = extracted(|e| fields(line, &list, e));
        let want = [
            ("a", "1"),
            ("app_extracted", "foo"),
            ("b", "2"),
            ("c", ""),
            ("d", ""),
            ("o", r#"{"q":1}"#),
            ("x", ""),
        ];
        assert_eq!(got, pairs(&want));
        for wrong in ["", "a..b", "a[", "a[x]", "1a", "a b"] {
            assert!(JsonPath::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn packed_lines_come_back() {
        let mut line = None;
        let got = extracted(|e| {
            line = unpack(r#"{"_entry":"the \"line\"","pod":"p","n":1}"#, e);
        });
        assert_eq!(line.as_deref(), Some("the \"line\""));
        assert_eq!(got, pairs(&[("pod", "p")]));
        let got = extracted(|e| assert_eq!(unpack("[]", e), None));
        assert_eq!(got[1].1, NOT_AN_OBJECT);
    }
}
