//! Leases of a session that is at hand. An engine that shares its database claims and renews by statements of its own,
//! to the same effect.

use std::time::Duration;

use protocol::time::Timestamp;
use tokio::time::Instant;

use crate::lease::{LEASE, Lease, Token, Waiting};
use crate::rules::head::{Head, LeaseState};

/// When a lease that is taken or renewed at `now` lapses.
pub(crate) fn lease_end(now: Timestamp) -> Timestamp {
    Timestamp::from_micros(now.as_micros() + micros(LEASE))
}

/// A span of time as the stores count it.
pub(crate) fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// Leases the session to `holder`, unless somebody has it.
pub(crate) fn claim(head: &mut Head, holder: &str, now: Timestamp) -> Option<Lease> {
    if head.is_leased(now) {
        return None;
    }
    // A lease that is still there has lapsed: its holder never gave it back.
    let deaths = head.lease.deaths + u32::from(head.lease.until.is_some());
    head.lease = LeaseState {
        epoch: head.lease.epoch + 1,
        until: Some(lease_end(now)),
        holder: Some(holder.to_owned()),
        deaths,
        wanted_since: None,
        waiting: None,
    };
    head.pending.is_dirty = true;
    let token = Token { session: head.record.id.clone(), epoch: head.lease.epoch };
    Some(Lease { token, deaths, held_since: Instant::now() })
}

/// Makes the lease last its full length from `now`; gives whether it was still this one.
pub(crate) fn renew(head: &mut Head, token: &Token, now: Timestamp) -> bool {
    let is_held = head.is_held_by(token);
    if is_held {
        lengthen(head, now);
        head.pending.is_dirty = true;
    }
    is_held
}

/// Makes the lease last its full length from `now`.
pub(crate) fn lengthen(head: &mut Head, now: Timestamp) {
    head.lease.until = Some(lease_end(now));
    head.pending.renews = true;
}

/// Gives the lease back; gives whether it was still this one.
pub(crate) fn release(head: &mut Head, token: &Token) -> bool {
    let is_held = head.is_held_by(token);
    if is_held {
        head.lease = LeaseState { epoch: head.lease.epoch, ..LeaseState::default() };
        head.pending.is_dirty = true;
    }
    is_held
}

/// Notes what the holder waits for; gives whether the lease was still this one.
pub(crate) fn set_waiting(head: &mut Head, token: &Token, waiting: Option<Waiting>) -> bool {
    let is_held = head.is_held_by(token);
    if is_held && head.lease.waiting != waiting {
        head.lease.waiting = waiting;
        head.pending.is_dirty = true;
    }
    is_held
}
