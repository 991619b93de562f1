//! Appending to a log: the brain's append, and the way in which every event gets there.

use bytes::Bytes;
use protocol::event::{Body, Event};
use protocol::id::EventId;
use protocol::position::Position;
use protocol::time::Timestamp;
use rusqlite::{Connection, params};
use session::Draft;
use session::state::stamp;

use crate::follow::Item;
use crate::hub::Hub;
use crate::lease::{Token, View};
use crate::sqlite::fault::Fault;
use crate::sqlite::heads::Head;
use crate::sqlite::kinds::Kinds;
use crate::sqlite::writer::Flush;

/// How every event's text ends while it has no time.
const NO_TIME: &str = "null}";
/// Stands before it, and before the time once there is one.
const TIME_KEY: &[u8] = b"\"processed_at\":";

/// An event to be written, with its text made ready on the caller's thread.
pub(crate) struct Written {
    pub(crate) id: EventId,
    pub(crate) body: Body,
    /// As it is shown with `processed_at: null`; the time is put in when it is known.
    pub(crate) json: String,
}

impl Written {
    pub(crate) fn new(id: EventId, body: Body) -> Self {
        let event = Event { body, id, processed_at: None };
        let json = serde_json::to_string(&event).expect("events are made of strings, numbers and lists");
        debug_assert!(json.ends_with(NO_TIME), "the time stands last");
        let Event { body, id, processed_at: _ } = event;
        Self { id, body, json }
    }
}

/// A draft, made ready.
pub(crate) enum Prepared {
    New(Written),
    Take(EventId),
}

impl Prepared {
    pub(crate) fn new(draft: Draft) -> Self {
        match draft {
            Draft::New { id, body } => Self::New(Written::new(id, body)),
            Draft::Take(id) => Self::Take(id),
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Self::New(written) => written.json.len(),
            Self::Take(_) => 0,
        }
    }
}

/// Why a brain's append is refused.
pub(crate) enum Refused {
    Moved(Box<View>),
    Fenced,
}

/// A brain's append.
pub(crate) fn append(
    flush: &mut Flush<'_>,
    token: &Token,
    expected: Position,
    drafts: Vec<Prepared>,
) -> Result<Result<View, Refused>, Fault> {
    let now = flush.now();
    let Some(head) = flush.heads.get(flush.conn, &token.session)? else { return Ok(Err(Refused::Fenced)) };
    if head.epoch != token.epoch || head.lease_until.is_none() {
        return Ok(Err(Refused::Fenced));
    }
    if head.state.head != expected || !has_all_taken(head, flush.conn, &drafts)? {
        return Ok(Err(Refused::Moved(Box::new(head.view(flush.conn)?))));
    }
    if drafts.is_empty() {
        return Ok(Ok(head.view(flush.conn)?));
    }
    head.renew(now);
    let append =
        Append { conn: flush.conn, kinds: flush.kinds, hub: flush.hub, now, end: end_of(head, drafts.len()) };
    for draft in drafts {
        match draft {
            Prepared::New(written) => {
                append.write(head, written)?;
            }
            Prepared::Take(id) => append.take(head, &id)?,
        }
    }
    let view = head.view(flush.conn)?;
    flush.heads.touch(&token.session);
    Ok(Ok(view))
}

/// Whether every event to be taken is in the inbox, and none is named twice.
fn has_all_taken(head: &mut Head, conn: &Connection, drafts: &[Prepared]) -> Result<bool, Fault> {
    let taken: Vec<&EventId> = drafts
        .iter()
        .filter_map(|draft| match draft {
            Prepared::Take(id) => Some(id),
            Prepared::New(_) => None,
        })
        .collect();
    if taken.is_empty() {
        return Ok(true);
    }
    let mut waiting: Vec<&EventId> = head.inbox(conn)?.events.iter().map(|event| &event.id).collect();
    Ok(taken.into_iter().all(|id| match waiting.iter().position(|waiting| *waiting == id) {
        Some(index) => {
            waiting.remove(index);
            true
        }
        None => false,
    }))
}

/// The place that the last of `count` further events will have.
pub(crate) fn end_of(head: &Head, count: usize) -> Position {
    Position(head.state.head.0 + count as u64)
}

/// One append on its way into the log: what its events have in common.
pub(crate) struct Append<'a> {
    pub(crate) conn: &'a Connection,
    pub(crate) kinds: &'a Kinds,
    pub(crate) hub: &'a Hub,
    pub(crate) now: Timestamp,
    /// The place of its last event.
    pub(crate) end: Position,
}

/// What became of an event.
pub(crate) struct Placed {
    pub(crate) position: Position,
    pub(crate) at: Timestamp,
    pub(crate) json: Bytes,
}

impl Append<'_> {
    /// Puts a new event at the end of the log.
    pub(crate) fn write(&self, head: &mut Head, written: Written) -> Result<Placed, Fault> {
        let Written { id, body, json } = written;
        let at = head.state.next_time(self.now);
        let (body, json) = match body {
            // Its figures are those of this moment.
            body @ Body::Usage { .. } => {
                let Written { id: _, body, json } = Written::new(id.clone(), stamp(&head.state, body, at));
                (body, json)
            }
            body => (body, json),
        };
        let kind = self.kinds.number_or_new(self.conn, body.kind())?;
        self.put(head, Row { id: &id, body: &body, kind, json, taken: None }, at)
    }

    /// Moves an event of the inbox to the end of the log.
    fn take(&self, head: &mut Head, id: &EventId) -> Result<(), Fault> {
        let (event, paper) = head.inbox(self.conn)?.remove(id).expect("checked before anything was written");
        let statement = "DELETE FROM inbox WHERE session = ?1 AND sequence = ?2";
        self.conn.prepare_cached(statement)?.execute(params![head.number, paper.sequence])?;
        let at = head.state.next_time(self.now);
        let row =
            Row { id, body: &event.body, kind: paper.kind, json: paper.json, taken: Some(paper.sequence) };
        self.put(head, row, at)?;
        head.state.queued.remove(&event.body);
        Ok(())
    }

    fn put(&self, head: &mut Head, row: Row<'_>, at: Timestamp) -> Result<Placed, Fault> {
        let Row { id, body, kind, json, taken } = row;
        let json = with_time(json, at);
        let position = head.state.head.next();
        head.begin_news(self.hub);
        const INSERT: &str = "
            INSERT INTO event (session, position, kind, at, append_end, taken, body)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        self.conn.prepare_cached(INSERT)?.execute(params![
            head.number,
            position.0,
            kind,
            at.as_micros(),
            self.end.0,
            taken,
            json,
        ])?;
        head.state.apply(id, body, at);
        // No copy: the text becomes the bytes that everybody is shown.
        let json = Bytes::from(json);
        if kind > 0 {
            head.add_news(|| Item::Event { position, kind: self.kinds.name(kind), json: json.clone() });
        }
        Ok(Placed { position, at, json })
    }
}

struct Row<'a> {
    id: &'a EventId,
    body: &'a Body,
    kind: i64,
    /// Still without its time.
    json: String,
    taken: Option<u64>,
}

/// Puts the time into an event's text.
fn with_time(mut json: String, at: Timestamp) -> String {
    use std::fmt::Write;
    json.truncate(json.len() - NO_TIME.len());
    write!(json, "\"{at}\"}}").expect("a string takes what is written");
    json
}

/// An event's text as it was before it had a time.
pub(crate) fn without_time(json: &[u8]) -> Vec<u8> {
    let key = json.windows(TIME_KEY.len()).rposition(|window| window == TIME_KEY);
    let mut text = match key {
        Some(start) => json[..start + TIME_KEY.len()].to_vec(),
        // It never had one.
        None => return json.to_vec(),
    };
    text.extend_from_slice(NO_TIME.as_bytes());
    text
}

#[cfg(test)]
mod tests {
    use protocol::content::Content;
    use protocol::id::FromBits;

    use super::*;

    #[test]
    fn a_text_with_its_time_is_what_serde_writes() {
        let at = Timestamp::parse("2026-11-20T09:00:01.000001Z").expect("valid");
        let body = Body::UserMessage { content: vec![Content::text("\"processed_at\":null}")] };
        let id = EventId::from_bits(7);
        let written = Written::new(id.clone(), body.clone());
        let before = written.json.clone();
        let json = with_time(written.json, at);
        let event = Event { body, id, processed_at: Some(at) };
        assert_eq!(json, serde_json::to_string(&event).expect("writes"));
        assert_eq!(without_time(json.as_bytes()), before.as_bytes());
    }
}
