//! `GET /v1/sessions/{session_id}/events/stream`.

use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use http::HeaderMap;
use http::request::Parts;
use protocol::event::PreviewKind;
use protocol::id::SessionId;
use protocol::parse::{Invalid, clipped};
use protocol::position::Position;
use session::State as SessionState;
use store::{Follower, From};

use crate::auth::Caller;
use crate::error::Error;
use crate::extract::Ids;
use crate::query::Query;
use crate::sessions::SESSION;
use crate::{Door, sse};

/// How many values `event_deltas[]` may have.
const DELTAS_MAX: usize = 100;
const LAST_EVENT_ID: &str = "last-event-id";
const AFTER: &str = "after";

pub(crate) async fn stream(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    wanted: Wanted,
) -> Result<Response, Error> {
    let Opened { follower, .. } = open(&door, &caller, &id, &wanted).await?;
    Ok(sse::respond(follower, wanted.previews, door.stop))
}

/// What a stream shows.
pub(crate) struct Wanted {
    from: From,
    /// What the place to resume from was given in, for refusals.
    place: &'static str,
    pub(crate) previews: Vec<PreviewKind>,
}

impl<S: Sync> FromRequestParts<S> for Wanted {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let mut query = Query::parse(parts.uri.query())?;
        let previews = previews(&mut query)?;
        let after = query.text(AFTER)?;
        query.finish()?;
        // The header wins: whoever reconnects by itself repeats the address, with what it has seen in the header.
        let (place, from) = match last_event_id(&parts.headers)? {
            Some(position) => (LAST_EVENT_ID, Some(position)),
            None => (AFTER, after.map(|text| position(AFTER, &text)).transpose()?),
        };
        Ok(Self { from: from.map_or(From::Now, From::After), place, previews })
    }
}

fn previews(query: &mut Query) -> Result<Vec<PreviewKind>, Error> {
    let kinds = query.some_of("event_deltas", &["agent.message", "agent.thinking"])?;
    if kinds.len() > DELTAS_MAX {
        let rule = format!("must have at most {DELTAS_MAX} values, not {}", kinds.len());
        return Err(Invalid::new("event_deltas", rule).into());
    }
    let mut previews = Vec::new();
    for (name, kind) in [("agent.message", PreviewKind::Message), ("agent.thinking", PreviewKind::Thinking)] {
        if kinds.contains(&name) {
            previews.push(kind);
        }
    }
    Ok(previews)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Position>, Error> {
    match headers.get(LAST_EVENT_ID) {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => position(LAST_EVENT_ID, value.to_str().unwrap_or("(not text)")).map(Some),
    }
}

fn position(name: &str, text: &str) -> Result<Position, Error> {
    // `parse` alone would take a sign.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number).map(Position).ok_or_else(|| {
        Invalid::new(name, format!("must be the `id` of an event of this stream, not `{}`", clipped(text)))
            .into()
    })
}

/// A session that is being followed.
pub(crate) struct Opened {
    pub(crate) follower: Follower,
    pub(crate) state: SessionState,
}

/// Begins to follow, then looks whether the caller may: what is committed from now on will be shown, and a session
/// that is deleted from now on says so on the stream.
pub(crate) async fn open(
    door: &Door,
    caller: &Caller,
    id: &SessionId,
    wanted: &Wanted,
) -> Result<Opened, Error> {
    let missing = || Error::missing(SESSION, id);
    let store = &door.app.store;
    let mut follower = store.follow(id, wanted.from).await?.ok_or_else(missing)?;
    let state = store.get_session(&caller.workspace, id).await?.ok_or_else(missing)?.state;
    if let From::After(position) = wanted.from
        && position > state.head
    {
        let rule = format!("is beyond the last event of the session, which is {}", state.head);
        return Err(Invalid::new(wanted.place, rule).into());
    }
    if !wanted.previews.is_empty() {
        follower.want_previews().await;
    }
    Ok(Opened { follower, state })
}
