//! `GET /v1/vaults/{vault_id}/credentials/{credential_id}`.

use axum::Json;
use axum::extract::State;
use protocol::credential::Credential;
use protocol::id::{CredentialId, VaultId};

use super::CREDENTIAL;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoQuery};

pub(crate) async fn retrieve(
    State(door): State<Door>,
    caller: Caller,
    Ids((vault, id)): Ids<(VaultId, CredentialId)>,
    _: NoQuery,
) -> Result<Json<Credential>, Error> {
    let kept = door.app.store.get_credential(&caller.workspace, &vault, &id).await?;
    kept.map(|kept| Json(kept.credential)).ok_or_else(|| Error::missing(CREDENTIAL, &id))
}
