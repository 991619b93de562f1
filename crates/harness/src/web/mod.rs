//! The web: what `web_fetch` and `web_search` do. They run in the server and never need a sandbox.
//!
//! Both only read, so a call whose brain died is simply run again, and an interrupt drops it. What they give is bounded
//! before it becomes an event. Nothing here is governed by an environment's networking: what may be reached is decided by
//! the agent's settings and by the server's guard (crate `egress`), which refuses hosts that are not public.
//!
//! ```text
//!   call ──▶ hand ──▶ seen, domains: may it?  ──▶ fetch ──▶ page ──▶ html: readable text
//!                 └─▶ search: ask the provider, drop what may not be shown
//! ```

mod domains;
mod failure;
mod fetch;
mod hand;
mod html;
mod page;
mod run;
mod search;
mod seen;

pub use hand::{Times, Web};
pub(crate) use run::{Place, run};
pub use search::{SearchConfig, SearchConfigError, SearchKind, SearchProvider};
