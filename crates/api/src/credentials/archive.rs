//! `POST /v1/vaults/{vault_id}/credentials/{credential_id}/archive`: for good. The secret is gone, the row stays, and
//! another credential may be for the same server or variable.

use axum::Json;
use axum::extract::State;
use protocol::credential::Credential;
use protocol::id::{CredentialId, VaultId};

use super::changed;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn archive(
    State(door): State<Door>,
    caller: Caller,
    Ids((vault, id)): Ids<(VaultId, CredentialId)>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Credential>, Error> {
    let archived = door.app.credentials.archive(&caller.workspace, &vault, &id).await;
    archived.map(Json).map_err(|error| changed(error, &id))
}
