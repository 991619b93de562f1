//! `GET /v1/sessions/{session_id}/events`: the log by position, and what is still queued at its young end.

use axum::extract::State;
use axum::response::Response;
use protocol::event::LISTABLE_KINDS;
use protocol::id::SessionId;
use store::Order;

use super::history::{Asked, read};
use crate::Door;
use crate::auth::Caller;
use crate::cursor::EventCursor;
use crate::error::Error;
use crate::extract::Ids;
use crate::page::page;
use crate::query::Query;
use crate::sessions::find;

/// The default size of a page: the official runner reads whole histories and names this size.
pub(crate) const LIMIT: usize = 1_000;
/// The largest page.
pub(crate) const LIMIT_MAX: usize = 1_000;

pub(crate) async fn list(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    mut query: Query,
) -> Result<Response, Error> {
    let order = query.order(Order::Asc)?;
    let times = query.times("created_at")?;
    let asked = Asked {
        order,
        limit: query.limit(LIMIT, LIMIT_MAX)?,
        kinds: query.some_of("types", &LISTABLE_KINDS)?.into_iter().map(str::to_owned).collect(),
        times,
        cursor: EventCursor::take(&mut query, id.as_str(), order, &times)?,
    };
    query.finish()?;
    find(&door, &caller, &id).await?;
    let (rows, next) = read(&door.app.store, &id, asked).await?;
    Ok(page(rows.iter().map(|stored| &stored.json), next.map(|cursor| cursor.encode())))
}
