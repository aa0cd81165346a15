//! The labels of one record while it passes through the stages.

use crate::ast::Groups;
use obs_model::{Labels, LogRecord};
use std::collections::BTreeMap;

/// The labels that name what went wrong in a stage.
pub(crate) const ERROR: &str = "__error__";
pub(crate) const ERROR_DETAILS: &str = "__error_details__";

/// Where a label comes from, beside the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sent with the record.
    Metadata,
    /// Taken out of the line.
    Parsed,
}

/// A record's labels: the stream's, overlaid with those of the record and of the stages.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    stream: &'a Labels,
    extra: Vec<(Kind, String, String)>,
    /// Names of the stream's labels that are gone.
    deleted: Vec<String>,
    error: String,
    details: String,
    /// The only labels that anything asks for; parsers leave the others alone.
    wanted: Option<&'a [String]>,
    /// Ids that were found in the line when it came: they can be asked for by name and lead to the
    /// trace, but split no stream or series.
    found_ids: Vec<(&'static str, String)>,
}

/// Returns what comes with a record beside its stream (for OTLP records also resource, severity
/// and ids, as Loki maps them), by label name.
pub(crate) fn metadata(r: &LogRecord) -> Vec<(String, String)> {
    let mut out = Vec::new();
    if !r.resource.attributes.is_empty() {
        // Loki leaves out what it made labels of the stream.
        let of_resource = r.resource.attributes.iter();
        let of_resource = of_resource.map(|(k, v)| (crate::parse::sanitise(k), v.to_string()));
        out.extend(of_resource.filter(|(k, v)| r.stream.get(k) != v));
        let mut add = |name: &str, value: String| out.push((name.to_owned(), value));
        if !r.severity_text.is_empty() {
            add("severity_text", r.severity_text.clone());
        }
        if r.severity_number > 0 {
            add("severity_number", r.severity_number.to_string());
        }
        if let Some(t) = r.trace_id {
            add("trace_id", t.to_string());
        }
        if let Some(s) = r.span_id {
            add("span_id", s.to_string());
        }
        if !r.event_name.is_empty() {
            add("event_name", r.event_name.clone());
        }
    }
    out.extend(r.attributes.iter().map(|(k, v)| (crate::parse::sanitise(k), v.to_string())));
    out.retain(|(_, v)| !v.is_empty());
    out
}

/// Returns whether a field, or what is inside of it, may become one of these labels.
pub(crate) fn may_become(wanted: &[String], key: &str, has_inside: bool) -> bool {
    let is_it = |rest: &str| rest.is_empty() || rest == "_extracted" || has_inside;
    let is_plain = || {
        key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !key.starts_with(|c: char| c.is_ascii_digit())
    };
    wanted.iter().any(|w| w.strip_prefix(key).is_some_and(is_it)) || !is_plain()
}

impl<'a> Entry<'a> {
    pub(crate) fn new(record: &'a LogRecord, wanted: Option<&'a [String]>) -> Self {
        let mut entry = Self::of_stream(&record.stream);
        entry.wanted = wanted;
        if !record.attributes.is_empty() || !record.resource.attributes.is_empty() {
            for (name, value) in metadata(record) {
                let name = entry.free_name(&name);
                entry.set(Kind::Metadata, &name, &value);
            }
        }
        entry
    }

    /// Lets the ids that were found in a record's line be asked for.
    pub(crate) fn with_ids(mut self, record: &LogRecord) -> Self {
        if let Some(t) = record.trace_id.filter(|_| self.get("trace_id").is_none()) {
            self.found_ids.push(("trace_id", t.to_string()));
        }
        if let Some(s) = record.span_id.filter(|_| self.get("span_id").is_none()) {
            self.found_ids.push(("span_id", s.to_string()));
        }
        self
    }

    pub(crate) fn of_stream(stream: &'a Labels) -> Self {
        Self {
            stream,
            extra: Vec::new(),
            deleted: Vec::new(),
            error: String::new(),
            details: String::new(),
            wanted: None,
            found_ids: Vec::new(),
        }
    }

    /// Returns whether nothing but the stream decides what the labels are.
    pub(crate) fn is_plain(&self) -> bool {
        self.extra.is_empty() && self.deleted.is_empty() && self.error.is_empty()
    }

    pub(crate) fn stream(&self) -> &'a Labels {
        self.stream
    }

    /// Returns whether the stream itself has a label, also one that is gone.
    pub(crate) fn base_has(&self, name: &str) -> bool {
        !self.stream.get(name).is_empty()
    }

    fn free_name<'n>(&self, name: &'n str) -> std::borrow::Cow<'n, str> {
        if self.base_has(name) { format!("{name}_extracted").into() } else { name.into() }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        match name {
            ERROR => return (!self.error.is_empty()).then_some(self.error.as_str()),
            ERROR_DETAILS => return (!self.details.is_empty()).then_some(self.details.as_str()),
            _ => {}
        }
        if let Some((.., v)) = self.extra.iter().find(|(_, n, _)| n == name) {
            return Some(v);
        }
        let value = self.stream.get(name);
        if !value.is_empty() && !self.deleted.iter().any(|d| d == name) {
            return Some(value);
        }
        self.found_ids.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// Sets a label that a parser found; one of the stream's name gets a suffix.
    pub(crate) fn extract(&mut self, name: &str, value: &str) {
        if name.is_empty() {
            return;
        }
        let name = self.free_name(name);
        if let Some(wanted) = self.wanted {
            let known = || self.extra.iter().any(|(k, n, _)| *k == Kind::Parsed && *n == name);
            if !wanted.iter().any(|w| **w == *name) || known() {
                return;
            }
        }
        self.set(Kind::Parsed, &name, value);
    }

    /// Returns whether a field of a line, or what is inside of it, may become a label that anything
    /// asks for. Quick, as most fields of most lines are for nothing.
    pub(crate) fn may_want(&self, key: &str, has_inside: bool) -> bool {
        self.wanted.is_none_or(|wanted| may_become(wanted, key, has_inside))
    }

    /// Returns whether everything that anything asks for was found.
    pub(crate) fn has_all(&self) -> bool {
        let found =
            |name: &String| self.extra.iter().any(|(k, n, _)| *k == Kind::Parsed && n == name);
        self.wanted.is_some_and(|w| w.iter().all(found))
    }

    /// Returns whether no label of a line is asked for at all.
    pub(crate) fn wants_nothing(&self) -> bool {
        self.wanted.is_some_and(<[String]>::is_empty)
    }

    /// Sets a label; what is parsed takes the place of what came with the record.
    pub(crate) fn set(&mut self, kind: Kind, name: &str, value: &str) {
        match self.extra.iter_mut().find(|(_, n, _)| n == name) {
            Some((Kind::Parsed, ..)) if kind == Kind::Metadata => {}
            Some(slot) => {
                slot.0 = kind;
                value.clone_into(&mut slot.2);
            }
            None => self.extra.push((kind, name.to_owned(), value.to_owned())),
        }
    }

    pub(crate) fn delete(&mut self, name: &str) {
        match name {
            ERROR => return self.error.clear(),
            ERROR_DETAILS => return self.details.clear(),
            _ => {}
        }
        self.extra.retain(|(_, n, _)| n != name);
        if self.base_has(name) {
            self.deleted.push(name.to_owned());
        }
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let Some(value) = self.get(from).map(str::to_owned) else { return };
        let kind = self.extra.iter().find(|(_, n, _)| n == from).map_or(Kind::Parsed, |e| e.0);
        self.delete(from);
        self.set(kind, to, &value);
    }

    pub(crate) fn set_error(&mut self, kind: &str, details: &str) {
        kind.clone_into(&mut self.error);
        details.clone_into(&mut self.details);
    }

    pub(crate) fn has_error(&self) -> bool {
        !self.error.is_empty()
    }

    pub(crate) fn error(&self) -> &str {
        &self.error
    }

    /// Returns all labels by name, errors as well.
    pub(crate) fn all(&self) -> BTreeMap<&str, &str> {
        let stream = self.stream.iter().filter(|(n, _)| !self.deleted.iter().any(|d| d == n));
        let mut out: BTreeMap<&str, &str> = stream.collect();
        out.extend(self.extra.iter().map(|(_, n, v)| (n.as_str(), v.as_str())));
        let errors = [(ERROR, &self.error), (ERROR_DETAILS, &self.details)];
        out.extend(errors.into_iter().filter(|(_, v)| !v.is_empty()).map(|(n, v)| (n, v.as_str())));
        out
    }

    /// Returns the labels by where they come from: stream, record, line.
    pub(crate) fn by_kind(&self) -> [BTreeMap<&str, &str>; 3] {
        let of = |kind| {
            let mine = self.extra.iter().filter(move |(k, ..)| *k == kind);
            mine.map(|(_, n, v)| (n.as_str(), v.as_str())).collect::<BTreeMap<_, _>>()
        };
        let mut all = self.all();
        let (mut metadata, mut parsed) = (of(Kind::Metadata), of(Kind::Parsed));
        let found = self.found_ids.iter().map(|(n, v)| (*n, v.as_str()));
        metadata.extend(found.filter(|(n, _)| !all.contains_key(n)));
        all.retain(|n, _| !metadata.contains_key(n) && !parsed.contains_key(n));
        for name in [ERROR, ERROR_DETAILS] {
            parsed.extend(all.remove_entry(name));
        }
        [all, metadata, parsed]
    }

    /// Returns the labels that a grouping keeps, without `unwrapped` unless it is asked for by
    /// name. An error keeps all, so that it can be told.
    pub(crate) fn grouped(&self, groups: Option<&Groups>, unwrapped: Option<&str>) -> Labels {
        let all = self.all();
        let keeps = |name: &str| {
            self.has_error()
                || match groups {
                    Some(g) if !g.without => g.labels.iter().any(|l| l == name),
                    Some(g) => !g.labels.iter().any(|l| l == name) && Some(name) != unwrapped,
                    None => Some(name) != unwrapped,
                }
        };
        Labels::from_sorted(all.into_iter().filter(|(n, v)| !v.is_empty() && keeps(n)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs a stage on a record of the stream `{app="x"}`; returns the labels that it added.
    pub(crate) fn extracted(f: impl FnOnce(&mut Entry<'_>)) -> Vec<(String, String)> {
        let stream = Labels::from_pairs([("app", "x")]);
        let mut entry = Entry::of_stream(&stream);
        f(&mut entry);
        let all = entry.all();
        all.into_iter().filter(|(n, _)| *n != "app").map(|(n, v)| (n.into(), v.into())).collect()
    }

    pub(crate) fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
    }

    #[test]
    fn labels_are_overlaid_and_deleted() {
        let stream = Labels::from_pairs([("app", "x"), ("env", "e")]);
        let mut e = Entry::of_stream(&stream);
        e.set(Kind::Metadata, "pod", "p");
        e.extract("pod", "parsed");
        e.extract("app", "other");
        assert_eq!(e.get("pod"), Some("parsed"));
        assert_eq!(e.get("app_extracted"), Some("other"));
        e.rename("env", "stage");
        assert_eq!((e.get("env"), e.get("stage")), (None, Some("e")));
        e.delete("app");
        let names: Vec<&str> = e.all().into_keys().collect();
        assert_eq!(names, ["app_extracted", "pod", "stage"]);
        let by = Groups { without: false, labels: vec!["pod".into()] };
        assert_eq!(e.grouped(Some(&by), None), Labels::from_pairs([("pod", "parsed")]));
        e.set_error("X", "why");
        assert_eq!(e.grouped(Some(&by), None).len(), 5);
    }
}
