//! Series derived from LLM calls: requests, tokens, dollars, latencies.
//!
//! Counters live in memory and are emitted on a tick. The exact record of spend is the stored
//! calls themselves; these series are for graphs and alerts.

use foldhash::HashMap;
use obs_model::{
    CallStatus, CostState, Labels, LabelsBuilder, LlmCall, METRIC_NAME, MetricKind, MetricMetadata,
    Money, Sample, Series, TenantId, TimestampMs, TokenUsage,
};
use rust_decimal::prelude::ToPrimitive;
use std::collections::BTreeSet;

const DURATION_BUCKETS: [f64; 16] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0];
const PER_TOKEN_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0];
/// Series of one tenant past which new label sets are dropped and counted.
const SERIES_MAX: usize = 50_000;

#[derive(Debug, Clone)]
enum Counter {
    Number(f64),
    Dollars(Money),
    Histogram(Buckets),
}

/// A classic histogram: one lookup a call instead of one a bucket.
#[derive(Debug, Clone)]
struct Buckets {
    bounds: &'static [f64],
    /// By bound, not cumulative; the last is beyond all bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Buckets {
    fn of(bounds: &'static [f64], v: f64) -> Self {
        let mut counts = vec![0; bounds.len() + 1];
        if let Some(c) = counts.get_mut(bounds.partition_point(|b| *b < v)) {
            *c = 1;
        }
        Self { bounds, counts, sum: v }
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.sum += other.sum;
    }

    /// Returns the values of the series that [`series_of`] names.
    fn values(&self) -> Vec<f64> {
        let mut seen = 0;
        let mut out: Vec<f64> = Vec::with_capacity(self.counts.len() + 2);
        for c in &self.counts {
            seen += c;
            out.push(seen as f64);
        }
        out.extend([seen as f64, self.sum]);
        out
    }
}

#[derive(Debug)]
struct Entry {
    value: Counter,
    /// The label sets that the value is emitted as.
    series: Vec<Labels>,
    is_new: bool,
    touched: TimestampMs,
}

/// Returns the label sets of a counter: for a histogram its buckets, count and sum.
fn series_of(labels: &Labels, value: &Counter) -> Vec<Labels> {
    let Counter::Histogram(h) = value else { return vec![labels.clone()] };
    let name = labels.get(METRIC_NAME);
    let with = |suffix: &str, le: Option<String>| {
        let mut b = LabelsBuilder::default();
        for (n, v) in labels.iter() {
            b.set(n, v);
        }
        b.set(METRIC_NAME, &format!("{name}{suffix}"));
        if let Some(le) = le {
            b.set("le", &le);
        }
        b.build()
    };
    let bounds = h.bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
    let mut out: Vec<Labels> = bounds.map(|b| with("_bucket", Some(b))).collect();
    out.extend([with("_count", None), with("_sum", None)]);
    out
}

/// The counters of all tenants.
#[derive(Debug, Default)]
pub struct Derived {
    counters: HashMap<(TenantId, Labels), Entry>,
    /// Series of all counters.
    series: usize,
    /// Label sets by the texts they are made of, and the texts being looked up.
    known: HashMap<Vec<u8>, Labels>,
    key: Vec<u8>,
    last_tick: TimestampMs,
    /// Increments that found no room.
    pub dropped: u64,
}

/// Name, kind and help of a derived metric.
pub(crate) type Family = (&'static str, MetricKind, &'static str);

pub(crate) fn metadata(families: &[Family]) -> Vec<MetricMetadata> {
    families
        .iter()
        .map(|(name, kind, help)| MetricMetadata {
            name: (*name).into(),
            kind: *kind,
            help: (*help).into(),
            unit: String::new(),
        })
        .collect()
}

const FAMILIES: [Family; 12] = [
    ("llm_requests_total", MetricKind::Counter, "Requests to language models."),
    ("llm_tokens_total", MetricKind::Counter, "Tokens by type; the types do not overlap."),
    (
        "llm_cost_usd_total",
        MetricKind::Counter,
        "Cost in USD by kind of usage, from the price book.",
    ),
    ("llm_duration_seconds", MetricKind::Histogram, "Duration of requests to language models."),
    (
        "llm_time_to_first_token_seconds",
        MetricKind::Histogram,
        "Time to the first token of streamed answers.",
    ),
    (
        "llm_time_per_output_token_seconds",
        MetricKind::Histogram,
        "Time for an output token after the first.",
    ),
    (
        "llm_unpriced_requests_total",
        MetricKind::Counter,
        "Requests for which the price book has no price.",
    ),
    (
        "llm_api_calls_total",
        MetricKind::Counter,
        "Alias of llm_requests_total by provider and model.",
    ),
    (
        "llm_total_cost_tracked_dollars",
        MetricKind::Counter,
        "Alias of llm_cost_usd_total over everything.",
    ),
    (
        "llm_cost_reported_usd_total",
        MetricKind::Counter,
        "Cost in USD that the telemetry itself claims.",
    ),
    (
        "llm_cost_reported_computed_usd_total",
        MetricKind::Counter,
        "Cost in USD by the price book of the calls that claim one.",
    ),
    (
        "llm_cost_adjusted_usd",
        MetricKind::Gauge,
        "What later revisions took off or added to the cost counted first, in USD.",
    ),
];

/// Counts of tokens as `llm_tokens_total` names them.
const fn token_types(t: &TokenUsage) -> [(&'static str, u64); 5] {
    [
        ("prompt", t.input.saturating_add(t.audio_input)),
        ("completion", t.output.saturating_add(t.audio_output)),
        ("cached", t.cache_read),
        ("cache_write", t.cache_write.saturating_add(t.cache_write_1h)),
        ("reasoning", t.reasoning),
    ]
}

impl Derived {
    /// Counts a call. Roll-ups and duplicates repeat usage that is counted elsewhere.
    pub fn observe(&mut self, tenant: &TenantId, c: &LlmCall, now: TimestampMs) {
        if matches!(c.cost_state, CostState::Rollup | CostState::Duplicate) {
            return;
        }
        let model = c.model();
        let base = [("provider", c.provider.as_str()), ("model", model)];
        let mut add = |name: &str, extra: &[(&str, &str)], v: Counter| {
            self.add(tenant, name, &base, extra, v, now)
        };
        let one = || Counter::Number(1.0);
        let request = [
            ("operation", c.operation.as_str()),
            ("status", c.status.as_str()),
            ("service", &c.service),
            ("environment", &c.environment),
        ];
        add("llm_requests_total", &request, one());
        add("llm_api_calls_total", &[], one());
        for (kind, n) in token_types(&c.tokens).into_iter().filter(|(_, n)| *n > 0) {
            add("llm_tokens_total", &[("token_type", kind)], Counter::Number(n as f64));
        }
        if let Some(claimed) = c.reported_cost {
            add("llm_cost_reported_usd_total", &[], Counter::Dollars(claimed));
            let ours = Counter::Dollars(c.cost_usd());
            add("llm_cost_reported_computed_usd_total", &[], ours);
        }
        match (&c.cost, c.cost_state) {
            (Some(cost), _) => {
                let parts = [
                    ("input", cost.input),
                    ("output", cost.output),
                    ("cached", cost.cache_read),
                    ("cache_write", cost.cache_write),
                    ("request", cost.request),
                ];
                for (kind, usd) in parts.into_iter().filter(|(_, m)| !m.is_zero()) {
                    add("llm_cost_usd_total", &[("cost_type", kind)], Counter::Dollars(usd));
                }
            }
            (None, _) => add("llm_unpriced_requests_total", &[], one()),
        }
        if let Some(cost) = &c.cost {
            self.add(
                tenant,
                "llm_total_cost_tracked_dollars",
                &[],
                &[],
                Counter::Dollars(cost.total()),
                now,
            );
        }
        self.observe_times(tenant, c, now);
    }

    /// Counts what a revision changes. Counters only grow, so the difference is a series of its
    /// own; the sum of both is what is booked.
    pub fn adjust(&mut self, tenant: &TenantId, before: &LlmCall, c: &LlmCall, now: TimestampMs) {
        let difference = c.cost_usd().saturating_sub(before.cost_usd());
        let base = [("provider", c.provider.as_str()), ("model", c.model())];
        let name = "llm_cost_adjusted_usd";
        self.add(tenant, name, &base, &[], Counter::Dollars(difference), now);
        if c.is_repeated() {
            return;
        }
        // What a span or a log event told after the other was not counted yet.
        for ((kind, n), (_, m)) in
            token_types(&c.tokens).into_iter().zip(token_types(&before.tokens))
        {
            if n > m {
                let more = Counter::Number((n - m) as f64);
                self.add(tenant, "llm_tokens_total", &base, &[("token_type", kind)], more, now);
            }
        }
        if before.end == before.start {
            self.observe_times(tenant, c, now);
        }
    }

    /// Counts how long a call took, of one that says so.
    fn observe_times(&mut self, tenant: &TenantId, c: &LlmCall, now: TimestampMs) {
        if c.end <= c.start {
            return;
        }
        let base = [("provider", c.provider.as_str()), ("model", c.model())];
        let seconds = c.duration_ms() / 1000.0;
        let mut observe = |name: &str, bounds: &'static [f64], v: f64| {
            let one = Counter::Histogram(Buckets::of(bounds, v));
            self.add(tenant, name, &base, &[], one, now);
        };
        observe("llm_duration_seconds", &DURATION_BUCKETS, seconds);
        if c.status == CallStatus::Ok
            && let Some(first) = c.time_to_first_token_ms
        {
            observe("llm_time_to_first_token_seconds", &DURATION_BUCKETS, first / 1000.0);
            let later = c.tokens.output_total().saturating_sub(1);
            if later > 0 {
                let each = (seconds - first / 1000.0).max(0.0) / later as f64;
                observe("llm_time_per_output_token_seconds", &PER_TOKEN_BUCKETS, each);
            }
        }
    }

    fn add(
        &mut self,
        tenant: &TenantId,
        name: &str,
        base: &[(&str, &str)],
        extra: &[(&str, &str)],
        v: Counter,
        now: TimestampMs,
    ) {
        let key = (tenant.clone(), self.labels(name, base, extra));
        let is_full = self.series >= SERIES_MAX;
        match self.counters.get_mut(&key) {
            Some(e) => {
                e.touched = now;
                match (&mut e.value, v) {
                    (Counter::Number(a), Counter::Number(b)) => *a += b,
                    (Counter::Dollars(a), Counter::Dollars(b)) => *a = a.saturating_add(b),
                    (Counter::Histogram(a), Counter::Histogram(b)) => a.add(&b),
                    _ => {}
                }
            }
            None if is_full => self.dropped += 1,
            None => {
                let series = series_of(&key.1, &v);
                self.series += series.len();
                self.counters.insert(key, Entry { value: v, series, is_new: true, touched: now });
            }
        }
    }

    /// Returns a label set; calls repeat a few, and building one costs more than all else here.
    fn labels(&mut self, name: &str, base: &[(&str, &str)], extra: &[(&str, &str)]) -> Labels {
        let key = &mut self.key;
        key.clear();
        let names = [(METRIC_NAME, name)];
        for (n, v) in names.iter().chain(base).chain(extra) {
            for text in [n, v] {
                key.extend_from_slice(&(text.len() as u32).to_le_bytes());
                key.extend_from_slice(text.as_bytes());
            }
        }
        if let Some(l) = self.known.get(key) {
            return l.clone();
        }
        let mut b = LabelsBuilder::default();
        for (n, v) in names.iter().chain(base).chain(extra) {
            b.set(n, v);
        }
        let labels = b.build();
        if self.known.len() >= SERIES_MAX {
            self.known.clear();
        }
        self.known.insert(key.clone(), labels.clone());
        labels
    }

    /// Returns the tenants that have counters: those idle for a day lose theirs.
    pub(crate) fn tenants(&self) -> BTreeSet<TenantId> {
        self.counters.keys().map(|(tenant, _)| tenant.clone()).collect()
    }

    /// Returns a sample of every counter at `now`, by tenant. A new counter also gets a zero at
    /// the tick before, so that `increase()` sees its first value.
    pub fn tick(&mut self, now: TimestampMs) -> Vec<(TenantId, Vec<Series>, Vec<MetricMetadata>)> {
        const IDLE_MS: i64 = 24 * 3600 * 1000;
        self.counters.retain(|_, e| e.touched >= now.add_millis(-IDLE_MS));
        self.series = self.counters.values().map(|e| e.series.len()).sum();
        let before = self.last_tick.max(now.add_millis(-60_000)).min(now.add_millis(-1));
        self.last_tick = now;
        let mut by_tenant: HashMap<TenantId, Vec<Series>> = HashMap::default();
        for ((tenant, _), e) in &mut self.counters {
            let values = match &e.value {
                Counter::Number(n) => vec![*n],
                Counter::Dollars(m) => vec![m.to_f64().unwrap_or(f64::NAN)],
                Counter::Histogram(h) => h.values(),
            };
            let is_new = std::mem::take(&mut e.is_new);
            let out = by_tenant.entry(tenant.clone()).or_default();
            for (labels, value) in e.series.iter().zip(values) {
                let mut samples = Vec::with_capacity(2);
                if is_new {
                    samples.push(Sample::float(before.millis(), 0.0));
                }
                samples.push(Sample::float(now.millis(), value));
                out.push(Series { labels: labels.clone(), samples });
            }
        }
        by_tenant.into_iter().map(|(t, s)| (t, s, metadata(&FAMILIES))).collect()
    }
}
