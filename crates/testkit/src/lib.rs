//! What tests and benches need and the product does not: a model server that plays a script, hands that pretend, a
//! container engine, a git server with tokens, a database of one's own, a network that fails on demand, and the rules that every log keeps.
//!
//! Development only. Nothing here is reachable from the shipped binary.

pub mod cut;
pub mod engine;
pub mod git;
mod guard;
pub mod hands;
pub mod invariants;
pub mod mcp;
pub mod model;
pub mod postgres;
mod process;
