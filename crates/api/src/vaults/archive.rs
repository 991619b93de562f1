//! `POST /v1/vaults/{vault_id}/archive`: for good. Its credentials are archived with it, and their secrets are gone.

use axum::Json;
use axum::extract::State;
use protocol::id::VaultId;
use protocol::vault::Vault;

use super::VAULT;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn archive(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<VaultId>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Vault>, Error> {
    let vault = door.app.store.archive_vault(&caller.workspace, &id).await;
    vault.map(Json).map_err(|error| Error::change(error, VAULT, &id))
}
