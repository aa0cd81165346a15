//! Budgets: what may be spent, on what, in which period; reservations that keep it so.
//!
//! A pure state machine: it is told of booked calls and asked for reservations, each with the time.
//! What it answers is made durable by its caller before anyone hears it. A reservation is counted
//! against every budget whose scope its attributes are in until it is settled, cancelled or
//! expired, so that no number of streams can spend more than the limit together.

mod spec;

pub use spec::{BudgetSpec, Period, Unit};

use obs_model::{DAY_NS, LlmCall, Money, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::report::Dimension;
use spec::Scope;

const SECOND: i64 = 1_000_000_000;

/// An amount in each unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amount {
    pub usd: Money,
    pub tokens: u64,
    pub requests: u64,
}

impl Amount {
    /// Returns what a call counts for; one that repeats another counts nothing.
    pub fn of(c: &LlmCall) -> Self {
        if c.is_repeated() {
            return Self::default();
        }
        // Of an ambiguous call the upper bound: a limit is kept for certain.
        // Without a price, what the source itself claims.
        let known = c.cost.as_ref().map(obs_model::CallCost::total).or(c.reported_cost);
        let usd = c.cost_max.or(known).unwrap_or_default();
        Self { usd, tokens: c.tokens.total(), requests: 1 }
    }

    fn get(&self, unit: Unit) -> Money {
        match unit {
            Unit::Usd => self.usd,
            Unit::Tokens => Money::from(self.tokens),
            Unit::Requests => Money::from(self.requests),
        }
    }
}

/// A sum that grows and shrinks.
#[derive(Debug, Clone, Copy, Default)]
struct Sum(Money);

impl Sum {
    fn add(&mut self, m: Money) {
        self.0 = self.0.saturating_add(m);
    }

    fn take(&mut self, m: Money) {
        self.0 = self.0.saturating_sub(m);
    }
}

/// Who asks, for what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ask {
    /// Dimension names → values, as in the scopes of budgets. `tag` may be given as `tag:NAME`.
    #[serde(default)]
    pub scope: BTreeMap<String, String>,
    pub amount: Amount,
}

impl Ask {
    /// Reads the names of the scope.
    fn parsed(&self) -> Asked<'_> {
        let of = self.scope.iter();
        Asked(of.filter_map(|(n, v)| Some((Dimension::parse(n)?, v.as_str()))).collect())
    }
}

/// Who asks, names read.
struct Asked<'a>(Vec<(Dimension, &'a str)>);

impl Asked<'_> {
    fn is_in(&self, scope: &Scope) -> bool {
        scope.covers(|d, holds| {
            // Several tags are separated by commas.
            let held = |v: &str| match d {
                Dimension::Tag => v.split(',').any(|t| holds(t.trim())),
                _ => holds(v),
            };
            self.0.iter().filter(|(x, _)| x == d).any(|(_, v)| held(v))
        })
    }
}

/// An amount set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub id: String,
    pub ask: Ask,
    pub provider: String,
    pub model: String,
    /// ns.
    pub created_at: i64,
    pub expires_at: i64,
}

/// Why an ask was refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub budget: BudgetSpec,
    pub spent: Money,
    pub reserved: Money,
    pub asked: Money,
    /// When the period ends, ns; `None` if never.
    pub resets_at: Option<i64>,
}

/// A budget's state at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    pub spec: BudgetSpec,
    pub spent: Money,
    pub reserved: Money,
    pub period: (i64, i64),
    /// Spend of the whole period if it goes on as it did; `None` for periods without an end.
    pub projected: Option<Money>,
    /// Speed of spending over the even speed.
    pub burn_rate: Option<f64>,
    pub daily_average: Option<Money>,
    /// When the limit is reached at this speed, ns.
    pub exhausted_at: Option<i64>,
    pub confidence: f64,
}

/// What a budget's state calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// `none`, `approaching_limit`, `limit_exceeded`, `projected_exceedance`.
    pub kind: &'static str,
    /// `info`, `warning`, `critical`, `gating`.
    pub severity: &'static str,
    pub action: &'static str,
}

impl Status {
    pub fn remaining(&self) -> Money {
        self.spec.limit.saturating_sub(self.spent)
    }

    pub fn utilization(&self) -> f64 {
        ratio(self.spent, self.spec.limit)
    }

    /// Judges in the order of Cost Ops: what is, before what may come.
    pub fn verdict(&self) -> Verdict {
        let (now, s) = (self.utilization(), &self.spec);
        let ahead = self.projected.map_or(0.0, |p| ratio(p, s.limit));
        let of = |kind, severity, action| Verdict { kind, severity, action };
        if now >= s.gating {
            of("limit_exceeded", "gating", if s.hard { "gate" } else { "reduce_spend" })
        } else if now >= s.critical {
            of("limit_exceeded", "critical", if s.hard { "consider_gating" } else { "review" })
        } else if now >= s.warning {
            of("approaching_limit", "warning", "monitor")
        } else if ahead >= s.gating {
            of("projected_exceedance", "critical", "review")
        } else if ahead >= s.critical {
            of("projected_exceedance", "warning", "review")
        } else {
            of("none", "info", "none")
        }
    }
}

fn ratio(a: Money, b: Money) -> f64 {
    use rust_decimal::prelude::ToPrimitive as _;
    a.checked_div(b).and_then(|r| r.to_f64()).unwrap_or(f64::INFINITY)
}

#[derive(Debug)]
struct Budget {
    spec: BudgetSpec,
    scope: Scope,
    /// Spend by the start of its stretch of time, ns: a day, or the period.
    spent: BTreeMap<i64, Sum>,
    reserved: Sum,
    /// When the first call was counted, and the last one.
    first: Option<i64>,
    last: Option<i64>,
}

/// Stretches by which a rolling period forgets.
const ROLLING_STRETCH: i64 = 3_600 * SECOND;

impl Budget {
    fn stretch(&self, time: i64) -> i64 {
        match self.spec.period {
            Period::Rolling => time.div_euclid(ROLLING_STRETCH) * ROLLING_STRETCH,
            _ => self.spec.period_at(time).0,
        }
    }

    fn count(&mut self, time: i64, plus: Money, minus: Money) {
        let key = self.stretch(time);
        let sum = self.spent.entry(key).or_default();
        sum.add(plus);
        sum.take(minus);
        self.first = Some(self.first.map_or(time, |t| t.min(time)));
        self.last = Some(self.last.map_or(time, |t| t.max(time)));
    }

    fn spent(&self, now: i64) -> Money {
        let (from, _) = self.spec.period_at(now);
        // A stretch that is partly outside of a rolling period counts whole.
        let from = if self.spec.period == Period::Rolling { self.stretch(from) } else { from };
        self.spent.range(from..).fold(Money::ZERO, |a, (_, s)| a.saturating_add(s.0))
    }

    fn forget(&mut self, now: i64) {
        let (from, _) = self.spec.period_at(now);
        let keep = if self.spec.period == Period::Rolling { self.stretch(from) } else { from };
        // The period before stays: late calls are counted to their own time.
        self.spent.retain(|k, _| *k >= keep.saturating_sub(2 * DAY_NS));
    }
}

/// Most budgets of a tenant, and open reservations.
const BUDGETS_MAX: usize = 10_000;
const OPEN_MAX: usize = 100_000;
/// Attributes that a tenant's budgets name together: each is looked for in every call.
const ATTRIBUTES_MAX: usize = 64;
/// How long a reservation may still be settled after its time, ns: streams outlive estimates.
const LATE: i64 = DAY_NS;

/// The budgets of a tenant and what is reserved against them.
#[derive(Debug, Default)]
pub struct Budgets {
    budgets: BTreeMap<String, Budget>,
    open: HashMap<String, Reservation>,
    /// Reservations whose time is over, for a day: they set nothing aside.
    late: HashMap<String, Reservation>,
}

impl Budgets {
    /// Tells whether there is room for a budget.
    ///
    /// # Errors
    /// When there are too many, or they name too many attributes.
    pub fn admits(&self, spec: &BudgetSpec) -> Result<(), String> {
        if !self.budgets.contains_key(&spec.id) && self.budgets.len() >= BUDGETS_MAX {
            return Err(format!("there are {BUDGETS_MAX} budgets already"));
        }
        let mut names: BTreeSet<String> = self.specs().flat_map(BudgetSpec::attributes).collect();
        names.extend(spec.attributes());
        if names.len() > ATTRIBUTES_MAX {
            return Err(format!("budgets may name {ATTRIBUTES_MAX} attributes together"));
        }
        Ok(())
    }

    /// Adds a budget or changes one; what was spent is kept if scope, unit and period stay.
    /// Returns whether its spend must be filled in from the ledger.
    pub fn set(&mut self, spec: BudgetSpec) -> bool {
        if let Some(b) = self.budgets.get_mut(&spec.id) {
            let same = b.spec.scope == spec.scope
                && b.spec.unit == spec.unit
                && b.spec.period == spec.period
                && b.spec.rolling_days == spec.rolling_days
                && b.spec.time_zone == spec.time_zone;
            if same {
                b.spec = spec;
                return false;
            }
        }
        let scope = spec.parsed_scope();
        let open = self.open.values().filter(|r| r.ask.parsed().is_in(&scope));
        let mut reserved = Sum::default();
        open.for_each(|r| reserved.add(r.ask.amount.get(spec.unit)));
        let budget =
            Budget { spec, scope, spent: BTreeMap::new(), reserved, first: None, last: None };
        self.budgets.insert(budget.spec.id.clone(), budget);
        true
    }

    pub fn remove(&mut self, id: &str) -> bool {
        self.budgets.remove(id).is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.budgets.is_empty()
    }

    pub fn specs(&self) -> impl Iterator<Item = &BudgetSpec> {
        self.budgets.values().map(|b| &b.spec)
    }

    /// Returns the earliest moment that any of some budgets looks back to.
    pub fn looks_back(&self, ids: &[String], now: i64) -> i64 {
        let of = |id: &String| Some(self.budgets.get(id)?.spec.period_at(now).0);
        ids.iter().filter_map(of).min().unwrap_or(now)
    }

    /// Counts a call, or the difference that a revision makes, in some budgets or all.
    pub fn count(&mut self, c: &LlmCall, before: Option<&LlmCall>, only: Option<&[String]>) {
        let plus = Amount::of(c);
        let minus = before.map(Amount::of).unwrap_or_default();
        let time = c.start.nanos();
        for b in self.budgets.values_mut() {
            let wanted = only.is_none_or(|ids| ids.contains(&b.spec.id));
            if wanted && b.scope.covers(|d, holds| d.any(c, holds)) {
                b.count(time, plus.get(b.spec.unit), minus.get(b.spec.unit));
            }
        }
    }

    /// Judges an ask without reserving anything; returns the ids of the budgets that cover it.
    ///
    /// # Errors
    /// With the first hard budget that has no room.
    pub fn check(&self, ask: &Ask, now: i64) -> Result<Vec<String>, Box<Refusal>> {
        let asked = ask.parsed();
        let mut covering = Vec::new();
        for b in self.budgets.values().filter(|b| asked.is_in(&b.scope)) {
            covering.push(b.spec.id.clone());
            if !b.spec.hard {
                continue;
            }
            let (asked, spent) = (ask.amount.get(b.spec.unit), b.spent(now));
            let sum = spent.saturating_add(b.reserved.0).saturating_add(asked);
            // Gating is relative to the limit: 1.0 is the limit itself.
            let gate = Money::try_from(b.spec.gating).unwrap_or(Money::ONE);
            if sum > b.spec.limit.saturating_mul(gate) {
                let (_, end) = b.spec.period_at(now);
                return Err(Box::new(Refusal {
                    budget: b.spec.clone(),
                    spent,
                    reserved: b.reserved.0,
                    asked,
                    resets_at: (end != i64::MAX).then_some(end),
                }));
            }
        }
        Ok(covering)
    }

    /// Returns the budgets that cover an ask.
    pub fn covering(&self, ask: &Ask) -> Vec<&BudgetSpec> {
        let asked = ask.parsed();
        self.budgets.values().filter(|b| asked.is_in(&b.scope)).map(|b| &b.spec).collect()
    }

    /// Sets an amount aside if every hard budget has room for it. One with the same id that is
    /// open already is returned as it is.
    ///
    /// # Errors
    /// With the budget that has no room, or a text when too many are open.
    pub fn reserve(&mut self, r: Reservation) -> Result<Reservation, Result<Box<Refusal>, String>> {
        if let Some(open) = self.open.get(&r.id) {
            return Ok(open.clone());
        }
        if self.open.len() >= OPEN_MAX {
            return Err(Err(format!("{OPEN_MAX} reservations are open already")));
        }
        self.check(&r.ask, r.created_at).map_err(Ok)?;
        self.late.remove(&r.id);
        self.restore(r.clone());
        Ok(r)
    }

    /// Takes up a reservation that was made before, whatever is left.
    pub fn restore(&mut self, r: Reservation) {
        self.each(&r.ask, |b, m| b.reserved.add(m));
        self.open.insert(r.id.clone(), r);
    }

    fn each(&mut self, ask: &Ask, f: impl Fn(&mut Budget, Money)) {
        let asked = ask.parsed();
        for b in self.budgets.values_mut().filter(|b| asked.is_in(&b.scope)) {
            let m = ask.amount.get(b.spec.unit);
            f(b, m);
        }
    }

    pub fn reservation(&self, id: &str) -> Option<&Reservation> {
        self.open.get(id)
    }

    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Ends a reservation: what it set aside is free again.
    pub fn release(&mut self, id: &str) -> Option<Reservation> {
        let r = self.open.remove(id)?;
        self.each(&r.ask, |b, m| b.reserved.take(m));
        Some(r)
    }

    /// Ends the reservations whose time is over: what they set aside is free again, and they can be
    /// settled for a day. Returns how many ended.
    pub fn expire(&mut self, now: i64) -> usize {
        let over = self.open.values().filter(|r| r.expires_at <= now);
        let ids: Vec<String> = over.map(|r| r.id.clone()).collect();
        let ended = ids.iter().filter_map(|id| self.release(id)).collect::<Vec<_>>();
        let n = ended.len();
        self.late.extend(ended.into_iter().map(|r| (r.id.clone(), r)));
        n
    }

    /// Returns the ended reservations that are not waited for any longer.
    pub fn abandoned(&self, now: i64) -> Vec<String> {
        let mut late: Vec<&Reservation> = self.late.values().collect();
        late.sort_by_key(|r| std::cmp::Reverse(r.expires_at));
        let over = |(i, r): &(usize, &Reservation)| *i >= OPEN_MAX || r.expires_at + LATE <= now;
        late.into_iter().enumerate().filter(over).map(|(_, r)| r.id.clone()).collect()
    }

    /// Returns a reservation whose time is over.
    pub fn late(&self, id: &str) -> Option<&Reservation> {
        self.late.get(id)
    }

    /// Forgets a reservation whose time is over.
    pub fn forget_late(&mut self, id: &str) -> Option<Reservation> {
        self.late.remove(id)
    }

    /// Forgets spend that no period holds any more.
    pub fn forget(&mut self, now: i64) {
        self.budgets.values_mut().for_each(|b| b.forget(now));
    }

    pub fn status(&self, id: &str, now: i64) -> Option<Status> {
        self.budgets.get(id).map(|b| status(b, now))
    }

    pub fn statuses(&self, now: i64) -> Vec<Status> {
        self.budgets.values().map(|b| status(b, now)).collect()
    }
}

fn status(b: &Budget, now: i64) -> Status {
    let spent = b.spent(now);
    let (from, to) = b.spec.period_at(now);
    let bounded = to != i64::MAX && from != i64::MIN;
    let elapsed = now.saturating_sub(from).max(1);
    let share = |part: i64, whole: i64| Money::from(part).checked_div(Money::from(whole.max(1)));
    let days = Money::from(elapsed).checked_div(Money::from(DAY_NS)).unwrap_or(Money::ONE);
    let average = spent.checked_div(days.max(Money::ONE));
    let projected = bounded.then(|| {
        let rest = share(to - now, DAY_NS).unwrap_or_default();
        spent.saturating_add(average.unwrap_or_default().saturating_mul(rest))
    });
    let burn_rate = bounded.then(|| {
        let even = elapsed as f64 / (to - from).max(1) as f64;
        ratio(spent, b.spec.limit) / even
    });
    let left = b.spec.limit.saturating_sub(spent);
    let exhausted_at = match average {
        Some(a) if from != i64::MIN && a > Money::ZERO && left > Money::ZERO => {
            use rust_decimal::prelude::ToPrimitive as _;
            let days = left.checked_div(a).and_then(|d| d.to_f64()).unwrap_or(f64::INFINITY);
            let at = days.mul_add(DAY_NS as f64, now as f64);
            (at < i64::MAX as f64).then_some(at as i64)
        }
        _ => None,
    };
    let points = b.first.map_or(0, |first| now.saturating_sub(first.max(from)) / DAY_NS + 1);
    let stale = b.last.map_or(i64::MAX, |t| now.saturating_sub(t));
    let mut confidence: f64 = match points {
        ..7 => 0.8,
        7..14 => 0.9,
        _ => 1.0,
    };
    // The oldest first: each is a case of its own.
    confidence *= match stale / (3_600 * SECOND) {
        72.. => 0.5,
        48..72 => 0.7,
        24..48 => 0.9,
        _ => 1.0,
    };
    Status {
        spec: b.spec.clone(),
        spent,
        reserved: b.reserved.0,
        period: (from, to),
        projected,
        burn_rate,
        daily_average: if from == i64::MIN { None } else { average },
        exhausted_at,
        confidence,
    }
}

/// Returns a moment as RFC 3339 text; empty at the ends of time.
pub fn moment(ns: i64) -> String {
    if ns == i64::MIN || ns == i64::MAX {
        return String::new();
    }
    TimestampNs::from_nanos(ns).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage_call;
    use obs_model::{CallCost, CostState};
    use proptest::prelude::*;

    fn at(text: &str) -> i64 {
        TimestampNs::parse_rfc3339(text).unwrap().nanos()
    }

    fn spec(json: &str) -> BudgetSpec {
        serde_json::from_str::<BudgetSpec>(json).unwrap().checked().unwrap()
    }

    fn call(team: &str, usd: Money, time: i64) -> LlmCall {
        let mut c = usage_call("p", "m", TimestampNs::from_nanos(time));
        c.team = team.into();
        c.tokens.input = 10;
        c.cost_state = CostState::Priced;
        c.cost = Some(CallCost {
            input: usd,
            cache_read: Money::ZERO,
            cache_write: Money::ZERO,
            output: Money::ZERO,
            request: Money::ZERO,
            price_id: "x".into(),
        });
        c
    }

    fn ask(team: &str, usd: Money) -> Ask {
        let scope = BTreeMap::from([("team".to_owned(), team.to_owned())]);
        Ask { scope, amount: Amount { usd, tokens: 10, requests: 1 } }
    }

    fn reservation(id: &str, ask: Ask, now: i64) -> Reservation {
        Reservation {
            id: id.into(),
            ask,
            provider: "p".into(),
            model: "m".into(),
            created_at: now,
            expires_at: now + 600 * SECOND,
        }
    }

    #[test]
    fn periods_follow_the_calendar_of_the_time_zone() {
        let of = |period: &str, zone: &str, now: &str| {
            let s = spec(&format!(
                r#"{{"name":"b","limit":"1","period":"{period}","time_zone":"{zone}"}}"#
            ));
            let (a, b) = s.period_at(at(now));
            format!("{} {}", moment(a), moment(b))
        };
        let z = |a: &str, b: &str| format!("{} {}", moment(at(a)), moment(at(b)));
        assert_eq!(
            of("monthly", "Europe/Berlin", "2026-10-31T23:30:00Z"),
            z("2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z")
        );
        // The day of the change to winter has 25 hours.
        assert_eq!(
            of("daily", "Europe/Berlin", "2026-10-25T12:00:00Z"),
            z("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z")
        );
        // Midnight that does not exist: the clock goes from 23:59 to 01:00.
        assert_eq!(
            of("daily", "Africa/Cairo", "2026-04-24T12:00:00Z"),
            z("2026-04-23T22:00:00Z", "2026-04-24T21:00:00Z")
        );
        assert_eq!(
            of("quarterly", "UTC", "2026-12-31T23:59:59Z"),
            z("2026-10-01T00:00:00Z", "2027-01-01T00:00:00Z")
        );
        assert_eq!(
            of("weekly", "America/New_York", "2026-11-23T04:59:59Z"),
            z("2026-11-16T05:00:00Z", "2026-11-23T05:00:00Z")
        );
    }

    #[test]
    fn every_covering_budget_must_have_room_and_the_refusal_names_it() {
        let mut b = Budgets::default();
        b.set(spec(r#"{"name":"all","limit":"10"}"#));
        b.set(spec(r#"{"name":"search","limit":"3","scope":{"team":"search"}}"#));
        b.set(spec(r#"{"name":"soft","limit":"0.5","hard":false}"#));
        b.set(spec(r#"{"name":"few","limit":"2","unit":"requests","scope":{"team":"ads"}}"#));
        let now = at("2026-11-22T12:00:00Z");
        b.count(&call("search", Money::from(2), now - DAY_NS), None, None);
        // Last month's call is last month's.
        b.count(&call("search", Money::from(5), now - 30 * DAY_NS), None, None);
        assert!(b.check(&ask("search", Money::ONE), now).is_ok());
        let r = b.check(&ask("search", Money::new(1001, 3)), now).unwrap_err();
        assert_eq!((r.budget.id.as_str(), r.spent), ("search", Money::from(2)));
        assert_eq!(r.resets_at, Some(at("2026-12-01T00:00:00Z")));
        assert!(b.check(&ask("ads", Money::from(8)), now).is_ok());
        assert_eq!(b.check(&ask("ads", Money::from(9)), now).unwrap_err().budget.id, "all");
        b.count(&call("ads", Money::ZERO, now), None, None);
        b.count(&call("ads", Money::ZERO, now), None, None);
        assert_eq!(b.check(&ask("ads", Money::ZERO), now).unwrap_err().budget.id, "few");
        assert_eq!(b.covering(&ask("ads", Money::ZERO)).len(), 3);
        // In the next month all is new.
        assert!(b.check(&ask("search", Money::from(3)), at("2026-12-01T00:00:00Z")).is_ok());
    }

    #[test]
    fn a_revision_counts_its_difference_and_repeated_calls_nothing() {
        let mut b = Budgets::default();
        b.set(spec(r#"{"name":"all","limit":"10"}"#));
        let now = at("2026-11-22T12:00:00Z");
        let first = call("t", Money::from(4), now);
        b.count(&first, None, None);
        let mut rolled = first.clone();
        rolled.cost_state = CostState::Rollup;
        rolled.cost = None;
        b.count(&rolled, Some(&first), None);
        assert_eq!(b.status("all", now).unwrap().spent, Money::ZERO);
        let mut unsure = call("t", Money::ONE, now);
        unsure.cost_max = Some(Money::from(2));
        b.count(&unsure, None, None);
        assert_eq!(b.status("all", now).unwrap().spent, Money::from(2));
    }

    #[test]
    fn a_rolling_period_forgets_and_reservations_expire() {
        let mut b = Budgets::default();
        b.set(spec(r#"{"name":"r","limit":"10","period":"rolling","rolling_days":1}"#));
        let now = at("2026-11-22T12:30:00Z");
        b.count(&call("t", Money::from(9), now), None, None);
        let two = ask("t", Money::from(2));
        assert!(b.check(&two, now + DAY_NS).is_err());
        assert!(b.check(&two, now + DAY_NS + 3600 * SECOND).is_ok());
        let r = reservation("a", two, now + 2 * DAY_NS);
        b.reserve(r.clone()).unwrap();
        assert_eq!(b.reserve(r).unwrap().id, "a");
        assert_eq!(b.open(), 1);
        assert_eq!(b.expire(now + 2 * DAY_NS), 0);
        assert_eq!(b.expire(now + 2 * DAY_NS + 600 * SECOND), 1);
        // It sets nothing aside any longer, but can be settled for a day.
        assert!(b.reservation("a").is_none() && b.late("a").is_some());
        assert!(b.abandoned(now + 2 * DAY_NS + 600 * SECOND).is_empty());
        assert_eq!(b.abandoned(now + 3 * DAY_NS + 600 * SECOND), ["a"]);
        b.forget_late("a").unwrap();
        assert!(b.late("a").is_none() && b.release("a").is_none());
        assert_eq!(b.status("r", now + 2 * DAY_NS).unwrap().reserved, Money::ZERO);
    }

    #[test]
    fn states_are_judged_in_the_order_of_cost_ops() {
        let status_of = |spent: i64, day: &str| {
            let mut b = Budgets::default();
            b.set(spec(r#"{"name":"m","limit":"100"}"#));
            b.count(&call("t", Money::from(spent), at("2026-11-01T00:00:00Z")), None, None);
            b.status("m", at(day)).unwrap()
        };
        let kind = |spent: i64, day: &str| {
            let v = status_of(spent, day).verdict();
            (v.kind, v.severity, v.action)
        };
        let late = "2026-11-30T00:00:00Z";
        assert_eq!(kind(100, late), ("limit_exceeded", "gating", "gate"));
        assert_eq!(kind(95, late), ("limit_exceeded", "critical", "consider_gating"));
        assert_eq!(kind(80, late), ("approaching_limit", "warning", "monitor"));
        assert_eq!(
            kind(50, "2026-11-11T00:00:00Z"),
            ("projected_exceedance", "critical", "review")
        );
        assert_eq!(kind(32, "2026-11-11T00:00:00Z"), ("projected_exceedance", "warning", "review"));
        assert_eq!(kind(20, "2026-11-11T00:00:00Z"), ("none", "info", "none"));
        let s = status_of(20, "2026-11-11T00:00:00Z");
        assert_eq!(s.projected, Some(Money::from(60)));
        assert!((s.burn_rate.unwrap() - 0.6).abs() < 1e-9);
        assert_eq!(s.exhausted_at, Some(at("2026-12-21T00:00:00Z")));
        // Ten days without a call: the oldest branch, which the origin never reaches.
        assert!((s.confidence - 0.9 * 0.5).abs() < 1e-9, "{}", s.confidence);
    }

    #[test]
    fn what_cannot_be_a_budget() {
        let bad =
            |json: &str| serde_json::from_str::<BudgetSpec>(json).unwrap().checked().unwrap_err();
        assert!(bad(r#"{"name":"x","limit":"0"}"#).contains("limit"));
        assert!(bad(r#"{"name":"x","limit":"1","scope":{"teem":"a"}}"#).contains("teem"));
        assert!(bad(r#"{"name":"x","limit":"1","time_zone":"Mars"}"#).contains("Mars"));
        assert!(bad(r#"{"name":"x","limit":"1","period":"rolling"}"#).contains("rolling_days"));
        assert!(bad(r#"{"name":"x","limit":"1","warning":0.99}"#).contains("order"));
    }

    proptest! {
        /// Streams reserve, settle for no more than they reserved, cancel, crash and expire in any
        /// order: what is spent is never above the limit.
        #[test]
        fn no_order_of_events_overshoots(events in proptest::collection::vec((0_u8..5, 0_usize..30, 1_i64..40, 0_u32..=100), 1..300)) {
            let mut b = Budgets::default();
            b.set(spec(r#"{"name":"cent","limit":"0.01"}"#));
            let now = at("2026-11-22T12:00:00Z");
            let mut spent = Money::ZERO;
            for (what, id, amount, share) in events {
                let name = format!("s{id}");
                match what {
                    0 | 1 => {
                        let _ = b.reserve(reservation(&name, ask("t", Money::new(amount, 4)), now));
                    }
                    2 => if let Some(r) = b.reservation(&name).cloned() {
                        let real = r.ask.amount.usd * Money::from(share) / Money::from(100);
                        // Booked first, released after: never a moment with too much room.
                        b.count(&call("t", real, now), None, None);
                        b.release(&name);
                        spent += real;
                    },
                    3 => drop(b.release(&name)),
                    _ => {
                        // A crash: what is durable comes back.
                        let mut next = Budgets::default();
                        next.set(spec(r#"{"name":"cent","limit":"0.01"}"#));
                        next.count(&call("t", spent, now), None, None);
                        b.open.values().for_each(|r| next.restore(r.clone()));
                        b = next;
                    }
                }
                prop_assert!(spent <= Money::new(1, 2), "{spent}");
                let status = b.status("cent", now).unwrap();
                prop_assert_eq!(status.spent, spent);
                let open: Money = b.open.values().map(|r| r.ask.amount.usd).sum();
                prop_assert_eq!(status.reserved, open);
            }
        }
    }
}
