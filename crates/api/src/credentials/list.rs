//! `GET /v1/vaults/{vault_id}/credentials`: newest first.

use axum::Json;
use axum::extract::State;
use protocol::credential::Credential;
use protocol::id::VaultId;
use protocol::page::Page;
use store::{CredentialQuery, Order, TimeBounds};

use crate::Door;
use crate::auth::Caller;
use crate::cursor::RowCursor;
use crate::error::Error;
use crate::extract::Ids;
use crate::page;
use crate::query::Query;
use crate::vaults::VAULT;

const LIMIT: usize = 20;
const LIMIT_MAX: usize = 100;

pub(crate) async fn list(
    State(door): State<Door>,
    caller: Caller,
    Ids(vault): Ids<VaultId>,
    mut query: Query,
) -> Result<Json<Page<Credential>>, Error> {
    let list = format!("credentials {vault}");
    let limit = query.limit(LIMIT, LIMIT_MAX)?;
    let cursor = RowCursor::take(&mut query, &list, Order::Desc, &TimeBounds::default())?;
    let include_archived = query.flag("include_archived")?;
    query.finish()?;
    let query =
        CredentialQuery { include_archived, after: cursor.as_ref().map(page::place), limit: limit + 1 };
    let found = door.app.store.list_credentials(&caller.workspace, &vault, query).await?;
    let found = found.ok_or_else(|| Error::missing(VAULT, &vault))?;
    let place = |credential: &Credential| (credential.created_at, credential.id.to_string());
    Ok(Json(page::forward(found, limit, &list, Order::Desc, place)))
}
