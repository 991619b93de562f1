//! Saves that go on at the same time, a few of them: one that is slow holds up nobody else's.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use protocol::id::{SandboxId, SessionId};

use super::{Saver, Then};

/// At once, of those that are idle and of those that clients want, each: enough that one with gigabytes holds up nobody, and
/// no more than a disk and a line can bear.
const AT_ONCE_MAX: usize = 4;

/// A sandbox, and whose it is.
pub(super) type Due = (SessionId, SandboxId);

/// The end of one: whose, and whether it is done with. If not, it is worth another try soon.
pub(super) type Ended = (SessionId, bool);

pub(super) struct Saves<'a> {
    saver: &'a Saver,
    then: Then,
    due: VecDeque<Due>,
    /// Whose saves go on.
    going: HashSet<SessionId>,
    running: FuturesUnordered<BoxFuture<'a, Ended>>,
}

impl<'a> Saves<'a> {
    pub(super) fn new(saver: &'a Saver, then: Then) -> Self {
        let (due, going, running) = Default::default();
        Self { saver, then, due, going, running }
    }

    /// Says what is to be saved, in place of what was said before and has not begun.
    pub(super) fn set_due(&mut self, due: impl IntoIterator<Item = Due>) {
        self.due = due.into_iter().collect();
    }

    /// The next that ends; `None` if there is nothing to save. May be dropped at any time.
    pub(super) async fn next(&mut self) -> Option<Ended> {
        self.fill();
        let ended = self.running.next().await?;
        self.going.remove(&ended.0);
        Some(ended)
    }

    /// Awaits `work` while the saves go on. What has ended meanwhile goes to `ended`.
    pub(super) async fn meanwhile<T>(
        &mut self,
        work: impl Future<Output = T>,
        mut ended: impl FnMut(Ended),
    ) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(save) = self.next() => ended(save),
            }
        }
    }

    fn fill(&mut self) {
        while self.running.len() < AT_ONCE_MAX
            && let Some((session, sandbox)) = self.due.pop_front()
        {
            if self.going.insert(session.clone()) {
                let (saver, then) = (self.saver, self.then);
                self.running.push(Box::pin(async move {
                    let is_done = saver.save_under_lease(&session, &sandbox, then).await;
                    (session, is_done)
                }));
            }
        }
    }
}
