//! What a follower has not been shown yet, read at one moment.

use bytes::Bytes;
use protocol::position::Position;
use rusqlite::{Connection, params};

use crate::rules::catch_up::{BYTES, EVENTS, Found, Logged, Progress, Start, Waited};
use crate::sqlite::fault::Fault;
use crate::sqlite::kinds::Kinds;
use crate::sqlite::slices::text;

/// Where a session stands now; `None` if there is no such session.
pub(crate) fn start(conn: &Connection, id: &str) -> Result<Option<Start>, Fault> {
    const START: &str = "
        SELECT s.number, h.position, h.inbox_last, (SELECT min(sequence) FROM inbox WHERE session = s.number)
        FROM session s JOIN head h ON h.session = s.number WHERE s.id = ?1";
    let mut statement = conn.prepare_cached(START)?;
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Start {
        session: row.get(0)?,
        head: Position(row.get(1)?),
        inbox_last: row.get(2)?,
        inbox_first: row.get(3)?,
    }))
}

/// What comes next; `None` if the session is gone.
pub(crate) fn find(conn: &Connection, kinds: &Kinds, progress: Progress) -> Result<Option<Found>, Fault> {
    let mut statement = conn.prepare_cached("SELECT position, inbox_last FROM head WHERE session = ?1")?;
    let mut rows = statement.query([progress.session])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let (head, inbox_last): (_, u64) = (Position(row.get(0)?), row.get(1)?);
    let logged = if head > progress.cursor { logged(conn, kinds, progress)? } else { Vec::new() };
    let cut_taken = match Found::cut(&logged) {
        Some(span) => last_taken(conn, progress.session, span)?,
        None => 0,
    };
    let copies = if inbox_last > progress.waited { copies(conn, kinds, progress)? } else { Vec::new() };
    Ok(Some(Found { head, inbox_last, logged, cut_taken, copies }))
}

const LOGGED: &str = "
    SELECT position, kind, append_end, taken, CASE WHEN kind > 0 THEN body END FROM event
    WHERE session = ?1 AND position > ?2 ORDER BY position LIMIT ?3";

fn logged(conn: &Connection, kinds: &Kinds, progress: Progress) -> Result<Vec<Logged>, Fault> {
    let mut statement = conn.prepare_cached(LOGGED)?;
    let mut rows = statement.query(params![progress.session, progress.cursor.0, EVENTS])?;
    let mut logged = Vec::new();
    let mut size_bytes = 0;
    while let Some(row) = rows.next()? {
        let kind: i64 = row.get(1)?;
        let json = if kind > 0 { Some(text(row, 4)?) } else { None };
        size_bytes += json.as_ref().map_or(0, Bytes::len);
        logged.push(Logged {
            position: Position(row.get(0)?),
            kind: kinds.name(kind),
            append_end: Position(row.get(2)?),
            taken: row.get(3)?,
            json,
        });
        if size_bytes > BYTES {
            break;
        }
    }
    Ok(logged)
}

fn last_taken(conn: &Connection, session: i64, (after, until): (Position, Position)) -> Result<u64, Fault> {
    const LAST: &str =
        "SELECT ifnull(max(taken), 0) FROM event WHERE session = ?1 AND position > ?2 AND position <= ?3";
    Ok(conn.prepare_cached(LAST)?.query_row(params![session, after.0, until.0], |row| row.get(0))?)
}

fn copies(conn: &Connection, kinds: &Kinds, progress: Progress) -> Result<Vec<Waited>, Fault> {
    const COPIES: &str = "
        SELECT taken, kind, body FROM event WHERE session = ?1 AND taken > ?2 AND position > ?3
        UNION ALL
        SELECT sequence, kind, body FROM inbox WHERE session = ?1 AND sequence > ?2";
    let Progress { session, floor, waited, .. } = progress;
    let mut statement = conn.prepare_cached(COPIES)?;
    let mut rows = statement.query(params![session, waited, floor.0])?;
    let mut copies = Vec::new();
    while let Some(row) = rows.next()? {
        copies.push(Waited { sequence: row.get(0)?, kind: kinds.name(row.get(1)?), json: text(row, 2)? });
    }
    Ok(copies)
}
