//! The words of Posthouse: ids, resources, events, error bodies.
//!
//! The shapes are those of the public Managed Agents wire format. This crate parses and prints them and decides
//! nothing: what an event means is in `session`, where it lasts is in `store`. No async, no IO, no clock, no
//! randomness.

pub mod agent;
pub mod content;
pub mod environment;
pub mod error;
pub mod event;
pub mod id;
pub mod metadata;
pub mod model;
pub mod page;
pub mod parse;
pub mod position;
pub mod send;
pub mod session;
pub mod sse;

pub mod time;
