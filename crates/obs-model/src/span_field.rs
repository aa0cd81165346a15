//! Single fields of spans: what queries ask for without taking spans whole.

use crate::{
    AttributeValue, Attributes, Span, SpanEvent, SpanId, SpanKind, SpanLink, SpanStatus,
    TimestampNs, TraceId,
};
use std::borrow::Cow;
use std::cmp::Ordering;

/// Which attributes of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AttributeScope {
    Span,
    Resource,
    Event,
    Link,
    Instrumentation,
}

/// A field of a span.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SpanField {
    Name,
    Kind,
    Status,
    StatusMessage,
    /// Attribute under a key. Of events and links a list: what each of them has.
    Attribute(AttributeScope, String),
    /// Of the scope that has it first: span, resource, events, links, instrumentation.
    AnyAttribute(String),
    /// Of the resource, with the name that its absence has.
    Service,
    /// Lists, one value an event or link.
    EventNames,
    EventTimes,
    LinkTraces,
    LinkSpans,
    ScopeName,
    ScopeVersion,
}

/// A value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldValue<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Nanoseconds.
    Duration(i64),
    Str(Cow<'a, str>),
    Status(StatusCode),
    Kind(SpanKind),
    List(Vec<Self>),
}

/// A span's status without its text, in the order of OTLP's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StatusCode {
    Unset,
    Ok,
    Error,
}

impl StatusCode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

impl From<&SpanStatus> for StatusCode {
    fn from(s: &SpanStatus) -> Self {
        match s {
            SpanStatus::Unset => Self::Unset,
            SpanStatus::Ok => Self::Ok,
            SpanStatus::Error(_) => Self::Error,
        }
    }
}

impl<'a> FieldValue<'a> {
    pub fn str(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Str(text.into())
    }

    pub const fn is_nil(&self) -> bool {
        matches!(self, Self::Nil)
    }

    /// Returns numbers and durations.
    pub const fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(i) | Self::Duration(i) => Some(*i as f64),
            Self::Float(f) => Some(*f),
            _ => None,
        }
    }

    pub fn into_owned(self) -> FieldValue<'static> {
        match self {
            Self::Nil => FieldValue::Nil,
            Self::Bool(b) => FieldValue::Bool(b),
            Self::Int(i) => FieldValue::Int(i),
            Self::Float(f) => FieldValue::Float(f),
            Self::Duration(d) => FieldValue::Duration(d),
            Self::Str(s) => FieldValue::Str(Cow::Owned(s.into_owned())),
            Self::Status(s) => FieldValue::Status(s),
            Self::Kind(k) => FieldValue::Kind(k),
            Self::List(l) => FieldValue::List(l.into_iter().map(Self::into_owned).collect()),
        }
    }

    /// Returns the value again, texts lent.
    pub fn lend(&self) -> FieldValue<'_> {
        match self {
            Self::Str(s) => FieldValue::Str(Cow::Borrowed(s)),
            Self::List(l) => FieldValue::List(l.iter().map(Self::lend).collect()),
            Self::Nil => FieldValue::Nil,
            Self::Bool(b) => FieldValue::Bool(*b),
            Self::Int(i) => FieldValue::Int(*i),
            Self::Float(f) => FieldValue::Float(*f),
            Self::Duration(d) => FieldValue::Duration(*d),
            Self::Status(s) => FieldValue::Status(*s),
            Self::Kind(k) => FieldValue::Kind(*k),
        }
    }

    /// Returns the bytes the value takes in memory, roughly.
    pub fn size_bytes(&self) -> usize {
        let own = match self {
            Self::Str(s) => s.len(),
            Self::List(l) => l.iter().map(Self::size_bytes).sum(),
            _ => 0,
        };
        size_of::<Self>() + own
    }

    /// Returns the text that peers show for the value; nothing for nil.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Nil => "".into(),
            Self::Bool(b) => if *b { "true" } else { "false" }.into(),
            Self::Int(i) => i.to_string().into(),
            Self::Float(f) => f.to_string().into(),
            Self::Duration(d) => d.to_string().into(),
            Self::Str(s) => Cow::Borrowed(s),
            Self::Status(s) => s.as_str().into(),
            Self::Kind(k) => k.as_str().into(),
            Self::List(l) => l.iter().map(Self::text).collect::<Vec<_>>().join(",").into(),
        }
    }

    const fn rank(&self) -> u8 {
        match self {
            Self::Nil => 0,
            Self::Bool(_) => 1,
            Self::Int(_) => 2,
            Self::Float(_) => 3,
            Self::Duration(_) => 4,
            Self::Str(_) => 5,
            Self::Status(_) => 6,
            Self::Kind(_) => 7,
            Self::List(_) => 8,
        }
    }

    /// Orders values of all types, so that they can be keys.
    pub fn total_cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) | (Self::Duration(a), Self::Duration(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (Self::Str(a), Self::Str(b)) => a.cmp(b),
            (Self::Status(a), Self::Status(b)) => a.cmp(b),
            (Self::Kind(a), Self::Kind(b)) => a.to_otlp().cmp(&b.to_otlp()),
            (Self::List(a), Self::List(b)) => {
                let pairs = a.iter().zip(b).map(|(x, y)| x.total_cmp(y));
                pairs.fold(Ordering::Equal, Ordering::then).then(a.len().cmp(&b.len()))
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl<'a> From<&'a AttributeValue> for FieldValue<'a> {
    fn from(v: &'a AttributeValue) -> Self {
        match v {
            AttributeValue::Empty => Self::Nil,
            AttributeValue::String(s) => Self::Str(Cow::Borrowed(s)),
            AttributeValue::Bool(b) => Self::Bool(*b),
            AttributeValue::Int(i) => Self::Int(*i),
            AttributeValue::Double(d) => Self::Float(*d),
            AttributeValue::Array(a) => Self::List(a.iter().map(Self::from).collect()),
            AttributeValue::Bytes(_) | AttributeValue::Map(_) => {
                Self::Str(Cow::Owned(v.to_string()))
            }
        }
    }
}

/// A span whose fields are read one by one. Fields are named by their place in the list that the
/// reader gave to the scan.
pub trait SpanRow {
    fn trace_id(&self) -> TraceId;
    fn span_id(&self) -> SpanId;
    fn parent_id(&self) -> Option<SpanId>;
    fn start(&self) -> TimestampNs;
    fn duration_ns(&self) -> i64;
    fn get(&self, field: usize) -> FieldValue<'_>;
    /// Returns a number that stands for the field's value among the spans of one part of a scan:
    /// the same number, the same value. `None` where there is none.
    fn code(&self, _field: usize) -> Option<u32> {
        None
    }
    /// How many spans it stands for: see [`crate::sampling_weight`].
    fn weight(&self) -> f64;
}

fn of_attributes<'a>(a: &'a Attributes, key: &str) -> FieldValue<'a> {
    a.get(key).map_or(FieldValue::Nil, FieldValue::from)
}

fn list<'a>(values: impl Iterator<Item = FieldValue<'a>>) -> FieldValue<'a> {
    let values: Vec<_> = values
        .flat_map(|v| match v {
            FieldValue::Nil => Vec::new(),
            FieldValue::List(l) => l,
            one => vec![one],
        })
        .collect();
    if values.is_empty() { FieldValue::Nil } else { FieldValue::List(values) }
}

/// Returns a field that events have.
pub fn field_of_events<'a>(
    events: &'a [SpanEvent],
    start: TimestampNs,
    field: &SpanField,
) -> FieldValue<'a> {
    list(events.iter().map(|e| match field {
        SpanField::EventNames => FieldValue::str(e.name.as_str()),
        SpanField::EventTimes => FieldValue::Duration(e.timestamp.nanos() - start.nanos()),
        SpanField::Attribute(_, key) | SpanField::AnyAttribute(key) => {
            of_attributes(&e.attributes, key)
        }
        _ => FieldValue::Nil,
    }))
}

/// Returns a field that links have.
pub fn field_of_links<'a>(links: &'a [SpanLink], field: &SpanField) -> FieldValue<'a> {
    list(links.iter().map(|l| match field {
        SpanField::LinkTraces => FieldValue::str(l.trace_id.to_string()),
        SpanField::LinkSpans => FieldValue::str(l.span_id.to_string()),
        SpanField::Attribute(_, key) | SpanField::AnyAttribute(key) => {
            of_attributes(&l.attributes, key)
        }
        _ => FieldValue::Nil,
    }))
}

/// Returns a field of a span.
pub fn field_of<'a>(s: &'a Span, field: &SpanField) -> FieldValue<'a> {
    match field {
        SpanField::Name => FieldValue::str(s.name.as_str()),
        SpanField::Kind => FieldValue::Kind(s.kind),
        SpanField::Status => FieldValue::Status((&s.status).into()),
        SpanField::StatusMessage => FieldValue::str(match &s.status {
            SpanStatus::Error(m) => m.as_str(),
            _ => "",
        }),
        SpanField::Service => FieldValue::str(s.service()),
        SpanField::Attribute(scope, key) => match scope {
            AttributeScope::Span => of_attributes(&s.attributes, key),
            AttributeScope::Resource => of_attributes(&s.resource.attributes, key),
            AttributeScope::Instrumentation => of_attributes(&s.scope.attributes, key),
            AttributeScope::Event => field_of_events(&s.events, s.start, field),
            AttributeScope::Link => field_of_links(&s.links, field),
        },
        SpanField::AnyAttribute(key) => {
            let first = [&s.attributes, &s.resource.attributes];
            let mut own = first.into_iter().map(|a| of_attributes(a, key));
            if let Some(v) = own.find(|v| !v.is_nil()) {
                return v;
            }
            let events = field_of_events(&s.events, s.start, field);
            if !events.is_nil() {
                return events;
            }
            let links = field_of_links(&s.links, field);
            if links.is_nil() { of_attributes(&s.scope.attributes, key) } else { links }
        }
        SpanField::EventNames | SpanField::EventTimes => field_of_events(&s.events, s.start, field),
        SpanField::LinkTraces | SpanField::LinkSpans => field_of_links(&s.links, field),
        SpanField::ScopeName => FieldValue::str(s.scope.name.as_str()),
        SpanField::ScopeVersion => FieldValue::str(s.scope.version.as_str()),
    }
}

/// A whole span as a row.
#[derive(Debug, Clone, Copy)]
pub struct WholeSpan<'a> {
    pub span: &'a Span,
    pub fields: &'a [SpanField],
}

impl SpanRow for WholeSpan<'_> {
    fn trace_id(&self) -> TraceId {
        self.span.trace_id
    }
    fn span_id(&self) -> SpanId {
        self.span.span_id
    }
    fn parent_id(&self) -> Option<SpanId> {
        self.span.parent_id
    }
    fn start(&self) -> TimestampNs {
        self.span.start
    }
    fn duration_ns(&self) -> i64 {
        self.span.duration_ns()
    }
    fn get(&self, field: usize) -> FieldValue<'_> {
        self.fields.get(field).map_or(FieldValue::Nil, |f| field_of(self.span, f))
    }
    fn weight(&self) -> f64 {
        crate::sampling_weight(&self.span.trace_state)
    }
}
