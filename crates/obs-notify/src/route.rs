//! The routing tree: which receivers an alert goes to, in which groups, and which parts of the tree
//! no alert can reach.

use crate::config::{RawRoute, default_seconds};
use crate::matchers::{matcher_text, parse_matchers};
use obs_model::{Labels, MatchOp, Matcher};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// How the alerts of a route are grouped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupBy {
    /// By these labels; by none: all in one group.
    Labels(BTreeSet<String>),
    /// By all labels: each alert alone.
    All,
}

/// A node of the tree, with what it inherits filled in.
#[derive(Debug, Clone)]
pub struct Route {
    pub receiver: String,
    pub matchers: Vec<Matcher>,
    pub group_by: GroupBy,
    pub group_wait: Duration,
    pub group_interval: Duration,
    pub repeat_interval: Duration,
    pub mute: Vec<String>,
    pub active: Vec<String>,
    pub continues: bool,
    /// Matchers from the root down to here, as Alertmanager writes them in group keys.
    pub key: String,
    pub parent: Option<usize>,
    pub children: Vec<usize>,
}

/// The tree as a list; the root is the first.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    pub nodes: Vec<Route>,
}

/// A route that an alert was held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub route: usize,
    pub depth: usize,
    pub matched: bool,
    /// Whether the alert is sent to this route's receiver.
    pub receives: bool,
    /// Whether the search ended here for the siblings after it.
    pub ends: bool,
}

/// Something wrong with a tree that can be used all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: &'static str,
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

fn matchers_of(r: &RawRoute) -> Result<Vec<Matcher>, String> {
    let mut out = Vec::new();
    for (name, value) in &r.r#match {
        out.push(Matcher::equal(name, value));
    }
    for (name, pattern) in &r.match_re {
        out.push(Matcher::new(name, MatchOp::Regex, pattern).map_err(|e| e.to_string())?);
    }
    for text in &r.matchers {
        out.extend(parse_matchers(text)?);
    }
    out.sort_by(|a, b| (&a.name, &a.value, a.op as u8).cmp(&(&b.name, &b.value, b.op as u8)));
    Ok(out)
}

fn list_text(matchers: &[Matcher]) -> String {
    let texts: Vec<String> = matchers.iter().map(matcher_text).collect();
    format!("{{{}}}", texts.join(","))
}

impl Routes {
    /// Builds the tree.
    ///
    /// # Errors
    /// With what Alertmanager would refuse.
    pub(crate) fn new(root: &RawRoute) -> Result<Self, String> {
        if root.receiver.as_deref().unwrap_or_default().is_empty() {
            return Err("root route must specify a default receiver".into());
        }
        if !root.r#match.is_empty() || !root.match_re.is_empty() || !root.matchers.is_empty() {
            return Err("root route must not have any matchers".into());
        }
        if !root.mute_time_intervals.is_empty() {
            return Err("root route must not have any mute time intervals".into());
        }
        if !root.active_time_intervals.is_empty() {
            return Err("root route must not have any active time intervals".into());
        }
        if root.r#continue {
            return Err("cannot have continue in root route".into());
        }
        let mut tree = Self::default();
        tree.add(root, None)?;
        Ok(tree)
    }

    fn add(&mut self, raw: &RawRoute, parent: Option<usize>) -> Result<usize, String> {
        let above = parent.and_then(|p| self.nodes.get(p));
        let matchers = matchers_of(raw)?;
        let group_by = match (&raw.group_by, above) {
            (Some(list), _) => {
                let names: BTreeSet<String> = list.iter().cloned().collect();
                if names.len() < list.len() {
                    return Err("duplicated label in group_by".into());
                }
                match names.contains("...") {
                    true if names.len() > 1 => {
                        return Err("cannot have wildcard group_by (`...`) and other labels at the same time".into());
                    }
                    true => GroupBy::All,
                    false => GroupBy::Labels(names),
                }
            }
            (None, Some(p)) => p.group_by.clone(),
            (None, None) => GroupBy::Labels(BTreeSet::new()),
        };
        let time = |own: Option<obs_collect::config::Span>, of: fn(&Route) -> Duration, default| {
            own.map(|s| s.0).or_else(|| above.map(of)).unwrap_or(default)
        };
        let group_interval =
            time(raw.group_interval, |r| r.group_interval, default_seconds::GROUP_INTERVAL);
        let repeat_interval =
            time(raw.repeat_interval, |r| r.repeat_interval, default_seconds::REPEAT_INTERVAL);
        if group_interval.is_zero() {
            return Err("group_interval cannot be zero".into());
        }
        if repeat_interval.is_zero() {
            return Err("repeat_interval cannot be zero".into());
        }
        let own = list_text(&matchers);
        let route = Route {
            receiver: raw
                .receiver
                .clone()
                .filter(|r| !r.is_empty())
                .or_else(|| above.map(|p| p.receiver.clone()))
                .unwrap_or_default(),
            matchers,
            group_by,
            group_wait: time(raw.group_wait, |r| r.group_wait, default_seconds::GROUP_WAIT),
            group_interval,
            repeat_interval,
            mute: raw.mute_time_intervals.clone(),
            active: raw.active_time_intervals.clone(),
            continues: raw.r#continue,
            key: above.map_or_else(|| own.clone(), |p| format!("{}/{own}", p.key)),
            parent,
            children: Vec::new(),
        };
        let index = self.nodes.len();
        self.nodes.push(route);
        for child in &raw.routes {
            let c = self.add(child, Some(index))?;
            if let Some(n) = self.nodes.get_mut(index) {
                n.children.push(c);
            }
        }
        Ok(index)
    }

    pub fn get(&self, index: usize) -> Option<&Route> {
        self.nodes.get(index)
    }

    /// Returns the routes whose receivers an alert with these labels is sent to.
    pub fn find(&self, labels: &Labels) -> Vec<usize> {
        let mut out = Vec::new();
        self.walk(0, labels, &mut out);
        out
    }

    fn walk(&self, index: usize, labels: &Labels, out: &mut Vec<usize>) -> bool {
        let Some(r) = self.nodes.get(index) else { return false };
        if !Matcher::all_match(&r.matchers, labels) {
            return false;
        }
        let before = out.len();
        for c in &r.children {
            let continues = self.nodes.get(*c).is_some_and(|n| n.continues);
            if self.walk(*c, labels, out) && !continues {
                break;
            }
        }
        if out.len() == before {
            out.push(index);
        }
        true
    }

    /// Returns the routes that an alert is held against, in order, and what came of it.
    pub fn explain(&self, labels: &Labels) -> Vec<Step> {
        let found = self.find(labels);
        let mut out = Vec::new();
        self.explain_at(0, 0, labels, &found, &mut out);
        out
    }

    fn explain_at(
        &self,
        index: usize,
        depth: usize,
        labels: &Labels,
        found: &[usize],
        out: &mut Vec<Step>,
    ) {
        let Some(r) = self.nodes.get(index) else { return };
        let matched = Matcher::all_match(&r.matchers, labels);
        let ends = matched && !r.continues && r.parent.is_some();
        let receives = matched && found.contains(&index);
        out.push(Step { route: index, depth, matched, receives, ends });
        if !matched {
            return;
        }
        for c in &r.children {
            let at = out.len();
            self.explain_at(*c, depth + 1, labels, found, out);
            if out.get(at).is_some_and(|s| s.ends) {
                break;
            }
        }
    }

    /// Returns the labels that an alert's group has in a route.
    pub fn group_labels(&self, route: usize, labels: &Labels) -> Labels {
        match self.nodes.get(route).map(|r| &r.group_by) {
            Some(GroupBy::Labels(names)) => labels.filter(|n| names.contains(n)),
            _ => labels.clone(),
        }
    }

    /// Returns a route's name for people: the matchers from the root down.
    pub fn title(&self, index: usize) -> String {
        let Some(r) = self.nodes.get(index) else { return String::new() };
        if r.parent.is_none() {
            "the root route".into()
        } else {
            format!("route {}", list_text(&r.matchers))
        }
    }

    /// Collects the routes that an alert with these labels may reach; what its series add to them is
    /// not known.
    fn reach(&self, index: usize, known: &Labels, into: &mut BTreeSet<usize>) {
        let Some(r) = self.nodes.get(index) else { return };
        into.insert(index);
        for c in &r.children {
            let Some(n) = self.nodes.get(*c) else { continue };
            let (may, does) = verdict(&n.matchers, known);
            if may {
                self.reach(*c, known, into);
            }
            if does && !n.continues {
                break;
            }
        }
    }

    /// Looks for routes and receivers that no alert can reach, whatever its labels, and, with the
    /// labels that alert rules set, for routes that none of their alerts can reach.
    pub fn lint(&self, receivers: &[String], alerts: &[Labels]) -> Vec<Finding> {
        let mut out = Vec::new();
        let unreachable = |message: String| Finding { kind: "unreachable route", message };
        for r in &self.nodes {
            for (i, later) in r.children.iter().enumerate() {
                let Some(l) = self.nodes.get(*later) else { continue };
                let earlier = r.children.get(..i).unwrap_or_default();
                let hides = |e: &&usize| {
                    self.nodes
                        .get(**e)
                        .is_some_and(|n| !n.continues && implies(&l.matchers, &n.matchers))
                };
                if let Some(e) = earlier.iter().find(hides) {
                    out.push(unreachable(format!(
                        "{} to {:?}: every alert that matches it is taken by {} to {:?} before it, which does not continue",
                        self.title(*later), l.receiver, self.title(*e),
                        self.nodes.get(*e).map(|n| n.receiver.as_str()).unwrap_or_default(),
                    )));
                }
            }
            if contradicts(&r.matchers) {
                out.push(unreachable(format!("{}: no alert can match it", list_text(&r.matchers))));
            }
        }
        let used: BTreeSet<&str> = self.nodes.iter().map(|n| n.receiver.as_str()).collect();
        for name in receivers.iter().filter(|r| !used.contains(r.as_str())) {
            let message = format!("no route sends to receiver {name:?}");
            out.push(Finding { kind: "unused receiver", message });
        }
        if !alerts.is_empty() {
            let mut reached = BTreeSet::new();
            alerts.iter().for_each(|a| self.reach(0, a, &mut reached));
            for (i, n) in self.nodes.iter().enumerate() {
                if n.parent.is_none() || !n.children.is_empty() || reached.contains(&i) {
                    continue;
                }
                // Name one alert that a reader would expect here, and who takes it.
                let expected =
                    alerts.iter().find(|a| Matcher::all_match(&n.matchers, a)).map(|a| {
                        let found = self.find(a);
                        let to = found.iter().filter_map(|r| self.nodes.get(*r));
                        let to: Vec<&str> = to.map(|r| r.receiver.as_str()).collect();
                        let name = a.get("alertname");
                        format!(": alert {name:?} matches it and goes to {}", to.join(", "))
                    });
                let (title, receiver) = (self.title(i), &n.receiver);
                let message = format!("{title} to {receiver:?}{}", expected.unwrap_or_default());
                out.push(Finding { kind: "no rule reaches it", message });
            }
        }
        out
    }
}

/// Whether an alert with these labels, and others that nobody knows yet, may match, and whether it
/// does for certain.
fn verdict(matchers: &[Matcher], known: &Labels) -> (bool, bool) {
    let (mut may, mut does) = (true, true);
    for m in matchers {
        let value = known.get(&m.name);
        if value.is_empty() {
            does = false;
        } else if !m.matches(value) {
            may = false;
        }
    }
    (may, may && does)
}

/// Whether every label set that holds `narrow` holds `wide` too, as far as can be told.
fn implies(narrow: &[Matcher], wide: &[Matcher]) -> bool {
    wide.iter().all(|w| {
        narrow.iter().any(|n| {
            n.name == w.name
                && match n.op {
                    _ if n == w => true,
                    MatchOp::Equal => w.matches(&n.value),
                    MatchOp::Regex => {
                        literals(&n.value).is_some_and(|all| all.iter().all(|v| w.matches(v)))
                    }
                    _ => false,
                }
        })
    })
}

/// Returns the texts that a pattern of plain alternatives matches.
fn literals(pattern: &str) -> Option<Vec<&str>> {
    let inner = pattern.strip_prefix('(').and_then(|p| p.strip_suffix(')')).unwrap_or(pattern);
    let plain =
        |s: &&str| s.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | ' '));
    let all: Vec<&str> = inner.split('|').collect();
    all.iter().all(plain).then_some(all)
}

/// Whether no label set can hold all matchers.
fn contradicts(matchers: &[Matcher]) -> bool {
    matchers
        .iter()
        .filter(|m| m.op == MatchOp::Equal)
        .any(|e| matchers.iter().any(|m| m.name == e.name && !m.matches(&e.value)))
}
