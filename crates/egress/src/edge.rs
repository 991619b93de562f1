//! What the requests of one sandbox may spend without its having it.
//!
//! The proxy finds the places and knows the hosts; what is spent there comes from outside, one [`Edge`] for each sandbox.
//! A secret passes through here between two buffers and is kept nowhere.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;

use crate::authority::Authority;
use crate::host::Host;

/// A body on its way through the proxy.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A secret, as far as the proxy deals with it: it can be written where it is spent.
pub trait Secret: Send + Sync {
    /// Appends the secret.
    fn write_to(&self, into: &mut Vec<u8>);
}

/// A placeholder, and what takes its place on the way to one host.
#[derive(Clone)]
pub struct Replacement {
    /// Whose secret it is: the credential's id, for the record of its use.
    pub credential: String,
    /// What the sandbox has instead: header-safe ASCII, at least eight bytes, which nobody could guess.
    pub placeholder: String,
    /// What is sent in its place.
    pub secret: Arc<dyn Secret>,
    /// Whether it is replaced in the values of headers.
    pub in_headers: bool,
    /// Whether it is replaced in bodies.
    pub in_body: bool,
}

impl fmt::Debug for Replacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replacement").field("credential", &self.credential).finish_non_exhaustive()
    }
}

/// How a request went in which a secret was spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// The host answered with this status.
    Answered(u16),
    /// The request left, or part of it, and no answer came.
    Unanswered,
    /// It left in a body that was still on its way when the host answered, if it did.
    Sent,
}

/// The secrets cannot be had at the moment. The text is for the log.
#[derive(Debug, thiserror::Error)]
#[error("the credentials cannot be had: {0}")]
pub struct Unavailable(pub String);

/// What one sandbox may spend. Asked anew for each connection and each request on it, so that what changes outside takes
/// effect with the next.
#[async_trait]
pub trait Edge: fmt::Debug + Send + Sync {
    /// What is replaced in requests to this host; nothing, for most.
    async fn replacements(&self, host: &Host) -> Result<Vec<Replacement>, Unavailable>;

    /// Who signs in the place of the hosts with replacements. Only this sandbox trusts it.
    async fn authority(&self) -> Result<Arc<Authority>, Unavailable>;

    /// A credential was spent. Called once for each request and credential; twice, if it stood in the headers and in a long body.
    fn spent(&self, host: &Host, credential: &str, outcome: Spent);

    /// Answers a request that was sent to the exit itself, not through it: `GET /…` instead of `GET http://host/…`. `Err` gives
    /// the request back: nothing is served there.
    async fn local(&self, request: Request<Body>) -> Result<Response<Body>, Request<Body>> {
        Err(request)
    }
}
