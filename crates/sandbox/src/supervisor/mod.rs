//! The supervisor: the small process that owns the sandboxes of one data directory.
//!
//! It exists because a large server must never fork and because a sandbox must outlive the server that asked for it. It holds
//! no secret, no session and no policy: it starts sandboxes, relays calls to their `tools`, and ends them. It ends by itself
//! when no server has been connected for a while, and everything it owns ends with it, however it ends.
//!
//! ```text
//! server ── supervisor.sock ──▶ supervisor ── one socket each ──▶ tools (process 1 of a sandbox)
//!   (any number, they come and go)   (one per data directory: supervisor.lock)
//! ```
//!
//! In reading order: `protocol` (the words), `frames` (the bytes), `process` (its life: start, lock, loop), `keeper` (what it
//! owns and decides; `books`, `terms`, `admission`, `memory`, `pool`, `private`, `guests` for sandboxes that an engine of
//! containers starts), `client` (the server's side, [`Supervised`]),
//! `collect` (deliverables onto the host's disk), `build` (package layers),
//! `passing` and `exits` (how the exits of sandboxes get to the server).

pub(crate) mod admission;
pub(crate) mod books;
pub(crate) mod build;
mod cargo;
pub(crate) mod client;
pub(crate) mod collect;
pub(crate) mod exits;
pub(crate) mod frames;
pub(crate) mod guests;
pub(crate) mod keeper;
pub(crate) mod memory;
pub(crate) mod passing;
pub(crate) mod place;
pub(crate) mod poller;
pub(crate) mod pool;
pub(crate) mod private;
pub(crate) mod process;
pub(crate) mod protocol;
mod saving;
pub(crate) mod terms;

pub use admission::Capacity;
pub use client::{Patience, Settings, Supervised};
pub use place::Program;
pub use process::{main, probe};
