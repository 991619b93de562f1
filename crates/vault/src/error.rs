//! What can go wrong, sorted by what a caller can do about it. No message holds a secret or a key.

use std::path::PathBuf;

use protocol::id::{CredentialId, ResourceId};
use store::ChangeError;

/// The vault did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keys cannot be used: nothing is sealed or opened until an operator has seen to it.
    #[error("the vault's keys cannot be used")]
    Key(#[from] KeyError),
    /// The credential has no such secret: it was archived or deleted meanwhile.
    #[error("{0} holds no such secret any more")]
    Gone(CredentialId),
    /// What is stored does not belong to this credential, or is damaged.
    #[error("what is sealed in {0} cannot be opened: it is damaged, or was moved there")]
    Sealed(CredentialId),
    /// The same of a token of a session's resource.
    #[error("the token that is sealed for {0} cannot be opened: it is damaged, or was moved there")]
    SealedToken(ResourceId),
    /// A change was refused.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The master key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("the vault's key file {} cannot be used", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others than its owner may read the file.
    #[error("the vault's key file {} may be read by others: take their rights away (chmod 600)", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
    },
    /// The command gave no key.
    #[error("the command for the vault's key {0}")]
    Command(&'static str),
    /// What was given is no key.
    #[error("the vault's key {0}")]
    Form(&'static str),
    /// The key that was given is not the one that wraps what is stored.
    #[error(
        "what is stored is sealed with the master key {wanted}, and that is not among those that this process has; \
         give it the key of the other processes (docs/configuration.md)"
    )]
    Other {
        /// The name of the key that is needed.
        wanted: String,
    },
    /// What is wrapped is damaged.
    #[error("the stored key of workspace {0} is damaged")]
    Damaged(String),
    /// Keys were changed all the time.
    #[error("the master key was changed again and again meanwhile")]
    Restless,
}
