//! What clients do to sessions: make, send, update, archive, delete.

use std::sync::Arc;

use bytes::Bytes;
use protocol::event::{Body, Event};
use protocol::id::{EventId, SessionId, WorkspaceId};
use protocol::time::Timestamp;
use rusqlite::{Connection, params};
use session::record::{Update, may_delete};
use session::step::run_events;
use session::{Admitted, Record, State, admit};

use crate::clock::Ids;
use crate::error::ChangeError;
use crate::follow::Item;
use crate::log::Stored;
use crate::sessions::NewSession;
use crate::sqlite::appends::{Append, Written, end_of};
use crate::sqlite::fault::Fault;
use crate::sqlite::heads::{self, Head, Paper};
use crate::sqlite::writer::Flush;

/// What a change came to: the inner result is for the client, the outer fails the flush.
type Changed<T> = Result<Result<T, ChangeError>, Fault>;

/// Makes a session; `None` if its id is taken.
pub(crate) fn create(
    flush: &mut Flush<'_>,
    new: NewSession,
    initial: Vec<Written>,
    ids: &Ids,
) -> Result<Option<(Record, State)>, Fault> {
    let NewSession { workspace, record, thread_id, initial: _ } = new;
    if flush.heads.get(flush.conn, &record.id)?.is_some() {
        return Ok(None);
    }
    let state = State::new(thread_id, record.agent.spec.name.clone(), record.created_at);
    let number = insert_session(flush.conn, &workspace, &record, &state)?;
    let id = record.id.clone();
    let mut head = Head::new(number, workspace, Arc::new(record), state);
    heads::insert(flush.conn, &head)?;
    if !initial.is_empty() {
        let now = flush.now();
        let run = run_events(&head.state);
        let append = Append {
            conn: flush.conn,
            kinds: flush.kinds,
            hub: flush.hub,
            now,
            end: end_of(&head, run.len()),
        };
        write_all(&append, &mut head, run.into(), ids)?;
        for written in initial {
            queue(&append, &mut head, written)?;
        }
    }
    let shown = ((*head.record).clone(), head.state.clone());
    flush.heads.insert(id.clone(), head);
    flush.heads.touch(&id);
    Ok(Some(shown))
}

const INSERT_SESSION: &str = "
    INSERT INTO session
        (id, workspace, agent_id, agent_version, environment_id, thread_id, created_at, archived_at, record)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

fn insert_session(
    conn: &Connection,
    workspace: &WorkspaceId,
    record: &Record,
    state: &State,
) -> Result<i64, Fault> {
    conn.prepare_cached(INSERT_SESSION)?.execute(params![
        record.id.as_str(),
        workspace.as_str(),
        record.agent.id.as_str(),
        record.agent.version,
        record.environment_id.as_str(),
        state.thread_id.as_str(),
        record.created_at.as_micros(),
        record.archived_at.map(Timestamp::as_micros),
        serde_json::to_string(record)?,
    ])?;
    Ok(conn.last_insert_rowid())
}

/// Takes in what a client sends. `prepared` are the same events, in the same order.
pub(crate) fn send(
    flush: &mut Flush<'_>,
    workspace: &WorkspaceId,
    id: &SessionId,
    prepared: Vec<Written>,
) -> Changed<Vec<Arc<Stored>>> {
    let now = flush.now();
    let (conn, kinds, hub) = (flush.conn, flush.kinds, flush.hub);
    let Some(head) = find(flush, workspace, id)? else { return Ok(Err(ChangeError::NotFound)) };
    let (papers, sent): (Vec<(EventId, String)>, Vec<Body>) =
        prepared.into_iter().map(|Written { id, body, json }| ((id, json), body)).unzip();
    let state = head.state.clone();
    let admitted = match admit(&state, &head.inbox(conn)?.events, sent) {
        Ok(admitted) => admitted,
        Err(refusal) => return Ok(Err(refusal.into())),
    };
    let logged = admitted.iter().filter(|admitted| matches!(admitted, Admitted::Log(_))).count();
    let append = Append { conn, kinds, hub, now, end: end_of(head, logged) };
    let mut echoes = Vec::with_capacity(admitted.len());
    for (admitted, (id, json)) in admitted.into_iter().zip(papers) {
        let echo = match admitted {
            Admitted::Queue(body) => queue(&append, head, Written { id, body, json })?,
            Admitted::Log(body) => {
                let kind: Arc<str> = body.kind().into();
                let placed = append.write(head, Written { id, body, json })?;
                Stored {
                    position: Some(placed.position),
                    kind,
                    processed_at: Some(placed.at),
                    json: placed.json,
                }
            }
        };
        echoes.push(Arc::new(echo));
    }
    flush.heads.touch(id);
    Ok(Ok(echoes))
}

/// Puts an event at the end of the inbox.
fn queue(append: &Append<'_>, head: &mut Head, written: Written) -> Result<Stored, Fault> {
    let (conn, kinds) = (append.conn, append.kinds);
    let Written { id, body, json } = written;
    // Read before the row is written, so that it is not read as well.
    head.inbox(conn)?;
    let kind = kinds.number_or_new(conn, body.kind())?;
    let sequence = head.inbox_last + 1;
    let statement = "INSERT INTO inbox (session, sequence, kind, body) VALUES (?1, ?2, ?3, ?4)";
    conn.prepare_cached(statement)?.execute(params![head.number, sequence, kind, json])?;
    let name = kinds.name(kind);
    let shown = Bytes::copy_from_slice(json.as_bytes());
    head.begin_news(append.hub);
    head.add_news(|| Item::Queued { kind: name.clone(), json: shown.clone() });
    head.state.queued.add(&body);
    head.inbox_last = sequence;
    head.inbox(conn)?.push(Event { body, id, processed_at: None }, Paper { sequence, kind, json });
    Ok(Stored { position: None, kind: name, processed_at: None, json: shown })
}

/// Changes a session's own facts, and says so in its log.
pub(crate) fn update(
    flush: &mut Flush<'_>,
    workspace: &WorkspaceId,
    id: &SessionId,
    update: Update,
    ids: &Ids,
) -> Changed<(Record, State)> {
    let now = flush.now();
    change(flush, workspace, id, ids, now, |record, state| {
        let said = record.update(state, update)?;
        if said.is_some() {
            record.updated_at = now;
        }
        Ok(said.into_iter().collect())
    })
}

/// Ends a session for good.
pub(crate) fn archive(
    flush: &mut Flush<'_>,
    workspace: &WorkspaceId,
    id: &SessionId,
    ids: &Ids,
) -> Changed<(Record, State)> {
    let now = flush.now();
    change(flush, workspace, id, ids, now, |record, state| record.archive(state, now))
}

fn change(
    flush: &mut Flush<'_>,
    workspace: &WorkspaceId,
    id: &SessionId,
    ids: &Ids,
    now: Timestamp,
    change: impl FnOnce(&mut Record, &State) -> Result<Vec<Body>, session::Refusal>,
) -> Changed<(Record, State)> {
    let (conn, kinds, hub) = (flush.conn, flush.kinds, flush.hub);
    let Some(head) = find(flush, workspace, id)? else { return Ok(Err(ChangeError::NotFound)) };
    let mut record = (*head.record).clone();
    let said = match change(&mut record, &head.state) {
        Ok(said) => said,
        Err(refusal) => return Ok(Err(refusal.into())),
    };
    if record != *head.record {
        save_session(conn, head.number, &record)?;
        head.record = Arc::new(record);
    }
    write_all(&Append { conn, kinds, hub, now, end: end_of(head, said.len()) }, head, said, ids)?;
    let shown = ((*head.record).clone(), head.state.clone());
    flush.heads.touch(id);
    Ok(Ok(shown))
}

fn save_session(conn: &Connection, number: i64, record: &Record) -> Result<(), Fault> {
    let statement = "UPDATE session SET archived_at = ?2, record = ?3 WHERE number = ?1";
    let archived_at = record.archived_at.map(Timestamp::as_micros);
    conn.prepare_cached(statement)?.execute(params![number, archived_at, serde_json::to_string(record)?])?;
    Ok(())
}

/// Removes a session. Its events go in the background: there may be millions, and nobody can reach them any more.
pub(crate) fn delete(
    flush: &mut Flush<'_>,
    workspace: &WorkspaceId,
    id: &SessionId,
    event: EventId,
) -> Changed<()> {
    let now = flush.now();
    let conn = flush.conn;
    let Some(head) = find(flush, workspace, id)? else { return Ok(Err(ChangeError::NotFound)) };
    if let Err(refusal) = may_delete(&head.state) {
        return Ok(Err(refusal.into()));
    }
    let number = head.number;
    let at = head.state.next_time(now);
    let said = Event { body: Body::Deleted {}, id: event, processed_at: Some(at) };
    for statement in [
        "DELETE FROM session WHERE number = ?1",
        "DELETE FROM head WHERE session = ?1",
        "DELETE FROM inbox WHERE session = ?1",
        "INSERT INTO doomed (session) VALUES (?1)",
    ] {
        conn.prepare_cached(statement)?.execute([number])?;
    }
    *flush.has_doomed = true;
    flush.heads.remove(id);
    flush.deleted.push((id.clone(), Bytes::from(serde_json::to_vec(&said)?)));
    Ok(Ok(()))
}

/// A session of this workspace.
fn find<'a>(
    flush: &'a mut Flush<'_>,
    workspace: &WorkspaceId,
    id: &SessionId,
) -> Result<Option<&'a mut Head>, Fault> {
    let head = flush.heads.get(flush.conn, id)?;
    Ok(head.filter(|head| head.workspace == *workspace))
}

fn write_all(append: &Append<'_>, head: &mut Head, bodies: Vec<Body>, ids: &Ids) -> Result<(), Fault> {
    for body in bodies {
        append.write(head, Written::new(ids.make(), body))?;
    }
    Ok(())
}
