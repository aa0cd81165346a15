//! The port for control state: what people and budgets decided, not what was measured.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// One value set, or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// The part of the product that the key belongs to.
    pub space: String,
    pub key: String,
    pub value: Option<Vec<u8>>,
}

impl StateChange {
    /// Bytes of names and value.
    pub fn size(&self) -> usize {
        self.space.len() + self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// Why state was not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("a value may have {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("all values together may have {bytes_max} bytes")]
    Full { bytes_max: usize },
    #[error("too many changes wait for the disk")]
    Busy,
    /// Whether the change is durable is unknown.
    #[error("the state could not be written: {0}")]
    Io(String),
    #[error("the store is closed")]
    Closed,
}

/// Resolves when the changes are durable, all of them.
pub type StateFuture<'a> = Pin<Box<dyn Future<Output = Result<(), StateError>> + Send + 'a>>;

/// Keeps small named values durably.
pub trait KeepState: Send + Sync + fmt::Debug {
    /// Returns the values of a space by key.
    fn list(&self, space: &str) -> Vec<(String, Vec<u8>)>;
    /// Makes changes durable, all or none, in the order in which calls are made.
    fn put(&self, changes: Vec<StateChange>) -> StateFuture<'_>;
}
