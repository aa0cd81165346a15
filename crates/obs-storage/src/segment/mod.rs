//! Immutable Parquet files. One file holds one signal of one tenant.

pub(crate) mod metrics;
pub(crate) mod rows;

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
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Logs => "logs",
            Self::Spans => "spans",
            Self::Calls => "calls",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Metrics, Self::Logs, Self::Spans, Self::Calls]
            .into_iter()
            .find(|s| s.as_str() == name)
    }
}

/// Operations by service: what a span segment's manifest row carries, so that the list of
/// services needs no file.
pub(crate) type Operations = BTreeSet<(String, String, i32)>;

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
    Parquet(#[from] parquet::errors::ParquetError),
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
    #[error("segment column {0} is missing or of another type")]
    Column(&'static str),
    #[error(transparent)]
    Malformed(#[from] crate::bin::Malformed),
    #[error(transparent)]
    Select(#[from] obs_model::SelectError),
}

impl From<SegmentError> for obs_model::SelectError {
    fn from(e: SegmentError) -> Self {
        match e {
            SegmentError::Select(inner) => inner,
            other => Self::Storage(other.to_string()),
        }
    }
}

/// Writer settings that all segments share.
pub(crate) fn properties(rows_per_group: usize) -> parquet::file::properties::WriterProperties {
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::{EnabledStatistics, WriterProperties};
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(rows_per_group))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by("observatory".to_owned())
        .build()
}
