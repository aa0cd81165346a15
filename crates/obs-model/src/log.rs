//! Log records, from OTLP and Loki push alike.

use crate::{Attributes, Labels, Resource, SpanId, TimestampNs, TraceId};
use std::sync::Arc;

/// One log record (a Loki entry, an OTLP log record).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogRecord {
    /// The stream: few labels of few values, the index of logs.
    pub stream: Labels,
    pub timestamp: TimestampNs,
    /// When the collector saw it; equals `timestamp` when unknown.
    pub observed: TimestampNs,
    /// The body; composite OTLP bodies as JSON.
    pub line: String,
    /// OTLP severity number 1–24; 0 is unspecified.
    pub severity_number: u8,
    pub severity_text: String,
    /// OTLP event name, or empty.
    pub event_name: String,
    pub trace_id: Option<TraceId>,
    pub span_id: Option<SpanId>,
    /// Record attributes (Loki: structured metadata).
    pub attributes: Attributes,
    /// The producer; empty for records that came without one.
    pub resource: Arc<Resource>,
}

impl LogRecord {
    /// Returns the bytes the record takes in memory, roughly.
    pub fn size_bytes(&self) -> usize {
        200 + self.line.len()
            + self.severity_text.len()
            + self.event_name.len()
            + self.attributes.size_bytes()
    }

    /// Returns the level's name: the text if one was sent, else by severity number.
    pub fn level(&self) -> &str {
        if self.severity_text.is_empty() {
            severity_level(self.severity_number)
        } else {
            &self.severity_text
        }
    }
}

/// Returns Loki's name of an OTLP severity number; empty when unspecified.
pub fn severity_level(number: u8) -> &'static str {
    match number {
        1..=4 => "trace",
        5..=8 => "debug",
        9..=12 => "info",
        13..=16 => "warn",
        17..=20 => "error",
        21..=24 => "fatal",
        _ => "",
    }
}
