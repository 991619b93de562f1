//! The one reader: catch up from the store, then follow.
//!
//! ```text
//!   subscribe ──▶ look ──▶ show what was found ──▶ all shown? ── yes ──▶ sleep until something changed ─┐
//!                   ▲                                  │ no                                             │
//!                   └──────────────────────────────────┴────────────────────────────────────────────────┘
//! ```
//!
//! A slow follower costs a position and no memory: what it has not read stays in the store. Only previews are held
//! for it, a bounded number of them; what it misses of those it never sees.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use protocol::event::PreviewKind;
use protocol::id::{EventId, SessionId};
use protocol::position::Position;

use crate::error::Error;
use crate::hub::{Frame, Marks, Subscription};
use crate::rules::catch_up::{Caught, Chunk, Progress};
use crate::{Inner, Store};

/// Where a follower starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With what happens from now on.
    Now,
    /// With the first event after this place; then shows what is still pending in the inbox, then goes on.
    After(Position),
}

/// What a follower sees. Public events only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An event of the log.
    Event {
        /// Its place.
        position: Position,
        /// The kind's name on the wire.
        kind: Arc<str>,
        /// The event's JSON text.
        json: Bytes,
    },
    /// The copy of a client's event, `processed_at: null`, that shows it before a brain takes it up. It has no place.
    Queued {
        /// The kind's name on the wire.
        kind: Arc<str>,
        /// The event's JSON text.
        json: Bytes,
    },
    /// A piece of an answer that is being made. Never stored; may be missing.
    Preview {
        /// What it previews.
        kind: PreviewKind,
        /// The preview's JSON text.
        json: Bytes,
    },
    /// The session was deleted. Nothing follows.
    Deleted {
        /// The `session.deleted` event's JSON text.
        json: Bytes,
    },
}

/// How long a follower waits before it reads again from a database that was away.
const READ_PAUSE: Duration = Duration::from_millis(500);

/// What closes all previews of its model request.
const REQUEST_END: &str = "span.model_request_end";

/// Reads one session's events in order, for as long as the session exists.
pub struct Follower {
    store: Arc<Inner>,
    subscription: Subscription,
    progress: Progress,
    /// Read and not yet shown. What is read at once is bounded, and nothing is read while any of it is left.
    items: std::vec::IntoIter<Item>,
    /// The mark of the log as it was before the last read that found all.
    log_seen: Option<u64>,
    previews: PreviewsSeen,
    /// A read under way and the log's mark when it began. Kept here so that a wait which is dropped does not begin it
    /// anew.
    reading: Option<(u64, BoxFuture<'static, Result<Caught, Error>>)>,
    is_over: bool,
}

/// How far a follower has come with previews.
struct PreviewsSeen {
    /// The number of the next one.
    next: u64,
    mark: u64,
    /// The next one follows this event, which was not there yet.
    held: Option<Position>,
    /// Events whose beginning was shown and whose pieces may follow.
    open: Vec<EventId>,
    /// Where the last model request ended: what follows an earlier event belongs to it and is stale.
    closed: Position,
}

/// What a follower does next.
enum Next {
    Show(Item),
    End,
    Read,
    Previews,
    Sleep,
}

impl Follower {
    /// The next item; `None` when nothing will ever follow: the session is deleted, the store closed, or the store
    /// failed (which is logged; whoever follows connects again and resumes).
    ///
    /// May be dropped while it waits and called again: nothing is lost or repeated.
    pub async fn next(&mut self) -> Option<Item> {
        loop {
            let marks = self.subscription.marks();
            match self.decide(&marks) {
                Next::Show(item) => return Some(item),
                Next::End => return None,
                Next::Read => self.read(&marks).await,
                Next::Previews => self.read_previews(&marks),
                Next::Sleep => {
                    self.subscription.next_marks().await;
                }
            }
        }
    }

    /// Says that previews are wanted, so that other processes tell theirs. Without it they are shown if they are made
    /// in this one.
    pub async fn want_previews(&mut self) {
        self.subscription.want_previews();
        self.store.engine.want_previews(self.subscription.session()).await;
    }

    fn decide(&mut self, marks: &Marks) -> Next {
        if let Some(item) = self.items.next() {
            return Next::Show(item);
        }
        if self.is_over {
            return Next::End;
        }
        if let Some(json) = &marks.deleted {
            self.is_over = true;
            return Next::Show(Item::Deleted { json: json.clone() });
        }
        if self.log_seen != Some(marks.log) {
            return Next::Read;
        }
        let may_go_on = self.previews.held.is_some_and(|after| after <= self.progress.cursor);
        if self.previews.mark != marks.previews || may_go_on {
            return Next::Previews;
        }
        if marks.is_closed { Next::End } else { Next::Sleep }
    }

    /// Durable first: what the log holds is shown before any preview that was published meanwhile.
    async fn read(&mut self, marks: &Marks) {
        if self.reading.is_none()
            && let Some((mark, chunk)) = self.subscription.recent_after(&self.progress)
        {
            return self.take_in(chunk, mark);
        }
        let (mark, reading) = self.reading.get_or_insert_with(|| {
            let engine = self.store.engine.clone();
            let (session, progress) = (self.subscription.session().clone(), self.progress);
            (marks.log, async move { engine.catch_up(&session, progress).await }.boxed())
        });
        let (mark, caught) = (*mark, reading.await);
        self.reading = None;
        match caught {
            Ok(Caught::Up(chunk)) => self.take_in(chunk, mark),
            // Deleted since it was subscribed to: its commit is done, so the mark that says so is on its way.
            Ok(Caught::Gone(None)) => self.log_seen = Some(mark),
            Ok(Caught::Gone(Some(json))) => {
                self.items = vec![Item::Deleted { json }].into_iter();
                self.is_over = true;
            }
            Err(error) if error.may_try_again() => {
                // A stream outlives a database that is away for a moment.
                tracing::debug!(error = ?error, "a follower waits for the database");
                tokio::time::sleep(READ_PAUSE).await;
            }
            Err(error) => {
                self.is_over = true;
                if !matches!(error, Error::Closed) {
                    tracing::error!(error = ?error, "a follower could not read its session");
                }
            }
        }
    }

    /// Takes in what was found when the log's mark was `mark`. Previews that were published before an event was
    /// committed are shown before it: an answer that came at once is previewed all the same.
    fn take_in(&mut self, chunk: Chunk, mark: u64) {
        let Chunk { items: found, progress, is_all } = chunk;
        let mut frames = self.waiting_previews().into_iter().peekable();
        let mut items = Vec::with_capacity(found.len());
        for item in found {
            if let Item::Event { position, kind, json: _ } = &item {
                while let Some(frame) = frames.next_if(|frame| frame.after < *position) {
                    self.previews.next += 1;
                    items.extend(self.previews.show(frame));
                }
                if **kind == *REQUEST_END {
                    self.previews.open.clear();
                    self.previews.closed = *position;
                }
            }
            items.push(item);
        }
        self.progress = progress;
        self.items = items.into_iter();
        if is_all {
            self.log_seen = Some(mark);
        }
    }

    /// The previews that were published and not yet looked at.
    fn waiting_previews(&mut self) -> Vec<Frame> {
        let (first, frames) = self.subscription.previews_from(self.previews.next);
        if first != self.previews.next {
            // Some are lost. A message with a hole would not be a prefix of the real one: the rest of it is shed.
            self.previews.open.clear();
            self.previews.next = first;
        }
        frames
    }

    fn read_previews(&mut self, marks: &Marks) {
        let mut items = Vec::new();
        self.previews.held = None;
        for frame in self.waiting_previews() {
            if frame.after > self.progress.cursor {
                self.previews.held = Some(frame.after);
                break;
            }
            self.previews.next += 1;
            items.extend(self.previews.show(frame));
        }
        self.previews.mark = marks.previews;
        self.items = items.into_iter();
    }
}

impl PreviewsSeen {
    fn show(&mut self, frame: Frame) -> Option<Item> {
        let Frame { after, kind, event, is_start, json } = frame;
        if after < self.closed {
            return None;
        }
        if is_start {
            self.open.push(event);
        } else if !self.open.contains(&event) {
            return None;
        }
        Some(Item::Preview { kind, json })
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Follower").field("progress", &self.progress).finish_non_exhaustive()
    }
}

/// Wakes when a session's log or inbox changes.
pub struct Changed {
    subscription: Subscription,
    seen: u64,
}

impl Changed {
    /// Returns once the log or the inbox has changed since the last return, or since [`Store::changed`]; also when
    /// the store closes. May return without a change. Carries no data: look again.
    ///
    /// May be dropped while it waits and called again: no change is lost.
    pub async fn wait(&mut self) {
        loop {
            let marks = self.subscription.marks();
            if marks.log != self.seen || marks.is_closed {
                self.seen = marks.log;
                return;
            }
            self.subscription.next_marks().await;
        }
    }
}

impl fmt::Debug for Changed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Changed")
    }
}

impl Store {
    /// Follows a session's public events. What is committed after this returns will be shown. `None` if there is no
    /// such session.
    pub async fn follow(&self, id: &SessionId, from: From) -> Result<Option<Follower>, Error> {
        // Subscribe, then look: what is committed in between is found by the first read.
        let subscription = self.0.hub.subscribe(id);
        let previews_next = subscription.previews_end();
        let Some(start) = self.0.engine.start(id).await? else { return Ok(None) };
        let (cursor, waited) = match from {
            From::Now => (start.head, start.inbox_last),
            // What has been taken up is shown as done; what still waits is shown again.
            From::After(cursor) => {
                (cursor.min(start.head), start.inbox_first.map_or(start.inbox_last, |first| first - 1))
            }
        };
        Ok(Some(Follower {
            store: self.0.clone(),
            subscription,
            progress: Progress {
                session: start.session,
                cursor,
                floor: start.head,
                waited,
                append_end: start.head,
            },
            items: Vec::new().into_iter(),
            log_seen: None,
            previews: PreviewsSeen {
                next: previews_next,
                mark: 0,
                held: None,
                open: Vec::new(),
                closed: Position::START,
            },
            reading: None,
            is_over: false,
        }))
    }

    /// Watches a session's log and inbox from now on.
    pub fn changed(&self, id: &SessionId) -> Changed {
        let subscription = self.0.hub.subscribe(id);
        let seen = subscription.marks().log;
        Changed { subscription, seen }
    }
}
