//! The reaper: destroys sandboxes that no session owns, and removes deliverables of sessions that are no more.
//!
//! A sandbox loses its owner when its session is archived, deleted or dies, and when a brain dies between making a
//! sandbox and recording it. The reaper compares what is there with what the store says is owned, so nothing it missed
//! stays missed. It may be stopped, and die, anywhere: what it was about to take away is still there for the next look.
//!
//! What was never on record may be about to be, and has some grace. What was on record and is not any more goes at the
//! first look: the store tells when a session is archived or deleted, and what the look before saw is remembered. Where
//! both are missed, the sandbox has the grace of any other.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::id::{SandboxId, SessionId};
use sandbox::{Provider, SandboxInfo};
use store::Store;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::words;

/// How often it looks for sandboxes unless told otherwise: each one holds memory.
const EVERY: Duration = Duration::from_secs(30);
/// How often it looks for deliverables, which hold no more than disk; the look costs a question for every folder.
const OUTPUTS_EVERY: Duration = Duration::from_secs(600);
/// A sandbox that was asked for less than two looks ago, or for anything else, may be one that its brain has not recorded
/// yet: a brain that makes one ahead of the first call asks for it again and again.
const GRACE_LOOKS: u32 = 2;
/// Sandboxes that are known to have ended with their sessions, those of other machines included. Those beyond have grace.
const ENDED_MAX: usize = 10_000;

/// The reaper of one machine's sandboxes.
pub struct Reaper {
    store: Store,
    hands: Arc<dyn Provider>,
    outputs_dir: Option<PathBuf>,
    every: Duration,
    known: Mutex<Known>,
}

/// What this process has seen and heard of sandboxes.
#[derive(Default)]
struct Known {
    /// Those that a session had at the last look, and that lived.
    owned: HashSet<SandboxId>,
    /// Those that a session had, and has no more.
    ended: HashSet<SandboxId>,
}

impl Known {
    /// Takes in what a look has seen.
    fn see(&mut self, living: &HashSet<SandboxId>, owned: &HashSet<SandboxId>) {
        let before = std::mem::take(&mut self.owned);
        self.ended.extend(before.into_iter().filter(|id| !owned.contains(id)));
        self.ended.retain(|id| living.contains(id));
        self.owned = living.intersection(owned).cloned().collect();
    }
}

impl Reaper {
    /// A reaper of these hands, by the word of this store.
    pub fn new(store: Store, hands: Arc<dyn Provider>) -> Self {
        Self { store, hands, outputs_dir: None, every: EVERY, known: Mutex::default() }
    }

    /// Also of the folders of deliverables in `outputs_dir`, each named after its session.
    #[must_use]
    pub fn and_outputs(self, outputs_dir: PathBuf) -> Self {
        Self { outputs_dir: Some(outputs_dir), ..self }
    }

    /// Looking for sandboxes as often as this, instead of every 30 seconds. What was on record of no session and is younger
    /// than two such looks is left alone.
    #[must_use]
    pub fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// Reaps until `shutdown`, which waits for nobody: neither for the supervisor nor for a slow disk.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.reap_for_ever()).await;
    }

    async fn reap_for_ever(&self) {
        let (mut sandboxes, mut outputs) = (every(self.every), every(OUTPUTS_EVERY));
        let mut words = self.store.words();
        loop {
            tokio::select! {
                sandbox = words::next(&mut words, Store::sandbox_over) => self.hear_ended(sandbox),
                _ = sandboxes.tick() => self.reap(self.every * GRACE_LOOKS).await,
                _ = outputs.tick() => self.reap_outputs().await,
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session is over that had this sandbox.
    fn hear_ended(&self, sandbox: SandboxId) {
        let mut known = self.known();
        if known.ended.len() < ENDED_MAX {
            known.ended.insert(sandbox);
        }
    }

    /// Looks once, and destroys what has lost its session, and what nobody owns and nobody has used for `grace`.
    pub async fn reap(&self, grace: Duration) {
        if let Err(error) = self.hands.tidy().await {
            tracing::debug!(%error, "what is left of installs could not be cleared away");
        }
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
        let ids = living.iter().map(|info| SandboxId::from_text(info.id.as_str())).collect();
        let ended = {
            let mut known = self.known();
            known.see(&ids, &owned);
            known.ended.clone()
        };
        for SandboxInfo { id, age, idle, .. } in living {
            let of_the_store = SandboxId::from_text(id.as_str());
            let is_due = ended.contains(&of_the_store) || age.min(idle) >= grace;
            if owned.contains(&of_the_store) || !is_due {
                continue;
            }
            match self.hands.destroy(&id).await {
                Ok(()) => tracing::info!(sandbox.id = %id, "destroyed a sandbox that no session owns"),
                Err(error) => tracing::warn!(sandbox.id = %id, %error, "a sandbox could not be destroyed"),
            }
        }
    }

    /// Looks once, and removes the deliverables of sessions that the store does not know. Those of an archived session
    /// stay, like its history.
    pub async fn reap_outputs(&self) {
        let Some(outputs_dir) = self.outputs_dir.clone() else { return };
        // First the folders, then who is known: a session is on record before it has a folder.
        let sessions = match on_disk(move || sessions_in(&outputs_dir)).await {
            Ok(sessions) => sessions,
            Err(error) => {
                tracing::warn!(%error, "the deliverables could not be listed");
                return;
            }
        };
        for (session, folder) in sessions {
            match self.store.look(&session).await {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the owners of deliverables could not be read");
                    return;
                }
            }
            match on_disk(move || std::fs::remove_dir_all(folder)).await {
                Ok(()) => tracing::info!(session.id = %session, "removed what a deleted session delivered"),
                Err(error) => {
                    tracing::warn!(session.id = %session, %error, "deliverables could not be removed")
                }
            }
        }
    }
}

/// The folders that are named as sessions are. What else lies there is not ours.
fn sessions_in(outputs_dir: &Path) -> io::Result<Vec<(SessionId, PathBuf)>> {
    let entries = match std::fs::read_dir(outputs_dir) {
        Ok(entries) => entries,
        // Nothing was delivered yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut sessions = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A link is no folder of ours, wherever it leads.
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if let Ok(name) = entry.file_name().into_string()
            && name.starts_with(SessionId::PREFIX)
        {
            sessions.push((SessionId::from_text(name), entry.path()));
        }
    }
    Ok(sessions)
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
