//! `POST /v1/vaults/{vault_id}`: a partial update.

use axum::Json;
use axum::extract::State;
use protocol::id::VaultId;
use protocol::vault::Vault;
use protocol::vault_request::VaultUpdate;

use super::VAULT;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, Ids, NoQuery};

pub(crate) async fn update(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<VaultId>,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Vault>, Error> {
    let store = &door.app.store;
    let update = VaultUpdate::parse(body)?;
    let now = store.now();
    let change = Box::new(move |current: &Vault| Ok(update.apply(current, now)?));
    let vault = store.change_vault(&caller.workspace, &id, change).await;
    vault.map(Json).map_err(|error| Error::change(error, VAULT, &id))
}
