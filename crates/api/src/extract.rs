//! From a request to finished values: the JSON body, the absence of one, the ids in the path.
//!
//! Below this door nothing is checked twice. Bodies are bounded in size, in time and, over all requests together, in
//! memory.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::request::Parts;
use http_body_util::BodyExt;
use protocol::parse::{Fields, Invalid, clipped};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::Door;
use crate::error::Error;
use crate::query::Query;

/// The largest body (api reference, agents.md §0.3).
pub(crate) const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How much of a body that is too large is read and thrown away, so that a client which only looks for an answer
/// when it has sent everything gets to see it.
const DISCARD_BYTES_MAX: usize = 4 * BODY_BYTES_MAX;
/// How long a body may take to arrive, the wait for memory included.
const BODY_TIME_MAX: Duration = Duration::from_secs(120);
/// Bodies up to this size are read without asking: they cost no more than the connection itself.
const SMALL_BYTES_MAX: usize = 64 * 1024;
/// How many bytes of larger bodies may be in memory at once, over all requests: eight of the largest.
const BODIES_BYTES_MAX: usize = 8 * BODY_BYTES_MAX;

/// The memory that large bodies share.
#[derive(Clone)]
pub(crate) struct Bodies(Arc<Semaphore>);

impl Bodies {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_BYTES_MAX)))
    }
}

/// The body, as JSON of any kind.
pub(crate) struct Body(pub(crate) Value);

impl FromRequest<Door> for Body {
    type Rejection = Error;

    async fn from_request(request: Request, door: &Door) -> Result<Self, Error> {
        let is_json = is_json(request.headers());
        let bytes = read(request, door).await?;
        // An empty body is told so, whatever its type is said to be.
        if bytes.is_empty() {
            return Err(Invalid::new("", "must be a JSON object, but is empty").into());
        }
        is_json?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| not_json(&error))
    }
}

/// The body of a request that takes none. An empty object is as good as nothing.
pub(crate) struct NoBody;

impl FromRequest<Door> for NoBody {
    type Rejection = Error;

    async fn from_request(request: Request, door: &Door) -> Result<Self, Error> {
        let bytes = read(request, door).await?;
        if bytes.is_empty() {
            return Ok(Self);
        }
        match serde_json::from_slice(&bytes).map_err(|error| not_json(&error))? {
            Value::Null => Ok(Self),
            body => {
                Fields::new(body, "")?.finish()?;
                Ok(Self)
            }
        }
    }
}

/// The ids in the path.
pub(crate) struct Ids<T>(pub(crate) T);

impl<S, T> FromRequestParts<S> for Ids<T>
where
    S: Send + Sync,
    Path<T>: FromRequestParts<S, Rejection = PathRejection>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(ids)) => Ok(Self(ids)),
            Err(_) => Err(Invalid::new("path", "is not valid percent-encoded UTF-8").into()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Self::parse(parts.uri.query())
    }
}

/// The refusal of everything in the query string, for endpoints that take no parameters.
pub(crate) struct NoQuery;

impl<S: Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Query::parse(parts.uri.query())?.finish()?;
        Ok(Self)
    }
}

fn is_json(headers: &HeaderMap) -> Result<(), Error> {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or("(not text)");
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(Invalid::new("content-type", format!("must be `application/json`, not `{}`", clipped(kind))).into())
}

async fn read(request: Request, door: &Door) -> Result<Bytes, Error> {
    let encoding =
        request.headers().get(CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("(not text)"));
    if let Some(encoding) = encoding.filter(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        let rule = format!("`{}` is not supported by this server; send the body as it is", clipped(encoding));
        return Err(Invalid::new("content-encoding", rule).into());
    }
    timeout(BODY_TIME_MAX, collect(request, door)).await.unwrap_or(Err(Error::TooSlow))
}

async fn collect(request: Request, door: &Door) -> Result<Bytes, Error> {
    let too_large = Error::TooLarge { limit_bytes: BODY_BYTES_MAX };
    let (parts, mut body) = request.into_parts();
    let announced: Option<usize> =
        parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let is_too_large = announced.is_some_and(|announced| announced > BODY_BYTES_MAX);
    // Who asks before it sends need not send at all; nor who would send more than we care to throw away.
    if is_too_large && (parts.headers.contains_key(EXPECT) || announced > Some(DISCARD_BYTES_MAX)) {
        return Err(too_large);
    }
    let wanted = announced.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX);
    let _memory = if wanted > SMALL_BYTES_MAX && !is_too_large {
        let permits = u32::try_from(wanted).expect("the limit of a body fits");
        Some(door.bodies.0.acquire_many(permits).await.expect("nobody closes it"))
    } else {
        None
    };
    let mut collected = BytesMut::with_capacity(wanted.min(SMALL_BYTES_MAX));
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Error::Gone)?.into_data() else { continue };
        seen += data.len();
        if seen > DISCARD_BYTES_MAX {
            return Err(too_large);
        }
        if seen > BODY_BYTES_MAX || is_too_large {
            collected = BytesMut::new();
        } else {
            collected.extend_from_slice(&data);
        }
    }
    if seen > BODY_BYTES_MAX { Err(too_large) } else { Ok(collected.freeze()) }
}

/// Says where the text stops being JSON, without repeating the text.
fn not_json(error: &serde_json::Error) -> Error {
    Invalid::new("", format!("is not valid JSON: {error}")).into()
}
