//! Slices of a log, the inbox, what a follower reads, and a log folded anew.

use std::sync::Arc;

use bytes::Bytes;
use protocol::event::Event;
use protocol::id::{SessionId, ThreadId};
use protocol::position::Position;
use protocol::time::Timestamp;
use session::{Record, State};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::log::{Order, Slice, Stored};
use crate::postgres::connect::{Db, LONG_ANSWER_MAX, Param};
use crate::postgres::fault::Fault;
use crate::postgres::heads::{json, signed, text, unsigned};
use crate::rules::catch_up::{BYTES, Caught, EVENTS, Found, Logged, Progress, Start, Waited, chunk};
use crate::rules::head::kind_name;

/// A statement with its parameters, which the caller keeps.
struct Asked {
    sql: String,
    id: String,
    first: i64,
    last: i64,
    limit: i64,
    kinds: Option<Vec<String>>,
    earliest: i64,
    latest: i64,
}

impl Asked {
    fn new(id: &SessionId, slice: &Slice) -> Self {
        let direction = match slice.order {
            Order::Asc => "ASC",
            Order::Desc => "DESC",
        };
        let mut filter = String::new();
        if slice.kinds.is_some() {
            filter.push_str(" AND e.kind = ANY($7)");
        }
        if !slice.private {
            filter.push_str(" AND NOT e.is_private");
        }
        // The bytes that go over the wire are cut by the server, so that a page is bounded there, too.
        let sql = format!(
            "SELECT position, kind, at, body FROM (
                SELECT e.position, e.kind, e.at, e.body,
                    coalesce(sum(octet_length(e.body)) OVER (
                        ORDER BY e.position {direction} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before,
                    octet_length(e.body) AS size
                FROM session s JOIN event e ON e.session = s.number
                WHERE s.id = $1 AND e.position BETWEEN $2 AND $3 AND e.at BETWEEN $5 AND $6{filter}
                ORDER BY e.position {direction} LIMIT $4
            ) AS slice
            WHERE before = 0 OR before + size <= {}
            ORDER BY position {direction}",
            slice.bytes_max
        );
        let (earliest, latest) = slice.times.micros();
        Self {
            sql,
            id: id.to_string(),
            first: signed(slice.after.0).saturating_add(1),
            last: slice.until.map_or(i64::MAX, |until| signed(until.0)),
            limit: i64::try_from(slice.limit).unwrap_or(i64::MAX),
            kinds: slice.kinds.clone(),
            earliest,
            latest,
        }
    }

    /// Those that the statement uses, in its order.
    fn params(&self) -> Vec<Param<'_>> {
        let mut params: Vec<Param<'_>> = vec![
            (&self.id, Type::TEXT),
            (&self.first, Type::INT8),
            (&self.last, Type::INT8),
            (&self.limit, Type::INT8),
            (&self.earliest, Type::INT8),
            (&self.latest, Type::INT8),
        ];
        if let Some(kinds) = &self.kinds {
            params.push((kinds, Type::TEXT_ARRAY));
        }
        params
    }
}

/// A slice of a session's log; empty if there is no such session.
pub(crate) async fn events(db: &Db, id: &SessionId, slice: &Slice) -> Result<Vec<Stored>, Fault> {
    let asked = Asked::new(id, slice);
    let rows = db.query(&asked.sql, &asked.params()).await?;
    Ok(rows.iter().map(stored).collect())
}

fn stored(row: &Row) -> Stored {
    Stored {
        position: Some(Position(unsigned(row, 0))),
        kind: kind_name(row.get(1)),
        processed_at: Some(Timestamp::from_micros(row.get(2))),
        json: text(row, 3),
    }
}

const INBOX: &str = "
    SELECT i.kind, i.body FROM session s JOIN inbox i ON i.session = s.number WHERE s.id = $1 ORDER BY i.sequence";

/// What waits in a session's inbox, oldest first.
pub(crate) async fn inbox(db: &Db, id: &SessionId) -> Result<Vec<Stored>, Fault> {
    let rows = db.query(INBOX, &[(&id.as_str(), Type::TEXT)]).await?;
    Ok(rows.iter().map(waiting).collect())
}

fn waiting(row: &Row) -> Stored {
    Stored { position: None, kind: kind_name(row.get(0)), processed_at: None, json: text(row, 1) }
}

/// Both, of one moment.
pub(crate) async fn history(
    db: &Db,
    id: &SessionId,
    slice: &Slice,
) -> Result<(Vec<Stored>, Vec<Stored>), Fault> {
    let asked = Asked::new(id, slice);
    let id = id.as_str();
    let rows = db.snapshot(&[(&asked.sql, &asked.params()), (INBOX, &[(&id, Type::TEXT)])]).await?;
    Ok((rows[0].iter().map(stored).collect(), rows[1].iter().map(waiting).collect()))
}

/// A session's state, folded anew.
pub(crate) async fn rebuild(db: &Db, id: &SessionId) -> Result<Option<State>, Fault> {
    const SESSION: &str = "SELECT thread_id, record FROM session WHERE id = $1";
    const LOG: &str = "
        SELECT e.at, e.body FROM session s JOIN event e ON e.session = s.number WHERE s.id = $1 ORDER BY e.position";
    let id = id.as_str();
    let params: &[Param<'_>] = &[(&id, Type::TEXT)];
    let rows =
        db.snapshot_within(LONG_ANSWER_MAX, &[(SESSION, params), (LOG, params), (INBOX, params)]).await?;
    let Some(row) = rows[0].first() else { return Ok(None) };
    let record: Record = json(row, 1)?;
    let thread_id = ThreadId::from_text(row.get::<_, String>(0));
    let mut state = State::new(thread_id, record.agent.spec.name, record.created_at);
    for row in &rows[1] {
        let event: Event = json(row, 1)?;
        state.apply(&event.id, &event.body, Timestamp::from_micros(row.get(0)));
    }
    for row in &rows[2] {
        let event: Event = json(row, 1)?;
        state.queued.add(&event.body);
    }
    Ok(Some(state))
}

/// Where a session stands now; `None` if there is no such session.
pub(crate) async fn start(db: &Db, id: &SessionId) -> Result<Option<Start>, Fault> {
    const START: &str = "
        SELECT session, position, inbox_last, (SELECT min(sequence) FROM inbox WHERE inbox.session = head.session)
        FROM head WHERE id = $1";
    let row = db.query_opt(START, &[(&id.as_str(), Type::TEXT)]).await?;
    Ok(row.map(|row| Start {
        session: row.get(0),
        head: Position(unsigned(&row, 1)),
        inbox_last: unsigned(&row, 2),
        inbox_first: row.get::<_, Option<i64>>(3).map(|first| u64::try_from(first).unwrap_or_default()),
    }))
}

/// What comes next for a follower.
pub(crate) async fn catch_up(db: &Db, id: &SessionId, progress: Progress) -> Result<Caught, Fault> {
    const HEAD: &str = "SELECT position, inbox_last FROM head WHERE session = $1";
    // What an append that is cut off took up further on is found with it.
    const LOGGED: &str = "
        SELECT position, kind, append_end, taken, CASE WHEN NOT is_private THEN body END FROM event
        WHERE session = $1 AND position > $2 ORDER BY position LIMIT $3";
    const COPIES: &str = "
        SELECT taken, kind, body FROM event WHERE session = $1 AND taken > $2 AND position > $3
        UNION ALL
        SELECT sequence, kind, body FROM inbox WHERE session = $1 AND sequence > $2";
    let (session, cursor) = (progress.session, signed(progress.cursor.0));
    let (waited, floor) = (signed(progress.waited), signed(progress.floor.0));
    let limit = EVENTS as i64;
    let head: &[Param<'_>] = &[(&session, Type::INT8)];
    let logged: &[Param<'_>] = &[(&session, Type::INT8), (&cursor, Type::INT8), (&limit, Type::INT8)];
    let copies: &[Param<'_>] = &[(&session, Type::INT8), (&waited, Type::INT8), (&floor, Type::INT8)];
    let rows = db.snapshot(&[(HEAD, head), (LOGGED, logged), (COPIES, copies)]).await?;
    let Some(row) = rows[0].first() else { return gone(db, id).await };
    let mut logged = Vec::with_capacity(rows[1].len());
    let mut size_bytes = 0;
    for row in &rows[1] {
        let event = logged_event(row);
        size_bytes += event.json.as_ref().map_or(0, Bytes::len);
        logged.push(event);
        if size_bytes > BYTES {
            break;
        }
    }
    let mut found = Found {
        head: Position(unsigned(row, 0)),
        inbox_last: unsigned(row, 1),
        logged,
        cut_taken: 0,
        copies: rows[2].iter().map(copy).collect(),
    };
    if let Some((after, until)) = Found::cut(&found.logged) {
        // An append never changes, so it may be looked at later.
        const LAST: &str = "SELECT coalesce(max(taken), 0) FROM event WHERE session = $1 AND position > $2 AND position <= $3";
        let (after, until) = (signed(after.0), signed(until.0));
        let params = [(&session as _, Type::INT8), (&after as _, Type::INT8), (&until as _, Type::INT8)];
        found.cut_taken = db.query(LAST, &params).await?.first().map_or(0, |row| unsigned(row, 0));
    }
    Ok(Caught::Up(chunk(progress, found)))
}

async fn gone(db: &Db, id: &SessionId) -> Result<Caught, Fault> {
    const SAID: &str = "SELECT said FROM doomed WHERE id = $1";
    let row = db.query_opt(SAID, &[(&id.as_str(), Type::TEXT)]).await?;
    Ok(Caught::Gone(row.map(|row| text(&row, 0))))
}

fn logged_event(row: &Row) -> Logged {
    Logged {
        position: Position(unsigned(row, 0)),
        kind: kind_name(row.get(1)),
        append_end: Position(unsigned(row, 2)),
        taken: row.get::<_, Option<i64>>(3).map(|taken| u64::try_from(taken).unwrap_or_default()),
        json: row.get::<_, Option<&str>>(4).map(|json| Bytes::copy_from_slice(json.as_bytes())),
    }
}

fn copy(row: &Row) -> Waited {
    let kind: Arc<str> = kind_name(row.get(1));
    Waited { sequence: unsigned(row, 0), kind, json: text(row, 2) }
}
