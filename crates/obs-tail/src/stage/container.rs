//! The formats of container engines.

use super::{Stage, change};
use crate::entry::{Entry, LabelMap};
use obs_model::TimestampNs;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

/// Docker's JSON files: line, stream and time.
pub(super) fn docker() -> Box<dyn Stage> {
    change(|e: &mut Entry, _| {
        let Ok(Value::Object(map)) = serde_json::from_str(&e.line) else { return };
        let text = |key: &str| map.get(key).and_then(Value::as_str);
        if let Some(time) = text("time").and_then(TimestampNs::parse_rfc3339) {
            e.time = time;
        }
        for (name, key) in [("output", "log"), ("stream", "stream"), ("timestamp", "time")] {
            if let Some(v) = text(key) {
                e.extracted.insert(name.into(), v.into());
            }
        }
        if let Some(stream) = text("stream") {
            e.labels.insert("stream".into(), stream.into());
        }
        if let Some(line) = text("log") {
            // The engine keeps the line's end.
            line.strip_suffix('\n').unwrap_or(line).clone_into(&mut e.line);
        }
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CriSettings {
    max_partial_lines: usize,
    max_partial_line_size: usize,
    max_partial_line_size_truncate: bool,
}

impl Default for CriSettings {
    fn default() -> Self {
        Self {
            max_partial_lines: 100,
            max_partial_line_size: 1 << 20,
            max_partial_line_size_truncate: false,
        }
    }
}

/// The files of Kubernetes' runtimes: `TIME stdout F line`, where P marks a part of a line.
struct Cri {
    settings: CriSettings,
    parts: HashMap<LabelMap, Entry>,
}

pub(super) fn cri(settings: CriSettings) -> Result<Box<dyn Stage>, String> {
    Ok(Box::new(Cri { settings, parts: HashMap::new() }))
}

impl Stage for Cri {
    fn take(&mut self, mut e: Entry, _: TimestampNs, out: &mut dyn FnMut(Entry)) {
        let mut words = e.line.splitn(4, ' ');
        let (time, stream, flags) = (words.next(), words.next(), words.next());
        let content = words.next().unwrap_or_default().to_owned();
        let (Some(time), Some(stream @ ("stdout" | "stderr")), Some(flags)) = (time, stream, flags)
        else {
            return out(e);
        };
        let (is_part, stream, flags) = (flags == "P", stream.to_owned(), flags.to_owned());
        if let Some(time) = TimestampNs::parse_rfc3339(time) {
            e.time = time;
        }
        for (name, v) in [("stream", &stream), ("flags", &flags), ("content", &content)] {
            e.extracted.insert(name.into(), v.as_str().into());
        }
        e.labels.insert("stream".into(), stream);
        e.line = content;
        let key = e.labels.clone();
        if let Some(mut whole) = self.parts.remove(&key) {
            let room = self.settings.max_partial_line_size.saturating_sub(whole.line.len());
            if e.line.len() <= room || !self.settings.max_partial_line_size_truncate {
                whole.line.push_str(&e.line);
            }
            e.origin = whole.origin;
            e.line = whole.line;
        }
        if !is_part || e.line.len() >= self.settings.max_partial_line_size {
            return out(e);
        }
        if self.parts.len() >= self.settings.max_partial_lines {
            // Too many lines wait for their end: what there is of them goes on.
            self.parts.drain().for_each(|(_, part)| out(part));
        }
        self.parts.insert(key, e);
    }

    fn oldest_held(&self) -> Option<u64> {
        self.parts.values().map(|e| e.origin).min()
    }

    fn flush(&mut self, _: TimestampNs, is_end: bool, out: &mut dyn FnMut(Entry)) {
        if is_end {
            self.parts.drain().for_each(|(_, part)| out(part));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, shown};

    #[test]
    fn docker_files() {
        let got = run(
            "[{docker: {}}]",
            &[r#"{"log":"hello\n","stream":"stderr","time":"2026-01-02T03:04:05.5Z"}"#, "plain"],
        );
        assert_eq!((got[0].line.as_str(), got[0].labels["stream"].as_str()), ("hello", "stderr"));
        assert_eq!(got[0].time.to_string(), "2026-01-02T03:04:05.500000000Z");
        assert_eq!(got[1].line, "plain");
    }

    #[test]
    fn cri_files_and_their_parts() {
        let got = shown(
            "[{cri: {}}]",
            &[
                "2026-01-02T03:04:05.5Z stdout P first ",
                "2026-01-02T03:04:05.6Z stderr F other",
                "2026-01-02T03:04:05.7Z stdout F second",
                "no such line",
                "2026-01-02T03:04:05.8Z stdout P open",
            ],
        );
        assert_eq!(
            got,
            [
                "job=j stream=stderr | other",
                "job=j stream=stdout | first second",
                "job=j | no such line",
                "job=j stream=stdout | open"
            ]
        );
    }
}
