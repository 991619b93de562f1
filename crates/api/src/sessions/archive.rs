//! `POST /v1/sessions/{session_id}/archive`: ends it for good; its history stays readable.

use axum::Json;
use axum::extract::State;
use protocol::id::SessionId;
use protocol::session::Session;

use super::{SESSION, shown};
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn archive(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Session>, Error> {
    let store = &door.app.store;
    let archived = store.archive_session(&caller.workspace, &id).await;
    let archived = archived.map_err(|error| Error::change(error, SESSION, &id))?;
    Ok(Json(shown(&archived, store)))
}
