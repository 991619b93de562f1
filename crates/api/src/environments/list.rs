//! `GET /v1/environments`: newest first.

use axum::Json;
use axum::extract::State;
use protocol::environment::Environment;
use protocol::page::Page;
use store::{EnvironmentQuery, Order, TimeBounds};

use crate::Door;
use crate::auth::Caller;
use crate::cursor::RowCursor;
use crate::error::Error;
use crate::page;
use crate::query::Query;

const LIST: &str = "environments";
const LIMIT: usize = 20;
const LIMIT_MAX: usize = 1_000;

pub(crate) async fn list(
    State(door): State<Door>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<Environment>>, Error> {
    let limit = query.limit(LIMIT, LIMIT_MAX)?;
    let cursor = RowCursor::take(&mut query, LIST, Order::Desc, &TimeBounds::default())?;
    let include_archived = query.flag("include_archived")?;
    query.finish()?;
    let query =
        EnvironmentQuery { include_archived, after: cursor.as_ref().map(page::place), limit: limit + 1 };
    let environments = door.app.store.list_environments(&caller.workspace, query).await?;
    let place = |environment: &Environment| (environment.created_at, environment.id.to_string());
    Ok(Json(page::forward(environments, limit, LIST, Order::Desc, place)))
}
