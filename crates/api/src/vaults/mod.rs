//! `/v1/vaults`.

mod archive;
mod create;
mod delete;
mod list;
mod retrieve;
mod update;

pub(crate) use archive::archive;
pub(crate) use create::create;
pub(crate) use delete::delete;
pub(crate) use list::list;
pub(crate) use retrieve::retrieve;
pub(crate) use update::update;

/// What errors call it.
pub(crate) const VAULT: &str = "Vault";
