//! What can be told of a line without being told how.

use memchr::memmem;

/// Names of levels, and what they are written as.
const LEVELS: [(&str, &str); 14] = [
    ("trace", "trace"),
    ("trc", "trace"),
    ("debug", "debug"),
    ("dbg", "debug"),
    ("info", "info"),
    ("inf", "info"),
    ("notice", "info"),
    ("warning", "warn"),
    ("warn", "warn"),
    ("wrn", "warn"),
    ("error", "error"),
    ("err", "error"),
    ("critical", "critical"),
    ("fatal", "fatal"),
];

fn named(word: &str) -> Option<&'static str> {
    let hit = LEVELS.iter().find(|(name, _)| word.eq_ignore_ascii_case(name));
    hit.map(|(_, level)| *level)
}

/// How far into a line its level is looked for, in bytes.
const LOOK: usize = 512;

/// Finds the level of a line: its field `level` (`lvl`, `severity`) in JSON or logfmt, else the
/// first word that is the name of one.
pub(crate) fn level(line: &str) -> Option<&'static str> {
    let mut end = line.len().min(LOOK);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let head = line.get(..end)?;
    for key in ["level", "lvl", "severity"] {
        for at in memmem::find_iter(head.as_bytes(), key) {
            let before = at.checked_sub(1).and_then(|i| head.as_bytes().get(i));
            if before.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_') {
                continue;
            }
            let after = head.get(at + key.len()..).unwrap_or_default();
            let is_mark = |c: char| matches!(c, '"' | ' ' | ':' | '=');
            let value = after.trim_start_matches(is_mark);
            if value.len() == after.len() || !after.contains([':', '=']) {
                continue;
            }
            let len = value.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(value.len());
            if let Some(level) = value.get(..len).and_then(named) {
                return Some(level);
            }
        }
    }
    head.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| w.len() >= 3).find_map(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_found_where_they_usually_stand() {
        for (line, want) in [
            (r#"{"msg":"no error here","level":"info"}"#, Some("info")),
            (r#"{"severity" : "WARNING"}"#, Some("warn")),
            ("ts=1 lvl=dbg msg=x", Some("debug")),
            ("2026-01-02 03:04:05 ERROR something", Some("error")),
            ("[WRN] careful", Some("warn")),
            ("the information desk", None),
            ("sublevel=error fine", Some("error")),
            ("", None),
            ("nothing to say", None),
        ] {
            assert_eq!(level(line), want, "{line}");
        }
    }
}
