//! Environments.

use protocol::environment::Environment;
use protocol::id::{EnvironmentId, WorkspaceId};
use protocol::time::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, params, params_from_iter};

use crate::error::ChangeError;
use crate::resources::EnvironmentQuery;
use crate::sqlite::fault::Fault;
use crate::sqlite::heads::json;
use crate::sqlite::listing::Conditions;
use crate::sqlite::slices::limit_of;

/// Writes an environment, new or changed, unless another has its name.
pub(crate) fn put(
    conn: &Connection,
    workspace: &WorkspaceId,
    environment: &Environment,
) -> Result<Result<(), ChangeError>, Fault> {
    if environment.archived_at.is_none() && is_taken(conn, workspace, environment)? {
        return Ok(Err(ChangeError::Exists));
    }
    const PUT: &str = "
        INSERT INTO environment (id, workspace, name, created_at, archived_at, body)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)
        ON CONFLICT (id) DO UPDATE
        SET name = excluded.name, archived_at = excluded.archived_at, body = excluded.body";
    conn.prepare_cached(PUT)?.execute(params![
        environment.id.as_str(),
        workspace.as_str(),
        environment.name,
        environment.created_at.as_micros(),
        environment.archived_at.map(Timestamp::as_micros),
        serde_json::to_string(environment)?,
    ])?;
    Ok(Ok(()))
}

fn is_taken(conn: &Connection, workspace: &WorkspaceId, environment: &Environment) -> Result<bool, Fault> {
    const TAKEN: &str = "
        SELECT EXISTS (SELECT 1 FROM environment
        WHERE workspace = ?1 AND name = ?2 AND archived_at IS NULL AND id <> ?3)";
    let key = params![workspace.as_str(), environment.name, environment.id.as_str()];
    Ok(conn.prepare_cached(TAKEN)?.query_row(key, |row| row.get(0))?)
}

/// An environment.
pub(crate) fn get(
    conn: &Connection,
    workspace: &WorkspaceId,
    id: &EnvironmentId,
) -> Result<Option<Environment>, Fault> {
    let mut statement =
        conn.prepare_cached("SELECT body FROM environment WHERE id = ?1 AND workspace = ?2")?;
    let mut rows = statement.query([id.as_str(), workspace.as_str()])?;
    rows.next()?.map(|row| json(row, 0)).transpose()
}

/// Environments, newest first.
pub(crate) fn list(
    conn: &Connection,
    workspace: &WorkspaceId,
    query: &EnvironmentQuery,
) -> Result<Vec<Environment>, Fault> {
    let EnvironmentQuery { include_archived, after, limit } = query;
    let mut conditions = Conditions::default();
    conditions.and("workspace = ?", [Value::from(workspace.as_str().to_owned())]);
    if !include_archived {
        conditions.and("archived_at IS NULL", []);
    }
    if let Some(cursor) = after {
        conditions.and_beyond("<", cursor);
    }
    let statement = format!(
        "SELECT body FROM environment{} ORDER BY created_at DESC, id DESC LIMIT {}",
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

/// Those of all workspaces that are not archived and whose text holds this one, by id.
pub(crate) fn with(
    conn: &Connection,
    text: &str,
    after: Option<&EnvironmentId>,
    limit: usize,
) -> Result<Vec<Environment>, Fault> {
    const WITH: &str = "
        SELECT body FROM environment WHERE id > ?1 AND archived_at IS NULL AND instr(body, ?2) > 0
        ORDER BY id LIMIT ?3";
    let mut statement = conn.prepare_cached(WITH)?;
    let after = after.map_or("", EnvironmentId::as_str);
    let mut rows = statement.query(params![after, text, limit_of(limit)])?;
    let mut page = Vec::new();
    while let Some(row) = rows.next()? {
        page.push(json(row, 0)?);
    }
    Ok(page)
}

/// Deletes an environment that no session was made in.
pub(crate) fn delete(
    conn: &Connection,
    workspace: &WorkspaceId,
    id: &EnvironmentId,
) -> Result<Result<(), ChangeError>, Fault> {
    if get(conn, workspace, id)?.is_none() {
        return Ok(Err(ChangeError::NotFound));
    }
    const USED: &str = "SELECT EXISTS (SELECT 1 FROM session WHERE environment_id = ?1)";
    if conn.prepare_cached(USED)?.query_row([id.as_str()], |row| row.get(0))? {
        return Ok(Err(ChangeError::InUse));
    }
    conn.prepare_cached("DELETE FROM environment WHERE id = ?1")?.execute([id.as_str()])?;
    Ok(Ok(()))
}
