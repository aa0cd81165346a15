//! Durations as PromQL and LogQL write them.

/// Parses `1h30m`, `500ms`, `1d` into milliseconds; units in falling order, each once. `None` for
/// anything else, zero included only as `0s`-like forms.
pub fn parse_ms(text: &str) -> Option<i64> {
    const UNITS: [(&str, i64); 7] = [
        ("y", 31_536_000_000),
        ("w", 604_800_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ];
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut total = 0_i64;
    let mut from = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: i64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = rest.get(..letters)?;
        let at = UNITS.iter().position(|(u, _)| *u == unit)?;
        if at < from {
            return None;
        }
        from = at + 1;
        total = total.checked_add(number.checked_mul(UNITS.get(at)?.1)?)?;
        rest = rest.get(letters..)?;
    }
    Some(total)
}

/// Parses an HTTP API duration: a PromQL duration or a number of seconds.
pub fn parse_api_ms(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        let ms = seconds * 1000.0;
        return (ms.is_finite() && ms.abs() < 9.2e18).then_some(ms.round() as i64);
    }
    parse_ms(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text, want| assert_eq!(parse_ms(text), want, "{text}");
        check("5m", Some(300_000));
        check("1h30m", Some(5_400_000));
        check("1d", Some(86_400_000));
        check("250ms", Some(250));
        check("1s500ms", Some(1500));
        for bad in ["", "5", "m", "1m1h", "1m1m", "5 m", "-5m", "1.5h", "99999999999y"] {
            check(bad, None);
        }
    }
}
