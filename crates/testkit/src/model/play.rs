//! Plays the events of an answer onto a connection: at the scripted pace, with holds, cuts and pings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;

use super::reply::{Chunks, Reply};
use super::state::{Outcome, State, Ticket};

/// One frame of the answer's stream.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) kind: Kind,
    pub(super) frame: String,
}

/// What a frame carries, as far as pace and holds care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Frame,
    Delta,
    TextDelta,
}

/// Cuts text into deltas.
pub(super) fn deltas(text: &str, chunks: Chunks) -> Vec<&str> {
    match chunks {
        Chunks::Words | Chunks::Bytes => text.split_inclusive(char::is_whitespace).collect(),
        Chunks::Whole => vec![text],
    }
}

/// Cuts a tool's input into deltas. Never at a fixed place of its grammar.
pub(super) fn input_deltas(input: &str, chunks: Chunks) -> Vec<String> {
    const PIECE_CHARS: usize = 7;
    match chunks {
        Chunks::Words | Chunks::Bytes => {
            let characters: Vec<char> = input.chars().collect();
            characters.chunks(PIECE_CHARS).map(|piece| piece.iter().collect()).collect()
        }
        Chunks::Whole => vec![input.to_owned()],
    }
}

/// The events with a ping after each, if the reply wants pings.
pub(super) fn with_pings(events: Vec<Event>, reply: &Reply, ping: &str) -> Vec<Event> {
    if !reply.pings {
        return events;
    }
    let ping = || Event { kind: Kind::Frame, frame: ping.to_owned() };
    events.into_iter().flat_map(|event| [event, ping()]).collect()
}

/// The body: the events as the reply paces, holds, cuts and chunks them.
pub(super) fn body(
    state: Arc<State>,
    ticket: Ticket,
    reply: Reply,
    events: Vec<Event>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let player = Player {
        state,
        ticket,
        reply,
        events: events.into_iter(),
        chunks: Vec::new().into_iter(),
        sent: 0,
        deltas: 0,
        text_deltas: 0,
        started: false,
        cut: false,
    };
    stream::unfold(player, |mut player| async move { player.next().await.map(|chunk| (chunk, player)) })
}

struct Player {
    state: Arc<State>,
    ticket: Ticket,
    reply: Reply,
    events: std::vec::IntoIter<Event>,
    /// What is left of the frame being sent.
    chunks: std::vec::IntoIter<Bytes>,
    sent: usize,
    deltas: usize,
    text_deltas: usize,
    started: bool,
    cut: bool,
}

impl Player {
    async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        if let Some(chunk) = self.chunks.next() {
            // Lets the connection write each piece by itself.
            tokio::task::yield_now().await;
            return Some(Ok(chunk));
        }
        if self.cut {
            return None;
        }
        if !self.started {
            self.started = true;
            if self.reply.hold_after.is_none() {
                self.hold().await;
            }
            pause(self.reply.first_token_ms).await;
        }
        if self.reply.hold_after == Some(self.text_deltas) {
            self.reply.hold_after = None;
            self.hold().await;
        }
        if self.reply.cut_after == Some(self.sent) {
            self.cut = true;
            // Lets the connection write what came before; the error throws away what is still buffered.
            tokio::task::yield_now().await;
            self.ticket.settle(Outcome::Cut);
            return Some(Err(std::io::Error::other("cut by the script")));
        }
        let Some(event) = self.events.next() else {
            self.ticket.settle(Outcome::Complete);
            return None;
        };
        self.sent += 1;
        if event.kind != Kind::Frame {
            if self.deltas > 0 {
                pause(self.reply.token_ms).await;
            }
            self.deltas += 1;
        }
        if event.kind == Kind::TextDelta {
            self.text_deltas += 1;
        }
        let frame = Bytes::from(event.frame);
        if self.reply.chunks != Chunks::Bytes {
            return Some(Ok(frame));
        }
        self.chunks = odd_pieces(frame, self.sent).into_iter();
        self.chunks.next().map(Ok)
    }

    async fn hold(&self) {
        if let Some(hold) = &self.reply.hold {
            self.state.wait_for_release(hold).await;
        }
    }
}

/// Pieces of one to seven bytes, starting differently for each frame.
fn odd_pieces(mut frame: Bytes, start: usize) -> Vec<Bytes> {
    const SIZES: [usize; 5] = [1, 3, 2, 7, 5];
    let mut pieces = Vec::new();
    for size in SIZES.iter().cycle().skip(start % SIZES.len()) {
        if frame.is_empty() {
            break;
        }
        pieces.push(frame.split_to((*size).min(frame.len())));
    }
    pieces
}

async fn pause(milliseconds: u64) {
    if milliseconds > 0 {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}
