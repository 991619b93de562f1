//! Notifications: who is told of what other processes wrote. They may be lost; below them is a poll.
//!
//! ```text
//!   connecting ──▶ listening ── connection lost ──▶ connecting
//!                    │ every notification wakes whoever watches
//!   meanwhile, every POLL: the versions of all watched sessions are compared
//! ```
//!
//! A flush notifies once, however many sessions it wrote. What a notification says fits into eight thousand bytes; what
//! does not fit says "look everywhere".

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::id::SessionId;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Notification};

use crate::postgres::connect::Address;
use crate::postgres::engine::Shared;
use crate::postgres::fault::{Fault, chain};
use crate::postgres::previews;
use crate::postgres::write;

/// The one channel of a database.
pub(crate) const CHANNEL: &str = "posthouse";
/// The most that a notification carries, by PostgreSQL's own limit of 8,000 bytes.
pub(crate) const PAYLOAD_MAX: usize = 7_900;

/// How often watched sessions are compared with the database: how late an event can be seen if its notification is lost.
const POLL: Duration = Duration::from_secs(2);
/// Sessions compared in one statement.
const POLLED_AT_ONCE: usize = 5_000;
/// How long to wait before connecting again.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a silent connection is asked whether it is still there, and how long it may take to say so.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Notifications that may wait to be handled.
const WAITING_MAX: usize = 4_096;
/// Pieces of deleted logs that are removed with each poll.
const SWEEPS: usize = 8;
/// Deleted sessions are remembered this long, for those who followed them elsewhere.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// Says that these sessions have changed.
pub(crate) fn changed_payload<'a>(
    node: &str,
    sessions: impl Iterator<Item = &'a SessionId>,
    wanting: bool,
) -> String {
    let mut payload = format!("e|{node}|{}|", if wanting { "w" } else { "-" });
    let prefix = payload.len();
    for id in sessions {
        if payload.len() + id.as_str().len() + 1 > PAYLOAD_MAX {
            payload.truncate(prefix);
            payload.push('*');
            break;
        }
        if payload.len() > prefix {
            payload.push(',');
        }
        payload.push_str(id.as_str());
    }
    payload
}

/// Listens for as long as the store is open.
pub(crate) async fn listen(shared: Arc<Shared>, address: Address) {
    loop {
        if let Err(error) = listen_once(&shared, &address).await
            && shared.set_listening(false)
        {
            tracing::warn!(%error, "notifications of the database are not heard; changes are seen with the next poll");
        }
        tokio::select! {
            biased;
            () = shared.closed.cancelled() => return,
            () = sleep(PAUSE) => {}
        }
    }
}

async fn listen_once(shared: &Arc<Shared>, address: &Address) -> Result<(), String> {
    let connecting = address.config.connect(address.tls.clone());
    let (client, mut connection) = tokio::select! {
        biased;
        () = shared.closed.cancelled() => return Ok(()),
        connected = timeout(ASK_EVERY, connecting) => connected
            .map_err(|_| "the database did not answer in time".to_owned())?
            .map_err(|error| chain(&error))?,
    };
    let (heard, mut waiting) = mpsc::channel::<Notification>(WAITING_MAX);
    let reading = async move {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(notification))) => {
                    if heard.send(notification).await.is_err() {
                        return "nobody listens".to_owned();
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return chain(&error),
                None => return "the connection was closed".to_owned(),
            }
        }
    };
    let working = async {
        let listen = format!("LISTEN {CHANNEL}");
        timeout(ASK_EVERY, client.batch_execute(&listen))
            .await
            .map_err(|_| "the database did not answer in time".to_owned())?
            .map_err(|error| chain(&error))?;
        shared.set_listening(true);
        // What was said before is not known.
        shared.look_everywhere();
        previews::ask_for_watched(shared).await;
        let mut asks = interval(ASK_EVERY);
        asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                notification = waiting.recv() => match notification {
                    Some(notification) => hear(shared, notification.payload()),
                    None => return Err("the connection was closed".to_owned()),
                },
                _ = asks.tick() => {
                    timeout(ASK_EVERY, client.batch_execute(""))
                        .await
                        .map_err(|_| "the database did not answer in time".to_owned())?
                        .map_err(|error| chain(&error))?;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.closed.cancelled() => Ok(()),
        broken = reading => Err(broken),
        worked = working => worked,
    }
}

/// Takes in what another process says. What this process says itself it knows already.
fn hear(shared: &Arc<Shared>, payload: &str) {
    let mut parts = payload.splitn(3, '|');
    let (Some(kind), Some(node), Some(rest)) = (parts.next(), parts.next(), parts.next()) else { return };
    if node == shared.node {
        return;
    }
    match kind {
        "e" => {
            let Some((flags, ids)) = rest.split_once('|') else { return };
            if ids == "*" {
                shared.look_everywhere();
            } else {
                for id in ids.split(',').filter(|id| !id.is_empty()) {
                    let id = SessionId::from_text(id);
                    shared.mark(&id);
                    shared.wake(&id);
                }
            }
            if flags.contains('w') {
                shared.ready.notify_one();
            }
        }
        "p" => previews::hear(shared, rest),
        "f" => previews::hear_watched(shared, rest),
        "t" => shared.hear_word(rest),
        // Of a later version.
        _ => {}
    }
}

/// Compares the watched sessions with the database for as long as the store is open, and clears away what is deleted.
pub(crate) async fn poll(shared: Arc<Shared>) {
    let mut versions = HashMap::new();
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shared.closed.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match compare(&shared, &mut versions).await {
            Ok(()) => previews::ask_for_watched(&shared).await,
            Err(fault) => tracing::debug!(error = ?fault, "watched sessions could not be compared"),
        }
        let forgotten = shared.options.clock.now().as_micros() - crate::rules::leases::micros(REMEMBERED);
        let forgotten = protocol::time::Timestamp::from_micros(forgotten);
        // Some at a time: whoever watches must not wait until a long log is removed.
        for _ in 0..SWEEPS {
            if shared.closed.is_cancelled() || !write::sweep(&shared.db, forgotten).await.unwrap_or(false) {
                break;
            }
        }
    }
}

async fn compare(shared: &Shared, versions: &mut HashMap<SessionId, i64>) -> Result<(), Fault> {
    let watched = shared.hub.watched();
    versions.retain(|id, _| watched.contains(id));
    let watched: Vec<SessionId> = watched.into_iter().collect();
    for some in watched.chunks(POLLED_AT_ONCE) {
        let ids: Vec<&str> = some.iter().map(SessionId::as_str).filter(|id| !id.contains('\0')).collect();
        let sql = "SELECT id, version FROM head WHERE id = ANY($1)";
        let rows = shared.db.query(sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
        let found: HashMap<&str, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        for id in some {
            let version = found.get(id.as_str()).copied().unwrap_or_default();
            if versions.insert(id.clone(), version) != Some(version) {
                shared.mark(id);
                shared.wake(id);
            }
        }
    }
    Ok(())
}
