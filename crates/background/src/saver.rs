//! The saver: puts away the sandboxes of sessions that rest, and keeps what they held.
//!
//! ```text
//! idle? ──▶ claim ──▶ look again ──▶ save ──▶ put the blob ──▶ record ──▶ destroy ──▶ release
//!                                     └── the client comes back: let go of it all, at once
//! ```
//!
//! Whatever dies between two of these steps, either the sandbox lives and is on record, or the record names a blob that is
//! there. What is left over (a local file, a blob that nobody recorded, a sandbox that nobody needs) is nobody's, and is
//! removed when that has been so for a while. It never makes a sandbox, and never saves one in which something runs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blobs::Blobs;
use protocol::event::{Body, Snapshot};
use protocol::id::{SandboxId, SessionId};
use protocol::session::Status;
use protocol::time::Timestamp;
use sandbox::{Provider, SandboxInfo, Saved};
use session::Draft;
use session::state::State;
use store::{AppendError, Holding, LEASE, Lease, Store, Token};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Below this path in the blob store lie all snapshots.
pub const SNAPSHOTS: &str = "snapshots";

/// The longest time between two looks for sandboxes to put away, and the shortest.
const EVERY_MAX: Duration = Duration::from_secs(30);
const EVERY_MIN: Duration = Duration::from_millis(500);
/// How often it looks for snapshots to drop and for blobs that nobody owns.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// How long a blob or a local file must have been nobody's: longer than anybody takes between making and recording it.
const GRACE: Duration = Duration::from_secs(1800);
/// A third of a lease leaves room for two misses.
const RENEW_EVERY: Duration = Duration::from_millis(3_300);
/// How long waking a sandbox up may hold up whoever waits for its session. It wakes up by itself at its next call.
const WAKE_TIME_MAX: Duration = Duration::from_secs(1);

/// What is kept, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaverOptions {
    /// A sandbox that nobody has used for this long is put away; `None`: none ever is.
    pub idle: Option<Duration>,
    /// A workspace is kept for this long from when it was begun, however often it is used.
    pub keep: Duration,
    /// A larger snapshot is not kept; its sandbox lives on.
    pub session_bytes_max: u64,
    /// When all snapshots together are larger, the oldest are dropped.
    pub total_bytes_max: u64,
    /// Where a snapshot lies on its way to the blob store. Nothing else lies there.
    pub scratch: PathBuf,
    /// Names this process in leases.
    pub holder: String,
}

/// The saver of one machine's sandboxes.
pub struct Saver {
    store: Store,
    hands: Arc<dyn Provider>,
    blobs: Blobs,
    options: SaverOptions,
    /// Since when a blob has been nobody's, as far as this process has seen.
    orphans: Mutex<HashMap<String, Instant>>,
}

/// Why a sandbox was not put away.
enum Unsaved {
    /// Its session is at work, or somebody else holds it.
    InUse,
    /// Said in the trace.
    Failed(String),
}

impl From<store::Error> for Unsaved {
    fn from(error: store::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Saver {
    /// A saver of these hands, by the word of this store, into these blobs.
    pub fn new(store: Store, hands: Arc<dyn Provider>, blobs: Blobs, options: SaverOptions) -> Self {
        Self { store, hands, blobs, options, orphans: Mutex::default() }
    }

    /// Saves until `shutdown`, which waits for nobody: what is left half done is undone by the next look.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.save_for_ever()).await;
    }

    async fn save_for_ever(&self) {
        let mut looks =
            interval(self.options.idle.map_or(EVERY_MAX, |idle| (idle / 4).clamp(EVERY_MIN, EVERY_MAX)));
        let mut tidies = interval(TIDY_EVERY);
        for ticks in [&mut looks, &mut tidies] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                _ = looks.tick() => self.put_away_idle().await,
                _ = tidies.tick() => self.tidy(GRACE).await,
            }
        }
    }

    /// Looks once, and puts away what has been idle for long enough.
    pub async fn put_away_idle(&self) {
        let Some(idle_min) = self.options.idle else { return };
        let living = match self.hands.list().await {
            Ok(living) => living,
            Err(error) => {
                tracing::debug!(%error, "the sandboxes could not be listed");
                return;
            }
        };
        let is_idle = |info: &SandboxInfo| info.idle >= idle_min && info.calls == 0;
        let idle: HashSet<SandboxId> = living
            .iter()
            .filter(|info| is_idle(info))
            .map(|info| SandboxId::from_text(info.id.as_str()))
            .collect();
        if idle.is_empty() {
            return;
        }
        let holdings = match self.store.holdings().await {
            Ok(holdings) => holdings,
            Err(error) => {
                tracing::warn!(%error, "the owners of sandboxes could not be read");
                return;
            }
        };
        for Holding { session, sandbox, .. } in holdings {
            if let Some(sandbox) = sandbox.filter(|sandbox| idle.contains(sandbox)) {
                self.put_away(&session, &sandbox).await;
            }
        }
    }

    async fn put_away(&self, session: &SessionId, sandbox: &SandboxId) {
        // Watched from before the first look, so that nothing falls between a look and a wait.
        let mut changed = self.store.changed(session);
        let lease = match self.store.try_claim(session, &self.options.holder).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(session.id = %session, %error, "a session could not be claimed");
                return;
            }
        };
        let file = self.options.scratch.join(format!("{sandbox}-{}", lease.token.epoch));
        let working = async {
            let saved = self.save(&lease.token, sandbox, &file).await?;
            Ok::<_, Unsaved>(saved)
        };
        let outcome = tokio::select! {
            // The client first: nobody waits for a snapshot.
            biased;
            () = self.comes_back(session, &mut changed) => Err(Unsaved::InUse),
            () = self.loses(&lease) => Err(Unsaved::InUse),
            outcome = working => outcome,
        };
        let _ = tokio::fs::remove_file(&file).await;
        match outcome {
            Ok(snapshot) => tracing::info!(
                session.id = %session,
                sandbox.id = %sandbox,
                snapshot.bytes = snapshot.size_bytes,
                "saved and destroyed an idle sandbox"
            ),
            Err(unsaved) => {
                self.wake(&lease.token, sandbox).await;
                match unsaved {
                    Unsaved::InUse => {}
                    Unsaved::Failed(why) => tracing::warn!(
                        session.id = %session, sandbox.id = %sandbox, error = why,
                        "an idle sandbox could not be saved, and lives on"
                    ),
                }
            }
        }
        if let Err(error) = self.store.release(lease).await {
            tracing::debug!(session.id = %session, %error, "a lease was not given back and lapses");
        }
    }

    async fn save(&self, token: &Token, sandbox: &SandboxId, file: &Path) -> Result<Snapshot, Unsaved> {
        let state = self.rests(token, sandbox).await?;
        make_scratch(&self.options.scratch).await.map_err(|error| Unsaved::Failed(error.to_string()))?;
        let handle = handle(sandbox);
        let saved = self.hands.save(&handle, token.epoch, file).await;
        let Saved { written, base } = match saved {
            Ok(saved) => saved,
            Err(sandbox::Error::Busy { .. } | sandbox::Error::Fenced { .. }) => return Err(Unsaved::InUse),
            Err(error) => return Err(Unsaved::Failed(error.to_string())),
        };
        if written.size_bytes > self.options.session_bytes_max {
            return Err(Unsaved::Failed(format!(
                "its snapshot of {} bytes is larger than the {} that one session may keep",
                written.size_bytes, self.options.session_bytes_max
            )));
        }
        let key = format!("{SNAPSHOTS}/{}/{}", token.session, token.epoch);
        if let Err(error) = self.blobs.put(&key, file).await {
            return Err(Unsaved::Failed(blobs::with_causes(&error)));
        }
        // Again, because saving takes a while: whoever came meanwhile keeps the sandbox.
        let now_state = self.rests(token, sandbox).await?;
        let saved_at = self.store.now();
        let snapshot = Snapshot {
            key,
            size_bytes: written.size_bytes,
            sha256: written.sha256,
            base,
            saved_at,
            begun_at: state.workspace_begun_at.unwrap_or(saved_at),
        };
        if written.left_out > 0 {
            tracing::info!(
                session.id = %token.session, files = written.left_out,
                "sockets, devices or overlong paths were left out of a snapshot"
            );
        }
        let body = Body::Snapshot { snapshot: snapshot.clone(), put_away: true };
        self.append(token, &now_state, body).await?;
        // From here on nobody uses it any more; if this fails, the reaper finds it.
        if let Err(error) = self.hands.destroy(&handle).await {
            tracing::warn!(sandbox.id = %sandbox, %error, "a saved sandbox could not be destroyed");
        }
        Ok(snapshot)
    }

    /// The session's state, if it rests and has this sandbox.
    async fn rests(&self, token: &Token, sandbox: &SandboxId) -> Result<State, Unsaved> {
        let view = self.store.look(&token.session).await?.ok_or(Unsaved::InUse)?;
        let state = view.state;
        match state.sandbox.as_ref() == Some(sandbox) && state.status == Status::Idle && !state.wants_brain()
        {
            true => Ok(state),
            false => Err(Unsaved::InUse),
        }
    }

    async fn append(&self, token: &Token, state: &State, body: Body) -> Result<(), Unsaved> {
        let draft = Draft::New { id: self.store.ids().make(), body };
        match self.store.append(token, state.head, vec![draft]).await {
            Ok(_) => Ok(()),
            Err(AppendError::Moved(_) | AppendError::Fenced) => Err(Unsaved::InUse),
            Err(AppendError::Store(error)) => Err(error.into()),
        }
    }

    /// Returns when the session wants a brain, or may.
    async fn comes_back(&self, session: &SessionId, changed: &mut store::Changed) {
        loop {
            match self.store.look(session).await {
                Ok(Some(view)) if !view.state.wants_brain() => {}
                Ok(_) | Err(_) => return,
            }
            changed.wait().await;
        }
    }

    /// Keeps the lease; returns when it is lost.
    async fn loses(&self, lease: &Lease) {
        let mut held_until = lease.held_since + LEASE;
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let asked = Instant::now();
            match timeout(held_until.saturating_duration_since(asked), self.store.renew(&lease.token)).await {
                Ok(Ok(())) => held_until = asked + LEASE,
                Ok(Err(AppendError::Store(error))) if error.may_try_again() => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Lets a sandbox go on that stands still for its snapshot.
    async fn wake(&self, token: &Token, sandbox: &SandboxId) {
        let handle = handle(sandbox);
        let _ = timeout(WAKE_TIME_MAX, self.hands.touch(&handle, token.epoch)).await;
    }

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

fn handle(id: &SandboxId) -> sandbox::SandboxId {
    sandbox::SandboxId::parse(id.as_str()).expect("an id of ours is letters, digits and an underscore")
}

fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(now.as_micros() - then.as_micros()).unwrap_or(0))
}

/// For this user alone: what lies there is what agents wrote.
async fn make_scratch(folder: &Path) -> io::Result<()> {
    tokio::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).await
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
