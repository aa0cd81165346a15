//! Which fields the lines of a result have.

use crate::labels::Entry;
use crate::query::{LabelMap, LogEntry};
use crate::{parse, units};
use obs_model::Labels;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldType {
    String,
    Int,
    Float,
    Boolean,
    Duration,
    Bytes,
}

/// A field of lines.
#[derive(Debug, Clone)]
pub struct Field {
    /// Of the first value that was seen.
    pub kind: FieldType,
    pub values: BTreeSet<String>,
    /// The parsers that find it; none when it came with the record.
    pub parsers: Vec<&'static str>,
    /// Keys that lead to it in JSON.
    pub path: Vec<String>,
}

/// Fields by name.
#[derive(Debug, Default)]
pub struct Fields(BTreeMap<String, Field>);

/// Values remembered of a field, and fields.
const VALUES_MAX: usize = 1000;
const FIELDS_MAX: usize = 1000;

fn kind(value: &str) -> FieldType {
    if value.parse::<i64>().is_ok() {
        FieldType::Int
    } else if units::go_float(value).is_ok() {
        FieldType::Float
    } else if matches!(value, "true" | "false") {
        FieldType::Boolean
    } else if units::go_duration_ns(value).is_ok() {
        FieldType::Duration
    } else if units::bytes(value).is_some() {
        FieldType::Bytes
    } else {
        FieldType::String
    }
}

impl Fields {
    /// Takes an entry whose labels come in categories.
    pub fn see(&mut self, stream: &LabelMap, entry: &LogEntry) {
        if let Some(c) = &entry.categories {
            for (name, value) in c.0.iter().chain(&c.1) {
                self.add(name, value, None, None);
            }
        }
        let labels = Labels::from_pairs(stream);
        let mut found = Entry::of_stream(&labels);
        let line = entry.line.as_str();
        let parser = if line.trim_start().starts_with('{') {
            parse::json(line, &mut found);
            "json"
        } else {
            parse::logfmt(line, false, false, &mut found);
            "logfmt"
        };
        if found.has_error() {
            return;
        }
        let paths = if parser == "json" { json_paths(line) } else { BTreeMap::new() };
        let [_, _, parsed] = found.by_kind();
        for (name, value) in parsed {
            self.add(name, value, Some(parser), paths.get(name));
        }
    }

    fn add(
        &mut self,
        name: &str,
        value: &str,
        parser: Option<&'static str>,
        path: Option<&Vec<String>>,
    ) {
        if value.is_empty() || (!self.0.contains_key(name) && self.0.len() >= FIELDS_MAX) {
            return;
        }
        let field = self.0.entry(name.to_owned()).or_insert_with(|| Field {
            kind: kind(value),
            values: BTreeSet::new(),
            parsers: Vec::new(),
            path: path.cloned().unwrap_or_default(),
        });
        if field.values.len() < VALUES_MAX {
            field.values.insert(value.to_owned());
        }
        if let Some(p) = parser.filter(|p| !field.parsers.contains(p)) {
            field.parsers.push(p);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Field)> {
        self.0.iter()
    }
}

/// Returns the keys that lead to each label which the JSON parser makes.
fn json_paths(line: &str) -> BTreeMap<String, Vec<String>> {
    fn walk(
        value: &serde_json::Value,
        path: &mut Vec<String>,
        out: &mut BTreeMap<String, Vec<String>>,
    ) {
        match value {
            serde_json::Value::Object(map) if path.len() < 32 => {
                for (key, v) in map {
                    path.push(key.clone());
                    walk(v, path, out);
                    path.pop();
                }
            }
            serde_json::Value::Object(_)
            | serde_json::Value::Array(_)
            | serde_json::Value::Null => {}
            _ => drop(out.insert(parse::sanitise(&path.join("_")), path.clone())),
        }
    }
    let mut out = BTreeMap::new();
    if let Ok(value) = serde_json::from_str(line) {
        walk(&value, &mut Vec::new(), &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::TimestampNs;

    #[test]
    fn fields_of_both_kinds_of_lines() {
        let mut fields = Fields::default();
        let stream = LabelMap::from([("app".into(), "a".into())]);
        let sent = LabelMap::from([("pod".into(), "p".into())]);
        for line in
            [r#"{"a":{"b":5},"ok":true}"#, "level=info took=5ms size=2KB a_b=7 ratio=0.5", "{x"]
        {
            let categories = Some(Box::new((sent.clone(), LabelMap::new())));
            let timestamp = TimestampNs::from_nanos(0);
            fields.see(&stream, &LogEntry { timestamp, line: line.into(), categories });
        }
        let of = |name: &str| fields.iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!((of("a_b").kind, of("a_b").values.len()), (FieldType::Int, 2));
        assert_eq!(
            (of("a_b").parsers.as_slice(), of("a_b").path.as_slice()),
            (["json", "logfmt"].as_slice(), ["a".to_owned(), "b".into()].as_slice())
        );
        assert_eq!(of("ok").kind, FieldType::Boolean);
        assert_eq!(of("took").kind, FieldType::Duration);
        assert_eq!(of("size").kind, FieldType::Bytes);
        assert_eq!(of("ratio").kind, FieldType::Float);
        assert!(of("pod").parsers.is_empty());
    }
}
