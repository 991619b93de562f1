//! Sessions read back: one, or a page of them.

use std::collections::HashSet;
use std::sync::Arc;

use protocol::event::Event;
use protocol::id::{SandboxId, SessionId, WorkspaceId};
use protocol::session::Status;
use protocol::time::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};
use session::{Record, State};

use crate::lease::{View, Waiting, WaitsFor};
use crate::log::Order;
use crate::rules::head::status_number;
use crate::sessions::{Cursor, Holding, Seen, SessionQuery};
use crate::sqlite::fault::Fault;
use crate::sqlite::heads::{json, waiting};
use crate::sqlite::slices::limit_of;

/// A session of this workspace.
pub(crate) fn get(conn: &Connection, workspace: &WorkspaceId, id: &SessionId) -> Result<Option<Seen>, Fault> {
    const GET: &str = "
        SELECT s.record, h.state, h.wanted_since, h.waiting FROM session s JOIN head h ON h.session = s.number
        WHERE s.id = ?1 AND s.workspace = ?2";
    let mut statement = conn.prepare_cached(GET)?;
    let mut rows = statement.query([id.as_str(), workspace.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    seen(row).map(Some)
}

fn seen(row: &Row<'_>) -> Result<Seen, Fault> {
    let wanted_since: Option<i64> = row.get(2)?;
    let wanted =
        wanted_since.map(|since| Waiting { reason: WaitsFor::Brain, since: Timestamp::from_micros(since) });
    let waiting = match wanted {
        Some(waiting) => Some(waiting),
        None => waiting(row, 3)?,
    };
    Ok(Seen { record: json(row, 0)?, state: json(row, 1)?, waiting })
}

/// A session as a brain sees it.
pub(crate) fn look(conn: &Connection, id: &SessionId) -> Result<Option<View>, Fault> {
    const LOOK: &str = "
        SELECT s.number, s.workspace, s.record, h.state FROM session s JOIN head h ON h.session = s.number
        WHERE s.id = ?1";
    let mut statement = conn.prepare_cached(LOOK)?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let number: i64 = row.get(0)?;
    let record: Record = json(row, 2)?;
    Ok(Some(View {
        record: Arc::new(record),
        workspace: WorkspaceId::from_text(row.get::<_, String>(1)?),
        state: json(row, 3)?,
        inbox: inbox(conn, number)?,
    }))
}

/// The sandboxes that sessions which are not over have on record.
pub(crate) fn sandboxes(conn: &Connection) -> Result<HashSet<SandboxId>, Fault> {
    const SANDBOXES: &str = "
        SELECT json_extract(state, '$.sandbox') FROM head
        WHERE status <> ?1 AND json_extract(state, '$.sandbox') IS NOT NULL";
    let mut statement = conn.prepare_cached(SANDBOXES)?;
    let mut rows = statement.query([status_number(Status::Terminated)])?;
    let mut sandboxes = HashSet::new();
    while let Some(row) = rows.next()? {
        sandboxes.insert(SandboxId::from_text(row.get::<_, String>(0)?));
    }
    Ok(sandboxes)
}

/// Where the workspaces of sessions that are not over are.
pub(crate) fn holdings(conn: &Connection) -> Result<Vec<Holding>, Fault> {
    const WORKSPACES: &str = "
        SELECT s.id, h.state FROM head h JOIN session s ON s.number = h.session
        WHERE h.status <> ?1
            AND (json_extract(h.state, '$.sandbox') IS NOT NULL OR json_extract(h.state, '$.snapshot') IS NOT NULL)";
    let mut statement = conn.prepare_cached(WORKSPACES)?;
    let mut rows = statement.query([status_number(Status::Terminated)])?;
    let mut workspaces = Vec::new();
    while let Some(row) = rows.next()? {
        let state: State = json(row, 1)?;
        workspaces.extend(Holding::of(SessionId::from_text(row.get::<_, String>(0)?), &state));
    }
    Ok(workspaces)
}

/// Sessions of all workspaces in the order of their ids, after this one.
pub(crate) fn after(
    conn: &Connection,
    after: Option<&SessionId>,
    limit: usize,
) -> Result<Vec<SessionId>, Fault> {
    let mut statement = conn.prepare_cached("SELECT id FROM session WHERE id > ?1 ORDER BY id LIMIT ?2")?;
    let after = after.map_or("", SessionId::as_str);
    let mut rows = statement.query(params![after, limit_of(limit)])?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        ids.push(SessionId::from_text(row.get::<_, String>(0)?));
    }
    Ok(ids)
}

fn inbox(conn: &Connection, session: i64) -> Result<Vec<Event>, Fault> {
    let mut statement = conn.prepare_cached("SELECT body FROM inbox WHERE session = ?1 ORDER BY sequence")?;
    let mut rows = statement.query([session])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(json(row, 0)?);
    }
    Ok(events)
}

/// Conditions of a query, with their values.
#[derive(Default)]
pub(crate) struct Conditions {
    text: String,
    pub(crate) values: Vec<Value>,
}

impl Conditions {
    /// Each `?` of `condition` stands for one of `values`.
    pub(crate) fn and(&mut self, condition: &str, values: impl IntoIterator<Item = Value>) {
        self.text.push_str(if self.text.is_empty() { " WHERE " } else { " AND " });
        self.text.push_str(condition);
        self.values.extend(values);
    }

    /// Only rows after (`>`) or before (`<`) the cursor, in a list by time of making and id.
    pub(crate) fn and_beyond(&mut self, comparison: &str, cursor: &Cursor) {
        let values = [Value::from(cursor.created_at.as_micros()), Value::from(cursor.id.clone())];
        self.and(&format!("(created_at, id) {comparison} (?, ?)"), values);
    }

    /// Only rows made within these microseconds, both inclusive.
    pub(crate) fn and_made(&mut self, (first, last): (i64, i64)) {
        if (first, last) != (i64::MIN, i64::MAX) {
            self.and("created_at BETWEEN ? AND ?", [Value::from(first), Value::from(last)]);
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// A page of a workspace's sessions.
pub(crate) fn list(
    conn: &Connection,
    workspace: &WorkspaceId,
    query: &SessionQuery,
) -> Result<Vec<Seen>, Fault> {
    let SessionQuery {
        agent_id,
        agent_version,
        statuses,
        include_archived,
        created,
        order,
        after,
        before,
        limit,
    } = query;
    let mut conditions = Conditions::default();
    conditions.and("workspace = ?", [Value::from(workspace.as_str().to_owned())]);
    if let Some(agent) = agent_id {
        conditions.and("agent_id = ?", [Value::from(agent.as_str().to_owned())]);
        if let Some(version) = agent_version {
            conditions.and("agent_version = ?", [Value::from(*version)]);
        }
    }
    if !statuses.is_empty() {
        let numbers = statuses.iter().map(|status| status_number(*status).to_string()).collect::<Vec<_>>();
        conditions.and(&format!("status IN ({})", numbers.join(", ")), []);
    }
    if !include_archived {
        conditions.and("archived_at IS NULL", []);
    }
    conditions.and_made(created.micros());
    let (onwards, backwards) = match order {
        Order::Asc => (">", "<"),
        Order::Desc => ("<", ">"),
    };
    if let Some(cursor) = after {
        conditions.and_beyond(onwards, cursor);
    }
    if let Some(cursor) = before {
        conditions.and_beyond(backwards, cursor);
    }
    // The rows just before a place are read from there backwards, and turned round.
    let is_backwards = before.is_some() && after.is_none();
    let direction = match (order, is_backwards) {
        (Order::Asc, false) | (Order::Desc, true) => "ASC",
        (Order::Desc, false) | (Order::Asc, true) => "DESC",
    };
    let statement = format!(
        "SELECT record, state, wanted_since, waiting FROM session JOIN head ON head.session = session.number{}
         ORDER BY created_at {direction}, id {direction} LIMIT {}",
        conditions.text(),
        limit_of(*limit),
    );
    let mut statement = conn.prepare_cached(&statement)?;
    let mut rows = statement.query(params_from_iter(conditions.values))?;
    let mut page = Vec::new();
    while let Some(row) = rows.next()? {
        page.push(seen(row)?);
    }
    if is_backwards {
        page.reverse();
    }
    Ok(page)
}
