//! What a follower has not been shown yet, put in order.
//!
//! A client's event is shown twice: as it waits, and when it is taken up. The first copy is not in the log. It is
//! shown when it is found waiting, or, if it was taken up before that, in front of the first event of the append
//! that took it up: so it always stands before the session starts to run because of it, however slow the follower.

use std::sync::Arc;

use bytes::Bytes;
use protocol::position::Position;

use crate::follow::Item;
use crate::rules::append::without_time;

/// Events read at once.
pub(crate) const EVENTS: usize = 256;
/// Bytes after which no further event is read at once.
pub(crate) const BYTES: usize = 1 << 20;

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

/// What an engine finds for a follower.
pub(crate) enum Caught {
    Up(Chunk),
    /// The session is gone; the event that says so, if it is still known.
    Gone(Option<Bytes>),
}

/// What an engine reads for a follower, all of one moment.
pub(crate) struct Found {
    /// The place of the log's last event.
    pub(crate) head: Position,
    /// The number of the last event that ever entered the inbox.
    pub(crate) inbox_last: u64,
    /// The events after the cursor, as many as are read at once.
    pub(crate) logged: Vec<Logged>,
    /// The number of the last event of the inbox that the append of the last of `logged` took up, looked up because that
    /// append was not read to its end; 0 if it took up none or was read to its end.
    pub(crate) cut_taken: u64,
    /// What came to the inbox after `waited`: what waits there, and what was taken up after the floor.
    pub(crate) copies: Vec<Waited>,
}

/// An event of the log.
pub(crate) struct Logged {
    pub(crate) position: Position,
    pub(crate) kind: Arc<str>,
    pub(crate) append_end: Position,
    pub(crate) taken: Option<u64>,
    /// `None` for what is private.
    pub(crate) json: Option<Bytes>,
}

/// An event that waits in the inbox, or did.
pub(crate) struct Waited {
    pub(crate) sequence: u64,
    pub(crate) kind: Arc<str>,
    /// With or without its time.
    pub(crate) json: Bytes,
}

impl Found {
    /// The last of the events read, if its append goes on beyond it: the span that is left to look through for what it
    /// took up.
    pub(crate) fn cut(logged: &[Logged]) -> Option<(Position, Position)> {
        let last = logged.last()?;
        (last.position < last.append_end).then_some((last.position, last.append_end))
    }
}

/// Puts what was found in order.
pub(crate) fn chunk(progress: Progress, found: Found) -> Chunk {
    let Found { head, inbox_last, logged, cut_taken, mut copies } = found;
    copies.sort_by_key(|copy| copy.sequence);
    let mut copies = copies.into_iter().peekable();
    let mut chunk = Chunk { items: Vec::with_capacity(logged.len()), progress, is_all: false };
    for (index, event) in logged.iter().enumerate() {
        if event.position > chunk.progress.append_end.max(progress.floor) {
            chunk.progress.append_end = event.append_end;
            let append = logged[index..].iter().take_while(|other| other.position <= event.append_end);
            let is_cut = logged.last().is_some_and(|last| last.position < event.append_end);
            let taken = append.filter_map(|event| event.taken).max().unwrap_or(0);
            let taken = if is_cut { taken.max(cut_taken) } else { taken };
            chunk.show_waiting(&mut copies, taken);
        }
        chunk.progress.cursor = event.position;
        if let Some(json) = &event.json {
            let kind = event.kind.clone();
            chunk.items.push(Item::Event { position: event.position, kind, json: json.clone() });
        }
    }
    chunk.is_all = chunk.progress.cursor >= head;
    if chunk.is_all {
        chunk.show_waiting(&mut copies, inbox_last);
        chunk.progress =
            Progress { floor: progress.floor, ..Progress::at(progress.session, head, inbox_last) };
    }
    chunk
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
    fn show_waiting(&mut self, copies: &mut std::iter::Peekable<std::vec::IntoIter<Waited>>, last: u64) {
        while let Some(copy) = copies.next_if(|copy| copy.sequence <= last) {
            if copy.sequence <= self.progress.waited {
                continue;
            }
            self.progress.waited = copy.sequence;
            self.items.push(Item::Queued { kind: copy.kind, json: without_time(&copy.json) });
        }
    }
}
