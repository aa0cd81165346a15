//! Calls between services, from parent-child pairs that cross a service boundary.

use foldhash::HashMap;
use obs_model::{
    Budget, SelectError, SelectSpans, SpanField, SpanId, SpanRow, SpanScan, TenantId, TimestampNs,
    TraceId, VisitSpans,
};
use std::collections::BTreeMap;
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

/// Spans by id, and which of them have a parent.
struct Calls<'a> {
    budget: &'a Budget,
    services: Vec<String>,
    numbers: HashMap<String, usize>,
    owners: HashMap<(TraceId, SpanId), usize>,
    children: Vec<(TraceId, SpanId, usize)>,
}

impl<'a> Calls<'a> {
    fn new(budget: &'a Budget) -> Self {
        Self {
            budget,
            services: Vec::new(),
            numbers: HashMap::default(),
            owners: HashMap::default(),
            children: Vec::new(),
        }
    }
}

impl VisitSpans for Calls<'_> {
    fn visit(&mut self, row: &dyn SpanRow) -> Result<ControlFlow<()>, SelectError> {
        let name = row.get(0);
        let name = name.text();
        let service = match self.numbers.get(name.as_ref()) {
            Some(n) => *n,
            None => {
                self.services.push(name.clone().into_owned());
                self.numbers.insert(name.into_owned(), self.services.len() - 1);
                self.services.len() - 1
            }
        };
        if self.owners.insert((row.trace_id(), row.span_id()), service).is_none()
            && let Some(parent) = row.parent_id()
        {
            self.children.push((row.trace_id(), parent, service));
        }
        // Memory of both tables, about.
        const SPAN_BYTES: usize = 96;
        if self.owners.len().is_multiple_of(1024) {
            self.budget.take(0, 1024 * SPAN_BYTES)?;
        }
        let is_full = self.owners.len() >= SPANS_MAX;
        Ok(if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

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
    let fields = [SpanField::Service];
    let scan = SpanScan { start, end, fields: &fields, traces: &[], equal: &[] };
    let mut calls = Calls::new(budget);
    source.scan_spans(tenant, &scan, budget, &mut calls)?;
    let Calls { services, owners, children, .. } = calls;
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
