//! What can go wrong, sorted by what a caller can do about it.
//!
//! Every failed write answers two questions: may it have happened ([`Error::may_have_happened`])? May I try again
//! ([`Error::may_try_again`])? Not found is `None` when reading.

use std::path::PathBuf;

use protocol::parse::Invalid;
use session::Refusal;

use crate::lease::View;

/// What lies beneath an error. Opaque: callers decide by the variant.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// The store itself failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full. Nothing was written.
    #[error("the disk of the data directory is full")]
    Full(#[source] Source),
    /// Somebody else holds the database. Nothing was written.
    #[error("the database is held by another process")]
    Busy(#[source] Source),
    /// The database is damaged, or holds what this version cannot read. Nothing was written.
    #[error("the database cannot be read")]
    Corrupt(#[source] Source),
    /// The database cannot be reached. Nothing was written.
    #[error("the database cannot be reached")]
    Unreachable(#[source] Source),
    /// It may have been written or not: the disk failed in the act, or the writer died.
    #[error("whether it was written is unknown")]
    Unknown(#[source] Source),
    /// The store is closed, or closing. Nothing was written.
    #[error("the store is closed")]
    Closed,
    /// There is already something with that id. Nothing was written.
    #[error("{0} exists already")]
    Exists(String),
}

impl Error {
    /// Whether the write may have happened all the same.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Unknown(_) => true,
            Self::Full(_)
            | Self::Busy(_)
            | Self::Unreachable(_)
            | Self::Corrupt(_)
            | Self::Closed
            | Self::Exists(_) => false,
        }
    }

    /// Whether the same call can succeed later.
    pub fn may_try_again(&self) -> bool {
        match self {
            Self::Full(_) | Self::Busy(_) | Self::Unreachable(_) => true,
            Self::Unknown(_) | Self::Corrupt(_) | Self::Closed | Self::Exists(_) => false,
        }
    }
}

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server has this data directory.
    #[error("the data directory {} is in use by process {pid}", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Who holds it, as far as the lock file says.
        pid: String,
    },
    /// The database's address cannot be used.
    #[error("the database's address {rule}")]
    Address {
        /// What is wrong with it.
        rule: String,
    },
    /// The database was written by a later version.
    #[error("the database has format {found}, this version knows up to {known}")]
    Newer {
        /// The format found.
        found: u32,
        /// The newest format that this version knows.
        known: u32,
    },
    /// The database was written by an earlier version, and was to be read as it is.
    #[error("the database has format {found}, and this version reads {known} only: migrate it first")]
    Older {
        /// The format found.
        found: u32,
        /// The format that this version reads.
        known: u32,
    },
    /// The directory cannot be made or locked.
    #[error("the data directory {} cannot be used", path.display())]
    Directory {
        /// The data directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] Error),
}

/// A change that a client asked for was not made. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no such thing in this workspace.
    #[error("not found")]
    NotFound,
    /// The rules do not allow it.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The name is taken.
    #[error("the name is taken")]
    Exists,
    /// Something else refers to it.
    #[error("it is in use")]
    InUse,
    /// Too much waits already: events in the session's inbox, or sessions of the workspace for a brain. The same
    /// request can succeed later.
    #[error("too much waits already")]
    QueueFull,
    /// It is not what the client thinks it is.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The store itself failed; see [`Error::may_have_happened`].
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<Refusal> for ChangeError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Invalid> for ChangeError {
    fn from(invalid: Invalid) -> Self {
        Self::Refused(Refusal::Invalid(invalid))
    }
}

/// A brain's append was not made.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The log or the inbox is not what the brain thought. Nothing was written; look at the view and decide again.
    #[error("the session has moved")]
    Moved(Box<View>),
    /// Somebody else drives the session now, or it is gone. Nothing was written, and never will be with this token.
    #[error("the lease has lapsed")]
    Fenced,
    /// The store itself failed; see [`Error::may_have_happened`].
    #[error(transparent)]
    Store(#[from] Error),
}
