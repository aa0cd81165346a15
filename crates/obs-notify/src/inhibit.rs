//! Inhibition: alerts that are silent while another one fires.

use crate::alert::Alert;
use crate::config::RawInhibit;
use crate::matchers::parse_matchers;
use obs_model::{Labels, MatchOp, Matcher, TimestampNs};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Alerts that match the target are inhibited while one fires that matches the source and has the
/// same values of the equal labels.
#[derive(Debug, Clone)]
pub struct InhibitRule {
    pub source: Vec<Matcher>,
    pub target: Vec<Matcher>,
    pub equal: Vec<String>,
}

fn side(
    plain: &BTreeMap<String, String>,
    patterns: &BTreeMap<String, String>,
    texts: &[String],
) -> Result<Vec<Matcher>, String> {
    let mut out: Vec<Matcher> = plain.iter().map(|(n, v)| Matcher::equal(n, v)).collect();
    for (name, pattern) in patterns {
        out.push(Matcher::new(name, MatchOp::Regex, pattern).map_err(|e| e.to_string())?);
    }
    for t in texts {
        out.extend(parse_matchers(t)?);
    }
    Ok(out)
}

impl TryFrom<&RawInhibit> for InhibitRule {
    type Error = String;

    fn try_from(r: &RawInhibit) -> Result<Self, String> {
        Ok(Self {
            source: side(&r.source_match, &r.source_match_re, &r.source_matchers)?,
            target: side(&r.target_match, &r.target_match_re, &r.target_matchers)?,
            equal: r.equal.clone(),
        })
    }
}

impl InhibitRule {
    /// Values of the equal labels; an absent label is an empty one.
    fn values(&self, labels: &Labels) -> Vec<String> {
        self.equal.iter().map(|n| labels.get(n).to_owned()).collect()
    }
}

/// Alerts by the values of a rule's equal labels.
type Sources = HashMap<Vec<String>, HashSet<u64>>;

/// The rules, and the alerts that are sources of each.
#[derive(Debug, Default)]
pub(crate) struct Inhibitor {
    rules: Vec<(InhibitRule, Sources)>,
}

impl Inhibitor {
    pub(crate) fn new(rules: &[InhibitRule]) -> Self {
        Self { rules: rules.iter().map(|r| (r.clone(), HashMap::new())).collect() }
    }

    pub(crate) fn add(&mut self, id: u64, labels: &Labels) {
        for (rule, sources) in &mut self.rules {
            if Matcher::all_match(&rule.source, labels) {
                sources.entry(rule.values(labels)).or_default().insert(id);
            }
        }
    }

    pub(crate) fn remove(&mut self, id: u64, labels: &Labels) {
        for (rule, sources) in &mut self.rules {
            let key = rule.values(labels);
            if let Some(ids) = sources.get_mut(&key) {
                ids.remove(&id);
                if ids.is_empty() {
                    sources.remove(&key);
                }
            }
        }
    }

    /// Returns an alert that inhibits these labels, if one does.
    pub(crate) fn inhibitor<'a>(
        &self,
        labels: &Labels,
        now: TimestampNs,
        alert: &dyn Fn(u64) -> Option<&'a Alert>,
    ) -> Option<u64> {
        self.rules.iter().find_map(|(rule, sources)| {
            if sources.is_empty() || !Matcher::all_match(&rule.target, labels) {
                return None;
            }
            // What matches both sides is not inhibited by what matches both sides: not by itself.
            let is_source = Matcher::all_match(&rule.source, labels);
            let ids = sources.get(&rule.values(labels))?;
            let inhibits = |id: &&u64| {
                alert(**id).is_some_and(|a| {
                    let on_both_sides = is_source && Matcher::all_match(&rule.target, &a.labels);
                    !a.is_resolved(now) && !on_both_sides
                })
            };
            ids.iter().filter(inhibits).min().copied()
        })
    }
}
