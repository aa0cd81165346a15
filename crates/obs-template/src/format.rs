//! Go's `printf` and escapes.

use crate::value::Value;
use std::fmt::Write as _;

/// Formats like Go's `%v` of a float64: shortest digits, an exponent below 1e-4 and from 1e21.
pub fn format_float_g(f: f64) -> String {
    general(f, None, 21)
}

fn exponent(text: &str) -> String {
    let (mantissa, e) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, digits) = e.strip_prefix('-').map_or(('+', e), |d| ('-', d));
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn special(f: f64) -> Option<String> {
    if f.is_nan() {
        Some("NaN".into())
    } else if f.is_infinite() {
        Some(if f > 0.0 { "+Inf" } else { "-Inf" }.into())
    } else {
        None
    }
}

/// `%g`: `digits` significant ones, or as many as tell the number apart.
fn general(f: f64, digits: Option<usize>, large: i32) -> String {
    if let Some(s) = special(f) {
        return s;
    }
    if f == 0.0 {
        return if f.is_sign_negative() { "-0" } else { "0" }.into();
    }
    match digits {
        None => {
            let text = format!("{f:e}");
            let e: i32 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
            if e < -4 || e >= large { exponent(&text) } else { format!("{f}") }
        }
        Some(n) => {
            let n = n.max(1);
            let text = format!("{f:.*e}", n - 1);
            let e: i32 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
            let trim = |s: &str| {
                if s.contains('.') {
                    s.trim_end_matches('0').trim_end_matches('.').to_owned()
                } else {
                    s.to_owned()
                }
            };
            if e < -4 || e >= n as i32 {
                let (m, e) = text.split_once('e').unwrap_or((&text, "0"));
                exponent(&format!("{}e{e}", trim(m)))
            } else {
                let decimals = usize::try_from(n as i32 - 1 - e).unwrap_or(0);
                trim(&format!("{f:.decimals$}"))
            }
        }
    }
}

/// Quotes like Go's `%q`.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub(crate) fn escape_html(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '\0' => out.push('\u{FFFD}'),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        }
    }
    out
}

pub(crate) fn escape_js(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

pub(crate) fn escape_url(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for b in s.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(b));
            }
            b' ' => out.push('+'),
            _ => {
                let _ = write!(out, "%{b:02X}");
            }
        }
    }
    out
}

#[derive(Default)]
struct Spec {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Widths and precisions past this are cut: a template must not ask for gigabytes.
const WIDTH_MAX: usize = 10_000;

fn pad(spec: &Spec, text: String, numeric: bool) -> String {
    let have = text.chars().count();
    let Some(missing) = spec.width.and_then(|w| w.checked_sub(have)) else { return text };
    if spec.minus {
        return text + &" ".repeat(missing);
    }
    if spec.zero && numeric {
        let digits = text.trim_start_matches(['+', '-']);
        let sign = text.get(..text.len() - digits.len()).unwrap_or_default();
        return format!("{sign}{}{digits}", "0".repeat(missing));
    }
    " ".repeat(missing) + &text
}

fn signed(spec: &Spec, text: String) -> String {
    if text.starts_with(['-', '+']) {
        text
    } else if spec.plus {
        format!("+{text}")
    } else if spec.space {
        format!(" {text}")
    } else {
        text
    }
}

fn bad(verb: char, v: &Value) -> String {
    match v {
        Value::Nil => format!("%!{verb}(<nil>)"),
        v => format!("%!{verb}({}={v})", v.type_name()),
    }
}

fn float(verb: char, f: f64, spec: &Spec) -> String {
    if let Some(s) = special(f) {
        return signed(spec, s);
    }
    let text = match verb {
        'e' | 'E' => {
            let t = exponent(&format!("{f:.*e}", spec.precision.unwrap_or(6)));
            if verb == 'E' { t.to_uppercase() } else { t }
        }
        'f' | 'F' => format!("{f:.*}", spec.precision.unwrap_or(6)),
        'v' => general(f, spec.precision, 21),
        'G' => general(f, spec.precision, 21).to_uppercase(),
        _ => general(f, spec.precision, 21),
    };
    signed(spec, text)
}

fn one(verb: char, v: &Value, spec: &Spec) -> String {
    let numeric = !matches!(v, Value::Float(f) if !f.is_finite());
    match (verb, v) {
        ('v', Value::Nil) => pad(spec, "<nil>".into(), false),
        ('v', Value::Float(f)) => pad(spec, float('v', *f, spec), numeric),
        ('v', Value::Str(s)) if spec.sharp => pad(spec, quote(s), false),
        ('v', Value::Int(i)) => pad(spec, signed(spec, i.to_string()), true),
        ('v', v) => pad(spec, v.to_string(), false),
        ('s' | 'q' | 'x' | 'X', Value::Str(s)) => {
            let cut: String = match spec.precision {
                Some(n) => s.chars().take(n).collect(),
                None => s.to_string(),
            };
            let text = match verb {
                's' => cut,
                'q' => quote(&cut),
                'x' => cut.bytes().fold(String::new(), |o, b| o + &format!("{b:02x}")),
                _ => cut.bytes().fold(String::new(), |o, b| o + &format!("{b:02X}")),
            };
            pad(spec, text, false)
        }
        ('s', Value::List(_) | Value::Map(_) | Value::Texts(_) | Value::Object(_)) => {
            pad(spec, v.to_string(), false)
        }
        ('d', Value::Int(i)) => pad(spec, signed(spec, i.to_string()), true),
        ('x', Value::Int(i)) => pad(spec, format!("{i:x}"), true),
        ('X', Value::Int(i)) => pad(spec, format!("{i:X}"), true),
        ('o', Value::Int(i)) => pad(spec, format!("{i:o}"), true),
        ('b', Value::Int(i)) => pad(spec, format!("{i:b}"), true),
        ('c', Value::Int(i)) => {
            let c = u32::try_from(*i).ok().and_then(char::from_u32).unwrap_or('\u{FFFD}');
            pad(spec, c.to_string(), false)
        }
        ('e' | 'E' | 'f' | 'F' | 'g' | 'G', Value::Float(f)) => {
            pad(spec, float(verb, *f, spec), numeric)
        }
        ('t', Value::Bool(b)) => pad(spec, b.to_string(), false),
        ('T', v) => v.type_name().to_owned(),
        (_, Value::Object(o)) => one(verb, &o.plain(), spec),
        _ => bad(verb, v),
    }
}

/// Formats like Go's `Sprintf`.
pub fn printf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args_used = 0;
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.peek() {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '#' => spec.sharp = true,
                ' ' => spec.space = true,
                '0' => spec.zero = true,
                _ => break,
            }
            chars.next();
        }
        let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            if chars.peek() == Some(&'*') {
                chars.next();
                let n = args.get(args_used).cloned();
                args_used += 1;
                return match n {
                    Some(Value::Int(n)) => usize::try_from(n).ok().map(|n| n.min(WIDTH_MAX)),
                    _ => None,
                };
            }
            let mut n = None;
            while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                n = Some((n.unwrap_or(0) * 10 + d as usize).min(WIDTH_MAX));
                chars.next();
            }
            n
        };
        spec.width = number(&mut chars);
        if chars.peek() == Some(&'.') {
            chars.next();
            spec.precision = Some(number(&mut chars).unwrap_or(0));
        }
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        match args.get(args_used) {
            None => {
                let _ = write!(out, "%!{verb}(MISSING)");
            }
            Some(v) => out.push_str(&one(verb, v, &spec)),
        }
        args_used += 1;
    }
    if let Some(extra) = args.get(args_used..).filter(|e| !e.is_empty()) {
        let list: Vec<String> = extra
            .iter()
            .map(|v| match v {
                Value::Nil => "<nil>".to_owned(),
                v => format!("{}={v}", v.type_name()),
            })
            .collect();
        let _ = write!(out, "%!(EXTRA {})", list.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printf_is_gos() {
        let f = [Value::Float(2.71875)];
        let cases: [(&str, &[Value], &str); 16] = [
            ("%.2f", &f, "2.72"),
            ("%v", &f, "2.71875"),
            ("%8.1f|", &f, "     2.7|"),
            ("%-8.1f|", &f, "2.7     |"),
            ("%08.1f", &[Value::Float(-2.75)], "-00002.8"),
            ("%d items", &[Value::Int(5)], "5 items"),
            ("%q", &["a\"b".into()], "\"a\\\"b\""),
            ("%x", &["hi".into()], "6869"),
            ("%d", &["x".into()], "%!d(string=x)"),
            ("%d", &[], "%!d(MISSING)"),
            ("a", &[Value::Int(1)], "a%!(EXTRA int=1)"),
            ("%e", &[Value::Float(1234.5)], "1.234500e+03"),
            ("%g", &[Value::Float(1e21)], "1e+21"),
            ("%.3g", &[Value::Float(1234.5)], "1.23e+03"),
            ("100%%", &[], "100%"),
            ("%t", &[Value::Bool(true)], "true"),
        ];
        for (format, args, want) in cases {
            assert_eq!(printf(format, args), want, "{format}");
        }
    }

    #[test]
    fn floats_print_like_v() {
        assert_eq!(format_float_g(1e20), "100000000000000000000");
        assert_eq!(format_float_g(1e21), "1e+21");
        assert_eq!(format_float_g(0.00001), "1e-05");
        assert_eq!(format_float_g(0.1), "0.1");
    }
}
