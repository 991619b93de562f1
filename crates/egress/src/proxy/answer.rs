//! What the proxy answers in its own name.
//!
//! Whoever reads it sees `curl`'s output: for a plain request the body, for a CONNECT no more than the status line. So the
//! reason stands in three places: the reason phrase, the header `x-posthouse-egress`, and the body.

use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::ext::ReasonPhrase;

use super::head::{Broken, HEAD_BYTES_MAX};
use crate::edge::Body;
use crate::refusal::Refusal;

/// Carries the rule and the reason, so that a program can tell the proxy's answers from a server's.
const HEADER: &str = "x-posthouse-egress";

/// An answer that is not the far side's.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// For the log and the header.
    pub(super) rule: &'static str,
    /// What happened, as a fragment without a full stop.
    pub(super) reason: String,
    /// What would help, as sentences.
    pub(super) remedy: Option<String>,
}

impl Answer {
    pub(super) fn new(status: StatusCode, rule: &'static str, reason: impl Into<String>) -> Self {
        Self { status, rule, reason: reason.into(), remedy: None }
    }

    pub(super) fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// A request that is not taken, whoever it is for.
    pub(super) fn malformed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", reason)
    }

    fn text(&self) -> String {
        let Self { status: _, rule, reason, remedy } = self;
        let remedy = remedy.as_deref().unwrap_or_default();
        format!("egress: {reason} (rule: {rule}). {remedy}").trim_end().to_owned() + "\n"
    }

    /// As hyper sends it.
    pub(super) fn response(&self) -> Response<Body> {
        let text = self.text();
        let mut response =
            Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        let line = format!("{}; {}", self.rule, self.reason);
        if let Ok(value) = HeaderValue::try_from(line) {
            headers.insert(HEADER, value);
        }
        if let Ok(reason) = ReasonPhrase::try_from(format!("egress: {}", self.reason)) {
            response.extensions_mut().insert(reason);
        }
        response
    }

    /// As it is sent where hyper has no part: to a request that it never saw.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let Self { status, rule, reason, remedy: _ } = self;
        let text = self.text();
        format!(
            "HTTP/1.1 {} egress: {reason}\r\ncontent-type: text/plain; charset=utf-8\r\n{HEADER}: {rule}; {reason}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{text}",
            status.as_str(),
            text.len(),
        )
        .into_bytes()
    }
}

impl From<&Refusal> for Answer {
    fn from(refusal: &Refusal) -> Self {
        let status = match refusal {
            Refusal::Host { .. } | Refusal::Url { .. } => StatusCode::BAD_REQUEST,
            Refusal::NotAllowed { .. } | Refusal::Port { .. } | Refusal::Address { .. } => {
                StatusCode::FORBIDDEN
            }
            Refusal::Unresolved { .. } => StatusCode::BAD_GATEWAY,
            Refusal::LookupTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        };
        Self { remedy: refusal.remedy(), ..Self::new(status, refusal.rule(), refusal.to_string()) }
    }
}

impl Broken {
    /// What is answered, if there is somebody to answer.
    pub(super) fn answer(&self) -> Option<Answer> {
        match self {
            Self::Closed => None,
            Self::Slow => Some(Answer::new(
                StatusCode::REQUEST_TIMEOUT,
                "slow",
                "the head of the request did not arrive in time",
            )),
            Self::Large => Some(Answer::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "large",
                format!("the head of the request is larger than {HEAD_BYTES_MAX} bytes"),
            )),
            Self::Shape(why) => Some(Answer::malformed(*why)),
        }
    }
}
