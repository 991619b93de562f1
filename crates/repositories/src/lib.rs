//! Repositories in sessions, whose tokens never enter a sandbox.
//!
//! ```text
//!  before the first call:  git (ours) ── http, loopback ──▶ door ─┐
//!                            │                                    ├─▶ host ── https, token, guard ──▶ the repository
//!                            └─▶ cache ─▶ tree ─▶ archive ─▶ …    │
//!  afterwards:             git (the agent's) ── exit ──▶ Repositories::local ─┘
//! ```
//!
//! One code path speaks to hosts (`host`): there the token is opened, spent and forgotten, the guard judges the address, and
//! nothing is asked but what git's smart protocol asks of one repository (`smart`). Git itself, ours as well as the agent's,
//! is a client of it and knows no token.
//!
//! In reading order: `settings`, `smart` (which requests there are), `host`, `local` (what sandboxes ask), `door` (what our
//! own git asks), `git` (running it), `cache` and `tree` (from a repository to an archive), `prepare`, `trouble`.
//!
//! This crate logs no path, no content and no token, and knows nothing of sandboxes: it gives an archive, and answers
//! requests of whoever says for which session they are.

mod cache;
mod door;
mod git;
mod host;
mod local;
mod prepare;
mod settings;
mod smart;
mod tree;
mod trouble;

use std::sync::Arc;

use store::Store;
use tokio::sync::Semaphore;
use vault::Credentials;

pub use local::EXIT;
pub use prepare::{Prepared, Ready};
pub use settings::{Limits, Settings};

/// The repositories of a store's sessions. A clone is the same.
#[derive(Clone)]
pub struct Repositories(Arc<Inner>);

struct Inner {
    store: Store,
    settings: Settings,
    host: host::Hosts,
    cache: cache::Cache,
    door: door::Door,
    /// Clones that are made at once.
    clones: Semaphore,
}

impl Repositories {
    /// Over that store; tokens are opened by these credentials. Nothing is touched yet.
    pub fn new(store: Store, credentials: Credentials, settings: Settings) -> Result<Self, Unusable> {
        let host = host::Hosts::new(credentials, &settings)?;
        let cache = cache::Cache::new(settings.folder.clone(), settings.limits.clone());
        let clones = Semaphore::new(settings.limits.clones_max);
        Ok(Self(Arc::new(Inner {
            store,
            host: host.clone(),
            cache,
            door: door::Door::new(host),
            clones,
            settings,
        })))
    }
}

impl std::fmt::Debug for Repositories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Repositories")
    }
}

/// No client for hosts can be made.
#[derive(Debug, thiserror::Error)]
#[error("no client for git hosts can be made")]
pub struct Unusable(#[from] reqwest::Error);
