//! Spans → canonical LLM calls.

use crate::embedding::embedding;
use crate::price::PriceBook;
use crate::{estimate, messages_of, provider, tokens};
use obs_model::{
    AttributeValue, Attributes, CONTENT_FILTER, CallStatus, CostState, Dialect, LlmCall, Message,
    MessagePart, Money, Operation, Span, TimestampNs, TokenUsage,
};
use serde_json::Value as Json;

/// Returns whether a log record's event name belongs to GenAI message events.
pub fn is_llm_event(name: &str) -> bool {
    name.starts_with("gen_ai.")
}

fn first<'a>(a: &'a Attributes, keys: &[&str]) -> &'a str {
    keys.iter().find_map(|k| a.get_str(k)).unwrap_or_default()
}

fn text(a: &Attributes, keys: &[&str]) -> String {
    keys.iter()
        .find_map(|k| a.get(k).map(ToString::to_string).filter(|s| !s.is_empty()))
        .unwrap_or_default()
}

/// Finds the convention and the operation; `None` if the span is no call of a model (agents,
/// workflows and tools are spans, not calls).
fn classify(span: &Span) -> Option<(Dialect, Operation)> {
    let a = &span.attributes;
    if let Some(kind) = a.get_str("openinference.span.kind") {
        let operation = match kind.to_ascii_uppercase().as_str() {
            "LLM" => Operation::Chat,
            "EMBEDDING" => Operation::Embeddings,
            "RERANKER" => Operation::Rerank,
            _ => return None,
        };
        return Some((Dialect::OpenInference, operation));
    }
    if let Some(kind) = a.get_str("langfuse.observation.type") {
        return match kind {
            "generation" => Some((Dialect::Langfuse, Operation::Chat)),
            "embedding" => Some((Dialect::Langfuse, Operation::Embeddings)),
            _ => None,
        };
    }
    if let Some(id) = a.get_str("ai.operationId") {
        let operation = if id.contains("embed") { Operation::Embeddings } else { Operation::Chat };
        // The outer span repeats the sum of its inner ones.
        return (id.ends_with(".doGenerate")
            || id.ends_with(".doStream")
            || id.ends_with(".doEmbed"))
        .then_some((Dialect::VercelAi, operation));
    }
    // Most spans are no calls: their attributes are gone through once.
    let (mut openllmetry, mut adk, mut livekit) = (false, false, false);
    for (k, _) in a.iter() {
        openllmetry |= k.starts_with("traceloop.")
            || k.starts_with("llm.request.type")
            || k == "gen_ai.is_streaming";
        adk |= k.starts_with("gcp.vertex.agent.");
        livekit |= k.starts_with("lk.");
    }
    if let Some(found) = framework(a, adk) {
        return found;
    }
    let scope = span.scope.name.as_str();
    openllmetry |=
        scope.starts_with("opentelemetry.instrumentation.") && !scope.ends_with("openai_v2");
    let dialect = if scope.starts_with("litellm") {
        Dialect::LiteLlm
    } else if openllmetry {
        Dialect::OpenLlmetry
    } else if scope == "pydantic-ai" {
        Dialect::PydanticAi
    } else if scope == "livekit-agents" || livekit {
        Dialect::LiveKit
    } else {
        Dialect::OtelGenAi
    };
    if let Some(operation) = a.get_str("gen_ai.operation.name") {
        return Operation::parse(operation).map(|o| (dialect, o));
    }
    if let Some(kind) = a.get_str("llm.request.type") {
        return Operation::parse(kind).map(|o| (dialect, o));
    }
    // Without a name a span is a call when it names a model and tells its usage or outcome.
    let usage = || tokens::usage(a, dialect, "").is_some();
    if a.get_str("gen_ai.request.model").is_some() {
        let answered = usage() || a.get("gen_ai.response.model").is_some();
        return answered.then_some((dialect, Operation::Chat));
    }
    let is_plain = PLAIN_MODEL.iter().any(|k| a.get_str(k).is_some()) && usage();
    is_plain.then_some((Dialect::Plain, Operation::Chat))
}

/// Names of the model where `llm.*` attributes follow no convention.
const PLAIN_MODEL: &[&str] = &["llm.model", "llm.model.name", "llm.request.model"];

/// Spans of frameworks that name their kinds themselves; `Some(None)` is one that is no call.
fn framework(a: &Attributes, adk: bool) -> Option<Option<(Dialect, Operation)>> {
    if let Some(kind) = a.get_str("mlflow.spanType") {
        let operation = match kind.trim_matches('"') {
            "LLM" | "CHAT_MODEL" => Some(Operation::Chat),
            "EMBEDDING" => Some(Operation::Embeddings),
            "RERANKER" => Some(Operation::Rerank),
            _ => None,
        };
        return Some(operation.map(|o| (Dialect::Mlflow, o)));
    }
    if a.get("genkit:type").or_else(|| a.get("genkit:metadata:subtype")).is_some() {
        let operation = match a.get_str("genkit:metadata:subtype") {
            Some("model") => Some(Operation::Chat),
            Some("embedder") => Some(Operation::Embeddings),
            _ => None,
        };
        return Some(operation.map(|o| (Dialect::Genkit, o)));
    }
    adk.then(|| {
        let asked = a.get_str("gcp.vertex.agent.llm_request").is_some();
        asked.then_some((Dialect::GoogleAdk, Operation::Chat))
    })
}

/// What some dialects leave inside a JSON copy of the provider's answer.
#[derive(Default)]
struct Answer {
    id: String,
    model: String,
    finish_reason: String,
}

fn answer(a: &Attributes) -> Answer {
    let copies = ["output.value", "mlflow.spanOutputs"];
    let copy = copies.iter().find_map(|k| a.get_str(k));
    let Some(json) = copy.and_then(|t| serde_json::from_str::<Json>(t).ok()) else {
        return Answer::default();
    };
    let string = |v: Option<&Json>| v.and_then(Json::as_str).unwrap_or_default().to_owned();
    let choice = json.get("choices").and_then(|c| c.get(0)).and_then(|c| c.get("finish_reason"));
    Answer {
        // LangChain keeps the provider's answer one level down.
        id: string(json.get("id").or_else(|| json.get("llm_output")?.get("id"))),
        model: string(json.get("model")),
        finish_reason: string(choice.or(json.get("stop_reason")).or(json.get("finish_reason"))),
    }
}

/// The model that was asked for. OpenInference's `llm.model_name` is the served one once an answer
/// came; the request is among the parameters.
fn request_model(a: &Attributes) -> String {
    let copies =
        ["llm.invocation_parameters", "embedding.invocation_parameters", "mlflow.spanInputs"];
    let parameters = copies.iter().find_map(|k| a.get_str(k));
    let asked = parameters
        .and_then(|t| serde_json::from_str::<Json>(t).ok())
        .and_then(|j| j.get("model")?.as_str().map(str::to_owned));
    let explicit =
        text(a, &["gen_ai.request.model", "llm.request.model_name", "llm.request.model"]);
    let named = || {
        text(
            a,
            &[
                "llm.model_name",
                "embedding.model_name",
                "reranker.model_name",
                "ai.model.id",
                "langfuse.observation.model.name",
                "llm.model",
                "llm.model.name",
                "mlflow.llm.model",
                "genkit:name",
            ],
        )
    };
    let found = if explicit.is_empty() { asked.unwrap_or_else(named) } else { explicit };
    // MLflow writes JSON texts.
    found.trim_matches('"').to_owned()
}

/// Returns one vocabulary for the reasons of all providers.
fn finish_reason(raw: &str) -> String {
    match raw.to_ascii_lowercase().as_str() {
        "tool_calls" | "tool_use" | "function_call" | "tool-calls" | "tool_call" => {
            "tool_call".to_owned()
        }
        "end_turn" | "stop_sequence" | "stop" | "completed" | "complete" => "stop".to_owned(),
        "max_tokens" | "length" | "max_output_tokens" => "length".to_owned(),
        CONTENT_FILTER | "content-filter" | "safety" | "refusal" => CONTENT_FILTER.to_owned(),
        other => other.to_owned(),
    }
}

fn raw_finish_reason(a: &Attributes, answer: &Answer) -> String {
    let keys = [
        "gen_ai.response.finish_reasons",
        "llm.finish_reason",
        "gen_ai.response.finish_reason",
        "gen_ai.response.stop_reason",
        "gen_ai.completion.0.finish_reason",
        "ai.response.finishReason",
        "gen_ai.finishReason",
    ];
    for key in keys {
        let found = match a.get(key) {
            Some(AttributeValue::Array(list)) => list.first().map(ToString::to_string),
            Some(AttributeValue::String(s)) if s.starts_with('[') => {
                serde_json::from_str::<Vec<String>>(s).ok().and_then(|v| v.into_iter().next())
            }
            Some(AttributeValue::String(s)) => Some(s.clone()),
            _ => None,
        };
        if let Some(found) = found.filter(|f| !f.is_empty()) {
            return found;
        }
    }
    // Inside the messages, as OTel's output schema has it.
    let inside = a
        .get("gen_ai.output.messages")
        .map(ToString::to_string)
        .and_then(|t| serde_json::from_str::<Json>(&t).ok());
    let reason = inside
        .as_ref()
        .and_then(|m| m.get(0))
        .and_then(|m| m.get("finish_reason"))
        .and_then(Json::as_str);
    reason.map_or_else(|| answer.finish_reason.clone(), str::to_owned)
}

fn first_token_ms(span: &Span) -> Option<f64> {
    let a = &span.attributes;
    if let Some(s) = a.get("gen_ai.response.time_to_first_chunk").and_then(AttributeValue::as_f64) {
        return Some(s * 1000.0);
    }
    for key in ["ai.response.msToFirstChunk", "ai.stream.msToFirstChunk"] {
        if let Some(ms) = a.get(key).and_then(AttributeValue::as_f64) {
            return Some(ms);
        }
    }
    let is_chunk = |name: &str| {
        matches!(
            name,
            "First Token Stream Event"
                | "gen_ai.content.completion.chunk"
                | "llm.content.completion.chunk"
                | "ai.stream.firstChunk"
        )
    };
    let event = span.events.iter().filter(|e| is_chunk(&e.name)).map(|e| e.timestamp).min()?;
    let ns = event.nanos().checked_sub(span.start.nanos()).filter(|ns| *ns >= 0)?;
    Some(ns as f64 / 1e6)
}

fn error_type(span: &Span) -> String {
    let named = first(&span.attributes, &["error.type", "exception.type"]);
    if !named.is_empty() {
        return named.to_owned();
    }
    let exception = span.events.iter().rev().find_map(|e| e.attributes.get_str("exception.type"));
    match (exception, span.status.is_error()) {
        (Some(name), _) => name.to_owned(),
        (None, true) => "error".to_owned(),
        (None, false) => String::new(),
    }
}

fn tags(a: &Attributes) -> Vec<String> {
    let raw = ["tag.tags", "langfuse.trace.tags", "ai.telemetry.metadata.tags"]
        .iter()
        .find_map(|k| a.get(k));
    match raw {
        Some(AttributeValue::Array(list)) => list.iter().map(ToString::to_string).collect(),
        Some(AttributeValue::String(s)) => {
            serde_json::from_str(s).unwrap_or_else(|_| vec![s.clone()])
        }
        _ => Vec::new(),
    }
}

fn reported_cost(a: &Attributes) -> Option<Money> {
    let keys = ["gen_ai.usage.cost", "gen_ai.cost.total_cost", "llm.cost.total", "operation.cost"];
    let value = keys.iter().find_map(|k| a.get(k))?;
    let text = value.to_string();
    Money::from_str_exact(&text)
        .or_else(|_| Money::from_scientific(&text))
        .ok()
        .or_else(|| Money::try_from(value.as_f64()?).ok())
}

/// How the provider served a call, as the price book names it.
fn tier_of(a: &Attributes) -> String {
    let keys = [
        "openai.response.service_tier",
        "gen_ai.openai.response.service_tier",
        "gen_ai.response.service_tier",
        "openai.request.service_tier",
        "gen_ai.openai.request.service_tier",
        "gen_ai.request.service_tier",
    ];
    let named = first(a, &keys).to_owned();
    let among = || {
        let keys = ["llm.invocation_parameters", "langfuse.observation.model.parameters"];
        let text = keys.iter().find_map(|k| a.get_str(k))?;
        let json: Json = serde_json::from_str(text).ok()?;
        json.get("service_tier")?.as_str().map(str::to_owned)
    };
    let named = if named.is_empty() { among().unwrap_or_default() } else { named };
    service_tier(&named)
}

/// Returns the price book's name of a service tier: empty for the standard one.
pub fn service_tier(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "batch" | "flex" | "priority" => name.to_ascii_lowercase(),
        // Reserved capacity is paid for apart, its calls at the standard price.
        _ => String::new(),
    }
}

/// The attribute of calls that names the key that paid.
pub const KEY: &str = "key";
/// Ids of keys, never keys themselves.
const KEY_NAMES: &[&str] = &[
    "gen_ai.api_key.id",
    "llm.api_key.id",
    "api_key.id",
    "api_key_id",
    "metadata.user_api_key_alias",
    "metadata.user_api_key_hash",
    "traceloop.association.properties.api_key_id",
    "ai.telemetry.metadata.apiKeyId",
];
/// Bytes of a further attribute's value that is kept.
const ATTRIBUTE_BYTES_MAX: usize = 256;

/// Keeps further attributes of a span, or its resource, with its call: those of `names`. Values of
/// more than 256 bytes are not kept.
pub fn keep_attributes<'a>(
    call: &mut LlmCall,
    (of_span, of_resource): (&Attributes, &Attributes),
    names: impl Iterator<Item = &'a str>,
) {
    for name in names {
        let value = of_span.get(name).or_else(|| of_resource.get(name)).map(ToString::to_string);
        if let Some(value) = value.filter(|v| v.len() <= ATTRIBUTE_BYTES_MAX) {
            call.keep_attribute(name, value);
        }
    }
}

/// Translates a span into a priced call; `None` if it is no call of a model.
pub fn call_from_span(span: &Span, prices: &PriceBook) -> Option<LlmCall> {
    let (dialect, operation) = classify(span)?;
    let a = &span.attributes;
    let r = &span.resource.attributes;
    let answer = answer(a);
    let is_error = span.status.is_error() || a.get_str("error.type").is_some();
    let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
    let anywhere = |keys: &[&str]| or(text(a, keys), &text(r, keys));
    let raw_provider = first(
        a,
        &[
            "gen_ai.provider.name",
            "gen_ai.system",
            "llm.provider",
            "llm.system",
            "ai.model.provider",
            "mlflow.llm.provider",
        ],
    );
    let provider = provider::canonical(raw_provider, first(a, &["llm.system", "gen_ai.system"]));
    let usage = tokens::usage(a, dialect, &provider);
    let mut call = LlmCall {
        start: span.start,
        end: span.end,
        trace_id: span.trace_id,
        span_id: span.span_id,
        call_id: or(text(a, &["gen_ai.response.id", "ai.response.id"]), &answer.id),
        service: span.service().to_owned(),
        environment: span.resource.environment().unwrap_or_default().to_owned(),
        provider,
        request_model: request_model(a),
        response_model: or(
            text(
                a,
                &[
                    "gen_ai.response.model",
                    "llm.response.model",
                    "llm.response.model_name",
                    "ai.response.model",
                ],
            ),
            if answer.model.is_empty() { first(a, &["llm.model_name"]) } else { &answer.model },
        ),
        operation,
        status: if is_error { CallStatus::Error } else { CallStatus::Ok },
        error_type: if is_error { error_type(span) } else { String::new() },
        finish_reason: if is_error {
            String::new()
        } else {
            finish_reason(&raw_finish_reason(a, &answer))
        },
        user_id: anywhere(&[
            "user.id",
            "enduser.id",
            "langfuse.user.id",
            "traceloop.association.properties.user_id",
            "gen_ai.user",
            "llm.user",
            "ai.telemetry.metadata.userId",
        ]),
        session_id: anywhere(&[
            "gen_ai.conversation.id",
            "session.id",
            "langfuse.session.id",
            "traceloop.association.properties.session_id",
            "ai.telemetry.metadata.sessionId",
        ]),
        team: anywhere(&["team", "llm.team", "traceloop.association.properties.team"]),
        project: anywhere(&[
            "project",
            "llm.project",
            "openinference.project.name",
            "traceloop.association.properties.project",
        ]),
        agent: text(a, &["gen_ai.agent.name", "agent.name"]),
        prompt_name: text(
            a,
            &[
                "gen_ai.prompt.name",
                "langfuse.observation.prompt.name",
                "prompt.id",
                "traceloop.prompt.key",
            ],
        ),
        prompt_version: text(
            a,
            &[
                "langfuse.observation.prompt.version",
                "llm.prompt_template.version",
                "traceloop.prompt.version",
            ],
        ),
        tags: tags(a),
        tokens: usage.as_ref().map_or(TokenUsage::default(), |u| u.tokens),
        time_to_first_token_ms: first_token_ms(span),
        cost: None,
        cost_state: CostState::Unpriced,
        reported_cost: reported_cost(a),
        dialect,
        organization: anywhere(&[
            "organization",
            "organization_id",
            "organization.id",
            "llm.organization",
            "openai.organization",
            "traceloop.association.properties.organization",
            "traceloop.association.properties.organization_id",
            "ai.telemetry.metadata.organization",
        ]),
        service_tier: tier_of(a),
        region: text(a, &["gen_ai.request.region", "aws.bedrock.region", "llm.region"]),
        fingerprint: text(
            a,
            &[
                "openai.response.system_fingerprint",
                "gen_ai.openai.response.system_fingerprint",
                "gen_ai.openai.system_fingerprint",
                "gen_ai.response.system_fingerprint",
            ],
        ),
        evidence: usage.as_ref().map(|u| u.evidence.clone()).unwrap_or_default(),
        estimated: false,
        cost_max: None,
        revision: 0,
        booked_at: TimestampNs::from_nanos(0),
        reason: String::new(),
        attributes: Vec::new(),
        embedding: embedding(a),
    };
    call.keep_attribute(KEY, anywhere(KEY_NAMES).chars().take(ATTRIBUTE_BYTES_MAX).collect());
    let alternative = usage.as_ref().and_then(|u| u.alternative);
    if usage.is_none() && !is_error {
        estimate(span, &mut call);
    }
    // A refused request has no usage and costs nothing; that is known, not missing.
    if usage.is_some() || call.estimated || is_error {
        price(&mut call, alternative, prices);
    }
    Some(call)
}

/// Counts the tokens of a call that came without counts from its text.
fn estimate(span: &Span, call: &mut LlmCall) {
    let talk = messages_of(span, std::iter::empty());
    let count = |messages: &[Message]| -> u64 {
        let model = call.model();
        let parts = messages.iter().flat_map(|m| &m.parts);
        parts.map(|p| estimate::tokens(model, part_text(p))).sum()
    };
    let (input, output) = (count(&talk.input), count(&talk.output));
    if input == 0 && output == 0 {
        return;
    }
    call.tokens = TokenUsage { input, output, ..TokenUsage::default() };
    call.estimated = true;
    call.evidence = format!("estimated from text by {}", estimate::method(call.model()));
}

fn part_text(p: &MessagePart) -> &str {
    match p {
        MessagePart::Text(t) | MessagePart::Reasoning(t) => t,
        MessagePart::ToolCall { arguments, .. } => arguments,
        MessagePart::ToolResult { content, .. } => content,
        MessagePart::Media(_) | MessagePart::Other { .. } => "",
    }
}

/// Prices a call again by a book: sets state, cost and, where two readings remain, both bounds.
/// `alternative` is the other reading of an ambiguous source.
pub(crate) fn price(call: &mut LlmCall, alternative: Option<TokenUsage>, prices: &PriceBook) {
    call.cost_state = CostState::Unpriced;
    (call.cost, call.cost_max) = (None, None);
    let Some(cost) = prices.price(call, &call.tokens) else { return };
    call.cost_state = CostState::Priced;
    if let Some(other) = alternative.and_then(|t| prices.price(call, &t)) {
        call.cost_state = CostState::Ambiguous;
        call.cost_max = Some(cost.total().max(other.total()));
        call.cost = Some(if cost.total() <= other.total() { cost } else { other });
        return;
    }
    call.cost = Some(cost);
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::{Resource, Scope, SpanEvent, SpanId, SpanKind, SpanStatus, TraceId};
    use std::sync::Arc;

    fn span(scope: &str, pairs: Vec<(&str, AttributeValue)>) -> Span {
        Span {
            trace_id: TraceId::from_slice(&[1; 16]).unwrap(),
            span_id: SpanId::from_slice(&[1; 8]).unwrap(),
            parent_id: None,
            name: "chat".into(),
            kind: SpanKind::Client,
            start: TimestampNs::from_nanos(1_760_000_000_000_000_000),
            end: TimestampNs::from_nanos(1_760_000_001_000_000_000),
            status: SpanStatus::Unset,
            trace_state: String::new(),
            attributes: pairs.into_iter().collect(),
            events: vec![],
            links: vec![],
            resource: Arc::new(Resource {
                attributes: Attributes::from_iter([("service.name", "app")]),
            }),
            scope: Arc::new(Scope { name: scope.into(), ..Scope::default() }),
        }
    }

    #[test]
    fn the_same_call_through_three_dialects_costs_the_same() {
        let prices = PriceBook::embedded();
        let otel = span(
            "opentelemetry.instrumentation.openai_v2",
            vec![
                ("gen_ai.operation.name", "chat".into()),
                ("gen_ai.system", "openai".into()),
                ("gen_ai.request.model", "gpt-4o-mini".into()),
                ("gen_ai.response.model", "gpt-4o-mini-2024-07-18".into()),
                ("gen_ai.response.id", "r1".into()),
                (
                    "gen_ai.response.finish_reasons",
                    AttributeValue::Array(vec!["tool_calls".into()]),
                ),
                ("gen_ai.usage.input_tokens", 24.into()),
                ("gen_ai.usage.output_tokens", 9.into()),
                ("gen_ai.usage.cache_read.input_tokens", 8.into()),
            ],
        );
        let inference = span(
            "openinference.instrumentation.openai",
            vec![
                ("openinference.span.kind", "LLM".into()), ("llm.provider", "openai".into()), ("llm.model_name", "gpt-4o-mini-2024-07-18".into()),
                ("llm.invocation_parameters", r#"{"model":"gpt-4o-mini"}"#.into()),
                ("llm.token_count.prompt", 24.into()), ("llm.token_count.completion", 9.into()), ("llm.token_count.total", 33.into()),
                ("llm.token_count.prompt_details.cache_read", 8.into()),
                ("output.value", r#"{"id":"r1","model":"gpt-4o-mini-2024-07-18","choices":[{"finish_reason":"tool_calls"}]}"#.into()),
            ],
        );
        let traceloop = span(
            "opentelemetry.instrumentation.openai.v1",
            vec![
                ("llm.request.type", "chat".into()),
                ("gen_ai.system", "OpenAI".into()),
                ("gen_ai.request.model", "gpt-4o-mini".into()),
                ("gen_ai.response.model", "gpt-4o-mini-2024-07-18".into()),
                ("gen_ai.response.id", "r1".into()),
                ("gen_ai.usage.prompt_tokens", 24.into()),
                ("gen_ai.usage.completion_tokens", 9.into()),
                ("llm.usage.total_tokens", 33.into()),
                ("gen_ai.usage.cache_read_input_tokens", 8.into()),
                ("gen_ai.completion.0.finish_reason", "tool_calls".into()),
            ],
        );
        for (s, dialect) in [
            (otel, Dialect::OtelGenAi),
            (inference, Dialect::OpenInference),
            (traceloop, Dialect::OpenLlmetry),
        ] {
            let c = call_from_span(&s, &prices).unwrap();
            assert_eq!(c.dialect, dialect);
            assert_eq!(c.request_model, "gpt-4o-mini");
            assert_eq!(
                (c.provider.as_str(), c.model(), c.finish_reason.as_str(), c.call_id.as_str()),
                ("openai", "gpt-4o-mini-2024-07-18", "tool_call", "r1")
            );
            // 16 × 0.15 + 8 × 0.075 + 9 × 0.60 dollars a million: LiteLLM's figure too.
            assert_eq!(c.cost.unwrap().total().normalize().to_string(), "0.0000084");
        }
    }

    #[test]
    fn agents_and_outer_spans_are_no_calls() {
        let prices = PriceBook::embedded();
        for pairs in [
            vec![
                ("gen_ai.operation.name", "invoke_agent".into()),
                ("gen_ai.usage.input_tokens", 5.into()),
            ],
            vec![("openinference.span.kind", "CHAIN".into())],
            vec![
                ("ai.operationId", "ai.generateText".into()),
                ("ai.usage.promptTokens", 48.into()),
            ],
            vec![("http.method", "GET".into())],
        ] {
            assert!(call_from_span(&span("x", pairs), &prices).is_none());
        }
    }

    #[test]
    fn unknown_models_are_unpriced_and_errors_cost_nothing() {
        let prices = PriceBook::embedded();
        let base = |model: &str| {
            vec![
                ("gen_ai.operation.name", "chat".into()),
                ("gen_ai.provider.name", "openai".into()),
                ("gen_ai.request.model", model.into()),
            ]
        };
        let mut pairs = base("gpt-99-ultra");
        pairs.push(("gen_ai.usage.input_tokens", 5.into()));
        let c = call_from_span(&span("x", pairs), &prices).unwrap();
        assert_eq!((c.cost_state, c.cost), (CostState::Unpriced, None));
        let mut s = span("x", base("gpt-4o"));
        s.status = SpanStatus::Error("boom".into());
        s.events.push(SpanEvent {
            timestamp: s.start,
            name: "exception".into(),
            attributes: Attributes::from_iter([("exception.type", "RateLimitError")]),
        });
        let c = call_from_span(&s, &prices).unwrap();
        assert_eq!(
            (c.status, c.error_type.as_str(), c.cost_state),
            (CallStatus::Error, "RateLimitError", CostState::Priced)
        );
        assert_eq!(c.cost.unwrap().total(), Money::ZERO);
    }
}
