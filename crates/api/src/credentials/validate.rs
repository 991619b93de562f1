//! `POST /v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate`: tries the credential on its server. Every
//! verdict is a 200.

use axum::Json;
use axum::extract::State;
use protocol::credential_validation::CredentialValidation;
use protocol::id::{CredentialId, VaultId};

use super::changed;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn validate(
    State(door): State<Door>,
    caller: Caller,
    Ids((vault, id)): Ids<(VaultId, CredentialId)>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<CredentialValidation>, Error> {
    let validated = door.app.credentials.validate(&caller.workspace, &vault, &id).await;
    validated.map(Json).map_err(|error| changed(error, &id))
}
