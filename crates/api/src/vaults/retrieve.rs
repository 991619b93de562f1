//! `GET /v1/vaults/{vault_id}`.

use axum::Json;
use axum::extract::State;
use protocol::id::VaultId;
use protocol::vault::Vault;

use super::VAULT;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoQuery};

pub(crate) async fn retrieve(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<VaultId>,
    _: NoQuery,
) -> Result<Json<Vault>, Error> {
    let vault = door.app.store.get_vault(&caller.workspace, &id).await?;
    vault.map(Json).ok_or_else(|| Error::missing(VAULT, &id))
}
