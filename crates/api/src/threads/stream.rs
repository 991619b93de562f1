//! `GET /v1/sessions/{session_id}/threads/{thread_id}/stream`.

use axum::extract::State;
use axum::response::Response;
use protocol::id::{SessionId, ThreadId};

use super::THREAD;
use crate::auth::Caller;
use crate::error::Error;
use crate::events::{Opened, Wanted, open};
use crate::extract::Ids;
use crate::{Door, sse};

pub(crate) async fn stream(
    State(door): State<Door>,
    caller: Caller,
    Ids((id, thread)): Ids<(SessionId, ThreadId)>,
    wanted: Wanted,
) -> Result<Response, Error> {
    let Opened { follower, state } = open(&door, &caller, &id, &wanted).await?;
    if state.thread_id != thread {
        return Err(Error::missing(THREAD, &thread));
    }
    Ok(sse::respond(follower, wanted.previews, door.stop))
}
