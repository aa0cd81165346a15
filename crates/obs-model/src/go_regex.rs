//! Regular expressions as Go writes them (RE2), for the engine that we use.

use regex::Regex;

/// Compiled size past which a pattern is refused, in bytes.
pub(crate) const REGEX_BYTES_MAX: usize = 1 << 20;

/// Compiles an unanchored pattern in RE2's syntax.
///
/// # Errors
/// When it is no regular expression or too large.
pub fn go_regex(pattern: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(&translate(pattern)).size_limit(REGEX_BYTES_MAX).build()
}

/// Returns whether a text that follows `{` makes it a repetition: `3}`, `3,}`, `3,5}`.
fn is_repetition(rest: &str) -> bool {
    let Some((inner, _)) = rest.split_once('}') else { return false };
    let (low, high) = inner.split_once(',').unwrap_or((inner, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

/// Rewrites what the two dialects read differently: RE2 takes a brace that repeats nothing for
/// itself, quotes with `\Q…\E`, and knows no nested classes, set operators or word-edge escapes.
pub(crate) fn translate(pattern: &str) -> String {
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
                    _ => out.extend(['\\', escaped]),
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
        ] {
            assert_eq!(go_regex(pattern).unwrap().is_match(text), want, "{pattern}");
        }
        assert!(go_regex("(").is_err());
        assert!(go_regex(r"\").is_err());
    }
}
