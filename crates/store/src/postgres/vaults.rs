//! Vaults. Whatever adds to a vault holds its row, so that archiving and deleting it miss nothing.

use protocol::id::{VaultId, WorkspaceId};
use protocol::time::Timestamp;
use protocol::vault::Vault;
use tokio_postgres::types::Type;

use crate::error::ChangeError;
use crate::postgres::connect::Db;
use crate::postgres::fault::Fault;
use crate::postgres::heads::json;
use crate::postgres::resources::{Changed, raced};
use crate::postgres::sessions::Conditions;
use crate::resources::{Change, ran, unwound};
use crate::vaults::VaultQuery;

/// Keeps a new vault; false if its id is taken.
pub(crate) async fn create(db: &Db, workspace: &WorkspaceId, vault: &Vault) -> Result<bool, Fault> {
    const CREATE: &str = "
        INSERT INTO vault (id, workspace, created_at, archived_at, body) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT DO NOTHING RETURNING 1";
    let body = serde_json::to_string(vault)?;
    let params = [
        (&vault.id.as_str() as _, Type::TEXT),
        (&workspace.as_str() as _, Type::TEXT),
        (&vault.created_at.as_micros() as _, Type::INT8),
        (&vault.archived_at.map(Timestamp::as_micros) as _, Type::INT8),
        (&body as _, Type::TEXT),
    ];
    Ok(db.query_opt(CREATE, &params).await?.is_some())
}

/// A vault.
pub(crate) async fn get(db: &Db, workspace: &WorkspaceId, id: &VaultId) -> Result<Option<Vault>, Fault> {
    const GET: &str = "SELECT body FROM vault WHERE id = $1 AND workspace = $2";
    let params = [(&id.as_str() as _, Type::TEXT), (&workspace.as_str() as _, Type::TEXT)];
    db.query_opt(GET, &params).await?.map(|row| json(&row, 0)).transpose()
}

/// Vaults, newest first.
pub(crate) async fn list(db: &Db, workspace: &WorkspaceId, query: &VaultQuery) -> Result<Vec<Vault>, Fault> {
    let VaultQuery { include_archived, after, limit } = query;
    let mut conditions = Conditions::default();
    conditions.and_text("workspace = ?", workspace.as_str());
    if !include_archived {
        conditions.and("archived_at IS NULL", []);
    }
    if let Some(cursor) = after {
        conditions.and_beyond("id", "<", cursor);
    }
    let sql = format!(
        "SELECT body FROM vault{} ORDER BY created_at DESC, id COLLATE \"C\" DESC LIMIT {}",
        conditions.text(),
        i64::try_from(*limit).unwrap_or(i64::MAX),
    );
    db.query(&sql, &conditions.params()).await?.iter().map(|row| json(row, 0)).collect()
}

/// Changes a vault, unless somebody else did meanwhile.
pub(crate) async fn change(
    db: &Db,
    workspace: &WorkspaceId,
    id: &VaultId,
    change: Change<Vault>,
) -> Changed<Vault> {
    // What is compared is the text, which holds everything.
    const READ: &str = "SELECT body FROM vault WHERE id = $1 AND workspace = $2";
    let params = [(&id.as_str() as _, Type::TEXT), (&workspace.as_str() as _, Type::TEXT)];
    let Some(row) = db.query_opt(READ, &params).await? else { return Ok(Err(ChangeError::NotFound)) };
    let text: String = row.get(0);
    let before: Vault = json(&row, 0)?;
    let after = match unwound(ran(change, &before)) {
        Ok(Some(after)) => after,
        Ok(None) => return Ok(Ok(before)),
        Err(refused) => return Ok(Err(refused)),
    };
    const REPLACE: &str = "UPDATE vault SET body = $3 WHERE id = $1 AND body = $2 RETURNING 1";
    let body = serde_json::to_string(&after)?;
    let params = [(&id.as_str() as _, Type::TEXT), (&text as _, Type::TEXT), (&body as _, Type::TEXT)];
    let is_written = db.query_opt(REPLACE, &params).await?.is_some();
    Ok(if is_written { Ok(after) } else { Err(raced("vault")) })
}

/// Archives a vault and its credentials.
pub(crate) async fn archive(
    db: &Db,
    workspace: &WorkspaceId,
    id: &VaultId,
    now: Timestamp,
) -> Result<Option<Vault>, Fault> {
    // The body of the vault as it is when its row is held.
    const ARCHIVE: &str = "
        UPDATE vault SET archived_at = $3,
            body = jsonb_set(jsonb_set(body::jsonb, '{archived_at}', $4::jsonb), '{updated_at}', $4::jsonb)::text
        WHERE id = $1 AND workspace = $2 AND archived_at IS NULL";
    const PURGE: &str = "
        UPDATE credential SET archived_at = $3, updated_at = $3, sealed = NULL, refresher = NULL, refresher_until = NULL,
            version = version + 1
        WHERE vault = $1 AND workspace = $2 AND archived_at IS NULL
        AND EXISTS (SELECT 1 FROM vault WHERE id = $1 AND workspace = $2 AND archived_at IS NOT NULL)";
    const GET: &str = "SELECT body FROM vault WHERE id = $1 AND workspace = $2";
    let (id, workspace, at) = (id.as_str(), workspace.as_str(), now.as_micros());
    let text = serde_json::to_string(&now)?;
    let rows = db
        .together(&[
            (ARCHIVE, &[(&id, Type::TEXT), (&workspace, Type::TEXT), (&at, Type::INT8), (&text, Type::TEXT)]),
            (PURGE, &[(&id, Type::TEXT), (&workspace, Type::TEXT), (&at, Type::INT8)]),
            (GET, &[(&id, Type::TEXT), (&workspace, Type::TEXT)]),
        ])
        .await?;
    rows[2].first().map(|row| json(row, 0)).transpose()
}

/// Deletes a vault and its credentials; false if there is no such vault.
pub(crate) async fn delete(db: &Db, workspace: &WorkspaceId, id: &VaultId) -> Result<bool, Fault> {
    const DELETE: &str = "DELETE FROM vault WHERE id = $1 AND workspace = $2 RETURNING 1";
    const PURGE: &str = "
        DELETE FROM credential WHERE vault = $1 AND workspace = $2 AND NOT EXISTS (SELECT 1 FROM vault WHERE id = $1)";
    let (id, workspace) = (id.as_str(), workspace.as_str());
    let rows = db
        .together(&[
            (DELETE, &[(&id, Type::TEXT), (&workspace, Type::TEXT)]),
            (PURGE, &[(&id, Type::TEXT), (&workspace, Type::TEXT)]),
        ])
        .await?;
    Ok(!rows[0].is_empty())
}
