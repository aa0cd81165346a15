//! Control state that several instances share, in PostgreSQL.
//!
//! Three tables, made at the first connection: values (the one said last holds), claims (who is at
//! something that must be done once), and instances (who lives). Everything in them can be lost:
//! each instance keeps its own copy and says it again.

mod settings;
mod store;

pub use settings::{PostgresSettings, SettingsError};
pub use store::Postgres;
