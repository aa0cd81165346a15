//! Runs a template.

use crate::format::{escape_html, escape_js, escape_url, printf};
use crate::parser::{Node, Operand, Pipeline};
use crate::value::Value;
use crate::{Template, TemplateError};
use std::cmp::Ordering;

/// Functions besides Go's own.
pub trait Functions {
    /// Calls a function; `None` when there is none of the name.
    fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value, String>>;
}

/// How much a run may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes written.
    pub output_bytes: usize,
    /// Nodes visited.
    pub steps: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { output_bytes: 1 << 20, steps: 1_000_000 }
    }
}

/// Templates that call templates, past which a run is stopped.
const CALLS_MAX: usize = 50;

struct Run<'a> {
    template: &'a Template,
    functions: &'a dyn Functions,
    limits: Limits,
    steps: usize,
    calls: usize,
    out: String,
    /// Whether values are escaped for the HTML around them.
    html: bool,
    variables: Vec<(String, Value)>,
}

/// Escapes a value for the place in HTML where it is written. An address in an attribute must be of
/// a scheme that runs nothing; Go's `html/template` writes the same for others.
fn escape_in_html(before: &str, text: &str) -> String {
    let tail = before.trim_end_matches(['"', '\'', ' ']);
    let is_address =
        tail.len() < before.len() && (tail.ends_with("href=") || tail.ends_with("src="));
    if is_address {
        let scheme = text.split_once(':').map(|s| s.0).filter(|s| !s.contains(['/', '?', '#']));
        let is_safe =
            |s: &str| ["http", "https", "mailto"].iter().any(|known| s.eq_ignore_ascii_case(known));
        if scheme.is_some_and(|s| !is_safe(s)) {
            return "#ZgotmplZ".into();
        }
    }
    escape_html(text).replace('+', "&#43;")
}

type Failed = (usize, String);

enum Flow {
    On,
    Break,
    Continue,
}

pub(crate) fn run(
    template: &Template,
    dot: &Value,
    functions: &dyn Functions,
    limits: Limits,
    html: bool,
) -> Result<String, TemplateError> {
    let mut run = Run {
        template,
        functions,
        limits,
        steps: 0,
        calls: 0,
        out: String::new(),
        html,
        variables: vec![("$".into(), dot.clone())],
    };
    let root = template.root.clone();
    match run.nodes(&root, dot) {
        Ok(_) => Ok(run.out),
        Err((line, message)) => Err(TemplateError { name: template.name.clone(), line, message }),
    }
}

impl Run<'_> {
    fn write(&mut self, line: usize, text: &str) -> Result<(), Failed> {
        if self.out.len() + text.len() > self.limits.output_bytes {
            let max = self.limits.output_bytes;
            return Err((line, format!("output is longer than {max} bytes")));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, Failed> {
        let known = self.variables.len();
        for n in nodes {
            match self.node(n, dot)? {
                Flow::On => {}
                other => {
                    self.variables.truncate(known);
                    return Ok(other);
                }
            }
        }
        self.variables.truncate(known);
        Ok(Flow::On)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, Failed> {
        self.steps += 1;
        match node {
            Node::Text(t) => self.write(0, t)?,
            Node::Action(line, p) => {
                let value = self.pipeline(p, dot).map_err(|m| (*line, m))?;
                if p.variables.is_empty() {
                    let text = value.to_string();
                    if self.html && !matches!(&value, Value::Object(o) if o.is_html()) {
                        let text = escape_in_html(&self.out, &text);
                        self.write(*line, &text)?;
                    } else {
                        self.write(*line, &text)?;
                    }
                }
            }
            Node::If { line, condition, then, otherwise } => {
                let known = self.variables.len();
                let value = self.pipeline(condition, dot).map_err(|m| (*line, m))?;
                let flow = self.nodes(if value.is_true() { then } else { otherwise }, dot)?;
                self.variables.truncate(known);
                return Ok(flow);
            }
            Node::With { line, value, then, otherwise } => {
                let known = self.variables.len();
                let value = self.pipeline(value, dot).map_err(|m| (*line, m))?;
                let flow = if value.is_true() {
                    self.nodes(then, &value)?
                } else {
                    self.nodes(otherwise, dot)?
                };
                self.variables.truncate(known);
                return Ok(flow);
            }
            Node::Range { line, over, body, otherwise } => {
                return self.range(*line, over, (body, otherwise), dot);
            }
            Node::Template { line, name, dot: data } => {
                let data = match data {
                    Some(p) => self.pipeline(p, dot).map_err(|m| (*line, m))?,
                    None => Value::Nil,
                };
                self.include(*line, name, &data)?;
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        if self.steps > self.limits.steps {
            return Err((0, format!("more than {} steps", self.limits.steps)));
        }
        Ok(Flow::On)
    }

    fn include(&mut self, line: usize, name: &str, dot: &Value) -> Result<(), Failed> {
        let Some(nodes) = self.template.defined.get(name).cloned() else {
            return Err((line, format!("template {name:?} not defined")));
        };
        self.calls += 1;
        if self.calls > CALLS_MAX {
            return Err((line, format!("templates call each other deeper than {CALLS_MAX}")));
        }
        let outer = std::mem::replace(&mut self.variables, vec![("$".into(), dot.clone())]);
        self.nodes(&nodes, dot)?;
        self.variables = outer;
        self.calls -= 1;
        Ok(())
    }

    fn range(
        &mut self,
        line: usize,
        over: &Pipeline,
        (body, otherwise): (&[Node], &[Node]),
        dot: &Value,
    ) -> Result<Flow, Failed> {
        let known = self.variables.len();
        // The variables are set to each element, not to the whole.
        let silent = Pipeline { variables: Vec::new(), ..over.clone() };
        let mut value = self.pipeline(&silent, dot).map_err(|m| (line, m))?;
        if let Value::Object(o) = &value {
            value = o.plain();
        }
        let pairs: Vec<(Value, Value)> = match &value {
            Value::List(l) => {
                l.iter().enumerate().map(|(i, v)| (Value::Int(i as i64), v.clone())).collect()
            }
            Value::Map(m) => m.iter().map(|(k, v)| (k.as_str().into(), v.clone())).collect(),
            Value::Texts(m) => {
                m.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect()
            }
            Value::Int(n) => {
                let n = (*n).clamp(0, self.limits.steps as i64);
                (0..n).map(|i| (Value::Int(i), Value::Int(i))).collect()
            }
            Value::Nil => Vec::new(),
            other => return Err((line, format!("range can't iterate over {other}"))),
        };
        if pairs.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, element) in pairs {
            self.variables.truncate(known);
            let values = match over.variables.len() {
                2 => vec![key, element.clone()],
                _ => vec![element.clone()],
            };
            for (name, v) in over.variables.iter().zip(values) {
                self.set(name, v, over.declares);
            }
            match self.nodes(body, &element)? {
                Flow::Break => break,
                Flow::On | Flow::Continue => {}
            }
        }
        self.variables.truncate(known);
        Ok(Flow::On)
    }

    fn set(&mut self, name: &str, value: Value, declares: bool) {
        if !declares && let Some(v) = self.variables.iter_mut().rev().find(|(n, _)| n == name) {
            v.1 = value;
            return;
        }
        self.variables.push((name.to_owned(), value));
    }

    fn pipeline(&mut self, p: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut value = None;
        for command in &p.commands {
            value = Some(self.command(command, dot, value)?);
        }
        let value = value.unwrap_or_default();
        for name in &p.variables {
            self.set(name, value.clone(), p.declares);
        }
        Ok(value)
    }

    /// Runs one command; the result of the one before is its last argument.
    fn command(
        &mut self,
        operands: &[Operand],
        dot: &Value,
        last: Option<Value>,
    ) -> Result<Value, String> {
        self.steps += 1;
        let Some((first, rest)) = operands.split_first() else { return Ok(Value::Nil) };
        if let Operand::Function(name) = first {
            return self.function(name, rest, dot, last);
        }
        if rest.is_empty() && last.is_none() {
            return self.operand(first, dot);
        }
        // A method with arguments.
        let mut args = rest.iter().map(|o| self.operand(o, dot)).collect::<Result<Vec<_>, _>>()?;
        args.extend(last);
        let (receiver, name) = match first {
            Operand::Field(name) => (dot.clone(), name),
            Operand::Chain(inner, name) => (self.operand(inner, dot)?, name),
            _ => return Err("can't give argument to non-function".into()),
        };
        match &receiver {
            Value::Object(o) => match o.call(name, &args) {
                Some(result) => result,
                None => Err(format!("{name:?} is no method of {}", receiver.type_name())),
            },
            _ => Err(format!("{name} has arguments but cannot be invoked as function")),
        }
    }

    fn operand(&mut self, o: &Operand, dot: &Value) -> Result<Value, String> {
        match o {
            Operand::Constant(v) => Ok(v.clone()),
            Operand::Dot => Ok(dot.clone()),
            Operand::Variable(name) => {
                let v = self.variables.iter().rev().find(|(n, _)| n == name);
                Ok(v.map(|v| v.1.clone()).unwrap_or_default())
            }
            Operand::Function(name) => self.function(name, &[], dot, None),
            Operand::Field(name) => field(dot, name),
            Operand::Chain(inner, name) => {
                let value = self.operand(inner, dot)?;
                field(&value, name)
            }
            Operand::Nested(p) => self.pipeline(p, dot),
        }
    }

    fn function(
        &mut self,
        name: &str,
        rest: &[Operand],
        dot: &Value,
        last: Option<Value>,
    ) -> Result<Value, String> {
        // `and` and `or` stop at the first operand that decides.
        if matches!(name, "and" | "or") {
            let mut value = Value::Nil;
            for o in rest {
                value = self.operand(o, dot)?;
                if value.is_true() == (name == "or") {
                    return Ok(value);
                }
            }
            return Ok(last.unwrap_or(value));
        }
        let mut args = rest.iter().map(|o| self.operand(o, dot)).collect::<Result<Vec<_>, _>>()?;
        args.extend(last);
        // Like the `template` action, with a name that is computed.
        if name == "tmpl" {
            let Some(Value::Str(template)) = args.first() else {
                return Err("error calling tmpl: the first argument must be a name".into());
            };
            let before = std::mem::take(&mut self.out);
            let included = self.include(0, template, &args.get(1).cloned().unwrap_or_default());
            let text = std::mem::replace(&mut self.out, before);
            return included.map(|()| text.into()).map_err(|(_, m)| m);
        }
        let called = match built_in(name, &args) {
            Some(result) => result,
            None => match self.functions.call(name, &args) {
                Some(result) => result,
                None => return Err(format!("function {name:?} not defined")),
            },
        };
        called.map_err(|e| format!("error calling {name}: {e}"))
    }
}

fn field(value: &Value, name: &str) -> Result<Value, String> {
    match value {
        Value::Map(m) => Ok(m.get(name).cloned().unwrap_or_default()),
        Value::Texts(m) => Ok(m.get(name).map(String::as_str).unwrap_or_default().into()),
        Value::Object(o) => o
            .field(name)
            .map(Ok)
            .or_else(|| o.call(name, &[]))
            .unwrap_or_else(|| Err(format!("can't evaluate field {name}"))),
        Value::Nil => Err(format!("nil data; no entry for key {name:?}")),
        other => Err(format!("can't evaluate field {name} in type {}", other.type_name())),
    }
}

fn compare(a: &Value, b: &Value) -> Result<Option<Ordering>, String> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Str(a), Value::Str(b)) => Some(a.cmp(b)),
        (Value::Object(o), other) => compare(&o.plain(), other)?,
        (other, Value::Object(o)) => compare(other, &o.plain())?,
        _ => return Err("incompatible types for comparison".into()),
    })
}

fn equal(a: &Value, b: &Value) -> Result<bool, String> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Nil, _) | (_, Value::Nil) => Ok(false),
        _ => Ok(compare(a, b)? == Some(Ordering::Equal)),
    }
}

fn index(args: &[Value]) -> Result<Value, String> {
    let Some((first, keys)) = args.split_first() else {
        return Err("index of untyped nil".into());
    };
    let mut value = first.clone();
    for key in keys {
        if let Value::Object(o) = &value {
            value = o.plain();
        }
        value = match (&value, key) {
            (Value::List(l), Value::Int(i)) => usize::try_from(*i)
                .ok()
                .and_then(|i| l.get(i).cloned())
                .ok_or_else(|| format!("index out of range: {i}"))?,
            (Value::Str(s), Value::Int(i)) => usize::try_from(*i)
                .ok()
                .and_then(|i| s.as_bytes().get(i))
                .map(|b| Value::Int(i64::from(*b)))
                .ok_or_else(|| format!("index out of range: {i}"))?,
            (Value::Map(_) | Value::Texts(_), Value::Str(k)) => field(&value, k)?,
            (Value::Nil, _) => return Err("index of nil pointer".into()),
            (other, _) => return Err(format!("can't index item of type {}", other.type_name())),
        };
    }
    Ok(value)
}

fn slice(args: &[Value]) -> Result<Value, String> {
    let Some((first, bounds)) = args.split_first() else {
        return Err("slice of untyped nil".into());
    };
    let len =
        first.len().ok_or_else(|| format!("can't slice item of type {}", first.type_name()))?;
    let bound = |i: usize, default: usize| match bounds.get(i) {
        None => Ok(default),
        Some(Value::Int(n)) => usize::try_from(*n)
            .ok()
            .filter(|n| *n <= len)
            .ok_or_else(|| format!("index out of range: {n}")),
        Some(other) => Err(format!("cannot index slice with type {}", other.type_name())),
    };
    let (from, to) = (bound(0, 0)?, bound(1, len)?);
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    match first {
        Value::Str(s) => {
            let cut = s.as_bytes().get(from..to).unwrap_or_default();
            Ok(String::from_utf8_lossy(cut).into_owned().into())
        }
        Value::List(l) => Ok(l.get(from..to).unwrap_or_default().to_vec().into()),
        other => Err(format!("can't slice item of type {}", other.type_name())),
    }
}

/// Like Go's `Sprint`: a space between operands when neither is a string.
fn sprint(args: &[Value], line: bool) -> String {
    let mut out = String::new();
    let mut before_was_text = true;
    for (i, v) in args.iter().enumerate() {
        let is_text = matches!(v, Value::Str(_));
        if i > 0 && (line || !(is_text || before_was_text)) {
            out.push(' ');
        }
        match v {
            Value::Nil => out.push_str("<nil>"),
            v => out.push_str(&v.to_string()),
        }
        before_was_text = is_text;
    }
    if line {
        out.push('\n');
    }
    out
}

fn built_in(name: &str, args: &[Value]) -> Option<Result<Value, String>> {
    let two = || match args {
        [a, b] => Ok((a, b)),
        _ => Err(format!("wrong number of args for {name}: want 2 got {}", args.len())),
    };
    let ordered = |want: fn(Ordering) -> bool| {
        let (a, b) = two()?;
        Ok(Value::Bool(compare(a, b)?.is_some_and(want)))
    };
    Some(match name {
        "not" => match args {
            [v] => Ok(Value::Bool(!v.is_true())),
            _ => Err(format!("wrong number of args for not: want 1 got {}", args.len())),
        },
        "len" => match args {
            [v] => v
                .len()
                .map(|n| Value::Int(n as i64))
                .ok_or_else(|| format!("len of type {}", v.type_name())),
            _ => Err(format!("wrong number of args for len: want 1 got {}", args.len())),
        },
        "index" => index(args),
        "slice" => slice(args),
        "print" => Ok(sprint(args, false).into()),
        "println" => Ok(sprint(args, true).into()),
        "printf" => match args.split_first() {
            Some((Value::Str(f), rest)) => Ok(printf(f, rest).into()),
            _ => Err("wrong type for format".into()),
        },
        "html" => Ok(escape_html(&sprint(args, false)).into()),
        "js" => Ok(escape_js(&sprint(args, false)).into()),
        "urlquery" => Ok(escape_url(&sprint(args, false)).into()),
        "call" => Err("there are no function values".into()),
        "eq" => match args.split_first() {
            Some((first, rest)) if !rest.is_empty() => {
                let mut any = Ok(false);
                for v in rest {
                    match equal(first, v) {
                        Ok(true) => return Some(Ok(Value::Bool(true))),
                        Ok(false) => {}
                        Err(e) => any = Err(e),
                    }
                }
                any.map(Value::Bool)
            }
            _ => Err("missing argument for comparison".into()),
        },
        "ne" => two().and_then(|(a, b)| Ok(Value::Bool(!equal(a, b)?))),
        "lt" => ordered(Ordering::is_lt),
        "le" => ordered(Ordering::is_le),
        "gt" => ordered(Ordering::is_gt),
        "ge" => ordered(Ordering::is_ge),
        _ => return None,
    })
}
