//! Joins lines that belong together.

use super::Stage;
use crate::entry::{Entry, LabelMap};
use obs_collect::config::Span;
use obs_model::{TimestampNs, go_regex};
use regex::Regex;
use serde::Deserialize;
use std::collections::HashMap;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    firstline: String,
    #[serde(default = "three_seconds")]
    max_wait_time: Span,
    #[serde(default = "lines")]
    max_lines: usize,
}

fn three_seconds() -> Span {
    Span(Duration::from_secs(3))
}

fn lines() -> usize {
    128
}

/// Bytes that one joined line may have.
const BYTES_MAX: usize = 1 << 20;
/// Streams that lines are gathered for.
const STREAMS_MAX: usize = 1000;

struct Gathered {
    entry: Entry,
    lines: usize,
    /// When the last line came.
    touched: TimestampNs,
}

struct Multiline {
    first: Regex,
    wait: Duration,
    lines_max: usize,
    open: HashMap<LabelMap, Gathered>,
}

pub(super) fn multiline(c: Settings) -> Result<Box<dyn Stage>, String> {
    let first = go_regex(&c.firstline).map_err(|e| e.to_string())?;
    let (wait, lines_max) = (c.max_wait_time.0, c.max_lines.max(1));
    Ok(Box::new(Multiline { first, wait, lines_max, open: HashMap::new() }))
}

impl Stage for Multiline {
    fn take(&mut self, e: Entry, now: TimestampNs, out: &mut dyn FnMut(Entry)) {
        let key = e.labels.clone();
        let is_first = self.first.is_match(&e.line);
        if let Some(g) = self.open.get_mut(&key) {
            let fits = g.lines < self.lines_max && g.entry.line.len() + e.line.len() < BYTES_MAX;
            if !is_first && fits {
                g.entry.line.push('\n');
                g.entry.line.push_str(&e.line);
                g.lines += 1;
                g.touched = now;
                return;
            }
            if let Some(g) = self.open.remove(&key) {
                out(g.entry);
            }
        } else if !is_first {
            // Nothing to belong to.
            return out(e);
        }
        if self.open.len() >= STREAMS_MAX {
            self.open.drain().for_each(|(_, g)| out(g.entry));
        }
        self.open.insert(key, Gathered { entry: e, lines: 1, touched: now });
    }

    fn oldest_held(&self) -> Option<u64> {
        self.open.values().map(|g| g.entry.origin).min()
    }

    fn flush(&mut self, now: TimestampNs, is_end: bool, out: &mut dyn FnMut(Entry)) {
        let is_due = |g: &Gathered| {
            is_end || i128::from(now.nanos() - g.touched.nanos()) >= self.wait.as_nanos() as i128
        };
        let due: Vec<_> =
            self.open.iter().filter(|(_, g)| is_due(g)).map(|(k, _)| k.clone()).collect();
        for key in due {
            if let Some(g) = self.open.remove(&key) {
                out(g.entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;

    #[test]
    fn traces_become_one_line() {
        let lines = ["stray", "2026 start", "  at a", "  at b", "2026 next", "  at c"];
        let got = run("[{multiline: {firstline: '^\\d{4}'}}]", &lines);
        let got: Vec<&str> = got.iter().map(|e| e.line.as_str()).collect();
        assert_eq!(got, ["stray", "2026 start\n  at a\n  at b", "2026 next\n  at c"]);
        let got = run("[{multiline: {firstline: '^\\d{4}', max_lines: 2}}]", &lines);
        assert_eq!(got.len(), 4);
    }
}
