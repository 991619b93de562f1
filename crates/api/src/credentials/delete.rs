//! `DELETE /v1/vaults/{vault_id}/credentials/{credential_id}`.

use axum::Json;
use axum::extract::State;
use protocol::id::{CredentialId, VaultId};
use serde_json::{Value, json};

use super::CREDENTIAL;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn delete(
    State(door): State<Door>,
    caller: Caller,
    Ids((vault, id)): Ids<(VaultId, CredentialId)>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Value>, Error> {
    let deleted = door.app.store.delete_credential(&caller.workspace, &vault, &id).await;
    deleted.map_err(|error| Error::change(error, CREDENTIAL, &id))?;
    Ok(Json(json!({"id": id, "type": "vault_credential_deleted"})))
}
