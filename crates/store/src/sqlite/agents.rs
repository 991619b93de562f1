//! Agents and their versions.

use protocol::agent::Agent;
use protocol::id::{AgentId, WorkspaceId};
use protocol::time::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use crate::error::ChangeError;
use crate::resources::{AgentQuery, may_follow};
use crate::sqlite::fault::Fault;
use crate::sqlite::heads::json;
use crate::sqlite::listing::Conditions;
use crate::sqlite::slices::limit_of;

/// Keeps a new agent; false if its id is taken.
pub(crate) fn create(conn: &Connection, workspace: &WorkspaceId, agent: &Agent) -> Result<bool, Fault> {
    const INSERT: &str = "
        INSERT INTO agent (id, workspace, version, created_at, archived_at) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT DO NOTHING";
    let inserted = conn.prepare_cached(INSERT)?.execute(params![
        agent.id.as_str(),
        workspace.as_str(),
        agent.version,
        agent.created_at.as_micros(),
        agent.archived_at.map(Timestamp::as_micros),
    ])?;
    if inserted == 0 {
        return Ok(false);
    }
    put_version(conn, agent)?;
    Ok(true)
}

fn put_version(conn: &Connection, agent: &Agent) -> Result<(), Fault> {
    const PUT: &str = "
        INSERT INTO agent_version (agent, version, body) VALUES (?1, ?2, ?3)
        ON CONFLICT (agent, version) DO UPDATE SET body = excluded.body";
    let body = serde_json::to_string(agent)?;
    conn.prepare_cached(PUT)?.execute(params![agent.id.as_str(), agent.version, body])?;
    Ok(())
}

/// An agent at one version, or at its latest.
pub(crate) fn get(
    conn: &Connection,
    workspace: &WorkspaceId,
    id: &AgentId,
    version: Option<i64>,
) -> Result<Option<Agent>, Fault> {
    const GET: &str = "
        SELECT v.body FROM agent a JOIN agent_version v ON v.agent = a.id
        WHERE a.id = ?1 AND a.workspace = ?2 AND v.version = ifnull(?3, a.version)";
    let mut statement = conn.prepare_cached(GET)?;
    let mut rows = statement.query(params![id.as_str(), workspace.as_str(), version])?;
    rows.next()?.map(|row| json(row, 0)).transpose()
}

/// Agents at their latest versions, newest first.
pub(crate) fn list(
    conn: &Connection,
    workspace: &WorkspaceId,
    query: &AgentQuery,
) -> Result<Vec<Agent>, Fault> {
    let AgentQuery { include_archived, created, after, limit } = query;
    let mut conditions = Conditions::default();
    conditions.and("workspace = ?", [Value::from(workspace.as_str().to_owned())]);
    if !include_archived {
        conditions.and("archived_at IS NULL", []);
    }
    conditions.and_made(created.micros());
    if let Some(cursor) = after {
        conditions.and_beyond("<", cursor);
    }
    let statement = format!(
        "SELECT v.body FROM agent JOIN agent_version v ON v.agent = agent.id AND v.version = agent.version{}
         ORDER BY created_at DESC, id DESC LIMIT {}",
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

/// An agent's versions, newest first; `None` if there is no such agent.
pub(crate) fn versions(
    conn: &Connection,
    workspace: &WorkspaceId,
    id: &AgentId,
    before: Option<i64>,
    limit: usize,
) -> Result<Option<Vec<Agent>>, Fault> {
    let found: Option<i64> = conn
        .prepare_cached("SELECT version FROM agent WHERE id = ?1 AND workspace = ?2")?
        .query_row([id.as_str(), workspace.as_str()], |row| row.get(0))
        .optional()?;
    if found.is_none() {
        return Ok(None);
    }
    const LIST: &str = "
        SELECT body FROM agent_version WHERE agent = ?1 AND version < ?2 ORDER BY version DESC LIMIT ?3";
    let mut statement = conn.prepare_cached(LIST)?;
    let mut rows = statement.query(params![id.as_str(), before.unwrap_or(i64::MAX), limit_of(limit)])?;
    let mut versions = Vec::new();
    while let Some(row) = rows.next()? {
        versions.push(json(row, 0)?);
    }
    Ok(Some(versions))
}

/// Puts a changed agent in the place of `before`.
pub(crate) fn replace(
    conn: &Connection,
    before: &Agent,
    after: &Agent,
) -> Result<Result<(), ChangeError>, Fault> {
    if let Err(refused) = may_follow(before, after) {
        return Ok(Err(refused));
    }
    conn.prepare_cached("UPDATE agent SET version = ?2, archived_at = ?3 WHERE id = ?1")?
        .execute(params![after.id.as_str(), after.version, after.archived_at.map(Timestamp::as_micros),])?;
    put_version(conn, after)?;
    Ok(Ok(()))
}
