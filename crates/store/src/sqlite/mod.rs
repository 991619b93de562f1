//! The store on SQLite: one writer, a few readers, one file. All SQL of the project's embedded store is here.
//!
//! - [`engine`]: the engine, from these parts.
//! - [`connect`]: connections, their settings, the format of the database.
//! - [`writer`]: the one thread that writes. Takes all that waits, one transaction, one sync, then answers.
//! - [`heads`]: sessions as the writer knows them, kept in memory; what they come to, written once per flush.
//! - [`claims`]: leases, and the queue of sessions that want a brain.
//! - [`slices`], [`listing`], [`catch_up`]: what readers read of sessions.
//! - [`agents`], [`environments`], [`keys`], [`vaults`], [`credentials`], [`vault_keys`]: resources.
//! - [`kinds`]: kinds of event by number.
//! - [`readers`]: read connections on blocking threads.
//! - [`checkpoint`]: moves the write-ahead log into the database, off the writer's thread.
//! - [`fault`]: what SQLite says, as the store's errors.

mod agents;
mod catch_up;
mod checkpoint;
mod claims;
mod connect;
mod credentials;
mod engine;
mod environments;
mod fault;
mod heads;
pub(crate) mod keys;
mod kinds;
mod listing;
mod readers;
mod slices;
pub(crate) mod vault_keys;
mod vaults;
mod writer;

pub(crate) use connect::Database;
pub(crate) use engine::Sqlite;
