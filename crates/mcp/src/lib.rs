//! MCP servers: asking them for their tools and for what the tools do.
//!
//! A [`Proxy`] is where a credential meets a request, and nowhere else. A brain holds a [`SessionToken`], which is good for
//! one session, for that session's servers and for as long as its lease; for it the proxy makes a [`Connection`], whose
//! every request passes the proxy again. The protocol is the official SDK's (rmcp); its HTTP is ours, over the guarded
//! [`egress::Client`], so that no request escapes the guard.
//!
//! A server is a stranger. Whatever it sends is bounded ([`limits`]) and ends in a clear [`Error`]: nothing that it says
//! can take the names of other tools, be followed to another origin, or keep a session waiting for ever.
//!
//! This crate knows nothing of logs, models and stores. It keeps no tool lists: that is for who uses them.

mod connection;
mod content;
mod error;
mod http;
pub mod limits;
mod media;
mod names;
pub mod proxy;
mod sse;
mod tools;

pub use connection::{Call, Cancel, Connection};
pub use content::Output;
pub use error::Error;
pub use limits::Times;
pub use names::{Named, named};
pub use proxy::{Credentials, NoCredentials, Proxy, SessionToken};
pub use tools::Tool;
