//! What runs without a request and without a model.
//!
//! The reaper of sandboxes and deliverables that nobody owns, and the saver of sandboxes that nobody uses. It never serves a request and never drives a session.

mod reaper;
mod saver;

pub use reaper::Reaper;
pub use saver::{SNAPSHOTS, Saver, SaverOptions};
