//! Requests about sessions: what may be asked of a new one, and what may change.

use serde_json::Value;

use crate::agent::{Agent, AgentSpec, McpServer, SessionAgent, Tool};
use crate::agent_request::{AgentOverrides, check_pairs, mcp_servers, tools};
use crate::event::Body;
use crate::id::{AgentId, EnvironmentId, SessionId, VaultId};
use crate::metadata::{Metadata, MetadataPatch};
use crate::parse::{
    Fields, Invalid, Parsed, Patch, id_text, integer, kind_of, list, metadata, metadata_patch, text,
};
use crate::resource_request::{RepositoryCreate, resources};
use crate::send;

const TITLE_CHARS_MAX: usize = 500;
/// Not stated by the reference for sessions; a deployment may have as many.
const VAULTS_MAX: usize = 50;

/// The body of `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionCreate {
    /// Which agent, and what is different about it.
    pub agent: AgentChoice,
    /// Where its hands work.
    pub environment_id: EnvironmentId,
    /// At most 500 characters.
    pub title: Option<String>,
    /// What its owner hangs on it.
    pub metadata: Metadata,
    /// Whose credentials it may spend. For one server or variable the first vault with a match wins.
    pub vault_ids: Vec<VaultId>,
    /// What is put into its workspace.
    pub resources: Vec<RepositoryCreate>,
    /// What it starts with.
    pub initial_events: Vec<Body>,
    /// The session whose saved workspace it begins with: an extension, `{"workspace": {"from_session": "sesn_…"}}`.
    pub workspace_from: Option<SessionId>,
}

impl SessionCreate {
    /// Reads the body.
    pub fn parse(body: Value) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        let create = Self {
            agent: fields.required("agent", AgentChoice::parse)?,
            environment_id: EnvironmentId::from_text(fields.required("environment_id", id_text)?),
            title: fields.optional("title", text(0..=TITLE_CHARS_MAX))?,
            metadata: fields.optional("metadata", metadata)?.unwrap_or_default(),
            vault_ids: fields.optional("vault_ids", vault_ids)?.unwrap_or_default(),
            initial_events: fields.optional("initial_events", send::parse_initial)?.unwrap_or_default(),
            resources: fields.optional("resources", resources)?.unwrap_or_default(),
            workspace_from: fields.optional("workspace", workspace_from)?,
        };
        refuse_budget(&mut fields)?;
        fields.finish()?;
        Ok(create)
    }
}

fn vault_ids(value: Value, path: &str) -> Parsed<Vec<VaultId>> {
    let ids = list(0..=VAULTS_MAX, id_text)(value, path)?;
    if let Some(index) = (1..ids.len()).find(|index| ids[..*index].contains(&ids[*index])) {
        return Err(Invalid::new(format!("{path}[{index}]"), "is named twice"));
    }
    Ok(ids.into_iter().map(VaultId::from_text).collect())
}

fn workspace_from(value: Value, path: &str) -> Parsed<SessionId> {
    let mut fields = Fields::new(value, path)?;
    let from = SessionId::from_text(fields.required("from_session", id_text)?);
    fields.finish()?;
    Ok(from)
}

/// Which agent a session runs: one version of it, and what is different in this session.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentChoice {
    /// The agent.
    pub id: AgentId,
    /// The version; the latest if not given.
    pub version: Option<i64>,
    overrides: AgentOverrides,
}

impl AgentChoice {
    fn parse(value: Value, path: &str) -> Parsed<Self> {
        match value {
            Value::String(_) => {
                let id = AgentId::from_text(id_text(value, path)?);
                Ok(Self { id, version: None, overrides: AgentOverrides::default() })
            }
            Value::Object(_) => {
                let mut fields = Fields::new(value, path)?;
                let has_overrides = fields.tag(&["agent", "agent_with_overrides"])? == "agent_with_overrides";
                let id = AgentId::from_text(fields.required("id", id_text)?);
                let version = fields.optional("version", integer(1..=i64::MAX))?;
                let overrides = if has_overrides {
                    AgentOverrides::take(&mut fields)?
                } else {
                    AgentOverrides::default()
                };
                fields.finish()?;
                Ok(Self { id, version, overrides })
            }
            other => Err(Invalid::new(
                path,
                format!("must be an agent's id or an object, not {}", kind_of(&other)),
            )),
        }
    }

    /// What the session runs, given the agent that was chosen. Fails if an override does not go with the rest.
    pub fn snapshot(self, agent: &Agent) -> Parsed<SessionAgent> {
        self.overrides.apply(agent)
    }
}

/// The body of `POST /v1/sessions/{session_id}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionUpdate {
    /// What changes of the agent.
    pub agent: AgentChange,
    /// The title.
    pub title: Patch<String>,
    /// The metadata, key by key.
    pub metadata: MetadataPatch,
}

impl SessionUpdate {
    /// Reads the body.
    pub fn parse(body: Value) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        if fields.patch("vault_ids", |_, _| Ok(()))? != Patch::Keep {
            return Err(fields.invalid("vault_ids", "cannot be changed: the field is reserved for later use"));
        }
        let update = Self {
            agent: fields.optional("agent", agent_update)?.unwrap_or_default(),
            title: fields.patch("title", text(1..=TITLE_CHARS_MAX))?,
            metadata: fields.optional("metadata", metadata_patch)?.unwrap_or_default(),
        };
        // No session here has a budget, so removing it changes nothing.
        refuse_budget(&mut fields)?;
        fields.finish()?;
        Ok(update)
    }
}

/// What a session's update changes of its agent: lists that are replaced whole, or stay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentChange {
    /// The tools.
    pub tools: Option<Vec<Tool>>,
    /// The MCP servers.
    pub mcp_servers: Option<Vec<McpServer>>,
}

impl AgentChange {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.tools.is_none() && self.mcp_servers.is_none()
    }

    /// What the session runs afterwards. Fails if what is replaced does not go with what is not.
    pub fn apply(self, spec: &AgentSpec) -> Parsed<AgentSpec> {
        let Self { tools, mcp_servers } = self;
        let mut spec = spec.clone();
        spec.tools = tools.unwrap_or(spec.tools);
        spec.mcp_servers = mcp_servers.unwrap_or(spec.mcp_servers);
        check_pairs(&spec, "agent")?;
        Ok(spec)
    }
}

fn agent_update(value: Value, path: &str) -> Parsed<AgentChange> {
    let mut fields = Fields::new(value, path)?;
    let change = AgentChange {
        tools: replaced(fields.patch("tools", tools)?),
        mcp_servers: replaced(fields.patch("mcp_servers", mcp_servers)?),
    };
    fields.finish()?;
    Ok(change)
}

fn replaced<T>(patch: Patch<Vec<T>>) -> Option<Vec<T>> {
    match patch {
        Patch::Keep => None,
        Patch::Clear => Some(Vec::new()),
        Patch::Set(list) => Some(list),
    }
}

fn refuse_budget(fields: &mut Fields) -> Parsed<()> {
    fields.optional("budget", |_, path| Err::<(), _>(Invalid::unbuilt(path, "`budget`")))?;
    Ok(())
}

#[cfg(test)]
mod tests;
