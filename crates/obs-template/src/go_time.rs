//! Times by Go's layouts, which show how `Mon Jan 2 15:04:05 MST 2006` is to be written. UTC only.

use crate::value::{Object, Value};
use obs_model::{TimestampNs, civil_from_days, days_from_civil};
use std::sync::Arc;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Elements of a layout, the longer before those that they begin with.
const ELEMENTS: [&str; 27] = [
    "January", "Jan", "Monday", "Mon", "MST", "2006", "Z07:00", "Z0700", "-07:00", "-0700", "-07",
    "002", "01", "02", "03", "04", "05", "06", "15", "PM", "pm", "_2", "1", "2", "3", "4", "5",
];

enum Part<'a> {
    Element(&'static str),
    /// Decimals of a second: how many, and whether zeros at the end are cut.
    Fraction(char, usize, bool),
    Literal(&'a str),
}

/// Splits a layout into its parts.
fn parts(layout: &str) -> Vec<Part<'_>> {
    let mut out = Vec::new();
    let mut rest = layout;
    while let Some(c) = rest.chars().next() {
        let element = ELEMENTS.iter().find(|e| rest.starts_with(**e));
        if let Some(e) = element {
            out.push(Part::Element(e));
            rest = rest.get(e.len()..).unwrap_or_default();
            continue;
        }
        if matches!(c, '.' | ',') {
            let digits = rest.get(1..).unwrap_or_default();
            let same = |d: char| digits.len() - digits.trim_start_matches(d).len();
            let (zeros, nines) = (same('0'), same('9'));
            let count = zeros.max(nines);
            let next = digits.get(count..).and_then(|r| r.chars().next());
            if count > 0 && !next.is_some_and(|n| n.is_ascii_digit()) {
                out.push(Part::Fraction(c, count.min(9), nines > 0));
                rest = digits.get(count..).unwrap_or_default();
                continue;
            }
        }
        let (literal, tail) = rest.split_at(c.len_utf8());
        out.push(Part::Literal(literal));
        rest = tail;
    }
    out
}

/// Writes a time by a layout.
pub fn format_time(at: TimestampNs, layout: &str) -> String {
    let ns = at.nanos();
    let (seconds, fraction) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let days = seconds.div_euclid(86_400);
    let (y, m, d) = civil_from_days(days);
    let s = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (s / 3600, s / 60 % 60, s % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let month = MONTHS.get(m as usize - 1).copied().unwrap_or_default();
    let day = DAYS.get((days + 4).rem_euclid(7) as usize).copied().unwrap_or_default();
    let short = |s: &'static str| s.get(..3).unwrap_or(s).to_owned();
    let mut out = String::new();
    for part in parts(layout) {
        let text = match part {
            Part::Literal(l) => l.to_owned(),
            Part::Fraction(sign, digits, cut) => {
                let full = format!("{fraction:09}");
                let text = full.get(..digits).unwrap_or_default();
                let text = if cut { text.trim_end_matches('0') } else { text };
                if text.is_empty() { String::new() } else { format!("{sign}{text}") }
            }
            Part::Element(e) => match e {
                "January" => month.to_owned(),
                "Jan" => short(month),
                "Monday" => day.to_owned(),
                "Mon" => short(day),
                "MST" => "UTC".into(),
                "2006" => format!("{y:04}"),
                "06" => format!("{:02}", y.rem_euclid(100)),
                "Z07:00" | "Z0700" => "Z".into(),
                "-07:00" => "+00:00".into(),
                "-0700" => "+0000".into(),
                "-07" => "+00".into(),
                "002" => format!("{:03}", days - days_from_civil(y, 1, 1) + 1),
                "01" => format!("{m:02}"),
                "1" => m.to_string(),
                "02" => format!("{d:02}"),
                "_2" => format!("{d:2}"),
                "2" => d.to_string(),
                "15" => format!("{hour:02}"),
                "03" => format!("{hour12:02}"),
                "3" => hour12.to_string(),
                "04" => format!("{minute:02}"),
                "4" => minute.to_string(),
                "05" => format!("{second:02}"),
                "5" => second.to_string(),
                "PM" => (if hour < 12 { "AM" } else { "PM" }).into(),
                "pm" => (if hour < 12 { "am" } else { "pm" }).into(),
                other => other.to_owned(),
            },
        };
        out.push_str(&text);
    }
    out
}

/// Takes a number of one to `max` digits off a text.
fn number(rest: &mut &str, min: usize, max: usize) -> Option<i64> {
    let digits = rest.bytes().take(max).take_while(u8::is_ascii_digit).count();
    let (text, tail) = rest.split_at_checked(digits)?;
    *rest = tail;
    if digits < min { None } else { text.parse().ok() }
}

/// Takes a name off a text, long or by its first three letters; returns its index.
fn name(rest: &mut &str, names: &[&str], is_short: bool) -> Option<i64> {
    let hit = names.iter().position(|n| {
        let n = if is_short { n.get(..3).unwrap_or(n) } else { n };
        rest.get(..n.len()).is_some_and(|r| r.eq_ignore_ascii_case(n))
    })?;
    let len = if is_short { 3 } else { names.get(hit)?.len() };
    *rest = rest.get(len..)?;
    Some(hit as i64)
}

/// Takes an offset (`Z`, `+01:00`, `+0100`, `+01`) off a text; seconds.
fn offset(rest: &mut &str, element: &str) -> Option<i64> {
    if element.starts_with('Z')
        && let Some(tail) = rest.strip_prefix('Z')
    {
        *rest = tail;
        return Some(0);
    }
    let sign = if rest.starts_with('-') { -1 } else { 1 };
    *rest = rest.strip_prefix(['+', '-'])?;
    let hours = number(rest, 2, 2)?;
    let minutes = if element.ends_with("07") {
        0
    } else {
        if element.contains(':') {
            *rest = rest.strip_prefix(':')?;
        }
        number(rest, 2, 2)?
    };
    Some(sign * (hours * 3600 + minutes * 60))
}

/// Reads a time by a layout; without a zone it is UTC, without a date in 1970 (Go says year 0,
/// which nanoseconds do not reach). `None` when the text has another form.
pub fn parse_time(text: &str, layout: &str) -> Option<TimestampNs> {
    let (mut y, mut m, mut d, mut day_of_year) = (1970, 1, 1, None);
    let (mut hour, mut minute, mut second, mut fraction, mut zone) = (0, 0, 0, 0, 0);
    let mut is_pm = None;
    let mut rest = text;
    let mut after_seconds = false;
    for part in parts(layout) {
        // Decimals may follow the seconds although the layout names none.
        if after_seconds && !matches!(part, Part::Fraction(..)) {
            read_fraction(&mut rest, &mut fraction);
        }
        after_seconds = matches!(part, Part::Element("05" | "5"));
        match part {
            Part::Literal(l) => rest = rest.strip_prefix(l)?,
            Part::Fraction(..) => read_fraction(&mut rest, &mut fraction),
            Part::Element(e) => match e {
                "January" => m = name(&mut rest, &MONTHS, false)? + 1,
                "Jan" => m = name(&mut rest, &MONTHS, true)? + 1,
                "Monday" => drop(name(&mut rest, &DAYS, false)?),
                "Mon" => drop(name(&mut rest, &DAYS, true)?),
                "MST" => {
                    let len = rest.bytes().take_while(u8::is_ascii_uppercase).count();
                    rest = rest.get(len..).filter(|_| len >= 3)?;
                }
                "2006" => y = number(&mut rest, 4, 4)?,
                "06" => {
                    let short = number(&mut rest, 2, 2)?;
                    y = if short >= 69 { 1900 + short } else { 2000 + short };
                }
                "002" => day_of_year = Some(number(&mut rest, 3, 3)?),
                "01" => m = number(&mut rest, 2, 2)?,
                "1" => m = number(&mut rest, 1, 2)?,
                "02" => d = number(&mut rest, 2, 2)?,
                "2" => d = number(&mut rest, 1, 2)?,
                "_2" => {
                    rest = rest.strip_prefix(' ').unwrap_or(rest);
                    d = number(&mut rest, 1, 2)?;
                }
                "15" | "03" => hour = number(&mut rest, 2, 2)?,
                "3" => hour = number(&mut rest, 1, 2)?,
                "04" => minute = number(&mut rest, 2, 2)?,
                "4" => minute = number(&mut rest, 1, 2)?,
                "05" => second = number(&mut rest, 2, 2)?,
                "5" => second = number(&mut rest, 1, 2)?,
                "PM" | "pm" => {
                    is_pm = Some(rest.get(..2)?.eq_ignore_ascii_case("pm"));
                    rest = rest.get(2..)?;
                }
                zone_element => zone = offset(&mut rest, zone_element)?,
            },
        }
    }
    if after_seconds {
        read_fraction(&mut rest, &mut fraction);
    }
    if let Some(pm) = is_pm {
        hour = hour % 12 + if pm { 12 } else { 0 };
    }
    let valid = (1..=12).contains(&m) && (1..=31).contains(&d) && hour < 24 && minute < 60;
    if !rest.is_empty() || !valid || second > 60 {
        return None;
    }
    let days = match day_of_year {
        Some(n) => days_from_civil(y, 1, 1) + n - 1,
        None => days_from_civil(y, m, d),
    };
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - zone;
    seconds.checked_mul(1_000_000_000)?.checked_add(fraction).map(TimestampNs::from_nanos)
}

fn read_fraction(rest: &mut &str, fraction: &mut i64) {
    let Some(tail) = rest.strip_prefix(['.', ',']) else { return };
    let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return;
    }
    let nine: String = tail.bytes().take(digits.min(9)).map(char::from).collect();
    *fraction = format!("{nine:0<9}").parse().unwrap_or(0);
    *rest = tail.get(digits..).unwrap_or_default();
}

/// A time in a template, with the methods of Go's `time.Time` that templates use.
#[derive(Debug, Clone, Copy)]
pub struct Time(pub TimestampNs);

impl From<Time> for Value {
    fn from(t: Time) -> Self {
        Self::Object(Arc::new(t))
    }
}

impl Object for Time {
    fn field(&self, name: &str) -> Option<Value> {
        self.call(name, &[])?.ok()
    }

    fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value, String>> {
        let ns = self.0.nanos();
        let text = |layout| Value::from(format_time(self.0, layout));
        let number =
            |layout| format_time(self.0, layout).parse().map(Value::Int).map_err(|_| String::new());
        Some(Ok(match name {
            "Unix" => Value::Int(ns.div_euclid(1_000_000_000)),
            "UnixMilli" => Value::Int(ns.div_euclid(1_000_000)),
            "UnixMicro" => Value::Int(ns.div_euclid(1000)),
            "UnixNano" => Value::Int(ns),
            "Format" => match args.first().and_then(Value::as_str) {
                Some(layout) => Value::from(format_time(self.0, layout)),
                None => return Some(Err("wrong number of args for Format: want 1 got 0".into())),
            },
            "UTC" | "Local" => Value::from(*self),
            "String" => self.plain(),
            "Month" => text("January"),
            "Weekday" => text("Monday"),
            "Year" => return Some(number("2006")),
            "Day" => return Some(number("2")),
            "YearDay" => return Some(number("002")),
            "Hour" => return Some(number("15")),
            "Minute" => return Some(number("4")),
            "Second" => return Some(number("5")),
            _ => return None,
        }))
    }

    fn plain(&self) -> Value {
        Value::from(format_time(self.0, "2006-01-02 15:04:05.999999999 -0700 MST"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        // 2023-03-23 14:00:05.012 UTC, a Thursday.
        let at = TimestampNs::from_nanos(1_679_580_005_012_000_000);
        for (layout, want) in [
            ("2006-01-02T15:04:05Z07:00", "2023-03-23T14:00:05Z"),
            ("Mon Jan _2 15:04:05.000 2006", "Thu Mar 23 14:00:05.012 2023"),
            ("Monday, 02-Jan-06 03:04PM MST", "Thursday, 23-Mar-23 02:00PM UTC"),
            ("2006-01-02 15:04:05.999999999 -0700", "2023-03-23 14:00:05.012 +0000"),
            ("1/2/2006 3:4:5,000", "3/23/2023 2:0:5,012"),
            ("002", "082"),
        ] {
            assert_eq!(format_time(at, layout), want, "{layout}");
        }
        for layout in ["2006-01-02T15:04:05.000Z07:00", "Mon Jan _2 15:04:05.000 2006"] {
            assert_eq!(parse_time(&format_time(at, layout), layout), Some(at), "{layout}");
        }
        let seconds = |text, layout| parse_time(text, layout).map(|t| t.nanos() / 1_000_000_000);
        assert_eq!(
            seconds("2023-03-23T15:00:05+01:00", "2006-01-02T15:04:05Z07:00"),
            Some(1_679_580_005)
        );
        assert_eq!(
            parse_time("14:00:05.012", "15:04:05").map(|t| t.nanos() % 1_000_000_000),
            Some(12_000_000)
        );
        assert_eq!(seconds("nope", "2006"), None);
        assert_eq!(seconds("2023x", "2006"), None);
    }
}
