//! What statements and conditions read and write: one record with what encloses it.

use obs_model::{
    AttributeValue, Attributes, LogRecord, Resource, Scope, Span, SpanEvent, SpanId, SpanKind,
    SpanStatus, TimestampNs, TraceId,
};
use std::sync::Arc;

/// The kinds of things that have attributes and fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Resource,
    Scope,
    Span,
    Event,
    Log,
    Metric,
    Point,
}

impl Of {
    /// Returns what a path's first word names.
    pub(crate) fn named(word: &str) -> Option<Self> {
        Some(match word {
            "resource" => Self::Resource,
            "instrumentation_scope" | "scope" => Self::Scope,
            "span" => Self::Span,
            "spanevent" => Self::Event,
            "log" => Self::Log,
            "metric" => Self::Metric,
            "datapoint" => Self::Point,
            _ => return None,
        })
    }

    /// Returns whether records of this kind have that around them.
    pub(crate) fn sees(self, other: Self) -> bool {
        self == other
            || match self {
                Self::Resource => false,
                Self::Scope | Self::Log => other == Self::Resource,
                Self::Span | Self::Metric => matches!(other, Self::Resource | Self::Scope),
                Self::Event => matches!(other, Self::Resource | Self::Scope | Self::Span),
                Self::Point => matches!(other, Self::Resource | Self::Scope | Self::Metric),
            }
    }

    pub(crate) const fn has_attributes(self) -> bool {
        !matches!(self, Self::Metric)
    }
}

/// A field beside the attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Name,
    Version,
    Kind,
    KindString,
    KindDeprecated,
    StatusCode,
    StatusMessage,
    TraceId,
    TraceIdString,
    SpanId,
    SpanIdString,
    ParentId,
    ParentIdString,
    TraceState,
    Start,
    End,
    Time,
    Observed,
    Body,
    SeverityNumber,
    SeverityText,
    EventName,
    Description,
    Unit,
    Type,
    Temporality,
    Monotonic,
    Double,
    Int,
    Count,
    Sum,
}

/// Names of fields, by what has them, and whether they may be set.
const FIELDS: &[(Of, &str, Field, bool)] = &[
    (Of::Scope, "name", Field::Name, true),
    (Of::Scope, "version", Field::Version, true),
    (Of::Span, "name", Field::Name, true),
    (Of::Span, "kind", Field::Kind, true),
    (Of::Span, "kind.string", Field::KindString, true),
    (Of::Span, "kind.deprecated_string", Field::KindDeprecated, false),
    (Of::Span, "status.code", Field::StatusCode, true),
    (Of::Span, "status.message", Field::StatusMessage, true),
    (Of::Span, "trace_id", Field::TraceId, false),
    (Of::Span, "trace_id.string", Field::TraceIdString, false),
    (Of::Span, "span_id", Field::SpanId, false),
    (Of::Span, "span_id.string", Field::SpanIdString, false),
    (Of::Span, "parent_span_id", Field::ParentId, false),
    (Of::Span, "parent_span_id.string", Field::ParentIdString, false),
    (Of::Span, "trace_state", Field::TraceState, true),
    (Of::Span, "start_time_unix_nano", Field::Start, true),
    (Of::Span, "end_time_unix_nano", Field::End, true),
    (Of::Span, "start_time", Field::Start, true),
    (Of::Span, "end_time", Field::End, true),
    (Of::Event, "name", Field::Name, true),
    (Of::Event, "time_unix_nano", Field::Time, true),
    (Of::Event, "time", Field::Time, true),
    (Of::Log, "body", Field::Body, true),
    (Of::Log, "body.string", Field::Body, true),
    (Of::Log, "severity_number", Field::SeverityNumber, true),
    (Of::Log, "severity_text", Field::SeverityText, true),
    (Of::Log, "event_name", Field::EventName, true),
    (Of::Log, "trace_id", Field::TraceId, false),
    (Of::Log, "trace_id.string", Field::TraceIdString, true),
    (Of::Log, "span_id", Field::SpanId, false),
    (Of::Log, "span_id.string", Field::SpanIdString, true),
    (Of::Log, "time_unix_nano", Field::Time, true),
    (Of::Log, "time", Field::Time, true),
    (Of::Log, "observed_time_unix_nano", Field::Observed, true),
    (Of::Log, "observed_time", Field::Observed, true),
    (Of::Metric, "name", Field::Name, true),
    (Of::Metric, "description", Field::Description, true),
    (Of::Metric, "unit", Field::Unit, true),
    (Of::Metric, "type", Field::Type, false),
    (Of::Metric, "aggregation_temporality", Field::Temporality, false),
    (Of::Metric, "is_monotonic", Field::Monotonic, true),
    (Of::Point, "value_double", Field::Double, true),
    (Of::Point, "value_int", Field::Int, true),
    (Of::Point, "count", Field::Count, false),
    (Of::Point, "sum", Field::Sum, false),
    (Of::Point, "time_unix_nano", Field::Time, true),
    (Of::Point, "start_time_unix_nano", Field::Start, false),
    (Of::Point, "time", Field::Time, true),
];

/// Returns the field that a path names, and whether it may be set.
pub(crate) fn field(of: Of, name: &str) -> Option<(Field, bool)> {
    FIELDS.iter().find(|f| f.0 == of && f.1 == name).map(|f| (f.2, f.3))
}

/// A record that is processed.
pub(crate) trait Context {
    fn attributes(&self, of: Of) -> Option<&Attributes>;
    fn attributes_mut(&mut self, of: Of) -> Option<&mut Attributes>;
    /// Returns a field; empty when the record has none.
    fn field(&self, of: Of, field: Field) -> AttributeValue;
    /// Sets a field; a value of the wrong type changes nothing and returns false.
    fn set_field(&mut self, of: Of, field: Field, value: AttributeValue) -> bool;
}

/// Returns bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn bytes(bytes: &[u8]) -> AttributeValue {
    AttributeValue::Bytes(bytes.to_vec())
}

/// Puts a value where it belongs, if it is of the type.
fn put<T>(slot: &mut T, value: Option<T>) -> bool {
    match value {
        Some(v) => {
            *slot = v;
            true
        }
        None => false,
    }
}

fn text(v: AttributeValue) -> Option<String> {
    if let AttributeValue::String(s) = v { Some(s) } else { None }
}

fn int(v: &AttributeValue) -> Option<i64> {
    if let AttributeValue::Int(i) = v { Some(*i) } else { None }
}

fn time(v: &AttributeValue) -> Option<TimestampNs> {
    int(v).map(TimestampNs::from_nanos)
}

/// Takes numbers past what a signed one holds as the largest.
pub(crate) fn signed(v: u64) -> AttributeValue {
    AttributeValue::Int(i64::try_from(v).unwrap_or(i64::MAX))
}

/// A resource alone.
#[derive(Debug)]
pub(crate) struct OfResource<'a>(pub(crate) &'a mut Arc<Resource>);

impl Context for OfResource<'_> {
    fn attributes(&self, of: Of) -> Option<&Attributes> {
        (of == Of::Resource).then_some(&self.0.attributes)
    }

    fn attributes_mut(&mut self, of: Of) -> Option<&mut Attributes> {
        (of == Of::Resource).then(|| &mut Arc::make_mut(self.0).attributes)
    }

    fn field(&self, _: Of, _: Field) -> AttributeValue {
        AttributeValue::Empty
    }

    fn set_field(&mut self, _: Of, _: Field, _: AttributeValue) -> bool {
        false
    }
}

/// A scope in its resource.
#[derive(Debug)]
pub(crate) struct OfScope<'a> {
    pub(crate) resource: &'a mut Arc<Resource>,
    pub(crate) scope: &'a mut Arc<Scope>,
}

pub(crate) fn scope_field(scope: &Scope, field: Field) -> AttributeValue {
    match field {
        Field::Name => scope.name.as_str().into(),
        Field::Version => scope.version.as_str().into(),
        _ => AttributeValue::Empty,
    }
}

fn set_scope_field(scope: &mut Arc<Scope>, field: Field, v: AttributeValue) -> bool {
    match field {
        Field::Name => put(&mut Arc::make_mut(scope).name, text(v)),
        Field::Version => put(&mut Arc::make_mut(scope).version, text(v)),
        _ => false,
    }
}

impl Context for OfScope<'_> {
    fn attributes(&self, of: Of) -> Option<&Attributes> {
        match of {
            Of::Resource => Some(&self.resource.attributes),
            Of::Scope => Some(&self.scope.attributes),
            _ => None,
        }
    }

    fn attributes_mut(&mut self, of: Of) -> Option<&mut Attributes> {
        match of {
            Of::Resource => Some(&mut Arc::make_mut(self.resource).attributes),
            Of::Scope => Some(&mut Arc::make_mut(self.scope).attributes),
            _ => None,
        }
    }

    fn field(&self, of: Of, field: Field) -> AttributeValue {
        if of == Of::Scope { scope_field(self.scope, field) } else { AttributeValue::Empty }
    }

    fn set_field(&mut self, of: Of, field: Field, v: AttributeValue) -> bool {
        of == Of::Scope && set_scope_field(self.scope, field, v)
    }
}

impl Context for Span {
    fn attributes(&self, of: Of) -> Option<&Attributes> {
        match of {
            Of::Resource => Some(&self.resource.attributes),
            Of::Scope => Some(&self.scope.attributes),
            Of::Span => Some(&self.attributes),
            _ => None,
        }
    }

    fn attributes_mut(&mut self, of: Of) -> Option<&mut Attributes> {
        match of {
            Of::Resource => Some(&mut Arc::make_mut(&mut self.resource).attributes),
            Of::Scope => Some(&mut Arc::make_mut(&mut self.scope).attributes),
            Of::Span => Some(&mut self.attributes),
            _ => None,
        }
    }

    fn field(&self, of: Of, field: Field) -> AttributeValue {
        if of == Of::Scope {
            return scope_field(&self.scope, field);
        }
        let no_parent = [0; 8];
        let parent = self.parent_id.as_ref().map_or(no_parent, |p| *p.as_bytes());
        match field {
            Field::Name => self.name.as_str().into(),
            Field::Kind => i64::from(self.kind.to_otlp()).into(),
            Field::KindString => {
                let mut name = self.kind.as_str().to_owned();
                name.get_mut(..1).into_iter().for_each(str::make_ascii_uppercase);
                name.into()
            }
            Field::KindDeprecated => self.kind.otlp_name().into(),
            Field::StatusCode => match self.status {
                SpanStatus::Unset => 0,
                SpanStatus::Ok => 1,
                SpanStatus::Error(_) => 2,
            }
            .into(),
            Field::StatusMessage => match &self.status {
                SpanStatus::Error(m) => m.as_str().into(),
                _ => "".into(),
            },
            Field::TraceId => bytes(self.trace_id.as_bytes()),
            Field::TraceIdString => hex(self.trace_id.as_bytes()).into(),
            Field::SpanId => bytes(self.span_id.as_bytes()),
            Field::SpanIdString => hex(self.span_id.as_bytes()).into(),
            Field::ParentId => bytes(&parent),
            Field::ParentIdString if self.parent_id.is_none() => "".into(),
            Field::ParentIdString => hex(&parent).into(),
            Field::TraceState => self.trace_state.as_str().into(),
            Field::Start => self.start.nanos().into(),
            Field::End => self.end.nanos().into(),
            _ => AttributeValue::Empty,
        }
    }

    fn set_field(&mut self, of: Of, field: Field, v: AttributeValue) -> bool {
        if of == Of::Scope {
            return set_scope_field(&mut self.scope, field, v);
        }
        match field {
            Field::Name => put(&mut self.name, text(v)),
            Field::Kind => {
                let kind = int(&v).and_then(|i| i32::try_from(i).ok()).map(SpanKind::from_otlp);
                put(&mut self.kind, kind)
            }
            Field::KindString => {
                let named =
                    |k: &SpanKind| Some(k.as_str()) == v.as_str().map(str::to_lowercase).as_deref();
                put(&mut self.kind, (0..6).map(SpanKind::from_otlp).find(named))
            }
            Field::StatusCode => {
                let message = match &self.status {
                    SpanStatus::Error(m) => m.clone(),
                    _ => String::new(),
                };
                let status = match int(&v) {
                    Some(0) => Some(SpanStatus::Unset),
                    Some(1) => Some(SpanStatus::Ok),
                    Some(2) => Some(SpanStatus::Error(message)),
                    _ => None,
                };
                put(&mut self.status, status)
            }
            Field::StatusMessage => match (&mut self.status, text(v)) {
                // Only failures have a message here.
                (SpanStatus::Error(slot), m) => put(slot, m),
                (_, m) => m.is_some(),
            },
            Field::TraceState => put(&mut self.trace_state, text(v)),
            Field::Start => {
                let done = put(&mut self.start, time(&v));
                self.end = self.end.max(self.start);
                done
            }
            Field::End => put(&mut self.end, time(&v).map(|t| t.max(self.start))),
            _ => false,
        }
    }
}

/// An event in its span.
#[derive(Debug)]
pub(crate) struct OfEvent<'a> {
    pub(crate) span: &'a mut Span,
    pub(crate) event: &'a mut SpanEvent,
}

impl Context for OfEvent<'_> {
    fn attributes(&self, of: Of) -> Option<&Attributes> {
        if of == Of::Event { Some(&self.event.attributes) } else { self.span.attributes(of) }
    }

    fn attributes_mut(&mut self, of: Of) -> Option<&mut Attributes> {
        if of == Of::Event {
            Some(&mut self.event.attributes)
        } else {
            self.span.attributes_mut(of)
        }
    }

    fn field(&self, of: Of, field: Field) -> AttributeValue {
        match (of, field) {
            (Of::Event, Field::Name) => self.event.name.as_str().into(),
            (Of::Event, Field::Time) => self.event.timestamp.nanos().into(),
            (Of::Event, _) => AttributeValue::Empty,
            _ => self.span.field(of, field),
        }
    }

    fn set_field(&mut self, of: Of, field: Field, v: AttributeValue) -> bool {
        match (of, field) {
            (Of::Event, Field::Name) => put(&mut self.event.name, text(v)),
            (Of::Event, Field::Time) => put(&mut self.event.timestamp, time(&v)),
            (Of::Event, _) => false,
            _ => self.span.set_field(of, field, v),
        }
    }
}

impl Context for LogRecord {
    fn attributes(&self, of: Of) -> Option<&Attributes> {
        match of {
            Of::Resource => Some(&self.resource.attributes),
            Of::Log => Some(&self.attributes),
            _ => None,
        }
    }

    fn attributes_mut(&mut self, of: Of) -> Option<&mut Attributes> {
        match of {
            Of::Resource => Some(&mut Arc::make_mut(&mut self.resource).attributes),
            Of::Log => Some(&mut self.attributes),
            _ => None,
        }
    }

    fn field(&self, _: Of, field: Field) -> AttributeValue {
        let id =
            |b: Option<&[u8]>, len: usize| b.map_or(AttributeValue::Bytes(vec![0; len]), bytes);
        let shown = |b: Option<&[u8]>| b.map_or("".into(), |b| hex(b).into());
        let trace = self.trace_id.as_ref().map(|t| t.as_bytes().as_slice());
        let span = self.span_id.as_ref().map(|s| s.as_bytes().as_slice());
        match field {
            Field::Body => self.line.as_str().into(),
            Field::SeverityNumber => i64::from(self.severity_number).into(),
            Field::SeverityText => self.severity_text.as_str().into(),
            Field::EventName => self.event_name.as_str().into(),
            Field::TraceId => id(trace, 16),
            Field::TraceIdString => shown(trace),
            Field::SpanId => id(span, 8),
            Field::SpanIdString => shown(span),
            Field::Time => self.timestamp.nanos().into(),
            Field::Observed => self.observed.nanos().into(),
            _ => AttributeValue::Empty,
        }
    }

    fn set_field(&mut self, _: Of, field: Field, v: AttributeValue) -> bool {
        match field {
            // What is no text is shown as JSON, as it is when it arrives so.
            Field::Body => put(&mut self.line, Some(v.to_string())),
            Field::SeverityNumber => {
                let n = int(&v).and_then(|i| u8::try_from(i).ok()).filter(|n| *n <= 24);
                put(&mut self.severity_number, n)
            }
            Field::SeverityText => put(&mut self.severity_text, text(v)),
            Field::EventName => put(&mut self.event_name, text(v)),
            Field::TraceIdString => {
                let id = v.as_str().and_then(TraceId::parse);
                put(&mut self.trace_id, id.map(Some))
            }
            Field::SpanIdString => {
                let id = v.as_str().and_then(SpanId::parse);
                put(&mut self.span_id, id.map(Some))
            }
            Field::Time => put(&mut self.timestamp, time(&v)),
            Field::Observed => put(&mut self.observed, time(&v)),
            _ => false,
        }
    }
}

/// Returns whether a field may be set.
pub(crate) fn is_settable(of: Of, field: Field) -> bool {
    FIELDS.iter().any(|f| f.0 == of && f.2 == field && f.3)
}
