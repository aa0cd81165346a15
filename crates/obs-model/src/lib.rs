//! The vocabulary every other crate speaks, and the ports between them.
//!
//! Owns the types of the field (series, samples, log records, spans, LLM calls, money) and the
//! traits through which the write path reaches a store ([`Append`]) and the query engines read
//! one ([`SelectSeries`], [`SelectLogs`], [`SelectSpans`]). It does no IO, knows no wire format
//! and holds no clock. Read [`ports`] next.

mod attributes;
mod changes;
mod column;
mod control;
mod go_regex;
mod go_text;
mod histogram;
mod ids;
mod labels;
mod llm;
mod log;
mod lru;
mod matcher;
mod memory;
mod metric;
pub mod ports;
mod share;
mod span;
mod span_field;
mod time;

pub use attributes::{AttributeValue, Attributes, Resource, Scope};
pub use changes::{Changes, Moment};
pub use column::{ColumnSeries, Floats, Samples, SharedSlice, Times};
pub use control::{KeepState, StateChange, StateError, StateFuture};
pub use go_regex::{anchored_regex, go_regex};
pub use go_text::go_unquote;
pub use histogram::{CUSTOM_BUCKETS_SCHEMA, Histogram, HistogramBucket, ResetHint};
pub use ids::{SpanId, TenantId, TenantIdError, TraceId, unhex};
pub use labels::{Labels, LabelsBuilder, LabelsIter, METRIC_NAME, is_metadata};
pub use llm::{
    CONTENT_FILTER, CallCost, CallStatus, CostState, Dialect, LlmCall, Media, MediaAt, Message,
    MessagePart, Money, Operation, TokenUsage,
};
pub use log::{LogRecord, severity_level};
pub use lru::Lru;
pub use matcher::{MatchOp, Matcher, MatcherError};
pub use memory::{MemoryPool, MemoryShare};
pub use metric::{
    Exemplar, MetricKind, MetricMetadata, STALE_NAN_BITS, Sample, SampleValue, Series, is_stale,
};
pub use ports::{
    Append, AppendError, AppendFuture, Appended, Budget, CallSelection, DeleteScope, Direction,
    Equal, LineMembers, LineRun, LineTest, LineText, LogRows, LogScan, LogSelection, Maintain,
    MaintainFuture, NumberMember, Objects, ReadAt, SelectError, SelectLogs, SelectSeries,
    SelectSpans, SeriesSelection, SnapshotFile, SpanScan, SpanSelection, Visit, VisitScan,
    VisitSpans, WriteBatch,
};
pub use share::{Claim, News, ShareError, ShareFuture, ShareState, Shared};
pub use span::{
    Span, SpanEvent, SpanKind, SpanLink, SpanStatus, sampling_weight, set_sampling_weight,
};
pub use span_field::{
    AttributeScope, FieldValue, SpanField, SpanRow, StatusCode, WholeSpan, field_of,
    field_of_events, field_of_links,
};
pub use time::{DAY_NS, TimestampMs, TimestampNs, civil_from_days, days_from_civil};
