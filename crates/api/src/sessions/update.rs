//! `POST /v1/sessions/{session_id}`: title, metadata, and while it is idle the agent's tools and MCP servers.

use axum::Json;
use axum::extract::State;
use protocol::id::SessionId;
use protocol::session::Session;
use protocol::session_request::SessionUpdate;
use session::record::Update;

use super::{SESSION, shown};
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, Ids, NoQuery};

pub(crate) async fn update(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Session>, Error> {
    let SessionUpdate { agent, title, metadata } = SessionUpdate::parse(body)?;
    let store = &door.app.store;
    let updated = store.update_session(&caller.workspace, &id, Update { agent, title, metadata }).await;
    let updated = updated.map_err(|error| Error::change(error, SESSION, &id))?;
    Ok(Json(shown(&updated, store)))
}
