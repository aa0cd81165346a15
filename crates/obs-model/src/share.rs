//! The port for state that several instances share: small values of which the one said last holds,
//! and claims that let one of them do what must be done once.

use crate::TimestampNs;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// A value as an instance said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// The part of the product that the key belongs to.
    pub space: String,
    pub key: String,
    /// When it was said; of two the later holds.
    pub stamp: TimestampNs,
    /// From when on nobody needs it.
    pub until: TimestampNs,
    /// Nothing once it is taken back.
    pub value: Option<Vec<u8>>,
}

/// Whether an instance may do what it claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    Ours,
    /// Another instance that lives is at it.
    Theirs,
    /// Another one did it: the value that says so. Nothing is claimed.
    Done(Shared),
}

/// What others said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct News {
    pub values: Vec<Shared>,
    /// Where the next reading begins.
    pub position: i64,
    pub has_more: bool,
    /// What dead instances had claimed; nobody else is told.
    pub abandoned: Vec<String>,
    /// Names of the instances that live, this one among them.
    pub members: Vec<String>,
}

/// Why the shared state cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the shared control store: {0}")]
pub struct ShareError(pub String);

pub type ShareFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ShareError>> + Send + 'a>>;

/// State that instances share. Each keeps what it needs itself as well: when the shared one is out
/// of reach, every instance goes on alone.
pub trait ShareState: Send + Sync + fmt::Debug {
    /// The name of this instance.
    fn name(&self) -> &str;
    /// Says values, and gives claims back, all or nothing.
    fn share(&self, values: Vec<Shared>, released: Vec<String>) -> ShareFuture<'_, ()>;
    /// Returns what others said after a position, in the order in which it was said.
    fn news(&self, position: i64) -> ShareFuture<'_, News>;
    /// Claims a key unless its value in `space` is later than `known`. A claim ends when it is
    /// released, or when its holder has not been heard of for a while: then it is somebody's news.
    fn claim<'a>(
        &'a self,
        space: &'a str,
        key: &'a str,
        known: TimestampNs,
    ) -> ShareFuture<'a, Claim>;
    /// Says goodbye: claims of this instance end.
    fn leave(&self) -> ShareFuture<'_, ()>;
}
