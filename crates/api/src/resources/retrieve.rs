//! `GET /v1/sessions/{session_id}/resources/{resource_id}`.

use axum::Json;
use axum::extract::State;
use protocol::id::{ResourceId, SessionId};
use protocol::resource::Resource;

use super::find;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoQuery};

pub(crate) async fn retrieve(
    State(door): State<Door>,
    caller: Caller,
    Ids((session, id)): Ids<(SessionId, ResourceId)>,
    _: NoQuery,
) -> Result<Json<Resource>, Error> {
    find(&door, &caller, &session, &id).await.map(Json)
}
