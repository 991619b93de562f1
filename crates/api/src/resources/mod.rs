//! `/v1/sessions/{session_id}/resources`. Tokens come in here and never go out.

mod add;
mod delete;
mod list;
mod retrieve;
mod update;

pub(crate) use add::add;
pub(crate) use delete::delete;
pub(crate) use list::list;
pub(crate) use retrieve::retrieve;
pub(crate) use update::update;

use protocol::id::{ResourceId, SessionId};
use protocol::resource::Resource;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::sessions;

/// What errors call it.
const RESOURCE: &str = "Resource";

/// The resource of that id of the caller's session.
async fn find(door: &Door, caller: &Caller, session: &SessionId, id: &ResourceId) -> Result<Resource, Error> {
    let resources = sessions::find(door, caller, session).await?.record.resources;
    resources.into_iter().find(|resource| resource.id() == id).ok_or_else(|| Error::missing(RESOURCE, id))
}
