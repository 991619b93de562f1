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

use std::time::Duration;

use protocol::event::{Body, Event, ModelUsage};
use protocol::id::EventId;
use session::step::{Act, Draft, Failure, FailureKind, Ready, failed, next_step};
use store::{AppendError, Order, Slice, Token, View};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::brain::Brain;
use crate::context::Transcript;
use crate::faults::Point;
use crate::hands::{self, Outcome};
use crate::model;
use crate::speech::Speech;

/// How often a lease is renewed while the brain waits: a third of its length leaves room for two misses.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How many events are read from the log at once.
const REPLAY_EVENTS: usize = 1_000;

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
pub(crate) async fn drive(brain: &Brain, token: &Token, shutdown: &CancellationToken) -> Result<(), Halt> {
    let view = brain.store.look(&token.session).await?.ok_or(Halt::Lost)?;
    let mut drive = Drive {
        brain,
        token,
        shutdown,
        view,
        transcript: Transcript::default(),
        retry_after: None,
        has_outputs: false,
    };
    drive.run().await
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

/// A bug that hits the same session this often in a row ends it.
const INTERNAL_ATTEMPTS_MAX: u32 = 3;

struct Drive<'a> {
    brain: &'a Brain,
    token: &'a Token,
    shutdown: &'a CancellationToken,
    view: View,
    transcript: Transcript,
    /// How long the provider asked to wait after the last failure.
    retry_after: Option<Duration>,
    /// Whether a call has run since the outputs were last collected.
    has_outputs: bool,
}

/// What ends the wait for an act.
enum Woken<T> {
    Done(T),
    Changed,
    RenewalDue,
    ShuttingDown,
}

impl Drive<'_> {
    async fn run(&mut self) -> Result<(), Halt> {
        let mut facts = Vec::new();
        let mut ready = Ready::Wait;
        loop {
            let step = next_step(&self.view.state, &self.view.inbox, facts.clone(), ready, || self.new_id());
            if step.drafts.iter().any(ends_turn) {
                self.collect_outputs().await;
            }
            if !self.append(step.drafts).await? {
                continue;
            }
            ready = Ready::Wait;
            facts = match step.act {
                Act::CallModel { request } => self.call_model(request).await?,
                Act::Execute { call } => self.execute(call).await?,
                Act::BackOff { failures } => {
                    if self.back_off(failures).await? {
                        ready = Ready::Retry;
                    }
                    Vec::new()
                }
                Act::Rest | Act::Stop => return Ok(()),
            };
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
        match self.brain.store.append(self.token, self.view.state.head, drafts).await {
            Ok(view) => {
                self.view = view;
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

    /// Appends what has happened, whatever else has happened meanwhile.
    async fn record(&mut self, bodies: Vec<Body>) -> Result<(), Halt> {
        let drafts = self.drafts(bodies);
        while !self.append(drafts.clone()).await? {}
        Ok(())
    }

    /// Reads what is new in the log into the transcript.
    async fn catch_up(&mut self) -> Result<(), Halt> {
        while self.transcript.position() < self.view.state.head {
            let slice = Slice {
                after: self.transcript.position(),
                until: Some(self.view.state.head),
                order: Order::Asc,
                limit: REPLAY_EVENTS,
                private: true,
                ..Slice::default()
            };
            let entries = self.brain.store.get_events(&self.token.session, slice).await?;
            if entries.is_empty() {
                return Err(Halt::Lost);
            }
            for entry in entries {
                let event: Event = serde_json::from_slice(&entry.json)?;
                self.transcript.read(entry.position.expect("what is in the log has a position"), &event)?;
            }
        }
        Ok(())
    }

    /// Waits for `act`, the session's next change, the time to renew or the end of the process, whichever is first.
    async fn wait_for<T>(
        &self,
        act: impl Future<Output = T>,
        changed: &mut store::Changed,
        renewals: &mut tokio::time::Interval,
    ) -> Woken<T> {
        tokio::select! {
            biased;
            done = act => Woken::Done(done),
            () = changed.wait() => Woken::Changed,
            _ = renewals.tick() => Woken::RenewalDue,
            () = self.shutdown.cancelled() => Woken::ShuttingDown,
        }
    }

    async fn renew(&self) -> Result<(), Halt> {
        match self.brain.store.renew(self.token).await {
            Ok(()) => Ok(()),
            Err(AppendError::Fenced | AppendError::Moved(_)) => Err(Halt::Lost),
            Err(AppendError::Store(error)) => Err(error.into()),
        }
    }

    /// Looks again; `true` if an interrupt waits.
    async fn is_interrupted(&mut self) -> Result<bool, Halt> {
        self.view = self.brain.store.look(&self.token.session).await?.ok_or(Halt::Lost)?;
        Ok(self.view.inbox.iter().any(|event| matches!(event.body, Body::UserInterrupt { .. })))
    }

    async fn call_model(&mut self, request: EventId) -> Result<Vec<Draft>, Halt> {
        self.catch_up().await?;
        let prompt = self.transcript.prompt(&self.view.record.agent);
        let provider = self.brain.models.resolve(&prompt.model);
        self.brain.faults.reached(Point::BeforeModel).await;
        let mut changed = self.brain.store.changed(&self.token.session);
        let mut renewals = renewals();
        let mut asking = self.brain.models.ask(&prompt);
        let mut speech = Speech::new(request, self.view.state.head);
        loop {
            match self.wait_for(asking.next(), &mut changed, &mut renewals).await {
                Woken::Done(Some(Ok(model::Delta::Done(answer)))) => {
                    self.brain.faults.reached(Point::ModelAnswered).await;
                    self.retry_after = None;
                    let spec = &self.view.record.agent.spec;
                    return Ok(speech.answered(answer, spec, || self.brain.store.ids().make()));
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
                Woken::Done(Some(Err(failure))) => {
                    self.retry_after = failure.retry_after;
                    let attempts_max = provider.map_or(1, |provider| provider.retry().attempts_max);
                    return Ok(failed(&self.view.state, failure_of(failure, attempts_max), || self.new_id()));
                }
                Woken::Done(None) => unreachable!("an answer ends with Done or a failure"),
                Woken::Changed if self.is_interrupted().await? => return Ok(speech.cut_off(|| self.new_id())),
                Woken::Changed => {}
                Woken::RenewalDue => self.renew().await?,
                Woken::ShuttingDown => return Err(Halt::ShuttingDown),
            }
        }
    }

    async fn execute(&mut self, call: EventId) -> Result<Vec<Draft>, Halt> {
        self.catch_up().await?;
        let brain = self.brain;
        let fence = self.token.epoch;
        let sandbox = match self.view.state.sandbox.clone() {
            Some(sandbox) => sandbox,
            None => {
                let sandbox = brain.store.ids().make();
                let provisioned =
                    hands::provision(&*brain.hands, &sandbox, fence, &brain.options.resources).await;
                brain.faults.reached(Point::Provisioned).await;
                match provisioned {
                    Ok(()) => self.record(vec![Body::Sandbox { sandbox_id: sandbox.clone() }]).await?,
                    Err(Outcome::Fenced) => return Err(Halt::Lost),
                    Err(outcome) => return Ok(self.drafts(hands::results(&call, &sandbox, outcome))),
                }
                sandbox
            }
        };
        let name = self
            .view
            .state
            .calls
            .iter()
            .find(|pending| pending.id == call)
            .map(|pending| pending.name.clone());
        let (Some(name), Some(input)) = (name, self.transcript.input_of(&call).cloned()) else {
            // The client's interrupt has resolved it meanwhile.
            return Ok(Vec::new());
        };
        brain.faults.reached(Point::BeforeCall).await;
        self.has_outputs = true;
        let mut running = std::pin::pin!(hands::execute(&*brain.hands, &sandbox, fence, &call, &name, input));
        let mut changed = brain.store.changed(&self.token.session);
        let mut renewals = renewals();
        loop {
            match self.wait_for(&mut running, &mut changed, &mut renewals).await {
                Woken::Done(Outcome::Fenced) => return Err(Halt::Lost),
                Woken::Done(outcome) => {
                    brain.faults.reached(Point::CallDone).await;
                    return Ok(self.drafts(hands::results(&call, &sandbox, outcome)));
                }
                Woken::Changed if self.is_interrupted().await? => {
                    // The result that the model sees is the interrupt's; what the tool still says does not matter,
                    // only that it ends.
                    let cancelled = brain.hands.cancel(&hands::handle(&sandbox), fence, call.as_str()).await;
                    if let Err(error) = cancelled {
                        tracing::warn!(session.id = %self.token.session, %error, "a call could not be cancelled");
                    }
                    return Ok(Vec::new());
                }
                Woken::Changed => {}
                Woken::RenewalDue => self.renew().await?,
                Woken::ShuttingDown => return Err(Halt::ShuttingDown),
            }
        }
    }

    /// Waits before a retry. `false`: the session changed first, so that the next step must be decided anew.
    async fn back_off(&mut self, failures: u32) -> Result<bool, Halt> {
        let wait = self.back_off_for(failures);
        let mut changed = self.brain.store.changed(&self.token.session);
        let mut renewals = renewals();
        let mut sleep = std::pin::pin!(tokio::time::sleep(wait));
        loop {
            match self.wait_for(&mut sleep, &mut changed, &mut renewals).await {
                Woken::Done(()) => return Ok(true),
                Woken::Changed if self.is_interrupted().await? => return Ok(false),
                Woken::Changed => {}
                Woken::RenewalDue => self.renew().await?,
                Woken::ShuttingDown => return Err(Halt::ShuttingDown),
            }
        }
    }

    fn back_off_for(&self, failures: u32) -> Duration {
        // Sessions that failed together must not come back together; the microseconds are random enough.
        let jitter = f64::from(self.view.state.last_at.as_micros() as u32 % 1_000) / 1_000.0;
        match self.brain.models.resolve(&self.view.record.agent.spec.model.id) {
            Some(provider) => provider.retry().wait(failures, self.retry_after, jitter),
            None => Duration::ZERO,
        }
    }

    /// Copies the deliverables out before the client hears that the turn is over.
    async fn collect_outputs(&mut self) {
        let (true, Some(sandbox)) = (self.has_outputs, self.view.state.sandbox.clone()) else { return };
        let into = self.brain.options.outputs_dir.join(self.token.session.as_str());
        if let Err(error) = tokio::fs::create_dir_all(&into).await {
            tracing::error!(session.id = %self.token.session, %error, "there is no place for the outputs");
            return;
        }
        match self.brain.hands.collect_outputs(&hands::handle(&sandbox), &into).await {
            Ok(_) => self.has_outputs = false,
            Err(error) => {
                tracing::warn!(session.id = %self.token.session, %error, "the outputs could not be collected");
            }
        }
        // A folder that stayed empty says nothing; one with files in it is not removed by this.
        let _ = tokio::fs::remove_dir(&into).await;
    }
}

fn renewals() -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + RENEW_EVERY, RENEW_EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn ends_turn(draft: &Draft) -> bool {
    matches!(draft, Draft::New { body: Body::StatusIdle { .. } | Body::StatusTerminated {}, .. })
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
