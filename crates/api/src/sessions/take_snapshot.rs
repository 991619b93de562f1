//! `POST /v1/sessions/{session_id}/snapshots`: the workspace is to be saved now, while its sandbox lives. An extension.
//!
//! The wish is recorded, and whoever has the sandbox sees to it: 202, and the list says what became of it. 200 with the
//! snapshot where what is saved is all there is.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use protocol::id::SessionId;
use serde_json::Value;

use super::SESSION;
use super::snapshots::{saved, unsaved};
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn take_snapshot(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    _: NoQuery,
    _: NoBody,
) -> Result<(StatusCode, Json<Value>), Error> {
    let seen = door.app.store.want_snapshot(&caller.workspace, &id).await;
    let state = seen.map_err(|error| Error::change(error, SESSION, &id))?.state;
    match (&state.wish, &state.snapshot) {
        (Some(wish), _) if state.wants_snapshot() => Ok((StatusCode::ACCEPTED, Json(unsaved(wish)))),
        (_, Some(snapshot)) => Ok((StatusCode::OK, Json(saved(snapshot)))),
        (_, None) => unreachable!("a session without a workspace is refused"),
    }
}
