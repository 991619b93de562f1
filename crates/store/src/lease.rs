//! The brain's side: claim a session, look at it, append to it, let go.
//!
//! ```text
//!   ready ── claim ──▶ leased ── release, or the lease lapses ──▶ ready again, if a brain is still wanted
//!                       │  ▲
//!                       └──┘ append, renew
//! ```
//!
//! A lease carries an epoch, which grows with each claim of the session and is durable. Every append names it, and
//! the writer refuses what does not carry the newest: two brains never drive one session, whatever they believe.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use protocol::event::Event;
use protocol::id::{SessionId, WorkspaceId};
use protocol::position::Position;
use session::{Draft, Record, State};

use crate::Store;
use crate::error::{AppendError, Error};
use crate::ready::Ready;
use crate::sqlite::appends::{self, Prepared, Refused};
use crate::sqlite::writer::Flush;
use crate::sqlite::{claims, listing};

/// How long a lease lasts without a renewal, by the store's clock. Long against a pause of the process, short
/// against the patience of whoever waits for a dead brain's session.
pub const LEASE: Duration = Duration::from_secs(30);

/// Lapsed leases that are looked for at once; the next look finds the rest.
const LAPSED_MAX: usize = 1_024;

/// The right to drive one session. Give it back with [`Store::release`]; one that is dropped lapses by itself.
#[must_use = "a lease that is not released keeps its session from other brains until it lapses"]
#[derive(Debug)]
pub struct Lease {
    /// What every append and every call to a hand carries.
    pub token: Token,
}

/// Names a lease. A stale one is refused by the store and by the hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The session.
    pub session: SessionId,
    /// Grows with each claim of the session.
    pub epoch: u64,
}

/// A session at one moment: its log's meaning and what waits in its inbox.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Its own facts.
    pub record: Arc<Record>,
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// What its log says.
    pub state: State,
    /// What clients sent and no brain has taken up, oldest first.
    pub inbox: Vec<Event>,
}

impl Store {
    /// Waits until some session wants a brain, and claims the one that has waited longest.
    ///
    /// May be dropped while it waits: nothing is lost.
    pub async fn claim(&self, holder: &str) -> Result<Lease, Error> {
        let ready = &self.0.ready;
        loop {
            // Look, then sleep: a wake-up between the two is kept by the queue.
            if ready.is_closed() {
                ready.pass_on();
                return Err(Error::Closed);
            }
            // However busy the queue is: what has lapsed is in no queue.
            if ready.is_look_due(self.0.options.lapsed_poll) {
                self.look_for_lapsed().await?;
            }
            if ready.is_worth_a_claim() {
                let holder = holder.to_owned();
                let queue = ready.clone();
                let claim = move |flush: &mut Flush<'_>| claims::claim_ready(flush, &holder);
                let claimed = |token: Option<Token>| token.map(|token| Claimed::new(token, queue));
                if let Some(claimed) = self.0.writer.run_then(0, claim, claimed).await? {
                    ready.pass_on();
                    return Ok(claimed.into_lease());
                }
                continue;
            }
            let poll = jittered(self.0.options.lapsed_poll);
            // A wake-up or the time: either way there may be something to see.
            let _ = tokio::time::timeout(poll, ready.woken()).await;
        }
    }

    /// Nothing tells that a lease has lapsed; so now and then somebody looks.
    async fn look_for_lapsed(&self) -> Result<(), Error> {
        let now = self.now();
        let ids = self.0.readers.read(move |conn| claims::wanting(conn, now, LAPSED_MAX)).await?;
        self.0.ready.push(&ids);
        Ok(())
    }

    /// Claims this session, whether it wants a brain or not; `None` if somebody else holds it or it does not exist.
    pub async fn try_claim(&self, id: &SessionId, holder: &str) -> Result<Option<Lease>, Error> {
        let (id, holder, queue) = (id.clone(), holder.to_owned(), self.0.ready.clone());
        let claim = move |flush: &mut Flush<'_>| claims::claim(flush, &id, &holder);
        let claimed = |token: Option<Token>| token.map(|token| Claimed::new(token, queue));
        Ok(self.0.writer.run_then(0, claim, claimed).await?.map(Claimed::into_lease))
    }

    /// The session as it is now; `None` if it does not exist.
    pub async fn look(&self, id: &SessionId) -> Result<Option<View>, Error> {
        let id = id.clone();
        self.0.readers.read(move |conn| listing::look(conn, &id)).await
    }

    /// Appends to the session's log, all of the drafts or none, if its last event is at `expected`; gives the
    /// session as it is afterwards. Answered when durable. Renews the lease.
    ///
    /// Without drafts nothing is written, and the view is as good as a look.
    pub async fn append(
        &self,
        token: &Token,
        expected: Position,
        drafts: Vec<Draft>,
    ) -> Result<View, AppendError> {
        let token = token.clone();
        let drafts: Vec<Prepared> = drafts.into_iter().map(Prepared::new).collect();
        let size_bytes = drafts.iter().map(Prepared::size_bytes).sum();
        let job = move |flush: &mut Flush<'_>| appends::append(flush, &token, expected, drafts);
        match self.0.writer.run(size_bytes, job).await? {
            Ok(view) => Ok(view),
            Err(Refused::Moved(view)) => Err(AppendError::Moved(view)),
            Err(Refused::Fenced) => Err(AppendError::Fenced),
        }
    }

    /// Makes the lease last its full length again.
    pub async fn renew(&self, token: &Token) -> Result<(), AppendError> {
        let token = token.clone();
        let is_ours = self.0.writer.run(0, move |flush| claims::renew(flush, &token)).await?;
        if is_ours { Ok(()) } else { Err(AppendError::Fenced) }
    }

    /// Gives the lease back. If the session still wants a brain it can be claimed at once. A lease that has lapsed
    /// meanwhile is given back without effect.
    pub async fn release(&self, lease: Lease) -> Result<(), Error> {
        let Lease { token } = lease;
        self.0.writer.run(0, move |flush| claims::release(flush, &token)).await?;
        Ok(())
    }
}

/// A lease on its way from the writer to whoever asked for it. If they are gone meanwhile it goes back, so that the
/// session does not wait until it lapses.
struct Claimed {
    token: Option<Token>,
    ready: Arc<Ready>,
}

impl Claimed {
    fn new(token: Token, ready: Arc<Ready>) -> Self {
        Self { token: Some(token), ready }
    }

    fn into_lease(mut self) -> Lease {
        Lease { token: self.token.take().expect("taken once") }
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.ready.push_orphan(token);
        }
    }
}

/// Between three and five quarters of `period`, so that many processes do not look at the same moment.
fn jittered(period: Duration) -> Duration {
    // Every such state is seeded anew: enough randomness to spread a poll.
    let spread = RandomState::new().hash_one(()) % 512;
    period.mul_f64(0.75 + spread as f64 / 1024.0)
}
