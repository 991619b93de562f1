//! `DELETE /v1/environments/{environment_id}`: only while no session was made in it.

use axum::Json;
use axum::extract::State;
use protocol::id::EnvironmentId;
use serde_json::{Value, json};

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn delete(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<EnvironmentId>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Value>, Error> {
    let deleted = door.app.store.delete_environment(&caller.workspace, &id).await;
    deleted.map_err(|error| Error::environment_change(error, &id))?;
    Ok(Json(json!({"id": id, "type": "environment_deleted"})))
}
