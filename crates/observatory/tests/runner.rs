//! End-to-end tests against the real binary.

mod crash;
mod hostile;
mod support;
mod surfaces;
