//! API keys and the workspaces they belong to.
//!
//! A key itself is never stored, only its SHA-256: whoever reads the database cannot use what is in it.

use std::path::Path;

use protocol::id::{ApiKeyId, WorkspaceId};
use protocol::time::Timestamp;

use crate::clock::Ids;
use crate::error::{ChangeError, Error, OpenError};
use crate::lock::make_directory;
use crate::sqlite::{Database, keys};
use crate::{Options, Store};

/// The SHA-256 of a key.
pub type KeyHash = [u8; 32];

/// An API key, as far as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id. Not the key.
    pub id: ApiKeyId,
    /// The workspace whose things it can see.
    pub workspace: WorkspaceId,
    /// What its owner calls it.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

/// The SHA-256 of a key.
pub fn hash_key(key: &str) -> KeyHash {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    digest.as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

impl Store {
    /// The first workspace; made if there is none yet.
    pub async fn ensure_workspace(&self) -> Result<WorkspaceId, Error> {
        self.0.engine.ensure_workspace(self.ids().make(), self.now()).await
    }

    /// Makes another workspace.
    pub async fn create_workspace(&self) -> Result<WorkspaceId, Error> {
        let made = self.ids().make();
        self.0.engine.create_workspace(&made, self.now()).await?;
        Ok(made)
    }

    /// All workspaces, oldest first.
    pub async fn workspaces(&self) -> Result<Vec<WorkspaceId>, Error> {
        self.0.engine.workspaces().await
    }

    /// Keeps a new key. [`ChangeError::Exists`] if the same key is kept already.
    pub async fn create_key(
        &self,
        workspace: &WorkspaceId,
        name: &str,
        hash: KeyHash,
    ) -> Result<ApiKey, ChangeError> {
        let key = ApiKey::new(self.ids(), workspace, name, self.now());
        let is_new = self.0.engine.create_key(&key, hash).await?;
        if is_new { Ok(key) } else { Err(ChangeError::Exists) }
    }

    /// A workspace's keys, oldest first, revoked ones included.
    pub async fn list_keys(&self, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Error> {
        self.0.engine.keys(workspace).await
    }

    /// Revokes a key for good. Doing it again changes nothing.
    pub async fn revoke_key(&self, workspace: &WorkspaceId, id: &ApiKeyId) -> Result<ApiKey, ChangeError> {
        self.0.engine.revoke_key(workspace, id, self.now()).await?.ok_or(ChangeError::NotFound)
    }

    /// The key with that hash, unless it is revoked or was never made.
    pub async fn find_key(&self, hash: KeyHash) -> Result<Option<ApiKey>, Error> {
        self.0.engine.find_key(hash).await
    }
}

impl ApiKey {
    fn new(ids: &Ids, workspace: &WorkspaceId, name: &str, now: Timestamp) -> Self {
        Self {
            id: ids.make(),
            workspace: workspace.clone(),
            name: name.to_owned(),
            created_at: now,
            revoked_at: None,
        }
    }
}

/// The keys of a data directory, without its lock: works while a server runs on it, which sees the changes at once.
/// Blocks; for the command line.
pub struct Keys {
    database: Database,
    options: Options,
}

impl Keys {
    /// Opens the directory's database, or makes it.
    pub fn open(data_dir: &Path, options: Options) -> Result<Self, OpenError> {
        make_directory(data_dir)?;
        let database = Database::open(data_dir)?;
        Ok(Self { database, options })
    }

    /// See [`Store::ensure_workspace`].
    pub fn ensure_workspace(&mut self) -> Result<WorkspaceId, Error> {
        let now = self.options.clock.now();
        let made = self.options.ids.make();
        self.database.write(|conn| keys::ensure_workspace(conn, made, now))
    }

    /// Makes another workspace.
    pub fn create_workspace(&mut self) -> Result<WorkspaceId, Error> {
        let now = self.options.clock.now();
        let made = self.options.ids.make();
        self.database.write(|conn| keys::create_workspace(conn, &made, now))?;
        Ok(made)
    }

    /// All workspaces, oldest first.
    pub fn workspaces(&mut self) -> Result<Vec<WorkspaceId>, Error> {
        self.database.write(keys::workspaces)
    }

    /// See [`Store::create_key`].
    pub fn create_key(
        &mut self,
        workspace: &WorkspaceId,
        name: &str,
        hash: KeyHash,
    ) -> Result<ApiKey, ChangeError> {
        let key = ApiKey::new(&self.options.ids, workspace, name, self.options.clock.now());
        let is_new = self.database.write(|conn| keys::create(conn, &key, &hash))?;
        if is_new { Ok(key) } else { Err(ChangeError::Exists) }
    }

    /// See [`Store::list_keys`].
    pub fn list_keys(&mut self, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Error> {
        self.database.write(|conn| keys::list(conn, workspace))
    }

    /// See [`Store::revoke_key`].
    pub fn revoke_key(&mut self, workspace: &WorkspaceId, id: &ApiKeyId) -> Result<ApiKey, ChangeError> {
        let now = self.options.clock.now();
        self.database.write(|conn| keys::revoke(conn, workspace, id, now))?.ok_or(ChangeError::NotFound)
    }
}
