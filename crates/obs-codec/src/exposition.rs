//! What exporters serve: Prometheus' text format 0.0.4, OpenMetrics 1.0 and the protobuf format.
//!
//! Judgements on invalid pages are Prometheus': what it takes although the standard forbids it is
//! taken here too.

use crate::DecodeError;
use obs_model::{
    Exemplar, Histogram, Labels, LabelsBuilder, METRIC_NAME, MetricKind, MetricMetadata, ResetHint,
    SampleValue,
};
use prost::Message;
use std::sync::Arc;

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
        Format::Protobuf => parse_protobuf(body),
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

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(message, optional, tag = "2")]
    exemplar: Option<WireExemplar>,
}

#[derive(Clone, PartialEq, Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct WireExemplar {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<LabelPair>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Time>,
}

#[derive(Clone, PartialEq, Message)]
struct Quantile {
    #[prost(double, tag = "1")]
    quantile: f64,
    #[prost(double, tag = "2")]
    value: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    sum: f64,
    #[prost(message, repeated, tag = "3")]
    quantiles: Vec<Quantile>,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    upper: f64,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<WireExemplar>,
    #[prost(double, tag = "4")]
    count_float: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, Message)]
struct WireHistogram {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    sum: f64,
    #[prost(message, repeated, tag = "3")]
    buckets: Vec<Bucket>,
    #[prost(double, tag = "4")]
    count_float: f64,
    #[prost(sint32, tag = "5")]
    schema: i32,
    #[prost(double, tag = "6")]
    zero_threshold: f64,
    #[prost(uint64, tag = "7")]
    zero_count: u64,
    #[prost(double, tag = "8")]
    zero_count_float: f64,
    #[prost(message, repeated, tag = "9")]
    negative_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "10")]
    negative_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "11")]
    negative_counts: Vec<f64>,
    #[prost(message, repeated, tag = "12")]
    positive_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "13")]
    positive_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "14")]
    positive_counts: Vec<f64>,
    #[prost(message, repeated, tag = "16")]
    exemplars: Vec<WireExemplar>,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "4")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "5")]
    untyped: Option<Number>,
    #[prost(int64, tag = "6")]
    timestamp_ms: i64,
    #[prost(message, optional, tag = "7")]
    histogram: Option<WireHistogram>,
}

#[derive(Clone, PartialEq, Message)]
struct Family {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    help: String,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(message, repeated, tag = "4")]
    metrics: Vec<Metric>,
    #[prost(string, tag = "5")]
    unit: String,
}

/// A series as text, as [`series_labels`] reads it.
fn series_text(name: &str, labels: &[LabelPair], extra: Option<(&str, &str)>) -> String {
    let escaped = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let mut out = format!("{{\"{}\"", escaped(name));
    let own = labels.iter().map(|l| (l.name.as_str(), l.value.as_str()));
    for (n, v) in own.chain(extra) {
        out.push_str(&format!(",\"{}\"=\"{}\"", escaped(n), escaped(v)));
    }
    out.push('}');
    out
}

/// Writes a bound as the text formats do: a whole number keeps its fraction.
fn bound(f: f64) -> String {
    if f.is_infinite() {
        return if f > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let text = if f != 0.0 && !(1e-4..1e21).contains(&f.abs()) {
        let e = format!("{f:e}");
        let (m, e) = e.split_once('e').unwrap_or((&e, "0"));
        let (sign, digits) = e.strip_prefix('-').map_or(('+', e), |d| ('-', d));
        format!("{m}e{sign}{digits:0>2}")
    } else {
        format!("{f}")
    };
    if text.contains(['.', 'e']) { text } else { text + ".0" }
}

impl WireExemplar {
    fn read(&self) -> Exemplar {
        let pairs = self.labels.iter().map(|l| (l.name.as_str(), l.value.as_str()));
        Exemplar {
            labels: Labels::from_pairs(pairs),
            value: self.value,
            timestamp_ms: self
                .timestamp
                .as_ref()
                .map(|t| t.seconds.saturating_mul(1000) + i64::from(t.nanos) / 1_000_000),
        }
    }
}

impl WireHistogram {
    /// Returns whether there are native buckets, perhaps none of them filled.
    fn is_native(&self) -> bool {
        !self.positive_spans.is_empty()
            || !self.negative_spans.is_empty()
            || self.zero_threshold > 0.0
            || self.zero_count > 0
            || self.zero_count_float > 0.0
    }

    fn native(&self, gauge: bool) -> Option<Histogram> {
        let side = |spans: &[Span], deltas: &[i64], counts: &[f64]| {
            let spans: Vec<(i32, u32)> = spans.iter().map(|s| (s.offset, s.length)).collect();
            crate::remote_write::buckets(&spans, deltas, counts)
        };
        Some(Histogram {
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: if self.zero_count_float > 0.0 {
                self.zero_count_float
            } else {
                self.zero_count as f64
            },
            count: if self.count_float > 0.0 { self.count_float } else { self.count as f64 },
            sum: self.sum,
            positive: side(&self.positive_spans, &self.positive_deltas, &self.positive_counts)?,
            negative: side(&self.negative_spans, &self.negative_deltas, &self.negative_counts)?,
            custom_bounds: Vec::new(),
            reset_hint: if gauge { ResetHint::Gauge } else { ResetHint::Unknown },
        })
    }
}

fn parse_protobuf(body: &[u8]) -> Result<Page, DecodeError> {
    let fail = |reason: String| DecodeError { format: "exposition protobuf", reason };
    let mut page = Page::default();
    let mut rest = body;
    while !rest.is_empty() {
        let family = Family::decode_length_delimited(&mut rest).map_err(|e| fail(e.to_string()))?;
        let kind = match family.kind {
            0 => MetricKind::Counter,
            1 => MetricKind::Gauge,
            2 => MetricKind::Summary,
            4 => MetricKind::Histogram,
            5 => MetricKind::GaugeHistogram,
            _ => MetricKind::Unknown,
        };
        let name = family.name.as_str();
        for m in &family.metrics {
            let timestamp = (m.timestamp_ms != 0).then_some(m.timestamp_ms);
            let mut add =
                |suffix: &str, extra: Option<(&str, &str)>, value: f64, e: Vec<Exemplar>| {
                    let series = series_text(&format!("{name}{suffix}"), &m.labels, extra);
                    let value = SampleValue::Float(value);
                    page.samples.push(Scraped { series, value, timestamp, exemplars: e });
                };
            let one = |n: &Number| n.exemplar.iter().map(WireExemplar::read).collect();
            for n in [&m.gauge, &m.counter, &m.untyped].into_iter().flatten() {
                add("", None, n.value, one(n));
            }
            if let Some(s) = &m.summary {
                for q in &s.quantiles {
                    add("", Some(("quantile", &bound(q.quantile))), q.value, Vec::new());
                }
                add("_sum", None, s.sum, Vec::new());
                add("_count", None, s.count as f64, Vec::new());
            }
            let Some(h) = &m.histogram else { continue };
            if h.is_native() {
                let value = h.native(kind == MetricKind::GaugeHistogram).ok_or_else(|| {
                    fail(format!("{name}: spans and buckets do not fit together"))
                })?;
                let mut exemplars: Vec<Exemplar> =
                    h.exemplars.iter().map(WireExemplar::read).collect();
                if exemplars.is_empty() {
                    let of_buckets = h.buckets.iter().filter_map(|b| b.exemplar.as_ref());
                    exemplars = of_buckets.map(WireExemplar::read).collect();
                }
                page.samples.push(Scraped {
                    series: series_text(name, &m.labels, None),
                    value: SampleValue::Histogram(Arc::new(value)),
                    timestamp,
                    exemplars,
                });
                continue;
            }
            let count = if h.count_float > 0.0 { h.count_float } else { h.count as f64 };
            let mut has_infinite = false;
            for b in &h.buckets {
                has_infinite |= b.upper == f64::INFINITY;
                let n = if b.count_float > 0.0 { b.count_float } else { b.count as f64 };
                let e = b.exemplar.iter().map(WireExemplar::read).collect();
                add("_bucket", Some(("le", &bound(b.upper))), n, e);
            }
            if !has_infinite {
                add("_bucket", Some(("le", "+Inf")), count, Vec::new());
            }
            add("_sum", None, h.sum, Vec::new());
            add("_count", None, count, Vec::new());
        }
        page.metadata.push(MetricMetadata {
            name: family.name,
            kind,
            help: family.help,
            unit: family.unit,
        });
    }
    Ok(page)
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

    #[test]
    fn protobuf_families_become_series() {
        let label = |n: &str, v: &str| LabelPair { name: n.into(), value: v.into() };
        let native = WireHistogram {
            count: 3,
            sum: 4.5,
            schema: 2,
            zero_threshold: 1e-3,
            positive_spans: vec![Span { offset: 1, length: 2 }],
            positive_deltas: vec![1, 1],
            ..WireHistogram::default()
        };
        let classic = WireHistogram {
            count: 2,
            sum: 1.0,
            buckets: vec![Bucket { count: 1, upper: 1.0, ..Bucket::default() }],
            ..WireHistogram::default()
        };
        let family = |name: &str, metric: Metric| Family {
            name: name.into(),
            kind: 4,
            metrics: vec![metric],
            ..Family::default()
        };
        let mut body = Vec::new();
        for f in [
            family(
                "n",
                Metric {
                    labels: vec![label("a", "b\"c")],
                    histogram: Some(native),
                    ..Metric::default()
                },
            ),
            family("c", Metric { histogram: Some(classic), ..Metric::default() }),
        ] {
            f.encode_length_delimited(&mut body).unwrap();
        }
        let page = parse(Format::Protobuf, &body).unwrap();
        let names: Vec<String> =
            page.samples.iter().map(|s| series_labels(&s.series).unwrap().to_string()).collect();
        assert_eq!(
            names,
            [
                "n{a=\"b\\\"c\"}",
                "c_bucket{le=\"1.0\"}",
                "c_bucket{le=\"+Inf\"}",
                "c_sum",
                "c_count"
            ]
        );
        let SampleValue::Histogram(h) = &page.samples[0].value else { panic!() };
        assert_eq!((h.count, h.positive.as_slice()), (3.0, [(1, 1.0), (2, 2.0)].as_slice()));
        for cut in 0..body.len() {
            let _ = parse(Format::Protobuf, &body[..cut]);
        }
    }
}
