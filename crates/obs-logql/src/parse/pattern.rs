//! Patterns: literals and captures, `<ip> - - <_> "<method> <path>"`.

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// Empty for `<_>`.
    Capture(String),
}

/// A pattern of the parser stage or of the line filter `|>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

impl Pattern {
    fn new(text: &str) -> Result<Self, String> {
        let mut parts: Vec<Part> = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let name = rest.strip_prefix('<').and_then(|r| r.split_once('>')).map(|(n, _)| n);
            let is_name = |n: &&str| {
                !n.is_empty()
                    && !n.starts_with(|c: char| c.is_ascii_digit())
                    && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            };
            if let Some(name) = name.filter(is_name) {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                if let Some(Part::Capture(before)) = parts.last() {
                    let shown = |n: &str| if n.is_empty() { "_".to_owned() } else { n.to_owned() };
                    return Err(format!(
                        "found consecutive capture '<{}><{name}>': literal are required between captures",
                        shown(before)
                    ));
                }
                parts.push(Part::Capture(if name == "_" { String::new() } else { name.into() }));
                rest = rest.get(name.len() + 2..).unwrap_or_default();
            } else {
                literal.push(c);
                rest = rest.get(c.len_utf8()..).unwrap_or_default();
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|p| match p {
            Part::Capture(n) if !n.is_empty() => Some(n.as_str()),
            _ => None,
        })
    }

    /// Reads the pattern of a `pattern` stage.
    ///
    /// # Errors
    /// In Loki's words: captures without a literal between, none that is named, or one name twice.
    pub(crate) fn of_parser(text: &str) -> Result<Self, String> {
        let out = Self::new(text)?;
        let mut names: Vec<&str> = out.names().collect();
        if names.is_empty() {
            return Err("at least one capture is required".into());
        }
        names.sort_unstable();
        let twice = names.windows(2).find(|w| w.first() == w.last()).and_then(|w| w.first());
        match twice {
            Some(name) => Err(format!("duplicate capture name ({name}): invalid expression")),
            None => Ok(out),
        }
    }

    /// Reads the pattern of a line filter.
    ///
    /// # Errors
    /// When it names a capture or has two without a literal between.
    pub(crate) fn of_filter(text: &str) -> Result<Self, String> {
        let out = Self::new(text)?;
        let is_named = out.names().next().is_some();
        if is_named { Err("named captures are not allowed".into()) } else { Ok(out) }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Hands over the captures of a line, up to where it stops matching.
    pub(crate) fn captures<'a>(&self, line: &'a str, mut found: impl FnMut(&str, &'a str)) {
        let mut rest = line;
        let mut parts = self.parts.as_slice();
        if line.is_empty() {
            return;
        }
        if let [Part::Literal(l), tail @ ..] = parts {
            let Some(after) = rest.strip_prefix(l.as_str()) else { return };
            (rest, parts) = (after, tail);
        }
        while let [Part::Capture(name), tail @ ..] = parts {
            let at = match tail {
                [Part::Literal(l), ..] => rest.find(l.as_str()).map(|at| (at, l.len())),
                _ => None,
            };
            let value = at.map_or(rest, |(at, _)| rest.get(..at).unwrap_or_default());
            if !name.is_empty() {
                found(name, value);
            }
            let Some((at, len)) = at else { return };
            rest = rest.get(at + len..).unwrap_or_default();
            parts = tail.get(1..).unwrap_or_default();
        }
    }

    /// Returns whether a whole line has the pattern's form; a capture at its end takes at least
    /// one character.
    pub(crate) fn matches(&self, line: &str) -> bool {
        if self.parts.is_empty() || line.is_empty() {
            return self.parts.is_empty() && line.is_empty();
        }
        let mut rest = line;
        for (i, part) in self.parts.iter().enumerate() {
            let Part::Literal(l) = part else { continue };
            match rest.find(l.as_str()) {
                Some(at) if i > 0 || at == 0 => rest = rest.get(at + l.len()..).unwrap_or_default(),
                _ => return false,
            }
        }
        matches!(self.parts.last(), Some(Part::Capture(_))) != rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures() {
        let got = |pattern: &str, line: &str| {
            let mut out = Vec::new();
            let pattern = Pattern::of_parser(pattern).unwrap();
            pattern.captures(line, |n, v| out.push(format!("{n}={v}")));
            out.join(" ")
        };
        assert_eq!(got("<ip> - <_> [<t>]", "1.2.3.4 - me [now] x"), "ip=1.2.3.4 t=now");
        assert_eq!(got("a <x> b <y>", "a 1 c"), "x=1 c");
        assert_eq!(got("a <x>", "b a 1"), "");
        assert_eq!(got("<x>", "all of it"), "x=all of it");
        assert_eq!(got("<path>?<_>", "/a"), "path=/a");
        for wrong in ["", "<_>", "<a><b>", "<_><b>", "<a> <a>", "plain"] {
            assert!(Pattern::of_parser(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn line_filters() {
        for (pattern, line, want) in [
            ("foo <_> bar", "foo x bar", true),
            ("foo <_> bar", "foo x bar!", false),
            ("<_>bar", "foobar", true),
            ("foo<_>", "foo", false),
            ("foo<_>", "foox", true),
            ("foo", "foo", true),
            ("foo", "xfoo", false),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(
                Pattern::of_filter(pattern).unwrap().matches(line),
                want,
                "{pattern} {line}"
            );
        }
        assert!(Pattern::of_filter("<a>").is_err());
    }
}
