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

/// Writes milliseconds as Prometheus does: `1h30m`, weeks and years only where they fit exactly.
pub fn format_ms(ms: i64) -> String {
    const UNITS: [(&str, i64, bool); 7] = [
        ("y", 31_536_000_000, true),
        ("w", 604_800_000, true),
        ("d", 86_400_000, false),
        ("h", 3_600_000, false),
        ("m", 60_000, false),
        ("s", 1000, false),
        ("ms", 1, false),
    ];
    if ms == 0 {
        return "0s".into();
    }
    let mut out = if ms < 0 { "-".to_owned() } else { String::new() };
    let mut left = ms.saturating_abs();
    for (unit, size, exact) in UNITS {
        if left >= size && !(exact && left % size != 0) {
            out.push_str(&format!("{}{unit}", left / size));
            left %= size;
        }
    }
    out
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
    fn durations_are_written_as_prometheus_does() {
        let cases =
            [(0, "0s"), (604_800_000, "1w"), (691_200_000, "8d"), (90_061_001, "1d1h1m1s1ms")];
        for (ms, want) in cases {
            assert_eq!(format_ms(ms), want);
        }
    }

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
