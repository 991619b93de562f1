//! `GET /v1/sessions/{session_id}/resources`: in the order in which they were attached; all of them, unless a limit says
//! otherwise.

use axum::Json;
use axum::extract::State;
use protocol::id::SessionId;
use protocol::page::Page;
use protocol::resource::Resource;
use protocol::time::Timestamp;
use store::{Order, TimeBounds};

use crate::Door;
use crate::auth::Caller;
use crate::cursor::RowCursor;
use crate::error::Error;
use crate::extract::Ids;
use crate::query::Query;
use crate::{page, sessions};

const LIMIT_MAX: usize = 1000;

pub(crate) async fn list(
    State(door): State<Door>,
    caller: Caller,
    Ids(session): Ids<SessionId>,
    mut query: Query,
) -> Result<Json<Page<Resource>>, Error> {
    let list = format!("resources {session}");
    let limit = query.limit(LIMIT_MAX, LIMIT_MAX)?;
    let cursor = RowCursor::take(&mut query, &list, Order::Asc, &TimeBounds::default())?;
    query.finish()?;
    let mut resources = sessions::find(&door, &caller, &session).await?.record.resources;
    if let Some(cursor) = cursor.as_ref().map(page::place) {
        resources.retain(|resource| place(resource) > (cursor.created_at, cursor.id.clone()));
    }
    resources.truncate(limit + 1);
    Ok(Json(page::forward(resources, limit, &list, Order::Asc, place)))
}

/// Ids of one session sort as they were made.
fn place(resource: &Resource) -> (Timestamp, String) {
    match resource {
        Resource::GithubRepository(repository) => (repository.created_at, repository.id.to_string()),
    }
}
