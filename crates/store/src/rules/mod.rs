//! What a change does to a session, whatever the engine: decided here, on values; written by the engine.
//!
//! An engine loads a [`Head`](head::Head), lets [jobs](jobs) decide on it, writes what they left in its
//! [`Pending`](head::Pending), and answers when that is durable. Nothing here touches a database, a clock or a thread.
//!
//! - [`head`]: a session as an engine holds it while it changes.
//! - [`jobs`]: one caller's change, which may be decided again on a fresher head.
//! - [`append`]: the brain's append, and the way in which every event gets into a log.
//! - [`changes`]: what clients do: make, send, update, archive, delete.
//! - [`leases`]: claimed, renewed, released.
//! - [`catch_up`]: what a follower is shown next.

pub(crate) mod append;
pub(crate) mod catch_up;
pub(crate) mod changes;
pub(crate) mod head;
pub(crate) mod jobs;
pub(crate) mod leases;
