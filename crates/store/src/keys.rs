//! API keys and the workspaces they belong to.
//!
//! A key itself is never stored, only its SHA-256: whoever reads the database cannot use what is in it.

use std::path::Path;

use protocol::id::{ApiKeyId, WorkspaceId};
use protocol::time::Timestamp;

use crate::Store;
use crate::clock::Ids;
use crate::error::{ChangeError, Error, OpenError};

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
        Err(Error::Closed)
    }

    /// Keeps a new key. [`ChangeError::Exists`] if the same key is kept already.
    pub async fn create_key(&self, workspace: &WorkspaceId, name: &str, hash: KeyHash) -> Result<ApiKey, ChangeError> {
        let _ = (workspace, name, hash);
        Err(ChangeError::NotFound)
    }

    /// A workspace's keys, oldest first, revoked ones included.
    pub async fn list_keys(&self, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Error> {
        let _ = workspace;
        Err(Error::Closed)
    }

    /// Revokes a key for good. Doing it again changes nothing.
    pub async fn revoke_key(&self, workspace: &WorkspaceId, id: &ApiKeyId) -> Result<ApiKey, ChangeError> {
        let _ = (workspace, id);
        Err(ChangeError::NotFound)
    }

    /// The key with that hash, unless it is revoked or was never made.
    pub async fn find_key(&self, hash: KeyHash) -> Result<Option<ApiKey>, Error> {
        let _ = hash;
        Err(Error::Closed)
    }
}

/// The keys of a data directory, without its lock: works while a server runs on it.
pub struct Keys {}

impl Keys {
    /// Opens the directory's database, or makes it.
    pub fn open(data_dir: &Path, ids: Ids) -> Result<Self, OpenError> {
        let _ = (data_dir, ids);
        Err(OpenError::Store(Error::Closed))
    }

    /// See [`Store::ensure_workspace`].
    pub fn ensure_workspace(&mut self) -> Result<WorkspaceId, Error> {
        Err(Error::Closed)
    }

    /// See [`Store::create_key`].
    pub fn create_key(&mut self, workspace: &WorkspaceId, name: &str, hash: KeyHash) -> Result<ApiKey, ChangeError> {
        let _ = (workspace, name, hash);
        Err(ChangeError::NotFound)
    }

    /// See [`Store::list_keys`].
    pub fn list_keys(&mut self, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Error> {
        let _ = workspace;
        Err(Error::Closed)
    }

    /// See [`Store::revoke_key`].
    pub fn revoke_key(&mut self, workspace: &WorkspaceId, id: &ApiKeyId) -> Result<ApiKey, ChangeError> {
        let _ = (workspace, id);
        Err(ChangeError::NotFound)
    }
}
