//! Fields of a span in the head, read from its binary form.

use crate::batch::{Batch, RowRef};
use crate::bin::{Decoder, Malformed};
use crate::records::{get_events, get_links, get_span_id, get_value, skip_value};
use obs_model::{
    AttributeScope, Attributes, FieldValue, Resource, Scope, Span, SpanField, SpanId, SpanKind,
    SpanRow, StatusCode, TimestampNs, TraceId, field_of_events, field_of_links, sampling_weight,
};

/// A span of a batch; its attributes, events and links are read when they are asked for.
pub(crate) struct HeadRow<'a> {
    fields: &'a [SpanField],
    resource: &'a Resource,
    scope: &'a Scope,
    trace_id: TraceId,
    span_id: SpanId,
    parent_id: Option<SpanId>,
    start: i64,
    duration: i64,
    name: &'a str,
    kind: SpanKind,
    status: StatusCode,
    message: &'a str,
    trace_state: &'a str,
    /// Attributes, events, links.
    rest: &'a [u8],
}

fn of(a: &Attributes, key: &str) -> FieldValue<'static> {
    a.get(key).map_or(FieldValue::Nil, |v| FieldValue::from(v).into_owned())
}

impl<'a> HeadRow<'a> {
    pub(crate) fn read(
        batch: &'a Batch<Span>,
        row: &RowRef,
        fields: &'a [SpanField],
    ) -> Result<Self, Malformed> {
        let d = &mut Decoder::new(batch.body(row));
        let (resource, scope) = (batch.tables.resource(d)?, batch.tables.scope(d)?);
        let span_id = get_span_id(d)?.ok_or(d.bad())?;
        let parent_id = get_span_id(d)?;
        let name = d.str()?;
        let kind = SpanKind::from_otlp(i32::try_from(d.int()?).map_err(|_| d.bad())?);
        let duration = d.int()?;
        let (status, message) = match d.u8()? {
            0 => (StatusCode::Unset, ""),
            1 => (StatusCode::Ok, ""),
            2 => (StatusCode::Error, d.str()?),
            _ => return Err(d.bad()),
        };
        let trace_state = d.str()?;
        Ok(Self {
            fields,
            resource,
            scope,
            trace_id: TraceId::from_slice(&row.trace).ok_or(d.bad())?,
            span_id,
            parent_id,
            start: row.time,
            duration,
            name,
            kind,
            status,
            message,
            trace_state,
            rest: d.rest(),
        })
    }

    fn own(&self, key: &str) -> Result<FieldValue<'a>, Malformed> {
        let d = &mut Decoder::new(self.rest);
        for _ in 0..d.len()? {
            if d.raw()? != key.as_bytes() {
                skip_value(d, 0)?;
                continue;
            }
            // Texts are lent; there are few of anything else.
            let mut ahead = Decoder::new(self.rest.get(d.at()..).unwrap_or_default());
            if ahead.u8()? == 1 {
                return Ok(FieldValue::str(ahead.str()?));
            }
            return Ok(FieldValue::from(&get_value(d, 0)?).into_owned());
        }
        Ok(FieldValue::Nil)
    }

    /// Returns a field of the events and, if they lack it, of the links.
    fn of_rest(
        &self,
        field: &SpanField,
        events: bool,
        links: bool,
    ) -> Result<FieldValue<'a>, Malformed> {
        let d = &mut Decoder::new(self.rest);
        for _ in 0..d.len()? {
            d.raw()?;
            skip_value(d, 0)?;
        }
        let list = get_events(d, self.start)?;
        if events {
            let v = field_of_events(&list, TimestampNs::from_nanos(self.start), field);
            if !v.is_nil() || !links {
                return Ok(v.into_owned());
            }
        }
        Ok(field_of_links(&get_links(d)?, field).into_owned())
    }

    fn field(&self, field: &SpanField) -> Result<FieldValue<'a>, Malformed> {
        Ok(match field {
            SpanField::Name => FieldValue::str(self.name),
            SpanField::Kind => FieldValue::Kind(self.kind),
            SpanField::Status => FieldValue::Status(self.status),
            SpanField::StatusMessage => FieldValue::str(self.message),
            SpanField::Service => FieldValue::str(self.resource.service()),
            SpanField::ScopeName => FieldValue::str(self.scope.name.as_str()),
            SpanField::ScopeVersion => FieldValue::str(self.scope.version.as_str()),
            SpanField::EventNames | SpanField::EventTimes => self.of_rest(field, true, false)?,
            SpanField::LinkTraces | SpanField::LinkSpans => self.of_rest(field, false, true)?,
            SpanField::Attribute(scope, key) => match scope {
                AttributeScope::Span => self.own(key)?,
                AttributeScope::Resource => of(&self.resource.attributes, key),
                AttributeScope::Instrumentation => of(&self.scope.attributes, key),
                AttributeScope::Event => self.of_rest(field, true, false)?,
                AttributeScope::Link => self.of_rest(field, false, true)?,
            },
            SpanField::AnyAttribute(key) => {
                let own = self.own(key)?;
                if !own.is_nil() {
                    return Ok(own);
                }
                let of_resource = of(&self.resource.attributes, key);
                if !of_resource.is_nil() {
                    return Ok(of_resource);
                }
                let rest = self.of_rest(field, true, true)?;
                if rest.is_nil() { of(&self.scope.attributes, key) } else { rest }
            }
        })
    }
}

impl SpanRow for HeadRow<'_> {
    fn trace_id(&self) -> TraceId {
        self.trace_id
    }
    fn span_id(&self) -> SpanId {
        self.span_id
    }
    fn parent_id(&self) -> Option<SpanId> {
        self.parent_id
    }
    fn start(&self) -> TimestampNs {
        TimestampNs::from_nanos(self.start)
    }
    fn duration_ns(&self) -> i64 {
        self.duration
    }
    fn get(&self, field: usize) -> FieldValue<'_> {
        // A batch is checked when it is taken in: what cannot be read was never there.
        let value = self.fields.get(field).map(|f| self.field(f));
        value.and_then(Result::ok).unwrap_or(FieldValue::Nil)
    }
    fn weight(&self) -> f64 {
        sampling_weight(self.trace_state)
    }
}
