//! Wire formats ⇄ model. One module a format; no sockets, no policy.
//!
//! A decoder keeps every good record of a request and counts the rest with reasons; only a
//! request that is not the format at all is an error. Decompression is capped ([`compression`]).

pub mod compression;
pub mod exposition;
pub mod jaeger;
pub mod loki;
pub mod otlp;
pub mod remote_read;
pub mod remote_write;
pub mod remote_write2;
pub mod zipkin;

/// Records that could be read, and what was refused.
#[derive(Debug, Clone)]
pub struct Decoded<T> {
    pub items: T,
    pub rejected: Rejected,
}

/// Records that were refused, with the first few reasons.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejected {
    pub count: u64,
    pub reasons: Vec<String>,
}

impl Rejected {
    /// Reasons kept for the answer; the count goes on.
    const REASONS_MAX: usize = 5;

    /// Counts one refused record.
    pub fn add(&mut self, reason: impl Into<String>) {
        self.add_many(1, reason);
    }

    /// Counts several records refused for one reason.
    pub fn add_many(&mut self, count: u64, reason: impl Into<String>) {
        self.count += count;
        let reason = reason.into();
        if self.reasons.len() < Self::REASONS_MAX && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    /// Adds another count to this one.
    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        for r in other.reasons {
            self.add_many(0, r);
        }
    }

    /// Returns the reasons in one line.
    pub fn message(&self) -> String {
        self.reasons.join("; ")
    }
}

/// A request body that is not what its content type says.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("body is not valid {format}: {reason}")]
pub struct DecodeError {
    pub format: &'static str,
    pub reason: String,
}
