//! Leases: claimed, renewed, released; and the queue of sessions that want a brain, made again from the database.

use protocol::id::SessionId;
use protocol::time::Timestamp;
use rusqlite::{Connection, params};

use crate::lease::Token;
use crate::ready::{READY_MAX, Ready};
use crate::sqlite::fault::Fault;
use crate::sqlite::heads::{Head, lease_end};
use crate::sqlite::writer::Flush;

/// Claims the first session of the queue that may be claimed.
pub(crate) fn claim_ready(flush: &mut Flush<'_>, holder: &str) -> Result<Option<Token>, Fault> {
    let now = flush.now();
    for orphan in flush.ready.take_orphans() {
        if release(flush, &orphan)? {
            flush.ready.push(&[orphan.session]);
        }
    }
    loop {
        while let Some(id) = flush.ready.pop() {
            // It may have been deleted, claimed or satisfied since it was queued.
            let head = match flush.heads.get(flush.conn, &id) {
                Ok(Some(head)) => head,
                Ok(None) => continue,
                // One session that cannot be read must not keep the others waiting.
                Err(Fault::Json(error)) => {
                    tracing::error!(session.id = %id, %error, "a session cannot be read and is left alone");
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            if head.state.wants_brain() && !head.is_leased(now) {
                return Ok(Some(lease_to(flush, &id, holder, now)?));
            }
        }
        if !flush.ready.take_has_more() || !refill(flush.conn, flush.ready, now)? {
            return Ok(None);
        }
    }
}

/// Claims this session, whether it wants a brain or not.
pub(crate) fn claim(flush: &mut Flush<'_>, id: &SessionId, holder: &str) -> Result<Option<Token>, Fault> {
    let now = flush.now();
    match flush.heads.get(flush.conn, id)? {
        Some(head) if !head.is_leased(now) => Ok(Some(lease_to(flush, id, holder, now)?)),
        Some(_) | None => Ok(None),
    }
}

fn lease_to(flush: &mut Flush<'_>, id: &SessionId, holder: &str, now: Timestamp) -> Result<Token, Fault> {
    let head = flush.heads.get(flush.conn, id)?.expect("seen in this transaction");
    head.epoch += 1;
    head.lease_until = Some(lease_end(now));
    head.holder = Some(holder.to_owned());
    let token = Token { session: id.clone(), epoch: head.epoch };
    flush.heads.touch(id);
    Ok(token)
}

/// Gives whether the lease was still this one.
pub(crate) fn renew(flush: &mut Flush<'_>, token: &Token) -> Result<bool, Fault> {
    let now = flush.now();
    with_lease(flush, token, |head| head.renew(now))
}

/// Gives whether the lease was still this one.
pub(crate) fn release(flush: &mut Flush<'_>, token: &Token) -> Result<bool, Fault> {
    with_lease(flush, token, |head| {
        head.lease_until = None;
        head.holder = None;
    })
}

fn with_lease(flush: &mut Flush<'_>, token: &Token, change: impl FnOnce(&mut Head)) -> Result<bool, Fault> {
    let Some(head) = flush.heads.get(flush.conn, &token.session)? else { return Ok(false) };
    if head.epoch != token.epoch || head.lease_until.is_none() {
        return Ok(false);
    }
    change(head);
    flush.heads.touch(&token.session);
    Ok(true)
}

const WANTING: &str = "
    SELECT s.id FROM head h JOIN session s ON s.number = h.session
    WHERE h.wants_brain = 1 AND (h.lease_until IS NULL OR h.lease_until <= ?1)
    ORDER BY h.session LIMIT ?2";

/// Sessions that want a brain and that nobody holds.
pub(crate) fn wanting(conn: &Connection, now: Timestamp, limit: usize) -> Result<Vec<SessionId>, Fault> {
    let mut statement = conn.prepare_cached(WANTING)?;
    let mut rows = statement.query(params![now.as_micros(), limit])?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        ids.push(SessionId::from_text(row.get::<_, String>(0)?));
    }
    Ok(ids)
}

/// Fills the queue from the database; gives whether there was anything.
pub(crate) fn refill(conn: &Connection, ready: &Ready, now: Timestamp) -> Result<bool, Fault> {
    let ids = wanting(conn, now, READY_MAX)?;
    if ids.len() == READY_MAX {
        ready.look_again();
    }
    ready.push(&ids);
    Ok(!ids.is_empty())
}

/// At the start: nobody holds anything any more.
pub(crate) fn void_leases(conn: &Connection) -> Result<(), Fault> {
    conn.execute("UPDATE head SET lease_until = NULL, holder = NULL WHERE lease_until IS NOT NULL", [])?;
    Ok(())
}
