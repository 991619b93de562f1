//! The brain: claims sessions that have something to do and drives each until it rests.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use broker::Broker;
use futures_util::FutureExt as _;
use protocol::id::SessionId;
use sandbox::{Provider, Resources};
use store::{Lease, Store};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::drive::{self, Halt};
use crate::faults::{Faults, NoFaults, Point};
use crate::mcp_servers::McpServers;
use crate::model::Providers;
use crate::pauses;
use crate::permits::{ModelLimits, Permits};
use crate::pools;
use crate::toolset::WebTools;
use crate::web::Web;
use crate::workspace::Snapshots;

/// How many sessions one brain drives at once unless told otherwise.
const SESSIONS_MAX: usize = 1_024;
/// A session over which so many brains died in a row, without an answer or a result in between, is not driven any
/// further. Few enough that the others' patience is not lost, and enough that a machine which is restarted a few times
/// is not mistaken for it.
const DEATHS_MAX: u32 = 5;
/// How many sessions are claimed at once: enough that the claiming does not hold up a busy brain, and few enough that
/// other brains get their share.
const CLAIMS_MAX: usize = 16;
/// How long to wait after the store failed before asking it again.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How long a model request that is under way at shutdown may take to end, unless it is said otherwise. Most answers
/// end within it, and it leaves room in the twenty or thirty seconds that supervisors of processes wait.
const FINISH_TIME_MAX: Duration = Duration::from_secs(15);
/// How long a shutdown waits until sandboxes that nobody needs are ended, which takes milliseconds.
const ERRANDS_TIME_MAX: Duration = Duration::from_secs(1);

/// How a brain works.
pub struct Options {
    /// What a new sandbox gets.
    pub resources: Resources,
    /// Where saved workspaces are; `None`: none is restored.
    pub snapshots: Option<Snapshots>,
    /// What fetches sessions' repositories; `None`: nothing does.
    pub repositories: Option<repositories::Repositories>,
    /// Where deliverables are copied to, a folder for each session.
    pub outputs_dir: PathBuf,
    /// Names this brain in leases.
    pub holder: String,
    /// How many sessions it drives at once: a bound on memory (a transcript each) and on open connections.
    pub sessions_max: usize,
    /// Limits on model requests in flight, for all brains together.
    pub model_limits: ModelLimits,
    /// How long what is worth finishing may take once [`Brain::run`] is told to shut down.
    pub finish_time_max: Duration,
    /// Who spends credentials for sessions; `None`: they bring none into their sandboxes.
    pub broker: Option<Broker>,
    /// What runs the web tools. Without it they are not offered to models.
    pub web: Option<Web>,
    /// What connects sessions to their agents' MCP servers. Without it their tools are not offered to models.
    pub mcp: Option<Arc<McpServers>>,
    /// Where it may die. [`NoFaults`] outside the crash tests.
    pub faults: Arc<dyn Faults>,
}

impl Options {
    /// The usual options, with deliverables below `outputs_dir`.
    pub fn new(outputs_dir: PathBuf) -> Self {
        Self {
            resources: Resources::default(),
            snapshots: None,
            repositories: None,
            outputs_dir,
            holder: format!("brain-{}", std::process::id()),
            sessions_max: SESSIONS_MAX,
            model_limits: ModelLimits::default(),
            finish_time_max: FINISH_TIME_MAX,
            broker: None,
            web: None,
            mcp: None,
            faults: Arc::new(NoFaults),
        }
    }
}

/// How a drive is told to stop.
///
/// A tool call goes on in its sandbox, whoever waits for it, and a wait before a retry costs nothing: another brain
/// takes them over at once. The tokens of a model request are paid for and lost with its connection, and deliverables
/// may be out of the next brain's reach: those are finished first, if they can be in time.
#[derive(Clone)]
pub(crate) struct Stop {
    /// Nothing more is begun, and what loses nothing by it is handed over.
    pub(crate) soon: CancellationToken,
    /// Everything is handed over.
    pub(crate) now: CancellationToken,
}

/// A stateless brain. Everything that it knows of a session it reads from the store, and forgets when it lets go.
pub struct Brain {
    pub(crate) store: Store,
    pub(crate) models: Arc<Providers>,
    pub(crate) hands: Arc<dyn Provider>,
    pub(crate) faults: Arc<dyn Faults>,
    pub(crate) permits: Permits,
    pub(crate) options: Options,
    /// What goes on beside the drives and is of no session's concern: sandboxes that are made ahead, or ended.
    pub(crate) errands: TaskTracker,
}

impl Brain {
    /// A brain over a store, the models it may ask and the hands it may use.
    pub fn new(store: Store, models: Arc<Providers>, hands: Arc<dyn Provider>, options: Options) -> Self {
        let permits = Permits::new(options.model_limits);
        let faults = Arc::clone(&options.faults);
        Self { store, models, hands, faults, permits, options, errands: TaskTracker::new() }
    }

    /// Which of the web tools its sessions have.
    pub(crate) fn web_tools(&self) -> WebTools {
        let web = self.options.web.as_ref();
        WebTools { has_fetch: web.is_some(), has_search: web.is_some_and(Web::can_search) }
    }

    /// Claims and drives sessions until `shutdown`, then hands over what it holds: tool calls and waits at once, a
    /// model request when it has ended, or when `finish_time_max` is over.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::select! {
            () = Arc::clone(&self).work(shutdown) => {}
            never = pauses::pass_on(&self.store, &self.models) => match never {},
            never = pools::keep(&self.store, &*self.hands, &self.options.resources) => match never {},
        }
    }

    async fn work(self: Arc<Self>, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        let stop = Stop { soon: shutdown.clone(), now: CancellationToken::new() };
        let places = Arc::new(Semaphore::new(self.options.sessions_max));
        loop {
            let first = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
            };
            let mut held = vec![first];
            while held.len() < CLAIMS_MAX
                && let Ok(place) = Arc::clone(&places).try_acquire_owned()
            {
                held.push(place);
            }
            let claimed = tokio::select! {
                // In order, because a brain that is told to stop claims nothing more.
                biased;
                () = shutdown.cancelled() => break,
                claimed = self.store.claim(&self.options.holder, held.len()) => claimed,
            };
            match claimed {
                Ok(leases) => {
                    for (lease, place) in leases.into_iter().zip(held) {
                        let brain = Arc::clone(&self);
                        let stop = stop.clone();
                        tracker.spawn(async move {
                            brain.hold(lease, &stop).await;
                            drop(place);
                        });
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "no session can be claimed");
                    tokio::select! {
                        () = tokio::time::sleep(STORE_PAUSE) => {}
                        () = shutdown.cancelled() => break,
                    }
                }
            }
        }
        tracker.close();
        if tokio::time::timeout(self.options.finish_time_max, tracker.wait()).await.is_err() {
            tracing::warn!(
                sessions = tracker.len(),
                "sessions are handed over in the middle of a model request"
            );
            stop.now.cancel();
            tracker.wait().await;
        }
        // The drives are over, so none of these is new. Whatever they leave is the reaper's.
        self.errands.close();
        let _ = tokio::time::timeout(ERRANDS_TIME_MAX, self.errands.wait()).await;
    }

    /// Drives one session until it rests; `false` if somebody else holds it or it has nothing to do. Lets go at once when
    /// `shutdown` comes.
    pub async fn wake(
        &self,
        session: &SessionId,
        shutdown: &CancellationToken,
    ) -> Result<bool, store::Error> {
        let Some(lease) = self.store.try_claim(session, &self.options.holder).await? else {
            return Ok(false);
        };
        self.hold(lease, &Stop { soon: shutdown.clone(), now: shutdown.clone() }).await;
        Ok(true)
    }

    /// Drives a session that was claimed for this brain until it rests, and gives the lease back. For those who claim
    /// in a way of their own.
    pub async fn drive(&self, lease: Lease, shutdown: &CancellationToken) {
        self.hold(lease, &Stop { soon: shutdown.clone(), now: shutdown.clone() }).await;
    }

    async fn hold(&self, lease: Lease, stop: &Stop) {
        let span = tracing::info_span!("drive", session.id = %lease.token.session, epoch = lease.token.epoch);
        self.faults.reached(Point::Claimed).await;
        async {
            let driving = async {
                if lease.deaths >= DEATHS_MAX {
                    tracing::error!(
                        deaths = lease.deaths,
                        "brains die over this session: its turn is given up"
                    );
                    drive::give_up(self, &lease.token, lease.deaths).await
                } else {
                    drive::drive(self, &lease, stop).await
                }
            };
            let driven = AssertUnwindSafe(driving).catch_unwind().await;
            let failure = match driven {
                Ok(Ok(()) | Err(Halt::ShuttingDown)) => None,
                Ok(Err(Halt::Lost)) => return,
                Ok(Err(Halt::Store(error))) => {
                    // What was last asked may have happened: the next holder reads the truth from the log.
                    tracing::error!(%error, "the store failed under a session");
                    tokio::time::sleep(STORE_PAUSE).await;
                    None
                }
                Ok(Err(halt @ Halt::Log(_))) => Some(halt.to_string()),
                Err(panic) => Some(format!("internal error: {}", text_of(&*panic))),
            };
            if let Some(message) = failure {
                tracing::error!(message, "a drive failed");
                // What a client sees names the layer, not the inside story.
                self.record_failure(&lease).await;
            }
            if let Err(error) = self.store.release(lease).await {
                tracing::error!(%error, "a lease could not be released; it expires by itself");
            }
        }
        .instrument(span)
        .await;
    }
}

impl Brain {
    /// Records a failure of our own. If even that fails, the session is ended: it must not come back every time.
    async fn record_failure(&self, lease: &Lease) {
        const MESSAGE: &str = "the brain failed while driving this session";
        let recording = drive::record_internal_failure(self, &lease.token, MESSAGE);
        let recorded = match AssertUnwindSafe(recording).catch_unwind().await {
            Ok(recorded) => recorded,
            Err(_) => drive::end_session(self, &lease.token, MESSAGE).await,
        };
        if let Err(error) = recorded {
            tracing::error!(%error, "the failure could not be recorded");
        }
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}
