//! A table of the store as DataFusion sees it.

use crate::range::TimeRange;
use crate::{Source, columns, range};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use obs_model::{Budget, SelectError, TenantId};
use std::fmt;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableKind {
    Metrics,
    Logs,
    Spans,
    Calls,
}

impl TableKind {
    pub(crate) const ALL: [Self; 4] = [Self::Metrics, Self::Logs, Self::Spans, Self::Calls];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Logs => "logs",
            Self::Spans => "spans",
            Self::Calls => "llm_calls",
        }
    }
}

pub(crate) struct PortTable {
    kind: TableKind,
    source: Arc<dyn Source>,
    tenant: TenantId,
    budget: Arc<Budget>,
    schema: SchemaRef,
}

impl PortTable {
    pub(crate) fn new(
        kind: TableKind,
        source: Arc<dyn Source>,
        tenant: TenantId,
        budget: Arc<Budget>,
    ) -> Self {
        Self { kind, source, tenant, budget, schema: columns::schema(kind) }
    }
}

impl fmt::Debug for PortTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortTable({})", self.kind.name())
    }
}

#[async_trait::async_trait]
impl TableProvider for PortTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        // Inexact: the scan narrows the range, DataFusion still checks each row.
        let support = |e: &&Expr| {
            if range::is_time_filter(e) {
                TableProviderFilterPushDown::Inexact
            } else {
                TableProviderFilterPushDown::Unsupported
            }
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (kind, source, tenant, budget) =
            (self.kind, self.source.clone(), self.tenant.clone(), self.budget.clone());
        let range: TimeRange = range::of(filters);
        let order =
            projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&order)?);
        let wanted = (order, schema.clone());
        let read = move || -> std::result::Result<Vec<RecordBatch>, SelectError> {
            columns::read(kind, wanted, &*source, &tenant, range, &budget)
        };
        let batches = tokio::task::spawn_blocking(read)
            .await
            .map_err(|e| DataFusionError::External(Box::new(e)))?;
        let batches = batches.map_err(|e| DataFusionError::External(Box::new(e)))?;
        let exec = MemorySourceConfig::try_new_exec(&[batches], schema, None)?;
        Ok(exec)
    }
}
