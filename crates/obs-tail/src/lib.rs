//! Collects log lines as Promtail does: follows files, containers and syslog, and runs pipelines.
//!
//! [`config`] is Promtail's file, [`Pipeline`](stage) its stages, [`files`] follows files,
//! [`docker`] containers, [`journal`] systemd's journal, [`syslog`] and [`push`] listen; [`manager`] keeps them in
//! step with the configuration. A position moves on only after the lines before it are stored, so that lines are
//! read at least once.

pub mod config;
mod detect;
mod docker;
mod entry;
mod files;
mod journal;
pub mod manager;
mod positions;
mod push;
mod ship;
mod stage;
mod syslog;
mod tls;

pub use entry::{Entry, LabelMap};
pub use manager::Manager;
pub use stage::metrics::Custom;

use obs_model::LogRecord;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Why lines were not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// The same lines may be taken later.
    Later(String),
    /// They will never be.
    Never(String),
}

pub type StoreFuture<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;

/// Takes the lines.
pub trait LogSink: Send + Sync {
    /// Stores records of a tenant, the default one if none is named; returns when they are durable.
    fn store<'a>(&'a self, tenant: Option<&'a str>, records: Vec<LogRecord>) -> StoreFuture<'a>;
}

/// What was done, for the server's own metrics.
#[derive(Debug, Default)]
pub struct Counts {
    pub lines: AtomicU64,
    pub bytes: AtomicU64,
    /// Lines over the limit of their length.
    pub too_long: AtomicU64,
    /// Lines that the store refused for good.
    pub refused: AtomicU64,
    /// Lines over `readline_rate`.
    pub over_rate: AtomicU64,
    /// Times that the store asked to come again.
    pub retries: AtomicU64,
    /// Syslog messages that were none.
    pub malformed: AtomicU64,
    pub files: AtomicU64,
    /// What stages `metrics` counted.
    pub custom: Arc<Custom>,
}
