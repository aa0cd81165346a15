//! `format_query` and `parse_query`: queries as text and as a tree.

use super::{Api, success};
use crate::params::Params;
use crate::state::AppState;
use axum::extract::State;
use axum::response::Response;
use obs_model::{MatchOp, Matcher};
use obs_promql::ast::{At, Cardinality, Expr, Extension, Matching, Selector, VARIADIC, ValueType};
use obs_promql::{format_float, pretty};
use serde_json::{Value, json};

pub(super) async fn format_query(State(state): State<AppState>, p: Params) -> Api<Response> {
    let (_, expr) = super::parsed(&state, &p)?;
    Ok(success(pretty(&expr)))
}

pub(super) async fn parse_query(State(state): State<AppState>, p: Params) -> Api<Response> {
    let (_, expr) = super::parsed(&state, &p)?;
    Ok(success(tree(&expr)))
}

fn matchers(list: &[Matcher]) -> Value {
    let one = |m: &Matcher| {
        let kind = match m.op {
            MatchOp::Equal => "=",
            MatchOp::NotEqual => "!=",
            MatchOp::Regex => "=~",
            MatchOp::NotRegex => "!~",
        };
        json!({"name": m.name, "value": m.value, "type": kind})
    };
    list.iter().map(one).collect()
}

fn at(modifier: Option<At>) -> (Value, Value) {
    match modifier {
        None => (Value::Null, Value::Null),
        Some(At::Time(ms)) => (json!(ms), Value::Null),
        Some(At::Start) => (Value::Null, json!("start")),
        Some(At::End) => (Value::Null, json!("end")),
    }
}

fn selector(kind: &str, s: &Selector) -> serde_json::Map<String, Value> {
    let (timestamp, bound) = at(s.at);
    let mut out = serde_json::Map::new();
    out.insert("type".into(), json!(kind));
    out.insert("name".into(), json!(s.metric_name().unwrap_or_default()));
    out.insert("offset".into(), json!(s.offset_ms));
    out.insert("matchers".into(), matchers(&s.matchers));
    out.insert("timestamp".into(), timestamp);
    out.insert("startOrEnd".into(), bound);
    out.insert("anchored".into(), json!(s.extension == Some(Extension::Anchored)));
    out.insert("smoothed".into(), json!(s.extension == Some(Extension::Smoothed)));
    out
}

fn matching(m: &Matching, lhs: &Expr, rhs: &Expr) -> Value {
    let vector = |e: &Expr| e.value_type() == ValueType::Vector;
    if !vector(lhs) || !vector(rhs) {
        return Value::Null;
    }
    let card = match m.cardinality {
        Cardinality::OneToOne => "one-to-one",
        Cardinality::ManyToOne => "many-to-one",
        Cardinality::OneToMany => "one-to-many",
    };
    let number = |f: Option<f64>| f.map(format_float);
    json!({"card": card, "labels": m.labels, "on": m.on, "include": m.include, "fillValues": {"lhs": number(m.fill_left), "rhs": number(m.fill_right)}})
}

const fn type_name(t: ValueType) -> &'static str {
    match t {
        ValueType::Scalar => "scalar",
        ValueType::Vector => "vector",
        ValueType::Matrix => "matrix",
        ValueType::String => "string",
    }
}

/// An expression as Prometheus' page shows its parts.
fn tree(e: &Expr) -> Value {
    match e {
        Expr::Number(n, _) => json!({"type": "numberLiteral", "val": format_float(*n)}),
        Expr::String(s, _) => json!({"type": "stringLiteral", "val": s.text}),
        Expr::Selector(s) => Value::Object(selector("vectorSelector", s)),
        Expr::Matrix { selector: s, range_ms, .. } => {
            let mut out = selector("matrixSelector", s);
            out.insert("range".into(), json!(range_ms));
            Value::Object(out)
        }
        Expr::Subquery { expr, range_ms, step_ms, offset_ms, at: modifier, .. } => {
            let (timestamp, bound) = at(*modifier);
            json!({"type": "subquery", "expr": tree(expr), "range": range_ms, "offset": offset_ms, "step": step_ms.unwrap_or(0), "timestamp": timestamp, "startOrEnd": bound})
        }
        Expr::Paren(inner) => json!({"type": "parenExpr", "expr": tree(inner)}),
        Expr::Negate(inner, _) => json!({"type": "unaryExpr", "op": "-", "expr": tree(inner)}),
        Expr::Binary { op, lhs, rhs, bool_modifier, matching: m, .. } => {
            json!({"type": "binaryExpr", "op": op.as_str(), "lhs": tree(lhs), "rhs": tree(rhs), "matching": matching(m, lhs, rhs), "bool": bool_modifier})
        }
        Expr::Aggregate { op, expr, param, grouping, .. } => {
            json!({"type": "aggregation", "op": op.as_str(), "expr": tree(expr), "param": param.as_ref().map(|p| tree(p)), "grouping": grouping.labels, "without": grouping.without})
        }
        Expr::Call { function: f, args, .. } => {
            let types: Vec<_> = f.args.iter().map(|t| type_name(*t)).collect();
            let variadic: i64 = match f.optional {
                VARIADIC => -1,
                n => i64::try_from(n).unwrap_or(0),
            };
            let function = json!({"name": f.name, "argTypes": types, "variadic": variadic, "returnType": type_name(f.returns)});
            json!({"type": "call", "func": function, "args": args.iter().map(tree).collect::<Vec<_>>()})
        }
    }
}
