//! Calls that are told of without telemetry.

use crate::provider;
use obs_model::{
    CallStatus, CostState, Dialect, LlmCall, Operation, SpanId, TimestampNs, TokenUsage, TraceId,
};

/// Returns a call of a model with nothing else known; the ids are not its own yet.
pub fn usage_call(provider: &str, model: &str, start: TimestampNs) -> LlmCall {
    LlmCall {
        start,
        end: start,
        trace_id: TraceId::from_slice(&[1; 16]).unwrap_or_else(|| unreachable!("not zero")),
        span_id: SpanId::from_slice(&[1; 8]).unwrap_or_else(|| unreachable!("not zero")),
        call_id: String::new(),
        service: String::new(),
        environment: String::new(),
        provider: provider::canonical(provider, ""),
        request_model: model.to_owned(),
        response_model: String::new(),
        operation: Operation::Chat,
        status: CallStatus::Ok,
        error_type: String::new(),
        finish_reason: String::new(),
        user_id: String::new(),
        session_id: String::new(),
        team: String::new(),
        project: String::new(),
        agent: String::new(),
        prompt_name: String::new(),
        prompt_version: String::new(),
        tags: Vec::new(),
        tokens: TokenUsage::default(),
        time_to_first_token_ms: None,
        cost: None,
        cost_state: CostState::Unpriced,
        reported_cost: None,
        dialect: Dialect::UsageApi,
        organization: String::new(),
        service_tier: String::new(),
        region: String::new(),
        fingerprint: String::new(),
        evidence: String::new(),
        estimated: false,
        cost_max: None,
        revision: 0,
        booked_at: start,
        reason: String::new(),
    }
}
