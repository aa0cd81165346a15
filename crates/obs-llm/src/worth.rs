//! What money bought: what moved between two stretches of time, what a success cost, what a second
//! of a GPU brought.

use crate::report::{Dimension, OTHERS, Totals};
use crate::score::{Score, Scored};
use obs_model::{LlmCall, Money, Sample, SampleValue, TraceId};
use std::collections::{BTreeMap, HashMap, HashSet};

/// How the cost of one value of a dimension moved.
#[derive(Debug, Clone, PartialEq)]
pub struct Mover {
    pub value: String,
    pub before: Totals,
    pub now: Totals,
    /// What more or fewer requests at the cost of before make of the change, USD.
    pub by_volume: Money,
    /// What dearer or cheaper requests make of it, USD; both are the whole change.
    pub by_unit_cost: Money,
}

impl Mover {
    fn of(value: String, before: Totals, now: Totals) -> Self {
        let change = now.usd.saturating_sub(before.usd);
        // What is new, and what is gone, is a matter of volume alone.
        let by_volume = if before.requests == 0 || now.requests == 0 {
            change
        } else {
            let more = Money::from(now.requests).saturating_sub(Money::from(before.requests));
            before.usd_per_request().saturating_mul(more).round_dp(12)
        };
        let by_unit_cost = change.saturating_sub(by_volume);
        Self { value, before, now, by_volume, by_unit_cost }
    }

    pub fn change(&self) -> Money {
        self.now.usd.saturating_sub(self.before.usd)
    }
}

/// Compares the groups of two reports, by how much they moved.
pub fn movers(
    before: &BTreeMap<Vec<String>, Totals>,
    now: &BTreeMap<Vec<String>, Totals>,
) -> Vec<Mover> {
    let keys: HashSet<&Vec<String>> = before.keys().chain(now.keys()).collect();
    let of = |k: &&Vec<String>| {
        let get = |m: &BTreeMap<Vec<String>, Totals>| m.get(*k).cloned().unwrap_or_default();
        Mover::of(k.join(" / "), get(before), get(now))
    };
    let mut out: Vec<Mover> = keys.iter().map(of).filter(|m| !m.change().is_zero()).collect();
    out.sort_by(|a, b| b.change().abs().cmp(&a.change().abs()).then(a.value.cmp(&b.value)));
    out
}

/// What is a success or a failure as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Trace,
    Session,
}

/// Traces or sessions whose cost is remembered.
const UNITS_MAX: usize = 1_000_000;

/// Sums what units of work cost and whether they succeeded.
#[derive(Debug)]
pub struct Outcomes {
    unit: Unit,
    by: Option<Dimension>,
    by_trace: HashMap<TraceId, bool>,
    by_session: HashMap<String, bool>,
    by_response: HashMap<String, bool>,
    units: HashMap<String, Work>,
    /// Calls whose unit found no room.
    pub left_out: u64,
}

#[derive(Debug, Default)]
struct Work {
    usd: Money,
    group: Option<String>,
    good: Option<bool>,
}

/// What the successes of a group cost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Successes {
    pub scored: u64,
    pub successes: u64,
    /// Of all scored units: failures are paid for too.
    pub usd: Money,
}

impl Successes {
    pub fn usd_per_success(&self) -> Option<Money> {
        self.usd.checked_div(Money::from(self.successes)).map(|m| m.round_dp(12))
    }
}

/// Whether a score means success: its value is above `least`, or its label says so.
fn is_good(s: &Score, least: f64) -> Option<bool> {
    match s.value {
        Some(v) => Some(v > least),
        None => s.verdict(),
    }
}

impl Outcomes {
    /// Takes the scores that decide, the newest first: of several of one thing the newest holds.
    pub fn new(unit: Unit, by: Option<Dimension>, scores: &[Scored], least: f64) -> Self {
        let mut out = Self {
            unit,
            by,
            by_trace: HashMap::new(),
            by_session: HashMap::new(),
            by_response: HashMap::new(),
            units: HashMap::new(),
            left_out: 0,
        };
        for s in scores {
            let Some(good) = is_good(&s.score, least) else { continue };
            if let Some(t) = s.trace_id {
                out.by_trace.entry(t).or_insert(good);
            } else if !s.score.response_id.is_empty() {
                out.by_response.entry(s.score.response_id.clone()).or_insert(good);
            } else if !s.score.session_id.is_empty() {
                out.by_session.entry(s.score.session_id.clone()).or_insert(good);
            }
        }
        out
    }

    pub fn add(&mut self, c: &LlmCall) {
        if c.is_repeated() {
            return;
        }
        let unit = match self.unit {
            Unit::Trace => c.trace_id.to_string(),
            Unit::Session if c.session_id.is_empty() => return,
            Unit::Session => c.session_id.clone(),
        };
        if self.units.len() >= UNITS_MAX && !self.units.contains_key(&unit) {
            self.left_out += 1;
            return;
        }
        let of_call = self.by_trace.get(&c.trace_id).or_else(|| self.by_response.get(&c.call_id));
        let good = of_call.or_else(|| self.by_session.get(&c.session_id)).copied();
        let group = self.by.as_ref().map(|d| d.values(c).join(","));
        let work = self.units.entry(unit).or_default();
        work.usd = work.usd.saturating_add(c.cost_usd());
        work.good = work.good.or(good);
        if work.group.as_ref().is_none_or(String::is_empty) {
            work.group = group;
        }
    }

    /// Returns the sums of all, and by the dimension.
    pub fn finish(self) -> (Successes, BTreeMap<String, Successes>) {
        const GROUPS_MAX: usize = 10_000;
        let (mut all, mut groups) = (Successes::default(), BTreeMap::<String, Successes>::new());
        for work in self.units.into_values() {
            let Some(good) = work.good else { continue };
            let count = |s: &mut Successes| {
                s.scored += 1;
                s.successes += u64::from(good);
                s.usd = s.usd.saturating_add(work.usd);
            };
            count(&mut all);
            if let Some(g) = work.group {
                let full = groups.len() >= GROUPS_MAX && !groups.contains_key(&g);
                count(groups.entry(if full { OTHERS.to_owned() } else { g }).or_default());
            }
        }
        (all, groups)
    }
}

/// Series of the utilisation of GPUs by who exports them, and what 1 of them is: S1's exporter, DCGM,
/// nvidia_gpu_exporter, OpenTelemetry's hardware conventions (both translations), Triton.
pub const GPU_SERIES: [(&str, f64); 6] = [
    ("gpu_utilization_percent", 0.01),
    ("DCGM_FI_DEV_GPU_UTIL", 0.01),
    ("nvidia_smi_utilization_gpu_ratio", 1.0),
    ("hw_gpu_utilization_ratio", 1.0),
    ("hw_gpu_utilization", 1.0),
    ("nv_gpu_utilization", 1.0),
];

/// Time between samples beyond which nobody looked, ms.
const GAP_MAX_MS: i64 = 300_000;

/// How long GPUs were there, and how long they were busy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GpuTime {
    pub gpus: usize,
    pub seconds: f64,
    pub busy_seconds: f64,
}

impl GpuTime {
    /// Counts one GPU's samples of its utilisation, oldest first; `unit` is what 1 of them is. Each
    /// sample holds until the next, unless nobody looked for five minutes.
    pub fn add(&mut self, samples: &[Sample], unit: f64) {
        let mut last: Option<(i64, f64)> = None;
        let mut seen = false;
        for s in samples {
            let SampleValue::Float(v) = &s.value else { continue };
            let at = s.timestamp.millis();
            if let Some((before, busy)) = last
                && at - before <= GAP_MAX_MS
            {
                let seconds = (at - before) as f64 / 1000.0;
                self.seconds += seconds;
                self.busy_seconds += seconds * busy;
            }
            // A stale marker ends the series until it comes again.
            last = v.is_finite().then(|| (at, (v * unit).clamp(0.0, 1.0)));
            seen |= last.is_some();
        }
        self.gpus += usize::from(seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage_call;
    use obs_model::{CallCost, CostState, SpanId, TimestampNs};

    fn usd(text: &str) -> Money {
        Money::from_str_exact(text).unwrap()
    }

    fn call(trace: u8, model: &str, cost: &str) -> LlmCall {
        let mut c = usage_call("openai", model, TimestampNs::from_nanos(1));
        c.trace_id = TraceId::from_slice(&[trace; 16]).unwrap();
        c.span_id = SpanId::from_slice(&[trace; 8]).unwrap();
        c.call_id = format!("answer-{trace}");
        c.cost_state = CostState::Priced;
        c.cost = Some(CallCost {
            input: usd(cost),
            cache_read: Money::ZERO,
            cache_write: Money::ZERO,
            output: Money::ZERO,
            request: Money::ZERO,
            price_id: "p".into(),
        });
        c
    }

    #[test]
    fn changes_are_volume_and_unit_cost() {
        let report = |calls: &[LlmCall]| {
            let mut r = crate::report::Report::new(vec![Dimension::Model]);
            calls.iter().for_each(|c| r.add(c));
            r.groups
        };
        let before = report(&[call(1, "a", "1"), call(2, "a", "1"), call(3, "gone", "0.5")]);
        let now = report(&[
            call(4, "a", "2"),
            call(5, "a", "2"),
            call(6, "a", "2"),
            call(7, "new", "0.25"),
        ]);
        let found = movers(&before, &now);
        let rows: Vec<(&str, Money, Money)> =
            found.iter().map(|m| (m.value.as_str(), m.by_volume, m.by_unit_cost)).collect();
        // From 2 × 1 to 3 × 2: one more at 1, and all three dearer by 1.
        assert_eq!(
            rows,
            [
                ("a", usd("1"), usd("3")),
                ("gone", usd("-0.5"), Money::ZERO),
                ("new", usd("0.25"), Money::ZERO)
            ]
        );
    }

    #[test]
    fn a_success_costs_what_the_failures_cost_too() {
        let scored = |value: f64, trace: Option<u8>, response: &str| Scored {
            score: Score {
                name: "resolved".into(),
                value: Some(value),
                response_id: response.into(),
                ..Score::default()
            },
            at: TimestampNs::from_nanos(1),
            service: String::new(),
            trace_id: trace.and_then(|t| TraceId::from_slice(&[t; 16])),
            span_id: None,
        };
        let scores = [
            scored(1.0, Some(1), ""),
            scored(0.0, Some(1), ""),
            scored(0.0, Some(2), ""),
            scored(1.0, None, "answer-3"),
        ];
        let mut o = Outcomes::new(Unit::Trace, Some(Dimension::Model), &scores, 0.0);
        for c in [
            call(1, "a", "1"),
            call(1, "a", "0.5"),
            call(2, "a", "2"),
            call(3, "b", "4"),
            call(4, "b", "99"),
        ] {
            o.add(&c);
        }
        let (all, groups) = o.finish();
        assert_eq!((all.scored, all.successes, all.usd), (3, 2, usd("7.5")));
        assert_eq!(all.usd_per_success(), Some(usd("3.75")));
        // The newest verdict of trace 1 holds; trace 2 failed and is paid for.
        assert_eq!(groups["a"].usd_per_success(), Some(usd("3.5")));
        assert_eq!(groups["b"].usd_per_success(), Some(usd("4")));
        assert_eq!(Successes::default().usd_per_success(), None);
    }

    #[test]
    fn gpus_are_counted_while_somebody_looks() {
        let at = |s: i64, v: f64| Sample::float(s * 1000, v);
        let mut t = GpuTime::default();
        let stale = f64::from_bits(0x7ff0_0000_0000_0002);
        t.add(&[at(0, 50.0), at(60, 100.0), at(120, 0.0), at(1000, 80.0), at(1060, stale)], 0.01);
        t.add(&[at(0, 200.0)], 0.01);
        assert_eq!(t, GpuTime { gpus: 2, seconds: 180.0, busy_seconds: 30.0 + 60.0 + 48.0 });
    }
}
