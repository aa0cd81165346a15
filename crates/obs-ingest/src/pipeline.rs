//! The path of a request's records: limits → LLM calls → append → derived counters.

use crate::booking::{CallWatchers, Kept, Response};
use crate::contexts::Contexts;
use crate::correlate::correlate;
use crate::deltas::Deltas;
use crate::derive::Derived;
use crate::exemplars::Exemplars;
use crate::identity::{self, Identities};
use crate::limits::{Streams, TenantLimits, Violation};
use crate::red::{Facts, Red, SpanDimension};
use crate::sampling::Sampling;
use crate::seen::{Recent, Seen};
use crate::tail::{TailConfig, keep_share};
use crate::tails::Tails;
use crate::telemetry::Telemetry;
use crate::watch::{Watch, Watchers};
use obs_llm::{Kin, PriceBook, Scored};
use obs_model::{
    Append, AppendError, Appended, Labels, LlmCall, LogRecord, MetricMetadata, Sample, Series,
    Span, SpanId, TenantId, TimestampMs, TimestampNs, TraceId, WriteBatch,
};
use prometheus::IntGauge;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// What became of a request's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub accepted: u64,
    /// Refused here, beside those the decoder refused.
    pub rejected: u64,
    /// Those of `rejected` that a limit of active series refused.
    pub over_limit: u64,
    /// The first few reasons.
    pub reasons: Vec<String>,
    /// How many each limit refused.
    by_limit: Vec<(&'static str, u64)>,
}

impl Outcome {
    /// Takes the store's word on what became of `sent` samples.
    fn take(&mut self, sent: u64, stored: Appended) {
        self.accepted = sent.saturating_sub(stored.rejected);
        self.rejected += stored.rejected;
        self.over_limit += stored.rejected;
        self.count("series", stored.rejected);
        self.reasons.extend(stored.reason);
    }

    fn count(&mut self, limit: &'static str, n: u64) {
        match self.by_limit.iter_mut().find(|(l, _)| *l == limit) {
            Some((_, count)) => *count += n,
            None => self.by_limit.push((limit, n)),
        }
    }

    fn refuse(&mut self, v: Violation) {
        self.rejected += 1;
        self.count(v.limit, 1);
        if self.reasons.len() < 5 && !self.reasons.contains(&v.text) {
            self.reasons.push(v.text);
        }
    }
}

#[derive(Debug)]
pub(crate) struct State {
    deltas: Deltas,
    pub(crate) derived: Derived,
    pub(crate) contexts: Contexts,
    red: Red,
    /// Spans whose call was counted: exporters repeat batches whose answer got lost.
    pub(crate) spans: Seen<(TenantId, TraceId, SpanId)>,
    /// Calls that log events told of and no span yet.
    pub(crate) events: Recent<(TenantId, TraceId, SpanId), Arc<LlmCall>>,
    /// Response ids by trace: a gateway and an SDK report the same call.
    pub(crate) responses: Seen<Response>,
    /// Which calls are inside which.
    pub(crate) kin: Kin,
}

/// What holds for spans beside limits and tail sampling.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanRules {
    /// Share of traces that are stored, from 0 to 1, by their ids. Calls of models, and series of
    /// spans, are of all.
    pub share: f64,
    /// What else tells operations apart in series of spans.
    pub dimensions: Vec<SpanDimension>,
}

impl Default for SpanRules {
    fn default() -> Self {
        Self { share: 1.0, dimensions: Vec::new() }
    }
}

/// The write path. Clone it freely.
#[derive(Debug, Clone)]
pub struct Ingest {
    store: Arc<dyn Append>,
    limits: Arc<TenantLimits>,
    prices: Arc<RwLock<Arc<PriceBook>>>,
    telemetry: Telemetry,
    identities: Arc<Identities>,
    exemplars: Arc<Exemplars>,
    watchers: Arc<Watchers>,
    sampling: Arc<Sampling>,
    tails: Arc<Mutex<Tails>>,
    rules: Arc<RwLock<Arc<SpanRules>>>,
    pub(crate) call_watchers: Arc<CallWatchers>,
    pub(crate) kept: Arc<RwLock<Arc<Kept>>>,
    state: Arc<Mutex<State>>,
}

/// Records counted in a gauge while they are on their way to the log.
struct Waiting(IntGauge, i64);

impl Waiting {
    fn new(gauge: IntGauge, records: u64) -> Self {
        let n = i64::try_from(records).unwrap_or(i64::MAX);
        gauge.add(n);
        Self(gauge, n)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.sub(self.1);
    }
}

/// Calls remembered for de-duplication.
const SEEN_MAX: usize = 100_000;
/// Calls of log events that are remembered whole until their spans come.
const EVENTS_MAX: usize = 10_000;

impl Ingest {
    pub fn new(
        store: Arc<dyn Append>,
        limits: impl Into<TenantLimits>,
        prices: PriceBook,
        telemetry: Telemetry,
    ) -> Self {
        let state = State {
            deltas: Deltas::default(),
            derived: Derived::default(),
            contexts: Contexts::default(),
            red: Red::default(),
            spans: Seen::new(SEEN_MAX),
            responses: Seen::new(SEEN_MAX),
            events: Recent::new(EVENTS_MAX),
            kin: Kin::default(),
        };
        Self {
            store,
            limits: Arc::new(limits.into()),
            prices: Arc::new(RwLock::new(Arc::new(prices))),
            telemetry,
            identities: Arc::default(),
            exemplars: Arc::default(),
            watchers: Arc::default(),
            sampling: Arc::default(),
            tails: Arc::default(),
            rules: Arc::default(),
            call_watchers: Arc::default(),
            kept: Arc::default(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Returns the price book in force.
    pub fn prices(&self) -> Arc<PriceBook> {
        self.prices.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells a watcher of every log record that is stored from now on, as long as it lives.
    pub fn watch<W: Watch + 'static>(&self, watch: &Arc<W>) {
        let weak = Arc::downgrade(watch);
        self.watchers.add(weak);
    }

    /// Exemplars of all tenants.
    pub fn exemplars(&self) -> &Exemplars {
        &self.exemplars
    }

    /// What clients are told about sampling.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Replaces the price book; calls from now on are priced by it.
    pub fn set_prices(&self, book: PriceBook) {
        *self.prices.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(book);
    }

    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn append(
        &self,
        tenant: &TenantId,
        writer: &str,
        items: (&str, u64),
        batch: WriteBatch,
    ) -> Result<Appended, AppendError> {
        let t = &self.telemetry;
        let timer = t.write_seconds.with_label_values(&[writer, "insert"]).start_timer();
        // A client that goes away drops this future; the count must not stay.
        let waiting = Waiting::new(t.buffer.with_label_values(&[writer, items.0]), items.1);
        let result = self.store.append(tenant, batch).await;
        drop(waiting);
        timer.observe_duration();
        let status = if result.is_ok() { "success" } else { "error" };
        t.writes.with_label_values(&[writer, "insert", status]).inc();
        if result.is_err() {
            t.errors.with_label_values(&["write", "insert"]).inc();
        } else {
            t.batch_size.with_label_values(&[writer, "insert"]).observe(items.1 as f64);
            t.items_written.with_label_values(&[writer, items.0]).inc_by(items.1);
        }
        result
    }

    fn count_rejected(&self, signal: &str, outcome: &Outcome) {
        for (limit, n) in &outcome.by_limit {
            self.telemetry.rejected.with_label_values(&[signal, limit]).inc_by(*n);
        }
    }

    /// Stores spans and the LLM calls in them; `source` is the protocol they came by.
    ///
    /// # Errors
    /// When the store refuses the batch; then nothing was stored.
    pub async fn spans(
        &self,
        tenant: &TenantId,
        source: &'static str,
        spans: Vec<Span>,
        now: TimestampNs,
    ) -> Result<Outcome, AppendError> {
        self.telemetry.spans_received.with_label_values(&[source]).inc_by(spans.len() as u64);
        let mut outcome = Outcome::default();
        let mut batch = WriteBatch::default();
        let limits = self.limits.of(tenant);
        for s in spans {
            match limits.span(&s, now) {
                Ok(()) => batch.spans.push(s),
                Err(reason) => outcome.refuse(reason),
            }
        }
        let links = obs_llm::links(&batch.spans);
        let bookings = self.bookings(tenant, &batch.spans, &links, now);
        batch.calls = bookings.iter().map(|b| b.call.clone()).collect();
        let scores = batch.spans.iter().flat_map(Scored::of_span).map(|s| s.record());
        batch.logs = scores.filter(|r| limits.log(r, now).is_ok()).collect();
        outcome.accepted = batch.spans.len() as u64;
        self.count_rejected("traces", &outcome);
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner).clone();
        let facts = Facts::of(&batch.spans, &rules.dimensions);
        self.sampling.observe(&batch.spans);
        keep_share(&mut batch.spans, rules.share);
        let stored = batch.spans.len() as u64;
        match self.undecided(tenant) {
            None => {
                self.append(tenant, "trace", ("spans", stored), batch).await?;
            }
            Some(undecided) => {
                self.append_undecided(tenant, &undecided, batch, now.to_millis()).await?;
            }
        }
        // Only what is durable counts: a refused batch comes again.
        self.state().red.observe(tenant, facts, now.to_millis());
        let late = self.booked(tenant, &links, &bookings, now);
        if let Err(e) = self.book(tenant, late, now).await {
            // The spans are stored. The trace's next span, if one comes, brings it up again.
            tracing::warn!(error = %e, "a revision of calls was not stored");
        }
        Ok(outcome)
    }

    /// Stores records as they are, again: nothing is checked, counted or derived.
    ///
    /// # Errors
    /// When the store refuses the batch; then nothing was stored.
    pub async fn copy(&self, tenant: &TenantId, batch: WriteBatch) -> Result<(), AppendError> {
        let n = batch.spans.len() as u64;
        self.append(tenant, "trace", ("copied_spans", n), batch).await.map(|_| ())
    }

    /// Returns where spans wait that are decided later, if the tenant's are.
    fn undecided(&self, tenant: &TenantId) -> Option<TenantId> {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner).undecided(tenant)
    }

    /// Stores spans until they are decided, and what is certain already. What was paid for is kept
    /// of every trace.
    async fn append_undecided(
        &self,
        tenant: &TenantId,
        undecided: &TenantId,
        batch: WriteBatch,
        now: TimestampMs,
    ) -> Result<(), AppendError> {
        let tails = || self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        let (waiting, late) = tails().part(tenant, batch.spans);
        let (calls, logs) = (batch.calls, batch.logs);
        if !waiting.is_empty() {
            let n = waiting.len() as u64;
            let spans = waiting.clone();
            let batch = WriteBatch { spans, ..WriteBatch::default() };
            self.append(undecided, "trace", ("undecided_spans", n), batch).await?;
        }
        if !late.is_empty() || !calls.is_empty() || !logs.is_empty() {
            let n = late.len() as u64;
            let (spans, calls) = (late, calls.clone());
            let batch = WriteBatch { spans, calls, logs, ..WriteBatch::default() };
            self.append(tenant, "trace", ("spans", n), batch).await?;
        }
        tails().add(tenant, waiting, &calls, now);
        Ok(())
    }

    /// Replaces the rules for spans.
    pub fn set_span_rules(&self, rules: SpanRules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// Replaces the rules of tail sampling, or ends it; what waits is decided by the new ones, or
    /// kept.
    pub fn set_tail(&self, config: Option<TailConfig>) {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner).set(config);
    }

    /// Takes up spans that were undecided when the server stopped, and the calls of models that
    /// are known of their traces.
    pub fn restore_undecided(
        &self,
        tenant: &TenantId,
        spans: Vec<Span>,
        calls: &[Arc<LlmCall>],
        now: TimestampNs,
    ) {
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        tails.add(tenant, spans, calls, now.to_millis());
    }

    /// Returns the names under which a tenant's undecided spans are stored.
    pub fn undecided_names(tenant: &TenantId) -> Vec<TenantId> {
        crate::tails::names(tenant)
    }

    /// Decides traces that have waited long enough and stores those that are kept. Returns names
    /// whose undecided spans are all decided: they may be deleted.
    ///
    /// # Errors
    /// When the store refuses; the traces are decided again at the next call.
    pub async fn decide(&self, now: TimestampMs) -> Result<Vec<TenantId>, AppendError> {
        let tails = || self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        let decided = tails().decide(now);
        for (tenant, d) in decided {
            let t = &self.telemetry.tail_traces;
            t.with_label_values(&["kept"]).inc_by(d.traces_kept);
            t.with_label_values(&["dropped"]).inc_by(d.traces_dropped);
            if d.kept.is_empty() {
                continue;
            }
            let n = d.kept.len() as u64;
            let spans = d.kept.clone();
            let batch = WriteBatch { spans, ..WriteBatch::default() };
            if let Err(e) = self.append(&tenant, "trace", ("spans", n), batch).await {
                tails().retry(&tenant, d.kept);
                return Err(e);
            }
        }
        let (traces, bytes) = tails().usage();
        for (name, v) in [("undecided_traces", traces), ("undecided_bytes", bytes)] {
            let v = i64::try_from(v).unwrap_or(i64::MAX);
            self.telemetry.limit_usage.with_label_values(&[name]).set(v);
        }
        Ok(tails().finished(now))
    }

    /// Stores log records.
    ///
    /// # Errors
    /// When the store refuses the batch; then nothing was stored.
    pub async fn logs(
        &self,
        tenant: &TenantId,
        logs: Vec<LogRecord>,
        now: TimestampNs,
    ) -> Result<Outcome, AppendError> {
        let mut outcome = Outcome::default();
        let mut batch = WriteBatch::default();
        let limits = self.limits.of(tenant);
        let mut scores = Vec::new();
        let mut events = Vec::new();
        let mut streams = Streams::default();
        for mut r in logs {
            match limits.log(&r, now).and_then(|()| streams.check(limits, &r.stream)) {
                Ok(()) => {
                    correlate(&mut r);
                    let score = Scored::of_log(&r).map(|s| s.record());
                    events.extend(self.call_of_event(tenant, &r));
                    batch.logs.push(r);
                    scores.extend(score.filter(|r| limits.log(r, now).is_ok()));
                }
                Err(reason) => outcome.refuse(reason),
            }
        }
        outcome.accepted = batch.logs.len() as u64;
        batch.logs.extend(scores);
        let bookings = self.event_bookings(tenant, events, now);
        batch.calls = bookings.iter().map(|b| b.call.clone()).collect();
        self.count_rejected("logs", &outcome);
        let watchers = self.watchers.all();
        let seen = if watchers.is_empty() { Vec::new() } else { batch.logs.clone() };
        self.append(tenant, "log", ("logs", outcome.accepted), batch).await?;
        if !bookings.is_empty() {
            self.booked_events(tenant, &bookings, now).await;
        }
        for watcher in watchers {
            watcher.stored(tenant, &seen);
        }
        Ok(outcome)
    }

    /// Stores samples whose labels came from [`Self::labels`]; `deltas` are summed first.
    ///
    /// # Errors
    /// When the store refuses the batch; then nothing was stored.
    pub async fn metrics(
        &self,
        tenant: &TenantId,
        mut points: Vec<(Labels, Sample)>,
        mut deltas: Vec<Series>,
        metadata: Vec<MetricMetadata>,
        now: TimestampNs,
    ) -> Result<Outcome, AppendError> {
        let mut outcome = Outcome::default();
        let limits = self.limits.of(tenant);
        let mut fits = |labels: &Labels, s: &Sample| {
            let fit = limits.time(s.timestamp.to_nanos(), now, || format!("sample of {labels}"));
            fit.map_err(|v| outcome.refuse(v)).is_ok()
        };
        points.retain(|(labels, s)| fits(labels, s));
        deltas.retain(|s| s.samples.iter().all(|x| fits(&s.labels, x)));
        let mut undo = None;
        if !deltas.is_empty() {
            let (sums, refused, taken) =
                self.state().deltas.add(tenant, deltas, limits.delta_series_max);
            for s in sums {
                points.extend(s.samples.into_iter().map(|x| (s.labels.clone(), x)));
            }
            undo = Some(taken);
            for text in refused {
                outcome.refuse(Violation { limit: "delta_series", text: text.to_owned() });
            }
        }
        let n = points.len() as u64;
        let batch = WriteBatch { points, metadata, ..WriteBatch::default() };
        let stored = self.append(tenant, "metric", ("data_points", n), batch).await;
        if let (Err(_), Some(undo)) = (&stored, undo) {
            self.state().deltas.undo(undo);
        }
        outcome.take(n, stored?);
        self.count_rejected("metrics", &outcome);
        Ok(outcome)
    }

    /// Emits the derived series; called every few seconds.
    ///
    /// # Errors
    /// When the store refuses the batch; the next tick carries the same counters.
    pub async fn tick(&self, now: TimestampMs) -> Result<(), AppendError> {
        const FORGET: Duration = Duration::from_secs(3600);
        let mut exemplars = Vec::new();
        let emitted = {
            let mut state = self.state();
            state.deltas.forget(now.add_millis(-(FORGET.as_millis() as i64)));
            let mut emitted = state.derived.tick(now);
            emitted.extend(state.contexts.tick(now));
            for e in state.red.tick(now) {
                exemplars.push((e.tenant.clone(), e.exemplars));
                emitted.push((e.tenant, e.series, e.metadata));
            }
            emitted
        };
        self.sampling.tick(now.to_nanos());
        for (tenant, list) in exemplars {
            self.exemplars.add(&tenant, list).await;
        }
        for (tenant, series, metadata) in emitted {
            self.emit(&tenant, series, metadata).await?;
        }
        Ok(())
    }

    /// Begins to find the label sets of a request's series.
    pub fn naming<'a>(&'a self, tenant: &'a TenantId) -> Naming<'a> {
        Naming { ingest: self, tenant, request: self.identities.request(tenant) }
    }

    /// Returns why a series may not be stored, and counts it.
    ///
    /// # Errors
    /// With the limit that its labels are over.
    pub fn admit(&self, tenant: &TenantId, labels: &Labels) -> Result<(), String> {
        self.limits.of(tenant).labels(labels).map_err(|v| {
            self.telemetry.rejected.with_label_values(&["metrics", v.limit]).inc();
            v.text
        })
    }
}

/// Finds the label sets of a request's series.
#[derive(Debug)]
pub struct Naming<'a> {
    ingest: &'a Ingest,
    tenant: &'a TenantId,
    request: identity::Request<'a>,
}

impl Naming<'_> {
    /// Returns the label set of a series in wire form; `build` makes it when it was not met yet.
    ///
    /// # Errors
    /// When the labels cannot be read or are over a limit.
    pub fn labels(
        &self,
        raw: &[u8],
        build: &dyn Fn() -> Result<Labels, String>,
    ) -> Result<Labels, String> {
        self.request.get(raw, &|| {
            let labels = build()?;
            self.ingest.admit(self.tenant, &labels)?;
            Ok(labels)
        })
    }
}
