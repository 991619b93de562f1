//! Driving one session: fold, decide, act.
//!
//! ```text
//!        ┌──────────────────────────── facts ───────────────────────────┐
//!        ▼                                                              │
//!   next_step ──drafts──▶ append ──▶ act: call the model, run a call, back off
//!        ▲                  │ moved                     │
//!        └──────────────────┘                           └─▶ rest, stop: release the lease
//! ```
//!
//! The process may die between any two lines. What is not in the log has not happened, except in a sandbox, whose
//! ledger answers for it. A drive that loses its lease stops at once and leaves everything to the next holder.

mod long;
mod mcp;

use std::sync::Arc;
use std::time::Duration;

use protocol::agent::BuiltinTool;
use protocol::event::{Body, ModelUsage, RetryStatus, SessionError, SessionErrorKind};
use protocol::id::{EventId, SandboxId};
use protocol::position::Position;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use session::step::{self, Act, Draft, Failure, FailureKind, Ready, failed, next_step, terminated_events};
use store::{AppendError, LEASE, Lease, Order, Slice, Stored, Token, View, WaitsFor};
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::admission::Request;
use crate::brain::{Brain, Stop};
use crate::context::{self, Transcript};
use crate::faults::Point;
use crate::hands::{self, Outcome};
use crate::luggage::Luggage;
use crate::mcp_servers::Links;
use crate::model;
use crate::speculation::{self, Ahead, Speculation, obtain, once_polled};
use crate::speech::Speech;
use crate::web;
use crate::workspace::{self, Beginning, Unmade};

/// How often a lease is renewed while the brain waits: a third of its length leaves room for two misses.
const RENEW_EVERY: Duration = Duration::from_millis(3_300);
/// How long a lease counts as held after it was confirmed: a little less than it lasts, so that who cannot reach the
/// store stops before somebody else can begin.
const HELD: Duration = LEASE.saturating_sub(Duration::from_secs(1));
/// How long to wait before a store that was away is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long the end of a turn waits for its deliverables.
const COLLECT_MAX: Duration = Duration::from_secs(20);
/// How long a call waits for its sandbox before clients are shown that it does. Most take a hundredth of it.
const WAIT_SHOWN_AFTER: Duration = Duration::from_millis(200);
/// How many events are read from the log at once.
const REPLAY_EVENTS: usize = 1_000;

/// How many calls are looked at at once when the input of one is looked for. An answer rarely has more.
const LOOK_BACK_EVENTS: usize = 16;
/// The kinds of event that record a call.
const USES: [&str; 3] = ["agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use"];

/// What is read of an event that records a call.
#[derive(Deserialize)]
struct Use<'a> {
    id: EventId,
    #[serde(borrow)]
    input: &'a RawValue,
}

/// Why a drive stopped before the session came to rest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Halt {
    /// The lease or the session is gone; somebody else goes on, or nobody needs to.
    #[error("the lease is lost")]
    Lost,
    /// The process is shutting down; another brain goes on.
    #[error("the brain is shutting down")]
    ShuttingDown,
    /// The store failed; what was last asked of it may have happened.
    #[error("the store failed")]
    Store(#[from] store::Error),
    /// The log holds something that cannot be read.
    #[error("the log cannot be read")]
    Log(#[from] serde_json::Error),
}

/// Drives the session until it rests.
pub(crate) async fn drive(brain: &Brain, lease: &Lease, stop: &Stop) -> Result<(), Halt> {
    let token = &lease.token;
    // Watched from before the first look, so that no change falls between a look and a wait.
    let changed = brain.store.changed(&token.session);
    let view = brain.store.look(&token.session).await?.ok_or(Halt::Lost)?;
    let renewals = renewals();
    let held_until = lease.held_since + HELD;
    let mut drive = Drive {
        brain,
        token,
        stop,
        changed,
        renewals,
        held_until,
        view,
        transcript: Transcript::new(),
        retry_after: None,
        speculation: None,
        links: None,
    };
    // In a box: what waits for a drive would else have a type as deep as everything below it.
    let driven = Box::pin(drive.run()).await;
    // However it ended: what is not in the log is of no use to the next holder.
    if let Some(speculation) = drive.speculation.take() {
        speculation.discard(&brain.errands, &brain.hands);
    }
    drive.unlink();
    driven
}

/// Records that the brain itself failed, so that the session does not hang in silence.
pub(crate) async fn record_internal_failure(brain: &Brain, token: &Token, message: &str) -> Result<(), Halt> {
    let view = brain.store.look(&token.session).await?.ok_or(Halt::Lost)?;
    let failure = Failure {
        kind: FailureKind::Internal,
        message: format!("harness: {message}"),
        retryable: true,
        attempts_max: INTERNAL_ATTEMPTS_MAX,
        usage: ModelUsage::default(),
    };
    let facts = failed(&view.state, failure, || brain.store.ids().make());
    let step = next_step(&view.state, &view.inbox, facts, Ready::Wait, || brain.store.ids().make());
    match brain.store.append(token, view.state.head, step.drafts).await {
        Ok(_) | Err(AppendError::Moved(_)) => Ok(()),
        Err(AppendError::Fenced) => Err(Halt::Lost),
        Err(AppendError::Store(error)) => Err(error.into()),
    }
}

/// Records that brains died over this session one after the other, and that the turn is given up: it must not go
/// round for ever. The client may prompt again.
pub(crate) async fn give_up(brain: &Brain, token: &Token, deaths: u32) -> Result<(), Halt> {
    let mut view = brain.store.look(&token.session).await?.ok_or(Halt::Lost)?;
    // Its client may have ended the turn meanwhile.
    while view.state.wants_brain() {
        let message = format!("harness: the brain died {deaths} times in a row while driving this session");
        let facts = step::give_up(&view.state, message, || brain.store.ids().make());
        let step = next_step(&view.state, &view.inbox, facts, Ready::Wait, || brain.store.ids().make());
        match brain.store.append(token, view.state.head, step.drafts).await {
            Ok(_) => return Ok(()),
            Err(AppendError::Moved(moved)) => view = *moved,
            Err(AppendError::Fenced) => return Err(Halt::Lost),
            Err(AppendError::Store(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Ends a session by the shortest way, without asking what else would follow. For a session whose next step cannot be
/// decided.
pub(crate) async fn end_session(brain: &Brain, token: &Token, message: &str) -> Result<(), Halt> {
    let view = brain.store.look(&token.session).await?.ok_or(Halt::Lost)?;
    let message = format!("harness: {message}");
    let error = SessionError::new(SessionErrorKind::UnknownError, message, RetryStatus::Terminal);
    let [thread, session] = terminated_events(&view.state);
    let bodies = [Body::Error { error }, thread, session];
    let drafts = bodies.map(|body| Draft::New { id: brain.store.ids().make(), body }).into();
    match brain.store.append(token, view.state.head, drafts).await {
        Ok(_) | Err(AppendError::Moved(_)) => Ok(()),
        Err(AppendError::Fenced) => Err(Halt::Lost),
        Err(AppendError::Store(error)) => Err(error.into()),
    }
}

/// A bug that hits the same session this often in a row ends it.
const INTERNAL_ATTEMPTS_MAX: u32 = 3;

struct Drive<'a> {
    brain: &'a Brain,
    token: &'a Token,
    stop: &'a Stop,
    changed: store::Changed,
    renewals: tokio::time::Interval,
    /// Until when the lease is certainly held: counted from before it was last confirmed.
    held_until: Instant,
    view: View,
    transcript: Transcript,
    /// How long the provider asked to wait after the last failure.
    retry_after: Option<Duration>,
    /// A sandbox that was begun ahead of the first call.
    speculation: Option<Speculation>,
    /// The links to the agent's MCP servers, once the turn wants them.
    links: Option<Links>,
}

/// How a first call came by its sandbox.
enum Obtained {
    /// It is in the log.
    Recorded(SandboxId),
    /// There is none, and this is what the call came to, if anybody still waits for it.
    Not(Vec<Draft>),
}

/// What ends the wait for an act.
enum Woken<T> {
    Done(T),
    Interrupted,
}

impl Drive<'_> {
    async fn run(&mut self) -> Result<(), Halt> {
        let mut facts = Vec::new();
        let mut ready = Ready::Wait;
        loop {
            let mut step =
                next_step(&self.view.state, &self.view.inbox, facts.clone(), ready, || self.new_id());
            self.link(&step);
            if asks_model(&step.drafts) && self.awaits_servers() {
                // What leads up to the request is recorded. The request follows when it is known what it can offer.
                step.drafts.pop();
                if self.append(step.drafts).await? {
                    (facts, ready) = (self.gather_tools().await?, Ready::Wait);
                }
                continue;
            }
            // Asked once: a request whose start is in the log is made.
            let is_stopping = self.stop.soon.is_cancelled();
            let drafts = if is_stopping && matches!(step.act, Act::CallModel { .. }) {
                // What has happened is recorded; the start of the next request is for the next holder.
                facts.clone()
            } else {
                step.drafts
            };
            if !self.append(drafts).await? {
                continue;
            }
            if is_stopping && begins(&step.act) {
                return Err(Halt::ShuttingDown);
            }
            ready = Ready::Wait;
            facts = Vec::new();
            if is_interrupted(&self.view) && !matches!(step.act, Act::Rest | Act::Stop) {
                // It came while the decision was on its way: nothing is begun that it would cut off.
                continue;
            }
            match step.act {
                Act::CallModel { request } => facts = self.call_model(request).await?,
                Act::Execute { call } => facts = self.execute(call).await?,
                Act::Collect => facts = self.collect_outputs().await?,
                Act::BackOff { failures } => {
                    if self.back_off(failures).await? {
                        ready = Ready::Retry;
                    }
                }
                Act::Rest | Act::Stop => return Ok(()),
            }
        }
    }

    fn new_id(&self) -> EventId {
        self.brain.store.ids().make()
    }

    fn drafts(&self, bodies: Vec<Body>) -> Vec<Draft> {
        bodies.into_iter().map(|body| Draft::New { id: self.new_id(), body }).collect()
    }

    /// Appends if the log has not moved since the last look. `false`: it has, and the view is fresh now.
    async fn append(&mut self, drafts: Vec<Draft>) -> Result<bool, Halt> {
        if drafts.is_empty() {
            return Ok(true);
        }
        self.brain.faults.reached(Point::BeforeAppend).await;
        let asked_at = Instant::now();
        let head = self.view.state.head;
        let appending = self.brain.store.append(self.token, head, drafts.clone());
        let appended = if asks_model(&drafts) {
            // What is in the log stays: it is read while the intent to ask the model is made durable.
            let (appended, caught_up) =
                tokio::join!(appending, catch_up(self.brain, self.token, &mut self.transcript, head));
            caught_up?;
            appended
        } else {
            appending.await
        };
        match appended {
            Ok(view) => {
                self.hold_until(asked_at + HELD);
                let before = std::mem::replace(&mut self.view, view);
                self.take_in(drafts, &before)?;
                self.brain.faults.reached(Point::Appended).await;
                Ok(true)
            }
            Err(AppendError::Moved(view)) => {
                self.view = *view;
                Ok(false)
            }
            Err(AppendError::Fenced) => Err(Halt::Lost),
            Err(AppendError::Store(error)) => Err(error.into()),
        }
    }

    /// Takes what was appended at the end of the log into a transcript that reaches so far. One that does not is left
    /// to read it later.
    fn take_in(&mut self, drafts: Vec<Draft>, before: &View) -> Result<(), Halt> {
        if self.transcript.position() != before.state.head {
            return Ok(());
        }
        for draft in drafts {
            match draft {
                Draft::New { id, body } => self.transcript.append(&id, body)?,
                Draft::Take(id) => {
                    let taken = before.inbox.iter().find(|event| event.id == id);
                    let body = taken.expect("only what was in the inbox is taken up").body.clone();
                    self.transcript.append(&id, body)?;
                }
            }
        }
        Ok(())
    }

    /// Appends what has happened, whatever else has happened meanwhile.
    async fn record(&mut self, bodies: Vec<Body>) -> Result<(), Halt> {
        let drafts = self.drafts(bodies);
        while !self.append(drafts.clone()).await? {}
        Ok(())
    }

    /// Waits for `act`; renews the lease meanwhile. [`Woken::Interrupted`] as soon as an interrupt waits. When the process
    /// is to stop the wait is another brain's.
    async fn wait_for<T>(&mut self, act: impl Future<Output = T>) -> Result<Woken<T>, Halt> {
        self.wait_until(act, &self.stop.soon).await
    }

    /// The same for what is worth finishing when the process is to stop.
    async fn finish<T>(&mut self, act: impl Future<Output = T>) -> Result<Woken<T>, Halt> {
        self.wait_until(act, &self.stop.now).await
    }

    async fn wait_until<T>(
        &mut self,
        act: impl Future<Output = T>,
        stop: &CancellationToken,
    ) -> Result<Woken<T>, Halt> {
        let mut act = std::pin::pin!(act);
        if Instant::now() >= self.held_until {
            return Err(Halt::Lost);
        }
        // A look that the store could not answer is owed.
        let mut owes_look = false;
        loop {
            let lapse = sleep_until(self.held_until);
            tokio::select! {
                biased;
                done = &mut act => return Ok(Woken::Done(done)),
                // Nobody may act on a lease that could have lapsed: somebody else may hold it now.
                () = lapse => return Err(Halt::Lost),
                () = self.changed.wait() => owes_look = !self.look().await?,
                () = sleep(RETRY_PAUSE), if owes_look => owes_look = !self.look().await?,
                _ = self.renewals.tick() => self.renew().await?,
                () = stop.cancelled() => return Err(Halt::ShuttingDown),
            }
            if is_interrupted(&self.view) {
                return Ok(Woken::Interrupted);
            }
        }
    }

    /// Looks at the session. `false`: the store is away for the moment.
    async fn look(&mut self) -> Result<bool, Halt> {
        match timeout_at(self.held_until, self.brain.store.look(&self.token.session)).await {
            Ok(Ok(view)) => {
                self.view = view.ok_or(Halt::Lost)?;
                Ok(true)
            }
            Ok(Err(error)) if error.may_try_again() => Ok(false),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Halt::Lost),
        }
    }

    /// Renews the lease. While the store is away the lease is held all the same, as long as it lasts.
    async fn renew(&mut self) -> Result<(), Halt> {
        let asked_at = Instant::now();
        match timeout_at(self.held_until, self.brain.store.renew(self.token)).await {
            Ok(Ok(())) => {
                self.hold_until(asked_at + HELD);
                Ok(())
            }
            Ok(Err(AppendError::Store(error))) if error.may_try_again() => {
                self.renewals.reset_after(RETRY_PAUSE);
                Ok(())
            }
            Ok(Err(AppendError::Store(error))) => Err(error.into()),
            Ok(Err(AppendError::Fenced | AppendError::Moved(_))) | Err(_) => Err(Halt::Lost),
        }
    }

    async fn call_model(&mut self, request: EventId) -> Result<Vec<Draft>, Halt> {
        let (brain, token) = (self.brain, self.token);
        let record = Arc::clone(&self.view.record);
        let model = &record.agent.spec.model.id;
        let provider = brain.models.resolve(model);
        let attempts_max = provider.map_or(1, |provider| provider.retry().attempts_max);
        // Held until the answer has ended; and taken before the log is read, so that who waits holds no transcript.
        let _permit = {
            let workspace = &self.view.workspace.clone();
            let (brains, draw) = (brain.store.live_brains(), self.draw());
            let asking = Request { workspace, model, provider, brains, draw };
            let waits = async || say_waiting(brain, token, Some(WaitsFor::Model)).await;
            match self.wait_for(asking.admitted(&brain.permits, waits)).await? {
                Woken::Done(Ok(admitted)) => {
                    if admitted.has_waited {
                        say_waiting(brain, token, None).await;
                    }
                    admitted.permit
                }
                Woken::Done(Err(failure)) => return Ok(self.request_failed(failure, attempts_max)),
                Woken::Interrupted => {
                    let speech = Speech::new(request, self.view.state.head);
                    return Ok(speech.cut_off(|| self.new_id()));
                }
            }
        };
        catch_up(self.brain, self.token, &mut self.transcript, self.view.state.head).await?;
        let offer = self.links.as_ref().and_then(Links::offer).unwrap_or_default();
        let prompt = self.transcript.prompt(
            &record.agent,
            &record.environment,
            &record.resources,
            brain.web_tools(),
            &offer,
        );
        self.brain.faults.reached(Point::BeforeModel).await;
        let mut asking = self.brain.models.ask(prompt);
        let mut speech = Speech::new(request, self.view.state.head);
        let mut ahead = self.is_sandbox_wanted_ahead().then(|| self.sandbox_ahead());
        loop {
            let mut begun = None;
            let next = once_polled(asking.next(), || begun = ahead.take().map(Ahead::begin));
            let woken = self.finish(next).await;
            self.speculation = begun.or(self.speculation.take());
            match woken? {
                Woken::Done(Some(Ok(model::Delta::Done(answer)))) => {
                    self.brain.faults.reached(Point::ModelAnswered).await;
                    self.retry_after = None;
                    let spec = &self.view.record.agent.spec;
                    let web = brain.web_tools();
                    return Ok(speech.answered(answer, spec, web, &offer, || self.brain.store.ids().make()));
                }
                Woken::Done(Some(Ok(delta))) => {
                    let heard = speech.hear(delta, || self.brain.store.ids().make());
                    for preview in heard.previews {
                        self.brain.store.previews().publish(&self.token.session, speech.after(), preview);
                    }
                    if let Some(draft) = heard.draft {
                        while !self.append(vec![draft.clone()]).await? {}
                        speech.follow(self.view.state.head);
                    }
                }
                Woken::Done(Some(Err(failure))) => return Ok(self.request_failed(failure, attempts_max)),
                Woken::Done(None) => unreachable!("an answer ends with Done or a failure"),
                Woken::Interrupted => return Ok(speech.cut_off(|| self.new_id())),
            }
        }
    }

    fn request_failed(&mut self, failure: model::Failure, attempts_max: u32) -> Vec<Draft> {
        self.retry_after = failure.retry_after;
        failed(&self.view.state, failure_of(failure, attempts_max), || self.new_id())
    }

    fn is_sandbox_wanted_ahead(&self) -> bool {
        let has_one = self.view.state.sandbox.is_some() || self.speculation.is_some();
        !has_one && speculation::is_wanted(&self.view.record, self.view.state.snapshot.as_ref())
    }

    fn sandbox_ahead(&self) -> Ahead {
        let brain = self.brain;
        Ahead {
            tracker: brain.errands.clone(),
            hands: Arc::clone(&brain.hands),
            sandbox: brain.store.ids().make(),
            fence: self.token.epoch,
            beginning: self.beginning(),
        }
    }

    /// What the session's next sandbox is made of.
    fn beginning(&self) -> Beginning {
        Beginning {
            resources: hands::resources(&self.brain.options.resources, &self.view.record),
            luggage: Luggage {
                broker: self.brain.options.broker.clone(),
                repositories: self.brain.options.repositories.clone(),
                workspace: self.view.workspace.clone(),
                record: Arc::clone(&self.view.record),
            },
            snapshot: self.view.state.snapshot.clone(),
            snapshots: self.brain.options.snapshots.clone(),
        }
    }

    /// A sandbox for the first call, and its place in the log.
    async fn obtain(&mut self, call: &EventId) -> Result<Obtained, Halt> {
        let (brain, token) = (self.brain, self.token);
        let mut begun = self.speculation.take();
        if let Some(reason) = self.view.state.untold_loss.clone() {
            if let Some(begun) = begun {
                begun.discard(&brain.errands, &brain.hands);
            }
            return Ok(Obtained::Not(self.drafts(workspace::was_lost(call, reason))));
        }
        let new = brain.store.ids().make();
        let beginning = self.beginning();
        let obtaining = async {
            loop {
                let mut obtaining =
                    std::pin::pin!(obtain(begun.as_mut(), &*brain.hands, &new, token.epoch, &beginning));
                let obtained = match timeout(WAIT_SHOWN_AFTER, &mut obtaining).await {
                    Ok(obtained) => obtained,
                    Err(_) => {
                        say_waiting(brain, token, Some(WaitsFor::Sandbox)).await;
                        obtaining.await
                    }
                };
                let Err(Unmade::Outcome(Outcome::Failed { error: sandbox::Error::Unprepared {} })) = obtained
                else {
                    return obtained;
                };
                say_waiting(brain, token, Some(WaitsFor::Packages)).await;
                let prepared = hands::prepare(&*brain.hands, &beginning.resources.base).await;
                say_waiting(brain, token, None).await;
                prepared.map_err(Unmade::Outcome)?;
            }
        };
        let woken = self.wait_for(obtaining).await;
        if let Ok(Woken::Done(Ok((sandbox, missed)))) = &woken {
            if let Some(begun) = begun.take_if(|begun| begun.sandbox != *sandbox) {
                begun.discard(&brain.errands, &brain.hands);
            }
            brain.faults.reached(Point::Provisioned).await;
            let missed = missed.iter().map(|error| Body::Error { error: error.clone() });
            let recorded =
                [Body::Sandbox { sandbox_id: sandbox.clone() }].into_iter().chain(missed).collect();
            self.record(recorded).await?;
            return Ok(Obtained::Recorded(sandbox.clone()));
        }
        // Nothing has run in either. What cannot be ended is found by the reaper.
        if let Some(begun) = begun {
            begun.discard(&brain.errands, &brain.hands);
        }
        speculation::destroy(&brain.errands, &brain.hands, new.clone());
        match woken? {
            Woken::Done(Err(Unmade::Outcome(Outcome::Fenced))) => Err(Halt::Lost),
            Woken::Done(Err(Unmade::Outcome(outcome))) => {
                tracing::warn!(session.id = %token.session, ?outcome, "a call got no sandbox");
                Ok(Obtained::Not(self.drafts(hands::results(call, &new, None, outcome))))
            }
            Woken::Done(Err(Unmade::Lost { snapshot, reason })) => {
                Ok(Obtained::Not(self.drafts(workspace::lost(call, snapshot, reason))))
            }
            Woken::Done(Ok(_)) => unreachable!("that was above"),
            Woken::Interrupted => Ok(Obtained::Not(Vec::new())),
        }
    }

    async fn execute(&mut self, call: EventId) -> Result<Vec<Draft>, Halt> {
        if let Some(tool) = self.view.state.builtin_tool_of(&call).filter(|tool| tool.is_web()) {
            return self.use_web(tool, call).await;
        }
        if let Some(mcp_call) = self.mcp_call(&call) {
            return self.use_mcp(mcp_call).await;
        }
        let brain = self.brain;
        let fence = self.token.epoch;
        let sandbox = match self.view.state.sandbox.clone() {
            Some(sandbox) => sandbox,
            None => match self.obtain(&call).await? {
                Obtained::Recorded(sandbox) => sandbox,
                Obtained::Not(results) => return Ok(results),
            },
        };
        let name = self
            .view
            .state
            .calls
            .iter()
            .find(|pending| pending.id == call)
            .map(|pending| pending.name.clone());
        let (Some(name), Some(input)) = (name, self.input_of(&call).await?) else {
            // The client's interrupt has resolved it meanwhile.
            return Ok(Vec::new());
        };
        if is_interrupted(&self.view) {
            return Ok(Vec::new());
        }
        brain.faults.reached(Point::BeforeCall).await;
        match self.wait_for(hands::execute(&*brain.hands, &sandbox, fence, &call, &name, input)).await? {
            Woken::Done(Outcome::Fenced) => Err(Halt::Lost),
            Woken::Done(outcome) => {
                brain.faults.reached(Point::CallDone).await;
                let is_output = matches!(outcome, Outcome::Output(_));
                let results = hands::results(&call, &sandbox, self.view.state.snapshot.as_ref(), outcome);
                Ok(self.drafts(match is_output && self.view.state.untold_restoration {
                    true => workspace::and_restored(results, self.view.state.snapshot.as_ref()),
                    false => results,
                }))
            }
            Woken::Interrupted => {
                // The result that the model sees is the interrupt's; what the tool still says does not matter, only
                // that it ends.
                hands::cancel(&*brain.hands, &sandbox, fence, &call).await;
                Ok(Vec::new())
            }
        }
    }

    /// Runs a call that needs no sandbox. It only reads, so one that was cut off is run again by whoever comes next.
    async fn use_web(&mut self, tool: BuiltinTool, call: EventId) -> Result<Vec<Draft>, Halt> {
        let (brain, token) = (self.brain, self.token);
        let Some(input) = self.input_of(&call).await? else { return Ok(Vec::new()) };
        if is_interrupted(&self.view) {
            return Ok(Vec::new());
        }
        brain.faults.reached(Point::BeforeCall).await;
        let record = Arc::clone(&self.view.record);
        let place = web::Place { store: &brain.store, session: &token.session, head: self.view.state.head };
        let web = brain.options.web.as_ref();
        match self.wait_for(web::run(web, place, &record.agent.spec, tool, &call, &input)).await? {
            Woken::Done(result) => {
                let result = result?;
                brain.faults.reached(Point::CallDone).await;
                Ok(self
                    .shown(&call, result)
                    .await?
                    .map(|result| self.drafts(vec![result]))
                    .unwrap_or_default())
            }
            Woken::Interrupted => Ok(Vec::new()),
        }
    }

    /// The input of a call that has no result yet. One that another brain has recorded is in the log, near its end.
    async fn input_of(&self, call: &EventId) -> Result<Option<Map<String, Value>>, Halt> {
        if let Some(input) = self.transcript.input_of(call) {
            return Ok(Some(input.clone()));
        }
        let mut until = self.view.state.head;
        loop {
            let slice = Slice {
                until: Some(until),
                order: Order::Desc,
                limit: LOOK_BACK_EVENTS,
                kinds: Some(USES.map(str::to_owned).to_vec()),
                ..Slice::default()
            };
            let entries = self.brain.store.get_events(&self.token.session, slice).await?;
            let Some(oldest) = entries.last().and_then(|entry| entry.position) else { return Ok(None) };
            for entry in &entries {
                let Use { id, input } = serde_json::from_slice(&entry.json)?;
                if id == *call {
                    return Ok(Some(serde_json::from_str(input.get())?));
                }
            }
            until = Position(oldest.0 - 1);
        }
    }

    /// Waits before a retry. `false`: an interrupt came first.
    async fn back_off(&mut self, failures: u32) -> Result<bool, Halt> {
        let wait = self.back_off_for(failures);
        Ok(matches!(self.wait_for(tokio::time::sleep(wait)).await?, Woken::Done(())))
    }

    /// From 0 to 1: sessions that failed or waited together must not come back together. The microseconds are random
    /// enough.
    fn draw(&self) -> f64 {
        f64::from(self.view.state.last_at.as_micros() as u32 % 1_000) / 1_000.0
    }

    fn back_off_for(&self, failures: u32) -> Duration {
        let jitter = self.draw();
        match self.brain.models.resolve(&self.view.record.agent.spec.model.id) {
            Some(provider) => provider.retry().wait(failures, self.retry_after, jitter),
            None => Duration::ZERO,
        }
    }

    /// Copies the deliverables out before the client hears that the turn is over. What cannot be had in time is left
    /// where it is: a turn must end.
    async fn collect_outputs(&mut self) -> Result<Vec<Draft>, Halt> {
        let brain = self.brain;
        let Some(sandbox) = self.view.state.sandbox.clone() else {
            return Ok(self.drafts(vec![Body::OutputsCollected {}]));
        };
        let into = brain.options.outputs_dir.join(self.token.session.as_str());
        let collecting = tokio::time::timeout(COLLECT_MAX, hands::collect(&*brain.hands, &sandbox, &into));
        match self.finish(collecting).await? {
            Woken::Done(Ok(())) => {}
            Woken::Done(Err(_)) => {
                tracing::warn!(session.id = %self.token.session, "the outputs were not collected in time");
            }
            Woken::Interrupted => return Ok(Vec::new()),
        }
        Ok(self.drafts(vec![Body::OutputsCollected {}]))
    }
}

/// Notes for clients what the session waits for. If that fails, a lost lease is noticed at the next renewal, and the
/// note is worth no more.
async fn say_waiting(brain: &Brain, token: &Token, reason: Option<WaitsFor>) {
    if let Err(error) = brain.store.set_waiting(token, reason).await {
        tracing::debug!(%error, "what the session waits for could not be noted");
    }
}

/// Whether this append ends with the intent to ask the model.
fn asks_model(drafts: &[Draft]) -> bool {
    matches!(drafts.last(), Some(Draft::New { body: Body::ModelRequestStart {}, .. }))
}

/// Reads the log up to `until` into the transcript, as far as it is not there yet. A page is parsed while the store
/// reads the next one.
async fn catch_up(
    brain: &Brain,
    token: &Token,
    transcript: &mut Transcript,
    until: Position,
) -> Result<(), Halt> {
    let after = transcript.position();
    if after >= until {
        return Ok(());
    }
    let mut page = page_after(brain, token, after, until).await?;
    while let Some(last) = page.last().and_then(|entry| entry.position) {
        let next = async {
            if last == until { Ok(Vec::new()) } else { page_after(brain, token, last, until).await }
        };
        let read = async {
            for entry in &page {
                let position = entry.position.expect("what is in the log has a position");
                transcript.read(position, &entry.kind, &entry.json)?;
            }
            Ok::<_, Halt>(())
        };
        // In this order: the store has begun to read when this thread is busy.
        let (next, read) = tokio::join!(biased; next, read);
        read?;
        page = next?;
    }
    // A session that was deleted meanwhile is found to be so by the next append.
    transcript.skip_to(until);
    Ok(())
}

async fn page_after(
    brain: &Brain,
    token: &Token,
    after: Position,
    until: Position,
) -> Result<Vec<Stored>, store::Error> {
    let slice = Slice {
        after,
        until: Some(until),
        order: Order::Asc,
        limit: REPLAY_EVENTS,
        kinds: Some(context::KINDS.map(str::to_owned).to_vec()),
        private: true,
        ..Slice::default()
    };
    brain.store.get_events(&token.session, slice).await
}

fn renewals() -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + RENEW_EVERY, RENEW_EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Whether the act is not to be begun by a brain that is about to stop.
fn begins(act: &Act) -> bool {
    match act {
        Act::CallModel { .. } | Act::Execute { .. } | Act::BackOff { .. } => true,
        Act::Collect | Act::Rest | Act::Stop => false,
    }
}

fn is_interrupted(view: &View) -> bool {
    view.inbox.iter().any(|event| matches!(event.body, Body::UserInterrupt { .. }))
}

fn failure_of(failure: model::Failure, attempts_max: u32) -> Failure {
    // What a failed request had used is not counted: the reference has zeros here, and providers do not bill it.
    let model::Failure { kind, retryable, retry_after: _, message, status: _, usage: _ } = failure;
    let usage = ModelUsage::default();
    let kind = match kind {
        model::FailureKind::Overloaded => FailureKind::Overloaded,
        model::FailureKind::RateLimited => FailureKind::RateLimited,
        model::FailureKind::Billing => FailureKind::Billing,
        model::FailureKind::Authentication
        | model::FailureKind::InvalidRequest
        | model::FailureKind::TooLarge
        | model::FailureKind::NotFound
        | model::FailureKind::Timeout
        | model::FailureKind::Connection
        | model::FailureKind::Stream
        | model::FailureKind::Server
        | model::FailureKind::Malformed
        | model::FailureKind::Unconfigured => FailureKind::RequestFailed,
    };
    Failure { kind, message, retryable, attempts_max, usage }
}
