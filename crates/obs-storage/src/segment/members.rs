//! The members of a JSON object as a template of lines has them.
//!
//! A variable of a template holds no border: no quote that ends a string, and outside of strings
//! nothing but letters, digits, signs and points. So what is inside of what is the same in all
//! lines of a template, and can be found in the template itself.

use crate::segment::lines::HOLE;
use std::ops::Range;

/// A member of the outermost object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// The key as it stands, still escaped.
    pub(crate) key: Range<usize>,
    /// The member from its key's quote to the end of its value.
    pub(crate) all: Range<usize>,
    /// The variables in it, by number.
    pub(crate) holes: Range<usize>,
    /// Whether the value is an object or array.
    pub(crate) has_inside: bool,
    /// Whether the value is one variable, and nothing else.
    pub(crate) is_variable: bool,
    /// Whether it stands outside of quotes.
    pub(crate) is_literal: bool,
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    holes: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn take(&mut self, b: u8) -> Option<()> {
        (self.peek()? == b).then(|| self.at += 1)
    }

    /// Passes over a string's inside and its closing quote.
    fn string(&mut self) -> Option<Range<usize>> {
        let from = self.at;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(from..self.at - 1);
                }
                b'\\' => {
                    self.at += 1;
                    self.holes += usize::from(self.peek()? == HOLE);
                }
                b => self.holes += usize::from(b == HOLE),
            }
            self.at += 1;
        }
    }

    /// Passes over an object or array; only brackets of its own kind count.
    fn block(&mut self, open: u8, close: u8) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            let b = self.peek()?;
            self.at += 1;
            match b {
                b'"' => {
                    self.string()?;
                }
                HOLE => self.holes += 1,
                _ if b == open => depth += 1,
                _ if b == close => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(());
                    }
                }
                _ => {}
            }
        }
    }

    fn member(&mut self) -> Option<Member> {
        let (start, first) = (self.at, self.holes);
        self.take(b'"')?;
        let key = self.string()?;
        self.space();
        self.take(b':')?;
        self.space();
        let (from, mut is_literal, mut has_inside) = (self.at, false, false);
        let mut is_variable = false;
        match self.peek()? {
            b'"' => {
                self.at += 1;
                let inside = self.string()?;
                is_variable = self.text.get(inside)? == [HOLE];
            }
            b'{' => {
                has_inside = true;
                self.block(b'{', b'}')?;
            }
            b'[' => {
                has_inside = true;
                self.block(b'[', b']')?;
            }
            HOLE => {
                (is_literal, is_variable) = (true, true);
                self.holes += 1;
                self.at += 1;
                // What follows must end it.
                if !matches!(self.peek()?, b' ' | b'\n' | b'\r' | b'\t' | b',' | b'}' | b']') {
                    return None;
                }
            }
            _ => return None,
        }
        debug_assert!(from < self.at);
        let (all, holes) = (start..self.at, first..self.holes);
        Some(Member { key, all, holes, has_inside, is_variable, is_literal })
    }
}

/// Returns the members of a template that is an object without faults; what stands behind the
/// object does not count.
pub(crate) fn members(template: &[u8]) -> Option<Vec<Member>> {
    let mut r = Reader { text: template, at: 0, holes: 0 };
    r.take(b'{')?;
    r.space();
    let mut out = Vec::new();
    if r.peek()? == b'}' {
        return Some(out);
    }
    loop {
        let m = r.member()?;
        // A key that varies says nothing about the other lines.
        let key_varies = memchr::memchr(HOLE, template.get(m.key.clone())?).is_some();
        if key_varies {
            return None;
        }
        out.push(m);
        r.space();
        match r.peek()? {
            b'}' => return Some(out),
            b',' => {
                r.at += 1;
                r.space();
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_in_templates() {
        // Key, member, number of variables; `v` for a value that is one, `l` outside of quotes.
        let found = |t: &str| -> Option<String> {
            let t = t.replace('#', "\0");
            let of = |r: &Range<usize>| t[r.clone()].replace('\0', "#");
            let one = |m: &Member| {
                let (v, l) =
                    (if m.is_variable { "v" } else { "" }, if m.is_literal { "l" } else { "" });
                format!("{} {} {}{v}{l}", of(&m.key), of(&m.all), m.holes.len())
            };
            Some(members(t.as_bytes())?.iter().map(one).collect::<Vec<_>>().join("; "))
        };
        for (template, want) in [
            (r##"{"a":"#"}"##, r##"a "a":"#" 1v"##),
            (r##"{ "b" : #,"c":"x # #"} tail"##, r##"b "b" : # 1vl; c "c":"x # #" 2"##),
            (r##"{"d":{"e":[#,"}#"]},"f":[]}"##, r##"d "d":{"e":[#,"}#"]} 2; f "f":[] 0"##),
            (r##"{"a\"":"\\#"}"##, r##"a\" "a\"":"\\#" 1"##),
            ("{}", ""),
        ] {
            assert_eq!(found(template).as_deref(), Some(want), "{template}");
        }
        for odd in [
            "",
            "#",
            "{",
            r#"{"a"}"#,
            r##"{"a":#"##,
            r###"{"a":##}"###,
            r##"{"a":x}"##,
            r##"{"#":#}"##,
            r##"{"a":#,}"##,
            r##"{"a":"#}"##,
            r##"[{"a":#}]"##,
            r##"{"a":#x}"##,
        ] {
            assert_eq!(found(odd), None, "{odd}");
        }
    }
}
