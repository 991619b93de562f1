//! Resources of a session, as the wire shows them: what was put into its workspace. So far these are repositories.
//!
//! Stored and on the wire. A token is no part of them: it is sealed and kept by itself.

use serde::{Deserialize, Serialize};

use crate::id::ResourceId;
use crate::time::Timestamp;

/// A resource of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Resource {
    /// A Git repository, checked out below `/workspace`.
    GithubRepository(Repository),
}

/// A repository of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Its id.
    pub id: ResourceId,
    /// Where it comes from, as the client wrote it.
    pub url: String,
    /// Where it is inside: absolute, below `/workspace`, plain names only.
    pub mount_path: String,
    /// What is checked out; the default branch if `None`.
    pub checkout: Option<Checkout>,
    /// When it was attached.
    pub created_at: Timestamp,
    /// When its token was last changed.
    pub updated_at: Timestamp,
}

/// What of a repository is checked out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Checkout {
    /// The newest commit of a branch.
    Branch {
        /// The branch, without `refs/heads/`.
        name: String,
    },
    /// A commit.
    Commit {
        /// Its hash, or enough of it.
        sha: String,
    },
}

impl Resource {
    /// Its id.
    pub fn id(&self) -> &ResourceId {
        match self {
            Self::GithubRepository(repository) => &repository.id,
        }
    }

    /// The repository that it is.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::GithubRepository(repository) => Some(repository),
        }
    }
}
