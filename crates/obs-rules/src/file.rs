//! Rule files: what they may say, and where they are wrong.

use crate::{Language, Query};
use obs_model::Labels;
use obs_promql::duration::parse_ms;
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A mistake in a rule file, as promtool words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    pub line: Option<(u64, u64)>,
    /// The group and rule, when the mistake is in one; rules beside it are good.
    pub group: Option<String>,
    pub message: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.line {
            write!(f, "{line}:{column}: ")?;
        }
        f.write_str(&self.message)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleKind {
    /// Writes the result as a series of this name.
    Record(String),
    Alert {
        name: String,
        for_ms: i64,
        keep_firing_for_ms: i64,
        annotations: BTreeMap<String, String>,
    },
}

#[derive(Debug, Clone)]
pub struct Rule {
    pub kind: RuleKind,
    pub query: Query,
    /// Those of the group with the rule's own on top.
    pub labels: BTreeMap<String, String>,
    pub line: u64,
}

impl Rule {
    pub fn name(&self) -> &str {
        match &self.kind {
            RuleKind::Record(name) | RuleKind::Alert { name, .. } => name,
        }
    }

    pub const fn is_alert(&self) -> bool {
        matches!(self.kind, RuleKind::Alert { .. })
    }

    /// Returns the labels that an alert of this rule has whatever its series are; `None` of a
    /// recording rule.
    pub fn alert_labels(&self) -> Option<Labels> {
        let RuleKind::Alert { name, .. } = &self.kind else { return None };
        let own = self.labels.iter().filter(|(_, v)| !v.contains("{{"));
        let own = own.map(|(n, v)| (n.as_str(), v.as_str()));
        Some(Labels::from_pairs(own.chain([("alertname", name.as_str())])))
    }

    /// Returns the expression as it is printed.
    pub fn query_text(&self) -> String {
        self.query.expr.as_ref().map_or_else(|| self.query.text.clone(), ToString::to_string)
    }
}

#[derive(Debug, Clone)]
pub struct RuleGroup {
    pub name: String,
    pub interval_ms: Option<i64>,
    pub query_offset_ms: Option<i64>,
    /// Most series or alerts a rule may give; 0 means no limit.
    pub limit: usize,
    pub rules: Vec<Rule>,
    /// The pack it came from, if it is built in.
    pub pack: Option<&'static str>,
}

/// The good groups and rules of a file, and what is wrong with the others.
#[derive(Debug, Clone, Default)]
pub struct RuleFile {
    pub groups: Vec<RuleGroup>,
    pub errors: Vec<FileError>,
    /// What was read although Prometheus would not, and how to put it right.
    pub warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    groups: Option<Vec<RawGroup>>,
}

/// The Kubernetes object round a rule file.
#[derive(Debug, Deserialize)]
struct RawObject {
    #[serde(default)]
    kind: String,
    spec: Option<RawFile>,
    data: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    #[serde(default)]
    name: Option<Spanned<String>>,
    interval: Option<Spanned<String>>,
    query_offset: Option<Spanned<String>>,
    #[serde(default)]
    limit: usize,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "type")]
    language: Option<Spanned<String>>,
    #[serde(default)]
    rules: Option<Vec<Spanned<RawRule>>>,
    /// Thanos' and Mimir's; read and not used.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted so that files for Thanos load")]
    partial_response_strategy: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    record: Option<Spanned<String>>,
    alert: Option<Spanned<String>>,
    expr: Option<Spanned<String>>,
    #[serde(rename = "for")]
    for_: Option<Spanned<String>>,
    keep_firing_for: Option<Spanned<String>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

fn place<T>(s: &Spanned<T>) -> Option<(u64, u64)> {
    Some((s.referenced.line(), s.referenced.column()))
}

/// Returns the message of a YAML error without the excerpt.
fn yaml_error(e: &serde_saphyr::Error) -> FileError {
    let message = e.without_snippet().to_string();
    let message = message.lines().next().unwrap_or_default();
    let message = message.split(" at line ").next().unwrap_or(message);
    let line = e.location().map(|l| (l.line(), l.column()));
    FileError { line, group: None, message: message.to_owned() }
}

fn is_valid_name(name: &str) -> bool {
    // UTF-8 names are valid since Prometheus 3.
    !name.is_empty() && !name.contains(['{', '}'])
}

fn duration(text: Option<&Spanned<String>>, what: &str) -> Result<Option<i64>, Problem> {
    let Some(t) = text else { return Ok(None) };
    match t.value.as_str() {
        "" | "0" => Ok(Some(0)),
        s => parse_ms(s)
            .map(Some)
            .ok_or_else(|| (place(t), format!("{what}: not a valid duration string: {s:?}"))),
    }
}

type Problem = (Option<(u64, u64)>, String);

fn check_labels(labels: &BTreeMap<String, String>, name: &str, what: &str) -> Result<(), String> {
    for (label, value) in labels {
        if !is_valid_name(label) || (what == "label" && label == "__name__") {
            return Err(format!("invalid {what} name: {label}"));
        }
        crate::template::check(name, value).map_err(|e| format!("{what} {label:?}: {e}"))?;
    }
    Ok(())
}

fn read_rule(
    raw: &Spanned<RawRule>,
    common: &BTreeMap<String, String>,
    language: Language,
) -> Result<Rule, Problem> {
    let here = place(raw);
    let line = raw.referenced.line();
    let raw = &raw.value;
    let fail = |at: Option<(u64, u64)>, m: &str| Err((at, m.to_owned()));
    let text = |s: &Option<Spanned<String>>| s.as_ref().map_or("", |s| s.value.as_str()).to_owned();
    let (record, alert, expr) = (text(&raw.record), text(&raw.alert), text(&raw.expr));
    if !record.is_empty() && !alert.is_empty() {
        return fail(here, "only one of 'record' and 'alert' must be set");
    }
    if record.is_empty() && alert.is_empty() {
        return fail(here, "one of 'record' or 'alert' must be set");
    }
    if expr.trim().is_empty() {
        return fail(raw.expr.as_ref().map_or(here, place), "field 'expr' must be set in rule");
    }
    let parsed = match language {
        Language::PromQl => Some(obs_promql::parse(&expr).map_err(|e| {
            let at = raw.expr.as_ref().map_or(here, place);
            (at, format!("could not parse expression: {e}"))
        })?),
        Language::LogQl | Language::Sql => None,
    };
    let own = raw.labels.clone().unwrap_or_default();
    let query = Query { language, text: expr, expr: parsed };
    let mut labels = common.clone();
    labels.extend(own);
    if !record.is_empty() {
        for (what, is_set) in [
            ("annotations", raw.annotations.as_ref().is_some_and(|a| !a.is_empty())),
            ("for", raw.for_.is_some()),
            ("keep_firing_for", raw.keep_firing_for.is_some()),
        ] {
            if is_set {
                return fail(here, &format!("invalid field '{what}' in recording rule"));
            }
        }
        if !is_valid_name(&record) {
            return fail(
                raw.record.as_ref().map_or(here, place),
                &format!("invalid recording rule name: {record}"),
            );
        }
        if let Some(bad) = labels.keys().find(|l| !is_valid_name(l) || *l == "__name__") {
            return fail(here, &format!("invalid label name: {bad}"));
        }
        return Ok(Rule { kind: RuleKind::Record(record), query, labels, line });
    }
    let annotations = raw.annotations.clone().unwrap_or_default();
    check_labels(&labels, &alert, "label").map_err(|m| (here, m))?;
    check_labels(&annotations, &alert, "annotation").map_err(|m| (here, m))?;
    let kind = RuleKind::Alert {
        name: alert,
        for_ms: duration(raw.for_.as_ref(), "for")?.unwrap_or(0),
        keep_firing_for_ms: duration(raw.keep_firing_for.as_ref(), "keep_firing_for")?.unwrap_or(0),
        annotations,
    };
    Ok(Rule { kind, query, labels, line })
}

fn add_group(raw: &RawGroup, out: &mut RuleFile, seen: &mut BTreeSet<String>) {
    let name = raw.name.as_ref().map_or("", |n| n.value.as_str()).to_owned();
    let at = raw.name.as_ref().and_then(place);
    let mut fail = |line, message: String| {
        out.errors.push(FileError { line, group: Some(name.clone()), message });
    };
    if name.is_empty() {
        return fail(at, "Groupname must not be empty".into());
    }
    if !seen.insert(name.clone()) {
        return fail(at, format!("groupname: {name:?} is repeated in the same file"));
    }
    let language = match raw.language.as_ref().map(|l| l.value.as_str()) {
        None | Some("promql" | "prometheus") => Language::PromQl,
        Some("logql" | "loki") => Language::LogQl,
        Some("sql") => Language::Sql,
        Some(other) => {
            let text = format!("group {name:?}: type {other:?} is none of promql, logql, sql");
            return fail(raw.language.as_ref().and_then(place), text);
        }
    };
    let durations = [("interval", &raw.interval), ("query_offset", &raw.query_offset)]
        .map(|(what, text)| duration(text.as_ref(), what));
    let [interval, query_offset] = durations;
    let (interval_ms, query_offset_ms) = match (interval, query_offset) {
        (Ok(i), Ok(o)) => (i.filter(|i| *i > 0), o),
        (Err((at, m)), _) | (_, Err((at, m))) => return fail(at, format!("group {name:?}: {m}")),
    };
    let common = raw.labels.clone().unwrap_or_default();
    let mut rules = Vec::new();
    for (i, r) in raw.rules.iter().flatten().enumerate() {
        match read_rule(r, &common, language) {
            Ok(rule) => rules.push(rule),
            Err((line, message)) => {
                let text = |s: &Option<Spanned<String>>| {
                    s.as_ref().map_or("", |s| s.value.as_str()).to_owned()
                };
                let rule = text(&r.value.alert) + &text(&r.value.record);
                let n = i + 1;
                fail(line, format!("group {name:?}, rule {n}, {rule:?}: {message}"));
            }
        }
    }
    out.groups.push(RuleGroup {
        name,
        interval_ms,
        query_offset_ms,
        limit: raw.limit,
        rules,
        pack: None,
    });
}

/// Reads a rule file. A group or rule that is wrong does not take the others with it.
pub fn read(text: &str) -> RuleFile {
    let mut out = RuleFile::default();
    let mut seen = BTreeSet::new();
    for document in documents(text) {
        read_document(&document, &mut out, &mut seen);
    }
    out
}

/// Reads one group by itself, whose queries are of a language (`promql`, `logql`, `sql`).
///
/// # Errors
/// With the first thing that is wrong.
pub fn read_group(text: &str, language: &str) -> Result<RuleGroup, String> {
    let raw: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|e| e.without_snippet().to_string())?;
    let serde_json::Value::Object(mut group) = raw else {
        return Err("a rule group is a map with name and rules".into());
    };
    group.insert("type".into(), language.into());
    // JSON is YAML.
    let file = read(&serde_json::json!({"groups": [group]}).to_string());
    match file.errors.first() {
        Some(e) => Err(e.message.clone()),
        None => file.groups.into_iter().next().ok_or_else(|| "there is no rule group".into()),
    }
}

/// Splits a stream of YAML documents, keeping line numbers.
fn documents(text: &str) -> Vec<String> {
    if !text.lines().any(|l| l.trim_end() == "---") {
        return vec![text.to_owned()];
    }
    let mut out = Vec::new();
    let mut current = String::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim_end() == "---" {
            out.push(std::mem::replace(&mut current, "\n".repeat(i + 1)));
            continue;
        }
        current.push_str(line);
        current.push('\n');
    }
    out.push(current);
    out.retain(|d| d.lines().any(|l| !l.trim().is_empty() && !l.trim().starts_with('#')));
    out
}

fn read_document(text: &str, out: &mut RuleFile, seen: &mut BTreeSet<String>) {
    if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
        return;
    }
    let raw: RawFile = match serde_saphyr::from_str(text) {
        Ok(raw) => raw,
        Err(e) => {
            // A Kubernetes object holds the file in one of its fields.
            match serde_saphyr::from_str::<RawObject>(text) {
                Ok(RawObject { kind, spec: Some(spec), .. }) if kind == "PrometheusRule" => {
                    out.warnings
                        .push("a PrometheusRule object, not a rule file: its spec was read".into());
                    spec
                }
                Ok(RawObject { kind, data: Some(data), .. }) if kind == "ConfigMap" => {
                    out.warnings.push("a ConfigMap, not a rule file: its data was read".into());
                    for (name, inner) in data {
                        if inner.contains("groups:") {
                            let mut file = read(&inner);
                            for e in &mut file.errors {
                                e.message = format!("{name}: {}", e.message);
                            }
                            out.groups.append(&mut file.groups);
                            out.errors.append(&mut file.errors);
                        }
                    }
                    return;
                }
                _ => {
                    out.errors.push(yaml_error(&e));
                    return;
                }
            }
        }
    };
    for g in raw.groups.iter().flatten() {
        add_group(g, out, seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_is_read_whole() {
        let f = read(
            "groups:\n- name: g\n  interval: 30s\n  limit: 5\n  labels: {pack: x}\n  rules:\n  - record: a:b\n    expr: sum(up)\n    labels: {c: d}\n  - alert: Down\n    expr: up == 0\n    for: 5m\n    keep_firing_for: 1m\n    annotations: {summary: '{{ $labels.job }} is down'}\n",
        );
        assert_eq!(f.errors, []);
        let g = &f.groups[0];
        assert_eq!((g.interval_ms, g.limit, g.rules.len()), (Some(30_000), 5, 2));
        assert_eq!(g.rules[0].labels.len(), 2);
        assert!(matches!(&g.rules[1].kind, RuleKind::Alert { for_ms: 300_000, .. }));
    }

    #[test]
    fn mistakes_name_their_place_and_leave_the_rest() {
        let f = read(
            "groups:\n- name: g\n  rules:\n  - record: a\n    expr: sum(\n  - alert: B\n    record: c\n    expr: up\n  - alert: D\n    expr: up\n    annotations: {s: '{{ nope }}'}\n  - alert: E\n    expr: up\n- name: g\n  rules: []\n",
        );
        let texts: Vec<String> = f.errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert!(
            texts[0].starts_with(
                "5:11: group \"g\", rule 1, \"a\": could not parse expression: 1:5: parse error"
            ),
            "{}",
            texts[0]
        );
        assert!(texts[1].contains("rule 2, \"Bc\": only one of 'record' and 'alert' must be set"));
        assert!(texts[2].contains("annotation \"s\": "), "{}", texts[2]);
        assert!(texts[3].contains("\"g\" is repeated in the same file"));
        assert_eq!(f.groups[0].rules.len(), 1);
        assert!(!read("groups: 5\n").errors.is_empty());
        assert!(read("grups: []\n").errors[0].message.contains("grups"));
    }

    #[test]
    fn kubernetes_objects_are_unwrapped() {
        let f = read(
            "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: x}\nspec:\n  groups:\n  - name: g\n    rules:\n    - alert: A\n      expr: up == 0\n",
        );
        assert_eq!((f.groups.len(), f.errors.len(), f.warnings.len()), (1, 0, 1));
    }
}
