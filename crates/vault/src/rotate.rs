//! Another master key, while everything goes on.
//!
//! ```text
//!   ring: old ──▶ new, old ──▶ the database names new ──▶ each workspace's key is wrapped by new ──▶ ring: new
//! ```
//!
//! Whatever moment it is killed at, what the ring holds opens everything that is stored, and another run goes on from there.
//! Servers that have unwrapped a workspace's key go on with it; who meets a key that is wrapped by a master key it does not
//! know reads the ring anew. Nothing can be wrapped by the old key once the database names the new one.

use std::path::Path;

use store::{Store, VaultKey, VaultKeys};

use crate::error::{Error, KeyError};
use crate::keys::{unwrap, wrap};
use crate::master::{self, Keyring, MasterKey, Source};

/// How often all keys are looked through. The second time there is nothing left to do.
const ROUNDS_MAX: usize = 8;

/// Where the keys of workspaces are.
pub enum Book {
    /// In a data directory, beside its server, if one runs.
    Directory(Box<VaultKeys>),
    /// In a store.
    Store(Store),
}

/// What a rotation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The name of the master key that wraps everything now.
    pub master: String,
    /// How many workspaces' keys were wrapped anew.
    pub rewrapped: usize,
    /// Whether the ring still has to be shortened by whoever keeps it: to its first key.
    pub leaves_old_keys: bool,
}

/// Wraps every workspace's key by another master key. A key file gets the new one by this; any other source must have it
/// already, before the old ones.
pub async fn rotate(book: &mut Book, source: &Source) -> Result<Rotation, Error> {
    let _changing = match source {
        Source::File(path) => Some(master::change(path)?),
        Source::Text(_) | Source::Command(_) => None,
    };
    let ring = source.load().await?;
    let named = book.master().await?;
    let ring = match (source, ring) {
        (Source::File(path), ring) => prepared(path, ring, named.as_deref())?,
        (_, Some(ring)) => ring,
        (_, None) => return Err(KeyError::Form("is empty").into()),
    };
    if let Some(named) = &named
        && ring.find(named).is_none()
    {
        return Err(KeyError::Other { wanted: named.clone() }.into());
    }
    // From now on nothing new is wrapped by another.
    book.set_master(ring.first().name()).await?;
    let rewrapped = rewrap_all(book, &ring).await?;
    let master = ring.first().name().to_owned();
    let has_old = ring.count() > 1;
    let leaves_old_keys = match source {
        Source::File(path) if has_old => {
            let first = ring.into_keys().swap_remove(0);
            master::replace(path, &Keyring::new(first, Vec::new()))?;
            false
        }
        Source::File(_) => false,
        Source::Text(_) | Source::Command(_) => has_old,
    };
    Ok(Rotation { master, rewrapped, leaves_old_keys })
}

/// The file's ring with a new key at its head; as it is, if an earlier run was killed after it had put one there.
fn prepared(path: &Path, ring: Option<Keyring>, named: Option<&str>) -> Result<Keyring, KeyError> {
    let Some(ring) = ring else {
        return match named {
            // Nothing is sealed yet.
            None => master::make(path),
            Some(named) => Err(KeyError::Other { wanted: named.to_owned() }),
        };
    };
    if ring.count() > 1 {
        return Ok(ring);
    }
    if let Some(named) = named
        && ring.find(named).is_none()
    {
        return Err(KeyError::Other { wanted: named.to_owned() });
    }
    let ring = Keyring::new(MasterKey::random(), ring.into_keys());
    // Before anything is wrapped by it.
    master::replace(path, &ring)?;
    Ok(ring)
}

async fn rewrap_all(book: &mut Book, ring: &Keyring) -> Result<usize, Error> {
    let first = ring.first();
    let mut rewrapped = 0;
    for _ in 0..ROUNDS_MAX {
        let old: Vec<VaultKey> =
            book.keys().await?.into_iter().filter(|key| key.master != first.name()).collect();
        if old.is_empty() {
            return Ok(rewrapped);
        }
        for before in old {
            let after = wrap(&unwrap(&before, ring)?, &before.workspace, first);
            rewrapped += usize::from(book.rewrap(&before, &after).await?);
        }
    }
    Err(KeyError::Restless.into())
}

impl Book {
    async fn master(&mut self) -> Result<Option<String>, store::Error> {
        match self {
            Self::Directory(keys) => keys.vault_master(),
            Self::Store(store) => store.vault_master().await,
        }
    }

    async fn set_master(&mut self, name: &str) -> Result<(), store::Error> {
        match self {
            Self::Directory(keys) => keys.set_vault_master(name),
            Self::Store(store) => store.set_vault_master(name).await,
        }
    }

    async fn keys(&mut self) -> Result<Vec<VaultKey>, store::Error> {
        match self {
            Self::Directory(keys) => keys.vault_keys(),
            Self::Store(store) => store.vault_keys().await,
        }
    }

    async fn rewrap(&mut self, before: &VaultKey, after: &VaultKey) -> Result<bool, store::Error> {
        match self {
            Self::Directory(keys) => keys.rewrap_vault_key(before, after),
            Self::Store(store) => store.rewrap_vault_key(before, after).await,
        }
    }
}
