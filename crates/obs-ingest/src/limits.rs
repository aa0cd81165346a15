//! What a record may look like.

use obs_model::{Labels, LogRecord, Span, TimestampNs};

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

impl Limits {
    pub(crate) fn time(&self, t: TimestampNs, now: TimestampNs) -> Result<(), String> {
        // No clock was ever wrong by so much; what computes with times needs the room.
        const YEAR_1900_NS: i64 = -2_208_988_800_000_000_000;
        if t.nanos() < YEAR_1900_NS {
            return Err(format!("time {t} is before 1900"));
        }
        if t > now.add_nanos(self.future_ns) {
            return Err(format!(
                "time {t} is more than {} s in the future",
                self.future_ns / 1_000_000_000
            ));
        }
        Ok(())
    }

    pub(crate) fn span(&self, s: &Span, now: TimestampNs) -> Result<(), String> {
        if s.attributes.len() > self.attributes_max {
            return Err(format!(
                "span has {} attributes, at most {} are allowed",
                s.attributes.len(),
                self.attributes_max
            ));
        }
        self.time(s.start, now)
    }

    pub(crate) fn log(&self, r: &LogRecord, now: TimestampNs) -> Result<(), String> {
        if r.line.len() > self.log_line_bytes_max {
            return Err(format!(
                "line of {} bytes is longer than {}",
                r.line.len(),
                self.log_line_bytes_max
            ));
        }
        if r.attributes.len() > self.attributes_max {
            return Err(format!(
                "record has {} attributes, at most {} are allowed",
                r.attributes.len(),
                self.attributes_max
            ));
        }
        self.time(r.timestamp, now)
    }

    pub(crate) fn labels(&self, labels: &Labels) -> Result<(), String> {
        if labels.len() > self.labels_max {
            return Err(format!(
                "series has {} labels, at most {} are allowed: {labels}",
                labels.len(),
                self.labels_max
            ));
        }
        for (n, v) in labels.iter() {
            if n.len() > self.label_name_bytes_max {
                return Err(format!(
                    "label name of {} bytes is longer than {}",
                    n.len(),
                    self.label_name_bytes_max
                ));
            }
            if v.len() > self.label_value_bytes_max {
                return Err(format!(
                    "value of label {n:?} is longer than {} bytes",
                    self.label_value_bytes_max
                ));
            }
        }
        Ok(())
    }
}
