//! Sessions and their threads, as the wire shows them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::agent::{SessionAgent, ThreadAgent};
use crate::id::{EnvironmentId, SessionId, ThreadId, VaultId};
use crate::metadata::Metadata;
use crate::resource::Resource;
use crate::time::Timestamp;

/// A session, as the wire shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Always `session`.
    #[serde(rename = "type")]
    pub tag: SessionTag,
    /// Its id.
    pub id: SessionId,
    /// The agent it runs.
    pub agent: SessionAgent,
    /// Where its hands work.
    pub environment_id: EnvironmentId,
    /// Always null until deployments are built.
    pub deployment_id: Option<String>,
    /// At most 500 characters.
    pub title: Option<String>,
    /// What its owner hung on it.
    pub metadata: Metadata,
    /// Whose credentials it may spend, in this order. Never changes.
    pub vault_ids: Vec<VaultId>,
    /// What was put into its workspace.
    pub resources: Vec<Resource>,
    /// What it is doing.
    pub status: Status,
    /// Always null until budgets are built.
    pub budget: Option<Value>,
    /// What it has used.
    pub usage: Usage,
    /// How long it has worked.
    pub stats: Stats,
    /// Always empty until outcomes are built.
    pub outcome_evaluations: Vec<Value>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived, if it was.
    pub archived_at: Option<Timestamp>,
    /// What keeps it from going on, while something does. An extension: absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

/// What a session waits for: its turn, not its client. Stored and on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What for.
    #[serde(rename = "for")]
    pub reason: WaitsFor,
    /// Since when.
    pub since: Timestamp,
}

/// What can keep a session from going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// It wants a brain, and none has taken it yet.
    Brain,
    /// Its brain waits until it may ask the model.
    Model,
    /// Its call waits for a sandbox: to be made, or for room on the machine.
    Sandbox,
    /// The packages of its environment are being installed.
    Packages,
}

/// The tag of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionTag {
    /// The only tag there is.
    Session,
}

/// What a session or a thread is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nothing; it waits for its client.
    #[default]
    Idle,
    /// It works.
    Running,
    /// It waits before it tries again.
    Rescheduling,
    /// It is over.
    Terminated,
}

impl Status {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Rescheduling => "rescheduling",
            Self::Terminated => "terminated",
        }
    }

    /// All of them.
    pub const ALL: [Self; 4] = [Self::Idle, Self::Running, Self::Rescheduling, Self::Terminated];
}

/// What a session or a thread has used since it began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Uncached input.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Input read from the cache.
    pub cache_read_input_tokens: u64,
    /// Input written to the cache.
    pub cache_creation: CacheCreation,
    /// Wall time in which it worked.
    pub active_seconds: f64,
    /// What the server's own tools did.
    pub server_tool_use: ServerToolUse,
}

/// Input written to the cache, by how long it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCreation {
    /// For five minutes.
    pub ephemeral_5m_input_tokens: u64,
    /// For an hour.
    pub ephemeral_1h_input_tokens: u64,
}

/// What the server's own tools did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerToolUse {
    /// Searches of the web.
    pub web_search_requests: u64,
    /// Always 0.
    pub web_fetch_requests: u64,
}

/// How long a session has worked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// The sum of its threads' active time.
    pub active_seconds: f64,
    /// Since it was made; frozen when it ends.
    pub duration_seconds: f64,
}

/// A thread of a session, as the wire shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Always `session_thread`.
    #[serde(rename = "type")]
    pub tag: ThreadTag,
    /// Its id.
    pub id: ThreadId,
    /// The session it belongs to.
    pub session_id: SessionId,
    /// Null on the primary thread.
    pub parent_thread_id: Option<ThreadId>,
    /// Null until workflows are built.
    pub workflow_run_id: Option<String>,
    /// The agent it runs.
    pub agent: ThreadAgent,
    /// What it is doing.
    pub status: Status,
    /// Null until its first change of status.
    pub stats: Option<ThreadStats>,
    /// Null until it first goes idle.
    pub usage: Option<Usage>,
    /// When it was archived, if it was.
    pub archived_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// The tag of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThreadTag {
    /// The only tag there is.
    SessionThread,
}

/// How long a thread has worked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ThreadStats {
    /// Time in which it worked.
    pub active_seconds: f64,
    /// Since it was made; frozen when it ends.
    pub duration_seconds: f64,
    /// From its making to its first work.
    pub startup_seconds: f64,
}
