//! The keys of workspaces: fetched wrapped, unwrapped, and kept while the process lives.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use protocol::id::WorkspaceId;
use store::{Added, Store, VaultKey};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::{Error, KeyError};
use crate::master::{self, Keyring, MasterKey, Source};
use crate::seal::{Key, bound};

/// Workspaces whose keys are kept unwrapped; beyond that all are fetched anew.
const KEPT_MAX: usize = 4_096;
/// How often a command is asked again because a key is missing: it may be slow, or cost something.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How often a new key is tried, while the master key is changed.
const TRIES: usize = 5;

pub(crate) struct Keys {
    store: Store,
    source: Source,
    /// Held while the source is asked, so that it is asked once.
    ring: Mutex<Option<(Arc<Keyring>, Instant)>>,
    unwrapped: RwLock<HashMap<WorkspaceId, Arc<Key>>>,
}

impl Keys {
    pub(crate) fn new(store: Store, source: Source) -> Self {
        Self { store, source, ring: Mutex::default(), unwrapped: RwLock::default() }
    }

    /// The key of a workspace; made if it has none.
    pub(crate) async fn of(&self, workspace: &WorkspaceId) -> Result<Arc<Key>, Error> {
        if let Some(key) = self.unwrapped.read().unwrap_or_else(PoisonError::into_inner).get(workspace) {
            return Ok(Arc::clone(key));
        }
        let mut missing = Missing::default();
        let key = loop {
            let found = match self.store.vault_key(workspace).await? {
                Some(wrapped) => self.unwrap(&wrapped).await,
                None => self.make(workspace).await,
            };
            if let Some(key) = missing.settle(found)? {
                break Arc::new(key);
            }
        };
        let mut unwrapped = self.unwrapped.write().unwrap_or_else(PoisonError::into_inner);
        if unwrapped.len() >= KEPT_MAX {
            unwrapped.clear();
        }
        unwrapped.insert(workspace.clone(), Arc::clone(&key));
        Ok(key)
    }

    /// Sees whether the master key is there; makes it if it is to be a file, and nothing is sealed yet.
    pub(crate) async fn check(&self) -> Result<String, Error> {
        let mut missing = Missing::default();
        loop {
            let found = match self.store.vault_master().await? {
                Some(name) => self.ring_with(&name).await,
                None => self.ring().await,
            };
            if let Some(ring) = missing.settle(found)? {
                return Ok(ring.first().name().to_owned());
            }
        }
    }

    async fn make(&self, workspace: &WorkspaceId) -> Result<Key, Error> {
        let key = Key::random();
        let mut master = self.store.vault_master().await?;
        for _ in 0..TRIES {
            let ring = match &master {
                Some(name) => self.ring_with(name).await?,
                None => self.ring().await?,
            };
            let first = ring.first();
            let wraps = master.as_ref().map_or(first, |name| ring.find(name).unwrap_or(first));
            match self.store.add_vault_key(wrap(&key, workspace, wraps)).await? {
                Added::Kept(kept) => return self.unwrap(&kept).await,
                Added::Moved(name) => master = Some(name),
            }
        }
        Err(KeyError::Restless.into())
    }

    async fn unwrap(&self, wrapped: &VaultKey) -> Result<Key, Error> {
        let ring = self.ring_with(&wrapped.master).await?;
        Ok(unwrap(wrapped, &ring)?)
    }

    /// The ring, with a key of that name in it.
    async fn ring_with(&self, name: &str) -> Result<Arc<Keyring>, Error> {
        let mut kept = self.ring.lock().await;
        if let Some((ring, asked)) = &*kept {
            if ring.find(name).is_some() {
                return Ok(Arc::clone(ring));
            }
            let is_vain = match self.source {
                Source::File(_) => false,
                Source::Command(_) => asked.elapsed() < ASK_AGAIN,
                // What a process was given with its environment stays what it is.
                Source::Text(_) => true,
            };
            if is_vain {
                return Err(KeyError::Other { wanted: name.to_owned() }.into());
            }
        }
        // No file, though something is sealed: a new one would not open it.
        let other = || KeyError::Other { wanted: name.to_owned() };
        let ring = Arc::new(self.source.load().await?.ok_or_else(other)?);
        *kept = Some((Arc::clone(&ring), Instant::now()));
        if ring.find(name).is_some() { Ok(ring) } else { Err(other().into()) }
    }

    /// The ring, made if it is to be a file that is not there. Only while nothing is sealed yet.
    async fn ring(&self) -> Result<Arc<Keyring>, Error> {
        let mut kept = self.ring.lock().await;
        if let Some((ring, _)) = &*kept {
            return Ok(Arc::clone(ring));
        }
        let ring = match (self.source.load().await?, &self.source) {
            (Some(ring), _) => ring,
            (None, Source::File(path)) => master::make(path)?,
            (None, Source::Text(_) | Source::Command(_)) => return Err(KeyError::Form("is empty").into()),
        };
        let ring = Arc::new(ring);
        *kept = Some((Arc::clone(&ring), Instant::now()));
        Ok(ring)
    }
}

/// Which master keys were missing so far. A key may have been changed between the look at the database and the look at the
/// ring: then both are looked at again. Where the same key is missing twice in a row, it is missing.
#[derive(Default)]
struct Missing {
    last: Option<String>,
    looks: usize,
}

impl Missing {
    /// What was found; `None` to look again.
    fn settle<T>(&mut self, found: Result<T, Error>) -> Result<Option<T>, Error> {
        match found {
            Err(Error::Key(KeyError::Other { wanted }))
                if self.last.as_ref() != Some(&wanted) && self.looks < TRIES =>
            {
                self.last = Some(wanted);
                self.looks += 1;
                Ok(None)
            }
            found => found.map(Some),
        }
    }
}

/// A workspace's key, wrapped by this master key.
pub(crate) fn wrap(key: &Key, workspace: &WorkspaceId, master: &MasterKey) -> VaultKey {
    VaultKey {
        workspace: workspace.clone(),
        master: master.name().to_owned(),
        wrapped: master.key().wrap(key, &place(workspace, master.name())),
    }
}

/// The key that was wrapped.
pub(crate) fn unwrap(wrapped: &VaultKey, ring: &Keyring) -> Result<Key, KeyError> {
    let VaultKey { workspace, master, wrapped } = wrapped;
    let other = || KeyError::Other { wanted: master.clone() };
    let key = ring.find(master).ok_or_else(other)?.key();
    key.unwrap(wrapped, &place(workspace, master)).map_err(|_| KeyError::Damaged(workspace.to_string()))
}

fn place(workspace: &WorkspaceId, master: &str) -> Vec<u8> {
    bound(&["workspace key", workspace.as_str(), master])
}
