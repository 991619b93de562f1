//! Pieces of answers between processes: told only while somebody elsewhere follows, some at a time, and lost without
//! harm.
//!
//! Whoever follows a session says so to all ("f"), and again with every poll; whoever makes an answer for one of those
//! tells its pieces ("p"). Each piece has a number within its event, so that a receiver which misses one sheds the rest:
//! what is shown stays the beginning of the real message.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::event::PreviewKind;
use protocol::id::{EventId, SessionId};
use protocol::position::Position;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_postgres::types::Type;

use crate::hub::Frame;
use crate::postgres::engine::Shared;
use crate::postgres::listen::{CHANNEL, PAYLOAD_MAX};

/// How long a session counts as followed elsewhere after it was last said.
const FOLLOWED: Duration = Duration::from_secs(10);
/// Pieces that may wait to be told. What does not fit is lost.
const WAITING_MAX: usize = 4_096;
/// How long pieces gather before they are told: about as long as a person does not notice, and a bound on what the
/// database is bothered with.
const GATHER: Duration = Duration::from_millis(15);
/// Events whose pieces are being received.
const OPEN_MAX: usize = 4_096;

/// What this process knows of previews elsewhere.
#[derive(Default)]
pub(crate) struct Elsewhere(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Who is followed elsewhere, and until when that is believed.
    followed: HashMap<SessionId, Instant>,
    /// How many pieces of an event were told.
    told: HashMap<EventId, u32>,
    /// How many pieces of an event were heard, without a gap.
    heard: HashMap<EventId, u32>,
}

/// A piece on its way.
#[derive(Serialize, Deserialize)]
struct Piece {
    session: SessionId,
    after: Position,
    thinking: bool,
    event: EventId,
    number: u32,
    json: Box<serde_json::value::RawValue>,
}

impl Elsewhere {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_followed(&self, session: &SessionId) -> bool {
        let known = self.lock();
        known.followed.get(session).is_some_and(|until| *until > Instant::now())
    }

    fn follow(&self, session: SessionId) {
        let now = Instant::now();
        let mut known = self.lock();
        if known.followed.len() >= OPEN_MAX {
            known.followed.retain(|_, until| *until > now);
        }
        known.followed.insert(session, now + FOLLOWED);
    }

    /// The number of the next piece of an event.
    fn number(&self, frame: &Frame) -> Option<u32> {
        let mut known = self.lock();
        if frame.is_start {
            if known.told.len() >= OPEN_MAX {
                known.told.clear();
            }
            known.told.insert(frame.event.clone(), 1);
            return Some(0);
        }
        let told = known.told.get_mut(&frame.event)?;
        *told += 1;
        Some(*told - 1)
    }

    /// Whether this piece follows those that were heard.
    fn is_next(&self, piece: &Piece) -> bool {
        let mut known = self.lock();
        if piece.number == 0 {
            if known.heard.len() >= OPEN_MAX {
                known.heard.clear();
            }
            known.heard.insert(piece.event.clone(), 1);
            return true;
        }
        match known.heard.get_mut(&piece.event) {
            Some(heard) if *heard == piece.number => {
                *heard += 1;
                true
            }
            Some(_) => {
                known.heard.remove(&piece.event);
                false
            }
            None => false,
        }
    }
}

/// The way out for pieces.
pub(crate) struct Outbox(mpsc::Sender<String>);

impl Outbox {
    pub(crate) fn new() -> (Self, mpsc::Receiver<String>) {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        (Self(sender), waiting)
    }

    pub(crate) fn put(&self, elsewhere: &Elsewhere, session: &SessionId, frame: &Frame) {
        let Some(number) = elsewhere.number(frame) else { return };
        let Ok(text) = std::str::from_utf8(&frame.json) else { return };
        let Ok(json) = serde_json::value::RawValue::from_string(text.to_owned()) else { return };
        let piece = Piece {
            session: session.clone(),
            after: frame.after,
            thinking: frame.kind == PreviewKind::Thinking,
            event: frame.event.clone(),
            number,
            json,
        };
        if let Ok(text) = serde_json::to_string(&piece) {
            // Lost if there is no room: the receiver sheds the rest of the event.
            let _ = self.0.try_send(text);
        }
    }
}

/// Tells what gathers, for as long as the store is open.
pub(crate) async fn tell(shared: Arc<Shared>, mut waiting: mpsc::Receiver<String>) {
    let mut pieces = Vec::new();
    while waiting.recv_many(&mut pieces, WAITING_MAX).await > 0 {
        let prefix = format!("p|{}|", shared.node);
        let mut payload = prefix.clone();
        for piece in pieces.drain(..) {
            if prefix.len() + piece.len() + 1 > PAYLOAD_MAX {
                continue;
            }
            if payload.len() + piece.len() + 1 > PAYLOAD_MAX {
                notify(&shared, std::mem::replace(&mut payload, prefix.clone())).await;
            }
            payload.push_str(&piece);
            payload.push('\n');
        }
        if payload.len() > prefix.len() {
            notify(&shared, payload).await;
        }
        sleep(GATHER).await;
    }
}

/// Says something to the other processes. May be lost.
pub(crate) async fn notify(shared: &Shared, payload: String) {
    let sql = "SELECT pg_notify($1, $2)";
    if let Err(fault) = shared.db.query(sql, &[(&CHANNEL, Type::TEXT), (&payload.as_str(), Type::TEXT)]).await
    {
        tracing::debug!(error = ?fault, "other processes could not be told");
    }
}

/// Takes in pieces that another process told.
pub(crate) fn hear(shared: &Shared, text: &str) {
    for line in text.lines() {
        let Ok(piece) = serde_json::from_str::<Piece>(line) else { continue };
        if !shared.elsewhere.is_next(&piece) {
            continue;
        }
        let is_start = piece.number == 0;
        let kind = if piece.thinking { PreviewKind::Thinking } else { PreviewKind::Message };
        let json = Bytes::from(String::from(Box::<str>::from(piece.json)));
        let frame = Frame { after: piece.after, kind, event: piece.event, is_start, json };
        shared.hub.publish(&piece.session, frame);
    }
}

/// Takes in who is followed in another process.
pub(crate) fn hear_watched(shared: &Shared, ids: &str) {
    for id in ids.split(',').filter(|id| !id.is_empty()) {
        shared.elsewhere.follow(SessionId::from_text(id));
    }
}

/// Tells the other processes who is followed here by somebody who wants previews.
pub(crate) async fn ask_for_watched(shared: &Shared) {
    let ids = shared.hub.wanting_previews();
    say_watched(shared, &ids).await;
}

/// Tells the other processes that these are followed here.
pub(crate) async fn say_watched(shared: &Shared, ids: &[SessionId]) {
    let prefix = format!("f|{}|", shared.node);
    let mut payload = prefix.clone();
    for id in ids {
        if payload.len() + id.as_str().len() + 1 > PAYLOAD_MAX {
            notify(shared, std::mem::replace(&mut payload, prefix.clone())).await;
        }
        payload.push_str(id.as_str());
        payload.push(',');
    }
    if payload.len() > prefix.len() {
        notify(shared, payload).await;
    }
}
