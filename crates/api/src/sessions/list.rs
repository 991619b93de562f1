//! `GET /v1/sessions`: the one list that pages both ways. Both cursors keep the order.

use axum::Json;
use axum::extract::State;
use protocol::id::AgentId;
use protocol::page::BidirectionalPage;
use protocol::session::{Session, Status};
use session::Record;
use store::{Order, SessionQuery};

use super::shown;
use crate::Door;
use crate::auth::Caller;
use crate::cursor::RowCursor;
use crate::error::Error;
use crate::page;
use crate::query::Query;

const LIST: &str = "sessions";
const LIMIT: usize = 20;
const LIMIT_MAX: usize = 1_000;

pub(crate) async fn list(
    State(door): State<Door>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<BidirectionalPage<Session>>, Error> {
    let order = query.order(Order::Desc)?;
    let limit = query.limit(LIMIT, LIMIT_MAX)?;
    let created = query.times("created_at")?;
    let cursor = RowCursor::take(&mut query, LIST, order, &created)?;
    let asked = SessionQuery {
        agent_id: query.id("agent_id")?.map(AgentId::from_text),
        agent_version: query.integer("agent_version", 1..=i64::MAX)?,
        statuses: statuses(&mut query)?,
        include_archived: query.flag("include_archived")?,
        created,
        order,
        after: cursor.as_ref().filter(|cursor| !cursor.is_backward).map(page::place),
        before: cursor.as_ref().filter(|cursor| cursor.is_backward).map(page::place),
        limit: limit + 1,
    };
    // No session here comes from a deployment or has a memory store, so that asking for one finds nothing.
    let is_of_unbuilt = query.id("deployment_id")?.is_some() | query.id("memory_store_id")?.is_some();
    query.finish()?;
    if is_of_unbuilt {
        return Ok(Json(BidirectionalPage { data: Vec::new(), next_page: None, prev_page: None }));
    }

    let mut rows = door.app.store.list_sessions(&caller.workspace, asked).await?;
    let has_more = rows.len() > limit;
    let is_backward = cursor.as_ref().is_some_and(|cursor| cursor.is_backward);
    if has_more && is_backward {
        // The rows just before a place: the one too many is the farthest from it, which is the first.
        rows.remove(0);
    }
    rows.truncate(limit);
    let (has_before, has_after) = if is_backward { (has_more, true) } else { (cursor.is_some(), has_more) };
    let ends = rows.first().zip(rows.last());
    let prev_page = ends.filter(|_| has_before).map(|(first, _)| before(&first.record, order));
    let next_page = match (ends, &cursor) {
        (Some((_, last)), _) => has_after.then(|| after(&last.record, order)),
        // Nothing is left before the place: what comes next begins at the place itself, or at the front of the list.
        (None, Some(cursor)) if is_backward => Some(RowCursor::front(LIST, order, cursor).encode()),
        (None, _) => None,
    };
    let data = rows.iter().map(|seen| shown(seen, &door.app.store)).collect();
    Ok(Json(BidirectionalPage { data, next_page, prev_page }))
}

/// The `statuses[]` of a list of sessions or threads.
pub(crate) fn statuses(query: &mut Query) -> Result<Vec<Status>, Error> {
    let names = Status::ALL.map(Status::name);
    let asked = query.some_of("statuses", &names)?;
    Ok(Status::ALL.into_iter().filter(|status| asked.contains(&status.name())).collect())
}

fn before(record: &Record, order: Order) -> String {
    RowCursor::before(LIST, order, record.created_at, record.id.as_str()).encode()
}

fn after(record: &Record, order: Order) -> String {
    RowCursor::after(LIST, order, record.created_at, record.id.as_str()).encode()
}
