//! What takes labels out of a line: JSON, logfmt, patterns, regular expressions.

mod json;
mod logfmt;
mod pattern;

pub(crate) use json::{JsonPath, fields as json_fields, json, unpack};

pub use logfmt::each_pair;
pub(crate) use logfmt::{fields as logfmt_fields, logfmt};
pub(crate) use pattern::Pattern;

use crate::labels::Entry;
use regex::Regex;

/// Turns a key into a label name: what a name may not hold becomes `_`.
pub(crate) fn sanitise(key: &str) -> String {
    let key = key.trim();
    let mut out = String::with_capacity(key.len() + 1);
    if key.starts_with(|c: char| c.is_ascii_digit()) {
        out.push('_');
    }
    push_sanitised(&mut out, key);
    out
}

fn push_sanitised(out: &mut String, key: &str) {
    out.extend(key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }));
}

/// Extracts the named groups of a match; a line that does not match gets none.
pub(crate) fn regexp(regex: &Regex, line: &str, entry: &mut Entry<'_>) {
    let Some(found) = regex.captures(line) else { return };
    for (i, name) in regex.capture_names().enumerate() {
        if let Some(name) = name {
            entry.extract(name, found.get(i).map_or("", |m| m.as_str()));
        }
    }
}

/// Extracts the captures of a pattern.
pub(crate) fn pattern(pattern: &Pattern, line: &str, entry: &mut Entry<'_>) {
    pattern.captures(line, |name, value| entry.extract(name, value));
}
