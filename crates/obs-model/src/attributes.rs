//! OTLP attribute values, resources and scopes.

use std::fmt;

/// A value of an attribute or a log body (OTLP `AnyValue`).
#[derive(Debug, Clone, PartialEq)]
pub enum AttributeValue {
    Empty,
    String(String),
    Bool(bool),
    Int(i64),
    Double(f64),
    Bytes(Vec<u8>),
    Array(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl AttributeValue {
    /// Returns the string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(s) = self { Some(s) } else { None }
    }

    /// Returns an integer; doubles without fraction and decimal strings count too, because
    /// several SDKs send counts that way.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(i) => Some(*i),
            Self::Double(d) if d.fract() == 0.0 && d.abs() < 9e15 => Some(*d as i64),
            Self::String(s) => s.trim().parse().ok(),
            _ => None,
        }
    }

    /// Returns a number of any kind.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(i) => Some(*i as f64),
            Self::Double(d) => Some(*d),
            Self::String(s) => s.trim().parse().ok(),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            Self::String(s) => s.parse().ok(),
            _ => None,
        }
    }

    /// Returns the bytes the value takes, roughly.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Empty | Self::Bool(_) | Self::Int(_) | Self::Double(_) => 16,
            Self::String(s) => s.len() + 24,
            Self::Bytes(b) => b.len() + 24,
            Self::Array(a) => a.iter().map(Self::size_bytes).sum::<usize>() + 24,
            Self::Map(m) => {
                m.iter().map(|(k, v)| k.len() + v.size_bytes() + 24).sum::<usize>() + 24
            }
        }
    }
}

impl From<&str> for AttributeValue {
    fn from(s: &str) -> Self {
        Self::String(s.to_owned())
    }
}

impl From<String> for AttributeValue {
    fn from(s: String) -> Self {
        Self::String(s)
    }
}

impl From<i64> for AttributeValue {
    fn from(i: i64) -> Self {
        Self::Int(i)
    }
}

impl From<f64> for AttributeValue {
    fn from(d: f64) -> Self {
        Self::Double(d)
    }
}

impl From<bool> for AttributeValue {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

fn json_string(f: &mut fmt::Formatter<'_>, s: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in s.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if u32::from(c) < 0x20 => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

/// Writes the JSON form of a value.
struct Json<'a>(&'a AttributeValue);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            AttributeValue::Empty => f.write_str("null"),
            AttributeValue::String(s) => json_string(f, s),
            AttributeValue::Bool(b) => write!(f, "{b}"),
            AttributeValue::Int(i) => write!(f, "{i}"),
            AttributeValue::Double(d) if d.is_finite() => write!(f, "{d}"),
            AttributeValue::Double(d) => write!(f, "\"{d}\""),
            AttributeValue::Bytes(b) => {
                f.write_str("\"")?;
                b.iter().try_for_each(|x| write!(f, "{x:02x}"))?;
                f.write_str("\"")
            }
            AttributeValue::Array(items) => {
                f.write_str("[")?;
                for (i, v) in items.iter().enumerate() {
                    write!(f, "{}{}", if i > 0 { "," } else { "" }, Json(v))?;
                }
                f.write_str("]")
            }
            AttributeValue::Map(items) => {
                f.write_str("{")?;
                for (i, (k, v)) in items.iter().enumerate() {
                    f.write_str(if i > 0 { "," } else { "" })?;
                    json_string(f, k)?;
                    write!(f, ":{}", Json(v))?;
                }
                f.write_str("}")
            }
        }
    }
}

impl fmt::Display for AttributeValue {
    /// Writes scalars plainly and composites as JSON, the form in which peers show attributes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => Ok(()),
            Self::String(s) => f.write_str(s),
            other => Json(other).fmt(f),
        }
    }
}

/// Attributes in the order in which they came; of equal keys the first counts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attributes(Vec<(String, AttributeValue)>);

impl Attributes {
    pub fn get(&self, key: &str) -> Option<&AttributeValue> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Returns the string under a key, if there is one and it is not empty.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(AttributeValue::as_str).filter(|s| !s.is_empty())
    }

    pub fn push(&mut self, key: impl Into<String>, value: impl Into<AttributeValue>) {
        self.0.push((key.into(), value.into()));
    }

    pub fn iter(&self) -> std::slice::Iter<'_, (String, AttributeValue)> {
        self.0.iter()
    }

    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, (String, AttributeValue)> {
        self.0.iter_mut()
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut AttributeValue> {
        self.0.iter_mut().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Gives a key a value, in place of the one it has.
    pub fn set(&mut self, key: &str, value: impl Into<AttributeValue>) {
        match self.get_mut(key) {
            Some(slot) => *slot = value.into(),
            None => self.push(key, value),
        }
    }

    /// Keeps the pairs that `f` returns true of.
    pub fn retain(&mut self, mut f: impl FnMut(&str, &AttributeValue) -> bool) {
        self.0.retain(|(k, v)| f(k, v));
    }

    pub fn into_pairs(self) -> Vec<(String, AttributeValue)> {
        self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn size_bytes(&self) -> usize {
        self.0.iter().map(|(k, v)| k.len() + 24 + v.size_bytes()).sum()
    }
}

impl From<Vec<(String, AttributeValue)>> for Attributes {
    fn from(pairs: Vec<(String, AttributeValue)>) -> Self {
        Self(pairs)
    }
}

impl<K: Into<String>, V: Into<AttributeValue>> FromIterator<(K, V)> for Attributes {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        Self(iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

/// What produced the telemetry (OTLP resource).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resource {
    pub attributes: Attributes,
}

impl Resource {
    /// Returns `service.name`, or the name OpenTelemetry prescribes for its absence.
    pub fn service(&self) -> &str {
        self.attributes.get_str("service.name").unwrap_or("unknown_service")
    }

    /// Returns the deployment environment under its current or its older name.
    pub fn environment(&self) -> Option<&str> {
        self.attributes
            .get_str("deployment.environment.name")
            .or_else(|| self.attributes.get_str("deployment.environment"))
    }
}

/// The instrumentation that produced the telemetry (OTLP scope).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scope {
    pub name: String,
    pub version: String,
    pub attributes: Attributes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composites_print_as_json() {
        let v = AttributeValue::Map(vec![
            ("a\"".into(), AttributeValue::Array(vec![1.into(), true.into(), "x\n".into()])),
            ("b".into(), AttributeValue::Empty),
        ]);
        assert_eq!(v.to_string(), r#"{"a\"":[1,true,"x\n"],"b":null}"#);
        assert_eq!(AttributeValue::from("plain").to_string(), "plain");
    }

    #[test]
    fn counts_are_read_from_every_numeric_form() {
        for v in [AttributeValue::Int(7), AttributeValue::Double(7.0), "7".into()] {
            assert_eq!(v.as_i64(), Some(7));
        }
        assert_eq!(AttributeValue::Double(7.5).as_i64(), None);
    }
}
