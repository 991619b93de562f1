//! Previews: pieces of an answer while it is made. In memory only; the one thing the store may lose.
//!
//! They overtake nothing: a follower shows one only after the event that it follows, and never after what closes it.

use std::sync::Arc;

use protocol::event::{Preview, PreviewKind};
use protocol::id::SessionId;
use protocol::position::Position;

use crate::engine::Engine;
use crate::hub::{Frame, Hub};

/// Passes previews on to whoever follows their session.
pub struct Previews {
    hub: Arc<Hub>,
    engine: Arc<dyn Engine>,
}

impl Previews {
    pub(crate) fn new(hub: Arc<Hub>, engine: Arc<dyn Engine>) -> Self {
        Self { hub, engine }
    }

    /// Shows a preview to those who follow the session. `after` is the log's head as the publisher knows it: nobody
    /// is shown the preview before that event. Costs next to nothing when nobody follows.
    pub fn publish(&self, session: &SessionId, after: Position, preview: Preview) {
        let (is_here, is_elsewhere) =
            (self.hub.is_watched(session), self.engine.is_watched_elsewhere(session));
        if !is_here && !is_elsewhere {
            return;
        }
        let json = serde_json::to_vec(&preview).expect("previews are made of strings and numbers").into();
        let (event, kind, is_start) = match preview {
            Preview::EventStart { event } => (event.id, event.kind, true),
            // Only messages have deltas.
            Preview::EventDelta { event_id, delta: _ } => (event_id, PreviewKind::Message, false),
        };
        let frame = Frame { after, kind, event, is_start, json };
        if is_elsewhere {
            self.engine.announce(session, &frame);
        }
        self.hub.publish(session, frame);
    }
}
