//! Appending to a log: the brain's append, and the way in which every event gets there.

use bytes::Bytes;
use protocol::event::{Body, Event};
use protocol::id::EventId;
use protocol::position::Position;
use protocol::time::Timestamp;
use session::Draft;
use session::state::stamp;

use crate::error::AppendError;
use crate::follow::Item;
use crate::hub::Hub;
use crate::lease::{Token, View};
use crate::rules::head::{EventRow, Head, kind_name};
use crate::rules::jobs::Moment;
use crate::rules::leases::lengthen;

/// How every event's text ends while it has no time.
const NO_TIME: &str = "null}";
/// Stands before it, and before the time once there is one.
const TIME_KEY: &[u8] = b"\"processed_at\":";
/// The bytes of a time in quotes and the closing brace.
const TIME_BYTES: usize = 32;

/// An event to be written, with its text made ready on the caller's thread.
#[derive(Clone)]
pub(crate) struct Written {
    pub(crate) id: EventId,
    pub(crate) body: Body,
    /// As it is shown with `processed_at: null`; the time is put in when it is known.
    pub(crate) json: Bytes,
}

impl Written {
    pub(crate) fn new(id: EventId, body: Body) -> Self {
        let event = Event { body, id, processed_at: None };
        let json = serde_json::to_vec(&event).expect("events are made of strings, numbers and lists");
        debug_assert!(json.ends_with(NO_TIME.as_bytes()), "the time stands last");
        let Event { body, id, processed_at: _ } = event;
        Self { id, body, json: json.into() }
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

/// A brain's append.
pub(crate) fn append(
    head: Option<&mut Head>,
    token: &Token,
    expected: Position,
    drafts: &[Prepared],
    moment: &Moment<'_>,
) -> Result<View, AppendError> {
    let Some(head) = head.filter(|head| head.is_held_by(token)) else { return Err(AppendError::Fenced) };
    if head.state.head != expected || !has_all_taken(head, drafts) {
        return Err(AppendError::Moved(Box::new(head.view())));
    }
    if drafts.is_empty() {
        return Ok(head.view());
    }
    lengthen(head, moment.now);
    head.lease.waiting = None;
    let append = Append { hub: moment.hub, now: moment.now, end: end_of(head, drafts.len()) };
    for draft in drafts {
        match draft {
            Prepared::New(written) => {
                if session::is_progress(&written.body) {
                    head.lease.deaths = 0;
                }
                append.write(head, written);
            }
            Prepared::Take(id) => append.take(head, id),
        }
    }
    Ok(head.view())
}

/// Whether every event to be taken is in the inbox, and none is named twice.
fn has_all_taken(head: &mut Head, drafts: &[Prepared]) -> bool {
    let taken: Vec<&EventId> = drafts
        .iter()
        .filter_map(|draft| match draft {
            Prepared::Take(id) => Some(id),
            Prepared::New(_) => None,
        })
        .collect();
    if taken.is_empty() {
        return true;
    }
    let mut waiting: Vec<&EventId> = head.inbox().events.iter().map(|event| &event.id).collect();
    taken.into_iter().all(|id| match waiting.iter().position(|waiting| *waiting == id) {
        Some(index) => {
            waiting.remove(index);
            true
        }
        None => false,
    })
}

/// The place that the last of `count` further events will have.
pub(crate) fn end_of(head: &Head, count: usize) -> Position {
    Position(head.state.head.0 + count as u64)
}

/// One append on its way into the log: what its events have in common.
pub(crate) struct Append<'a> {
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
    pub(crate) fn write(&self, head: &mut Head, written: &Written) -> Placed {
        let at = head.state.next_time(self.now);
        match &written.body {
            // Its figures are those of this moment.
            body @ Body::Usage { .. } => {
                let stamped = Written::new(written.id.clone(), stamp(&head.state, body.clone(), at));
                self.put(head, &stamped, None, at)
            }
            _ => self.put(head, written, None, at),
        }
    }

    /// Moves an event of the inbox to the end of the log.
    fn take(&self, head: &mut Head, id: &EventId) {
        let (event, row) = head.inbox().remove(id).expect("checked before anything was written");
        // What came in and is taken up in one flush is never written to the inbox.
        match head.pending.queued.iter().position(|queued| queued.sequence == row.sequence) {
            Some(index) => {
                head.pending.queued.remove(index);
            }
            None => head.pending.taken.push(row.sequence),
        }
        let at = head.state.next_time(self.now);
        let Event { body, id, processed_at: _ } = event;
        let written = Written { id, body, json: row.json };
        self.put(head, &written, Some(row.sequence), at);
        head.state.queued.remove(&written.body);
    }

    fn put(&self, head: &mut Head, written: &Written, taken: Option<u64>, at: Timestamp) -> Placed {
        let Written { id, body, json } = written;
        let json = with_time(json, at);
        let position = head.state.head.next();
        let kind = kind_name(body.kind());
        let is_private = body.is_private();
        head.begin_news(self.hub);
        head.pending.events.push(EventRow {
            position,
            kind: kind.clone(),
            is_private,
            at,
            append_end: self.end,
            taken,
            json: json.clone(),
        });
        head.state.apply(id, body, at);
        if !is_private {
            head.add_news(|| Item::Event { position, kind, json: json.clone() });
        }
        Placed { position, at, json }
    }
}

/// An event's text with its time.
fn with_time(json: &[u8], at: Timestamp) -> Bytes {
    use std::io::Write;
    let mut text = Vec::with_capacity(json.len() + TIME_BYTES);
    text.extend_from_slice(&json[..json.len() - NO_TIME.len()]);
    write!(text, "\"{at}\"}}").expect("a vector takes what is written");
    text.into()
}

/// An event's text as it was before it had a time.
pub(crate) fn without_time(json: &[u8]) -> Bytes {
    let key = json.windows(TIME_KEY.len()).rposition(|window| window == TIME_KEY);
    let mut text = match key {
        Some(start) => json[..start + TIME_KEY.len()].to_vec(),
        // It never had one.
        None => return Bytes::copy_from_slice(json),
    };
    text.extend_from_slice(NO_TIME.as_bytes());
    text.into()
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
        let json = with_time(&written.json, at);
        let event = Event { body, id, processed_at: Some(at) };
        assert_eq!(json, serde_json::to_vec(&event).expect("writes"));
        assert_eq!(without_time(&json), written.json);
    }
}
