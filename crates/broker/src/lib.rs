//! Spends credentials for sessions whose sandboxes must not have them.
//!
//! ```text
//!   vault ──▶ broker ──placeholders, authority──▶ sandbox
//!               │                                    │ a request, with a placeholder in it
//!               └──────── Edge: the secret ──▶ egress proxy ──▶ the host that the credential is for
//! ```
//!
//! Two sides of one thing. [`Broker::belongings`] says what a session brings into its sandbox: for each environment variable
//! credential a placeholder, and the authority in whose name the proxy may end TLS. [`Broker::edge`] is what the proxy asks on
//! the way out. Which session asks follows from the exit that it uses, never from anything that the sandbox says; what may be
//! spent is looked up for each connection, so that what is rotated, archived or deleted takes effect at once.
//!
//! This crate keeps no secret: it hands opened ones from the vault to the proxy.

mod belongings;
mod edge;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use egress::Authority;
use protocol::id::{SessionId, WorkspaceId};
use repositories::Repositories;
use store::Store;
use vault::Credentials;

pub use belongings::{Belongings, Unreachable};

/// Authorities that are kept because making one takes some tenths of a millisecond.
const AUTHORITIES_MAX: usize = 1_024;
/// How many seeds are tried: one in four thousand million is no key.
const SEEDS_MAX: u8 = 4;

/// Why a session's belongings, or its credentials, cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The vault or the store below it.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The store.
    #[error("the store failed")]
    Store(#[from] store::Error),
    /// No authority could be made.
    #[error(transparent)]
    Authority(#[from] egress::AuthorityError),
}

/// Spends what the vault keeps. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
    /// What answers the git of sandboxes.
    repositories: Option<Repositories>,
}

struct Inner {
    credentials: Credentials,
    authorities: Mutex<HashMap<SessionId, Arc<Authority>>>,
}

impl Broker {
    /// Over these credentials.
    pub fn new(credentials: Credentials) -> Self {
        let inner = Arc::new(Inner { credentials, authorities: Mutex::default() });
        Self { inner, repositories: None }
    }

    /// The same, which lets sandboxes' git reach their sessions' repositories.
    pub fn serving(self, repositories: Repositories) -> Self {
        Self { repositories: Some(repositories), ..self }
    }

    fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    fn store(&self) -> &Store {
        self.inner.credentials.store()
    }

    /// The authority that a session's sandboxes trust.
    async fn authority(&self, workspace: &WorkspaceId, session: &SessionId) -> Result<Arc<Authority>, Error> {
        if let Some(known) = self.authorities().get(session) {
            return Ok(Arc::clone(known));
        }
        let mut turn = 0;
        let authority = loop {
            let seed = self.credentials().authority_seed(workspace, session, turn).await?;
            match Authority::from_seed(session.as_str(), &seed) {
                Err(egress::AuthorityError::Seed) if turn < SEEDS_MAX => turn += 1,
                made => break Arc::new(made?),
            }
        };
        let mut authorities = self.authorities();
        if authorities.len() >= AUTHORITIES_MAX {
            authorities.clear();
        }
        authorities.insert(session.clone(), Arc::clone(&authority));
        Ok(authority)
    }

    fn authorities(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, Arc<Authority>>> {
        self.inner.authorities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}
