//! Numbers as Prometheus' JSON prints them.

use obs_model::Histogram;

/// Formats a float like Go's `strconv.FormatFloat(f, 'f', -1, 64)`, with an exponent below 1e-6
/// and from 1e21, `NaN`, `+Inf` and `-Inf`.
pub fn format_float(f: f64) -> String {
    if f.is_nan() {
        return "NaN".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let magnitude = f.abs();
    if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let text = format!("{f:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{f}")
}

/// Formats a native histogram as Prometheus' `FloatHistogram.String` does.
pub(crate) fn format_histogram(h: &Histogram) -> String {
    let mut out = format!("{{count:{}, sum:{}", format_general(h.count), format_general(h.sum));
    for b in h.buckets() {
        let (open, close) =
            (if b.lower_inclusive { '[' } else { '(' }, if b.upper_inclusive { ']' } else { ')' });
        let (lower, upper, n) =
            (format_general(b.lower), format_general(b.upper), format_general(b.count));
        out.push_str(&format!(", {open}{lower},{upper}{close}:{n}"));
    }
    out.push('}');
    out
}

/// Formats a float like Go's `%g`: an exponent below 1e-4 and from 1e21.
pub(crate) fn format_general(f: f64) -> String {
    let magnitude = f.abs();
    if magnitude != 0.0 && magnitude < 1e-4 {
        let text = format!("{f:e}");
        let (mantissa, exponent) = text.split_once("e-").unwrap_or((&text, "0"));
        return format!("{mantissa}e-{exponent:0>2}");
    }
    format_float(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_go_prints_them() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.5, "1.5"),
            (1e21, "1e+21"),
            (1e-7, "1e-07"),
            (123456789.0, "123456789"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Inf"),
            (0.1, "0.1"),
        ];
        for (f, want) in cases {
            assert_eq!(format_float(f), want);
        }
    }
}
