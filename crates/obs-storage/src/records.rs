//! Binary form of the model's records, shared by the log and the segments.

use crate::batch::{Shared, Tables};
use crate::bin::{Decoder, Encoder, Malformed};
use obs_model::{
    AttributeValue, Attributes, CallCost, CallStatus, CostState, Dialect, Histogram, Labels,
    LlmCall, LogRecord, Money, Operation, ResetHint, Scope, Span, SpanEvent, SpanId, SpanKind,
    SpanLink, SpanStatus, TimestampNs, TokenUsage, TraceId,
};
use std::borrow::Cow;

/// Nesting past which an attribute value is refused; ingest cuts at the same depth.
const DEPTH_MAX: usize = 40;

pub(crate) fn put_labels(e: &mut Encoder, labels: &Labels) {
    e.len(labels.len());
    for (n, v) in labels.iter() {
        e.str(n);
        e.str(v);
    }
}

pub(crate) fn get_labels(d: &mut Decoder<'_>) -> Result<Labels, Malformed> {
    let count = d.len()?;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let name = d.str()?;
        pairs.push((name, d.str()?));
    }
    Ok(Labels::from_unique(pairs))
}

pub(crate) fn put_value(e: &mut Encoder, v: &AttributeValue) {
    match v {
        AttributeValue::Empty => e.u8(0),
        AttributeValue::String(s) => {
            e.u8(1);
            e.str(s);
        }
        AttributeValue::Bool(b) => {
            e.u8(2);
            e.u8(u8::from(*b));
        }
        AttributeValue::Int(i) => {
            e.u8(3);
            e.int(*i);
        }
        AttributeValue::Double(d) => {
            e.u8(4);
            e.f64(*d);
        }
        AttributeValue::Bytes(b) => {
            e.u8(5);
            e.raw(b);
        }
        AttributeValue::Array(items) => {
            e.u8(6);
            e.len(items.len());
            items.iter().for_each(|v| put_value(e, v));
        }
        AttributeValue::Map(items) => {
            e.u8(7);
            e.len(items.len());
            for (k, v) in items {
                e.str(k);
                put_value(e, v);
            }
        }
    }
}

pub(crate) fn get_value(d: &mut Decoder<'_>, depth: usize) -> Result<AttributeValue, Malformed> {
    if depth > DEPTH_MAX {
        return Err(d.bad());
    }
    Ok(match d.u8()? {
        0 => AttributeValue::Empty,
        1 => AttributeValue::String(d.string()?),
        2 => AttributeValue::Bool(d.u8()? != 0),
        3 => AttributeValue::Int(d.int()?),
        4 => AttributeValue::Double(d.f64()?),
        5 => AttributeValue::Bytes(d.raw()?.to_vec()),
        6 => {
            let n = d.len()?;
            AttributeValue::Array(
                (0..n).map(|_| get_value(d, depth + 1)).collect::<Result<_, _>>()?,
            )
        }
        7 => {
            let n = d.len()?;
            let pair = |d: &mut Decoder<'_>| Ok((d.string()?, get_value(d, depth + 1)?));
            AttributeValue::Map((0..n).map(|_| pair(d)).collect::<Result<_, _>>()?)
        }
        _ => return Err(d.bad()),
    })
}

/// Passes over a value.
pub(crate) fn skip_value(d: &mut Decoder<'_>, depth: usize) -> Result<(), Malformed> {
    if depth > DEPTH_MAX {
        return Err(d.bad());
    }
    match d.u8()? {
        0 => Ok(()),
        1 | 5 => d.raw().map(|_| ()),
        2 => d.u8().map(|_| ()),
        3 => d.int().map(|_| ()),
        4 => d.f64().map(|_| ()),
        6 => (0..d.len()?).try_for_each(|_| skip_value(d, depth + 1)),
        7 => (0..d.len()?).try_for_each(|_| d.raw().and_then(|_| skip_value(d, depth + 1))),
        _ => Err(d.bad()),
    }
}

pub(crate) fn put_attributes(e: &mut Encoder, a: &Attributes) {
    e.len(a.len());
    for (k, v) in a.iter() {
        e.str(k);
        put_value(e, v);
    }
}

pub(crate) fn get_attributes(d: &mut Decoder<'_>) -> Result<Attributes, Malformed> {
    let n = d.len()?;
    let mut pairs = Vec::with_capacity(n);
    for _ in 0..n {
        pairs.push((d.string()?, get_value(d, 0)?));
    }
    Ok(pairs.into())
}

pub(crate) fn put_scope(e: &mut Encoder, s: &Scope) {
    e.str(&s.name);
    e.str(&s.version);
    put_attributes(e, &s.attributes);
}

pub(crate) fn get_scope(d: &mut Decoder<'_>) -> Result<Scope, Malformed> {
    Ok(Scope { name: d.string()?, version: d.string()?, attributes: get_attributes(d)? })
}

fn put_trace(e: &mut Encoder, id: Option<TraceId>) {
    match id {
        Some(id) => e.raw(id.as_bytes()),
        None => e.len(0),
    }
}

fn get_trace(d: &mut Decoder<'_>) -> Result<Option<TraceId>, Malformed> {
    Ok(TraceId::from_slice(d.raw()?))
}

fn put_span_id(e: &mut Encoder, id: Option<SpanId>) {
    match id {
        Some(id) => e.raw(id.as_bytes()),
        None => e.len(0),
    }
}

pub(crate) fn get_span_id(d: &mut Decoder<'_>) -> Result<Option<SpanId>, Malformed> {
    Ok(SpanId::from_slice(d.raw()?))
}

/// A record that log frames and segments carry.
pub(crate) trait Record: Sized {
    /// ns since 1970.
    fn time(&self) -> i64;
    fn trace(&self) -> Option<TraceId>;
    /// Returns what rules about labels compare: a stream's label, a resource attribute under its
    /// name as a label, empty when there is none.
    fn label(&self, name: &str) -> Cow<'_, str>;
    /// Returns the line of a log record.
    fn line(&self) -> Option<&str> {
        None
    }
    /// Writes all but time and trace id.
    fn encode(&self, e: &mut Encoder, shared: &mut Shared);
    fn decode(
        d: &mut Decoder<'_>,
        tables: &Tables,
        time: i64,
        trace: [u8; 16],
    ) -> Result<Self, Malformed>;
}

impl Record for LogRecord {
    fn time(&self) -> i64 {
        self.timestamp.nanos()
    }

    fn trace(&self) -> Option<TraceId> {
        self.trace_id
    }

    fn label(&self, name: &str) -> Cow<'_, str> {
        self.stream.get(name).into()
    }

    fn line(&self) -> Option<&str> {
        Some(&self.line)
    }

    fn encode(&self, e: &mut Encoder, shared: &mut Shared) {
        e.len(shared.stream(&self.stream));
        e.len(shared.resource(&self.resource));
        e.int(self.observed.nanos().wrapping_sub(self.timestamp.nanos()));
        e.str(&self.line);
        e.u8(self.severity_number);
        e.str(&self.severity_text);
        e.str(&self.event_name);
        put_span_id(e, self.span_id);
        put_attributes(e, &self.attributes);
    }

    fn decode(
        d: &mut Decoder<'_>,
        tables: &Tables,
        time: i64,
        trace: [u8; 16],
    ) -> Result<Self, Malformed> {
        Ok(Self {
            stream: tables.streams.get(d.len_free()?).cloned().ok_or(d.bad())?,
            resource: tables.resource(d)?.clone(),
            timestamp: TimestampNs::from_nanos(time),
            trace_id: TraceId::from_slice(&trace),
            observed: TimestampNs::from_nanos(time.wrapping_add(d.int()?)),
            line: d.string()?,
            severity_number: d.u8()?,
            severity_text: d.string()?,
            event_name: d.string()?,
            span_id: get_span_id(d)?,
            attributes: get_attributes(d)?,
        })
    }
}

/// Writes a span's events, times relative to its start.
pub(crate) fn put_events(e: &mut Encoder, s: &Span) {
    e.len(s.events.len());
    for event in &s.events {
        e.int(event.timestamp.nanos().wrapping_sub(s.start.nanos()));
        e.str(&event.name);
        put_attributes(e, &event.attributes);
    }
}

pub(crate) fn get_events(d: &mut Decoder<'_>, start: i64) -> Result<Vec<SpanEvent>, Malformed> {
    let event = |d: &mut Decoder<'_>| {
        Ok(SpanEvent {
            timestamp: TimestampNs::from_nanos(start.wrapping_add(d.int()?)),
            name: d.string()?,
            attributes: get_attributes(d)?,
        })
    };
    (0..d.len()?).map(|_| event(d)).collect()
}

pub(crate) fn put_links(e: &mut Encoder, links: &[SpanLink]) {
    e.len(links.len());
    for link in links {
        put_trace(e, Some(link.trace_id));
        put_span_id(e, Some(link.span_id));
        put_attributes(e, &link.attributes);
    }
}

pub(crate) fn get_links(d: &mut Decoder<'_>) -> Result<Vec<SpanLink>, Malformed> {
    let link = |d: &mut Decoder<'_>| {
        Ok(SpanLink {
            trace_id: get_trace(d)?.ok_or(d.bad())?,
            span_id: get_span_id(d)?.ok_or(d.bad())?,
            attributes: get_attributes(d)?,
        })
    };
    (0..d.len()?).map(|_| link(d)).collect()
}

impl Record for Span {
    fn time(&self) -> i64 {
        self.start.nanos()
    }

    fn trace(&self) -> Option<TraceId> {
        Some(self.trace_id)
    }

    fn label(&self, name: &str) -> Cow<'_, str> {
        let is_same = |key: &str| {
            let as_label = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            key.chars().map(as_label).eq(name.chars())
        };
        let found = self.resource.attributes.iter().find(|(key, _)| is_same(key));
        match found.map(|(_, v)| v) {
            Some(AttributeValue::String(text)) => text.as_str().into(),
            Some(other) => other.to_string().into(),
            None => "".into(),
        }
    }

    fn encode(&self, e: &mut Encoder, shared: &mut Shared) {
        e.len(shared.resource(&self.resource));
        e.len(shared.scope(&self.scope));
        put_span_id(e, Some(self.span_id));
        put_span_id(e, self.parent_id);
        e.str(&self.name);
        e.int(self.kind.to_otlp().into());
        e.int(self.end.nanos().wrapping_sub(self.start.nanos()));
        match &self.status {
            SpanStatus::Unset => e.u8(0),
            SpanStatus::Ok => e.u8(1),
            SpanStatus::Error(message) => {
                e.u8(2);
                e.str(message);
            }
        }
        e.str(&self.trace_state);
        put_attributes(e, &self.attributes);
        put_events(e, self);
        put_links(e, &self.links);
    }

    fn decode(
        d: &mut Decoder<'_>,
        tables: &Tables,
        time: i64,
        trace: [u8; 16],
    ) -> Result<Self, Malformed> {
        let (resource, scope) = (tables.resource(d)?.clone(), tables.scope(d)?.clone());
        let trace_id = TraceId::from_slice(&trace).ok_or(d.bad())?;
        let start = time;
        let span_id = get_span_id(d)?.ok_or(d.bad())?;
        let parent_id = get_span_id(d)?;
        let name = d.string()?;
        let kind = SpanKind::from_otlp(i32::try_from(d.int()?).map_err(|_| d.bad())?);
        let end = TimestampNs::from_nanos(start.wrapping_add(d.int()?));
        let status = match d.u8()? {
            0 => SpanStatus::Unset,
            1 => SpanStatus::Ok,
            2 => SpanStatus::Error(d.string()?),
            _ => return Err(d.bad()),
        };
        let trace_state = d.string()?;
        let attributes = get_attributes(d)?;
        let events = get_events(d, start)?;
        let links = get_links(d)?;
        Ok(Self {
            trace_id,
            span_id,
            parent_id,
            name,
            kind,
            start: TimestampNs::from_nanos(start),
            end,
            status,
            trace_state,
            attributes,
            events,
            links,
            resource,
            scope,
        })
    }
}

pub(crate) fn put_money(e: &mut Encoder, m: Money) {
    e.bytes.extend_from_slice(&m.serialize());
}

pub(crate) fn get_money(d: &mut Decoder<'_>) -> Result<Money, Malformed> {
    d.array().map(Money::deserialize)
}

/// Returns the token counts in the order in which they are written.
pub(crate) const fn counts(t: &TokenUsage) -> [u64; 8] {
    [
        t.input,
        t.cache_read,
        t.cache_write,
        t.cache_write_1h,
        t.audio_input,
        t.output,
        t.reasoning,
        t.audio_output,
    ]
}

impl Record for LlmCall {
    fn time(&self) -> i64 {
        self.start.nanos()
    }

    fn trace(&self) -> Option<TraceId> {
        Some(self.trace_id)
    }

    fn label(&self, name: &str) -> Cow<'_, str> {
        match name {
            "service_name" => self.service.as_str(),
            "deployment_environment" | "deployment_environment_name" => &self.environment,
            "team" => &self.team,
            "project" => &self.project,
            _ => "",
        }
        .into()
    }

    fn encode(&self, e: &mut Encoder, _shared: &mut Shared) {
        e.int(self.end.nanos().wrapping_sub(self.start.nanos()));
        put_span_id(e, Some(self.span_id));
        for s in [
            &self.call_id,
            &self.service,
            &self.environment,
            &self.provider,
            &self.request_model,
            &self.response_model,
            &self.error_type,
            &self.finish_reason,
            &self.user_id,
            &self.session_id,
            &self.team,
            &self.project,
            &self.agent,
            &self.prompt_name,
            &self.prompt_version,
        ] {
            e.str(s);
        }
        e.str(self.operation.as_str());
        e.str(self.dialect.as_str());
        e.str(self.cost_state.as_str());
        e.u8(u8::from(self.status == CallStatus::Error));
        e.len(self.tags.len());
        self.tags.iter().for_each(|t| e.str(t));
        counts(&self.tokens).into_iter().for_each(|n| e.uint(n));
        e.f64(self.time_to_first_token_ms.unwrap_or(f64::NAN));
        match &self.cost {
            None => e.u8(0),
            Some(c) => {
                e.u8(1);
                for (_, m) in c.parts() {
                    put_money(e, m);
                }
                e.str(&c.price_id);
            }
        }
        match self.reported_cost {
            None => e.u8(0),
            Some(m) => {
                e.u8(1);
                put_money(e, m);
            }
        }
        later_texts(self).into_iter().for_each(|s| e.str(s));
        later_counts(self).into_iter().for_each(|n| e.int(n));
        e.u8(u8::from(self.cost_max.is_some()));
        if let Some(m) = self.cost_max {
            put_money(e, m);
        }
        put_extras(e, self);
    }

    fn decode(
        d: &mut Decoder<'_>,
        _tables: &Tables,
        time: i64,
        trace: [u8; 16],
    ) -> Result<Self, Malformed> {
        let start = time;
        let end = start.wrapping_add(d.int()?);
        let trace_id = TraceId::from_slice(&trace).ok_or(d.bad())?;
        let span_id = get_span_id(d)?.ok_or(d.bad())?;
        let (call_id, service, environment) = (d.string()?, d.string()?, d.string()?);
        let (provider, request_model, response_model) = (d.string()?, d.string()?, d.string()?);
        let (error_type, finish_reason, user_id) = (d.string()?, d.string()?, d.string()?);
        let (session_id, team, project) = (d.string()?, d.string()?, d.string()?);
        let (agent, prompt_name, prompt_version) = (d.string()?, d.string()?, d.string()?);
        let operation = Operation::parse(d.str()?).ok_or(d.bad())?;
        let dialect = Dialect::parse(d.str()?).ok_or(d.bad())?;
        let cost_state = CostState::parse(d.str()?).ok_or(d.bad())?;
        let status = if d.u8()? == 0 { CallStatus::Ok } else { CallStatus::Error };
        let tags = (0..d.len()?).map(|_| d.string()).collect::<Result<_, _>>()?;
        let tokens = TokenUsage {
            input: d.uint()?,
            cache_read: d.uint()?,
            cache_write: d.uint()?,
            cache_write_1h: d.uint()?,
            audio_input: d.uint()?,
            output: d.uint()?,
            reasoning: d.uint()?,
            audio_output: d.uint()?,
            ..TokenUsage::default()
        };
        let ttft = d.f64()?;
        let cost = match d.u8()? {
            0 => None,
            _ => Some(CallCost {
                input: get_money(d)?,
                cache_read: get_money(d)?,
                cache_write: get_money(d)?,
                output: get_money(d)?,
                request: get_money(d)?,
                price_id: d.string()?,
            }),
        };
        let reported_cost = if d.u8()? == 0 { None } else { Some(get_money(d)?) };
        let mut call = Self {
            end: TimestampNs::from_nanos(end),
            call_id,
            service,
            environment,
            provider,
            request_model,
            response_model,
            operation,
            status,
            error_type,
            finish_reason,
            user_id,
            session_id,
            team,
            project,
            agent,
            prompt_name,
            prompt_version,
            tags,
            tokens,
            time_to_first_token_ms: (!ttft.is_nan()).then_some(ttft),
            cost,
            cost_state,
            reported_cost,
            booked_at: TimestampNs::from_nanos(0),
            ..Self::new(TimestampNs::from_nanos(start), trace_id, span_id, dialect)
        };
        // Rows of earlier versions end here.
        if !d.is_done() {
            for text in later_texts_mut(&mut call) {
                *text = d.string()?;
            }
            let mut counts = [0; LATER_COUNTS];
            for n in &mut counts {
                *n = d.int()?;
            }
            set_later_counts(&mut call, counts);
            call.cost_max = if d.u8()? == 0 { None } else { Some(get_money(d)?) };
        }
        if !d.is_done() {
            get_extras(d, &mut call)?;
        }
        Ok(call)
    }
}

/// Writes what rows of the first two versions lack: attributes and the embedding.
pub(crate) fn put_extras(e: &mut Encoder, c: &LlmCall) {
    e.len(c.attributes.len());
    for (name, value) in &c.attributes {
        e.str(name);
        e.str(value);
    }
    e.len(c.embedding.len());
    c.embedding.iter().for_each(|v| e.f64((*v).into()));
}

pub(crate) fn get_extras(d: &mut Decoder<'_>, c: &mut LlmCall) -> Result<(), Malformed> {
    c.attributes =
        (0..d.len()?).map(|_| Ok((d.string()?, d.string()?))).collect::<Result<_, Malformed>>()?;
    c.embedding = (0..d.len()?).map(|_| Ok(d.f64()? as f32)).collect::<Result<_, Malformed>>()?;
    Ok(())
}

pub(crate) const LATER_TEXTS: usize = 6;
pub(crate) const LATER_COUNTS: usize = 6;

/// Texts of a call that rows of the first version lack.
pub(crate) fn later_texts(c: &LlmCall) -> [&str; LATER_TEXTS] {
    [&c.organization, &c.service_tier, &c.region, &c.fingerprint, &c.evidence, &c.reason]
}

pub(crate) const fn later_texts_mut(c: &mut LlmCall) -> [&mut String; LATER_TEXTS] {
    [
        &mut c.organization,
        &mut c.service_tier,
        &mut c.region,
        &mut c.fingerprint,
        &mut c.evidence,
        &mut c.reason,
    ]
}

/// Numbers of a call that rows of the first version lack.
pub(crate) fn later_counts(c: &LlmCall) -> [i64; LATER_COUNTS] {
    let t = &c.tokens;
    [
        t.image_input as i64,
        t.image_output as i64,
        t.search_units as i64,
        i64::from(c.estimated),
        i64::from(c.revision),
        c.booked_at.nanos(),
    ]
}

pub(crate) fn set_later_counts(c: &mut LlmCall, n: [i64; LATER_COUNTS]) {
    let [image_input, image_output, search_units, estimated, revision, booked_at] = n;
    c.tokens.image_input = image_input as u64;
    c.tokens.image_output = image_output as u64;
    c.tokens.search_units = search_units as u64;
    c.estimated = estimated != 0;
    c.revision = u32::try_from(revision).unwrap_or(0);
    c.booked_at = TimestampNs::from_nanos(booked_at);
}

pub(crate) fn put_histogram(e: &mut Encoder, h: &Histogram) {
    e.int(h.schema.into());
    for v in [h.zero_threshold, h.zero_count, h.count, h.sum] {
        e.f64(v);
    }
    for side in [&h.positive, &h.negative] {
        e.len(side.len());
        for (i, c) in side {
            e.int((*i).into());
            e.f64(*c);
        }
    }
    e.len(h.custom_bounds.len());
    h.custom_bounds.iter().for_each(|b| e.f64(*b));
    e.u8(match h.reset_hint {
        ResetHint::Unknown => 0,
        ResetHint::Reset => 1,
        ResetHint::NoReset => 2,
        ResetHint::Gauge => 3,
    });
}

pub(crate) fn get_histogram(d: &mut Decoder<'_>) -> Result<Histogram, Malformed> {
    let small = |d: &mut Decoder<'_>| i32::try_from(d.int()?).map_err(|_| d.bad());
    let side = |d: &mut Decoder<'_>| -> Result<Vec<(i32, f64)>, Malformed> {
        (0..d.len()?).map(|_| Ok((small(d)?, d.f64()?))).collect()
    };
    Ok(Histogram {
        schema: small(d)?,
        zero_threshold: d.f64()?,
        zero_count: d.f64()?,
        count: d.f64()?,
        sum: d.f64()?,
        positive: side(d)?,
        negative: side(d)?,
        custom_bounds: (0..d.len()?).map(|_| d.f64()).collect::<Result<_, _>>()?,
        reset_hint: match d.u8()? {
            1 => ResetHint::Reset,
            2 => ResetHint::NoReset,
            3 => ResetHint::Gauge,
            _ => ResetHint::Unknown,
        },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::batch::{Batch, encode_batch};
    use obs_model::Resource;
    use std::sync::Arc;

    pub(crate) fn a_span(n: u8) -> Span {
        Span {
            trace_id: TraceId::from_slice(&[n; 16]).unwrap(),
            span_id: SpanId::from_slice(&[n; 8]).unwrap(),
            parent_id: SpanId::from_slice(&[9; 8]),
            name: format!("op{n}"),
            kind: SpanKind::Client,
            start: TimestampNs::from_nanos(1_000 + i64::from(n)),
            end: TimestampNs::from_nanos(2_000 + i64::from(n)),
            status: SpanStatus::Error("böse".into()),
            trace_state: "a=b".into(),
            attributes: Attributes::from_iter([(
                "k",
                AttributeValue::Array(vec![1.into(), "x".into()]),
            )]),
            events: vec![SpanEvent {
                timestamp: TimestampNs::from_nanos(5),
                name: "e".into(),
                attributes: Attributes::default(),
            }],
            links: vec![],
            resource: Arc::new(Resource {
                attributes: Attributes::from_iter([("service.name", "svc")]),
            }),
            scope: Arc::default(),
        }
    }

    pub(crate) fn a_log(n: i64, line: &str) -> LogRecord {
        LogRecord {
            stream: Labels::from_pairs([("service_name", "svc")]),
            timestamp: TimestampNs::from_nanos(n),
            observed: TimestampNs::from_nanos(n + 7),
            line: line.into(),
            severity_number: 9,
            severity_text: "INFO".into(),
            event_name: String::new(),
            trace_id: TraceId::from_slice(&[3; 16]),
            span_id: None,
            attributes: Attributes::from_iter([("user", "ü")]),
            resource: Arc::default(),
        }
    }

    pub(crate) fn a_call(n: u8) -> LlmCall {
        LlmCall {
            start: TimestampNs::from_nanos(n.into()),
            end: TimestampNs::from_nanos(i64::from(n) + 10),
            trace_id: TraceId::from_slice(&[n; 16]).unwrap(),
            span_id: SpanId::from_slice(&[n; 8]).unwrap(),
            call_id: "resp".into(),
            service: "s".into(),
            environment: "prod".into(),
            provider: "openai".into(),
            request_model: "gpt-4o".into(),
            response_model: String::new(),
            operation: Operation::Chat,
            status: CallStatus::Ok,
            error_type: String::new(),
            finish_reason: "stop".into(),
            user_id: String::new(),
            session_id: String::new(),
            team: String::new(),
            project: String::new(),
            agent: String::new(),
            prompt_name: String::new(),
            prompt_version: String::new(),
            tags: vec!["a".into()],
            tokens: TokenUsage { input: 10, output: 5, cache_read: 3, ..TokenUsage::default() },
            time_to_first_token_ms: Some(12.5),
            cost: Some(CallCost {
                input: Money::new(25, 6),
                cache_read: Money::ZERO,
                cache_write: Money::ZERO,
                output: Money::new(1, 12),
                request: Money::ZERO,
                price_id: "p".into(),
            }),
            cost_state: CostState::Priced,
            reported_cost: None,
            dialect: Dialect::OpenInference,
            organization: "acme".into(),
            service_tier: "batch".into(),
            region: "eu".into(),
            fingerprint: "fp".into(),
            evidence: "input=x".into(),
            estimated: true,
            cost_max: Some(Money::new(7, 3)),
            revision: 3,
            booked_at: TimestampNs::from_nanos(5),
            reason: "reprice".into(),
            attributes: vec![("customer.tier".into(), "gold".into())],
            embedding: vec![0.5, -0.25],
        }
    }

    fn round_trip<T: Record + PartialEq + std::fmt::Debug>(items: &[T]) {
        let bytes = encode_batch::<T>(items);
        let batch = Batch::<T>::read(bytes.clone()).unwrap();
        for (item, row) in items.iter().zip(&batch.rows).rev() {
            assert_eq!(&batch.decode(row).unwrap(), item);
        }
        // Every truncation is an error, never a panic.
        for cut in 0..bytes.len() {
            assert!(Batch::<T>::read(bytes.get(..cut).unwrap().to_vec()).is_err());
        }
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 0x55;
            if let Ok(b) = Batch::<T>::read(bad) {
                b.rows.iter().for_each(|r| drop(b.decode(r)));
            }
        }
    }

    #[test]
    fn records_survive_a_round_trip_and_damage_is_refused() {
        round_trip(&[a_span(1), a_span(2)]);
        round_trip(&[a_log(1, "hello"), a_log(-5, "你好")]);
        round_trip(&[a_call(1)]);
    }
}
