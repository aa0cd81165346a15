//! Logfmt lines: `key=value key="value with spaces" bare`.

use super::sanitise;
use crate::labels::{Entry, Kind};
use std::borrow::Cow;

/// A step of the scan.
enum Found<'a> {
    Pair(&'a str, Cow<'a, str>),
    /// What is wrong and at which byte (counted from 1), or nothing to go on from.
    Fault(String),
}

struct Scanner<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        self.line.get(self.at..).unwrap_or_default()
    }

    fn fault(&mut self, at: usize, what: &str) -> Found<'a> {
        // The next pair begins behind the next space.
        self.at = at;
        let rest = self.rest();
        self.at += rest.find(|c: char| c <= ' ').unwrap_or(rest.len());
        Found::Fault(format!("logfmt syntax error at pos {} : {what}", at + 1))
    }
}

impl<'a> Iterator for Scanner<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(|c: char| c <= ' ').len();
        let rest = self.rest();
        if rest.is_empty() {
            return None;
        }
        let len = rest.find(|c: char| c <= ' ' || matches!(c, '=' | '"')).unwrap_or(rest.len());
        let (key, tail) = rest.split_at(len);
        let after_key = self.at + len;
        match tail.as_bytes().first() {
            Some(b'"') => return Some(self.fault(after_key, "unexpected '\"'")),
            Some(b'=') if key.is_empty() => {
                return Some(self.fault(after_key, "unexpected '='"));
            }
            Some(b'=') => {}
            _ => {
                self.at = after_key;
                return Some(Found::Pair(key, "".into()));
            }
        }
        let value = tail.get(1..).unwrap_or_default();
        let start = after_key + 1;
        if let Some(quoted) = value.strip_prefix('"') {
            let mut escaped = false;
            let end = quoted.bytes().position(|b| {
                let hit = b == b'"' && !escaped;
                escaped = b == b'\\' && !escaped;
                hit
            });
            let Some(end) = end else {
                self.at = self.line.len();
                let text = format!(
                    "logfmt syntax error at pos {} : unterminated quoted value",
                    self.at + 1
                );
                return Some(Found::Fault(text));
            };
            self.at = start + end + 2;
            return Some(match unquote(quoted.get(..end).unwrap_or_default()) {
                Some(text) => Found::Pair(key, text),
                None => {
                    let text =
                        format!("logfmt syntax error at pos {} : invalid quoted value", self.at);
                    Found::Fault(text)
                }
            });
        }
        let len = value.find(|c: char| c <= ' ' || matches!(c, '=' | '"')).unwrap_or(value.len());
        match value.as_bytes().get(len) {
            Some(b'=') => return Some(self.fault(start + len, "unexpected '='")),
            Some(b'"') => return Some(self.fault(start + len, "unexpected '\"'")),
            _ => {}
        }
        self.at = start + len;
        Some(Found::Pair(key, value.get(..len).unwrap_or_default().into()))
    }
}

/// Undoes JSON's escapes; a control character may stand as it is.
fn unquote(raw: &str) -> Option<Cow<'_, str>> {
    if !raw.contains('\\') {
        return Some(raw.into());
    }
    let mut clean = String::with_capacity(raw.len() + 2);
    clean.push('"');
    for c in raw.chars() {
        match c {
            '\n' => clean.push_str("\\n"),
            '\r' => clean.push_str("\\r"),
            '\t' => clean.push_str("\\t"),
            c if c < ' ' => clean.push(' '),
            c => clean.push(c),
        }
    }
    clean.push('"');
    serde_json::from_str::<String>(&clean).ok().map(Cow::Owned)
}

/// A value that is not valid text counts as empty.
fn text(value: &str) -> &str {
    if value.contains(char::REPLACEMENT_CHARACTER) { "" } else { value }
}

/// Visits the pairs of a line: key and value as they stand there, faults passed over.
pub fn each_pair(line: &str, mut visit: impl FnMut(&str, &str)) {
    for found in (Scanner { line, at: 0 }) {
        if let Found::Pair(key, value) = found {
            visit(key, text(&value));
        }
    }
}

/// Extracts every pair; empty values only when asked for, and faults are told only when strict.
pub(crate) fn logfmt(line: &str, strict: bool, keep_empty: bool, entry: &mut Entry<'_>) {
    for found in (Scanner { line, at: 0 }) {
        match found {
            Found::Pair(key, value) => {
                let (key, value) = (sanitise(key), text(&value));
                if key.is_empty() || (value.is_empty() && !keep_empty) {
                    continue;
                }
                entry.extract(&key, value);
                if entry.has_all() {
                    return;
                }
            }
            Found::Fault(details) if strict => return entry.set_error("LogfmtParserErr", &details),
            Found::Fault(_) => {}
        }
    }
}

/// Extracts named keys; one that is absent gives an empty label.
pub(crate) fn fields(
    line: &str,
    strict: bool,
    keep_empty: bool,
    fields: &[(String, String)],
    entry: &mut Entry<'_>,
) {
    for (label, _) in fields {
        if !entry.base_has(label) {
            entry.set(Kind::Parsed, label, "");
        }
    }
    for found in (Scanner { line, at: 0 }) {
        match found {
            Found::Pair(key, value) => {
                let (name, value) = (sanitise(key), text(&value));
                if value.is_empty() && !keep_empty {
                    continue;
                }
                for (label, wanted) in fields {
                    if *wanted == name || wanted == key {
                        entry.extract(label, value);
                    }
                }
            }
            Found::Fault(details) if strict => return entry.set_error("LogfmtParserErr", &details),
            Found::Fault(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::tests::{extracted, pairs};

    #[test]
    fn pairs_become_labels() {
        let line = "level=info msg=\"hello \\\"you\\\"\" dur=1.5s bare empty= a.b=1 x=\u{fffd} l=\"a\nb\\tc\" app=z";
        let got = extracted(|e| logfmt(line, false, false, e));
        let want = [
            ("a_b", "1"),
            ("app_extracted", "z"),
            ("dur", "1.5s"),
            ("l", "a\nb\tc"),
            ("level", "info"),
            ("msg", "hello \"you\""),
        ];
        assert_eq!(got, pairs(&want));
        let got = extracted(|e| logfmt("bare empty= x=1", true, true, e));
        assert_eq!(got, pairs(&[("bare", ""), ("empty", ""), ("x", "1")]));
    }

    #[test]
    fn faults_are_passed_over_or_told() {
        let line = r#"a=1 foobar====wqe=sdad1r b="2" =x c"d e="open"#;
        let got = extracted(|e| logfmt(line, false, false, e));
        assert_eq!(got, pairs(&[("a", "1"), ("b", "2")]));
        let got = extracted(|e| logfmt("foobar====wqe=sdad1r", true, false, e));
        let details = "logfmt syntax error at pos 8 : unexpected '='";
        let want = [("__error__", "LogfmtParserErr"), ("__error_details__", details)];
        assert_eq!(got, pairs(&want));
    }

    #[test]
    fn named_keys() {
        let list = [("l".to_owned(), "level".to_owned()), ("gone".into(), "nope".into())];
        let got = extracted(|e| fields("level=info x=1", false, false, &list, e));
        assert_eq!(got, pairs(&[("gone", ""), ("l", "info")]));
    }
}
