//! `POST /v1/environments/{environment_id}/archive`: for good. Its sessions go on; new ones are refused.

use axum::Json;
use axum::extract::State;
use protocol::environment::Environment;
use protocol::id::EnvironmentId;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn archive(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<EnvironmentId>,
    _: NoQuery,
    _: NoBody,
) -> Result<Json<Environment>, Error> {
    let store = &door.app.store;
    let now = store.now();
    let change = Box::new(move |current: &Environment| {
        let archived = Environment { archived_at: Some(now), updated_at: now, ..current.clone() };
        Ok(current.archived_at.is_none().then_some(archived))
    });
    let environment = store.change_environment(&caller.workspace, &id, change).await;
    environment.map(Json).map_err(|error| Error::environment_change(error, &id))
}
