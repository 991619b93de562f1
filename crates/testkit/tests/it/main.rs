//! What tests stand on, tested itself: over real connections, with real servers.

mod cut;
mod invariants;
mod model;
mod postgres;
