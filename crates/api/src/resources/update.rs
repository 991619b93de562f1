//! `POST /v1/sessions/{session_id}/resources/{resource_id}`: another token, which is told to the repository's host from its
//! next request on.

use axum::Json;
use axum::extract::State;
use protocol::id::{ResourceId, SessionId};
use protocol::resource::Resource;
use protocol::resource_request::parse_rotation;

use super::{RESOURCE, find};
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, Ids, NoQuery};

pub(crate) async fn update(
    State(door): State<Door>,
    caller: Caller,
    Ids((session, id)): Ids<(SessionId, ResourceId)>,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Resource>, Error> {
    let token = parse_rotation(body)?;
    // Before anything is sealed: what is not there makes no key.
    find(&door, &caller, &session, &id).await?;
    let token = door.app.credentials.seal_token(&caller.workspace, &session, &id, &token).await?;
    let rotated = door.app.store.rotate_session_token(&caller.workspace, &session, token).await;
    let rotated = rotated.map_err(|error| Error::change(error, RESOURCE, &id))?;
    let found = rotated.record.resources.into_iter().find(|resource| *resource.id() == id);
    found.map(Json).ok_or_else(|| Error::missing(RESOURCE, &id))
}
