//! What tests and benches need and the product does not: a model server that plays a script, hands that pretend, a
//! database of one's own and a network that fails on demand.
//!
//! Development only. Nothing here is reachable from the shipped binary.

pub mod cut;
mod guard;
pub mod hands;
pub mod model;
pub mod postgres;
mod process;
