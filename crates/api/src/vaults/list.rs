//! `GET /v1/vaults`: newest first.

use axum::Json;
use axum::extract::State;
use protocol::page::Page;
use protocol::vault::Vault;
use store::{Order, TimeBounds, VaultQuery};

use crate::Door;
use crate::auth::Caller;
use crate::cursor::RowCursor;
use crate::error::Error;
use crate::page;
use crate::query::Query;

const LIST: &str = "vaults";
const LIMIT: usize = 20;
const LIMIT_MAX: usize = 100;

pub(crate) async fn list(
    State(door): State<Door>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Page<Vault>>, Error> {
    let limit = query.limit(LIMIT, LIMIT_MAX)?;
    let cursor = RowCursor::take(&mut query, LIST, Order::Desc, &TimeBounds::default())?;
    let include_archived = query.flag("include_archived")?;
    query.finish()?;
    let query = VaultQuery { include_archived, after: cursor.as_ref().map(page::place), limit: limit + 1 };
    let vaults = door.app.store.list_vaults(&caller.workspace, query).await?;
    let place = |vault: &Vault| (vault.created_at, vault.id.to_string());
    Ok(Json(page::forward(vaults, limit, LIST, Order::Desc, place)))
}
