//! The value of expressions and the truth of conditions over one record.

use super::{Arithmetic, Comparison, Cond, Expr, Function, Key, Place, Target};
use crate::context::{Context, Field, Of, hex};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use obs_model::{AttributeValue, Attributes};
use regex::Regex;
use std::cmp::Ordering;

/// What the statements over one record keep for each other.
#[derive(Debug, Default)]
pub(crate) struct Scratch(pub(crate) Attributes);

/// Goes down into a value.
fn at<'a>(mut v: &'a AttributeValue, keys: &[Key]) -> Option<&'a AttributeValue> {
    for key in keys {
        v = match (v, key) {
            (AttributeValue::Map(m), Key::Name(k)) => &m.iter().find(|(n, _)| n == k)?.1,
            (AttributeValue::Array(a), Key::Index(i)) => a.get(*i)?,
            _ => return None,
        };
    }
    Some(v)
}

fn in_attributes(a: &Attributes, keys: &[Key]) -> AttributeValue {
    match keys.split_first() {
        None => AttributeValue::Map(a.iter().cloned().collect()),
        Some((Key::Name(k), rest)) => {
            a.get(k).and_then(|v| at(v, rest)).cloned().unwrap_or(AttributeValue::Empty)
        }
        Some(_) => AttributeValue::Empty,
    }
}

impl Place {
    pub(crate) fn read(&self, c: &dyn Context, scratch: &Scratch) -> AttributeValue {
        match self.target {
            Target::Attributes(of) => match c.attributes(of) {
                Some(a) => in_attributes(a, &self.keys),
                None => AttributeValue::Empty,
            },
            Target::Cache => in_attributes(&scratch.0, &self.keys),
            Target::Field(of, f) => c.field(of, f),
        }
    }
}

fn number(v: &AttributeValue) -> Option<f64> {
    match v {
        AttributeValue::Int(i) => Some(*i as f64),
        AttributeValue::Double(d) => Some(*d),
        _ => None,
    }
}

fn calculate(
    a: &AttributeValue,
    op: Arithmetic,
    b: &AttributeValue,
) -> Result<AttributeValue, String> {
    if let (AttributeValue::Int(x), AttributeValue::Int(y)) = (a, b) {
        let out = match op {
            Arithmetic::Add => x.checked_add(*y),
            Arithmetic::Sub => x.checked_sub(*y),
            Arithmetic::Mul => x.checked_mul(*y),
            Arithmetic::Div => x.checked_div(*y),
        };
        return out
            .map(AttributeValue::Int)
            .ok_or_else(|| "a division by zero or an overflow".into());
    }
    let (Some(x), Some(y)) = (number(a), number(b)) else {
        return Err("only numbers are calculated with".into());
    };
    Ok(AttributeValue::Double(match op {
        Arithmetic::Add => x + y,
        Arithmetic::Sub => x - y,
        Arithmetic::Mul => x * y,
        Arithmetic::Div => x / y,
    }))
}

/// Compares two values; of different types only numbers have an order.
fn order(a: &AttributeValue, b: &AttributeValue) -> Option<Ordering> {
    match (a, b) {
        (AttributeValue::Int(x), AttributeValue::Int(y)) => Some(x.cmp(y)),
        (AttributeValue::String(x), AttributeValue::String(y)) => Some(x.cmp(y)),
        (AttributeValue::Bool(x), AttributeValue::Bool(y)) => Some(x.cmp(y)),
        (AttributeValue::Bytes(x), AttributeValue::Bytes(y)) => Some(x.cmp(y)),
        _ => number(a)?.partial_cmp(&number(b)?),
    }
}

fn holds(a: &AttributeValue, op: Comparison, b: &AttributeValue) -> bool {
    let ordering = order(a, b);
    let equal = ordering.map_or(a == b, Ordering::is_eq);
    match op {
        Comparison::Eq => equal,
        Comparison::Ne => !equal,
        Comparison::Lt => ordering.is_some_and(Ordering::is_lt),
        Comparison::Le => ordering.is_some_and(Ordering::is_le),
        Comparison::Gt => ordering.is_some_and(Ordering::is_gt),
        Comparison::Ge => ordering.is_some_and(Ordering::is_ge),
    }
}

impl Cond {
    /// Returns whether the condition holds of a record.
    ///
    /// # Errors
    /// When a function has no value of what it was given.
    pub(crate) fn holds(&self, c: &dyn Context, scratch: &Scratch) -> Result<bool, String> {
        Ok(match self {
            Self::Or(list) => {
                for x in list {
                    if x.holds(c, scratch)? {
                        return Ok(true);
                    }
                }
                false
            }
            Self::And(list) => {
                for x in list {
                    if !x.holds(c, scratch)? {
                        return Ok(false);
                    }
                }
                true
            }
            Self::Not(x) => !x.holds(c, scratch)?,
            Self::Compare(a, op, b) => holds(&a.value(c, scratch)?, *op, &b.value(c, scratch)?),
            Self::Is(x) => match x.value(c, scratch)? {
                AttributeValue::Bool(b) => b,
                other => return Err(format!("{other} is neither true nor false")),
            },
        })
    }
}

impl Expr {
    /// Returns the value over a record.
    ///
    /// # Errors
    /// When a function has no value of what it was given.
    pub(crate) fn value(
        &self,
        c: &dyn Context,
        scratch: &Scratch,
    ) -> Result<AttributeValue, String> {
        match self {
            Self::Literal(v) => Ok(v.clone()),
            Self::Place(p) => Ok(p.read(c, scratch)),
            Self::List(items) => {
                let items: Result<_, String> = items.iter().map(|i| i.value(c, scratch)).collect();
                Ok(AttributeValue::Array(items?))
            }
            Self::Map(items) => {
                let item = |(k, e): &(String, Self)| Ok((k.clone(), e.value(c, scratch)?));
                let items: Result<_, String> = items.iter().map(item).collect();
                Ok(AttributeValue::Map(items?))
            }
            Self::Math(a, op, b) => calculate(&a.value(c, scratch)?, *op, &b.value(c, scratch)?),
            Self::Call { function: Function::IsRootSpan, .. } => {
                let parent = c.field(Of::Span, Field::ParentIdString);
                Ok((parent.as_str() == Some("")).into())
            }
            Self::Call { function, args, regex, keys } => {
                let args: Result<Vec<_>, String> =
                    args.iter().map(|a| a.value(c, scratch)).collect();
                let out = call(*function, &args?, regex.as_ref())?;
                Ok(at(&out, keys).cloned().unwrap_or(AttributeValue::Empty))
            }
        }
    }
}

/// Returns a value as text, as the function `String` has it; nothing of none.
pub(crate) fn as_text(v: &AttributeValue) -> Option<String> {
    (*v != AttributeValue::Empty).then(|| v.to_string())
}

fn digest(algorithm: &'static ring::digest::Algorithm, v: &AttributeValue) -> AttributeValue {
    hex(ring::digest::digest(algorithm, v.to_string().as_bytes()).as_ref()).into()
}

/// The hash of FNV-1a, as a signed number.
fn fnv(text: &str) -> i64 {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step).cast_signed()
}

pub(crate) fn from_json(v: serde_json::Value) -> AttributeValue {
    match v {
        serde_json::Value::Null => AttributeValue::Empty,
        serde_json::Value::Bool(b) => b.into(),
        // Go reads every number of JSON as a floating one.
        serde_json::Value::Number(n) => n.as_f64().map_or(AttributeValue::Empty, Into::into),
        serde_json::Value::String(s) => s.into(),
        serde_json::Value::Array(a) => {
            AttributeValue::Array(a.into_iter().map(from_json).collect())
        }
        serde_json::Value::Object(o) => {
            AttributeValue::Map(o.into_iter().map(|(k, v)| (k, from_json(v))).collect())
        }
    }
}

/// Returns the named groups of a pattern's first match.
pub(crate) fn groups(regex: &Regex, text: &str) -> Vec<(String, AttributeValue)> {
    let Some(found) = regex.captures(text) else { return Vec::new() };
    let named = regex.capture_names().flatten();
    named.filter_map(|n| Some((n.to_owned(), found.name(n)?.as_str().into()))).collect()
}

fn base64(text: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

fn key_values(text: &str, between: &str, pairs: &str) -> AttributeValue {
    let pair = |p: &str| {
        let (k, v) = p.split_once(between)?;
        Some((k.trim().to_owned(), v.trim().trim_matches('"').into()))
    };
    AttributeValue::Map(text.split(pairs).filter(|p| !p.is_empty()).filter_map(pair).collect())
}

fn convert_case(text: &str, case: &str) -> Option<String> {
    // Where a word begins: at a capital after a small letter, and after what separates.
    let words = || {
        let mut words: Vec<String> = Vec::new();
        let mut last = ' ';
        for c in text.chars() {
            let is_break = matches!(c, '_' | '-' | ' ' | '.');
            let starts = last == ' ' || (c.is_uppercase() && last.is_lowercase());
            if starts && !is_break {
                words.push(String::new());
            }
            if let Some(w) = words.last_mut().filter(|_| !is_break) {
                w.push(c);
            }
            last = if is_break { ' ' } else { c };
        }
        words
    };
    let capital = |w: &String| {
        let mut chars = w.chars();
        let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
        first + &chars.as_str().to_lowercase()
    };
    Some(match case {
        "lower" => text.to_lowercase(),
        "upper" => text.to_uppercase(),
        "snake" => words().join("_").to_lowercase(),
        "camel" => words().iter().map(capital).collect(),
        _ => return None,
    })
}

fn call(
    function: Function,
    args: &[AttributeValue],
    regex: Option<&Regex>,
) -> Result<AttributeValue, String> {
    let empty = AttributeValue::Empty;
    let arg = |i: usize| args.get(i).unwrap_or(&empty);
    let fail = |wanted: &str| format!("{function:?}: {:?} is {wanted}", arg(0).to_string());
    let text = |i: usize| arg(i).as_str().ok_or_else(|| fail("no string"));
    Ok(match function {
        Function::Base64Decode => base64(text(0)?).ok_or_else(|| fail("no base64"))?.into(),
        Function::Bool => match arg(0) {
            AttributeValue::Int(i) => (*i != 0).into(),
            AttributeValue::Double(d) => (*d != 0.0).into(),
            v => v.as_bool().map_or(AttributeValue::Empty, Into::into),
        },
        Function::Concat => {
            let AttributeValue::Array(items) = arg(0) else { return Err(fail("no list")) };
            // What is not there is written as Go writes it.
            let shown = |v: &AttributeValue| as_text(v).unwrap_or_else(|| "<nil>".into());
            items.iter().map(shown).collect::<Vec<_>>().join(text(1)?).into()
        }
        Function::ContainsValue => match arg(0) {
            AttributeValue::Array(items) => {
                items.iter().any(|v| holds(v, Comparison::Eq, arg(1))).into()
            }
            _ => return Err(fail("no list")),
        },
        Function::ConvertCase => convert_case(text(0)?, text(1)?)
            .ok_or("the case is lower, upper, snake or camel")?
            .into(),
        Function::Double => match arg(0) {
            AttributeValue::Bool(b) => f64::from(u8::from(*b)).into(),
            v => v.as_f64().map_or(AttributeValue::Empty, Into::into),
        },
        Function::Duration => {
            crate::config::duration_ns(text(0)?).ok_or_else(|| fail("no duration"))?.into()
        }
        Function::ExtractPatterns => match regex {
            Some(r) => AttributeValue::Map(groups(r, text(0)?)),
            None => AttributeValue::Empty,
        },
        Function::Fnv => fnv(text(0)?).into(),
        Function::HasPrefix => text(0)?.starts_with(text(1)?).into(),
        Function::HasSuffix => text(0)?.ends_with(text(1)?).into(),
        Function::Hex => match arg(0) {
            AttributeValue::Bytes(b) => hex(b),
            AttributeValue::Int(i) => hex(&i.to_be_bytes()),
            AttributeValue::Double(d) => hex(&d.to_be_bytes()),
            v => hex(v.to_string().as_bytes()),
        }
        .into(),
        Function::Index => match arg(0) {
            AttributeValue::Array(items) => items
                .iter()
                .position(|v| holds(v, Comparison::Eq, arg(1)))
                .map_or(-1, |i| i as i64)
                .into(),
            _ => text(0)?.find(text(1)?).map_or(-1, |i| i as i64).into(),
        },
        Function::Int => match arg(0) {
            AttributeValue::Bool(b) => i64::from(*b).into(),
            AttributeValue::Double(d) => (*d as i64).into(),
            AttributeValue::String(s) => s.parse::<i64>().map_or(AttributeValue::Empty, Into::into),
            v @ AttributeValue::Int(_) => v.clone(),
            _ => AttributeValue::Empty,
        },
        Function::IsBool => matches!(arg(0), AttributeValue::Bool(_)).into(),
        Function::IsDouble => matches!(arg(0), AttributeValue::Double(_)).into(),
        Function::IsInt => matches!(arg(0), AttributeValue::Int(_)).into(),
        Function::IsList => matches!(arg(0), AttributeValue::Array(_)).into(),
        Function::IsMap => matches!(arg(0), AttributeValue::Map(_)).into(),
        Function::IsString => matches!(arg(0), AttributeValue::String(_)).into(),
        Function::IsMatch => {
            let text = as_text(arg(0));
            regex.is_some_and(|r| text.is_some_and(|t| r.is_match(&t))).into()
        }
        // Answered where the record is.
        Function::IsRootSpan => AttributeValue::Empty,
        Function::Keys => match arg(0) {
            AttributeValue::Map(m) => {
                AttributeValue::Array(m.iter().map(|(k, _)| k.as_str().into()).collect())
            }
            _ => return Err(fail("no map")),
        },
        Function::Values => match arg(0) {
            AttributeValue::Map(m) => {
                AttributeValue::Array(m.iter().map(|x| x.1.clone()).collect())
            }
            _ => return Err(fail("no map")),
        },
        Function::Len => match arg(0) {
            AttributeValue::String(s) => s.len(),
            AttributeValue::Bytes(b) => b.len(),
            AttributeValue::Array(a) => a.len(),
            AttributeValue::Map(m) => m.len(),
            _ => return Err(fail("nothing that has a length")),
        }
        .try_into()
        .map_or(AttributeValue::Empty, AttributeValue::Int),
        Function::Log => match arg(0).as_f64() {
            Some(d) if d > 0.0 => d.ln().into(),
            _ => return Err(fail("no number above zero")),
        },
        Function::Lower => text(0)?.to_lowercase().into(),
        Function::Upper => text(0)?.to_uppercase().into(),
        Function::ParseJson => {
            serde_json::from_str(text(0)?).map(from_json).map_err(|_| fail("no JSON"))?
        }
        Function::ParseKeyValue => {
            key_values(text(0)?, arg(1).as_str().unwrap_or("="), arg(2).as_str().unwrap_or(" "))
        }
        Function::Sha1 => digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, arg(0)),
        Function::Sha256 => digest(&ring::digest::SHA256, arg(0)),
        Function::SpanId | Function::TraceId => match arg(0) {
            v @ AttributeValue::Bytes(_) => v.clone(),
            _ => return Err(fail("no bytes; write 0x…")),
        },
        Function::Split => {
            let by = text(1)?;
            AttributeValue::Array(text(0)?.split(by).map(Into::into).collect())
        }
        Function::String => as_text(arg(0)).map_or(AttributeValue::Empty, Into::into),
        Function::Substring => {
            let of = |i| arg(i).as_i64().and_then(|n| usize::try_from(n).ok());
            let cut = of(1).zip(of(2)).and_then(|(from, n)| text(0).ok()?.get(from..from + n));
            cut.ok_or_else(|| fail("too short"))?.into()
        }
        Function::Trim => {
            let what = arg(1).as_str().unwrap_or(" ");
            text(0)?.trim_matches(|c| what.contains(c)).into()
        }
        Function::TrimPrefix => {
            let (t, p) = (text(0)?, text(1)?);
            t.strip_prefix(p).unwrap_or(t).into()
        }
        Function::TrimSuffix => {
            let (t, p) = (text(0)?, text(1)?);
            t.strip_suffix(p).unwrap_or(t).into()
        }
    })
}
