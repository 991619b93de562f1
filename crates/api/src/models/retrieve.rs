//! `GET /v1/models/{model_id}`: one of those that are listed. A name that only a pattern serves is not.

use axum::Json;
use axum::extract::State;
use protocol::model::ModelInfo;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoQuery};

pub(crate) async fn retrieve(
    State(door): State<Door>,
    _: Caller,
    Ids(id): Ids<String>,
    _: NoQuery,
) -> Result<Json<ModelInfo>, Error> {
    let found = door.app.models.models.iter().find(|model| model.id == id);
    found.cloned().map(Json).ok_or_else(|| Error::missing("Model", id))
}
