//! Stages that take values out of lines.

use super::{Stage, change, keep};
use crate::entry::{Entry, text};
use obs_model::go_regex;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JsonSettings {
    expressions: BTreeMap<String, Option<String>>,
    source: Option<String>,
    #[serde(default)]
    drop_malformed: bool,
}

/// A JMESPath expression; those that name one value are looked up without it, which is many times
/// faster.
enum Expression {
    Path(Path),
    Any(jmespath::Expression<'static>),
}

impl Expression {
    fn new(text: &str) -> Result<Self, String> {
        if let Some(path) = Path::new(text) {
            return Ok(Self::Path(path));
        }
        let any = jmespath::compile(text);
        any.map(Self::Any).map_err(|e| format!("could not compile JMES expression: {e}"))
    }

    fn find(&self, v: &Value) -> Option<Value> {
        match self {
            Self::Path(p) => p.find(v).cloned(),
            Self::Any(e) => {
                let found = e.search(v).ok().filter(|f| !f.is_null())?;
                serde_json::to_value(&*found).ok()
            }
        }
    }
}

/// A path through JSON: names and indexes.
struct Path(Vec<Step>);

enum Step {
    Key(String),
    Index(i64),
}

impl Path {
    /// Reads what of JMESPath names one value: `a.b`, `"a.b".c`, `a[0]`, `a[-1]`; `None` for more.
    fn new(text: &str) -> Option<Self> {
        let mut steps = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            if let Some(tail) = rest.strip_prefix('[') {
                let (index, tail) = tail.split_once(']')?;
                steps.push(Step::Index(index.trim().parse().ok()?));
                rest = tail;
                continue;
            }
            if !steps.is_empty() {
                rest = rest.strip_prefix('.')?;
            }
            if let Some(tail) = rest.strip_prefix('"') {
                let (name, tail) = tail.split_once('"').filter(|(n, _)| !n.contains('\\'))?;
                steps.push(Step::Key(name.to_owned()));
                rest = tail;
                continue;
            }
            let len = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let (name, tail) = rest.split_at(len);
            if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
                return None;
            }
            steps.push(Step::Key(name.to_owned()));
            rest = tail;
        }
        (!steps.is_empty()).then_some(Self(steps))
    }

    fn find<'v>(&self, v: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(v, |v, step| match step {
            Step::Key(name) => v.get(name),
            Step::Index(i) => {
                let list = v.as_array()?;
                let at = if *i < 0 { i + list.len() as i64 } else { *i };
                list.get(usize::try_from(at).ok()?)
            }
        })
    }
}

pub(super) fn json(c: JsonSettings) -> Result<Box<dyn Stage>, String> {
    if c.expressions.is_empty() {
        return Err("JMES expression is required".into());
    }
    let mut paths = Vec::new();
    for (name, path) in c.expressions {
        let text = path.filter(|p| !p.is_empty()).unwrap_or_else(|| format!("\"{name}\""));
        paths.push((name, Expression::new(&text)?));
    }
    Ok(keep(move |e: &mut Entry, _| {
        let Some(source) = e.source(c.source.as_deref()) else { return true };
        let Ok(v) = serde_json::from_str::<Value>(&source) else { return !c.drop_malformed };
        for (name, path) in &paths {
            if let Some(found) = path.find(&v) {
                // Objects and lists are handed on as text.
                let value = match found {
                    Value::Object(_) | Value::Array(_) => found.to_string().into(),
                    other => other,
                };
                e.extracted.insert(name.clone(), value);
            }
        }
        true
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogfmtSettings {
    mapping: BTreeMap<String, Option<String>>,
    source: Option<String>,
}

pub(super) fn logfmt(c: LogfmtSettings) -> Result<Box<dyn Stage>, String> {
    if c.mapping.is_empty() {
        return Err("logfmt mapping is required".into());
    }
    // The key of the line, and the name that its value gets.
    let wanted: Vec<(String, String)> = c
        .mapping
        .into_iter()
        .map(|(name, key)| (key.filter(|k| !k.is_empty()).unwrap_or_else(|| name.clone()), name))
        .collect();
    Ok(change(move |e: &mut Entry, _| {
        let Some(source) = e.source(c.source.as_deref()) else { return };
        obs_logql::each_pair(&source, |key, value| {
            for (_, name) in wanted.iter().filter(|(k, _)| k == key) {
                e.extracted.insert(name.clone(), value.into());
            }
        });
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EventLogSettings {
    source: String,
    overwrite_existing: bool,
    drop_invalid_labels: bool,
}

impl Default for EventLogSettings {
    fn default() -> Self {
        Self { source: "message".into(), overwrite_existing: false, drop_invalid_labels: false }
    }
}

/// Takes the `Name: value` lines out of the message of a Windows event. Names become those of labels;
/// one that is taken gets `_extracted`, as in Promtail.
pub(super) fn event_log_message(c: EventLogSettings) -> Box<dyn Stage> {
    change(move |e: &mut Entry, _| {
        let Some(message) = extracted(e, &c.source) else { return };
        for line in message.split("\r\n") {
            let Some((key, value)) = line.split_once(':') else { continue };
            let mut name = label_name(key);
            if name != key && c.drop_invalid_labels {
                continue;
            }
            if e.extracted.contains_key(&name) && !c.overwrite_existing {
                name.push_str("_extracted");
            }
            e.extracted.insert(name, value.trim().into());
        }
    })
}

/// Puts `_` for what no label's name may hold.
fn label_name(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let mut out: String = text.chars().map(plain).collect();
    if out.is_empty() || out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RegexSettings {
    expression: String,
    source: Option<String>,
    #[serde(default)]
    labels_from_groups: bool,
}

pub(super) fn regex(c: RegexSettings) -> Result<Box<dyn Stage>, String> {
    let regex = go_regex(&c.expression).map_err(|e| e.to_string())?;
    if regex.capture_names().flatten().next().is_none() {
        return Err("at least one named capture group is required".into());
    }
    Ok(change(move |e: &mut Entry, _| {
        let Some(source) = e.source(c.source.as_deref()) else { return };
        let Some(found) = regex.captures(&source) else { return };
        for name in regex.capture_names().flatten() {
            let value = found.name(name).map_or("", |m| m.as_str());
            e.extracted.insert(name.to_owned(), value.into());
            if c.labels_from_groups && !value.is_empty() {
                e.labels.insert(name.to_owned(), value.to_owned());
            }
        }
    }))
}

/// Returns an extracted value as text.
pub(super) fn extracted(e: &Entry, name: &str) -> Option<String> {
    e.extracted.get(name).and_then(text)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, shown};

    #[test]
    fn messages_of_windows_events_are_taken_apart() {
        let line = r#"{"message":"Logon.\r\nSubject:\r\nLogon ID:\t0x3e7\r\njob: own\r\n2nd:x:y"}"#;
        let labels = "labels: {id: Logon_ID, odd: _2nd, own: job_extracted, none: Subject}";
        for (settings, want) in [
            ("", "id=0x3e7 job=j odd=x:y own=own"),
            ("drop_invalid_labels: true", "job=j own=own"),
            ("overwrite_existing: true", "id=0x3e7 job=j odd=x:y"),
        ] {
            let stages = format!(
                "[{{json: {{expressions: {{message: }}}}}}, {{eventlogmessage: {{{settings}}}}}, {{{labels}}}]"
            );
            assert_eq!(shown(&stages, &[line]), [format!("{want} | {line}")], "{settings}");
        }
        // What was not taken out before is no message.
        assert_eq!(shown("[{eventlogmessage: }]", &["a: b"]), ["job=j | a: b"]);
    }

    #[test]
    fn values_are_taken_out_of_lines() {
        let stages = r#"
- json: {expressions: {level: , user: user.name, first: 'list[0]', last: 'list[-1]', all: list, "a.b": '"a.b"'}}
- labels: {level: , user: , first: , last: , ab: a.b}
"#;
        let line = r#"{"level":"info","user":{"name":"ann"},"list":[1,2],"a.b":true}"#;
        assert_eq!(
            shown(stages, &[line, "no json"]),
            [
                format!("ab=true first=1 job=j last=2 level=info user=ann | {line}"),
                "job=j | no json".into()
            ]
        );
        assert_eq!(run(stages, &[line])[0].extracted["all"], "[1,2]");
        // All of JMESPath.
        let stages = r#"
- json: {expressions: {names: "users[?age > `20`].name | join(',', @)", count: "length(users)", old: "max_by(users, &age).name", none: "users[9].name"}}
- labels: {names: , count: , old: , none: }
"#;
        let users =
            r#"{"users":[{"name":"ann","age":30},{"name":"bob","age":12},{"name":"cy","age":40}]}"#;
        assert_eq!(
            shown(stages, &[users]),
            [format!("count=3 job=j names=ann,cy old=cy | {users}")]
        );
        let dropped = "[{json: {expressions: {a: }, drop_malformed: true}}]";
        assert!(run(dropped, &["{"]).is_empty());
        let stages = "
- regex: {expression: '^(?P<verb>\\w+) (?P<rest>.*)$'}
- logfmt: {mapping: {ms: took, path: }, source: rest}
- labels: {verb: , ms: , path: }
";
        assert_eq!(
            shown(stages, &["GET took=5 path=\"/a b\""]),
            ["job=j ms=5 path=/a b verb=GET | GET took=5 path=\"/a b\""]
        );
    }
}
