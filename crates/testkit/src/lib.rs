//! What tests and benches need and the product does not: a model server that plays a script.
//!
//! Development only. Nothing here is reachable from the shipped binary.

pub mod hands;
pub mod model;
