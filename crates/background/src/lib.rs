//! What runs without a request and without a model.
//!
//! The reaper of sandboxes and deliverables, and who installs the packages of environments before anybody waits for them.
//! It never serves a request and never drives a session.

mod packages;
mod reaper;

pub use packages::Installer;
pub use reaper::Reaper;
