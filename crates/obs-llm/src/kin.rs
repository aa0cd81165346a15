//! Which calls repeat the usage of others: roll-ups of their descendants.
//!
//! Frameworks and SDKs put the sum of inner calls on the outer span. Only usage that no descendant
//! of the same kind explains costs money. Children end before their parents but may arrive after
//! them: then the parent, booked already, is revised.

use foldhash::{HashMap, HashSet};
use obs_model::{CostState, LlmCall, Operation, Span, SpanId, TenantId, TimestampNs, TraceId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Traces with calls that are remembered, and spans and calls of all of them.
const TRACES_MAX: usize = 20_000;
const SPANS_MAX: usize = 400_000;
const CALLS_MAX: usize = 40_000;
/// Ancestors looked at.
const DEPTH_MAX: usize = 1_000;

type Key = (TenantId, TraceId);

#[derive(Debug, Default)]
struct Trace {
    parents: HashMap<SpanId, SpanId>,
    calls: HashMap<SpanId, Arc<LlmCall>>,
}

/// The recent traces that have calls.
#[derive(Debug, Default)]
pub struct Kin {
    tenants: HashMap<TenantId, HashMap<TraceId, Trace>>,
    order: VecDeque<Key>,
    spans: usize,
    calls: usize,
}

/// Kinds of calls whose usage does not explain another kind's.
const fn family(o: Operation) -> u8 {
    match o {
        Operation::Chat | Operation::TextCompletion | Operation::GenerateContent => 0,
        Operation::Embeddings => 1,
        Operation::Rerank => 2,
    }
}

const fn has_usage(c: &LlmCall) -> bool {
    c.tokens.total() > 0 && !matches!(c.cost_state, CostState::Duplicate)
}

/// A span's trace, its id and its parent's.
pub type Link = (TraceId, SpanId, SpanId);

/// Returns the parts of spans that tell which is inside which.
pub fn links(spans: &[Span]) -> Vec<Link> {
    spans.iter().filter_map(|s| Some((s.trace_id, s.span_id, s.parent_id?))).collect()
}

/// A call as it was booked, and its revision.
type Revised = (Arc<LlmCall>, LlmCall);

/// The families of the calls inside each span, as far up as they go.
fn families<'a>(
    calls: impl Iterator<Item = &'a LlmCall>,
    parent: impl Fn(&SpanId) -> Option<SpanId>,
) -> HashSet<(SpanId, u8)> {
    let mut out = HashSet::default();
    for c in calls.filter(|c| has_usage(c)) {
        let mut at = c.span_id;
        for _ in 0..DEPTH_MAX {
            match parent(&at) {
                // What is above a span that was seen was seen too.
                Some(up) if up != c.span_id && out.insert((up, family(c.operation))) => at = up,
                _ => break,
            }
        }
    }
    out
}

fn is_rolled(c: &LlmCall, inside: &HashSet<(SpanId, u8)>) -> bool {
    has_usage(c)
        && c.cost_state != CostState::Rollup
        && inside.contains(&(c.span_id, family(c.operation)))
}

/// Returns revisions of the booked calls of a trace that are roll-ups.
fn revise(trace: &Trace, inside: &HashSet<(SpanId, u8)>, now: TimestampNs) -> Vec<Revised> {
    let rolled = trace.calls.values().filter(|c| is_rolled(c, inside));
    rolled
        .map(|before| {
            let mut c = LlmCall::clone(before);
            c.count_elsewhere(CostState::Rollup);
            c.revision += 1;
            c.booked_at = now;
            "its descendants carry the usage".clone_into(&mut c.reason);
            (before.clone(), c)
        })
        .collect()
}

impl Kin {
    /// Marks new calls that are roll-ups, and returns revisions of those booked before that turn
    /// out to be. Nothing is remembered until [`Self::booked`].
    pub fn judge(
        &self,
        tenant: &TenantId,
        links: &[Link],
        calls: &mut [LlmCall],
        now: TimestampNs,
    ) -> Vec<Revised> {
        let known = self.tenants.get(tenant);
        let mut traces: BTreeMap<TraceId, Vec<usize>> = BTreeMap::new();
        for (i, c) in calls.iter().enumerate() {
            traces.entry(c.trace_id).or_default().push(i);
        }
        // Spans between a call and its caller may come by themselves.
        for (trace, _, _) in links.iter().filter(|l| known.is_some_and(|k| k.contains_key(&l.0))) {
            traces.entry(*trace).or_default();
        }
        let here = links.iter().filter(|l| traces.contains_key(&l.0));
        let fresh: HashMap<(TraceId, SpanId), SpanId> =
            here.map(|(trace, span, up)| ((*trace, *span), *up)).collect();
        let mut revisions = Vec::new();
        for (trace, here) in traces {
            let old = known.and_then(|k| k.get(&trace));
            // One call alone is inside none.
            if here.len() + old.map_or(0, |t| t.calls.len()) < 2 {
                continue;
            }
            let parent =
                |id: &SpanId| fresh.get(&(trace, *id)).or_else(|| old?.parents.get(id)).copied();
            let booked = old.into_iter().flat_map(|t| t.calls.values().map(|c| &**c));
            let inside = families(here.iter().filter_map(|i| calls.get(*i)).chain(booked), parent);
            for i in here {
                if let Some(c) = calls.get_mut(i).filter(|c| is_rolled(c, &inside)) {
                    c.count_elsewhere(CostState::Rollup);
                }
            }
            revisions.extend(old.into_iter().flat_map(|t| revise(t, &inside, now)));
        }
        revisions
    }

    /// Remembers what was stored. Returns further revisions: two requests of one trace may have
    /// been judged without knowing of each other.
    pub fn booked(
        &mut self,
        tenant: &TenantId,
        links: &[Link],
        calls: &[Arc<LlmCall>],
        now: TimestampNs,
    ) -> Vec<Revised> {
        if !self.tenants.contains_key(tenant) {
            if calls.is_empty() {
                return Vec::new();
            }
            self.tenants.insert(tenant.clone(), HashMap::default());
        }
        let Some(traces) = self.tenants.get_mut(tenant) else { return Vec::new() };
        let mut touched = BTreeSet::new();
        for c in calls {
            touched.insert(c.trace_id);
            let trace = traces.entry(c.trace_id).or_insert_with(|| {
                self.order.push_back((tenant.clone(), c.trace_id));
                Trace::default()
            });
            if trace.calls.insert(c.span_id, c.clone()).is_none() {
                self.calls += 1;
            }
        }
        for (trace, span, parent) in links {
            if let Some(t) = traces.get_mut(trace)
                && t.parents.insert(*span, *parent).is_none()
            {
                self.spans += 1;
                touched.insert(*trace);
            }
        }
        let mut revisions = Vec::new();
        // One call alone is inside none.
        let of = |trace: &TraceId| traces.get(trace).filter(|t| t.calls.len() > 1);
        for t in touched.iter().filter_map(of) {
            let calls = t.calls.values().map(|c| &**c);
            let inside = families(calls, |id| t.parents.get(id).copied());
            revisions.extend(revise(t, &inside, now));
        }
        self.forget();
        revisions
    }

    /// Returns a call of a recent trace as it is booked now.
    pub fn call(&self, tenant: &TenantId, trace: TraceId, span: SpanId) -> Option<&Arc<LlmCall>> {
        self.tenants.get(tenant)?.get(&trace)?.calls.get(&span)
    }

    fn forget(&mut self) {
        while self.order.len() > TRACES_MAX || self.spans > SPANS_MAX || self.calls > CALLS_MAX {
            let Some((tenant, trace)) = self.order.pop_front() else { break };
            let Some(traces) = self.tenants.get_mut(&tenant) else { continue };
            if let Some(t) = traces.remove(&trace) {
                self.spans -= t.parents.len();
                self.calls -= t.calls.len();
            }
            if traces.is_empty() {
                self.tenants.remove(&tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PriceBook, call_from_span};
    use obs_model::{Attributes, Money, Resource, Scope, SpanKind, SpanStatus};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn span(id: u8, parent: Option<u8>, tokens: i64, operation: &str) -> Span {
        let at = |n: i64| TimestampNs::from_nanos(1_790_000_000_000_000_000 + n);
        let mut attributes = Attributes::from_iter([
            ("gen_ai.operation.name", operation),
            ("gen_ai.provider.name", "openai"),
            ("gen_ai.request.model", "gpt-4o"),
        ]);
        if tokens > 0 {
            attributes.push("gen_ai.usage.input_tokens", tokens);
        }
        Span {
            trace_id: TraceId::from_slice(&[9; 16]).unwrap(),
            span_id: SpanId::from_slice(&[id; 8]).unwrap(),
            parent_id: parent.and_then(|p| SpanId::from_slice(&[p; 8])),
            name: operation.into(),
            kind: SpanKind::Client,
            start: at(0),
            end: at(1000),
            status: SpanStatus::Unset,
            trace_state: String::new(),
            attributes,
            events: vec![],
            links: vec![],
            resource: Arc::new(Resource::default()),
            scope: Arc::new(Scope::default()),
        }
    }

    /// Books batches of spans and returns the dollars that count in the end.
    fn total(batches: &[Vec<Span>]) -> Money {
        static PRICES: LazyLock<PriceBook> = LazyLock::new(PriceBook::embedded);
        let prices = &*PRICES;
        let (mut kin, tenant) = (Kin::default(), TenantId::default());
        let mut book: HashMap<SpanId, LlmCall> = HashMap::default();
        for spans in batches {
            let mut calls: Vec<_> =
                spans.iter().filter_map(|s| call_from_span(s, prices)).collect();
            let links = links(spans);
            let revisions = kin.judge(&tenant, &links, &mut calls, TimestampNs::from_nanos(5));
            calls.extend(revisions.into_iter().map(|x| x.1));
            let booked: Vec<_> = calls.iter().cloned().map(Arc::new).collect();
            let late = kin.booked(&tenant, &links, &booked, TimestampNs::from_nanos(6));
            assert!(late.is_empty(), "nothing was under way");
            for c in calls {
                let before = book.get(&c.span_id).map_or(0, |b| b.revision);
                assert!(c.revision >= before);
                book.insert(c.span_id, c);
            }
        }
        book.values().map(LlmCall::cost_usd).sum()
    }

    fn usd(text: &str) -> Money {
        Money::from_str_exact(text).unwrap()
    }

    proptest! {
        // agent(no call) → chat 1 sums chats 2 and 4; 4 is behind a tool; an embedding of its own.
        #[test]
        fn a_tree_costs_once_in_any_order_of_arrival(order in Just((0..5_usize).collect::<Vec<_>>()).prop_shuffle(), cuts: u8) {
            let spans = [
                span(1, None, 3_000_000, "chat"),
                span(2, Some(1), 1_000_000, "chat"),
                span(3, Some(1), 0, "execute_tool"),
                span(4, Some(3), 2_000_000, "chat"),
                span(5, Some(1), 0, "invoke_agent"),
            ];
            let mut batches = vec![Vec::new()];
            for (n, i) in order.iter().enumerate() {
                if cuts & (1 << n) != 0 {
                    batches.push(Vec::new());
                }
                batches.last_mut().unwrap().push(spans[*i].clone());
            }
            // A tool's span that comes long before any call of its trace is not remembered; in
            // practice it comes after the calls inside it.
            let tool = order.iter().position(|i| *i == 2).unwrap();
            let first = order.iter().position(|i| [0, 1, 3].contains(i)).unwrap();
            prop_assume!(tool > first);
            // 3 M input tokens at 2.50 dollars a million.
            prop_assert_eq!(total(&batches), usd("7.5"));
        }
    }

    #[test]
    fn another_kind_of_call_inside_explains_nothing() {
        let embed = span(2, Some(1), 1_000_000, "embeddings");
        let both = total(&[vec![embed.clone()], vec![span(1, None, 1_000_000, "chat")]]);
        assert_eq!(both, total(&[vec![embed]]) + usd("2.5"));
        assert_eq!(
            total(&[vec![span(1, None, 1_000_000, "chat"), span(2, Some(1), 0, "chat")]]),
            usd("2.5")
        );
    }

    #[test]
    fn parents_that_form_a_circle_end() {
        let spans = vec![span(1, Some(2), 1_000_000, "chat"), span(2, Some(1), 0, "chat")];
        assert_eq!(total(&[spans]), usd("2.5"));
    }
}
