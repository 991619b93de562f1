//! Requests about agents: what may be asked, and what an agent looks like after a change.
//!
//! A change is merged into the stored agent here, so that the same rules hold for a new agent and for the result of
//! an update. Whether a provider serves the model is not known here: agents with unknown models may be saved.

mod domain;
mod mcp;
mod tools;
mod web;

use serde_json::Value;

use crate::agent::{
    Agent, AgentSpec, AgentTag, Effort, EffortLevel, ExecutionIdentity, McpServer, ModelConfig, SessionAgent,
    Speed, Tool,
};
use crate::id::AgentId;
use crate::metadata::{Metadata, MetadataPatch, patched};
use crate::parse::{
    Fields, Invalid, Parsed, Patch, check_metadata, integer, kind_of, metadata, metadata_patch, one_of, text,
};
use crate::time::Timestamp;

pub use mcp::{check_pairs, mcp_servers};
pub use tools::tools;

const NAME_CHARS_MAX: usize = 256;
const MODEL_CHARS_MAX: usize = 256;
const DESCRIPTION_CHARS_MAX: usize = 2_048;
/// The longest system prompt, of an agent or of an override.
const SYSTEM_CHARS_MAX: usize = 100_000;
/// The `error_code` of an update that names another version than the current one.
pub const VERSION_MISMATCH: &str = "version_mismatch";

/// The body of `POST /v1/agents`.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentCreate {
    /// What the agent is.
    pub spec: AgentSpec,
    /// What its owner hangs on it.
    pub metadata: Metadata,
}

impl AgentCreate {
    /// Reads the body.
    pub fn parse(body: Value) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        refuse_unbuilt(&mut fields)?;
        let name = fields.required("name", text(1..=NAME_CHARS_MAX))?;
        let model = fields.required("model", model)?.resolve(None);
        let description = fields.optional("description", text(0..=DESCRIPTION_CHARS_MAX))?;
        let system = fields.optional("system", text(0..=SYSTEM_CHARS_MAX))?;
        let tools = fields.optional("tools", tools)?.unwrap_or_default();
        let mcp_servers = fields.optional("mcp_servers", mcp_servers)?.unwrap_or_default();
        let execution_identity = fields.optional("execution_identity", execution_identity)?;
        let metadata = fields.optional("metadata", metadata)?.unwrap_or_default();
        fields.finish()?;
        let spec = AgentSpec {
            name,
            description: not_empty(description),
            model,
            system: not_empty(system),
            tools,
            mcp_servers,
            skills: Vec::new(),
            multiagent: None,
            execution_identity: execution_identity.unwrap_or(ExecutionIdentity::ServiceAccount {}),
        };
        check_pairs(&spec, "")?;
        Ok(Self { spec, metadata })
    }

    /// The first version of the agent.
    pub fn into_agent(self, id: AgentId, now: Timestamp) -> Agent {
        let Self { spec, metadata } = self;
        Agent {
            tag: AgentTag::Agent,
            id,
            version: 1,
            spec,
            metadata,
            created_at: now,
            updated_at: now,
            archived_at: None,
        }
    }
}

/// The body of `POST /v1/agents/{agent_id}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentUpdate {
    /// The version that the client believes to be current.
    version: Option<i64>,
    name: Option<String>,
    model: Option<ModelRequest>,
    description: Patch<String>,
    system: Patch<String>,
    tools: Patch<Vec<Tool>>,
    mcp_servers: Patch<Vec<McpServer>>,
    metadata: MetadataPatch,
}

impl AgentUpdate {
    /// Reads the body.
    pub fn parse(body: Value) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        refuse_unbuilt(&mut fields)?;
        let update = Self {
            version: fields.optional("version", integer(1..=i64::MAX))?,
            name: not_cleared(&fields.path_of("name"), fields.patch("name", text(1..=NAME_CHARS_MAX))?)?,
            model: not_cleared(&fields.path_of("model"), fields.patch("model", model)?)?,
            description: fields.patch("description", text(0..=DESCRIPTION_CHARS_MAX))?,
            system: fields.patch("system", text(0..=SYSTEM_CHARS_MAX))?,
            tools: fields.patch("tools", tools)?,
            mcp_servers: fields.patch("mcp_servers", mcp_servers)?,
            metadata: fields.optional("metadata", metadata_patch)?.unwrap_or_default(),
        };
        // There is one identity only, so that naming it, clearing it and leaving it out are the same.
        let _: Option<ExecutionIdentity> = fields.optional("execution_identity", execution_identity)?;
        fields.finish()?;
        Ok(update)
    }

    /// The next version of the agent, or `None` if nothing would change. A refusal with the code
    /// [`VERSION_MISMATCH`] means that the client's version is not the current one, whatever else it sent.
    pub fn apply(self, current: &Agent, now: Timestamp) -> Parsed<Option<Agent>> {
        let Self { version, name, model, description, system, tools, mcp_servers, metadata } = self;
        if current.archived_at.is_some() {
            return Err(Invalid::new("agent_id", "the agent is archived and can no longer be changed"));
        }
        if let Some(version) = version
            && version != current.version
        {
            let rule = format!("is {version}, but the agent's current version is {}", current.version);
            return Err(Invalid::new("version", rule).with_code(VERSION_MISMATCH));
        }
        let mut spec = current.spec.clone();
        if let Some(name) = name {
            spec.name = name;
        }
        if let Some(model) = model {
            spec.model = model.resolve(Some(&current.spec.model));
        }
        merge_text(&mut spec.description, description);
        merge_text(&mut spec.system, system);
        merge_list(&mut spec.tools, tools);
        merge_list(&mut spec.mcp_servers, mcp_servers);
        check_pairs(&spec, "")?;
        let metadata = patched(&current.metadata, &metadata);
        check_metadata(&metadata, "metadata")?;
        if spec == current.spec && metadata == current.metadata {
            return Ok(None);
        }
        Ok(Some(Agent { version: current.version + 1, spec, metadata, updated_at: now, ..current.clone() }))
    }
}

/// What may replace parts of an agent for one session. Each part given replaces the agent's whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentOverrides {
    model: Option<ModelRequest>,
    system: Patch<String>,
    tools: Patch<Vec<Tool>>,
    mcp_servers: Patch<Vec<McpServer>>,
}

impl AgentOverrides {
    /// Takes the overriding fields out of an `agent_with_overrides`.
    pub(crate) fn take(fields: &mut Fields) -> Parsed<Self> {
        empty_list(fields, "skills", "a non-empty `skills`")?;
        let model = match fields.patch("model", model)? {
            Patch::Keep => None,
            Patch::Set(model) => Some(model),
            Patch::Clear => {
                return Err(fields.invalid("model", "cannot be cleared").with_code("agent_model_required"));
            }
        };
        Ok(Self {
            model,
            system: fields.patch("system", text(0..=SYSTEM_CHARS_MAX))?,
            tools: fields.patch("tools", tools)?,
            mcp_servers: fields.patch("mcp_servers", mcp_servers)?,
        })
    }

    /// What a session of this agent runs. Fails if what is replaced does not go with what is not.
    pub fn apply(self, agent: &Agent) -> Parsed<SessionAgent> {
        let Self { model, system, tools, mcp_servers } = self;
        let mut spec = agent.spec.clone();
        if let Some(model) = model {
            // The reference: effort is ignored here, and the agent's own is not carried over.
            spec.model = ModelRequest { effort: None, ..model }.resolve(None);
        }
        merge_text(&mut spec.system, system);
        merge_list(&mut spec.tools, tools);
        merge_list(&mut spec.mcp_servers, mcp_servers);
        check_pairs(&spec, "agent")?;
        Ok(SessionAgent { tag: AgentTag::Agent, id: agent.id.clone(), version: agent.version, spec })
    }
}

/// A model as a client names it: a bare name, or an object.
#[derive(Clone, Debug, PartialEq)]
struct ModelRequest {
    id: String,
    effort: Option<EffortLevel>,
    speed: Speed,
    inference_geo: Option<String>,
}

impl ModelRequest {
    /// The configuration in full. An effort that is left out stays as it was for the same model.
    fn resolve(self, stored: Option<&ModelConfig>) -> ModelConfig {
        let Self { id, effort, speed, inference_geo } = self;
        let stored = stored.filter(|stored| stored.id == id).map(|stored| stored.effort.level);
        let level = effort.or(stored).unwrap_or_default();
        ModelConfig { id, effort: Effort { level }, speed, inference_geo }
    }
}

fn model(value: Value, path: &str) -> Parsed<ModelRequest> {
    match value {
        Value::String(_) => Ok(ModelRequest {
            id: text(1..=MODEL_CHARS_MAX)(value, path)?,
            effort: None,
            speed: Speed::Standard,
            inference_geo: None,
        }),
        Value::Object(_) => {
            let mut fields = Fields::new(value, path)?;
            let model = ModelRequest {
                id: fields.required("id", text(1..=MODEL_CHARS_MAX))?,
                effort: fields.optional("effort", effort)?,
                speed: fields.optional("speed", speed)?.unwrap_or_default(),
                inference_geo: fields
                    .optional("inference_geo", one_of(&["us", "global"]))?
                    .map(str::to_owned),
            };
            fields.finish()?;
            Ok(model)
        }
        other => {
            Err(Invalid::new(path, format!("must be a model's name or an object, not {}", kind_of(&other))))
        }
    }
}

fn effort(value: Value, path: &str) -> Parsed<EffortLevel> {
    const LEVELS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];
    let name = if value.is_object() {
        let mut fields = Fields::new(value, path)?;
        let name = fields.tag(&LEVELS)?;
        fields.finish()?;
        name
    } else {
        one_of(&LEVELS)(value, path)?
    };
    Ok(match name {
        "low" => EffortLevel::Low,
        "medium" => EffortLevel::Medium,
        "high" => EffortLevel::High,
        "xhigh" => EffortLevel::Xhigh,
        _ => EffortLevel::Max,
    })
}

fn speed(value: Value, path: &str) -> Parsed<Speed> {
    Ok(match one_of(&["standard", "fast"])(value, path)? {
        "fast" => Speed::Fast,
        _ => Speed::Standard,
    })
}

fn execution_identity(value: Value, path: &str) -> Parsed<ExecutionIdentity> {
    let mut fields = Fields::new(value, path)?;
    if fields.tag(&["service_account", "aws_role"])? == "aws_role" {
        return Err(Invalid::unbuilt(fields.path_of("type"), "`aws_role`"));
    }
    fields.finish()?;
    Ok(ExecutionIdentity::ServiceAccount {})
}

fn refuse_unbuilt(fields: &mut Fields) -> Parsed<()> {
    empty_list(fields, "skills", "a non-empty `skills`")?;
    fields.optional("multiagent", |_, path| {
        Err::<(), _>(Invalid::unbuilt(path, "`multiagent` (several agents in a session)"))
    })?;
    Ok(())
}

/// Takes a list that may be absent, null or empty, and refuses the feature that anything else would ask for.
pub(crate) fn empty_list(fields: &mut Fields, name: &str, what: &str) -> Parsed<()> {
    fields.optional(name, |value, path| match value {
        Value::Array(items) if items.is_empty() => Ok(()),
        Value::Array(_) => Err(Invalid::unbuilt(path, what)),
        other => Err(Invalid::new(path, format!("must be an array, not {}", kind_of(&other)))),
    })?;
    Ok(())
}

/// A field of an update that can be left out but not be null.
pub(crate) fn not_cleared<T>(path: &str, patch: Patch<T>) -> Parsed<Option<T>> {
    match patch {
        Patch::Keep => Ok(None),
        Patch::Clear => Err(Invalid::new(path, "cannot be cleared")),
        Patch::Set(value) => Ok(Some(value)),
    }
}

/// Empty text and null are the same: not set.
fn not_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn merge_list<T>(stored: &mut Vec<T>, patch: Patch<Vec<T>>) {
    match patch {
        Patch::Keep => {}
        Patch::Clear => stored.clear(),
        Patch::Set(list) => *stored = list,
    }
}

fn merge_text(stored: &mut Option<String>, patch: Patch<String>) {
    match patch {
        Patch::Keep => {}
        Patch::Clear => *stored = None,
        Patch::Set(text) => *stored = not_empty(Some(text)),
    }
}

#[cfg(test)]
mod tests;
