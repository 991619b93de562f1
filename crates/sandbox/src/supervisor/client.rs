//! The server's side: a [`Provider`] whose sandboxes live with the supervisor.
//!
//! One connection carries everything, many questions at a time. When it breaks, questions that may be asked twice are asked again, of the
//! same supervisor or, if that has died, of a new one, which then says truthfully that it knows none of the sandboxes.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::value::to_raw_value;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tools::wire::{
    HEADER_BYTES, OUTPUT_PIECE_BYTES_MAX, Op, Output, OutputFile, Refusal, Reply, TREE_PIECE_BYTES_MAX,
    encode, frame_len,
};

use super::admission::Capacity;
use super::collect::{BYTES_MAX, FILES_MAX, Incoming, SafePath, Version};
use super::place::{Place, Program};
use super::protocol::{Answer, Ask, PROTOCOL, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Request, Response};
use super::{build, exits};
use crate::doctor::Report;
use crate::provider::{
    Base, Call, Collected, Equipment, Error, Exits, Network, Occupancy, Pool, Progress, Provider, Resources,
    SandboxId, SandboxInfo, Saved, Tree,
};
use crate::shelf::Shelf;

/// Calls at once, from one server.
const CALLS_MAX: usize = 4096;
/// How long a supervisor may take to start, or to end for a newer one.
const START_TIME_MAX: Duration = Duration::from_secs(20);
/// Between two looks at whether it has.
const START_PAUSE: Duration = Duration::from_millis(20);
/// One that has not said hello by then is stopped or stuck.
const HELLO_TIME_MAX: Duration = Duration::from_secs(5);
/// How often a question is asked again when the connection breaks under it.
const ATTEMPTS: usize = 3;

/// The supervisor gives up on a sandbox that is not built within 30 seconds; its own word should come before ours.
const PROVISION_TIME_MAX: Duration = Duration::from_secs(35);
/// Longer than anybody sets [`Capacity::waiting_time_max`]: that one is to have its say.
const ROOM_TIME_MAX: Duration = Duration::from_secs(3600);
/// Cancelling, listing and destroying are done at once, on a busy machine within a second or two.
const CONTROL_TIME_MAX: Duration = Duration::from_secs(10);
/// One list or one piece of 4 MiB, read by a sandbox that may have used up its processor time.
const COLLECT_TIME_MAX: Duration = Duration::from_secs(30);
/// The supervisor gives up on a snapshot first, by its own word.
const SAVE_TIME_MAX: Duration = Duration::from_secs(310);
/// What a snapshot may add to making a sandbox. The supervisor gives up on it first, too.
const RESTORE_TIME_MAX: Duration = Duration::from_secs(300);
/// A call ends at its own time limit; this is for what comes before and after: waiting for a place in the sandbox, ending
/// what it started, bringing the output here.
const EXECUTE_GRACE: Duration = Duration::from_secs(30);

/// One piece of a tree: written by a sandbox that may have little processor time.
const TREE_PIECE_TIME_MAX: Duration = Duration::from_secs(60);
/// How long such a piece is: few enough bytes that other questions on the connection do not wait for them.
const TREE_PIECE_BYTES: usize = 1 << 20;
const _: () = assert!(TREE_PIECE_BYTES <= TREE_PIECE_BYTES_MAX);

/// Why a question ends at its deadline.
const NO_ANSWER: &str = "the supervisor did not answer in time";

/// Where the supervisor is, and how to start it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The data directory; the supervisor keeps to `supervisor/` in it.
    pub data_dir: PathBuf,
    /// What to start when none is there.
    pub program: Program,
    /// How long it stays, with all sandboxes, when no server is connected.
    pub idle_exit: Duration,
    /// How long it may take over each answer.
    pub patience: Patience,
    /// How many sandboxes it holds.
    pub capacity: Capacity,
    /// What a sandbox may reach in which packages are installed: their registries. Without it nothing is installed that is
    /// not on this machine.
    pub registries: Option<Network>,
}

/// How long to wait for an answer, making the connection included. What is not answered by then is
/// [`Error::Unavailable`]; a supervisor that does not even say hello then loses the connection.
#[derive(Clone, Debug)]
pub struct Patience {
    /// Who are you?
    pub hello: Duration,
    /// Making a sandbox, and the report of a supervisor that may have to be started for it. Then the supervisor is asked
    /// whether it is there.
    pub provision: Duration,
    /// What making a sandbox may take beyond that, if the supervisor is there: it waits for room.
    pub room: Duration,
    /// What it may take besides where a snapshot is restored.
    pub restore: Duration,
    /// Writing a snapshot.
    pub save: Duration,
    /// Cancelling, listing, destroying.
    pub control: Duration,
    /// Each of the requests that copying deliverables takes.
    pub collect: Duration,
    /// What a call may take beyond its own time limit.
    pub execute_grace: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            hello: HELLO_TIME_MAX,
            provision: PROVISION_TIME_MAX,
            room: ROOM_TIME_MAX,
            restore: RESTORE_TIME_MAX,
            save: SAVE_TIME_MAX,
            control: CONTROL_TIME_MAX,
            collect: COLLECT_TIME_MAX,
            execute_grace: EXECUTE_GRACE,
        }
    }
}

impl Settings {
    /// The usual settings: this program's own hidden subcommand `supervisor`, ten minutes.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            program: Program::this("supervisor"),
            idle_exit: Duration::from_secs(600),
            patience: Patience::default(),
            capacity: Capacity::default(),
            registries: None,
        }
    }
}

/// Sandboxes of namespaces on this machine, kept by the supervisor of a data directory.
pub struct Supervised {
    settings: Settings,
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    /// Changes with each new link.
    connected: watch::Sender<()>,
    calls: Semaphore,
    /// What is to be kept ready. Each new link is told.
    wish: Mutex<Vec<Pool>>,
    failures: build::Failures,
}

/// Where a container is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    /// What to mount.
    pub(crate) folder: PathBuf,
    /// Tells its ids from every other's.
    pub(crate) slot: u32,
}

/// Exits that wait for whoever serves them. They wait with the supervisor, too.
const EXITS_WAITING: usize = 64;

impl Supervised {
    /// Does nothing yet: the supervisor is found or started when it is first needed, or by [`Supervised::report`].
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            link: tokio::sync::Mutex::new(None),
            connected: watch::Sender::new(()),
            calls: Semaphore::new(CALLS_MAX),
            wish: Mutex::default(),
            failures: build::Failures::default(),
        }
    }

    /// How full the machine is.
    pub async fn occupancy(&self) -> Result<Occupancy, Error> {
        match self.ask(self.settings.patience.control, || Ask::Occupancy {}).await? {
            Answer::Occupancy(occupancy) => Ok(occupancy),
            other => Err(unexpected(other)),
        }
    }

    /// What this machine allows, as the supervisor found out when it started. Starts it if need be.
    pub async fn report(&self) -> Result<Report, Error> {
        match self.ask(self.settings.patience.provision, || Ask::Report {}).await? {
            Answer::Report(report) => Ok(report),
            other => Err(unexpected(other)),
        }
    }

    /// Destroys every sandbox of this data directory and ends the supervisor, if there is one.
    pub async fn end(&self) -> Result<(), Error> {
        let end = async {
            let mut current = self.link.lock().await;
            let link = match current.take() {
                Some(link) => Some(link),
                None => connect(&self.settings).await.map_err(Error::unavailable)?,
            };
            if let Some(link) = link {
                // It closes the connection when it is done; an answer before that is a courtesy.
                let _ = link.ask(Ask::End {}).await;
                link.ended().await;
            }
            Ok(())
        };
        match timeout(START_TIME_MAX, end).await {
            Ok(ended) => ended,
            Err(_) => Err(Error::unavailable(NO_ANSWER)),
        }
    }

    /// Asks, again if the connection breaks, for at most `patience`. For questions that may be asked twice, which all of
    /// ours may.
    async fn ask(&self, patience: Duration, ask: impl Fn() -> Ask) -> Result<Answer, Error> {
        self.ask_longer(patience, Duration::ZERO, ask).await
    }

    /// The same, and for `more` if the supervisor says after `patience` that it is there.
    async fn ask_longer(
        &self,
        patience: Duration,
        more: Duration,
        ask: impl Fn() -> Ask,
    ) -> Result<Answer, Error> {
        let asked = Mutex::new(None);
        let mut answer = std::pin::pin!(self.ask_patiently(ask, &asked));
        if let Ok(answer) = timeout(patience, &mut answer).await {
            return answer;
        }
        // A sandbox may be slow where its supervisor is not, and everybody else's questions share the connection: it goes
        // only if the supervisor does not answer either. Whoever asks next then makes a new one.
        let link: Option<Arc<Link>> = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(link) = link else { return Err(Error::unavailable(NO_ANSWER)) };
        if let Err(Unsent::Lost(_)) = link.hello(&self.settings).await {
            link.close(NO_ANSWER);
            return Err(Error::unavailable(NO_ANSWER));
        }
        match timeout(more, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::unavailable(NO_ANSWER)),
        }
    }

    /// As [`Supervised::ask`], for as long as it takes; leaves the connection that was last asked on in `asked`.
    async fn ask_patiently(
        &self,
        ask: impl Fn() -> Ask,
        asked: &Mutex<Option<Arc<Link>>>,
    ) -> Result<Answer, Error> {
        let mut lost = Lost("never asked".to_owned());
        for _ in 0..ATTEMPTS {
            let link = self.link().await?;
            *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
            match link.ask(ask()).await {
                Ok(Answer::Failed(error)) => return Err(error),
                Ok(answer) => return Ok(answer),
                Err(Unsent::Lost(why)) => lost = why,
                Err(Unsent::TooLarge(why)) => return Err(Error::refused(why)),
            }
        }
        Err(Error::unavailable(lost.0))
    }

    /// The connection, made anew if there is none.
    async fn link(&self) -> Result<Arc<Link>, Error> {
        let mut current = self.link.lock().await;
        if let Some(link) = current.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let link = connect_or_start(&self.settings).await.map_err(Error::unavailable)?;
        self.introduce(&link).await.map_err(|_| Error::unavailable(NO_ANSWER))?;
        *current = Some(Arc::clone(&link));
        self.connected.send_replace(());
        Ok(link)
    }

    /// Tells a supervisor what this server wants of it.
    async fn introduce(&self, link: &Link) -> Result<(), Unsent> {
        let pools = self.wish.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let introduction = async {
            let will_install = self.settings.registries.is_some();
            link.ask(Ask::Hold { capacity: self.settings.capacity.clone(), will_install }).await?;
            if !pools.is_empty() {
                link.ask(Ask::KeepReady { pools }).await?;
            }
            Ok(())
        };
        match timeout(self.settings.patience.hello, introduction).await {
            Ok(introduced) => introduced,
            Err(_) => Err(Unsent::Lost(Lost(NO_ANSWER.to_owned()))),
        }
    }

    async fn provision_in(
        &self,
        id: &SandboxId,
        fence: u64,
        resources: &Resources,
        layer: Option<&str>,
    ) -> Result<(), Error> {
        let ask = || Ask::Provision {
            sandbox: id.clone(),
            fence,
            resources: resources.clone(),
            layer: layer.map(str::to_owned),
        };
        let Patience { provision, room, restore, .. } = self.settings.patience;
        let restore = if resources.restore.is_some() { restore } else { Duration::ZERO };
        done(self.ask_longer(provision, room + restore, ask).await?)
    }

    /// Makes a sandbox whose stage is the folder of an unfinished layer.
    pub(crate) async fn provision_builder(
        &self,
        id: &SandboxId,
        resources: &Resources,
        layer: &str,
    ) -> Result<(), Error> {
        self.provision_in(id, 1, resources, Some(layer)).await
    }

    /// Every sandbox that lives, builders included.
    pub(crate) async fn list_all(&self) -> Result<Vec<SandboxInfo>, Error> {
        match self.ask(self.settings.patience.control, || Ask::List {}).await? {
            Answer::List(list) => Ok(list),
            other => Err(unexpected(other)),
        }
    }

    /// Opens a door for a container, and says which; `None` if the sandbox lives already.
    pub(crate) async fn adopt(
        &self,
        id: &SandboxId,
        fence: u64,
        resources: &Resources,
        first_id: Option<u32>,
    ) -> Result<Option<Door>, Error> {
        let resources = || resources.clone();
        let ask = || Ask::Adopt { sandbox: id.clone(), fence, resources: resources(), first_id };
        let Patience { provision, room, .. } = self.settings.patience;
        match self.ask_longer(provision, room, ask).await? {
            Answer::Door { folder, slot } => Ok(Some(Door { folder, slot })),
            Answer::Done {} => Ok(None),
            other => Err(unexpected(other)),
        }
    }

    /// Returns when the container that a door was opened for has come, after `patience` at the latest.
    pub(crate) async fn adopted(&self, id: &SandboxId, fence: u64, patience: Duration) -> Result<(), Error> {
        done(self.ask(patience, || Ask::Adopted { sandbox: id.clone(), fence }).await?)
    }

    /// Where package layers are kept.
    pub(crate) fn shelf(&self) -> Shelf {
        Shelf::new(&self.settings.data_dir)
    }

    /// A short name for this data directory, different from every other's on this machine.
    pub(crate) fn instance(&self) -> Result<String, Error> {
        Place::open(&self.settings.data_dir).map(|place| place.instance()).map_err(Error::unavailable)
    }

    /// Brings one tree, piece by piece; once more from the beginning if a piece was lost on the way and taken all the same.
    async fn bring_tree(&self, id: &SandboxId, fence: u64, tree: &Tree) -> Result<(), Error> {
        match self.bring_pieces(id, fence, tree).await {
            Err(Error::Refused { .. }) => self.bring_pieces(id, fence, tree).await,
            brought => brought,
        }
    }

    async fn bring_pieces(&self, id: &SandboxId, fence: u64, tree: &Tree) -> Result<(), Error> {
        let unreadable = |error: io::Error| Error::refused(format!("the tree cannot be read: {error}"));
        let mut archive = tokio::fs::File::open(&tree.archive).await.map_err(unreadable)?;
        let length = archive.metadata().await.map_err(unreadable)?.len();
        let mut piece = vec![0; TREE_PIECE_BYTES];
        let mut offset = 0;
        loop {
            let wanted = usize::try_from(length - offset).unwrap_or(usize::MAX).min(TREE_PIECE_BYTES);
            archive.read_exact(&mut piece[..wanted]).await.map_err(unreadable)?;
            let last = offset + wanted as u64 == length;
            let data = BASE64.encode(&piece[..wanted]);
            let op = Op::Unpack { at: tree.at.clone(), offset, data, last };
            match self.relay(TREE_PIECE_TIME_MAX, id, Some(fence), &op).await? {
                Reply::Unpacked if last => return Ok(()),
                Reply::Unpacked => offset += wanted as u64,
                other => return Err(refused(other)),
            }
        }
    }

    async fn relay(
        &self,
        patience: Duration,
        id: &SandboxId,
        fence: Option<u64>,
        op: &Op,
    ) -> Result<Reply, Error> {
        let op = to_raw_value(op).map_err(|error| Error::refused(error.to_string()))?;
        let ask = || Ask::Relay { sandbox: id.clone(), fence, op: op.clone() };
        match self.ask(patience, ask).await? {
            Answer::Relayed(reply) => serde_json::from_str(reply.get()).map_err(Error::unavailable),
            other => Err(unexpected(other)),
        }
    }
}

#[async_trait]
impl Provider for Supervised {
    async fn provision(&self, id: &SandboxId, fence: u64, resources: &Resources) -> Result<(), Error> {
        self.provision_in(id, fence, resources, None).await
    }

    async fn equip(&self, id: &SandboxId, fence: u64, equipment: &Equipment) -> Result<(), Error> {
        let Equipment { variables, trusted, trees } = equipment.clone();
        if !variables.is_empty() || trusted.is_some() {
            let op = Op::Equip { variables, trusted };
            match self.relay(self.settings.patience.control, id, Some(fence), &op).await? {
                Reply::Equipped => {}
                other => return Err(refused(other)),
            }
        }
        for tree in &trees {
            self.bring_tree(id, fence, tree).await?;
        }
        Ok(())
    }

    async fn prepare(&self, base: &Base, progress: &Progress<'_>) -> Result<(), Error> {
        let shelf = self.shelf();
        let registries = self.settings.registries.clone();
        build::prepare(self, &shelf, &self.failures, registries, base, progress).await
    }

    async fn tidy(&self) -> Result<(), Error> {
        // By a connection of its own, which wants nothing else: who only tidies up starts no supervisor, and tells one that is
        // there nothing of capacities. Without one no builder lives.
        let link = connect(&self.settings).await.map_err(Error::unavailable)?;
        let ask = async |ask: Ask| match &link {
            None => Ok(None),
            Some(link) => match timeout(self.settings.patience.control, link.ask(ask)).await {
                Ok(Ok(Answer::Failed(error))) => Err(error),
                Ok(Ok(answer)) => Ok(Some(answer)),
                Ok(Err(_)) | Err(_) => Err(Error::unavailable(NO_ANSWER)),
            },
        };
        match ask(Ask::Hello { protocol: PROTOCOL, idle_exit_ms: None }).await? {
            Some(Answer::Hello { protocol: PROTOCOL, pid: _ }) | None => {}
            Some(_) => return Err(Error::unavailable("the supervisor is of another version")),
        }
        let living: Vec<SandboxId> = match ask(Ask::List {}).await? {
            None => Vec::new(),
            Some(Answer::List(list)) => list.into_iter().map(|info| info.id).collect(),
            Some(other) => return Err(unexpected(other)),
        };
        let (shelf, ids) = (self.shelf(), living.clone());
        for abandoned in build::on_disk(move || build::abandoned(&shelf, &ids)).await? {
            for id in living.iter().filter(|id| id.as_str().starts_with(&abandoned.builders)) {
                ask(Ask::Destroy { sandbox: id.clone() }).await?;
            }
            tracing::info!("removing packages that were half installed when nobody waited for them any more");
            build::on_disk(move || abandoned.remove()).await?;
        }
        Ok(())
    }

    async fn execute(&self, call: Call) -> Result<Output, Error> {
        let Call { sandbox, call_id, fence, name, input, timeout: limit } = call;
        let Ok(_permit) = self.calls.try_acquire() else {
            return Err(Error::Busy { reason: format!("{CALLS_MAX} calls run already") });
        };
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        let patience = limit.saturating_add(self.settings.patience.execute_grace);
        let op = Op::Execute { call_id, name, input, timeout_ms };
        match self.relay(patience, &sandbox, Some(fence), &op).await? {
            Reply::Output(output) => Ok(output),
            // For the model to see: it ran, once, and what it said is lost.
            Reply::Refused { reason: Refusal::Forgotten, message } => Ok(Output::error(message)),
            other => Err(refused(other)),
        }
    }

    async fn cancel(&self, id: &SandboxId, fence: u64, call_id: &str) -> Result<bool, Error> {
        let op = Op::Cancel { call_id: call_id.to_owned() };
        match self.relay(self.settings.patience.control, id, Some(fence), &op).await? {
            Reply::Cancelled { known } => Ok(known),
            other => Err(refused(other)),
        }
    }

    async fn touch(&self, id: &SandboxId, fence: u64) -> Result<(), Error> {
        let ask = || Ask::Touch { sandbox: id.clone(), fence };
        done(self.ask(self.settings.patience.control, ask).await?)
    }

    async fn collect_outputs(&self, id: &SandboxId, into: &Path) -> Result<Vec<Collected>, Error> {
        let op = Op::Collect { max_bytes: BYTES_MAX, max_files: FILES_MAX };
        let (files, truncated) = match self.relay(self.settings.patience.collect, id, None, &op).await? {
            Reply::Files { files, truncated } => (files, truncated),
            other => return Err(refused(other)),
        };
        let listed = files.len();
        let mut collected = Vec::new();
        let mut budget = BYTES_MAX;
        for file in files.into_iter().take(usize::try_from(FILES_MAX).unwrap_or(usize::MAX)) {
            let Some(safe) = SafePath::parse(&file.path) else { continue };
            if let Some(size_bytes) = self.bring(id, &file, &safe, into, budget).await? {
                budget -= size_bytes;
                collected.push(Collected { path: safe.to_path(), size_bytes });
            }
        }
        if truncated || collected.len() < listed {
            tracing::warn!(
                sandbox.id = %id,
                files.copied = collected.len(),
                files.bytes = BYTES_MAX - budget,
                files.left_out = listed - collected.len(),
                files.unlisted = truncated,
                "not all deliverables were copied: {FILES_MAX} files and {BYTES_MAX} bytes are the most, under plain names"
            );
        }
        Ok(collected)
    }

    async fn save(&self, id: &SandboxId, fence: u64, into: &Path) -> Result<Saved, Error> {
        let ask = || Ask::Save { sandbox: id.clone(), fence, into: into.to_owned() };
        match self.ask(self.settings.patience.save, ask).await? {
            Answer::Saved(saved) => Ok(saved),
            other => Err(unexpected(other)),
        }
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), Error> {
        done(self.ask(self.settings.patience.control, || Ask::Destroy { sandbox: id.clone() }).await?)
    }

    async fn list(&self) -> Result<Vec<SandboxInfo>, Error> {
        let mut list = self.list_all().await?;
        list.retain(|sandbox| !sandbox.id.as_str().starts_with(build::BUILDER));
        Ok(list)
    }

    async fn keep_ready(&self, pools: &[Pool]) -> Result<(), Error> {
        *self.wish.lock().unwrap_or_else(PoisonError::into_inner) = pools.to_vec();
        // Nothing is not worth starting a supervisor for.
        if pools.is_empty() && self.link.lock().await.is_none() {
            return Ok(());
        }
        let ask = || Ask::KeepReady { pools: pools.to_vec() };
        done(self.ask(self.settings.patience.control, ask).await?)
    }

    fn exits(&self) -> Exits {
        let (sender, receiver) = mpsc::channel(EXITS_WAITING);
        let data_dir = self.settings.data_dir.clone();
        let feeder =
            tokio::spawn(exits::feed(move || Place::open(&data_dir), self.connected.subscribe(), sender));
        Exits::fed_by(receiver, feeder)
    }
}

impl Supervised {
    /// Copies one file, piece by piece, unless the copy of a former time is as good. `None` if it is gone meanwhile or
    /// over the budget.
    async fn bring(
        &self,
        id: &SandboxId,
        file: &OutputFile,
        safe: &SafePath,
        into: &Path,
        budget: u64,
    ) -> Result<Option<u64>, Error> {
        let (into, safe) = (into.to_owned(), safe.clone());
        let version = Version::listed(file);
        let found = on_disk(move || match version.is_copied(&into, &safe) {
            true => Ok(None),
            false => Incoming::create(&into, &safe).map(Some),
        });
        let Some(mut incoming) = found.await? else {
            return Ok((version.size_bytes <= budget).then_some(version.size_bytes));
        };
        let mut offset = 0;
        loop {
            let op = Op::ReadOutput { path: file.path.clone(), offset, length: OUTPUT_PIECE_BYTES_MAX };
            let data = match self.relay(self.settings.patience.collect, id, None, &op).await? {
                Reply::Bytes { data, size_bytes: _ } => data,
                Reply::Refused { .. } => return Ok(None),
                other => return Err(unexpected(other)),
            };
            let bytes = BASE64.decode(data).map_err(Error::unavailable)?;
            let length = bytes.len() as u64;
            offset += length;
            if offset > budget {
                return Ok(None);
            }
            incoming = on_disk(move || incoming.append(&bytes).map(|()| incoming)).await?;
            if length < OUTPUT_PIECE_BYTES_MAX {
                on_disk(move || incoming.finish(version)).await?;
                return Ok(Some(offset));
            }
        }
    }
}

fn done(answer: Answer) -> Result<(), Error> {
    match answer {
        Answer::Done {} => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn refused(reply: Reply) -> Error {
    match reply {
        Reply::Refused { reason: Refusal::Busy, message } => Error::Busy { reason: message },
        Reply::Refused { reason: Refusal::Invalid | Refusal::Forgotten, message } => {
            Error::Refused { reason: message }
        }
        other => unexpected(other),
    }
}

fn unexpected(what: impl std::fmt::Debug) -> Error {
    // Only its kind: an answer can be large, and can hold what a tool printed.
    let kind: String = format!("{what:?}").chars().take_while(|letter| letter.is_alphanumeric()).collect();
    Error::unavailable(format!("the supervisor answered with {kind}, which is no answer to this"))
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Error::unavailable),
        Err(error) => Err(Error::unavailable(error)),
    }
}

/// Connects to the supervisor, starting one if there is none and retiring one of an older version.
async fn connect_or_start(settings: &Settings) -> io::Result<Arc<Link>> {
    let deadline = Instant::now() + START_TIME_MAX;
    loop {
        if let Some(link) = connect(settings).await? {
            match link.hello(settings).await {
                Ok(PROTOCOL) => return Ok(link),
                Ok(older) if older < PROTOCOL => {
                    tracing::info!(
                        supervisor.protocol = older,
                        "retiring a supervisor of an older version, with its sandboxes"
                    );
                    let _ = link.ask(Ask::End {}).await;
                    link.ended().await;
                }
                Ok(newer) => {
                    return Err(io::Error::other(format!(
                        "the supervisor is of a newer version (protocol {newer})"
                    )));
                }
                // It ended between the two; look again.
                Err(_) => {}
            }
        } else {
            let (place, program) = (Place::open(&settings.data_dir)?, settings.program.clone());
            tokio::task::spawn_blocking(move || place.start(&program)).await.map_err(io::Error::other)??;
            if let Some(link) = connect(settings).await?
                && matches!(link.hello(settings).await, Ok(PROTOCOL))
            {
                return Ok(link);
            }
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                "the supervisor can neither be reached nor started",
            ));
        }
        // Another one holds the lock and is just starting or ending.
        sleep(START_PAUSE).await;
    }
}

/// Connects to a supervisor; `None` if there is none.
async fn connect(settings: &Settings) -> io::Result<Option<Arc<Link>>> {
    let place = Place::open(&settings.data_dir)?;
    let connected = tokio::task::spawn_blocking(move || place.connect()).await.map_err(io::Error::other)?;
    match connected {
        Ok(stream) => Ok(Some(Link::open(UnixStream::from_std(stream)?))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One connection to the supervisor. The task that reads from it ends with it.
struct Link {
    wire: Arc<Wire>,
    driver: JoinHandle<()>,
}

struct Wire {
    stream: UnixStream,
    state: Mutex<State>,
    /// Something waits to be written.
    output: Notify,
    ended: Notify,
}

#[derive(Default)]
struct State {
    next_id: u64,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    output: VecDeque<u8>,
    closed: Option<String>,
}

/// The connection broke before the answer came.
struct Lost(String);

/// Why there is no answer.
enum Unsent {
    Lost(Lost),
    TooLarge(String),
}

impl Link {
    fn open(stream: UnixStream) -> Arc<Self> {
        let wire =
            Arc::new(Wire { stream, state: Mutex::default(), output: Notify::new(), ended: Notify::new() });
        let driver = tokio::spawn(drive(Arc::clone(&wire)));
        Arc::new(Self { wire, driver })
    }

    fn is_closed(&self) -> bool {
        self.wire.state().closed.is_some()
    }

    async fn hello(&self, settings: &Settings) -> Result<u32, Unsent> {
        let idle_exit_ms = u64::try_from(settings.idle_exit.as_millis()).ok();
        let asked = self.ask(Ask::Hello { protocol: PROTOCOL, idle_exit_ms });
        let Ok(answer) = timeout(settings.patience.hello, asked).await else {
            return Err(Unsent::Lost(Lost(NO_ANSWER.to_owned())));
        };
        match answer? {
            Answer::Hello { protocol, pid: _ } => Ok(protocol),
            _ => Err(Unsent::Lost(Lost("the supervisor does not say who it is".to_owned()))),
        }
    }

    /// Asks one question and waits for its answer.
    async fn ask(&self, ask: Ask) -> Result<Answer, Unsent> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut state = self.wire.state();
            if let Some(why) = &state.closed {
                return Err(Unsent::Lost(Lost(why.clone())));
            }
            let id = state.next_id;
            state.next_id += 1;
            let frame = encode(&Request { id, ask }, REQUEST_BYTES_MAX)
                .map_err(|error| Unsent::TooLarge(error.to_string()))?;
            state.waiting.insert(id, sender);
            self.wire.write(&mut state, &frame);
            id
        };
        // Whoever stops waiting must not leave a place behind.
        let _forget = Forget { wire: &self.wire, id };
        receiver.await.map_err(|_| Unsent::Lost(Lost(self.wire.why_closed())))
    }

    /// Gives the connection up: whoever waits learns that it is lost.
    fn close(&self, why: &str) {
        self.driver.abort();
        self.wire.close(why.to_owned());
    }

    async fn ended(&self) {
        let ended = self.wire.ended.notified();
        if !self.is_closed() {
            ended.await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

struct Forget<'a> {
    wire: &'a Wire,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.wire.state().waiting.remove(&self.id);
    }
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn why_closed(&self) -> String {
        self.state().closed.clone().unwrap_or_else(|| "the connection to the supervisor is closed".to_owned())
    }

    /// Tells everybody who waits that there will be no answer.
    fn close(&self, why: String) {
        let waiting = {
            let mut state = self.state();
            state.closed.get_or_insert(why);
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        self.ended.notify_waiters();
    }

    /// Writes at once what the socket takes, and leaves the rest to the driver.
    fn write(&self, state: &mut State, frame: &[u8]) {
        let written = match state.output.is_empty() {
            true => self.stream.try_write(frame).unwrap_or(0),
            false => 0,
        };
        if written < frame.len() {
            state.output.extend(&frame[written..]);
            self.output.notify_one();
        }
    }

    /// Writes what waits, as far as the socket takes it.
    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        while !state.output.is_empty() {
            match self.stream.try_write(state.output.as_slices().0) {
                Ok(count) => drop(state.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn deliver(&self, frame: &[u8]) -> io::Result<()> {
        let Response { id, answer } = serde_json::from_slice(frame)?;
        let waiting = self.state().waiting.remove(&id);
        if let Some(waiting) = waiting {
            // Whoever asked may have stopped waiting.
            let _ = waiting.send(answer);
        }
        Ok(())
    }
}

/// Moves bytes until the connection ends, then tells everybody who waits.
async fn drive(wire: Arc<Wire>) {
    let why = match exchange(&wire).await {
        Ok(()) => "the supervisor has closed the connection".to_owned(),
        Err(error) => format!("the connection to the supervisor broke: {error}"),
    };
    wire.close(why);
}

/// What woke the driver.
enum Wake {
    Readable,
    Writable,
    Output,
}

async fn exchange(wire: &Wire) -> io::Result<()> {
    let mut input: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let has_output = !wire.state().output.is_empty();
        let wake = tokio::select! {
            ready = wire.stream.readable() => ready.map(|()| Wake::Readable)?,
            ready = wire.stream.writable(), if has_output => ready.map(|()| Wake::Writable)?,
            () = wire.output.notified() => Wake::Output,
        };
        match wake {
            Wake::Writable | Wake::Output => wire.flush()?,
            Wake::Readable => match wire.stream.try_read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    input.extend_from_slice(&chunk[..count]);
                    take_frames(wire, &mut input)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            },
        }
    }
}

fn take_frames(wire: &Wire, input: &mut Vec<u8>) -> io::Result<()> {
    let mut start = 0;
    while let Some(header) = input[start..].first_chunk::<HEADER_BYTES>() {
        let length = frame_len(*header, RESPONSE_BYTES_MAX).map_err(io::Error::other)?;
        let end = start + HEADER_BYTES + length;
        if input.len() < end {
            break;
        }
        wire.deliver(&input[start + HEADER_BYTES..end])?;
        start = end;
    }
    input.drain(..start);
    if input.is_empty() && input.capacity() > 1 << 20 {
        *input = Vec::new();
    }
    Ok(())
}
