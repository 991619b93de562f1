//! `/v1/sessions/{session_id}/events`.

mod history;
mod list;
mod send;
mod stream;

pub(crate) use history::{Asked, read};
pub(crate) use list::{LIMIT, LIMIT_MAX, list};
pub(crate) use send::send;
pub(crate) use stream::{Opened, Wanted, open, stream};
