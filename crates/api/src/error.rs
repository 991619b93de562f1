//! What goes wrong at the door, and what the client is told.
//!
//! The only file that knows status codes, error types and public text. The inside story of a failure goes to the
//! trace, once, here; the client gets the request's id to ask with.

use axum::response::{IntoResponse, Response};
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use protocol::agent_request::VERSION_MISMATCH;
use protocol::error::{ErrorBody, ErrorCode, ErrorDetail, ErrorKind, ErrorTag};
use protocol::parse::{Invalid, clipped};
use session::Refusal;
use store::ChangeError;

/// Tells the official clients not to send the request again by themselves.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// After how many seconds a client may try again when too much waits: about as long as a turn takes.
const QUEUE_FULL_SECONDS: u32 = 5;
/// And when the store cannot write: about as long as a database takes to come back.
const STORE_SECONDS: u32 = 1;

/// Why a request is not answered as asked.
#[derive(Debug)]
pub(crate) enum Error {
    /// A field, a parameter or a header breaks a rule.
    Invalid(Invalid),
    /// No key was sent, or one that is not known.
    Unauthenticated(&'static str),
    /// The key may not do this.
    Forbidden(&'static str),
    /// No such thing in this workspace.
    Missing { what: &'static str, id: String, code: Option<&'static str> },
    /// The path is not one of ours.
    NoSuchPath { method: Method, path: String },
    /// The path has other methods.
    NoSuchMethod { method: Method, path: String },
    /// The required beta header was not sent, and the path does not exist without it.
    NotEnrolled,
    /// The request lost against what is there.
    Conflict { message: String, code: Option<&'static str> },
    /// The session is over and takes no more events.
    Over,
    /// The body is over the limit.
    TooLarge { limit_bytes: usize },
    /// The body did not arrive in time.
    TooSlow,
    /// The client went away in the middle of its request; nobody reads the answer.
    Gone,
    /// Too much waits already.
    QueueFull,
    /// The store failed.
    Store(store::Error),
    /// The vault can seal and open nothing.
    Vault(vault::Error),
    /// A panic, already logged by the panic hook.
    Panicked,
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        match invalid.code {
            // The one refusal of a field that is a lost race.
            Some(VERSION_MISMATCH) => {
                Self::Conflict { message: invalid.to_string(), code: Some(VERSION_MISMATCH) }
            }
            _ => Self::Invalid(invalid),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(invalid) => invalid.into(),
            Refusal::Over => Self::Over,
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl From<vault::Error> for Error {
    fn from(error: vault::Error) -> Self {
        match error {
            vault::Error::Store(error) => error.into(),
            other => Self::Vault(other),
        }
    }
}

impl Error {
    /// Nothing of that kind has this id.
    pub(crate) fn missing(what: &'static str, id: impl ToString) -> Self {
        Self::Missing { what, id: id.to_string(), code: None }
    }

    /// What the store says to a change of the thing with this id.
    pub(crate) fn change(error: ChangeError, what: &'static str, id: impl ToString) -> Self {
        match error {
            ChangeError::NotFound => Self::missing(what, id),
            ChangeError::Refused(refusal) => refusal.into(),
            ChangeError::Exists => {
                let message = format!("name: another {} that is not archived has it", what.to_lowercase());
                Self::Conflict { message, code: None }
            }
            ChangeError::InUse => {
                let message = format!("the {} is in use and cannot be deleted", what.to_lowercase());
                Self::Conflict { message, code: None }
            }
            ChangeError::Conflict(message) => Self::Conflict { message, code: None },
            ChangeError::QueueFull => Self::QueueFull,
            ChangeError::Store(error) => error.into(),
        }
    }

    /// The status, the type, the public text and the code of an error.
    fn public(&self) -> (StatusCode, ErrorKind, String, Option<&'static str>) {
        use ErrorKind::{
            ApiError, AuthenticationError, ConflictError, InvalidRequestError, NotFoundError,
            OverloadedError, PermissionError, RateLimitError, RequestTooLarge, TimeoutError,
        };
        match self {
            Self::Invalid(invalid) => {
                (StatusCode::BAD_REQUEST, InvalidRequestError, invalid.to_string(), invalid.code)
            }
            Self::Unauthenticated(message) => {
                (StatusCode::UNAUTHORIZED, AuthenticationError, (*message).to_owned(), None)
            }
            Self::Forbidden(message) => (StatusCode::FORBIDDEN, PermissionError, (*message).to_owned(), None),
            Self::Missing { what, id, code } => {
                (StatusCode::NOT_FOUND, NotFoundError, format!("{what} not found: {}", clipped(id)), *code)
            }
            Self::NoSuchPath { method, path } => {
                let message = format!("this server has no {method} {}", clipped(path));
                (StatusCode::NOT_FOUND, NotFoundError, message, None)
            }
            Self::NoSuchMethod { method, path } => {
                let message = format!("{} does not take {method}", clipped(path));
                (StatusCode::METHOD_NOT_ALLOWED, InvalidRequestError, message, None)
            }
            Self::NotEnrolled => {
                (StatusCode::NOT_FOUND, NotFoundError, format!("anthropic-beta: {BETA_REQUIRED}"), None)
            }
            Self::Conflict { message, code } => (StatusCode::CONFLICT, ConflictError, message.clone(), *code),
            // The reference's only first-party statement for this case gives 409 with this type (sessions.md §27).
            Self::Over => {
                let message = "the session is archived or terminated and takes no more events or changes";
                (StatusCode::CONFLICT, InvalidRequestError, message.to_owned(), None)
            }
            Self::TooLarge { limit_bytes } => {
                let message = format!("request body: must be at most {limit_bytes} bytes");
                (StatusCode::PAYLOAD_TOO_LARGE, RequestTooLarge, message, None)
            }
            Self::TooSlow => {
                let message = "request body: did not arrive in time".to_owned();
                (StatusCode::REQUEST_TIMEOUT, TimeoutError, message, None)
            }
            Self::Gone => {
                let message = "request body: ended before it was complete".to_owned();
                (StatusCode::BAD_REQUEST, InvalidRequestError, message, None)
            }
            Self::QueueFull => {
                let message =
                    "too much waits already: in this session's inbox, or for a brain in this workspace";
                (StatusCode::TOO_MANY_REQUESTS, RateLimitError, message.to_owned(), None)
            }
            // A 503 is what load balancers understand: another process may reach it.
            Self::Store(store::Error::Unreachable(_)) => {
                let message = "the database cannot be reached at the moment; try again".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, OverloadedError, message, None)
            }
            Self::Store(error) if error.may_try_again() => {
                let message = "the server cannot write at the moment; try again".to_owned();
                (overloaded(), OverloadedError, message, None)
            }
            Self::Vault(_) => {
                let message =
                    "the server cannot use its vault; its log has the reason under this request's id";
                (StatusCode::INTERNAL_SERVER_ERROR, ApiError, message.to_owned(), None)
            }
            Self::Store(_) | Self::Panicked => {
                let message = "the server failed; its log has the reason under this request's id".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, ApiError, message, None)
            }
        }
    }
}

/// The wire's own status for a server that is too busy.
fn overloaded() -> StatusCode {
    StatusCode::from_u16(529).expect("529 is a status")
}

/// What a request without the beta header is told.
pub(crate) const BETA_REQUIRED: &str = "must contain `managed-agents-2026-04-01` on this path";

/// An error on its way out. The outermost layer adds the request's id and writes the body.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    kind: ErrorKind,
    message: String,
    code: Option<&'static str>,
}

impl Problem {
    /// The standard body.
    pub(crate) fn body(self, request_id: &str) -> ErrorBody {
        let Self { kind, message, code } = self;
        ErrorBody {
            tag: ErrorTag::Error,
            error: ErrorDetail {
                kind,
                message,
                details: code.map(|code| ErrorCode { error_code: code.to_owned() }),
            },
            request_id: Some(request_id.to_owned()),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let may_retry = match &self {
            // All our conflicts are decided: the same request loses again.
            Self::Conflict { .. } | Self::Over => false,
            Self::Store(error) => {
                tracing::error!(error = Chain(error).to_string(), "the store failed a request");
                // What may have been done already must not be done again unasked.
                !error.may_have_happened()
            }
            Self::Vault(error) => {
                tracing::error!(error = Chain(error).to_string(), "the vault failed a request");
                true
            }
            _ => true,
        };
        let retry_after = match &self {
            Self::QueueFull => Some(QUEUE_FULL_SECONDS),
            Self::Store(error) if error.may_try_again() => Some(STORE_SECONDS),
            _ => None,
        };
        let (status, kind, message, code) = self.public();
        let mut response = status.into_response();
        response.extensions_mut().insert(Problem { kind, message, code });
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if !may_retry {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

/// An error and its sources in one line.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(formatter, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_tried_again_says_when() {
        let store = |error: store::Error| Error::from(error).into_response();
        for (response, status, retry_after) in [
            (Error::QueueFull.into_response(), 429, Some("5")),
            (store(store::Error::Unreachable("gone".into())), 503, Some("1")),
            (store(store::Error::Full("full".into())), 529, Some("1")),
            (store(store::Error::Corrupt("damaged".into())), 500, None),
        ] {
            assert_eq!(response.status(), status);
            let header = response.headers().get(RETRY_AFTER).map(|value| value.to_str().expect("text"));
            assert_eq!(header, retry_after, "{status}");
            assert!(!response.headers().contains_key(SHOULD_RETRY), "{status}");
        }
    }
}
