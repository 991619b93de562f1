//! Why a call of a web tool gave nothing: a code that the public tools have, and a sentence for the model.

use std::error::Error as _;
use std::fmt;

/// A call that gave nothing. Data for the model, not an error of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    /// Holds no secret: the model and its user see it.
    pub(crate) detail: String,
}

/// What went wrong, in the words of the public web tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidToolInput,
    UrlTooLong,
    UrlNotAllowed,
    UrlNotInPriorContext,
    UrlNotAccessible,
    UnsupportedContentType,
    ContentTooLarge,
    QueryTooLong,
    TooManyRequests,
    Unavailable,
}

impl Failure {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// A request that did not get through. The innermost cause says what happened; the outer ones repeat the address.
    pub(crate) fn unreachable(error: &reqwest::Error) -> Self {
        let mut cause = error.source();
        let mut detail =
            if error.is_timeout() { "it took too long".to_owned() } else { "no answer".to_owned() };
        while let Some(error) = cause {
            detail = error.to_string();
            cause = error.source();
        }
        Self::new(Code::UrlNotAccessible, detail)
    }
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::InvalidToolInput => "invalid_tool_input",
            Self::UrlTooLong => "url_too_long",
            Self::UrlNotAllowed => "url_not_allowed",
            Self::UrlNotInPriorContext => "url_not_in_prior_context",
            Self::UrlNotAccessible => "url_not_accessible",
            Self::UnsupportedContentType => "unsupported_content_type",
            Self::ContentTooLarge => "content_too_large",
            Self::QueryTooLong => "query_too_long",
            Self::TooManyRequests => "too_many_requests",
            Self::Unavailable => "unavailable",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.code.name(), self.detail)
    }
}
