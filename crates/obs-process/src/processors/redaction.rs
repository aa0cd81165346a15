//! The processor `redaction`, and `pii_redaction`: the same with patterns that are built in.

use crate::context::{Context, Field, Of, hex};
use obs_model::{AttributeValue, go_regex};
use regex::Regex;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeSet;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRedaction {
    allow_all_keys: bool,
    allowed_keys: BTreeSet<String>,
    ignored_keys: BTreeSet<String>,
    blocked_values: Vec<String>,
    allowed_values: Vec<String>,
    blocked_key_patterns: Vec<String>,
    redact_all_types: bool,
    hash_function: Option<String>,
    summary: Option<String>,
}

/// How much is told of what was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Summary {
    Silent,
    Counts,
    Keys,
}

#[derive(Debug, Clone)]
pub(crate) struct Redaction {
    /// Keys that stay; all of them when absent.
    allowed: Option<BTreeSet<String>>,
    ignored: BTreeSet<String>,
    blocked: Vec<Blocked>,
    exempt: Vec<Regex>,
    blocked_keys: Vec<Regex>,
    all_types: bool,
    hashes: Option<&'static ring::digest::Algorithm>,
    summary: Summary,
}

/// What is hidden in values.
#[derive(Debug, Clone)]
struct Blocked {
    regex: Regex,
    /// Only numbers with the check digit of a card are meant.
    is_card: bool,
}

impl Blocked {
    fn is(&self, found: &str) -> bool {
        !self.is_card || is_card(found)
    }
}

/// Returns whether the digits end in the check digit that cards have.
fn is_card(text: &str) -> bool {
    let digits = text.chars().rev().filter_map(|c| c.to_digit(10)).enumerate();
    let sum: u32 =
        digits.map(|(i, d)| if i % 2 == 0 { d } else { (d * 2) / 10 + (d * 2) % 10 }).sum();
    sum.is_multiple_of(10)
}

const MASK: &str = "****";

const CARD: &str = r"\b(?:\d[ -]?){12,18}\d\b";
/// What `pii_redaction` knows beside cards: mail addresses, keys of providers, telephones.
const PERSONAL: [&str; 6] = [
    r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
    r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}\b",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{36,}\b",
    r"\b\d{3}-\d{2}-\d{4}\b",
    r"(?:\+\d{1,3}[ .-]?)?\(?\b\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b",
];

fn blocked<'a>(list: impl Iterator<Item = &'a str>) -> Result<Vec<Blocked>, String> {
    Ok(patterns(list)?.into_iter().map(|regex| Blocked { regex, is_card: false }).collect())
}

fn patterns<'a>(list: impl Iterator<Item = &'a str>) -> Result<Vec<Regex>, String> {
    list.map(|p| go_regex(p).map_err(|e| format!("{p:?} is no regular expression: {e}"))).collect()
}

impl Redaction {
    pub(crate) fn read(raw: RawRedaction) -> Result<Self, String> {
        let hashes = match raw.hash_function.as_deref() {
            None | Some("") => None,
            Some("sha1") => Some(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY),
            Some("sha256") => Some(&ring::digest::SHA256),
            Some(other) => return Err(format!("hash_function {other:?} is not sha1 or sha256")),
        };
        let summary = match raw.summary.as_deref() {
            None | Some("" | "silent") => Summary::Silent,
            Some("info") => Summary::Counts,
            Some("debug") => Summary::Keys,
            Some(other) => return Err(format!("summary {other:?} is not debug, info or silent")),
        };
        let texts = |list: &[String]| patterns(list.iter().map(String::as_str));
        Ok(Self {
            allowed: (!raw.allow_all_keys).then_some(raw.allowed_keys),
            ignored: raw.ignored_keys,
            blocked: blocked(raw.blocked_values.iter().map(String::as_str))?,
            exempt: texts(&raw.allowed_values)?,
            blocked_keys: texts(&raw.blocked_key_patterns)?,
            all_types: raw.redact_all_types,
            hashes,
            summary,
        })
    }

    /// Masks what is personal in every value, and what `more` describes.
    pub(crate) fn personal(more: &[String]) -> Result<Self, String> {
        let known = PERSONAL.into_iter().chain(more.iter().map(String::as_str));
        let mut all = blocked(known)?;
        for regex in patterns([CARD].into_iter())? {
            all.push(Blocked { regex, is_card: true });
        }
        Ok(Self {
            allowed: None,
            ignored: BTreeSet::new(),
            blocked: all,
            exempt: Vec::new(),
            blocked_keys: Vec::new(),
            all_types: false,
            hashes: None,
            summary: Summary::Silent,
        })
    }

    fn hidden(&self, text: &str) -> String {
        match self.hashes {
            None => MASK.to_owned(),
            Some(h) => {
                let d = ring::digest::digest(h, text.as_bytes());
                hex(d.as_ref())
            }
        }
    }

    /// Returns a text with what is blocked hidden, if anything is.
    fn masked(&self, text: &str) -> Option<String> {
        if self.exempt.iter().any(|r| r.is_match(text)) {
            return None;
        }
        let mut out = Cow::Borrowed(text);
        for b in &self.blocked {
            if !b.regex.find_iter(&out).any(|m| b.is(m.as_str())) {
                continue;
            }
            let new = b.regex.replace_all(&out, |c: &regex::Captures<'_>| {
                let found = c.get(0).map_or("", |m| m.as_str());
                if b.is(found) { self.hidden(found) } else { found.to_owned() }
            });
            out = Cow::Owned(new.into_owned());
        }
        match out {
            Cow::Owned(new) => Some(new),
            Cow::Borrowed(_) => None,
        }
    }

    /// Masks the texts in a value; returns whether there was one to mask.
    fn mask(&self, v: &mut AttributeValue, depth: usize) -> bool {
        match v {
            AttributeValue::String(s) => match self.masked(s) {
                Some(new) => {
                    *s = new;
                    true
                }
                None => false,
            },
            AttributeValue::Array(a) if depth < 16 => {
                a.iter_mut().fold(false, |any, v| self.mask(v, depth + 1) | any)
            }
            AttributeValue::Map(m) if depth < 16 => {
                m.iter_mut().fold(false, |any, (_, v)| self.mask(v, depth + 1) | any)
            }
            AttributeValue::Int(_) | AttributeValue::Double(_) | AttributeValue::Bool(_)
                if self.all_types =>
            {
                match self.masked(&v.to_string()) {
                    Some(new) => {
                        *v = new.into();
                        true
                    }
                    None => false,
                }
            }
            _ => false,
        }
    }

    /// Returns whether anything of these attributes would change; most records have nothing.
    fn touches(&self, pairs: &obs_model::Attributes) -> bool {
        pairs.iter().any(|(k, v)| {
            self.allowed.as_ref().is_some_and(|a| !a.contains(k) && !self.ignored.contains(k))
                || self.blocked_keys.iter().any(|r| r.is_match(k))
                || self.mask(&mut v.clone(), 0)
        })
    }

    pub(crate) fn run(&self, of: Of, c: &mut dyn Context) {
        if of == Of::Log {
            let mut body = c.field(of, Field::Body);
            if self.mask(&mut body, 0) {
                c.set_field(of, Field::Body, body);
            }
        }
        if !c.attributes(of).is_some_and(|a| self.touches(a)) {
            return;
        }
        let Some(a) = c.attributes_mut(of) else { return };
        let (mut removed, mut masked) = (Vec::new(), Vec::new());
        a.retain(|k, _| {
            let stays = self.ignored.contains(k)
                || self.allowed.as_ref().is_none_or(|allowed| allowed.contains(k));
            if !stays {
                removed.push(k.to_owned());
            }
            stays
        });
        for (k, v) in a.iter_mut().filter(|(k, _)| !self.ignored.contains(k)) {
            if self.blocked_keys.iter().any(|r| r.is_match(k)) {
                *v = self.hidden(&v.to_string()).into();
                masked.push(k.clone());
            } else if self.mask(v, 0) {
                masked.push(k.clone());
            }
        }
        if self.summary == Summary::Silent {
            return;
        }
        for (what, mut keys) in [("redacted", removed), ("masked", masked)] {
            if keys.is_empty() {
                continue;
            }
            keys.sort_unstable();
            a.set(&format!("redaction.{what}.count"), keys.len() as i64);
            if self.summary == Summary::Keys {
                a.set(&format!("redaction.{what}.keys"), keys.join(","));
            }
        }
    }
}
