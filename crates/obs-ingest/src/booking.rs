//! Booking LLM calls: which of them count, what was booked before, and who is told.

use crate::pipeline::Ingest;
use foldhash::{HashMap, HashSet};
use obs_llm::{
    Link, call_from_event, call_from_span, is_call_event, keep_attributes, replacing_event,
    with_event,
};
use obs_model::{
    AppendError, CostState, LlmCall, LogRecord, MetricMetadata, Series, Span, SpanId, TenantId,
    TimestampNs, TraceId, WriteBatch,
};
use std::collections::BTreeSet;
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

/// Attributes that are kept with calls beside those that calls have anyway.
#[derive(Debug, Default, Clone)]
pub(crate) struct Kept {
    all: BTreeSet<String>,
    tenants: HashMap<TenantId, BTreeSet<String>>,
}

impl Kept {
    fn names(&self, tenant: &TenantId) -> impl Iterator<Item = &str> {
        let own = self.tenants.get(tenant).into_iter().flatten();
        self.all.iter().chain(own).map(String::as_str)
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
        let (prices, kept) = (self.prices(), self.kept());
        let of = |s: &Span| {
            let mut c = call_from_span(s, &prices)?;
            let attributes = (&s.attributes, &s.resource.attributes);
            keep_attributes(&mut c, attributes, kept.names(tenant));
            Some(c)
        };
        let mut calls: Vec<LlmCall> = spans.iter().filter_map(of).collect();
        let state = self.state();
        let mut here_spans = HashSet::default();
        let mut here_responses = HashSet::default();
        let mut told: HashMap<(TraceId, SpanId), Arc<LlmCall>> = HashMap::default();
        calls.retain(|c| {
            let key = (tenant.clone(), c.trace_id, c.span_id);
            if let Some(event) = state.events.get(&key) {
                told.insert((c.trace_id, c.span_id), event.clone());
            } else if state.spans.contains(&key) {
                return false;
            }
            here_spans.insert((c.trace_id, c.span_id))
        });
        for c in &mut calls {
            c.booked_at = now;
            if let Some(event) = told.get(&(c.trace_id, c.span_id)) {
                *c = replacing_event(c.clone(), event);
                continue;
            }
            if c.call_id.is_empty() {
                continue;
            }
            let key = response(tenant, c);
            if state.responses.contains(&key) || !here_responses.insert(key) {
                c.count_elsewhere(CostState::Duplicate);
            }
        }
        let mut revised = state.kin.judge(tenant, links, &mut calls, now);
        drop(state);
        // What an event told is revised by its span already.
        revised.retain(|(_, c)| !told.contains_key(&(c.trace_id, c.span_id)));
        let first = calls.into_iter().map(|call| {
            let before = told.remove(&(call.trace_id, call.span_id));
            Booking { call: Arc::new(call), before }
        });
        first.chain(revised.into_iter().map(Booking::from)).collect()
    }

    /// Returns the call that a log record tells of, if it does.
    pub(crate) fn call_of_event(&self, tenant: &TenantId, r: &LogRecord) -> Option<LlmCall> {
        // Nearly no record is one: nothing is fetched for the others.
        if !is_call_event(r) {
            return None;
        }
        let mut c = call_from_event(r, tenant, &self.prices())?;
        let attributes = (&r.attributes, &r.resource.attributes);
        keep_attributes(&mut c, attributes, self.kept().names(tenant));
        Some(c)
    }

    /// Decides what becomes of calls that log events told of: a call of its own, a revision of a
    /// span that did not say what it used, or nothing.
    pub(crate) fn event_bookings(
        &self,
        tenant: &TenantId,
        mut events: Vec<LlmCall>,
        now: TimestampNs,
    ) -> Vec<Booking> {
        if events.is_empty() {
            return Vec::new();
        }
        let state = self.state();
        let mut here = HashSet::default();
        events.retain(|c| here.insert((c.trace_id, c.span_id)));
        let mut out = Vec::new();
        for mut c in events {
            c.booked_at = now;
            if state.spans.contains(&(tenant.clone(), c.trace_id, c.span_id)) {
                let is_event = state.events.contains(&(tenant.clone(), c.trace_id, c.span_id));
                let span = state.kin.call(tenant, c.trace_id, c.span_id).filter(|_| !is_event);
                out.extend(span.and_then(|span| {
                    let mut better = with_event(span, &c)?;
                    better.revision += 1;
                    better.booked_at = now;
                    "its log event told its usage".clone_into(&mut better.reason);
                    Some(Booking::from((span.clone(), better)))
                }));
                continue;
            }
            if !c.call_id.is_empty() && state.responses.contains(&response(tenant, &c)) {
                c.count_elsewhere(CostState::Duplicate);
            }
            out.push(Booking { call: Arc::new(c), before: None });
        }
        out
    }

    /// Counts calls of log events that are durable.
    pub(crate) async fn booked_events(
        &self,
        tenant: &TenantId,
        bookings: &[Booking],
        now: TimestampNs,
    ) {
        // First: a span that comes now must find the event, not only that the call is known.
        {
            let mut state = self.state();
            for b in bookings.iter().filter(|b| b.before.is_none()) {
                let key = (tenant.clone(), b.call.trace_id, b.call.span_id);
                state.events.put(key, b.call.clone());
            }
        }
        let late = self.booked(tenant, &[], bookings, now);
        if let Err(e) = self.book(tenant, late, now).await {
            tracing::warn!(error = %e, "a revision of calls was not stored");
        }
    }

    fn kept(&self) -> Arc<Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the further attributes that are kept with the calls of every tenant.
    pub fn keep_attributes(&self, names: impl IntoIterator<Item = String>) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut kept).all = names.into_iter().collect();
    }

    /// Replaces the further attributes that are kept with the calls of one tenant.
    pub(crate) fn keep_attributes_of(&self, tenant: &TenantId, names: BTreeSet<String>) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut kept).tenants.insert(tenant.clone(), names);
    }

    /// Remembers a call that was booked before a restart: told again, it is the same call.
    pub(crate) fn remember_call(&self, tenant: &TenantId, c: &LlmCall) {
        self.state().spans.insert((tenant.clone(), c.trace_id, c.span_id));
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
        let prices = self.prices();
        let mut state = self.state();
        for b in bookings {
            let c = &b.call;
            if !c.session_id.is_empty() {
                let window = prices.explain(c).map(|m| m.record.context_tokens);
                state.contexts.observe(tenant, c, window, now.to_millis());
            }
            match &b.before {
                Some(before) => {
                    if before.call_id.is_empty() && !c.call_id.is_empty() {
                        state.responses.insert(response(tenant, c));
                    }
                    state.events.remove(&(tenant.clone(), c.trace_id, c.span_id));
                    state.derived.adjust(tenant, before, c, now.to_millis());
                }
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
            let calls: Vec<_> = bookings.iter().map(|b| b.call.clone()).collect();
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
