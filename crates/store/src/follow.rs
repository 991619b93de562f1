//! The one reader: catch up from the store, then follow.

use std::sync::Arc;

use bytes::Bytes;
use protocol::event::PreviewKind;
use protocol::id::SessionId;
use protocol::position::Position;

use crate::Store;
use crate::error::Error;

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

/// Reads one session's events in order, for as long as the session exists.
#[derive(Debug)]
pub struct Follower {}

impl Follower {
    /// The next item; `None` when nothing will ever follow: the session is deleted, the store closed, or the store
    /// failed (which is logged; whoever follows connects again and resumes).
    ///
    /// May be dropped while it waits and called again: nothing is lost or repeated.
    pub async fn next(&mut self) -> Option<Item> {
        None
    }
}

/// Wakes when a session's log or inbox changes.
#[derive(Debug)]
pub struct Changed {}

impl Changed {
    /// Returns once the log or the inbox has changed since the last return, or since [`Store::changed`]. May return
    /// without a change. Carries no data: look again.
    pub async fn wait(&mut self) {
        std::future::pending::<()>().await;
    }
}

impl Store {
    /// Follows a session's public events. What is committed after this returns will be shown. `None` if there is no
    /// such session.
    pub async fn follow(&self, id: &SessionId, from: From) -> Result<Option<Follower>, Error> {
        let _ = (id, from);
        Err(Error::Closed)
    }

    /// Watches a session's log and inbox from now on.
    pub fn changed(&self, id: &SessionId) -> Changed {
        let _ = id;
        Changed {}
    }
}
