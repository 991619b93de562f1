//! What runs without a request and without a model.
//!
//! Only the reaper of sandboxes and deliverables so far. It never serves a request and never drives a session.

mod reaper;

pub use reaper::Reaper;
