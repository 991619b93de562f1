//! `DELETE /v1/sessions/{session_id}`: the session and its history. Its sandbox goes with it, by the reaper.

use axum::Json;
use axum::extract::State;
use protocol::id::SessionId;
use serde_json::{Value, json};

use super::SESSION;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn delete(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Value>, Error> {
    let deleted = door.app.store.delete_session(&caller.workspace, &id).await;
    deleted.map_err(|error| Error::change(error, SESSION, &id))?;
    Ok(Json(json!({"id": id, "type": "session_deleted"})))
}
