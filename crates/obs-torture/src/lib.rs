//! Fault harnesses: a simulated disk under the store, and the real program under kill and flip.
//!
//! Everything is seeded; a failure names its seed. Read [`model`] next.

pub mod model;
pub mod sim;
