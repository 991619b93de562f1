//! What can go wrong with a server, as far as callers treat it apart.

use std::time::Duration;

use rmcp::ServiceError;
use rmcp::service::ClientInitializeError;
use rmcp::transport::DynamicTransportError;
use rmcp::transport::streamable_http_client::StreamableHttpError;

use crate::http::Failure;

/// Why a server did not do what it was asked. Messages are for people and models; they hold no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It refuses the credential, or wants one that there is not. Nothing was done.
    #[error("{0}")]
    Unauthorized(String),
    /// It was not asked: it cannot be reached, or may not be.
    #[error("{0}")]
    Unreachable(String),
    /// It was asked, and gave no answer that can be read. Whether it did anything is not known.
    #[error("{0}")]
    Broken(String),
    /// It answered that it will not.
    #[error("{0}")]
    Refused(String),
    /// The token is forged, of another session, revoked or expired.
    #[error("the session's token is not valid")]
    TokenRefused,
}

impl Error {
    /// Whether what was asked for may have been done.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Broken(_) => true,
            Self::Unauthorized(_) | Self::Unreachable(_) | Self::Refused(_) | Self::TokenRefused => false,
        }
    }

    /// The same with its message changed.
    pub(crate) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Unauthorized(text) => Self::Unauthorized(change(text)),
            Self::Unreachable(text) => Self::Unreachable(change(text)),
            Self::Broken(text) => Self::Broken(change(text)),
            Self::Refused(text) => Self::Refused(change(text)),
            Self::TokenRefused => Self::TokenRefused,
        }
    }

    pub(crate) fn late(what: &str, limit: Duration) -> Self {
        Self::Broken(format!("{what} took longer than {} s", limit.as_secs_f64()))
    }

    /// Of a request that a connection was asked for.
    pub(crate) fn of_request(error: ServiceError) -> Self {
        match error {
            ServiceError::McpError(error) => Self::Refused(format!("the server answered: {}", error.message)),
            ServiceError::TransportSend(error) => Self::of_transport(&error),
            ServiceError::TransportClosed => Self::Broken("the connection ended".to_owned()),
            ServiceError::UnexpectedResponse => {
                Self::Broken("the server's answer is not what was asked for".to_owned())
            }
            ServiceError::Timeout { timeout } => Self::late("the answer", timeout),
            other => Self::Broken(other.to_string()),
        }
    }

    /// Of the attempt to connect.
    pub(crate) fn of_start(error: &ClientInitializeError) -> Self {
        match error {
            ClientInitializeError::TransportError { error, context: _ } => Self::of_transport(error),
            ClientInitializeError::JsonRpcError(error) => {
                Self::Refused(format!("the server answered: {}", error.message))
            }
            ClientInitializeError::LegacyFallbackFailed { discover: _, fallback } => Self::of_start(fallback),
            ClientInitializeError::NoCompatibleProtocolVersion { .. } => {
                Self::Refused("the server speaks no version of the protocol that is known here".to_owned())
            }
            ClientInitializeError::ConnectionClosed(_) => {
                Self::Broken("the server ended the connection before it was ready".to_owned())
            }
            // What else it holds is what the server sent, however long.
            _ => Self::Broken("the server's first answer cannot be read".to_owned()),
        }
    }

    fn of_transport(error: &DynamicTransportError) -> Self {
        if let Some(failure) = error.error.downcast_ref::<Failure>() {
            return failure.into();
        }
        match error.error.downcast_ref::<StreamableHttpError<Failure>>() {
            Some(StreamableHttpError::Client(failure)) => failure.into(),
            Some(StreamableHttpError::SessionExpired) => {
                Self::Unreachable("the server has forgotten the session".to_owned())
            }
            Some(StreamableHttpError::UnexpectedContentType(_)) => {
                Self::Broken("the server's answer is neither JSON nor a stream of events".to_owned())
            }
            Some(_) | None => Self::Broken("the connection failed".to_owned()),
        }
    }
}

impl From<&Failure> for Error {
    fn from(failure: &Failure) -> Self {
        let text = failure.to_string();
        match failure {
            Failure::Unauthorized { .. } => Self::Unauthorized(text),
            Failure::Token => Self::TokenRefused,
            Failure::NotAsked(_) | Failure::Redirected | Failure::Status { .. } => Self::Unreachable(text),
            Failure::Broken(_) | Failure::TooLarge => Self::Broken(text),
        }
    }
}
