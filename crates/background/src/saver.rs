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
//!
//! A client may want the same at once and without the end of the sandbox. That wish is in the log: a word tells of it, and a
//! sweep finds those whose word was lost, with the process that heard it or on the way.

mod saves;
mod tidy;
mod wishes;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blobs::Blobs;
use protocol::event::{Body, Snapshot};
use protocol::id::{SandboxId, SessionId};
use protocol::session::Status;
use protocol::time::Timestamp;
use sandbox::{Error as HandsError, Provider, SandboxInfo, Saved};
use session::Draft;
use session::state::State;
use store::{AppendError, Holding, LEASE, Lease, Store, Token};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::words;
use saves::{Ended, Saves};

/// Below this path in the blob store lie all snapshots.
pub const SNAPSHOTS: &str = "snapshots";

/// The longest time between two looks for sandboxes to put away, and the shortest.
const EVERY_MAX: Duration = Duration::from_secs(30);
const EVERY_MIN: Duration = Duration::from_millis(500);
/// How often it looks for snapshots to drop and for blobs that nobody owns.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// How long a blob or a local file must have been nobody's: longer than anybody takes between making and recording it.
const GRACE: Duration = Duration::from_secs(1800);
/// How often it looks for wishes whose word was lost.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How soon it tries again to save for a client, where the session was at work or held.
const ASKED_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// A third of a lease leaves room for two misses.
const RENEW_EVERY: Duration = Duration::from_millis(3_300);
/// What putting a blob may take, however small it is, and the least that a blob store takes in a second.
const PUT_TIME_MIN: Duration = Duration::from_secs(300);
const PUT_BYTES_PER_SECOND: u64 = 1 << 20;
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

/// What becomes of a sandbox once it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It ends.
    PutAway,
    /// A client wanted the snapshot; it goes on.
    GoOn,
}

/// Why a sandbox was not saved.
enum Unsaved {
    /// Its session is at work, or somebody else holds it.
    InUse,
    /// A rule that a client may hear.
    Refused(String),
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

    /// Each of the three goes on while the others are busy.
    async fn save_for_ever(&self) {
        tokio::join!(self.put_away_for_ever(), self.see_to_wishes(), self.tidy_for_ever());
    }

    async fn put_away_for_ever(&self) {
        let mut looks =
            every(self.options.idle.map_or(EVERY_MAX, |idle| (idle / 4).clamp(EVERY_MIN, EVERY_MAX)));
        let mut saves = Saves::new(self, Then::PutAway);
        loop {
            saves.meanwhile(looks.tick(), drop).await;
            let idle = saves.meanwhile(self.find_idle(), drop).await;
            saves.set_due(idle);
        }
    }

    async fn see_to_wishes(&self) {
        let (mut sweeps, mut again) = (every(SWEEP_EVERY), every(ASKED_AGAIN_EVERY));
        let (mut words, mut asked) = (self.store.words(), HashSet::new());
        let mut saves = Saves::new(self, Then::GoOn);
        loop {
            let mut done = Vec::new();
            let found = tokio::select! {
                session = words::next(&mut words, Store::snapshot_wanted) => vec![session],
                _ = again.tick(), if !asked.is_empty() => Vec::new(),
                _ = sweeps.tick() => saves.meanwhile(self.find_asked(), |save| done.push(save)).await,
                Some(save) = saves.next() => {
                    see_ended(&mut asked, save);
                    continue;
                }
            };
            asked.extend(found.into_iter().take(wishes::ASKED_MAX.saturating_sub(asked.len())));
            let due = saves.meanwhile(self.find_due(&asked), |save| done.push(save)).await;
            for save in done {
                see_ended(&mut asked, save);
            }
            if let Some(due) = due {
                asked.retain(|session| due.contains_key(session));
                saves.set_due(due);
            }
        }
    }

    async fn tidy_for_ever(&self) {
        let mut tidies = every(TIDY_EVERY);
        loop {
            tidies.tick().await;
            self.tidy(GRACE).await;
        }
    }

    /// Looks once, and puts away what has been idle for long enough.
    pub async fn put_away_idle(&self) {
        let mut saves = Saves::new(self, Then::PutAway);
        saves.set_due(self.find_idle().await);
        while saves.next().await.is_some() {}
    }

    /// What has been idle for long enough, and whose it is.
    async fn find_idle(&self) -> Vec<(SessionId, SandboxId)> {
        let Some(idle_min) = self.options.idle else { return Vec::new() };
        let living = match self.hands.list().await {
            Ok(living) => living,
            Err(error) => {
                tracing::debug!(%error, "the sandboxes could not be listed");
                return Vec::new();
            }
        };
        let is_idle = |info: &SandboxInfo| info.idle >= idle_min && info.calls == 0;
        let idle: HashSet<SandboxId> = living
            .iter()
            .filter(|info| is_idle(info))
            .map(|info| SandboxId::from_text(info.id.as_str()))
            .collect();
        if idle.is_empty() {
            return Vec::new();
        }
        let holdings = match self.store.holdings().await {
            Ok(holdings) => holdings,
            Err(error) => {
                tracing::warn!(%error, "the owners of sandboxes could not be read");
                return Vec::new();
            }
        };
        let due = holdings.into_iter().filter_map(|Holding { session, sandbox, .. }| {
            let sandbox = sandbox.filter(|sandbox| idle.contains(sandbox))?;
            Some((session, sandbox))
        });
        due.collect()
    }

    /// Saves one sandbox, unless its session is at work. `false`: it is worth another try soon.
    async fn save_under_lease(&self, session: &SessionId, sandbox: &SandboxId, then: Then) -> bool {
        // Watched from before the first look, so that nothing falls between a look and a wait.
        let mut changed = self.store.changed(session);
        let lease = match self.store.try_claim(session, &self.options.holder).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(session.id = %session, %error, "a session could not be claimed");
                return false;
            }
        };
        let file = self.options.scratch.join(format!("{sandbox}-{}", lease.token.epoch));
        let outcome = tokio::select! {
            // The client first: nobody waits for a snapshot.
            biased;
            () = self.comes_back(session, &mut changed) => Err(Unsaved::InUse),
            () = self.loses(&lease) => Err(Unsaved::InUse),
            outcome = self.save(&lease.token, sandbox, &file, then) => outcome,
        };
        let _ = tokio::fs::remove_file(&file).await;
        if outcome.is_err() {
            self.wake(&lease.token, sandbox).await;
        }
        let is_in_use = matches!(outcome, Err(Unsaved::InUse));
        match outcome {
            Ok(snapshot) => tracing::info!(
                session.id = %session,
                sandbox.id = %sandbox,
                snapshot.bytes = snapshot.size_bytes,
                "saved a sandbox{}", match then {
                    Then::PutAway => " that was idle, and destroyed it",
                    Then::GoOn => " for a client",
                }
            ),
            Err(Unsaved::InUse) => {}
            Err(Unsaved::Refused(why) | Unsaved::Failed(why)) if then == Then::PutAway => tracing::warn!(
                session.id = %session, sandbox.id = %sandbox, error = why,
                "an idle sandbox could not be saved, and lives on"
            ),
            Err(Unsaved::Refused(why)) => self.record_unsaved(&lease.token, why).await,
            Err(Unsaved::Failed(why)) => {
                tracing::warn!(
                    session.id = %session, sandbox.id = %sandbox, error = why,
                    "a sandbox could not be saved for a client"
                );
                let reason = "the server could not save it; its log says why".to_owned();
                self.record_unsaved(&lease.token, reason).await;
            }
        }
        if let Err(error) = self.store.release(lease).await {
            tracing::debug!(session.id = %session, %error, "a lease was not given back and lapses");
        }
        !is_in_use
    }

    async fn save(
        &self,
        token: &Token,
        sandbox: &SandboxId,
        file: &Path,
        then: Then,
    ) -> Result<Snapshot, Unsaved> {
        let state = self.rests(token, sandbox).await?;
        make_scratch(&self.options.scratch).await.map_err(|error| Unsaved::Failed(error.to_string()))?;
        let handle = handle(sandbox);
        let saved = self.hands.save(&handle, token.epoch, file).await;
        let Saved { written, base } = match saved {
            Ok(saved) => saved,
            Err(HandsError::Busy { .. } | HandsError::Fenced { .. }) => return Err(Unsaved::InUse),
            Err(HandsError::Refused { reason }) => return Err(Unsaved::Refused(reason)),
            Err(HandsError::Gone { .. }) => {
                return Err(Unsaved::Refused("its sandbox is gone".to_owned()));
            }
            Err(error) => return Err(Unsaved::Failed(error.to_string())),
        };
        if then == Then::GoOn {
            // What it does from now on is simply not in the snapshot; it need not wait for the blob.
            self.wake(token, sandbox).await;
        }
        if written.size_bytes > self.options.session_bytes_max {
            return Err(Unsaved::Refused(format!(
                "its snapshot of {} bytes is larger than the {} that one session may keep",
                written.size_bytes, self.options.session_bytes_max
            )));
        }
        let key = format!("{SNAPSHOTS}/{}/{}", token.session, token.epoch);
        let time_max = put_time_max(written.size_bytes);
        match timeout(time_max, self.blobs.put(&key, file)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Unsaved::Failed(blobs::with_causes(&error))),
            Err(_) => {
                let why = format!("the blob store did not take it within {} seconds", time_max.as_secs());
                return Err(Unsaved::Failed(why));
            }
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
            left_out: written.left_out,
        };
        if written.left_out > 0 {
            tracing::info!(
                session.id = %token.session, files = written.left_out,
                "sockets, devices or overlong paths were left out of a snapshot"
            );
        }
        let put_away = then == Then::PutAway;
        let body = Body::Snapshot { snapshot: snapshot.clone(), put_away };
        self.append(token, &now_state, body).await?;
        if !put_away {
            return Ok(snapshot);
        }
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
}

/// How long putting a blob of this size may take.
fn put_time_max(size_bytes: u64) -> Duration {
    PUT_TIME_MIN + Duration::from_secs(size_bytes / PUT_BYTES_PER_SECOND)
}

/// Forgets a wish that is done with.
fn see_ended(asked: &mut HashSet<SessionId>, (session, is_done): Ended) {
    if is_done {
        asked.remove(&session);
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn handle(id: &SandboxId) -> sandbox::SandboxId {
    sandbox::SandboxId::parse(id.as_str()).expect("an id of ours is letters, digits and an underscore")
}

/// For this user alone: what lies there is what agents wrote.
async fn make_scratch(folder: &Path) -> io::Result<()> {
    tokio::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).await
}

fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(now.as_micros() - then.as_micros()).unwrap_or(0))
}
