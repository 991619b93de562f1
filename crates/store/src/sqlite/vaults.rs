//! Vaults.

use protocol::id::{VaultId, WorkspaceId};
use protocol::time::Timestamp;
use protocol::vault::Vault;
use rusqlite::types::Value;
use rusqlite::{Connection, params, params_from_iter};

use crate::sqlite::fault::Fault;
use crate::sqlite::heads::json;
use crate::sqlite::listing::Conditions;
use crate::sqlite::slices::limit_of;
use crate::vaults::VaultQuery;

/// Keeps a new vault; false if its id is taken.
pub(crate) fn create(conn: &Connection, workspace: &WorkspaceId, vault: &Vault) -> Result<bool, Fault> {
    const CREATE: &str = "
        INSERT INTO vault (id, workspace, created_at, archived_at, body) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT DO NOTHING";
    let values = params![
        vault.id.as_str(),
        workspace.as_str(),
        vault.created_at.as_micros(),
        vault.archived_at.map(Timestamp::as_micros),
        serde_json::to_string(vault)?,
    ];
    Ok(conn.prepare_cached(CREATE)?.execute(values)? == 1)
}

/// A vault.
pub(crate) fn get(conn: &Connection, workspace: &WorkspaceId, id: &VaultId) -> Result<Option<Vault>, Fault> {
    let mut statement = conn.prepare_cached("SELECT body FROM vault WHERE id = ?1 AND workspace = ?2")?;
    let mut rows = statement.query([id.as_str(), workspace.as_str()])?;
    rows.next()?.map(|row| json(row, 0)).transpose()
}

/// Vaults, newest first.
pub(crate) fn list(
    conn: &Connection,
    workspace: &WorkspaceId,
    query: &VaultQuery,
) -> Result<Vec<Vault>, Fault> {
    let VaultQuery { include_archived, after, limit } = query;
    let mut conditions = Conditions::default();
    conditions.and("workspace = ?", [Value::from(workspace.as_str().to_owned())]);
    if !include_archived {
        conditions.and("archived_at IS NULL", []);
    }
    if let Some(cursor) = after {
        conditions.and_beyond("<", cursor);
    }
    let statement = format!(
        "SELECT body FROM vault{} ORDER BY created_at DESC, id DESC LIMIT {}",
        conditions.text(),
        limit_of(*limit),
    );
    let mut statement = conn.prepare_cached(&statement)?;
    let mut rows = statement.query(params_from_iter(conditions.values))?;
    let mut page = Vec::new();
    while let Some(row) = rows.next()? {
        page.push(json(row, 0)?);
    }
    Ok(page)
}

/// Puts a changed vault in the place of what it was.
pub(crate) fn replace(conn: &Connection, vault: &Vault) -> Result<(), Fault> {
    const REPLACE: &str = "UPDATE vault SET archived_at = ?2, body = ?3 WHERE id = ?1";
    let values = params![
        vault.id.as_str(),
        vault.archived_at.map(Timestamp::as_micros),
        serde_json::to_string(vault)?
    ];
    conn.prepare_cached(REPLACE)?.execute(values)?;
    Ok(())
}

/// Archives a vault and its credentials.
pub(crate) fn archive(
    conn: &Connection,
    workspace: &WorkspaceId,
    id: &VaultId,
    now: Timestamp,
) -> Result<Option<Vault>, Fault> {
    let Some(vault) = get(conn, workspace, id)? else { return Ok(None) };
    if vault.archived_at.is_some() {
        return Ok(Some(vault));
    }
    let archived = Vault { archived_at: Some(now), updated_at: now, ..vault };
    replace(conn, &archived)?;
    const PURGE: &str = "
        UPDATE credential SET archived_at = ?2, updated_at = ?2, sealed = NULL, refresher = NULL, refresher_until = NULL
        WHERE vault = ?1 AND archived_at IS NULL";
    conn.prepare_cached(PURGE)?.execute(params![id.as_str(), now.as_micros()])?;
    Ok(Some(archived))
}

/// Deletes a vault and its credentials; false if there is no such vault.
pub(crate) fn delete(conn: &Connection, workspace: &WorkspaceId, id: &VaultId) -> Result<bool, Fault> {
    const DELETE: &str = "DELETE FROM vault WHERE id = ?1 AND workspace = ?2";
    if conn.prepare_cached(DELETE)?.execute([id.as_str(), workspace.as_str()])? == 0 {
        return Ok(false);
    }
    conn.prepare_cached("DELETE FROM credential WHERE vault = ?1")?.execute([id.as_str()])?;
    Ok(true)
}
