//! What was written since the last flush, in memory, by tenant.

pub(crate) mod metrics;
pub(crate) mod rows;
pub(crate) mod span_row;

use crate::segment::KnownOperations;
use metrics::{FrozenMetrics, MetricsHead};
use obs_model::{LlmCall, LogRecord, Span, TenantId};
use rows::RowsHead;
use std::collections::HashMap;

/// The records of a tenant.
#[derive(Debug, Default, Clone)]
pub(crate) struct Rows {
    pub(crate) logs: RowsHead<LogRecord>,
    pub(crate) spans: RowsHead<Span>,
    pub(crate) calls: RowsHead<LlmCall>,
    pub(crate) operations: KnownOperations,
}

impl Rows {
    pub(crate) fn bytes(&self) -> usize {
        self.logs.bytes + self.spans.bytes + self.calls.bytes
    }
}

/// One tenant's part of the head.
#[derive(Debug, Default)]
pub(crate) struct TenantHead {
    pub(crate) metrics: MetricsHead,
    pub(crate) rows: Rows,
}

/// The head: all tenants.
#[derive(Debug, Default)]
pub(crate) struct Head {
    pub(crate) tenants: HashMap<TenantId, TenantHead>,
}

/// A head being flushed: read by queries until its segments are there.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    pub(crate) tenants: HashMap<TenantId, (FrozenMetrics, Rows)>,
    pub(crate) bytes: usize,
}

impl Head {
    pub(crate) fn tenant_mut(&mut self, tenant: &TenantId) -> &mut TenantHead {
        self.tenants.entry(tenant.clone()).or_default()
    }

    /// Bytes that a flush takes away, about.
    pub(crate) fn data_bytes(&self) -> usize {
        self.tenants.values().map(|t| t.metrics.sample_bytes + t.rows.bytes()).sum()
    }

    /// Bytes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        self.data_bytes() + self.tenants.values().map(|t| t.metrics.series_bytes).sum::<usize>()
    }

    pub(crate) fn series(&self) -> usize {
        self.tenants.values().map(|t| t.metrics.series_count()).sum()
    }

    /// Indexes up to so many more series of each tenant; returns whether some are left.
    pub(crate) fn index(&mut self, series: usize) -> bool {
        let left = |t: &mut TenantHead| t.metrics.index(series);
        self.tenants.values_mut().fold(false, |any, t| left(t) | any)
    }

    /// Takes everything that a flush writes.
    pub(crate) fn freeze(&mut self) -> Frozen {
        let bytes = self.data_bytes();
        let take = |(tenant, t): (&TenantId, &mut TenantHead)| {
            (tenant.clone(), (t.metrics.freeze(), std::mem::take(&mut t.rows)))
        };
        Frozen { tenants: self.tenants.iter_mut().map(take).collect(), bytes }
    }
}
