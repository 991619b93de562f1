//! The keys that secrets are sealed with, wrapped.

use protocol::id::WorkspaceId;
use protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::sqlite::fault::Fault;
use crate::vaults::{Added, VaultKey};

/// The name of the master key for what is new.
pub(crate) fn master(conn: &Connection) -> Result<Option<String>, Fault> {
    Ok(conn.prepare_cached("SELECT name FROM vault_master")?.query_row([], |row| row.get(0)).optional()?)
}

/// Sets it.
pub(crate) fn set_master(conn: &Connection, name: &str) -> Result<(), Fault> {
    const SET: &str = "
        INSERT INTO vault_master (only, name) VALUES (1, ?1) ON CONFLICT (only) DO UPDATE SET name = excluded.name";
    conn.prepare_cached(SET)?.execute([name])?;
    Ok(())
}

/// The key of a workspace.
pub(crate) fn get(conn: &Connection, workspace: &WorkspaceId) -> Result<Option<VaultKey>, Fault> {
    const GET: &str = "SELECT workspace, master, wrapped FROM vault_key WHERE workspace = ?1";
    Ok(conn.prepare_cached(GET)?.query_row([workspace.as_str()], key).optional()?)
}

/// The keys of all workspaces.
pub(crate) fn all(conn: &Connection) -> Result<Vec<VaultKey>, Fault> {
    let mut statement =
        conn.prepare_cached("SELECT workspace, master, wrapped FROM vault_key ORDER BY workspace")?;
    let rows = statement.query_map([], key)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Keeps the first key of a workspace.
pub(crate) fn add(conn: &Connection, new: &VaultKey, now: Timestamp) -> Result<Added, Fault> {
    if let Some(there) = get(conn, &new.workspace)? {
        return Ok(Added::Kept(there));
    }
    match master(conn)? {
        Some(master) if master != new.master => return Ok(Added::Moved(master)),
        Some(_) => {}
        None => set_master(conn, &new.master)?,
    }
    const INSERT: &str =
        "INSERT INTO vault_key (workspace, master, wrapped, created_at) VALUES (?1, ?2, ?3, ?4)";
    let values = params![new.workspace.as_str(), new.master, new.wrapped, now.as_micros()];
    conn.prepare_cached(INSERT)?.execute(values)?;
    Ok(Added::Kept(new.clone()))
}

/// Puts a key that is wrapped anew in the place of what it was.
pub(crate) fn rewrap(conn: &Connection, before: &VaultKey, after: &VaultKey) -> Result<bool, Fault> {
    const REWRAP: &str = "
        UPDATE vault_key SET master = ?4, wrapped = ?5 WHERE workspace = ?1 AND master = ?2 AND wrapped = ?3";
    let values =
        params![before.workspace.as_str(), before.master, before.wrapped, after.master, after.wrapped];
    Ok(conn.prepare_cached(REWRAP)?.execute(values)? == 1)
}

fn key(row: &Row<'_>) -> rusqlite::Result<VaultKey> {
    Ok(VaultKey {
        workspace: WorkspaceId::from_text(row.get::<_, String>(0)?),
        master: row.get(1)?,
        wrapped: row.get(2)?,
    })
}
