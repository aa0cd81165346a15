//! What a record may look like.

use obs_model::{Labels, LogRecord, METRIC_NAME, Span, TenantId, TimestampNs};
use std::collections::HashMap;

/// Limits of single records. Bytes, counts, nanoseconds.
#[derive(Debug, Clone)]
pub struct Limits {
    pub labels_max: usize,
    pub label_name_bytes_max: usize,
    pub label_value_bytes_max: usize,
    pub log_line_bytes_max: usize,
    pub attributes_max: usize,
    /// How far ahead of our clock a record may be.
    pub future_ns: i64,
    /// Series whose deltas are being summed, per process.
    pub delta_series_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            labels_max: 40,
            label_name_bytes_max: 256,
            label_value_bytes_max: 4096,
            log_line_bytes_max: 1 << 20,
            attributes_max: 1024,
            future_ns: 600_000_000_000,
            delta_series_max: 200_000,
        }
    }
}

/// The limits of every tenant: its own, or those of all.
#[derive(Debug, Clone, Default)]
pub struct TenantLimits {
    pub all: Limits,
    pub own: HashMap<TenantId, Limits>,
}

impl TenantLimits {
    pub fn of(&self, tenant: &TenantId) -> &Limits {
        self.own.get(tenant).unwrap_or(&self.all)
    }
}

impl From<Limits> for TenantLimits {
    fn from(all: Limits) -> Self {
        Self { all, own: HashMap::new() }
    }
}

/// A record that breaks a limit: which limit, by its name in the configuration, and who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub limit: &'static str,
    pub text: String,
}

/// The most of an offender's name that an error repeats; characters.
const SHOWN: usize = 200;

fn broken(limit: &'static str, offender: &str, what: std::fmt::Arguments<'_>) -> Violation {
    let shown: String = offender.chars().take(SHOWN).collect();
    let dots = if shown.len() < offender.len() { "…" } else { "" };
    Violation { limit, text: format!("{shown}{dots}: {what} (limits.{limit})") }
}

/// Judges the labels of log streams; records come grouped by them.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// The last that was good.
    good: Option<Labels>,
}

impl Streams {
    pub(crate) fn check(&mut self, limits: &Limits, stream: &Labels) -> Result<(), Violation> {
        if self.good.as_ref() != Some(stream) {
            let who = || format!("stream {stream}");
            limits.label_set(stream, who, who)?;
            self.good = Some(stream.clone());
        }
        Ok(())
    }
}

impl Limits {
    pub(crate) fn time(
        &self,
        t: TimestampNs,
        now: TimestampNs,
        who: impl Fn() -> String,
    ) -> Result<(), Violation> {
        // No clock was ever wrong by so much; what computes with times needs the room.
        const YEAR_1900_NS: i64 = -2_208_988_800_000_000_000;
        if t.nanos() < YEAR_1900_NS {
            return Err(broken("past", &who(), format_args!("time {t} is before 1900")));
        }
        if t > now.add_nanos(self.future_ns) {
            let seconds = self.future_ns / 1_000_000_000;
            let what = format_args!("time {t} is more than {seconds} s in the future");
            return Err(broken("future", &who(), what));
        }
        Ok(())
    }

    fn attributes(&self, n: usize, who: impl Fn() -> String) -> Result<(), Violation> {
        let max = self.attributes_max;
        if n <= max {
            return Ok(());
        }
        let what = format_args!("{n} attributes, at most {max} are allowed");
        Err(broken("attributes", &who(), what))
    }

    pub(crate) fn span(&self, s: &Span, now: TimestampNs) -> Result<(), Violation> {
        let who = || format!("span {:?} of {} in trace {}", s.name, s.service(), s.trace_id);
        self.attributes(s.attributes.len(), who)?;
        self.time(s.start, now, who)
    }

    pub(crate) fn log(&self, r: &LogRecord, now: TimestampNs) -> Result<(), Violation> {
        let who = || format!("record of stream {}", r.stream);
        let (bytes, max) = (r.line.len(), self.log_line_bytes_max);
        if bytes > max {
            let what = format_args!("line of {bytes} bytes is longer than {max}");
            return Err(broken("log_line_bytes", &who(), what));
        }
        self.attributes(r.attributes.len(), who)?;
        self.time(r.timestamp, now, who)
    }

    pub(crate) fn labels(&self, labels: &Labels) -> Result<(), Violation> {
        let whole = || format!("series {labels}");
        self.label_set(labels, whole, || format!("series {}", labels.get(METRIC_NAME)))
    }

    fn label_set(
        &self,
        labels: &Labels,
        whole: impl Fn() -> String,
        named: impl Fn() -> String,
    ) -> Result<(), Violation> {
        let (n, max) = (labels.len(), self.labels_max);
        if n > max {
            let what = format_args!("{n} labels, at most {max} are allowed");
            return Err(broken("labels_per_series", &whole(), what));
        }
        for (n, v) in labels.iter() {
            let (bytes, max) = (n.len(), self.label_name_bytes_max);
            if bytes > max {
                let start: String = n.chars().take(40).collect();
                let what =
                    format_args!("label name {start}… of {bytes} bytes is longer than {max}");
                return Err(broken("label_name_bytes", &named(), what));
            }
            let (bytes, max) = (v.len(), self.label_value_bytes_max);
            if bytes > max {
                let what =
                    format_args!("value of label {n:?} of {bytes} bytes is longer than {max}");
                return Err(broken("label_value_bytes", &named(), what));
            }
        }
        Ok(())
    }
}
