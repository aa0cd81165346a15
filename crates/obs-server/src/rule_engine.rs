//! Evaluates the queries of rules.

use obs_model::{
    Budget, Labels, LabelsBuilder, METRIC_NAME, MemoryPool, SampleValue, TenantId, TimestampMs,
};
use obs_promql::ast::Expr;
use obs_promql::{Dialect, Output, evaluate_instant};
use obs_rules::{Engine, Language, Query, Rows};
use obs_sql::{Source, SqlLimits};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Evaluates queries of one tenant within the bounds of other queries.
pub struct RuleEngine {
    /// How PromQL is read and evaluated.
    pub promql: Dialect,
    pub source: Arc<dyn Source>,
    pub tenant: TenantId,
    pub memory: Arc<MemoryPool>,
    pub samples_max: i64,
    pub bytes_max: i64,
    /// How long a query may take.
    pub timeout: Duration,
    /// Where SQL runs.
    pub runtime: tokio::runtime::Handle,
}

impl fmt::Debug for RuleEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleEngine").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// Cancels a query that takes too long.
struct Watch(tokio::task::JoinHandle<()>);

impl Watch {
    fn new(runtime: &tokio::runtime::Handle, timeout: Duration, budget: Arc<Budget>) -> Self {
        Self(runtime.spawn(async move {
            tokio::time::sleep(timeout).await;
            budget.cancel();
        }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn rows(out: Output) -> Result<Rows, String> {
    match out {
        Output::Scalar(s) => Ok(vec![(Labels::default(), s.value)]),
        Output::Vector(rows) => Ok(rows.into_iter().map(|(l, s)| (l, s.value)).collect()),
        _ => Err("rule result is not a vector or scalar".into()),
    }
}

impl RuleEngine {
    /// Returns what a query may use, and what cancels it when it takes too long.
    fn bounds(&self) -> (Arc<Budget>, Watch) {
        let budget =
            Arc::new(Budget::of_pool(self.samples_max, self.bytes_max, self.memory.clone()));
        let watch = Watch::new(&self.runtime, self.timeout, budget.clone());
        (budget, watch)
    }
}

impl Engine for RuleEngine {
    fn instant(&self, query: &Query, at_ms: i64) -> Result<Rows, String> {
        let at = TimestampMs::from_millis(at_ms);
        let (source, tenant) = (&*self.source, &self.tenant);
        match query.language {
            Language::PromQl => {
                let expr = self.promql.parse(&query.text).map_err(|e| e.to_string())?;
                self.promql(&expr, at_ms)
            }
            Language::LogQl => {
                let (budget, _watched) = self.bounds();
                let parsed = obs_logql::parse(&query.text).map_err(|e| e.to_string())?;
                let obs_logql::ast::Query::Metric(m) = parsed else {
                    return Err("a rule needs a metric query, not a log query".into());
                };
                let out = obs_logql::run_instant(source, tenant, &m, at.to_nanos(), &budget);
                rows(out.map_err(|e| e.to_string())?)
            }
            Language::Sql => {
                let source = self.source.clone();
                let (budget, _watched) = self.bounds();
                let run = obs_sql::query(source, tenant, &query.text, SqlLimits::default(), budget);
                let out = self.runtime.block_on(run).map_err(|e| e.to_string())?;
                out.rows.iter().map(sql_row).collect()
            }
        }
    }

    fn promql(&self, expr: &Expr, at_ms: i64) -> Result<Rows, String> {
        let (budget, _watched) = self.bounds();
        let at = TimestampMs::from_millis(at_ms);
        let options = self.promql.options();
        let out = evaluate_instant(&*self.source, &self.tenant, expr, at, options, &budget);
        rows(out.map_err(|e| e.to_string())?.0)
    }
}

/// A row's column `value` is the sample, its other columns are labels.
fn sql_row(
    row: &serde_json::Map<String, serde_json::Value>,
) -> Result<(Labels, SampleValue), String> {
    let text = |v: &serde_json::Value| match v {
        serde_json::Value::String(s) => s.clone(),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    };
    let Some(value) = row.get("value") else {
        return Err("an SQL rule needs a column named value".into());
    };
    let number: f64 =
        text(value).parse().map_err(|_| format!("column value holds {value}, not a number"))?;
    let mut b = LabelsBuilder::default();
    for (name, v) in row.iter().filter(|(n, _)| *n != "value" && *n != METRIC_NAME) {
        b.push(name.as_str(), text(v));
    }
    Ok((b.build(), SampleValue::Float(number)))
}
