//! Why a session goes on without a repository, as its client is told.

use protocol::event::{RetryStatus, SessionError, SessionErrorKind};
use protocol::resource::Repository;

use crate::git;
use crate::host::Fault;

/// What went wrong with one repository. Its text names no path of this machine, and nothing that a host said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The host said no, or nothing.
    #[error("{0}")]
    Host(Fault),
    /// The branch or commit is not there.
    #[error("the repository has no {0}")]
    Checkout(String),
    /// It took too long.
    #[error("it was not fetched within {0} seconds")]
    Time(u64),
    /// It is too large for this server's bounds.
    #[error("it is too large: {0}")]
    Size(String),
    /// Git gave up.
    #[error(transparent)]
    Git(#[from] git::Error),
    /// This machine failed.
    #[error("it could not be kept on the server: {0}")]
    Io(#[from] std::io::Error),
    /// It could not be put into the sandbox.
    #[error("it could not be put into the sandbox: {0}")]
    Sandbox(String),
    /// Its host is not allowed any more.
    #[error("this server takes no repositories from that host any more")]
    NotAllowed,
}

impl Trouble {
    /// The error that the client is shown.
    pub(crate) fn error(&self, repository: &Repository) -> SessionError {
        use SessionErrorKind::{
            RepositoryAuthenticationError, RepositoryCheckoutError, RepositoryCloneError,
            RepositoryForbiddenError, RepositoryNotFoundError,
        };
        let kind = match self {
            Self::Host(Fault::Authentication) => RepositoryAuthenticationError,
            Self::Host(Fault::Forbidden) => RepositoryForbiddenError,
            Self::Host(Fault::NotFound) => RepositoryNotFoundError,
            Self::Checkout(_) => RepositoryCheckoutError,
            Self::Host(
                Fault::Moved | Fault::Status(_) | Fault::Refused(_) | Fault::Unreachable | Fault::Unopened,
            )
            | Self::Time(_)
            | Self::Size(_)
            | Self::Git(_)
            | Self::Io(_)
            | Self::Sandbox(_)
            | Self::NotAllowed => RepositoryCloneError,
        };
        let message =
            format!("repository: {}: {self}. The session goes on without it.", repository.mount_path);
        SessionError {
            repository_url: Some(repository.url.clone()),
            ..SessionError::new(kind, message, RetryStatus::Retrying)
        }
    }
}
