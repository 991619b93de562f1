//! Why a model did not answer, in terms of what can be done about it.
//!
//! The texts that providers send are for people and may hold anything, our own key included. What leaves this file
//! is bounded, printable and free of keys.

use std::time::Duration;

use protocol::event::ModelUsage;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;

use super::key::ApiKey;

/// No retry waits longer than this because a provider says so.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Enough for every documented message; a page of HTML is not one.
const MESSAGE_CHARS_MAX: usize = 400;

const REDACTED: &str = "[redacted]";

/// A request to a model that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong.
    pub kind: FailureKind,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// How long the provider asks to wait before that.
    pub retry_after: Option<Duration>,
    /// For people: names the layer, holds no key, is short.
    pub message: String,
    /// The HTTP status, if there was a response.
    pub status: Option<u16>,
    /// What was used until then, as far as the provider said.
    pub usage: ModelUsage,
}

/// What can go wrong between us and a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The provider is too busy.
    Overloaded,
    /// The provider limits our rate.
    RateLimited,
    /// Out of credit, or over a spending limit.
    Billing,
    /// The key is wrong, missing or not allowed to do this.
    Authentication,
    /// The provider does not accept the request.
    InvalidRequest,
    /// The request is larger than the provider or the model's context takes.
    TooLarge,
    /// The provider does not know the model.
    NotFound,
    /// No answer in time.
    Timeout,
    /// The provider cannot be reached.
    Connection,
    /// The connection broke in mid-answer.
    Stream,
    /// The provider's own fault.
    Server,
    /// The response is not what the wire format says.
    Malformed,
    /// No provider is configured for the model.
    Unconfigured,
}

impl FailureKind {
    fn is_retryable(self) -> bool {
        match self {
            Self::Overloaded
            | Self::RateLimited
            | Self::Timeout
            | Self::Connection
            | Self::Stream
            | Self::Server
            | Self::Malformed => true,
            Self::Billing
            | Self::Authentication
            | Self::InvalidRequest
            | Self::TooLarge
            | Self::NotFound
            | Self::Unconfigured => false,
        }
    }

    fn phrase(self) -> &'static str {
        match self {
            Self::Overloaded => "the provider is overloaded",
            Self::RateLimited => "the provider limits the rate of requests",
            Self::Billing => "the provider reports a billing problem",
            Self::Authentication => "the provider does not accept the credentials",
            Self::InvalidRequest => "the provider does not accept the request",
            Self::TooLarge => "the conversation is too large for the model",
            Self::NotFound => "the provider does not know the model",
            Self::Timeout => "the provider did not answer in time",
            Self::Connection => "the provider cannot be reached",
            Self::Stream => "the connection broke in the middle of the answer",
            Self::Server => "the provider failed",
            Self::Malformed => "the provider's response cannot be understood",
            Self::Unconfigured => "no provider is configured for the model",
        }
    }
}

impl Failure {
    /// A failure of this kind, with what there is to say beyond the kind. `detail` must hold no secret.
    pub(super) fn new(kind: FailureKind, detail: &str) -> Self {
        let detail = printable(detail);
        let message = match detail.as_str() {
            "" => format!("model: {}", kind.phrase()),
            detail => format!("model: {}: {detail}", kind.phrase()),
        };
        Self {
            kind,
            retryable: kind.is_retryable(),
            retry_after: None,
            message,
            status: None,
            usage: ModelUsage::default(),
        }
    }

    /// The provider's limits are used up for longer than a request waits.
    pub(crate) fn out_of_pace(wait: Duration) -> Self {
        let detail = format!("by its own figures none may leave for another {} s", wait.as_secs_f64().ceil());
        let mut failure = Self::new(FailureKind::RateLimited, &detail);
        failure.retry_after = Some(wait);
        failure
    }

    pub(super) fn disconnected() -> Self {
        Self::new(FailureKind::Stream, "")
    }

    pub(super) fn with_usage(mut self, usage: ModelUsage) -> Self {
        self.usage = usage;
        self
    }
}

/// What a provider's error says, in whichever of the usual shapes.
#[derive(Debug, Default)]
pub(super) struct Reported {
    /// `error.type`
    kind: String,
    /// `error.code` or `error.details.error_code`
    code: String,
    message: String,
}

impl Reported {
    /// Reads an error body. Text that is no JSON is the message.
    pub(super) fn read(body: &str) -> Self {
        let Ok(json) = serde_json::from_str::<Value>(body) else {
            return Self { message: body.to_owned(), ..Self::default() };
        };
        Self::from_json(&json)
    }

    /// Reads an error object: `{"error": {…}}`, `{"error": "…"}`, `{"detail": "…"}`, or the inner object itself.
    pub(super) fn from_json(json: &Value) -> Self {
        let error = json.get("error").unwrap_or(json);
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let message = match error {
            Value::String(message) => message.clone(),
            error => error.get("message").or_else(|| error.get("detail")).map(text).unwrap_or_default(),
        };
        let details_code = error.pointer("/details/error_code").filter(|code| code.is_string());
        Self {
            kind: error.get("type").map(text).unwrap_or_default(),
            code: details_code.or_else(|| error.get("code")).map(text).unwrap_or_default(),
            message,
        }
    }

    /// The failure that this means. `status` is that of the response, or `None` for an error inside a stream.
    pub(super) fn into_failure(
        self,
        status: Option<u16>,
        headers: &HeaderMap,
        secrets: &[ApiKey],
    ) -> Failure {
        let kind = self.failure_kind(status);
        let mut failure = Failure::new(kind, &redact(&self.message, secrets));
        failure.status = status;
        failure.retry_after = retry_after(headers);
        // The provider knows best, except that no retry fills an empty account.
        match headers.get("x-should-retry").map(HeaderValue::as_bytes) {
            Some(b"true") if kind != FailureKind::Billing => failure.retryable = true,
            Some(b"false") => failure.retryable = false,
            _ => {}
        }
        failure
    }

    fn failure_kind(&self, status: Option<u16>) -> FailureKind {
        if let Some(kind) = self.kind_by_code() {
            return kind;
        }
        match status {
            None | Some(200..300) => self.kind_by_type().unwrap_or(FailureKind::Server),
            // Redirects are not followed: a key must not travel to an address nobody configured.
            Some(300..400) => FailureKind::Malformed,
            Some(401 | 403) => FailureKind::Authentication,
            Some(402) => FailureKind::Billing,
            Some(404) => FailureKind::NotFound,
            Some(408 | 504) => FailureKind::Timeout,
            Some(409) => FailureKind::Server,
            Some(413) => FailureKind::TooLarge,
            Some(429) => FailureKind::RateLimited,
            Some(503 | 529) => FailureKind::Overloaded,
            Some(400..500) => FailureKind::InvalidRequest,
            Some(_) => self.kind_by_type().unwrap_or(FailureKind::Server),
        }
    }

    /// What is more specific than the status.
    fn kind_by_code(&self) -> Option<FailureKind> {
        match self.code.as_str() {
            "insufficient_quota" | "billing_hard_limit_reached" | "billing_not_active" => {
                return Some(FailureKind::Billing);
            }
            code if code.ends_with("spend_limit_reached") => return Some(FailureKind::Billing),
            "context_length_exceeded" => return Some(FailureKind::TooLarge),
            "model_not_found" => return Some(FailureKind::NotFound),
            "invalid_api_key" => return Some(FailureKind::Authentication),
            _ => {}
        }
        match self.kind.as_str() {
            "exceed_context_size_error" => return Some(FailureKind::TooLarge),
            "insufficient_quota" | "billing_error" => return Some(FailureKind::Billing),
            _ => {}
        }
        // These two have no code of their own. If the wording changes they are an invalid request again, which is
        // handled too, only less well.
        let message = self.message.to_lowercase();
        if message.contains("prompt is too long") || message.contains("maximum context length") {
            return Some(FailureKind::TooLarge);
        }
        message.contains("credit balance is too low").then_some(FailureKind::Billing)
    }

    fn kind_by_type(&self) -> Option<FailureKind> {
        Some(match self.kind.as_str() {
            "overloaded_error" | "unavailable_error" | "service_unavailable" => FailureKind::Overloaded,
            "rate_limit_error" | "rate_limit_exceeded" | "requests" | "tokens" => FailureKind::RateLimited,
            "billing_error" => FailureKind::Billing,
            "authentication_error" | "permission_error" => FailureKind::Authentication,
            "invalid_request_error" | "BadRequestError" => FailureKind::InvalidRequest,
            "request_too_large" => FailureKind::TooLarge,
            "not_found_error" | "NotFoundError" => FailureKind::NotFound,
            "timeout_error" => FailureKind::Timeout,
            "api_error" | "server_error" | "internal_error" => FailureKind::Server,
            _ => return None,
        })
    }
}

/// How long the response asks to wait. A date counts from the response's own `date`, so that no clock is needed.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let positive = |seconds: f64| Duration::try_from_secs_f64(seconds).ok().filter(|wait| !wait.is_zero());
    let wait = if let Some(milliseconds) = text("retry-after-ms").and_then(|value| value.parse::<f64>().ok())
    {
        positive(milliseconds / 1000.0)
    } else {
        let value = text("retry-after")?;
        match value.parse::<f64>() {
            Ok(seconds) => positive(seconds),
            Err(_) => {
                let date = |value: &str| jiff::fmt::rfc2822::parse(value).ok();
                let (until, now) = (date(value)?, date(text("date")?)?);
                positive(until.timestamp().duration_since(now.timestamp()).as_secs_f64())
            }
        }
    };
    wait.map(|wait| wait.min(RETRY_AFTER_MAX))
}

/// Text without our secrets and without anything that looks like one: gateways echo headers, and providers quote the
/// key they did not like.
pub(super) fn redact(text: &str, secrets: &[ApiKey]) -> String {
    let without_ours =
        secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose(), REDACTED));
    let mut result = String::with_capacity(without_ours.len());
    let is_key_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*' | '.');
    for piece in without_ours.split_inclusive(|c| !is_key_char(c)) {
        let word = piece.trim_end_matches(|c| !is_key_char(c));
        let looks_like_a_key = word.starts_with("sk-") && word.len() > 6;
        result.push_str(if looks_like_a_key { REDACTED } else { word });
        result.push_str(&piece[word.len()..]);
    }
    result
}

/// Text on one line, without control characters, of bounded length.
fn printable(text: &str) -> String {
    let mut result = String::new();
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    for word in words {
        if !result.is_empty() {
            result.push(' ');
        }
        result.push_str(word);
        if let Some((cut, _)) = result.char_indices().nth(MESSAGE_CHARS_MAX) {
            result.truncate(cut);
            result.push('…');
            break;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn the_wait_is_read_from_every_form_of_the_header() {
        let wait = |pairs: &[_]| retry_after(&headers(pairs));
        assert_eq!(wait(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(wait(&[("retry-after", "0.5")]), Some(Duration::from_millis(500)));
        assert_eq!(
            wait(&[("retry-after-ms", "250"), ("retry-after", "9")]),
            Some(Duration::from_millis(250))
        );
        let date = ("date", "Mon, 23 Nov 2026 08:00:00 GMT");
        assert_eq!(
            wait(&[("retry-after", "Mon, 23 Nov 2026 08:00:30 GMT"), date]),
            Some(Duration::from_secs(30))
        );
        assert_eq!(wait(&[("retry-after", "Mon, 23 Nov 2026 07:59:00 GMT"), date]), None);
        assert_eq!(wait(&[("retry-after", "99999999")]), Some(RETRY_AFTER_MAX));
        assert_eq!(wait(&[("retry-after", "soon")]), None);
        assert_eq!(wait(&[]), None);
    }

    #[test]
    fn messages_are_short_printable_and_hold_no_key() {
        let key = ApiKey::new("secret-key-1").expect("a key");
        let text = format!(
            "x-api-key: secret-key-1,\n\u{7}Bearer sk-ant-api03-abc*def \"sk-proj-9\" {}",
            "z ".repeat(5000)
        );
        let failure = Reported::read(&text).into_failure(Some(400), &HeaderMap::new(), &[key]);
        let expected = "model: the provider does not accept the request: x-api-key: [redacted], Bearer [redacted] \"[redacted]\" z z";
        assert!(failure.message.starts_with(expected), "{}", failure.message);
        assert!(failure.message.chars().count() < 500);
    }

    #[test]
    fn the_kind_follows_from_code_status_and_type() {
        let kind = |status: Option<u16>, body: &str| {
            let failure = Reported::read(body).into_failure(status, &HeaderMap::new(), &[]);
            (failure.kind, failure.retryable)
        };
        let error = |kind: &str, rest: &str| {
            format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"m"{rest}}}}}"#)
        };
        for (status, body, expected, retryable) in [
            (Some(400), error("invalid_request_error", ""), FailureKind::InvalidRequest, false),
            (Some(401), error("authentication_error", ""), FailureKind::Authentication, false),
            (Some(402), error("billing_error", ""), FailureKind::Billing, false),
            (Some(403), error("permission_error", ""), FailureKind::Authentication, false),
            (Some(404), error("not_found_error", ""), FailureKind::NotFound, false),
            (Some(408), error("timeout_error", ""), FailureKind::Timeout, true),
            (Some(409), error("conflict_error", ""), FailureKind::Server, true),
            (Some(413), error("request_too_large", ""), FailureKind::TooLarge, false),
            (Some(422), String::new(), FailureKind::InvalidRequest, false),
            (Some(429), error("rate_limit_error", ""), FailureKind::RateLimited, true),
            (
                Some(429),
                error("rate_limit_error", r#","details":{"error_code":"enforced_spend_limit_reached"}"#),
                FailureKind::Billing,
                false,
            ),
            (Some(429), error("insufficient_quota", r#","code":"insufficient_quota""#), FailureKind::Billing, false),
            (Some(500), error("api_error", ""), FailureKind::Server, true),
            (Some(502), "<html>bad gateway</html>".into(), FailureKind::Server, true),
            (Some(503), error("unavailable_error", ""), FailureKind::Overloaded, true),
            (Some(504), error("timeout_error", ""), FailureKind::Timeout, true),
            (Some(529), error("overloaded_error", ""), FailureKind::Overloaded, true),
            (Some(302), String::new(), FailureKind::Malformed, true),
            (None, error("overloaded_error", ""), FailureKind::Overloaded, true),
            (None, error("api_error", ""), FailureKind::Server, true),
            (None, error("invalid_request_error", ""), FailureKind::InvalidRequest, false),
            (None, error("never_heard_of", ""), FailureKind::Server, true),
            (
                Some(400),
                r#"{"error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8 maximum"}}"#.into(),
                FailureKind::TooLarge,
                false,
            ),
            (Some(400), r#"{"error":{"code":"context_length_exceeded","message":"m"}}"#.into(), FailureKind::TooLarge, false),
            (Some(400), r#"{"error":{"code":400,"type":"exceed_context_size_error"}}"#.into(), FailureKind::TooLarge, false),
            (Some(404), r#"{"error":"model 'x' not found"}"#.into(), FailureKind::NotFound, false),
            (
                Some(400),
                r#"{"error":{"type":"invalid_request_error","message":"Your credit balance is too low"}}"#.into(),
                FailureKind::Billing,
                false,
            ),
        ] {
            assert_eq!(kind(status, &body), (expected, retryable), "{status:?} {body}");
        }
    }

    #[test]
    fn the_provider_may_say_whether_to_retry() {
        let failure = |status, hint| {
            Reported::default().into_failure(Some(status), &headers(&[("x-should-retry", hint)]), &[])
        };
        assert!(!failure(529, "false").retryable);
        assert!(failure(400, "true").retryable);
        assert!(!failure(402, "true").retryable);
    }
}
