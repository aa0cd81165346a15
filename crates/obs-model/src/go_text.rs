//! Strings as Go writes them.

/// Reads the string that `text` begins with, in double quotes with Go's escapes or in backquotes as it
/// stands; returns it and its length in bytes. What is not UTF-8 is replaced. `None` when it does not
/// end or an escape is none.
pub fn go_unquote(text: &str) -> Option<(String, usize)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (raw, _) = raw.split_once('`')?;
        return Some((raw.to_owned(), raw.len() + 2));
    }
    if !text.starts_with('"') {
        return None;
    }
    let mut out: Vec<u8> = Vec::new();
    let mut at = 1;
    loop {
        let tail = text.get(at..)?;
        let plain = tail.find(['"', '\\', '\n'])?;
        out.extend_from_slice(tail.get(..plain)?.as_bytes());
        at += plain + 1;
        match tail.as_bytes().get(plain)? {
            b'"' => return Some((String::from_utf8_lossy(&out).into_owned(), at)),
            b'\\' => {}
            _ => return None,
        }
        let letter = text.get(at..)?.chars().next()?;
        let (skip, digits, radix) = match letter {
            'x' => (1, 2, 16),
            'u' => (1, 4, 16),
            'U' => (1, 8, 16),
            '0'..='7' => (0, 3, 8),
            _ => (1, 0, 0),
        };
        let code = text.get(at + skip..at + skip + digits);
        at += skip + digits;
        if digits > 0 {
            let code = u32::from_str_radix(code?, radix).ok()?;
            if matches!(letter, 'u' | 'U') {
                out.extend_from_slice(char::from_u32(code)?.to_string().as_bytes());
            } else {
                out.push(u8::try_from(code).ok()?);
            }
            continue;
        }
        out.push(match letter {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '"' => b'"',
            '\\' => b'\\',
            _ => return None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_have_gos_escapes() {
        for (text, want) in [
            (r#""a\"b\\n\n""#, Some("a\"b\\n\n")),
            (r#""\x41\u00fc\U0001F600\101""#, Some("Aü😀A")),
            (r#""\d""#, None),
            (r#""open"#, None),
            (r#"`a\n"b` c"#, Some("a\\n\"b")),
            ("`open", None),
            ("plain", None),
        ] {
            assert_eq!(go_unquote(text).map(|q| q.0).as_deref(), want, "{text}");
        }
    }
}
