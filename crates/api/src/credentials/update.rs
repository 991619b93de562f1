//! `POST /v1/vaults/{vault_id}/credentials/{credential_id}`: a partial update. Running sessions spend the new secret with
//! their next request.

use axum::Json;
use axum::extract::State;
use protocol::credential::Credential;
use protocol::credential_request::CredentialUpdate;
use protocol::id::{CredentialId, VaultId};

use super::changed;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, Ids, NoQuery};

pub(crate) async fn update(
    State(door): State<Door>,
    caller: Caller,
    Ids((vault, id)): Ids<(VaultId, CredentialId)>,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Credential>, Error> {
    let update = CredentialUpdate::parse(body, door.app.store.now())?;
    let updated = door.app.credentials.update(&caller.workspace, &vault, &id, update).await;
    updated.map(Json).map_err(|error| changed(error, &id))
}
