//! The Messages API of Anthropic, and of whoever speaks it.

mod request;

mod answer;

pub(super) use answer::MessageReader;
pub(super) use request::{beta_header, body};

/// The version of the wire that this module speaks.
pub(super) const VERSION: &str = "2023-06-01";
