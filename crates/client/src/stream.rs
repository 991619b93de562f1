//! A followed session: bytes in, events and previews out.

use protocol::error::ErrorBody;
use protocol::event::{Event, Preview};
use protocol::position::Position;
use protocol::sse::{Frame, Parser};
use reqwest::Response;

use crate::error::Error;

/// Something that a stream shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An event. It has a position if it is in the log; the copy of what is only queued has none.
    Event {
        /// Its place in the log.
        position: Option<Position>,
        /// The event.
        event: Event,
    },
    /// A piece of an answer that is being made.
    Preview(Preview),
}

/// A followed session. Dropping it ends the connection.
#[derive(Debug)]
pub struct Stream {
    answer: Response,
    parser: Parser,
    position: Option<Position>,
}

impl Stream {
    pub(crate) fn new(answer: Response) -> Self {
        Self { answer, parser: Parser::new(), position: None }
    }

    /// What comes next; `None` when the server ended the stream. May be dropped while it waits and called again.
    pub async fn next(&mut self) -> Result<Option<Item>, Error> {
        loop {
            while let Some(frame) = self.parser.next_frame()? {
                if let Some(item) = self.read(&frame)? {
                    return Ok(Some(item));
                }
            }
            match self.answer.chunk().await? {
                Some(chunk) => self.parser.push(&chunk),
                None => return Ok(None),
            }
        }
    }

    /// The position of the last event of the log that was shown: where a new stream goes on.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    fn read(&mut self, frame: &Frame) -> Result<Option<Item>, Error> {
        match frame.event.as_deref() {
            None | Some("ping") => Ok(None),
            Some("error") => {
                let body: ErrorBody = serde_json::from_str(&frame.data)?;
                let status = self.answer.status().as_u16();
                Err(Error::Refused { status, body: Box::new(body) })
            }
            Some("event_start" | "event_delta") => {
                Ok(Some(Item::Preview(serde_json::from_str(&frame.data)?)))
            }
            Some(_) => {
                let event = serde_json::from_str(&frame.data)?;
                let position = frame.id.as_ref().and_then(|id| id.parse().ok()).map(Position);
                self.position = position.or(self.position);
                Ok(Some(Item::Event { position, event }))
            }
        }
    }
}
