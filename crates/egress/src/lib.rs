//! The one way out.
//!
//! A sandbox has no route. If its environment allows hosts, it finds one listening socket on its own loopback, which the
//! server serves with [`Proxy`]. What the server itself fetches from addresses that agents or web pages chose goes through
//! [`Client`]. Both ask the same two questions: does the [`Policy`] of the asker name this host, and does the [`Guard`]
//! find a public address behind it (or one that the operator's [`PrivateHosts`] allow)? The connection is then made to the
//! very address that was judged; a name is never looked up twice.
//!
//! In reading order: `host` (a name or address in its one canonical form), `address` (which addresses are not public),
//! `private` (the operator's exceptions), `names` (how names are looked up), `guard` and `refusal`, `policy`, `edge` and
//! `authority` (secrets that are spent on the way out), `proxy`, `client`.
//!
//! This crate never follows a redirect for a sandbox, never logs a path, a header or content, keeps no secret, and knows
//! nothing of sessions beyond the id it is given for the log.

mod address;
mod authority;
mod client;
mod edge;
mod guard;
mod host;
mod names;
mod policy;
mod private;
mod proxy;
mod refusal;
mod registries;

pub use authority::{Authority, AuthorityError};
pub use client::{Client, client, client_without_redirects};
pub use edge::{Body, Edge, Replacement, Secret, Spent, Unavailable};
pub use guard::{Guard, PORTS_DEFAULT};
pub use host::{Host, Pattern, PatternError};
pub use names::{Names, Table};
pub use policy::{Allowed, Grant, Policy};
pub use private::{EntryError, PrivateHosts};
pub use proxy::{Limits, Proxy, Uninspected, Who, system_roots};
pub use refusal::Refusal;
pub use registries::PACKAGE_REGISTRIES;
