//! A sandbox that is made while the model thinks, and how a call comes by one.
//!
//! ```text
//!                       request is on its way           first call
//! (lazy, pool, or has) ─────────────────────▶ begun ─────────────────▶ recorded, then used
//!                                               │ no call by the end of the drive
//!                                               └─────────────────────▶ destroyed
//! ```
//!
//! Nobody waits for it before a call needs it, and that it failed is said to nobody: the call makes another, and its
//! failure is heard. Nothing runs in it before it is in the log. What a dead brain has begun is the reaper's.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use protocol::agent::{AgentSpec, BuiltinTool};
use protocol::event::{SessionError, Snapshot};
use protocol::hands::Policy;
use protocol::id::SandboxId;
use repositories::Repositories;
use sandbox::Provider;
use session::Record;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::task::TaskTracker;

use crate::hands;
use crate::workspace::{Beginning, Unmade};

/// How long a request has the processor to itself once it has been asked for: on a connection that is there it has left
/// long before, and where one must be made first it mostly waits for the network.
const HEAD_START: Duration = Duration::from_millis(2);
/// How often one that no call has needed yet is asked for again, so that the reaper sees that it is not forgotten: well
/// within its grace, which is a minute unless it is told to look more often, and never less than sixteen seconds.
pub(crate) const TOUCH_EVERY: Duration = Duration::from_secs(5);

/// A larger snapshot is restored when a call needs it: that takes long enough to be a loss if none does.
const RESTORED_BYTES_MAX: u64 = 64 << 20;

/// A sandbox that is being made, or was made, and is not in the log.
pub(crate) struct Speculation {
    pub(crate) sandbox: SandboxId,
    /// Whether it lives, once that is known, and then what the session misses there.
    made: watch::Receiver<Option<Option<Missed>>>,
    task: AbortOnDrop,
}

/// What a session misses in its sandbox.
pub(crate) type Missed = Vec<SessionError>;

/// A brain that dies begins nothing more.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether a sandbox is worth making before a call asks for one.
pub(crate) fn is_wanted(record: &Record, snapshot: Option<&Snapshot>) -> bool {
    let is_light = snapshot.is_none_or(|snapshot| snapshot.size_bytes <= RESTORED_BYTES_MAX);
    match record.hands.policy {
        Policy::Speculative => is_light && needs_sandbox(&record.agent.spec),
        // Taking one that is ready takes no time, fetching what is to be in it does.
        Policy::Pool { .. } => is_light && Repositories::has_any(record) && needs_sandbox(&record.agent.spec),
        Policy::Lazy => false,
    }
}

/// Whether the agent has a tool that runs in a sandbox.
pub(crate) fn needs_sandbox(spec: &AgentSpec) -> bool {
    let runs_inside = |tool: &BuiltinTool| !matches!(tool, BuiltinTool::WebFetch | BuiltinTool::WebSearch);
    BuiltinTool::ALL.into_iter().filter(runs_inside).any(|tool| spec.policy_of(tool).is_some())
}

/// A sandbox that is to be made ahead.
pub(crate) struct Ahead {
    /// Who awaits the task.
    pub(crate) tracker: TaskTracker,
    pub(crate) hands: Arc<dyn Provider>,
    pub(crate) sandbox: SandboxId,
    pub(crate) fence: u64,
    pub(crate) beginning: Beginning,
}

impl Ahead {
    /// Begins, in a moment.
    pub(crate) fn begin(self) -> Speculation {
        let Self { tracker, hands, sandbox, fence, beginning } = self;
        let (said, made) = watch::channel(None);
        let id = sandbox.clone();
        let task: JoinHandle<()> = tracker.spawn(async move {
            tokio::time::sleep(HEAD_START).await;
            let is_made = beginning.provision(&*hands, &id, fence).await;
            while let Ok(missed) = &is_made {
                said.send_replace(Some(Some(missed.clone())));
                tokio::time::sleep(TOUCH_EVERY).await;
                if hands.touch(&hands::handle(&id), fence).await.is_err() {
                    break;
                }
            }
            said.send_replace(Some(None));
            if let Err(unmade) = is_made {
                tracing::debug!(sandbox.id = %id, ?unmade, "no sandbox was made ahead of the first call");
            }
        });
        Speculation { sandbox, made, task: AbortOnDrop(task.abort_handle()) }
    }
}

impl Speculation {
    /// Waits for it; `None` if it does not live.
    async fn made(&mut self) -> Option<Missed> {
        // It may have lived and died since: what counts is what was last heard.
        let heard = self.made.wait_for(Option::is_some).await;
        heard.ok().and_then(|made| made.clone().flatten())
    }

    /// Ends what nobody needs.
    pub(crate) fn discard(self, tracker: &TaskTracker, hands: &Arc<dyn Provider>) {
        let Self { sandbox, made: _, task } = self;
        drop(task);
        destroy(tracker, hands, sandbox);
    }
}

/// Ends a sandbox that is not in the log. That it could not be ended is the reaper's affair.
pub(crate) fn destroy(tracker: &TaskTracker, hands: &Arc<dyn Provider>, sandbox: SandboxId) {
    let hands = Arc::clone(hands);
    tracker.spawn(async move {
        if let Err(error) = hands.destroy(&hands::handle(&sandbox)).await {
            tracing::debug!(sandbox.id = %sandbox, %error, "a sandbox that nobody needs could not be ended");
        }
    });
}

/// The sandbox for a first call: the one that was begun, if it lives, or the new one. And what could not be brought into it.
pub(crate) async fn obtain(
    begun: Option<&mut Speculation>,
    hands: &dyn Provider,
    new: &SandboxId,
    fence: u64,
    beginning: &Beginning,
) -> Result<(SandboxId, Missed), Unmade> {
    if let Some(begun) = begun
        && let Some(missed) = begun.made().await
    {
        return Ok((begun.sandbox.clone(), missed));
    }
    beginning.provision(hands, new, fence).await.map(|missed| (new.clone(), missed))
}

/// Awaits `act`, and does `then` when it has been polled for the first time.
pub(crate) async fn once_polled<T>(act: impl Future<Output = T>, then: impl FnOnce()) -> T {
    let mut act = std::pin::pin!(act);
    let mut then = Some(then);
    std::future::poll_fn(|context| {
        let polled = act.as_mut().poll(context);
        if let Some(then) = then.take() {
            then();
        }
        match polled {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
