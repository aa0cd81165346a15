//! Alerts to people: routes, groups, inhibition, silences, time intervals, templates, receivers and
//! the log of what was sent.
//!
//! Behaviour is Alertmanager's (0.28). [`Core`] is a state machine without a clock or sockets: it is
//! handed alerts and the time, and says what is to be kept and what is to be sent. [`Dispatcher`]
//! drives it: it keeps the state in the control store before anybody hears of it, so that alerts,
//! silences and the log survive a crash, which they do not in Alertmanager.

mod alert;
pub mod config;
mod core;
mod data;
mod driver;
mod guard;
mod inhibit;
mod interval;
mod log;
mod matchers;
mod profiles;
pub mod receivers;
mod route;
mod silence;
mod store;
mod templates;
mod together;

pub use crate::core::{AlertCounts, AlertStatus, Core, GroupView, Job, Listed, Tick};
pub use alert::{Alert, AlertError, NewAlert, fingerprint};
pub use config::{Config, ConfigProblem};
pub use data::Notification;
pub use driver::{Counts, Dispatcher, Environment, PutError, Sent};
pub use guard::Outbound;
pub use interval::TimeInterval;
pub use matchers::{matcher_text, parse_matcher, parse_matchers};
pub use profiles::{PROFILES, profile};
pub use route::{Finding, Route, Routes, Step};
pub use silence::{Silence, SilenceError, SilenceMatcher, SilenceState, SilenceWish};
pub use store::Acknowledgement;
pub use templates::Templates;
pub use together::Members;

/// Writes times as nanoseconds since 1970.
mod ns {
    use obs_model::TimestampNs;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(t: &TimestampNs, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_i64(t.nanos())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<TimestampNs, D::Error> {
        i64::deserialize(d).map(TimestampNs::from_nanos)
    }
}
