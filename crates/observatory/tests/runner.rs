//! End-to-end tests against the real binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

mod crash;
mod hostile;
mod limits;
mod maintain;
mod support;
mod surfaces;
