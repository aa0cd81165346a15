//! The embedded store: write-ahead log → head → segments, behind the ports of `obs-model`.
//!
//! Invariants:
//! - a write is answered only after its frame is in the log and `fdatasync` returned;
//! - the log's order is the order in which the head sees writes;
//! - a segment is readable only after the manifest's edit that names it, and log files are deleted
//!   only after that edit;
//! - every byte read back is checked against a CRC32C on every read, and what fails costs one log
//!   frame or one block, never the rest;
//! - all file access goes through [`vfs::Vfs`].
//!
//! Bytes on disk are described in `docs/format/`. Read [`store`] next.

mod background;
mod backup;
mod batch;
mod bin;
mod flush;
mod frame;
mod head;
mod manifest;
mod merge;
mod page_cache;
mod records;
mod recover;
mod repeated;
pub mod retention;
mod segment;
mod segments;
mod select;
mod select_spans;
mod span_scan;
mod state;
pub mod store;
mod stretches;
mod sweep;
mod tier;
pub mod verify;
pub mod vfs;
mod wal;
mod writer;

pub use background::give_way;
pub use retention::{RetentionRule, RetentionSignal};
pub use store::{FlushDone, OpenError, RecoveryReport, Store, StoreConfig, StoreStats};
pub use tier::{TierConfig, TierStats};
pub use verify::{Elsewhere, Finding, VerifyReport, verify};
