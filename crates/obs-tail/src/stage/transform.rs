//! Stages that change time and line.

use super::extract::extracted;
use super::{Stage, change};
use crate::entry::{Entry, LabelMap};
use chrono_tz::Tz;
use obs_logql::{LineTemplate, strip_ansi};
use obs_model::{TimestampNs, go_regex};
use obs_template::{Value as Data, parse_time_in};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TimestampSettings {
    source: String,
    format: String,
    #[serde(default)]
    fallback_formats: Vec<String>,
    location: Option<String>,
    #[serde(default)]
    action_on_failure: Option<String>,
}

/// How a time is written.
enum Form {
    /// A number of these many nanoseconds, perhaps with a fraction.
    Unix(f64),
    /// A layout, and where clocks are that it says nothing of.
    Layout(String, Tz),
}

impl Form {
    fn new(name: &str, zone: Tz) -> Self {
        let layout = match name {
            "Unix" => return Self::Unix(1e9),
            "UnixMs" => return Self::Unix(1e6),
            "UnixUs" => return Self::Unix(1e3),
            "UnixNs" => return Self::Unix(1.0),
            "ANSIC" => "Mon Jan _2 15:04:05 2006",
            "UnixDate" => "Mon Jan _2 15:04:05 MST 2006",
            "RubyDate" => "Mon Jan 02 15:04:05 -0700 2006",
            "RFC822" => "02 Jan 06 15:04 MST",
            "RFC822Z" => "02 Jan 06 15:04 -0700",
            "RFC850" => "Monday, 02-Jan-06 15:04:05 MST",
            "RFC1123" => "Mon, 02 Jan 2006 15:04:05 MST",
            "RFC1123Z" => "Mon, 02 Jan 2006 15:04:05 -0700",
            "RFC3339" => "2006-01-02T15:04:05Z07:00",
            "RFC3339Nano" => "2006-01-02T15:04:05.999999999Z07:00",
            other => other,
        };
        Self::Layout(layout.to_owned(), zone)
    }

    fn parse(&self, text: &str) -> Option<TimestampNs> {
        match self {
            Self::Unix(unit) => {
                let whole: Option<i64> = text.parse().ok();
                let ns = match whole {
                    Some(n) => n.checked_mul(*unit as i64)?,
                    None => (text.parse::<f64>().ok()? * unit) as i64,
                };
                Some(TimestampNs::from_nanos(ns))
            }
            Self::Layout(layout, zone) => parse_time_in(text, layout, *zone),
        }
    }
}

/// Streams whose last time is remembered.
const STREAMS_MAX: usize = 10_000;

pub(super) fn timestamp(c: TimestampSettings) -> Result<Box<dyn Stage>, String> {
    let zone = match c.location.as_deref() {
        None | Some("") => Tz::UTC,
        Some(name) => name.parse().map_err(|_| format!("invalid location specified: {name:?}"))?,
    };
    let fudge = match c.action_on_failure.as_deref() {
        None | Some("fudge") => true,
        Some("skip") => false,
        Some(other) => return Err(format!("invalid action on failure {other:?} (fudge or skip)")),
    };
    let forms: Vec<Form> =
        std::iter::once(&c.format).chain(&c.fallback_formats).map(|f| Form::new(f, zone)).collect();
    // A line without a readable time stands a nanosecond behind the one before.
    let mut last: HashMap<LabelMap, TimestampNs> = HashMap::new();
    Ok(change(move |e: &mut Entry, _| {
        let found = extracted(e, &c.source);
        let time = found.and_then(|t| forms.iter().find_map(|f| f.parse(&t)));
        if !fudge {
            e.time = time.unwrap_or(e.time);
            return;
        }
        let key = e.labels.clone();
        match (time, last.get_mut(&key)) {
            (Some(t), _) => e.time = t,
            (None, Some(before)) => e.time = before.add_nanos(1),
            (None, None) => return,
        }
        if last.len() >= STREAMS_MAX {
            last.clear();
        }
        last.insert(key, e.time);
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputSettings {
    source: String,
}

pub(super) fn output(c: OutputSettings) -> Result<Box<dyn Stage>, String> {
    Ok(change(move |e: &mut Entry, _| {
        if let Some(text) = extracted(e, &c.source) {
            e.line = text;
        }
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateSettings {
    source: String,
    template: String,
}

/// What a template sees: all extracted values, `.Value` and `.Entry`.
fn data(e: &Entry, value: &str) -> Data {
    let all = e.extracted.keys().filter_map(|n| Some((n.clone(), extracted(e, n)?)));
    let own = [("Value".to_owned(), value.to_owned()), ("Entry".into(), e.line.clone())];
    Data::texts(all.chain(own))
}

pub(super) fn template(c: TemplateSettings) -> Result<Box<dyn Stage>, String> {
    let template = LineTemplate::new(&c.template)?;
    Ok(change(move |e: &mut Entry, _| {
        let value = extracted(e, &c.source).unwrap_or_default();
        match template.run(&data(e, &value), &e.line, e.time) {
            // An empty result takes the value away.
            Ok(text) if text.is_empty() => drop(e.extracted.remove(&c.source)),
            Ok(text) => drop(e.extracted.insert(c.source.clone(), text.into())),
            Err(error) => tracing::debug!(source = c.source, error, "template failed"),
        }
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplaceSettings {
    expression: String,
    source: Option<String>,
    #[serde(default)]
    replace: String,
}

/// Replaces what groups capture, or the whole match when there is no group.
pub(super) fn replace(c: ReplaceSettings) -> Result<Box<dyn Stage>, String> {
    let regex = go_regex(&c.expression).map_err(|e| e.to_string())?;
    let template = LineTemplate::new(&c.replace)?;
    Ok(change(move |e: &mut Entry, _| {
        let Some(input) = e.source(c.source.as_deref()) else { return };
        let mut out = String::with_capacity(input.len());
        let mut from = 0;
        let mut captured: BTreeMap<&str, String> = BTreeMap::new();
        for found in regex.captures_iter(&input) {
            let first = usize::from(found.len() > 1);
            for i in first..found.len() {
                let Some(m) = found.get(i).filter(|m| m.start() >= from) else { continue };
                let Ok(text) = template.run(&data(e, m.as_str()), &e.line, e.time) else { return };
                out.push_str(input.get(from..m.start()).unwrap_or_default());
                out.push_str(&text);
                from = m.end();
                if let Some(name) = regex.capture_names().nth(i).flatten() {
                    captured.insert(name, text);
                }
            }
        }
        if from == 0 && captured.is_empty() && out.is_empty() {
            return;
        }
        out.push_str(input.get(from..).unwrap_or_default());
        let captured: Vec<(String, String)> =
            captured.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        e.extracted.extend(captured.into_iter().map(|(n, v)| (n, Value::String(v))));
        match c.source.as_deref() {
            None | Some("") => e.line = out,
            Some(name) => drop(e.extracted.insert(name.to_owned(), out.into())),
        }
    }))
}

pub(super) fn decolorize() -> Box<dyn Stage> {
    change(|e: &mut Entry, _| {
        if let Some(plain) = strip_ansi(&e.line) {
            e.line = plain;
        }
    })
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PackSettings {
    labels: Vec<String>,
    ingest_timestamp: Option<bool>,
}

/// Wraps line and labels into JSON, which LogQL's `unpack` undoes.
pub(super) fn pack(c: PackSettings) -> Result<Box<dyn Stage>, String> {
    let fresh_time = c.ingest_timestamp.unwrap_or(true);
    Ok(change(move |e: &mut Entry, now| {
        let mut packed: BTreeMap<String, String> = BTreeMap::new();
        for name in &c.labels {
            if let Some(v) = e.labels.remove(name) {
                packed.insert(name.clone(), v);
            } else if let Some(v) = extracted(e, name) {
                packed.insert(name.clone(), v);
            }
        }
        packed.insert("_entry".into(), std::mem::take(&mut e.line));
        e.line = serde_json::json!(packed).to_string();
        if fresh_time {
            e.time = now;
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, shown};

    #[test]
    fn times_are_read_in_every_form() {
        for (format, text) in [
            ("RFC3339Nano", "2023-03-23T14:00:05.000000000Z"),
            ("RFC3339", "2023-03-23T15:00:05+01:00"),
            ("Unix", "1679580005"),
            ("UnixMs", "1679580005000"),
            ("UnixNs", "1679580005000000000"),
            ("'02/Jan/2006:15:04:05 -0700'", "23/Mar/2023:14:00:05 +0000"),
            ("RFC1123", "Thu, 23 Mar 2023 14:00:05 UTC"),
        ] {
            let stages = format!(
                "[{{regex: {{expression: '^(?P<t>.*)$'}}}}, {{timestamp: {{source: t, format: {format}}}}}]"
            );
            assert_eq!(
                run(&stages, &[text])[0].time.nanos(),
                1_679_580_005_000_000_000,
                "{format}"
            );
        }
        // A place for layouts that do not say where: summer, winter, the hour that is left out, and a
        // layout that does say.
        for (text, format, want) in [
            ("2023-07-01 12:00:00", "'2006-01-02 15:04:05'", 1_688_205_600),
            ("2023-01-01 12:00:00", "'2006-01-02 15:04:05'", 1_672_570_800),
            ("2023-03-26 02:30:00", "'2006-01-02 15:04:05'", 1_679_794_200),
            ("2023-07-01T12:00:00Z", "RFC3339", 1_688_212_800),
        ] {
            let stages = format!(
                "[{{regex: {{expression: '^(?P<t>.*)$'}}}}, {{timestamp: {{source: t, format: {format}, location: Europe/Berlin}}}}]"
            );
            assert_eq!(run(&stages, &[text])[0].time.nanos(), want * 1_000_000_000, "{text}");
        }
        // What has no time follows the line before.
        let stages =
            "[{regex: {expression: '^t=(?P<t>\\d+)'}}, {timestamp: {source: t, format: Unix}}]";
        let got = run(stages, &["none", "t=100", "then", "then"]);
        let ns: Vec<i64> = got.iter().map(|e| e.time.nanos()).collect();
        assert_eq!(ns, [0, 100_000_000_000, 100_000_000_001, 100_000_000_002]);
    }

    #[test]
    fn lines_are_rewritten() {
        let stages = "
- regex: {expression: '(?P<user>\\w+) (?P<rest>.*)'}
- template: {source: user, template: '{{ .Value | ToUpper }}:{{ .rest }}'}
- output: {source: user}
";
        assert_eq!(shown(stages, &["ann hello"]), ["job=j | ANN:hello"]);
        let stages = "[{replace: {expression: 'password=(\\S+)', replace: '****'}}]";
        assert_eq!(
            shown(stages, &["a password=x b password=yy c", "none"]),
            ["job=j | a password=**** b password=**** c", "job=j | none"]
        );
        let stages = "[{replace: {expression: '\\d+', replace: '<{{ .Value }}>'}}]";
        assert_eq!(shown(stages, &["1 b 22"]), ["job=j | <1> b <22>"]);
        assert_eq!(shown("[{decolorize: }]", &["\u{1b}[31mred\u{1b}[0m"]), ["job=j | red"]);
        let stages = "[{pack: {labels: [job]}}]";
        assert_eq!(shown(stages, &["l \"q\""]), [r#" | {"_entry":"l \"q\"","job":"j"}"#]);
    }
}
