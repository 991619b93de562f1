//! `POST /v1/agents/{agent_id}`: a partial update that makes a new version, if it changes anything.

use axum::Json;
use axum::extract::State;
use protocol::agent::Agent;
use protocol::agent_request::AgentUpdate;
use protocol::id::AgentId;

use super::AGENT;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, Ids, NoQuery};

pub(crate) async fn update(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<AgentId>,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Agent>, Error> {
    let store = &door.app.store;
    let update = AgentUpdate::parse(body)?;
    let now = store.now();
    // Merged inside the store's transaction: the version that is compared is the one that is changed.
    let change = Box::new(move |current: &Agent| Ok(update.apply(current, now)?));
    let agent = store.change_agent(&caller.workspace, &id, change).await;
    agent.map(Json).map_err(|error| Error::change(error, AGENT, &id))
}
