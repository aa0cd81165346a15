//! Tail sampling of all tenants: where undecided spans are stored meanwhile.
//!
//! A span is durable before it is acknowledged, decided or not. Undecided ones are stored under a
//! name beside the tenant's, one of two in turn: once everything under one is decided, all of it is
//! deleted at once.

use crate::tail::{Decided, TailBuffer, TailConfig};
use obs_model::{LlmCall, Span, TenantId, TimestampMs};
use std::collections::HashMap;
use std::sync::Arc;

/// How long spans are stored under one name.
const TURN_MS: i64 = 30_000;
/// What may be on its way to the log when the names change.
const SLACK_MS: i64 = 30_000;

/// Returns the two names of a tenant; none when its own is too long for them.
pub(crate) fn names(tenant: &TenantId) -> Vec<TenantId> {
    ["a", "b"]
        .iter()
        .filter_map(|n| TenantId::new(&format!("{tenant}.undecided-{n}")).ok())
        .collect()
}

#[derive(Debug)]
struct OfTenant {
    buffer: TailBuffer,
    names: Vec<TenantId>,
    turn: usize,
    since: Option<TimestampMs>,
    /// The other name, and when the last span went there.
    left: Option<(usize, TimestampMs)>,
    /// Kept spans that the store refused.
    refused: Vec<Span>,
}

#[derive(Debug, Default)]
pub(crate) struct Tails {
    config: Option<TailConfig>,
    tenants: HashMap<TenantId, OfTenant>,
}

impl Tails {
    pub(crate) fn set(&mut self, config: Option<TailConfig>) {
        self.config = config;
    }

    fn of(&mut self, tenant: &TenantId) -> &mut OfTenant {
        self.tenants.entry(tenant.clone()).or_insert_with(|| OfTenant {
            buffer: TailBuffer::default(),
            names: names(tenant),
            turn: 0,
            since: None,
            left: None,
            refused: Vec::new(),
        })
    }

    /// Returns the name under which a tenant's spans wait, if they are sampled.
    pub(crate) fn undecided(&mut self, tenant: &TenantId) -> Option<TenantId> {
        self.config.as_ref().filter(|c| c.tenants().contains(tenant))?;
        let t = self.of(tenant);
        t.names.get(t.turn).cloned()
    }

    pub(crate) fn part(&mut self, tenant: &TenantId, spans: Vec<Span>) -> (Vec<Span>, Vec<Span>) {
        self.of(tenant).buffer.part(spans)
    }

    pub(crate) fn add(
        &mut self,
        tenant: &TenantId,
        spans: Vec<Span>,
        calls: &[Arc<LlmCall>],
        now: TimestampMs,
    ) {
        let compares = self.config.as_ref().is_some_and(TailConfig::compares_calls);
        self.of(tenant).buffer.add(spans, calls, compares, now);
    }

    pub(crate) fn retry(&mut self, tenant: &TenantId, spans: Vec<Span>) {
        self.of(tenant).refused.extend(spans);
    }

    pub(crate) fn decide(&mut self, now: TimestampMs) -> Vec<(TenantId, Decided)> {
        let keep_all = TailConfig::keep_all();
        let config = self.config.as_ref().unwrap_or(&keep_all);
        let mut out = Vec::new();
        for (name, t) in &mut self.tenants {
            let mut d = t.buffer.decide(config, now);
            d.kept.append(&mut t.refused);
            if d != Decided::default() {
                out.push((name.clone(), d));
            }
        }
        out
    }

    /// Lets tenants take turns; returns names of which nothing is undecided any more.
    pub(crate) fn finished(&mut self, now: TimestampMs) -> Vec<TenantId> {
        let wait = self.config.as_ref().map_or(0, TailConfig::wait_ms);
        let mut out = Vec::new();
        for t in self.tenants.values_mut() {
            if let Some((name, left)) = t.left
                && now.millis() - left.millis() > wait + SLACK_MS
                && t.refused.is_empty()
            {
                out.extend(t.names.get(name).cloned());
                t.left = None;
            }
            let since = *t.since.get_or_insert(now);
            if t.left.is_none() && now.millis() - since.millis() > TURN_MS {
                t.left = Some((t.turn, now));
                t.turn = 1 - t.turn;
                t.since = Some(now);
            }
        }
        out
    }

    /// Returns the traces that wait, and their bytes.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let all = self.tenants.values().map(|t| t.buffer.usage());
        all.fold((0, 0), |(n, bytes), (a, b)| (n + a, bytes + b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_left_before_it_is_finished() {
        let raw = serde_json::from_str(r#"{"policies":[{"type":"always_sample"}]}"#).unwrap();
        let mut tails = Tails::default();
        let tenant = TenantId::default();
        assert_eq!(tails.undecided(&tenant), None);
        tails.set(Some(TailConfig::read(raw).unwrap()));
        let mut used = Vec::new();
        for s in 0..200 {
            let now = TimestampMs::from_millis(s * 1_000);
            let name = tails.undecided(&tenant).unwrap();
            used.push((s, name));
            tails.decide(now);
            for gone in tails.finished(now) {
                // Nothing went there for as long as anything there can wait.
                let last = used.iter().rev().find(|(_, n)| *n == gone).unwrap().0;
                assert!(s - last >= 40, "{gone} was used {last} s and is deleted after {s} s");
            }
        }
        assert!(used.iter().any(|(_, n)| n.as_str().ends_with("-b")));
    }
}
