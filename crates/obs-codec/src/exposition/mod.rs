//! What exporters serve: Prometheus' text format 0.0.4, OpenMetrics 1.0 and the protobuf format.
//!
//! Judgements on invalid pages are Prometheus': what it takes although the standard forbids it is
//! taken here too.

mod protobuf;

use crate::DecodeError;
use obs_model::{
    Exemplar, Labels, LabelsBuilder, METRIC_NAME, MetricKind, MetricMetadata, SampleValue,
};

/// Format of a page, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    OpenMetrics,
    Protobuf,
}

impl Format {
    /// Returns the format that a `Content-Type` names, `None` when it is another.
    pub fn of(content_type: &str) -> Option<Self> {
        let mut parts = content_type.split(';').map(str::trim);
        match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "text/plain" => Some(Self::Text),
            "application/openmetrics-text" => Some(Self::OpenMetrics),
            "application/vnd.google.protobuf" => {
                let is_family = |p: &str| {
                    p.replace(' ', "")
                        .eq_ignore_ascii_case("proto=io.prometheus.client.MetricFamily")
                };
                parts.any(is_family).then_some(Self::Protobuf)
            }
            _ => None,
        }
    }
}

/// One sample of a page.
#[derive(Debug, Clone, PartialEq)]
pub struct Scraped {
    /// The series as the page writes it; [`series_labels`] reads it.
    pub series: String,
    pub value: SampleValue,
    /// Milliseconds, if the page says.
    pub timestamp: Option<i64>,
    pub exemplars: Vec<Exemplar>,
}

/// A page that was read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    pub samples: Vec<Scraped>,
    pub metadata: Vec<MetricMetadata>,
}

fn bad(line: usize, reason: impl AsRef<str>) -> DecodeError {
    DecodeError { format: "exposition", reason: format!("line {line}: {}", reason.as_ref()) }
}

/// Reads a page.
///
/// # Errors
/// When any of it is wrong: half a page would look like series that ended.
pub fn parse(format: Format, body: &[u8]) -> Result<Page, DecodeError> {
    match format {
        Format::Protobuf => protobuf::parse(body),
        Format::Text | Format::OpenMetrics => {
            let text = std::str::from_utf8(body).map_err(|_| bad(1, "page is not UTF-8"))?;
            parse_text(text, format == Format::OpenMetrics)
        }
    }
}

fn is_name_start(c: u8, colons: bool) -> bool {
    c.is_ascii_alphabetic() || c == b'_' || (colons && c == b':')
}

fn name_len(text: &str, colons: bool) -> usize {
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(|c| is_name_start(*c, colons)) {
        return 0;
    }
    let is_part = |c: &u8| is_name_start(*c, colons) || c.is_ascii_digit();
    bytes.iter().position(|c| !is_part(c)).unwrap_or(bytes.len())
}

/// Reads a quoted text; returns it and what follows.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let rest = text.strip_prefix('"').ok_or("expected a quoted text")?;
    // Most values have nothing to unescape.
    if let Some(end) = rest.find(['"', '\\', '\n'])
        && rest.as_bytes().get(end) == Some(&b'"')
    {
        let (value, tail) = rest.split_at(end);
        return Ok((value.to_owned(), tail.get(1..).unwrap_or_default()));
    }
    let mut out = String::new();
    let mut chars = rest.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((out, rest.get(i + 1..).unwrap_or_default())),
            '\n' => break,
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, '\\')) => out.push('\\'),
                Some((_, '"')) => out.push('"'),
                Some((_, other)) => {
                    out.push('\\');
                    out.push(other);
                }
                None => break,
            },
            c => out.push(c),
        }
    }
    Err("quoted text is not closed")
}

fn skip(text: &str, spaces: bool) -> &str {
    if spaces { text.trim_start_matches([' ', '\t']) } else { text }
}

type Pairs = Vec<(String, String)>;

/// Reads `{a="b",…}` after its brace; returns the pairs and what follows. A quoted text alone is
/// the metric's name.
fn label_set(text: &str, spaces: bool) -> Result<(Pairs, &str), &'static str> {
    let mut out = Pairs::new();
    let mut rest = skip(text, spaces);
    loop {
        if let Some(tail) = rest.strip_prefix('}') {
            return Ok((out, tail));
        }
        let (name, tail) = if rest.starts_with('"') {
            let (name, tail) = quoted(rest)?;
            let after = skip(tail, spaces);
            if after.starts_with([',', '}']) {
                out.push((METRIC_NAME.to_owned(), name));
                rest = skip(after.strip_prefix(',').unwrap_or(after), spaces);
                continue;
            }
            (name, after)
        } else {
            let n = name_len(rest, false);
            let (name, tail) = rest.split_at(n);
            if name.is_empty() {
                return Err("expected a label name");
            }
            (name.to_owned(), skip(tail, spaces))
        };
        let tail = tail.strip_prefix('=').ok_or("expected = after a label name")?;
        let (value, tail) = quoted(skip(tail, spaces))?;
        out.push((name, value));
        rest = skip(tail, spaces);
        match rest.strip_prefix(',') {
            Some(tail) => rest = skip(tail, spaces),
            None if rest.starts_with('}') => {}
            None => return Err("expected , or } after a label"),
        }
    }
}

/// Reads a series as a page writes it: `name{a="b"}`.
///
/// # Errors
/// When a label appears twice or there is no name.
pub fn series_labels(series: &str) -> Result<Labels, String> {
    let n = name_len(series, true);
    let (name, rest) = series.split_at(n);
    let rest = rest.trim_start_matches([' ', '\t']);
    let mut pairs = match rest.strip_prefix('{') {
        Some(inner) => label_set(inner, true)?.0,
        None => Pairs::new(),
    };
    if !name.is_empty() {
        pairs.push((METRIC_NAME.to_owned(), name.to_owned()));
    }
    pairs.sort_unstable();
    if let Some(w) = pairs.windows(2).find(|w| matches!(w, [a, b] if a.0 == b.0)) {
        let name = w.first().map_or("", |p| p.0.as_str());
        return Err(format!("label name {name:?} is not unique: invalid sample"));
    }
    let mut b = LabelsBuilder::default();
    for (name, value) in pairs {
        b.push(name, value);
    }
    let labels = b.build();
    if labels.metric_name().is_empty() {
        return Err("series without a name".into());
    }
    Ok(labels)
}

fn float(text: &str) -> Option<f64> {
    // Go's parser takes hexadecimal and underscores; Prometheus refuses them.
    if text.is_empty() || text.contains(['_', 'x', 'X', 'p', 'P']) {
        return None;
    }
    text.parse().ok()
}

struct Reader<'a> {
    open: bool,
    line: usize,
    page: Page,
    /// The family that TYPE, HELP and UNIT lines belong to.
    metadata: std::collections::HashMap<String, usize>,
    text: &'a str,
}

fn parse_text(text: &str, open: bool) -> Result<Page, DecodeError> {
    let mut r = Reader {
        open,
        line: 0,
        page: Page::default(),
        metadata: std::collections::HashMap::new(),
        text,
    };
    r.run()?;
    Ok(r.page)
}

impl<'a> Reader<'a> {
    fn run(&mut self) -> Result<(), DecodeError> {
        let mut rest = self.text;
        let mut ended = false;
        while !rest.is_empty() {
            self.line += 1;
            let (line, tail) = rest.split_once('\n').unwrap_or((rest, ""));
            rest = tail;
            if ended {
                return Err(bad(self.line, "unexpected data after # EOF"));
            }
            if self.open {
                if line == "# EOF" {
                    ended = true;
                    continue;
                }
                self.open_line(line).map_err(|e| bad(self.line, e))?;
            } else {
                self.plain_line(line).map_err(|e| bad(self.line, e))?;
            }
        }
        if self.open && !ended && !self.text.is_empty() {
            return Err(bad(self.line, "data does not end with # EOF"));
        }
        Ok(())
    }

    fn describe(&mut self, name: String) -> Option<&mut MetricMetadata> {
        let at = *self.metadata.entry(name.clone()).or_insert_with(|| {
            let kind = MetricKind::Unknown;
            let (help, unit) = (String::new(), String::new());
            self.page.metadata.push(MetricMetadata { name, kind, help, unit });
            self.page.metadata.len() - 1
        });
        self.page.metadata.get_mut(at)
    }

    /// A line of the text format: spaces are free, unknown comments are skipped.
    fn plain_line(&mut self, line: &'a str) -> Result<(), String> {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let trimmed = line.trim_start_matches([' ', '\t']);
        if trimmed.is_empty() {
            return Ok(());
        }
        let Some(comment) = trimmed.strip_prefix('#') else {
            return self.sample(trimmed);
        };
        let words = comment.trim_start_matches([' ', '\t']);
        let (word, rest) = words.split_once([' ', '\t']).unwrap_or((words, ""));
        if !matches!(word, "HELP" | "TYPE") {
            return Ok(());
        }
        let rest = rest.trim_start_matches([' ', '\t']);
        let (name, rest) = self.family(rest)?;
        let rest = rest.trim_start_matches([' ', '\t']);
        if word == "TYPE" {
            let kind = rest.trim_end_matches([' ', '\t']);
            let kind = match kind {
                "counter" | "gauge" | "histogram" | "summary" => MetricKind::parse(kind),
                "untyped" => MetricKind::Unknown,
                other => return Err(format!("invalid metric type {other:?}")),
            };
            if let Some(m) = self.describe(name) {
                m.kind = kind;
            }
        } else if let Some(m) = self.describe(name) {
            m.help = unescape_help(rest);
        }
        Ok(())
    }

    fn family<'b>(&self, text: &'b str) -> Result<(String, &'b str), String> {
        if text.starts_with('"') {
            return Ok(quoted(text)?);
        }
        let n = name_len(text, true);
        if n == 0 {
            return Err("expected a metric name".into());
        }
        let (name, rest) = text.split_at(n);
        Ok((name.to_owned(), rest))
    }

    /// A line of OpenMetrics: exactly one space, no blank lines, no other comments.
    fn open_line(&mut self, line: &'a str) -> Result<(), String> {
        let Some(comment) = line.strip_prefix("# ") else {
            if line.starts_with('#') || line.is_empty() {
                return Err(format!("unexpected {line:?}"));
            }
            return self.sample(line);
        };
        let (word, rest) = comment.split_once(' ').ok_or("incomplete metadata line")?;
        let (name, rest) = self.family(rest)?;
        let value = rest.strip_prefix(' ').ok_or("metadata line without a value")?;
        match word {
            "HELP" => {
                if let Some(m) = self.describe(name) {
                    m.help = unescape_help(value);
                }
            }
            "TYPE" => {
                let kind = match value {
                    "counter" | "gauge" | "histogram" | "gaugehistogram" | "summary" | "info"
                    | "stateset" => MetricKind::parse(value),
                    "unknown" => MetricKind::Unknown,
                    other => return Err(format!("invalid metric type {other:?}")),
                };
                if let Some(m) = self.describe(name) {
                    m.kind = kind;
                }
            }
            "UNIT" => {
                let fits = value.is_empty()
                    || name.strip_suffix(value).is_some_and(|n| n.len() > 1 && n.ends_with('_'));
                if !fits {
                    return Err(format!("unit {value:?} is no suffix of metric {name:?}"));
                }
                if let Some(m) = self.describe(name) {
                    m.unit = value.to_owned();
                }
            }
            other => return Err(format!("unknown metadata {other:?}")),
        }
        Ok(())
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let free = !self.open;
        let n = name_len(line, true);
        let mut rest = line.get(n..).unwrap_or_default();
        let braces = skip(rest, free);
        let mut has_labels = false;
        if let Some(inner) = braces.strip_prefix('{') {
            let (pairs, tail) = label_set(inner, free)?;
            if n == 0 && !pairs.iter().any(|p| p.0 == METRIC_NAME) {
                return Err("series without a name".into());
            }
            rest = tail;
            has_labels = true;
        } else if n == 0 {
            return Err(format!("unexpected {:?}", line.chars().next().unwrap_or(' ')));
        }
        let series = line.get(..line.len() - rest.len()).unwrap_or_default().to_owned();
        let after = if free {
            let after = skip(rest, true);
            // The value may follow a brace without a space.
            if after.len() == rest.len() && !has_labels {
                return Err("expected a value after the metric".into());
            }
            after
        } else {
            rest.strip_prefix(' ').ok_or("expected one space before the value")?
        };
        let (numbers, exemplar) = match after.split_once(" # ") {
            Some((n, e)) if self.open => (n, Some(e)),
            _ => (after, None),
        };
        let (value, timestamp) = self.numbers(numbers)?;
        let exemplars = match exemplar {
            None => Vec::new(),
            Some(text) => vec![self.exemplar(text)?],
        };
        let value = SampleValue::Float(value);
        self.page.samples.push(Scraped { series, value, timestamp, exemplars });
        Ok(())
    }

    fn numbers(&self, text: &str) -> Result<(f64, Option<i64>), String> {
        let text = if self.open { text } else { text.trim_end_matches([' ', '\t']) };
        let (value, time) = match text.split_once(|c| c == ' ' || (!self.open && c == '\t')) {
            Some((v, t)) => {
                (v, Some(if self.open { t } else { t.trim_start_matches([' ', '\t']) }))
            }
            None => (text, None),
        };
        let value = float(value).ok_or_else(|| format!("{value:?} is no number"))?;
        // NaN stands for no value; the marker of staleness is Prometheus' own.
        let value = if value.is_nan() { f64::from_bits(0x7ff8_0000_0000_0001) } else { value };
        let Some(t) = time else { return Ok((value, None)) };
        let wrong = || format!("{t:?} is no timestamp");
        let ms = if self.open {
            let seconds = float(t).filter(|s| s.is_finite()).ok_or_else(wrong)?;
            (seconds * 1000.0) as i64
        } else {
            t.parse().map_err(|_| wrong())?
        };
        Ok((value, Some(ms)))
    }

    fn exemplar(&self, text: &str) -> Result<Exemplar, String> {
        let inner = text.strip_prefix('{').ok_or("exemplar without labels")?;
        let (pairs, tail) = label_set(inner, false)?;
        let numbers =
            tail.strip_prefix(' ').ok_or("expected one space before an exemplar's value")?;
        let (value, timestamp) = self.numbers(numbers)?;
        Ok(Exemplar { labels: Labels::from_pairs(pairs), value, timestamp_ms: timestamp })
    }
}

fn unescape_help(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('\\') => out.push('\\'),
            Some('"') => out.push('"'),
            Some(other) => {
                out.push('\\');
                out.push(other);
            }
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, text: &str) -> Result<Vec<(String, f64, Option<i64>)>, String> {
        let page = parse(format, text.as_bytes()).map_err(|e| e.to_string())?;
        page.samples
            .into_iter()
            .map(|s| {
                let SampleValue::Float(f) = s.value else { return Err("histogram".into()) };
                Ok((series_labels(&s.series)?.to_string(), f, s.timestamp))
            })
            .collect()
    }

    #[test]
    fn the_text_format_is_lenient() {
        let text = "# HELP a some\\nhelp\n# TYPE a counter\n# anything\n\na{ b = \"c\\\"d\", } 1 1500\n  a\t2\nno_labels 3\n{\"dotted.name\",\"l m\"=\"n\"} +Inf\n";
        let got = read(Format::Text, text).unwrap();
        assert_eq!(got[0], ("a{b=\"c\\\"d\"}".into(), 1.0, Some(1500)));
        assert_eq!(got[1], ("a".into(), 2.0, None));
        assert_eq!(got[3].1, f64::INFINITY);
        assert_eq!(got[3].0, "dotted.name{l m=\"n\"}");
        let page = parse(Format::Text, text.as_bytes()).unwrap();
        assert_eq!(
            (page.metadata[0].kind, page.metadata[0].help.as_str()),
            (MetricKind::Counter, "some\nhelp")
        );
        for bad in [
            "a",
            "a{b} 1",
            "a{b=\"c} 1",
            "0a 1",
            "a 1 x",
            "a 1_0",
            "# TYPE a nope",
            "a{b=\"1\"c=\"2\"} 1",
            "a 0x1",
        ] {
            assert!(read(Format::Text, bad).is_err(), "{bad}");
        }
        assert!(read(Format::Text, "a{b=\"1\",b=\"2\"} 1").is_err());
    }

    #[test]
    fn openmetrics_is_strict() {
        let good = "# TYPE a counter\n# UNIT a_seconds seconds\n# HELP a x\na_total{l=\"v\"} 5 1.5 # {trace_id=\"t\"} 0.5 2\n# EOF\n";
        let page = parse(Format::OpenMetrics, good.as_bytes()).unwrap();
        let s = &page.samples[0];
        assert_eq!(
            (s.timestamp, s.exemplars[0].value, s.exemplars[0].timestamp_ms),
            (Some(1500), 0.5, Some(2000))
        );
        assert_eq!(s.exemplars[0].labels.get("trace_id"), "t");
        for bad in [
            "a 1\n",
            "a 1\n\n# EOF\n",
            "a  1\n# EOF\n",
            "a 1 \n# EOF\n",
            "a 1\n# EOF\nb 1\n",
            "# FOO a x\n# EOF\n",
            "# UNIT a s\n# EOF\n",
            "a 1 # {} 1 \n# EOF\n",
            "a 1 #{} 1\n# EOF\n",
            "a 1 NaN\n# EOF\n",
            "#a\n# EOF\n",
            "# HELP a\n# EOF\n",
            "# TYPE a untyped\n# EOF\n",
            "a{a=\"1\",,b=\"2\"} 1\n# EOF\n",
            "a{a=\"1\"}1\n# EOF\n",
        ] {
            assert!(parse(Format::OpenMetrics, bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(Format::OpenMetrics, b"").is_ok());
    }
}
