//! Regular expressions as Go writes them (RE2), for the engine that we use.

use regex::Regex;

/// Compiled size past which a pattern is refused, in bytes.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// Compiles an unanchored pattern in RE2's syntax.
///
/// # Errors
/// When it is no regular expression or too large.
pub fn go_regex(pattern: &str) -> Result<Regex, regex::Error> {
    compile(&translate(pattern))
}

/// Compiles a pattern in RE2's syntax that a whole text must match, as Prometheus anchors those of
/// matchers, relabelling and `label_replace`: a dot matches a line break too.
///
/// # Errors
/// When it is no regular expression or too large.
pub fn anchored_regex(pattern: &str) -> Result<Regex, regex::Error> {
    compile(&format!("^(?s:{})$", translate(pattern)))
}

fn compile(translated: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(translated).size_limit(REGEX_BYTES_MAX).build()
}

/// Returns a class of ASCII characters, which is what RE2 means by these escapes.
const fn ascii_class(escaped: char, in_class: bool) -> Option<&'static str> {
    Some(match escaped {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        'w' => "[0-9A-Za-z_]",
        'W' => "[^0-9A-Za-z_]",
        's' => "[\\t\\n\\f\\r ]",
        'S' => "[^\\t\\n\\f\\r ]",
        'b' if !in_class => "(?-u:\\b)",
        'B' if !in_class => "(?-u:\\B)",
        _ => return None,
    })
}

/// Returns whether a text that follows `{` makes it a repetition: `3}`, `3,}`, `3,5}`.
fn is_repetition(rest: &str) -> bool {
    let Some((inner, _)) = rest.split_once('}') else { return false };
    let (low, high) = inner.split_once(',').unwrap_or((inner, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

/// Rewrites what the two dialects read differently: RE2 takes a brace that repeats nothing for
/// itself, quotes with `\Q…\E`, takes `\d`, `\w`, `\s` and `\b` for ASCII, and knows no nested classes, set operators or word-edge escapes.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        rest = after;
        match c {
            '\\' => {
                let Some(escaped) = after.chars().next() else {
                    out.push('\\');
                    break;
                };
                rest = after.get(escaped.len_utf8()..).unwrap_or_default();
                match escaped {
                    'Q' if !in_class => {
                        let (quoted, tail) = rest.split_once("\\E").unwrap_or((rest, ""));
                        out.push_str(&regex::escape(quoted));
                        rest = tail;
                    }
                    '<' | '>' => out.push(escaped),
                    'p' | 'P' | 'x' if rest.starts_with('{') => {
                        let (name, tail) = rest.split_once('}').unwrap_or((rest, ""));
                        out.extend(['\\', escaped]);
                        out.push_str(name);
                        out.push('}');
                        rest = tail;
                    }
                    _ => match ascii_class(escaped, in_class) {
                        Some(class) => out.push_str(class),
                        None => out.extend(['\\', escaped]),
                    },
                }
            }
            '[' if in_class => {
                if rest.starts_with(':') {
                    let (name, tail) = rest.split_once(":]").unwrap_or((rest, ""));
                    out.push('[');
                    out.push_str(name);
                    out.push_str(":]");
                    rest = tail;
                } else {
                    out.push_str("\\[");
                }
            }
            '&' | '~' if in_class => out.extend(['\\', c]),
            '[' => {
                in_class = true;
                out.push('[');
                if let Some(tail) = rest.strip_prefix('^') {
                    out.push('^');
                    rest = tail;
                }
                // A bracket that comes first is a member.
                if let Some(tail) = rest.strip_prefix(']') {
                    out.push_str("\\]");
                    rest = tail;
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '{' if !in_class && (out.is_empty() || !is_repetition(rest)) => out.push_str("\\{"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, text, want) in [
            (r#"{"level":"\w+""#, r#"{"level":"info"}"#, true),
            ("a{2}b", "aab", true),
            ("a{2,}b", "ab", false),
            ("x{y}", "x{y}", true),
            (r"\Qa.b\E+", "a.bb", true),
            (r"\Qa.b\E", "axb", false),
            ("[[a]", "[", true),
            ("[]a]", "]", true),
            ("[[:alpha:]_]+", "ab_", true),
            ("[a&&b]", "&", true),
            (r"\<b\>", "<b>", true),
            ("(?i)ERR", "err", true),
            (r"^\p{Greek}+$", "αβγ", true),
            (r"^[\p{Lu}\x{4f60}]+$", "A你", true),
            (r"\PL", "a", false),
            (r"^\d+$", "٣", false),
            (r"^[\d.]+$", "1.5", true),
            (r"^[^\d]$", "٣", true),
            (r"^\D$", "٣", true),
            (r"^\w+$", "né", false),
            (r"^[\w-.]+$", "a-b_1.", true),
            (r"^[\W]$", "é", true),
            (r"^\s$", "\u{a0}", false),
            (r"^a[\s]b\sc$", "a b\tc", true),
            (r"^\S$", "\u{a0}", true),
            (r"\bx", "éx", true),
            (r"n\B.", "né", false),
            (r"n\B.", "nn", true),
        ] {
            assert_eq!(go_regex(pattern).unwrap().is_match(text), want, "{pattern}");
        }
        assert!(go_regex("(").is_err());
        assert!(go_regex(r"\").is_err());
    }
}
