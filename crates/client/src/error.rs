//! What can go wrong, from a client's side.

use protocol::error::{ErrorBody, ErrorKind};

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused it, in the standard form.
    #[error("{} ({status})", body.error.message)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The standard body.
        body: Box<ErrorBody>,
    },
    /// The server, or something before it, answered in another form.
    #[error("an answer with status {status} that is not in the standard form")]
    Foreign {
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer.
        text: String,
    },
    /// The answer is not what this version knows.
    #[error("the answer cannot be read")]
    Shape(#[from] serde_json::Error),
    /// A stream gave something that cannot be read on.
    #[error("the stream cannot be read")]
    Stream(#[from] protocol::sse::Error),
    /// The server was not reached, or the connection broke. Whether the request was carried out is not known.
    #[error("no answer from the server")]
    Transport(#[source] reqwest::Error),
    /// The address of the server is not one.
    #[error("`{0}` is not the address of a server")]
    Address(String),
}

impl Error {
    /// The kind of a refusal in the standard form.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused { body, .. } => Some(body.error.kind),
            Self::Foreign { .. }
            | Self::Shape(_)
            | Self::Stream(_)
            | Self::Transport(_)
            | Self::Address(_) => None,
        }
    }

    /// The HTTP status, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } | Self::Foreign { status, .. } => Some(*status),
            Self::Shape(_) | Self::Stream(_) | Self::Transport(_) | Self::Address(_) => None,
        }
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        Self::Transport(error.without_url())
    }
}
