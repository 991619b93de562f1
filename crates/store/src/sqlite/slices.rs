//! Slices of a log, the inbox, and a log folded anew.

use bytes::Bytes;
use protocol::event::Event;
use protocol::id::{SessionId, ThreadId};
use protocol::position::Position;
use protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use session::{Record, State};

use crate::log::{Order, Slice, Stored, TimeBounds};
use crate::sqlite::fault::Fault;
use crate::sqlite::heads::{json, number_of};
use crate::sqlite::kinds::Kinds;

/// A slice of a session's log; empty if there is no such session.
pub(crate) fn events(
    conn: &Connection,
    kinds: &Kinds,
    id: &SessionId,
    slice: &Slice,
) -> Result<Vec<Stored>, Fault> {
    let Some(session) = number_of(conn, id)? else { return Ok(Vec::new()) };
    let Some(span) = span_of(conn, session, slice)? else { return Ok(Vec::new()) };
    let Some(filter) = filter_of(kinds, slice) else { return Ok(Vec::new()) };
    let direction = match slice.order {
        Order::Asc => "ASC",
        Order::Desc => "DESC",
    };
    let statement = format!(
        "SELECT position, kind, at, body FROM event
         WHERE session = ?1 AND position BETWEEN ?2 AND ?3{filter}
         ORDER BY position {direction} LIMIT ?4"
    );
    let mut statement = conn.prepare_cached(&statement)?;
    let mut rows = statement.query(params![session, span.first, span.last, limit_of(slice.limit)])?;
    let mut events = Vec::new();
    let mut size_bytes = 0;
    while let Some(row) = rows.next()? {
        let event = stored(row, kinds)?;
        size_bytes += event.json.len();
        if size_bytes > slice.bytes_max && !events.is_empty() {
            break;
        }
        events.push(event);
    }
    Ok(events)
}

fn stored(row: &Row<'_>, kinds: &Kinds) -> Result<Stored, Fault> {
    Ok(Stored {
        position: Some(Position(row.get(0)?)),
        kind: kinds.name(row.get(1)?),
        processed_at: Some(Timestamp::from_micros(row.get(2)?)),
        json: text(row, 3)?,
    })
}

/// A column of text, without looking at it.
pub(crate) fn text(row: &Row<'_>, column: usize) -> Result<Bytes, Fault> {
    let text = row.get_ref(column)?.as_bytes().map_err(rusqlite::Error::from)?;
    Ok(Bytes::copy_from_slice(text))
}

/// A limit that SQLite takes.
pub(crate) fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The condition on kinds. It is answered from the index. `None` if no event can meet it.
fn filter_of(kinds: &Kinds, slice: &Slice) -> Option<String> {
    let Some(names) = &slice.kinds else {
        return Some(if slice.private { String::new() } else { " AND kind > 0".to_owned() });
    };
    // A kind without a number has never occurred.
    let mut numbers: Vec<i64> = names.iter().filter_map(|name| kinds.number(name)).collect();
    numbers.retain(|number| slice.private || *number > 0);
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.is_empty() {
        return None;
    }
    // Numbers that we gave out ourselves: safe in the text of a statement.
    let list = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    Some(format!(" AND kind IN ({list})"))
}

/// Positions, both inclusive.
struct Span {
    first: i64,
    last: i64,
}

/// The positions of a slice; `None` if there are none.
fn span_of(conn: &Connection, session: i64, slice: &Slice) -> Result<Option<Span>, Fault> {
    let first = number(slice.after).saturating_add(1);
    let last = slice.until.map_or(i64::MAX, number);
    let mut span = Span { first, last };
    if slice.times != TimeBounds::default() {
        let (earliest, latest) = slice.times.micros();
        let head = head_of(conn, session)?;
        span.first = span.first.max(first_at(conn, session, head, earliest)?);
        span.last = span.last.min(first_at(conn, session, head, latest.saturating_add(1))? - 1);
    }
    Ok((span.first <= span.last).then_some(span))
}

fn number(position: Position) -> i64 {
    i64::try_from(position.0).unwrap_or(i64::MAX)
}

const HEAD: &str = "SELECT position FROM event WHERE session = ?1 ORDER BY position DESC LIMIT 1";

fn head_of(conn: &Connection, session: i64) -> Result<i64, Fault> {
    let head = conn.prepare_cached(HEAD)?.query_row([session], |row| row.get(0)).optional()?;
    Ok(head.unwrap_or(0))
}

/// The first position whose event is at or after `micros`; one past the last if there is none. Times grow with
/// positions, so this takes a look at some twenty events even of a log of a million.
fn first_at(conn: &Connection, session: i64, head: i64, micros: i64) -> Result<i64, Fault> {
    let mut at = conn.prepare_cached("SELECT at FROM event WHERE session = ?1 AND position = ?2")?;
    let (mut low, mut high) = (1, head + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let time: i64 = at.query_row([session, middle], |row| row.get(0))?;
        if time < micros {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// What waits in a session's inbox, oldest first.
pub(crate) fn inbox(conn: &Connection, kinds: &Kinds, id: &SessionId) -> Result<Vec<Stored>, Fault> {
    let Some(session) = number_of(conn, id)? else { return Ok(Vec::new()) };
    let mut statement =
        conn.prepare_cached("SELECT kind, body FROM inbox WHERE session = ?1 ORDER BY sequence")?;
    let mut rows = statement.query([session])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let kind = kinds.name(row.get(0)?);
        events.push(Stored { position: None, kind, processed_at: None, json: text(row, 1)? });
    }
    Ok(events)
}

/// Both, at the same moment.
pub(crate) fn history(
    conn: &Connection,
    kinds: &Kinds,
    id: &SessionId,
    slice: &Slice,
) -> Result<(Vec<Stored>, Vec<Stored>), Fault> {
    Ok((events(conn, kinds, id, slice)?, inbox(conn, kinds, id)?))
}

/// A session's state, folded anew.
pub(crate) fn rebuild(conn: &Connection, id: &SessionId) -> Result<Option<State>, Fault> {
    const SESSION: &str = "SELECT number, thread_id, record FROM session WHERE id = ?1";
    let mut statement = conn.prepare_cached(SESSION)?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let number: i64 = row.get(0)?;
    let thread_id = ThreadId::from_text(row.get::<_, String>(1)?);
    let record: Record = json(row, 2)?;
    let mut state = State::new(thread_id, record.agent.spec.name, record.created_at);
    let mut statement =
        conn.prepare_cached("SELECT at, body FROM event WHERE session = ?1 ORDER BY position")?;
    let mut rows = statement.query([number])?;
    while let Some(row) = rows.next()? {
        let event: Event = json(row, 1)?;
        state.apply(&event.id, &event.body, Timestamp::from_micros(row.get(0)?));
    }
    let mut statement = conn.prepare_cached("SELECT body FROM inbox WHERE session = ?1")?;
    let mut rows = statement.query([number])?;
    while let Some(row) = rows.next()? {
        let event: Event = json(row, 0)?;
        state.queued.add(&event.body);
    }
    Ok(Some(state))
}
