//! `GET /v1/agents/{agent_id}/versions`: every version, newest first.

use axum::Json;
use axum::extract::State;
use protocol::agent::Agent;
use protocol::id::AgentId;
use protocol::page::Page;
use protocol::parse::Invalid;
use store::{Order, TimeBounds};

use super::{AGENT, LIMIT, LIMIT_MAX};
use crate::Door;
use crate::auth::Caller;
use crate::cursor::RowCursor;
use crate::error::Error;
use crate::extract::Ids;
use crate::page;
use crate::query::Query;

pub(crate) async fn versions(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<AgentId>,
    mut query: Query,
) -> Result<Json<Page<Agent>>, Error> {
    let list = format!("versions of {id}");
    let limit = query.limit(LIMIT, LIMIT_MAX)?;
    let cursor = RowCursor::take(&mut query, &list, Order::Desc, &TimeBounds::default())?;
    query.finish()?;
    let before = cursor.map(|cursor| cursor.id.parse()).transpose();
    let before = before
        .map_err(|_| Invalid::new("page", "must be a cursor that an earlier page of this list gave"))?;
    let versions = door.app.store.list_agent_versions(&caller.workspace, &id, before, limit + 1).await?;
    let versions = versions.ok_or_else(|| Error::missing(AGENT, &id))?;
    let place = |agent: &Agent| (agent.updated_at, agent.version.to_string());
    Ok(Json(page::forward(versions, limit, &list, Order::Desc, place)))
}
