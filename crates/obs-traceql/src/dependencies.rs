//! Calls between services, from parent-child pairs that cross a service boundary.

use obs_model::{
    Budget, SelectError, SelectSpans, SpanId, SpanSelection, TenantId, TimestampNs, TraceId,
};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

/// An edge of the service graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    pub parent: String,
    pub child: String,
    pub calls: u64,
}

/// Spans looked at past which the graph is of the latest ones only.
const SPANS_MAX: usize = 500_000;

/// Counts calls in a time range, sorted by parent and child.
///
/// # Errors
/// When the store cannot be read or the budget ends.
pub fn dependencies(
    source: &dyn SelectSpans,
    tenant: &TenantId,
    start: TimestampNs,
    end: TimestampNs,
    budget: &Budget,
) -> Result<Vec<Dependency>, SelectError> {
    let selection = SpanSelection { start, end, service: None, operation: None };
    let mut services: Vec<String> = Vec::new();
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut owners: HashMap<(TraceId, SpanId), usize> = HashMap::new();
    let mut children: Vec<(TraceId, SpanId, usize)> = Vec::new();
    source.select_spans(tenant, &selection, budget, &mut |s| {
        let service = match numbers.get(s.service()) {
            Some(n) => *n,
            None => {
                services.push(s.service().to_owned());
                numbers.insert(s.service().to_owned(), services.len() - 1);
                services.len() - 1
            }
        };
        if owners.insert((s.trace_id, s.span_id), service).is_none()
            && let Some(parent) = s.parent_id
        {
            children.push((s.trace_id, parent, service));
        }
        if owners.len() >= SPANS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let mut edges: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (trace, parent, child) in children {
        if let Some(owner) = owners.get(&(trace, parent))
            && *owner != child
            && let (Some(p), Some(c)) = (services.get(*owner), services.get(child))
        {
            *edges.entry((p, c)).or_default() += 1;
        }
    }
    Ok(edges
        .into_iter()
        .map(|((p, c), calls)| Dependency { parent: p.to_owned(), child: c.to_owned(), calls })
        .collect())
}
