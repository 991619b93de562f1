//! The seam: what every kind of sandbox does, and what a caller may rely on.
//!
//! A [`Provider`] makes hands and lends them out. It knows nothing of sessions, models or events: it sees the id that
//! the caller chose, a fencing token, and calls with a name and an input. Every implementation passes the same suite
//! ([`crate::conformance`]), the remote ones included.
//!
//! The life of one sandbox, as a caller sees it:
//!
//! ```text
//!            provision                 destroy, limit, crash
//! (unknown) ───────────▶ live ─────────────────────────────▶ gone
//!                        │ ▲                                  (an id never comes back)
//!                        └─┘ execute, cancel, touch, collect_outputs, save
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tools::wire::Output;

use crate::archive::Written;
use crate::packages::{Manager, Packages};

/// The name of one sandbox, chosen by the caller before the sandbox exists.
///
/// The caller writes the id down first (record the intent), then provisions; after a crash it provisions the same id
/// again and gets the same sandbox. Letters, digits, `_`, `-` and `.`, at most 128 bytes, not starting with a dot:
/// an id becomes part of a folder's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// The longest id, in bytes; leaves room for a prefix in a file name.
const ID_BYTES_MAX: usize = 128;

impl SandboxId {
    /// Parses an id; `None` if a character or the length is not allowed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let fits = !text.is_empty() && text.len() <= ID_BYTES_MAX && !text.starts_with('.');
        (fits && text.bytes().all(allowed)).then(|| Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl TryFrom<String> for SandboxId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
            .ok_or_else(|| "a sandbox id is 1 to 128 letters, digits, `_`, `-` or `.`".to_owned())
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

/// What a new sandbox gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// How much of the machine it may use.
    pub limits: Limits,
    /// Folders of the host that it sees, besides the host's tools. Chosen by the operator or a benchmark, never by an
    /// agent or a client.
    pub mounts: Vec<Mount>,
    /// What `hostname` says inside.
    pub hostname: String,
    /// What it may reach. `None`: nothing, and it has no exit either.
    pub network: Option<Network>,
    /// What its root may do inside.
    pub rights: Rights,
    /// What it starts from.
    pub base: Base,
    /// What runs a container, where sandboxes are containers; the operator's choice if `None`.
    pub runtime: Option<String>,
    /// What everything in its private layer is to be again. `None`: an empty workspace.
    pub restore: Option<Restore>,
}

/// What [`Provider::save`] wrote of another sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The file.
    pub file: PathBuf,
    /// What that sandbox was built on: [`Saved::base`]. It fits on nothing else.
    pub base: String,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            mounts: Vec::new(),
            hostname: "sandbox".to_owned(),
            network: None,
            rights: Rights::default(),
            base: Base::default(),
            runtime: None,
            restore: None,
        }
    }
}

/// What a session brings into its sandbox once it lives, whoever it was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Equipment {
    /// Variables of the shells that start from then on.
    pub variables: BTreeMap<String, String>,
    /// The certificate, in PEM, of an authority that its programs are to trust besides the system's. Those that carry a list of
    /// their own and know no variable for another will not.
    pub trusted: Option<String>,
    /// Trees of files that are to be in its workspace.
    pub trees: Vec<Tree>,
}

/// A tree of files that a session brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The folder inside; absolute. One that is there already and holds anything stays as it is.
    pub at: String,
    /// An archive on this machine, as [`tools::archive::pack_places`] writes it, of one place named [`tools::wire::TREE`]. Its owners do not count: everything is the
    /// sandbox's user's.
    pub archive: PathBuf,
}

impl Equipment {
    /// Whether there is nothing to bring.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { variables, trusted, trees } = self;
        variables.is_empty() && trusted.is_none() && trees.is_empty()
    }
}

/// What root may do inside a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rights {
    /// What any user may. It owns its files, and new ones may be put beside the host's.
    #[default]
    Few,
    /// What the system's package manager needs besides: to own what root owns, and to give files and processes to other
    /// users of the sandbox. A provider that cannot give it gives [`Rights::Few`], and its report says so.
    Install,
}

/// What a sandbox starts from: a root file system, and the packages that have been installed into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Base {
    /// The name of an image that the provider has; its own choice if `None`.
    pub image: Option<String>,
    /// What is installed. A base with any must be prepared ([`Provider::prepare`]) before a sandbox can start from it.
    pub packages: Packages,
}

impl Base {
    /// Says in a few words what this is, whatever an image of that name holds.
    #[must_use]
    pub fn name(&self) -> String {
        self.name_with(None)
    }

    /// The same with the digest of the image, which tells it from others that had or will have its name. The host's own tools
    /// have none: they change in place, below sandboxes that live as well.
    pub(crate) fn name_with(&self, digest: Option<&str>) -> String {
        let root = match (&self.image, digest) {
            (None, _) => "host".to_owned(),
            (Some(image), None) => format!("image {image}"),
            (Some(image), Some(digest)) => format!("image {image} {digest}"),
        };
        match self.packages.is_empty() {
            true => root,
            false => format!("{root} with packages {}", self.packages.key("")),
        }
    }
}

/// What a sandbox may reach, in the words of whoever serves its [`Exit`]. A provider does not look into it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Network(pub String);

/// The port of the sandbox's own loopback address at which its exit listens: the one that proxies usually have.
pub const EXIT_PORT: u16 = 3128;

/// The only way out of a sandbox: a socket that listens inside its network namespace, where there is nothing else, and is
/// served from outside.
#[derive(Debug)]
pub struct Exit {
    /// Whose.
    pub sandbox: SandboxId,
    /// What it may reach, as it was provisioned.
    pub network: Network,
    /// The socket. It ends with the last copy of it, so whoever serves it must let go of it when the sandbox has ended.
    pub listener: std::net::TcpListener,
}

/// What becomes of exits.
#[derive(Debug)]
pub enum ExitNews {
    /// There is one to be served. One that is served already may come again, and is then served in place of the former.
    Opened(Exit),
    /// The sandbox has ended, or its keeper cannot be heard any more, and then brings again what is still there.
    Ended(SandboxId),
}

/// News of exits as they come. Dropping it is how to stop.
pub struct Exits {
    receiver: tokio::sync::mpsc::Receiver<ExitNews>,
    _feeder: Option<Feeder>,
}

/// The task that feeds a channel, and ends with it.
struct Feeder(tokio::task::JoinHandle<()>);

impl Drop for Feeder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Exits {
    /// None, ever: of hands that reach nothing.
    #[must_use]
    pub fn none() -> Self {
        Self { receiver: tokio::sync::mpsc::channel(1).1, _feeder: None }
    }

    /// What comes out of this channel, fed by a task that shall end with it.
    pub(crate) fn fed_by(
        receiver: tokio::sync::mpsc::Receiver<ExitNews>,
        feeder: tokio::task::JoinHandle<()>,
    ) -> Self {
        Self { receiver, _feeder: Some(Feeder(feeder)) }
    }

    /// The next one; `None` if there will be no more.
    pub async fn next(&mut self) -> Option<ExitNews> {
        self.receiver.recv().await
    }
}

/// A folder of the host inside a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The folder on the host; absolute.
    pub host: PathBuf,
    /// Where it appears inside; absolute, without `..`.
    pub inside: PathBuf,
    /// Whether writes inside are refused.
    pub access: Access,
}

/// What may be done in a mounted folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Reading and running only.
    ReadOnly,
    /// Whatever the folder's own permissions allow to the sandbox's user.
    ReadWrite,
}

/// How much one sandbox may use. All of its processes share each figure, except where a field says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory, with what its files in memory take. 2 GiB: enough for a compiler, small enough for several at once.
    pub memory_bytes: u64,
    /// Processes and threads. 512: enough for a parallel build, too few for a fork bomb to be felt.
    pub processes: u64,
    /// One file. 1 GiB.
    pub file_size_bytes: u64,
    /// Open files of one process. 4,096.
    pub open_files: u64,
    /// All files that it writes, together. 2 GiB, and never more than three quarters of `memory_bytes`, because they
    /// live in memory.
    pub disk_bytes: u64,
    /// Processor time per time, in hundredths of one processor. 200: two processors.
    pub cpu_percent: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 2 << 30,
            processes: 512,
            file_size_bytes: 1 << 30,
            open_files: 4096,
            disk_bytes: 2 << 30,
            cpu_percent: 200,
        }
    }
}

/// One thing to do in a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Where.
    pub sandbox: SandboxId,
    /// Names this call for ever: asking again with the same id never runs it again.
    pub call_id: String,
    /// The fencing token of the lease under which the caller acts.
    pub fence: u64,
    /// The tool: `bash`, `read`, `write`, `edit`, `glob` or `grep`.
    pub name: String,
    /// The tool's input as the model wrote it.
    pub input: serde_json::Value,
    /// How long it may take.
    pub timeout: Duration,
}

/// A sandbox that lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxInfo {
    /// Its id.
    pub id: SandboxId,
    /// How long ago it was provisioned.
    pub age: Duration,
    /// How long ago it was last asked for anything.
    pub idle: Duration,
    /// The highest fencing token seen.
    pub fence: u64,
    /// Memory in use, where it can be measured.
    pub memory_bytes: Option<u64>,
    /// Calls that are running.
    pub calls: u64,
}

/// A deliverable that was copied out of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Its path below the outputs folder; plain components only.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
}

/// Sandboxes that are to be kept ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// What they are made of. What they may reach is said when they are provisioned; only whether they have an exit is said
    /// here.
    pub resources: Resources,
    /// How many.
    pub count: usize,
}

/// How full a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Sandboxes that were provisioned and are there.
    pub live: usize,
    /// Provisions that wait for room.
    pub waiting: usize,
    /// Sandboxes that are kept ready.
    pub ready: usize,
    /// How many sandboxes there may be.
    pub sandboxes_max: usize,
}

/// A sandbox that was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The file.
    pub written: Written,
    /// What the sandbox was built on, an image by its content too: for [`Restore::base`].
    pub base: String,
}

/// A maker of sandboxes.
///
/// Contract, for every implementation:
///
/// - Each method may be called by many tasks at once, and its future dropped at any time: what was asked may then
///   still happen.
/// - An error answers two questions: [`Error::may_have_happened`] and [`Error::may_retry`].
/// - `provision`, `equip`, `execute`, `cancel`, `touch` and `save` carry a fencing token. A sandbox remembers the highest that
///   it saw; a lower one is [`Error::Fenced`] and does nothing.
/// - A sandbox whose owner server dies lives on, with its running calls, until it is destroyed or its keeper gives up on
///   every server.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Makes the sandbox `id`. Where it lives already, this does nothing but raise the fence: provisioning twice is
    /// provisioning once. An id that died is [`Error::Gone`] as long as the provider remembers it, so that the loss of a
    /// workspace is never mistaken for a fresh one; a new sandbox takes a new id.
    ///
    /// Where there is no room it may wait, for a bounded time and in the order of asking, and is [`Error::Busy`]
    /// then. `destroy` ends the wait, too.
    ///
    /// With [`Resources::restore`] it starts with everything that the snapshot holds, or not at all: what cannot be restored,
    /// or was saved on another base than this one is now, is [`Error::Unrestorable`], and nothing is made.
    async fn provision(&self, id: &SandboxId, fence: u64, resources: &Resources) -> Result<(), Error>;

    /// Brings what a session brings. Asked for once the sandbox lives and before its first call; asking again is as good as
    /// once. The hands of fakes need nothing.
    async fn equip(&self, _id: &SandboxId, _fence: u64, _equipment: &Equipment) -> Result<(), Error> {
        Ok(())
    }

    /// Makes ready what sandboxes of this base start from, by installing its packages, and says meanwhile how far it is. Once
    /// for each distinct base, however often and by however many servers it is asked for; afterwards it does nothing.
    /// `provision` of a base that is not prepared is [`Error::Unprepared`]. The hands of fakes have no packages.
    async fn prepare(&self, base: &Base, _progress: &Progress<'_>) -> Result<(), Error> {
        match base.packages.is_empty() {
            true => Ok(()),
            false => Err(Error::refused("these hands cannot install packages")),
        }
    }

    /// Ends what is left of preparations that nobody is at any more, because their servers died or gave up. Those that go on,
    /// of whatever server, are left alone. Hands that prepare nothing leave nothing.
    async fn tidy(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Runs a call and waits for its output. At most once per call id: asking again while it runs waits for the same run,
    /// asking afterwards returns the kept output. What the tool itself could not do is an [`Output`] that says so, not an
    /// error.
    async fn execute(&self, call: Call) -> Result<Output, Error>;

    /// Stops a running call, whose `execute` then returns what it had so far. `false` if no such call is running.
    async fn cancel(&self, id: &SandboxId, fence: u64, call_id: &str) -> Result<bool, Error>;

    /// Says that the sandbox is in use: it is not idle now, and goes on if it stood still. [`Error::Gone`] if it is not there;
    /// unlike `provision` this never makes one, so that an empty one is never mistaken for it.
    async fn touch(&self, id: &SandboxId, fence: u64) -> Result<(), Error>;

    /// Copies the regular files of `/mnt/session/outputs` into the folder `into`, at most a bounded number of them and a
    /// bounded size in all. The folder is made, for this user alone, if there is anything to copy. Nothing is written
    /// outside `into`, whatever the sandbox says.
    async fn collect_outputs(&self, id: &SandboxId, into: &Path) -> Result<Vec<Collected>, Error>;

    /// Writes everything in the sandbox's private layer (its workspace, what was installed, whatever else it wrote) into the new
    /// file `into`, for [`Resources::restore`]. Processes are not saved. Refused as [`Error::Busy`] while a call runs.
    ///
    /// From then on the sandbox stands still, so that what was saved stays all there is, until it is destroyed or used again;
    /// touching it or provisioning it again is a use. A use in the middle of saving is not kept waiting: saving ends with [`Error::Busy`].
    /// After any error no file is left and the sandbox goes on unharmed. Saving does not count as a use.
    async fn save(&self, id: &SandboxId, fence: u64, into: &Path) -> Result<Saved, Error>;

    /// Ends the sandbox and everything in it. Unknown and dead ones count as destroyed.
    async fn destroy(&self, id: &SandboxId) -> Result<(), Error>;

    /// Every sandbox that lives.
    async fn list(&self) -> Result<Vec<SandboxInfo>, Error>;

    /// Says which sandboxes to keep ready, in place of what this caller said before. A wish: a provider may keep fewer, or
    /// none, and what is kept goes before anybody is refused for want of room. What is ready has no id, is not listed, and
    /// cannot be told from a new sandbox by whoever provisions it. The wish goes with its caller.
    async fn keep_ready(&self, pools: &[Pool]) -> Result<(), Error>;

    /// The exits of the sandboxes that live and have a network, then those of new ones, and which have ended. To whoever
    /// asks: several servers may serve one exit. What connects before anybody serves it waits.
    fn exits(&self) -> Exits;
}

/// Hears how far something is, in a line for people.
pub type Progress<'a> = dyn Fn(&str) + Send + Sync + 'a;

/// Why a provider did not do what was asked.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Error {
    /// The sandbox is dead or was never there: its workspace is lost.
    #[error("the sandbox is gone: {reason}")]
    Gone {
        /// Why, where it is known.
        reason: String,
    },
    /// Somebody with a newer lease has used this sandbox.
    #[error("a newer lease holds the sandbox (fence {seen})")]
    Fenced {
        /// The highest fencing token seen.
        seen: u64,
    },
    /// The keeper of the sandboxes cannot be reached or started, or did not answer in time.
    #[error("sandboxes are unavailable: {reason}")]
    Unavailable {
        /// What failed.
        reason: String,
    },
    /// Too much is asked at once; nothing was done.
    #[error("too busy: {reason}")]
    Busy {
        /// Which bound was reached.
        reason: String,
    },
    /// The base of this sandbox has packages and is not prepared; nothing was done.
    #[error("the packages of this sandbox are not installed yet")]
    Unprepared {},
    /// A package could not be installed.
    #[error("{manager} could not install {}: {}", package.as_deref().unwrap_or("its packages"), lines.join("\n"))]
    Packages {
        /// Who was to install it.
        manager: Manager,
        /// Which one, where that can be told.
        package: Option<String>,
        /// The manager's last lines.
        lines: Vec<String>,
    },
    /// No sandbox can be made of this snapshot: it is missing, corrupt, of another base, or holds what is not allowed or too
    /// much. Nothing was made.
    #[error("the snapshot cannot be restored: {reason}")]
    Unrestorable {
        /// What is wrong with it.
        reason: String,
    },
    /// This machine cannot hold what a sandbox promises, or the request is not allowed.
    #[error("refused: {reason}")]
    Refused {
        /// Which guard or rule, and what to do about it.
        reason: String,
    },
}

impl Error {
    /// Whether the request may have had an effect.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Gone { .. } | Self::Unavailable { .. } => true,
            Self::Fenced { .. }
            | Self::Busy { .. }
            | Self::Refused { .. }
            | Self::Unprepared {}
            | Self::Packages { .. }
            | Self::Unrestorable { .. } => false,
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Busy { .. } => true,
            Self::Gone { .. }
            | Self::Fenced { .. }
            | Self::Refused { .. }
            | Self::Unprepared {}
            | Self::Packages { .. }
            | Self::Unrestorable { .. } => false,
        }
    }

    pub(crate) fn gone(reason: impl Into<String>) -> Self {
        Self::Gone { reason: reason.into() }
    }

    pub(crate) fn unavailable(reason: impl fmt::Display) -> Self {
        Self::Unavailable { reason: reason.to_string() }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}
