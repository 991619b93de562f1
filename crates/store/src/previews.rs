//! Previews: pieces of an answer while it is made. In memory only; the one thing the store may lose.

use protocol::event::Preview;
use protocol::id::SessionId;
use protocol::position::Position;

/// Passes previews on to whoever follows their session.
#[derive(Debug)]
pub struct Previews {}

impl Previews {
    /// Shows a preview to those who follow the session. `after` is the log's head as the publisher knows it: nobody
    /// is shown the preview before that event. Costs next to nothing when nobody follows.
    pub fn publish(&self, session: &SessionId, after: Position, preview: Preview) {
        let _ = (session, after, preview);
    }
}
