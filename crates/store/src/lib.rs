//! Where it lasts: logs, inboxes, leases, resources, keys.
//!
//! # The session log
//!
//! The log is one of the project's three interfaces. Its calls, and what they promise:
//!
//! - **`get_session`** ([`Store::get_session`]; [`Store::look`] for the brain): the session's own facts and its
//!   state. The state is updated in the transaction of the append that changes it: it is never behind the log.
//! - **`emit_event(s)`** ([`Store::append`] for the brain, [`Store::send_events`] for clients): append-only; all of
//!   the events or none; each gets the next position, from 1, without a gap, and a `processed_at` that is strictly
//!   later than the one before, whatever the clock does. Acknowledged only when durable. A brain's append carries
//!   its lease's token and the position it thinks is the last; a stale token or position is refused and writes
//!   nothing.
//! - **`get_events`** ([`Store::get_events`]): any positional slice, forwards or backwards, by kind, by time. Its
//!   cost depends on the slice, not on the length of the log. What one reader saw, every later reader sees, in the
//!   same order.
//! - **`follow`** ([`Store::follow`]): the one reader behind history, live streams and resumed streams. Catches up
//!   from the store, then follows. Misses nothing and repeats nothing; what it shows is durable already, previews
//!   apart.
//!
//! # What this crate refuses to do
//!
//! It does not know what an event means: admission, states and steps come from `session`. It never runs a model, a
//! hand or a request. It can read no secret: keys are hashed, credentials
//! sealed. All SQL is in `sqlite/`
//! and `postgres/`.
//!
//! What a change does to a session is decided in `rules/`, the same for every engine; `engine` is the seam below.

pub mod clock;
mod engine;
pub mod error;
mod fair;
pub mod follow;
mod hub;
pub mod keys;
pub mod lease;
pub mod limits;
mod lock;
pub mod log;
mod memory;
mod postgres;
pub mod previews;
mod ready;
pub mod resources;
mod rules;
pub mod sessions;
mod sqlite;
pub mod upkeep;
pub mod vaults;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::time::Timestamp;

pub use clock::{Clock, Ids, ManualClock, SystemClock};
pub use error::{AppendError, ChangeError, Error, OpenError};
pub use follow::{Changed, Follower, From, Item};
pub use keys::{ApiKey, KeyHash, Keys, hash_key};
pub use lease::{LEASE, Lease, Token, View, Waiting, WaitsFor};
pub use limits::Limits;
pub use log::{Order, Slice, Stored, TimeBounds};
pub use memory::{Asked, Fate, Luck, Weather};
pub use previews::Previews;
pub use resources::{AgentQuery, Change, EnvironmentQuery};
pub use sessions::{Brought, Cursor, Holding, NewSession, SealedToken, Seen, SessionQuery};
pub use upkeep::{check_format, migrate_directory};
pub use vaults::{
    Added, CREDENTIALS_MAX, CredentialQuery, KeptCredential, Sealed, VaultKey, VaultKeys, VaultQuery, Wanted,
};

use engine::Engine;
use hub::Hub;
use postgres::Postgres;
use sqlite::Sqlite;

/// The store of one database. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    options: Options,
    hub: Arc<Hub>,
    previews: Previews,
    engine: Arc<dyn Engine>,
}

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// Says when things happen and when leases lapse.
    pub clock: Arc<dyn Clock>,
    /// Makes ids.
    pub ids: Ids,
    /// How often, roughly, a waiting [`Store::claim`] looks for leases that have lapsed.
    pub lapsed_poll: Duration,
    /// How much of the write-ahead log's file is written out when the store is opened. A file that grows makes each
    /// sync wait for the file system's journal, which takes milliseconds on a busy machine; one that is overwritten
    /// in place does not. It grows to what it needs anyway and is then used again, so this matters for the first
    /// seconds only; a server may like it, a test does not need it.
    pub log_space_bytes: u64,
    /// How many sessions may run and wait.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            ids: Ids::system(),
            lapsed_poll: Duration::from_millis(700),
            log_space_bytes: 0,
            limits: Limits::default(),
        }
    }
}

impl Store {
    /// Opens the data directory, making it if need be: takes its lock, brings the database to the current format,
    /// voids the leases of whoever had it before.
    pub fn open(data_dir: &Path, options: Options) -> Result<Self, OpenError> {
        let hub = Arc::new(Hub::default());
        let engine = Sqlite::open(data_dir, options.clone(), &hub)?;
        Ok(Self::over(options, hub, Arc::new(engine)))
    }

    /// Opens a database of PostgreSQL, which many processes may share: brings it to the current format first. `url` is
    /// such as `postgres://user:password@host/name`; `listen_url` the same database without a pooler in between, if
    /// `url` has one that does not keep connections.
    pub async fn connect(url: &str, listen_url: Option<&str>, options: Options) -> Result<Self, OpenError> {
        let hub = Arc::new(Hub::default());
        let engine = Postgres::connect(url, listen_url, options.clone(), &hub).await?;
        Ok(Self::over(options, hub, Arc::new(engine)))
    }

    /// Tells the other processes of this database a short word, of a few hundred bytes at most. It may be lost.
    pub async fn tell(&self, word: &str) {
        self.0.engine.tell(word).await;
    }

    /// What the other processes tell from now on, and what this one has to say to itself.
    pub fn words(&self) -> tokio::sync::broadcast::Receiver<String> {
        self.0.hub.words()
    }

    fn over(options: Options, hub: Arc<Hub>, engine: Arc<dyn Engine>) -> Self {
        let previews = Previews::new(hub.clone(), engine.clone());
        Self(Arc::new(Inner { options, hub, previews, engine }))
    }

    /// Whether the database answers. Bounded in time.
    pub async fn ping(&self) -> Result<(), Error> {
        self.0.engine.ping().await
    }

    /// Whether changes made by other processes are heard of at once. If not, they are seen with the next poll.
    pub fn is_listening(&self) -> bool {
        self.0.engine.is_listening()
    }

    /// Finishes what has been accepted, then closes: waiting claims and followers end, and calls on other clones
    /// fail with [`Error::Closed`].
    pub async fn close(self) {
        self.0.engine.close().await;
        self.0.hub.close();
    }

    /// The maker of ids.
    pub fn ids(&self) -> &Ids {
        &self.0.options.ids
    }

    /// The time by the store's clock.
    pub fn now(&self) -> Timestamp {
        self.0.options.clock.now()
    }

    /// Where pieces of answers are published while they are made.
    pub fn previews(&self) -> &Previews {
        &self.0.previews
    }
}

/// Brings the database of PostgreSQL at this address to the format of this version; gives the format found and the one
/// reached. Opening a store does the same.
pub async fn migrate(url: &str) -> Result<(u32, u32), OpenError> {
    postgres::migrate_at(url).await
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Store")
    }
}
