//! Writes expressions back as text, in one line or indented, as Prometheus prints them.

use crate::ast::{
    At, BinaryOp, Cardinality, DurationExpr, DurationOp, Expr, Extension, Grouping, Matching,
    Selector,
};
use crate::duration::format_ms;
use crate::eval::format_general;
use obs_model::{METRIC_NAME, Matcher};
use std::fmt::{self, Display, Write as _};

/// Length past which an expression is broken into lines, in bytes.
const LINE_MAX: usize = 100;

/// Returns whether a name can stand without quotes.
fn is_plain(name: &str, colons: bool) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(allowed)
}

/// A text in double quotes, escaped as Go escapes it.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    push_escaped(text, &mut out);
    out.push('"');
    out
}

/// Writes what stands between the quotes.
pub(crate) fn push_escaped(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
}

fn name(label: &str) -> String {
    if is_plain(label, false) { label.to_owned() } else { quoted(label) }
}

fn list(labels: &[String]) -> String {
    labels.iter().map(|l| name(l)).collect::<Vec<_>>().join(", ")
}

fn matcher(m: &Matcher) -> String {
    let op = match m.op {
        obs_model::MatchOp::Equal => "=",
        obs_model::MatchOp::NotEqual => "!=",
        obs_model::MatchOp::Regex => "=~",
        obs_model::MatchOp::NotRegex => "!~",
    };
    format!("{}{op}{}", name(&m.name), quoted(&m.value))
}

/// The selector before its range and modifiers.
fn series(s: &Selector) -> String {
    let metric = s.metric_name().unwrap_or_default();
    let is_plain = is_plain(metric, true);
    let mut inside: Vec<String> = Vec::new();
    if !metric.is_empty() && !is_plain {
        inside.push(quoted(metric));
    }
    let is_name = |m: &&Matcher| {
        !(m.name == METRIC_NAME && m.op == obs_model::MatchOp::Equal && m.value == metric)
    };
    inside.extend(s.matchers.iter().filter(is_name).map(matcher));
    let before = if is_plain { metric } else { "" };
    if inside.is_empty() { before.to_owned() } else { format!("{before}{{{}}}", inside.join(",")) }
}

fn duration(ms: i64, open: Option<&DurationExpr>) -> String {
    open.map_or_else(|| format_ms(ms), ToString::to_string)
}

fn modifiers(
    extension: Option<Extension>,
    at: Option<At>,
    offset_ms: i64,
    offset: Option<&DurationExpr>,
) -> String {
    let mut out = match extension {
        None => String::new(),
        Some(Extension::Anchored) => " anchored".to_owned(),
        Some(Extension::Smoothed) => " smoothed".to_owned(),
    };
    match at {
        None => {}
        Some(At::Time(ms)) => out.push_str(&format!(" @ {:.3}", ms as f64 / 1000.0)),
        Some(At::Start) => out.push_str(" @ start()"),
        Some(At::End) => out.push_str(" @ end()"),
    }
    if offset.is_some() || offset_ms != 0 {
        out.push_str(&format!(" offset {}", duration(offset_ms, offset)));
    }
    out
}

fn selector_modifiers(s: &Selector) -> String {
    modifiers(s.extension, s.at, s.offset_ms, s.offset_expr.as_ref())
}

impl Display for DurationExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(s) => f.write_str(&format_ms((s * 1000.0).round() as i64)),
            Self::Step => f.write_str("step()"),
            Self::Range => f.write_str("range()"),
            Self::Negate(e) => write!(f, "-{e}"),
            Self::Binary(op, a, b) => {
                let sign = match op {
                    DurationOp::Min => return write!(f, "min({a}, {b})"),
                    DurationOp::Max => return write!(f, "max({a}, {b})"),
                    DurationOp::Add => "+",
                    DurationOp::Sub => "-",
                    DurationOp::Mul => "*",
                    DurationOp::Div => "/",
                    DurationOp::Mod => "%",
                    DurationOp::Pow => "^",
                };
                write!(f, "({a} {sign} {b})")
            }
        }
    }
}

/// What stands between the operator and the right side.
fn matching(m: &Matching) -> String {
    let mut out = String::new();
    if m.on || !m.labels.is_empty() {
        let word = if m.on { "on" } else { "ignoring" };
        out.push_str(&format!(" {word} ({})", list(&m.labels)));
    }
    match m.cardinality {
        Cardinality::OneToOne => {}
        Cardinality::ManyToOne => out.push_str(&format!(" group_left ({})", list(&m.include))),
        Cardinality::OneToMany => out.push_str(&format!(" group_right ({})", list(&m.include))),
    }
    match (m.fill_left, m.fill_right) {
        (Some(l), Some(r)) if l.to_bits() == r.to_bits() => {
            out.push_str(&format!(" fill ({})", format_general(l)));
        }
        (l, r) => {
            for (word, value) in [("fill_left", l), ("fill_right", r)] {
                if let Some(v) = value {
                    out.push_str(&format!(" {word} ({})", format_general(v)));
                }
            }
        }
    }
    out
}

fn operator(op: BinaryOp, bool_modifier: bool, m: &Matching) -> String {
    format!("{}{}{}", op.as_str(), if bool_modifier { " bool" } else { "" }, matching(m))
}

fn aggregation(op: crate::ast::AggregateOp, grouping: &Grouping) -> String {
    let labels = list(&grouping.labels);
    match (grouping.without, grouping.labels.is_empty()) {
        (true, _) => format!("{} without ({labels}) ", op.as_str()),
        (false, false) => format!("{} by ({labels}) ", op.as_str()),
        (false, true) => op.as_str().to_owned(),
    }
}

fn subquery_suffix(e: &Expr) -> String {
    let Expr::Subquery {
        range_ms, step_ms, offset_ms, range_expr, step_expr, offset_expr, at, ..
    } = e
    else {
        return String::new();
    };
    let step = match (step_ms, step_expr) {
        (None, None) => String::new(),
        (ms, open) => duration(ms.unwrap_or(0), open.as_ref()),
    };
    let range = duration(*range_ms, range_expr.as_ref());
    format!("[{range}:{step}]{}", modifiers(None, *at, *offset_ms, offset_expr.as_ref()))
}

impl Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n, _) => f.write_str(&format_general(*n)),
            Self::String(s, _) => f.write_str(&s.quoted()),
            Self::Selector(s) => write!(f, "{}{}", series(s), selector_modifiers(s)),
            Self::Matrix { selector: s, range_ms, range_expr, .. } => {
                let range = duration(*range_ms, range_expr.as_ref());
                write!(f, "{}[{range}]{}", series(s), selector_modifiers(s))
            }
            Self::Subquery { expr, .. } => write!(f, "{expr}{}", subquery_suffix(self)),
            Self::Paren(e) => write!(f, "({e})"),
            Self::Negate(e, _) => write!(f, "-{e}"),
            Self::Binary { op, lhs, rhs, bool_modifier, matching, .. } => {
                write!(f, "{lhs} {} {rhs}", operator(*op, *bool_modifier, matching))
            }
            Self::Aggregate { op, expr, param, grouping, .. } => {
                f.write_str(&aggregation(*op, grouping))?;
                match param {
                    Some(p) => write!(f, "({p}, {expr})"),
                    None => write!(f, "({expr})"),
                }
            }
            Self::Call { function, args, .. } => {
                let args: Vec<String> = args.iter().map(ToString::to_string).collect();
                write!(f, "{}({})", function.name, args.join(", "))
            }
        }
    }
}

fn indented(e: &Expr, level: usize) -> String {
    let indent = "  ".repeat(level);
    let line = e.to_string();
    if line.len() <= LINE_MAX {
        return format!("{indent}{line}");
    }
    match e {
        Expr::Aggregate { op, expr, param, grouping, .. } => {
            let param = param.as_ref().map(|p| format!("{},\n", indented(p, level + 1)));
            let (head, param) = (aggregation(*op, grouping), param.unwrap_or_default());
            format!("{indent}{head}(\n{param}{}\n{indent})", indented(expr, level + 1))
        }
        Expr::Binary { op, lhs, rhs, bool_modifier, matching, .. } => {
            let op = operator(*op, *bool_modifier, matching);
            let (lhs, rhs) = (indented(lhs, level + 1), indented(rhs, level + 1));
            format!("{lhs}\n{indent}{op}\n{rhs}")
        }
        Expr::Call { function, args, .. } if !args.is_empty() => {
            let args: Vec<String> = args.iter().map(|a| indented(a, level + 1)).collect();
            format!("{indent}{}(\n{}\n{indent})", function.name, args.join(",\n"))
        }
        Expr::Paren(inner) => format!("{indent}(\n{}\n{indent})", indented(inner, level + 1)),
        Expr::Subquery { expr, .. } => format!("{}{}", indented(expr, level), subquery_suffix(e)),
        Expr::Negate(inner, _) => format!("{indent}-{}", indented(inner, level).trim()),
        _ => format!("{indent}{line}"),
    }
}

/// Formats an expression over several lines where one would be longer than 100 bytes.
pub fn pretty(e: &Expr) -> String {
    indented(e, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    #[test]
    fn what_is_printed_is_what_was_read() {
        let cases = [
            ("up", "up"),
            ("{__name__=\"up\"}", "up"),
            ("{\"a b\",\"c.d\"='e'}", "{\"a b\",\"c.d\"=\"e\"}"),
            (
                "rate(a{b='c',d!~\"e|f\"}[5m] offset 90s)",
                "rate(a{b=\"c\",d!~\"e|f\"}[5m] offset 1m30s)",
            ),
            (r"a{b='\xe4\xbd\xa0'}", "a{b=\"你\"}"),
            (r"count_values('\xc5\x9cé', a)", r#"count_values("Ŝé", a)"#),
            (r"count_values('\xc5é', a)", r#"count_values("\xc5é", a)"#),
            (r#"count_values('"\xc5"\\\xff', a)"#, r#"count_values("\"\xc5\"\\\xff", a)"#),
            ("sum(a)by(b,c)", "sum by (b, c) (a)"),
            ("topk without(x) (3,a)", "topk without (x) (3, a)"),
            ("a/on(b)group_left(c)d", "a / on (b) group_left (c) d"),
            ("a>bool 1e6", "a > bool 1000000"),
            ("a + fill(0) b", "a + fill (0) b"),
            ("-(a)^2", "-(a) ^ 2"),
            (
                "max_over_time(a[1h:30s] @ end() offset -5m)",
                "max_over_time(a[1h:30s] @ end() offset -5m)",
            ),
            ("a @ 5", "a @ 5.000"),
            ("a[step()+1m] smoothed", "a[(step() + 1m)] smoothed"),
            (
                "label_replace(a,\"b\",'$1\\n',\"c\",\"(.*)\")",
                "label_replace(a, \"b\", \"$1\\n\", \"c\", \"(.*)\")",
            ),
        ];
        for (text, want) in cases {
            let e = parse(text).unwrap();
            assert_eq!(e.to_string(), want, "{text}");
            // Printing is stable.
            assert_eq!(parse(want).unwrap().to_string(), want);
        }
    }

    #[test]
    fn long_expressions_are_broken_where_they_nest() {
        let long = "m".repeat(60);
        let text = format!("sum by (a) (rate({long}[5m])) / on (a) {long}");
        let want = format!("  sum by (a) (rate({long}[5m]))\n/ on (a)\n  {long}");
        assert_eq!(pretty(&parse(&text).unwrap()), want);
        assert_eq!(pretty(&parse("1 + 2").unwrap()), "1 + 2");
    }
}
