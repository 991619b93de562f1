//! A session's own facts, apart from its log: what it runs, what it is called, and how that may change.

use protocol::agent::SessionAgent;
use protocol::environment::EnvironmentConfig;
use protocol::event::Body;
use protocol::hands::HandsSettings;
use protocol::id::{EnvironmentId, ResourceId, SessionId, VaultId};
use protocol::metadata::{Metadata, MetadataPatch, patched};
use protocol::parse::{Invalid, Patch, check_metadata};
use protocol::resource::Resource;
use protocol::session::{Session, SessionTag, Status, Thread, ThreadTag};
use protocol::session_request::AgentChange;
use protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::admit::Refusal;
use crate::state::State;
use crate::step::terminated_events;

/// A session's own facts. Stored: fields are only ever added, with a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: SessionId,
    /// The agent it runs: a snapshot that later changes of the agent do not touch.
    pub agent: SessionAgent,
    /// The environment it was made in.
    pub environment_id: EnvironmentId,
    /// That environment's configuration when the session was made.
    pub environment: EnvironmentConfig,
    /// How that environment's sandboxes were to be made then.
    #[serde(default)]
    pub hands: HandsSettings,
    /// At most 500 characters.
    pub title: Option<String>,
    /// What its owner hung on it.
    pub metadata: Metadata,
    /// Whose credentials it may spend, in this order.
    #[serde(default)]
    pub vault_ids: Vec<VaultId>,
    /// What was put into its workspace. Tokens are kept elsewhere, sealed.
    #[serde(default)]
    pub resources: Vec<Resource>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last updated by a client.
    pub updated_at: Timestamp,
    /// When it was archived, if it was.
    pub archived_at: Option<Timestamp>,
}

/// A change that a client asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// What changes of the agent.
    pub agent: AgentChange,
    /// The title.
    pub title: Patch<String>,
    /// The metadata, key by key.
    pub metadata: MetadataPatch,
}

impl Record {
    /// The session as the wire shows it at `now`.
    pub fn show(&self, state: &State, now: Timestamp) -> Session {
        Session {
            tag: SessionTag::Session,
            id: self.id.clone(),
            agent: self.agent.clone(),
            environment_id: self.environment_id.clone(),
            deployment_id: None,
            title: self.title.clone(),
            metadata: self.metadata.clone(),
            vault_ids: self.vault_ids.clone(),
            resources: self.resources.clone(),
            status: state.shown_status(),
            budget: None,
            usage: state.usage_at(now),
            stats: state.stats_at(now),
            outcome_evaluations: Vec::new(),
            created_at: self.created_at,
            updated_at: self.updated_at.max(state.last_at),
            archived_at: self.archived_at,
            // Not in the log: the store knows it.
            waiting: None,
        }
    }

    /// The primary thread as the wire shows it at `now`.
    pub fn show_thread(&self, state: &State, now: Timestamp) -> Thread {
        Thread {
            tag: ThreadTag::SessionThread,
            id: state.thread_id.clone(),
            session_id: self.id.clone(),
            parent_thread_id: None,
            workflow_run_id: None,
            agent: self.agent.clone().into(),
            status: state.shown_status(),
            stats: state.thread_stats_at(now),
            usage: state.has_idled.then(|| state.usage_at(now)),
            archived_at: self.archived_at,
            created_at: self.created_at,
            updated_at: self.updated_at.max(state.last_at),
        }
    }

    /// Applies a client's change; gives the event that says what really changed, if anything did.
    pub fn update(&mut self, state: &State, update: Update) -> Result<Option<Body>, Refusal> {
        if state.status == Status::Terminated {
            return Err(Refusal::Over);
        }
        let Update { agent, title, metadata } = update;
        let metadata = patched(&self.metadata, &metadata);
        check_metadata(&metadata, "metadata")?;
        let title = match title {
            Patch::Keep => self.title.clone(),
            Patch::Clear => None,
            Patch::Set(title) => Some(title),
        };
        // Refused even if nothing would change: what an answer means must not hang on what is there.
        if !agent.is_empty() && state.shown_status() != Status::Idle {
            return Err(busy("agent", "can only be changed while the session is idle").into());
        }
        let spec = agent.apply(&self.agent.spec)?;
        let has_new_tools = spec != self.agent.spec;
        let has_new_title = title != self.title;
        let has_new_metadata = metadata != self.metadata;
        if !has_new_tools && !has_new_title && !has_new_metadata {
            return Ok(None);
        }
        self.agent.spec = spec;
        self.title = title;
        self.metadata = metadata;
        Ok(Some(Body::Updated {
            agent: has_new_tools.then(|| Box::new(self.agent.clone())),
            metadata: (has_new_metadata && !self.metadata.is_empty()).then(|| self.metadata.clone()),
            title: has_new_title.then(|| self.title.clone()),
        }))
    }

    /// The events that end the session when it is archived at `now`; none if it is archived already.
    pub fn archive(&mut self, state: &State, now: Timestamp) -> Result<Vec<Body>, Refusal> {
        if self.archived_at.is_some() {
            return Ok(Vec::new());
        }
        refuse_at_work(state, "archived")?;
        self.archived_at = Some(now);
        Ok(match state.status {
            Status::Terminated => Vec::new(),
            Status::Idle | Status::Running | Status::Rescheduling => terminated_events(state).into(),
        })
    }
}

impl Record {
    /// Notes that a resource has another token now.
    pub fn rotate(&mut self, state: &State, id: &ResourceId, now: Timestamp) -> Result<bool, Refusal> {
        if state.status == Status::Terminated {
            return Err(Refusal::Over);
        }
        let Some(Resource::GithubRepository(repository)) =
            self.resources.iter_mut().find(|resource| resource.id() == id)
        else {
            return Ok(false);
        };
        repository.updated_at = now;
        Ok(true)
    }
}

/// Whether the session may be deleted now.
pub fn may_delete(state: &State) -> Result<(), Refusal> {
    refuse_at_work(state, "deleted")
}

/// The code of a refusal: there is nothing of which a snapshot could be taken.
pub const NO_WORKSPACE: &str = "workspace_not_there";

/// What is to be said in the log when a client wants the workspace saved now; nothing if that has been said, or if what is
/// saved is all there is.
pub fn want_snapshot(state: &State) -> Result<Option<Body>, Refusal> {
    if state.status == Status::Terminated {
        return Err(Refusal::Over);
    }
    refuse_at_work(state, "saved")?;
    match (&state.sandbox, &state.snapshot) {
        (None, None) => {
            let rule = "has no workspace that could be saved: its sandbox is made for the first call of a tool, and one that \
                        died is gone";
            Err(Invalid::new("session", rule).with_code(NO_WORKSPACE).into())
        }
        (None, Some(_)) => Ok(None),
        // Even if no call has run since it was saved: what runs in the background may have written.
        (Some(_), _) => Ok((!state.wants_snapshot()).then_some(Body::SnapshotWanted {})),
    }
}

fn refuse_at_work(state: &State, what: &str) -> Result<(), Refusal> {
    match state.shown_status() {
        Status::Idle | Status::Terminated => Ok(()),
        Status::Running | Status::Rescheduling => {
            Err(busy("session", &format!("cannot be {what} while it works")).into())
        }
    }
}

fn busy(path: &str, rule: &str) -> Invalid {
    Invalid::new(path, format!("{rule}; send a user.interrupt and wait until the session is idle"))
}
