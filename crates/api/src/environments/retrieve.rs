//! `GET /v1/environments/{environment_id}`.

use axum::Json;
use axum::extract::State;
use protocol::environment::Environment;
use protocol::id::EnvironmentId;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoQuery};

pub(crate) async fn retrieve(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<EnvironmentId>,
    _: NoQuery,
) -> Result<Json<Environment>, Error> {
    let environment = door.app.store.get_environment(&caller.workspace, &id).await?;
    environment.map(Json).ok_or_else(|| Error::missing_environment(&id))
}
