//! The tools of MCP servers: what is kept of their lists ([`lists`]), one drive's links to its agent's servers ([`links`]),
//! what of it all a model is offered ([`offer`]), and where
//! credentials come from ([`credentials`]).

mod credentials;
mod links;
mod lists;
mod offer;

pub use credentials::VaultCredentials;
pub(crate) use links::Links;
pub use lists::McpServers;
pub(crate) use offer::{Called, Offer};
