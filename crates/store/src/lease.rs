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

use std::sync::Arc;
use std::time::Duration;

use protocol::event::Event;
use protocol::id::{SessionId, WorkspaceId};
use protocol::position::Position;
pub use protocol::session::{Waiting, WaitsFor};
use session::{Draft, Record, State};
use tokio::time::Instant;

use crate::Store;
use crate::error::{AppendError, Error};
use crate::rules::append::{self, Prepared};
use crate::rules::leases;

/// How long a lease lasts without a renewal, by the store's clock. Long against a pause of the process, short
/// against the patience of whoever waits for a dead brain's session.
pub const LEASE: Duration = Duration::from_secs(10);

/// The right to drive one session. Give it back with [`Store::release`]; one that is dropped lapses by itself.
#[must_use = "a lease that is not released keeps its session from other brains until it lapses"]
#[derive(Debug)]
pub struct Lease {
    /// What every append and every call to a hand carries.
    pub token: Token,
    /// How many holders in a row died, without giving their lease back and without recording an answer or a result:
    /// a session that kills its brain tells itself by this.
    pub deaths: u32,
    /// When it was asked for: it may lapse [`LEASE`] after that.
    pub held_since: Instant,
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
    /// Waits until some session wants a brain, and claims up to `max` of those that want one, fairly between
    /// workspaces; within a workspace the one that has waited longest comes first.
    ///
    /// May be dropped while it waits: nothing is lost.
    pub async fn claim(&self, holder: &str, max: usize) -> Result<Vec<Lease>, Error> {
        self.0.engine.claim(holder, max).await
    }

    /// Claims this session, whether it wants a brain or not; `None` if somebody else holds it or it does not exist.
    pub async fn try_claim(&self, id: &SessionId, holder: &str) -> Result<Option<Lease>, Error> {
        self.0.engine.try_claim(id, holder).await
    }

    /// How many processes claim sessions of this database now, roughly; at least 1.
    pub fn live_brains(&self) -> u32 {
        self.0.engine.live_brains()
    }

    /// The session as it is now; `None` if it does not exist.
    pub async fn look(&self, id: &SessionId) -> Result<Option<View>, Error> {
        self.0.engine.look(id).await
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
        let session = token.session.clone();
        let token = token.clone();
        let drafts: Vec<Prepared> = drafts.into_iter().map(Prepared::new).collect();
        let size_bytes = drafts.iter().map(Prepared::size_bytes).sum();
        self.change(&session, size_bytes, move |head, moment| {
            append::append(head.as_mut(), &token, expected, &drafts, moment)
        })
        .await?
    }

    /// Makes the lease last its full length again.
    pub async fn renew(&self, token: &Token) -> Result<(), AppendError> {
        if self.0.engine.renew(token).await? { Ok(()) } else { Err(AppendError::Fenced) }
    }

    /// Notes what the holder waits for, so that clients can see it; the next append takes the note away.
    pub async fn set_waiting(&self, token: &Token, reason: Option<WaitsFor>) -> Result<(), AppendError> {
        let waiting = reason.map(|reason| Waiting { reason, since: self.now() });
        let session = token.session.clone();
        let token = token.clone();
        let set = self.change(&session, 0, move |head, _| {
            head.as_mut().is_some_and(|head| leases::set_waiting(head, &token, waiting))
        });
        if set.await? { Ok(()) } else { Err(AppendError::Fenced) }
    }

    /// Gives the lease back. If the session still wants a brain it can be claimed at once. A lease that has lapsed
    /// meanwhile is given back without effect.
    pub async fn release(&self, lease: Lease) -> Result<(), Error> {
        let session = lease.token.session.clone();
        self.change(&session, 0, move |head, _| {
            if let Some(head) = head {
                leases::release(head, &lease.token);
            }
        })
        .await
    }
}
