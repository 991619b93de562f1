//! Vaults, their credentials, and the keys that the secrets are sealed with.
//!
//! The store keeps sealed text and cannot open it: keys, sealing and the meaning of a field are in crate `vault`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use protocol::credential::{Credential, CredentialKey};
use protocol::id::{CredentialId, VaultId, WorkspaceId};
use protocol::parse::Invalid;
use protocol::time::Timestamp;
use protocol::vault::Vault;
use protocol::vault_request::archived_vault;
use session::Refusal;

use crate::Store;
use crate::error::{ChangeError, Error, OpenError};
use crate::lock::make_directory;
use crate::resources::Change;
use crate::sessions::Cursor;
use crate::sqlite::{Database, vault_keys};

/// Credentials of one vault that are not archived.
pub const CREDENTIALS_MAX: usize = 20;

/// Sealed secrets by the names of their fields. Empty once they are purged.
pub type Sealed = BTreeMap<String, String>;

/// A credential as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptCredential {
    /// As the wire shows it.
    pub credential: Credential,
    /// What the wire never shows.
    pub sealed: Sealed,
}

/// Which vaults to list, newest first.
#[derive(Clone, Debug)]
pub struct VaultQuery {
    /// Archived ones, too.
    pub include_archived: bool,
    /// Only rows after this one.
    pub after: Option<Cursor>,
    /// At most so many.
    pub limit: usize,
}

impl Default for VaultQuery {
    fn default() -> Self {
        Self { include_archived: false, after: None, limit: 20 }
    }
}

/// Which credentials of a vault to list, newest first.
pub type CredentialQuery = VaultQuery;

/// Which credentials somebody wants to spend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those with this key.
    Key(CredentialKey),
    /// Those of all environment variables.
    Variables,
}

impl Wanted {
    /// The same as a range of keys, both ends included.
    pub(crate) fn range(&self) -> (String, String) {
        match self {
            Self::Key(key) => (key.as_str().to_owned(), key.as_str().to_owned()),
            // Names are ASCII: letters, digits and `_`.
            Self::Variables => {
                (CredentialKey::VARIABLES.to_owned(), format!("{}~", CredentialKey::VARIABLES))
            }
        }
    }
}

/// The key of a workspace, wrapped by a master key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultKey {
    /// Whose key it is.
    pub workspace: WorkspaceId,
    /// Names the master key that wraps it, without telling anything of it.
    pub master: String,
    /// The wrapped key, as text.
    pub wrapped: String,
}

/// What became of a key that was to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// This is the workspace's key: the one that was given, or one that was there before.
    Kept(VaultKey),
    /// Keys are wrapped by this master key now. Nothing was written.
    Moved(String),
}

impl Store {
    /// Keeps a new vault.
    pub async fn create_vault(&self, workspace: &WorkspaceId, vault: Vault) -> Result<Vault, Error> {
        let is_new = self.0.engine.create_vault(workspace, &vault).await?;
        if is_new { Ok(vault) } else { Err(Error::Exists(vault.id.to_string())) }
    }

    /// A vault.
    pub async fn get_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<Option<Vault>, Error> {
        self.0.engine.vault(workspace, id).await
    }

    /// Vaults, newest first.
    pub async fn list_vaults(&self, workspace: &WorkspaceId, query: VaultQuery) -> Result<Vec<Vault>, Error> {
        self.0.engine.vaults(workspace, query).await
    }

    /// Changes a vault. It is not archived by this: see [`Store::archive_vault`].
    pub async fn change_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        change: Change<Vault>,
    ) -> Result<Vault, ChangeError> {
        self.0.engine.change_vault(workspace, id, change).await
    }

    /// Archives a vault and all its credentials, whose secrets are gone then. Doing it again changes nothing.
    pub async fn archive_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<Vault, ChangeError> {
        self.0.engine.archive_vault(workspace, id, self.now()).await?.ok_or(ChangeError::NotFound)
    }

    /// Deletes a vault and all its credentials.
    pub async fn delete_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<(), ChangeError> {
        let was_there = self.0.engine.delete_vault(workspace, id).await?;
        if was_there { Ok(()) } else { Err(ChangeError::NotFound) }
    }

    /// Keeps a new credential. [`ChangeError::NotFound`] if there is no such vault, [`ChangeError::Exists`] if another
    /// credential of the vault that is not archived has its key; refused if the vault is archived or full.
    pub async fn create_credential(
        &self,
        workspace: &WorkspaceId,
        kept: KeptCredential,
    ) -> Result<KeptCredential, ChangeError> {
        self.0.engine.create_credential(workspace, &kept).await?;
        Ok(kept)
    }

    /// A credential of that vault.
    pub async fn get_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Option<KeptCredential>, Error> {
        self.0.engine.credential(workspace, vault, id).await
    }

    /// A vault's credentials, newest first; `None` if there is no such vault.
    pub async fn list_credentials(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        query: CredentialQuery,
    ) -> Result<Option<Vec<Credential>>, Error> {
        self.0.engine.credentials(workspace, vault, query).await
    }

    /// Changes a credential, archiving it included. Its key must stay the same.
    pub async fn change_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
        change: Change<KeptCredential>,
    ) -> Result<KeptCredential, ChangeError> {
        self.0.engine.change_credential(workspace, vault, id, change).await
    }

    /// Deletes a credential.
    pub async fn delete_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<(), ChangeError> {
        let was_there = self.0.engine.delete_credential(workspace, vault, id).await?;
        if was_there { Ok(()) } else { Err(ChangeError::NotFound) }
    }

    /// The credentials of those vaults that can be spent, none of them archived: in the order of the vaults, then by key.
    pub async fn spendable(
        &self,
        workspace: &WorkspaceId,
        vaults: &[VaultId],
        wanted: Wanted,
    ) -> Result<Vec<KeptCredential>, Error> {
        if vaults.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = self.0.engine.spendable(workspace, vaults.to_vec(), wanted).await?;
        let rank = |vault: &VaultId| vaults.iter().position(|other| other == vault);
        found.sort_by_cached_key(|kept| {
            (rank(&kept.credential.vault_id), kept.credential.auth.key().as_str().to_owned())
        });
        Ok(found)
    }

    /// Takes the right to renew this credential's token for so long, unless somebody else has it. Whoever has it takes it
    /// again. Time is the store's.
    pub async fn claim_refresh(
        &self,
        id: &CredentialId,
        holder: &str,
        time: Duration,
    ) -> Result<bool, Error> {
        self.0.engine.claim_refresh(id, holder, time).await
    }

    /// Gives that right back.
    pub async fn release_refresh(&self, id: &CredentialId, holder: &str) -> Result<(), Error> {
        self.0.engine.release_refresh(id, holder).await
    }

    /// Which master key wraps the keys of workspaces; `None` before the first.
    pub async fn vault_master(&self) -> Result<Option<String>, Error> {
        self.0.engine.vault_master().await
    }

    /// The key of a workspace; `None` if nothing was ever sealed in it.
    pub async fn vault_key(&self, workspace: &WorkspaceId) -> Result<Option<VaultKey>, Error> {
        self.0.engine.vault_key(workspace).await
    }

    /// Keeps the first key of a workspace, if it is wrapped by the master key that wraps the others.
    pub async fn add_vault_key(&self, key: VaultKey) -> Result<Added, Error> {
        self.0.engine.add_vault_key(&key, self.now()).await
    }

    /// The keys of all workspaces.
    pub async fn vault_keys(&self) -> Result<Vec<VaultKey>, Error> {
        self.0.engine.vault_keys().await
    }

    /// From now on this master key wraps what is new. What is there is wrapped anew with [`Store::rewrap_vault_key`].
    pub async fn set_vault_master(&self, master: &str) -> Result<(), Error> {
        self.0.engine.set_vault_master(master).await
    }

    /// Puts a key that is wrapped anew in the place of what it was; false if that is no longer there.
    pub async fn rewrap_vault_key(&self, before: &VaultKey, after: &VaultKey) -> Result<bool, Error> {
        self.0.engine.rewrap_vault_key(before, after).await
    }
}

/// The sealing keys of a data directory, without its lock: works while a server runs on it. Blocks; for the command line.
pub struct VaultKeys(Database);

impl VaultKeys {
    /// Opens the directory's database, or makes it.
    pub fn open(data_dir: &Path) -> Result<Self, OpenError> {
        make_directory(data_dir)?;
        Ok(Self(Database::open(data_dir)?))
    }

    /// See [`Store::vault_master`].
    pub fn vault_master(&mut self) -> Result<Option<String>, Error> {
        self.0.write(vault_keys::master)
    }

    /// See [`Store::vault_keys`].
    pub fn vault_keys(&mut self) -> Result<Vec<VaultKey>, Error> {
        self.0.write(vault_keys::all)
    }

    /// See [`Store::set_vault_master`].
    pub fn set_vault_master(&mut self, master: &str) -> Result<(), Error> {
        self.0.write(|conn| vault_keys::set_master(conn, master))
    }

    /// See [`Store::rewrap_vault_key`].
    pub fn rewrap_vault_key(&mut self, before: &VaultKey, after: &VaultKey) -> Result<bool, Error> {
        self.0.write(|conn| vault_keys::rewrap(conn, before, after))
    }
}

/// Whether a credential may join a vault that is so, has so many that are not archived, and has one of its key or not.
pub(crate) fn may_join(
    vault_archived: Option<bool>,
    active: usize,
    is_key_taken: bool,
) -> Result<(), ChangeError> {
    match vault_archived {
        None => return Err(ChangeError::NotFound),
        Some(true) => return Err(ChangeError::Refused(Refusal::Invalid(archived_vault()))),
        Some(false) => {}
    }
    if is_key_taken {
        return Err(ChangeError::Exists);
    }
    if active >= CREDENTIALS_MAX {
        let rule = format!("has {CREDENTIALS_MAX} credentials already, which is the most; archive one first");
        return Err(ChangeError::Refused(Refusal::Invalid(Invalid::new("vault_id", rule))));
    }
    Ok(())
}

/// A row's own times are newer than those in its body: archiving a vault changes nothing else of its credentials.
pub(crate) fn dated(
    mut kept: KeptCredential,
    updated_at: Timestamp,
    archived_at: Option<Timestamp>,
) -> KeptCredential {
    kept.credential.updated_at = updated_at;
    kept.credential.archived_at = archived_at;
    kept
}
