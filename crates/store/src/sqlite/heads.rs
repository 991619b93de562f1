//! Sessions as the writer knows them: kept in memory while they are busy, written once per flush however often they
//! changed in it.

use std::collections::HashMap;
use std::sync::Arc;

use protocol::event::Event;
use protocol::id::{EventId, SessionId, WorkspaceId};
use protocol::session::Status;
use protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use session::state::Queued;
use session::{Record, State};

use crate::follow::Item;
use crate::hub::{Fresh, Hub};
use crate::lease::{LEASE, View};
use crate::sqlite::catch_up::{Chunk, Progress};
use crate::sqlite::fault::Fault;

/// Sessions kept in memory between flushes: a few KiB each.
const HEADS_MAX: usize = 16_384;
/// An inbox larger than this is read again when it is needed, so that attached images do not pile up in memory.
const INBOX_BYTES_MAX: usize = 256 << 10;
/// A lease that lasts at most this much longer than the database says is not written for that alone: renewing with
/// each append would otherwise cost two index entries each time.
const LEASE_SLACK_MICROS: i64 = 5_000_000;

/// One session, as of the flush that is being written.
pub(crate) struct Head {
    pub(crate) number: i64,
    pub(crate) workspace: WorkspaceId,
    pub(crate) record: Arc<Record>,
    pub(crate) state: State,
    pub(crate) epoch: u64,
    pub(crate) lease_until: Option<Timestamp>,
    pub(crate) holder: Option<String>,
    /// The number of the last event that ever entered the inbox.
    pub(crate) inbox_last: u64,
    /// `None` while it has not been read.
    inbox: Option<Inbox>,
    /// The log or the inbox changed in this flush.
    has_news: bool,
    /// What changed, if somebody watches.
    fresh: Option<Fresh>,
    is_dirty: bool,
    saved: Saved,
    used: u64,
}

/// What waits in a session's inbox, oldest first.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Two lists of the same length, because the rules want a slice of events.
    pub(crate) events: Vec<Event>,
    pub(crate) papers: Vec<Paper>,
    size_bytes: usize,
}

/// The stored side of an event in the inbox.
pub(crate) struct Paper {
    pub(crate) sequence: u64,
    pub(crate) kind: i64,
    pub(crate) json: String,
}

/// Those columns of the row that indexes hang on, as they are in the database.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Saved {
    wants_brain: bool,
    epoch: u64,
    lease_until: Option<Timestamp>,
}

impl Inbox {
    pub(crate) fn push(&mut self, event: Event, paper: Paper) {
        self.size_bytes += paper.json.len();
        self.events.push(event);
        self.papers.push(paper);
    }

    pub(crate) fn remove(&mut self, id: &EventId) -> Option<(Event, Paper)> {
        let index = self.events.iter().position(|event| event.id == *id)?;
        let (event, paper) = (self.events.remove(index), self.papers.remove(index));
        self.size_bytes -= paper.json.len();
        Some((event, paper))
    }
}

impl Head {
    pub(crate) fn new(number: i64, workspace: WorkspaceId, record: Arc<Record>, state: State) -> Self {
        Self {
            number,
            workspace,
            record,
            saved: Saved { wants_brain: state.wants_brain(), epoch: 0, lease_until: None },
            state,
            epoch: 0,
            lease_until: None,
            holder: None,
            inbox_last: 0,
            inbox: Some(Inbox::default()),
            has_news: false,
            fresh: None,
            is_dirty: false,
            used: 0,
        }
    }

    /// The inbox, read if need be.
    pub(crate) fn inbox(&mut self, conn: &Connection) -> Result<&mut Inbox, Fault> {
        if self.inbox.is_none() {
            self.inbox = Some(load_inbox(conn, self.number, self.state.queued)?);
        }
        Ok(self.inbox.as_mut().expect("just read"))
    }

    /// The session as a brain sees it.
    pub(crate) fn view(&mut self, conn: &Connection) -> Result<View, Fault> {
        let inbox = self.inbox(conn)?.events.clone();
        Ok(View {
            record: self.record.clone(),
            workspace: self.workspace.clone(),
            state: self.state.clone(),
            inbox,
        })
    }

    /// To be called before the log or the inbox changes.
    pub(crate) fn begin_news(&mut self, hub: &Hub) {
        if std::mem::replace(&mut self.has_news, true) || !hub.is_watched(&self.record.id) {
            return;
        }
        let from = self.progress();
        self.fresh = Some(Fresh { from, chunk: Chunk { items: Vec::new(), progress: from, is_all: true } });
    }

    /// To be called with what followers are to see.
    pub(crate) fn add_news(&mut self, item: impl FnOnce() -> Item) {
        if let Some(fresh) = &mut self.fresh {
            fresh.chunk.items.push(item());
        }
    }

    fn take_news(&mut self) -> Option<Fresh> {
        let progress = self.progress();
        self.fresh.take().map(|mut fresh| {
            fresh.chunk.progress = progress;
            fresh
        })
    }

    /// That of a follower that has seen everything.
    fn progress(&self) -> Progress {
        Progress::at(self.number, self.state.head, self.inbox_last)
    }

    /// Whether somebody holds it at `now`.
    pub(crate) fn is_leased(&self, now: Timestamp) -> bool {
        self.lease_until.is_some_and(|until| until > now)
    }

    /// Makes the lease last its full length from `now`.
    pub(crate) fn renew(&mut self, now: Timestamp) {
        self.lease_until = Some(lease_end(now));
    }

    fn has_unsaved_lease(&self) -> bool {
        match (self.lease_until, self.saved.lease_until) {
            (Some(until), Some(saved)) => (until.as_micros() - saved.as_micros()).abs() > LEASE_SLACK_MICROS,
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        }
    }
}

/// When a lease that is taken or renewed at `now` lapses.
pub(crate) fn lease_end(now: Timestamp) -> Timestamp {
    Timestamp::from_micros(now.as_micros() + i64::try_from(LEASE.as_micros()).expect("a lease is short"))
}

/// The sessions that the writer has in memory.
#[derive(Default)]
pub(crate) struct Heads {
    by_id: HashMap<SessionId, Head>,
    dirty: Vec<SessionId>,
    clock: u64,
}

impl Heads {
    /// A session; `None` if there is no such session.
    pub(crate) fn get(&mut self, conn: &Connection, id: &SessionId) -> Result<Option<&mut Head>, Fault> {
        self.clock += 1;
        // Looked up twice because the borrow of a hit would otherwise last over the insertion.
        if !self.by_id.contains_key(id) {
            let Some(head) = load(conn, id)? else { return Ok(None) };
            self.by_id.insert(id.clone(), head);
        }
        let head = self.by_id.get_mut(id).expect("just seen");
        head.used = self.clock;
        Ok(Some(head))
    }

    /// Takes in a session that was made in this flush.
    pub(crate) fn insert(&mut self, id: SessionId, head: Head) -> &mut Head {
        self.clock += 1;
        let head = self.by_id.entry(id).insert_entry(head).into_mut();
        head.used = self.clock;
        head
    }

    /// Forgets a session that was deleted in this flush.
    pub(crate) fn remove(&mut self, id: &SessionId) {
        self.by_id.remove(id);
    }

    /// To be called after every change of a head.
    pub(crate) fn touch(&mut self, id: &SessionId) {
        let Some(head) = self.by_id.get_mut(id) else { return };
        if !head.is_dirty {
            head.is_dirty = true;
            self.dirty.push(id.clone());
        }
    }

    /// Writes what this flush has changed. Gives those sessions whose log or inbox changed, and those that a brain
    /// may claim now.
    pub(crate) fn save(&mut self, conn: &Connection, now: Timestamp) -> Result<News, Fault> {
        let mut news = News::default();
        let mut text = Vec::new();
        for id in self.dirty.drain(..) {
            // Gone: it was deleted later in the same flush.
            let Some(head) = self.by_id.get_mut(&id) else { continue };
            head.is_dirty = false;
            let wants_brain = save(conn, head, &mut text)?;
            if wants_brain && !head.is_leased(now) {
                news.wanting.push(id.clone());
            }
            if std::mem::take(&mut head.has_news) {
                let fresh = head.take_news();
                news.changed.push((id, fresh));
            }
        }
        Ok(news)
    }

    /// Forgets everything: what is in memory is not what is in the database.
    pub(crate) fn clear(&mut self) {
        self.by_id.clear();
        self.dirty.clear();
    }

    /// Between flushes: keeps memory bounded. A lease that is known better here than in the database stays.
    pub(crate) fn shrink(&mut self) {
        if self.by_id.len() <= HEADS_MAX {
            return;
        }
        let mut uses: Vec<u64> = self.by_id.values().map(|head| head.used).collect();
        let (_, median, _) = uses.select_nth_unstable(HEADS_MAX / 4);
        let median = *median;
        self.by_id.retain(|_, head| head.used > median || head.lease_until != head.saved.lease_until);
    }
}

/// Whom a flush concerns.
#[derive(Default)]
pub(crate) struct News {
    pub(crate) changed: Vec<(SessionId, Option<Fresh>)>,
    pub(crate) wanting: Vec<SessionId>,
}

const LOAD: &str = "
    SELECT s.number, s.workspace, s.record, h.state, h.epoch, h.lease_until, h.holder, h.inbox_last, h.wants_brain
    FROM session s JOIN head h ON h.session = s.number
    WHERE s.id = ?1";

fn load(conn: &Connection, id: &SessionId) -> Result<Option<Head>, Fault> {
    let mut statement = conn.prepare_cached(LOAD)?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let epoch = row.get(4)?;
    let lease_until = row.get::<_, Option<i64>>(5)?.map(Timestamp::from_micros);
    Ok(Some(Head {
        number: row.get(0)?,
        workspace: WorkspaceId::from_text(row.get::<_, String>(1)?),
        record: Arc::new(json(row, 2)?),
        state: json(row, 3)?,
        epoch,
        lease_until,
        holder: row.get(6)?,
        inbox_last: row.get(7)?,
        inbox: None,
        has_news: false,
        fresh: None,
        is_dirty: false,
        saved: Saved { wants_brain: row.get(8)?, epoch, lease_until },
        used: 0,
    }))
}

/// A column that holds JSON text.
pub(crate) fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, Fault> {
    let text = row.get_ref(column)?.as_bytes().map_err(rusqlite::Error::from)?;
    Ok(serde_json::from_slice(text)?)
}

const LOAD_INBOX: &str = "SELECT sequence, kind, body FROM inbox WHERE session = ?1 ORDER BY sequence";

fn load_inbox(conn: &Connection, number: i64, queued: Queued) -> Result<Inbox, Fault> {
    let mut inbox = Inbox::default();
    if queued == Queued::default() {
        return Ok(inbox);
    }
    let mut statement = conn.prepare_cached(LOAD_INBOX)?;
    let mut rows = statement.query([number])?;
    while let Some(row) = rows.next()? {
        let paper = Paper { sequence: row.get(0)?, kind: row.get(1)?, json: row.get(2)? };
        inbox.push(serde_json::from_str(&paper.json)?, paper);
    }
    Ok(inbox)
}

const INSERT: &str = "
    INSERT INTO head (session, position, inbox_last, status, wants_brain, epoch, lease_until, holder, state)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// Writes the first row of a new session.
pub(crate) fn insert(conn: &Connection, head: &Head) -> Result<(), Fault> {
    conn.prepare_cached(INSERT)?.execute(params![
        head.number,
        head.state.head.0,
        head.inbox_last,
        status_number(head.state.shown_status()),
        head.saved.wants_brain,
        head.epoch,
        head.lease_until.map(Timestamp::as_micros),
        head.holder,
        serde_json::to_string(&head.state)?,
    ])?;
    Ok(())
}

/// Touches no indexed column.
const SAVE_STATE: &str =
    "UPDATE head SET position = ?2, inbox_last = ?3, status = ?4, state = ?5 WHERE session = ?1";
const SAVE_ALL: &str = "
    UPDATE head SET position = ?2, inbox_last = ?3, status = ?4, state = ?5,
        wants_brain = ?6, epoch = ?7, lease_until = ?8, holder = ?9
    WHERE session = ?1";

/// Gives whether it wants a brain.
fn save(conn: &Connection, head: &mut Head, text: &mut Vec<u8>) -> Result<bool, Fault> {
    text.clear();
    serde_json::to_writer(&mut *text, &head.state)?;
    let state = std::str::from_utf8(text).expect("JSON is UTF-8");
    let wants_brain = head.state.wants_brain();
    let status = status_number(head.state.shown_status());
    let position = head.state.head.0;
    if wants_brain == head.saved.wants_brain && head.epoch == head.saved.epoch && !head.has_unsaved_lease() {
        conn.prepare_cached(SAVE_STATE)?.execute(params![
            head.number,
            position,
            head.inbox_last,
            status,
            state
        ])?;
    } else {
        let lease_until = head.lease_until.map(Timestamp::as_micros);
        conn.prepare_cached(SAVE_ALL)?.execute(params![
            head.number,
            position,
            head.inbox_last,
            status,
            state,
            wants_brain,
            head.epoch,
            lease_until,
            head.holder,
        ])?;
        head.saved = Saved { wants_brain, epoch: head.epoch, lease_until: head.lease_until };
    }
    if head.inbox.as_ref().is_some_and(|inbox| inbox.size_bytes > INBOX_BYTES_MAX) {
        head.inbox = None;
    }
    Ok(wants_brain)
}

/// Stored; never renumber.
pub(crate) fn status_number(status: Status) -> i64 {
    match status {
        Status::Idle => 0,
        Status::Running => 1,
        Status::Rescheduling => 2,
        Status::Terminated => 3,
    }
}

/// The number of a session, if there is one.
pub(crate) fn number_of(conn: &Connection, id: &SessionId) -> Result<Option<i64>, Fault> {
    let mut statement = conn.prepare_cached("SELECT number FROM session WHERE id = ?1")?;
    Ok(statement.query_row([id.as_str()], |row| row.get(0)).optional()?)
}
