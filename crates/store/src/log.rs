//! Slices of a log: what to read, and what comes back.

use std::sync::Arc;

use bytes::Bytes;
use protocol::id::SessionId;
use protocol::position::Position;
use protocol::time::Timestamp;
use session::State;

use crate::Store;
use crate::error::Error;

/// An event as it lies in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the log; `None` while it waits in the inbox.
    pub position: Option<Position>,
    /// The kind's name on the wire.
    pub kind: Arc<str>,
    /// When it entered the log; `None` while it waits in the inbox.
    pub processed_at: Option<Timestamp>,
    /// The event's JSON text, exactly as it is shown.
    pub json: Bytes,
}

/// Which way a list runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// Oldest first.
    #[default]
    Asc,
    /// Newest first.
    Desc,
}

/// Bounds on a point in time; all that are given hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeBounds {
    /// Later than.
    pub gt: Option<Timestamp>,
    /// At or later than.
    pub gte: Option<Timestamp>,
    /// Earlier than.
    pub lt: Option<Timestamp>,
    /// At or earlier than.
    pub lte: Option<Timestamp>,
}

impl TimeBounds {
    /// Whether `at` is within the bounds.
    pub fn contain(&self, at: Timestamp) -> bool {
        let (first, last) = self.micros();
        (first..=last).contains(&at.as_micros())
    }

    /// The bounds as microseconds, both inclusive.
    pub(crate) fn micros(&self) -> (i64, i64) {
        let Self { gt, gte, lt, lte } = self;
        let first = gt
            .map(|at| at.as_micros().saturating_add(1))
            .into_iter()
            .chain(gte.map(Timestamp::as_micros))
            .max();
        let last = lt
            .map(|at| at.as_micros().saturating_sub(1))
            .into_iter()
            .chain(lte.map(Timestamp::as_micros))
            .min();
        (first.unwrap_or(i64::MIN), last.unwrap_or(i64::MAX))
    }
}

/// Which events of one session's log to read. The cost depends on the slice, not on the length of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Only events after this place.
    pub after: Position,
    /// Only events up to and including this place.
    pub until: Option<Position>,
    /// Which end of that span comes first, and is cut last.
    pub order: Order,
    /// At most so many events.
    pub limit: usize,
    /// At most so many bytes of JSON, but always at least one event.
    pub bytes_max: usize,
    /// Only these kinds.
    pub kinds: Option<Vec<String>>,
    /// Only events processed within these bounds.
    pub times: TimeBounds,
    /// Whether private kinds are included.
    pub private: bool,
}

/// How many events a slice holds if nothing else is said.
pub const SLICE_EVENTS: usize = 1_000;
/// How many bytes a slice holds if nothing else is said. A page this size is built in a few milliseconds.
pub const SLICE_BYTES: usize = 8 << 20;

/// How often a state is folded anew because its session has changed meanwhile.
const REBUILDS_MAX: usize = 10;

impl Default for Slice {
    fn default() -> Self {
        Self {
            after: Position::START,
            until: None,
            order: Order::Asc,
            limit: SLICE_EVENTS,
            bytes_max: SLICE_BYTES,
            kinds: None,
            times: TimeBounds::default(),
            private: false,
        }
    }
}

impl Store {
    /// A slice of a session's log. Empty if there is no such session.
    pub async fn get_events(&self, id: &SessionId, slice: Slice) -> Result<Vec<Stored>, Error> {
        self.0.engine.events(id, slice).await
    }

    /// What clients sent to the session and no brain has taken up, oldest first.
    pub async fn get_inbox(&self, id: &SessionId) -> Result<Vec<Stored>, Error> {
        self.0.engine.inbox(id).await
    }

    /// A slice of the log and the inbox, both at the same moment: an event on its way from one to the other is in
    /// exactly one of them.
    pub async fn get_history(
        &self,
        id: &SessionId,
        slice: Slice,
    ) -> Result<(Vec<Stored>, Vec<Stored>), Error> {
        self.0.engine.history(id, slice).await
    }

    /// The session's state, folded anew from its log and its inbox. Always equal to the state that is kept beside
    /// the log; a test compares them. `None` if there is no such session.
    pub async fn rebuild(&self, id: &SessionId) -> Result<Option<State>, Error> {
        self.0.engine.rebuild(id).await
    }

    /// Puts the state that the log gives in the place of the one that is kept beside it; gives whether they differed.
    /// [`Error::Busy`] for a session that does not stand still for it.
    pub async fn put_rebuilt(&self, id: &SessionId) -> Result<bool, Error> {
        for _ in 0..REBUILDS_MAX {
            let Some(before) = self.look(id).await?.map(|view| view.state) else { return Ok(false) };
            let Some(rebuilt) = self.rebuild(id).await? else { return Ok(false) };
            let is_same = before == rebuilt;
            // What was read in two looks is written only if the session is still what it was at the first.
            let put = self.change(id, 0, move |head, _| match head {
                Some(head) if head.state != before => None,
                Some(_) if is_same => Some(false),
                Some(head) => {
                    head.state = rebuilt.clone();
                    head.pending.is_dirty = true;
                    Some(true)
                }
                None => Some(false),
            });
            if let Some(differed) = put.await? {
                return Ok(differed);
            }
        }
        Err(Error::Busy("the session changes all the while".into()))
    }
}
