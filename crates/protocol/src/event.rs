//! Events: what a session's log is made of.
//!
//! An event is an id, a time and a body. Bodies are stored and sent as the public wire shows them. A few private
//! kinds (`posthouse.*`) share the log and are left out at the door. A kind that this version does not know is
//! carried unchanged.
//!
//! Stored and on the wire: names never change.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::agent::{BuiltinTool, SessionAgent};
use crate::content::Content;
use crate::id::{CredentialId, EventId, SandboxId, ThreadId, VaultId};
use crate::metadata::Metadata;
use crate::session::Usage;
use crate::time::Timestamp;

/// An event as it is stored and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
    /// Unique in the session.
    pub id: EventId,
    /// When it entered the log; `None` while it waits in the inbox.
    pub processed_at: Option<Timestamp>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
#[expect(missing_docs, reason = "the kinds and fields are those of the public reference, sessions.md §14")]
pub enum Body {
    // What clients send.
    #[serde(rename = "user.message")]
    UserMessage { content: Vec<Content> },
    #[serde(rename = "user.interrupt")]
    UserInterrupt {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_thread_id: Option<ThreadId>,
    },
    #[serde(rename = "user.tool_confirmation")]
    UserToolConfirmation {
        tool_use_id: EventId,
        result: Verdict,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deny_message: Option<String>,
    },
    #[serde(rename = "user.custom_tool_result")]
    UserCustomToolResult {
        custom_tool_use_id: EventId,
        content: Vec<Content>,
        #[serde(default)]
        is_error: Option<bool>,
    },
    #[serde(rename = "system.message")]
    SystemMessage { content: Vec<Content> },

    // What the agent says and does.
    #[serde(rename = "agent.message")]
    AgentMessage { content: Vec<Content> },
    #[serde(rename = "agent.thinking")]
    AgentThinking {},
    #[serde(rename = "agent.tool_use")]
    AgentToolUse {
        name: String,
        input: Map<String, Value>,
        evaluated_permission: Permission,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evaluation: Option<Evaluation>,
    },
    #[serde(rename = "agent.tool_result")]
    AgentToolResult { tool_use_id: EventId, content: Vec<Content>, is_error: bool },
    #[serde(rename = "agent.mcp_tool_use")]
    AgentMcpToolUse {
        mcp_server_name: String,
        name: String,
        input: Map<String, Value>,
        evaluated_permission: Permission,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evaluation: Option<Evaluation>,
    },
    #[serde(rename = "agent.mcp_tool_result")]
    AgentMcpToolResult { mcp_tool_use_id: EventId, content: Vec<Content>, is_error: bool },
    #[serde(rename = "agent.custom_tool_use")]
    AgentCustomToolUse { name: String, input: Map<String, Value> },

    // The session's own course.
    #[serde(rename = "session.status_running")]
    StatusRunning {},
    #[serde(rename = "session.status_idle")]
    StatusIdle { stop_reason: StopReason, stop_details: Option<StopDetails> },
    #[serde(rename = "session.status_rescheduled")]
    StatusRescheduled {},
    #[serde(rename = "session.status_terminated")]
    StatusTerminated {},
    #[serde(rename = "session.error")]
    Error { error: SessionError },
    #[serde(rename = "session.updated")]
    Updated {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<Box<SessionAgent>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        metadata: Option<Metadata>,
        /// Absent, null or a title: all three differ.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "double_option")]
        title: Option<Option<String>>,
    },
    #[serde(rename = "session.usage")]
    Usage { usage: Usage, budget: Option<Value> },
    #[serde(rename = "session.deleted")]
    Deleted {},
    #[serde(rename = "session.thread_status_running")]
    ThreadRunning { session_thread_id: ThreadId, agent_name: String },
    #[serde(rename = "session.thread_status_idle")]
    ThreadIdle {
        session_thread_id: ThreadId,
        agent_name: String,
        stop_reason: StopReason,
        stop_details: Option<StopDetails>,
    },
    #[serde(rename = "session.thread_status_rescheduled")]
    ThreadRescheduled { session_thread_id: ThreadId, agent_name: String },
    #[serde(rename = "session.thread_status_terminated")]
    ThreadTerminated { session_thread_id: ThreadId, agent_name: String },

    // Spans.
    #[serde(rename = "span.model_request_start")]
    ModelRequestStart {},
    #[serde(rename = "span.model_request_end")]
    ModelRequestEnd { model_request_start_id: EventId, is_error: bool, model_usage: ModelUsage },

    // Private kinds: in the log, never shown.
    /// A model's answer as the provider sent it: what the public events cannot rebuild.
    #[serde(rename = "posthouse.answer")]
    Answer(Answer),
    /// A call of an MCP server's tool is about to be made. Without its result it is not known whether it was.
    #[serde(rename = "posthouse.mcp_call")]
    McpCall {
        mcp_tool_use_id: EventId,
        /// Whether the server says of the tool that calling it twice is the same as calling it once.
        repeatable: bool,
    },
    /// From here on the session's calls run in this sandbox.
    #[serde(rename = "posthouse.sandbox")]
    Sandbox { sandbox_id: SandboxId },
    /// The sandbox is gone and its workspace with it.
    #[serde(rename = "posthouse.sandbox_lost")]
    SandboxLost { sandbox_id: SandboxId },

    /// Everything in the session's sandbox was saved. What was saved before is replaced.
    #[serde(rename = "posthouse.snapshot")]
    Snapshot {
        snapshot: Snapshot,
        /// Whether the sandbox is done with, and calls after this begin with what was saved.
        put_away: bool,
    },
    /// The snapshot of this key is no more, or cannot be used.
    #[serde(rename = "posthouse.snapshot_lost")]
    SnapshotLost {
        key: String,
        reason: String,
        /// Whether the model has been told.
        #[serde(default)]
        told: bool,
    },

    /// A client has asked that the workspace be saved while its sandbox lives.
    #[serde(rename = "posthouse.snapshot_wanted")]
    SnapshotWanted {},
    /// What was asked for cannot be done.
    #[serde(rename = "posthouse.snapshot_unsaved")]
    SnapshotUnsaved {
        /// For the client; holds nothing of the server's inside.
        reason: String,
    },

    /// The model has been told that its sandbox was put away and restored meanwhile.
    #[serde(rename = "posthouse.restoration_told")]
    RestorationTold {},

    /// The deliverables of the calls so far are out of the sandbox, as far as they could be had.
    #[serde(rename = "posthouse.outputs_collected")]
    OutputsCollected {},

    /// A kind that this version does not know, carried unchanged.
    #[serde(untagged)]
    Unknown(Map<String, Value>),
}

/// What a sandbox held, kept as a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The blob's.
    pub key: String,
    /// Of the blob.
    pub size_bytes: u64,
    /// Of the blob, in hexadecimal. Compared when it is fetched.
    pub sha256: String,
    /// What a sandbox must be built on for this to fit: the host, an image of this content, a layer of packages.
    pub base: String,
    /// When it was taken.
    pub saved_at: Timestamp,
    /// When the workspace that it holds was begun: how long it is kept counts from here.
    pub begun_at: Timestamp,
    /// How much of the sandbox is not in it: sockets, devices, what has too long a path, attributes that are too large.
    #[serde(default, skip_serializing_if = "is_none_left_out")]
    pub left_out: u64,
}

fn is_none_left_out(left_out: &u64) -> bool {
    *left_out == 0
}

/// The private copy of a model's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The `span.model_request_start` that it answers.
    pub model_request_start_id: EventId,
    /// The content blocks in the shape of the Messages format: the JSON text of each, byte for byte.
    pub blocks: Vec<String>,
    /// How the answer ended.
    pub finish: Finish,
    /// Which public event each of its tool calls became, in order.
    pub calls: Vec<AnswerCall>,
}

/// One tool call of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerCall {
    /// The provider's own id of the call.
    pub provider_id: String,
    /// The event that shows it.
    pub event_id: EventId,
}

/// How an answer ended, as far as the session's course depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Finish {
    /// It is complete; any tool calls it asked for are run.
    Complete,
    /// The provider paused it and wants to be asked again.
    Paused,
    /// The model refused.
    Refused {
        /// What kind of refusal, where the provider says.
        category: Option<String>,
        /// Why, where the provider says.
        explanation: Option<String>,
    },
}

/// A person's verdict on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Run it.
    Allow,
    /// Do not.
    Deny,
}

/// What the policy says of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// It runs.
    Allow,
    /// The client is asked.
    Ask,
    /// It does not run.
    Deny,
}

/// Which policy gave the permission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Evaluation {
    /// The tool always runs.
    AlwaysAllow {},
    /// The client is always asked.
    AlwaysAsk {},
    /// A judge decided.
    Auto {
        /// What it decided.
        evaluated_permission: AutoPermission,
    },
}

/// What a judge decided. This server has no judge, so it never decides more than to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AutoPermission {
    /// It runs.
    Allow {},
    /// The client is asked.
    Ask {
        /// Why.
        reason_code: String,
    },
    /// It does not run.
    Deny {
        /// Why.
        reason_code: String,
    },
}

/// Why a session or a thread went idle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopReason {
    /// The turn is over.
    EndTurn {},
    /// It waits for the client's answer to these calls.
    RequiresAction {
        /// The calls.
        event_ids: Vec<EventId>,
    },
    /// It gave up.
    RetriesExhausted {},
    /// The model refused.
    Refusal {},
}

/// More about a stop reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopDetails {
    /// About a refusal.
    Refusal {
        /// What kind, where the provider says.
        category: Option<String>,
        /// Why, where the provider says.
        explanation: Option<String>,
    },
}

/// What went wrong in a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionError {
    /// The kind.
    #[serde(rename = "type")]
    pub kind: SessionErrorKind,
    /// For people. Names the layer; never holds a secret.
    pub message: String,
    /// What happens next.
    pub retry_status: RetryStatus,
    /// Which credential it is about, for the kinds that are about one.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialNamed>,
    /// Which of the agent's MCP servers it is about, for the kinds that are about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp_server_name: Option<String>,
    /// Of an error about a repository: which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository_url: Option<String>,
}

impl SessionError {
    /// An error that is about the session itself.
    pub fn new(kind: SessionErrorKind, message: String, retry_status: RetryStatus) -> Self {
        Self { kind, message, retry_status, credential: None, mcp_server_name: None, repository_url: None }
    }
}

/// A credential, as an error names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialNamed {
    /// The credential.
    pub credential_id: CredentialId,
    /// The vault that keeps it.
    pub vault_id: VaultId,
}

/// The kinds of session error that this server raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionErrorKind {
    /// Anything else.
    UnknownError,
    /// The model's provider is too busy.
    ModelOverloadedError,
    /// The model's provider limits our rate.
    ModelRateLimitedError,
    /// The request to the model failed.
    ModelRequestFailedError,
    /// Out of credit at the model's provider.
    BillingError,
    /// Too many rounds of tools in one turn.
    ToolUseLimitReachedError,
    /// A credential is for a host that the session's environment does not let out.
    CredentialHostUnreachableError,
    /// An MCP server cannot be reached. The session goes on without its tools.
    McpConnectionFailedError,
    /// An MCP server refuses the credential, or wants one that there is not. The session goes on without its tools.
    McpAuthenticationFailedError,
    /// A repository's host rejected the token, or wants one.
    RepositoryAuthenticationError,
    /// The token may not read the repository.
    RepositoryForbiddenError,
    /// There is no such repository, as far as the token can see.
    RepositoryNotFoundError,
    /// The branch or commit is not there.
    RepositoryCheckoutError,
    /// The repository could not be brought for another reason.
    RepositoryCloneError,
}

impl SessionErrorKind {
    /// Whether the session goes on as if nothing had happened, only without something that it asked for.
    pub fn is_aside(self) -> bool {
        match self {
            Self::CredentialHostUnreachableError
            | Self::McpConnectionFailedError
            | Self::McpAuthenticationFailedError
            | Self::RepositoryAuthenticationError
            | Self::RepositoryForbiddenError
            | Self::RepositoryNotFoundError
            | Self::RepositoryCheckoutError
            | Self::RepositoryCloneError => true,
            Self::UnknownError
            | Self::ModelOverloadedError
            | Self::ModelRateLimitedError
            | Self::ModelRequestFailedError
            | Self::BillingError
            | Self::ToolUseLimitReachedError => false,
        }
    }
}

/// What happens after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RetryStatus {
    /// The server tries again by itself.
    Retrying,
    /// The turn is dead; the client may prompt again.
    Exhausted,
    /// The session is dead.
    Terminal,
}

/// The tokens of one model request, in the span's flat names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelUsage {
    /// Uncached input.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Input written to the cache.
    pub cache_creation_input_tokens: u64,
    /// Input read from the cache.
    pub cache_read_input_tokens: u64,
}

/// The kinds that a client may list and filter by (the reference's 41; not `session.deleted`, not previews).
pub const LISTABLE_KINDS: [&str; 41] = [
    "user.message",
    "user.interrupt",
    "user.tool_confirmation",
    "user.custom_tool_result",
    "user.tool_result",
    "user.define_outcome",
    "system.message",
    "agent.message",
    "agent.thinking",
    "agent.tool_use",
    "agent.tool_result",
    "agent.mcp_tool_use",
    "agent.mcp_tool_result",
    "agent.custom_tool_use",
    "agent.thread_context_compacted",
    "agent.thread_message_sent",
    "agent.thread_message_received",
    "session.status_running",
    "session.status_idle",
    "session.status_rescheduled",
    "session.status_terminated",
    "session.error",
    "session.updated",
    "session.usage",
    "session.thread_created",
    "session.thread_status_running",
    "session.thread_status_idle",
    "session.thread_status_rescheduled",
    "session.thread_status_terminated",
    "span.model_request_start",
    "span.model_request_end",
    "span.outcome_evaluation_start",
    "span.outcome_evaluation_ongoing",
    "span.outcome_evaluation_end",
    "workflow_run.created",
    "workflow_run.status_running",
    "workflow_run.status_idle",
    "workflow_run.phase_started",
    "workflow_run.phase_ended",
    "workflow_run.error",
    "workflow_run.status_ended",
];

/// The prefix of the kinds that are never shown.
pub const PRIVATE_PREFIX: &str = "posthouse.";

impl Body {
    /// The kind's name on the wire.
    pub fn kind(&self) -> &str {
        match self {
            Self::UserMessage { .. } => "user.message",
            Self::UserInterrupt { .. } => "user.interrupt",
            Self::UserToolConfirmation { .. } => "user.tool_confirmation",
            Self::UserCustomToolResult { .. } => "user.custom_tool_result",
            Self::SystemMessage { .. } => "system.message",
            Self::AgentMessage { .. } => "agent.message",
            Self::AgentThinking {} => "agent.thinking",
            Self::AgentToolUse { .. } => "agent.tool_use",
            Self::AgentToolResult { .. } => "agent.tool_result",
            Self::AgentMcpToolUse { .. } => "agent.mcp_tool_use",
            Self::AgentMcpToolResult { .. } => "agent.mcp_tool_result",
            Self::AgentCustomToolUse { .. } => "agent.custom_tool_use",
            Self::StatusRunning {} => "session.status_running",
            Self::StatusIdle { .. } => "session.status_idle",
            Self::StatusRescheduled {} => "session.status_rescheduled",
            Self::StatusTerminated {} => "session.status_terminated",
            Self::Error { .. } => "session.error",
            Self::Updated { .. } => "session.updated",
            Self::Usage { .. } => "session.usage",
            Self::Deleted {} => "session.deleted",
            Self::ThreadRunning { .. } => "session.thread_status_running",
            Self::ThreadIdle { .. } => "session.thread_status_idle",
            Self::ThreadRescheduled { .. } => "session.thread_status_rescheduled",
            Self::ThreadTerminated { .. } => "session.thread_status_terminated",
            Self::ModelRequestStart {} => "span.model_request_start",
            Self::ModelRequestEnd { .. } => "span.model_request_end",
            Self::Answer(_) => "posthouse.answer",
            Self::McpCall { .. } => "posthouse.mcp_call",
            Self::Sandbox { .. } => "posthouse.sandbox",
            Self::SandboxLost { .. } => "posthouse.sandbox_lost",
            Self::Snapshot { .. } => "posthouse.snapshot",
            Self::SnapshotLost { .. } => "posthouse.snapshot_lost",
            Self::SnapshotWanted {} => "posthouse.snapshot_wanted",
            Self::SnapshotUnsaved { .. } => "posthouse.snapshot_unsaved",
            Self::RestorationTold {} => "posthouse.restoration_told",
            Self::OutputsCollected {} => "posthouse.outputs_collected",
            Self::Unknown(map) => map.get("type").and_then(Value::as_str).unwrap_or("unknown"),
        }
    }

    /// Whether it stays behind the door.
    pub fn is_private(&self) -> bool {
        self.kind().starts_with(PRIVATE_PREFIX)
    }

    /// The built-in tool that a call names, if it is one.
    pub fn builtin_tool(&self) -> Option<BuiltinTool> {
        match self {
            Self::AgentToolUse { name, .. } => BuiltinTool::from_name(name),
            _ => None,
        }
    }
}

/// What a stream shows of an answer while it is made. Never stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Preview {
    /// A block begins; the buffered event will have this id.
    EventStart {
        /// Which event.
        event: PreviewEvent,
    },
    /// A piece of the block's text.
    EventDelta {
        /// Which event.
        event_id: EventId,
        /// The piece.
        delta: PreviewDelta,
    },
}

/// The event that a preview announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewEvent {
    /// `agent.message` or `agent.thinking`.
    #[serde(rename = "type")]
    pub kind: PreviewKind,
    /// The id that the buffered event will have.
    pub id: EventId,
}

/// The kinds of event that can be previewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PreviewKind {
    /// Start and deltas.
    #[serde(rename = "agent.message")]
    Message,
    /// Start only.
    #[serde(rename = "agent.thinking")]
    Thinking,
}

/// A piece of a block's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PreviewDelta {
    /// Text that is appended at `index` of the future content.
    ContentDelta {
        /// The position in the future `content`.
        index: u32,
        /// The piece, as a text block.
        content: PreviewText,
    },
}

/// A piece of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PreviewText {
    /// The only kind.
    Text {
        /// The piece.
        text: String,
    },
}

/// Tells an absent key from a null one.
mod double_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer, T: Serialize>(
        value: &Option<Option<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().and_then(Option::as_ref).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<T>>, D::Error> {
        Option::<T>::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn round_trip(value: Value) {
        let event: Event = serde_json::from_value(value.clone()).expect("reads");
        assert_eq!(serde_json::to_value(&event).expect("writes"), value);
    }

    #[test]
    fn an_event_keeps_its_shape() {
        round_trip(json!({
            "type": "session.status_idle", "id": "sevt_1", "processed_at": "2026-11-20T09:00:01.000001Z",
            "stop_reason": {"type": "requires_action", "event_ids": ["sevt_0"]}, "stop_details": null,
        }));
        round_trip(json!({"type": "user.interrupt", "id": "sevt_1", "processed_at": null}));
        round_trip(json!({"type": "session.updated", "id": "sevt_1", "processed_at": null, "title": null}));
        round_trip(json!({"type": "session.updated", "id": "sevt_1", "processed_at": null}));
    }

    #[test]
    fn the_private_answer_keeps_its_bytes() {
        let bytes = r#"{"b" : 1,"a":2.0}"#;
        round_trip(json!({
            "type": "posthouse.answer", "id": "sevt_1", "processed_at": null, "model_request_start_id": "sevt_0",
            "blocks": [bytes], "finish": {"type": "complete"}, "calls": [],
        }));
    }

    #[test]
    fn an_unknown_kind_survives_a_round_trip() {
        round_trip(
            json!({"type": "agent.dreamed", "id": "sevt_1", "processed_at": null, "sheep": [1, {"two": 2}]}),
        );
    }
}
