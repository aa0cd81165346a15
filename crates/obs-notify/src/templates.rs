//! The templates of messages: the built-in ones, those of the configuration's files, and the
//! functions that both may call.

use crate::data::Notification;
use chrono_tz::Tz;
use obs_model::TimestampNs;
use obs_template::prometheus::Context;
use obs_template::{Functions, Limits, Object, Template, Value, Zoned, format_time_in};
use std::path::Path;
use std::sync::Arc;

const DEFAULT: &str = include_str!("default.tmpl");

/// Names of the functions besides Go's own.
const NAMES: [&str; 16] = [
    "toUpper",
    "toLower",
    "title",
    "trimSpace",
    "join",
    "match",
    "safeHtml",
    "safeUrl",
    "urlUnescape",
    "reReplaceAll",
    "stringSlice",
    "date",
    "tz",
    "since",
    "humanizeDuration",
    "toJson",
];

fn is_function(name: &str) -> bool {
    NAMES.contains(&name)
}

/// What a message may have, in bytes, and how much work its template.
const LIMITS: Limits = Limits { output_bytes: 256 << 10, steps: 200_000 };

/// All templates that a configuration may name.
#[derive(Debug, Clone)]
pub struct Templates(Template);

impl Templates {
    /// Reads the files that the patterns match; relative ones start from `folder`.
    ///
    /// # Errors
    /// With the file and line of what is no template.
    pub(crate) fn read(patterns: &[String], folder: &Path) -> Result<Self, String> {
        let mut all =
            Template::parse("alertmanager", "", &is_function).map_err(|e| e.to_string())?;
        all.add("default.tmpl", DEFAULT, &is_function).map_err(|e| e.to_string())?;
        for p in patterns {
            let full = folder.join(p).display().to_string();
            let paths = glob::glob(&full).map_err(|e| format!("templates: {p}: {e}"))?;
            for path in paths.flatten() {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(&path).map_err(|e| format!("{name}: {e}"))?;
                all.add(&name, &text, &is_function).map_err(|e| e.to_string())?;
            }
        }
        Ok(Self(all))
    }

    /// Returns the functions of one message.
    pub(crate) fn filler<'a>(&'a self, n: &Notification) -> Filler<'a> {
        Filler { templates: self, dot: n.value(), now: n.now }
    }
}

/// Fills in the texts of one message.
#[derive(Debug)]
pub(crate) struct Filler<'a> {
    templates: &'a Templates,
    dot: Value,
    now: TimestampNs,
}

impl Filler<'_> {
    /// Fills in a text.
    ///
    /// # Errors
    /// With what the template does wrong.
    pub(crate) fn text(&self, text: &str) -> Result<String, String> {
        self.run(text, false)
    }

    /// Fills in a text of HTML: what the alerts say is escaped.
    pub(crate) fn html(&self, text: &str) -> Result<String, String> {
        self.run(text, true)
    }

    fn run(&self, text: &str, html: bool) -> Result<String, String> {
        if !text.contains("{{") {
            return Ok(text.to_owned());
        }
        let mut all = self.templates.0.clone();
        all.set_root("", text, &is_function).map_err(|e| e.to_string())?;
        let functions = Message { now: self.now };
        let run = if html { Template::run_html } else { Template::run };
        run(&all, &self.dot, &functions, LIMITS).map_err(|e| e.to_string())
    }
}

struct Message {
    now: TimestampNs,
}

fn text(args: &[Value], i: usize) -> Result<String, String> {
    match args.get(i) {
        Some(Value::Str(s)) => Ok(s.to_string()),
        Some(Value::Object(o)) => Ok(o.plain().to_string()),
        Some(other) => {
            Err(format!("wrong type for value; expected string; got {}", other.type_name()))
        }
        None => Err(format!("wrong number of args: want at least {} got {}", i + 1, args.len())),
    }
}

fn list(v: Option<&Value>) -> Result<Vec<String>, String> {
    let plain = match v {
        Some(Value::Object(o)) => o.plain(),
        Some(v) => v.clone(),
        None => return Err("wrong number of args: want 2".into()),
    };
    match plain {
        Value::List(l) => Ok(l.iter().map(ToString::to_string).collect()),
        other => Err(format!("wrong type for value; expected []string; got {}", other.type_name())),
    }
}

fn time(v: Option<&Value>) -> Result<(TimestampNs, Option<Tz>), String> {
    let Some(Value::Object(o)) = v else { return Err("expected a time".into()) };
    let Some(Value::Int(ns)) = o.field("UnixNano") else { return Err("expected a time".into()) };
    let zone = o.field("Zone").and_then(|z| z.as_str().and_then(|n| n.parse().ok()));
    Ok((TimestampNs::from_nanos(ns), zone))
}

/// A stretch of time; prints as Go's durations do.
#[derive(Debug)]
struct Elapsed(i64);

impl Object for Elapsed {
    fn field(&self, name: &str) -> Option<Value> {
        (name == "Seconds").then(|| Value::Float(self.0 as f64 / 1e9))
    }

    fn plain(&self) -> Value {
        let (sign, ns) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let seconds = (ns % 60_000_000_000) as f64 / 1e9;
        let (m, h) = (ns / 60_000_000_000 % 60, ns / 3_600_000_000_000);
        match (h, m) {
            (0, 0) => format!("{sign}{seconds}s"),
            (0, m) => format!("{sign}{m}m{seconds}s"),
            (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
        }
        .into()
    }
}

#[derive(Debug)]
struct Html(String);

impl Object for Html {
    fn field(&self, _name: &str) -> Option<Value> {
        None
    }

    fn is_html(&self) -> bool {
        true
    }

    fn plain(&self) -> Value {
        self.0.as_str().into()
    }
}

/// Writes a value as JSON.
fn json(v: &Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match v {
        Value::Nil => Json::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(i) => (*i).into(),
        Value::Float(f) => (*f).into(),
        Value::Str(s) => s.as_ref().into(),
        Value::List(l) => l.iter().map(json).collect(),
        Value::Map(m) => Json::Object(m.iter().map(|(k, v)| (k.clone(), json(v))).collect()),
        Value::Texts(m) => {
            Json::Object(m.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect())
        }
        Value::Object(o) => json(&o.plain()),
    }
}

impl Functions for Message {
    fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value, String>> {
        let first = |f: &dyn Fn(String) -> String| text(args, 0).map(|s| Value::from(f(s)));
        Some(match name {
            "trimSpace" => first(&|s| s.trim().to_owned()),
            "join" => (|| Ok(list(args.get(1))?.join(&text(args, 0)?).into()))(),
            "safeHtml" | "safeUrl" => text(args, 0).map(|s| Value::Object(Arc::new(Html(s)))),
            "urlUnescape" => text(args, 0).and_then(|s| {
                let spaced = s.replace('+', " ");
                let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8();
                decoded.map(|d| d.as_ref().into()).map_err(|e| e.to_string())
            }),
            "stringSlice" => Ok(args.to_vec().into()),
            "date" => (|| {
                let (at, zone) = time(args.get(1))?;
                Ok(format_time_in(at, zone.unwrap_or(Tz::UTC), &text(args, 0)?).into())
            })(),
            "tz" => (|| {
                let zone = text(args, 0)?;
                let known = zone.parse().map_err(|_| format!("unknown time zone {zone}"))?;
                Ok(Value::Object(Arc::new(Zoned(time(args.get(1))?.0, known))))
            })(),
            "since" => time(args.first()).map(|(at, _)| {
                Value::Object(Arc::new(Elapsed(self.now.nanos().saturating_sub(at.nanos()))))
            }),
            "toJson" => {
                let v = args.first().cloned().unwrap_or_default();
                Ok(json(&v).to_string().into())
            }
            "humanizeDuration" => {
                let seconds = match args.first() {
                    Some(Value::Object(o)) => o.field("Seconds").unwrap_or_default(),
                    other => other.cloned().unwrap_or_default(),
                };
                return shared(name, &[seconds]);
            }
            "toUpper" | "toLower" | "title" | "match" | "reReplaceAll" => {
                let plain = |v: &Value| match v {
                    Value::Object(o) => o.plain(),
                    v => v.clone(),
                };
                return shared(name, &args.iter().map(plain).collect::<Vec<_>>());
            }
            _ => return None,
        })
    }
}

/// Calls a function that rule templates have too.
fn shared(name: &str, args: &[Value]) -> Option<Result<Value, String>> {
    let query = |_: &str| Err("there are no queries here".to_owned());
    Context { query: &query, external_url: "", now: 0.0 }.call(name, args)
}
