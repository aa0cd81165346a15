//! Pipeline stages over one record.

use crate::ast::{CompareOp, LabelFilter, LineFilter, LineMatch, Quantity, Stage};
use obs_model::{Labels, LabelsBuilder, LogRecord};
use std::collections::BTreeMap;

/// The label that names what went wrong in a stage.
pub(crate) const ERROR_LABEL: &str = "__error__";

/// Labels while a record passes the stages.
#[derive(Debug)]
pub(crate) struct Working {
    stream: Labels,
    pub(crate) labels: BTreeMap<String, String>,
}

fn sanitise(key: &str) -> String {
    let mut out: String = key
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == ':' { c } else { '_' })
        .collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

/// Returns a record's labels before any stage: stream, then structured metadata (for OTLP records
/// also severity, ids and resource, as Loki maps them).
pub fn record_labels(r: &LogRecord) -> BTreeMap<String, String> {
    let mut out: BTreeMap<String, String> = BTreeMap::new();
    let from_otlp = !r.resource.attributes.is_empty();
    if from_otlp {
        for (k, v) in r.resource.attributes.iter() {
            out.insert(sanitise(k), v.to_string());
        }
        if !r.severity_text.is_empty() {
            out.insert("severity_text".into(), r.severity_text.clone());
        }
        if r.severity_number > 0 {
            out.insert("severity_number".into(), r.severity_number.to_string());
        }
        if let Some(t) = r.trace_id {
            out.insert("trace_id".into(), t.to_string());
        }
        if let Some(s) = r.span_id {
            out.insert("span_id".into(), s.to_string());
        }
        if !r.event_name.is_empty() {
            out.insert("event_name".into(), r.event_name.clone());
        }
    }
    for (k, v) in r.attributes.iter() {
        out.insert(sanitise(k), v.to_string());
    }
    for (n, v) in r.stream.iter() {
        out.insert(n.to_owned(), v.to_owned());
    }
    out.retain(|_, v| !v.is_empty());
    out
}

impl Working {
    pub(crate) fn new(r: &LogRecord) -> Self {
        Self { stream: r.stream.clone(), labels: record_labels(r) }
    }

    fn get(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// Sets a label that a parser found; one of the stream's name gets a suffix.
    fn extract(&mut self, key: &str, value: String) {
        let mut name = sanitise(key);
        if name.is_empty() {
            return;
        }
        if !self.stream.get(&name).is_empty() {
            name.push_str("_extracted");
        }
        self.labels.insert(name, value);
    }

    fn error(&mut self, kind: &str, details: String) {
        self.labels.insert(ERROR_LABEL.into(), kind.into());
        self.labels.insert("__error_details__".into(), details);
    }

    pub(crate) fn finish(self) -> Labels {
        let mut b = LabelsBuilder::default();
        for (n, v) in &self.labels {
            b.push(n.as_str(), v.as_str());
        }
        b.build()
    }
}

/// Runs the stages; false drops the record.
pub(crate) fn run(stages: &[Stage], line: &str, w: &mut Working) -> bool {
    stages.iter().all(|stage| match stage {
        Stage::Line(f) => line_passes(f, line),
        Stage::Json => {
            json(line, w);
            true
        }
        Stage::Logfmt => {
            logfmt(line, w);
            true
        }
        Stage::Label(f) => label_passes(f, w),
    })
}

fn line_passes(f: &LineFilter, line: &str) -> bool {
    let hit = |m: &LineMatch| match m {
        LineMatch::Contains(s) => line.contains(s.as_str()),
        LineMatch::Regex(r) => r.is_match(line),
    };
    f.any.iter().any(hit) != f.negated
}

fn json(line: &str, w: &mut Working) {
    match serde_json::from_str::<serde_json::Value>(line) {
        Ok(serde_json::Value::Object(map)) => map.iter().for_each(|(k, v)| json_value(k, v, w, 0)),
        Ok(_) => w.error(
            "JSONParserErr",
            "Value looks like object, but can't find closing '}' symbol".into(),
        ),
        Err(e) => w.error("JSONParserErr", e.to_string()),
    }
}

/// Objects are flattened with `_`, arrays are skipped, as Loki does.
fn json_value(key: &str, v: &serde_json::Value, w: &mut Working, depth: usize) {
    match v {
        serde_json::Value::Object(map) if depth < 32 => {
            map.iter().for_each(|(k, v)| json_value(&format!("{key}_{k}"), v, w, depth + 1))
        }
        serde_json::Value::Object(_) | serde_json::Value::Array(_) | serde_json::Value::Null => {}
        serde_json::Value::String(s) => w.extract(key, s.clone()),
        other => w.extract(key, other.to_string()),
    }
}

fn logfmt(line: &str, w: &mut Working) {
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let key_len = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, tail) = rest.split_at(key_len);
        let Some(tail) = tail.strip_prefix('=') else {
            // A bare word is a key without a value, which Loki drops.
            rest = tail.trim_start();
            continue;
        };
        let value;
        if let Some(quoted) = tail.strip_prefix('"') {
            let mut escaped = false;
            let end = quoted.char_indices().find(|(_, c)| {
                let hit = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                hit
            });
            let Some((end, _)) = end else {
                w.error("LogfmtParserErr", "logfmt syntax error: unterminated quoted value".into());
                return;
            };
            let raw = quoted.get(..end).unwrap_or_default();
            value = serde_json::from_str(&format!("\"{raw}\"")).unwrap_or_else(|_| raw.to_owned());
            rest = quoted.get(end + 1..).unwrap_or_default().trim_start();
        } else {
            let end = tail.find(char::is_whitespace).unwrap_or(tail.len());
            value = tail.get(..end).unwrap_or_default().to_owned();
            rest = tail.get(end..).unwrap_or_default().trim_start();
        }
        if !key.is_empty() && !value.is_empty() {
            w.extract(key, value);
        }
    }
}

fn label_passes(f: &LabelFilter, w: &mut Working) -> bool {
    match f {
        LabelFilter::Matches(m) => m.matches(w.get(&m.name)),
        LabelFilter::And(a, b) => label_passes(a, w) && label_passes(b, w),
        LabelFilter::Or(a, b) => label_passes(a, w) || label_passes(b, w),
        LabelFilter::Compare { name, op, value } => {
            let text = w.get(name);
            if text.is_empty() {
                return false;
            }
            let parsed = match value {
                Quantity::Number(_) => text.parse().ok(),
                Quantity::Duration(_) => parse_duration_ns(text),
                Quantity::Bytes(_) => parse_bytes(text),
            };
            let (Quantity::Number(want) | Quantity::Duration(want) | Quantity::Bytes(want)) =
                *value;
            let Some(got) = parsed else {
                // As Loki: the line stays and carries the error.
                let details = format!("strconv.ParseFloat: parsing {text:?}: invalid syntax");
                w.error("LabelFilterErr", details);
                return true;
            };
            match op {
                CompareOp::Equal => got == want,
                CompareOp::NotEqual => got != want,
                CompareOp::Greater => got > want,
                CompareOp::GreaterEqual => got >= want,
                CompareOp::Less => got < want,
                CompareOp::LessEqual => got <= want,
            }
        }
    }
}

/// Parses a number followed by units, several times over; the sum, or `None`.
fn with_units(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (sign, mut rest) = text.strip_prefix('-').map_or((1.0, text), |r| (-1.0, r));
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (digits, tail) = rest.split_at(number);
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let factor = units.iter().find(|(u, _)| *u == unit.trim())?.1;
        total += digits.parse::<f64>().ok()? * factor;
        rest = tail;
    }
    Some(total * sign)
}

/// Parses Go's durations (`1.5s`, `1h30m`, `200µs`) and days and weeks, to nanoseconds.
pub(crate) fn parse_duration_ns(text: &str) -> Option<f64> {
    with_units(
        text,
        &[
            ("ns", 1.0),
            ("us", 1e3),
            ("µs", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 6e10),
            ("h", 3.6e12),
            ("d", 8.64e13),
            ("w", 6.048e14),
            ("y", 3.1536e16),
        ],
    )
}

/// Parses humanised sizes (`10KB`, `1.5 MiB`).
pub(crate) fn parse_bytes(text: &str) -> Option<f64> {
    let lower = text.to_ascii_lowercase();
    let units = [
        ("b", 1.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("k", 1e3),
        ("m", 1e6),
        ("g", 1e9),
        ("kib", 1024.0),
        ("mib", 1_048_576.0),
        ("gib", 1_073_741_824.0),
        ("tib", 1_099_511_627_776.0),
    ];
    with_units(&lower, &units)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extracted(f: fn(&str, &mut Working), line: &str) -> Vec<(String, String)> {
        let mut w = Working { stream: Labels::from_pairs([("app", "x")]), labels: BTreeMap::new() };
        f(line, &mut w);
        w.labels.into_iter().collect()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
    }

    #[test]
    fn parsers_extract_as_loki_does() {
        let got = extracted(
            json,
            r#"{"a":{"b-c":1.5},"app":"other","list":[1],"t":true,"n":null,"s":"x y","9k":"z"}"#,
        );
        let want = [
            ("_9k", "z"),
            ("a_b_c", "1.5"),
            ("app_extracted", "other"),
            ("s", "x y"),
            ("t", "true"),
        ];
        assert_eq!(got, pairs(&want));
        assert_eq!(extracted(json, "nope")[0], ("__error__".into(), "JSONParserErr".into()));
        let got = extracted(logfmt, r#"level=info msg="hello \"you\"" dur=1.5s bare empty= ü=1"#);
        assert_eq!(
            got,
            pairs(&[("_", "1"), ("dur", "1.5s"), ("level", "info"), ("msg", "hello \"you\"")])
        );
    }

    #[test]
    fn quantities() {
        assert_eq!(parse_duration_ns("1h30m"), Some(5.4e12));
        assert_eq!(parse_duration_ns("1.5s"), Some(1.5e9));
        assert_eq!(parse_duration_ns("5"), None);
        assert_eq!(parse_bytes("10KB"), Some(10_000.0));
        assert_eq!(parse_bytes("1 MiB"), Some(1_048_576.0));
        assert_eq!(parse_bytes("x"), None);
    }
}
