//! What runs without a request and without a model.
//!
//! The reaper of sandboxes and deliverables that nobody owns, the saver of sandboxes that nobody uses, and who installs the
//! packages of environments before anybody waits for them. It never serves a request and never drives a session.

mod packages;
mod reaper;
mod saver;
mod words;

pub use packages::Installer;
pub use reaper::Reaper;
pub use saver::{SNAPSHOTS, Saver, SaverOptions};
