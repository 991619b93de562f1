//! `POST /v1/environments/{environment_id}`: a partial update. Sessions keep the configuration they were made with.

use axum::Json;
use axum::extract::State;
use protocol::environment::Environment;
use protocol::environment_request::EnvironmentUpdate;
use protocol::id::EnvironmentId;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, Ids, NoQuery};

pub(crate) async fn update(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<EnvironmentId>,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Environment>, Error> {
    let store = &door.app.store;
    let update = EnvironmentUpdate::parse(body)?;
    let now = store.now();
    let change = Box::new(move |current: &Environment| Ok(update.apply(current, now)?));
    let environment = store.change_environment(&caller.workspace, &id, change).await;
    environment.map(Json).map_err(|error| Error::environment_change(error, &id))
}
