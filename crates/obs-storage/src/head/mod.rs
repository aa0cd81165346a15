//! What was written since the last flush, in memory, by tenant.

pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod spans;

use logs::LogsHead;
use metrics::MetricsHead;
use obs_model::TenantId;
use spans::SpansHead;
use std::collections::HashMap;

/// One tenant's part of the head.
#[derive(Debug, Default)]
pub(crate) struct TenantHead {
    pub(crate) metrics: MetricsHead,
    pub(crate) logs: LogsHead,
    pub(crate) spans: SpansHead,
}

/// The head: all tenants.
#[derive(Debug, Default)]
pub(crate) struct Head {
    pub(crate) tenants: HashMap<TenantId, TenantHead>,
    /// Estimated bytes of all records in it.
    pub(crate) bytes: usize,
}

impl Head {
    pub(crate) fn tenant_mut(&mut self, tenant: &TenantId) -> &mut TenantHead {
        self.tenants.entry(tenant.clone()).or_default()
    }
}
