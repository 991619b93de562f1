//! `/v1/models`: what the server's configuration names.

mod list;
mod retrieve;

pub(crate) use list::list;
pub(crate) use retrieve::retrieve;
