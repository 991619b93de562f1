//! Who asks: API keys in two headers, and the workspace they belong to.
//!
//! The header's name says nothing about the kind of credential; the value is looked up by its hash. Keys are never
//! logged and never repeated to the client.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use protocol::id::WorkspaceId;
use store::{KeyHash, hash_key};
use tokio::time::Instant;

use crate::Door;
use crate::error::Error;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const WORKSPACE: HeaderName = HeaderName::from_static("anthropic-workspace-id");

/// How long a key is believed without asking the store: how long a revoked key may still work.
const FRESH_MAX: Duration = Duration::from_secs(1);
/// How many keys are remembered. More keys than this at once only means more questions to the store.
const REMEMBERED_MAX: usize = 1_024;

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// All that the caller can see.
    pub(crate) workspace: WorkspaceId,
}

/// Keys that were found a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<KeyHash, (Caller, Instant)>>);

impl Known {
    fn find(&self, hash: &KeyHash, now: Instant) -> Option<Caller> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.get(hash).filter(|(_, until)| now < *until).map(|(caller, _)| caller.clone())
    }

    fn remember(&self, hash: KeyHash, caller: Caller, now: Instant) {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= REMEMBERED_MAX {
            keys.retain(|_, (_, until)| now < *until);
        }
        if keys.len() < REMEMBERED_MAX {
            keys.insert(hash, (caller, now + FRESH_MAX));
        }
    }
}

/// The layer in front of every path but `/health`.
pub(crate) async fn authenticate(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let caller = match find_caller(&door, request.headers()).await {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let workspace = HeaderValue::try_from(caller.workspace.as_str()).ok();
    request.extensions_mut().insert(caller);
    let mut response = next.run(request).await;
    if let Some(workspace) = workspace {
        response.headers_mut().insert(WORKSPACE, workspace);
    }
    response
}

async fn find_caller(door: &Door, headers: &HeaderMap) -> Result<Caller, Error> {
    let key = key_of(headers).ok_or(Error::Unauthenticated(
        "an API key is required, as `Authorization: Bearer <key>` or as `x-api-key: <key>`",
    ))?;
    let hash = hash_key(key);
    let now = Instant::now();
    let caller = match door.known.find(&hash, now) {
        Some(caller) => caller,
        None => {
            let found =
                door.app.store.find_key(hash).await?.ok_or(Error::Unauthenticated("invalid API key"))?;
            let caller = Caller { workspace: found.workspace };
            door.known.remember(hash, caller.clone(), now);
            caller
        }
    };
    if headers.get_all(WORKSPACE).iter().any(|asked| asked.as_bytes() != caller.workspace.as_str().as_bytes())
    {
        return Err(Error::Forbidden("anthropic-workspace-id: the API key belongs to another workspace"));
    }
    Ok(caller)
}

fn key_of(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
    });
    bearer.or_else(|| headers.get(API_KEY)?.to_str().ok()).filter(|key| !key.is_empty())
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        // Missing only if a path was added outside the layer: then nobody gets in.
        parts.extensions.get().cloned().ok_or(Error::Unauthenticated("an API key is required"))
    }
}
