//! Spans as OTLP defines them.

use crate::{AttributeScope, Attributes, Resource, Scope, SpanId, TimestampNs, TraceId};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpanKind {
    #[default]
    Unspecified,
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

impl SpanKind {
    /// Returns the kind of an OTLP number; unknown numbers are unspecified.
    pub const fn from_otlp(number: i32) -> Self {
        match number {
            1 => Self::Internal,
            2 => Self::Server,
            3 => Self::Client,
            4 => Self::Producer,
            5 => Self::Consumer,
            _ => Self::Unspecified,
        }
    }

    pub const fn to_otlp(self) -> i32 {
        match self {
            Self::Unspecified => 0,
            Self::Internal => 1,
            Self::Server => 2,
            Self::Client => 3,
            Self::Producer => 4,
            Self::Consumer => 5,
        }
    }

    /// Returns the name in OTLP's definition.
    pub const fn otlp_name(self) -> &'static str {
        match self {
            Self::Unspecified => "SPAN_KIND_UNSPECIFIED",
            Self::Internal => "SPAN_KIND_INTERNAL",
            Self::Server => "SPAN_KIND_SERVER",
            Self::Client => "SPAN_KIND_CLIENT",
            Self::Producer => "SPAN_KIND_PRODUCER",
            Self::Consumer => "SPAN_KIND_CONSUMER",
        }
    }

    /// Returns the value of the `span.kind` tag that Jaeger shows.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SpanStatus {
    #[default]
    Unset,
    Ok,
    Error(String),
}

impl SpanStatus {
    pub const fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }

    /// Returns the name of the code in OTLP's definition.
    pub const fn otlp_name(&self) -> &'static str {
        match self {
            Self::Unset => "STATUS_CODE_UNSET",
            Self::Ok => "STATUS_CODE_OK",
            Self::Error(_) => "STATUS_CODE_ERROR",
        }
    }

    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Ok => "ok",
            Self::Error(_) => "error",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct SpanEvent {
    pub timestamp: TimestampNs,
    pub name: String,
    pub attributes: Attributes,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SpanLink {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub attributes: Attributes,
}

/// Member of a trace state that says how many spans a sampled one stands for.
const WEIGHT: &str = "obs=w:";

/// Returns how many spans one stands for that was kept by chance when its trace was complete.
pub fn sampling_weight(trace_state: &str) -> f64 {
    if trace_state.is_empty() {
        return 1.0;
    }
    let member = trace_state.split(',').find_map(|m| m.trim().strip_prefix(WEIGHT));
    member.and_then(|w| w.parse().ok()).filter(|w: &f64| w.is_finite() && *w >= 1.0).unwrap_or(1.0)
}

/// Writes how many spans one stands for; nothing when that is itself.
pub fn set_sampling_weight(trace_state: &mut String, weight: f64) {
    let others = trace_state.split(',').filter(|m| !m.trim().starts_with(WEIGHT) && !m.is_empty());
    let mut members: Vec<String> = others.map(str::to_owned).collect();
    if weight > 1.0 {
        members.insert(0, format!("{WEIGHT}{weight}"));
    }
    *trace_state = members.join(",");
}

#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub parent_id: Option<SpanId>,
    pub name: String,
    pub kind: SpanKind,
    pub start: TimestampNs,
    /// Never before `start`.
    pub end: TimestampNs,
    pub status: SpanStatus,
    pub trace_state: String,
    pub attributes: Attributes,
    pub events: Vec<SpanEvent>,
    pub links: Vec<SpanLink>,
    pub resource: Arc<Resource>,
    pub scope: Arc<Scope>,
}

impl Span {
    pub const fn duration_ns(&self) -> i64 {
        self.end.nanos().saturating_sub(self.start.nanos())
    }

    pub fn service(&self) -> &str {
        self.resource.service()
    }

    /// Calls `f` with the key of every attribute; of equal keys with each.
    pub fn attribute_keys(&self, f: &mut dyn FnMut(AttributeScope, &str)) {
        let events = self.events.iter().map(|e| (AttributeScope::Event, &e.attributes));
        let links = self.links.iter().map(|l| (AttributeScope::Link, &l.attributes));
        let own = [
            (AttributeScope::Span, &self.attributes),
            (AttributeScope::Resource, &self.resource.attributes),
            (AttributeScope::Instrumentation, &self.scope.attributes),
        ];
        for (scope, attributes) in own.into_iter().chain(events).chain(links) {
            attributes.iter().for_each(|(k, _)| f(scope, k));
        }
    }

    /// Returns the bytes the span takes in memory, roughly.
    pub fn size_bytes(&self) -> usize {
        let events: usize =
            self.events.iter().map(|e| 64 + e.name.len() + e.attributes.size_bytes()).sum();
        let links: usize = self.links.iter().map(|l| 64 + l.attributes.size_bytes()).sum();
        300 + self.name.len() + self.attributes.size_bytes() + events + links
    }
}
