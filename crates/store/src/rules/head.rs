//! A session as an engine holds it while it changes: what was loaded, and what is to be written.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use bytes::Bytes;
use protocol::event::Event;
use protocol::id::{EventId, SessionId, WorkspaceId};
use protocol::position::Position;
use protocol::session::Status;
use protocol::time::Timestamp;
use session::{Record, State};

use crate::follow::Item;
use crate::hub::{Fresh, Hub};
use crate::lease::{Token, View, Waiting, WaitsFor};
use crate::rules::catch_up::{Chunk, Progress};
use crate::sessions::SealedToken;

/// An inbox larger than this is read again when it is needed, so that attached images do not pile up in memory.
const INBOX_BYTES_MAX: usize = 256 << 10;

/// One session, as of the flush that is being written.
pub(crate) struct Head {
    /// The engine's own number; 0 for a session that is made in this flush and has none yet.
    pub(crate) number: i64,
    /// Grows with each write, for an engine that shares its database: what was decided on an old version is not kept.
    pub(crate) version: u64,
    pub(crate) workspace: WorkspaceId,
    pub(crate) record: Arc<Record>,
    pub(crate) state: State,
    pub(crate) lease: LeaseState,
    /// The number of the last event that ever entered the inbox.
    pub(crate) inbox_last: u64,
    /// `None` while it has not been read. An engine reads it before a job runs.
    pub(crate) inbox: Option<Inbox>,
    pub(crate) pending: Pending,
}

/// Who drives a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseState {
    /// Grows with each claim.
    pub(crate) epoch: u64,
    /// By the store's clock; `None` if nobody holds it.
    pub(crate) until: Option<Timestamp>,
    pub(crate) holder: Option<String>,
    /// How many holders in a row died without recording an answer or a result.
    pub(crate) deaths: u32,
    /// Since when the session wants a brain and nobody holds it.
    pub(crate) wanted_since: Option<Timestamp>,
    /// What the holder said that it waits for.
    pub(crate) waiting: Option<Waiting>,
}

impl LeaseState {
    /// What the session waits for, as it is shown.
    pub(crate) fn shown_waiting(&self) -> Option<Waiting> {
        self.wanted_since.map(|since| Waiting { reason: WaitsFor::Brain, since }).or(self.waiting)
    }
}

/// What a flush has decided and is to write, in this order.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) events: Vec<EventRow>,
    /// What enters the inbox and was not taken up in the same flush.
    pub(crate) queued: Vec<QueuedRow>,
    /// Numbers of what leaves the inbox.
    pub(crate) taken: Vec<u64>,
    pub(crate) has_new_record: bool,
    /// Sealed tokens of resources that are to be kept, each in the place of the one before.
    pub(crate) tokens: Vec<SealedToken>,
    /// The tokens of all its resources are to go.
    pub(crate) purges_tokens: bool,
    /// The lease is to last its full length from the time of writing.
    pub(crate) renews: bool,
    /// The session is removed; the event that says so.
    pub(crate) deleted: Option<Bytes>,
    /// Anything of the head has changed.
    pub(crate) is_dirty: bool,
    /// The log or the inbox has changed.
    has_news: bool,
    /// What changed, if somebody watches.
    fresh: Option<Fresh>,
}

/// An event that enters the log.
pub(crate) struct EventRow {
    pub(crate) position: Position,
    pub(crate) kind: Arc<str>,
    pub(crate) is_private: bool,
    pub(crate) at: Timestamp,
    /// The place of the last event of the same append.
    pub(crate) append_end: Position,
    /// The number that it had in the inbox.
    pub(crate) taken: Option<u64>,
    pub(crate) json: Bytes,
}

/// An event that enters the inbox.
#[derive(Clone)]
pub(crate) struct QueuedRow {
    /// From 1 in its session, in the order of arrival.
    pub(crate) sequence: u64,
    pub(crate) kind: Arc<str>,
    pub(crate) json: Bytes,
}

/// What waits in a session's inbox, oldest first.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Two lists of the same length, because the rules want a slice of events.
    pub(crate) events: Vec<Event>,
    rows: Vec<QueuedRow>,
    size_bytes: usize,
}

impl Inbox {
    pub(crate) fn push(&mut self, event: Event, row: QueuedRow) {
        self.size_bytes += row.json.len();
        self.events.push(event);
        self.rows.push(row);
    }

    pub(crate) fn remove(&mut self, id: &EventId) -> Option<(Event, QueuedRow)> {
        let index = self.events.iter().position(|event| event.id == *id)?;
        let (event, row) = (self.events.remove(index), self.rows.remove(index));
        self.size_bytes -= row.json.len();
        Some((event, row))
    }
}

impl Head {
    /// A session that is made in this flush.
    pub(crate) fn new(workspace: WorkspaceId, record: Arc<Record>, state: State) -> Self {
        Self {
            number: 0,
            version: 0,
            workspace,
            record,
            state,
            lease: LeaseState::default(),
            inbox_last: 0,
            inbox: Some(Inbox::default()),
            pending: Pending { is_dirty: true, ..Pending::default() },
        }
    }

    /// The inbox. The engine has read it.
    pub(crate) fn inbox(&mut self) -> &mut Inbox {
        self.inbox.as_mut().expect("an engine reads the inbox before a job runs")
    }

    /// The session as a brain sees it.
    pub(crate) fn view(&mut self) -> View {
        let inbox = self.inbox().events.clone();
        View {
            record: self.record.clone(),
            workspace: self.workspace.clone(),
            state: self.state.clone(),
            inbox,
        }
    }

    /// Whether it was removed in this flush.
    pub(crate) fn is_gone(&self) -> bool {
        self.pending.deleted.is_some()
    }

    /// Whether somebody holds it at `now`.
    pub(crate) fn is_leased(&self, now: Timestamp) -> bool {
        self.lease.until.is_some_and(|until| until > now)
    }

    /// Whether this token may still write. A lapsed lease serves until somebody else claims.
    pub(crate) fn is_held_by(&self, token: &Token) -> bool {
        self.lease.epoch == token.epoch && self.lease.until.is_some()
    }

    /// To be called after each job: since when it waits for a brain.
    pub(crate) fn note_wanting(&mut self, now: Timestamp) {
        let lease = &mut self.lease;
        lease.wanted_since = match (self.state.wants_brain() && lease.until.is_none(), lease.wanted_since) {
            (true, since) => since.or(Some(now)),
            (false, _) => None,
        };
    }

    /// To be called before the log or the inbox changes.
    pub(crate) fn begin_news(&mut self, hub: &Hub) {
        self.pending.is_dirty = true;
        if std::mem::replace(&mut self.pending.has_news, true) || !hub.is_watched(&self.record.id) {
            return;
        }
        let from = self.progress();
        self.pending.fresh =
            Some(Fresh { from, chunk: Chunk { items: Vec::new(), progress: from, is_all: true } });
    }

    /// To be called with what followers are to see.
    pub(crate) fn add_news(&mut self, item: impl FnOnce() -> Item) {
        if let Some(fresh) = &mut self.pending.fresh {
            fresh.chunk.items.push(item());
        }
    }

    /// That of a follower that has seen everything.
    fn progress(&self) -> Progress {
        Progress::at(self.number, self.state.head, self.inbox_last)
    }

    /// After the write: what it means for others. The pending changes are forgotten.
    pub(crate) fn settle(&mut self, now: Timestamp, news: &mut News) {
        let id = &self.record.id;
        let pending = std::mem::take(&mut self.pending);
        if let Some(json) = pending.deleted {
            news.deleted.push((id.clone(), json));
            return;
        }
        if self.state.wants_brain() && !self.is_leased(now) {
            news.wanting.push((id.clone(), self.workspace.clone()));
        }
        if pending.has_news {
            let progress = self.progress();
            let fresh = pending.fresh.map(|mut fresh| {
                fresh.chunk.progress = progress;
                fresh
            });
            news.changed.push((id.clone(), fresh));
        }
        if self.inbox.as_ref().is_some_and(|inbox| inbox.size_bytes > INBOX_BYTES_MAX) {
            self.inbox = None;
        }
    }
}

/// Whom a flush concerns.
#[derive(Default)]
pub(crate) struct News {
    pub(crate) changed: Vec<(SessionId, Option<Fresh>)>,
    pub(crate) wanting: Vec<(SessionId, WorkspaceId)>,
    pub(crate) deleted: Vec<(SessionId, Bytes)>,
    /// Nobody holds these any more.
    pub(crate) freed: Vec<SessionId>,
}

impl News {
    /// To be called after the commit.
    pub(crate) fn publish(self, hub: &Hub) {
        hub.changed(self.changed);
        for (id, json) in self.deleted {
            hub.deleted(&id, json);
        }
    }
}

/// Stored; never renumber.
pub(crate) fn status_number(status: Status) -> i16 {
    match status {
        Status::Idle => 0,
        Status::Running => 1,
        Status::Rescheduling => 2,
        Status::Terminated => 3,
    }
}

/// The names of kinds, each kept once. There are a few dozen; clients cannot invent any.
static KINDS: LazyLock<RwLock<HashMap<String, Arc<str>>>> = LazyLock::new(RwLock::default);

/// The shared copy of a kind's name.
pub(crate) fn kind_name(name: &str) -> Arc<str> {
    if let Some(kind) = KINDS.read().unwrap_or_else(PoisonError::into_inner).get(name) {
        return kind.clone();
    }
    let mut kinds = KINDS.write().unwrap_or_else(PoisonError::into_inner);
    kinds.entry(name.to_owned()).or_insert_with(|| name.into()).clone()
}
