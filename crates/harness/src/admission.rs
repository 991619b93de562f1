//! Whether a model request may leave now: the provider's pace, then a permit.
//!
//! ```text
//!   ┌──▶ pace ──▶ permit ──▶ pace again ──▶ leaves, and keeps its permit until the answer has ended
//!   └────────────────────────────┘ used up meanwhile: gives the permit back
//! ```
//!
//! The wait for a permit is in line and may be long; the wait for a provider is bounded, after which the request has
//! failed like one that the provider refused. Nobody holds a permit while waiting for a provider: it would keep other
//! providers' requests from leaving. May be dropped at any time: by an interrupt, a shutdown, a lost lease.

use protocol::id::WorkspaceId;
use tokio::time::Instant;

use crate::model::{Failure, Provider};
use crate::permits::{Acquired, Permit, Permits};

/// A request that wants to leave.
pub(crate) struct Request<'a> {
    /// Whose it is.
    pub(crate) workspace: &'a WorkspaceId,
    /// The model, by the agent's name for it.
    pub(crate) model: &'a str,
    /// The provider that answers for it; `None` if none does, which its failure is to say.
    pub(crate) provider: Option<&'a Provider>,
    /// How many brain processes share the limits.
    pub(crate) brains: u32,
    /// From 0 to 1: spreads those who wait for the same moment.
    pub(crate) draw: f64,
}

/// A request that may leave at once.
pub(crate) struct Admitted {
    /// To be held until the answer has ended.
    pub(crate) permit: Permit,
    /// Whether it had to wait.
    pub(crate) has_waited: bool,
}

impl Request<'_> {
    /// Waits until it may leave. Calls `waits` before it waits for the first time.
    pub(crate) async fn admitted(
        &self,
        permits: &Permits,
        waits: impl AsyncFnOnce(),
    ) -> Result<Admitted, Failure> {
        let mut waits = Some(waits);
        let mut deadline = None;
        loop {
            while let Some(provider) = self.provider {
                let changed = provider.pace_changed();
                let Err(until) = provider.look(self.model, self.brains, self.draw) else { break };
                let now = Instant::now();
                if until > *deadline.get_or_insert_with(|| now + provider.pace_wait_max()) {
                    return Err(Failure::out_of_pace(until.saturating_duration_since(now)));
                }
                if let Some(waits) = waits.take() {
                    waits().await;
                }
                // Whichever comes first, the pace is asked again.
                let _ = tokio::time::timeout_at(until, changed).await;
            }
            let permit = match permits.acquire(self.workspace, self.brains) {
                Acquired::Now(permit) => permit,
                Acquired::Later(mut waiting) => {
                    if let Some(waits) = waits.take() {
                        waits().await;
                    }
                    let permit = waiting.permit().await;
                    deadline = None;
                    permit
                }
            };
            let leaves = self.provider.map(|provider| provider.leave(self.model, self.brains, self.draw));
            if let None | Some(Ok(())) = leaves {
                return Ok(Admitted { permit, has_waited: waits.is_none() });
            }
        }
    }
}
