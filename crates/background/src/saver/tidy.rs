//! What is kept no longer: snapshots that are too old or too much, blobs that no session owns, files that were given up.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use protocol::event::{Body, Snapshot};
use protocol::id::SessionId;
use store::Holding;
use tokio::time::Instant;

use super::{SNAPSHOTS, Saver, age};

impl Saver {
    /// Looks once: drops what is too old or too much, and removes what has been nobody's for `grace`.
    pub async fn tidy(&self, grace: Duration) {
        // First the blobs, then who owns them: one that is put and recorded in between is not on the first list.
        let micros = u64::try_from(self.store.now().as_micros()).unwrap_or_default();
        let now = std::time::UNIX_EPOCH + Duration::from_micros(micros);
        let listed = self.blobs.list(SNAPSHOTS, now).await;
        let holdings = match self.store.holdings().await {
            Ok(holdings) => holdings,
            Err(error) => {
                tracing::warn!(%error, "the owners of snapshots could not be read");
                return;
            }
        };
        self.drop_old(&holdings).await;
        match listed {
            Ok(listed) => self.remove_orphans(listed, &holdings, grace).await,
            Err(error) => {
                tracing::warn!(error = blobs::with_causes(&error), "the snapshots could not be listed")
            }
        }
        let scratch = self.options.scratch.clone();
        let cleared = tokio::task::spawn_blocking(move || clear_scratch(&scratch, grace)).await;
        if let Ok(Err(error)) = cleared {
            tracing::warn!(%error, "half-written snapshots could not be removed");
        }
    }

    async fn drop_old(&self, holdings: &[Holding]) {
        let now = self.store.now();
        let mut kept: Vec<(&SessionId, &Snapshot)> = Vec::new();
        for Holding { session, snapshot, .. } in holdings {
            let Some(snapshot) = snapshot else { continue };
            if age(now, snapshot.begun_at) > self.options.keep {
                let days = self.options.keep.as_secs() / 86_400;
                let reason = match days {
                    0 => "its time was over".to_owned(),
                    days => format!("a workspace is kept for {days} days"),
                };
                self.drop_snapshot(session, snapshot, reason).await;
            } else {
                kept.push((session, snapshot));
            }
        }
        kept.sort_by_key(|(_, snapshot)| std::cmp::Reverse(snapshot.saved_at));
        // Sessions may share one, which then counts once.
        let (mut total, mut counted) = (0_u64, HashSet::new());
        for (session, snapshot) in kept {
            if counted.contains(&snapshot.key) {
                continue;
            }
            if total.saturating_add(snapshot.size_bytes) > self.options.total_bytes_max {
                let reason = "there was no room for all saved workspaces, and it was the oldest".to_owned();
                self.drop_snapshot(session, snapshot, reason).await;
                continue;
            }
            total += snapshot.size_bytes;
            counted.insert(snapshot.key.clone());
        }
    }

    /// Records that a snapshot is no more. Its blob then has one owner less.
    async fn drop_snapshot(&self, session: &SessionId, snapshot: &Snapshot, reason: String) {
        let lease = match self.store.try_claim(session, &self.options.holder).await {
            Ok(Some(lease)) => lease,
            // At work, or away: the next look comes.
            Ok(None) | Err(_) => return,
        };
        if let Ok(Some(view)) = self.store.look(session).await
            && view.state.snapshot.as_ref().is_some_and(|found| found.key == snapshot.key)
            && !view.state.wants_brain()
        {
            let body = Body::SnapshotLost { key: snapshot.key.clone(), reason: reason.clone(), told: false };
            if self.append(&lease.token, &view.state, body).await.is_ok() {
                tracing::warn!(
                    session.id = %session, snapshot.bytes = snapshot.size_bytes, reason,
                    "dropped a saved workspace"
                );
            }
        }
        if let Err(error) = self.store.release(lease).await {
            tracing::debug!(session.id = %session, %error, "a lease was not given back and lapses");
        }
    }

    async fn remove_orphans(&self, listed: Vec<blobs::Listed>, holdings: &[Holding], grace: Duration) {
        let owned: HashSet<&str> = holdings
            .iter()
            .filter_map(|holding| holding.snapshot.as_ref())
            .map(|snapshot| snapshot.key.as_str())
            .collect();
        let (now, mut due) = (Instant::now(), Vec::new());
        {
            let mut orphans = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
            let orphaned: Vec<_> =
                listed.into_iter().filter(|blob| !owned.contains(blob.key.as_str())).collect();
            let keys: HashSet<&str> = orphaned.iter().map(|blob| blob.key.as_str()).collect();
            orphans.retain(|key, _| keys.contains(key.as_str()));
            for blob in &orphaned {
                // A session may be about to be made with it: it must have been nobody's for a while, not only be old.
                let since = *orphans.entry(blob.key.clone()).or_insert(now);
                if blob.age >= grace && now.duration_since(since) >= grace {
                    due.push(blob.key.clone());
                }
            }
        }
        for key in due {
            match self.blobs.delete(&key).await {
                Ok(()) => tracing::info!(snapshot.key = key, "removed a snapshot that no session owns"),
                Err(error) => {
                    tracing::warn!(
                        snapshot.key = key,
                        error = blobs::with_causes(&error),
                        "a snapshot could not be removed"
                    )
                }
            }
        }
    }
}

/// Removes what has lain there for longer than saving takes.
fn clear_scratch(folder: &Path, grace: Duration) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let is_old = metadata.modified()?.elapsed().is_ok_and(|age| age >= grace);
        if metadata.is_file() && is_old {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
