//! The next step: what to append, then what to do.
//!
//! A brain asks after every wake-up, with what it has just learnt as `facts` (a result, an answer, a failure). The
//! facts and all that follows from them by rule are appended together, on the condition that the log has not moved
//! meanwhile; if it has, the brain looks again and asks again with the same facts.

use protocol::content::Content;
use protocol::event::{
    Body, Event, ModelUsage, Permission, RetryStatus, SessionError, SessionErrorKind, StopReason, Verdict,
};
use protocol::id::EventId;
use protocol::session::{Status, Usage};
use protocol::time::Timestamp;

use crate::state::{Begun, Call, CallKind, Confirmed, Ended, State};

/// Rounds of tools in one turn before the server gives up. The wire has the error but no figure; a turn this long
/// is a loop.
pub const ROUNDS_MAX: u32 = 200;

/// What the model is told about a call that an interrupt cut off (api reference, flow D5).
pub const INTERRUPTED: &str = "Tool execution was interrupted before completion. Please retry.";

/// What the model is told about a call of an MCP server that a brain died over.
pub const OUTCOME_UNKNOWN: &str = "harness: the server stopped while this call was being made. It is not known whether it had any effect. It was not made again.";

/// What the model is told about a call that was pending when the server gave up.
pub const ABANDONED: &str = "harness: the server failed repeatedly while this call was pending. It is not known whether it had any effect.";

/// Something to append.
#[derive(Clone, Debug, PartialEq)]
pub enum Draft {
    /// A new event.
    New {
        /// Its id.
        id: EventId,
        /// What happened.
        body: Body,
    },
    /// The inbox's event of that id moves into the log.
    Take(EventId),
}

/// What to do once the drafts are in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Ask the model. The intent is the `span.model_request_start` with this id, the last of the drafts.
    CallModel {
        /// The span's start.
        request: EventId,
    },
    /// Run this call. The intent is its tool-use event.
    Execute {
        /// The call.
        call: EventId,
    },
    /// Copy the deliverables out of the sandbox, then ask again with `posthouse.outputs_collected` as a fact. The
    /// turn is over, and its client hears of it next.
    Collect,
    /// Wait before the next try, then ask again with [`Ready::Retry`].
    BackOff {
        /// How many requests failed in a row.
        failures: u32,
    },
    /// Nothing to do until the client sends something.
    Rest,
    /// Nothing to do, ever.
    Stop,
}

/// What a session needs next.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// To be appended together.
    pub drafts: Vec<Draft>,
    /// To be done afterwards.
    pub act: Act,
}

/// Whether a session that waits before a retry may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// The wait is not over, or there is none.
    Wait,
    /// The wait is over.
    Retry,
}

/// A failed model request, as far as the session's course depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// For people; holds no secret.
    pub message: String,
    /// Whether trying again can help.
    pub retryable: bool,
    /// How many requests may fail in a row.
    pub attempts_max: u32,
    /// What the failed request had used.
    pub usage: ModelUsage,
}

/// The kinds of failure that the wire tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The provider is too busy.
    Overloaded,
    /// The provider limits our rate.
    RateLimited,
    /// Out of credit.
    Billing,
    /// Anything else about the request.
    RequestFailed,
    /// Our own fault.
    Internal,
}

/// The drafts that record a failed model request. What follows is for [`next_step`].
pub fn failed(state: &State, failure: Failure, mut new_id: impl FnMut() -> EventId) -> Vec<Draft> {
    let Failure { kind, message, retryable, attempts_max, usage } = failure;
    let may_retry = retryable && state.failures + 1 < attempts_max;
    let retry_status = match (may_retry, kind) {
        (true, _) => RetryStatus::Retrying,
        (false, FailureKind::Internal) => RetryStatus::Terminal,
        (false, _) => RetryStatus::Exhausted,
    };
    let kind = match kind {
        FailureKind::Overloaded => SessionErrorKind::ModelOverloadedError,
        FailureKind::RateLimited => SessionErrorKind::ModelRateLimitedError,
        FailureKind::Billing => SessionErrorKind::BillingError,
        FailureKind::RequestFailed => SessionErrorKind::ModelRequestFailedError,
        FailureKind::Internal => SessionErrorKind::UnknownError,
    };
    let mut bodies: Vec<Body> = state.request.iter().map(|request| end_of(request, usage)).collect();
    bodies.push(Body::Error { error: SessionError::new(kind, message, retry_status) });
    if may_retry {
        bodies.push(Body::ThreadRescheduled {
            session_thread_id: state.thread_id.clone(),
            agent_name: state.agent_name.clone(),
        });
        bodies.push(Body::StatusRescheduled {});
    }
    bodies.into_iter().map(|body| Draft::New { id: new_id(), body }).collect()
}

/// The drafts that record that the server gives this turn up, whatever it was at: the client may prompt again. What
/// follows is for [`next_step`].
///
/// Nothing is left over that the next turn would take up where this one failed: what is open is closed, calls get a
/// result that says what is not known, and deliverables are left where they are.
pub fn give_up(state: &State, message: String, mut new_id: impl FnMut() -> EventId) -> Vec<Draft> {
    let mut bodies = Vec::new();
    if state.status != Status::Running {
        bodies.extend(run_events(state));
    }
    bodies.extend(state.request.iter().map(|request| end_of(request, ModelUsage::default())));
    for call in &state.calls {
        let text = if call.is_blocking() { INTERRUPTED } else { ABANDONED };
        bodies.push(result_of(call, text.to_owned()));
    }
    if state.sandbox.is_some() {
        bodies.push(Body::OutputsCollected {});
    }
    let kind = SessionErrorKind::UnknownError;
    bodies.push(Body::Error { error: SessionError::new(kind, message, RetryStatus::Exhausted) });
    bodies.into_iter().map(|body| Draft::New { id: new_id(), body }).collect()
}

/// The events with which a session starts to run.
pub fn run_events(state: &State) -> [Body; 2] {
    let thread = Body::ThreadRunning {
        session_thread_id: state.thread_id.clone(),
        agent_name: state.agent_name.clone(),
    };
    [Body::StatusRunning {}, thread]
}

/// What the session needs next, given its state, what waits in its inbox (oldest first) and what the brain has
/// just learnt. The drafts begin with the facts.
pub fn next_step(
    state: &State,
    inbox: &[Event],
    facts: Vec<Draft>,
    ready: Ready,
    new_id: impl FnMut() -> EventId,
) -> Step {
    let mut plan = Plan { state: state.clone(), inbox: inbox.to_vec(), drafts: Vec::new(), new_id };
    for fact in facts {
        plan.draft(fact);
    }
    let mut ready = ready;
    loop {
        if let Some(act) = plan.advance(ready) {
            return Step { drafts: plan.drafts, act };
        }
        ready = Ready::Wait;
    }
}

/// The state as it will be once the drafts are in the log.
struct Plan<NewId> {
    state: State,
    inbox: Vec<Event>,
    drafts: Vec<Draft>,
    new_id: NewId,
}

impl<NewId: FnMut() -> EventId> Plan<NewId> {
    /// Drafts what the state calls for, or names the act if nothing is left to draft.
    fn advance(&mut self, ready: Ready) -> Option<Act> {
        if self.state.status == Status::Terminated {
            return Some(Act::Stop);
        }
        if self.takes_interrupts() {
            return None;
        }
        if let Some(request) = self.state.request.clone() {
            // Nobody waits for this request any more: its brain died.
            self.add(end_of(&request, ModelUsage::default()));
            return None;
        }
        match self.state.status {
            Status::Idle => self.advance_idle(),
            Status::Running => self.advance_running(),
            Status::Rescheduling if self.state.ended == Some(Ended::Terminal) => {
                self.terminate();
                None
            }
            Status::Rescheduling => match ready {
                Ready::Wait => Some(Act::BackOff { failures: self.state.failures }),
                Ready::Retry => {
                    self.run();
                    None
                }
            },
            Status::Terminated => Some(Act::Stop),
        }
    }

    /// An interrupt overtakes whatever else waits: it cuts off what is open and ends the turn.
    fn takes_interrupts(&mut self) -> bool {
        let interrupts = self.waiting(|body| matches!(body, Body::UserInterrupt { .. }));
        if interrupts.is_empty() {
            return false;
        }
        if self.state.status == Status::Idle && !self.state.is_waiting() {
            self.takes_interrupts_at_rest();
            return true;
        }
        if self.has_not_begun() {
            self.takes_until_interrupt();
            self.idle();
            return true;
        }
        if let Some(request) = self.state.request.clone() {
            self.add(end_of(&request, ModelUsage::default()));
        }
        for call in self.state.calls.clone() {
            self.add(result_of(&call, INTERRUPTED.to_owned()));
        }
        // Answers to those calls are spent, too.
        let spent = self.waiting(|body| matches!(body, Body::UserToolConfirmation { .. }));
        self.take(spent);
        self.take(interrupts);
        self.idle();
        true
    }

    /// Whether the session runs, as one made with initial events does at once, and no brain has taken up why.
    fn has_not_begun(&self) -> bool {
        let State { status, ended, wants_model, request, calls, .. } = &self.state;
        *status == Status::Running && ended.is_none() && !wants_model && request.is_none() && calls.is_empty()
    }

    /// At rest an interrupt is only recorded, unless it follows a message that no brain has taken up yet: that one
    /// is started and interrupted, as if the brain had been quicker.
    fn takes_interrupts_at_rest(&mut self) {
        let is_alone = self.until_interrupt().iter().all(is_interrupt);
        if !is_alone {
            self.run();
        }
        self.takes_until_interrupt();
        if !is_alone {
            self.idle();
        }
    }

    /// What waits, up to the last interrupt.
    fn until_interrupt(&self) -> &[Event] {
        let count = self.inbox.iter().rposition(is_interrupt).map_or(0, |last| last + 1);
        &self.inbox[..count]
    }

    fn takes_until_interrupt(&mut self) {
        self.take(self.until_interrupt().iter().map(|event| event.id.clone()).collect());
    }

    fn advance_idle(&mut self) -> Option<Act> {
        let answers = self.waiting(|body| matches!(body, Body::UserToolConfirmation { .. }));
        if !self.state.calls.is_empty() || !self.state.announced.is_empty() {
            return self.advance_waiting(answers);
        }
        // Confirmations of calls that are gone by now have no effect but are recorded as processed.
        if self.inbox.is_empty() {
            return Some(Act::Rest);
        }
        if answers.len() == self.inbox.len() {
            self.take(answers);
            return None;
        }
        self.run();
        self.take_all();
        None
    }

    /// Idle with `requires_action`: goes on when all is answered, says what is left when only some is.
    fn advance_waiting(&mut self, answers: Vec<EventId>) -> Option<Act> {
        let answered_now: Vec<EventId> = self.inbox.iter().filter_map(confirmed_call).cloned().collect();
        let is_left = |call: &Call| call.is_blocking() && !answered_now.contains(&call.id);
        if !self.state.calls.iter().any(is_left) {
            self.run();
            self.take(answers);
            let system = self.waiting(|body| matches!(body, Body::SystemMessage { .. }));
            self.take(system);
            return None;
        }
        if answers.is_empty() && self.state.blocked().map(|call| &call.id).eq(&self.state.announced) {
            return Some(Act::Rest);
        }
        self.take(answers);
        self.idle();
        None
    }

    fn advance_running(&mut self) -> Option<Act> {
        if self.state.ended == Some(Ended::Terminal) {
            self.take_all();
            self.terminate();
            return None;
        }
        if self.state.ended == Some(Ended::Exhausted) {
            self.take_all();
            return self.rest();
        }
        let answers = self.waiting(|body| matches!(body, Body::UserToolConfirmation { .. }));
        if !answers.is_empty() {
            self.take(answers);
            return None;
        }
        let settled = self.state.calls.iter().find_map(|call| Some((call.clone(), settled(call)?)));
        if let Some((call, text)) = settled {
            self.add(result_of(&call, text));
            return None;
        }
        let blocked = self.state.blocked().next().is_some();
        if let Some(call) = self.state.calls.iter().find(|call| may_run(call, blocked)) {
            return Some(Act::Execute { call: call.id.clone() });
        }
        if blocked {
            return self.rest();
        }
        if self.state.wants_model {
            return self.ask_model();
        }
        if let Some(Ended::Refused { .. }) = self.state.ended {
            return self.rest();
        }
        if !self.inbox.is_empty() {
            self.take_all();
            return None;
        }
        self.rest()
    }

    /// Goes idle, once what the client is to receive is out of the sandbox.
    fn rest(&mut self) -> Option<Act> {
        if self.state.has_outputs {
            return Some(Act::Collect);
        }
        self.idle();
        None
    }

    fn ask_model(&mut self) -> Option<Act> {
        if self.state.rounds >= ROUNDS_MAX {
            let message = format!("harness: the turn used tools {ROUNDS_MAX} times without coming to an end");
            let kind = SessionErrorKind::ToolUseLimitReachedError;
            self.add(Body::Error { error: SessionError::new(kind, message, RetryStatus::Exhausted) });
            return None;
        }
        let request = self.add(Body::ModelRequestStart {});
        Some(Act::CallModel { request })
    }

    fn run(&mut self) {
        for body in run_events(&self.state) {
            self.add(body);
        }
    }

    fn idle(&mut self) {
        let blocked: Vec<EventId> = self.state.blocked().map(|call| call.id.clone()).collect();
        let (stop_reason, stop_details) = if blocked.is_empty() {
            self.state.ended.as_ref().unwrap_or(&Ended::Complete).stop()
        } else {
            (StopReason::RequiresAction { event_ids: blocked }, None)
        };
        self.add(Body::ThreadIdle {
            session_thread_id: self.state.thread_id.clone(),
            agent_name: self.state.agent_name.clone(),
            stop_reason: stop_reason.clone(),
            stop_details: stop_details.clone(),
        });
        self.add(Body::Usage { usage: Usage::default(), budget: None });
        self.add(Body::StatusIdle { stop_reason, stop_details });
    }

    fn terminate(&mut self) {
        for body in terminated_events(&self.state) {
            self.add(body);
        }
    }

    fn waiting(&self, wanted: impl Fn(&Body) -> bool) -> Vec<EventId> {
        self.inbox.iter().filter(|event| wanted(&event.body)).map(|event| event.id.clone()).collect()
    }

    fn take(&mut self, ids: Vec<EventId>) {
        for id in ids {
            self.draft(Draft::Take(id));
        }
    }

    fn take_all(&mut self) {
        self.take(self.inbox.iter().map(|event| event.id.clone()).collect());
    }

    fn add(&mut self, body: Body) -> EventId {
        let id = (self.new_id)();
        self.draft(Draft::New { id: id.clone(), body });
        id
    }

    fn draft(&mut self, draft: Draft) {
        // The real time is the store's; the rules do not depend on it.
        let at: Timestamp = self.state.next_time(self.state.last_at);
        match &draft {
            Draft::New { id, body } => self.state.apply(id, body, at),
            Draft::Take(id) => {
                if let Some(index) = self.inbox.iter().position(|event| event.id == *id) {
                    let event = self.inbox.remove(index);
                    self.state.apply(&event.id, &event.body, at);
                    self.state.queued.remove(&event.body);
                }
            }
        }
        self.drafts.push(draft);
    }
}

/// The events with which a session ends.
pub fn terminated_events(state: &State) -> [Body; 2] {
    let thread = Body::ThreadTerminated {
        session_thread_id: state.thread_id.clone(),
        agent_name: state.agent_name.clone(),
    };
    [thread, Body::StatusTerminated {}]
}

fn is_interrupt(event: &Event) -> bool {
    matches!(event.body, Body::UserInterrupt { .. })
}

fn confirmed_call(event: &Event) -> Option<&EventId> {
    match &event.body {
        Body::UserToolConfirmation { tool_use_id, .. } => Some(tool_use_id),
        _ => None,
    }
}

fn end_of(request: &EventId, model_usage: ModelUsage) -> Body {
    Body::ModelRequestEnd { model_request_start_id: request.clone(), is_error: true, model_usage }
}

/// A result that says why there is no other one.
pub fn result_of(call: &Call, text: String) -> Body {
    let content = vec![Content::text(text)];
    match &call.kind {
        CallKind::Custom | CallKind::Builtin { .. } => {
            Body::AgentToolResult { tool_use_id: call.id.clone(), content, is_error: true }
        }
        CallKind::Mcp { .. } => {
            Body::AgentMcpToolResult { mcp_tool_use_id: call.id.clone(), content, is_error: true }
        }
    }
}

/// What the model is told of a call that is not to be run, or not again; `None` if it is, or if that is not known yet.
fn settled(call: &Call) -> Option<String> {
    if is_left_open(call) {
        return Some(OUTCOME_UNKNOWN.to_owned());
    }
    match call.verdicts()? {
        (Permission::Deny, _) => Some(format!("Permission to use {} has been denied.", call.name)),
        (_, Some(Confirmed { verdict: Verdict::Deny, deny_message })) => Some(match deny_message {
            Some(message) if !message.is_empty() => {
                format!("The user rejected this use of {}: {message}", call.name)
            }
            _ => format!("The user rejected this use of {}.", call.name),
        }),
        (Permission::Allow | Permission::Ask, _) => None,
    }
}

/// Whether a brain was about to make it, is gone, and has left no result. Who makes a call waits for it, so nobody asks
/// what is next before it has one.
fn is_left_open(call: &Call) -> bool {
    match &call.kind {
        CallKind::Mcp { begun: Some(Begun { repeatable }), .. } => !repeatable,
        CallKind::Mcp { begun: None, .. } | CallKind::Custom | CallKind::Builtin { .. } => false,
    }
}

/// An allowed call runs at once; a confirmed one when nothing is left to be answered (flow C5).
fn may_run(call: &Call, others_are_blocked: bool) -> bool {
    match call.verdicts() {
        None => false,
        Some((Permission::Allow, _)) => true,
        Some((Permission::Ask, Some(confirmed))) => {
            confirmed.verdict == Verdict::Allow && !others_are_blocked
        }
        Some((Permission::Ask, None) | (Permission::Deny, _)) => false,
    }
}
