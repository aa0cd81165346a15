//! Times in zones.

use crate::go_time::{Time, format_time, parse_time};
use crate::value::{Object, Value};
use chrono::{DateTime, Offset as _, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use obs_model::TimestampNs;

/// A time in a zone: it is written as clocks there show it.
#[derive(Debug, Clone, Copy)]
pub struct Zoned(pub TimestampNs, pub Tz);

impl Object for Zoned {
    fn field(&self, name: &str) -> Option<Value> {
        match name {
            "Zone" => Some(self.1.name().into()),
            _ => Time(self.0).field(name),
        }
    }

    fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value, String>> {
        match (name, args.first().and_then(Value::as_str)) {
            ("Format", Some(layout)) => Some(Ok(format_time_in(self.0, self.1, layout).into())),
            _ => Time(self.0).call(name, args),
        }
    }

    fn plain(&self) -> Value {
        format_time_in(self.0, self.1, "2006-01-02 15:04:05.999999999 -0700 MST").into()
    }
}

/// Writes a time by a layout in a zone.
pub fn format_time_in(at: TimestampNs, zone: Tz, layout: &str) -> String {
    let local = zone.from_utc_datetime(&Utc.timestamp_nanos(at.nanos()).naive_utc());
    let seconds = i64::from(local.offset().fix().local_minus_utc());
    let (sign, all) = (if seconds < 0 { '-' } else { '+' }, seconds.abs());
    let (h, m) = (all / 3600, all / 60 % 60);
    let name = local.format("%Z").to_string();
    let colon = format!("{sign}{h:02}:{m:02}");
    let plain = format!("{sign}{h:02}{m:02}");
    let z = |numeric: &str| if seconds == 0 { "Z".to_owned() } else { numeric.to_owned() };
    // What the zone decides is set in afterwards: its digits would be read as parts of the layout.
    let parts = [
        ("Z07:00", z(&colon)),
        ("Z0700", z(&plain)),
        ("-07:00", colon),
        ("-0700", plain),
        ("-07", format!("{sign}{h:02}")),
        ("MST", name),
    ];
    let mut layout = layout.to_owned();
    for (i, (element, _)) in parts.iter().enumerate() {
        let mark = char::from_u32(0xE000 + i as u32).unwrap_or(' ');
        layout = layout.replace(element, &mark.to_string());
    }
    let mut out = format_time(at.add_nanos(seconds * 1_000_000_000), &layout);
    for (i, (_, value)) in parts.iter().enumerate() {
        let mark = char::from_u32(0xE000 + i as u32).unwrap_or(' ');
        out = out.replace(mark, value);
    }
    out
}

/// Reads a time by a layout as [`parse_time`] does; one that does not say where is `zone`'s.
pub fn parse_time_in(text: &str, layout: &str, zone: Tz) -> Option<TimestampNs> {
    let parsed = parse_time(text, layout)?;
    let says_where = ["MST", "Z07", "-07"].iter().any(|z| layout.contains(z));
    if says_where || zone == Tz::UTC {
        return Some(parsed);
    }
    let clock = DateTime::from_timestamp_nanos(parsed.nanos()).naive_utc();
    let local = zone.from_local_datetime(&clock).earliest();
    // In the hour that a clock leaves out: what the clock before it would have shown.
    let local = local.or_else(|| {
        let before = clock - TimeDelta::hours(1);
        Some(zone.from_local_datetime(&before).earliest()? + TimeDelta::hours(1))
    })?;
    Some(TimestampNs::from_nanos(local.timestamp_nanos_opt()?))
}
