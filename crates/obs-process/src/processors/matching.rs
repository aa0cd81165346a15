//! `include` and `exclude`: which records a processor is about.

use crate::context::{Context, Field, Of};
use obs_model::{AttributeValue, go_regex};
use regex::Regex;
use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawMatch {
    match_type: String,
    /// Settings of a cache of patterns.
    #[serde(rename = "regexp")]
    _regexp: Option<serde_json::Value>,
    services: Vec<String>,
    span_names: Vec<String>,
    span_kinds: Vec<String>,
    #[serde(alias = "bodies")]
    log_bodies: Vec<String>,
    #[serde(alias = "severity_texts")]
    log_severity_texts: Vec<String>,
    #[serde(alias = "severity_number")]
    log_severity_number: Option<RawSeverity>,
    metric_names: Vec<String>,
    #[serde(alias = "record_attributes")]
    attributes: Vec<RawPair>,
    #[serde(alias = "resource_attributes")]
    resources: Vec<RawPair>,
    libraries: Vec<RawLibrary>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPair {
    key: String,
    value: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSeverity {
    min: serde_json::Value,
    #[serde(default)]
    match_undefined: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLibrary {
    name: String,
    version: Option<String>,
}

/// A text to be like.
#[derive(Debug, Clone)]
enum Like {
    Exactly(String),
    Pattern(Regex),
}

impl Like {
    fn read(text: &str, is_pattern: bool) -> Result<Self, String> {
        if !is_pattern {
            return Ok(Self::Exactly(text.to_owned()));
        }
        let regex = go_regex(text);
        regex.map(Self::Pattern).map_err(|e| format!("{text:?} is no regular expression: {e}"))
    }

    fn is(&self, text: &str) -> bool {
        match self {
            Self::Exactly(t) => t == text,
            Self::Pattern(r) => r.is_match(text),
        }
    }
}

/// An attribute to have, of a value if one is given.
#[derive(Debug, Clone)]
struct Pair {
    key: String,
    value: Option<Like>,
}

impl Pair {
    fn of(&self, c: &dyn Context, of: Of) -> bool {
        let Some(v) = c.attributes(of).and_then(|a| a.get(&self.key)) else { return false };
        self.value.as_ref().is_none_or(|l| l.is(&v.to_string()))
    }
}

#[derive(Debug, Clone, Default)]
struct One {
    services: Vec<Like>,
    names: Vec<Like>,
    kinds: Vec<Like>,
    bodies: Vec<Like>,
    severities: Vec<Like>,
    /// The least severity, and whether records without one match.
    severity: Option<(i64, bool)>,
    attributes: Vec<Pair>,
    resources: Vec<Pair>,
    libraries: Vec<(Like, Option<Like>)>,
}

impl One {
    fn read(raw: RawMatch) -> Result<Self, String> {
        let is_pattern = match raw.match_type.as_str() {
            "strict" => false,
            "regexp" => true,
            other => return Err(format!("match_type {other:?} is not strict or regexp")),
        };
        let texts = |list: &[String]| -> Result<Vec<Like>, String> {
            list.iter().map(|t| Like::read(t, is_pattern)).collect()
        };
        let pairs = |list: Vec<RawPair>| -> Result<Vec<Pair>, String> {
            let read = |p: RawPair| {
                // Only texts are patterns.
                let like = |v: serde_json::Value| match v {
                    serde_json::Value::String(s) => Like::read(&s, is_pattern),
                    other => Like::read(&other.to_string(), false),
                };
                Ok(Pair { key: p.key, value: p.value.map(like).transpose()? })
            };
            list.into_iter().map(read).collect()
        };
        let names = if raw.span_names.is_empty() { raw.metric_names } else { raw.span_names };
        let library = |l: RawLibrary| {
            let version = l.version.map(|v| Like::read(&v, is_pattern)).transpose()?;
            Ok((Like::read(&l.name, is_pattern)?, version))
        };
        let severity = |s: RawSeverity| {
            let min = match &s.min {
                serde_json::Value::Number(n) => n.as_i64(),
                serde_json::Value::String(t) => severity_named(t),
                _ => None,
            };
            let min = min.ok_or_else(|| format!("severity {} is unknown", s.min))?;
            Ok::<_, String>((min, s.match_undefined))
        };
        Ok(Self {
            services: texts(&raw.services)?,
            names: texts(&names)?,
            kinds: texts(&raw.span_kinds)?,
            bodies: texts(&raw.log_bodies)?,
            severities: texts(&raw.log_severity_texts)?,
            severity: raw.log_severity_number.map(severity).transpose()?,
            attributes: pairs(raw.attributes)?,
            resources: pairs(raw.resources)?,
            libraries: raw.libraries.into_iter().map(library).collect::<Result<_, String>>()?,
        })
    }

    fn matches(&self, of: Of, c: &dyn Context) -> bool {
        let any = |list: &[Like], text: &dyn Fn() -> AttributeValue| {
            list.is_empty() || {
                let v = text().to_string();
                list.iter().any(|l| l.is(&v))
            }
        };
        let named = if of == Of::Span { Of::Span } else { Of::Metric };
        let service = || {
            let a = c.attributes(Of::Resource);
            a.and_then(|a| a.get("service.name")).cloned().unwrap_or(AttributeValue::Empty)
        };
        let library = |(name, version): &(Like, Option<Like>)| {
            name.is(&c.field(Of::Scope, Field::Name).to_string())
                && version
                    .as_ref()
                    .is_none_or(|v| v.is(&c.field(Of::Scope, Field::Version).to_string()))
        };
        any(&self.services, &service)
            && (of == Of::Log || any(&self.names, &|| c.field(named, Field::Name)))
            && (of != Of::Span || any(&self.kinds, &|| c.field(of, Field::KindDeprecated)))
            && (of != Of::Log
                || any(&self.bodies, &|| c.field(of, Field::Body))
                    && any(&self.severities, &|| c.field(of, Field::SeverityText))
                    && self.severity.is_none_or(|(min, undefined)| {
                        match c.field(of, Field::SeverityNumber).as_i64() {
                            None | Some(0) => undefined,
                            Some(n) => n >= min,
                        }
                    }))
            && self.attributes.iter().all(|p| p.of(c, of))
            && self.resources.iter().all(|p| p.of(c, Of::Resource))
            && (self.libraries.is_empty() || self.libraries.iter().any(library))
    }
}

/// Returns the number of a severity's name: `WARN`, `ERROR2`.
fn severity_named(text: &str) -> Option<i64> {
    crate::ottl::enumerated(&format!("SEVERITY_NUMBER_{}", text.to_uppercase()))
}

/// Which records are meant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Matching {
    include: Option<One>,
    exclude: Option<One>,
}

impl Matching {
    pub(crate) fn read(
        include: Option<RawMatch>,
        exclude: Option<RawMatch>,
    ) -> Result<Self, String> {
        let one = |name: &str, raw: Option<RawMatch>| {
            raw.map(One::read).transpose().map_err(|e| format!("{name}: {e}"))
        };
        Ok(Self { include: one("include", include)?, exclude: one("exclude", exclude)? })
    }

    pub(crate) fn takes(&self, of: Of, c: &dyn Context) -> bool {
        self.include.as_ref().is_none_or(|m| m.matches(of, c))
            && !self.exclude.as_ref().is_some_and(|m| m.matches(of, c))
    }
}
