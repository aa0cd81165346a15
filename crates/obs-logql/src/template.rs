//! Templates of `line_format` and `label_format`.

use crate::labels::Entry;
use crate::units;
use base64::Engine as _;
use chrono_tz::Tz;
use obs_model::{TimestampNs, go_regex};
use obs_template::{
    Functions, Limits, Template, Time, Value, Zoned, format_time, parse_time, parse_time_in,
};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use regex::Regex;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// A parsed template and its text.
#[derive(Debug, Clone)]
pub struct LineTemplate {
    text: String,
    template: Template,
}

const NAMES: &[&str] = &[
    "__line__",
    "__timestamp__",
    "ToLower",
    "ToUpper",
    "Replace",
    "Trim",
    "TrimLeft",
    "TrimRight",
    "TrimPrefix",
    "TrimSuffix",
    "TrimSpace",
    "regexReplaceAll",
    "regexReplaceAllLiteral",
    "count",
    "urldecode",
    "urlencode",
    "bytes",
    "duration",
    "duration_seconds",
    "unixEpochMillis",
    "unixEpochNanos",
    "toDateInZone",
    "unixToTime",
    "alignLeft",
    "alignRight",
    "lower",
    "upper",
    "title",
    "trunc",
    "substr",
    "contains",
    "hasPrefix",
    "hasSuffix",
    "indent",
    "nindent",
    "replace",
    "repeat",
    "trim",
    "trimAll",
    "trimSuffix",
    "trimPrefix",
    "int",
    "float64",
    "add",
    "sub",
    "mul",
    "div",
    "mod",
    "addf",
    "subf",
    "mulf",
    "divf",
    "max",
    "min",
    "maxf",
    "minf",
    "ceil",
    "floor",
    "round",
    "fromJson",
    "date",
    "toDate",
    "now",
    "unixEpoch",
    "b64enc",
    "b64dec",
    "default",
];

impl LineTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// In the words of Go's template package.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_function = |name: &str| NAMES.contains(&name);
        let template = Template::parse("line", text, &is_function).map_err(|e| e.to_string())?;
        Ok(Self { text: text.to_owned(), template })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Runs the template on a record.
    ///
    /// # Errors
    /// When a function fails or a limit is reached.
    pub fn run(&self, labels: &Value, line: &str, at: TimestampNs) -> Result<String, String> {
        let functions = Record { line, at };
        let out = self.template.run(labels, &functions, Limits::default());
        out.map_err(|e| e.to_string())
    }
}

/// Returns a record's labels as a template's data.
pub(crate) fn data(entry: &Entry<'_>) -> Value {
    Value::texts(entry.all())
}

struct Record<'a> {
    line: &'a str,
    at: TimestampNs,
}

thread_local! {
    /// Patterns stand in templates as texts: each is compiled once a thread, as long as they are few.
    static REGEXES: RefCell<HashMap<String, Regex>> = RefCell::default();
}

fn regex(pattern: &str) -> Result<Regex, String> {
    const KEPT: usize = 64;
    REGEXES.with_borrow_mut(|cache| {
        if let Some(r) = cache.get(pattern) {
            return Ok(r.clone());
        }
        let r = go_regex(pattern).map_err(|e| format!("error parsing regexp: {e}"))?;
        if cache.len() >= KEPT {
            cache.clear();
        }
        cache.insert(pattern.to_owned(), r.clone());
        Ok(r)
    })
}

/// The arguments of a call.
struct Args<'a>(&'a [Value]);

impl Args<'_> {
    fn at(&self, i: usize) -> Result<&Value, String> {
        let n = self.0.len();
        self.0
            .get(i)
            .ok_or_else(|| format!("wrong number of args: want at least {} got {n}", i + 1))
    }

    fn text(&self, i: usize) -> Result<&str, String> {
        let v = self.at(i)?;
        v.as_str()
            .ok_or_else(|| format!("wrong type for value; expected string; got {}", v.type_name()))
    }

    /// A number as sprig casts: what is none is zero.
    fn float(&self, i: usize) -> Result<f64, String> {
        Ok(self.at(i)?.to_float().unwrap_or(0.0))
    }

    fn int(&self, i: usize) -> Result<i64, String> {
        Ok(match self.at(i)? {
            Value::Int(n) => *n,
            Value::Bool(b) => i64::from(*b),
            Value::Str(s) => s.trim().parse().unwrap_or(0),
            other => other.to_float().unwrap_or(0.0) as i64,
        })
    }

    fn time(&self, i: usize) -> Result<TimestampNs, String> {
        match self.at(i)? {
            Value::Object(o) => match o.call("UnixNano", &[]) {
                Some(Ok(Value::Int(ns))) => Ok(TimestampNs::from_nanos(ns)),
                _ => Err("wrong type for value; expected time.Time".into()),
            },
            Value::Int(s) => Ok(TimestampNs::from_nanos(s.saturating_mul(1_000_000_000))),
            other => {
                Err(format!("wrong type for value; expected time.Time; got {}", other.type_name()))
            }
        }
    }

    fn fold_int(&self, f: impl Fn(i64, i64) -> i64) -> Result<Value, String> {
        let rest = 1..self.0.len();
        rest.map(|i| self.int(i)).try_fold(self.int(0)?, |a, b| Ok(f(a, b?))).map(Value::Int)
    }

    fn fold_float(&self, f: impl Fn(f64, f64) -> f64) -> Result<Value, String> {
        let rest = 1..self.0.len();
        rest.map(|i| self.float(i)).try_fold(self.float(0)?, |a, b| Ok(f(a, b?))).map(Value::Float)
    }
}

fn chars(s: &str, from: usize, to: usize) -> String {
    s.chars().skip(from).take(to.saturating_sub(from)).collect()
}

/// Pads with spaces or cuts, at the end or at the beginning.
fn align(count: i64, s: &str, left: bool) -> String {
    let (len, want) =
        (s.chars().count(), usize::try_from(count).unwrap_or(usize::MAX).min(1 << 16));
    if count < 0 || len == want {
        return s.to_owned();
    }
    let pad = " ".repeat(want.saturating_sub(len));
    match (left, len > want) {
        (true, true) => chars(s, 0, want),
        (false, true) => chars(s, len - want, len),
        (true, false) => format!("{s}{pad}"),
        (false, false) => format!("{pad}{s}"),
    }
}

fn indent(count: i64, s: &str) -> String {
    let pad = " ".repeat(usize::try_from(count).unwrap_or(0).min(1 << 10));
    format!("{pad}{}", s.replace('\n', &format!("\n{pad}")))
}

fn json_value(v: serde_json::Value) -> Value {
    match v {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(b) => Value::Bool(b),
        // As Go decodes into `any`.
        serde_json::Value::Number(n) => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(s) => s.into(),
        serde_json::Value::Array(list) => {
            list.into_iter().map(json_value).collect::<Vec<_>>().into()
        }
        serde_json::Value::Object(map) => {
            Value::map(map.into_iter().map(|(k, v)| (k, json_value(v))))
        }
    }
}

fn title(s: &str) -> String {
    let mut start = true;
    let raise = |c: char| {
        let out: String = if start { c.to_uppercase().collect() } else { c.into() };
        start = !(c.is_alphanumeric() || c == '_' || c == '\'');
        out
    };
    s.chars().map(raise).collect()
}

fn unix_to_time(text: &str) -> Result<TimestampNs, String> {
    let wrong = || format!("unable to parse time '{text}'");
    let n: i64 = text.parse().map_err(|_| wrong())?;
    let unit = match text.len() {
        5 => 86_400_000_000_000,
        10 => 1_000_000_000,
        13 => 1_000_000,
        16 => 1000,
        19 => 1,
        _ => return Err(format!("unable to parse time '{text}': unknown unit of time")),
    };
    n.checked_mul(unit).map(TimestampNs::from_nanos).ok_or_else(wrong)
}

fn round(v: f64, digits: i64, half: f64) -> f64 {
    let power = 10_f64.powi(i32::try_from(digits).unwrap_or(0));
    let scaled = v * power;
    let part = scaled.abs().fract();
    let up = if part >= half { scaled.abs().floor() + 1.0 } else { scaled.abs().floor() };
    up.copysign(scaled) / power
}

impl Functions for Record<'_> {
    fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value, String>> {
        let a = Args(args);
        let run = || self.known(name, &a);
        NAMES.contains(&name).then(run)
    }
}

impl Record<'_> {
    fn known(&self, name: &str, a: &Args<'_>) -> Result<Value, String> {
        let epoch = |unit: i64| Ok(Value::from(a.time(0)?.nanos().div_euclid(unit).to_string()));
        match name {
            "__line__" => Ok(self.line.into()),
            "__timestamp__" => Ok(Time(self.at).into()),
            "now" => Ok(Time(TimestampNs::from_nanos(now_ns())).into()),
            "date" => match a.at(1)? {
                // A time knows where it is.
                Value::Object(o) => {
                    let wrong = || "wrong type for value; expected time.Time".to_owned();
                    o.call("Format", &[a.text(0)?.into()]).ok_or_else(wrong)?
                }
                _ => Ok(format_time(a.time(1)?, a.text(0)?).into()),
            },
            "toDate" => Ok(Time(parse_time(a.text(1)?, a.text(0)?).unwrap_or(zero_time())).into()),
            "toDateInZone" => {
                // One that nobody knows is UTC.
                let zone = a.text(1)?.parse().unwrap_or(Tz::UTC);
                let at = parse_time_in(a.text(2)?, a.text(0)?, zone).unwrap_or(zero_time());
                Ok(Value::Object(Arc::new(Zoned(at, zone))))
            }
            "unixToTime" => Ok(Time(unix_to_time(a.text(0)?)?).into()),
            "unixEpoch" => epoch(1_000_000_000),
            "unixEpochMillis" => epoch(1_000_000),
            "unixEpochNanos" => epoch(1),
            "bytes" => {
                let text = a.text(0)?;
                let wrong = || format!("strconv.ParseFloat: parsing {text:?}: invalid syntax");
                units::bytes(text).map(Value::Float).ok_or_else(wrong)
            }
            "duration" | "duration_seconds" => {
                units::go_duration_ns(a.text(0)?).map(|ns| Value::Float(ns / 1e9))
            }
            "fromJson" => {
                let parsed = serde_json::from_str(a.text(0)?);
                Ok(parsed.map_or(Value::Nil, json_value))
            }
            "default" => {
                let given = a.at(1).ok().filter(|v| v.is_true()).cloned();
                given.map_or_else(|| a.at(0).cloned(), Ok)
            }
            _ => match numbers(name, a) {
                Some(out) => out,
                None => texts(name, a),
            },
        }
    }
}

fn zero_time() -> TimestampNs {
    TimestampNs::from_nanos(0)
}

#[allow(clippy::disallowed_methods, reason = "the function `now` of templates is the wall clock")]
fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

fn numbers(name: &str, a: &Args<'_>) -> Option<Result<Value, String>> {
    let by = |f: fn(i64, i64) -> Option<i64>| {
        let divided = f(a.int(0)?, a.int(1)?);
        divided.map(Value::Int).ok_or_else(|| "runtime error: integer divide by zero".into())
    };
    Some(match name {
        "int" => a.int(0).map(Value::Int),
        "float64" => a.float(0).map(Value::Float),
        "add" => a.fold_int(i64::wrapping_add),
        "sub" => a.fold_int(i64::wrapping_sub),
        "mul" => a.fold_int(i64::wrapping_mul),
        "div" => by(i64::checked_div),
        "mod" => by(i64::checked_rem),
        "max" => a.fold_int(i64::max),
        "min" => a.fold_int(i64::min),
        "addf" => a.fold_float(|x, y| x + y),
        "subf" => a.fold_float(|x, y| x - y),
        "mulf" => a.fold_float(|x, y| x * y),
        "divf" => a.fold_float(|x, y| x / y),
        "maxf" => a.fold_float(f64::max),
        "minf" => a.fold_float(f64::min),
        "ceil" => a.float(0).map(|f| Value::Float(f.ceil())),
        "floor" => a.float(0).map(|f| Value::Float(f.floor())),
        "round" => (|| {
            let half = if a.0.len() > 2 { a.float(2)? } else { 0.5 };
            Ok(Value::Float(round(a.float(0)?, a.int(1)?, half)))
        })(),
        _ => return None,
    })
}

fn texts(name: &str, a: &Args<'_>) -> Result<Value, String> {
    let text: String = match name {
        "ToLower" | "lower" => a.text(0)?.to_lowercase(),
        "ToUpper" | "upper" => a.text(0)?.to_uppercase(),
        "title" => title(a.text(0)?),
        "Replace" => {
            let (s, old, new) = (a.text(0)?, a.text(1)?, a.text(2)?);
            match usize::try_from(a.int(3)?) {
                Ok(n) => s.replacen(old, new, n),
                Err(_) => s.replace(old, new),
            }
        }
        "replace" => a.text(2)?.replace(a.text(0)?, a.text(1)?),
        "Trim" => in_set(a.text(0)?, a.text(1)?, true, true).into(),
        "TrimLeft" => in_set(a.text(0)?, a.text(1)?, true, false).into(),
        "TrimRight" => in_set(a.text(0)?, a.text(1)?, false, true).into(),
        "trimAll" => in_set(a.text(1)?, a.text(0)?, true, true).into(),
        "TrimPrefix" => a.text(0)?.strip_prefix(a.text(1)?).unwrap_or(a.text(0)?).into(),
        "TrimSuffix" => a.text(0)?.strip_suffix(a.text(1)?).unwrap_or(a.text(0)?).into(),
        "trimPrefix" => a.text(1)?.strip_prefix(a.text(0)?).unwrap_or(a.text(1)?).into(),
        "trimSuffix" => a.text(1)?.strip_suffix(a.text(0)?).unwrap_or(a.text(1)?).into(),
        "TrimSpace" | "trim" => a.text(0)?.trim().into(),
        "trunc" => {
            let (n, s) = (a.int(0)?, a.text(1)?);
            let len = s.chars().count();
            match usize::try_from(n) {
                Ok(n) => chars(s, 0, n.min(len)),
                Err(_) => chars(s, len.saturating_sub(n.unsigned_abs() as usize), len),
            }
        }
        "substr" => {
            let s = a.text(2)?;
            let len = s.chars().count();
            let end = usize::try_from(a.int(1)?).unwrap_or(len).min(len);
            chars(s, usize::try_from(a.int(0)?).unwrap_or(0), end)
        }
        "contains" => return Ok(a.text(1)?.contains(a.text(0)?).into()),
        "hasPrefix" => return Ok(a.text(1)?.starts_with(a.text(0)?).into()),
        "hasSuffix" => return Ok(a.text(1)?.ends_with(a.text(0)?).into()),
        "indent" => indent(a.int(0)?, a.text(1)?),
        "nindent" => format!("\n{}", indent(a.int(0)?, a.text(1)?)),
        "repeat" => {
            let (n, s) = (usize::try_from(a.int(0)?).unwrap_or(0), a.text(1)?);
            if n.saturating_mul(s.len()) > Limits::default().output_bytes {
                return Err("the result of repeat is too long".into());
            }
            s.repeat(n)
        }
        "regexReplaceAll" => {
            let r = regex(a.text(0)?)?;
            r.replace_all(a.text(1)?, a.text(2)?).into()
        }
        "regexReplaceAllLiteral" => {
            regex(a.text(0)?)?.replace_all(a.text(1)?, regex::NoExpand(a.text(2)?)).into()
        }
        "count" => {
            let n = regex(a.text(0)?)?.find_iter(a.text(1)?).count();
            return Ok(Value::Int(n as i64));
        }
        "urlencode" => url_encode(a.text(0)?),
        "urldecode" => {
            let plus = a.text(0)?.replace('+', " ");
            let decoded = percent_decode_str(&plus).decode_utf8();
            decoded.map_err(|e| e.to_string())?.into()
        }
        "b64enc" => base64::prelude::BASE64_STANDARD.encode(a.text(0)?),
        "b64dec" => {
            let bytes = base64::prelude::BASE64_STANDARD.decode(a.text(0)?);
            // sprig gives the error's text as the value.
            bytes.map_or_else(|e| e.to_string(), |b| String::from_utf8_lossy(&b).into_owned())
        }
        "alignLeft" => align(a.int(0)?, a.text(1)?, true),
        "alignRight" => align(a.int(0)?, a.text(1)?, false),
        other => return Err(format!("function {other:?} not defined")),
    };
    Ok(text.into())
}

fn in_set<'s>(s: &'s str, set: &str, start: bool, end: bool) -> &'s str {
    let is_in = |c: char| set.contains(c);
    let s = if start { s.trim_start_matches(is_in) } else { s };
    if end { s.trim_end_matches(is_in) } else { s }
}

fn url_encode(text: &str) -> String {
    const KEPT: &percent_encoding::AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, KEPT).to_string().replace("%20", "+")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(template: &str) -> Result<String, String> {
        let labels = Value::texts([
            ("foo", "Hello World"),
            ("n", "12.5"),
            ("json", r#"{"a":[1,2],"b":"x"}"#),
            ("d", "1h1m"),
        ]);
        let at = TimestampNs::from_nanos(1_679_580_005_000_000_000);
        LineTemplate::new(template)?.run(&labels, "the line", at)
    }

    #[test]
    fn functions_of_the_reference() {
        for (template, want) in [
            ("{{.foo}} {{.absent}}!", "Hello World !"),
            ("{{__line__}}", "the line"),
            (r#"{{ __timestamp__ | date "2006-01-02" }}"#, "2023-03-23"),
            ("{{ unixEpoch __timestamp__ }}", "1679580005"),
            (
                "{{ .foo | lower }} {{ ToUpper .foo }} {{ title \"a b\" }}",
                "hello world HELLO WORLD A B",
            ),
            ("{{ trunc 5 .foo }} {{ trunc -5 .foo }} {{ substr 1 3 .foo }}", "Hello World el"),
            (
                "{{ replace \"World\" \"you\" .foo }} {{ Replace .foo \"o\" \"0\" 1 }}",
                "Hello you Hell0 World",
            ),
            (
                "{{ trimAll \"Hd\" .foo }}|{{ trimPrefix \"Hello\" .foo }}|{{ TrimSuffix .foo \"ld\" }}",
                "ello Worl| World|Hello Wor",
            ),
            (
                "{{ alignLeft 3 .foo }}|{{ alignRight 3 .foo }}|{{ alignLeft 12 .foo }}|",
                "Hel|rld|Hello World |",
            ),
            (
                "{{ add 1 2 3 }} {{ sub 5 2 }} {{ mul 2 3 }} {{ div 7 2 }} {{ mod 7 2 }}",
                "6 3 6 3 1",
            ),
            (
                "{{ addf .n 0.5 }} {{ divf 1 4 }} {{ maxf 1 2.5 }} {{ ceil .n }} {{ floor .n }} {{ round 1.2345 2 }}",
                "13 0.25 2.5 13 12 1.23",
            ),
            ("{{ int .n }} {{ int \"7\" }} {{ float64 \"1.5\" }}", "0 7 1.5"),
            (
                "{{ (fromJson .json).b }}{{ range $i, $x := (fromJson .json).a }} {{$x}}{{ end }}",
                "x 1 2",
            ),
            (
                "{{ regexReplaceAll \"(l+)\" .foo \"<${1}>\" }} {{ regexReplaceAllLiteral \"l+\" .foo \"$1\" }}",
                "He<ll>o Wor<l>d He$1o Wor$1d",
            ),
            ("{{ count \"o\" .foo }}", "2"),
            ("{{ urlencode \"a b&ü\" }} {{ urldecode \"a+b%26\" }}", "a+b%26%C3%BC a b&"),
            ("{{ b64enc \"hi\" }} {{ b64dec \"aGk=\" }}", "aGk= hi"),
            (
                "{{ .absent | default \"none\" }} {{ bytes \"2KB\" }} {{ duration .d }}",
                "none 2000 3660",
            ),
            ("{{ indent 2 \"a\\nb\" }}", "  a\n  b"),
            (
                "{{ if hasPrefix \"Hello\" .foo }}yes{{ else }}no{{ end }} {{ contains \"x\" .foo }}",
                "yes false",
            ),
            ("{{ (unixToTime \"1679580005\").Unix }}", "1679580005"),
            (
                "{{ printf \"%q %5.1f\" .foo (float64 .n) }} {{ len .foo }}",
                "\"Hello World\"  12.5 11",
            ),
            ("{{ (toDate \"2006-01-02\" \"2023-03-23\").Unix }}", "1679529600"),
            (
                "{{ $t := toDateInZone \"2006-01-02 15h\" \"Europe/Paris\" \"2023-03-23 15h\" }}{{ $t | unixEpoch }} {{ $t }} {{ date \"15:04 MST\" $t }}",
                "1679580000 2023-03-23 15:00:00 +0100 CET 15:00 CET",
            ),
            (
                "{{ toDateInZone \"2006-01-02 -07\" \"Asia/Tokyo\" \"2023-03-23 +00\" | unixEpoch }} {{ toDateInZone \"2006-01-02\" \"Mars/Base\" \"2023-03-23\" | unixEpoch }}",
                "1679529600 1679529600",
            ),
        ] {
            assert_eq!(run(template).as_deref(), Ok(want), "{template}");
        }
    }

    #[test]
    fn faults() {
        assert!(run("{{ .foo }").is_err());
        assert!(run("{{ nope .foo }}").is_err());
        assert!(run("{{ div 1 0 }}").unwrap_err().contains("divide by zero"));
        assert!(run("{{ repeat 99999999 \"abc\" }}").is_err());
        assert!(run("{{ regexReplaceAll \"(\" .foo \"\" }}").is_err());
        assert!(run("{{ duration \"x\" }}").is_err());
    }
}
