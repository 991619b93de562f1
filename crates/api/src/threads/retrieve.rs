//! `GET /v1/sessions/{session_id}/threads/{thread_id}`.

use axum::Json;
use axum::extract::State;
use protocol::id::{SessionId, ThreadId};
use protocol::session::Thread;

use super::find;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoQuery};

pub(crate) async fn retrieve(
    State(door): State<Door>,
    caller: Caller,
    Ids((id, thread)): Ids<(SessionId, ThreadId)>,
    _: NoQuery,
) -> Result<Json<Thread>, Error> {
    let (record, state) = find(&door, &caller, &id, &thread).await?;
    Ok(Json(record.show_thread(&state, door.app.store.now())))
}
