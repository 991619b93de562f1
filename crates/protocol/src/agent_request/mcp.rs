//! MCP servers and their toolsets, and that each has its other half.

use serde_json::Value;
use url::Url;

use super::tools::{TOOL_NAME_CHARS_MAX, default_config, permission_policy};
use crate::agent::{
    AgentSpec, McpServer, McpServerTag, McpToolConfig, McpToolset, PermissionPolicy, Tool, ToolDefaults,
};
use crate::parse::{Fields, Invalid, Parsed, boolean, clipped, list, text};

const SERVERS_MAX: usize = 20;
const SERVER_NAME_CHARS_MAX: usize = 255;
const URL_CHARS_MAX: usize = 2_048;
/// How many tools of a server may have an entry. As many as an agent may have tools.
const CONFIGS_MAX: usize = 256;

/// The `mcp_servers` of an agent, an override or a session's update. Whether each has a toolset is checked on the whole
/// agent, by [`check_pairs`].
pub fn mcp_servers(value: Value, path: &str) -> Parsed<Vec<McpServer>> {
    let servers = list(0..=SERVERS_MAX, server)(value, path)?;
    for (index, server) in servers.iter().enumerate() {
        if servers[..index].iter().any(|earlier| earlier.name == server.name) {
            let rule = format!("another server is already called `{}`", clipped(&server.name));
            return Err(Invalid::new(format!("{path}[{index}].name"), rule));
        }
    }
    Ok(servers)
}

fn server(value: Value, path: &str) -> Parsed<McpServer> {
    let mut fields = Fields::new(value, path)?;
    fields.tag(&["url"])?;
    let server = McpServer {
        tag: McpServerTag::Url,
        name: fields.required("name", text(1..=SERVER_NAME_CHARS_MAX))?,
        url: fields.required("url", address)?,
    };
    fields.finish()?;
    Ok(server)
}

/// Kept as it was written. Whether the host may be reached is for the guard to say, when it is.
fn address(value: Value, path: &str) -> Parsed<String> {
    let written = text(1..=URL_CHARS_MAX)(value, path)?;
    let url =
        Url::parse(&written).map_err(|_| Invalid::new(path, "must be a URL such as https://host/path"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Invalid::new(path, "must begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Invalid::new(
            path,
            "must not contain a user or a password: credentials belong in a vault",
        ));
    }
    if url.fragment().is_some() {
        return Err(Invalid::new(path, "must not contain a fragment"));
    }
    Ok(written)
}

pub(super) fn toolset(fields: &mut Fields) -> Parsed<McpToolset> {
    let mcp_server_name = fields.required("mcp_server_name", text(1..=SERVER_NAME_CHARS_MAX))?;
    let default_config = default_config(fields, PermissionPolicy::AlwaysAsk {})?;
    let path = fields.path_of("configs");
    let configs = fields
        .optional("configs", list(0..=CONFIGS_MAX, |value, path| tool_config(value, path, &default_config)))?
        .unwrap_or_default();
    for (index, config) in configs.iter().enumerate() {
        if configs[..index].iter().any(|earlier| earlier.name == config.name) {
            let rule = format!("`{}` is configured twice", clipped(&config.name));
            return Err(Invalid::new(format!("{path}[{index}].name"), rule));
        }
    }
    Ok(McpToolset { mcp_server_name, default_config, configs })
}

fn tool_config(value: Value, path: &str, defaults: &ToolDefaults) -> Parsed<McpToolConfig> {
    let mut fields = Fields::new(value, path)?;
    let config = McpToolConfig {
        name: fields.required("name", text(1..=TOOL_NAME_CHARS_MAX))?,
        enabled: fields.optional("enabled", boolean)?.unwrap_or(defaults.enabled),
        permission_policy: fields
            .optional("permission_policy", permission_policy)?
            .unwrap_or(defaults.permission_policy),
    };
    fields.finish()?;
    Ok(config)
}

/// Checks that each server of an agent has its toolset and each toolset its server. `path` is where the agent stands in
/// the body, empty for the body itself.
pub fn check_pairs(spec: &AgentSpec, path: &str) -> Parsed<()> {
    let field = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for (index, tool) in spec.tools.iter().enumerate() {
        let Tool::Mcp(McpToolset { mcp_server_name: name, .. }) = tool else { continue };
        if !spec.mcp_servers.iter().any(|server| server.name == *name) {
            let rule = format!("no server of `mcp_servers` is called `{}`", clipped(name));
            return Err(Invalid::new(format!("{}[{index}].mcp_server_name", field("tools")), rule));
        }
    }
    for (index, server) in spec.mcp_servers.iter().enumerate() {
        if spec.mcp_toolset(&server.name).is_none() {
            let rule = format!("`tools` has no `mcp_toolset` for the server `{}`", clipped(&server.name));
            return Err(Invalid::new(format!("{}[{index}]", field("mcp_servers")), rule));
        }
    }
    Ok(())
}
