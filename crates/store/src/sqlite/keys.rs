//! Workspaces and API keys.

use protocol::id::{ApiKeyId, WorkspaceId};
use protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::keys::{ApiKey, KeyHash};
use crate::sqlite::fault::Fault;

/// The first workspace, made if there is none.
pub(crate) fn ensure_workspace(
    conn: &Connection,
    made: WorkspaceId,
    now: Timestamp,
) -> Result<WorkspaceId, Fault> {
    const FIRST: &str = "SELECT id FROM workspace ORDER BY created_at, id LIMIT 1";
    let found: Option<String> = conn.query_row(FIRST, [], |row| row.get(0)).optional()?;
    if let Some(id) = found {
        return Ok(WorkspaceId::from_text(id));
    }
    create_workspace(conn, &made, now)?;
    Ok(made)
}

/// Makes another workspace.
pub(crate) fn create_workspace(conn: &Connection, made: &WorkspaceId, now: Timestamp) -> Result<(), Fault> {
    const INSERT: &str = "INSERT INTO workspace (id, created_at) VALUES (?1, ?2)";
    conn.execute(INSERT, params![made.as_str(), now.as_micros()])?;
    Ok(())
}

/// All workspaces, oldest first.
pub(crate) fn workspaces(conn: &Connection) -> Result<Vec<WorkspaceId>, Fault> {
    let mut statement = conn.prepare_cached("SELECT id FROM workspace ORDER BY created_at, id")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.map(|id| id.map(WorkspaceId::from_text)).collect::<Result<_, _>>()?)
}

/// Keeps a new key; false if it is kept already.
pub(crate) fn create(conn: &Connection, key: &ApiKey, hash: &KeyHash) -> Result<bool, Fault> {
    const INSERT: &str = "
        INSERT INTO api_key (id, workspace, name, hash, created_at, revoked_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
        ON CONFLICT DO NOTHING";
    let inserted = conn.prepare_cached(INSERT)?.execute(params![
        key.id.as_str(),
        key.workspace.as_str(),
        key.name,
        hash.as_slice(),
        key.created_at.as_micros(),
        key.revoked_at.map(Timestamp::as_micros),
    ])?;
    Ok(inserted == 1)
}

/// A workspace's keys, oldest first.
pub(crate) fn list(conn: &Connection, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Fault> {
    const LIST: &str = "
        SELECT id, workspace, name, created_at, revoked_at FROM api_key WHERE workspace = ?1
        ORDER BY created_at, id";
    let mut statement = conn.prepare_cached(LIST)?;
    let keys = statement.query_map([workspace.as_str()], key)?.collect::<Result<_, _>>()?;
    Ok(keys)
}

/// Revokes a key for good; `None` if there is no such key.
pub(crate) fn revoke(
    conn: &Connection,
    workspace: &WorkspaceId,
    id: &ApiKeyId,
    now: Timestamp,
) -> Result<Option<ApiKey>, Fault> {
    const REVOKE: &str = "
        UPDATE api_key SET revoked_at = ifnull(revoked_at, ?3) WHERE id = ?1 AND workspace = ?2
        RETURNING id, workspace, name, created_at, revoked_at";
    let place = params![id.as_str(), workspace.as_str(), now.as_micros()];
    Ok(conn.prepare_cached(REVOKE)?.query_row(place, key).optional()?)
}

/// The key with that hash, unless it is revoked.
pub(crate) fn find(conn: &Connection, hash: &KeyHash) -> Result<Option<ApiKey>, Fault> {
    const FIND: &str = "
        SELECT id, workspace, name, created_at, revoked_at FROM api_key WHERE hash = ?1 AND revoked_at IS NULL";
    Ok(conn.prepare_cached(FIND)?.query_row([hash.as_slice()], key).optional()?)
}

fn key(row: &Row<'_>) -> rusqlite::Result<ApiKey> {
    Ok(ApiKey {
        id: ApiKeyId::from_text(row.get::<_, String>(0)?),
        workspace: WorkspaceId::from_text(row.get::<_, String>(1)?),
        name: row.get(2)?,
        created_at: Timestamp::from_micros(row.get(3)?),
        revoked_at: row.get::<_, Option<i64>>(4)?.map(Timestamp::from_micros),
    })
}
