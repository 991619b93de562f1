//! `POST /v1/sessions/{session_id}/resources`: only files can be added, and those are not built.

use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use protocol::id::SessionId;
use protocol::resource::Resource;
use protocol::resource_request::parse_addition;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, Ids, NoQuery};
use crate::sessions;

pub(crate) async fn add(
    State(door): State<Door>,
    caller: Caller,
    Ids(session): Ids<SessionId>,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Resource>, Error> {
    sessions::find(&door, &caller, &session).await?;
    let never: Infallible = parse_addition(body)?;
    match never {}
}
