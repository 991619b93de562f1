//! `GET /v1/sessions/{session_id}`.

use axum::Json;
use axum::extract::State;
use protocol::id::SessionId;
use protocol::session::Session;

use super::{find, shown};
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoQuery};

pub(crate) async fn retrieve(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    _: NoQuery,
) -> Result<Json<Session>, Error> {
    let found = find(&door, &caller, &id).await?;
    Ok(Json(shown(&found, &door.app.store)))
}
