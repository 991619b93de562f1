//! The queue of sessions that want a brain. In memory only: it can be made again from the database at any time.
//!
//! Fed on commit, emptied by claims. First come, first served; a session is in it at most once. What does not fit is
//! not lost: the queue remembers that there is more in the database.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::id::SessionId;
use tokio::sync::Notify;

use crate::lease::Token;

/// Sessions kept in the queue: some tens of bytes each.
pub(crate) const READY_MAX: usize = 65_536;

pub(crate) struct Ready {
    queue: Mutex<Queue>,
    wake: Notify,
    /// When somebody last looked for leases that have lapsed.
    looked: Mutex<Instant>,
}

impl Default for Ready {
    fn default() -> Self {
        Self { queue: Mutex::default(), wake: Notify::default(), looked: Mutex::new(Instant::now()) }
    }
}

#[derive(Default)]
struct Queue {
    ids: VecDeque<SessionId>,
    /// The same ids.
    known: HashSet<SessionId>,
    /// There may be more in the database.
    has_more: bool,
    /// Leases whose takers were gone when they came. At most as many as there were claims at once.
    orphans: Vec<Token>,
    is_closed: bool,
}

impl Ready {
    pub(crate) fn push(&self, ids: &[SessionId]) {
        let mut queue = self.lock();
        for id in ids {
            if queue.ids.len() == READY_MAX {
                queue.has_more = true;
                break;
            }
            if queue.known.insert(id.clone()) {
                queue.ids.push_back(id.clone());
            }
        }
        drop(queue);
        if !ids.is_empty() {
            self.wake.notify_one();
        }
    }

    pub(crate) fn pop(&self) -> Option<SessionId> {
        let mut queue = self.lock();
        let id = queue.ids.pop_front()?;
        queue.known.remove(&id);
        Some(id)
    }

    /// There may be sessions in the database that are not in the queue.
    pub(crate) fn look_again(&self) {
        self.lock().has_more = true;
        self.wake.notify_one();
    }

    /// Whether the database is to be asked; forgets it.
    pub(crate) fn take_has_more(&self) -> bool {
        std::mem::take(&mut self.lock().has_more)
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
        !queue.ids.is_empty() || queue.has_more || !queue.orphans.is_empty()
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
