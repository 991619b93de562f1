//! What of its servers' tools a model is offered in one turn, and whose a call is.

use std::collections::HashMap;
use std::sync::Arc;

use mcp::{Tool, named};
use protocol::agent::{AgentSpec, PermissionPolicy};
use serde_json::Value;

use crate::model::ToolSpec;

/// How many tools of MCP servers are offered at once: as many as an agent may have tools.
const OFFERED_MAX: usize = 256;

/// The tools of a turn. The same agent and the same lists always give the same bytes.
#[derive(Debug, Default)]
pub(crate) struct Offer {
    specs: Vec<ToolSpec>,
    /// By the name before the model. Holds those that are not enabled, too.
    tools: HashMap<String, Known>,
    /// The servers' names, with the beginning of their tools' names before the model.
    servers: Vec<(String, String)>,
}

#[derive(Debug)]
struct Known {
    server: String,
    tool: String,
    policy: Option<PermissionPolicy>,
}

/// Whose a call is, and whether it may run.
pub(crate) struct Called<'a> {
    pub(crate) server: &'a str,
    pub(crate) tool: &'a str,
    /// `None` if the tool is not enabled, or not there.
    pub(crate) policy: Option<PermissionPolicy>,
    /// Whether the server has it, as far as is known.
    pub(crate) is_there: bool,
}

impl Offer {
    /// What an agent offers, given the lists of those of its servers that have one, in the agent's order.
    pub(crate) fn new(spec: &AgentSpec, lists: &[(&str, Arc<Vec<Tool>>)]) -> Self {
        let names: Vec<(&str, Vec<&str>)> = lists
            .iter()
            .map(|(server, tools)| (*server, tools.iter().map(|tool| tool.name.as_str()).collect()))
            .collect();
        let mut offer = Self::default();
        for named in named(&names) {
            let (server, tools) = &lists[named.server];
            let policy = spec.mcp_toolset(server).and_then(|toolset| toolset.policy_of(named.tool));
            let known = Known { server: (*server).to_owned(), tool: named.tool.to_owned(), policy };
            offer.tools.insert(named.name.clone(), known);
            let Some(tool) = tools.iter().find(|tool| tool.name == named.tool).filter(|_| policy.is_some())
            else {
                continue;
            };
            if offer.specs.len() == OFFERED_MAX {
                tracing::warn!(server, tool = tool.name, "an MCP tool is not offered: there are too many");
                continue;
            }
            offer.specs.push(ToolSpec {
                name: named.name,
                description: described(server, &tool.description),
                input_schema: Value::Object(tool.input_schema.clone()),
            });
        }
        let servers =
            spec.mcp_servers.iter().map(|server| (server.name.clone(), format!("mcp__{}__", server.name)));
        offer.servers = servers.collect();
        offer
    }

    /// In the order in which the model is told of them.
    pub(crate) fn specs(&self) -> &[ToolSpec] {
        &self.specs
    }

    /// Whose tool the model has called by this name; `None` if it is no MCP server's.
    pub(crate) fn called<'a>(&'a self, name: &'a str) -> Option<Called<'a>> {
        if let Some(Known { server, tool, policy }) = self.tools.get(name) {
            return Some(Called { server, tool, policy: *policy, is_there: true });
        }
        // It may stand in the conversation from when it was offered.
        let (server, prefix) = self.servers.iter().find(|(_, prefix)| name.starts_with(prefix.as_str()))?;
        Some(Called { server, tool: &name[prefix.len()..], policy: None, is_there: false })
    }
}

/// What the server says of its tool, and that it is the server who says it.
fn described(server: &str, description: &str) -> String {
    if description.is_empty() {
        return format!("A tool of the MCP server {server}.");
    }
    format!("(MCP server {server}) {description}")
}
