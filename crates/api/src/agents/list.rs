//! `GET /v1/agents`: the latest version of each, newest agent first.

use axum::Json;
use axum::extract::State;
use protocol::agent::Agent;
use protocol::page::Page;
use store::{AgentQuery, Order};

use super::{LIMIT, LIMIT_MAX};
use crate::Door;
use crate::auth::Caller;
use crate::cursor::RowCursor;
use crate::error::Error;
use crate::page;
use crate::query::Query;

const LIST: &str = "agents";

pub(crate) async fn list(
    State(door): State<Door>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<Agent>>, Error> {
    let limit = query.limit(LIMIT, LIMIT_MAX)?;
    let created = query.times("created_at")?;
    let cursor = RowCursor::take(&mut query, LIST, Order::Desc, &created)?;
    let include_archived = query.flag("include_archived")?;
    query.finish()?;
    let query =
        AgentQuery { include_archived, created, after: cursor.as_ref().map(page::place), limit: limit + 1 };
    let agents = door.app.store.list_agents(&caller.workspace, query).await?;
    let place = |agent: &Agent| (agent.created_at, agent.id.to_string());
    Ok(Json(page::forward(agents, limit, LIST, Order::Desc, place)))
}
