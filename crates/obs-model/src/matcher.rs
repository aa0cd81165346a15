//! Label matchers with Prometheus' semantics: fully anchored, absent equals empty.

use crate::Labels;
use crate::go_regex::anchored_regex;
use regex::Regex;
use std::fmt;

/// How a matcher compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchOp {
    Equal,
    NotEqual,
    Regex,
    NotRegex,
}

/// One `name<op>"value"` of a selector.
#[derive(Debug, Clone)]
pub struct Matcher {
    pub name: String,
    pub op: MatchOp,
    pub value: String,
    regex: Option<Regex>,
}

/// A matcher's regular expression did not compile.
#[derive(Debug, thiserror::Error)]
#[error("invalid regular expression {pattern:?}: {reason}")]
pub struct MatcherError {
    pub pattern: String,
    pub reason: String,
}

impl Matcher {
    /// Builds a matcher.
    ///
    /// # Errors
    /// When a regular expression does not compile or is too large.
    pub fn new(
        name: impl Into<String>,
        op: MatchOp,
        value: impl Into<String>,
    ) -> Result<Self, MatcherError> {
        let value = value.into();
        let regex = match op {
            MatchOp::Equal | MatchOp::NotEqual => None,
            MatchOp::Regex | MatchOp::NotRegex => Some(
                anchored_regex(&value)
                    .map_err(|e| MatcherError { pattern: value.clone(), reason: e.to_string() })?,
            ),
        };
        Ok(Self { name: name.into(), op, value, regex })
    }

    /// Builds an equality matcher, which cannot fail.
    pub fn equal(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), op: MatchOp::Equal, value: value.into(), regex: None }
    }

    /// Returns whether a label value matches; an absent label is the empty string.
    pub fn matches(&self, value: &str) -> bool {
        match (self.op, &self.regex) {
            (MatchOp::Equal, _) => value == self.value,
            (MatchOp::NotEqual, _) => value != self.value,
            (MatchOp::Regex, Some(re)) => re.is_match(value),
            (MatchOp::NotRegex, Some(re)) => !re.is_match(value),
            (MatchOp::Regex | MatchOp::NotRegex, None) => false,
        }
    }

    /// Returns whether all matchers hold for a label set.
    pub fn all_match(matchers: &[Self], labels: &Labels) -> bool {
        matchers.iter().all(|m| m.matches(labels.get(&m.name)))
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.op == other.op && self.value == other.value
    }
}

impl fmt::Display for MatchOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
        })
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{:?}", self.name, self.op, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regexes_are_anchored_and_absent_is_empty() {
        let labels = Labels::from_pairs([("job", "api")]);
        let check = |name: &str, op, value: &str| {
            Matcher::all_match(&[Matcher::new(name, op, value).unwrap()], &labels)
        };
        assert!(check("job", MatchOp::Regex, "a.i"));
        assert!(!check("job", MatchOp::Regex, "ap"));
        assert!(check("env", MatchOp::Equal, ""));
        assert!(check("env", MatchOp::NotRegex, ".+"));
        assert!(Matcher::new("x", MatchOp::Regex, "(").is_err());
    }
}
