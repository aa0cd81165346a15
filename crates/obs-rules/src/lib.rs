//! Recording and alert rules: files, evaluation, alert state, unit tests.
//!
//! [`file`] reads and checks rule files, [`group`] evaluates one group at one moment against an
//! [`Engine`] and says what to write, [`alert`] holds the state of an alert rule, [`driver`] runs
//! groups on a clock. Behaviour is that of Prometheus 3.

pub mod alert;
pub mod driver;
pub mod file;
pub mod group;
pub mod lint;
pub mod packs;
pub mod series_text;
pub mod slo;
pub mod template;
pub mod unit_test;

use obs_model::{Labels, SampleValue};
use obs_promql::ast::Expr;

/// What a rule's expression is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Language {
    #[default]
    PromQl,
    LogQl,
    Sql,
}

/// A rule's expression.
#[derive(Debug, Clone)]
pub struct Query {
    pub language: Language,
    pub text: String,
    /// Set for PromQL.
    pub expr: Option<Expr>,
}

/// The result of a query: an instant vector; a scalar is one sample without labels.
pub type Rows = Vec<(Labels, SampleValue)>;

/// Evaluates queries for rules. Calls block.
pub trait Engine: Send + Sync {
    /// Evaluates an instant query at a time in milliseconds.
    ///
    /// # Errors
    /// With the text that the rule shows as its last error.
    fn instant(&self, query: &Query, at_ms: i64) -> Result<Rows, String>;

    /// Evaluates PromQL that no user wrote: all of the language is on.
    ///
    /// # Errors
    /// As [`instant`](Self::instant).
    fn promql(&self, expr: &Expr, at_ms: i64) -> Result<Rows, String>;
}
