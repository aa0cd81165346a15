//! Matchers as Alertmanager writes them: `name="value"`, `{a="b",c=~"d.*"}`, names and values with
//! or without quotes.
//!
//! Two grammars are in use: the older, whose names are those of Prometheus and whose values may be
//! anything, and that of 0.27, whose names may be any text. A text that both read, reads as before.

use obs_model::{MatchOp, Matcher};

const OPERATORS: [(&str, MatchOp); 4] = [
    ("=~", MatchOp::Regex),
    ("!~", MatchOp::NotRegex),
    ("!=", MatchOp::NotEqual),
    ("=", MatchOp::Equal),
];

/// Splits at commas outside of quotes.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut out, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                out.push(text.get(start..i).unwrap_or_default());
                start = i + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return Err(format!("matcher value contains unescaped double quote: {text}"));
    }
    out.push(text.get(start..).unwrap_or_default());
    // A comma may end the list.
    if out.len() > 1 && out.last().is_some_and(|l| l.trim().is_empty()) {
        out.pop();
    }
    Ok(out)
}

/// Takes the quotes off a text and resolves `\"`, `\\` and `\n`; other backslashes stay.
fn unquote(text: &str) -> Result<String, String> {
    let inner = match text.strip_prefix('"') {
        Some(rest) => rest
            .strip_suffix('"')
            .filter(|_| text.len() > 1)
            .ok_or_else(|| format!("matcher value contains unescaped double quote: {text}"))?,
        None => text,
    };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Err(format!("matcher value contains unescaped double quote: {text}")),
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(c @ ('"' | '\\')) => out.push(c),
                Some(c) => out.extend(['\\', c]),
                None => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Returns where the name ends.
fn name_end(text: &str) -> usize {
    let Some(rest) = text.strip_prefix('"') else {
        return text.find(['=', '!', '~', ',', '{', '}']).unwrap_or(text.len());
    };
    let mut escaped = false;
    for (i, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return i + 2,
            _ => {}
        }
    }
    text.len()
}

/// Parses one matcher.
///
/// # Errors
/// With what is wrong with it.
pub fn parse_matcher(text: &str) -> Result<Matcher, String> {
    let trimmed = text.trim();
    let bad = || format!("bad matcher format: {text}");
    let (name, rest) = trimmed.split_at(name_end(trimmed));
    let rest = rest.trim_start();
    let (sign, op) = OPERATORS.iter().find(|(s, _)| rest.starts_with(s)).ok_or_else(bad)?;
    let name = unquote(name.trim())?;
    if name.is_empty() || (!trimmed.starts_with('"') && name.contains(char::is_whitespace)) {
        return Err(bad());
    }
    let value = unquote(rest.get(sign.len()..).unwrap_or_default().trim())?;
    Matcher::new(name, *op, value).map_err(|e| e.to_string())
}

/// Parses a list of matchers, in braces or not.
///
/// # Errors
/// With what is wrong.
pub fn parse_matchers(text: &str) -> Result<Vec<Matcher>, String> {
    let trimmed = text.trim();
    let inner = match (trimmed.strip_prefix('{'), trimmed.ends_with('}')) {
        (Some(rest), true) => rest.get(..rest.len() - 1).unwrap_or_default(),
        (None, false) => trimmed,
        _ => return Err(format!("bad matcher format: {text}")),
    };
    if inner.trim().is_empty() {
        return Ok(Vec::new());
    }
    split(inner)?.into_iter().map(parse_matcher).collect()
}

/// Writes a matcher as Alertmanager does.
pub fn matcher_text(m: &Matcher) -> String {
    let plain = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    if m.name.chars().all(plain) {
        format!("{}{}{:?}", m.name, m.op, m.value)
    } else {
        format!("{:?}{}{:?}", m.name, m.op, m.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_read_as_in_alertmanager() {
        let all = |text: &str| match parse_matchers(text) {
            Ok(list) => list.iter().map(matcher_text).collect::<Vec<_>>().join(","),
            Err(e) => e,
        };
        for (text, want) in [
            ("{}", ""),
            ("", ""),
            ("foo=bar", r#"foo="bar""#),
            (r#"{foo="bar"}"#, r#"foo="bar""#),
            (r#" { foo = "bar" , baz!~"a|b" } "#, r#"foo="bar",baz!~"a|b""#),
            (r#"foo="a,b",c!=d,"#, r#"foo="a,b",c!="d""#),
            ("foo=", r#"foo="""#),
            ("foo=bar=baz", r#"foo="bar=baz""#),
            (r"foo=~\d+", r#"foo=~"\\d+""#),
            (r#""a.b"=c"#, r#""a.b"="c""#),
            ("höst=x", r#"höst="x""#),
            (r#"foo="a\nb\"c""#, r#"foo="a\nb\"c""#),
            ("foo", "bad matcher format: foo"),
            ("{foo=bar", "bad matcher format: {foo=bar"),
            ("foo bar=1", "bad matcher format: foo bar=1"),
        ] {
            assert_eq!(all(text), want, "{text}");
        }
        assert!(all(r#"foo="bar"#).contains("unescaped double quote"));
        assert!(all("foo=~(").contains("invalid regular expression"));
    }
}
