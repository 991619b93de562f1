//! The store on SQLite: one writer, a few readers, one file. All SQL of the project's embedded store is here.
//!
//! - [`connect`]: connections, their settings, the format of the database.
//! - [`writer`]: the one thread that writes. Takes all that waits, one transaction, one sync, then answers.
//! - [`heads`]: sessions as the writer knows them, kept in memory; what they come to, written once per flush.
//! - [`appends`], [`changes`], [`claims`]: what the writer does to sessions.
//! - [`slices`], [`listing`], [`catch_up`]: what readers read of them.
//! - [`agents`], [`environments`], [`keys`]: resources.
//! - [`kinds`]: kinds of event by number.
//! - [`readers`]: read connections on blocking threads.
//! - [`checkpoint`]: moves the write-ahead log into the database, off the writer's thread.
//! - [`fault`]: what SQLite says, as the store's errors.

pub(crate) mod agents;
pub(crate) mod appends;
pub(crate) mod catch_up;
pub(crate) mod changes;
mod checkpoint;
pub(crate) mod claims;
pub(crate) mod connect;
pub(crate) mod environments;
pub(crate) mod fault;
pub(crate) mod heads;
pub(crate) mod keys;
pub(crate) mod kinds;
pub(crate) mod listing;
pub(crate) mod readers;
pub(crate) mod slices;
pub(crate) mod writer;
