//! The words of Posthouse: ids, resources, events, error bodies.
//!
//! The shapes are those of the public Managed Agents wire format. This crate parses and prints them and decides
//! nothing: what an event means is in `session`, where it lasts is in `store`. No async, no IO, no clock, no
//! randomness.

pub mod agent;
pub mod agent_request;
pub mod content;
pub mod credential;
pub mod credential_request;
pub mod credential_validation;
pub mod environment;
pub mod environment_request;
pub mod error;
pub mod event;
pub mod hands;
pub mod id;
pub mod metadata;
pub mod model;
pub mod page;
pub mod parse;
pub mod position;
pub mod resource;
pub mod resource_request;
pub mod secret;
pub mod send;
pub mod session;
pub mod session_request;
pub mod sse;

pub mod time;
pub mod vault;
pub mod vault_request;
pub mod web;
