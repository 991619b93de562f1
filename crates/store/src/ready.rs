//! The queue of sessions that want a brain, with its wake-ups. In memory only: it can be made again from the
//! database at any time.
//!
//! Fed on commit, emptied by claims; which session is next and what may run at once is for [`FairQueue`]. A session is
//! in it at most once.
//!
//! # What the store must tell it
//!
//! - [`Ready::push`], after the commit: sessions that want a brain and that nobody holds. This also says that they do
//!   not run any more (released, or their lease has lapsed).
//! - [`Ready::pop`], in the writer's transaction: the session counts as running at once, so that claims of the same
//!   flush see one another. Found to be deleted or satisfied: [`Ready::ended`]. Found to be held: nothing.
//! - [`Ready::began`]: a claim that did not come from the queue.
//! - [`Ready::ended`]: a release, or the deletion of a session; in the transaction or after it. A session whose lease
//!   has lapsed and that wants a brain is pushed; one that wants none is only found by the next.
//! - [`Ready::set_running`], after a transaction that was rolled back and with each look for lapsed leases: all
//!   sessions that are held. Then no mistake lasts.
//! - [`Ready::begin_refill`] and [`Ready::refill`], when [`Ready::pop`] gives nothing.
//! - [`Ready::is_full`], before a session that does not wait yet begins to. What one flush adds is not seen by the
//!   others of that flush.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::id::{SessionId, WorkspaceId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::fair::FairQueue;
use crate::lease::Token;
use crate::limits::Limits;

pub(crate) struct Ready {
    queue: Mutex<Queue>,
    wake: Notify,
    /// When somebody last looked for leases that have lapsed.
    looked: Mutex<Instant>,
}

struct Queue {
    sessions: FairQueue,
    /// Leases whose takers were gone when they came. At most as many as there were claims at once.
    orphans: Vec<Token>,
    is_closed: bool,
}

impl Ready {
    pub(crate) fn new(limits: Limits) -> Self {
        let queue = Queue { sessions: FairQueue::new(limits), orphans: Vec::new(), is_closed: false };
        Self { queue: Mutex::new(queue), wake: Notify::new(), looked: Mutex::new(Instant::now()) }
    }

    /// These want a brain, and nobody holds them.
    pub(crate) fn push(&self, sessions: &[(SessionId, WorkspaceId)]) {
        let mut queue = self.lock();
        for (session, workspace) in sessions {
            queue.sessions.push(session, workspace);
        }
        drop(queue);
        if !sessions.is_empty() {
            self.wake.notify_one();
        }
    }

    /// The next session that may run. It counts as running from now on.
    pub(crate) fn pop(&self) -> Option<SessionId> {
        self.lock().sessions.pop()
    }

    /// Somebody holds this session.
    pub(crate) fn began(&self, session: &SessionId, workspace: &WorkspaceId) {
        self.lock().sessions.began(session, workspace);
    }

    /// Nobody holds this session any more: another may run in its place.
    pub(crate) fn ended(&self, session: &SessionId) {
        self.lock().sessions.ended(session);
        self.pass_on();
    }

    /// These and no others are held.
    pub(crate) fn set_running(&self, held: Vec<(SessionId, WorkspaceId)>) {
        self.lock().sessions.set_running(held);
        self.pass_on();
    }

    /// Whether no further session of this workspace may begin to wait.
    pub(crate) fn is_full(&self, workspace: &WorkspaceId) -> bool {
        self.lock().sessions.is_full(workspace)
    }

    /// There may be sessions in the database that are not in the queue.
    pub(crate) fn look_again(&self) {
        self.lock().sessions.look_again();
        self.wake.notify_one();
    }

    /// Whether sessions that are only in the database could run; if so, [`Ready::refill`] is to follow.
    pub(crate) fn begin_refill(&self) -> bool {
        let mut queue = self.lock();
        let is_short = queue.sessions.is_short();
        if is_short {
            queue.sessions.begin_refill();
        }
        is_short
    }

    /// Takes in what the database holds: see [`FairQueue::refill`].
    pub(crate) fn refill(&self, sessions: &[(SessionId, WorkspaceId)]) {
        self.lock().sessions.refill(sessions);
        self.pass_on();
    }

    /// Nobody has this lease: the next claim gives it back first.
    pub(crate) fn push_orphan(&self, token: Token) {
        self.lock().orphans.push(token);
        self.wake.notify_one();
    }

    pub(crate) fn take_orphans(&self) -> Vec<Token> {
        std::mem::take(&mut self.lock().orphans)
    }

    /// Whether a claim is worth trying.
    pub(crate) fn is_worth_a_claim(&self) -> bool {
        let queue = self.lock();
        queue.sessions.can_pop() || queue.sessions.is_short() || !queue.orphans.is_empty()
    }

    /// Whether it is time again to look for leases that have lapsed. True for one caller in each span.
    pub(crate) fn is_look_due(&self, every: Duration) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = looked.elapsed() >= every;
        if is_due {
            *looked = Instant::now();
        }
        is_due
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.wake.notify_waiters();
        self.wake.notify_one();
    }

    /// Wakes one more claim: each that succeeds does so while there is more, so a single wake-up serves many.
    pub(crate) fn pass_on(&self) {
        if self.is_worth_a_claim() || self.is_closed() {
            self.wake.notify_one();
        }
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Consistent after every statement that could panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
