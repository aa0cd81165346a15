//! Writes queries back as text: in one line where that is short enough, else indented.

use crate::ast::{
    Conversion, Groups, LabelChoice, LabelFilter, LabelFormat, LineFilter, LineMatch, LogExpr,
    LogRange, MetricExpr, Query, RangeAggregation, Stage, range_index,
};
use obs_model::Matcher;
use obs_promql::ast::{AggregateOp, BinaryOp, Cardinality, Expr, Matching};
use obs_promql::duration::format_ms;

/// Length past which an expression is broken into lines, in bytes.
const LINE_MAX: usize = 100;
const INDENT: &str = "  ";

/// Writes a query for people.
pub fn pretty(query: &Query) -> String {
    match query {
        Query::Log(log) => log_lines(log, 0),
        Query::Metric(m) => metrics_lines(m),
    }
}

fn quoted(text: &str) -> String {
    obs_template::quote(text)
}

fn matcher(m: &Matcher) -> String {
    format!("{}{}{}", m.name, m.op, quoted(&m.value))
}

fn selector(log: &LogExpr) -> String {
    let all: Vec<String> = log.matchers.iter().map(matcher).collect();
    format!("{{{}}}", all.join(", "))
}

fn line_filter(f: &LineFilter) -> String {
    let negated = f.negated;
    let op = |m: &LineMatch| match m {
        LineMatch::Contains(_) | LineMatch::Ip(_) => {
            if negated {
                "!="
            } else {
                "|="
            }
        }
        LineMatch::Regex(..) => {
            if negated {
                "!~"
            } else {
                "|~"
            }
        }
        LineMatch::Pattern(_) => {
            if negated {
                "!>"
            } else {
                "|>"
            }
        }
    };
    let text = |m: &LineMatch| match m {
        LineMatch::Contains(s) | LineMatch::Regex(_, s) => quoted(s),
        LineMatch::Pattern(p) => quoted(p.text()),
        LineMatch::Ip(ip) => format!("ip({})", quoted(ip.text())),
    };
    let all: Vec<String> = f.any.iter().map(text).collect();
    format!("{} {}", f.any.first().map_or("|=", op), all.join(" or "))
}

fn label_filter(f: &LabelFilter) -> String {
    match f {
        LabelFilter::Matches(m) => matcher(m),
        LabelFilter::Compare { name, op, text, .. } => format!("{name}{}{text}", op.text()),
        LabelFilter::Ip { name, negated, ip } => {
            format!("{name}{}ip({})", if *negated { "!=" } else { "=" }, quoted(ip.text()))
        }
        LabelFilter::And(a, b) => format!("( {} , {} )", label_filter(a), label_filter(b)),
        LabelFilter::Or(a, b) => format!("( {} or {} )", label_filter(a), label_filter(b)),
    }
}

fn choices(word: &str, list: &[LabelChoice]) -> String {
    let text = |c: &LabelChoice| match c {
        LabelChoice::Name(n) => n.clone(),
        LabelChoice::Matching(m) => matcher(m),
    };
    format!("| {word} {}", list.iter().map(text).collect::<Vec<_>>().join(","))
}

pub(crate) fn stage(s: &Stage) -> String {
    let fields = |list: Vec<(&str, &str)>| {
        let one = |(n, e): (&str, &str)| format!("{n}={}", quoted(e));
        list.into_iter().map(one).collect::<Vec<_>>().join(",")
    };
    match s {
        Stage::Line(f) => line_filter(f),
        Stage::Json(list) if list.is_empty() => "| json".into(),
        Stage::Json(list) => {
            format!("| json {}", fields(list.iter().map(|(n, p)| (n.as_str(), p.text())).collect()))
        }
        Stage::Logfmt { strict, keep_empty, fields: list } => {
            let mut out = String::from("| logfmt");
            out.push_str(if *strict { " --strict" } else { "" });
            out.push_str(if *keep_empty { " --keep-empty" } else { "" });
            if !list.is_empty() {
                out.push(' ');
                out.push_str(&fields(list.iter().map(|(n, k)| (n.as_str(), k.as_str())).collect()));
            }
            out
        }
        Stage::Regexp(r) => format!("| regexp {}", quoted(r.as_str())),
        Stage::Pattern(p) => format!("| pattern {}", quoted(p.text())),
        Stage::Unpack => "| unpack".into(),
        Stage::Label(f) => format!("| {}", label_filter(f)),
        Stage::LineFormat(t) => format!("| line_format {}", quoted(t.text())),
        Stage::LabelFormat(list) => {
            let one = |f: &LabelFormat| match f {
                LabelFormat::Rename { to, from } => format!("{to}={from}"),
                LabelFormat::Template { to, template } => {
                    format!("{to}={}", quoted(template.text()))
                }
            };
            format!("| label_format {}", list.iter().map(one).collect::<Vec<_>>().join(","))
        }
        Stage::Decolorize => "| decolorize".into(),
        Stage::Drop(list) => choices("drop", list),
        Stage::Keep(list) => choices("keep", list),
        Stage::Distinct(names) => format!("| distinct {}", names.join(",")),
    }
}

fn log_flat(log: &LogExpr) -> String {
    let mut out = selector(log);
    for s in &log.stages {
        out.push(' ');
        out.push_str(&stage(s));
    }
    out
}

fn log_lines(log: &LogExpr, depth: usize) -> String {
    let pad = INDENT.repeat(depth);
    let flat = format!("{pad}{}", log_flat(log));
    if flat.len() <= LINE_MAX || log.stages.is_empty() {
        return flat;
    }
    let mut out = format!("{pad}{}", selector(log));
    for s in &log.stages {
        out.push_str(&format!("\n{pad}{INDENT}{}", stage(s)));
    }
    out
}

fn unwrap(r: &RangeAggregation) -> String {
    let Some(u) = &r.unwrap else { return String::new() };
    let label = &u.label;
    let mut out = match u.conversion {
        Conversion::Number => format!("| unwrap {label}"),
        Conversion::Duration(false) => format!("| unwrap duration({label})"),
        Conversion::Duration(true) => format!("| unwrap duration_seconds({label})"),
        Conversion::Bytes => format!("| unwrap bytes({label})"),
    };
    for f in &u.filters {
        out.push_str(&format!(" | {}", label_filter(f)));
    }
    out
}

fn range_suffix(range_ms: i64, offset_ms: i64) -> String {
    let mut out = format!("[{}]", format_ms(range_ms));
    if offset_ms != 0 {
        out.push_str(&format!(" offset {}", format_ms(offset_ms)));
    }
    out
}

fn groups(g: &Option<Groups>) -> String {
    g.as_ref().map_or(String::new(), |g| grouping(g.without, &g.labels))
}

fn grouping(without: bool, labels: &[String]) -> String {
    format!(" {} ({})", if without { "without" } else { "by" }, labels.join(","))
}

fn number(n: f64) -> String {
    obs_promql::format_float(n)
}

fn range_flat(r: &RangeAggregation) -> String {
    let mut inner = log_flat(&r.expr);
    if r.unwrap.is_some() {
        inner.push(' ');
        inner.push_str(&unwrap(r));
    }
    let param = r.param.map_or(String::new(), |p| format!("{},", number(p)));
    let suffix = range_suffix(r.range_ms, r.offset_ms);
    format!("{}({param}{inner}{suffix}){}", r.op.name(), groups(&r.groups))
}

fn range_lines(r: &RangeAggregation, depth: usize) -> String {
    let pad = INDENT.repeat(depth);
    let flat = format!("{pad}{}", range_flat(r));
    if flat.len() <= LINE_MAX {
        return flat;
    }
    let deeper = INDENT.repeat(depth + 1);
    let mut out = format!("{pad}{}(\n", r.op.name());
    if let Some(p) = r.param {
        out.push_str(&format!("{deeper}{},\n", number(p)));
    }
    out.push_str(&log_lines(&r.expr, depth + 1));
    if r.unwrap.is_some() {
        out.push_str(&format!("\n{deeper}{INDENT}{}", unwrap(r)));
    }
    let suffix = range_suffix(r.range_ms, r.offset_ms);
    out.push_str(&format!(" {suffix}\n{pad}){}", groups(&r.groups)));
    out
}

fn operator(op: BinaryOp, bool_modifier: bool, m: &Matching) -> String {
    let mut out = op.as_str().to_owned();
    if bool_modifier {
        out.push_str(" bool");
    }
    if m.on || !m.labels.is_empty() {
        let word = if m.on { "on" } else { "ignoring" };
        out.push_str(&format!(" {word} ({})", m.labels.join(",")));
    }
    let side = match m.cardinality {
        Cardinality::ManyToOne => " group_left",
        Cardinality::OneToMany => " group_right",
        _ => "",
    };
    out.push_str(side);
    if !side.is_empty() && !m.include.is_empty() {
        out.push_str(&format!(" ({})", m.include.join(",")));
    }
    out
}

fn argument(e: &Expr) -> Option<String> {
    match e {
        Expr::Number(n, _) => Some(number(*n)),
        Expr::String(s, _) => Some(quoted(&s.text)),
        _ => None,
    }
}

fn aggregate_name(op: AggregateOp, grouped: &obs_promql::ast::Grouping) -> String {
    let by = if grouped.without || !grouped.labels.is_empty() {
        grouping(grouped.without, &grouped.labels)
    } else {
        String::new()
    };
    format!("{}{by}", op.as_str())
}

fn metrics_lines(m: &MetricExpr) -> String {
    let one = |e: &Expr, depth| metric_lines(m, e, depth);
    let Some(LogRange { expr, range_ms, offset_ms }) = &m.of else {
        return m.exprs.first().map_or(String::new(), |e| one(e, 0));
    };
    let suffix = range_suffix(*range_ms, *offset_ms);
    let all: Vec<String> = m.exprs.iter().map(|e| metric_flat(m, e)).collect();
    let flat = format!("variants({}) of ({}{suffix})", all.join(", "), log_flat(expr));
    if flat.len() <= LINE_MAX {
        return flat;
    }
    let all: Vec<String> = m.exprs.iter().map(|e| one(e, 1)).collect();
    format!("variants(\n{}\n) of (\n{} {suffix}\n)", all.join(",\n"), log_lines(expr, 1))
}

fn metric_flat(m: &MetricExpr, e: &Expr) -> String {
    match e {
        Expr::Selector(s) => {
            let range = range_index(&s.matchers).and_then(|i| m.ranges.get(i));
            range.map(range_flat).unwrap_or_default()
        }
        Expr::Paren(inner) => format!("({})", metric_flat(m, inner)),
        Expr::Binary { op, lhs, rhs, bool_modifier, matching, .. } => format!(
            "({} {} {})",
            metric_flat(m, lhs),
            operator(*op, *bool_modifier, matching),
            metric_flat(m, rhs)
        ),
        Expr::Aggregate { op, expr, param, grouping, .. } => {
            let param = param.as_deref().and_then(argument);
            let param = param.map_or(String::new(), |p| format!("{p},"));
            let name = aggregate_name(*op, grouping);
            format!("{name}({param}{})", metric_flat(m, expr))
        }
        Expr::Call { function, args, .. } => {
            let all = args.iter().map(|a| argument(a).unwrap_or_else(|| metric_flat(m, a)));
            format!("{}({})", function.name, all.collect::<Vec<_>>().join(","))
        }
        other => argument(other).unwrap_or_default(),
    }
}

fn metric_lines(m: &MetricExpr, e: &Expr, depth: usize) -> String {
    let pad = INDENT.repeat(depth);
    let flat = match e {
        // The outermost operation needs no parentheses.
        Expr::Binary { op, lhs, rhs, bool_modifier, matching, .. } => format!(
            "{pad}{} {} {}",
            metric_flat(m, lhs),
            operator(*op, *bool_modifier, matching),
            metric_flat(m, rhs)
        ),
        _ => format!("{pad}{}", metric_flat(m, e)),
    };
    if flat.len() <= LINE_MAX {
        return flat;
    }
    match e {
        Expr::Selector(s) => {
            let range = range_index(&s.matchers).and_then(|i| m.ranges.get(i));
            range.map(|r| range_lines(r, depth)).unwrap_or_default()
        }
        Expr::Paren(inner) => {
            format!("{pad}(\n{}\n{pad})", metric_lines(m, inner, depth + 1))
        }
        Expr::Binary { op, lhs, rhs, bool_modifier, matching, .. } => format!(
            "{}\n{pad}{}\n{}",
            metric_lines(m, lhs, depth + 1),
            operator(*op, *bool_modifier, matching),
            metric_lines(m, rhs, depth + 1)
        ),
        Expr::Aggregate { op, expr, param, grouping, .. } => {
            let param = param.as_deref().and_then(argument);
            let param =
                param.map_or(String::new(), |p| format!("{}{p},\n", INDENT.repeat(depth + 1)));
            let name = aggregate_name(*op, grouping);
            format!("{pad}{name}(\n{param}{}\n{pad})", metric_lines(m, expr, depth + 1))
        }
        Expr::Call { function, args, .. } => {
            let all: Vec<String> = args
                .iter()
                .map(|a| {
                    argument(a).map_or_else(
                        || metric_lines(m, a, depth + 1),
                        |t| format!("{}{t}", INDENT.repeat(depth + 1)),
                    )
                })
                .collect();
            format!("{pad}{}(\n{}\n{pad})", function.name, all.join(",\n"))
        }
        _ => flat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    #[test]
    fn what_is_printed_parses_to_the_same() {
        for text in [
            r#"{app="a", b!~"c.*"} |= "x" or "y" !> "<_> z" |= ip("10.0.0.0/8")"#,
            r#"{app="a"} | json a="b[0]",c="d" | logfmt --strict --keep-empty | pattern "<x> y""#,
            r#"{app="a"} | ( a="b" or ( c>=5 , d<10KB ) ) | drop x,y="z" | keep k | decolorize"#,
            r#"{app="a"} | line_format "{{.x}}" | label_format a=b,c="{{.d}}" | unpack | distinct q"#,
            r#"sum by (a,b)(rate({app="a"} | json | unwrap duration(x) | x!="" [5m] offset 1h))"#,
            r#"quantile_over_time(0.99,{app="a"} | unwrap x [1m]) by (a) > bool 3"#,
            r#"topk(3, sum(rate({a="b"}[1m])) by (c)) / on (c) group_left (d) vector(2)"#,
            r#"label_replace(rate({a="b"}[1m]),"x","$1","y","(.*)")"#,
            r#"variants(rate({a="b"}[1m]), sum by (c)(count_over_time({a="b"} | json [1m]))) of ({a="b"}[1m] offset 5m)"#,
        ] {
            let first = pretty(&parse(text).unwrap_or_else(|e| panic!("{text}: {e}")));
            let again = pretty(&parse(&first).unwrap_or_else(|e| panic!("{first}: {e}")));
            assert_eq!(first, again, "{text}");
            // A rule of its own: blanks aside the text is what was written, but for grouping.
            if text.starts_with('{') {
                let bare = |s: &str| s.split_whitespace().collect::<String>();
                assert_eq!(bare(&first), bare(text));
            }
        }
    }

    #[test]
    fn long_queries_are_broken() {
        let text = r#"sum by (service_name) (rate({service_name=~"checkout|payment|shipping"} | json | level="error" | line_format "{{.message}} {{.user}}" [5m]))"#;
        let want = r#"sum by (service_name)(
  rate(
    {service_name=~"checkout|payment|shipping"}
      | json
      | level="error"
      | line_format "{{.message}} {{.user}}" [5m]
  )
)"#;
        assert_eq!(pretty(&parse(text).unwrap()), want);
    }
}
