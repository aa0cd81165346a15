//! The embedded store: write-ahead log → head → Parquet segments, behind the ports of `obs-model`.
//!
//! Invariants:
//! - a write is answered only after its frame is in the log and `fdatasync` returned;
//! - the log's order is the order in which the head sees writes;
//! - a segment is readable only after the manifest's transaction that names it, and log files are
//!   deleted only after that transaction;
//! - every byte read back is checked against a CRC32C on every read;
//! - all file access except SQLite's goes through [`vfs::Vfs`].
//!
//! Bytes on disk are described in `docs/format/`. Read [`store`] next.

mod bin;
mod checked;
mod chunk;
mod head;
mod manifest;
mod records;
mod segment;
pub mod store;
pub mod verify;
pub mod vfs;
mod wal;
mod writer;

pub use store::{OpenError, RecoveryReport, Store, StoreConfig, StoreStats};
pub use verify::{Finding, VerifyReport, verify};
