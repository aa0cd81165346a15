//! Runs a pipeline's stages over one record after another.

use crate::ast::{
    Conversion, LabelChoice, LabelFilter, LabelFormat, LineFilter, LineMatch, Quantity, Stage,
    Unwrap,
};
use crate::labels::{ERROR, ERROR_DETAILS, Entry, Kind};
use crate::{parse, template, units};
use obs_model::TimestampNs;
use regex::Regex;
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

/// Control sequences of terminals: colours and cursor moves, titles and links, single commands.
static ANSI: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?:\x1b\[|\x{9b})[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()#][0-9A-Za-z]|\x1b[=>@-Z\\^_a-z]",
    )
    .ok()
});

/// Returns a line without control sequences of terminals, if it has any.
pub fn strip_ansi(line: &str) -> Option<String> {
    let ansi = ANSI.as_ref().filter(|_| line.contains(['\u{1b}', '\u{9b}']))?;
    Some(ansi.replace_all(line, "").into_owned())
}

/// What `distinct` remembers at most, in bytes; past that it lets pass.
const DISTINCT_BYTES_MAX: usize = 16 << 20;

/// Stages and what they remember between records.
#[derive(Debug)]
pub(crate) struct Pipeline<'a> {
    stages: &'a [Stage],
    seen: HashSet<(usize, String)>,
    seen_bytes: usize,
}

impl<'a> Pipeline<'a> {
    pub(crate) fn new(stages: &'a [Stage]) -> Self {
        Self { stages, seen: HashSet::new(), seen_bytes: 0 }
    }

    /// Runs all stages; returns the line as they leave it, or `None` when one drops the record.
    pub(crate) fn run<'l>(
        &mut self,
        line: &'l str,
        at: TimestampNs,
        entry: &mut Entry<'_>,
    ) -> Option<Cow<'l, str>> {
        let mut line = Cow::Borrowed(line);
        for (i, stage) in self.stages.iter().enumerate() {
            match stage {
                Stage::Line(f) => {
                    if !line_passes(f, &line) {
                        return None;
                    }
                }
                Stage::Label(f) => {
                    if !label_passes(f, entry) {
                        return None;
                    }
                }
                Stage::LineFormat(t) => match t.run(&template::data(entry), &line, at) {
                    Ok(text) => line = text.into(),
                    Err(e) => entry.set_error("TemplateFormatErr", &e),
                },
                Stage::LabelFormat(formats) => label_format(formats, &line, at, entry),
                Stage::Decolorize => {
                    if let Some(plain) = strip_ansi(&line) {
                        line = plain.into();
                    }
                }
                Stage::Unpack => {
                    if let Some(text) = parse::unpack(&line, entry) {
                        line = text.into();
                    }
                }
                Stage::Drop(choices) => drop_labels(choices, entry),
                Stage::Keep(choices) => keep_labels(choices, entry),
                Stage::Distinct(names) => {
                    let values: Vec<&str> =
                        names.iter().map(|n| entry.get(n).unwrap_or_default()).collect();
                    let key = values.join("\0");
                    if self.seen.contains(&(i, key.clone())) {
                        return None;
                    }
                    if self.seen_bytes < DISTINCT_BYTES_MAX {
                        self.seen_bytes += key.len() + 64;
                        self.seen.insert((i, key));
                    }
                }
                _ if entry.wants_nothing() => {}
                Stage::Json(fields) if fields.is_empty() => parse::json(&line, entry),
                Stage::Json(fields) => parse::json_fields(&line, fields, entry),
                Stage::Logfmt { strict, keep_empty, fields } if fields.is_empty() => {
                    parse::logfmt(&line, *strict, *keep_empty, entry);
                }
                Stage::Logfmt { strict, keep_empty, fields } => {
                    parse::logfmt_fields(&line, *strict, *keep_empty, fields, entry);
                }
                Stage::Regexp(r) => parse::regexp(r, &line, entry),
                Stage::Pattern(p) => parse::pattern(p, &line, entry),
            }
        }
        Some(line)
    }
}

fn line_passes(f: &LineFilter, line: &str) -> bool {
    let hit = |m: &LineMatch| match m {
        LineMatch::Contains(s) => memchr::memmem::find(line.as_bytes(), s.as_bytes()).is_some(),
        LineMatch::Regex(r, _) => r.is_match(line),
        LineMatch::Pattern(p) => p.matches(line),
        LineMatch::Ip(ip) => ip.is_in(line),
    };
    f.any.iter().any(hit) != f.negated
}

/// Runs a label filter; a label that cannot be read as its kind of number marks the record and
/// lets it pass.
fn label_passes(f: &LabelFilter, entry: &mut Entry<'_>) -> bool {
    match f {
        LabelFilter::Matches(m) => m.matches(entry.get(&m.name).unwrap_or_default()),
        // Both sides are always run, as either may mark the record.
        LabelFilter::And(a, b) => {
            let (a, b) = (label_passes(a, entry), label_passes(b, entry));
            a && b
        }
        LabelFilter::Or(a, b) => label_passes(a, entry) || label_passes(b, entry),
        // Only texts can filter what an earlier stage marked.
        LabelFilter::Compare { .. } | LabelFilter::Ip { .. } if entry.has_error() => true,
        LabelFilter::Compare { name, op, value, .. } => {
            let Some(text) = entry.get(name) else { return false };
            let (read, want) = match *value {
                Quantity::Number(want) => (units::go_float(text), want),
                Quantity::Duration(want) => (units::go_duration_ns(text), want),
                Quantity::Bytes(want) => (go_bytes(text), want),
            };
            match read {
                Ok(got) => op.holds(got, want),
                Err(details) => {
                    entry.set_error("LabelFilterErr", &details);
                    true
                }
            }
        }
        LabelFilter::Ip { ip, .. } if !ip.is_valid() => {
            entry.set_error("LabelFilterErr", "filter: invalid pattern");
            true
        }
        LabelFilter::Ip { name, negated, ip } => {
            entry.get(name).is_some_and(|v| ip.is_in(v) != *negated)
        }
    }
}

fn go_bytes(text: &str) -> Result<f64, String> {
    units::bytes(text).ok_or_else(|| {
        let digits: String =
            text.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ',')).collect();
        if digits.is_empty() {
            "strconv.ParseFloat: parsing \"\": invalid syntax".to_owned()
        } else {
            let unit = text.get(digits.len()..).unwrap_or_default().trim().to_lowercase();
            format!("unhandled size name: {unit}")
        }
    })
}

fn label_format(formats: &[LabelFormat], line: &str, at: TimestampNs, entry: &mut Entry<'_>) {
    // All templates of one stage see the labels as they are at the first of them.
    let mut data = None;
    for format in formats {
        match format {
            LabelFormat::Rename { to, from } => entry.rename(from, to),
            LabelFormat::Template { to, template } => {
                let data = data.get_or_insert_with(|| template::data(entry));
                match template.run(data, line, at) {
                    Ok(text) => entry.set(Kind::Parsed, to, &text),
                    Err(e) => entry.set_error("TemplateFormatErr", &e),
                }
            }
        }
    }
}

fn drop_labels(choices: &[LabelChoice], entry: &mut Entry<'_>) {
    for choice in choices {
        let name = choice.name();
        if entry.get(name).is_some_and(|v| choice.holds(name, v)) {
            entry.delete(name);
        }
    }
}

fn keep_labels(choices: &[LabelChoice], entry: &mut Entry<'_>) {
    let all = entry.all();
    let gone = all.into_iter().filter(|(n, v)| {
        !matches!(*n, ERROR | ERROR_DETAILS) && !choices.iter().any(|c| c.holds(n, v))
    });
    let gone: Vec<String> = gone.map(|(n, _)| n.to_owned()).collect();
    for name in gone {
        entry.delete(&name);
    }
}

/// Returns the sample that a record carries; `None` when it lacks the label or a filter behind the
/// unwrap drops it. A value that is no number marks the record.
pub(crate) fn unwrap(u: &Unwrap, entry: &mut Entry<'_>) -> Option<f64> {
    let text = entry.get(&u.label).filter(|v| !v.is_empty())?;
    let read = match u.conversion {
        Conversion::Number => units::go_float(text),
        Conversion::Duration(_) => units::go_duration_ns(text).map(|ns| ns / 1e9),
        Conversion::Bytes => go_bytes(text),
    };
    let value = read.unwrap_or_else(|details| {
        entry.set_error("SampleExtractionErr", &details);
        0.0
    });
    u.filters.iter().all(|f| label_passes(f, entry)).then_some(value)
}
