//! Calls told by a log event: `gen_ai.client.inference.operation.details` of OpenTelemetry's
//! conventions carries what a span of the call would, where spans are sampled or carry no content.

use crate::call::call_from_span;
use crate::price::PriceBook;
use crate::usage::id_of;
use obs_model::{
    CallStatus, CostState, LlmCall, LogRecord, Scope, Span, SpanKind, SpanStatus, TenantId,
};
use std::sync::Arc;

/// The event's name.
pub(crate) const DETAILS_EVENT: &str = "gen_ai.client.inference.operation.details";

/// Returns the name of the event that a record is; older SDKs put it among the attributes.
pub(crate) fn event_name(r: &LogRecord) -> &str {
    if r.event_name.is_empty() {
        r.attributes.get_str("event.name").unwrap_or_default()
    } else {
        &r.event_name
    }
}

/// Whether a record tells of a whole call.
pub fn is_call_event(r: &LogRecord) -> bool {
    event_name(r) == DETAILS_EVENT
}

/// Translates a record of the event into a priced call; `None` for any other record. When it began
/// is not said: it is a moment.
pub fn call_from_event(r: &LogRecord, tenant: &TenantId, prices: &PriceBook) -> Option<LlmCall> {
    if !is_call_event(r) {
        return None;
    }
    // One outside of any span is known by the provider's id, or by all that it says.
    let own = r.attributes.get_str("gen_ai.response.id").map_or_else(
        || format!("{}{}{:?}", r.timestamp.nanos(), r.line, r.attributes),
        str::to_owned,
    );
    let (trace_id, span_id) = match (r.trace_id, r.span_id) {
        (Some(t), Some(s)) => (t, s),
        _ => id_of("event/", tenant, &own),
    };
    let span = Span {
        trace_id,
        span_id,
        parent_id: None,
        name: String::new(),
        kind: SpanKind::Client,
        start: r.timestamp,
        end: r.timestamp,
        status: SpanStatus::Unset,
        trace_state: String::new(),
        attributes: r.attributes.clone(),
        events: Vec::new(),
        links: Vec::new(),
        resource: r.resource.clone(),
        scope: Arc::new(Scope::default()),
    };
    let mut call = call_from_span(&span, prices)?;
    call.evidence = match call.evidence.as_str() {
        "" => "log event".to_owned(),
        evidence => format!("log event: {evidence}"),
    };
    Some(call)
}

/// Whether a call's own report says what it used.
const fn tells_usage(c: &LlmCall) -> bool {
    c.tokens.total() > 0 && !c.estimated
}

/// Puts what a call's span and its log event say together: the span says when and where it ran, the
/// event what it used if the span does not. `None` when the event adds nothing.
pub fn with_event(span: &LlmCall, event: &LlmCall) -> Option<LlmCall> {
    let refused = matches!(span.status, CallStatus::Error);
    let better = tells_usage(event) || event.tokens.total() > 0 && span.tokens.total() == 0;
    if refused || tells_usage(span) || !better || span.is_repeated() {
        return None;
    }
    let or = |own: &String, other: &String| {
        if own.is_empty() { other.clone() } else { own.clone() }
    };
    Some(LlmCall {
        tokens: event.tokens,
        estimated: event.estimated,
        evidence: event.evidence.clone(),
        cost: event.cost.clone(),
        cost_max: event.cost_max,
        cost_state: event.cost_state,
        call_id: or(&span.call_id, &event.call_id),
        provider: or(&span.provider, &event.provider),
        request_model: or(&span.request_model, &event.request_model),
        response_model: or(&span.response_model, &event.response_model),
        finish_reason: or(&span.finish_reason, &event.finish_reason),
        ..span.clone()
    })
}

/// Puts a span in the place of the event that told of the call before.
pub fn replacing_event(span: LlmCall, event: &LlmCall) -> LlmCall {
    let mut out = with_event(&span, event).unwrap_or(span);
    if matches!(event.cost_state, CostState::Duplicate) {
        out.count_elsewhere(CostState::Duplicate);
    }
    out.revision = event.revision + 1;
    "its span came after its log event".clone_into(&mut out.reason);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::{AttributeValue, Attributes, TimestampNs, TraceId};

    fn record(extra: &[(&str, AttributeValue)]) -> LogRecord {
        let base = [
            ("gen_ai.operation.name", AttributeValue::from("chat")),
            ("gen_ai.provider.name", "openai".into()),
            ("gen_ai.request.model", "gpt-4o-mini".into()),
        ];
        LogRecord {
            timestamp: TimestampNs::from_nanos(1_790_000_000_000_000_000),
            event_name: DETAILS_EVENT.into(),
            attributes: base.into_iter().chain(extra.iter().cloned()).collect::<Attributes>(),
            ..LogRecord::default()
        }
    }

    #[test]
    fn an_event_is_a_call_and_mends_a_span_without_usage() {
        let prices = PriceBook::embedded();
        let tenant = TenantId::default();
        let used = [
            ("gen_ai.usage.input_tokens", AttributeValue::Int(1000)),
            ("gen_ai.usage.output_tokens", AttributeValue::Int(100)),
        ];
        let event = call_from_event(&record(&used), &tenant, &prices).unwrap();
        assert_eq!(event.cost_usd().normalize().to_string(), "0.00021");
        assert!(event.evidence.starts_with("log event: "), "{}", event.evidence);
        // Told again it is the same call; another time it is another.
        assert_eq!(call_from_event(&record(&used), &tenant, &prices).unwrap(), event);
        let mut later = record(&used);
        later.timestamp = TimestampNs::from_nanos(1_790_000_000_000_000_001);
        let later = call_from_event(&later, &tenant, &prices).unwrap();
        assert_ne!(later.span_id, event.span_id);

        let silent = LlmCall {
            end: TimestampNs::from_nanos(9),
            ..LlmCall::new(event.start, event.trace_id, event.span_id, event.dialect)
        };
        let mended = with_event(&silent, &event).unwrap();
        assert_eq!((mended.cost_usd(), mended.end), (event.cost_usd(), silent.end));
        assert_eq!(with_event(&mended, &event), None, "what a span says holds");
        let replaced = replacing_event(silent, &event);
        assert_eq!((replaced.revision, replaced.tokens), (1, event.tokens));

        let mut other = record(&used);
        other.event_name = "gen_ai.choice".into();
        assert_eq!(call_from_event(&other, &tenant, &prices), None);
        let in_span = LogRecord {
            trace_id: TraceId::from_slice(&[7; 16]),
            span_id: obs_model::SpanId::from_slice(&[8; 8]),
            ..record(&used)
        };
        let c = call_from_event(&in_span, &tenant, &prices).unwrap();
        assert_eq!(Some(c.trace_id), in_span.trace_id);
    }
}
