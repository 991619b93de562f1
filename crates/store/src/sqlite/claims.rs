//! Leases: claimed and renewed; and the queue of sessions that want a brain, made again from the database.

use protocol::id::{SessionId, WorkspaceId};
use protocol::time::Timestamp;
use rusqlite::{Connection, params};

use crate::fair::{LANE_MAX, READY_MAX};
use crate::lease::{Lease, Token};
use crate::ready::Ready;
use crate::rules::leases;
use crate::sqlite::fault::Fault;
use crate::sqlite::heads::LEASE_SLACK_MICROS;
use crate::sqlite::writer::Flush;

/// Claims up to `max` sessions of the queue that may be claimed.
pub(crate) fn claim_ready(flush: &mut Flush<'_>, holder: &str, max: usize) -> Result<Vec<Lease>, Fault> {
    for orphan in flush.ready.take_orphans() {
        release(flush, &orphan)?;
    }
    let mut claimed = Vec::new();
    loop {
        while claimed.len() < max
            && let Some(id) = flush.ready.pop()
        {
            match claim_if(flush, &id, holder, true) {
                Ok(Try::Claimed(lease)) => claimed.push(lease),
                // Somebody holds it: it runs indeed.
                Ok(Try::Held) => {}
                // It was deleted or satisfied since it was queued.
                Ok(Try::Vain) => flush.ready.ended(&id),
                // One session that cannot be read must not keep the others waiting.
                Err(Fault::Json(error)) => {
                    tracing::error!(session.id = %id, %error, "a session cannot be read and is left alone");
                    flush.ready.ended(&id);
                }
                Err(fault) => return Err(fault),
            }
        }
        let is_enough = claimed.len() == max;
        if is_enough || !flush.ready.begin_refill() || !refill(flush.conn, flush.ready, flush.now())? {
            return Ok(claimed);
        }
    }
}

/// What became of an attempt.
enum Try {
    Claimed(Lease),
    Held,
    Vain,
}

/// Claims this session, whether it wants a brain or not.
pub(crate) fn claim(flush: &mut Flush<'_>, id: &SessionId, holder: &str) -> Result<Option<Lease>, Fault> {
    Ok(match claim_if(flush, id, holder, false)? {
        Try::Claimed(lease) => Some(lease),
        Try::Held | Try::Vain => None,
    })
}

fn claim_if(flush: &mut Flush<'_>, id: &SessionId, holder: &str, if_wanted: bool) -> Result<Try, Fault> {
    let now = flush.now();
    let tried = flush.with(id, |head| {
        if head.is_leased(now) {
            return (Try::Held, None);
        }
        if if_wanted && !head.state.wants_brain() {
            return (Try::Vain, None);
        }
        let lease = leases::claim(head, holder, now).expect("nobody holds it");
        (Try::Claimed(lease), Some(head.workspace.clone()))
    })?;
    let Some((tried, workspace)) = tried else { return Ok(Try::Vain) };
    if let Some(workspace) = workspace {
        flush.ready.began(id, &workspace);
    }
    Ok(tried)
}

/// Gives whether the lease was still this one.
pub(crate) fn renew(flush: &mut Flush<'_>, token: &Token) -> Result<bool, Fault> {
    let now = flush.now();
    Ok(flush.with(&token.session, |head| leases::renew(head, token, now))?.unwrap_or(false))
}

fn release(flush: &mut Flush<'_>, token: &Token) -> Result<bool, Fault> {
    Ok(flush.with(&token.session, |head| leases::release(head, token))?.unwrap_or(false))
}

/// The first of each workspace, then the second of each, and so on.
const WANTING: &str = "
    SELECT id, workspace FROM (
        SELECT s.id, s.workspace, h.session,
            row_number() OVER (PARTITION BY s.workspace ORDER BY h.session) AS place
        FROM head h JOIN session s ON s.number = h.session
        WHERE h.wants_brain = 1 AND (h.lease_until IS NULL OR h.lease_until <= ?1)
    )
    WHERE place <= ?2 ORDER BY place, session LIMIT ?3";

/// Sessions that want a brain and that nobody holds.
pub(crate) fn wanting(
    conn: &Connection,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<(SessionId, WorkspaceId)>, Fault> {
    let mut statement = conn.prepare_cached(WANTING)?;
    let mut rows = statement.query(params![now.as_micros(), LANE_MAX + 1, limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let id = SessionId::from_text(row.get::<_, String>(0)?);
        found.push((id, WorkspaceId::from_text(row.get::<_, String>(1)?)));
    }
    Ok(found)
}

/// Sessions whose holder died though they wanted nothing more: nobody will claim them, and they run no longer.
pub(crate) fn satisfied(conn: &Connection, now: Timestamp, limit: usize) -> Result<Vec<SessionId>, Fault> {
    const SATISFIED: &str = "
        SELECT s.id FROM head h JOIN session s ON s.number = h.session
        WHERE h.lease_until <= ?1 AND h.wants_brain = 0 LIMIT ?2";
    // A lease may last a little longer than the database says.
    let lapsed = now.as_micros() - LEASE_SLACK_MICROS;
    let mut statement = conn.prepare_cached(SATISFIED)?;
    let mut rows = statement.query(params![lapsed, limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(SessionId::from_text(row.get::<_, String>(0)?));
    }
    Ok(found)
}

/// Fills the queue from the database; gives whether there was anything.
pub(crate) fn refill(conn: &Connection, ready: &Ready, now: Timestamp) -> Result<bool, Fault> {
    let found = wanting(conn, now, READY_MAX)?;
    ready.refill(&found);
    Ok(!found.is_empty())
}

/// Tells the queue which sessions are held, as far as the database says.
pub(crate) fn recount(conn: &Connection, ready: &Ready, now: Timestamp) -> Result<(), Fault> {
    const HELD: &str = "
        SELECT s.id, s.workspace FROM head h JOIN session s ON s.number = h.session WHERE h.lease_until > ?1";
    let mut statement = conn.prepare_cached(HELD)?;
    let mut rows = statement.query([now.as_micros()])?;
    let mut held = Vec::new();
    while let Some(row) = rows.next()? {
        let workspace = WorkspaceId::from_text(row.get::<_, String>(1)?);
        held.push((SessionId::from_text(row.get::<_, String>(0)?), workspace));
    }
    ready.set_running(held);
    Ok(())
}

/// At the start: nobody holds anything any more. Whoever did has died.
pub(crate) fn void_leases(conn: &Connection, now: Timestamp) -> Result<(), Fault> {
    const VOID: &str = "
        UPDATE head SET lease_until = NULL, holder = NULL, waiting = NULL, deaths = deaths + 1,
            wanted_since = CASE WHEN wants_brain = 1 THEN ?1 END
        WHERE lease_until IS NOT NULL";
    conn.execute(VOID, [now.as_micros()])?;
    Ok(())
}
