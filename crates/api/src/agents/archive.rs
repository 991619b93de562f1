//! `POST /v1/agents/{agent_id}/archive`: for good. Running sessions keep their snapshot; new ones are refused.

use axum::Json;
use axum::extract::State;
use protocol::agent::Agent;
use protocol::id::AgentId;

use super::AGENT;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn archive(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<AgentId>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Agent>, Error> {
    let store = &door.app.store;
    let now = store.now();
    let change = Box::new(move |current: &Agent| {
        let archived = Agent { archived_at: Some(now), updated_at: now, ..current.clone() };
        Ok(current.archived_at.is_none().then_some(archived))
    });
    let agent = store.change_agent(&caller.workspace, &id, change).await;
    agent.map(Json).map_err(|error| Error::change(error, AGENT, &id))
}
