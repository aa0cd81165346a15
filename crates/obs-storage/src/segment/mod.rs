//! Immutable files of one signal of one tenant.

pub(crate) mod ans;
pub(crate) mod attrs;
pub(crate) mod bloom;
pub(crate) mod calls;
pub(crate) mod columns;
pub(crate) mod file;
pub(crate) mod floats;
pub(crate) mod ids;
pub(crate) mod kept;
pub(crate) mod lines;
pub(crate) mod log_groups;
mod log_kinds;
pub(crate) mod logs;
pub(crate) mod members;
pub(crate) mod parts;
pub(crate) mod rows;
pub(crate) mod samples;
pub(crate) mod series;
mod shapes;
pub(crate) mod span_columns;
pub(crate) mod span_places;
pub(crate) mod spans;
mod template_rows;
pub(crate) mod time_text;
pub(crate) mod words;

use obs_model::SpanKind;
use std::collections::BTreeSet;

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Signal {
    Metrics,
    Logs,
    Spans,
    Calls,
}

impl Signal {
    pub(crate) const ALL: [Self; 4] = [Self::Metrics, Self::Logs, Self::Spans, Self::Calls];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Logs => "logs",
            Self::Spans => "spans",
            Self::Calls => "calls",
        }
    }

    pub(crate) const fn to_byte(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_byte(b: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.to_byte() == b)
    }

    /// Returns how many of the signal's units of time a second has.
    pub(crate) const fn per_second(self) -> i64 {
        match self {
            Self::Metrics => 1_000,
            Self::Logs | Self::Spans | Self::Calls => 1_000_000_000,
        }
    }
}

/// Operations by service: what the manifest knows of a span segment, so that the list of services
/// needs no file.
pub(crate) type Operations = BTreeSet<(String, String, i32)>;

/// A bounded list of operations: span names with ids in them have no end, and the list is in memory
/// and in the manifest. A service with such names leaves room for the others.
#[derive(Debug, Default, Clone)]
pub(crate) struct KnownOperations {
    all: Operations,
    by_service: foldhash::HashMap<String, usize>,
    bytes: usize,
}

impl KnownOperations {
    pub(crate) const fn all(&self) -> &Operations {
        &self.all
    }

    pub(crate) fn into_all(self) -> Operations {
        self.all
    }

    /// Adds an operation if there is room; returns whether it is in the list.
    pub(crate) fn add(&mut self, o: (String, String, i32)) -> bool {
        const ALL_MAX: usize = 4_000;
        const SERVICE_MAX: usize = 1_000;
        const BYTES_MAX: usize = 64 << 10;
        if self.all.contains(&o) {
            return true;
        }
        let of_service = self.by_service.get(&o.0).copied().unwrap_or(0);
        let bytes = self.bytes + o.0.len() + o.1.len();
        let fits = self.all.len() < ALL_MAX && of_service < SERVICE_MAX && bytes <= BYTES_MAX;
        if fits {
            self.bytes = bytes;
            self.by_service.insert(o.0.clone(), of_service + 1);
            self.all.insert(o);
        }
        fits
    }
}

/// Reads a kind stored in [`Operations`].
pub(crate) const fn kind_of(number: i32) -> SpanKind {
    SpanKind::from_otlp(number)
}

/// Why a segment could not be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SegmentError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Malformed(#[from] crate::bin::Malformed),
    #[error(transparent)]
    Select(#[from] obs_model::SelectError),
}

impl SegmentError {
    /// Returns an error that says the same of what a query would go on without.
    pub(crate) fn copy(&self) -> Self {
        let text = self.to_string();
        Self::Io(if self.is_damage() {
            std::io::Error::new(std::io::ErrorKind::InvalidData, text)
        } else {
            crate::tier::unreachable(text)
        })
    }

    /// Returns whether a query goes on without what could not be read, and says so.
    pub(crate) fn costs_a_part(&self) -> bool {
        self.is_damage() || matches!(self, Self::Io(e) if crate::tier::is_unreachable(e))
    }

    /// Returns whether bytes on disk are not what was written (and not that they could not be
    /// read, or that a query ended).
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Malformed(_) => true,
            Self::Io(e) => matches!(
                e.kind(),
                std::io::ErrorKind::InvalidData
                    | std::io::ErrorKind::UnexpectedEof
                    | std::io::ErrorKind::NotFound
            ),
            Self::Select(_) => false,
        }
    }
}

impl From<SegmentError> for obs_model::SelectError {
    fn from(e: SegmentError) -> Self {
        match e {
            SegmentError::Select(inner) => inner,
            other => Self::Storage(other.to_string()),
        }
    }
}
