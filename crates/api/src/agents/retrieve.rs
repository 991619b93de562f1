//! `GET /v1/agents/{agent_id}`.

use axum::Json;
use axum::extract::State;
use protocol::agent::Agent;
use protocol::id::AgentId;

use super::AGENT;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::Ids;
use crate::query::Query;

pub(crate) async fn retrieve(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<AgentId>,
    mut query: Query,
) -> Result<Json<Agent>, Error> {
    let version = query.integer("version", 1..=i64::MAX)?;
    query.finish()?;
    let agent = door.app.store.get_agent(&caller.workspace, &id, version).await?;
    agent.map(Json).ok_or_else(|| Error::missing_agent(&id, version))
}

impl Error {
    /// No such agent, or it has no such version.
    pub(crate) fn missing_agent(id: &AgentId, version: Option<i64>) -> Self {
        match version {
            None => Self::missing(AGENT, id),
            Some(version) => Self::missing(AGENT, format!("{id}, version {version}")),
        }
    }
}
