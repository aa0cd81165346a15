//! Relabelling, as Prometheus does it.

use md5::{Digest as _, Md5};
use obs_model::{Labels, LabelsBuilder};
use regex::Regex;
use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    #[default]
    Replace,
    Keep,
    Drop,
    KeepEqual,
    DropEqual,
    HashMod,
    LabelMap,
    LabelDrop,
    LabelKeep,
    Lowercase,
    Uppercase,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    source_labels: Option<Vec<String>>,
    separator: Option<String>,
    #[serde(default)]
    target_label: String,
    regex: Option<String>,
    #[serde(default)]
    modulus: u64,
    replacement: Option<String>,
    action: Option<String>,
}

/// One rule, checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Rule {
    source_labels: Vec<String>,
    separator: String,
    target_label: String,
    regex: Regex,
    pattern: String,
    modulus: u64,
    replacement: String,
    action: Action,
}

impl PartialEq for Rule {
    fn eq(&self, o: &Self) -> bool {
        let key = |r: &Self| {
            (
                r.source_labels.clone(),
                r.separator.clone(),
                r.target_label.clone(),
                r.pattern.clone(),
                r.modulus,
                r.replacement.clone(),
                r.action,
            )
        };
        key(self) == key(o)
    }
}

impl TryFrom<Raw> for Rule {
    type Error = String;

    fn try_from(r: Raw) -> Result<Self, String> {
        let word = r.action.as_deref().unwrap_or("replace").to_ascii_lowercase();
        let action = match word.as_str() {
            "replace" => Action::Replace,
            "keep" => Action::Keep,
            "drop" => Action::Drop,
            "keepequal" => Action::KeepEqual,
            "dropequal" => Action::DropEqual,
            "hashmod" => Action::HashMod,
            "labelmap" => Action::LabelMap,
            "labeldrop" => Action::LabelDrop,
            "labelkeep" => Action::LabelKeep,
            "lowercase" => Action::Lowercase,
            "uppercase" => Action::Uppercase,
            other => return Err(format!("unknown relabel action {other:?}")),
        };
        let needs_target = matches!(
            action,
            Action::Replace
                | Action::HashMod
                | Action::Lowercase
                | Action::Uppercase
                | Action::KeepEqual
                | Action::DropEqual
        );
        if needs_target && r.target_label.is_empty() {
            return Err(format!(
                "relabel configuration for {word} action requires 'target_label' value"
            ));
        }
        if action == Action::HashMod && r.modulus == 0 {
            return Err("relabel configuration for hashmod requires non-zero modulus".into());
        }
        let only_regex = matches!(action, Action::LabelDrop | Action::LabelKeep);
        if only_regex
            && (r.source_labels.is_some()
                || !r.target_label.is_empty()
                || r.modulus != 0
                || r.separator.is_some()
                || r.replacement.is_some())
        {
            return Err(format!("{word} action requires only 'regex', and no other fields"));
        }
        let pattern = r.regex.unwrap_or_else(|| "(.*)".into());
        let regex = obs_model::anchored_regex(&pattern)
            .map_err(|e| format!("invalid regex {pattern:?}: {e}"))?;
        Ok(Self {
            source_labels: r.source_labels.unwrap_or_default(),
            separator: r.separator.unwrap_or_else(|| ";".into()),
            target_label: r.target_label,
            regex,
            pattern,
            modulus: r.modulus,
            replacement: r.replacement.unwrap_or_else(|| "$1".into()),
            action,
        })
    }
}

/// Labels being changed.
type Set = Vec<(String, String)>;

fn get<'s>(set: &'s Set, name: &str) -> &'s str {
    set.iter().find(|p| p.0 == name).map_or("", |p| p.1.as_str())
}

fn put(set: &mut Set, name: &str, value: String) {
    set.retain(|p| p.0 != name);
    if !value.is_empty() {
        set.push((name.to_owned(), value));
    }
}

fn expand(captures: &regex::Captures<'_>, template: &str) -> String {
    let mut out = String::new();
    captures.expand(template, &mut out);
    out
}

impl Rule {
    /// Changes the set; returns false when it is dropped.
    fn apply(&self, set: &mut Set) -> bool {
        let source = || {
            let values: Vec<&str> = self.source_labels.iter().map(|l| get(set, l)).collect();
            values.join(&self.separator)
        };
        match self.action {
            Action::Drop => !self.regex.is_match(&source()),
            Action::Keep => self.regex.is_match(&source()),
            Action::DropEqual => get(set, &self.target_label) != source(),
            Action::KeepEqual => get(set, &self.target_label) == source(),
            Action::Replace => {
                let value = source();
                let Some(captures) = self.regex.captures(&value) else { return true };
                let target = expand(&captures, &self.target_label);
                if target.is_empty() {
                    return true;
                }
                let new = expand(&captures, &self.replacement);
                put(set, &target, new);
                true
            }
            Action::Lowercase => {
                let value = source().to_lowercase();
                put(set, &self.target_label, value);
                true
            }
            Action::Uppercase => {
                let value = source().to_uppercase();
                put(set, &self.target_label, value);
                true
            }
            Action::HashMod => {
                let digest = Md5::digest(source().as_bytes());
                // The last eight of the sixteen bytes.
                let n = digest.iter().skip(8).fold(0_u64, |n, b| (n << 8) | u64::from(*b));
                put(set, &self.target_label, (n % self.modulus).to_string());
                true
            }
            Action::LabelMap => {
                let mapped: Set = set
                    .iter()
                    .filter_map(|(n, v)| {
                        let captures = self.regex.captures(n)?;
                        Some((expand(&captures, &self.replacement), v.clone()))
                    })
                    .collect();
                for (n, v) in mapped {
                    put(set, &n, v);
                }
                true
            }
            Action::LabelDrop => {
                set.retain(|(n, _)| !self.regex.is_match(n));
                true
            }
            Action::LabelKeep => {
                set.retain(|(n, _)| self.regex.is_match(n));
                true
            }
        }
    }
}

/// Applies rules in order; `None` when one of them drops the labels.
pub fn relabel(labels: &Labels, rules: &[Rule]) -> Option<Labels> {
    if rules.is_empty() {
        return Some(labels.clone());
    }
    let mut set: Set = labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    for r in rules {
        if !r.apply(&mut set) {
            return None;
        }
    }
    let mut b = LabelsBuilder::default();
    for (n, v) in set {
        b.push(n, v);
    }
    Some(b.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rules: &str, labels: &[(&str, &str)]) -> Option<String> {
        let rules: Vec<Rule> = serde_saphyr::from_str(rules).unwrap();
        relabel(&Labels::from_pairs(labels.iter().copied()), &rules).map(|l| l.to_string())
    }

    #[test]
    fn every_action_does_what_prometheus_does() {
        let l = [("a", "foo"), ("b", "bar"), ("c", "baz")];
        let cases = [
            (
                "[{source_labels: [a], regex: 'f(.*)', target_label: d, replacement: 'ch${1}-ch${1}'}]",
                Some("{a=\"foo\", b=\"bar\", c=\"baz\", d=\"choo-choo\"}"),
            ),
            (
                "[{source_labels: [a, b], regex: 'f(.*);(.*)r', target_label: a, replacement: 'b${1}${2}m'}]",
                Some("{a=\"boobam\", b=\"bar\", c=\"baz\"}"),
            ),
            (
                "[{source_labels: [a], regex: 'f', target_label: b, replacement: x}]",
                Some("{a=\"foo\", b=\"bar\", c=\"baz\"}"),
            ),
            ("[{source_labels: [a], regex: '.*o.*', action: drop}]", None),
            ("[{source_labels: [a], regex: 'no', action: keep}]", None),
            (
                "[{source_labels: [a], regex: 'f.*', action: keep}, {regex: '(b|c)', action: labeldrop}]",
                Some("{a=\"foo\"}"),
            ),
            ("[{regex: a, action: labelkeep}]", Some("{a=\"foo\"}")),
            (
                "[{regex: '(b.*)', replacement: 'bar_${1}', action: labelmap}]",
                Some("{a=\"foo\", b=\"bar\", bar_b=\"bar\", c=\"baz\"}"),
            ),
            (
                "[{source_labels: [c], target_label: d, action: hashmod, modulus: 1000}]",
                Some("{a=\"foo\", b=\"bar\", c=\"baz\", d=\"976\"}"),
            ),
            (
                "[{source_labels: [a], target_label: a, action: uppercase}]",
                Some("{a=\"FOO\", b=\"bar\", c=\"baz\"}"),
            ),
            (
                "[{source_labels: [a], target_label: a, action: keepequal}]",
                Some("{a=\"foo\", b=\"bar\", c=\"baz\"}"),
            ),
            ("[{source_labels: [a], target_label: a, action: dropequal}]", None),
            ("[{target_label: b, replacement: ''}]", Some("{a=\"foo\", c=\"baz\"}")),
            (
                "[{source_labels: [a], regex: '(f).*', target_label: '${1}_x', replacement: y}]",
                Some("{a=\"foo\", b=\"bar\", c=\"baz\", f_x=\"y\"}"),
            ),
        ];
        for (rules, want) in cases {
            assert_eq!(run(rules, &l).as_deref(), want, "{rules}");
        }
    }

    #[test]
    fn wrong_rules_say_why() {
        for (rule, want) in [
            ("{action: nope}", "unknown relabel action"),
            ("{action: replace}", "requires 'target_label'"),
            ("{action: hashmod, target_label: a}", "non-zero modulus"),
            ("{action: labeldrop, regex: a, target_label: b}", "requires only 'regex'"),
            ("{regex: '(', target_label: a}", "invalid regex"),
        ] {
            let e = serde_saphyr::from_str::<Rule>(rule).unwrap_err().to_string();
            assert!(e.contains(want), "{rule}: {e}");
        }
    }
}
