//! Durations and sizes, as queries write them and as labels carry them.

/// Reads Go's durations: `1.5s`, `1h30m`, `-200µs`. Nanoseconds.
///
/// # Errors
/// In Go's words.
pub(crate) fn go_duration_ns(text: &str) -> Result<f64, String> {
    let quoted = format!("{text:?}");
    let invalid = || format!("time: invalid duration {quoted}");
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(r) => (-1.0, r),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let len = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (digits, tail) = rest.split_at(len);
        let number: f64 = digits.parse().map_err(|_| invalid())?;
        let len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(len);
        let factor = match unit {
            "" => return Err(format!("time: missing unit in duration {quoted}")),
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 6e10,
            "h" => 3.6e12,
            _ => return Err(format!("time: unknown unit {unit:?} in duration {quoted}")),
        };
        total += number * factor;
        rest = tail;
    }
    if total > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok((sign * total).trunc())
}

/// Reads a duration of a query: Prometheus' (`1d`, `2w`) or Go's. Nanoseconds.
///
/// # Errors
/// In Go's words.
pub(crate) fn query_duration_ns(text: &str) -> Result<f64, String> {
    match obs_promql::duration::parse_ms(text) {
        Some(ms) => Ok(ms as f64 * 1e6),
        None => go_duration_ns(text),
    }
}

/// Reads a size: `10KB`, `1.5 MiB`, `1,024`.
pub fn bytes(text: &str) -> Option<f64> {
    let len =
        text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ',')).unwrap_or(text.len());
    let (digits, unit) = text.split_at(len);
    let number: f64 = digits.replace(',', "").parse().ok()?;
    let unit = unit.trim().to_ascii_lowercase();
    let (letter, base) = match unit.as_str() {
        "" | "b" => return Some(number.trunc()),
        u => {
            let base = if u.ends_with("ib") || u.ends_with('i') { 1024.0 } else { 1000.0_f64 };
            let letter = u.trim_end_matches('b').trim_end_matches('i');
            (letter.to_owned(), base)
        }
    };
    let power = ["k", "m", "g", "t", "p", "e"].iter().position(|l| *l == letter)?;
    Some((number * base.powi(power as i32 + 1)).trunc())
}

/// Reads a number as Go's `strconv.ParseFloat` does.
///
/// # Errors
/// In Go's words.
pub(crate) fn go_float(text: &str) -> Result<f64, String> {
    let bare = text.trim_start_matches(['+', '-']);
    let is_word = bare.starts_with(|c: char| c.is_ascii_alphabetic());
    let known = ["inf", "infinity", "nan"].contains(&bare.to_ascii_lowercase().as_str());
    let parsed = text.parse().ok().filter(|_| !is_word || known);
    parsed.ok_or_else(|| format!("strconv.ParseFloat: parsing {text:?}: invalid syntax"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_in_go() {
        assert_eq!(go_duration_ns("1h30m"), Ok(5.4e12));
        assert_eq!(go_duration_ns("-1.5s"), Ok(-1.5e9));
        assert_eq!(go_duration_ns("0"), Ok(0.0));
        assert_eq!(go_duration_ns("5"), Err("time: missing unit in duration \"5\"".into()));
        assert_eq!(go_duration_ns("1d"), Err("time: unknown unit \"d\" in duration \"1d\"".into()));
        assert_eq!(go_duration_ns("x"), Err("time: invalid duration \"x\"".into()));
        assert_eq!(query_duration_ns("1d"), Ok(8.64e13));
        assert_eq!(query_duration_ns("1.5h"), Ok(5.4e12));
        assert_eq!(bytes("10KB"), Some(10_000.0));
        assert_eq!(bytes("1 MiB"), Some(1_048_576.0));
        assert_eq!(bytes("1,5"), Some(15.0));
        assert_eq!(bytes("5x"), None);
        assert_eq!(go_float("1e3"), Ok(1000.0));
        assert!(go_float("").is_err());
        assert!(go_float("-Inf").is_ok());
    }
}
