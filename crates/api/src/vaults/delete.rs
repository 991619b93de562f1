//! `DELETE /v1/vaults/{vault_id}`: its credentials go with it. Sessions that name it go on without them.

use axum::Json;
use axum::extract::State;
use protocol::id::VaultId;
use serde_json::{Value, json};

use super::VAULT;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn delete(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<VaultId>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Value>, Error> {
    let deleted = door.app.store.delete_vault(&caller.workspace, &id).await;
    deleted.map_err(|error| Error::change(error, VAULT, &id))?;
    Ok(Json(json!({"id": id, "type": "vault_deleted"})))
}
