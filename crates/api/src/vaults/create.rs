//! `POST /v1/vaults`.

use axum::Json;
use axum::extract::State;
use protocol::vault::Vault;
use protocol::vault_request::VaultCreate;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, NoQuery};

pub(crate) async fn create(
    State(door): State<Door>,
    caller: Caller,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Vault>, Error> {
    let store = &door.app.store;
    let vault = VaultCreate::parse(body)?.into_vault(store.ids().make(), store.now());
    Ok(Json(store.create_vault(&caller.workspace, vault).await?))
}
