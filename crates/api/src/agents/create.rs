//! `POST /v1/agents`.

use axum::Json;
use axum::extract::State;
use protocol::agent::Agent;
use protocol::agent_request::AgentCreate;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, NoQuery};

pub(crate) async fn create(
    State(door): State<Door>,
    caller: Caller,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Agent>, Error> {
    let store = &door.app.store;
    let agent = AgentCreate::parse(body)?.into_agent(store.ids().make(), store.now());
    Ok(Json(store.create_agent(&caller.workspace, agent).await?))
}
