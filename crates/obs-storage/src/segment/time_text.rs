//! Times as RFC 3339 prints them, when they print back as they were.

/// The digits after the second, and the sign between date and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    fraction: u8,
    space: bool,
}

/// Days from 0000-03-01 to 1970-01-01 in the proleptic Gregorian calendar.
const EPOCH_DAYS: i64 = 719_468;
const DAYS_PER_ERA: i64 = 146_097;

/// Returns days since 1970 (after Hinnant's civil calendar algorithms).
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let shifted = (month + 9) % 12;
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    era * DAYS_PER_ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year
        - EPOCH_DAYS
}

const fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + EPOCH_DAYS;
    let (era, day_of_era) = (z.div_euclid(DAYS_PER_ERA), z.rem_euclid(DAYS_PER_ERA));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + if month <= 2 { 1 } else { 0 }, month, day)
}

impl Shape {
    /// Returns the shape of a text like `2026-01-02T03:04:05.678Z`.
    pub(crate) fn of(text: &[u8]) -> Option<Self> {
        let fraction = match text.len() {
            20 => 0,
            n @ 22..=30 => n - 21,
            _ => return None,
        };
        let shape = Self { fraction: fraction as u8, space: text.get(10) == Some(&b' ') };
        shape.parse(text).map(|_| shape)
    }

    pub(crate) const fn to_byte(self) -> u8 {
        self.fraction | if self.space { 0x10 } else { 0 }
    }

    pub(crate) const fn from_byte(b: u8) -> Option<Self> {
        let fraction = b & 0x0f;
        if fraction > 9 { None } else { Some(Self { fraction, space: b & 0x10 != 0 }) }
    }

    const fn unit_ns(self) -> i64 {
        10_i64.pow(9 - self.fraction as u32)
    }

    /// Returns a time in units of the last printed digit.
    pub(crate) const fn units(self, ns: i64) -> i64 {
        ns.div_euclid(self.unit_ns())
    }

    /// Reads a text of this shape, in units; `None` unless it prints back the same.
    pub(crate) fn parse(self, text: &[u8]) -> Option<i64> {
        let number = |from: usize, to: usize| -> Option<i64> {
            text.get(from..to)?
                .iter()
                .try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
        };
        let n = usize::from(self.fraction);
        let end = if n == 0 { 19 } else { 20 + n };
        let sign = |i: usize, b: u8| text.get(i) == Some(&b);
        let between = if self.space { b' ' } else { b'T' };
        let framed = text.len() == end + 1
            && sign(4, b'-')
            && sign(7, b'-')
            && sign(10, between)
            && sign(13, b':')
            && sign(16, b':')
            && (n == 0 || sign(19, b'.'))
            && sign(end, b'Z');
        if !framed {
            return None;
        }
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        let date = days(year, month, day);
        let plain = (1..=12).contains(&month) && hour < 24 && minute < 60 && second < 60;
        if !plain || civil(date) != (year, month, day) {
            return None;
        }
        let fraction = if n == 0 { 0 } else { number(20, 20 + n)? };
        let seconds = date * 86_400 + hour * 3600 + minute * 60 + second;
        seconds.checked_mul(10_i64.pow(self.fraction.into()))?.checked_add(fraction)
    }

    /// Appends the text of a time in units.
    pub(crate) fn print(self, units: i64, out: &mut Vec<u8>) {
        fn put(out: &mut Vec<u8>, v: i64, width: u32) {
            for i in (0..width).rev() {
                out.push(b'0' + (v / 10_i64.pow(i)).rem_euclid(10) as u8);
            }
        }
        let per_second = 10_i64.pow(self.fraction.into());
        let (seconds, fraction) = (units.div_euclid(per_second), units.rem_euclid(per_second));
        let (year, month, day) = civil(seconds.div_euclid(86_400));
        let second = seconds.rem_euclid(86_400);
        put(out, year, 4);
        out.push(b'-');
        put(out, month, 2);
        out.push(b'-');
        put(out, day, 2);
        out.push(if self.space { b' ' } else { b'T' });
        put(out, second / 3600, 2);
        out.push(b':');
        put(out, second / 60 % 60, 2);
        out.push(b':');
        put(out, second % 60, 2);
        if self.fraction > 0 {
            out.push(b'.');
            put(out, fraction, self.fraction.into());
        }
        out.push(b'Z');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_back_or_are_refused() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2024-02-29T23:59:59.999999999Z",
            "2026-11-21 14:00:00.5Z",
            "0001-01-01T00:00:00.000Z",
        ] {
            let shape = Shape::of(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            let mut out = Vec::new();
            shape.print(shape.parse(text.as_bytes()).unwrap(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
            assert_eq!(Shape::from_byte(shape.to_byte()), Some(shape));
        }
        for text in ["2023-02-29T00:00:00Z", "2024-01-01T24:00:00Z", "2024-1-01T00:00:00ZZ", ""] {
            assert_eq!(Shape::of(text.as_bytes()), None, "{text}");
        }
        let shape = Shape::of(b"2001-09-09T01:46:40Z").unwrap();
        assert_eq!(shape.parse(b"2001-09-09T01:46:40Z"), Some(1_000_000_000));
    }
}
