//! The simplest store that satisfies the read ports: vectors and linear scans. The oracle that
//! others are compared with.

use obs_model::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// An in-memory store of one tenant.
#[derive(Debug, Default, Clone)]
pub struct MemoryStore {
    pub series: Vec<Series>,
    pub logs: Vec<Arc<LogRecord>>,
    pub spans: Vec<Arc<Span>>,
    pub calls: Vec<Arc<LlmCall>>,
    /// Whoever changes samples that somebody may watch notes it here.
    pub changes: Arc<Changes>,
}

impl SelectSeries for MemoryStore {
    fn select(
        &self,
        _: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Series>, SelectError> {
        let mut out = Vec::new();
        for s in self.series.iter().filter(|s| Matcher::all_match(selection.matchers, &s.labels)) {
            let mut samples = s.samples.clone();
            samples.retain(|x| x.timestamp >= selection.start && x.timestamp <= selection.end);
            budget.take(samples.len(), 0)?;
            if !samples.is_empty() {
                out.push(Series { labels: s.labels.clone(), samples });
            }
        }
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(out)
    }

    fn label_sets(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        Ok(self.select(tenant, selection, budget)?.into_iter().map(|s| s.labels).collect())
    }

    fn metadata(&self, _: &TenantId) -> BTreeMap<String, MetricMetadata> {
        BTreeMap::new()
    }

    fn watch(&self, tenant: &TenantId, until: TimestampMs) -> Option<Moment> {
        Some(self.changes.watch(tenant, until))
    }

    fn changed_since(&self, tenant: &TenantId, moment: Moment) -> Option<TimestampMs> {
        self.changes.since(tenant, moment)
    }
}

impl SelectLogs for MemoryStore {
    fn select_logs(
        &self,
        _: &TenantId,
        selection: &LogSelection<'_>,
        _: &Budget,
        visit: Visit<'_, LogRecord>,
    ) -> Result<(), SelectError> {
        let wanted = |r: &&Arc<LogRecord>| {
            Matcher::all_match(selection.matchers, &r.stream)
                && r.timestamp >= selection.start
                && r.timestamp < selection.end
                && selection.trace_id.is_none_or(|t| r.trace_id == Some(t))
                && selection.needles.iter().all(|n| r.line.contains(n.as_str()))
        };
        let mut rows: Vec<_> = self.logs.iter().filter(wanted).collect();
        rows.sort_by_key(|r| r.timestamp);
        if selection.direction == Direction::Backward {
            rows.reverse();
        }
        for r in rows {
            if visit(r).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn streams(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        let mut out = std::collections::BTreeSet::new();
        self.select_logs(tenant, selection, budget, &mut |r| {
            out.insert(r.stream.clone());
            ControlFlow::Continue(())
        })?;
        Ok(out.into_iter().collect())
    }
}

impl SelectSpans for MemoryStore {
    fn trace(&self, _: &TenantId, id: TraceId, _: &Budget) -> Result<Vec<Arc<Span>>, SelectError> {
        let mut out: Vec<_> = self.spans.iter().filter(|s| s.trace_id == id).cloned().collect();
        out.sort_by_key(|s| s.start);
        Ok(out)
    }

    fn select_spans(
        &self,
        _: &TenantId,
        selection: &SpanSelection,
        _: &Budget,
        visit: Visit<'_, Span>,
    ) -> Result<(), SelectError> {
        let _ = self.spans.iter().filter(|s| selection.contains(s)).try_for_each(visit);
        Ok(())
    }

    fn operations(
        &self,
        _: &TenantId,
        _: &Budget,
    ) -> Result<BTreeMap<String, Vec<(String, SpanKind)>>, SelectError> {
        let mut out: BTreeMap<String, Vec<(String, SpanKind)>> = BTreeMap::new();
        for s in &self.spans {
            let list = out.entry(s.service().to_owned()).or_default();
            if !list.iter().any(|(n, _)| *n == s.name) {
                list.push((s.name.clone(), s.kind));
            }
        }
        Ok(out)
    }

    fn select_calls(
        &self,
        _: &TenantId,
        selection: &CallSelection,
        _: &Budget,
        visit: Visit<'_, LlmCall>,
    ) -> Result<(), SelectError> {
        let _ = self.calls.iter().filter(|c| selection.contains(c)).try_for_each(visit);
        Ok(())
    }
}
