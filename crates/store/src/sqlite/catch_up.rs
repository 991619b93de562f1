//! What a follower has not shown yet, read at one moment and put in order.
//!
//! A client's event is shown twice: as it waits, and when it is taken up. The first copy is not in the log. It is
//! shown when it is found waiting, or, if it was taken up before that, in front of the first event of the append
//! that took it up: so it always stands before the session starts to run because of it, however slow the follower.

use protocol::position::Position;
use rusqlite::{Connection, Row, params};

use crate::follow::Item;
use crate::sqlite::appends::without_time;
use crate::sqlite::fault::Fault;
use crate::sqlite::kinds::Kinds;
use crate::sqlite::slices::text;

/// Events read at once.
const EVENTS: usize = 256;
/// Bytes after which no further event is read at once.
const BYTES: usize = 1 << 20;

/// Where a session stands when a follower registers.
pub(crate) struct Start {
    pub(crate) session: i64,
    pub(crate) head: Position,
    /// The number of the last event that ever entered the inbox.
    pub(crate) inbox_last: u64,
    /// The number of the oldest event that waits there.
    pub(crate) inbox_first: Option<u64>,
}

/// How far a follower has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) session: i64,
    /// The last event shown.
    pub(crate) cursor: Position,
    /// The log's end when the follower registered: what was taken up by then is not shown as waiting.
    pub(crate) floor: Position,
    /// Events of the inbox up to this number have been shown as waiting, or are not to be.
    pub(crate) waited: u64,
    /// The end of the append in which the cursor is: its waiting copies have been shown.
    pub(crate) append_end: Position,
}

impl Progress {
    /// That of a follower that has seen all there is when the log ends at `head`, and the inbox with `inbox_last`.
    pub(crate) fn at(session: i64, head: Position, inbox_last: u64) -> Self {
        Self { session, cursor: head, floor: head, waited: inbox_last, append_end: head }
    }

    /// Whether both will be shown the same from here on. Once past it, where one began makes no difference.
    pub(crate) fn is_level_with(&self, other: &Self) -> bool {
        let is_caught_up = |progress: &Self| progress.cursor >= progress.floor;
        self.session == other.session
            && self.cursor == other.cursor
            && self.waited == other.waited
            && self.append_end.max(self.cursor) == other.append_end.max(other.cursor)
            && is_caught_up(self)
            && is_caught_up(other)
    }
}

/// What was read.
#[derive(Clone)]
pub(crate) struct Chunk {
    pub(crate) items: Vec<Item>,
    pub(crate) progress: Progress,
    /// Nothing was left at that moment.
    pub(crate) is_all: bool,
}

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
pub(crate) fn read(conn: &Connection, kinds: &Kinds, progress: Progress) -> Result<Option<Chunk>, Fault> {
    let mut statement = conn.prepare_cached("SELECT position, inbox_last FROM head WHERE session = ?1")?;
    let mut rows = statement.query([progress.session])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let (head, inbox_last): (_, u64) = (Position(row.get(0)?), row.get(1)?);
    let logged = if head > progress.cursor { logged(conn, progress)? } else { Vec::new() };
    let mut chunk = Chunk { items: Vec::with_capacity(logged.len()), progress, is_all: false };
    for (index, event) in logged.iter().enumerate() {
        if event.position > chunk.progress.append_end.max(progress.floor) {
            chunk.progress.append_end = event.append_end;
            let taken = last_taken(conn, progress.session, &logged[index..], event)?;
            chunk.show_waiting(conn, kinds, taken)?;
        }
        chunk.progress.cursor = event.position;
        if let Some(json) = &event.json {
            let kind = kinds.name(event.kind);
            chunk.items.push(Item::Event { position: event.position, kind, json: json.clone() });
        }
    }
    chunk.is_all = chunk.progress.cursor >= head;
    if chunk.is_all {
        chunk.show_waiting(conn, kinds, inbox_last)?;
        chunk.progress =
            Progress { floor: progress.floor, ..Progress::at(progress.session, head, inbox_last) };
    }
    Ok(Some(chunk))
}

struct Logged {
    position: Position,
    kind: i64,
    append_end: Position,
    taken: Option<u64>,
    /// `None` for what is private.
    json: Option<bytes::Bytes>,
}

const LOGGED: &str = "
    SELECT position, kind, append_end, taken, CASE WHEN kind > 0 THEN body END FROM event
    WHERE session = ?1 AND position > ?2 ORDER BY position LIMIT ?3";

fn logged(conn: &Connection, progress: Progress) -> Result<Vec<Logged>, Fault> {
    let mut statement = conn.prepare_cached(LOGGED)?;
    let mut rows = statement.query(params![progress.session, progress.cursor.0, EVENTS])?;
    let mut logged = Vec::new();
    let mut size_bytes = 0;
    while let Some(row) = rows.next()? {
        let kind = row.get(1)?;
        let json = if kind > 0 { Some(text(row, 4)?) } else { None };
        size_bytes += json.as_ref().map_or(0, bytes::Bytes::len);
        logged.push(Logged {
            position: Position(row.get(0)?),
            kind,
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

/// The number of the last event of the inbox that the append of `first` took up; 0 if it took up none. `rest` is what
/// has been read from `first` on.
fn last_taken(conn: &Connection, session: i64, rest: &[Logged], first: &Logged) -> Result<u64, Fault> {
    let is_read = rest.last().is_some_and(|last| last.position >= first.append_end);
    if is_read {
        let append = rest.iter().take_while(|event| event.position <= first.append_end);
        return Ok(append.filter_map(|event| event.taken).max().unwrap_or(0));
    }
    const LAST: &str =
        "SELECT ifnull(max(taken), 0) FROM event WHERE session = ?1 AND position BETWEEN ?2 AND ?3";
    let span = params![session, first.position.0, first.append_end.0];
    Ok(conn.prepare_cached(LAST)?.query_row(span, |row| row.get(0))?)
}

impl Chunk {
    /// The bytes of all its texts.
    pub(crate) fn size_bytes(&self) -> usize {
        let size = |item: &Item| match item {
            Item::Event { json, .. } | Item::Queued { json, .. } => json.len(),
            Item::Preview { json, .. } | Item::Deleted { json } => json.len(),
        };
        self.items.iter().map(size).sum()
    }

    /// Shows what has not been shown as waiting, up to number `last` of the inbox, in the order of its arrival,
    /// whether it still waits or has been taken up.
    fn show_waiting(&mut self, conn: &Connection, kinds: &Kinds, last: u64) -> Result<(), Fault> {
        let Progress { session, floor, waited, .. } = self.progress;
        if last <= waited {
            return Ok(());
        }
        const TAKEN: &str = "
            SELECT taken, kind, body FROM event
            WHERE session = ?1 AND taken > ?2 AND taken <= ?3 AND position > ?4";
        const WAITING: &str =
            "SELECT sequence, kind, body FROM inbox WHERE session = ?1 AND sequence > ?2 AND sequence <= ?3";
        let mut copies: Vec<(u64, Item)> = Vec::new();
        let mut statement = conn.prepare_cached(TAKEN)?;
        let mut rows = statement.query(params![session, waited, last, floor.0])?;
        while let Some(row) = rows.next()? {
            copies.push(copy(row, kinds)?);
        }
        let mut statement = conn.prepare_cached(WAITING)?;
        let mut rows = statement.query(params![session, waited, last])?;
        while let Some(row) = rows.next()? {
            copies.push(copy(row, kinds)?);
        }
        copies.sort_by_key(|(sequence, _)| *sequence);
        if let Some((sequence, _)) = copies.last() {
            self.progress.waited = *sequence;
        }
        self.items.extend(copies.into_iter().map(|(_, item)| item));
        Ok(())
    }
}

fn copy(row: &Row<'_>, kinds: &Kinds) -> Result<(u64, Item), Fault> {
    let json = without_time(row.get_ref(2)?.as_bytes().map_err(rusqlite::Error::from)?);
    Ok((row.get(0)?, Item::Queued { kind: kinds.name(row.get(1)?), json: json.into() }))
}
