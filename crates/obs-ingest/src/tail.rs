//! Tail sampling: whole traces are kept or dropped once they have had time to come in.
//!
//! Policies are those of the OpenTelemetry collector's processor, what a trace cost, and whether
//! its calls of models look like those before them. Any vote for a trace keeps it. A trace that
//! only chance kept stands for others: its spans carry how many
//! ([`obs_model::set_sampling_weight`]), so that what is counted of them stays unbiased.

use obs_llm::Usual;
use obs_model::{
    CallStatus, CostState, FieldValue, LlmCall, Money, Span, SpanId, TenantId, TimestampMs,
    TraceId, go_regex, set_sampling_weight,
};
use regex::Regex;
use rust_decimal::prelude::FromPrimitive as _;
use serde::Deserialize;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTail {
    decision_wait_seconds: Option<f64>,
    num_traces: Option<usize>,
    max_bytes: Option<usize>,
    tenants: Option<Vec<String>>,
    policies: Vec<RawPolicy>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPolicy {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    latency: Option<RawLatency>,
    status_code: Option<RawStatus>,
    probabilistic: Option<RawShare>,
    rate_limiting: Option<RawRate>,
    string_attribute: Option<RawText>,
    numeric_attribute: Option<RawNumber>,
    boolean_attribute: Option<RawBool>,
    span_count: Option<RawCount>,
    cost: Option<RawCost>,
    drift: Option<RawDrift>,
    and: Option<RawAnd>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLatency {
    threshold_ms: f64,
    #[serde(default)]
    upper_threshold_ms: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStatus {
    status_codes: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawShare {
    sampling_percentage: f64,
    /// The luck of a trace is in its id.
    #[serde(rename = "hash_salt")]
    _hash_salt: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRate {
    spans_per_second: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawText {
    key: String,
    values: Vec<String>,
    #[serde(rename = "cache_max_size")]
    _cache_max_size: Option<usize>,
    #[serde(default)]
    enabled_regex_matching: bool,
    #[serde(default)]
    invert_match: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNumber {
    key: String,
    #[serde(default)]
    min_value: Option<f64>,
    #[serde(default)]
    max_value: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBool {
    key: String,
    value: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCount {
    #[serde(default)]
    min_spans: usize,
    #[serde(default)]
    max_spans: usize,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCost {
    min_usd: Option<f64>,
    unpriced: bool,
    failed: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDrift {
    deviations: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAnd {
    and_sub_policy: Vec<RawPolicy>,
}

#[derive(Debug)]
enum Policy {
    Always,
    /// Length of the trace, ns.
    Latency(i64, i64),
    Status(Vec<&'static str>),
    /// Share of traces, 0 to 1.
    Share(f64),
    /// Spans a second.
    Rate(f64),
    Text {
        key: String,
        values: Vec<String>,
        patterns: Vec<Regex>,
        invert: bool,
    },
    Number(String, f64, f64),
    Bool(String, bool),
    Spans(usize, usize),
    Cost {
        min: Option<Money>,
        unpriced: bool,
        failed: bool,
    },
    /// Deviations from which on a call is unlike those of its model before.
    Drift(f64),
    All(Vec<Self>),
}

/// How a trace is voted for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Vote {
    No,
    Yes,
    /// Kept with this probability.
    Share(f64),
    /// Kept as far as a policy's rate allows.
    Rate(f64),
}

/// Validated settings.
#[derive(Debug)]
pub struct TailConfig {
    wait_ms: i64,
    traces_max: usize,
    bytes_max: usize,
    tenants: Vec<TenantId>,
    policies: Vec<Policy>,
}

fn share(p: &RawShare) -> Result<f64, String> {
    let share = p.sampling_percentage / 100.0;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err(format!("sampling_percentage {} is not between 0 and 100", p.sampling_percentage))
    }
}

impl RawPolicy {
    fn read(self) -> Result<Policy, String> {
        let name = if self.name.is_empty() { self.kind.clone() } else { self.name.clone() };
        let missing = |what: &str| format!("policy {name:?}: {what} is missing");
        let ms = |v: f64| (v * 1e6) as i64;
        let policy = match self.kind.as_str() {
            "always_sample" => Policy::Always,
            "latency" => {
                let l = self.latency.ok_or_else(|| missing("latency"))?;
                let upper = l.upper_threshold_ms.filter(|u| *u > 0.0);
                Policy::Latency(ms(l.threshold_ms), upper.map_or(i64::MAX, ms))
            }
            "status_code" => {
                let s = self.status_code.ok_or_else(|| missing("status_code"))?;
                let code = |c: &String| match c.to_ascii_uppercase().as_str() {
                    "ERROR" => Ok("error"),
                    "OK" => Ok("ok"),
                    "UNSET" => Ok("unset"),
                    _ => Err(format!("policy {name:?}: unknown status code {c:?}")),
                };
                Policy::Status(s.status_codes.iter().map(code).collect::<Result<_, _>>()?)
            }
            "probabilistic" => {
                let p = self.probabilistic.ok_or_else(|| missing("probabilistic"))?;
                Policy::Share(share(&p).map_err(|e| format!("policy {name:?}: {e}"))?)
            }
            "rate_limiting" => {
                let r = self.rate_limiting.ok_or_else(|| missing("rate_limiting"))?;
                Policy::Rate(r.spans_per_second.max(0.0))
            }
            "string_attribute" => {
                let t = self.string_attribute.ok_or_else(|| missing("string_attribute"))?;
                let pattern = |v: &String| {
                    go_regex(v).map_err(|e| format!("policy {name:?}: pattern {v:?}: {e}"))
                };
                let patterns = if t.enabled_regex_matching {
                    t.values.iter().map(pattern).collect::<Result<_, _>>()?
                } else {
                    Vec::new()
                };
                Policy::Text { key: t.key, values: t.values, patterns, invert: t.invert_match }
            }
            "numeric_attribute" => {
                let n = self.numeric_attribute.ok_or_else(|| missing("numeric_attribute"))?;
                let max = n.max_value.unwrap_or(f64::INFINITY);
                Policy::Number(n.key, n.min_value.unwrap_or(f64::NEG_INFINITY), max)
            }
            "boolean_attribute" => {
                let b = self.boolean_attribute.ok_or_else(|| missing("boolean_attribute"))?;
                Policy::Bool(b.key, b.value)
            }
            "span_count" => {
                let c = self.span_count.ok_or_else(|| missing("span_count"))?;
                let max = if c.max_spans == 0 { usize::MAX } else { c.max_spans };
                Policy::Spans(c.min_spans, max)
            }
            "cost" => {
                let c = self.cost.ok_or_else(|| missing("cost"))?;
                let min = c.min_usd.map(|usd| Money::from_f64(usd).ok_or("min_usd is no number"));
                let min = min.transpose().map_err(|e| format!("policy {name:?}: {e}"))?;
                Policy::Cost { min, unpriced: c.unpriced, failed: c.failed }
            }
            "drift" => {
                let deviations = self.drift.unwrap_or_default().deviations.unwrap_or(4.0);
                if deviations.is_nan() || deviations < 1.0 {
                    return Err(format!(
                        "policy {name:?}: deviations {deviations} is not 1 or more"
                    ));
                }
                Policy::Drift(deviations)
            }
            "and" => {
                let a = self.and.ok_or_else(|| missing("and"))?;
                Policy::All(a.and_sub_policy.into_iter().map(Self::read).collect::<Result<_, _>>()?)
            }
            other => {
                return Err(format!(
                    "policy {name:?}: type {other:?} is not supported; there are always_sample, latency, status_code, probabilistic, rate_limiting, string_attribute, numeric_attribute, boolean_attribute, span_count, cost, drift and and"
                ));
            }
        };
        Ok(policy)
    }
}

impl TailConfig {
    /// Checks a section.
    ///
    /// # Errors
    /// With the policy that is wrong, and why.
    pub fn read(raw: RawTail) -> Result<Self, String> {
        let wait = raw.decision_wait_seconds.unwrap_or(10.0);
        if !(0.1..=600.0).contains(&wait) {
            return Err(format!("decision_wait_seconds {wait} is not between 0.1 and 600"));
        }
        if raw.policies.is_empty() {
            return Err("policies are missing: without one every trace would be dropped".into());
        }
        let names = raw.tenants.unwrap_or_else(|| vec![TenantId::DEFAULT.to_owned()]);
        let tenant = |n: &String| TenantId::new(n).map_err(|e| format!("tenants: {e}"));
        Ok(Self {
            wait_ms: (wait * 1000.0) as i64,
            traces_max: raw.num_traces.unwrap_or(100_000).max(1),
            bytes_max: raw.max_bytes.unwrap_or(256 << 20),
            tenants: names.iter().map(tenant).collect::<Result<_, _>>()?,
            policies: raw.policies.into_iter().map(RawPolicy::read).collect::<Result<_, _>>()?,
        })
    }

    /// Returns rules by which everything is kept at once: what holds when sampling is switched off.
    pub(crate) const fn keep_all() -> Self {
        Self {
            wait_ms: 0,
            traces_max: usize::MAX,
            bytes_max: usize::MAX,
            tenants: Vec::new(),
            policies: Vec::new(),
        }
    }

    pub(crate) const fn wait_ms(&self) -> i64 {
        self.wait_ms
    }

    /// Whether calls are compared with those before them.
    pub(crate) fn compares_calls(&self) -> bool {
        self.policies.iter().any(Policy::compares_calls)
    }

    /// Tenants whose traces are sampled.
    pub fn tenants(&self) -> &[TenantId] {
        &self.tenants
    }
}

/// A trace that waits for its decision.
#[derive(Debug)]
struct Waiting {
    spans: Vec<Span>,
    ids: HashSet<(obs_model::SpanId, i64)>,
    bytes: usize,
    since: TimestampMs,
    /// What its calls of models say, each by its latest revision.
    calls: HashMap<SpanId, Verdict>,
}

/// What a call says to the policies.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    revision: u32,
    cost: Money,
    unpriced: bool,
    failed: bool,
    /// Deviations from the calls before it.
    far: f64,
}

/// What a call in memory counts, bytes.
const CALL_BYTES: usize = 96;
/// Models of a tenant whose calls are compared; the one that was silent longest makes room.
const MODELS_MAX: usize = 50;

/// Returns what the resource and the span have under a key.
fn values<'a>(s: &'a Span, key: &str) -> impl Iterator<Item = FieldValue<'a>> {
    let both = [&s.resource.attributes, &s.attributes];
    both.into_iter().filter_map(move |a| a.get(key)).map(FieldValue::from)
}

impl Policy {
    fn compares_calls(&self) -> bool {
        match self {
            Self::Drift(_) => true,
            Self::All(parts) => parts.iter().any(Self::compares_calls),
            _ => false,
        }
    }

    fn vote(&self, t: &Waiting) -> Vote {
        let any = |f: &dyn Fn(&Span) -> bool| t.spans.iter().any(f);
        let of = |key: &str, f: &dyn Fn(&FieldValue<'_>) -> bool| {
            any(&|s| {
                values(s, key).any(|v| match v {
                    FieldValue::List(l) => l.iter().any(f),
                    v => f(&v),
                })
            })
        };
        let yes = match self {
            Self::Always => true,
            Self::Latency(min, max) => {
                let start = t.spans.iter().map(|s| s.start.nanos()).min().unwrap_or(0);
                let end = t.spans.iter().map(|s| s.end.nanos()).max().unwrap_or(0);
                let length = end.saturating_sub(start);
                length >= *min && length <= *max
            }
            Self::Status(codes) => any(&|s| codes.contains(&s.status.as_str())),
            Self::Share(p) => return Vote::Share(*p),
            Self::Rate(r) => return Vote::Rate(*r),
            Self::Text { key, values, patterns, invert } => {
                let hit = of(key, &|v| {
                    !v.is_nil()
                        && (values.iter().any(|w| v.text() == w.as_str())
                            || patterns.iter().any(|p| p.is_match(&v.text())))
                });
                hit != *invert
            }
            Self::Number(key, min, max) => {
                of(key, &|v| v.as_f64().is_some_and(|x| x >= *min && x <= *max))
            }
            Self::Bool(key, wanted) => of(key, &|v| *v == FieldValue::Bool(*wanted)),
            Self::Spans(min, max) => (*min..=*max).contains(&t.spans.len()),
            Self::Cost { min, unpriced, failed } => {
                let cost = || t.calls.values().fold(Money::ZERO, |n, c| n.saturating_add(c.cost));
                min.is_some_and(|m| !t.calls.is_empty() && cost() >= m)
                    || t.calls.values().any(|c| *unpriced && c.unpriced || *failed && c.failed)
            }
            Self::Drift(deviations) => t.calls.values().any(|c| c.far >= *deviations),
            Self::All(parts) => {
                // The votes of chance multiply; anything that says no ends it.
                let mut chance = 1.0;
                for p in parts {
                    match p.vote(t) {
                        Vote::No => return Vote::No,
                        Vote::Yes => {}
                        Vote::Share(s) => chance *= s,
                        rate @ Vote::Rate(_) => return rate,
                    }
                }
                return if chance < 1.0 { Vote::Share(chance) } else { Vote::Yes };
            }
        };
        if yes { Vote::Yes } else { Vote::No }
    }
}

/// Returns a number in `[0, 1)` that belongs to a trace: its last 56 bits, which are random.
fn luck(id: TraceId) -> f64 {
    let tail = id.as_bytes().iter().skip(9).fold(0_u64, |n, b| n << 8 | u64::from(*b));
    tail as f64 / (1_u64 << 56) as f64
}

/// Keeps a share of traces, by luck; each span stands for those left out.
pub(crate) fn keep_share(spans: &mut Vec<Span>, share: f64) {
    if share >= 1.0 {
        return;
    }
    spans.retain(|s| luck(s.trace_id) < share);
    for s in spans {
        set_sampling_weight(&mut s.trace_state, 1.0 / share);
    }
}

/// What became of traces.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Decided {
    /// To be stored, weighted.
    pub(crate) kept: Vec<Span>,
    pub(crate) traces_kept: u64,
    pub(crate) traces_dropped: u64,
}

/// The traces of one tenant.
#[derive(Debug, Default)]
pub(crate) struct TailBuffer {
    waiting: HashMap<TraceId, Waiting>,
    order: VecDeque<TraceId>,
    bytes: usize,
    /// Decisions for what comes late: the weight, or nothing.
    decided: HashMap<TraceId, Option<f64>>,
    old: HashMap<TraceId, Option<f64>>,
    looked: Option<TimestampMs>,
    /// What calls look like, by provider and requested model, and when the latest came.
    usual: HashMap<(String, String), (Usual, TimestampMs)>,
}

impl TailBuffer {
    fn decision(&self, id: TraceId) -> Option<Option<f64>> {
        self.decided.get(&id).or_else(|| self.old.get(&id)).copied()
    }

    /// Parts spans into those to wait for, and late ones of traces that are kept, weighted; late
    /// ones of dropped traces are dropped.
    pub(crate) fn part(&self, spans: Vec<Span>) -> (Vec<Span>, Vec<Span>) {
        let (mut waiting, mut late) = (Vec::new(), Vec::new());
        for mut s in spans {
            match self.decision(s.trace_id) {
                None => waiting.push(s),
                Some(Some(weight)) => {
                    set_sampling_weight(&mut s.trace_state, weight);
                    late.push(s);
                }
                Some(None) => {}
            }
        }
        (waiting, late)
    }

    /// Takes spans up, and calls of models in them or in traces that wait already, which with
    /// `compare` are compared with those before them, whatever becomes of their traces.
    pub(crate) fn add(
        &mut self,
        spans: Vec<Span>,
        calls: &[Arc<LlmCall>],
        compare: bool,
        now: TimestampMs,
    ) {
        for s in spans {
            let id = s.trace_id;
            let order = &mut self.order;
            let t = self.waiting.entry(id).or_insert_with(|| {
                order.push_back(id);
                Waiting {
                    spans: Vec::new(),
                    ids: HashSet::new(),
                    bytes: 0,
                    since: now,
                    calls: HashMap::new(),
                }
            });
            if t.ids.insert((s.span_id, s.start.nanos())) {
                let bytes = s.size_bytes();
                t.bytes += bytes;
                self.bytes += bytes;
                t.spans.push(s);
            }
        }
        for c in calls {
            let known = self.waiting.get(&c.trace_id).map(|t| t.calls.get(&c.span_id).copied());
            let far = match known {
                Some(Some(known)) => known.far,
                None if c.revision > 0 => continue,
                _ if !compare || c.is_repeated() => 0.0,
                _ => self.judge(c, now),
            };
            let known = known.flatten();
            let Some(t) = self.waiting.get_mut(&c.trace_id) else { continue };
            if known.is_some_and(|k| k.revision > c.revision) {
                continue;
            }
            if known.is_none() {
                t.bytes += CALL_BYTES;
                self.bytes += CALL_BYTES;
            }
            let verdict = Verdict {
                revision: c.revision,
                cost: c.cost.as_ref().map_or(Money::ZERO, |x| x.total()),
                unpriced: c.cost_state == CostState::Unpriced,
                failed: c.status != CallStatus::Ok,
                far,
            };
            t.calls.insert(c.span_id, verdict);
        }
    }

    /// Returns how far a call is from those of its model before it, and takes it among them.
    fn judge(&mut self, c: &LlmCall, now: TimestampMs) -> f64 {
        let model = (c.provider.clone(), c.request_model.clone());
        if !self.usual.contains_key(&model) && self.usual.len() >= MODELS_MAX {
            let silent = self.usual.iter().min_by_key(|(_, (_, last))| *last);
            if let Some(silent) = silent.map(|(m, _)| m.clone()) {
                self.usual.remove(&silent);
            }
        }
        let (usual, last) = self.usual.entry(model).or_insert_with(|| (Usual::default(), now));
        *last = now;
        usual.judge(c)
    }

    /// Decides traces that have waited long enough, and the oldest where there are too many.
    pub(crate) fn decide(&mut self, config: &TailConfig, now: TimestampMs) -> Decided {
        let due = now.add_millis(-config.wait_ms);
        let mut out = Decided::default();
        let mut by_rate: Vec<(f64, TraceId, Waiting)> = Vec::new();
        let seconds = self.looked.map_or(1.0, |t| (now.millis() - t.millis()) as f64 / 1000.0);
        self.looked = Some(now);
        while let Some(id) = self.order.front().copied() {
            let is_over = self.waiting.len() > config.traces_max || self.bytes > config.bytes_max;
            if !is_over && self.waiting.get(&id).is_some_and(|t| t.since > due) {
                break;
            }
            self.order.pop_front();
            let Some(t) = self.waiting.remove(&id) else { continue };
            self.bytes = self.bytes.saturating_sub(t.bytes);
            let (mut keep, mut chance, mut rate) = (config.policies.is_empty(), 0.0_f64, 0.0_f64);
            for p in &config.policies {
                match p.vote(&t) {
                    Vote::No => {}
                    Vote::Yes => keep = true,
                    // The same luck decides all of them: the largest share counts.
                    Vote::Share(s) => chance = chance.max(s),
                    Vote::Rate(r) => rate = rate.max(r),
                }
            }
            if keep {
                self.keep(id, t, 1.0, config, &mut out);
            } else if luck(id) < chance {
                self.keep(id, t, 1.0 / chance, config, &mut out);
            } else if rate > 0.0 && chance == 0.0 {
                by_rate.push((rate, id, t));
            } else {
                self.drop(id, config, &mut out);
            }
        }
        self.share_rate(by_rate, seconds, config, &mut out);
        out
    }

    /// Keeps as many of the traces as their rate allows, by luck; each stands for those left out.
    fn share_rate(
        &mut self,
        mut list: Vec<(f64, TraceId, Waiting)>,
        seconds: f64,
        config: &TailConfig,
        out: &mut Decided,
    ) {
        let all: usize = list.iter().map(|(_, _, t)| t.spans.len()).sum();
        let allowed = list.iter().map(|(r, _, _)| *r).fold(0.0, f64::max) * seconds.max(0.001);
        let chance = (allowed / all.max(1) as f64).min(1.0);
        list.sort_by_key(|(_, id, _)| *id);
        for (_, id, t) in list {
            if luck(id) < chance {
                self.keep(id, t, 1.0 / chance, config, out);
            } else {
                self.drop(id, config, out);
            }
        }
    }

    fn remember(&mut self, id: TraceId, decision: Option<f64>, config: &TailConfig) {
        if self.decided.len() >= config.traces_max {
            self.old = std::mem::take(&mut self.decided);
        }
        self.decided.insert(id, decision);
    }

    fn keep(
        &mut self,
        id: TraceId,
        t: Waiting,
        weight: f64,
        config: &TailConfig,
        out: &mut Decided,
    ) {
        self.remember(id, Some(weight), config);
        out.traces_kept += 1;
        out.kept.extend(t.spans.into_iter().map(|mut s| {
            set_sampling_weight(&mut s.trace_state, weight);
            s
        }));
    }

    fn drop(&mut self, id: TraceId, config: &TailConfig, out: &mut Decided) {
        self.remember(id, None, config);
        out.traces_dropped += 1;
    }

    /// Returns how many traces wait, and their bytes.
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.waiting.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::{
        Attributes, Resource, SpanId, SpanKind, SpanStatus, TimestampNs, sampling_weight,
    };
    use std::sync::Arc;

    fn span(trace: u64, ms: i64, status: SpanStatus, attributes: Attributes) -> Span {
        // Spread over the whole range, as random ids are.
        let id = u128::from(trace.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1 << 100;
        Span {
            trace_id: TraceId::from_slice(&id.to_be_bytes()).unwrap(),
            span_id: SpanId::from_slice(&[1; 8]).unwrap(),
            parent_id: None,
            name: "op".into(),
            kind: SpanKind::Server,
            start: TimestampNs::from_nanos(0),
            end: TimestampNs::from_nanos(ms * 1_000_000),
            status,
            trace_state: String::new(),
            attributes,
            events: vec![],
            links: vec![],
            resource: Arc::new(Resource {
                attributes: Attributes::from_iter([("service.name", "s")]),
            }),
            scope: Arc::default(),
        }
    }

    fn config(json: &str) -> Result<TailConfig, String> {
        let raw: RawTail = serde_json::from_str(json).map_err(|e| e.to_string())?;
        TailConfig::read(raw)
    }

    fn at(ms: i64) -> TimestampMs {
        TimestampMs::from_millis(ms)
    }

    fn plain(trace: u64, ms: i64) -> Span {
        span(trace, ms, SpanStatus::Unset, Attributes::default())
    }

    #[test]
    fn every_policy_has_a_vote() {
        let error = || span(1, 5, SpanStatus::Error(String::new()), Attributes::default());
        let with = |k: &str, v: obs_model::AttributeValue| {
            span(1, 5, SpanStatus::Unset, Attributes::from_iter([(k, v)]))
        };
        let cases = [
            (r#"{"type":"always_sample"}"#, plain(1, 5), true),
            (r#"{"type":"latency","latency":{"threshold_ms":5000}}"#, plain(1, 5000), true),
            (r#"{"type":"latency","latency":{"threshold_ms":5000}}"#, plain(1, 4999), false),
            (r#"{"type":"status_code","status_code":{"status_codes":["ERROR"]}}"#, error(), true),
            (
                r#"{"type":"status_code","status_code":{"status_codes":["ERROR"]}}"#,
                plain(1, 5),
                false,
            ),
            (
                r#"{"type":"string_attribute","string_attribute":{"key":"service.name","values":["s"]}}"#,
                plain(1, 5),
                true,
            ),
            (
                r#"{"type":"string_attribute","string_attribute":{"key":"k","values":["a.c"],"enabled_regex_matching":true}}"#,
                with("k", "abc".into()),
                true,
            ),
            (
                r#"{"type":"string_attribute","string_attribute":{"key":"k","values":["x"],"invert_match":true}}"#,
                with("k", "abc".into()),
                true,
            ),
            (
                r#"{"type":"numeric_attribute","numeric_attribute":{"key":"n","min_value":5,"max_value":7}}"#,
                with("n", 6.into()),
                true,
            ),
            (
                r#"{"type":"numeric_attribute","numeric_attribute":{"key":"n","min_value":5}}"#,
                with("n", 4.into()),
                false,
            ),
            (
                r#"{"type":"boolean_attribute","boolean_attribute":{"key":"b","value":true}}"#,
                with("b", true.into()),
                true,
            ),
            (r#"{"type":"span_count","span_count":{"min_spans":2}}"#, plain(1, 5), false),
            (r#"{"type":"cost","cost":{"unpriced":true}}"#, plain(1, 5), false),
            (
                r#"{"type":"probabilistic","probabilistic":{"sampling_percentage":0}}"#,
                plain(1, 5),
                false,
            ),
            (
                r#"{"type":"and","and":{"and_sub_policy":[{"type":"always_sample"},{"type":"latency","latency":{"threshold_ms":1}}]}}"#,
                plain(1, 5),
                true,
            ),
            (
                r#"{"type":"and","and":{"and_sub_policy":[{"type":"always_sample"},{"type":"latency","latency":{"threshold_ms":9}}]}}"#,
                plain(1, 5),
                false,
            ),
        ];
        for (policy, span, kept) in cases {
            let c = config(&format!("{{\"policies\":[{policy}]}}")).unwrap();
            let mut b = TailBuffer::default();
            b.add(vec![span], &[], false, at(0));
            assert_eq!(b.decide(&c, at(9_999)), Decided::default(), "{policy}");
            let d = b.decide(&c, at(10_000));
            assert_eq!(
                (d.traces_kept, d.traces_dropped),
                (u64::from(kept), u64::from(!kept)),
                "{policy}"
            );
        }
        for (bad, part) in [
            (r#"{"policies":[]}"#, "policies are missing"),
            (r#"{"policies":[{"type":"ottl_condition"}]}"#, "not supported"),
            (r#"{"policies":[{"type":"latency"}]}"#, "latency is missing"),
            (
                r#"{"policies":[{"type":"probabilistic","probabilistic":{"sampling_percentage":200}}]}"#,
                "between",
            ),
            (r#"{"decision_wait":1,"policies":[]}"#, "unknown field"),
        ] {
            let e = config(bad).unwrap_err();
            assert!(e.contains(part), "{e}");
        }
    }

    fn call(s: &Span, output: u64) -> LlmCall {
        let mut c = obs_llm::usage_call("openai", "gpt-4o", s.start);
        (c.trace_id, c.span_id, c.end) = (s.trace_id, s.span_id, s.end);
        (c.tokens.input, c.tokens.output) = (100, output);
        c.cost_state = CostState::Priced;
        c
    }

    #[test]
    fn what_a_call_says_is_what_its_latest_revision_says() {
        let c = config(r#"{"policies":[{"type":"cost","cost":{"min_usd":1,"unpriced":true}}]}"#);
        let c = c.unwrap();
        let priced = |s: &Span, usd: i64| {
            let mut call = call(s, 5);
            call.cost = Some(obs_model::CallCost {
                input: Money::ZERO,
                cache_read: Money::ZERO,
                cache_write: Money::ZERO,
                output: Money::from(usd),
                request: Money::ZERO,
                price_id: "p".into(),
            });
            call
        };
        let kept = |calls: &dyn Fn(&Span) -> Vec<LlmCall>| {
            let mut b = TailBuffer::default();
            let s = plain(1, 5);
            let calls = calls(&s);
            b.add(vec![s], &[], false, at(0));
            // One by one, as requests bring them.
            calls.into_iter().for_each(|c| b.add(vec![], &[c.into()], false, at(1)));
            b.decide(&c, at(20_000)).traces_kept == 1
        };
        assert!(kept(&|s| vec![priced(s, 1)]));
        assert!(!kept(&|_| vec![]));
        // A sum of its descendants, as they come to show.
        let rollup = |s: &Span| LlmCall { cost: None, revision: 1, ..priced(s, 1) };
        assert!(!kept(&|s| vec![priced(s, 1), rollup(s)]));
        assert!(!kept(&|s| vec![rollup(s), priced(s, 1)]));
        assert!(kept(&|s| vec![LlmCall { cost_state: CostState::Unpriced, ..call(s, 5) }]));
    }

    #[test]
    fn a_call_unlike_those_before_it_keeps_its_trace() {
        let c = config(r#"{"policies":[{"type":"drift","drift":{"deviations":5}}]}"#).unwrap();
        assert!(c.compares_calls());
        let mut b = TailBuffer::default();
        let mut kept = |trace: u64, output: u64| {
            let s = plain(trace, 5);
            let call = call(&s, output);
            b.add(vec![s], &[call.into()], true, at(trace as i64 * 20_000));
            b.decide(&c, at(trace as i64 * 20_000 + 10_000)).traces_kept == 1
        };
        assert_eq!((0..1_000).filter(|i| kept(*i, 90 + i % 20)).count(), 0);
        assert!(!kept(1_000, 115));
        assert!(kept(1_001, 2_000), "twenty times what is usual");
        assert!(kept(1_002, 0), "nothing");
        assert!(config(r#"{"policies":[{"type":"drift","drift":{"deviations":0}}]}"#).is_err());
    }

    #[test]
    fn weights_keep_counts_unbiased() {
        // One in ten of the ordinary ones by chance, all slow ones.
        let c = config(
            r#"{"policies":[
              {"type":"latency","latency":{"threshold_ms":1000}},
              {"type":"probabilistic","probabilistic":{"sampling_percentage":10}}]}"#,
        )
        .unwrap();
        let mut b = TailBuffer::default();
        let total = 20_000;
        let spans: Vec<Span> =
            (0..total).map(|i| plain(i, if i % 50 == 0 { 2_000 } else { 10 })).collect();
        b.add(spans, &[], false, at(0));
        let d = b.decide(&c, at(20_000));
        let weighted = |slow: bool| -> f64 {
            let of = d.kept.iter().filter(|s| (s.duration_ns() > 1_000_000_000) == slow);
            of.map(|s| sampling_weight(&s.trace_state)).sum()
        };
        assert_eq!(weighted(true), 400.0);
        let rest = weighted(false);
        assert!((rest - 19_600.0).abs() < 19_600.0 * 0.06, "{rest}");
        assert!(d.kept.len() < 3_000);
        assert_eq!(d.traces_kept + d.traces_dropped, total);
        // What comes late follows its trace.
        let kept = d.kept.iter().find(|s| s.duration_ns() < 1_000_000_000).unwrap();
        let late = Span { span_id: SpanId::from_slice(&[2; 8]).unwrap(), ..kept.clone() };
        let (waiting, stored) = b.part(vec![Span { trace_state: String::new(), ..late }]);
        assert!(waiting.is_empty());
        assert_eq!(sampling_weight(&stored[0].trace_state), 10.0);
    }

    #[test]
    fn a_rate_is_kept_and_weighted() {
        let c = config(
            r#"{"policies":[{"type":"rate_limiting","rate_limiting":{"spans_per_second":500}}]}"#,
        )
        .unwrap();
        let mut b = TailBuffer::default();
        b.decide(&c, at(0));
        b.add((0..10_000).map(|i| plain(i, 1)).collect(), &[], false, at(0));
        let d = b.decide(&c, at(10_000));
        // Ten seconds' worth.
        assert!((4_500..5_500).contains(&d.kept.len()), "{}", d.kept.len());
        let sum: f64 = d.kept.iter().map(|s| sampling_weight(&s.trace_state)).sum();
        assert!((sum - 10_000.0).abs() < 500.0, "{sum}");
    }

    #[test]
    fn memory_is_bounded_by_deciding_early() {
        let c = config(r#"{"num_traces":100,"policies":[{"type":"always_sample"}]}"#).unwrap();
        let mut b = TailBuffer::default();
        b.add((0..250).map(|i| plain(i, 1)).collect(), &[], false, at(0));
        let d = b.decide(&c, at(1));
        assert_eq!((d.traces_kept, b.usage().0), (150, 100));
        // A request that was sent again changes nothing.
        b.add(vec![plain(249, 1)], &[], false, at(2));
        assert_eq!(b.usage().0, 100);
        assert!(d.kept.iter().all(|s| s.trace_state.is_empty()));
    }
}
