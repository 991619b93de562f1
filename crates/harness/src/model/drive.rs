//! Drives one request from the first byte sent to the last piece of the answer, for any wire over HTTP.
//!
//! ```text
//! Unsent ──post──> Reading ──frame──> Reading … ──last frame──> Finishing ──drain──> Over
//!    └──────────────── failure ─────────┴──────────────────────────────────────────> Over
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream;
use protocol::event::ModelUsage;
use protocol::sse::Frame;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::answer::{Answer, Asking, Delta};
use super::failure::Failure;
use super::http::{Endpoint, Frames};

/// Understands the frames of one wire. Pure: frames in, deltas out.
pub(super) trait Reader: Send + 'static {
    /// Reads a frame. Gives the answer when it is complete; nothing is read after that.
    fn read(&mut self, frame: &Frame, deltas: &mut VecDeque<Delta>) -> Result<Option<Answer>, Trouble>;

    /// The stream ended without its closing frame. Gives the answer if it is complete all the same.
    fn end(&mut self, deltas: &mut VecDeque<Delta>) -> Option<Answer>;

    /// What the provider said so far that it cost.
    fn usage(&self) -> ModelUsage;
}

/// Why a frame ends the request.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is not what the wire format says.
    Malformed(String),
    /// It reports an error.
    Reported(Value),
}

/// An answer of this model from this endpoint to this body.
pub(super) fn drive(
    endpoint: Arc<Endpoint>,
    model: &str,
    body: Vec<u8>,
    headers: HeaderMap,
    reader: impl Reader,
) -> Asking {
    let unsent = Unsent { model: model.to_owned(), body, headers };
    let driver = Driver { endpoint, reader, deltas: VecDeque::new(), phase: Phase::Unsent(unsent) };
    Asking::new(stream::unfold(driver, |mut driver| async move {
        driver.next().await.map(|delta| (delta, driver))
    }))
}

struct Driver<R> {
    endpoint: Arc<Endpoint>,
    reader: R,
    /// Read and not yet given out: what one frame meant.
    deltas: VecDeque<Delta>,
    phase: Phase,
}

enum Phase {
    Unsent(Unsent),
    Reading(Frames),
    Finishing(Option<Frames>, Answer),
    Over,
}

struct Unsent {
    model: String,
    body: Vec<u8>,
    headers: HeaderMap,
}

impl<R: Reader> Driver<R> {
    async fn next(&mut self) -> Option<Result<Delta, Failure>> {
        loop {
            if let Some(delta) = self.deltas.pop_front() {
                return Some(Ok(delta));
            }
            match self.advance().await {
                Ok(Some(answer)) => return Some(Ok(Delta::Done(answer))),
                Ok(None) if matches!(self.phase, Phase::Over) => return None,
                Ok(None) => {}
                Err(failure) => {
                    // Drops the response, and with it the request.
                    self.phase = Phase::Over;
                    return Some(Err(failure.with_usage(self.reader.usage())));
                }
            }
        }
    }

    /// Does the next thing; gives the answer as the last one. On failure the phase is `Over` already.
    async fn advance(&mut self) -> Result<Option<Answer>, Failure> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Unsent(Unsent { model, body, headers }) => {
                self.phase = Phase::Reading(self.endpoint.post(&model, body, headers).await?);
                Ok(None)
            }
            Phase::Reading(mut frames) => {
                self.phase = match frames.next().await? {
                    Some(frame) => match self.reader.read(&frame, &mut self.deltas) {
                        Ok(None) => Phase::Reading(frames),
                        Ok(Some(answer)) => Phase::Finishing(Some(frames), answer),
                        Err(Trouble::Malformed(detail)) => return Err(self.endpoint.malformed(&detail)),
                        Err(Trouble::Reported(error)) => return Err(self.endpoint.reported(&error)),
                    },
                    None => match self.reader.end(&mut self.deltas) {
                        Some(answer) => Phase::Finishing(None, answer),
                        None => return Err(Failure::disconnected()),
                    },
                };
                Ok(None)
            }
            Phase::Finishing(frames, answer) => {
                if let Some(frames) = frames {
                    frames.drain().await;
                }
                Ok(Some(answer))
            }
            Phase::Over => Ok(None),
        }
    }
}
