//! Stages that set labels.

use super::extract::extracted;
use super::{Stage, change};
use crate::entry::Entry;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Turns extracted values into labels, or into metadata of the record.
pub(super) fn labels(
    c: BTreeMap<String, Option<String>>,
    is_metadata: bool,
) -> Result<Box<dyn Stage>, String> {
    if c.is_empty() {
        return Err("label stage config cannot be empty".into());
    }
    let wanted: Vec<(String, String)> = c
        .into_iter()
        .map(|(name, source)| {
            let source = source.filter(|s| !s.is_empty()).unwrap_or_else(|| name.clone());
            (name, source)
        })
        .collect();
    Ok(change(move |e: &mut Entry, _| {
        for (name, source) in &wanted {
            let Some(value) = extracted(e, source).filter(|v| !v.is_empty()) else { continue };
            if is_metadata {
                // What was a label of the stream no longer is one.
                e.labels.remove(name);
                e.metadata.insert(name.clone(), value);
            } else {
                e.labels.insert(name.clone(), value);
            }
        }
    }))
}

pub(super) fn fixed(c: BTreeMap<String, Option<String>>) -> Result<Box<dyn Stage>, String> {
    if c.is_empty() {
        return Err("static_labels stage config cannot be empty".into());
    }
    Ok(change(move |e: &mut Entry, _| {
        for (name, value) in &c {
            if let Some(v) = value.as_ref().filter(|v| !v.is_empty()) {
                e.labels.insert(name.clone(), v.clone());
            }
        }
    }))
}

pub(super) fn drop(names: Vec<String>) -> Result<Box<dyn Stage>, String> {
    if names.is_empty() {
        return Err("labeldrop stage config cannot be empty".into());
    }
    Ok(change(move |e: &mut Entry, _| e.labels.retain(|n, _| !names.contains(n))))
}

pub(super) fn allow(names: Vec<String>) -> Result<Box<dyn Stage>, String> {
    if names.is_empty() {
        return Err("labelallow stage config cannot be empty".into());
    }
    Ok(change(move |e: &mut Entry, _| e.labels.retain(|n, _| names.contains(n))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantSettings {
    label: Option<String>,
    source: Option<String>,
    value: Option<String>,
}

pub(super) fn tenant(c: TenantSettings) -> Result<Box<dyn Stage>, String> {
    let given = [&c.label, &c.source, &c.value].iter().filter(|v| v.is_some()).count();
    if given != 1 {
        return Err("exactly one of label, source and value is required".into());
    }
    Ok(change(move |e: &mut Entry, _| {
        let found = match (&c.value, &c.source, &c.label) {
            (Some(v), ..) => Some(v.clone()),
            (_, Some(s), _) => extracted(e, s),
            (.., Some(l)) => e.labels.get(l).cloned(),
            _ => None,
        };
        if let Some(t) = found.filter(|t| !t.is_empty()) {
            e.tenant = Some(t);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, shown};

    #[test]
    fn labels_are_set_and_taken_away() {
        let stages = "
- regex: {expression: '(?P<a>\\w+) (?P<b>\\w+) (?P<t>\\w+)'}
- labels: {a: , bee: b}
- structured_metadata: {t: }
- static_labels: {env: prod, none: ''}
- labeldrop: [a]
- tenant: {source: t}
";
        assert_eq!(shown(stages, &["x y z"]), ["bee=y env=prod job=j | x y z"]);
        let e = &run(stages, &["x y z"])[0];
        assert_eq!((e.metadata["t"].as_str(), e.tenant.as_deref()), ("z", Some("z")));
        assert_eq!(shown("[{labelallow: [x]}]", &["l"]), [" | l"]);
    }
}
