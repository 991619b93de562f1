//! What tests stand on, tested itself: over real connections, with real servers.

mod cut;
mod model;
mod postgres;
