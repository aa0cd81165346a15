//! Budgets in force: counts what is booked, keeps reservations durable, settles them as calls.
//!
//! The ledger alone says what was spent: a settlement books a call, and a budget's spend is filled
//! in from the stored calls at start. A reservation is heard of only when it is durable; its
//! settlement books first and releases after, so no crash in between makes room twice.

use crate::booking::{Booking, WatchCalls};
use crate::derive::{Family, metadata};
use crate::pipeline::Ingest;
use obs_llm::budget::{Amount, Ask, BudgetSpec, Budgets, Refusal, Reservation, Status, Unit};
use obs_llm::usage_id;
use obs_model::{
    AppendError, Budget, CallSelection, CostState, Dialect, KeepState, Labels, LabelsBuilder,
    LlmCall, METRIC_NAME, MetricKind, MetricMetadata, Money, Sample, SelectError, SelectSpans,
    Series, SpanId, StateChange, StateError, TenantId, TimestampMs, TimestampNs, TokenUsage,
    TraceId,
};
use rust_decimal::prelude::ToPrimitive as _;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SPECS: &str = "budgets";
const OPEN: &str = "reservations";

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum PurseError {
    #[error("{0}")]
    Invalid(String),
    #[error("no such {0}")]
    Unknown(&'static str),
    #[error("budget {:?} has no room", .0.budget.name)]
    Refused(Box<Refusal>),
    #[error("{0}")]
    Busy(String),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Select(#[from] SelectError),
}

/// What makes one row of a call.
type RowKey = (TraceId, SpanId, u32);

#[derive(Debug, Default)]
struct Tenant {
    budgets: Budgets,
    /// Budgets whose spend is being read from the ledger, and the calls booked meanwhile.
    filling: HashSet<String>,
    booked_meanwhile: HashSet<RowKey>,
}

/// The budgets of all tenants.
#[derive(Debug, Default)]
struct Counts {
    tenants: Mutex<HashMap<TenantId, Tenant>>,
    /// Whether any tenant has a budget: most installations have none.
    any: AtomicBool,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Tenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WatchCalls for Counts {
    fn booked(&self, tenant: &TenantId, b: &Booking) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        if let Some(t) = self.lock().get_mut(tenant) {
            t.budgets.count(&b.call, b.before.as_deref(), None);
            if !t.filling.is_empty() {
                t.booked_meanwhile.insert(key(&b.call));
            }
        }
    }
}

const fn key(c: &LlmCall) -> RowKey {
    (c.trace_id, c.span_id, c.revision)
}

/// How a reservation ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    pub call: LlmCall,
    /// Whether this settlement booked the call; false when it was booked before.
    pub booked: bool,
    /// Whether the reservation was still open.
    pub was_open: bool,
}

/// The budgets in force. Clone it freely.
#[derive(Debug, Clone)]
pub struct Purses {
    counts: Arc<Counts>,
    control: Arc<dyn KeepState>,
    ingest: Ingest,
}

fn state_key(tenant: &TenantId, id: &str) -> String {
    format!("{tenant}/{id}")
}

fn change(space: &str, tenant: &TenantId, id: &str, value: Option<Vec<u8>>) -> StateChange {
    StateChange { space: space.to_owned(), key: state_key(tenant, id), value }
}

impl Purses {
    /// Begins to follow the calls that are booked.
    pub fn new(control: Arc<dyn KeepState>, ingest: Ingest) -> Self {
        let counts = Arc::new(Counts::default());
        ingest.watch_calls(counts.clone());
        Self { counts, control, ingest }
    }

    /// Takes up budgets and reservations as they were, and the spend of their periods from the
    /// ledger. Called before anything is booked.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn load(&self, source: &dyn SelectSpans, now: TimestampNs) -> Result<(), PurseError> {
        let mut by_tenant: HashMap<TenantId, (Vec<BudgetSpec>, Vec<Reservation>)> = HashMap::new();
        let each = |space: &str, take: &mut dyn FnMut(TenantId, &[u8]) -> bool| {
            for (k, v) in self.control.list(space) {
                let tenant = k.split_once('/').and_then(|(t, _)| TenantId::new(t).ok());
                if !tenant.is_some_and(|t| take(t, &v)) {
                    tracing::error!(space, key = k, "an entry of the control state is unreadable");
                }
            }
        };
        each(SPECS, &mut |t, v| {
            let spec = serde_json::from_slice(v).map(|s| by_tenant.entry(t).or_default().0.push(s));
            spec.is_ok()
        });
        each(OPEN, &mut |t, v| {
            let open = serde_json::from_slice(v).map(|r| by_tenant.entry(t).or_default().1.push(r));
            open.is_ok()
        });
        for (tenant, (specs, open)) in by_tenant {
            let ids: Vec<String> = specs.iter().map(|s| s.id.clone()).collect();
            let mut budgets = Budgets::default();
            for spec in specs {
                budgets.set(spec);
            }
            let mut settled = HashSet::new();
            let oldest = open.iter().map(|r| r.created_at).min().unwrap_or(i64::MAX);
            let from = budgets.looks_back(&ids, now.nanos()).min(oldest);
            read_calls(source, &tenant, from, &mut |c| {
                if c.dialect == Dialect::UsageApi {
                    settled.insert(c.trace_id);
                }
                // Told again after the restart it must not be counted again.
                self.ingest.remember_call(&tenant, c);
                budgets.count(c, None, None);
            })?;
            // Booked, but the crash came before the release.
            let (done, open): (Vec<_>, Vec<_>) =
                open.into_iter().partition(|r| settled.contains(&usage_id(&tenant, &r.id).0));
            open.into_iter().for_each(|r| budgets.restore(r));
            budgets.expire(now.nanos());
            self.ingest.keep_attributes_of(&tenant, attributes(&budgets));
            for r in done {
                // What is not removed now is found settled again at the next start.
                drop(self.control.put(vec![change(OPEN, &tenant, &r.id, None)]));
            }
            self.counts.any.store(true, Ordering::Release);
            self.counts.lock().insert(tenant, Tenant { budgets, ..Tenant::default() });
        }
        Ok(())
    }

    /// Adds a budget or changes one. Returns it, and whether its spend so far must be read from the
    /// ledger by [`Self::fill`].
    ///
    /// # Errors
    /// When it is not valid, or cannot be kept.
    pub async fn set(
        &self,
        tenant: &TenantId,
        spec: BudgetSpec,
    ) -> Result<(BudgetSpec, bool), PurseError> {
        let spec = spec.checked().map_err(PurseError::Invalid)?;
        self.with(tenant, |b| b.admits(&spec)).map_err(PurseError::Busy)?;
        let json = serde_json::to_vec(&spec).map_err(|e| PurseError::Invalid(e.to_string()))?;
        self.control.put(vec![change(SPECS, tenant, &spec.id, Some(json))]).await?;
        let mut tenants = self.counts.lock();
        self.counts.any.store(true, Ordering::Release);
        let t = tenants.entry(tenant.clone()).or_default();
        let is_new = t.budgets.set(spec.clone());
        if is_new {
            t.filling.insert(spec.id.clone());
            self.ingest.keep_attributes_of(tenant, attributes(&t.budgets));
        }
        Ok((spec, is_new))
    }

    /// Reads a new budget's spend so far from the ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn fill(
        &self,
        tenant: &TenantId,
        id: &str,
        source: &dyn SelectSpans,
        now: TimestampNs,
    ) -> Result<(), PurseError> {
        let ids = [id.to_owned()];
        let from = self.with(tenant, |b| b.looks_back(&ids, now.nanos()));
        let mut calls = Vec::new();
        let read = read_calls(source, tenant, from, &mut |c| calls.push(c.clone()));
        if let Some(t) = self.counts.lock().get_mut(tenant) {
            // What was booked while reading is counted already.
            for c in calls.iter().filter(|c| !t.booked_meanwhile.contains(&key(c))) {
                t.budgets.count(c, None, Some(&ids));
            }
            t.filling.remove(id);
            if t.filling.is_empty() {
                t.booked_meanwhile.clear();
            }
        }
        read
    }

    /// # Errors
    /// When there is no such budget, or its end cannot be kept.
    pub async fn remove(&self, tenant: &TenantId, id: &str) -> Result<(), PurseError> {
        if self.with(tenant, |b| b.specs().all(|s| s.id != id)) {
            return Err(PurseError::Unknown("budget"));
        }
        self.control.put(vec![change(SPECS, tenant, id, None)]).await?;
        let names = self.with(tenant, |b| {
            b.remove(id);
            attributes(b)
        });
        self.ingest.keep_attributes_of(tenant, names);
        Ok(())
    }

    fn with<T>(&self, tenant: &TenantId, f: impl FnOnce(&mut Budgets) -> T) -> T {
        match self.counts.lock().get_mut(tenant) {
            Some(t) => f(&mut t.budgets),
            None => f(&mut Budgets::default()),
        }
    }

    pub fn statuses(&self, tenant: &TenantId, now: TimestampNs) -> Vec<Status> {
        self.with(tenant, |b| b.statuses(now.nanos()))
    }

    pub fn status(&self, tenant: &TenantId, id: &str, now: TimestampNs) -> Option<Status> {
        self.with(tenant, |b| b.status(id, now.nanos()))
    }

    /// Judges an ask; nothing is reserved. Returns the ids of the budgets that cover it.
    ///
    /// # Errors
    /// With the budget that has no room.
    pub fn check(
        &self,
        tenant: &TenantId,
        ask: &Ask,
        now: TimestampNs,
    ) -> Result<Vec<String>, Box<Refusal>> {
        self.with(tenant, |b| b.check(ask, now.nanos()))
    }

    /// Returns the budgets that cover an ask.
    pub fn covering(&self, tenant: &TenantId, ask: &Ask) -> Vec<BudgetSpec> {
        self.with(tenant, |b| b.covering(ask).into_iter().cloned().collect())
    }

    /// Returns the most that a call of these sizes can cost: input may be written to a cache.
    /// `None` when the price book does not know.
    pub fn most(&self, call: &LlmCall, input: u64, output: u64) -> Option<Amount> {
        let book = self.ingest.prices();
        let base = TokenUsage { output, ..TokenUsage::default() };
        let plain = book.price(call, &TokenUsage { input, ..base })?;
        let written = [
            TokenUsage { cache_write: input, ..base },
            TokenUsage { cache_write_1h: input, ..base },
        ];
        let rates = book.explain(call)?.record.rates;
        let cached = rates.cache_write.is_some() || rates.cache_write_1h.is_some();
        let others = written.iter().filter(|_| cached).filter_map(|t| book.price(call, t));
        let usd = others.map(|c| c.total()).fold(plain.total(), Money::max);
        Some(Amount { usd, tokens: input.saturating_add(output), requests: 1 })
    }

    /// Sets an amount aside, durably. The same id again is the same reservation.
    ///
    /// # Errors
    /// With the budget that has no room, or when it cannot be kept.
    pub async fn reserve(
        &self,
        tenant: &TenantId,
        r: Reservation,
    ) -> Result<Reservation, PurseError> {
        // Also where there are no budgets yet: the reservation is counted by those to come.
        let (made, is_new) = {
            let mut tenants = self.counts.lock();
            let b = &mut tenants.entry(tenant.clone()).or_default().budgets;
            let is_new = b.reservation(&r.id).is_none();
            b.reserve(r).map(|r| (r, is_new)).map_err(|e| match e {
                Ok(refusal) => PurseError::Refused(refusal),
                Err(text) => PurseError::Busy(text),
            })?
        };
        if is_new {
            let json = serde_json::to_vec(&made).map_err(|e| PurseError::Invalid(e.to_string()))?;
            let kept = self.control.put(vec![change(OPEN, tenant, &made.id, Some(json))]).await;
            if let Err(e) = kept {
                // Whether it is on the disk is unknown; then it expires at the next start.
                self.with(tenant, |b| drop(b.release(&made.id)));
                return Err(e.into());
            }
        }
        Ok(made)
    }

    /// Returns a reservation, also one whose time was over less than a day ago.
    pub fn reservation(&self, tenant: &TenantId, id: &str) -> Option<Reservation> {
        self.with(tenant, |b| b.reservation(id).or_else(|| b.late(id)).cloned())
    }

    /// Books what a reserved call used, then gives back what was set aside. Settling twice books
    /// once. `call` carries usage and attributes; identity, price and state are set here.
    ///
    /// # Errors
    /// When the call cannot be stored: then the reservation stays.
    pub async fn settle(
        &self,
        tenant: &TenantId,
        id: &str,
        mut call: LlmCall,
        now: TimestampNs,
    ) -> Result<Settled, PurseError> {
        (call.trace_id, call.span_id) = usage_id(tenant, id);
        let booked = self.book_usage(tenant, &mut call, now).await?;
        let was_open = self.release(tenant, id).await?;
        Ok(Settled { call, booked, was_open })
    }

    /// Prices and books a call that was told of by itself; `false` if it was booked before.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub async fn book_usage(
        &self,
        tenant: &TenantId,
        call: &mut LlmCall,
        now: TimestampNs,
    ) -> Result<bool, PurseError> {
        call.booked_at = now;
        obs_llm::price_call(call, &self.ingest.prices());
        if self.ingest.knows_response(tenant, call) {
            call.count_elsewhere(CostState::Duplicate);
        }
        if self.ingest.knows_call(tenant, call) {
            return Ok(false);
        }
        let booking = Booking { call: Arc::new(call.clone()), before: None };
        self.ingest.book(tenant, vec![booking], now).await?;
        Ok(true)
    }

    /// Ends a reservation without booking anything; `false` if it was not open any longer.
    ///
    /// # Errors
    /// When its end cannot be kept.
    pub async fn release(&self, tenant: &TenantId, id: &str) -> Result<bool, PurseError> {
        let Some(r) = self.with(tenant, |b| b.release(id)) else {
            if self.with(tenant, |b| b.forget_late(id)).is_some() {
                self.control.put(vec![change(OPEN, tenant, id, None)]).await?;
            }
            return Ok(false);
        };
        if let Err(e) = self.control.put(vec![change(OPEN, tenant, id, None)]).await {
            self.with(tenant, |b| b.restore(r));
            return Err(e.into());
        }
        Ok(true)
    }

    /// Ends reservations whose time is over, and forgets old periods and reservations that nobody
    /// settled within a day of that. Returns how many ended.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub async fn expire(&self, now: TimestampNs) -> Result<usize, PurseError> {
        let mut ended = 0;
        let abandoned: Vec<(TenantId, String)> = {
            let mut tenants = self.counts.lock();
            let each = tenants.iter_mut().flat_map(|(t, b)| {
                b.budgets.forget(now.nanos());
                ended += b.budgets.expire(now.nanos());
                b.budgets.abandoned(now.nanos()).into_iter().map(|id| (t.clone(), id))
            });
            each.collect()
        };
        for (tenant, id) in &abandoned {
            self.release(tenant, id).await?;
        }
        Ok(ended)
    }

    /// Returns the series of all budgets, by tenant.
    pub fn series(&self, now: TimestampMs) -> Vec<(TenantId, Vec<Series>, Vec<MetricMetadata>)> {
        let tenants = self.counts.lock();
        let of = |(tenant, t): (&TenantId, &Tenant)| {
            let all = t.budgets.statuses(now.to_nanos().nanos());
            let series: Vec<Series> = all.iter().flat_map(|s| series_of(s, now)).collect();
            (!series.is_empty()).then(|| (tenant.clone(), series, metadata(&FAMILIES)))
        };
        tenants.iter().filter_map(of).collect()
    }
}

/// The further attributes that budgets ask by.
fn attributes(budgets: &Budgets) -> BTreeSet<String> {
    budgets.specs().flat_map(BudgetSpec::attributes).collect()
}

/// Visits the calls of a tenant since a moment.
fn read_calls(
    source: &dyn SelectSpans,
    tenant: &TenantId,
    from: i64,
    visit: &mut dyn FnMut(&LlmCall),
) -> Result<(), PurseError> {
    let selection = CallSelection {
        start: TimestampNs::from_nanos(from),
        end: TimestampNs::from_nanos(i64::MAX),
        trace_id: None,
        revisions_only: false,
    };
    // Decisions about money are made on all of it: no limit of a query may leave calls out.
    let budget = Budget::new(i64::MAX, i64::MAX);
    source.current_calls(tenant, &selection, &budget, &mut |c| {
        visit(c);
        ControlFlow::Continue(())
    })?;
    let missing = budget.missing();
    if !missing.is_empty() {
        tracing::error!(missing = ?missing, "budgets were filled from a damaged ledger");
    }
    Ok(())
}

const FAMILIES: [Family; 9] = [
    ("llm_budget_limit_usd", MetricKind::Gauge, "Limit of a budget of money, in USD."),
    ("llm_budget_spent_usd", MetricKind::Gauge, "Spent in the period, in USD."),
    (
        "llm_budget_remaining_usd",
        MetricKind::Gauge,
        "What is left of the limit, in USD; negative when overspent.",
    ),
    (
        "llm_budget_reserved",
        MetricKind::Gauge,
        "Set aside by open reservations, in the budget's unit.",
    ),
    ("llm_budget_utilization_ratio", MetricKind::Gauge, "Spent over the limit."),
    (
        "llm_budget_projected_usd",
        MetricKind::Gauge,
        "Spend of the whole period if it goes on as it did, in USD.",
    ),
    ("llm_budget_burn_rate", MetricKind::Gauge, "Speed of spending over the even speed."),
    ("llm_budget_elapsed_ratio", MetricKind::Gauge, "Share of the period that has passed."),
    ("llm_budget_state", MetricKind::Gauge, "1 for the state that a budget is in."),
];

/// Returns the share of a budget's period that has passed; `None` for one without an end.
fn elapsed(s: &Status, now: TimestampMs) -> Option<f64> {
    let (from, to) = s.period;
    let bounded = from != i64::MIN && to != i64::MAX;
    bounded.then(|| (now.to_nanos().nanos() - from) as f64 / (to - from).max(1) as f64)
}

fn series_of(s: &Status, now: TimestampMs) -> Vec<Series> {
    let scope = s.spec.scope_text();
    let period = serde_json::to_value(s.spec.period).unwrap_or_default();
    let base = [
        ("budget", s.spec.id.as_str()),
        ("scope", scope.as_str()),
        ("period", period.as_str().unwrap_or_default()),
    ];
    let labels = |name: &str, extra: Option<(&str, &str)>| -> Labels {
        let mut b = LabelsBuilder::default();
        b.set(METRIC_NAME, name);
        base.iter().copied().chain(extra).for_each(|(n, v)| {
            b.set(n, v);
        });
        b.build()
    };
    let number = |m: Money| m.to_f64().unwrap_or(f64::NAN);
    let mut values = vec![
        ("llm_budget_utilization_ratio", Some(s.utilization())),
        ("llm_budget_reserved", Some(number(s.reserved))),
        ("llm_budget_burn_rate", s.burn_rate),
        ("llm_budget_elapsed_ratio", elapsed(s, now)),
    ];
    if s.spec.unit == Unit::Usd {
        values.extend([
            ("llm_budget_limit_usd", Some(number(s.spec.limit))),
            ("llm_budget_spent_usd", Some(number(s.spent))),
            ("llm_budget_remaining_usd", Some(number(s.remaining()))),
            ("llm_budget_projected_usd", s.projected.map(number)),
        ]);
    }
    let at =
        |labels: Labels, v: f64| Series { labels, samples: vec![Sample::float(now.millis(), v)] };
    let mut out: Vec<Series> =
        values.into_iter().filter_map(|(n, v)| Some(at(labels(n, None), v?))).collect();
    let verdict = s.verdict();
    for state in ["none", "approaching_limit", "limit_exceeded", "projected_exceedance"] {
        let is = f64::from(u8::from(state == verdict.kind));
        out.push(at(labels("llm_budget_state", Some(("state", state))), is));
    }
    out
}
