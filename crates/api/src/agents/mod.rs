//! `/v1/agents`.

mod archive;
mod create;
mod list;
mod retrieve;
mod update;
mod versions;

pub(crate) use archive::archive;
pub(crate) use create::create;
pub(crate) use list::list;
pub(crate) use retrieve::retrieve;
pub(crate) use update::update;
pub(crate) use versions::versions;

/// What errors call it.
pub(crate) const AGENT: &str = "Agent";
/// The default size of a page.
const LIMIT: usize = 20;
/// The largest page.
const LIMIT_MAX: usize = 100;
