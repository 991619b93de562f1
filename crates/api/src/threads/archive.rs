//! `POST /v1/sessions/{session_id}/threads/{thread_id}/archive`: the primary thread ends only with its session.

use axum::Json;
use axum::extract::State;
use protocol::id::{SessionId, ThreadId};
use protocol::parse::Invalid;
use protocol::session::Thread;

use super::find;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn archive(
    State(door): State<Door>,
    caller: Caller,
    Ids((id, thread)): Ids<(SessionId, ThreadId)>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Thread>, Error> {
    find(&door, &caller, &id, &thread).await?;
    let rule = "is the session's primary thread, which cannot be archived by itself; archive the session";
    Err(Invalid::new("thread_id", rule).into())
}
