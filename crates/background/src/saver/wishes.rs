//! What clients want saved now: hearing of it, finding what was not heard of, and saying what cannot be done.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use protocol::event::Body;
use protocol::id::{SandboxId, SessionId};
use session::state::State;
use store::{Holding, Token};

use super::saves::Saves;
use super::{Saver, Then, age, see_ended};

/// Wishes that are known here at once; those beyond are found by a sweep.
pub(super) const ASKED_MAX: usize = 1_024;
/// A wish that no machine has seen to for so long is told to be one that none can: all of them look every minute.
const WISH_TIME_MAX: Duration = Duration::from_secs(600);

impl Saver {
    /// Looks once for wishes of clients, and gives those that can be seen to here. One that has waited for too long is told to
    /// have failed: nobody has that sandbox.
    pub async fn find_asked(&self) -> Vec<SessionId> {
        let (holdings, living) = match (self.store.holdings().await, self.living().await) {
            (Ok(holdings), Some(living)) => (holdings, living),
            // The next look comes.
            (Err(_), _) | (_, None) => return Vec::new(),
        };
        let now = self.store.now();
        let mut found = Vec::new();
        for Holding { session, sandbox, wanted_since, .. } in holdings {
            let Some(since) = wanted_since else { continue };
            if sandbox.is_some_and(|sandbox| living.contains(&sandbox)) {
                found.push(session);
            } else if age(now, since) > WISH_TIME_MAX {
                self.give_up(&session).await;
            }
        }
        found.truncate(ASKED_MAX);
        found
    }

    /// Saves for clients what is on this machine. What is left in `asked` was at work or held, and is worth another try.
    pub async fn save_asked(&self, asked: &mut HashSet<SessionId>) {
        let Some(due) = self.find_due(asked).await else { return };
        asked.retain(|session| due.contains_key(session));
        let mut saves = Saves::new(self, Then::GoOn);
        saves.set_due(due);
        while let Some(ended) = saves.next().await {
            see_ended(asked, ended);
        }
    }

    /// Which of these sessions have a sandbox on this machine that is still to be saved. The others are seen to, given up, or
    /// another machine's. `None` if that cannot be said now.
    pub(super) async fn find_due(&self, asked: &HashSet<SessionId>) -> Option<HashMap<SessionId, SandboxId>> {
        let living = self.living().await?;
        let mut due = HashMap::new();
        for session in asked {
            let view = self.store.look(session).await.ok()?;
            let state = view.map(|view| view.state).filter(State::wants_snapshot);
            let sandbox = state.and_then(|state| state.sandbox).filter(|sandbox| living.contains(sandbox));
            due.extend(sandbox.map(|sandbox| (session.clone(), sandbox)));
        }
        Some(due)
    }

    /// The sandboxes of this machine.
    async fn living(&self) -> Option<HashSet<SandboxId>> {
        let living = self.hands.list().await.ok()?;
        Some(living.iter().map(|info| SandboxId::from_text(info.id.as_str())).collect())
    }

    /// Records that no machine has the sandbox of which a client wants a snapshot.
    async fn give_up(&self, session: &SessionId) {
        let Ok(Some(lease)) = self.store.try_claim(session, &self.options.holder).await else { return };
        let reason = "no machine that is there has its sandbox".to_owned();
        self.record_unsaved(&lease.token, reason).await;
        if let Err(error) = self.store.release(lease).await {
            tracing::debug!(session.id = %session, %error, "a lease was not given back and lapses");
        }
    }

    /// Records that a client's wish came to nothing. What cannot be recorded now stays a wish.
    pub(super) async fn record_unsaved(&self, token: &Token, reason: String) {
        if let Ok(Some(view)) = self.store.look(&token.session).await
            && view.state.wants_snapshot()
            && !view.state.wants_brain()
        {
            let _ = self.append(token, &view.state, Body::SnapshotUnsaved { reason }).await;
        }
    }
}
