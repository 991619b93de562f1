//! The brain: a stateless loop that claims a session, reads its log, does the next thing and records it.
//!
//! [`Brain::wake`] is the whole interface: it drives one session until it rests, and may be killed between any two
//! instructions; another `wake` continues. [`Brain::run`] claims whatever session has something to do.
//!
//! What to do is decided by `session::next_step`; this crate does it. It speaks to models ([`model`]), runs calls
//! in sandboxes, at MCP servers ([`mcp_servers`]) or, those of the web tools, itself ([`web`]), and keeps nothing. It never serves a request and is never called by the door: the two meet in the
//! store.

mod admission;
mod brain;
mod context;
mod drive;
pub mod faults;
mod hands;
mod luggage;
pub mod mcp_servers;
pub mod model;
mod pauses;
mod permits;
mod pools;
mod speculation;
mod speech;
mod spill;
mod toolset;
pub mod web;
mod workspace;

pub use brain::{Brain, Options};
pub use mcp_servers::McpServers;
pub use permits::ModelLimits;
pub use workspace::Snapshots;
