//! Watching one turn of one session from outside, for when its first token comes.

use std::time::Instant;

use anyhow::{Context as _, bail};
use client::{Client, Item, Stream};
use protocol::event::{Body, Preview, PreviewKind};
use tokio::sync::oneshot;

use super::samples::millis;

/// One turn, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// From when the client had the whole answer to its POST, which the server gives once the event is durable, to
    /// when it had read the first `event_delta` frame from a stream which was open before. Below zero if the token
    /// was there before the answer.
    pub(super) after_acceptance: f64,
    /// The same from the beginning of the POST.
    pub(super) after_sending: f64,
}

/// Sends a message and waits until the session is at rest again.
pub(super) async fn time_turn(client: &Client, session: &str, text: &str) -> anyhow::Result<Turn> {
    let stream = client.stream(session, None, &[PreviewKind::Message]).await?;
    let (tell, told) = oneshot::channel();
    // On a task of its own: the token may come before the answer to the POST.
    let watching = tokio::spawn(watch(stream, tell));
    let sent = Instant::now();
    client.send_message(session, text).await?;
    let accepted = Instant::now();
    let first = told.await.context("the session ended without a token")?;
    watching.await??;
    Ok(Turn { after_acceptance: signed(accepted, first), after_sending: signed(sent, first) })
}

/// Follows the session to its rest, and tells when the first token came.
pub(super) async fn watch(mut stream: Stream, tell: oneshot::Sender<Instant>) -> anyhow::Result<()> {
    let mut tell = Some(tell);
    while let Some(item) = stream.next().await? {
        match item {
            Item::Preview(Preview::EventDelta { .. }) => {
                if let Some(tell) = tell.take() {
                    // Nobody listens once the session has failed elsewhere.
                    let _ = tell.send(Instant::now());
                }
            }
            Item::Preview(Preview::EventStart { .. }) => {}
            Item::Event { position: _, event } => match event.body {
                Body::StatusIdle { .. } => return Ok(()),
                Body::Error { error } => bail!("the session failed: {}", error.message),
                Body::AgentToolResult { is_error: true, content, .. } => bail!("a call failed: {content:?}"),
                _ => {}
            },
        }
    }
    bail!("the stream ended before the session")
}

/// From one instant to another that may be earlier.
pub(super) fn signed(from: Instant, to: Instant) -> f64 {
    match to.checked_duration_since(from) {
        Some(later) => millis(later),
        None => -millis(from.duration_since(to)),
    }
}
