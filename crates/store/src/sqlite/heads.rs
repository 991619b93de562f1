//! Sessions as the writer knows them: kept in memory while they are busy, written once per flush however often they
//! changed in it.

use std::collections::HashMap;
use std::sync::Arc;

use protocol::id::{ResourceId, SessionId, WorkspaceId};
use protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use session::state::Queued;

use crate::rules::head::{EventRow, Head, Inbox, LeaseState, News, Pending, QueuedRow, status_number};
use crate::rules::jobs::{Job, Moment};
use crate::sessions::SealedToken;
use crate::sqlite::fault::Fault;
use crate::sqlite::kinds::Kinds;
use crate::sqlite::slices::text;

/// Sessions kept in memory between flushes: a few KiB each.
const HEADS_MAX: usize = 16_384;
/// A lease that lasts at most this much longer than the database says is not written for that alone: renewing with
/// each append would otherwise cost two index entries each time.
pub(crate) const LEASE_SLACK_MICROS: i64 = 2_000_000;

/// A session in the writer's memory.
struct Kept {
    /// `None` while it is being made.
    head: Option<Head>,
    saved: Saved,
    used: u64,
    is_touched: bool,
}

/// Those columns of the row that indexes hang on and their like, as they are in the database.
#[derive(Clone, PartialEq, Eq)]
struct Saved {
    wants_brain: bool,
    lease: LeaseState,
}

/// The sessions that the writer has in memory.
#[derive(Default)]
pub(crate) struct Heads {
    by_id: HashMap<SessionId, Kept>,
    touched: Vec<SessionId>,
    clock: u64,
}

impl Heads {
    /// Runs a job on its session.
    pub(crate) fn run(
        &mut self,
        conn: &Connection,
        kinds: &Kinds,
        job: &mut dyn Job,
        moment: &Moment<'_>,
    ) -> Result<(), Fault> {
        let id = job.session().clone();
        let kept = self.get(conn, kinds, &id)?;
        match kept {
            Some(kept) => job.run(&mut kept.head, moment),
            None => {
                let mut head = None;
                job.run(&mut head, moment);
                if head.is_none() {
                    return Ok(());
                }
                let saved = Saved { wants_brain: false, lease: LeaseState::default() };
                let kept = Kept { head, saved, used: self.clock, is_touched: false };
                self.by_id.insert(id.clone(), kept);
            }
        }
        self.touch(&id, moment.now);
        Ok(())
    }

    /// A session with its inbox, to be changed; `None` if there is no such session.
    pub(crate) fn with<T>(
        &mut self,
        conn: &Connection,
        kinds: &Kinds,
        id: &SessionId,
        now: Timestamp,
        change: impl FnOnce(&mut Head) -> T,
    ) -> Result<Option<T>, Fault> {
        let kept = self.get(conn, kinds, id)?;
        let Some(head) = kept.and_then(|kept| kept.head.as_mut()).filter(|head| !head.is_gone()) else {
            return Ok(None);
        };
        let changed = change(head);
        self.touch(id, now);
        Ok(Some(changed))
    }

    fn get(&mut self, conn: &Connection, kinds: &Kinds, id: &SessionId) -> Result<Option<&mut Kept>, Fault> {
        self.clock += 1;
        // Looked up twice because the borrow of a hit would otherwise last over the insertion.
        if !self.by_id.contains_key(id) {
            let Some(kept) = load(conn, id)? else { return Ok(None) };
            self.by_id.insert(id.clone(), kept);
        }
        let kept = self.by_id.get_mut(id).expect("just seen");
        kept.used = self.clock;
        if let Some(head) = &mut kept.head
            && head.inbox.is_none()
        {
            head.inbox = Some(load_inbox(conn, kinds, head.number, head.state.queued)?);
        }
        Ok(Some(kept))
    }

    fn touch(&mut self, id: &SessionId, now: Timestamp) {
        let Some(kept) = self.by_id.get_mut(id) else { return };
        let Some(head) = &mut kept.head else { return };
        head.note_wanting(now);
        if head.pending.is_dirty && !kept.is_touched {
            kept.is_touched = true;
            self.touched.push(id.clone());
        }
    }

    /// Writes what this flush has changed, and tells what it means for others.
    pub(crate) fn save(&mut self, conn: &Connection, kinds: &Kinds, now: Timestamp) -> Result<News, Fault> {
        let mut news = News::default();
        let mut text = Vec::new();
        for id in self.touched.drain(..) {
            let Some(kept) = self.by_id.get_mut(&id) else { continue };
            let Some(head) = &mut kept.head else { continue };
            kept.is_touched = false;
            if head.is_gone() {
                if head.number != 0 {
                    delete(conn, head.number)?;
                }
                head.settle(now, &mut news);
                news.freed.push(id.clone());
                self.by_id.remove(&id);
                continue;
            }
            if head.number == 0 {
                head.number = insert(conn, head)?;
            }
            write_rows(conn, kinds, head)?;
            if kept.saved.lease.until.is_some() && head.lease.until.is_none() {
                news.freed.push(id);
            }
            save(conn, head, &mut kept.saved, &mut text)?;
            head.settle(now, &mut news);
        }
        Ok(news)
    }

    /// Forgets everything: what is in memory is not what is in the database.
    pub(crate) fn clear(&mut self) {
        self.by_id.clear();
        self.touched.clear();
    }

    /// Between flushes: keeps memory bounded. A lease that is known better here than in the database stays.
    pub(crate) fn shrink(&mut self) {
        if self.by_id.len() <= HEADS_MAX {
            return;
        }
        let mut uses: Vec<u64> = self.by_id.values().map(|kept| kept.used).collect();
        let (_, median, _) = uses.select_nth_unstable(HEADS_MAX / 4);
        let median = *median;
        self.by_id.retain(|_, kept| {
            let is_unsaved =
                kept.head.as_ref().is_some_and(|head| head.lease.until != kept.saved.lease.until);
            kept.used > median || is_unsaved
        });
    }
}

const LOAD: &str = "
    SELECT s.number, s.workspace, s.record, h.state, h.epoch, h.lease_until, h.holder, h.inbox_last, h.wants_brain,
        h.deaths, h.wanted_since, h.waiting
    FROM session s JOIN head h ON h.session = s.number
    WHERE s.id = ?1";

fn load(conn: &Connection, id: &SessionId) -> Result<Option<Kept>, Fault> {
    let mut statement = conn.prepare_cached(LOAD)?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let lease = LeaseState {
        epoch: row.get(4)?,
        until: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_micros),
        holder: row.get(6)?,
        deaths: row.get(9)?,
        wanted_since: row.get::<_, Option<i64>>(10)?.map(Timestamp::from_micros),
        waiting: waiting(row, 11)?,
    };
    let head = Head {
        number: row.get(0)?,
        version: 0,
        workspace: WorkspaceId::from_text(row.get::<_, String>(1)?),
        record: Arc::new(json(row, 2)?),
        state: json(row, 3)?,
        lease: lease.clone(),
        inbox_last: row.get(7)?,
        inbox: None,
        pending: Pending::default(),
    };
    let saved = Saved { wants_brain: row.get(8)?, lease };
    Ok(Some(Kept { head: Some(head), saved, used: 0, is_touched: false }))
}

/// A column that may hold what a session waits for.
pub(crate) fn waiting<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> Result<Option<T>, Fault> {
    let text: Option<String> = row.get(column)?;
    Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
}

/// A column that holds JSON text.
pub(crate) fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, Fault> {
    let text = row.get_ref(column)?.as_bytes().map_err(rusqlite::Error::from)?;
    Ok(serde_json::from_slice(text)?)
}

const LOAD_INBOX: &str = "SELECT sequence, kind, body FROM inbox WHERE session = ?1 ORDER BY sequence";

fn load_inbox(conn: &Connection, kinds: &Kinds, number: i64, queued: Queued) -> Result<Inbox, Fault> {
    let mut inbox = Inbox::default();
    if queued == Queued::default() {
        return Ok(inbox);
    }
    let mut statement = conn.prepare_cached(LOAD_INBOX)?;
    let mut rows = statement.query([number])?;
    while let Some(row) = rows.next()? {
        let queued = QueuedRow { sequence: row.get(0)?, kind: kinds.name(row.get(1)?), json: text(row, 2)? };
        inbox.push(serde_json::from_slice(&queued.json)?, queued);
    }
    Ok(inbox)
}

const INSERT_SESSION: &str = "
    INSERT INTO session
        (id, workspace, agent_id, agent_version, environment_id, thread_id, created_at, archived_at, record)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
/// The rest is written like that of any other session.
const INSERT_HEAD: &str = "
    INSERT INTO head (session, position, inbox_last, status, wants_brain, epoch, state)
    VALUES (?1, 0, 0, 0, 0, 0, '')";

/// Writes the rows of a new session; gives its number.
fn insert(conn: &Connection, head: &Head) -> Result<i64, Fault> {
    let record = &head.record;
    conn.prepare_cached(INSERT_SESSION)?.execute(params![
        record.id.as_str(),
        head.workspace.as_str(),
        record.agent.id.as_str(),
        record.agent.version,
        record.environment_id.as_str(),
        head.state.thread_id.as_str(),
        record.created_at.as_micros(),
        record.archived_at.map(Timestamp::as_micros),
        serde_json::to_string(&**record)?,
    ])?;
    let number = conn.last_insert_rowid();
    conn.prepare_cached(INSERT_HEAD)?.execute([number])?;
    Ok(number)
}

/// Its events go in the background: there may be millions, and nobody can reach them any more.
fn delete(conn: &Connection, number: i64) -> Result<(), Fault> {
    for statement in [
        "DELETE FROM session WHERE number = ?1",
        "DELETE FROM head WHERE session = ?1",
        "DELETE FROM inbox WHERE session = ?1",
        PURGE_TOKENS,
        "INSERT INTO doomed (session) VALUES (?1)",
    ] {
        conn.prepare_cached(statement)?.execute([number])?;
    }
    Ok(())
}

const INSERT_EVENT: &str = "
    INSERT INTO event (session, position, kind, at, append_end, taken, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const INSERT_INBOX: &str = "INSERT INTO inbox (session, sequence, kind, body) VALUES (?1, ?2, ?3, ?4)";
const DELETE_INBOX: &str = "DELETE FROM inbox WHERE session = ?1 AND sequence = ?2";
const KEEP_TOKEN: &str = "
    INSERT INTO session_token (session, resource, sealed) VALUES (?1, ?2, ?3)
    ON CONFLICT DO UPDATE SET sealed = excluded.sealed";
const PURGE_TOKENS: &str = "DELETE FROM session_token WHERE session = ?1";
const SAVE_RECORD: &str = "UPDATE session SET archived_at = ?2, record = ?3 WHERE number = ?1";

fn write_rows(conn: &Connection, kinds: &Kinds, head: &Head) -> Result<(), Fault> {
    let Pending { events, queued, taken, has_new_record, tokens, purges_tokens, .. } = &head.pending;
    if *purges_tokens {
        conn.prepare_cached(PURGE_TOKENS)?.execute([head.number])?;
    }
    for SealedToken { resource, sealed } in tokens {
        conn.prepare_cached(KEEP_TOKEN)?.execute(params![head.number, resource.as_str(), sealed])?;
    }
    for EventRow { position, kind, at, append_end, taken, json, is_private: _ } in events {
        let kind = kinds.number_or_new(conn, kind)?;
        conn.prepare_cached(INSERT_EVENT)?.execute(params![
            head.number,
            position.0,
            kind,
            at.as_micros(),
            append_end.0,
            taken,
            utf8(json),
        ])?;
    }
    for QueuedRow { sequence, kind, json } in queued {
        let kind = kinds.number_or_new(conn, kind)?;
        conn.prepare_cached(INSERT_INBOX)?.execute(params![head.number, sequence, kind, utf8(json)])?;
    }
    for sequence in taken {
        conn.prepare_cached(DELETE_INBOX)?.execute(params![head.number, sequence])?;
    }
    if *has_new_record {
        let archived_at = head.record.archived_at.map(Timestamp::as_micros);
        let record = serde_json::to_string(&*head.record)?;
        conn.prepare_cached(SAVE_RECORD)?.execute(params![head.number, archived_at, record])?;
    }
    Ok(())
}

fn utf8(json: &[u8]) -> &str {
    std::str::from_utf8(json).expect("JSON is UTF-8")
}

/// Touches no indexed column.
const SAVE_STATE: &str =
    "UPDATE head SET position = ?2, inbox_last = ?3, status = ?4, state = ?5 WHERE session = ?1";
const SAVE_ALL: &str = "
    UPDATE head SET position = ?2, inbox_last = ?3, status = ?4, state = ?5,
        wants_brain = ?6, epoch = ?7, lease_until = ?8, holder = ?9, deaths = ?10, wanted_since = ?11, waiting = ?12
    WHERE session = ?1";

fn save(conn: &Connection, head: &Head, saved: &mut Saved, text: &mut Vec<u8>) -> Result<(), Fault> {
    text.clear();
    serde_json::to_writer(&mut *text, &head.state)?;
    let state = utf8(text);
    let wants_brain = head.state.wants_brain();
    let status = status_number(head.state.shown_status());
    let position = head.state.head.0;
    if wants_brain == saved.wants_brain && is_as_good(&head.lease, &saved.lease) {
        conn.prepare_cached(SAVE_STATE)?.execute(params![
            head.number,
            position,
            head.inbox_last,
            status,
            state
        ])?;
        return Ok(());
    }
    let lease = &head.lease;
    conn.prepare_cached(SAVE_ALL)?.execute(params![
        head.number,
        position,
        head.inbox_last,
        status,
        state,
        wants_brain,
        lease.epoch,
        lease.until.map(Timestamp::as_micros),
        lease.holder,
        lease.deaths,
        lease.wanted_since.map(Timestamp::as_micros),
        lease.waiting.map(|waiting| serde_json::to_string(&waiting)).transpose()?,
    ])?;
    *saved = Saved { wants_brain, lease: lease.clone() };
    Ok(())
}

/// Whether what is in the database serves: a lease that lasts a little longer is not worth a write.
fn is_as_good(lease: &LeaseState, saved: &LeaseState) -> bool {
    let is_close = match (lease.until, saved.until) {
        (Some(until), Some(saved)) => (until.as_micros() - saved.as_micros()).abs() <= LEASE_SLACK_MICROS,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    is_close && LeaseState { until: saved.until, ..lease.clone() } == *saved
}

/// The sealed token of a session's resource.
pub(crate) fn token(
    conn: &Connection,
    workspace: &WorkspaceId,
    id: &SessionId,
    resource: &ResourceId,
) -> Result<Option<String>, Fault> {
    const TOKEN: &str = "
        SELECT t.sealed FROM session_token t JOIN session s ON s.number = t.session
        WHERE s.id = ?1 AND s.workspace = ?2 AND t.resource = ?3";
    let key = [id.as_str(), workspace.as_str(), resource.as_str()];
    Ok(conn.prepare_cached(TOKEN)?.query_row(key, |row| row.get(0)).optional()?)
}

/// The number of a session, if there is one.
pub(crate) fn number_of(conn: &Connection, id: &SessionId) -> Result<Option<i64>, Fault> {
    let mut statement = conn.prepare_cached("SELECT number FROM session WHERE id = ?1")?;
    Ok(statement.query_row([id.as_str()], |row| row.get(0)).optional()?)
}
