//! Spans and LLM calls in memory: in order of arrival, and by trace.

use crate::segment::Operations;
use obs_model::{LlmCall, Span, TraceId};
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct SpansHead {
    pub(crate) spans: Vec<Arc<Span>>,
    by_trace: HashMap<TraceId, Vec<u32>>,
    pub(crate) operations: Operations,
    pub(crate) calls: Vec<Arc<LlmCall>>,
}

impl SpansHead {
    pub(crate) fn push(&mut self, span: Span) {
        let key = (span.service().to_owned(), span.name.clone(), span.kind.to_otlp());
        // Looked up first: the set changes rarely and an insert would always own its strings.
        if !self.operations.contains(&key) {
            self.operations.insert(key);
        }
        self.by_trace.entry(span.trace_id).or_default().push(self.spans.len() as u32);
        self.spans.push(Arc::new(span));
    }

    pub(crate) fn push_call(&mut self, call: LlmCall) {
        self.calls.push(Arc::new(call));
    }

    pub(crate) fn trace(&self, id: TraceId) -> impl Iterator<Item = &Arc<Span>> {
        let rows = self.by_trace.get(&id).map_or(&[][..], Vec::as_slice);
        rows.iter().filter_map(|i| self.spans.get(*i as usize))
    }
}
