//! Timestamps: milliseconds for metrics, nanoseconds for logs and spans, never mixed.

use std::fmt;

/// Milliseconds since the Unix epoch, the resolution of samples (Prometheus' own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimestampMs(i64);

/// Nanoseconds since the Unix epoch, the resolution of log records and spans (OTLP's own).
///
/// The representable range ends in the year 2262; conversions saturate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimestampNs(i64);

impl TimestampMs {
    pub const MIN: Self = Self(i64::MIN);
    pub const MAX: Self = Self(i64::MAX);

    /// Wraps milliseconds since the epoch.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms)
    }

    /// Returns milliseconds since the epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Returns seconds since the epoch with millisecond precision.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// Returns the same instant in nanoseconds, saturating outside the years 1677–2262.
    pub const fn to_nanos(self) -> TimestampNs {
        TimestampNs(self.0.saturating_mul(1_000_000))
    }

    /// Returns the instant `ms` milliseconds later (earlier when negative), saturating.
    pub const fn add_millis(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl TimestampNs {
    pub const MIN: Self = Self(i64::MIN);
    pub const MAX: Self = Self(i64::MAX);

    /// Wraps nanoseconds since the epoch.
    pub const fn from_nanos(ns: i64) -> Self {
        Self(ns)
    }

    /// Wraps the unsigned nanoseconds of OTLP; `None` past the year 2262.
    pub fn from_unsigned(ns: u64) -> Option<Self> {
        i64::try_from(ns).ok().map(Self)
    }

    /// Returns nanoseconds since the epoch.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Returns the millisecond that contains this instant.
    pub const fn to_millis(self) -> TimestampMs {
        TimestampMs(self.0.div_euclid(1_000_000))
    }

    /// Returns the instant `ns` nanoseconds later (earlier when negative), saturating.
    pub const fn add_nanos(self, ns: i64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

impl fmt::Display for TimestampNs {
    /// Writes RFC 3339 in UTC with nine decimals, as Go's `RFC3339Nano` would pad it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.div_euclid(1_000_000_000);
        let nanos = self.0.rem_euclid(1_000_000_000);
        let (y, mo, d) = civil_from_days(secs.div_euclid(86_400));
        let s = secs.rem_euclid(86_400);
        write!(
            f,
            "{y:04}-{mo:02}-{d:02}T{:02}:{:02}:{:02}.{nanos:09}Z",
            s / 3600,
            s / 60 % 60,
            s % 60
        )
    }
}

impl fmt::Display for TimestampMs {
    /// Writes RFC 3339 in UTC with three decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.div_euclid(1000);
        let ms = self.0.rem_euclid(1000);
        let (y, mo, d) = civil_from_days(secs.div_euclid(86_400));
        let s = secs.rem_euclid(86_400);
        write!(f, "{y:04}-{mo:02}-{d:02}T{:02}:{:02}:{:02}.{ms:03}Z", s / 3600, s / 60 % 60, s % 60)
    }
}

/// Nanoseconds of a day.
pub const DAY_NS: i64 = 86_400_000_000_000;

/// Proleptic Gregorian date (year, month, day) of a day number since 1970-01-01 (Howard Hinnant's algorithm).
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, month as u32, day as u32)
}

/// Day number since 1970-01-01 of a proleptic Gregorian date; the inverse of [`civil_from_days`].
pub fn days_from_civil(y: i64, m: i64, d: i64) -> i64 {
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (if m > 2 { m - 3 } else { m + 9 }) + 2) / 5 + d - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

impl TimestampNs {
    /// Parses a date, `2026-11-01`: its beginning in UTC.
    pub fn parse_day(text: &str) -> Option<Self> {
        Self::parse_rfc3339(&format!("{text}T00:00:00Z"))
    }

    /// Parses RFC 3339 (`2026-01-02T03:04:05.678Z`, offsets allowed); `None` if it is not one.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let b = text.as_bytes();
        let num = |from: usize, to: usize| -> Option<i64> {
            let part = text.get(from..to)?;
            part.bytes().all(|c| c.is_ascii_digit()).then(|| part.parse().ok())?
        };
        let sep = |at: usize, c: &[u8]| b.get(at).is_some_and(|x| c.contains(x));
        if !(sep(4, b"-") && sep(7, b"-") && sep(10, b"Tt ") && sep(13, b":") && sep(16, b":")) {
            return None;
        }
        let (y, mo, d) = (num(0, 4)?, num(5, 7)?, num(8, 10)?);
        let (h, mi, s) = (num(11, 13)?, num(14, 16)?, num(17, 19)?);
        if !(1..=12).contains(&mo) || !(1..=31).contains(&d) || h > 23 || mi > 59 || s > 60 {
            return None;
        }
        let mut at = 19;
        let mut nanos = 0_i64;
        if sep(at, b".") {
            let end = b.iter().skip(at + 1).position(|c| !c.is_ascii_digit());
            let end = end.map_or(b.len(), |n| at + 1 + n);
            let digits = text.get(at + 1..end)?;
            let padded = format!("{digits:0<9}");
            nanos = padded.get(..9)?.parse().ok()?;
            at = end;
        }
        let offset = match text.get(at..)? {
            "Z" | "z" => 0,
            zone => {
                let sign = if zone.starts_with('-') { -1 } else { 1 };
                let (oh, om) = (zone.get(1..3)?, zone.get(4..6)?);
                if !zone.starts_with(['+', '-']) || zone.len() != 6 {
                    return None;
                }
                sign * (oh.parse::<i64>().ok()? * 3600 + om.parse::<i64>().ok()? * 60)
            }
        };
        let secs = days_from_civil(y, mo, d) * 86_400 + h * 3600 + mi * 60 + s - offset;
        secs.checked_mul(1_000_000_000)?.checked_add(nanos).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_survives_a_round_trip() {
        for text in [
            "1970-01-01T00:00:00.000000000Z",
            "2026-11-20T12:25:59.123456789Z",
            "1999-12-31T23:59:59.000000001Z",
        ] {
            assert_eq!(TimestampNs::parse_rfc3339(text).unwrap().to_string(), text);
        }
        assert_eq!(
            TimestampNs::parse_rfc3339("2026-01-01T01:00:00+01:00"),
            TimestampNs::parse_rfc3339("2026-01-01T00:00:00Z")
        );
    }

    #[test]
    fn what_is_not_a_date_is_refused() {
        for text in [
            "",
            "now",
            "2026-13-01T00:00:00Z",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "éééééééééééééééééééé",
        ] {
            assert_eq!(TimestampNs::parse_rfc3339(text), None, "{text}");
        }
    }
}
