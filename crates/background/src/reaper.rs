//! The reaper: destroys sandboxes that no session owns.
//!
//! A sandbox loses its owner when its session is archived, deleted or dies, and when a brain dies between making a
//! sandbox and recording it. The reaper compares what lives with what the store says is owned; it keeps no list of
//! its own, so nothing it missed stays missed.

use std::sync::Arc;
use std::time::Duration;

use protocol::id::SandboxId;
use sandbox::{Provider, SandboxInfo};
use store::Store;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(30);
/// A sandbox younger than this may be one that its brain has not recorded yet.
const GRACE: Duration = Duration::from_secs(60);

/// The reaper of one machine's sandboxes.
pub struct Reaper {
    store: Store,
    hands: Arc<dyn Provider>,
}

impl Reaper {
    /// A reaper of these hands, by the word of this store.
    pub fn new(store: Store, hands: Arc<dyn Provider>) -> Self {
        Self { store, hands }
    }

    /// Reaps until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.reap(GRACE).await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Looks once, and destroys what nobody owns and what is at least as old as `grace`.
    pub async fn reap(&self, grace: Duration) {
        // First what lives, then what is owned: a sandbox that is made and recorded in between is not on the first
        // list, and one on the first list was recorded before the second was read, or is young.
        let living = match self.hands.list().await {
            Ok(living) => living,
            Err(error) => {
                tracing::debug!(%error, "the sandboxes could not be listed");
                return;
            }
        };
        let owned = match self.store.sandboxes_in_use().await {
            Ok(owned) => owned,
            Err(error) => {
                tracing::warn!(%error, "the owners of sandboxes could not be read");
                return;
            }
        };
        for SandboxInfo { id, age, .. } in living {
            if age < grace || owned.contains(&SandboxId::from_text(id.as_str())) {
                continue;
            }
            match self.hands.destroy(&id).await {
                Ok(()) => tracing::info!(sandbox.id = %id, "destroyed a sandbox that no session owns"),
                Err(error) => tracing::warn!(sandbox.id = %id, %error, "a sandbox could not be destroyed"),
            }
        }
    }
}
