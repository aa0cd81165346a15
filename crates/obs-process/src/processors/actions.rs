//! The actions of the processors `attributes` and `resource`.

use crate::context::{Context, Of, hex};
use crate::ottl::{from_json, groups};
use obs_model::{AttributeValue, go_regex};
use regex::Regex;
use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAction {
    key: String,
    action: String,
    value: Option<serde_json::Value>,
    from_attribute: Option<String>,
    pattern: Option<String>,
    converted_type: Option<String>,
}

#[derive(Debug, Clone)]
enum Source {
    Value(AttributeValue),
    Attribute(String),
}

#[derive(Debug, Clone, Copy)]
enum Type {
    Int,
    Double,
    String,
}

/// Whether a key must be there to be set.
#[derive(Debug, Clone, Copy)]
enum When {
    Absent,
    Present,
    Always,
}

#[derive(Debug, Clone)]
enum What {
    Put(When, Source),
    Delete,
    Hash,
    Extract(Regex),
    Convert(Type),
}

/// One action.
#[derive(Debug, Clone)]
pub(crate) struct Action {
    key: String,
    /// Further keys that are meant.
    keys: Option<Regex>,
    what: What,
}

/// Whole numbers stay whole.
fn plain(v: serde_json::Value) -> AttributeValue {
    match v.as_i64() {
        Some(i) => i.into(),
        None => from_json(v),
    }
}

fn convert(v: &AttributeValue, to: Type) -> Option<AttributeValue> {
    match to {
        Type::Int => match v {
            AttributeValue::Double(d) => Some((*d as i64).into()),
            AttributeValue::Bool(b) => Some(i64::from(*b).into()),
            v => v.as_i64().map(Into::into),
        },
        Type::Double => match v {
            AttributeValue::Bool(b) => Some(f64::from(u8::from(*b)).into()),
            v => v.as_f64().map(Into::into),
        },
        Type::String => Some(v.to_string().into()),
    }
}

impl Action {
    pub(crate) fn read(raw: RawAction) -> Result<Self, String> {
        let name = raw.action.as_str();
        let fail = |message: &str| Err(format!("action {name:?} of {:?}: {message}", raw.key));
        let source = || match (raw.value.clone(), raw.from_attribute.clone()) {
            (Some(v), None) => Ok(Source::Value(plain(v))),
            (None, Some(a)) => Ok(Source::Attribute(a)),
            _ => Err(format!("action {name:?} of {:?} needs value or from_attribute", raw.key)),
        };
        let pattern = match &raw.pattern {
            None => None,
            Some(p) => match go_regex(p) {
                Ok(r) => Some(r),
                Err(e) => return fail(&format!("{p:?} is no regular expression: {e}")),
            },
        };
        let what = match name {
            "insert" => What::Put(When::Absent, source()?),
            "update" => What::Put(When::Present, source()?),
            "upsert" => What::Put(When::Always, source()?),
            "delete" => What::Delete,
            "hash" => What::Hash,
            "extract" => match &pattern {
                Some(r) if r.capture_names().flatten().next().is_some() => What::Extract(r.clone()),
                _ => return fail("a pattern with named groups is wanted"),
            },
            "convert" => What::Convert(match raw.converted_type.as_deref() {
                Some("int") => Type::Int,
                Some("double") => Type::Double,
                Some("string") => Type::String,
                _ => return fail("converted_type is int, double or string"),
            }),
            _ => {
                let known = "insert, update, upsert, delete, hash, extract and convert";
                return fail(&format!("there are {known}"));
            }
        };
        let by_pattern = matches!(what, What::Delete | What::Hash);
        if raw.key.is_empty() && !(by_pattern && pattern.is_some()) {
            return fail("key is missing");
        }
        Ok(Self { keys: pattern.filter(|_| by_pattern), key: raw.key, what })
    }

    fn means(&self, key: &str) -> bool {
        key == self.key || self.keys.as_ref().is_some_and(|r| r.is_match(key))
    }

    pub(crate) fn run(&self, of: Of, c: &mut dyn Context) {
        let Some(has) = c.attributes(of) else { return };
        let there = has.get(&self.key);
        let value = |s: &Source| match s {
            Source::Value(v) => Some(v.clone()),
            Source::Attribute(a) => has.get(a).cloned(),
        };
        // What is not changed is not copied either.
        let changes: Vec<(String, AttributeValue)> = match &self.what {
            What::Put(when, s) => {
                let is_due = match when {
                    When::Absent => there.is_none(),
                    When::Present => there.is_some(),
                    When::Always => true,
                };
                value(s).filter(|_| is_due).into_iter().map(|v| (self.key.clone(), v)).collect()
            }
            What::Delete => {
                if has.iter().any(|(k, _)| self.means(k))
                    && let Some(a) = c.attributes_mut(of)
                {
                    a.retain(|k, _| !self.means(k));
                }
                return;
            }
            What::Hash => {
                let hashed = |v: &AttributeValue| {
                    let d = ring::digest::digest(&ring::digest::SHA256, v.to_string().as_bytes());
                    hex(d.as_ref())
                };
                let meant = has.iter().filter(|(k, _)| self.means(k));
                meant.map(|(k, v)| (k.clone(), hashed(v).into())).collect()
            }
            What::Extract(r) => {
                there.and_then(|v| v.as_str()).map(|s| groups(r, s)).unwrap_or_default()
            }
            What::Convert(to) => {
                let new = there.and_then(|v| convert(v, *to));
                new.into_iter().map(|v| (self.key.clone(), v)).collect()
            }
        };
        if changes.is_empty() {
            return;
        }
        if let Some(a) = c.attributes_mut(of) {
            changes.into_iter().for_each(|(k, v)| a.set(&k, v));
        }
    }
}
