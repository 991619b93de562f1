//! The outermost layer: the request's id, its span, the standard error body, and the last stop of a panic.
//!
//! The span holds what an operator needs to find a request again. Never bodies, never headers: keys are in them.

use std::panic::AssertUnwindSafe;

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{Method, Uri};
use protocol::id::RequestId;
use tokio::time::Instant;
use tracing::Instrument;

use crate::error::{Error, Problem};
use crate::{Door, health};

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

pub(crate) async fn envelope(State(door): State<Door>, request: Request, next: Next) -> Response {
    let id: RequestId = door.app.store.ids().make();
    let started = Instant::now();
    // The template, not the path: ids would make every line of its own kind.
    let route = request.extensions().get::<MatchedPath>().map_or("(none)", MatchedPath::as_str);
    let is_probe = route == health::READY;
    let span = tracing::info_span!(
        "request",
        http.method = %request.method(),
        http.route = route,
        http.status = tracing::field::Empty,
        request.id = %id,
    );
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response = answered.unwrap_or_else(|_| Error::Panicked.into_response());
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response = with_body(response, problem, &id);
    }
    if let Ok(id) = HeaderValue::try_from(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let status = response.status();
    let duration_ms = started.elapsed().as_secs_f64() * 1_000.0;
    span.record("http.status", status.as_u16());
    let _entered = span.enter();
    // Probes come every few seconds, and what they find is told once, when it changes.
    if status.is_server_error() && !is_probe {
        tracing::warn!(duration_ms, "a request was answered with a server error");
    } else {
        tracing::debug!(duration_ms, "a request was answered");
    }
    response
}

/// Puts the standard body under the status and the headers of an error.
fn with_body(response: Response, problem: Problem, id: &RequestId) -> Response {
    let (parts, _) = response.into_parts();
    let mut with_body = (parts.status, Json(problem.body(id.as_str()))).into_response();
    for (name, value) in &parts.headers {
        if name != CONTENT_LENGTH {
            with_body.headers_mut().insert(name, value.clone());
        }
    }
    with_body
}

/// The answer to a path that is not ours.
pub(crate) async fn no_such_path(method: Method, uri: Uri) -> Error {
    Error::NoSuchPath { method, path: uri.path().to_owned() }
}

/// The answer to a method that a path does not have. The router adds the list of those it has.
pub(crate) async fn no_such_method(method: Method, uri: Uri) -> Error {
    Error::NoSuchMethod { method, path: uri.path().to_owned() }
}
