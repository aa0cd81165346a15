//! How full the contexts of sessions are: S1's memory budget per session, from the calls themselves.

use crate::derive::{Family, metadata};
use obs_model::{
    Labels, LabelsBuilder, LlmCall, METRIC_NAME, MetricKind, MetricMetadata, Sample, Series,
    TenantId, TimestampMs,
};
use std::collections::HashMap;

/// A token is four characters, as S1's memory service counts.
const BYTES_PER_TOKEN: u64 = 4;
/// Sessions without a call for so long are over.
const IDLE_MS: i64 = 15 * 60 * 1000;
/// Sessions that are remembered, and those of a tenant that become series: the fullest.
const SESSIONS_MAX: usize = 50_000;
const SERIES_MAX: usize = 100;

const FAMILIES: [Family; 3] = [
    (
        "memory_budget_total_bytes",
        MetricKind::Gauge,
        "Context window of a session's model, at four bytes a token.",
    ),
    (
        "memory_budget_used_bytes",
        MetricKind::Gauge,
        "Context that a session's latest call filled, at four bytes a token.",
    ),
    ("memory_budget_utilization", MetricKind::Gauge, "Used of the total, percent."),
];

#[derive(Debug, Clone, Copy)]
struct Context {
    total: u64,
    used: u64,
    /// Start of the call that says so, ns.
    at: i64,
    touched: TimestampMs,
}

impl Context {
    fn percent(&self) -> f64 {
        self.used as f64 / self.total as f64 * 100.0
    }
}

/// The contexts of sessions that go on.
#[derive(Debug, Default)]
pub(crate) struct Contexts(HashMap<(TenantId, String), Context>);

impl Contexts {
    /// Takes note of a call; `window` is the context window of its model in tokens.
    pub(crate) fn observe(
        &mut self,
        tenant: &TenantId,
        c: &LlmCall,
        window: Option<u64>,
        now: TimestampMs,
    ) {
        let Some(total) = window.filter(|w| *w > 0) else { return };
        if c.session_id.is_empty() || c.is_repeated() || c.tokens.total() == 0 {
            return;
        }
        let key = (tenant.clone(), c.session_id.clone());
        let at = c.start.nanos();
        // Spans come in any order.
        if self.0.get(&key).is_some_and(|k| k.at > at)
            || self.0.len() >= SESSIONS_MAX && !self.0.contains_key(&key)
        {
            return;
        }
        let bytes = |tokens: u64| tokens.saturating_mul(BYTES_PER_TOKEN);
        let (total, used) = (bytes(total), bytes(c.tokens.total()));
        self.0.insert(key, Context { total, used, at, touched: now });
    }

    /// Returns the series of each tenant's fullest contexts.
    pub(crate) fn tick(
        &mut self,
        now: TimestampMs,
    ) -> Vec<(TenantId, Vec<Series>, Vec<MetricMetadata>)> {
        self.0.retain(|_, c| c.touched >= now.add_millis(-IDLE_MS));
        let mut tenants: HashMap<&TenantId, Vec<(&String, &Context)>> = HashMap::new();
        for ((tenant, session), c) in &self.0 {
            tenants.entry(tenant).or_default().push((session, c));
        }
        let of = |(tenant, mut list): (&TenantId, Vec<(&String, &Context)>)| {
            list.sort_by(|a, b| b.1.percent().total_cmp(&a.1.percent()).then(a.0.cmp(b.0)));
            list.truncate(SERIES_MAX);
            let series = list.iter().flat_map(|(session, c)| {
                let values = [c.total as f64, c.used as f64, c.percent()];
                FAMILIES.iter().zip(values).map(|((name, _, _), v)| Series {
                    labels: labels(name, session),
                    samples: vec![Sample::float(now.millis(), v)],
                })
            });
            (tenant.clone(), series.collect(), metadata(&FAMILIES))
        };
        tenants.into_iter().map(of).collect()
    }
}

fn labels(name: &str, session: &str) -> Labels {
    let mut b = LabelsBuilder::default();
    b.set(METRIC_NAME, name);
    b.set("session_id", session);
    b.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_llm::usage_call;
    use obs_model::TimestampNs;

    #[test]
    fn the_latest_call_says_how_full_a_context_is() {
        let tenant = TenantId::default();
        let mut all = Contexts::default();
        let at = TimestampMs::from_millis;
        let mut call = |start: i64, session: &str, tokens: u64| {
            let mut c = usage_call("openai", "m", TimestampNs::from_nanos(start));
            c.session_id = session.into();
            c.tokens.input = tokens;
            all.observe(&tenant, &c, Some(8192), at(1000));
        };
        call(2, "a", 4096);
        call(1, "a", 100);
        call(1, "", 100);
        for i in 0..150 {
            call(1, &format!("s{i:03}"), i);
        }
        let out = all.tick(at(1000));
        let series = &out[0].1;
        assert_eq!(series.len(), 3 * SERIES_MAX);
        let of = |name: &str| {
            let s = series.iter().find(|s| s.labels == labels(name, "a")).unwrap();
            match s.samples[0].value {
                obs_model::SampleValue::Float(v) => v,
                obs_model::SampleValue::Histogram(_) => f64::NAN,
            }
        };
        assert_eq!(of("memory_budget_total_bytes"), 32_768.0);
        assert_eq!(of("memory_budget_used_bytes"), 16_384.0);
        assert_eq!(of("memory_budget_utilization"), 50.0);
        assert!(all.tick(at(1001 + IDLE_MS)).is_empty());
    }
}
