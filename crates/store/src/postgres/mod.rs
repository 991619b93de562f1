//! The store on PostgreSQL, for many processes. All SQL of it is here.
//!
//! What keeps it right: every decision is made on a head of one version and written only if the head still has it, in
//! one statement that commits by itself. No transaction is ever left open between two round trips, so a process that
//! freezes holds no lock. Statements are not prepared by name, so a pooler in transaction mode will do for everything
//! but the one connection that listens.
//!
//! - [`engine`]: the engine, from these parts.
//! - [`connect`]: the address, TLS, the pool, bounded waits; [`migrate`]: the format of the database.
//! - [`lanes`]: the tasks that write. Take all that waits, decide, one statement, then answer.
//! - [`heads`]: sessions read for them; [`write`]: what they write.
//! - [`claims`]: leases, fair between workspaces, by the database's clock.
//! - [`listen`]: notifications: who is told of what others wrote; and the poll below them.
//! - [`previews`]: pieces of answers between processes.
//! - [`sessions`], [`slices`], [`resources`], [`vaults`], [`credentials`], [`vault_keys`]: what is read and kept besides.
//! - [`fault`]: what PostgreSQL says, as the store's errors.

mod claims;
mod connect;
mod credentials;
mod engine;
mod fault;
mod heads;
mod lanes;
mod listen;
mod migrate;
mod previews;
mod resources;
mod sessions;
mod slices;
mod vault_keys;
mod vaults;
mod write;

pub(crate) use engine::Postgres;
pub(crate) use migrate::{check_format_at, migrate_at};
