//! The standard error body.

use serde::{Deserialize, Serialize};

/// The kinds of error that the public API names (a closed list in the official clients).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// 400: the request is malformed or not allowed in this state.
    InvalidRequestError,
    /// 401: no key, or a key that is not known.
    AuthenticationError,
    /// 402: out of credit.
    BillingError,
    /// 403: the key may not do this.
    PermissionError,
    /// 404: no such thing in this workspace.
    NotFoundError,
    /// 409: the request lost against another, or the state forbids it for good.
    ConflictError,
    /// 413: the body is too large.
    RequestTooLarge,
    /// 429: too many requests.
    RateLimitError,
    /// 504: it took too long.
    TimeoutError,
    /// 500: our fault.
    ApiError,
    /// 529: too busy.
    OverloadedError,
}

/// The body of every answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Always `error`.
    #[serde(rename = "type")]
    pub tag: ErrorTag,
    /// What went wrong.
    pub error: ErrorDetail,
    /// The request that failed, as in the `request-id` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// The tag of an [`ErrorBody`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorTag {
    /// The only tag there is.
    Error,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// The kind.
    #[serde(rename = "type")]
    pub kind: ErrorKind,
    /// For people: names the field and the rule.
    pub message: String,
    /// For programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<ErrorCode>,
}

/// A reason that a program can tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCode {
    /// An open set, such as `invalid_metadata` or `environment_archived`.
    pub error_code: String,
}
