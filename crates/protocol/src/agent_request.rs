//! Requests about agents: what may be asked, and what an agent looks like after a change.
//!
//! A change is merged into the stored agent here, so that the same rules hold for a new agent and for the result of
//! an update. Whether a provider serves the model is not known here: agents with unknown models may be saved.

use serde_json::{Map, Value};

use crate::agent::{
    Agent, AgentSpec, AgentTag, BuiltinTool, CustomTool, Effort, EffortLevel, ExecutionIdentity, ModelConfig,
    PermissionPolicy, SessionAgent, Speed, Tool, ToolConfig, ToolDefaults,
};
use crate::id::AgentId;
use crate::metadata::{Metadata, MetadataPatch, patched};
use crate::parse::{
    Fields, Invalid, Parsed, Patch, boolean, check_metadata, clipped, integer, kind_of, list, metadata,
    metadata_patch, one_of, text,
};
use crate::time::Timestamp;

const NAME_CHARS_MAX: usize = 256;
const MODEL_CHARS_MAX: usize = 256;
const DESCRIPTION_CHARS_MAX: usize = 2_048;
/// The longest system prompt, of an agent or of an override.
const SYSTEM_CHARS_MAX: usize = 100_000;
/// How many tools an agent may have over all its toolsets. An earlier text of the reference says 128.
const TOOLS_MAX: usize = 256;
const TOOL_NAME_CHARS_MAX: usize = 128;
const PROPERTY_NAME_CHARS_MAX: usize = 64;
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
        let name = fields.required("name", text(1..=NAME_CHARS_MAX))?;
        let model = fields.required("model", model)?.resolve(None);
        let description = fields.optional("description", text(0..=DESCRIPTION_CHARS_MAX))?;
        let system = fields.optional("system", text(0..=SYSTEM_CHARS_MAX))?;
        let tools = fields.optional("tools", tools)?.unwrap_or_default();
        refuse_unbuilt(&mut fields)?;
        let execution_identity = fields.optional("execution_identity", execution_identity)?;
        let metadata = fields.optional("metadata", metadata)?.unwrap_or_default();
        fields.finish()?;
        Ok(Self {
            spec: AgentSpec {
                name,
                description: not_empty(description),
                model,
                system: not_empty(system),
                tools,
                mcp_servers: Vec::new(),
                skills: Vec::new(),
                multiagent: None,
                execution_identity: execution_identity.unwrap_or(ExecutionIdentity::ServiceAccount {}),
            },
            metadata,
        })
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
    metadata: MetadataPatch,
}

impl AgentUpdate {
    /// Reads the body.
    pub fn parse(body: Value) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        let update = Self {
            version: fields.optional("version", integer(1..=i64::MAX))?,
            name: not_cleared(&fields.path_of("name"), fields.patch("name", text(1..=NAME_CHARS_MAX))?)?,
            model: not_cleared(&fields.path_of("model"), fields.patch("model", model)?)?,
            description: fields.patch("description", text(0..=DESCRIPTION_CHARS_MAX))?,
            system: fields.patch("system", text(0..=SYSTEM_CHARS_MAX))?,
            tools: fields.patch("tools", tools)?,
            metadata: fields.optional("metadata", metadata_patch)?.unwrap_or_default(),
        };
        refuse_unbuilt(&mut fields)?;
        // There is one identity only, so that naming it, clearing it and leaving it out are the same.
        let _: Option<ExecutionIdentity> = fields.optional("execution_identity", execution_identity)?;
        fields.finish()?;
        Ok(update)
    }

    /// The next version of the agent, or `None` if nothing would change. A refusal with the code
    /// [`VERSION_MISMATCH`] means that the client's version is not the current one, whatever else it sent.
    pub fn apply(self, current: &Agent, now: Timestamp) -> Parsed<Option<Agent>> {
        let Self { version, name, model, description, system, tools, metadata } = self;
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
        match tools {
            Patch::Keep => {}
            Patch::Clear => spec.tools = Vec::new(),
            Patch::Set(tools) => spec.tools = tools,
        }
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
}

impl AgentOverrides {
    /// Takes the overriding fields out of an `agent_with_overrides`.
    pub(crate) fn take(fields: &mut Fields) -> Parsed<Self> {
        let model = match fields.patch("model", model)? {
            Patch::Keep => None,
            Patch::Set(model) => Some(model),
            Patch::Clear => {
                return Err(fields.invalid("model", "cannot be cleared").with_code("agent_model_required"));
            }
        };
        let overrides = Self {
            model,
            system: fields.patch("system", text(0..=SYSTEM_CHARS_MAX))?,
            tools: fields.patch("tools", tools)?,
        };
        refuse_unbuilt_lists(fields)?;
        Ok(overrides)
    }

    /// What a session of this agent runs.
    pub fn apply(self, agent: &Agent) -> SessionAgent {
        let Self { model, system, tools } = self;
        let mut spec = agent.spec.clone();
        if let Some(model) = model {
            // The reference: effort is ignored here, and the agent's own is not carried over.
            spec.model = ModelRequest { effort: None, ..model }.resolve(None);
        }
        merge_text(&mut spec.system, system);
        match tools {
            Patch::Keep => {}
            Patch::Clear => spec.tools = Vec::new(),
            Patch::Set(tools) => spec.tools = tools,
        }
        SessionAgent { tag: AgentTag::Agent, id: agent.id.clone(), version: agent.version, spec }
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

/// The `tools` of an agent, an override or a session's update: checked as a whole, because it is replaced as a whole.
pub fn tools(value: Value, path: &str) -> Parsed<Vec<Tool>> {
    let tools = list(0..=TOOLS_MAX, tool)(value, path)?;
    let mut names: Vec<&str> = Vec::new();
    let mut count = 0;
    let mut has_toolset = false;
    for (index, tool) in tools.iter().enumerate() {
        match tool {
            Tool::Toolset { .. } if has_toolset => {
                return Err(Invalid::new(
                    format!("{path}[{index}]"),
                    "only one `agent_toolset_20260401` is allowed",
                ));
            }
            Tool::Toolset { .. } => {
                has_toolset = true;
                count += BuiltinTool::ALL.len();
            }
            Tool::Custom(tool) if names.contains(&tool.name.as_str()) => {
                let rule = format!("another tool is already called `{}`", tool.name);
                return Err(Invalid::new(format!("{path}[{index}].name"), rule));
            }
            Tool::Custom(tool) => {
                names.push(&tool.name);
                count += 1;
            }
        }
    }
    if count > TOOLS_MAX {
        let rule = format!("must have at most {TOOLS_MAX} tools over all toolsets, not {count}");
        return Err(Invalid::new(path, rule));
    }
    Ok(tools)
}

fn tool(value: Value, path: &str) -> Parsed<Tool> {
    let mut fields = Fields::new(value, path)?;
    let tool = match fields.tag(&["agent_toolset_20260401", "custom", "mcp_toolset"])? {
        "agent_toolset_20260401" => toolset(&mut fields)?,
        "custom" => Tool::Custom(custom_tool(&mut fields)?),
        _ => return Err(Invalid::unbuilt(fields.path_of("type"), "`mcp_toolset` (MCP)")),
    };
    fields.finish()?;
    Ok(tool)
}

fn toolset(fields: &mut Fields) -> Parsed<Tool> {
    let default_config = fields
        .optional("default_config", tool_defaults)?
        .unwrap_or(ToolDefaults { enabled: true, permission_policy: PermissionPolicy::AlwaysAllow {} });
    let path = fields.path_of("configs");
    let configs = fields
        .optional(
            "configs",
            list(0..=BuiltinTool::ALL.len(), |value, path| tool_config(value, path, &default_config)),
        )?
        .unwrap_or_default();
    for (index, config) in configs.iter().enumerate() {
        if configs[..index].iter().any(|earlier| earlier.name == config.name) {
            let rule = format!("`{}` is configured twice", config.name.name());
            return Err(Invalid::new(format!("{path}[{index}].name"), rule));
        }
    }
    Ok(Tool::Toolset { default_config, configs })
}

fn tool_defaults(value: Value, path: &str) -> Parsed<ToolDefaults> {
    let mut fields = Fields::new(value, path)?;
    let defaults = ToolDefaults {
        enabled: fields.optional("enabled", boolean)?.unwrap_or(true),
        permission_policy: fields
            .optional("permission_policy", permission_policy)?
            .unwrap_or(PermissionPolicy::AlwaysAllow {}),
    };
    fields.finish()?;
    Ok(defaults)
}

fn tool_config(value: Value, path: &str, defaults: &ToolDefaults) -> Parsed<ToolConfig> {
    let mut fields = Fields::new(value, path)?;
    let names = BuiltinTool::ALL.map(BuiltinTool::name);
    let name = fields.required("name", one_of(&names))?;
    fields.optional("type", one_of(&[name]))?;
    let tool = BuiltinTool::from_name(name).expect("one_of gives only names of built-in tools");
    let enabled = fields.optional("enabled", boolean)?.unwrap_or(defaults.enabled);
    let permission_policy =
        fields.optional("permission_policy", permission_policy)?.unwrap_or(defaults.permission_policy);
    if enabled && !tool.is_built() {
        return Err(Invalid::unbuilt(path, &format!("the tool `{name}`")));
    }
    let extras = web_settings(tool, &mut fields)?;
    fields.finish()?;
    Ok(ToolConfig { kind: tool, name: tool, enabled, permission_policy, extras })
}

/// The settings that only the web tools have. Those tools are not built, so a setting can only be left unset.
fn web_settings(tool: BuiltinTool, fields: &mut Fields) -> Parsed<Map<String, Value>> {
    let names: &[&str] = match tool {
        BuiltinTool::WebFetch => &["allowed_domains", "blocked_domains", "max_content_tokens", "url_sources"],
        BuiltinTool::WebSearch => &["allowed_domains", "blocked_domains", "user_location"],
        BuiltinTool::Bash
        | BuiltinTool::Read
        | BuiltinTool::Write
        | BuiltinTool::Edit
        | BuiltinTool::Glob
        | BuiltinTool::Grep => &[],
    };
    let mut unset = Map::new();
    for name in names {
        let what = format!("`{name}` of the web tools");
        fields.optional(name, |_, path| Err::<(), _>(Invalid::unbuilt(path, &what)))?;
        unset.insert((*name).to_owned(), Value::Null);
    }
    Ok(unset)
}

fn permission_policy(value: Value, path: &str) -> Parsed<PermissionPolicy> {
    let mut fields = Fields::new(value, path)?;
    let policy = match fields.tag(&["always_allow", "always_ask", "auto"])? {
        "always_allow" => PermissionPolicy::AlwaysAllow {},
        "always_ask" => PermissionPolicy::AlwaysAsk {},
        _ => PermissionPolicy::Auto {},
    };
    fields.finish()?;
    Ok(policy)
}

fn custom_tool(fields: &mut Fields) -> Parsed<CustomTool> {
    Ok(CustomTool {
        name: fields.required("name", tool_name)?,
        description: fields.required("description", text(1..=usize::MAX))?,
        input_schema: fields.required("input_schema", input_schema)?,
    })
}

fn tool_name(value: Value, path: &str) -> Parsed<String> {
    let name = text(1..=TOOL_NAME_CHARS_MAX)(value, path)?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
        return Err(Invalid::new(path, "must be letters, digits, `_` and `-` only"));
    }
    if BuiltinTool::from_name(&name).is_some() {
        return Err(Invalid::new(path, format!("`{name}` is the name of a built-in tool")));
    }
    if name.starts_with("mcp__") {
        return Err(Invalid::new(path, "must not start with `mcp__`"));
    }
    Ok(name)
}

/// A JSON Schema of an object. All its keys are kept and shown as they came.
fn input_schema(value: Value, path: &str) -> Parsed<Map<String, Value>> {
    if has_reference(&value) {
        return Err(Invalid::new(path, "must not contain `$ref`"));
    }
    let schema = crate::parse::object(value, path)?;
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {}
        _ => return Err(Invalid::new(format!("{path}.type"), "must be `object`")),
    }
    for name in ["oneOf", "anyOf", "allOf"] {
        if schema.contains_key(name) {
            return Err(Invalid::new(
                format!("{path}.{name}"),
                "is not allowed at the top of an input schema",
            ));
        }
    }
    match schema.get("properties") {
        None | Some(Value::Null) => {}
        Some(Value::Object(properties)) => {
            properties.keys().try_for_each(|name| property_name(name, path))?
        }
        Some(other) => {
            let rule = format!("must be an object, not {}", kind_of(other));
            return Err(Invalid::new(format!("{path}.properties"), rule));
        }
    }
    match schema.get("required") {
        None | Some(Value::Null) => {}
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => {}
        Some(_) => return Err(Invalid::new(format!("{path}.required"), "must be an array of strings")),
    }
    Ok(schema)
}

fn property_name(name: &str, path: &str) -> Parsed<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if (1..=PROPERTY_NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(());
    }
    let rule = format!("names must be 1 to {PROPERTY_NAME_CHARS_MAX} letters, digits, `_`, `.` and `-`");
    Err(Invalid::new(format!("{path}.properties.{}", clipped(name)), rule))
}

/// The recursion is bounded by the JSON reader, which refuses deep nesting.
fn has_reference(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.contains_key("$ref") || map.values().any(has_reference),
        Value::Array(items) => items.iter().any(has_reference),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn refuse_unbuilt(fields: &mut Fields) -> Parsed<()> {
    refuse_unbuilt_lists(fields)?;
    fields.optional("multiagent", |_, path| {
        Err::<(), _>(Invalid::unbuilt(path, "`multiagent` (several agents in a session)"))
    })?;
    Ok(())
}

/// `mcp_servers` and `skills`: only the empty list is taken.
fn refuse_unbuilt_lists(fields: &mut Fields) -> Parsed<()> {
    empty_list(fields, "mcp_servers", "a non-empty `mcp_servers` (MCP)")?;
    empty_list(fields, "skills", "a non-empty `skills`")
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

fn not_cleared<T>(path: &str, patch: Patch<T>) -> Parsed<Option<T>> {
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

fn merge_text(stored: &mut Option<String>, patch: Patch<String>) {
    match patch {
        Patch::Keep => {}
        Patch::Clear => *stored = None,
        Patch::Set(text) => *stored = not_empty(Some(text)),
    }
}

#[cfg(test)]
mod tests;
