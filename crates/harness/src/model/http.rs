//! One request to a provider: send it, wait with patience but not forever, give out its frames.
//!
//! It knows HTTP and no provider's words. Redirects are not followed, as a key must not travel to an address that
//! nobody configured. Every wait has a limit, and so has what is read.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use protocol::sse::{Frame, Parser};
use reqwest::Response;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};

use super::failure::{Failure, FailureKind, Reported, redact};
use super::key::ApiKey;
use super::pace::SharedPace;

/// An error body is a few lines; what goes on longer is not read.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;

/// The longest answer that is read, framing included. Far over what any model's limit of output tokens makes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long a finished answer may take to end its body, so that the connection can be used again. A new connection
/// costs about as much.
const DRAIN_MAX: Duration = Duration::from_millis(10);

/// Where a provider is and how it is spoken to.
pub(super) struct Endpoint {
    pub(super) client: reqwest::Client,
    pub(super) url: reqwest::Url,
    /// Sent with every request. Holds the key.
    pub(super) headers: HeaderMap,
    /// What must never show.
    pub(super) secrets: Vec<ApiKey>,
    /// The longest silence: before the response's head and between its bytes.
    pub(super) idle_timeout: Duration,
    /// Hears what responses say of the provider's limits. `None` where they are not to be believed.
    pub(super) pace: Option<Arc<SharedPace>>,
}

/// Makes *ring* the process's provider of cryptography for TLS, unless one is set. May be called more than once.
pub fn install_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // The only error is that somebody else was faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

impl Endpoint {
    /// Sends a request to a model and gives the frames of its response once the head says that there are any.
    pub(super) async fn post(
        self: &Arc<Self>,
        model: &str,
        body: Vec<u8>,
        extra: HeaderMap,
    ) -> Result<Frames, Failure> {
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        headers.extend(extra);
        let request = self.client.post(self.url.clone()).headers(headers).body(body);
        let sent = self.pace.as_ref().map(|pace| pace.sent(model));
        let response = match tokio::time::timeout(self.idle_timeout, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.transport_failure(&error, FailureKind::Connection)),
            Err(_) => return Err(self.silence()),
        };
        if let Some(sent) = sent {
            sent.heard(response.headers());
        }
        if response.status() != reqwest::StatusCode::OK {
            return Err(self.refused(response).await);
        }
        let content_type =
            response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if content_type.starts_with("application/json") || content_type.starts_with("text/html") {
            return Err(self.not_a_stream(response).await);
        }
        Ok(Frames { endpoint: Arc::clone(self), response, parser: Parser::new(), received_bytes: 0 })
    }

    async fn refused(&self, mut response: Response) -> Failure {
        let status = response.status().as_u16();
        let body = self.bounded_body(&mut response).await;
        let failure = Reported::read(&body).into_failure(Some(status), response.headers(), &self.secrets);
        // One that says nothing of the time holds up only its own request, which waits longer with each try.
        let is_refusal = matches!(failure.kind, FailureKind::RateLimited | FailureKind::Overloaded);
        if let (Some(pace), true, 429 | 529, Some(wait)) =
            (&self.pace, is_refusal, status, failure.retry_after)
        {
            pace.refused(wait);
        }
        failure
    }

    /// HTTP 200 that is no stream: some gateways answer so with an error, and captive portals with a page.
    async fn not_a_stream(&self, mut response: Response) -> Failure {
        let body = self.bounded_body(&mut response).await;
        match serde_json::from_str::<serde_json::Value>(&body) {
            Ok(json) if json.get("error").is_some_and(|error| !error.is_null()) => {
                Reported::from_json(&json).into_failure(None, response.headers(), &self.secrets)
            }
            _ => self.malformed("the response is not an event stream"),
        }
    }

    /// What can be read of a body within the limits. A body that breaks off is as good as it is.
    async fn bounded_body(&self, response: &mut Response) -> String {
        let mut body = Vec::new();
        while body.len() < ERROR_BODY_BYTES_MAX {
            match tokio::time::timeout(self.idle_timeout, response.chunk()).await {
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                Ok(Ok(None) | Err(_)) | Err(_) => break,
            }
        }
        body.truncate(ERROR_BODY_BYTES_MAX);
        String::from_utf8_lossy(&body).into_owned()
    }

    pub(super) fn malformed(&self, detail: &str) -> Failure {
        Failure::new(FailureKind::Malformed, &redact(detail, &self.secrets))
    }

    /// What an error event inside a stream means.
    pub(super) fn reported(&self, error: &serde_json::Value) -> Failure {
        Reported::from_json(error).into_failure(None, &HeaderMap::new(), &self.secrets)
    }

    fn silence(&self) -> Failure {
        Failure::new(FailureKind::Timeout, &format!("silence for {} s", self.idle_timeout.as_secs_f64()))
    }

    /// The innermost cause says what happened; the outer ones say the address, which is not for everybody.
    fn transport_failure(&self, error: &reqwest::Error, kind: FailureKind) -> Failure {
        let kind = if error.is_timeout() && !error.is_connect() { FailureKind::Timeout } else { kind };
        let mut cause = error.source();
        let mut detail = String::new();
        while let Some(error) = cause {
            detail = error.to_string();
            cause = error.source();
        }
        Failure::new(kind, &redact(&detail, &self.secrets))
    }
}

/// The frames of a response. Dropping it closes the request.
pub(super) struct Frames {
    endpoint: Arc<Endpoint>,
    response: Response,
    parser: Parser,
    received_bytes: usize,
}

impl Frames {
    /// The next frame, or `None` at the end of the body.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, Failure> {
        loop {
            match self.parser.next_frame() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(error) => return Err(self.endpoint.malformed(&error.to_string())),
            }
            let chunk = match tokio::time::timeout(self.endpoint.idle_timeout, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => return Err(self.endpoint.transport_failure(&error, FailureKind::Stream)),
                Err(_) => return Err(self.endpoint.silence()),
            };
            self.received_bytes += chunk.len();
            if self.received_bytes > ANSWER_BYTES_MAX {
                return Err(self.endpoint.malformed("the answer is longer than any model's"));
            }
            self.parser.push(&chunk);
        }
    }

    /// Reads the end of the body, so that the next request can use the connection.
    pub(super) async fn drain(mut self) {
        let end = async { while let Ok(Some(_)) = self.response.chunk().await {} };
        let _ = tokio::time::timeout(DRAIN_MAX, end).await;
    }
}
