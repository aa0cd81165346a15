//! Read-only SQL over the ports, with DataFusion. The only crate that links it.
//!
//! Tables `metrics`, `logs`, `spans` and `llm_calls`; their columns are in [`columns`]. Time
//! conditions on `ts` are pushed into the store; everything else is DataFusion's.

mod columns;
mod json;
mod parquet_file;
mod range;
mod table;

pub use parquet_file::{Cell, ParquetFile};

use crate::table::{PortTable, TableKind};
use datafusion::error::DataFusionError;
use datafusion::execution::context::{SQLOptions, SessionConfig, SessionContext};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use futures_util::StreamExt as _;
use obs_model::{Budget, SelectError, SelectLogs, SelectSeries, SelectSpans, TenantId};
use std::sync::Arc;

/// Everything that SQL reads.
pub trait Source: SelectSeries + SelectLogs + SelectSpans {}

impl<T: SelectSeries + SelectLogs + SelectSpans> Source for T {}

/// Bounds of a query.
#[derive(Debug, Clone, Copy)]
pub struct SqlLimits {
    pub memory_bytes: usize,
    /// Result rows; more is an error, so that a cut result is never taken for a whole one.
    pub rows_max: usize,
}

impl Default for SqlLimits {
    fn default() -> Self {
        Self { memory_bytes: 256 << 20, rows_max: 100_000 }
    }
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The query's fault.
    #[error("{0}")]
    Query(String),
    #[error(transparent)]
    Select(#[from] SelectError),
    #[error("query returns more than {0} rows; add a LIMIT or aggregate")]
    TooManyRows(usize),
    #[error("query needs more memory than {0} bytes; narrow it or aggregate")]
    Memory(usize),
}

/// A result as JSON values.
#[derive(Debug, Clone)]
pub struct SqlResult {
    /// (name, SQL type).
    pub columns: Vec<(String, String)>,
    pub rows: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// Runs one statement. Needs a tokio runtime.
///
/// # Errors
/// When the statement is not a supported read, fails, or exceeds a limit.
pub async fn query(
    source: Arc<dyn Source>,
    tenant: &TenantId,
    sql: &str,
    limits: SqlLimits,
    budget: Arc<Budget>,
) -> Result<SqlResult, SqlError> {
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_limit(limits.memory_bytes, 1.0)
        .build_arc()
        .map_err(|e| failed(&e, limits))?;
    let config = SessionConfig::new().with_target_partitions(2).with_information_schema(true);
    let context = SessionContext::new_with_config_rt(config, runtime);
    for kind in TableKind::ALL {
        let table = PortTable::new(kind, source.clone(), tenant.clone(), budget.clone());
        context.register_table(kind.name(), Arc::new(table)).map_err(|e| failed(&e, limits))?;
    }
    let options =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let frame = context.sql_with_options(sql, options).await.map_err(|e| failed(&e, limits))?;
    let schema = frame.schema().as_arrow().clone();
    let columns =
        schema.fields().iter().map(|f| (f.name().clone(), f.data_type().to_string())).collect();
    let mut stream = frame.execute_stream().await.map_err(|e| failed(&e, limits))?;
    let mut rows = Vec::new();
    while let Some(batch) = stream.next().await {
        budget.check()?;
        let batch = batch.map_err(|e| failed(&e, limits))?;
        if rows.len() + batch.num_rows() > limits.rows_max {
            return Err(SqlError::TooManyRows(limits.rows_max));
        }
        json::append_rows(&batch, &mut rows).map_err(|e| SqlError::Query(e.to_string()))?;
    }
    Ok(SqlResult { columns, rows })
}

fn failed(e: &DataFusionError, limits: SqlLimits) -> SqlError {
    match e.find_root() {
        DataFusionError::ResourcesExhausted(_) => SqlError::Memory(limits.memory_bytes),
        DataFusionError::External(inner) => match inner.downcast_ref::<SelectError>() {
            Some(s) => SqlError::Select(s.clone()),
            None => SqlError::Query(inner.to_string()),
        },
        root => SqlError::Query(root.strip_backtrace()),
    }
}
