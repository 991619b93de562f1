//! `POST /v1/environments`.

use axum::Json;
use axum::extract::State;
use protocol::environment::Environment;
use protocol::environment_request::EnvironmentCreate;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, NoQuery};

pub(crate) async fn create(
    State(door): State<Door>,
    caller: Caller,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Environment>, Error> {
    let store = &door.app.store;
    let create = EnvironmentCreate::parse(body, &door.app.default_networking)?;
    let environment = create.into_environment(store.ids().make(), store.now());
    let id = environment.id.clone();
    let environment = store.create_environment(&caller.workspace, environment).await;
    environment.map(Json).map_err(|error| Error::environment_change(error, &id))
}
