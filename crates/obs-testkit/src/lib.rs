//! Aids for tests: an in-memory store behind the ports, and the reader of query scripts.

mod memory;
pub mod script;

pub use memory::MemoryStore;
