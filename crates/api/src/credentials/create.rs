//! `POST /v1/vaults/{vault_id}/credentials`: nothing is asked of the server that it is for.

use axum::Json;
use axum::extract::State;
use protocol::credential::Credential;
use protocol::credential_request::CredentialCreate;
use protocol::id::VaultId;
use store::ChangeError;

use super::{is_taken, taken};
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, Ids, NoQuery};
use crate::vaults::VAULT;

pub(crate) async fn create(
    State(door): State<Door>,
    caller: Caller,
    Ids(vault): Ids<VaultId>,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Credential>, Error> {
    let create = CredentialCreate::parse(body, door.app.store.now())?;
    let created = door.app.credentials.create(&caller.workspace, &vault, create).await;
    created.map(Json).map_err(|error| match error {
        error if is_taken(&error) => taken(),
        vault::Error::Change(ChangeError::NotFound) => Error::missing(VAULT, &vault),
        vault::Error::Change(error) => Error::change(error, VAULT, &vault),
        other => other.into(),
    })
}
