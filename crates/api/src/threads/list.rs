//! `GET /v1/sessions/{session_id}/threads`: the primary thread.

use axum::Json;
use axum::extract::State;
use protocol::id::SessionId;
use protocol::page::Page;
use protocol::session::Thread;
use store::{Order, TimeBounds};

use crate::Door;
use crate::auth::Caller;
use crate::cursor::RowCursor;
use crate::error::Error;
use crate::extract::Ids;
use crate::query::Query;
use crate::sessions;
use store::Seen;

const LIMIT: usize = 1_000;
const LIMIT_MAX: usize = 1_000;

pub(crate) async fn list(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    mut query: Query,
) -> Result<Json<Page<Thread>>, Error> {
    // One thread fits any page, so that no cursor of this list was ever given.
    query.limit(LIMIT, LIMIT_MAX)?;
    RowCursor::take(&mut query, "threads", Order::Asc, &TimeBounds::default())?;
    let statuses = sessions::statuses(&mut query)?;
    query.finish()?;
    let Seen { record, state, .. } = sessions::find(&door, &caller, &id).await?;
    let thread = record.show_thread(&state, door.app.store.now());
    let is_asked_for = statuses.is_empty() || statuses.contains(&thread.status);
    let data = if is_asked_for { vec![thread] } else { Vec::new() };
    Ok(Json(Page { data, next_page: None }))
}
