//! Sessions read back: one, or a page of them.

use std::collections::HashSet;
use std::sync::Arc;

use protocol::id::{ResourceId, SandboxId, SessionId, WorkspaceId};
use protocol::session::Status;
use protocol::time::Timestamp;
use session::State;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::lease::{View, Waiting, WaitsFor};
use crate::log::Order;
use crate::postgres::connect::{Db, Param};
use crate::postgres::fault::Fault;
use crate::postgres::heads::{json, load};
use crate::rules::head::status_number;
use crate::sessions::{Cursor, Holding, Seen, SessionQuery};

/// A session of this workspace.
pub(crate) async fn get(db: &Db, workspace: &WorkspaceId, id: &SessionId) -> Result<Option<Seen>, Fault> {
    const GET: &str = "
        SELECT s.record, h.state, h.wanted_since, h.waiting FROM session s JOIN head h ON h.session = s.number
        WHERE s.id = $1 AND s.workspace = $2";
    let params = [(&id.as_str() as _, Type::TEXT), (&workspace.as_str() as _, Type::TEXT)];
    db.query_opt(GET, &params).await?.as_ref().map(seen).transpose()
}

/// The sealed token of a session's resource.
pub(crate) async fn token(
    db: &Db,
    workspace: &WorkspaceId,
    id: &SessionId,
    resource: &ResourceId,
) -> Result<Option<String>, Fault> {
    const TOKEN: &str = "
        SELECT t.sealed FROM session_token t JOIN session s ON s.number = t.session
        WHERE s.id = $1 AND s.workspace = $2 AND t.resource = $3";
    let params = [
        (&id.as_str() as _, Type::TEXT),
        (&workspace.as_str() as _, Type::TEXT),
        (&resource.as_str() as _, Type::TEXT),
    ];
    Ok(db.query_opt(TOKEN, &params).await?.map(|row| row.get(0)))
}

fn seen(row: &Row) -> Result<Seen, Fault> {
    let wanted = row.get::<_, Option<i64>>(2).map(Timestamp::from_micros);
    let wanted = wanted.map(|since| Waiting { reason: WaitsFor::Brain, since });
    let waiting = match wanted {
        Some(waiting) => Some(waiting),
        None => row.get::<_, Option<&str>>(3).map(serde_json::from_str).transpose()?,
    };
    Ok(Seen { record: json(row, 0)?, state: json(row, 1)?, waiting })
}

/// A session as a brain sees it.
pub(crate) async fn look(db: &Db, id: &SessionId) -> Result<Option<View>, Fault> {
    let Some(loaded) = load(db, &[id]).await?.remove(id) else { return Ok(None) };
    let mut head = loaded?.head;
    Ok(Some(View {
        record: Arc::clone(&head.record),
        workspace: head.workspace.clone(),
        inbox: std::mem::take(&mut head.inbox().events),
        state: head.state,
    }))
}

/// Sessions of all workspaces in the order of their ids, after this one.
pub(crate) async fn after(db: &Db, after: Option<&SessionId>, limit: usize) -> Result<Vec<SessionId>, Fault> {
    let after = after.map_or("", SessionId::as_str);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = "SELECT id FROM session WHERE id > $1 ORDER BY id LIMIT $2";
    let rows = db.query(sql, &[(&after, Type::TEXT), (&limit, Type::INT8)]).await?;
    Ok(rows.iter().map(|row| SessionId::from_text(row.get::<_, String>(0))).collect())
}

/// The sandboxes that sessions which are not over have on record.
pub(crate) async fn sandboxes(db: &Db) -> Result<HashSet<SandboxId>, Fault> {
    let over = status_number(Status::Terminated);
    // Read here and not by the database, whose JSON cannot hold every text.
    let sql = r#"SELECT state FROM head WHERE status <> $1 AND state LIKE '%"sandbox":"%'"#;
    let rows = db.query(sql, &[(&over, Type::INT2)]).await?;
    let states = rows.iter().map(|row| json::<State>(row, 0));
    let sandboxes = states.filter_map(|state| state.map(|state| state.sandbox).transpose());
    sandboxes.collect()
}

/// Where the workspaces of sessions that are not over are.
pub(crate) async fn holdings(db: &Db) -> Result<Vec<Holding>, Fault> {
    let over = status_number(Status::Terminated);
    let sql = r#"SELECT s.id, h.state FROM head h JOIN session s ON s.number = h.session
        WHERE h.status <> $1 AND (h.state LIKE '%"sandbox":"%' OR h.state LIKE '%"snapshot":{%')"#;
    let rows = db.query(sql, &[(&over, Type::INT2)]).await?;
    let mut workspaces = Vec::new();
    for row in &rows {
        let state: State = json(row, 1)?;
        workspaces.extend(Holding::of(SessionId::from_text(row.get::<_, String>(0)), &state));
    }
    Ok(workspaces)
}

/// Conditions of a query, with their values.
#[derive(Default)]
pub(crate) struct Conditions {
    text: String,
    values: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
}

impl Conditions {
    /// Each `?` of `condition` stands for one of `values`.
    pub(crate) fn and(
        &mut self,
        condition: &str,
        values: impl IntoIterator<Item = (Box<dyn ToSql + Sync + Send>, Type)>,
    ) {
        self.text.push_str(if self.text.is_empty() { " WHERE " } else { " AND " });
        let mut pieces = condition.split('?');
        self.text.push_str(pieces.next().unwrap_or_default());
        for (piece, value) in pieces.zip(values) {
            self.values.push(value);
            self.text.push_str(&format!("${}{piece}", self.values.len()));
        }
    }

    pub(crate) fn and_text(&mut self, condition: &str, value: &str) {
        self.and(condition, [(Box::new(value.to_owned()) as _, Type::TEXT)]);
    }

    pub(crate) fn and_number(&mut self, condition: &str, value: i64) {
        self.and(condition, [(Box::new(value) as _, Type::INT8)]);
    }

    /// Only rows after (`>`) or before (`<`) the cursor, in a list by time of making and by the column `id`.
    pub(crate) fn and_beyond(&mut self, id: &str, comparison: &str, cursor: &Cursor) {
        let values: [(Box<dyn ToSql + Sync + Send>, Type); 2] = [
            (Box::new(cursor.created_at.as_micros()), Type::INT8),
            (Box::new(cursor.id.clone()), Type::TEXT),
        ];
        self.and(&format!("(created_at, {id} COLLATE \"C\") {comparison} (?, ?)"), values);
    }

    /// Only rows made within these microseconds, both inclusive.
    pub(crate) fn and_made(&mut self, (first, last): (i64, i64)) {
        if (first, last) != (i64::MIN, i64::MAX) {
            let values: [(Box<dyn ToSql + Sync + Send>, Type); 2] =
                [(Box::new(first), Type::INT8), (Box::new(last), Type::INT8)];
            self.and("created_at BETWEEN ? AND ?", values);
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn params(&self) -> Vec<Param<'_>> {
        self.values.iter().map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone())).collect()
    }
}

/// A page of a workspace's sessions.
pub(crate) async fn list(db: &Db, workspace: &WorkspaceId, query: &SessionQuery) -> Result<Vec<Seen>, Fault> {
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
    conditions.and_text("session.workspace = ?", workspace.as_str());
    if let Some(agent) = agent_id {
        conditions.and_text("agent_id = ?", agent.as_str());
        if let Some(version) = agent_version {
            conditions.and_number("agent_version = ?", *version);
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
        conditions.and_beyond("session.id", onwards, cursor);
    }
    if let Some(cursor) = before {
        conditions.and_beyond("session.id", backwards, cursor);
    }
    // The rows just before a place are read from there backwards, and turned round.
    let is_backwards = before.is_some() && after.is_none();
    let direction = match (order, is_backwards) {
        (Order::Asc, false) | (Order::Desc, true) => "ASC",
        (Order::Desc, false) | (Order::Asc, true) => "DESC",
    };
    let sql = format!(
        "SELECT record, state, wanted_since, waiting FROM session JOIN head ON head.session = session.number{}
        ORDER BY created_at {direction}, session.id COLLATE \"C\" {direction} LIMIT {}",
        conditions.text(),
        i64::try_from(*limit).unwrap_or(i64::MAX),
    );
    let rows = db.query(&sql, &conditions.params()).await?;
    let mut page = rows.iter().map(seen).collect::<Result<Vec<_>, _>>()?;
    if is_backwards {
        page.reverse();
    }
    Ok(page)
}
