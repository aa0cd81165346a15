//! The functions of Prometheus' alert templates.

use crate::exec::Functions;
use crate::format::{escape_url, format_float_g};
use crate::value::Value;
use obs_model::civil_from_days;
use std::collections::BTreeMap;

/// One sample of a query's result.
#[derive(Debug, Clone, PartialEq)]
pub struct QuerySample {
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

type Query<'a> = &'a dyn Fn(&str) -> Result<Vec<QuerySample>, String>;

/// What the functions know of their surroundings.
pub struct Context<'a> {
    /// Evaluates an instant query at the time of the alert.
    pub query: Query<'a>,
    pub external_url: &'a str,
    /// Seconds since 1970.
    pub now: f64,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("external_url", &self.external_url).finish_non_exhaustive()
    }
}

/// Names of the functions, for the parser.
pub const NAMES: [&str; 30] = [
    "query",
    "first",
    "label",
    "value",
    "strvalue",
    "args",
    "reReplaceAll",
    "safeHtml",
    "match",
    "title",
    "toUpper",
    "toLower",
    "graphLink",
    "tableLink",
    "sortByLabel",
    "stripPort",
    "stripDomain",
    "humanize",
    "humanize1024",
    "humanizeDuration",
    "humanizePercentage",
    "humanizeTimestamp",
    "toTime",
    "toDuration",
    "now",
    "pathPrefix",
    "externalURL",
    "parseDuration",
    "tmpl",
    "urlQueryEscape",
];

/// Returns whether a name is one of these functions.
pub fn is_function(name: &str) -> bool {
    NAMES.contains(&name)
}

fn sample_value(s: QuerySample) -> Value {
    Value::map([("Labels", Value::texts(s.labels)), ("Value", Value::Float(s.value))])
}

fn part(v: &Value, name: &str) -> Option<Value> {
    if let Value::Map(m) = v { m.get(name).cloned() } else { None }
}

fn text(args: &[Value], i: usize) -> Result<&str, String> {
    match args.get(i) {
        Some(Value::Str(s)) => Ok(s),
        Some(other) => {
            Err(format!("wrong type for value; expected string; got {}", other.type_name()))
        }
        None => Err(format!("wrong number of args: want at least {} got {}", i + 1, args.len())),
    }
}

fn number(args: &[Value]) -> Result<f64, String> {
    args.first().ok_or("wrong number of args: want 1 got 0")?.to_float()
}

/// `%.4g`.
fn four(f: f64) -> String {
    crate::format::printf("%.4g", &[Value::Float(f)])
}

/// With a metric prefix: `1.235k`.
fn humanize(v: f64) -> String {
    if v == 0.0 || v.is_nan() || v.is_infinite() {
        return four(v);
    }
    let mut v = v;
    let mut prefix = "";
    if v.abs() >= 1.0 {
        for p in ["k", "M", "G", "T", "P", "E", "Z", "Y"] {
            if v.abs() < 1000.0 {
                break;
            }
            prefix = p;
            v /= 1000.0;
        }
    } else {
        for p in ["m", "u", "n", "p", "f", "a", "z", "y"] {
            if v.abs() >= 1.0 {
                break;
            }
            prefix = p;
            v *= 1000.0;
        }
    }
    four(v) + prefix
}

fn humanize_1024(v: f64) -> String {
    if v.abs() <= 1.0 || v.is_nan() || v.is_infinite() {
        return four(v);
    }
    let mut v = v;
    let mut prefix = "";
    for p in ["ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"] {
        if v.abs() < 1024.0 {
            break;
        }
        prefix = p;
        v /= 1024.0;
    }
    four(v) + prefix
}

/// `1d 10h 17m 36s`, `1.235ms`.
fn humanize_duration(v: f64) -> String {
    if v.is_nan() || v.is_infinite() {
        return four(v);
    }
    if v == 0.0 {
        return "0s".into();
    }
    if v.abs() >= 1.0 {
        let sign = if v < 0.0 { "-" } else { "" };
        let whole = v.abs() as i64;
        let (seconds, minutes) = (whole % 60, whole / 60 % 60);
        let (hours, days) = (whole / 3600 % 24, whole / 86_400);
        if days != 0 {
            return format!("{sign}{days}d {hours}h {minutes}m {seconds}s");
        }
        if hours != 0 {
            return format!("{sign}{hours}h {minutes}m {seconds}s");
        }
        if minutes != 0 {
            return format!("{sign}{minutes}m {seconds}s");
        }
        return four(v) + "s";
    }
    let mut v = v;
    let mut prefix = "";
    for p in ["m", "u", "n", "p", "f", "a", "z", "y"] {
        if v.abs() >= 1.0 {
            break;
        }
        prefix = p;
        v *= 1000.0;
    }
    four(v) + prefix + "s"
}

/// `2006-01-02 15:04:05.999999999 +0000 UTC`, as Go prints a time.
fn timestamp(v: f64) -> Result<String, String> {
    if v.is_nan() || v.is_infinite() {
        return Ok(four(v));
    }
    if v.abs() > 9_223_372_036.0 {
        return Err(format!(
            "{} cannot be represented as a nanoseconds timestamp since it overflows int64",
            format_float_g(v)
        ));
    }
    let millis = ((v * 1e9) as i64).div_euclid(1_000_000);
    let (seconds, fraction) = (millis.div_euclid(1000), millis.rem_euclid(1000));
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let mut out = format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    );
    if fraction != 0 {
        out.push_str(format!(".{fraction:03}").trim_end_matches('0'));
    }
    out.push_str(" +0000 UTC");
    Ok(out)
}

/// Parses `1h30m` into seconds.
fn parse_duration(s: &str) -> Result<f64, String> {
    let bad = || format!("not a valid duration string: {s:?}");
    let mut rest = s;
    let mut total = 0.0;
    if rest.is_empty() {
        return Err("empty duration string".into());
    }
    while !rest.is_empty() {
        let n = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (digits, tail) = rest.split_at(n);
        let n = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(n);
        let unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            "y" => 31_536_000.0,
            _ => return Err(bad()),
        };
        total += digits.parse::<f64>().map_err(|_| bad())? * unit;
        rest = tail;
    }
    Ok(total)
}

fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut starts = true;
    for c in s.chars() {
        if starts {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        starts = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

fn regex_of(pattern: &str) -> Result<regex::Regex, String> {
    obs_model::go_regex(pattern).map_err(|e| format!("error parsing regexp: {e}"))
}

fn samples(v: &Value) -> Result<Vec<Value>, String> {
    match v {
        Value::List(l) => Ok(l.to_vec()),
        other => Err(format!("expected a query's result; got {}", other.type_name())),
    }
}

/// Path of an expression in the page.
fn link(expr: &str, tab: u8) -> String {
    format!("/graph?g0.expr={}&g0.tab={tab}", escape_url(expr))
}

fn host_and_port(s: &str) -> Option<(&str, &str)> {
    let (host, port) = s.rsplit_once(':')?;
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match inner {
        Some(h) => Some((h, port)),
        None if host.contains(':') => None,
        None => Some((host, port)),
    }
}

impl Functions for Context<'_> {
    fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value, String>> {
        self.apply(name, args)
    }
}

impl Context<'_> {
    fn apply(&self, name: &str, args: &[Value]) -> Option<Result<Value, String>> {
        let of_number = |f: fn(f64) -> String| number(args).map(|v| Value::from(f(v)));
        let of_text = |f: fn(&str) -> String| text(args, 0).map(|s| Value::from(f(s)));
        Some(match name {
            "query" => text(args, 0).and_then(|q| {
                let list = (self.query)(q)?;
                Ok(Value::from(list.into_iter().map(sample_value).collect::<Vec<_>>()))
            }),
            "first" => {
                args.first().ok_or("wrong number of args".into()).and_then(samples).and_then(|l| {
                    l.first().cloned().ok_or("first() called on vector with no elements".into())
                })
            }
            "label" => {
                text(args, 0).and_then(|l| match args.get(1).and_then(|s| part(s, "Labels")) {
                    Some(Value::Texts(m)) => {
                        Ok(m.get(l).map(String::as_str).unwrap_or_default().into())
                    }
                    _ => Err("label needs a sample".into()),
                })
            }
            "value" => args
                .first()
                .and_then(|s| part(s, "Value"))
                .ok_or_else(|| "value needs a sample".into()),
            "strvalue" => match args.first().and_then(|s| part(s, "Labels")) {
                Some(Value::Texts(m)) => {
                    Ok(m.get("__value__").map(String::as_str).unwrap_or_default().into())
                }
                _ => Err("strvalue needs a sample".into()),
            },
            "args" => {
                Ok(Value::map(args.iter().enumerate().map(|(i, v)| (format!("arg{i}"), v.clone()))))
            }
            "reReplaceAll" => (|| {
                let (pattern, replacement, s) = (text(args, 0)?, text(args, 1)?, text(args, 2)?);
                Ok(regex_of(pattern)?.replace_all(s, replacement).into_owned().into())
            })(),
            "match" => (|| Ok(Value::Bool(regex_of(text(args, 0)?)?.is_match(text(args, 1)?))))(),
            "safeHtml" => of_text(str::to_owned),
            "title" => of_text(title),
            "toUpper" => of_text(str::to_uppercase),
            "toLower" => of_text(str::to_lowercase),
            "graphLink" => of_text(|e| link(e, 0)),
            "tableLink" => of_text(|e| link(e, 1)),
            "urlQueryEscape" => of_text(escape_url),
            "sortByLabel" => (|| {
                let label = text(args, 0)?;
                let mut list = samples(args.get(1).ok_or("wrong number of args")?)?;
                list.sort_by_key(|s| match part(s, "Labels") {
                    Some(Value::Texts(m)) => m.get(label).cloned().unwrap_or_default(),
                    _ => String::new(),
                });
                Ok(list.into())
            })(),
            "stripPort" => of_text(|s| host_and_port(s).map_or(s, |(h, _)| h).to_owned()),
            "stripDomain" => of_text(|s| {
                let (host, port) = match host_and_port(s) {
                    Some((h, p)) => (h, Some(p)),
                    None => (s, None),
                };
                if host.parse::<std::net::IpAddr>().is_ok() {
                    return s.to_owned();
                }
                let short = host.split('.').next().unwrap_or(host);
                port.map_or_else(|| short.to_owned(), |p| format!("{short}:{p}"))
            }),
            "humanize" => of_number(humanize),
            "humanize1024" => of_number(humanize_1024),
            "humanizeDuration" => of_number(humanize_duration),
            "humanizePercentage" => of_number(|v| four(v * 100.0) + "%"),
            "humanizeTimestamp" => number(args).and_then(timestamp).map(Value::from),
            "toTime" => number(args).and_then(timestamp).map(Value::from),
            "toDuration" => number(args).map(|v| Value::from(go_duration(v))),
            "now" => Ok(Value::Float(self.now)),
            "pathPrefix" => {
                let after = self.external_url.split_once("://").map_or("", |(_, r)| r);
                let path = after.find('/').and_then(|i| after.get(i..)).unwrap_or_default();
                Ok(path.trim_end_matches('/').into())
            }
            "externalURL" => Ok(self.external_url.into()),
            "parseDuration" => text(args, 0).and_then(parse_duration).map(Value::Float),
            _ => return None,
        })
    }
}

/// Seconds as Go prints a `time.Duration`.
fn go_duration(seconds: f64) -> String {
    let nanos = (seconds * 1e9) as i64;
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let with = |unit: u64, name: &str| {
        let text = format!("{}.{:09}", n / unit, (n % unit) * (1_000_000_000 / unit));
        format!("{sign}{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    if n < 1000 {
        return format!("{sign}{n}ns");
    }
    if n < 1_000_000 {
        return with(1000, "µs");
    }
    if n < 1_000_000_000 {
        return with(1_000_000, "ms");
    }
    let (minutes, rest) = (n / 60_000_000_000, n % 60_000_000_000);
    let text = format!("{}.{:09}", rest / 1_000_000_000, rest % 1_000_000_000);
    let s = text.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{s}s"),
        (0, m) => format!("{sign}{m}m{s}s"),
        (h, m) => format!("{sign}{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, Template};

    fn expand(template: &str) -> Result<String, String> {
        let sample = |instance: &str, value| QuerySample {
            labels: [("instance".to_owned(), instance.to_owned())].into(),
            value,
        };
        let query = move |q: &str| match q {
            "metric" => Ok(vec![sample("b:9090", 21.0), sample("a", 11.0)]),
            "none" => Ok(Vec::new()),
            other => Err(format!("cannot evaluate {other}")),
        };
        let context =
            Context { query: &query, external_url: "http://x:9090/path/", now: 1_600_000_000.0 };
        let dot = Value::map([
            ("Labels", Value::texts([("job", "api"), ("le", "0.5")])),
            ("Value", Value::Float(1234.5)),
        ]);
        let head = "{{$labels := .Labels}}{{$value := .Value}}";
        Template::parse("t", &format!("{head}{template}"), &is_function)
            .and_then(|t| t.run(&dot, &context, Limits::default()))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn templates_of_rule_files_expand_as_in_prometheus() {
        let cases = [
            ("plain", "plain"),
            ("{{ $labels.job }} is {{ $value }}", "api is 1234.5"),
            ("{{ $labels.none }}|", "|"),
            ("{{ $value | humanize }}", "1.234k"),
            ("{{ printf \"%.1f%%\" $value }}", "1234.5%"),
            ("{{ 0.123 | humanizePercentage }}", "12.3%"),
            ("{{ \"0.25\" | humanizePercentage }}", "25%"),
            ("{{ humanize1024 1048576.0 }}", "1Mi"),
            ("{{ humanizeDuration 93784 }}", "1d 2h 3m 4s"),
            ("{{ humanizeDuration .Value }}", "20m 34s"),
            ("{{ humanizeDuration 0.0012 }}", "1.2ms"),
            ("{{ humanizeTimestamp 1435065584.128 }}", "2015-06-23 13:19:44.128 +0000 UTC"),
            (
                "{{ range query \"metric\" | sortByLabel \"instance\" }}{{.Labels.instance}}={{.Value}};{{end}}",
                "a=11;b:9090=21;",
            ),
            ("{{ with query \"none\" }}some{{ else }}no{{ end }}", "no"),
            ("{{ query \"metric\" | first | value }}", "21"),
            ("{{ query \"metric\" | first | label \"instance\" | stripPort }}", "b"),
            (
                "{{ if gt $value 1000.0 }}big{{ else if gt $value 10.0 }}mid{{ else }}small{{ end }}",
                "big",
            ),
            ("{{- /* nothing */ -}}  a {{- \" b\" }}", "a b"),
            (
                "{{ range $i, $x := (query \"metric\") }}{{ if $i }},{{ end }}{{ $x.Value }}{{ end }}",
                "21,11",
            ),
            ("{{ define \"t\" }}<{{ . }}>{{ end }}{{ template \"t\" $labels.job }}", "<api>"),
            (
                "{{ define \"u\" }}{{ .arg0 }}-{{ .arg1 }}{{ end }}{{ template \"u\" (args 1 \"b\") }}",
                "1-b",
            ),
            ("{{ define \"v\" }}v{{ . }}{{ end }}{{ tmpl \"v\" 1 | toUpper }}", "V1"),
            ("{{ reReplaceAll \"a(.)i\" \"<$1>\" $labels.job }}", "<p>"),
            ("{{ if match \"^a\" $labels.job }}yes{{ end }}", "yes"),
            (
                "{{ $labels.job | toUpper | title }} {{ len \"abc\" }} {{ eq 1 2 1 }} {{ and 1 0 }}",
                "API 3 true 0",
            ),
            (
                "{{ externalURL }} {{ pathPrefix }} {{ graphLink \"up == 0\" }}",
                "http://x:9090/path/ /path /graph?g0.expr=up+%3D%3D+0&g0.tab=0",
            ),
            (
                "{{ parseDuration \"1h2m\" }} {{ index $labels \"job\" }} {{ print 1 2 \"x\" }}",
                "3720 api 1 2x",
            ),
            ("{{ stripDomain \"a.b.c:90\" }} {{ stripDomain \"1.2.3.4:90\" }}", "a:90 1.2.3.4:90"),
            ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
            (
                "{{ range $k, $v := $labels }}{{ if eq $k \"job\" }}{{ continue }}{{ end }}{{ $k }}={{ $v }}{{ end }}",
                "le=0.5",
            ),
        ];
        for (template, want) in cases {
            assert_eq!(expand(template).as_deref(), Ok(want), "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("{{ nope }}", "function \"nope\" not defined"),
            ("{{ if }}x{{ end }}", "missing value for if"),
            ("{{ $y }}", "undefined variable \"$y\""),
            ("{{ if true }}x", "unexpected EOF"),
            ("{{ .Value", "unclosed action"),
            ("{{ query \"none\" | first }}", "first() called on vector with no elements"),
            ("{{ query \"bad\" }}", "cannot evaluate bad"),
            ("{{ \"x\" | humanize }}", "invalid syntax"),
            ("{{ .Value.foo }}", "can't evaluate field foo"),
            (
                "{{ define \"r\" }}{{ template \"r\" }}{{ end }}{{ template \"r\" }}",
                "deeper than 50",
            ),
            (
                "{{ range 999999999 }}{{ range 999999999 }}{{ 1 | print }}{{ end }}{{ end }}",
                "more than",
            ),
        ];
        for (template, want) in cases {
            let got = expand(template).unwrap_err();
            assert!(got.contains(want), "{template}: {got}");
        }
        assert!(expand(&"{{ (".repeat(5000)).is_err());
        assert!(expand(&"{{ if 1 }}".repeat(5000)).is_err());
    }
}
