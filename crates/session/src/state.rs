//! Replay: what a log says about its session.
//!
//! ```text
//!            RUN                    answer without calls, interrupt, exhausted
//!   idle ───────────────▶ running ─────────────────────────────────────────▶ idle
//!    ▲                     │   ▲  model request ⇄ calls
//!    │ requires_action     │   │ RUN
//!    └─────────────────────┤   │
//!                          ▼   │
//!                      rescheduling            any ── archive, terminal error ──▶ terminated
//! ```
//!
//! A [`State`] is the fold of a log. The store keeps it beside the log as a projection, in the transaction of the
//! append that changes it; folding the log again gives the same value, and a test compares them. What the model is
//! shown is another fold (`harness::context`), because it is as long as the log.

use protocol::agent::BuiltinTool;
use protocol::event::{
    Answer, Body, Finish, ModelUsage, Permission, RetryStatus, Snapshot, StopDetails, StopReason, Verdict,
};
use protocol::id::{EventId, SandboxId, ThreadId};
use protocol::position::Position;
use protocol::session::{CacheCreation, ServerToolUse, Stats, Status, ThreadStats, Usage};
use protocol::time::{Timestamp, micros_as_seconds};
use serde::{Deserialize, Serialize};

/// What a session's log says about it now. Stored: fields are only ever added, with a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The primary thread. Every session has exactly one, from the beginning.
    pub thread_id: ThreadId,
    /// The agent's name, as thread events show it.
    pub agent_name: String,
    /// When the session was made.
    pub created_at: Timestamp,
    /// The place of the last event of the log.
    pub head: Position,
    /// The time of the last event; what follows is strictly later, whatever the clock does.
    pub last_at: Timestamp,
    /// What the session is doing.
    pub status: Status,
    /// What waits in the inbox. The store counts it: [`Queued::add`] and [`Queued::remove`] with each event.
    pub queued: Queued,
    /// The calls that the last idle event said it waits for.
    pub announced: Vec<EventId>,
    /// The `span.model_request_start` without its end.
    pub request: Option<EventId>,
    /// The calls without a result, in the order in which the model asked for them.
    pub calls: Vec<Call>,
    /// Whether the model has something to answer.
    pub wants_model: bool,
    /// How the current turn ended, once it has.
    pub ended: Option<Ended>,
    /// How many model requests failed in a row.
    pub failures: u32,
    /// How many answers with calls this turn has had.
    pub rounds: u32,
    /// The sandbox in which calls run. A call without a result may have begun in it.
    pub sandbox: Option<SandboxId>,
    /// Whether a call has run in the sandbox since its deliverables were last copied out.
    #[serde(default)]
    pub has_outputs: bool,
    /// What the next sandbox begins with, if this one is put away or dies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Why the workspace is gone, if the model does not know it yet.
    #[serde(default)]
    pub untold_loss: Option<String>,
    /// Whether the sandbox was put away since the model last heard of it: its files are there again, and nothing that ran.
    #[serde(default)]
    pub untold_restoration: bool,
    /// What became of a client's wish that the workspace be saved now, as long as nothing has been saved since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wish: Option<Wish>,
    /// When the workspace was begun, in however many sandboxes it has been since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_begun_at: Option<Timestamp>,
    /// Tokens of all model requests.
    pub tokens: ModelUsage,
    /// Searches of the web that gave a result.
    #[serde(default)]
    pub web_searches: u64,
    /// Time spent running, without the current stretch.
    pub active_micros: i64,
    /// Since when it runs.
    pub active_since: Option<Timestamp>,
    /// When it first ran.
    pub started_at: Option<Timestamp>,
    /// Whether it ever went idle after work.
    pub has_idled: bool,
    /// When it ended.
    pub terminated_at: Option<Timestamp>,
}

/// How much waits in a session's inbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// All events.
    pub all: u32,
    /// Of those, interrupts and confirmations: what a session that waits for its client reacts to.
    pub answers: u32,
}

impl Queued {
    /// An event enters the inbox.
    pub fn add(&mut self, body: &Body) {
        self.all += 1;
        self.answers += u32::from(is_answer(body));
    }

    /// An event leaves the inbox.
    pub fn remove(&mut self, body: &Body) {
        self.all = self.all.saturating_sub(1);
        self.answers = self.answers.saturating_sub(u32::from(is_answer(body)));
    }

    /// What these events of an inbox count.
    pub fn count<'a>(inbox: impl IntoIterator<Item = &'a Body>) -> Self {
        inbox.into_iter().fold(Self::default(), |mut queued, body| {
            queued.add(body);
            queued
        })
    }
}

fn is_answer(body: &Body) -> bool {
    matches!(body, Body::UserInterrupt { .. } | Body::UserToolConfirmation { .. })
}

/// A call that the model asked for and that has no result yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The tool-use event.
    pub id: EventId,
    /// The tool's name.
    pub name: String,
    /// Who answers it.
    pub kind: CallKind,
}

/// Who answers a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CallKind {
    /// The client runs it.
    Custom,
    /// A sandbox runs it, or the server itself.
    Builtin {
        /// What the policy said.
        permission: Permission,
        /// What the client said, if it was asked and has answered.
        confirmed: Option<Confirmed>,
    },
    /// An MCP server runs it.
    Mcp {
        /// The server's name in the agent's `mcp_servers`.
        server: String,
        /// What the policy said.
        permission: Permission,
        /// What the client said, if it was asked and has answered.
        confirmed: Option<Confirmed>,
        /// Set when a brain was about to make it. From then on it may have been made.
        begun: Option<Begun>,
    },
}

/// A call that may have been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Whether it may simply be made again.
    pub repeatable: bool,
}

/// A client's verdict on a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The verdict.
    pub verdict: Verdict,
    /// Why not.
    pub deny_message: Option<String>,
}

/// A client's wish that the workspace be saved now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Wish {
    /// It is on record, and whoever saves will see to it.
    Pending {
        /// Since when.
        since: Timestamp,
    },
    /// It came to nothing.
    Failed {
        /// When.
        at: Timestamp,
        /// For the client.
        reason: String,
    },
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Ended {
    /// In the usual way, or by an interrupt.
    Complete,
    /// The model refused.
    Refused {
        /// See [`StopDetails`].
        category: Option<String>,
        /// See [`StopDetails`].
        explanation: Option<String>,
    },
    /// The server gave up. What waits in the inbox is taken up without being run.
    Exhausted,
    /// The session cannot go on.
    Terminal,
}

impl Ended {
    /// The stop reason that says it, with its details.
    pub fn stop(&self) -> (StopReason, Option<StopDetails>) {
        match self {
            Self::Complete => (StopReason::EndTurn {}, None),
            Self::Refused { category, explanation } => {
                let details =
                    StopDetails::Refusal { category: category.clone(), explanation: explanation.clone() };
                (StopReason::Refusal {}, Some(details))
            }
            Self::Exhausted | Self::Terminal => (StopReason::RetriesExhausted {}, None),
        }
    }
}

impl Call {
    /// Whether only the client can move it on.
    pub fn is_blocking(&self) -> bool {
        match self.verdicts() {
            None => true,
            Some((permission, confirmed)) => permission == Permission::Ask && confirmed.is_none(),
        }
    }

    /// What the policy and the client said of it; `None` if the client runs it, which nobody is asked about.
    pub fn verdicts(&self) -> Option<(Permission, Option<&Confirmed>)> {
        match &self.kind {
            CallKind::Custom => None,
            CallKind::Builtin { permission, confirmed }
            | CallKind::Mcp { server: _, permission, confirmed, begun: _ } => {
                Some((*permission, confirmed.as_ref()))
            }
        }
    }
}

impl State {
    /// The state of an empty log.
    pub fn new(thread_id: ThreadId, agent_name: String, created_at: Timestamp) -> Self {
        Self {
            thread_id,
            agent_name,
            created_at,
            head: Position::START,
            last_at: created_at,
            status: Status::Idle,
            queued: Queued::default(),
            announced: Vec::new(),
            request: None,
            calls: Vec::new(),
            wants_model: false,
            ended: None,
            failures: 0,
            rounds: 0,
            sandbox: None,
            has_outputs: false,
            snapshot: None,
            untold_loss: None,
            untold_restoration: false,
            wish: None,
            workspace_begun_at: None,
            tokens: ModelUsage::default(),
            web_searches: 0,
            active_micros: 0,
            active_since: None,
            started_at: None,
            has_idled: false,
            terminated_at: None,
        }
    }

    /// The time that the next event gets when the clock says `now`: strictly later than the last.
    pub fn next_time(&self, now: Timestamp) -> Timestamp {
        now.max(Timestamp::from_micros(self.last_at.as_micros() + 1))
    }

    /// Takes in the next event of the log.
    pub fn apply(&mut self, id: &EventId, body: &Body, at: Timestamp) {
        self.head = self.head.next();
        self.last_at = at;
        self.take_in(id, body, at);
    }

    fn take_in(&mut self, id: &EventId, body: &Body, at: Timestamp) {
        match body {
            // What is flushed after the server gave up is not run.
            Body::UserMessage { content: _ } if !self.has_given_up() => {
                self.wants_model = true;
                self.rounds = 0;
            }
            Body::SystemMessage { content: _ } if !self.has_given_up() => self.wants_model = true,
            Body::UserMessage { content: _ } | Body::SystemMessage { content: _ } => {}
            Body::UserInterrupt { session_thread_id: _ } => {
                self.wants_model = false;
                self.ended = Some(Ended::Complete);
            }
            Body::UserToolConfirmation { tool_use_id, result, deny_message } => {
                self.confirm(tool_use_id, *result, deny_message.clone());
            }
            Body::UserCustomToolResult { custom_tool_use_id: call, content: _, is_error: _ } => {
                self.resolve(call)
            }
            Body::AgentToolResult { tool_use_id: call, content: _, is_error } => {
                match self.builtin_tool_of(call) {
                    Some(tool) if tool.is_web() => {
                        self.web_searches += u64::from(tool == BuiltinTool::WebSearch && !is_error);
                    }
                    _ => self.has_outputs = self.sandbox.is_some(),
                }
                self.resolve(call);
            }
            Body::AgentToolUse { name, input: _, evaluated_permission, evaluation: _ } => {
                self.calls.push(Call {
                    id: id.clone(),
                    name: name.clone(),
                    kind: CallKind::Builtin { permission: *evaluated_permission, confirmed: None },
                })
            }
            Body::AgentMcpToolUse {
                mcp_server_name,
                name,
                input: _,
                evaluated_permission,
                evaluation: _,
            } => {
                let (server, permission) = (mcp_server_name.clone(), *evaluated_permission);
                let kind = CallKind::Mcp { server, permission, confirmed: None, begun: None };
                self.calls.push(Call { id: id.clone(), name: name.clone(), kind });
            }
            Body::McpCall { mcp_tool_use_id, repeatable } => self.begin(mcp_tool_use_id, *repeatable),
            Body::AgentMcpToolResult { mcp_tool_use_id: call, content: _, is_error: _ } => self.resolve(call),
            Body::AgentCustomToolUse { name, input: _ } => {
                self.calls.push(Call { id: id.clone(), name: name.clone(), kind: CallKind::Custom });
            }
            Body::StatusRunning {} => self.run(at),
            Body::StatusIdle { stop_reason, stop_details: _ } => self.idle(stop_reason, at),
            Body::StatusRescheduled {} => {
                self.pause(at);
                self.status = Status::Rescheduling;
            }
            Body::StatusTerminated {} => {
                self.pause(at);
                self.status = Status::Terminated;
                self.terminated_at = Some(at);
            }
            // The turn goes on without that server's tools, or that repository.
            Body::Error { error } if error.kind.is_aside() => {}
            Body::Error { error } => match error.retry_status {
                RetryStatus::Retrying => self.failures += 1,
                RetryStatus::Exhausted => self.give_up(Ended::Exhausted),
                RetryStatus::Terminal => self.give_up(Ended::Terminal),
            },
            Body::ModelRequestStart {} => self.request = Some(id.clone()),
            Body::ModelRequestEnd { model_request_start_id: _, is_error, model_usage } => {
                self.request = None;
                if !is_error {
                    self.failures = 0;
                }
                self.count(model_usage);
            }
            Body::Answer(answer) => self.answered(answer),
            Body::Sandbox { sandbox_id } => {
                self.sandbox = Some(sandbox_id.clone());
                // One that follows a snapshot goes on with the workspace that was saved.
                if self.snapshot.is_none() {
                    self.workspace_begun_at = Some(at);
                }
            }
            Body::Snapshot { snapshot, put_away } => {
                self.workspace_begun_at = Some(snapshot.begun_at);
                self.snapshot = Some(snapshot.clone());
                self.wish = None;
                if *put_away {
                    // A session that begins with another's workspace has run nothing that it could miss.
                    self.untold_restoration |= self.sandbox.is_some();
                    self.sandbox = None;
                    self.has_outputs = false;
                }
            }
            // Whatever it was that is lost, it is not what has been saved since.
            Body::SnapshotLost { key: _, reason: _, told: true } => {
                self.snapshot = None;
                self.untold_loss = None;
                self.untold_restoration = false;
            }
            Body::SnapshotLost { key, reason, told: false } => {
                let lost = self.snapshot.take_if(|snapshot| snapshot.key == *key);
                // As long as its sandbox lives, nothing is lost.
                if lost.is_some() && self.sandbox.is_none() {
                    self.untold_loss = Some(reason.clone());
                }
            }
            // The call that met it says so, and more.
            Body::SandboxLost { sandbox_id: _ } => {
                self.sandbox = None;
                self.has_outputs = false;
                self.untold_restoration = false;
                if self.wants_snapshot() {
                    let reason = "its sandbox died before its workspace was saved".to_owned();
                    self.wish = Some(Wish::Failed { at, reason });
                }
            }
            Body::SnapshotWanted {} => self.wish = Some(Wish::Pending { since: at }),
            Body::SnapshotUnsaved { reason } => self.wish = Some(Wish::Failed { at, reason: reason.clone() }),
            Body::RestorationTold {} => self.untold_restoration = false,
            Body::OutputsCollected {} => self.has_outputs = false,
            Body::AgentMessage { .. }
            | Body::AgentThinking {}
            | Body::Updated { .. }
            | Body::Usage { .. }
            | Body::Deleted {}
            | Body::ThreadRunning { .. }
            | Body::ThreadIdle { .. }
            | Body::ThreadRescheduled { .. }
            | Body::ThreadTerminated { .. }
            | Body::Unknown(_) => {}
        }
    }

    fn confirm(&mut self, call_id: &EventId, verdict: Verdict, deny_message: Option<String>) {
        let Some(call) = self.calls.iter_mut().find(|call| call.id == *call_id) else { return };
        match &mut call.kind {
            CallKind::Builtin { permission: _, confirmed }
            | CallKind::Mcp { server: _, permission: _, confirmed, begun: _ } => {
                *confirmed = Some(Confirmed { verdict, deny_message });
            }
            CallKind::Custom => {}
        }
    }

    fn begin(&mut self, call_id: &EventId, repeatable: bool) {
        let Some(call) = self.calls.iter_mut().find(|call| call.id == *call_id) else { return };
        if let CallKind::Mcp { server: _, permission: _, confirmed: _, begun } = &mut call.kind {
            *begun = Some(Begun { repeatable });
        }
    }

    /// The built-in tool that a call without a result is of.
    pub fn builtin_tool_of(&self, call_id: &EventId) -> Option<BuiltinTool> {
        let call = self.calls.iter().find(|call| call.id == *call_id)?;
        match call.kind {
            CallKind::Custom | CallKind::Mcp { .. } => None,
            CallKind::Builtin { .. } => BuiltinTool::from_name(&call.name),
        }
    }

    fn resolve(&mut self, call_id: &EventId) {
        let before = self.calls.len();
        self.calls.retain(|call| call.id != *call_id);
        if self.calls.len() < before {
            self.wants_model = true;
        }
    }

    fn answered(&mut self, answer: &Answer) {
        self.wants_model = answer.finish == Finish::Paused;
        self.rounds += u32::from(!answer.calls.is_empty() || self.wants_model);
        self.ended = Some(match &answer.finish {
            Finish::Complete | Finish::Paused => Ended::Complete,
            Finish::Refused { category, explanation } => {
                Ended::Refused { category: category.clone(), explanation: explanation.clone() }
            }
        });
    }

    fn has_given_up(&self) -> bool {
        matches!(self.ended, Some(Ended::Exhausted | Ended::Terminal))
    }

    fn give_up(&mut self, ended: Ended) {
        self.wants_model = false;
        self.ended = Some(ended);
    }

    fn run(&mut self, at: Timestamp) {
        // A turn that waited for its client, or for a retry, goes on; from a finished one a new turn begins.
        if self.status == Status::Idle && self.announced.is_empty() {
            self.ended = None;
            self.rounds = 0;
        }
        self.status = Status::Running;
        self.announced.clear();
        self.active_since = Some(at);
        self.started_at.get_or_insert(at);
    }

    fn idle(&mut self, reason: &StopReason, at: Timestamp) {
        self.pause(at);
        self.status = Status::Idle;
        self.has_idled = true;
        self.announced = match reason {
            StopReason::RequiresAction { event_ids } => event_ids.clone(),
            StopReason::EndTurn {} | StopReason::RetriesExhausted {} | StopReason::Refusal {} => {
                self.failures = 0;
                Vec::new()
            }
        };
    }

    fn pause(&mut self, at: Timestamp) {
        if let Some(since) = self.active_since.take() {
            self.active_micros += (at.as_micros() - since.as_micros()).max(0);
        }
    }

    fn count(&mut self, usage: &ModelUsage) {
        let ModelUsage { input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens } =
            usage;
        self.tokens.input_tokens += input_tokens;
        self.tokens.output_tokens += output_tokens;
        self.tokens.cache_creation_input_tokens += cache_creation_input_tokens;
        self.tokens.cache_read_input_tokens += cache_read_input_tokens;
    }

    /// The calls that only the client can move on.
    pub fn blocked(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(|call| call.is_blocking())
    }

    /// Whether the session waits for answers of its client.
    pub fn is_waiting(&self) -> bool {
        self.status == Status::Idle && !self.announced.is_empty()
    }

    /// Whether a client waits for the workspace to be saved.
    pub fn wants_snapshot(&self) -> bool {
        matches!(self.wish, Some(Wish::Pending { .. }))
    }

    /// Whether a brain has something to do.
    pub fn wants_brain(&self) -> bool {
        match self.status {
            Status::Terminated => false,
            Status::Running | Status::Rescheduling => true,
            Status::Idle if self.is_waiting() => {
                self.queued.answers > 0 || !self.blocked().map(|call| &call.id).eq(&self.announced)
            }
            Status::Idle => self.queued.all > 0,
        }
    }

    /// The status to show. Input that no brain has taken up yet counts as running, so that a client which sends
    /// and then polls never mistakes the idle before for the idle after.
    pub fn shown_status(&self) -> Status {
        if self.status == Status::Idle && self.wants_brain() { Status::Running } else { self.status }
    }

    /// What was used up to `now`.
    pub fn usage_at(&self, now: Timestamp) -> Usage {
        Usage {
            input_tokens: self.tokens.input_tokens,
            output_tokens: self.tokens.output_tokens,
            cache_read_input_tokens: self.tokens.cache_read_input_tokens,
            cache_creation: CacheCreation {
                ephemeral_5m_input_tokens: self.tokens.cache_creation_input_tokens,
                ephemeral_1h_input_tokens: 0,
            },
            active_seconds: self.active_seconds(now),
            // The reference does not count fetches.
            server_tool_use: ServerToolUse { web_search_requests: self.web_searches, web_fetch_requests: 0 },
        }
    }

    /// How long it worked up to `now`.
    pub fn stats_at(&self, now: Timestamp) -> Stats {
        let Self { created_at, terminated_at, .. } = self;
        Stats {
            active_seconds: self.active_seconds(now),
            duration_seconds: terminated_at.unwrap_or(now).seconds_since(*created_at),
        }
    }

    /// The same for the primary thread; `None` before its first change of status.
    pub fn thread_stats_at(&self, now: Timestamp) -> Option<ThreadStats> {
        let started_at = self.started_at?;
        let Stats { active_seconds, duration_seconds } = self.stats_at(now);
        let startup_seconds = started_at.seconds_since(self.created_at);
        Some(ThreadStats { active_seconds, duration_seconds, startup_seconds })
    }

    fn active_seconds(&self, now: Timestamp) -> f64 {
        let running = self.active_since.map_or(0.0, |since| now.seconds_since(since));
        micros_as_seconds(self.active_micros) + running
    }
}

/// Fills in what only the moment of the append knows: the figures of `session.usage`.
pub fn stamp(state: &State, body: Body, at: Timestamp) -> Body {
    match body {
        Body::Usage { usage: _, budget } => Body::Usage { usage: state.usage_at(at), budget },
        other => other,
    }
}
