//! `GET /v1/models/{model_id}`.

use axum::Json;
use axum::extract::State;
use protocol::model::{Lifecycle, ModelInfo, ModelTag};
use protocol::time::Timestamp;

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
    let catalog = &door.app.models;
    if let Some(model) = catalog.models.iter().find(|model| model.id == id) {
        return Ok(Json(model.clone()));
    }
    // A name that only a pattern serves is not listed, but it can be run, so that it can be looked up.
    if catalog.resolves(&id) {
        return Ok(Json(unknown(id)));
    }
    Err(Error::missing("Model", id))
}

/// A model of which nothing is known but its name. The wire gives the epoch for an unknown release.
fn unknown(id: String) -> ModelInfo {
    ModelInfo {
        tag: ModelTag::Model,
        display_name: id.clone(),
        id,
        created_at: Timestamp::from_micros(0),
        lifecycle: Lifecycle::Active,
        deprecated_at: None,
        retires_at: None,
        line: None,
        max_input_tokens: None,
        max_tokens: None,
        capabilities: None,
        allowed_fallback_models: None,
    }
}
