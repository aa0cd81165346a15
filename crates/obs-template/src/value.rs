//! What templates compute with.

use crate::format::format_float_g;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Something with methods, handed to a template by its caller.
pub trait Object: fmt::Debug + Send + Sync {
    /// Returns a field's value, `None` when there is no such field.
    fn field(&self, name: &str) -> Option<Value>;

    /// Calls a method; `None` when there is no such method.
    fn call(&self, _name: &str, _args: &[Value]) -> Option<Result<Value, String>> {
        None
    }

    /// Whether the object prints as HTML that is to stay as it is.
    fn is_html(&self) -> bool {
        false
    }

    /// Returns what the object is when printed, compared or asked for its length.
    fn plain(&self) -> Value;
}

#[derive(Debug, Clone, Default)]
pub enum Value {
    /// Also what a missing key gives: it prints as `<no value>`.
    #[default]
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    List(Arc<Vec<Self>>),
    /// A map whose missing keys are nil.
    Map(Arc<BTreeMap<String, Self>>),
    /// A map of texts: missing keys are empty texts, as of Go's `map[string]string`.
    Texts(Arc<BTreeMap<String, String>>),
    Object(Arc<dyn Object>),
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Self::Str(s.into())
    }
}

impl From<String> for Value {
    fn from(s: String) -> Self {
        Self::Str(s.into())
    }
}

impl From<f64> for Value {
    fn from(f: f64) -> Self {
        Self::Float(f)
    }
}

impl From<i64> for Value {
    fn from(i: i64) -> Self {
        Self::Int(i)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl From<Vec<Self>> for Value {
    fn from(list: Vec<Self>) -> Self {
        Self::List(list.into())
    }
}

impl Value {
    /// Builds a map of texts.
    pub fn texts<N: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        Self::Texts(Arc::new(pairs.into_iter().map(|(n, v)| (n.into(), v.into())).collect()))
    }

    /// Builds a map.
    pub fn map<N: Into<String>>(pairs: impl IntoIterator<Item = (N, Self)>) -> Self {
        Self::Map(Arc::new(pairs.into_iter().map(|(n, v)| (n.into(), v)).collect()))
    }

    /// Returns Go's notion of truth: not zero, not empty, not nil.
    pub fn is_true(&self) -> bool {
        match self {
            Self::Nil => false,
            Self::Bool(b) => *b,
            Self::Int(i) => *i != 0,
            Self::Float(f) => *f != 0.0,
            Self::Str(s) => !s.is_empty(),
            Self::List(l) => !l.is_empty(),
            Self::Map(m) => !m.is_empty(),
            Self::Texts(m) => !m.is_empty(),
            Self::Object(o) => o.plain().is_true(),
        }
    }

    /// Returns the text of a string value.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(s) = self { Some(s) } else { None }
    }

    /// Returns a number, also of a text that is one.
    pub fn to_float(&self) -> Result<f64, String> {
        match self {
            Self::Float(f) => Ok(*f),
            Self::Int(i) => Ok(*i as f64),
            Self::Str(s) => go_float(s)
                .ok_or_else(|| format!("strconv.ParseFloat: parsing {s:?}: invalid syntax")),
            Self::Object(o) => o.plain().to_float(),
            other => Err(format!("cannot convert {} to float", other.type_name())),
        }
    }

    /// Returns Go's name of the type, for error texts.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float64",
            Self::Str(_) => "string",
            Self::List(_) => "[]interface {}",
            Self::Map(_) => "map[string]interface {}",
            Self::Texts(_) => "map[string]string",
            Self::Object(_) => "struct",
        }
    }

    /// Returns the number of elements or bytes.
    pub fn len(&self) -> Option<usize> {
        Some(match self {
            Self::Str(s) => s.len(),
            Self::List(l) => l.len(),
            Self::Map(m) => m.len(),
            Self::Texts(m) => m.len(),
            Self::Object(o) => return o.plain().len(),
            _ => return None,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }
}

/// Parses what Go's `strconv.ParseFloat` takes, that matters here.
fn go_float(s: &str) -> Option<f64> {
    match s.trim_start_matches(['+', '-']).to_ascii_lowercase().as_str() {
        "inf" | "infinity" => {
            Some(if s.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY })
        }
        "nan" => Some(f64::NAN),
        _ => s.parse().ok(),
    }
}

impl fmt::Display for Value {
    /// Prints like Go's `%v`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("<no value>"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(i) => write!(f, "{i}"),
            Self::Float(x) => f.write_str(&format_float_g(*x)),
            Self::Str(s) => f.write_str(s),
            Self::List(l) => {
                f.write_str("[")?;
                for (i, v) in l.iter().enumerate() {
                    write!(f, "{}{v}", if i > 0 { " " } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Map(m) => {
                f.write_str("map[")?;
                for (i, (k, v)) in m.iter().enumerate() {
                    write!(f, "{}{k}:{v}", if i > 0 { " " } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Texts(m) => {
                f.write_str("map[")?;
                for (i, (k, v)) in m.iter().enumerate() {
                    write!(f, "{}{k}:{v}", if i > 0 { " " } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Object(o) => o.plain().fmt(f),
        }
    }
}
