//! `/v1/vaults/{vault_id}/credentials`. Secrets come in here and never go out.

mod archive;
mod create;
mod delete;
mod list;
mod retrieve;
mod update;
mod validate;

pub(crate) use archive::archive;
pub(crate) use create::create;
pub(crate) use delete::delete;
pub(crate) use list::list;
pub(crate) use retrieve::retrieve;
pub(crate) use update::update;
pub(crate) use validate::validate;

use protocol::id::CredentialId;
use store::ChangeError;

use crate::error::Error;

/// What errors call it.
pub(crate) const CREDENTIAL: &str = "Credential";

/// What the vault says to a change of the credential with this id.
fn changed(error: vault::Error, id: &CredentialId) -> Error {
    match error {
        vault::Error::Change(error) => Error::change(error, CREDENTIAL, id),
        other => other.into(),
    }
}

/// Another credential of the vault is for the same server or variable.
fn taken() -> Error {
    let message =
        "auth: another credential of this vault that is not archived is for the same `mcp_server_url` or \
                   `secret_name`"
            .to_owned();
    Error::Conflict { message, code: None }
}

/// Whether the vault refused because of that.
fn is_taken(error: &vault::Error) -> bool {
    matches!(error, vault::Error::Change(ChangeError::Exists))
}
