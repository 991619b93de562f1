//! `GET /v1/sessions/{session_id}/threads/{thread_id}/events`: oldest first, without filters.

use axum::extract::State;
use axum::response::Response;
use protocol::id::{SessionId, ThreadId};
use store::{Order, TimeBounds};

use super::find;
use crate::Door;
use crate::auth::Caller;
use crate::cursor::EventCursor;
use crate::error::Error;
use crate::events::{Asked, LIMIT, LIMIT_MAX, read};
use crate::extract::Ids;
use crate::page::page;
use crate::query::Query;

pub(crate) async fn events(
    State(door): State<Door>,
    caller: Caller,
    Ids((id, thread)): Ids<(SessionId, ThreadId)>,
    mut query: Query,
) -> Result<Response, Error> {
    let times = TimeBounds::default();
    let asked = Asked {
        order: Order::Asc,
        limit: query.limit(LIMIT, LIMIT_MAX)?,
        kinds: Vec::new(),
        times,
        cursor: EventCursor::take(&mut query, id.as_str(), Order::Asc, &times)?,
    };
    query.finish()?;
    find(&door, &caller, &id, &thread).await?;
    let (rows, next) = read(&door.app.store, &id, asked).await?;
    Ok(page(rows.iter().map(|stored| &stored.json), next.map(|cursor| cursor.encode())))
}
