//! Booking LLM calls: which of them count, what was booked before, and who is told.

use crate::pipeline::Ingest;
use obs_llm::{Link, call_from_span};
use obs_model::{
    AppendError, CostState, LlmCall, MetricMetadata, Series, Span, TenantId, TimestampNs, TraceId,
    WriteBatch,
};
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A call as it is booked now, and as it was before if this revises it.
#[derive(Debug, Clone, PartialEq)]
pub struct Booking {
    pub call: Arc<LlmCall>,
    pub before: Option<Arc<LlmCall>>,
}

impl From<(Arc<LlmCall>, LlmCall)> for Booking {
    /// From a call before and now.
    fn from((before, call): (Arc<LlmCall>, LlmCall)) -> Self {
        Self { call: Arc::new(call), before: Some(before) }
    }
}

/// Is told of every call once it is durable, in no particular order.
pub trait WatchCalls: Send + Sync + fmt::Debug {
    fn booked(&self, tenant: &TenantId, booking: &Booking);
}

/// Those who are told of calls.
#[derive(Debug, Default)]
pub(crate) struct CallWatchers(RwLock<Vec<Arc<dyn WatchCalls>>>);

impl CallWatchers {
    fn tell(&self, tenant: &TenantId, bookings: &[Booking]) {
        for w in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            bookings.iter().for_each(|b| w.booked(tenant, b));
        }
    }
}

/// Ids of answers that are unique everywhere are at least this long; local engines count `cmpl-1`.
const UNIQUE_ID_LEN: usize = 20;

/// What makes two reports one call.
pub(crate) type Response = (TenantId, Option<TraceId>, String);

fn response(tenant: &TenantId, c: &LlmCall) -> Response {
    let trace = (c.call_id.len() < UNIQUE_ID_LEN).then_some(c.trace_id);
    (tenant.clone(), trace, c.call_id.clone())
}

impl Ingest {
    /// Tells `watch` of every call from now on.
    pub fn watch_calls(&self, watch: Arc<dyn WatchCalls>) {
        self.call_watchers.0.write().unwrap_or_else(PoisonError::into_inner).push(watch);
    }

    /// Finds the calls in spans: priced, marked where another call counts for them, and with them
    /// revisions of calls that they show to be repetitions.
    pub(crate) fn bookings(
        &self,
        tenant: &TenantId,
        spans: &[Span],
        links: &[Link],
        now: TimestampNs,
    ) -> Vec<Booking> {
        let prices = self.prices();
        let mut calls: Vec<LlmCall> =
            spans.iter().filter_map(|s| call_from_span(s, &prices)).collect();
        let state = self.state();
        let mut here_spans = HashSet::new();
        let mut here_responses = HashSet::new();
        calls.retain(|c| {
            !state.spans.contains(&(tenant.clone(), c.trace_id, c.span_id))
                && here_spans.insert((c.trace_id, c.span_id))
        });
        for c in &mut calls {
            c.booked_at = now;
            if c.call_id.is_empty() {
                continue;
            }
            let key = response(tenant, c);
            if state.responses.contains(&key) || !here_responses.insert(key) {
                c.count_elsewhere(CostState::Duplicate);
            }
        }
        let revised = state.kin.judge(tenant, links, &mut calls, now);
        drop(state);
        let first = calls.into_iter().map(|call| Booking { call: Arc::new(call), before: None });
        first.chain(revised.into_iter().map(Booking::from)).collect()
    }

    /// Counts what is durable: a refused batch comes again. Returns revisions that are needed
    /// because another request of the same trace was under way.
    pub(crate) fn booked(
        &self,
        tenant: &TenantId,
        links: &[Link],
        bookings: &[Booking],
        now: TimestampNs,
    ) -> Vec<Booking> {
        let mut state = self.state();
        for b in bookings {
            let c = &b.call;
            match &b.before {
                Some(before) => state.derived.adjust(tenant, before, c, now.to_millis()),
                None => {
                    state.spans.insert((tenant.clone(), c.trace_id, c.span_id));
                    if !c.call_id.is_empty() {
                        state.responses.insert(response(tenant, c));
                    }
                    state.derived.observe(tenant, c, now.to_millis());
                }
            }
        }
        let calls: Vec<Arc<LlmCall>> = bookings.iter().map(|b| b.call.clone()).collect();
        let late = state.kin.booked(tenant, links, &calls, now);
        drop(state);
        self.call_watchers.tell(tenant, bookings);
        late.into_iter().map(Booking::from).collect()
    }

    /// Stores calls that did not come in spans, and revisions; tells everyone who counts them.
    ///
    /// # Errors
    /// When the store refuses the batch; then nothing was stored.
    pub async fn book(
        &self,
        tenant: &TenantId,
        mut bookings: Vec<Booking>,
        now: TimestampNs,
    ) -> Result<(), AppendError> {
        while !bookings.is_empty() {
            let calls: Vec<LlmCall> = bookings.iter().map(|b| LlmCall::clone(&b.call)).collect();
            let n = calls.len() as u64;
            let batch = WriteBatch { calls, ..WriteBatch::default() };
            self.append(tenant, "trace", ("calls", n), batch).await?;
            bookings = self.booked(tenant, &[], &bookings, now);
        }
        Ok(())
    }

    /// Returns the tenants that had calls in the last day.
    pub fn tenants_with_calls(&self) -> BTreeSet<TenantId> {
        self.state().derived.tenants()
    }

    /// Whether this very call was booked, as far as is remembered.
    pub fn knows_call(&self, tenant: &TenantId, call: &LlmCall) -> bool {
        self.state().spans.contains(&(tenant.clone(), call.trace_id, call.span_id))
    }

    /// Stores series that are made here; see [`Self::tick`].
    ///
    /// # Errors
    /// When the store refuses them.
    pub async fn emit(
        &self,
        tenant: &TenantId,
        series: Vec<Series>,
        metadata: Vec<MetricMetadata>,
    ) -> Result<(), AppendError> {
        let n = series.len() as u64;
        let batch = WriteBatch { series, metadata, ..WriteBatch::default() };
        self.append(tenant, "metric", ("data_points", n), batch).await.map(|_| ())
    }

    /// Whether a call with this answer's id was booked, as far as is remembered.
    pub fn knows_response(&self, tenant: &TenantId, call: &LlmCall) -> bool {
        !call.call_id.is_empty() && self.state().responses.contains(&response(tenant, call))
    }
}
