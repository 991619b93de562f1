//! One caller's change to one session, on its way through an engine.
//!
//! ```text
//!   submitted ──▶ run on the head ──▶ written ──▶ answered
//!                   ▲                    │
//!                   └── not kept: the head was older than the database's
//! ```

use protocol::id::SessionId;
use protocol::time::Timestamp;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::hub::Hub;
use crate::rules::head::Head;

/// What a job is told besides the head.
pub(crate) struct Moment<'a> {
    pub(crate) now: Timestamp,
    pub(crate) hub: &'a Hub,
}

/// A change to one session.
pub(crate) trait Job: Send {
    /// Which session.
    fn session(&self) -> &SessionId;

    /// About how much it writes.
    fn size_bytes(&self) -> usize;

    /// Whether nobody waits for it any more: then it need not run.
    fn is_abandoned(&self) -> bool;

    /// Decides, and leaves in the head what is to be written. `None`: there is no such session; a job that makes one
    /// puts it there. May be called again with a fresher head if what it left was not kept.
    fn run(&mut self, head: &mut Option<Head>, moment: &Moment<'_>);

    /// To be called once the outcome is known.
    fn answer(self: Box<Self>, outcome: Result<(), Error>);
}

struct Typed<T, Decide> {
    session: SessionId,
    size_bytes: usize,
    decide: Decide,
    value: Option<T>,
    answer: oneshot::Sender<Result<T, Error>>,
}

/// A job that decides with this function, and where its answer comes.
pub(crate) fn job<T, Decide>(
    session: SessionId,
    size_bytes: usize,
    decide: Decide,
) -> (Box<dyn Job>, oneshot::Receiver<Result<T, Error>>)
where
    T: Send + 'static,
    Decide: FnMut(&mut Option<Head>, &Moment<'_>) -> T + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    (Box::new(Typed { session, size_bytes, decide, value: None, answer }), answered)
}

impl<T, Decide> Job for Typed<T, Decide>
where
    T: Send,
    Decide: FnMut(&mut Option<Head>, &Moment<'_>) -> T + Send,
{
    fn session(&self) -> &SessionId {
        &self.session
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    fn run(&mut self, head: &mut Option<Head>, moment: &Moment<'_>) {
        let value = if head.as_ref().is_some_and(Head::is_gone) {
            // Removed earlier in the same flush.
            (self.decide)(&mut None, moment)
        } else {
            (self.decide)(head, moment)
        };
        self.value = Some(value);
    }

    fn answer(self: Box<Self>, outcome: Result<(), Error>) {
        let Self { value, answer, .. } = *self;
        let outcome = outcome.and_then(|()| value.ok_or(Error::Closed));
        // Nobody waits any more.
        let _ = answer.send(outcome);
    }
}
