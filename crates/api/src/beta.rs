//! The beta header that the managed-agents paths require. Betas that are not known are ignored: clients send them for
//! other features.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use protocol::parse::Invalid;

use crate::error::{BETA_REQUIRED, Error};

const HEADER: &str = "anthropic-beta";
const REQUIRED: &str = "managed-agents-2026-04-01";

/// The layer of agents, environments, sessions and events.
pub(crate) async fn required(request: Request, next: Next) -> Response {
    if has_beta(request.headers()) {
        return next.run(request).await;
    }
    Error::Invalid(Invalid::new(HEADER, BETA_REQUIRED)).into_response()
}

/// The layer of threads, which do not exist without the header.
pub(crate) async fn required_on_threads(request: Request, next: Next) -> Response {
    if has_beta(request.headers()) { next.run(request).await } else { Error::NotEnrolled.into_response() }
}

/// Whether one of the header's lists names the required beta.
fn has_beta(headers: &HeaderMap) -> bool {
    headers
        .get_all(HEADER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .any(|beta| beta.trim() == REQUIRED)
}
