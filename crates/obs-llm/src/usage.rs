//! Calls that are told of without telemetry.

use crate::provider;
use obs_model::{Dialect, LlmCall, SpanId, TenantId, TimestampNs, TraceId};

/// Returns a call of a model with nothing else known; the ids are not its own yet.
pub fn usage_call(provider: &str, model: &str, start: TimestampNs) -> LlmCall {
    let (trace_id, span_id) = usage_id(&TenantId::default(), "");
    LlmCall {
        provider: provider::canonical(provider, ""),
        request_model: model.to_owned(),
        ..LlmCall::new(start, trace_id, span_id, Dialect::UsageApi)
    }
}

/// Returns the trace and span under which a call with an id of its own is booked: the same for the
/// same id, whenever it is told again. (FNV-1a; not for secrets.)
pub fn usage_id(tenant: &TenantId, id: &str) -> (TraceId, SpanId) {
    id_of("", tenant, id)
}

/// The same, apart for each kind of source.
pub(crate) fn id_of(kind: &str, tenant: &TenantId, id: &str) -> (TraceId, SpanId) {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for b in kind.bytes().chain(tenant.as_str().bytes()).chain([0]).chain(id.bytes()) {
        hash = (hash ^ u128::from(b)).wrapping_mul(PRIME);
    }
    // Ids of nothing but zeros are none.
    let [trace, span] = [hash | 1, (hash >> 64) | 1];
    let span_bytes = (span as u64).to_be_bytes();
    match (TraceId::from_slice(&trace.to_be_bytes()), SpanId::from_slice(&span_bytes)) {
        (Some(t), Some(s)) => (t, s),
        _ => unreachable!("an odd number has a bit"),
    }
}

/// Prices a call by a book: sets its state and cost.
pub fn price_call(call: &mut LlmCall, book: &crate::PriceBook) {
    crate::call::price(call, None, book);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_stable_and_differ() {
        let (a, b) = (TenantId::default(), TenantId::new("b").unwrap());
        assert_eq!(usage_id(&a, "x"), usage_id(&a, "x"));
        assert_ne!(usage_id(&a, "x").0, usage_id(&a, "y").0);
        assert_ne!(usage_id(&a, "x").1, usage_id(&b, "x").1);
    }
}
