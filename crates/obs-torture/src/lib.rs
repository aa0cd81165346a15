//! Fault harnesses: a simulated disk under the store, and the real program under kill and flip.
//!
//! Everything is seeded; a failure names its seed. Read [`model`] (inside the store) and
//! [`blackbox`] (around the program) next.

pub mod alerts;
pub mod bench;
pub mod blackbox;
pub mod faults;
pub mod load;
pub mod model;
pub mod oracle;
pub mod overload;
pub mod server;
pub mod sim;
pub mod state;
pub mod tail;
