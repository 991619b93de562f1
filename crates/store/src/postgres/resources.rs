//! Agents, environments, workspaces and keys. They change seldom: a change is read, decided and written back only if it
//! is still what was read. Otherwise the caller is told of the conflict: a change is decided once.

use protocol::agent::Agent;
use protocol::environment::Environment;
use protocol::id::{AgentId, ApiKeyId, EnvironmentId, WorkspaceId};
use protocol::time::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::ChangeError;
use crate::keys::{ApiKey, KeyHash};
use crate::postgres::connect::{Db, storable};
use crate::postgres::fault::Fault;
use crate::postgres::heads::json;
use crate::postgres::sessions::Conditions;
use crate::resources::{AgentQuery, Change, EnvironmentQuery, may_follow, ran, unwound};

/// What a change came to: the inner result is for the client.
pub(crate) type Changed<T> = Result<Result<T, ChangeError>, Fault>;

/// Keeps a new agent; false if its id is taken.
pub(crate) async fn create_agent(db: &Db, workspace: &WorkspaceId, agent: &Agent) -> Result<bool, Fault> {
    const CREATE: &str = "
        WITH made AS (
            INSERT INTO agent (id, workspace, version, created_at, archived_at) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT DO NOTHING RETURNING id
        )
        INSERT INTO agent_version (agent, version, body) SELECT id, $3, $6 FROM made RETURNING 1";
    let body = serde_json::to_string(agent)?;
    let rows = db
        .query(
            CREATE,
            &[
                (&agent.id.as_str(), Type::TEXT),
                (&workspace.as_str(), Type::TEXT),
                (&agent.version, Type::INT8),
                (&agent.created_at.as_micros(), Type::INT8),
                (&agent.archived_at.map(Timestamp::as_micros), Type::INT8),
                (&body, Type::TEXT),
            ],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// An agent at one version, or at its latest.
pub(crate) async fn agent(
    db: &Db,
    workspace: &WorkspaceId,
    id: &AgentId,
    version: Option<i64>,
) -> Result<Option<Agent>, Fault> {
    const GET: &str = "
        SELECT v.body FROM agent JOIN agent_version v
        ON v.agent = agent.id AND v.version = coalesce($3, agent.version)
        WHERE agent.id = $1 AND agent.workspace = $2";
    let params = [
        (&id.as_str() as _, Type::TEXT),
        (&workspace.as_str() as _, Type::TEXT),
        (&version as _, Type::INT8),
    ];
    db.query_opt(GET, &params).await?.map(|row| json(&row, 0)).transpose()
}

/// Agents at their latest versions, newest first.
pub(crate) async fn agents(
    db: &Db,
    workspace: &WorkspaceId,
    query: &AgentQuery,
) -> Result<Vec<Agent>, Fault> {
    let AgentQuery { include_archived, created, after, limit } = query;
    let mut conditions = Conditions::default();
    conditions.and_text("workspace = ?", workspace.as_str());
    if !include_archived {
        conditions.and("archived_at IS NULL", []);
    }
    conditions.and_made(created.micros());
    if let Some(cursor) = after {
        conditions.and_beyond("agent.id", "<", cursor);
    }
    let sql = format!(
        "SELECT v.body FROM agent JOIN agent_version v ON v.agent = agent.id AND v.version = agent.version{}
        ORDER BY created_at DESC, agent.id COLLATE \"C\" DESC LIMIT {}",
        conditions.text(),
        i64::try_from(*limit).unwrap_or(i64::MAX),
    );
    db.query(&sql, &conditions.params()).await?.iter().map(|row| json(row, 0)).collect()
}

/// An agent's versions, newest first; `None` if there is no such agent.
pub(crate) async fn agent_versions(
    db: &Db,
    workspace: &WorkspaceId,
    id: &AgentId,
    before: Option<i64>,
    limit: usize,
) -> Result<Option<Vec<Agent>>, Fault> {
    const THERE: &str = "SELECT 1 FROM agent WHERE id = $1 AND workspace = $2";
    let params = [(&id.as_str() as _, Type::TEXT), (&workspace.as_str() as _, Type::TEXT)];
    if db.query_opt(THERE, &params).await?.is_none() {
        return Ok(None);
    }
    const LIST: &str =
        "SELECT body FROM agent_version WHERE agent = $1 AND version < $2 ORDER BY version DESC LIMIT $3";
    let before = before.unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let params = [(&id.as_str() as _, Type::TEXT), (&before as _, Type::INT8), (&limit as _, Type::INT8)];
    let rows = db.query(LIST, &params).await?;
    rows.iter().map(|row| json(row, 0)).collect::<Result<_, _>>().map(Some)
}

/// Changes an agent, unless somebody else did meanwhile.
pub(crate) async fn change_agent(
    db: &Db,
    workspace: &WorkspaceId,
    id: &AgentId,
    change: Change<Agent>,
) -> Changed<Agent> {
    // What is compared is the text, which holds everything.
    const READ: &str = "
        SELECT v.body FROM agent JOIN agent_version v ON v.agent = agent.id AND v.version = agent.version
        WHERE agent.id = $1 AND agent.workspace = $2";
    let params = [(&id.as_str() as _, Type::TEXT), (&workspace.as_str() as _, Type::TEXT)];
    let Some(row) = db.query_opt(READ, &params).await? else { return Ok(Err(ChangeError::NotFound)) };
    let text: String = row.get(0);
    let before: Agent = json(&row, 0)?;
    let after = match unwound(ran(change, &before)) {
        Ok(Some(after)) => after,
        Ok(None) => return Ok(Ok(before)),
        Err(refused) => return Ok(Err(refused)),
    };
    if let Err(refused) = may_follow(&before, &after) {
        return Ok(Err(refused));
    }
    const WRITE: &str = "
        WITH same AS (
            SELECT agent.id FROM agent JOIN agent_version v ON v.agent = agent.id AND v.version = agent.version
            WHERE agent.id = $1 AND agent.version = $2 AND v.body = $3 FOR UPDATE
        ), put AS (
            INSERT INTO agent_version (agent, version, body) SELECT id, $4, $6 FROM same
            ON CONFLICT (agent, version) DO UPDATE SET body = excluded.body
        )
        UPDATE agent SET version = $4, archived_at = $5 FROM same WHERE agent.id = same.id AND agent.version = $2
        RETURNING 1";
    let body = serde_json::to_string(&after)?;
    let rows = db
        .query(
            WRITE,
            &[
                (&id.as_str(), Type::TEXT),
                (&before.version, Type::INT8),
                (&text, Type::TEXT),
                (&after.version, Type::INT8),
                (&after.archived_at.map(Timestamp::as_micros), Type::INT8),
                (&body, Type::TEXT),
            ],
        )
        .await?;
    Ok(if rows.is_empty() { Err(raced("agent")) } else { Ok(after) })
}

pub(crate) fn raced(what: &str) -> ChangeError {
    ChangeError::Conflict(format!(
        "the {what} was changed by somebody else at the same time; look at it again"
    ))
}

/// Writes an environment that is new.
pub(crate) async fn create_environment(
    db: &Db,
    workspace: &WorkspaceId,
    environment: &Environment,
) -> Changed<()> {
    const CREATE: &str = "
        INSERT INTO environment (id, workspace, name, created_at, archived_at, body) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT DO NOTHING RETURNING 1";
    let body = serde_json::to_string(environment)?;
    let rows = db
        .query(
            CREATE,
            &[
                (&environment.id.as_str(), Type::TEXT),
                (&workspace.as_str(), Type::TEXT),
                (&storable(&environment.name), Type::TEXT),
                (&environment.created_at.as_micros(), Type::INT8),
                (&environment.archived_at.map(Timestamp::as_micros), Type::INT8),
                (&body, Type::TEXT),
            ],
        )
        .await?;
    Ok(if rows.is_empty() { Err(ChangeError::Exists) } else { Ok(()) })
}

/// An environment.
pub(crate) async fn environment(
    db: &Db,
    workspace: &WorkspaceId,
    id: &EnvironmentId,
) -> Result<Option<Environment>, Fault> {
    const GET: &str = "SELECT body FROM environment WHERE id = $1 AND workspace = $2";
    let params = [(&id.as_str() as _, Type::TEXT), (&workspace.as_str() as _, Type::TEXT)];
    db.query_opt(GET, &params).await?.map(|row| json(&row, 0)).transpose()
}

/// Environments, newest first.
pub(crate) async fn environments(
    db: &Db,
    workspace: &WorkspaceId,
    query: &EnvironmentQuery,
) -> Result<Vec<Environment>, Fault> {
    let EnvironmentQuery { include_archived, after, limit } = query;
    let mut conditions = Conditions::default();
    conditions.and_text("workspace = ?", workspace.as_str());
    if !include_archived {
        conditions.and("archived_at IS NULL", []);
    }
    if let Some(cursor) = after {
        conditions.and_beyond("id", "<", cursor);
    }
    let sql = format!(
        "SELECT body FROM environment{} ORDER BY created_at DESC, id COLLATE \"C\" DESC LIMIT {}",
        conditions.text(),
        i64::try_from(*limit).unwrap_or(i64::MAX),
    );
    db.query(&sql, &conditions.params()).await?.iter().map(|row| json(row, 0)).collect()
}

/// Those of all workspaces that are not archived and whose text holds this one, by id.
pub(crate) async fn environments_with(
    db: &Db,
    text: &str,
    after: Option<&EnvironmentId>,
    limit: usize,
) -> Result<Vec<Environment>, Fault> {
    const WITH: &str = "
        SELECT body FROM environment
        WHERE id COLLATE \"C\" > $1 AND archived_at IS NULL AND strpos(body, $2) > 0
        ORDER BY id COLLATE \"C\" LIMIT $3";
    let after = after.map_or("", EnvironmentId::as_str);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let params = [(&after as _, Type::TEXT), (&text as _, Type::TEXT), (&limit as _, Type::INT8)];
    db.query(WITH, &params).await?.iter().map(|row| json(row, 0)).collect()
}

/// Changes an environment, unless somebody else did meanwhile.
pub(crate) async fn change_environment(
    db: &Db,
    workspace: &WorkspaceId,
    id: &EnvironmentId,
    change: Change<Environment>,
) -> Changed<Environment> {
    const READ: &str = "SELECT body FROM environment WHERE id = $1 AND workspace = $2";
    let params = [(&id.as_str() as _, Type::TEXT), (&workspace.as_str() as _, Type::TEXT)];
    let Some(row) = db.query_opt(READ, &params).await? else { return Ok(Err(ChangeError::NotFound)) };
    let text: String = row.get(0);
    let before: Environment = json(&row, 0)?;
    let after = match unwound(ran(change, &before)) {
        Ok(Some(after)) => after,
        Ok(None) => return Ok(Ok(before)),
        Err(refused) => return Ok(Err(refused)),
    };
    const WRITE: &str = "
        UPDATE environment SET name = $3, archived_at = $4, body = $5 WHERE id = $1 AND body = $2 RETURNING 1";
    let body = serde_json::to_string(&after)?;
    let written = db
        .query(
            WRITE,
            &[
                (&id.as_str(), Type::TEXT),
                (&text, Type::TEXT),
                (&storable(&after.name), Type::TEXT),
                (&after.archived_at.map(Timestamp::as_micros), Type::INT8),
                (&body, Type::TEXT),
            ],
        )
        .await;
    Ok(match written {
        Ok(rows) if rows.is_empty() => Err(raced("environment")),
        Ok(_) => Ok(after),
        Err(fault) if fault.is_taken() => Err(ChangeError::Exists),
        Err(fault) => return Err(fault),
    })
}

/// Deletes an environment that no session was made in.
pub(crate) async fn delete_environment(db: &Db, workspace: &WorkspaceId, id: &EnvironmentId) -> Changed<()> {
    const DELETE: &str = "
        WITH found AS (
            SELECT id, EXISTS (SELECT 1 FROM session WHERE environment_id = $1) AS is_used
            FROM environment WHERE id = $1 AND workspace = $2
        ), gone AS (
            DELETE FROM environment USING found WHERE environment.id = found.id AND NOT found.is_used
        )
        SELECT is_used FROM found";
    let params = [(&id.as_str() as _, Type::TEXT), (&workspace.as_str() as _, Type::TEXT)];
    Ok(match db.query_opt(DELETE, &params).await? {
        None => Err(ChangeError::NotFound),
        Some(row) if row.get(0) => Err(ChangeError::InUse),
        Some(_) => Ok(()),
    })
}

/// The first workspace, made if there is none. Of several processes that start at once one makes it.
pub(crate) async fn ensure_workspace(
    db: &Db,
    made: &WorkspaceId,
    now: Timestamp,
) -> Result<WorkspaceId, Fault> {
    const FIRST: &str = "SELECT id FROM workspace ORDER BY created_at, id LIMIT 1";
    if let Some(row) = db.query_opt(FIRST, &[]).await? {
        return Ok(WorkspaceId::from_text(row.get::<_, String>(0)));
    }
    // One message, so that the lock ends with it.
    let (id, now) = (made.as_str().replace('\'', "''"), now.as_micros());
    let sql = format!(
        "LOCK TABLE workspace IN EXCLUSIVE MODE;
        INSERT INTO workspace (id, created_at) SELECT '{id}', {now} WHERE NOT EXISTS (SELECT 1 FROM workspace);"
    );
    db.simple(&sql).await?;
    let row = db.query_opt(FIRST, &[]).await?;
    Ok(row.map_or_else(|| made.clone(), |row| WorkspaceId::from_text(row.get::<_, String>(0))))
}

/// Makes another workspace.
pub(crate) async fn create_workspace(db: &Db, made: &WorkspaceId, now: Timestamp) -> Result<(), Fault> {
    const INSERT: &str = "INSERT INTO workspace (id, created_at) VALUES ($1, $2)";
    db.query(INSERT, &[(&made.as_str(), Type::TEXT), (&now.as_micros(), Type::INT8)]).await?;
    Ok(())
}

/// All workspaces, oldest first.
pub(crate) async fn workspaces(db: &Db) -> Result<Vec<WorkspaceId>, Fault> {
    let rows = db.query("SELECT id FROM workspace ORDER BY created_at, id", &[]).await?;
    Ok(rows.iter().map(|row| WorkspaceId::from_text(row.get::<_, String>(0))).collect())
}

/// Keeps a new key; false if it is kept already.
pub(crate) async fn create_key(db: &Db, key: &ApiKey, hash: &KeyHash) -> Result<bool, Fault> {
    const INSERT: &str = "
        INSERT INTO api_key (id, workspace, name, hash, created_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT DO NOTHING RETURNING 1";
    let rows = db
        .query(
            INSERT,
            &[
                (&key.id.as_str(), Type::TEXT),
                (&key.workspace.as_str(), Type::TEXT),
                (&storable(&key.name), Type::TEXT),
                (&hash.as_slice(), Type::BYTEA),
                (&key.created_at.as_micros(), Type::INT8),
                (&key.revoked_at.map(Timestamp::as_micros), Type::INT8),
            ],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// A workspace's keys, oldest first.
pub(crate) async fn keys(db: &Db, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Fault> {
    const LIST: &str = "
        SELECT id, workspace, name, created_at, revoked_at FROM api_key WHERE workspace = $1
        ORDER BY created_at, id";
    Ok(db.query(LIST, &[(&workspace.as_str(), Type::TEXT)]).await?.iter().map(key).collect())
}

/// Revokes a key for good; `None` if there is no such key.
pub(crate) async fn revoke_key(
    db: &Db,
    workspace: &WorkspaceId,
    id: &ApiKeyId,
    now: Timestamp,
) -> Result<Option<ApiKey>, Fault> {
    const REVOKE: &str = "
        UPDATE api_key SET revoked_at = coalesce(revoked_at, $3) WHERE id = $1 AND workspace = $2
        RETURNING id, workspace, name, created_at, revoked_at";
    let params = [
        (&id.as_str() as _, Type::TEXT),
        (&workspace.as_str() as _, Type::TEXT),
        (&now.as_micros() as _, Type::INT8),
    ];
    Ok(db.query_opt(REVOKE, &params).await?.as_ref().map(key))
}

/// The key with that hash, unless it is revoked.
pub(crate) async fn find_key(db: &Db, hash: &KeyHash) -> Result<Option<ApiKey>, Fault> {
    const FIND: &str = "
        SELECT id, workspace, name, created_at, revoked_at FROM api_key WHERE hash = $1 AND revoked_at IS NULL";
    Ok(db.query_opt(FIND, &[(&hash.as_slice(), Type::BYTEA)]).await?.as_ref().map(key))
}

fn key(row: &Row) -> ApiKey {
    ApiKey {
        id: ApiKeyId::from_text(row.get::<_, String>(0)),
        workspace: WorkspaceId::from_text(row.get::<_, String>(1)),
        name: row.get(2),
        created_at: Timestamp::from_micros(row.get(3)),
        revoked_at: row.get::<_, Option<i64>>(4).map(Timestamp::from_micros),
    }
}
