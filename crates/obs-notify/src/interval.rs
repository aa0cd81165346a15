//! Time intervals: when routes are muted or active.

use chrono::{DateTime, Datelike as _, NaiveDate, TimeZone as _, Timelike as _, Utc};
use chrono_tz::Tz;
use obs_model::TimestampNs;
use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawInterval {
    times: Vec<RawTimes>,
    weekdays: Vec<String>,
    days_of_month: Vec<String>,
    months: Vec<String>,
    years: Vec<String>,
    location: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTimes {
    start_time: String,
    end_time: String,
}

/// A range of numbers, both ends included.
type Range = (i64, i64);

/// Times that all of its parts hold; an empty part holds always.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TimeInterval {
    /// Minutes of the day; the end is excluded.
    times: Vec<Range>,
    /// 0 is Sunday.
    weekdays: Vec<Range>,
    /// Negative days count from the month's end.
    days: Vec<Range>,
    months: Vec<Range>,
    years: Vec<Range>,
    zone: Option<Tz>,
}

const WEEKDAYS: [&str; 7] =
    ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

fn ranges(
    texts: &[String],
    number: &dyn Fn(&str) -> Option<i64>,
    what: &str,
) -> Result<Vec<Range>, String> {
    let one = |text: &String| {
        let lower = text.to_lowercase();
        let (from, to) = lower.split_once(':').unwrap_or((&lower, &lower));
        let bad = |t: &str| format!("{t:?} is not a valid {what}");
        let (a, b) = (number(from).ok_or_else(|| bad(from))?, number(to).ok_or_else(|| bad(to))?);
        if a > b && (a < 0) == (b < 0) {
            return Err("start cannot be before end".to_owned());
        }
        Ok((a, b))
    };
    texts.iter().map(one).collect()
}

fn minute(text: &str) -> Result<i64, String> {
    let bad = || format!("couldn't parse timestamp {text}, invalid format");
    let (h, m) = text.split_once(':').ok_or_else(bad)?;
    if h.len() != 2 || m.len() != 2 {
        return Err(bad());
    }
    let (h, m): (i64, i64) = (h.parse().map_err(|_| bad())?, m.parse().map_err(|_| bad())?);
    if m > 59 || h > 24 || (h == 24 && m > 0) {
        return Err(format!("timestamp {text} out of range"));
    }
    Ok(h * 60 + m)
}

impl TryFrom<RawInterval> for TimeInterval {
    type Error = String;

    fn try_from(r: RawInterval) -> Result<Self, String> {
        let named = |list: &'static [&str], first: i64| {
            move |t: &str| list.iter().position(|n| *n == t).map(|i| i as i64 + first)
        };
        let within = |from: i64, to: i64| {
            move |t: &str| t.parse().ok().filter(|n: &i64| (from..=to).contains(n))
        };
        let times = r.times.iter().map(|t| {
            let range = (minute(&t.start_time)?, minute(&t.end_time)?);
            if range.0 >= range.1 {
                return Err("start time cannot be equal or greater than end time".to_owned());
            }
            Ok(range)
        });
        let month = |t: &str| named(&MONTHS, 1)(t).or_else(|| within(1, 12)(t));
        let day = |t: &str| within(-31, 31)(t).filter(|n| *n != 0);
        let zone = match r.location.as_deref() {
            None => None,
            // What "Local" is depends on a machine; here it is UTC.
            Some("Local" | "UTC") => Some(Tz::UTC),
            Some(name) => Some(name.parse().map_err(|_| format!("unknown time zone {name}"))?),
        };
        Ok(Self {
            times: times.collect::<Result<_, _>>()?,
            weekdays: ranges(&r.weekdays, &named(&WEEKDAYS, 0), "weekday")?,
            days: ranges(
                &r.days_of_month,
                &day,
                "day of the month: it must be -31 to -1 or 1 to 31",
            )?,
            months: ranges(&r.months, &month, "month")?,
            years: ranges(&r.years, &within(1, 9999), "year")?,
            zone,
        })
    }
}

fn days_in_month(t: DateTime<Tz>) -> i64 {
    let (y, m) = if t.month() == 12 { (t.year() + 1, 1) } else { (t.year(), t.month() + 1) };
    let last = NaiveDate::from_ymd_opt(y, m, 1).and_then(|d| d.pred_opt());
    last.map_or(31, |d| i64::from(d.day()))
}

impl TimeInterval {
    /// Returns whether a moment is in the interval.
    pub fn contains(&self, now: TimestampNs) -> bool {
        let utc: DateTime<Utc> = Utc.timestamp_nanos(now.nanos());
        let t = utc.with_timezone(&self.zone.unwrap_or(Tz::UTC));
        let in_any = |ranges: &[Range], n: i64| {
            ranges.is_empty() || ranges.iter().any(|r| (r.0..=r.1).contains(&n))
        };
        let minute = i64::from(t.hour() * 60 + t.minute());
        let last = days_in_month(t);
        let in_days = |r: &Range| {
            let from_end = |d: i64| if d < 0 { last + d + 1 } else { d };
            let (begin, end) = (from_end(r.0), from_end(r.1));
            let today = i64::from(t.day());
            begin <= last && (begin.clamp(-last, last)..=end.clamp(-last, last)).contains(&today)
        };
        (self.times.is_empty() || self.times.iter().any(|r| (r.0..r.1).contains(&minute)))
            && (self.days.is_empty() || self.days.iter().any(in_days))
            && in_any(&self.months, i64::from(t.month()))
            && in_any(&self.weekdays, i64::from(t.weekday().num_days_from_sunday()))
            && in_any(&self.years, i64::from(t.year()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(yaml: &str) -> Result<TimeInterval, String> {
        serde_saphyr::from_str::<RawInterval>(yaml).map_err(|e| e.to_string())?.try_into()
    }

    #[test]
    fn intervals_hold_when_all_their_parts_do() {
        let at = |t: &str| TimestampNs::parse_rfc3339(t).unwrap();
        for (yaml, inside, outside) in [
            (
                "{times: [{start_time: '09:00', end_time: '17:00'}], weekdays: ['monday:friday']}",
                ["2026-11-20T09:00:00Z", "2026-11-16T16:59:59Z"],
                ["2026-11-20T17:00:00Z", "2026-11-21T10:00:00Z"],
            ),
            (
                "{times: [{start_time: '09:00', end_time: '17:00'}], location: Europe/Berlin}",
                ["2026-11-20T08:00:00Z", "2026-07-20T07:00:00Z"],
                ["2026-11-20T07:59:00Z", "2026-07-20T15:00:00Z"],
            ),
            (
                "{days_of_month: ['-3:-1', '1']}",
                ["2026-02-26T00:00:00Z", "2026-02-01T00:00:00Z"],
                ["2026-02-25T23:59:00Z", "2026-02-02T00:00:00Z"],
            ),
            (
                "{days_of_month: ['29:31']}",
                ["2026-11-30T00:00:00Z", "2024-02-29T00:00:00Z"],
                ["2026-02-28T00:00:00Z", "2026-11-28T00:00:00Z"],
            ),
            (
                "{months: ['november:december', '1'], years: ['2026']}",
                ["2026-11-30T00:00:00Z", "2026-01-29T00:00:00Z"],
                ["2026-02-28T00:00:00Z", "2025-11-28T00:00:00Z"],
            ),
            (
                "{weekdays: [sunday], times: [{start_time: '02:00', end_time: '24:00'}]}",
                ["2026-11-22T02:00:00Z", "2026-11-22T23:59:59Z"],
                ["2026-11-22T01:59:00Z", "2026-11-23T03:00:00Z"],
            ),
        ] {
            let i = interval(yaml).unwrap();
            assert!(inside.iter().all(|t| i.contains(at(t))), "{yaml}");
            assert!(outside.iter().all(|t| !i.contains(at(t))), "{yaml}");
        }
        assert!(interval("{}").unwrap().contains(at("2026-11-22T02:00:00Z")));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for yaml in [
            "{weekdays: [funday]}",
            "{weekdays: ['friday:monday']}",
            "{months: ['13']}",
            "{days_of_month: ['0']}",
            "{times: [{start_time: '17:00', end_time: '09:00'}]}",
            "{times: [{start_time: '9:00', end_time: '10:00'}]}",
            "{times: [{start_time: '24:01', end_time: '24:02'}]}",
            "{location: Mars/Olympus}",
            "{day: 1}",
        ] {
            assert!(interval(yaml).is_err(), "{yaml}");
        }
    }
}
