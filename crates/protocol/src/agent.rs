//! Agents: named, versioned configurations, and the snapshot of one that a session keeps.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::AgentId;
use crate::metadata::Metadata;
use crate::time::Timestamp;
use crate::web::{FetchSettings, SearchSettings, UrlSources, UserLocation};

/// An agent at one version, as the wire shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Always `agent`.
    #[serde(rename = "type")]
    pub tag: AgentTag,
    /// Its id, the same for all versions.
    pub id: AgentId,
    /// 1 at first, one more with each change.
    pub version: i64,
    /// What it is, apart from its identity.
    #[serde(flatten)]
    pub spec: AgentSpec,
    /// What its owner hung on it.
    pub metadata: Metadata,
    /// When the agent was made.
    pub created_at: Timestamp,
    /// When this version was made.
    pub updated_at: Timestamp,
    /// When it was archived, if it was.
    pub archived_at: Option<Timestamp>,
}

/// The tag of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentTag {
    /// The only tag there is.
    Agent,
}

/// What makes an agent behave as it does: everything that a session copies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentSpec {
    /// 1 to 256 characters.
    pub name: String,
    /// At most 2,048 characters.
    pub description: Option<String>,
    /// The model and how it is run.
    pub model: ModelConfig,
    /// The system prompt, at most 100,000 characters.
    pub system: Option<String>,
    /// What it may do.
    pub tools: Vec<Tool>,
    /// The MCP servers that it has tools of, at most 20. Each has a toolset in `tools`, and each such toolset its server.
    pub mcp_servers: Vec<McpServer>,
    /// Always empty until skills are built.
    pub skills: Vec<Value>,
    /// Always null until several agents per session are built.
    pub multiagent: Option<Value>,
    /// Who it acts as.
    pub execution_identity: ExecutionIdentity,
}

/// The agent as a session runs it: a snapshot after overrides, with the identity of the base agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionAgent {
    /// Always `agent`.
    #[serde(rename = "type")]
    pub tag: AgentTag,
    /// The base agent.
    pub id: AgentId,
    /// The base agent's version.
    pub version: i64,
    /// What the session runs.
    #[serde(flatten)]
    pub spec: AgentSpec,
}

/// The agent of one thread: a [`SessionAgent`] without `multiagent`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadAgent {
    /// Always `agent`.
    #[serde(rename = "type")]
    pub tag: AgentTag,
    /// The base agent.
    pub id: AgentId,
    /// The base agent's version.
    pub version: i64,
    /// See [`AgentSpec`].
    pub name: String,
    /// See [`AgentSpec`].
    pub description: Option<String>,
    /// See [`AgentSpec`].
    pub model: ModelConfig,
    /// See [`AgentSpec`].
    pub system: Option<String>,
    /// See [`AgentSpec`].
    pub tools: Vec<Tool>,
    /// See [`AgentSpec`].
    pub mcp_servers: Vec<McpServer>,
    /// See [`AgentSpec`].
    pub skills: Vec<Value>,
    /// See [`AgentSpec`].
    pub execution_identity: ExecutionIdentity,
}

impl From<SessionAgent> for ThreadAgent {
    fn from(agent: SessionAgent) -> Self {
        let SessionAgent { tag, id, version, spec } = agent;
        let AgentSpec {
            name,
            description,
            model,
            system,
            tools,
            mcp_servers,
            skills,
            multiagent: _,
            execution_identity,
        } = spec;
        Self {
            tag,
            id,
            version,
            name,
            description,
            model,
            system,
            tools,
            mcp_servers,
            skills,
            execution_identity,
        }
    }
}

/// The model and how it is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The name that the server's provider table maps.
    pub id: String,
    /// How hard it thinks.
    pub effort: Effort,
    /// `standard` or `fast`.
    pub speed: Speed,
    /// Where it may run; null where the provider decides.
    pub inference_geo: Option<String>,
}

/// How hard a model thinks, as the wire's object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effort {
    /// The level.
    #[serde(rename = "type")]
    pub level: EffortLevel,
}

/// The levels of effort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EffortLevel {
    /// Least.
    Low,
    /// Less.
    Medium,
    /// The default.
    #[default]
    High,
    /// More.
    Xhigh,
    /// Most.
    Max,
}

/// How fast a model answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speed {
    /// The default.
    #[default]
    Standard,
    /// Faster, where the provider has it.
    Fast,
}

/// Who a session acts as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecutionIdentity {
    /// The server itself.
    ServiceAccount {},
}

/// An MCP server. Holds no secret: credentials are in vaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpServer {
    /// Always `url`.
    #[serde(rename = "type")]
    pub tag: McpServerTag,
    /// 1 to 255 characters, unique in the agent.
    pub name: String,
    /// Where it is asked: http or https, at most 2,048 characters.
    pub url: String,
}

/// The tag of an MCP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum McpServerTag {
    /// The only tag there is.
    Url,
}

/// One entry of an agent's tools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Tool {
    /// The built-in tools.
    #[serde(rename = "agent_toolset_20260401")]
    Toolset {
        /// What holds for tools without an entry of their own.
        default_config: ToolDefaults,
        /// Entries for single tools.
        configs: Vec<ToolConfig>,
    },
    /// The tools of one MCP server, whatever it says they are.
    #[serde(rename = "mcp_toolset")]
    Mcp(McpToolset),
    /// A tool that the client runs.
    #[serde(rename = "custom")]
    Custom(CustomTool),
}

/// What holds for the tools of one MCP server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpToolset {
    /// The server's name in the agent's `mcp_servers`.
    pub mcp_server_name: String,
    /// What holds for tools without an entry of their own.
    pub default_config: ToolDefaults,
    /// Entries for single tools.
    pub configs: Vec<McpToolConfig>,
}

/// The entry of one tool of an MCP server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpToolConfig {
    /// The name that the server gives it, 1 to 128 characters. The server need not have it.
    pub name: String,
    /// Whether it is offered to the model.
    pub enabled: bool,
    /// Who decides whether a call runs.
    pub permission_policy: PermissionPolicy,
}

impl McpToolset {
    /// The policy of a tool; `None` if it is not enabled.
    pub fn policy_of(&self, tool: &str) -> Option<PermissionPolicy> {
        let own = self.configs.iter().find(|config| config.name == tool);
        let (enabled, policy) = match own {
            Some(config) => (config.enabled, config.permission_policy),
            None => (self.default_config.enabled, self.default_config.permission_policy),
        };
        enabled.then_some(policy)
    }
}

/// What holds for a toolset's tools without an entry of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolDefaults {
    /// Whether they are offered to the model.
    pub enabled: bool,
    /// Who decides whether a call runs.
    pub permission_policy: PermissionPolicy,
}

/// One built-in tool's own entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "AnyToolConfig")]
pub struct ToolConfig {
    /// Equal to `name`.
    #[serde(rename = "type")]
    pub kind: BuiltinTool,
    /// Which tool.
    pub name: BuiltinTool,
    /// Whether it is offered to the model.
    pub enabled: bool,
    /// Who decides whether a call runs.
    pub permission_policy: PermissionPolicy,
    /// What only this tool has.
    #[serde(flatten)]
    pub settings: ToolSettings,
}

/// The settings that only some tools have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ToolSettings {
    /// Of `web_fetch`.
    Fetch(FetchSettings),
    /// Of `web_search`.
    Search(SearchSettings),
    /// The others have none.
    Plain {},
}

/// A tool's entry as it is stored: which settings it has depends on its name.
#[derive(Deserialize)]
struct AnyToolConfig {
    #[serde(rename = "type")]
    kind: BuiltinTool,
    name: BuiltinTool,
    enabled: bool,
    permission_policy: PermissionPolicy,
    #[serde(default)]
    allowed_domains: Option<Vec<String>>,
    #[serde(default)]
    blocked_domains: Option<Vec<String>>,
    #[serde(default)]
    max_content_tokens: Option<u64>,
    #[serde(default)]
    url_sources: Option<UrlSources>,
    #[serde(default)]
    user_location: Option<UserLocation>,
}

impl From<AnyToolConfig> for ToolConfig {
    fn from(stored: AnyToolConfig) -> Self {
        let AnyToolConfig {
            kind,
            name,
            enabled,
            permission_policy,
            allowed_domains,
            blocked_domains,
            max_content_tokens,
            url_sources,
            user_location,
        } = stored;
        let settings = match name {
            BuiltinTool::WebFetch => ToolSettings::Fetch(FetchSettings {
                allowed_domains,
                blocked_domains,
                max_content_tokens,
                url_sources,
            }),
            BuiltinTool::WebSearch => {
                ToolSettings::Search(SearchSettings { allowed_domains, blocked_domains, user_location })
            }
            BuiltinTool::Bash
            | BuiltinTool::Read
            | BuiltinTool::Write
            | BuiltinTool::Edit
            | BuiltinTool::Glob
            | BuiltinTool::Grep => ToolSettings::Plain {},
        };
        Self { kind, name, enabled, permission_policy, settings }
    }
}

/// A tool that the client runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CustomTool {
    /// 1 to 128 of `[A-Za-z0-9_-]`.
    pub name: String,
    /// For the model.
    pub description: String,
    /// A JSON Schema, kept verbatim.
    pub input_schema: Map<String, Value>,
}

/// The built-in tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuiltinTool {
    /// A persistent shell.
    Bash,
    /// Reads a file.
    Read,
    /// Writes a file.
    Write,
    /// Replaces text in a file.
    Edit,
    /// Finds files by name.
    Glob,
    /// Finds lines in files.
    Grep,
    /// Fetches a web page. Runs in the server.
    WebFetch,
    /// Searches the web. Runs in the server, and only where a search provider is configured.
    WebSearch,
}

impl BuiltinTool {
    /// All of them, in the wire's order.
    pub const ALL: [Self; 8] = [
        Self::Bash,
        Self::Read,
        Self::Write,
        Self::Edit,
        Self::Glob,
        Self::Grep,
        Self::WebFetch,
        Self::WebSearch,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Read => "read",
            Self::Write => "write",
            Self::Edit => "edit",
            Self::Glob => "glob",
            Self::Grep => "grep",
            Self::WebFetch => "web_fetch",
            Self::WebSearch => "web_search",
        }
    }

    /// The tool of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }

    /// Whether it runs in the server and never needs a sandbox.
    pub fn is_web(self) -> bool {
        matches!(self, Self::WebFetch | Self::WebSearch)
    }

    /// Whether running it twice is the same as running it once: what was cut off may simply be run again.
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::Read | Self::Glob | Self::Grep | Self::WebFetch | Self::WebSearch)
    }
}

/// Who decides whether a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PermissionPolicy {
    /// It runs.
    AlwaysAllow {},
    /// The client is asked.
    AlwaysAsk {},
    /// A judge decides. This server has none, so the client is asked.
    Auto {},
}

impl AgentSpec {
    /// The policy of a built-in tool: its own entry, else the toolset's default; `None` if it is not enabled.
    pub fn policy_of(&self, tool: BuiltinTool) -> Option<PermissionPolicy> {
        self.tools.iter().find_map(|entry| match entry {
            Tool::Toolset { default_config, configs } => {
                let own = configs.iter().find(|config| config.name == tool);
                let (enabled, policy) = match own {
                    Some(config) => (config.enabled, config.permission_policy),
                    None => (default_config.enabled, default_config.permission_policy),
                };
                enabled.then_some(policy)
            }
            Tool::Mcp(_) | Tool::Custom(_) => None,
        })
    }

    /// What holds for the tools of an MCP server.
    pub fn mcp_toolset(&self, server: &str) -> Option<&McpToolset> {
        self.tools.iter().find_map(|entry| match entry {
            Tool::Mcp(toolset) if toolset.mcp_server_name == server => Some(toolset),
            Tool::Mcp(_) | Tool::Toolset { .. } | Tool::Custom(_) => None,
        })
    }

    /// What `web_fetch` is to obey. Nothing in particular, if it has no entry of its own.
    pub fn fetch_settings(&self) -> FetchSettings {
        let own = self.configs().find_map(|config| match &config.settings {
            ToolSettings::Fetch(settings) => Some(settings.clone()),
            ToolSettings::Search(_) | ToolSettings::Plain {} => None,
        });
        own.unwrap_or_default()
    }

    /// What `web_search` is to obey. Nothing in particular, if it has no entry of its own.
    pub fn search_settings(&self) -> SearchSettings {
        let own = self.configs().find_map(|config| match &config.settings {
            ToolSettings::Search(settings) => Some(settings.clone()),
            ToolSettings::Fetch(_) | ToolSettings::Plain {} => None,
        });
        own.unwrap_or_default()
    }

    fn configs(&self) -> impl Iterator<Item = &ToolConfig> {
        self.tools.iter().flat_map(|entry| match entry {
            Tool::Toolset { default_config: _, configs } => configs.as_slice(),
            Tool::Mcp(_) | Tool::Custom(_) => &[],
        })
    }

    /// The client-run tool of that name.
    pub fn custom_tool(&self, name: &str) -> Option<&CustomTool> {
        self.tools.iter().find_map(|entry| match entry {
            Tool::Custom(tool) if tool.name == name => Some(tool),
            Tool::Custom(_) | Tool::Mcp(_) | Tool::Toolset { .. } => None,
        })
    }
}
